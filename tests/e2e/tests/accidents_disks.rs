//! Accidents with the disks and the machine of a guest that runs, through the daemon: its file is replaced, its volume
//! grown, its image ends in the middle of a sector, and the destination has less than the source.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use e2e::{PATIENCE, Scene, Setting, VM, lab, same_bytes, turn};
use harness::Platform;
use harness::block_device::BlockDevice;
use harness::guest::DISK;
use harness::platform::CliOutcome;

fn told(outcome: &CliOutcome, words: &[&str]) {
    let message = format!("{}{}", outcome.stderr, outcome.stdout);
    words.iter().for_each(|word| assert!(message.contains(word), "no {word:?} in {outcome:?}"));
}

/// The guest goes on in the old file: the new one of that name is copied by nobody, and the guest by nothing is harmed.
#[test]
fn a_file_that_was_replaced_under_the_guest_is_copied_by_nobody() -> Result<()> {
    let _turn = turn("a_file_that_was_replaced_under_the_guest_is_copied_by_nobody");
    let scene = Scene::boot(Setting::default())?;
    let [a, b] = &scene.sites;
    let (image, old) = (a.image(VM, DISK), a.root().join("old.raw"));
    fs::rename(&image, &old)?;
    fs::copy(&old, &image)?;
    for line in [
        &["replicate", VM, "--to", "b"][..],
        &["migrate", VM, "--to", "b", "--dry-run"],
        &["migrate", VM, "--to", "b"],
    ] {
        told(&a.cli_fails(line)?, &["is not the file that the guest has open", "put that file back"]);
    }
    ensure!(!b.image(VM, DISK).exists(), "something of the wrong file came to b");
    // As it says: with the file back in its place all goes on.
    fs::rename(&old, &image)?;
    a.cli(&["replicate", VM, "--to", "b"])?;
    scene.migrate(0, 1)?;
    scene.prove(1)?;
    Ok(())
}

/// The guest still has the old size, and is copied and moved as it has it.
#[test]
fn a_volume_that_is_grown_under_the_guest_is_copied_and_moves() -> Result<()> {
    let _turn = turn("a_volume_that_is_grown_under_the_guest_is_copied_and_moves");
    let (_, base) = lab()?;
    let mut scene = Scene::new(Setting::default())?;
    let file = scene.sites[0].root().join("volume");
    let size = fs::copy(&base, &file)?;
    let device = BlockDevice::over(&file)?;
    scene.guest.disk = device.path().to_owned();
    scene.sites[0].start_guest(&scene.guest)?;
    scene.collector.wait_acked(16, PATIENCE)?;
    scene.sites[0].cli(&["replicate", VM, "--to", "b"])?;
    fs::File::options().write(true).open(&file)?.set_len(size + (16 << 20))?;
    let grown = Command::new("losetup").arg("--set-capacity").arg(device.path()).status()?;
    ensure!(grown.success(), "{grown}");
    for _ in 0..2 {
        scene.sites[0].cli(&["replicate", VM, "--to", "b"])?;
    }
    scene.migrate(0, 1)?;
    ensure!(fs::metadata(scene.sites[1].image(VM, DISK))?.len() == size, "it came with another size");
    scene.prove(1)?;
    Ok(())
}

/// The hypervisor rounds the guest's disk up to whole sectors.
#[test]
fn a_disk_that_ends_within_a_sector_is_copied_and_moves() -> Result<()> {
    let _turn = turn("a_disk_that_ends_within_a_sector_is_copied_and_moves");
    let scene = Scene::new(Setting::default())?;
    let [a, b] = &scene.sites;
    let image = a.place_disk(VM, &lab()?.1)?;
    let size = fs::metadata(&image)?.len() + 101;
    fs::File::options().write(true).open(&image)?.set_len(size)?;
    a.start_guest(&scene.guest)?;
    scene.collector.wait_acked(16, PATIENCE)?;
    for _ in 0..2 {
        a.cli(&["replicate", VM, "--to", "b"])?;
    }
    scene.migrate(0, 1)?;
    scene.settle()?;
    ensure!(fs::metadata(b.image(VM, DISK))?.len() == size, "it came with another size");
    // And back, from what is there.
    scene.migrate(1, 0)?;
    scene.prove(0)?;
    Ok(())
}

