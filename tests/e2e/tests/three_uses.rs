//! The three uses: pre-seeding and image copies, warm replication of a running VM, full migration.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use e2e::{JOB, PATIENCE, Scene, Setting, VM, int, lab, noise, running_phase, same_bytes, turn, wait_for};
use harness::guest::DISK;
use harness::{BlockDevice, LinkSettings, Platform, files, pair, shell};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

fn patch(image: &Path, offset: u64, bytes: &[u8]) -> Result<()> {
    Ok(OpenOptions::new().write(true).open(image)?.write_all_at(bytes, offset)?)
}

/// Restores a replica beside the platform's files and hands the path over.
fn restored<T>(platform: &Platform, name: &str, look: impl FnOnce(&Path, u64) -> Result<T>) -> Result<T> {
    let dir = tempfile::Builder::new().prefix("lh-restore-").tempdir()?;
    let path = dir.path().join("restored.raw");
    let answer = platform.cli(&["replica", "restore", name, &path.display().to_string()])?;
    look(&path, int(&answer, "generation")?)
}

#[test]
fn bases_and_images_are_sent_once() -> Result<()> {
    let turn = turn("bases_and_images_are_sent_once");
    let (_, base) = lab()?;
    let dir = tempfile::Builder::new().prefix("lh-image-").tempdir()?;
    let (a, b) = pair()?;
    let wire = |arguments: &[&str]| int(&a.cli(arguments)?, "wire_bytes_disk");

    a.cli(&["base", "add", "debian", &base.display().to_string()])?;
    let first = wire(&["base", "push", "debian", "b"])?;
    let second = wire(&["base", "push", "debian", "b"])?;
    turn.say(&format!("base push: {first} bytes, then {second}"));
    assert!(first > MIB && second * 100 < first, "{first} then {second}");
    assert_eq!(a.cli(&["base", "list"])?[0]["root"], b.cli(&["base", "list"])?[0]["root"]);

    // A copy of the base with 3 MiB of its own, some of it where the base has a hole.
    let image = dir.path().join("copy.raw");
    let image_text = image.display().to_string();
    files::copy_sparse(&base, &image)?;
    let size = std::fs::metadata(&image)?.len();
    patch(&image, 300 * KIB, &noise(1, 64 * KIB as usize))?;
    patch(&image, size - 5 * MIB, &noise(2, 3 * MIB as usize))?;
    let incremental = wire(&["image", "send", &image_text, "b:one"])?;
    turn.say(&format!("image send: {incremental} bytes for 3 MiB of new data"));
    assert!(incremental > 3 * MIB && incremental < 5 * MIB, "{incremental}");
    let own = files::allocated(&image)?;
    restored(&b, "one", |path, generation| {
        assert!(generation == 1 && same_bytes(&image, path)?, "generation {generation}");
        let there = files::allocated(path)?;
        assert!(there < own + own / 10 + MIB, "{own} bytes allocated became {there}");
        Ok(())
    })?;

    // What came with a copy is held: under another name it is not sent again.
    let again = wire(&["image", "send", &image_text, "b:two"])?;
    assert!(again < 512 * KIB, "{again} bytes for what is there");
    patch(&image, size / 2, &noise(3, 256 * KIB as usize))?;
    let next = wire(&["image", "send", &image_text, "b:one"])?;
    turn.say(&format!("under another name: {again} bytes; 256 KiB more: {next} bytes"));
    assert!(next > 256 * KIB && next < 1024 * KIB, "{next}");
    restored(&b, "one", |path, generation| {
        assert!(generation == 2 && same_bytes(&image, path)?, "generation {generation}");
        Ok(())
    })?;
    restored(&b, "two", |path, generation| {
        assert!(generation == 1 && !same_bytes(&image, path)?, "generation {generation}");
        Ok(())
    })?;
    for platform in [&a, &b] {
        assert_eq!(platform.cli(&["store", "verify"])?["result"]["clean"], true);
    }
    Ok(())
}

/// What the whole image comes to in one zstd frame, holes and all, in bytes.
fn compressed(image: &Path, level: i32) -> Result<u64> {
    struct Count(u64);
    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len() as u64;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut encoder = zstd::Encoder::new(Count(0), level)?;
    std::io::copy(&mut std::fs::File::open(image)?, &mut encoder)?;
    Ok(encoder.finish()?.0)
}

