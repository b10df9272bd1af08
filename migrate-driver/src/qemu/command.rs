//! The QEMU command line of a definition. Pure: the same definition gives the same machine on both ends, and only
//! the paths differ.

#[cfg(test)]
#[path = "command_tests.rs"]
mod tests;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use super::paths::VmPaths;
use crate::definition::{CacheMode, DiskDefinition, NetworkDefinition, VmDefinition};

/// What the process is started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose<'a> {
    /// Boot the guest.
    Boot,
    /// Wait for a migration, and for `cont` after it.
    Incoming,
    /// See whether it starts: as for a migration, over empty disks of these sizes, a child of ours.
    Probe(&'a [u64]),
}

/// The node the guest's disk sits on.
pub(crate) fn file_node(disk: &str) -> String {
    format!("{disk}-file")
}

/// The guest's device for a disk.
pub(crate) fn device_id(disk: &str) -> String {
    format!("{disk}-dev")
}

/// The option that names the pid file, which no two VMs share: a process is known by it too.
pub(crate) const PID_OPTION: &str = "-pidfile";

/// Arguments for `def.qemu.binary`. `is_device(path)` tells block devices from files. Paths should be absolute.
pub(crate) fn arguments(
    def: &VmDefinition,
    paths: &VmPaths,
    purpose: Purpose<'_>,
    is_device: impl Fn(&Path) -> bool,
) -> Vec<OsString> {
    let qemu = &def.qemu;
    let mut args = Args(Vec::new());
    args.pair("-name", def.name.as_str());
    args.pair("-machine", &qemu.machine);
    args.pair("-accel", &qemu.accel);
    args.pair("-cpu", &qemu.cpu);
    args.pair("-smp", def.vcpus.to_string());
    args.pair("-m", memory(def));
    args.one("-nodefaults");
    args.one("-no-user-config");
    args.pair("-display", "none");
    args.pair("-chardev", with_path("file,id=serial0,path=", &paths.serial(), ""));
    args.pair("-serial", "chardev:serial0");
    args.pair("-chardev", with_path("socket,id=qmp0,path=", &paths.qmp(), ",server=on,wait=off"));
    args.pair("-mon", "chardev=qmp0,mode=control");
    for (index, disk) in def.disks.iter().enumerate() {
        match purpose {
            Purpose::Probe(sizes) => empty_disk(&mut args, disk, sizes.get(index).copied()),
            _ => disk_backend(&mut args, disk, qemu.cache, is_device(&disk.path)),
        }
        // Index 0 is taken by the loader of a `kernel`, where there is one.
        let (name, boot) = (&disk.name, index + 1);
        args.pair("-device", format!("virtio-blk-pci,drive={name},id={},bootindex={boot}", device_id(name)));
    }
    if let Some(kernel) = &qemu.kernel {
        args.pair("-kernel", kernel);
    }
    if let Some(initrd) = &qemu.initrd {
        args.pair("-initrd", initrd);
    }
    if let Some(append) = &qemu.append {
        args.pair("-append", append);
    }
    if let Some(network) = &def.network {
        let NetworkDefinition { interface, mac, .. } = network;
        args.pair(
            "-netdev",
            match purpose {
                // Another VM may have the interface by now.
                Purpose::Probe(_) => "hubport,id=home,hubid=0".into(),
                _ => format!("tap,id=home,ifname={interface},script=no,downscript=no"),
            },
        );
        args.pair("-device", format!("virtio-net-pci,netdev=home,mac={mac}"));
    }
    match purpose {
        Purpose::Probe(_) => args.0.extend(harmless(&qemu.args).map(OsString::from)),
        _ => args.0.extend(qemu.args.iter().map(OsString::from)),
    }
    if purpose != Purpose::Boot {
        args.pair("-incoming", "defer");
        args.one("-S");
    }
    // A daemonized QEMU keeps its stderr only when some log item is on. `strace` never logs anything in system
    // emulation, so the log holds error messages and nothing else.
    args.pair("-d", "strace");
    args.pair("-D", paths.log());
    args.pair("-msg", "timestamp=on");
    if !matches!(purpose, Purpose::Probe(_)) {
        args.one("-daemonize");
    }
    args.pair(PID_OPTION, paths.pid());
    args.0
}

