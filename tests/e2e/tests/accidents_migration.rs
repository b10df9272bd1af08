//! Accidents in the middle of a migration, with a real guest: a destination that dies or stands still at the switchover, a
//! place that is somebody else's by now, a disk that is slow, and a second try right after the first.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{JOB, PATIENCE, Scene, Setting, VM, lab, noise, running_phase, same_bytes, status, turn, wait_for};
use harness::block_device::BlockDevice;
use harness::guest::DISK;
use harness::platform::CliOutcome;
use harness::{Collector, Guest, Platform, verify_records};
use rustix::process::{Pid, Signal, kill_process};

/// How long a guest may stand still before its source takes it back, with some room for a busy machine.
const TAKEN_BACK: Duration = Duration::from_secs(30);
/// Bytes a second of the slow disk.
const SLOWLY: u64 = 6 << 20;

fn told(outcome: &CliOutcome, words: &[&str]) {
    let message = format!("{}{}", outcome.stderr, outcome.stdout);
    words.iter().for_each(|word| assert!(message.contains(word), "no {word:?} in {outcome:?}"));
}

/// The images of the guest's disk on a platform, under whatever name.
fn images(scene: &Scene, site: usize) -> Result<Vec<PathBuf>> {
    let image = scene.sites[site].image(VM, DISK);
    let mut found = Vec::new();
    for entry in fs::read_dir(image.parent().context("a directory of images")?)? {
        found.push(entry?.path());
    }
    Ok(found)
}

/// The destination's daemon stands still when it is to compare the disks, and its hypervisor is killed meanwhile. The
/// source's hypervisor then waits in the send of a relay that nobody reads.
#[test]
fn a_destination_that_dies_at_the_switchover_gives_the_guest_back() -> Result<()> {
    let turn = turn("a_destination_that_dies_at_the_switchover_gives_the_guest_back");
    let mut scene = Scene::boot(Setting::default())?;
    scene.sites[1].kill9()?;
    scene.sites[1].start_with(&[("LONGHAUL_STOP_AT", "destination:action:seal_disks")])?;
    let run = scene.sites[0].begin(&["migrate", VM, "--to", "b"])?;
    wait_for("the switchover", JOB, || {
        Ok((running_phase(&scene.sites[0], "migrate_out")?.as_deref() == Some("switchover")).then_some(()))
    })?;
    if let Some(qemu) = scene.sites[1].qemu(VM).and_then(Pid::from_raw) {
        kill_process(qemu, Signal::KILL)?;
    }
    let stopped = Instant::now();
    let outcome = run.wait(TAKEN_BACK)?;
    ensure!(outcome.code == Some(1), "{outcome:?}");
    turn.say(&format!("taken back after {:.1} s", stopped.elapsed().as_secs_f64()));
    scene.sites[1].restart()?;
    scene.settle()?;
    assert_eq!(scene.owner()?, 0);
    scene.prove(0)?;
    Ok(())
}

/// The source's daemon is told to end when its guest stands still for the last step, and the destination says nothing: the
/// guest does not wait for the next start.
#[test]
fn a_daemon_that_is_told_to_end_in_a_switchover_gives_the_guest_back_first() -> Result<()> {
    let _turn = turn("a_daemon_that_is_told_to_end_in_a_switchover_gives_the_guest_back_first");
    let mut scene = Scene::boot(Setting::default())?;
    let [a, b] = &mut scene.sites;
    a.kill9()?;
    a.start_with(&[("LONGHAUL_STOP_AT", "source:action:send_final")])?;
    let run = a.begin(&["migrate", VM, "--to", "b"])?;
    wait_for("the last step", JOB, || Ok(a.is_halted()?.then_some(())))?;
    b.signal(Signal::STOP)?;
    a.signal(Signal::TERM)?;
    a.signal(Signal::CONT)?;
    let ended = a.wait_ended(TAKEN_BACK)?;
    ensure!(ended.success(), "the daemon ended with {ended}");
    ensure!(run.wait(TAKEN_BACK)?.code != Some(0), "the migration is said to have succeeded");
    // Without any daemon.
    scene.collector.wait_progress(8, PATIENCE)?;
    let [a, b] = &mut scene.sites;
    b.signal(Signal::CONT)?;
    a.start()?;
    scene.settle()?;
    assert_eq!(scene.owner()?, 0);
    scene.prove(0)?;
    Ok(())
}

