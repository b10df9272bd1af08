//! What the service needs from a hypervisor, and nothing more: the [`Hypervisor`] trait, its types, its errors.
//!
//! Every future here may be dropped at any await without harm: the commands run to their end in the hypervisor, and
//! [`Hypervisor::rollback`] cleans up from any state. No method resumes a guest but [`Hypervisor::resume`],
//! [`Hypervisor::start`] and, for a guest this host had before, [`Hypervisor::rollback`].

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;

use crate::definition::{DiskFormat, VmDefinition, VmName};
pub use crate::facts::{FeatureWord, GuestFacts};
use crate::qmp::QmpError;

/// Where a guest stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestStatus {
    /// No process.
    Stopped,
    /// The guest's CPUs run.
    Running,
    /// Stopped but whole: paused by us, or loaded by an incoming migration and not resumed yet.
    Paused,
    /// Waits for an incoming migration, or is loading one. Cannot run.
    Incoming,
    /// Stopped by its outgoing migration before the disks are given up; only `finish_memory` or `rollback` go on.
    PreSwitchover,
    /// Its memory went to a destination and its disks are given up; `resume` or `rollback` take both back.
    PostMigrate,
    /// What the hypervisor calls any other state, for example `shutdown`.
    Other(String),
    /// Paused by its hypervisor: the host could not read or write one of its disks, for example for want of space. `resume`
    /// repeats the request and lets it go on.
    DiskError,
    /// Its process exists and does not answer.
    Unresponsive,
}

impl fmt::Display for GuestStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            GuestStatus::Stopped => "stopped",
            GuestStatus::Running => "running",
            GuestStatus::Paused => "paused",
            GuestStatus::Incoming => "incoming",
            GuestStatus::PreSwitchover => "pre-switchover",
            GuestStatus::PostMigrate => "postmigrate",
            GuestStatus::Other(state) => state,
            GuestStatus::DiskError => "paused by a disk error",
            GuestStatus::Unresponsive => "unresponsive",
        })
    }
}

/// Whether a guest runs while it moves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mode {
    /// Until nearly all of its memory is sent.
    #[default]
    Live,
    /// It is stopped before its memory is sent, and each page is sent once.
    Cold,
}

/// How memory is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryParams {
    /// With the guest running, or stopped first.
    pub mode: Mode,
    /// The guest is paused when the rest is predicted to take no longer than this.
    pub max_downtime: Duration,
    /// Upper bound in bytes per second; `None` leaves it to the stream's reader.
    pub max_bandwidth_bytes_s: Option<u64>,
}

/// How far the memory is. All zero until the hypervisor has counted for the first time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryProgress {
    /// Bytes sent so far.
    pub transferred: u64,
    /// Bytes still to be sent.
    pub remaining: u64,
    /// The guest's memory, in bytes.
    pub total: u64,
    /// What the guest dirties, in bytes per second.
    pub dirty_pages_rate_bytes: u64,
}

/// How a guest is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopHow {
    /// The power button; fails with [`DriverError::Timeout`] when the guest has not ended in that time.
    Powerdown(Duration),
    /// At once, like pulling the plug.
    Kill,
}

/// What a tap brings into the NBD export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TapKind {
    /// Every write after the tap arrives, some time after the guest has been told that it is done. `drain` waits for
    /// all of them. `tap` returns once the hypervisor is mirroring.
    Mirror,
    /// As `Mirror`, and before that all that the disk holds: `tap` returns once it has arrived.
    Copy,
    /// Old data arrives before it is overwritten (64 KiB clusters): the image under the overlay shows the disk as it
    /// was at the tap. With `bitmap`, a fresh dirty bitmap of that name records every write from then on (it may
    /// contain a few from just before). End it with `untap`.
    CopyBefore {
        /// The bitmap to start; one of the same name is replaced.
        bitmap: Option<String>,
    },
    /// The blocks (64 KiB) dirty in `bitmap` arrive as they were at the tap, perhaps among others, also as they were at the
    /// tap. `finish_dirty` waits for them and clears exactly those bits; any failure keeps them.
    Dirty {
        /// A bitmap that an earlier `CopyBefore` started.
        bitmap: String,
    },
}

