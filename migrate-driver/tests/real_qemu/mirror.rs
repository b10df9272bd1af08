//! The tap of a migration, and what it does to the guest when our side is slow or gone.

use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use migrate_driver::nbd::{NbdServer, Overlay};
use migrate_driver::{DriverError, TapKind};
use serde_json::json;

use crate::common::guest::{AREA_START, DISK_BYTES, Pace, SLOT_BYTES, SLOTS, check_disk};
use crate::common::{DISK, Host, Tap, soon};

/// An overlay for a disk of so many bytes, and the server that fills it.
fn overlay_of(disk: &str, size: usize, host: &Host) -> (Arc<Overlay>, NbdServer) {
    let overlay = Arc::new(Overlay::new(size as u64, host.path()).unwrap());
    let socket = host.path().join(format!("{disk}.sock"));
    let server = NbdServer::start(&socket, vec![(disk.into(), overlay.clone())]).unwrap();
    (overlay, server)
}

#[tokio::test]
async fn every_write_arrives_and_a_4_kib_write_is_4_kib() {
    let host = Host::with_guest(Pace::Steady).await;
    // Paused, the disk says exactly which writes came before the tap and which before the drain.
    host.driver.pause(host.vm()).await.unwrap();
    let before = check_disk(&host.image(), host.heard().last());
    let tap = host.tap(TapKind::Mirror).await;
    host.driver.resume(host.vm()).await.unwrap();
    host.wait_for_writes(40).await;
    host.driver.pause(host.vm()).await.unwrap();
    soon("drain", host.driver.drain(host.vm(), DISK)).await.unwrap();
    let last = check_disk(&host.image(), host.heard().last());

    let bytes = u64::from(last - before) * SLOT_BYTES;
    assert!(bytes >= 40 * SLOT_BYTES);
    assert_eq!((tap.overlay.dirty_bytes(), tap.overlay.written_bytes()), (bytes, bytes));
    for counter in before + 1..=last {
        let at = AREA_START + u64::from(counter) % SLOTS * SLOT_BYTES;
        assert!(tap.overlay.covers(at..at + SLOT_BYTES), "{counter} is missing of {before}..={last}");
        let mut page = vec![0; SLOT_BYTES as usize];
        tap.overlay.read_at(at, &mut page).unwrap();
        assert!(page.chunks(4).all(|word| word == counter.to_le_bytes()), "{counter:#x}");
    }
    assert_eq!(tap.overlay.failed(), None);
    host.assert_no_trace(&host.monitor().await).await;
}

#[tokio::test]
async fn the_short_last_block_and_zeroes_arrive_exactly() {
    let host = Host::with_guest(Pace::Steady).await;
    let monitor = host.monitor().await;
    // A second disk that no guest has, so that the monitor may write to it.
    let size = 3 * 65536 + 512;
    let path = host.path().join("odd.raw");
    let file = std::fs::File::create_new(&path).unwrap();
    file.write_all_at(&vec![5; size], 0).unwrap();
    let node = json!({"driver": "raw", "node-name": "odd", "discard": "unmap",
        "file": {"driver": "file", "filename": path, "discard": "unmap"}});
    monitor.execute("blockdev-add", Some(node)).await.unwrap();
    let (overlay, server) = overlay_of("odd", size, &host);
    host.driver.tap(host.vm(), "odd", server.socket(), "odd", TapKind::Mirror).await.unwrap();
    let hmp = |line: String| json!({"command-line": line});
    for command in
        ["write -P 7 196608 512", "write -P 8 512 1024", "discard 65536 65536", "write -z 131072 4096"]
    {
        let line = format!("qemu-io odd \"{command}\"");
        let said = monitor.execute("human-monitor-command", Some(hmp(line))).await.unwrap().to_string();
        assert!(!said.contains("fail") && !said.contains("rror"), "{said}");
    }
    soon("drain", host.driver.drain(host.vm(), "odd")).await.unwrap();
    let mut got = vec![5; size];
    let taken = overlay.take_dirty();
    for range in &taken {
        overlay.read_at(range.start, &mut got[range.start as usize..range.end as usize]).unwrap();
    }
    assert!(got == std::fs::read(&path).unwrap(), "the copy differs; taken {taken:?}");
    assert_eq!(taken, [0..4096, 65536..131_072 + 4096, 196_608..size as u64]);
    assert_eq!(overlay.failed(), None);
}

