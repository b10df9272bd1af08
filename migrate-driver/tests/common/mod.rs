//! Two hosts on one machine for tests with a real QEMU, and what a daemon would do between them.

pub(crate) mod guest;

use std::fs;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use migrate_driver::nbd::{NbdServer, Overlay};
use migrate_driver::qmp::Qmp;
use migrate_driver::{
    DiskDefinition, DiskFormat, DriverError, GuestStatus, Hypervisor, MemoryParams, Mode, Qemu,
    QemuDefinition, TapKind, VmDefinition, VmName,
};
use serde_json::json;
use tokio::task::JoinHandle;

use guest::{Heard, Pace};

/// Most waits here are over in milliseconds; this only ends a test that would hang.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// The disk's name in every test.
pub(crate) const DISK: &str = "root";
/// The second disk's, where there is one.
pub(crate) const SECOND: &str = "data";

/// One host: a run directory, an image, a driver. Dropping it kills its VM.
pub(crate) struct Host {
    dir: tempfile::TempDir,
    /// Only the trait: what is tested here holds for every hypervisor.
    pub(crate) driver: Arc<dyn Hypervisor>,
    pub(crate) def: VmDefinition,
}

impl Host {
    /// A host with an empty image directory.
    pub(crate) fn new() -> Host {
        let dir = tempfile::Builder::new().prefix("lh").tempdir().unwrap();
        let driver = Arc::new(Qemu::new(dir.path().join("run")));
        let disk =
            DiskDefinition { name: DISK.into(), path: dir.path().join("root.raw"), format: DiskFormat::Raw };
        let def = VmDefinition {
            name: VmName::new("guest").unwrap(),
            memory_mib: 16,
            vcpus: 1,
            disks: vec![disk],
            network: None,
            qemu: QemuDefinition::default(),
            xen: None,
        };
        require_qemu(&def.qemu.binary);
        Host { dir, driver, def }
    }

    /// A host whose guest runs and has written something.
    pub(crate) async fn with_guest(pace: Pace) -> Host {
        let mut host = Host::new();
        host.add_monitor();
        guest::create_disk(&host.image_path(), pace);
        host.driver.start(&host.def).await.unwrap();
        host.wait_for_writes(3).await;
        host
    }

    /// A host whose guest writes each page to both its disks, in their order.
    pub(crate) async fn with_two_disks() -> Host {
        let mut host = Host::new();
        host.add_monitor();
        let path = host.path().join("data.raw");
        guest::create_two_disks(&host.image_path(), &path, Pace::Full);
        host.def.disks.push(DiskDefinition { name: SECOND.into(), path, format: DiskFormat::Raw });
        host.driver.start(&host.def).await.unwrap();
        host.wait_for_writes(3).await;
        host
    }

    /// A host with an all-zero image and an empty VM that waits for memory.
    pub(crate) async fn waiting() -> Host {
        let host = Host::empty();
        host.driver.start_incoming(&host.def).await.unwrap();
        host
    }

    /// A host with an all-zero image, on which nothing runs.
    pub(crate) fn empty() -> Host {
        let mut host = Host::new();
        host.add_monitor();
        fs::File::create_new(host.image_path()).unwrap().set_len(guest::DISK_BYTES).unwrap();
        host
    }

    /// The same host after its daemon was killed and started again.
    pub(crate) fn restart_daemon(&mut self) {
        self.driver = Arc::new(Qemu::new(self.dir.path().join("run")));
    }

