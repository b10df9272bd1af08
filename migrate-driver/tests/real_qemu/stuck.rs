//! A QEMU that does not answer, a stream that nobody reads, a guest that its disk holds up: every wait has a way out.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use migrate_driver::{DriverError, GuestStatus, MemoryParams, Mode, StopHow, TapKind};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::io::AsyncReadExt;

use crate::common::guest::{Pace, check_disk};
use crate::common::{DISK, Host, SECOND, Tap, memory_params, relay, soon};

fn signal(host: &Host, signal: Signal) {
    kill_process(Pid::from_raw(host.pid()).unwrap(), signal).unwrap();
}

#[tokio::test]
async fn a_qemu_that_does_not_answer_is_told_soon_and_can_be_killed() {
    let mut host = Host::with_guest(Pace::Steady).await;
    signal(&host, Signal::STOP);
    for restarted in [false, true] {
        if restarted {
            host.restart_daemon();
        }
        let clock = Instant::now();
        assert_eq!(host.status().await, GuestStatus::Unresponsive);
        assert!(clock.elapsed() < Duration::from_millis(2500), "{:?}", clock.elapsed());
        let error = soon("rollback", host.driver.rollback(host.vm())).await.unwrap_err();
        assert!(matches!(error, DriverError::Unresponsive { .. }), "{error}");
        let error =
            soon("check_movable", host.driver.check_movable(&host.def, Mode::Live)).await.unwrap_err();
        assert!(matches!(error, DriverError::Unresponsive { .. }), "{error}");
    }
    // It goes on as if nothing had been, and what failed is tried again.
    signal(&host, Signal::CONT);
    assert_eq!(soon("rollback", host.driver.rollback(host.vm())).await.unwrap(), GuestStatus::Running);
    host.wait_for_writes(5).await;

    signal(&host, Signal::STOP);
    let clock = Instant::now();
    host.driver.stop(host.vm(), StopHow::Kill).await.unwrap();
    assert!(clock.elapsed() < Duration::from_secs(5), "{:?}", clock.elapsed());
    assert_eq!(host.status().await, GuestStatus::Stopped);
}

#[tokio::test]
async fn a_qemu_without_its_pid_file_is_killed_all_the_same() {
    let host = Host::with_guest(Pace::Steady).await;
    let pid = Pid::from_raw(host.pid()).unwrap();
    fs::remove_file(host.path().join("run/guest/pid")).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    soon("stop", host.driver.stop(host.vm(), StopHow::Kill)).await.unwrap();
    assert_eq!(host.status().await, GuestStatus::Stopped);
}

/// A guest with more memory to be sent than a socket takes: 12 MiB of noise.
async fn with_full_memory() -> Host {
    let mut host = Host::new();
    let noise = host.path().join("noise");
    let mut word = 1_u64;
    let bytes = std::iter::repeat_with(|| {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (word >> 32) as u8
    });
    fs::write(&noise, bytes.take(12 << 20).collect::<Vec<u8>>()).unwrap();
    let loader = format!("loader,file={},addr=0x200000,force-raw=on", noise.display());
    host.def.qemu.args = ["-device", &loader].map(String::from).into();
    crate::common::guest::create_disk(&host.image_path(), Pace::Steady);
    host.driver.start(&host.def).await.unwrap();
    host.wait_for_writes(3).await;
    host
}

/// As when the destination's QEMU is killed in the switchover: the relay lives and reads no more.
#[tokio::test]
async fn a_stream_that_nobody_reads_does_not_keep_the_guest_down() {
    let host = with_full_memory().await;
    // So slow that most of the memory is left when the guest is stopped, which it may be for very long.
    let params = MemoryParams {
        mode: Mode::Live,
        max_downtime: Duration::from_secs(300),
        max_bandwidth_bytes_s: Some(8 << 20),
    };
    let mut memory = host.driver.send_memory(host.vm(), &params).await.unwrap();
    let read = async {
        let mut buf = vec![0; 64 << 10];
        while memory.read(&mut buf).await.unwrap() > 0 {}
        panic!("the stream has ended");
    };
    tokio::select! {
        paused = soon("wait_paused", host.driver.wait_paused(host.vm())) => drop(paused.unwrap()),
        () = read => {}
    }
    assert_eq!(host.status().await, GuestStatus::PreSwitchover);
    let finish = host.driver.finish_memory(host.vm());
    assert!(tokio::time::timeout(Duration::from_millis(500), finish).await.is_err(), "it has sent all of it");
    assert_eq!(host.status().await, GuestStatus::Unresponsive, "QEMU waits in the send");

    let clock = Instant::now();
    assert_eq!(soon("rollback", host.driver.rollback(host.vm())).await.unwrap(), GuestStatus::Running);
    assert!(clock.elapsed() < Duration::from_secs(10), "{:?}", clock.elapsed());
    host.wait_for_writes(20).await;
    drop(memory);

    // The next try goes through.
    let mut target = Host::empty();
    target.def.qemu.args = host.def.qemu.args.clone();
    target.driver.start_incoming(&target.def).await.unwrap();
    let incoming = target.driver.open_incoming(target.vm()).await.unwrap();
    let relayed = relay(host.driver.send_memory(host.vm(), &memory_params()).await.unwrap(), incoming);
    soon("wait_paused", host.driver.wait_paused(host.vm())).await.unwrap();
    soon("finish_memory", host.driver.finish_memory(host.vm())).await.unwrap();
    soon("incoming_loaded", target.driver.incoming_loaded(target.vm())).await.unwrap();
    relayed.await.unwrap();
}

