//! Lines of wide area networks: a rate, a round trip, a queue. Whatever the congestion control loses on them, transfers
//! arrive, and a guest moves or stays where it was. `cargo xtask lab lines` is the whole matrix.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::{JOB, Scene, Setting, VM, noise, turn};
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