#[test]
fn an_image_that_nobody_has_takes_less_than_its_compressed_size() -> Result<()> {
    let turn = turn("an_image_that_nobody_has_takes_less_than_its_compressed_size");
    let (_, base) = lab()?;
    let (a, b) = pair()?;
    let sent = int(&a.cli(&["image", "send", &base.display().to_string(), "b:new"])?, "wire_bytes_disk")?;
    let whole = compressed(&base, 3)?;
    turn.say(&format!("{sent} bytes sent, zstd -3 makes {whole} of the whole image"));
    assert!(sent < whole, "{sent} bytes, where zstd -3 makes {whole} of the whole image");
    restored(&b, "new", |path, _| {
        assert!(same_bytes(&base, path)?);
        Ok(())
    })
}

#[test]
fn a_block_device_is_an_image() -> Result<()> {
    let turn = turn("a_block_device_is_an_image");
    let dir = tempfile::Builder::new().prefix("lh-image-").tempdir()?;
    let (a, b) = pair()?;
    // Not a whole number of chunks, leaves or mebibytes, and mostly hole.
    let size = 48 * MIB + 5 * 512;
    let backing = |name: &str| -> Result<_> {
        let path = dir.path().join(name);
        std::fs::File::create(&path)?.set_len(size)?;
        Ok(path)
    };
    let disk = backing("disk")?;
    patch(&disk, 3 * MIB, &noise(1, 6 * MIB as usize))?;
    patch(&disk, size - 1000, &noise(2, 1000))?;
    let device = BlockDevice::over(&disk)?;
    let device_text = device.path().display().to_string();
    let wire = |arguments: &[&str]| int(&a.cli(arguments)?, "wire_bytes_disk");

    let first = wire(&["image", "send", &device_text, "b:disk"])?;
    patch(device.path(), 20 * MIB, &noise(3, 512))?;
    let second = wire(&["image", "send", &device_text, "b:disk"])?;
    turn.say(&format!("image send of {device_text}: {first} bytes, then {second} for one sector"));
    assert!(first > 6 * MIB && second < 256 * KIB, "{first}, then {second}");
    restored(&b, "disk", |path, generation| {
        assert!(generation == 2 && same_bytes(device.path(), path)?, "generation {generation}");
        let there = files::allocated(path)?;
        assert!(there < 8 * MIB, "the zeroes of a device became {there} bytes of a file");
        Ok(())
    })?;

    // And back onto a device that holds something else.
    let spare = backing("spare")?;
    patch(&spare, 0, &noise(4, 9 * MIB as usize))?;
    let target = BlockDevice::over(&spare)?;
    b.cli(&["replica", "restore", "disk", &target.path().display().to_string(), "--in-place"])?;
    assert!(same_bytes(device.path(), target.path())?, "the restored device differs");

    // A device as a base: what the store holds of it is not sent.
    b.cli(&["base", "add", "device", &target.path().display().to_string()])?;
    let known = wire(&["image", "send", &device_text, "b:again"])?;
    assert!(known < 64 * KIB, "{known} bytes for what a base holds");
    Ok(())
}

/// One pass. Returns its wire bytes, its summary, and what the guest had acknowledged before it began.
fn pass(scene: &Scene) -> Result<(u64, String, u64)> {
    let acked = scene.collector.acked();
    let report = scene.sites[0].cli(&["replicate", VM, "--to", "b"])?;
    let summary = report["summary"].as_str().context("a summary")?.to_owned();
    Ok((int(&report, "wire_bytes_disk")?, summary, acked))
}

/// The replica is at `generation` and holds every record up to `acked`.
fn holds(scene: &Scene, generation: u64, acked: u64) -> Result<()> {
    restored(&scene.sites[1], VM, |path, found| {
        assert_eq!(found, generation);
        scene.found(path, acked).map(drop)
    })
}

