//! Accidents with replicas: names that two peers use, damage, disks of one VM at different moments, images that are put in
//! the place of a running guest's, restores over what must not be overwritten.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, ensure};
use e2e::monitor::Monitor;
use e2e::{JOB, PATIENCE, Scene, Setting, VM, int, lab, noise, same_bytes, turn, wait_for};
use harness::{BlockDevice, Guest, Platform, pair, shell};

const MIB: usize = 1 << 20;
/// Numbers that the order of writes is told by: one byte, never 0.
const NUMBERS: u8 = 251;

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Defines a VM that does not run, with one disk.
fn define(platform: &Platform, vm: &str, disk: &Path) -> Result<()> {
    let guest = Guest::new(&lab()?.0, vm, disk, 9);
    let file = platform.root().join("definition.toml");
    guest.boot_spec(&file)?;
    platform.cli(&["vm", "define", &text(&file)]).map(drop)
}

fn rot(image: &Path, offset: u64) -> Result<()> {
    Ok(OpenOptions::new().write(true).open(image)?.write_all_at(b"ROT", offset)?)
}

#[test]
fn two_platforms_with_a_vm_of_one_name_both_keep_their_copy() -> Result<()> {
    let _turn = turn("two_platforms_with_a_vm_of_one_name_both_keep_their_copy");
    let (a, b) = pair()?;
    let mut c = Platform::new("c")?;
    c.start()?;
    c.trust(&b, b.address())?;
    b.trust(&c, c.address())?;
    let disks = [&a, &c].map(|site| site.root().join("disk.raw"));
    for (site, (disk, seed)) in [&a, &c].into_iter().zip(disks.iter().zip(1..)) {
        fs::write(disk, noise(seed, 4 * MIB))?;
        define(site, "web", disk)?;
        site.cli(&["replicate", "web", "--to", "b"])?;
    }
    let listed = b.cli(&["replica", "list"])?;
    let sources: Vec<_> = listed.as_array().context("a list")?.iter().map(|r| &r["source"]).collect();
    assert_eq!(sources, ["a", "c"]);
    let out = b.root().join("out.raw");
    b.cli_fails(&["replica", "restore", "web", &text(&out)])?;
    for (peer, disk) in ["a", "c"].iter().zip(&disks) {
        b.cli(&["replica", "restore", "web", &text(&out), "--from", peer])?;
        assert!(same_bytes(disk, &out)?, "{peer}'s copy is another one");
        fs::remove_file(&out)?;
    }
    Ok(())
}

#[test]
fn damage_in_a_replica_is_not_restored_and_is_mended() -> Result<()> {
    let _turn = turn("damage_in_a_replica_is_not_restored_and_is_mended");
    let (a, mut b) = pair()?;
    let (image, out) = (a.root().join("image.raw"), b.root().join("out.raw"));
    fs::write(&image, noise(1, 8 * MIB))?;
    let send = || a.cli(&["image", "send", &text(&image), "b:image"]);
    send()?;
    let listed = b.cli(&["replica", "list"])?;
    let replica = PathBuf::from(listed[0]["path"].as_str().context("a path")?);
    rot(&replica, 5_000_000)?;
    let refused = b.cli_fails(&["replica", "restore", "image", &text(&out)])?;
    // The leaf of 64 KiB that the offset is in.
    assert!(refused.stderr.contains("4980736") && !out.exists(), "{refused:?}");
    b.cli_fails(&["replica", "verify", "image"])?;
    b.restart()?;
    send()?;
    b.cli(&["replica", "verify"])?;
    b.cli(&["replica", "restore", "image", &text(&out)])?;
    assert!(same_bytes(&image, &out)?);

    // A state that is gone is not the daemon's end, nor the other replicas'; the next pass starts it anew.
    a.cli(&["image", "send", &text(&image), "b:other"])?;
    b.kill9()?;
    fs::write(replica.with_file_name("state"), b"")?;
    b.start()?;
    let listed = b.cli(&["replica", "list"])?;
    let states: Vec<_> = listed.as_array().context("a list")?.iter().map(|r| r["state"] == "ok").collect();
    assert_eq!(states, [false, true], "{listed}");
    send()?;
    assert_eq!(int(&b.cli(&["replica", "list"])?[0], "generation")?, 1);
    Ok(())
}

