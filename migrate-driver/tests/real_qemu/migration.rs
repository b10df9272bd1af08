//! Memory and disk from one QEMU to another, and all the ways back.

use std::time::Instant;

use migrate_driver::{DriverError, GuestStatus, MemoryParams, Mode, StopHow, TapKind};

use crate::common::guest::{Pace, check_disk};
use crate::common::{DISK, Host, Tap, copy_image, memory_params, relay, soon};

/// Everything up to the moment both guests are paused, the destination loaded and its disk complete.
pub(crate) async fn switch_over(source: &Host, target: &Host) -> Tap {
    let tap = source.tap(TapKind::Mirror).await;
    copy_image(&source.image_path(), &target.image_path());
    source.wait_for_writes(20).await;
    tap.apply(&target.image_path());

    let incoming = target.driver.open_incoming(target.vm()).await.unwrap();
    let relayed = relay(source.send_memory().await, incoming);
    let mut times = Vec::new();
    let mut clock = Instant::now();
    let mut lap = |what: &'static str| {
        times.push(format!("{what} {:.2}", clock.elapsed().as_secs_f64() * 1e3));
        clock = Instant::now();
    };
    soon("wait_paused", source.driver.wait_paused(source.vm())).await.unwrap();
    lap("wait_paused");
    assert_eq!(source.status().await, GuestStatus::PreSwitchover);
    assert_eq!(target.status().await, GuestStatus::Incoming);
    lap("(two status)");
    soon("drain", source.driver.drain(source.vm(), DISK)).await.unwrap();
    lap("drain");
    tap.apply(&target.image_path());
    lap("(apply)");
    soon("finish_memory", source.driver.finish_memory(source.vm())).await.unwrap();
    lap("finish_memory");
    soon("incoming_loaded", target.driver.incoming_loaded(target.vm())).await.unwrap();
    lap("incoming_loaded");
    assert_eq!(source.status().await, GuestStatus::PostMigrate);
    assert_eq!(target.status().await, GuestStatus::Paused);
    assert_eq!(source.image(), target.image(), "the disks differ at the switchover");
    eprintln!("switchover, ms: {}; {} bytes of memory", times.join(", "), relayed.await.unwrap());
    source.assert_still().await;
    target.assert_still().await;
    tap
}

#[tokio::test]
async fn a_cold_migration_stops_the_guest_first_and_can_be_taken_back() {
    let source = Host::with_guest(Pace::Full).await;
    let target = Host::waiting().await;
    let params = MemoryParams { mode: Mode::Cold, ..memory_params() };
    let stopped = Instant::now();
    let memory = source.driver.send_memory(source.vm(), &params).await.unwrap();
    source.assert_still().await;
    let incoming = target.driver.open_incoming(target.vm()).await.unwrap();
    let relayed = relay(memory, incoming);
    let paused = soon("wait_paused", source.driver.wait_paused(source.vm())).await.unwrap();
    assert!(
        paused > stopped && paused.elapsed() > std::time::Duration::from_millis(150),
        "it counts from the stop"
    );
    soon("finish_memory", source.driver.finish_memory(source.vm())).await.unwrap();
    soon("incoming_loaded", target.driver.incoming_loaded(target.vm())).await.unwrap();
    relayed.await.unwrap();
    assert_eq!(source.driver.rollback(source.vm()).await.unwrap(), GuestStatus::Running);
    source.wait_for_writes(20).await;
    target.assert_still().await;
}