/// The guest's memory, in KiB.
///
/// Emulated, it gets one 8 KiB unit more than was asked for. Before QEMU 9.0 a migration of a TCG guest loses writes to
/// its memory: where a RAM block is a multiple of 64 pages, dirty bits are cleared without telling the TLB (fixed by
/// QEMU's commit "physmem: Fix migration dirty bitmap coherency with TCG memory access"). A block of another size takes
/// the other path, which does tell it.
fn memory(def: &VmDefinition) -> String {
    let extra_kib = if def.qemu.accel.starts_with("tcg") { 8 } else { 0 };
    format!("{}k", u64::from(def.memory_mib) * 1024 + extra_kib)
}

/// Further arguments for a probe, without what would take the place of a socket, a port or memory that is in use: monitors,
/// consoles and displays go, character devices that listen or write go nowhere, memory is not allocated beforehand.
fn harmless(args: &[String]) -> impl Iterator<Item = String> {
    const ENDPOINTS: [&str; 8] = ["qmp", "qmp-pretty", "mon", "vnc", "spice", "gdb", "serial", "parallel"];
    let mut kept = Vec::new();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        // QEMU takes one dash or two.
        let option = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')).unwrap_or("");
        match option {
            "mem-prealloc" => {}
            option if ENDPOINTS.contains(&option) => drop(rest.next()),
            "chardev" => {
                let value = rest.next().map_or("", String::as_str);
                let id = value.split(',').find_map(|part| part.strip_prefix("id=")).unwrap_or("");
                kept.push(arg.clone());
                kept.push(if connects(value) { value.into() } else { format!("null,id={id}") });
            }
            _ => kept.push(arg.replace("prealloc=on", "prealloc=off")),
        }
    }
    kept.into_iter()
}

/// Whether a character device connects to somebody who waits for it, as devices of vhost-user need it.
fn connects(chardev: &str) -> bool {
    let listens = |part: &str| part == "server" || part.starts_with("server=");
    chardev.starts_with("socket,") && !chardev.split(',').any(listens)
}

/// A disk that reads as zeroes. What its image would hold, the incoming memory knows.
fn empty_disk(args: &mut Args, disk: &DiskDefinition, size: Option<u64>) {
    let (name, file, size) = (&disk.name, file_node(&disk.name), size.unwrap_or(1 << 20));
    args.pair("-blockdev", format!("driver=null-co,node-name={file},size={size},read-zeroes=on"));
    args.pair("-blockdev", format!("driver=raw,node-name={name},file={file}"));
}

fn disk_backend(args: &mut Args, disk: &DiskDefinition, cache: CacheMode, is_device: bool) {
    let name = &disk.name;
    let driver = if is_device { "host_device" } else { "file" };
    let direct = if cache == CacheMode::None { "on" } else { "off" };
    let file = file_node(name);
    // `discard=unmap`: what the guest discards becomes a hole, so that it costs nothing to move.
    let options = format!(",cache.direct={direct},cache.no-flush=off,discard=unmap");
    args.pair(
        "-blockdev",
        with_path(&format!("driver={driver},node-name={file},filename="), &disk.path, &options),
    );
    let format = disk.format.as_str();
    args.pair("-blockdev", format!("driver={format},node-name={name},file={file}{options}"));
}

struct Args(Vec<OsString>);

impl Args {
    fn one(&mut self, arg: impl AsRef<OsStr>) {
        self.0.push(arg.as_ref().to_owned());
    }

    fn pair(&mut self, option: &str, value: impl AsRef<OsStr>) {
        self.one(option);
        self.one(value);
    }
}

/// `before` + path + `after`, with the path's commas doubled as QEMU's option parser wants them.
fn with_path(before: &str, path: &Path, after: &str) -> OsString {
    let mut bytes = before.as_bytes().to_vec();
    for &byte in path.as_os_str().as_bytes() {
        bytes.push(byte);
        if byte == b',' {
            bytes.push(b',');
        }
    }
    bytes.extend_from_slice(after.as_bytes());
    OsString::from_vec(bytes)
}
