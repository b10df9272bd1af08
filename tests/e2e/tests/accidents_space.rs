//! Accidents of room: the file system under a running guest's disk is full, and the one that the daemons log to.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Result, ensure};
use e2e::{PATIENCE, Scene, Setting, VM, lab, status, turn, wait_for};
use harness::guest::DISK;
use harness::platform::CliOutcome;
use harness::{Platform, files};

/// Room for the lab's small image and what the guest writes at first.
const IMAGES_MIB: u32 = 256;

fn told(outcome: &CliOutcome, words: &[&str]) {
    let message = format!("{}{}", outcome.stderr, outcome.stdout);
    words.iter().for_each(|word| assert!(message.contains(word), "no {word:?} in {outcome:?}"));
}

/// Writes to a file's end until there is no room.
fn fill(path: &Path) -> Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    for part in [1 << 20, 1 << 12, 1] {
        let bytes = vec![b'\n'; part];
        while file.write_all(&bytes).is_ok() {}
    }
    Ok(())
}

/// The hypervisor has paused the guest. Nothing is lost: with room again it goes on from where it stood.
#[test]
fn a_guest_that_a_full_disk_has_paused_goes_on_and_moves() -> Result<()> {
    let turn = turn("a_guest_that_a_full_disk_has_paused_goes_on_and_moves");
    let mut scene = Scene::new(Setting::default())?;
    let a = &mut scene.sites[0];
    a.kill9()?;
    let filler = a.small_disk("images", IMAGES_MIB)?.join("filler");
    a.start()?;
    a.place_disk(VM, &lab()?.1)?;
    a.start_guest(&scene.guest)?;
    scene.collector.wait_acked(16, PATIENCE)?;
    fill(&filler)?;
    wait_for("the guest's pause", PATIENCE, || {
        Ok((status(a, VM)?.as_deref() == Some("DiskError")).then_some(()))
    })?;
    let paused_at = scene.collector.acked();
    turn.say(&format!("paused after {paused_at} records"));
    let refused = |scene: &Scene| -> Result<()> {
        for line in [
            &["migrate", VM, "--to", "b"][..],
            &["migrate", VM, "--to", "b", "--cold"],
            &["replicate", VM, "--to", "b"],
            &["vm", "stop", VM],
        ] {
            let outcome = scene.sites[0].cli_fails(line)?;
            assert_eq!(outcome.code, Some(1), "{outcome:?}");
            told(&outcome, &["make room", "longhaul vm start"]);
        }
        scene.settle()?;
        ensure!(!scene.sites[1].image(VM, DISK).exists(), "something came to b");
        assert_eq!(status(&scene.sites[0], VM)?.as_deref(), Some("DiskError"));
        Ok(())
    };
    refused(&scene)?;
    // A daemon that comes new finds it as it is.
    scene.sites[0].restart()?;
    refused(&scene)?;
    assert_eq!(scene.collector.acked(), paused_at, "the guest was to stand still");

    fs::remove_file(&filler)?;
    scene.sites[0].cli(&["vm", "start", VM])?;
    scene.lives()?;
    scene.sites[0].cli(&["replicate", VM, "--to", "b"])?;
    scene.migrate(0, 1)?;
    scene.prove(1)?;
    Ok(())
}

/// Puts a platform's log on a disk of its own that has no room left, and starts the daemon there.
fn log_to_full_disk(site: &mut Platform) -> Result<()> {
    site.kill9()?;
    let (log, dir) = (site.root().join("daemon.log"), site.small_disk("log", 1)?);
    files::remove(&log)?;
    symlink(dir.join("daemon.log"), &log)?;
    fill(&log)?;
    // So much that nobody's buffers hold it.
    site.start_with(&[("LONGHAUL_LOG", "debug")])
}

/// Lost lines are all that it costs: the daemons start, hand the guest over and take it back.
#[test]
fn daemons_whose_log_cannot_be_written_hand_a_guest_over() -> Result<()> {
    let _turn = turn("daemons_whose_log_cannot_be_written_hand_a_guest_over");
    let mut scene = Scene::boot(Setting::default())?;
    for site in &mut scene.sites {
        log_to_full_disk(site)?;
    }
    let logs = || scene.sites.each_ref().map(|site| site.full_log().len());
    let before = logs();
    scene.sites[0].cli(&["replicate", VM, "--to", "b"])?;
    for (from, to) in [(0, 1), (1, 0)] {
        scene.migrate(from, to)?;
        scene.settle()?;
        assert_eq!(scene.owner()?, to);
        scene.lives()?;
    }
    // One that fails has more to say.
    assert_eq!(scene.sites[0].cli_fails(&["migrate", VM, "--to", "nobody"])?.code, Some(1));
    assert_eq!(logs(), before, "the logs were not full");
    for site in &mut scene.sites {
        ensure!(site.is_running(), "the daemon of {} has ended", site.name());
        site.restart()?;
    }
    scene.settle()?;
    scene.prove(0)?;
    Ok(())
}