/// The VM's old image is a disk of another VM by now, or of another kind: it is neither written nor removed.
#[test]
fn a_place_that_is_another_vms_by_now_is_left_alone() -> Result<()> {
    let _turn = turn("a_place_that_is_another_vms_by_now_is_left_alone");
    let scene = Scene::boot(Setting::default())?;
    let [a, b] = &scene.sites;
    scene.migrate(0, 1)?;
    let place = a.image(VM, DISK);
    let definition = a.root().join("db.toml");
    let text = format!(
        "name = \"db\"\nmemory_mib = 64\n[[disks]]\nname = \"root\"\npath = \"{}\"\n",
        place.display()
    );
    fs::write(&definition, text)?;
    a.cli(&["vm", "define", &definition.display().to_string()])?;
    let before = fs::metadata(&place)?;
    for line in [&["migrate", VM, "--to", "a", "--dry-run"][..], &["migrate", VM, "--to", "a"]] {
        told(&b.cli_fails(line)?, &["a disk of VM 'db'", "longhaul vm remove"]);
    }
    let after = fs::metadata(&place)?;
    assert_eq!((before.ino(), before.mtime_nsec()), (after.ino(), after.mtime_nsec()));
    assert_eq!(scene.owner()?, 1);
    // Forgotten here, the VM gets a place of its own, and what lies there stays.
    a.cli(&["vm", "remove", VM])?;
    scene.migrate(1, 0)?;
    assert_eq!(fs::metadata(&place)?.ino(), before.ino());
    assert_eq!(scene.owner()?, 0);
    scene.lives()?;
    scene.over();
    Ok(())
}

/// Defines and starts a VM `db` on a file of another size, in the place of the VM's old image. It never gets further than its
/// firmware, which is enough to have the file open.
fn run_on_another_size(site: &Platform, place: &Path, mib: u64) -> Result<()> {
    fs::remove_file(place)?;
    fs::write(place, noise(3, 1 << 20))?;
    fs::File::options().write(true).open(place)?.set_len(mib << 20)?;
    let file = site.root().join("db.toml");
    let text = format!(
        "name = \"db\"\nmemory_mib = 64\n[[disks]]\nname = \"root\"\npath = \"{}\"\n[qemu]\naccel = \"tcg\"\n",
        place.display()
    );
    fs::write(&file, text)?;
    site.cli(&["vm", "define", &file.display().to_string()])?;
    site.cli(&["vm", "start", "db"]).map(drop)
}

/// Whatever would bring the VM to `a` is refused, and `a`'s other VM and its file are as before.
fn refused_for_db(scene: &Scene, place: &Path) -> Result<()> {
    let [a, b] = &scene.sites;
    let (before, qemu) = (fs::metadata(place)?, a.qemu("db"));
    for line in [
        &["migrate", VM, "--to", "a", "--dry-run"][..],
        &["migrate", VM, "--to", "a"],
        &["migrate", VM, "--to", "a", "--cold"],
    ] {
        let outcome = b.cli_fails(line)?;
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
        told(&outcome, &["a disk of VM 'db'", "longhaul vm remove"]);
    }
    scene.settle()?;
    let after = fs::metadata(place)?;
    assert_eq!((before.ino(), before.len()), (after.ino(), after.len()));
    assert_eq!((status(a, "db")?.as_deref(), a.qemu("db")), (Some("Running"), qemu));
    assert_eq!(scene.owner()?, 1);
    Ok(())
}

/// Another VM runs on the VM's old image by now, and later on a file of another size in its place.
#[test]
fn a_place_that_another_vm_runs_on_is_left_alone() -> Result<()> {
    let _turn = turn("a_place_that_another_vm_runs_on_is_left_alone");
    let scene = Scene::boot(Setting::default())?;
    scene.migrate(0, 1)?;
    let a = &scene.sites[0];
    let place = a.image(VM, DISK);
    let heard = Collector::start()?;
    let mut db = Guest::new(&lab()?.0, "db", &place, heard.port());
    db.workload.ring_mib = 32;
    a.start_guest(&db)?;
    heard.wait_acked(16, PATIENCE)?;
    refused_for_db(&scene, &place)?;
    heard.wait_progress(4, PATIENCE)?;
    a.cli(&["vm", "stop", "db", "--kill"])?;
    let instance = heard.instance().context("a guest that was heard")?;
    let report = verify_records(&place, instance, heard.acked())?;
    ensure!(report.is_whole() && report.found > 0, "{report:?}");
    a.cli(&["vm", "remove", "db"])?;

    // Smaller than the VM's disk, and larger.
    for mib in [48, 1100] {
        run_on_another_size(a, &place, mib)?;
        refused_for_db(&scene, &place)?;
        if mib == 48 {
            a.cli(&["vm", "stop", "db", "--kill"])?;
            a.cli(&["vm", "remove", "db"])?;
        }
    }
    // Forgotten here, the VM gets a place of its own beside the other's.
    let before = fs::metadata(&place)?;
    a.cli(&["vm", "remove", VM])?;
    scene.migrate(1, 0)?;
    let after = fs::metadata(&place)?;
    assert_eq!((before.ino(), before.len()), (after.ino(), after.len()));
    assert_eq!(status(a, "db")?.as_deref(), Some("Running"));
    assert_eq!(scene.owner()?, 0);
    scene.lives()?;
    scene.over();
    Ok(())
}

