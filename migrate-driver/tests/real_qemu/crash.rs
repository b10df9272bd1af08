//! A daemon that dies at any moment, and the next one that finds what it left.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use migrate_driver::{DriverError, GuestStatus, StopHow, TapKind};

use crate::common::guest::{Pace, check_disk};
use crate::common::{DISK, Host, Tap, relay, soon};
use crate::migration::switch_over;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    Mirroring,
    MemoryMoving,
    Paused,
    Drained,
}

const MOMENTS: [Moment; 4] = [Moment::Mirroring, Moment::MemoryMoving, Moment::Paused, Moment::Drained];

/// What a daemon holds in the middle of a migration: server, streams.
type Held = (Tap, Vec<tokio::net::UnixStream>);

/// Goes on to the moment.
async fn reach(source: &Host, target: &Host, moment: Moment) -> Held {
    let tap = source.tap(TapKind::Mirror).await;
    source.wait_for_writes(10).await;
    if moment == Moment::Mirroring {
        return (tap, vec![]);
    }
    let incoming = target.driver.open_incoming(target.vm()).await.unwrap();
    let memory = source.send_memory().await;
    if moment == Moment::MemoryMoving {
        // Nobody reads: the guest has more memory than the socket has room.
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        assert_eq!(source.status().await, GuestStatus::Running);
        return (tap, vec![memory, incoming]);
    }
    let relayed = relay(memory, incoming);
    soon("wait_paused", source.driver.wait_paused(source.vm())).await.unwrap();
    if moment == Moment::Drained {
        soon("drain", source.driver.drain(source.vm(), DISK)).await.unwrap();
    }
    relayed.abort();
    (tap, vec![])
}

#[tokio::test]
async fn the_guest_runs_on_wherever_the_daemon_died() {
    for moment in MOMENTS {
        for restarted in [true, false] {
            eprintln!("{moment:?}, {}", if restarted { "killed" } else { "failed" });
            let mut source = Host::with_guest(Pace::Full).await;
            let monitor = source.monitor().await;
            let target = Host::waiting().await;
            let mut held = Some(reach(&source, &target, moment).await);
            if restarted {
                held = None;
                drop(target);
                source.restart_daemon();
            }
            let expected = match moment {
                Moment::Mirroring | Moment::MemoryMoving => GuestStatus::Running,
                Moment::Paused | Moment::Drained => GuestStatus::PreSwitchover,
            };
            assert_eq!(source.status().await, expected);
            if expected == GuestStatus::PreSwitchover {
                let error = source.driver.resume(source.vm()).await.unwrap_err();
                assert!(matches!(error, DriverError::WrongState { .. }), "{error}");
            }
            for _ in 0..2 {
                let status = soon("rollback", source.driver.rollback(source.vm())).await.unwrap();
                assert_eq!(status, GuestStatus::Running);
                source.assert_no_trace(&monitor).await;
            }
            drop(held);
            source.wait_for_writes(50).await;
            source.driver.pause(source.vm()).await.unwrap();
            check_disk(&source.image(), source.heard().last());
            source.driver.resume(source.vm()).await.unwrap();

            // And the next try goes through.
            let second = Host::waiting().await;
            let _tap = switch_over(&source, &second).await;
            second.driver.resume(second.vm()).await.unwrap();
            second.wait_for_writes(20).await;
        }
    }
}

#[tokio::test]
async fn a_lost_stream_fails_the_waits_and_rolls_back() {
    let source = Host::with_guest(Pace::Full).await;
    let target = Host::waiting().await;
    let incoming = target.driver.open_incoming(target.vm()).await.unwrap();
    let memory = source.send_memory().await;
    let progress = source.driver.memory_progress(source.vm()).await.unwrap();
    let (waited, ()) = tokio::join!(source.driver.wait_paused(source.vm()), async {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        drop(memory);
        drop(incoming);
    });
    let error = waited.unwrap_err();
    assert!(matches!(error, DriverError::Migration { .. }), "{error}");
    let error = soon("incoming_loaded", target.driver.incoming_loaded(target.vm())).await.unwrap_err();
    assert!(matches!(error, DriverError::Died { .. } | DriverError::NotRunning { .. }), "{error}");
    assert_eq!(soon("rollback", source.driver.rollback(source.vm())).await.unwrap(), GuestStatus::Running);
    source.wait_for_writes(20).await;
    eprintln!("progress early: {progress:?}");
}

#[tokio::test]
async fn a_stream_lost_in_finish_memory_gives_the_guest_back() {
    let source = Host::with_guest(Pace::Full).await;
    let target = Host::waiting().await;
    let incoming = target.driver.open_incoming(target.vm()).await.unwrap();
    let relayed = relay(source.send_memory().await, incoming);
    soon("wait_paused", source.driver.wait_paused(source.vm())).await.unwrap();
    relayed.abort();
    let _ = relayed.await;
    let error = soon("finish_memory", source.driver.finish_memory(source.vm())).await.unwrap_err();
    assert!(matches!(error, DriverError::Migration { .. }), "{error}");
    assert_eq!(soon("rollback", source.driver.rollback(source.vm())).await.unwrap(), GuestStatus::Running);
    source.wait_for_writes(20).await;
    source.driver.pause(source.vm()).await.unwrap();
    check_disk(&source.image(), source.heard().last());
}