#[test]
fn a_running_vm_is_kept_warm() -> Result<()> {
    let turn = turn("a_running_vm_is_kept_warm");
    let mut scene = Scene::boot(Setting { link: Some(LinkSettings::default()), ..Setting::default() })?;

    let (first, summary, acked) = pass(&scene)?;
    assert!(summary.contains("first copy"), "{summary}");
    holds(&scene, 1, acked)?;
    sleep(Duration::from_secs(1));
    let (second, summary, acked) = pass(&scene)?;
    assert!(summary.contains("dirty blocks"), "{summary}");
    turn.say(&format!("first copy {first} bytes, dirty blocks {second} bytes"));
    assert!(second * 3 < first, "{first} then {second}");
    holds(&scene, 2, acked)?;

    // A daemon that was away cannot know: it scans. Whoever comes meanwhile is told to come again.
    scene.sites[0].restart()?;
    let acked = scene.collector.acked();
    slow_down(&scene);
    let scan = scene.sites[0].begin(&["replicate", VM, "--to", "b"])?;
    wait_for("the scan", PATIENCE, || running_phase(&scene.sites[0], "replicate"))?;
    for other in ["replicate", "migrate"] {
        let refused = scene.sites[0].cli_fails(&[other, VM, "--to", "b"])?;
        let told = ["busy with job", VM, "longhaul job cancel"].map(|words| refused.stderr.contains(words));
        assert!(refused.code == Some(4) && told == [true; 3], "{refused:?}");
    }
    scene.relays.iter().for_each(|relay| relay.set(LinkSettings::default()));
    let outcome = scan.wait(JOB)?;
    assert!(outcome.code == Some(0) && outcome.stdout.contains("whole scan"), "{outcome:?}");
    holds(&scene, 3, acked)?;

    let (third, summary, acked) = pass(&scene)?;
    assert!(summary.contains("dirty blocks") && third * 3 < first, "{summary}, {third}");
    let (mut generation, mut kept) = (4, acked);
    for interrupted in [1, 0] {
        interrupt_a_pass(&mut scene, interrupted)?;
        holds(&scene, generation, kept)?;
        if interrupted == 0 {
            // The receiver of a dead sender's pass waits for a while; a caller that comes too early is told so.
            wait_for("the end of the dead sender's pass", PATIENCE, || {
                let outcome = scene.sites[0].begin(&["replicate", VM, "--to", "b"])?.wait(JOB)?;
                assert!(matches!(outcome.code, Some(0 | 4)), "{outcome:?}");
                Ok((outcome.code == Some(0)).then_some(()))
            })?;
            generation += 1;
        }
        let (_, summary, acked) = pass(&scene)?;
        (generation, kept) = (generation + 1, acked);
        turn.say(&format!("after the death of {}: {summary}", scene.sites[interrupted].name()));
        holds(&scene, generation, kept)?;
    }

    // A migration to where the replica is starts from it.
    let report = scene.migrate(0, 1)?;
    let wire = int(&report, "wire_bytes_disk")?;
    turn.say(&format!("the migration that follows: {wire} disk bytes"));
    assert!(wire * 2 < first, "{wire} bytes, the first copy took {first}");
    scene.prove(1)?;
    Ok(())
}

/// Makes a pass last, without making it so slow that a connection is given up.
fn slow_down(scene: &Scene) {
    let slow = LinkSettings { rate_bytes_s: Some(300_000), ..LinkSettings::default() };
    scene.relays.iter().for_each(|relay| relay.set(slow));
}

/// Kills a daemon in the middle of a pass and starts it again; the guest does not notice.
fn interrupt_a_pass(scene: &mut Scene, which: usize) -> Result<()> {
    sleep(Duration::from_secs(2));
    let before: u64 = scene.relays.iter().map(|relay| relay.counts().bytes).sum();
    slow_down(scene);
    let mut run = scene.sites[0].begin(&["replicate", VM, "--to", "b"])?;
    wait_for("a pass under way", PATIENCE, || {
        let now: u64 = scene.relays.iter().map(|relay| relay.counts().bytes).sum();
        Ok((now > before + 150_000).then_some(()))
    })?;
    assert!(run.is_running(), "the pass was over too soon: {}", run.progress()?);
    scene.sites[which].kill9()?;
    let outcome = run.wait(JOB)?;
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    scene.lives()?;
    scene.relays.iter().for_each(|relay| relay.set(LinkSettings::default()));
    scene.sites[which].start()?;
    scene.lives()
}

