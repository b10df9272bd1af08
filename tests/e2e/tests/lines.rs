//! Lines of wide area networks: a rate, a round trip, a queue. Whatever the congestion control loses on them, transfers
//! arrive, and a guest moves or stays where it was. `cargo xtask lab lines` is the whole matrix.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{JOB, PATIENCE, Scene, Setting, VM, lab, noise, turn};
use harness::lines::Line;
use harness::{LinkSettings, files};

const MIB: usize = 1 << 20;

fn image(mib: usize) -> Result<(tempfile::TempDir, PathBuf)> {
    let dir = tempfile::Builder::new().prefix("lh-image-").tempdir()?;
    let path = dir.path().join("disk.raw");
    files::write(&path, noise(7, mib * MIB))?;
    Ok((dir, path))
}

const fn line(rate_mb_s: u64, round_trip_ms: u64, queue_tenths: u64, congestion: &'static str) -> Line {
    Line { rate_mb_s, round_trip_ms, queue_tenths, congestion }
}

/// On each of them a stream of 64 MiB in flight loses more than 1024 separate parts at once.
#[test]
fn transfers_arrive_over_lines_that_lose_bursts() -> Result<()> {
    let turn = turn("transfers_arrive_over_lines_that_lose_bursts");
    let (_dir, image) = image(64)?;
    let lines = [
        line(100, 100, 10, "bbr"),
        line(100, 200, 40, "bbr"),
        line(500, 200, 1, "bbr"),
        line(500, 100, 10, "cubic"),
        line(200, 200, 1, "cubic"),
    ];
    for line in lines {
        let crossing = line.cross(&image)?;
        turn.say(&format!("{line}: {crossing:?}"));
        // A machine too slow for the faster ones never fills them.
        ensure!(crossing.overflowed > 0 || line.rate_mb_s > 200, "{line}: the line was never full");
    }
    Ok(())
}

#[test]
fn a_guest_moves_over_a_line_or_stays_where_it_was() -> Result<()> {
    let turn = turn("a_guest_moves_over_a_line_or_stays_where_it_was");
    for line in [line(100, 50, 10, "cubic"), line(500, 100, 1, "cubic")] {
        let link = LinkSettings {
            delay: Duration::from_millis(line.round_trip_ms) / 2,
            rate_bytes_s: Some(line.rate_mb_s * 1_000_000 / 8),
            // A relay counts what is under way as well.
            queue_bytes: (line.product_bytes() / 2 + line.queue_bytes()) as usize,
            ..LinkSettings::default()
        };
        let scene = Scene::boot(Setting { link: Some(link), long_life: true, ..Setting::default() })?;
        let outcome = scene.sites[0].begin_json(&["migrate", VM, "--to", "b"])?.wait(JOB)?;
        scene.settle()?;
        let owner = scene.owner()?;
        turn.say(&format!("{line}: exit code {:?}, the guest runs on {owner}", outcome.code));
        match outcome.code {
            Some(0) => ensure!(owner == 1, "{line}: it moved and is not there"),
            _ => ensure!(owner == 0 && !outcome.stderr.is_empty(), "{line}: {outcome:?}"),
        }
        scene.lives()?;
        scene.prove(owner)?;
    }
    Ok(())
}

/// It writes the same 8 MiB every second, and the line takes 4 MiB: the move is given up after the 30 s that it may go without
/// getting any nearer, with what would help, and nothing is left of it.
#[test]
fn a_guest_that_outruns_its_line_stays_where_it_was() -> Result<()> {
    let turn = turn("a_guest_that_outruns_its_line_stays_where_it_was");
    let mut scene = Scene::new(Setting { link: Some(LinkSettings::default()), ..Setting::default() })?;
    let workload = &mut scene.guest.workload;
    (workload.rate, workload.group, workload.ring_mib) = (512, 8, 8);
    scene.guest.memory_mib = 80;
    let a = &scene.sites[0];
    a.place_disk(VM, &lab()?.1)?;
    a.start_guest(&scene.guest)?;
    scene.collector.wait_acked(16, PATIENCE)?;
    a.cli(&["replicate", VM, "--to", "b"])?;
    let slow = LinkSettings { rate_bytes_s: Some(4 << 20), ..LinkSettings::default() };
    scene.relays.iter().for_each(|relay| relay.set(slow));
    let begun = Instant::now();
    let outcome = a.begin(&["migrate", VM, "--to", "b"])?.wait(2 * JOB)?;
    turn.say(&format!("given up after {:.1} s", begun.elapsed().as_secs_f64()));
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    // The pause that it would take, and both ways out.
    for advice in ["MiB/s", "--max-downtime ", "--cold"] {
        ensure!(outcome.stderr.contains(advice), "no {advice} in {outcome:?}");
    }
    scene.settle()?;
    let jobs = a.cli(&["job", "list"])?;
    let mut jobs = jobs.as_array().context("a list of jobs")?.iter();
    ensure!(jobs.any(|job| job["kind"] == "migrate_out" && job["state"] == "failed"), "{jobs:?}");
    assert_eq!(scene.owner()?, 0);
    scene.lives()?;

    // Nothing holds it: over a line that is fast enough it goes.
    scene.relays.iter().for_each(|relay| relay.set(LinkSettings::default()));
    scene.migrate(0, 1)?;
    scene.prove(1)?;
    Ok(())
}
