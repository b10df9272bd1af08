//! Warm passes: the disk as it was at one moment, and the blocks that changed since the last one.

use std::os::unix::fs::FileExt;
use std::path::Path;

use migrate_driver::{DriverError, TapKind};

use crate::common::guest::{DISK_BYTES, Pace};
use crate::common::{DISK, Host, Tap, soon};

fn copy_before() -> TapKind {
    TapKind::CopyBefore { bitmap: Some("pass".into()) }
}

fn dirty() -> TapKind {
    TapKind::Dirty { bitmap: "pass".into() }
}

/// Taps with the guest paused, so that the disk of that moment is known; the guest then runs on.
async fn tap_at_known_moment(host: &Host, kind: TapKind) -> (Tap, Vec<u8>) {
    host.driver.pause(host.vm()).await.unwrap();
    let image = host.image();
    let tap = host.tap(kind).await;
    host.driver.resume(host.vm()).await.unwrap();
    (tap, image)
}

/// The disk at the tap, read under a running guest in pieces as a rescan would.
fn rescan(host: &Host, tap: &Tap) -> Vec<u8> {
    let image = std::fs::File::open(host.image_path()).unwrap();
    let mut disk = vec![0; DISK_BYTES as usize];
    for (index, part) in disk.chunks_mut(10_000).enumerate() {
        tap.overlay
            .read_over(index as u64 * 10_000, part, |offset, buf| image.read_exact_at(buf, offset))
            .unwrap();
    }
    disk
}

async fn bitmap_ok(host: &Host) -> bool {
    host.driver.bitmap_ok(host.vm(), DISK, "pass").await.unwrap()
}

/// A whole `Dirty` pass into a replica that is as the disk was at the last pass.
async fn dirty_pass(host: &Host, replica: &Path) -> u64 {
    let (tap, expected) = tap_at_known_moment(host, dirty()).await;
    host.wait_for_writes(30).await;
    soon("finish_dirty", host.driver.finish_dirty(host.vm(), DISK)).await.unwrap();
    let bytes = tap.overlay.dirty_bytes();
    tap.apply(replica);
    assert!(std::fs::read(replica).unwrap() == expected, "the replica is not the disk at the tap");
    bytes
}

#[tokio::test]
async fn warm_passes_follow_a_writing_guest() {
    let mut host = Host::with_guest(Pace::Full).await;
    let monitor = host.monitor().await;
    let replica = host.path().join("replica.raw");
    assert!(!bitmap_ok(&host).await);
    let error = host.try_tap(dirty()).await.err().unwrap();
    assert!(matches!(error, DriverError::Tap { .. }), "{error}");

    let (tap, expected) = tap_at_known_moment(&host, copy_before()).await;
    host.wait_for_writes(300).await;
    let seen = rescan(&host, &tap);
    assert!(seen == expected, "the view is not the disk at the tap");
    assert!(host.image() != expected);
    assert!(tap.overlay.written_bytes() > 0);
    assert_eq!(tap.overlay.failed(), None);
    host.driver.untap(host.vm(), DISK).await.unwrap();
    host.assert_no_trace(&monitor).await;
    std::fs::write(&replica, &seen).unwrap();
    assert!(bitmap_ok(&host).await);

    for restarted in [false, true, false] {
        if restarted {
            host.restart_daemon();
        }
        host.wait_for_writes(30).await;
        assert!(dirty_pass(&host, &replica).await > 0);
        host.assert_no_trace(&monitor).await;
        assert!(bitmap_ok(&host).await);
    }
    // Nothing written, nothing sent: the bitmap knows only what came after the last tap.
    host.driver.pause(host.vm()).await.unwrap();
    let first = host.tap(dirty()).await;
    soon("finish_dirty", host.driver.finish_dirty(host.vm(), DISK)).await.unwrap();
    first.apply(&replica);
    let second = host.tap(dirty()).await;
    soon("finish_dirty", host.driver.finish_dirty(host.vm(), DISK)).await.unwrap();
    assert_eq!(second.overlay.dirty_bytes(), 0);
    assert!(std::fs::read(&replica).unwrap() == host.image());

    host.driver.bitmap_remove(host.vm(), DISK, "pass").await.unwrap();
    host.driver.bitmap_remove(host.vm(), DISK, "pass").await.unwrap();
    assert!(!bitmap_ok(&host).await);
}

#[tokio::test]
async fn an_abandoned_pass_loses_no_bits() {
    let mut host = Host::with_guest(Pace::Full).await;
    let monitor = host.monitor().await;
    let replica = host.path().join("replica.raw");
    let (tap, expected) = tap_at_known_moment(&host, copy_before()).await;
    std::fs::write(&replica, expected).unwrap();
    host.wait_for_writes(10).await;
    host.driver.untap(host.vm(), DISK).await.unwrap();
    drop(tap);
    for way in ["untap", "rollback", "server gone", "killed"] {
        let tap = host.tap(dirty()).await;
        host.wait_for_writes(5).await;
        match way {
            "untap" => host.driver.untap(host.vm(), DISK).await.unwrap(),
            "rollback" => drop(host.driver.rollback(host.vm()).await.unwrap()),
            "server gone" => {
                drop(tap);
                // It may have been done before the server went.
                let _ = soon("finish_dirty", host.driver.finish_dirty(host.vm(), DISK)).await;
                host.driver.untap(host.vm(), DISK).await.unwrap();
                // Done, then: what it had is lost, and the caller would begin anew.
                host.driver.bitmap_remove(host.vm(), DISK, "pass").await.unwrap();
                let (tap, expected) = tap_at_known_moment(&host, copy_before()).await;
                std::fs::write(&replica, expected).unwrap();
                host.driver.untap(host.vm(), DISK).await.unwrap();
                drop(tap);
            }
            _ => {
                drop(tap);
                host.restart_daemon();
                host.wait_for_writes(10).await;
                host.driver.rollback(host.vm()).await.unwrap();
            }
        }
        host.assert_no_trace(&monitor).await;
        assert!(bitmap_ok(&host).await, "after {way}");
        host.wait_for_writes(5).await;
    }
    dirty_pass(&host, &replica).await;
}

#[tokio::test]
async fn a_server_that_vanishes_breaks_the_view_and_not_the_guest() {
    let mut host = Host::with_guest(Pace::Full).await;
    let monitor = host.monitor().await;
    for restarted in [false, true] {
        for kind in [copy_before(), dirty()] {
            let tap = host.tap(kind).await;
            drop(tap);
            // More writes than there are slots: every block is hit after the server went.
            host.wait_for_writes(1500).await;
            if restarted {
                host.restart_daemon();
                host.driver.rollback(host.vm()).await.unwrap();
            } else {
                host.driver.untap(host.vm(), DISK).await.unwrap();
            }
            host.assert_no_trace(&monitor).await;
            host.wait_for_writes(20).await;
        }
    }
}

#[tokio::test]
async fn a_broken_view_is_noticed() {
    let host = Host::with_guest(Pace::Full).await;
    let (tap, _) = tap_at_known_moment(&host, copy_before()).await;
    let overlay = tap.overlay.clone();
    host.wait_for_writes(10).await;
    assert_eq!(overlay.failed(), None);
    // Somebody ends QEMU in the middle of the pass.
    host.driver.stop(host.vm(), migrate_driver::StopHow::Kill).await.unwrap();
    soon("the failure", async {
        while overlay.failed().is_none() {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    })
    .await;
}