    pub(crate) fn vm(&self) -> &VmName {
        &self.def.name
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn image_path(&self) -> PathBuf {
        self.def.disks[0].path.clone()
    }

    pub(crate) fn image(&self) -> Vec<u8> {
        fs::read(self.image_path()).unwrap()
    }

    pub(crate) fn heard(&self) -> Heard {
        Heard::read(&self.path().join("run/guest/serial.log"))
    }

    pub(crate) async fn status(&self) -> GuestStatus {
        self.driver.status(self.vm()).await.unwrap()
    }

    /// Waits until the guest has acknowledged `count` more writes; fails on a write error the guest saw.
    pub(crate) async fn wait_for_writes(&self, count: usize) {
        let before = self.heard().acknowledged.len();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let heard = self.heard();
            assert_eq!(heard.errors, 0, "the guest saw write errors");
            if heard.acknowledged.len() >= before + count {
                return;
            }
            let log = fs::read_to_string(self.path().join("run/guest/qemu.log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "the guest does not write; QEMU says {log:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Fails when the guest writes within a moment.
    pub(crate) async fn assert_still(&self) {
        let before = self.heard();
        tokio::time::sleep(Duration::from_millis(150)).await;
        assert_eq!(self.heard(), before, "the guest runs");
    }

    /// Puts a tap with an overlay of its own on the disk.
    pub(crate) async fn tap(&self, kind: TapKind) -> Tap {
        self.try_tap(kind).await.unwrap()
    }

    pub(crate) async fn try_tap(&self, kind: TapKind) -> Result<Tap, DriverError> {
        let tap = Tap::new(self);
        self.driver.tap(self.vm(), DISK, tap.server.socket(), "disk", kind).await?;
        Ok(tap)
    }

    /// Starts sending memory with a bound that a guest of 16 MiB always meets.
    pub(crate) async fn send_memory(&self) -> tokio::net::UnixStream {
        self.driver.send_memory(self.vm(), &memory_params()).await.unwrap()
    }

    /// A second monitor, for what a test wants to see or do behind the driver's back. Needs [`Host::add_monitor`].
    pub(crate) async fn monitor(&self) -> Qmp {
        Qmp::connect(&self.path().join("spy.sock"), PATIENCE, PATIENCE).await.unwrap()
    }

    /// Before the start: gives the VM a second monitor.
    pub(crate) fn add_monitor(&mut self) {
        let socket = self.path().join("spy.sock");
        let chardev = format!("socket,id=spy,path={},server=on,wait=off", socket.display());
        self.def.qemu.args =
            ["-chardev", &chardev, "-mon", "chardev=spy,mode=control"].map(String::from).into();
    }

    /// Fails when any node or job of ours is left in QEMU.
    pub(crate) async fn assert_no_trace(&self, monitor: &Qmp) {
        let nodes = monitor.execute("query-named-block-nodes", Some(json!({"flat": true}))).await.unwrap();
        let jobs = monitor.execute("query-jobs", None).await.unwrap();
        let text = format!("{nodes} {jobs}");
        assert!(!text.contains("longhaul"), "{text}");
        let path = format!("/machine/peripheral/{DISK}-dev/virtio-backend");
        let node =
            monitor.execute("qom-get", Some(json!({"path": path, "property": "drive"}))).await.unwrap();
        assert_eq!(node, DISK);
    }

    pub(crate) fn pid(&self) -> i32 {
        fs::read_to_string(self.path().join("run/guest/pid")).unwrap().trim().parse().unwrap()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let pid_path = self.path().join("run/guest/pid");
        let Ok(text) = fs::read_to_string(&pid_path) else { return };
        let Some(pid) = text.trim().parse().ok().and_then(rustix::process::Pid::from_raw) else { return };
        let command = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
        if String::from_utf8_lossy(&command).contains(&*pid_path.to_string_lossy()) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

pub(crate) fn memory_params() -> MemoryParams {
    MemoryParams { mode: Mode::Live, max_downtime: Duration::from_millis(300), max_bandwidth_bytes_s: None }
}

/// Real tests need the real thing; they never pass without it.
fn require_qemu(binary: &str) {
    let found = std::process::Command::new(binary).arg("--version").output();
    assert!(found.is_ok(), "{binary} is not installed; these tests need it: apt-get install qemu-system-x86");
}

static TAPS: AtomicU32 = AtomicU32::new(0);

/// An overlay with its server.
pub(crate) struct Tap {
    pub(crate) overlay: Arc<Overlay>,
    pub(crate) server: NbdServer,
}

impl Tap {
    pub(crate) fn new(host: &Host) -> Tap {
        let size = fs::metadata(host.image_path()).unwrap().len();
        let overlay = Arc::new(Overlay::new(size, host.path()).unwrap());
        let socket = host.path().join(format!("nbd{}.sock", TAPS.fetch_add(1, Ordering::Relaxed)));
        let server = NbdServer::start(&socket, vec![("disk".into(), overlay.clone())]).unwrap();
        Tap { overlay, server }
    }

    /// Writes everything dirty into an image, as the far end of a round would.
    pub(crate) fn apply(&self, image: &Path) -> Vec<Range<u64>> {
        let file = fs::File::options().write(true).open(image).unwrap();
        let ranges = self.overlay.take_dirty();
        for range in &ranges {
            let mut data = vec![0; (range.end - range.start) as usize];
            self.overlay.read_at(range.start, &mut data).unwrap();
            file.write_all_at(&data, range.start).unwrap();
        }
        assert_eq!(self.overlay.failed(), None);
        ranges
    }
}

/// Copies one image over another, in place: QEMU has the target open.
pub(crate) fn copy_image(from: &Path, to: &Path) {
    let data = fs::read(from).unwrap();
    fs::File::options().write(true).open(to).unwrap().write_all_at(&data, 0).unwrap();
}

/// What the daemons do with the memory stream.
pub(crate) fn relay(mut from: tokio::net::UnixStream, mut to: tokio::net::UnixStream) -> JoinHandle<u64> {
    tokio::spawn(async move {
        let bytes = tokio::io::copy(&mut from, &mut to).await.unwrap_or(0);
        let _ = tokio::io::AsyncWriteExt::shutdown(&mut to).await;
        bytes
    })
}

/// Fails a test that hangs, saying where.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what} hangs"))
}