#[tokio::test]
async fn a_guest_moves_and_runs_on() {
    let source = Host::with_guest(Pace::Full).await;
    let target = Host::waiting().await;
    switch_over(&source, &target).await;
    let last = source.heard().last();
    let clock = Instant::now();
    target.driver.resume(target.vm()).await.unwrap();
    eprintln!("switchover, ms: resume {:.2}", clock.elapsed().as_secs_f64() * 1e3);
    assert_eq!(target.status().await, GuestStatus::Running);
    target.wait_for_writes(50).await;
    assert!(target.heard().acknowledged[0] <= last + 1, "the guest skipped writes");
    source.assert_still().await;
    source.driver.stop(source.vm(), StopHow::Kill).await.unwrap();
    target.wait_for_writes(50).await;
    target.driver.pause(target.vm()).await.unwrap();
    check_disk(&target.image(), target.heard().last());

    // And it can go on from there: the next migration starts where this one ended.
    target.driver.resume(target.vm()).await.unwrap();
    let third = Host::waiting().await;
    switch_over(&target, &third).await;
    third.driver.resume(third.vm()).await.unwrap();
    third.wait_for_writes(50).await;
}

#[tokio::test]
async fn the_source_takes_its_guest_and_disk_back_from_postmigrate() {
    for restarted in [false, true] {
        let mut source = Host::with_guest(Pace::Full).await;
        let target = Host::waiting().await;
        let tap = switch_over(&source, &target).await;
        // While the source has given its disk up, nobody locks it.
        let mut other = Host::new();
        other.def.disks[0].path = source.image_path();
        other.driver.start_incoming(&other.def).await.unwrap();
        other.driver.stop(other.vm(), StopHow::Kill).await.unwrap();
        target.driver.stop(target.vm(), StopHow::Kill).await.unwrap();
        if restarted {
            drop(tap);
            source.restart_daemon();
            assert_eq!(source.status().await, GuestStatus::PostMigrate);
            assert_eq!(source.driver.rollback(source.vm()).await.unwrap(), GuestStatus::Running);
        } else {
            source.driver.resume(source.vm()).await.unwrap();
        }
        source.wait_for_writes(50).await;
        let error = other.driver.start(&other.def).await.unwrap_err().to_string();
        assert!(error.contains("lock"), "{error}");
        source.driver.pause(source.vm()).await.unwrap();
        check_disk(&source.image(), source.heard().last());
        source.driver.resume(source.vm()).await.unwrap();
        // A second try goes through.
        let second = Host::waiting().await;
        let _tap = switch_over(&source, &second).await;
        second.driver.resume(second.vm()).await.unwrap();
        second.wait_for_writes(20).await;
    }
}

#[tokio::test]
async fn an_incoming_guest_never_runs_on_its_own() {
    let source = Host::with_guest(Pace::Steady).await;
    let mut target = Host::waiting().await;
    for _ in 0..2 {
        assert_eq!(target.status().await, GuestStatus::Incoming);
        assert_eq!(target.driver.rollback(target.vm()).await.unwrap(), GuestStatus::Incoming);
        let error = target.driver.resume(target.vm()).await.unwrap_err();
        assert!(matches!(error, DriverError::WrongState { .. }), "{error}");
        target.restart_daemon();
    }
    let _tap = switch_over(&source, &target).await;
    for _ in 0..2 {
        target.restart_daemon();
        assert_eq!(target.driver.rollback(target.vm()).await.unwrap(), GuestStatus::Paused);
    }
    target.assert_still().await;
    // A destination that was released after its daemon's restart.
    target.driver.resume(target.vm()).await.unwrap();
    target.wait_for_writes(5).await;
    assert_eq!(target.driver.rollback(target.vm()).await.unwrap(), GuestStatus::Running);
}

#[tokio::test]
async fn a_bad_memory_stream_is_an_error_with_qemus_words() {
    let target = Host::waiting().await;
    let mut stream = target.driver.open_incoming(target.vm()).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stream, &[7; 4096]).await.unwrap();
    let error = soon("the error", target.driver.incoming_loaded(target.vm())).await.unwrap_err();
    assert!(matches!(error, DriverError::Died { .. }), "{error}");
    assert!(error.to_string().contains("Not a migration stream"), "{error}");
    assert_eq!(target.status().await, GuestStatus::Stopped);
    target.driver.start_incoming(&target.def).await.unwrap();
    assert_eq!(target.status().await, GuestStatus::Incoming);
}
