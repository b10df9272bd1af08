//! The lab proves itself: a real guest on a real image, its plug pulled, every acknowledged record found.

use std::time::Duration;

use anyhow::Result;
use harness::lab::apt;
use harness::{Collector, Guest, Lab, PlainGuest, files, verify_records};

const BOOT: Duration = Duration::from_secs(60);

#[test]
fn a_guest_writes_reports_and_keeps_its_word() -> Result<()> {
    apt::setup()?;
    let lab = Lab::open()?;
    let dir = tempfile::Builder::new().prefix("lh-lab-").tempdir()?;
    let disk = dir.path().join("disk.raw");
    files::copy_sparse(&lab.small_base()?, &disk)?;
    let collector = Collector::start()?;
    let mut guest = Guest::new(&lab, "proof", &disk, collector.port());
    guest.workload.ring_mib = 32;

    let mut running = PlainGuest::boot(&guest, dir.path())?;
    let up = running.wait_console("LONGHAUL-UP", BOOT)?;
    collector.wait_acked(150, BOOT)?;
    assert!(running.console().contains("LONGHAUL-ROOT Debian "), "{}", running.console());
    running.kill()?;

    let stream = collector.snapshot().expect("packets arrived");
    let report = verify_records(&disk, collector.instance().expect("a guest was heard"), collector.acked())?;
    println!("up after {up:?}; {stream:?}; {report:?}");
    assert!(report.is_whole() && report.found >= 150 && report.newest >= report.acked, "{report:?}");
    assert_eq!((stream.duplicated, stream.lost, collector.instances().len()), (0, 0, 1));

    // A second life on the same disk is another instance, and what it has not acknowledged is not there.
    let collector = Collector::start()?;
    guest.workload.port = collector.port();
    let running = PlainGuest::boot(&guest, dir.path())?;
    collector.wait_acked(20, BOOT)?;
    running.kill()?;
    let instance = collector.instance().expect("a guest was heard");
    assert!(verify_records(&disk, instance, collector.acked())?.is_whole());
    assert!(!verify_records(&disk, instance, 100_000)?.is_whole());
    Ok(())
}