/// Which file or block device it is, whatever its path: equal for equal ones, on one host and at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskFile {
    /// The file system.
    pub dev: u64,
    /// The inode.
    pub ino: u64,
    /// A block device's number.
    pub rdev: Option<u64>,
}

impl DiskFile {
    /// That of the file a path leads to. Blocks while the path's file system hangs.
    pub fn at(path: &Path) -> io::Result<DiskFile> {
        Ok(DiskFile::of(&fs::metadata(path)?))
    }

    /// That of an open file.
    pub fn of(meta: &fs::Metadata) -> DiskFile {
        let rdev = meta.file_type().is_block_device().then(|| meta.rdev());
        DiskFile { dev: meta.dev(), ino: meta.ino(), rdev }
    }
}

/// A disk of a guest that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestDisk {
    /// Its name in the definition.
    pub name: String,
    /// The file that the hypervisor has open.
    pub file: DiskFile,
    /// Opens that file again, also where its path leads to another one by now: `/proc/PID/fd/N`. See [`GuestDisk::open`].
    pub descriptor: PathBuf,
    /// Its path as the hypervisor has it: under which it was opened.
    pub path: PathBuf,
    /// The path in the definition leads to another file by now, or to none.
    pub is_replaced: bool,
    /// Its size as the guest sees it, in bytes. A device that was grown under the guest has more.
    pub size_bytes: u64,
    /// What is in the file.
    pub format: DiskFormat,
}

impl GuestDisk {
    /// Opens the very file that the hypervisor has open, for reading. Blocks while its file system hangs.
    pub fn open(&self) -> io::Result<fs::File> {
        let file = fs::File::open(&self.descriptor)?;
        if DiskFile::of(&file.metadata()?) == self.file {
            return Ok(file);
        }
        Err(io::Error::new(io::ErrorKind::NotFound, "the guest's process has ended or closed the file"))
    }
}

/// A tap that [`Hypervisor::tap_all`] is to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tap {
    /// The disk's name in its definition.
    pub disk: String,
    /// The name of the NBD export.
    pub export: String,
    /// What is to arrive there.
    pub kind: TapKind,
}

