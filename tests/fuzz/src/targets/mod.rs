//! The list of targets: every decoder of bytes that come from the disk or the wire. A decoder that its crate keeps to
//! itself is judged there, in a module `fuzzing`; the public ones are judged here.

mod agents;
mod archive;
mod disk;
mod mobility;
mod text;
mod wire;

use chunkstore::fuzzing as store;
use longhaul::fuzzing as service;
use migrate_driver::fuzzing as driver;

use crate::repair;

/// A decoder and what it is held to.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    /// Reads the input and panics when what was read breaks a promise.
    pub(crate) judge: fn(&[u8]),
    /// Inputs to begin with.
    pub(crate) seeds: fn() -> Vec<Vec<u8>>,
    /// Makes checksums right after a mutation; the number is random.
    pub(crate) repair: fn(&mut [u8], u32),
    /// What judging may allocate, whatever the input's length.
    pub(crate) spare_bytes: usize,
}

const MIB: usize = 1 << 20;

/// A target without checksums.
const fn plain(
    name: &'static str,
    judge: fn(&[u8]),
    seeds: fn() -> Vec<Vec<u8>>,
    spare_bytes: usize,
) -> Target {
    Target { name, judge, seeds, repair: repair::nothing, spare_bytes }
}

/// A target whose format has checksums.
const fn checked(
    name: &'static str,
    judge: fn(&[u8]),
    seeds: fn() -> Vec<Vec<u8>>,
    repair: fn(&mut [u8], u32),
    spare_bytes: usize,
) -> Target {
    Target { name, judge, seeds, repair, spare_bytes }
}

/// All of them. Where more than 1 MiB may be allocated, it is: the longest group a record may hold; a payload of the redo
/// log; a frame whose length is taken before its bytes (twice: a name in it is read before it is found too long); NBD's
/// longest write; a delta, as plain bytes and encoded again; the tree of an image of 1 GiB, twice; a step of an archive, beside a store and what is written out of
/// it.
pub(crate) const TARGETS: &[Target] = &[
    checked("manifest", disk::manifest, disk::manifests, repair::whole, MIB),
    checked("pack", store::pack, store::packs, repair::pack, 8 * MIB),
    checked("replica_state", store::state, store::states, repair::whole, MIB),
    checked("redo_log", store::log, store::logs, repair::log, 3 * MIB),
    checked("replica_tree", store::tree, store::trees, repair::whole, 3 * MIB),
    checked("archive", archive::archive, archive::archives, repair::archive, 8 * MIB),
    plain("encoded", disk::encoded, disk::encodeds, 4 * MIB),
    checked("journal", disk::journal, disk::journals, repair::journal, 5 * MIB),
    plain("open", wire::open, wire::opens, 5 * MIB),
    plain("to_receiver", wire::to_receiver, wire::to_receivers, 5 * MIB),
    plain("to_sender", wire::to_sender, wire::to_senders, 5 * MIB),
    plain("answers", wire::answers, wire::answer_seeds, 5 * MIB),
    plain("frames", wire::frames, wire::frame_seeds, 10 * MIB),
    plain("probe", wire::probe, wire::probes, MIB),
    checked("mobility", mobility::packet, mobility::packets, repair::mobility, MIB),
    plain("agents", agents::orders, agents::histories, MIB),
    plain("nbd_options", driver::nbd_options, driver::nbd_option_seeds, MIB),
    plain("nbd_requests", driver::nbd_requests, driver::nbd_request_seeds, 70 * MIB),
    plain("qmp", driver::qmp_lines, driver::qmp_seeds, MIB),
    plain("xl_stream", driver::xl_stream, driver::xl_seeds, MIB),
    plain("definition", text::definition, text::definitions, MIB),
    plain("plan", service::plan, service::plans, MIB),
    plain("config", service::config, service::configs, MIB),
    plain("peers", service::peers, service::peer_lists, MIB),
    plain("report", service::report, service::reports, MIB),
    plain("names", text::names, text::name_seeds, MIB),
];