/// A mounted file system; unmounted when dropped.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_restore_overwrites_nothing_that_is_in_use_or_ours() -> Result<()> {
    let _turn = turn("a_restore_overwrites_nothing_that_is_in_use_or_ours");
    let (a, b) = pair()?;
    let image = a.root().join("image.raw");
    fs::write(&image, noise(1, 8 * MIB))?;
    a.cli(&["image", "send", &text(&image), "b:image"])?;
    let dir = tempfile::Builder::new().prefix("lh-restore-").tempdir()?;
    let backing = |name: &str| -> Result<PathBuf> {
        let path = dir.path().join(name);
        File::create(&path)?.set_len(64 << 20)?;
        Ok(path)
    };
    let (disk, spare, full) = (backing("disk")?, backing("spare")?, backing("full")?);
    let (disk, spare, full) =
        (BlockDevice::over(&disk)?, BlockDevice::over(&spare)?, BlockDevice::over(&full)?);
    define(&b, "web", disk.path())?;
    shell::run(Command::new("mkfs.ext4").arg("-q").arg(full.path()))?;
    let mounted = Mounted(dir.path().join("mounted"));
    fs::create_dir(&mounted.0)?;
    shell::run(Command::new("mount").arg(full.path()).arg(&mounted.0))?;
    let before = noise(7, MIB);
    OpenOptions::new().write(true).open(disk.path())?.write_all_at(&before, 0)?;

    for target in [
        disk.path().to_owned(),
        full.path().to_owned(),
        dir.path().join("disk"),
        b.root().join("store/evil"),
        b.root().join("vms/evil.toml"),
        b.root().join("replicas/evil"),
    ] {
        for consent in [&[][..], &["--in-place"]] {
            let path = text(&target);
            let words = [&["replica", "restore", "image", &path], consent].concat();
            b.cli_fails(&words).with_context(|| path.clone())?;
        }
    }
    let mut after = vec![0; MIB];
    File::open(disk.path())?.read_exact_at(&mut after, 0)?;
    assert!(after == before, "a VM's disk was overwritten");
    // A device that nobody uses: with consent.
    b.cli_fails(&["replica", "restore", "image", &text(spare.path())])?;
    b.cli(&["replica", "restore", "image", &text(spare.path()), "--in-place"])?;
    let mut restored = vec![0; 8 * MIB];
    File::open(spare.path())?.read_exact_at(&mut restored, 0)?;
    assert!(restored == fs::read(&image)?);
    Ok(())
}

/// Writes ascending numbers to the first device, each then to the second, until it is told to stop.
fn write_in_order(monitor: &mut Monitor, [first, second]: &[String; 2], stop: &AtomicBool) -> Result<u64> {
    let mut written = 0;
    while !stop.load(Ordering::Relaxed) {
        let number = (written % u64::from(NUMBERS)) as u8 + 1;
        monitor.write(first, number)?;
        monitor.write(second, number)?;
        written += 1;
    }
    Ok(written)
}

fn number(image: &Path) -> Result<i16> {
    let mut number = [0];
    File::open(image)?.read_exact_at(&mut number, 0)?;
    Ok(number[0].into())
}

/// A scene whose guest has two more disks, which somebody else writes to through its QEMU.
fn with_more_disks() -> Result<(Scene, [PathBuf; 2], PathBuf)> {
    let scene = Scene::new(Setting::default())?;
    let a = &scene.sites[0];
    a.place_disk(VM, &lab()?.1)?;
    let disks = ["first", "second"].map(|name| a.root().join(name));
    for (disk, (seed, size)) in disks.iter().zip([(1, 96 * MIB), (2, MIB)]) {
        let mut bytes = noise(seed, size);
        // As before the first write.
        bytes[0] = NUMBERS;
        fs::write(disk, bytes)?;
    }
    // Near, since a socket's path has a bound.
    let socket = a.root().join("more.qmp");
    let arguments = format!("args = [\"-qmp\", \"unix:{},server=on,wait=off\", ", text(&socket));
    let mut definition = scene.guest.definition().replace("args = [", &arguments);
    for (name, path) in ["first", "second"].iter().zip(&disks) {
        definition +=
            &format!("\n[[disks]]\nname = \"{name}\"\npath = \"{}\"\nformat = \"raw\"\n", text(path));
    }
    let file = a.root().join("definition.toml");
    fs::write(&file, definition)?;
    a.cli(&["vm", "define", &text(&file)])?;
    a.cli(&["vm", "start", VM])?;
    scene.collector.wait_acked(16, PATIENCE)?;
    Ok((scene, disks, socket))
}