/// A hypervisor, as one host sees its VMs.
#[async_trait]
pub trait Hypervisor: Send + Sync {
    /// Boots a VM. Its process outlives us.
    async fn start(&self, def: &VmDefinition) -> Result<(), DriverError>;
    /// Starts an empty VM that waits for its memory and never runs before [`Hypervisor::resume`].
    async fn start_incoming(&self, def: &VmDefinition) -> Result<(), DriverError>;
    /// Connects to the incoming VM's migration socket; the caller writes the memory stream and then shuts its side down.
    async fn open_incoming(&self, vm: &VmName) -> Result<UnixStream, DriverError>;
    /// Waits until the memory is loaded; the guest is still paused. Fails when the stream was bad or the process ended.
    async fn incoming_loaded(&self, vm: &VmName) -> Result<(), DriverError>;
    /// Starts to send the memory; the caller reads it from the stream. The guest runs on.
    async fn send_memory(&self, vm: &VmName, params: &MemoryParams) -> Result<UnixStream, DriverError>;
    /// How many bytes of its stream the hypervisor may take for sent although they are still under way, whatever the way,
    /// without harm to its judgement of when to stop the guest.
    fn memory_floor_bytes(&self) -> u64;
    /// Waits until nearly all memory is sent, or all of it, and the guest is stopped, its disks still ours. Gives the moment
    /// in which it stopped, as far as it is known: not before that, and hardly later.
    async fn wait_paused(&self, vm: &VmName) -> Result<Instant, DriverError>;
    /// How far the memory is.
    async fn memory_progress(&self, vm: &VmName) -> Result<MemoryProgress, DriverError>;
    /// From [`GuestStatus::PreSwitchover`]: sends the rest and gives up the guest; then [`GuestStatus::PostMigrate`], from
    /// where nothing but `resume` or `rollback` brings it back, however processes end.
    async fn finish_memory(&self, vm: &VmName) -> Result<(), DriverError>;
    /// Lets the guest run: after a pause, an incoming migration that is loaded, or (taking its disks back) from
    /// [`GuestStatus::PostMigrate`]. Nothing to do when it runs. The caller must own the VM.
    async fn resume(&self, vm: &VmName) -> Result<(), DriverError>;
    /// Stops the guest's CPUs. Nothing to do when they stand still already.
    async fn pause(&self, vm: &VmName) -> Result<(), DriverError>;
    /// Whatever a crash left: ends an outgoing migration, removes all taps, lets the guest run, says where it stands.
    /// A VM that came in and was never resumed here is never resumed by this. Idempotent. Bitmaps of warm passes stay.
    async fn rollback(&self, vm: &VmName) -> Result<GuestStatus, DriverError>;
    /// Whether a VM of this definition can run here and, if it runs now, move in this way; else an error that says why not.
    async fn check_movable(&self, def: &VmDefinition, mode: Mode) -> Result<(), DriverError>;
    /// The definition of a guest that runs here and was not started by us; `None` where the hypervisor knows none of that
    /// name.
    async fn discover(&self, vm: &VmName) -> Result<Option<VmDefinition>, DriverError>;
    /// Where the guest stands.
    async fn status(&self, vm: &VmName) -> Result<GuestStatus, DriverError>;
    /// Ends the VM's process and waits until it is gone. Nothing to do when it is.
    async fn stop(&self, vm: &VmName, how: StopHow) -> Result<(), DriverError>;
    /// The disks of a guest that runs, as its hypervisor has them. An error when another tool has put one elsewhere.
    async fn disks(&self, def: &VmDefinition) -> Result<Vec<GuestDisk>, DriverError>;
    /// What a destination must offer for a guest that runs here; empty where the hypervisor does not tell.
    async fn facts(&self, _vm: &VmName) -> Result<GuestFacts, DriverError> {
        Ok(GuestFacts::default())
    }
    /// Tries whether a guest could come in here: starts its hypervisor's process as [`Hypervisor::start_incoming`] would, with
    /// empty disks of these sizes, compares what it offers with the guest's facts, and ends it. Bounded in time; leaves
    /// nothing behind. An error says what is missing, in the hypervisor's words where it has them.
    async fn probe(
        &self,
        _def: &VmDefinition,
        _disk_sizes: &[u64],
        _facts: Option<&GuestFacts>,
    ) -> Result<(), DriverError> {
        Ok(())
    }
    /// Starts to push from disks into the NBD exports on one unix socket: from all of them, or, on an error, from none. All
    /// [`TapKind::CopyBefore`] and [`TapKind::Dirty`] of one call show their disks at one moment. A tap that an earlier owner
    /// left on one of these disks is removed first.
    async fn tap_all(&self, vm: &VmName, nbd_socket: &Path, taps: &[Tap]) -> Result<(), DriverError>;
    /// [`Hypervisor::tap_all`] of one disk.
    async fn tap(
        &self,
        vm: &VmName,
        disk: &str,
        nbd_socket: &Path,
        export: &str,
        kind: TapKind,
    ) -> Result<(), DriverError> {
        let tap = Tap { disk: disk.into(), export: export.into(), kind };
        self.tap_all(vm, nbd_socket, &[tap]).await
    }
    /// Ends a [`TapKind::Mirror`] or [`TapKind::Copy`] when every write so far has arrived; with the guest paused, that is all of them.
    /// An error means that writes are missing.
    async fn drain(&self, vm: &VmName, disk: &str) -> Result<(), DriverError>;
    /// Waits until the [`TapKind::Dirty`] of all these disks have delivered everything, then ends them. The bits of all of
    /// them are cleared, or of none.
    async fn finish_dirty_all(&self, vm: &VmName, disks: &[&str]) -> Result<(), DriverError>;
    /// [`Hypervisor::finish_dirty_all`] of one disk.
    async fn finish_dirty(&self, vm: &VmName, disk: &str) -> Result<(), DriverError> {
        self.finish_dirty_all(vm, &[disk]).await
    }
    /// Abandons any tap of the disk, or ends a [`TapKind::CopyBefore`]. Idempotent.
    async fn untap(&self, vm: &VmName, disk: &str) -> Result<(), DriverError>;
    /// Whether the bitmap exists, records, and is free for use.
    async fn bitmap_ok(&self, vm: &VmName, disk: &str, name: &str) -> Result<bool, DriverError>;
    /// Removes a bitmap. Idempotent.
    async fn bitmap_remove(&self, vm: &VmName, disk: &str, name: &str) -> Result<(), DriverError>;
}