#[tokio::test]
async fn a_whole_disk_arrives_out_of_a_qcow2_image() {
    let host = Host::with_guest(Pace::Steady).await;
    let monitor = host.monitor().await;
    let (raw, qcow2) = (host.path().join("odd.raw"), host.path().join("odd.qcow2"));
    // Data, a hole, and a last part that is no whole cluster.
    let size = 40 * 65536 + 512;
    let mut disk = vec![0; size];
    disk[..3 * 65536].fill(5);
    disk[size - 700..].fill(6);
    std::fs::write(&raw, &disk).unwrap();
    let mut convert = std::process::Command::new("qemu-img");
    assert!(convert.args(["convert", "-O", "qcow2"]).args([&raw, &qcow2]).status().unwrap().success());
    let node = json!({"driver": "qcow2", "node-name": "odd", "discard": "unmap",
        "file": {"driver": "file", "filename": qcow2, "discard": "unmap"}});
    monitor.execute("blockdev-add", Some(node)).await.unwrap();
    let (overlay, server) = overlay_of("odd", size, &host);
    soon("copy", host.driver.tap(host.vm(), "odd", server.socket(), "odd", TapKind::Copy)).await.unwrap();
    let copied = |overlay: &Overlay| {
        let mut got = vec![1; size];
        overlay.read_at(0, &mut got).unwrap();
        got
    };
    assert!(overlay.covers(0..size as u64), "not all of it arrived");
    assert!(copied(&overlay) == disk, "the copy differs");
    assert_eq!(
        overlay.next_data(4 * 65536).unwrap().map(|data| data.start / 65536),
        Some(39),
        "a hole is a hole"
    );
    overlay.take_dirty();

    // From then on it is a mirror like any other.
    let line = json!({"command-line": "qemu-io odd \"write -P 7 1048576 8192\""});
    let said = monitor.execute("human-monitor-command", Some(line)).await.unwrap().to_string();
    assert!(!said.contains("fail") && !said.contains("rror"), "{said}");
    soon("drain", host.driver.drain(host.vm(), "odd")).await.unwrap();
    disk[1_048_576..1_048_576 + 8192].fill(7);
    assert_eq!(overlay.take_dirty(), vec![1_048_576..1_048_576 + 8192]);
    assert!(copied(&overlay) == disk, "the copy differs");
    assert_eq!(overlay.failed(), None);
}

#[tokio::test]
async fn a_slow_server_does_not_slow_the_guest() {
    let host = Host::with_guest(Pace::Full).await;
    let writes_in = async |time: Duration| {
        let before = host.heard().acknowledged.len();
        tokio::time::sleep(time).await;
        host.heard().acknowledged.len() - before
    };
    let free = writes_in(Duration::from_secs(1)).await;
    let tap = Tap::new(&host);
    let slow = host.path().join("slow.sock");
    delay(&slow, tap.server.socket(), Duration::from_millis(300));
    host.driver.tap(host.vm(), DISK, &slow, "disk", TapKind::Mirror).await.unwrap();
    let slowed = writes_in(Duration::from_secs(1)).await;
    eprintln!("guest writes a second: {free} without a mirror, {slowed} when an answer takes 300 ms");
    // A guest that waits for us would make three or four. (How many it makes otherwise depends on what else runs.)
    assert!(slowed > 20, "{free} writes without, {slowed} with a slow server");
    assert_eq!(host.heard().errors, 0);
    host.driver.pause(host.vm()).await.unwrap();
    soon("drain", host.driver.drain(host.vm(), DISK)).await.unwrap();
    assert_eq!(tap.overlay.failed(), None);
    host.driver.resume(host.vm()).await.unwrap();
}

/// A relay to `server` that holds every answer back for `time`.
fn delay(socket: &Path, server: &Path, time: Duration) {
    let listener = UnixListener::bind(socket).unwrap();
    let server = server.to_owned();
    std::thread::spawn(move || {
        let (client, _) = listener.accept().unwrap();
        let upstream = UnixStream::connect(server).unwrap();
        let pipe = |mut from: UnixStream, mut to: UnixStream, time: Duration| {
            std::thread::spawn(move || {
                let mut buf = vec![0; 1 << 20];
                while let Ok(count @ 1..) = from.read(&mut buf) {
                    std::thread::sleep(time);
                    if to.write_all(&buf[..count]).is_err() {
                        break;
                    }
                }
                let _ = to.shutdown(std::net::Shutdown::Both);
            })
        };
        pipe(client.try_clone().unwrap(), upstream.try_clone().unwrap(), Duration::ZERO);
        pipe(upstream, client, time);
    });
}