/// A device of another size than the disk is refused, and stays a device.
#[test]
fn a_device_of_another_size_is_no_place() -> Result<()> {
    let _turn = turn("a_device_of_another_size_is_no_place");
    let (_, base) = lab()?;
    let mut scene = Scene::new(Setting::default())?;
    let file = scene.sites[0].root().join("volume");
    fs::copy(&base, &file)?;
    let device = BlockDevice::over(&file)?;
    scene.guest.disk = device.path().to_owned();
    scene.sites[0].start_guest(&scene.guest)?;
    scene.collector.wait_acked(16, PATIENCE)?;
    scene.migrate(0, 1)?;
    fs::File::options().write(true).open(&file)?.set_len(fs::metadata(&base)?.len() + (4 << 20))?;
    let grown = Command::new("losetup").arg("--set-capacity").arg(device.path()).status()?;
    ensure!(grown.success(), "{grown}");
    told(&scene.sites[1].cli_fails(&["migrate", VM, "--to", "a"])?, &["bytes", "longhaul vm remove"]);
    ensure!(fs::metadata(device.path())?.file_type().is_block_device(), "the device's node was replaced");
    assert_eq!(scene.owner()?, 1);
    scene.lives()?;
    scene.over();
    Ok(())
}

/// What the VM had here before stays as it is until the VM is ours.
#[test]
fn an_image_of_before_stays_until_the_vm_is_ours() -> Result<()> {
    let _turn = turn("an_image_of_before_stays_until_the_vm_is_ours");
    let mut scene = Scene::boot(Setting::default())?;
    scene.migrate(0, 1)?;
    scene.settle()?;
    let (image, copy) = (scene.sites[0].image(VM, DISK), scene.sites[0].root().join("copy.raw"));
    fs::copy(&image, &copy)?;
    scene.sites[0].kill9()?;
    scene.sites[0].start_with(&[("LONGHAUL_CRASH_AT", "destination:journal:ready")])?;
    let run = scene.sites[1].begin(&["migrate", VM, "--to", "a"])?;
    scene.sites[0].wait_ended(JOB)?;
    ensure!(run.wait(JOB)?.code == Some(1), "the migration was to fail");
    ensure!(same_bytes(&image, &copy)?, "the image of before was written");
    scene.sites[0].start()?;
    scene.settle()?;
    ensure!(same_bytes(&image, &copy)?, "the image of before was not left alone");
    assert_eq!(scene.owner()?, 1);
    scene.migrate(1, 0)?;
    ensure!(images(&scene, 0)?.iter().all(|found| *found == image), "{:?}", images(&scene, 0)?);
    scene.prove(0)?;
    Ok(())
}

/// The destination has a replica on a disk that reads slowly. The first try works; and so does one that follows at once
/// on one that was cancelled in the middle, with the same bytes on both sides when the VM changes hands.
#[test]
fn a_second_try_right_after_a_slow_first_one_brings_the_same_bytes() -> Result<()> {
    let turn = turn("a_second_try_right_after_a_slow_first_one_brings_the_same_bytes");
    let tries = std::env::var("LONGHAUL_TRIES").map_or(Ok(2), |tries| tries.parse())?;
    let mut scene = Scene::boot(Setting::default())?;
    scene.sites[1].kill9()?;
    let slow = scene.sites[1].slow_disk("replicas", 600)?;
    scene.sites[1].start()?;
    scene.sites[0].cli(&["replicate", VM, "--to", "b"])?;
    for attempt in 0..=tries {
        scene.sites[1].kill9()?;
        // No image of the attempt before: only the replica.
        fs::remove_dir_all(scene.sites[1].root().join("images"))?;
        slow.limit(SLOWLY)?;
        scene.sites[1].start_with(&[("LONGHAUL_CRASH_AT", "destination:action:resume")])?;
        let begun = Instant::now();
        if attempt > 0 {
            let first = scene.sites[0].begin(&["migrate", VM, "--to", "b"])?;
            let job = wait_for("the bulk of the disk", JOB, || {
                let bulk = running_phase(&scene.sites[0], "migrate_out")?.as_deref() == Some("bulk");
                let jobs = scene.sites[0].cli(&["job", "list"])?;
                let jobs = jobs.as_array().context("a list of jobs")?.clone();
                let job = jobs.into_iter().find(|job| job["state"] == "running").filter(|_| bulk);
                Ok(job.and_then(|job| job["job"].as_str().map(str::to_owned)))
            })?;
            scene.sites[0].cli(&["job", "cancel", &job])?;
            ensure!(first.wait(JOB)?.code != Some(0), "the first try was to be cancelled");
        }
        let run = scene.sites[0].begin_json(&["migrate", VM, "--to", "b"])?;
        scene.sites[1].wait_ended(JOB)?;
        slow.limit(0)?;
        let [image] = &images(&scene, 1)?[..] else { anyhow::bail!("{:?}", images(&scene, 1)?) };
        ensure!(same_bytes(&scene.sites[0].image(VM, DISK), image)?, "attempt {attempt}: the images differ");
        turn.say(&format!("attempt {attempt}: the same bytes after {:.1} s", begun.elapsed().as_secs_f64()));
        scene.sites[1].start()?;
        ensure!(run.wait(JOB)?.code == Some(0), "attempt {attempt} failed");
        scene.settle()?;
        assert_eq!(scene.owner()?, 1);
        scene.migrate(1, 0)?;
        scene.settle()?;
        assert_eq!(status(&scene.sites[0], VM)?.as_deref(), Some("Running"));
        scene.sites[1].cli(&["vm", "remove", VM, "--disks"])?;
    }
    scene.prove(0)?;
    Ok(())
}