/// What failed, on which VM, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// There is no process for this VM.
    #[error("VM {vm} is not running here; start it first")]
    NotRunning {
        /// The VM.
        vm: VmName,
    },
    /// There is a process already.
    #[error("VM {vm} is already running here; stop it first")]
    AlreadyRunning {
        /// The VM.
        vm: VmName,
    },
    /// A file or directory of the VM could not be used.
    #[error("VM {vm}: cannot {doing} {}: {source}", path.display())]
    Io {
        /// The VM.
        vm: VmName,
        /// What was being done, as a verb.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A unix socket's path would be too long for the kernel.
    #[error("VM {vm}: the socket path {} has {} bytes; at most {max} work, use a shorter --root", path.display(), path.as_os_str().len())]
    PathTooLong {
        /// The VM.
        vm: VmName,
        /// The path.
        path: PathBuf,
        /// The longest that works, in bytes.
        max: usize,
    },
    /// The hypervisor refused to start it.
    #[error("VM {vm} did not start: {message}")]
    Start {
        /// The VM.
        vm: VmName,
        /// What it said.
        message: String,
    },
    /// The process ended while we used it.
    #[error("VM {vm}: the hypervisor exited while it was to {doing}; end of its log: {log}")]
    Died {
        /// The VM.
        vm: VmName,
        /// What was being done, as a verb.
        doing: &'static str,
        /// The end of its log.
        log: String,
    },
    /// xl refused, or could not be run.
    #[error("VM {vm}: cannot {doing}: xl says: {message}")]
    Xl {
        /// The VM.
        vm: VmName,
        /// What was being done, as a verb.
        doing: &'static str,
        /// The end of what it said.
        message: String,
    },
    /// This VM cannot move, or not in the way that was asked for.
    #[error("VM {vm} cannot move: {why}")]
    NotMovable {
        /// The VM.
        vm: VmName,
        /// Why not, and what to do.
        why: String,
    },
    /// A monitor command failed.
    #[error("VM {vm}: cannot {doing}: {source}")]
    Qmp {
        /// The VM.
        vm: VmName,
        /// What was being done, as a verb.
        doing: &'static str,
        /// Why not.
        source: QmpError,
    },
    /// The migration of the memory failed or was cancelled.
    #[error("VM {vm}: the memory migration is {status} ({reason}); roll back")]
    Migration {
        /// The VM.
        vm: VmName,
        /// The hypervisor's word for its state.
        status: String,
        /// What it gave as the reason.
        reason: String,
    },
    /// The guest is in no state for this.
    #[error("VM {vm}: cannot {doing} while it is {status}; {hint}")]
    WrongState {
        /// The VM.
        vm: VmName,
        /// What was to be done, as a verb.
        doing: &'static str,
        /// Where it stands.
        status: GuestStatus,
        /// What to do.
        hint: &'static str,
    },
    /// A push from a disk failed: what it should have delivered is not whole.
    #[error("VM {vm}, disk {disk}: {reason}; the copy is not whole, begin the disk's pass again")]
    Tap {
        /// The VM.
        vm: VmName,
        /// The disk.
        disk: String,
        /// What happened.
        reason: String,
    },
    /// Another tool has put the guest's device on another node.
    #[error(
        "cannot copy disk '{disk}' of VM '{vm}': its device is on node '{node}' ({file}), made by another tool; commit that \
         or pivot back to node '{disk}', then retry"
    )]
    ForeignGraph {
        /// The VM.
        vm: VmName,
        /// The disk.
        disk: String,
        /// Where its device is.
        node: String,
        /// What that node stores its data in.
        file: String,
    },
    /// The file of a disk is not among those that its QEMU has open.
    #[error(
        "cannot copy disk '{disk}' of VM '{vm}': its QEMU has another file open than the one at {}; put that file back, or \
         stop the VM", path.display()
    )]
    LostFile {
        /// The VM.
        vm: VmName,
        /// The disk.
        disk: String,
        /// The path that QEMU was given.
        path: PathBuf,
    },
    /// A guest cannot come in here.
    #[error("cannot run VM '{vm}' here: QEMU says: {message}; provide what it misses, then retry")]
    CannotRunHere {
        /// The VM.
        vm: VmName,
        /// What QEMU said.
        message: String,
    },
    /// The processor here offers less than the one that the guest has.
    #[error(
        "cannot move VM '{vm}' here: the guest uses a processor with {}, which QEMU does not offer it on this host; give the VM \
         a CPU model that both hosts have (qemu.cpu) and restart it, or move it with another destination",
        missing.join(", ")
    )]
    LesserCpu {
        /// The VM.
        vm: VmName,
        /// What is missing, in QEMU's words where it is known.
        missing: Vec<String>,
    },
    /// The hypervisor's process does not answer.
    #[error(
        "cannot {doing} for VM '{vm}': its QEMU did not answer within {} ms and may hang on its storage; retry, or end it \
         with `longhaul vm stop {vm} --kill`", after.as_millis()
    )]
    Unresponsive {
        /// The VM.
        vm: VmName,
        /// What was to be done, as a verb.
        doing: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// The process was killed and is still there.
    #[error(
        "cannot end VM '{vm}': its process {pid} is still there {} s after it was killed (state {state}{}); retry once its \
         storage is back, or restart the host", after.as_secs(),
        if *state == 'D' { ": it waits in the kernel, for its storage, where no signal reaches it" } else { "" }
    )]
    NotEnding {
        /// The VM.
        vm: VmName,
        /// Its process.
        pid: u32,
        /// The kernel's letter for its state.
        state: char,
        /// How long was waited.
        after: Duration,
    },
    /// The guest dirties its memory faster than it can be sent.
    #[error(
        "cannot move VM '{vm}' while it runs: it dirties its memory as fast as the connection takes it. After {passes} passes \
         in {} s its pause would be {:.1} s ({} MiB at {:.1} MiB/s) where {:.1} s are allowed, and the last passes did not \
         shorten it; allow that pause with `--max-downtime {}s`, or move it with `--cold`",
        after.as_secs(), expected.as_secs_f64(), remaining_bytes >> 20, *bytes_s as f64 / f64::from(1 << 20),
        allowed.as_secs_f64(), expected.as_secs() * 2 + 2
    )]
    NotConverging {
        /// The VM.
        vm: VmName,
        /// How often QEMU has gone over the memory.
        passes: u64,
        /// For how long it was sent.
        after: Duration,
        /// What is left to be sent, in bytes.
        remaining_bytes: u64,
        /// How fast it goes, in bytes per second.
        bytes_s: u64,
        /// How long the guest would stand still.
        expected: Duration,
        /// How long it may.
        allowed: Duration,
    },
    /// The VM has no disk of this name.
    #[error("VM {vm} has no disk {disk:?}")]
    UnknownDisk {
        /// The VM.
        vm: VmName,
        /// The name asked for.
        disk: String,
    },
    /// Something that has a bound took longer.
    #[error("VM {vm}: {doing} took more than {} ms; {hint}", after.as_millis())]
    Timeout {
        /// The VM.
        vm: VmName,
        /// What was waited for.
        doing: &'static str,
        /// The bound.
        after: Duration,
        /// What to do.
        hint: &'static str,
    },
}
