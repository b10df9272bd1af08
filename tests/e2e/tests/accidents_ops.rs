//! Accidents of operators with a real guest: a VM that moved and was decommissioned, records that are old, and a hypervisor
//! that hangs.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{PATIENCE, Scene, Setting, VM, int, status, turn, wait_for};
use harness::Platform;
use harness::guest::DISK;
use harness::platform::CliOutcome;
use rustix::process::{Pid, Signal, kill_process};

fn told(outcome: &CliOutcome, words: &[&str]) {
    let message = format!("{}{}", outcome.stderr, outcome.stdout);
    words.iter().for_each(|word| assert!(message.contains(word), "no {word:?} in {outcome:?}"));
}

/// The VM ends on `b`, is removed there, and a new one of its name begins on `a` and moves to `b`.
#[test]
fn a_name_is_free_again_once_its_vm_was_removed() -> Result<()> {
    let turn = turn("a_name_is_free_again_once_its_vm_was_removed");
    let scene = Scene::boot(Setting::default())?;
    let [a, b] = &scene.sites;
    scene.migrate(0, 1)?;
    told(&b.cli_fails(&["vm", "remove", VM])?, &["stop it first", "longhaul vm stop"]);
    b.cli(&["vm", "stop", VM, "--kill"])?;
    b.cli(&["vm", "remove", VM])?;
    assert!(b.image(VM, DISK).exists(), "images stay");
    assert_eq!(status(b, VM)?, None);
    a.start_guest(&scene.guest)?;
    scene.migrate(0, 1)?;
    assert_eq!(scene.owner()?, 1);
    b.cli(&["vm", "stop", VM, "--kill"])?;
    let listed = b.cli(&["vm", "list"])?;
    let disk = PathBuf::from(listed[0]["disks"][0].as_str().context("a disk's path")?);
    assert_ne!(disk, b.image(VM, DISK), "the first VM's image is not the second one's");
    b.cli(&["vm", "remove", VM, "--disks"])?;
    assert!(!disk.exists() && b.image(VM, DISK).exists());
    scene.over();
    turn.say("the second VM of that name moved too");
    Ok(())
}

/// `a` is put back to the state before the move: it does not start what runs on `b`, and gets it back by a move only.
#[test]
fn a_platform_restored_from_a_backup_starts_nothing_twice() -> Result<()> {
    let _turn = turn("a_platform_restored_from_a_backup_starts_nothing_twice");
    let mut scene = Scene::boot(Setting::default())?;
    scene.migrate(0, 1)?;
    scene.settle()?;
    scene.sites[0].kill9()?;
    let journal = scene.sites[0].root().join("journal");
    fs::remove_dir_all(&journal)?;
    scene.sites[0].start()?;
    let [a, b] = &scene.sites;
    for line in [&["vm", "start", VM][..], &["migrate", VM, "--to", "b"], &["replicate", VM, "--to", "b"]] {
        told(&a.cli_fails(line)?, &["'b' owns it at epoch 2", "--give-up"]);
    }
    told(&b.cli_fails(&["migrate", VM, "--to", "a"])?, &["epoch"]);
    a.cli(&["resolve", VM, "--give-up"])?;
    assert_eq!(scene.owner()?, 1);
    scene.migrate(1, 0)?;
    assert_eq!(scene.owner()?, 0);
    scene.lives()?;
    scene.over();
    Ok(())
}

/// A QEMU that hangs is listed as such beside the others, and can be killed.
#[test]
fn a_hypervisor_that_hangs_is_seen_and_killed() -> Result<()> {
    let _turn = turn("a_hypervisor_that_hangs_is_seen_and_killed");
    let scene = Scene::boot(Setting::default())?;
    let site = &scene.sites[0];
    let qemu = site.qemu(VM).and_then(Pid::from_raw).context("a QEMU that runs")?;
    assert_eq!(status(site, VM)?.as_deref(), Some("Running"));
    kill_process(qemu, Signal::STOP)?;
    let begun = Instant::now();
    let seen = status(site, VM)?;
    ensure!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!(seen.as_deref(), Some("Unresponsive"));
    site.cli(&["vm", "stop", VM, "--kill"])?;
    ensure!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    assert_eq!(status(site, VM)?.as_deref(), Some("Stopped"));
    scene.over();
    Ok(())
}