/// A small file system that can be filled. Unmounted when dropped.
struct SmallFs(tempfile::TempDir);

impl SmallFs {
    fn new(mib: u32) -> SmallFs {
        let dir = tempfile::tempdir().unwrap();
        mount(&["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"], dir.path());
        SmallFs(dir)
    }

    fn resize(&self, mib: u32) {
        mount(&["-o", &format!("remount,size={mib}m")], self.0.path());
    }
}

impl Drop for SmallFs {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

fn mount(words: &[&str], path: &Path) {
    assert!(std::process::Command::new("mount").args(words).arg(path).status().unwrap().success());
}

#[tokio::test]
async fn a_guest_that_a_full_file_system_paused_goes_on_when_there_is_room() {
    let small = SmallFs::new(8);
    let mut host = Host::new();
    host.def.disks[0].path = small.0.path().join("root.raw");
    crate::common::guest::create_disk(&host.image_path(), Pace::Full);
    let mut filler = fs::File::create(small.0.path().join("other")).unwrap();
    while filler.write_all(&[1; 65536]).is_ok() {}
    host.driver.start(&host.def).await.unwrap();
    soon("the pause", async {
        while host.status().await != GuestStatus::DiskError {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let error = host.driver.check_movable(&host.def, Mode::Live).await.unwrap_err().to_string();
    assert!(error.contains("make room") && error.contains("longhaul vm start guest"), "{error}");
    let how = StopHow::Powerdown(Duration::from_secs(5));
    let error = host.driver.stop(host.vm(), how).await.unwrap_err().to_string();
    assert!(error.contains("make room"), "{error}");

    small.resize(64);
    host.driver.start(&host.def).await.unwrap();
    host.wait_for_writes(1500).await;
    assert_eq!(host.status().await, GuestStatus::Running);
    host.driver.pause(host.vm()).await.unwrap();
    check_disk(&host.image(), host.heard().last());
}

/// A backup tool's external snapshot: the guest writes to another file from then on.
#[tokio::test]
async fn a_disk_on_another_tools_node_is_refused_and_nothing_is_left() {
    let host = Host::with_two_disks().await;
    let monitor = host.monitor().await;
    let tap = Tap::new(&host);
    let snapshot = host.path().join("snap.qcow2");
    let arguments = json!({"node-name": DISK, "snapshot-file": snapshot, "snapshot-node-name": "snap1",
        "format": "qcow2"});
    monitor.execute("blockdev-snapshot-sync", Some(arguments)).await.unwrap();
    let nodes = async || monitor.execute("query-named-block-nodes", None).await.unwrap().to_string();
    let before = nodes().await;
    let refused = |error: DriverError| {
        let text = error.to_string();
        assert!(matches!(error, DriverError::ForeignGraph { .. }), "{text}");
        assert!(text.contains("snap1") && text.contains("snap.qcow2") && text.contains("commit"), "{text}");
    };
    for kind in [TapKind::CopyBefore { bitmap: Some("pass".into()) }, TapKind::Mirror] {
        let taps = [SECOND, DISK].map(|disk| migrate_driver::Tap {
            disk: disk.into(),
            export: "disk".into(),
            kind: kind.clone(),
        });
        refused(host.driver.tap_all(host.vm(), tap.server.socket(), &taps).await.unwrap_err());
    }
    refused(host.driver.check_movable(&host.def, Mode::Live).await.unwrap_err());
    refused(host.driver.disks(&host.def).await.unwrap_err());
    assert_eq!(soon("rollback", host.driver.rollback(host.vm())).await.unwrap(), GuestStatus::Running);
    for disk in [DISK, SECOND] {
        host.driver.untap(host.vm(), disk).await.unwrap();
    }
    assert_eq!(monitor.execute("query-jobs", None).await.unwrap(), json!([]));
    assert!(!nodes().await.contains("longhaul") && !nodes().await.contains("pass"), "{}", nodes().await);
    assert_eq!(nodes().await.len(), before.len());
    host.wait_for_writes(20).await;
    soon("stop", host.driver.stop(host.vm(), StopHow::Kill)).await.unwrap();
}

/// A line that takes less than the guest dirties: no wait without an end, and a word of what to do.
#[tokio::test]
async fn memory_that_does_not_converge_is_given_up_with_advice() {
    let host = Host::new();
    crate::common::guest::create_disk_of_busy_guest(&host.image_path());
    host.driver.start(&host.def).await.unwrap();
    host.wait_for_writes(3).await;
    let params = MemoryParams { max_downtime: Duration::from_millis(1), ..memory_params() };
    let mut memory = host.driver.send_memory(host.vm(), &params).await.unwrap();
    let line = async {
        let mut buf = vec![0; 4 << 10];
        loop {
            memory.read_exact(&mut buf).await.unwrap();
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    };
    let bound = Duration::from_secs(150);
    let error = tokio::select! {
        waited = tokio::time::timeout(bound, host.driver.wait_paused(host.vm())) => waited.unwrap().unwrap_err(),
        () = line => unreachable!(),
    };
    let DriverError::NotConverging { passes, expected, allowed, .. } = &error else { panic!("{error}") };
    assert!(*passes >= 4 && expected > allowed, "{error}");
    for advice in ["--max-downtime", "--cold"] {
        assert!(error.to_string().contains(advice), "{error}");
    }
    assert_eq!(soon("rollback", host.driver.rollback(host.vm())).await.unwrap(), GuestStatus::Running);
    host.wait_for_writes(20).await;
}