#[test]
fn a_vm_moves_there_and_back() -> Result<()> {
    let turn = turn("a_vm_moves_there_and_back");
    let scene = Scene::new(Setting::default())?;
    let [a, b] = &scene.sites;
    let base = lab()?.1;
    a.cli(&["base", "add", "debian", &base.display().to_string()])?;
    a.cli(&["base", "push", "debian", "b"])?;
    a.place_disk(VM, &base)?;
    a.start_guest(&scene.guest)?;
    scene.collector.wait_acked(100, PATIENCE)?;

    let plan = a.cli(&["migrate", VM, "--to", "b", "--dry-run"])?;
    assert!(a.qemu(VM).is_some() && b.qemu(VM).is_none(), "a dry run moved something: {plan}");
    let there = scene.migrate(0, 1)?;
    assert_eq!(scene.owner()?, 1);
    let (wire, data) = (int(&there, "wire_bytes_disk")?, int(&there, "data_bytes")?);
    let written = scene.collector.acked() * u64::from(scene.guest.workload.record_bytes);
    let text = a.cli_text(&["report", there["job"].as_str().context("a job")?])?;
    turn.say(&format!("there: {wire} disk bytes of {data}, the guest wrote {written}"));
    assert!(wire < data / 50 + written * 2, "{wire} disk bytes of {data}, {written} written");
    for words in ["the paper", "switchover", "image copy", "on the wire"] {
        assert!(text.contains(words), "no {words:?} in\n{text}");
    }
    let phases: Vec<_> = there["phases"].as_array().into_iter().flatten().map(|p| &p["name"]).collect();
    for name in ["prepare", "bulk", "precopy", "memory", "switchover", "release"] {
        assert!(phases.iter().any(|phase| **phase == *name), "no phase {name}: {phases:?}");
    }
    scene.lives()?;

    // The way back costs the difference: the image that was left at the first platform is where it starts.
    let left = scene.collector.acked();
    let back = scene.migrate(1, 0)?;
    let wire = int(&back, "wire_bytes_disk")?;
    let written = (scene.collector.acked() - left + 64) * u64::from(scene.guest.workload.record_bytes);
    turn.say(&format!("back: {wire} disk bytes, the guest wrote {written} meanwhile"));
    assert!(wire < data / 50 + written * 2, "{wire} disk bytes of {data}, {written} written");
    let found = scene.prove(0)?;
    assert!(found >= 100, "{found} records");
    assert!(!same_bytes(&a.image(VM, DISK), &b.image(VM, DISK))?, "the guest went on at a alone");
    Ok(())
}

#[test]
fn a_qcow2_image_moves_and_is_raw_where_it_arrives() -> Result<()> {
    let turn = turn("a_qcow2_image_moves_and_is_raw_where_it_arrives");
    let mut scene = Scene::new(Setting::default())?;
    let base = lab()?.1;
    let image = scene.sites[0].root().join("web.qcow2");
    shell::run(Command::new("qemu-img").args(["convert", "-O", "qcow2"]).arg(&base).arg(&image))?;
    (scene.guest.disk, scene.guest.disk_format) = (image, "qcow2");
    let [a, b] = &scene.sites;
    a.cli(&["base", "add", "debian", &base.display().to_string()])?;
    a.cli(&["base", "push", "debian", "b"])?;
    a.start_guest(&scene.guest)?;
    scene.collector.wait_acked(100, PATIENCE)?;

    let refused = a.cli_fails(&["replicate", VM, "--to", "b"])?;
    assert!(refused.stderr.contains("qemu-img convert"), "{refused:?}");
    let plan = a.cli(&["migrate", VM, "--to", "b", "--dry-run"])?;
    assert!(int(&plan["disks"][0], "size")? == std::fs::metadata(&base)?.len(), "{plan}");

    let there = scene.migrate(0, 1)?;
    let (wire, data) = (int(&there, "wire_bytes_disk")?, int(&there, "data_bytes")?);
    let written = scene.collector.acked() * u64::from(scene.guest.workload.record_bytes);
    turn.say(&format!("there: {wire} disk bytes of {data}, the guest wrote {written}"));
    assert!(wire < data / 50 + written * 2, "{wire} disk bytes of {data}, {written} written");
    assert_eq!(scene.owner()?, 1);
    scene.lives()?;
    scene.found(&b.image(VM, DISK), scene.collector.acked() - 64)?;

    // The way back ends in an image beside the first one, which nobody writes to any more.
    scene.migrate(1, 0)?;
    let found = scene.prove(0)?;
    assert!(found >= 100, "{found} records");
    Ok(())
}