#[tokio::test]
async fn two_waits_on_one_connection_do_not_disturb_each_other() {
    let source = Host::with_guest(Pace::Full).await;
    let target = Host::waiting().await;
    let _tap = source.tap(TapKind::Mirror).await;
    let incoming = target.driver.open_incoming(target.vm()).await.unwrap();
    let memory = source.send_memory().await;
    let watch = async {
        for _ in 0..20 {
            source.driver.memory_progress(source.vm()).await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        drop(relay(memory, incoming));
    };
    let (paused, ()) =
        soon("both", async { tokio::join!(source.driver.wait_paused(source.vm()), watch) }).await;
    paused.unwrap();
    let progress = source.driver.memory_progress(source.vm()).await.unwrap();
    assert!(progress.transferred > 0 && progress.total >= 16 << 20, "{progress:?}");
    let drained = soon("drain", async {
        tokio::join!(source.driver.drain(source.vm(), DISK), target.driver.status(target.vm()))
    });
    drained.await.0.unwrap();
    assert_eq!(source.driver.rollback(source.vm()).await.unwrap(), GuestStatus::Running);
}

/// As when a migration is cancelled while the destination's QEMU is being started.
#[tokio::test]
async fn a_start_that_is_broken_off_leaves_nothing_behind_a_stop() {
    for after_ms in [0, 1, 2, 5, 10, 20, 40, 80] {
        let host = Host::empty();
        let bound = Duration::from_millis(after_ms);
        let started = tokio::time::timeout(bound, host.driver.start_incoming(&host.def)).await;
        eprintln!("stopped {after_ms} ms into a start: done {}", started.is_ok());
        soon("stop", host.driver.stop(host.vm(), StopHow::Kill)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(host.status().await, GuestStatus::Stopped, "{after_ms} ms into a start");
        host.driver.start_incoming(&host.def).await.unwrap();
    }
}

/// As when a daemon is killed that has just started QEMU: it has written no pid file, and nobody waits for it.
#[tokio::test]
async fn the_next_daemon_finds_a_qemu_that_is_still_starting() {
    let mut host = Host::empty();
    let qemu = host.path().join("slow-qemu");
    fs::write(&qemu, format!("#!/bin/sh\nsleep 1\nexec {} \"$@\"\n", host.def.qemu.binary)).unwrap();
    fs::set_permissions(&qemu, fs::Permissions::from_mode(0o755)).unwrap();
    host.def.qemu.binary = qemu.to_str().unwrap().to_owned();
    let early = Duration::from_millis(300);
    let started = tokio::time::timeout(early, host.driver.start_incoming(&host.def)).await;
    assert!(started.is_err(), "QEMU was there sooner than its wrapper lets it");
    host.restart_daemon();

    assert_eq!(host.status().await, GuestStatus::Stopped);
    let second = host.driver.start_incoming(&host.def).await.unwrap_err();
    assert!(matches!(second, DriverError::AlreadyRunning { .. }), "{second}");
    soon("stop", host.driver.stop(host.vm(), StopHow::Kill)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(host.status().await, GuestStatus::Stopped);
    host.driver.start_incoming(&host.def).await.unwrap();
    assert_eq!(host.status().await, GuestStatus::Incoming);
}

#[tokio::test]
async fn a_daemon_killed_in_the_last_milliseconds_gets_its_guest_back() {
    for after_us in [0, 200, 500, 1000, 2000, 4000, 8000] {
        let mut source = Host::with_guest(Pace::Full).await;
        let monitor = source.monitor().await;
        let target = Host::waiting().await;
        let incoming = target.driver.open_incoming(target.vm()).await.unwrap();
        let relayed = relay(source.send_memory().await, incoming);
        soon("wait_paused", source.driver.wait_paused(source.vm())).await.unwrap();
        let bound = std::time::Duration::from_micros(after_us);
        let finished = tokio::time::timeout(bound, source.driver.finish_memory(source.vm())).await;
        relayed.abort();
        source.restart_daemon();
        let found = source.status().await;
        eprintln!("killed {after_us} us into finish_memory: done {}, then {found}", finished.is_ok());
        assert_eq!(
            soon("rollback", source.driver.rollback(source.vm())).await.unwrap(),
            GuestStatus::Running
        );
        source.assert_no_trace(&monitor).await;
        source.wait_for_writes(20).await;
        assert_ne!(target.status().await, GuestStatus::Running);
        assert!(target.heard().acknowledged.is_empty());
    }
}
