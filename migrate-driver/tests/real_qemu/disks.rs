//! Several disks of one guest: tapped at one moment, all of them or none.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use migrate_driver::nbd::{NbdServer, Overlay};
use migrate_driver::{DriverError, Tap, TapKind};
use serde_json::json;

use crate::common::guest::{DISK_BYTES, check_disk};
use crate::common::{DISK, Host, SECOND, soon};

const DISKS: [&str; 2] = [DISK, SECOND];

/// An overlay for each disk, and the server that fills them.
struct Exports {
    overlays: Vec<Arc<Overlay>>,
    server: NbdServer,
}

impl Exports {
    fn new(host: &Host) -> Exports {
        let overlays: Vec<_> =
            DISKS.iter().map(|_| Arc::new(Overlay::new(DISK_BYTES, host.path()).unwrap())).collect();
        let exports = DISKS.iter().map(|disk| (*disk).to_owned()).zip(overlays.iter().cloned()).collect();
        let server = NbdServer::start(&host.path().join("all.sock"), exports).unwrap();
        Exports { overlays, server }
    }

    async fn tap(&self, host: &Host, kind: &TapKind) -> Result<(), DriverError> {
        let taps = DISKS.map(|disk| Tap { disk: disk.into(), export: disk.into(), kind: kind.clone() });
        host.driver.tap_all(host.vm(), self.server.socket(), &taps).await
    }
}

fn paths(host: &Host) -> Vec<PathBuf> {
    host.def.disks.iter().map(|disk| disk.path.clone()).collect()
}

/// Both disks at the moment of a `CopyBefore`.
fn rescan(host: &Host, exports: &Exports) -> Vec<Vec<u8>> {
    let disks = paths(host).into_iter().zip(&exports.overlays);
    let read = |(path, overlay): (PathBuf, &Arc<Overlay>)| {
        let image = std::fs::File::open(path).unwrap();
        let mut disk = vec![0; DISK_BYTES as usize];
        overlay.read_over(0, &mut disk, |offset, buf| image.read_exact_at(buf, offset)).unwrap();
        disk
    };
    disks.map(read).collect()
}

/// The guest writes to the first disk before it writes to the second one.
fn assert_one_moment(disks: &[Vec<u8>]) {
    let [first, second] = [0, 1].map(|index| check_disk(&disks[index], 0));
    assert!(
        second <= first && first <= second + 1,
        "the first disk is at write {first}, the second one at {second}"
    );
}

fn copy_before() -> TapKind {
    TapKind::CopyBefore { bitmap: Some("pass".into()) }
}

fn dirty() -> TapKind {
    TapKind::Dirty { bitmap: "pass".into() }
}

#[tokio::test]
async fn the_disks_of_a_pass_show_one_moment() {
    let host = Host::with_two_disks().await;
    let monitor = host.monitor().await;
    for _ in 0..5 {
        let exports = Exports::new(&host);
        exports.tap(&host, &copy_before()).await.unwrap();
        host.wait_for_writes(300).await;
        let mut replica = rescan(&host, &exports);
        assert_one_moment(&replica);
        for disk in DISKS {
            host.driver.untap(host.vm(), disk).await.unwrap();
        }
        drop(exports);
        for _ in 0..3 {
            host.wait_for_writes(30).await;
            let exports = Exports::new(&host);
            exports.tap(&host, &dirty()).await.unwrap();
            soon("finish_dirty_all", host.driver.finish_dirty_all(host.vm(), &DISKS)).await.unwrap();
            for (disk, overlay) in replica.iter_mut().zip(&exports.overlays) {
                for range in overlay.take_dirty() {
                    overlay
                        .read_at(range.start, &mut disk[range.start as usize..range.end as usize])
                        .unwrap();
                }
                assert_eq!(overlay.failed(), None);
            }
            assert_one_moment(&replica);
        }
    }
    host.assert_no_trace(&monitor).await;
}

#[tokio::test]
async fn disks_are_tapped_all_or_none() {
    let host = Host::with_two_disks().await;
    let monitor = host.monitor().await;
    let exports = Exports::new(&host);
    let tap = |disk: &str, export: &str, kind: &TapKind| Tap {
        disk: disk.into(),
        export: export.into(),
        kind: kind.clone(),
    };
    for kind in [copy_before(), TapKind::Mirror] {
        for second in [tap(SECOND, "nosuch", &kind), tap("nosuch", SECOND, &kind), tap(DISK, DISK, &kind)] {
            let taps = [tap(DISK, DISK, &kind), second];
            host.driver.tap_all(host.vm(), exports.server.socket(), &taps).await.unwrap_err();
            host.assert_no_trace(&monitor).await;
            assert!(!host.driver.bitmap_ok(host.vm(), SECOND, "pass").await.unwrap());
        }
    }
    // The second disk has no such bitmap, so the first one's is not touched.
    exports.tap(&host, &TapKind::CopyBefore { bitmap: None }).await.unwrap();
    host.driver.tap(host.vm(), DISK, exports.server.socket(), DISK, copy_before()).await.unwrap();
    for disk in DISKS {
        host.driver.untap(host.vm(), disk).await.unwrap();
    }
    let error = exports.tap(&host, &dirty()).await.unwrap_err();
    assert!(error.to_string().contains("rescan"), "{error}");
    assert!(host.driver.bitmap_ok(host.vm(), DISK, "pass").await.unwrap());
    host.assert_no_trace(&monitor).await;
    host.wait_for_writes(20).await;
}

/// As when a daemon was killed in a pass: the next one begins with whatever it finds.
#[tokio::test]
async fn a_tap_that_a_dead_daemon_left_is_removed_by_the_next() {
    let mut host = Host::with_two_disks().await;
    let monitor = host.monitor().await;
    let first = Exports::new(&host);
    first.tap(&host, &copy_before()).await.unwrap();
    drop(first);
    for kind in [copy_before(), dirty(), TapKind::Mirror, dirty(), copy_before()] {
        host.restart_daemon();
        let exports = Exports::new(&host);
        exports.tap(&host, &kind).await.unwrap();
        host.wait_for_writes(30).await;
        drop(exports);
    }
    host.restart_daemon();
    host.driver.rollback(host.vm()).await.unwrap();
    host.assert_no_trace(&monitor).await;
    host.wait_for_writes(30).await;
}

/// A filter that an older daemon has put between the device and the disk.
#[tokio::test]
async fn a_filter_above_the_disk_is_removed_too() {
    let host = Host::with_two_disks().await;
    let monitor = host.monitor().await;
    let exports = Exports::new(&host);
    let socket = exports.server.socket();
    let target = json!({"driver": "nbd", "node-name": "longhaul-root", "export": DISK,
        "server": {"type": "unix", "path": socket}});
    monitor.execute("blockdev-add", Some(target)).await.unwrap();
    let filter = json!({"driver": "copy-before-write", "node-name": "longhaul-root.cbw", "file": DISK,
        "target": "longhaul-root", "on-cbw-error": "break-snapshot"});
    monitor.execute("blockdev-add", Some(filter)).await.unwrap();
    let drive = json!({"path": "/machine/peripheral/root-dev/virtio-backend", "property": "drive",
        "value": "longhaul-root.cbw"});
    monitor.execute("qom-set", Some(drive)).await.unwrap();
    exports.tap(&host, &copy_before()).await.unwrap();
    host.wait_for_writes(100).await;
    assert_one_moment(&rescan(&host, &exports));
    host.driver.rollback(host.vm()).await.unwrap();
    host.assert_no_trace(&monitor).await;
}