/// A pass, and how it was found what to send of each disk.
fn pass(scene: &Scene) -> Result<Vec<String>> {
    let report = scene.sites[0].cli(&["replicate", VM, "--to", "b"])?;
    let disks = report["disks"].as_array().context("the disks of the pass")?;
    Ok(disks.iter().map(|disk| disk["found"].as_str().unwrap_or_default().to_owned()).collect())
}

#[test]
fn the_disks_of_a_running_vm_are_copied_at_one_moment() -> Result<()> {
    let turn = turn("the_disks_of_a_running_vm_are_copied_at_one_moment");
    let (mut scene, disks, socket) = with_more_disks()?;
    let mut monitor = Monitor::connect(&socket)?;
    let devices = monitor.devices(["first", "second"])?;
    let stop = AtomicBool::new(false);
    let written = thread::scope(|scope| {
        let writer = scope.spawn(|| write_in_order(&mut monitor, &devices, &stop));
        let mut before = None;
        let passes = (1..=3).try_for_each(|generation| {
            let found = pass(&scene)?;
            let expected = if generation == 1 { "first_copy" } else { "dirty_blocks" };
            assert_eq!(found, [expected; 3]);
            let out = tempfile::Builder::new().prefix("lh-restore-").tempdir()?;
            let all = out.path().join("all");
            let answer = scene.sites[1].cli(&["replica", "restore", VM, &text(&all)])?;
            for disk in answer["disks"].as_array().context("disks")? {
                assert_eq!(int(disk, "generation")?, generation);
            }
            let [first, second] = ["first.raw", "second.raw"].map(|name| number(&all.join(name)));
            let (first, second) = (first?, second?);
            let ahead = (first - second).rem_euclid(NUMBERS.into());
            turn.say(&format!("generation {generation}: the first disk is {ahead} writes ahead"));
            ensure!(ahead <= 1, "the first disk is at write {first}, the second one at {second}");
            ensure!(before.replace(first) != Some(first), "nobody has written since the pass before");
            Ok(())
        });
        stop.store(true, Ordering::Relaxed);
        let written = writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))?;
        passes.and(written)
    })?;
    assert!(written > 20, "only {written} writes while it was copied");

    // A daemon that dies in a pass leaves taps behind, which are no obstacle to the next one.
    let run = scene.sites[0].begin(&["replicate", VM, "--to", "b"])?;
    wait_for("the pass to begin", PATIENCE, || e2e::running_phase(&scene.sites[0], "replicate"))?;
    scene.sites[0].kill9()?;
    run.wait(JOB)?;
    scene.sites[0].start()?;
    wait_for("the end of the dead daemon's pass at b", PATIENCE, || {
        let outcome = scene.sites[0].begin(&["replicate", VM, "--to", "b"])?.wait(JOB)?;
        assert!(matches!(outcome.code, Some(0 | 4)), "{outcome:?}");
        Ok((outcome.code == Some(0)).then_some(()))
    })?;

    // Another file in the place of the guest's is not taken for it.
    let away = disks[1].with_extension("away");
    fs::rename(&disks[1], &away)?;
    fs::copy(&away, &disks[1])?;
    let refused = scene.sites[0].cli_fails(&["replicate", VM, "--to", "b"])?;
    assert!(refused.stderr.contains("second"), "{refused:?}");
    fs::rename(&away, &disks[1])?;
    pass(&scene)?;
    // A file that has grown is copied as the guest knows it.
    OpenOptions::new().write(true).open(&disks[0])?.set_len(100 << 20)?;
    assert_eq!(pass(&scene)?, ["dirty_blocks"; 3]);
    scene.lives()?;
    scene.over();
    Ok(())
}