#[tokio::test]
async fn a_server_that_vanishes_hurts_nobody() {
    let host = Host::with_guest(Pace::Full).await;
    let monitor = host.monitor().await;
    // With a guest that writes, the job fails; with one that stands still, QEMU does not even notice.
    for paused in [false, true] {
        let tap = host.tap(TapKind::Mirror).await;
        host.wait_for_writes(20).await;
        if paused {
            host.driver.pause(host.vm()).await.unwrap();
        }
        drop(tap);
        if paused {
            host.driver.resume(host.vm()).await.unwrap();
        }
        host.wait_for_writes(200).await;
        let error = soon("drain", host.driver.drain(host.vm(), DISK)).await.unwrap_err();
        assert!(matches!(error, DriverError::Tap { .. }), "{error}");
        assert!(error.to_string().contains("failed"), "{error}");
        for _ in 0..2 {
            host.driver.untap(host.vm(), DISK).await.unwrap();
            host.assert_no_trace(&monitor).await;
        }
    }
    let tap = host.tap(TapKind::Mirror).await;
    host.driver.pause(host.vm()).await.unwrap();
    drop(tap);
    host.driver.untap(host.vm(), DISK).await.unwrap();
    host.assert_no_trace(&monitor).await;
    host.driver.resume(host.vm()).await.unwrap();
    host.wait_for_writes(20).await;
}

#[tokio::test]
async fn what_cannot_be_tapped_is_refused_and_leaves_nothing() {
    let host = Host::with_guest(Pace::Steady).await;
    let monitor = host.monitor().await;
    let tap = Tap::new(&host);
    let socket = tap.server.socket();
    let try_tap = async |disk: &str, socket: &Path, export: &str| {
        host.driver.tap(host.vm(), disk, socket, export, TapKind::Mirror).await.unwrap_err()
    };
    for disk in ["nosuch", "root-file", "", "longhaul-root"] {
        let error = try_tap(disk, socket, "disk").await;
        assert!(matches!(error, DriverError::UnknownDisk { .. }), "{error}");
    }
    let error = try_tap(DISK, socket, "nosuch").await;
    assert!(error.to_string().contains("nosuch"), "{error}");
    let error = try_tap(DISK, Path::new("/nonexistent.sock"), "disk").await;
    assert!(error.to_string().contains("/nonexistent.sock"), "{error}");
    host.assert_no_trace(&monitor).await;
    let error = host.driver.drain(host.vm(), DISK).await.unwrap_err();
    assert!(error.to_string().contains("there is no job"), "{error}");

    // An export of another size cannot be a mirror of this disk.
    let small =
        std::sync::Arc::new(migrate_driver::nbd::Overlay::new(DISK_BYTES - 512, host.path()).unwrap());
    let small_socket = host.path().join("small.sock");
    let _server = migrate_driver::nbd::NbdServer::start(&small_socket, vec![("disk".into(), small)]).unwrap();
    let result = host.driver.tap(host.vm(), DISK, &small_socket, "disk", TapKind::Mirror).await;
    eprintln!("a mirror into a smaller export: {result:?}");
    host.driver.untap(host.vm(), DISK).await.unwrap();

    // A tap takes the place of another one, whose owner may be dead.
    let first = host.tap(TapKind::Mirror).await;
    let tap = host.tap(TapKind::Mirror).await;
    assert_eq!(first.overlay.failed(), None, "QEMU says goodbye");
    host.wait_for_writes(5).await;
    host.driver.untap(host.vm(), DISK).await.unwrap();
    host.assert_no_trace(&monitor).await;
    assert_eq!(tap.overlay.failed(), None, "QEMU says goodbye");
}

#[tokio::test]
async fn drain_is_fast_with_a_guest_that_writes() {
    let host = Host::with_guest(Pace::Full).await;
    let mut times = Vec::new();
    for _ in 0..5 {
        let _tap = host.tap(TapKind::Mirror).await;
        host.wait_for_writes(200).await;
        host.driver.pause(host.vm()).await.unwrap();
        let clock = Instant::now();
        soon("drain", host.driver.drain(host.vm(), DISK)).await.unwrap();
        times.push(clock.elapsed().as_secs_f64() * 1e3);
        host.driver.resume(host.vm()).await.unwrap();
    }
    eprintln!("drain of a paused guest's mirror, ms: {times:.2?}");
    times.sort_by(f64::total_cmp);
    // Without polling sleeps it is a few round trips; leave room for a machine that runs other tests.
    assert!(times[0] < 20.0, "{times:.2?}");
}