/// The site burns down: its daemon, its guest and its disks.
fn burn_down(site: &mut Platform) -> Result<()> {
    site.kill9()?;
    if let Some(qemu) = site.qemu(VM) {
        kill_process(Pid::from_raw(qemu).context("a process id")?, Signal::KILL)?;
        wait_for("the guest's end", PATIENCE, || Ok(site.qemu(VM).is_none().then_some(())))?;
    }
    Ok(fs::remove_dir_all(site.root())?)
}

/// As README.md says: restore the copy, define the VM on it, start it. What the guest had acknowledged before the last pass is
/// there, and the VM is like any other again.
fn start_from_copy(scene: &mut Scene, site: usize, acked: u64) -> Result<()> {
    let image = scene.sites[site].root().join("restored.raw");
    let here = &scene.sites[site];
    here.cli(&["replica", "restore", VM, &image.display().to_string()])?;
    scene.found(&image, acked)?;
    scene.guest.disk = image;
    here.start_guest(&scene.guest)?;
    wait_for("the guest's second life", PATIENCE, || {
        Ok((scene.collector.instances().len() == 2).then_some(()))
    })?;
    scene.collector.wait_acked(16, PATIENCE)?;
    assert_eq!(status(here, VM)?.as_deref(), Some("Running"));
    assert_eq!(scene.collector.duplicates(), 0);
    Ok(())
}

/// The owner has the copy's source: `b` has never run the VM.
#[test]
fn a_copy_starts_where_its_vm_never_ran_once_the_owner_is_gone() -> Result<()> {
    let _turn = turn("a_copy_starts_where_its_vm_never_ran_once_the_owner_is_gone");
    let mut scene = Scene::boot(Setting::default())?;
    let acked = scene.collector.acked();
    scene.sites[0].cli(&["replicate", VM, "--to", "b"])?;
    burn_down(&mut scene.sites[0])?;
    start_from_copy(&mut scene, 1, acked)?;
    // A daemon that comes new owns it still.
    scene.sites[1].restart()?;
    assert_eq!(status(&scene.sites[1], VM)?.as_deref(), Some("Running"));
    scene.collector.wait_progress(4, PATIENCE)?;
    scene.over();
    Ok(())
}

/// The VM has moved away from `a`, which has a copy from its owner `b`. Whether `b` is gone for good a person decides.
#[test]
fn a_vm_comes_back_from_its_copy_once_the_owner_is_gone() -> Result<()> {
    let _turn = turn("a_vm_comes_back_from_its_copy_once_the_owner_is_gone");
    let mut scene = Scene::boot(Setting::default())?;
    scene.migrate(0, 1)?;
    scene.settle()?;
    let acked = scene.collector.acked();
    scene.sites[1].cli(&["replicate", VM, "--to", "a"])?;
    // Not while the owner answers.
    told(&scene.sites[0].cli_fails(&["resolve", VM, "--keep"])?, &["'b'"]);
    burn_down(&mut scene.sites[1])?;
    let a = &scene.sites[0];
    told(&a.cli_fails(&["vm", "start", VM])?, &["'b'", "longhaul resolve"]);
    a.cli(&["resolve", VM, "--keep"])?;
    start_from_copy(&mut scene, 0, acked)?;
    let owned = scene.sites[0].cli(&["vm", "list"])?;
    let epoch = int(&owned[0], "epoch")?;
    ensure!(epoch > 2, "its epoch must be above the lost owner's: {owned}");
    scene.over();
    Ok(())
}