/// QEMU's arguments can do anything on a host: a platform takes those that it allows, and says so before anything is copied.
#[test]
fn arguments_that_the_destination_does_not_allow_are_refused() -> Result<()> {
    let _turn = turn("arguments_that_the_destination_does_not_allow_are_refused");
    let scene = Scene::new(Setting::default())?;
    let mark = scene.sites[1].root().join("ran");
    // QEMU would have it run by a shell.
    let helper = format!("user,id=more,guestfwd=tcp:10.0.2.100:80-cmd:touch {}", mark.display());
    scene.start_with(&["-netdev", &helper])?;
    refused_untouched(&scene, &["-netdev user,id=more,guestfwd=", "qemu_arguments"])?;
    ensure!(!mark.exists(), "the destination has run it");
    Ok(())
}

/// Has a platform take whatever arguments a peer's VM brings.
fn allow_any_arguments(site: &mut Platform) -> Result<()> {
    let file = site.root().join("longhaul.toml");
    let lines = fs::read_to_string(&file)?;
    let lines = lines.lines().filter(|line| !line.starts_with("qemu_arguments"));
    fs::write(&file, format!("qemu_arguments = [\"*\"]\n{}\n", lines.collect::<Vec<_>>().join("\n")))?;
    site.kill9()?;
    site.start().map(drop)
}

/// What the guest's arguments name is not at the destination: said before anything is copied.
#[test]
fn a_file_that_the_destination_lacks_is_told_before_anything_is_copied() -> Result<()> {
    let _turn = turn("a_file_that_the_destination_lacks_is_told_before_anything_is_copied");
    let mut scene = Scene::new(Setting::default())?;
    allow_any_arguments(&mut scene.sites[1])?;
    let iso = scene.sites[0].root().join("x.iso");
    fs::write(&iso, vec![7; 1 << 20])?;
    let drive = format!("file={},if=none,id=cd,media=cdrom,readonly=on", iso.display());
    scene.start_with(&["-drive", &drive, "-device", "ide-cd,drive=cd"])?;
    // Both platforms of this test see one file system: the guest keeps the file open, and a new process finds none.
    fs::remove_file(&iso)?;
    refused_untouched(&scene, &["x.iso"])
}

/// The destination's processor has less than the one that the guest has looked at.
#[test]
fn a_lesser_processor_is_told_before_anything_is_copied() -> Result<()> {
    let _turn = turn("a_lesser_processor_is_told_before_anything_is_copied");
    let mut scene = Scene::boot(Setting::default())?;
    let programs = scene.sites[1].root().join("programs");
    fs::create_dir(&programs)?;
    let wrapper = programs.join("qemu-system-x86_64");
    let real = Command::new("sh").args(["-c", "command -v qemu-system-x86_64"]).output()?;
    let script = format!(
        "#!/bin/bash\na=(); cpu=; for x in \"$@\"; do [ -n \"$cpu\" ] && x=\"$x,-sse3,-cx16\"; cpu=; \
         [ \"$x\" = -cpu ] && cpu=1; a+=(\"$x\"); done\nexec {} \"${{a[@]}}\"\n",
        String::from_utf8(real.stdout)?.trim()
    );
    fs::write(&wrapper, script)?;
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
    let path = format!("{}:{}", programs.display(), std::env::var("PATH")?);
    scene.sites[1].kill9()?;
    scene.sites[1].start_with(&[("PATH", &path)])?;
    refused_untouched(&scene, &["processor"])
}

/// A dry run and a migration say so, with nothing copied, and the guest goes on.
fn refused_untouched(scene: &Scene, words: &[&str]) -> Result<()> {
    let [a, b] = &scene.sites;
    let before = a.root().join("before.raw");
    fs::copy(a.image(VM, DISK), &before)?;
    for line in [&["migrate", VM, "--to", "b", "--dry-run"][..], &["migrate", VM, "--to", "b"]] {
        told(&a.cli_fails(line)?, words);
    }
    scene.settle()?;
    ensure!(!b.image(VM, DISK).exists(), "the disk was copied first");
    let jobs = a.cli(&["job", "list"])?;
    let sent =
        jobs.as_array().context("a list of jobs")?.iter().filter_map(|job| job["wire_bytes_disk"].as_u64());
    ensure!(sent.sum::<u64>() < 1 << 20, "{jobs}");
    assert_eq!(scene.owner()?, 0);
    ensure!(!same_bytes(&a.image(VM, DISK), &before)?, "the guest has written nothing since");
    scene.prove(0)?;
    Ok(())
}
