//! Starting, pausing, ending, and finding again.

use std::time::Duration;

use migrate_driver::{DriverError, GuestStatus, Hypervisor, StopHow};

use crate::common::guest::{Pace, check_disk};
use crate::common::{Host, soon};

#[tokio::test]
async fn a_guest_lives_from_start_to_stop() {
    let mut host = Host::with_guest(Pace::Steady).await;
    assert_eq!(host.status().await, GuestStatus::Running);
    let error = host.driver.start(&host.def).await.unwrap_err();
    assert!(matches!(error, DriverError::AlreadyRunning { .. }), "{error}");

    for _ in 0..2 {
        host.driver.pause(host.vm()).await.unwrap();
        assert_eq!(host.status().await, GuestStatus::Paused);
    }
    host.assert_still().await;
    for _ in 0..2 {
        host.driver.resume(host.vm()).await.unwrap();
        assert_eq!(host.status().await, GuestStatus::Running);
    }
    host.wait_for_writes(3).await;

    host.restart_daemon();
    assert_eq!(host.status().await, GuestStatus::Running);
    host.wait_for_writes(3).await;
    assert_eq!(host.driver.rollback(host.vm()).await.unwrap(), GuestStatus::Running);

    for _ in 0..2 {
        host.driver.stop(host.vm(), StopHow::Kill).await.unwrap();
        assert_eq!(host.status().await, GuestStatus::Stopped);
    }
    assert_eq!(host.driver.rollback(host.vm()).await.unwrap(), GuestStatus::Stopped);
    check_disk(&host.image(), host.heard().last());
    let error = host.driver.pause(host.vm()).await.unwrap_err();
    assert!(matches!(error, DriverError::NotRunning { .. }), "{error}");

    host.driver.start(&host.def).await.unwrap();
    host.wait_for_writes(3).await;
}

#[tokio::test]
async fn a_guest_that_ignores_its_power_button_is_reported() {
    let host = Host::with_guest(Pace::Steady).await;
    let how = StopHow::Powerdown(Duration::from_millis(300));
    let error = host.driver.stop(host.vm(), how).await.unwrap_err();
    assert!(matches!(error, DriverError::Timeout { .. }), "{error}");
    assert_eq!(host.status().await, GuestStatus::Running);
}

#[tokio::test]
async fn a_start_that_fails_says_why() {
    let mut host = Host::new();
    let error = host.driver.start(&host.def).await.unwrap_err().to_string();
    assert!(error.contains("root.raw") && error.contains("No such file"), "{error}");
    assert_eq!(host.status().await, GuestStatus::Stopped);
    host.def.qemu.binary = "/nonexistent/qemu".into();
    let error = host.driver.start(&host.def).await.unwrap_err().to_string();
    assert!(error.contains("/nonexistent/qemu"), "{error}");
}

#[tokio::test]
async fn an_image_in_use_is_refused() {
    let host = Host::with_guest(Pace::Steady).await;
    let mut other = Host::new();
    other.def.disks[0].path = host.image_path();
    let error = other.driver.start(&other.def).await.unwrap_err().to_string();
    assert!(error.contains("lock"), "{error}");
}

#[tokio::test]
async fn a_run_directory_too_deep_for_sockets_is_refused() {
    let host = Host::new();
    let qemu = migrate_driver::Qemu::new(host.path().join("x".repeat(100)));
    let error = qemu.start(&host.def).await.unwrap_err();
    assert!(matches!(error, DriverError::PathTooLong { .. }), "{error}");
}

#[tokio::test]
async fn the_end_of_qemu_is_an_error_with_its_last_words() {
    let host = Host::with_guest(Pace::Steady).await;
    // Nobody reads the stream, so this wait lasts until QEMU is gone.
    let _stream = host.send_memory().await;
    let pid = rustix::process::Pid::from_raw(host.pid()).unwrap();
    let (waited, ()) = tokio::join!(host.driver.wait_paused(host.vm()), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    });
    let error = soon("the error", async { waited.unwrap_err() }).await;
    assert!(matches!(error, DriverError::Died { .. }), "{error}");
    assert!(error.to_string().contains("terminating on signal 15"), "{error}");
    assert_eq!(host.status().await, GuestStatus::Stopped);
}
