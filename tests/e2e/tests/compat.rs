//! The version before: platforms of both versions use each other in every way, and one is upgraded in the middle of each.
//! `cargo xtask compat` builds that version and runs these; its program is `LONGHAUL_EARLIER`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};
use e2e::{JOB, PATIENCE, Scene, Setting, VM, int, lab, noise, same_bytes, status, turn, wait_for};
use harness::Platform;
use harness::guest::DISK;

const BASE: &str = "small";
const SECOND: &str = "second";
/// The exit code that tells cron to come again.
const BUSY: i32 = 4;

/// The program of the version before.
fn earlier() -> Result<&'static Path> {
    static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
    let program = PROGRAM.get_or_init(|| std::env::var_os("LONGHAUL_EARLIER").map(PathBuf::from));
    program.as_deref().context("LONGHAUL_EARLIER is not set; `cargo xtask compat` sets it")
}

/// A guest on the first platform, which like the second may be of the version before.
fn scene(earlier: [Option<&'static Path>; 2]) -> Result<Scene> {
    Scene::boot(Setting { earlier, ..Setting::default() })
}

/// The daemon ends in order, and one of the version under test takes its place.
fn upgrade(site: &mut Platform) -> Result<()> {
    if site.is_running() {
        site.signal(rustix::process::Signal::TERM)?;
        site.wait_ended(PATIENCE)?;
    }
    site.use_program(None)?;
    site.start()
}

fn pass(scene: &Scene, from: usize) -> Result<()> {
    scene.sites[from].cli(&["replicate", VM, "--to", scene.sites[1 - from].name()]).map(drop)
}

/// The replica holds all records that were acknowledged before its last pass.
fn replica_is_whole(scene: &Scene, at: usize, acked: u64) -> Result<()> {
    let copy = scene.sites[at].root().join("copy.raw");
    let _ = fs::remove_file(&copy);
    scene.sites[at].cli(&["replica", "restore", VM, &copy.display().to_string()])?;
    scene.found(&copy, acked).map(drop)
}

/// Seeds a base, sends an image, replicates twice, moves there, back, and there once more with the guest stopped.
fn every_use(earlier: [Option<&'static Path>; 2]) -> Result<()> {
    let scene = scene(earlier)?;
    let [a, b] = &scene.sites;
    a.cli(&["base", "add", BASE, &lab()?.1.display().to_string()])?;
    a.cli(&["base", "push", BASE, "b"])?;
    let restored = b.root().join("restored.raw");
    b.cli(&["base", "restore", BASE, &restored.display().to_string()])?;
    ensure!(same_bytes(&restored, &lab()?.1)?, "the base is another one there");

    let image = a.root().join("image.raw");
    fs::write(&image, noise(1, 3_000_001))?;
    a.cli(&["image", "send", &image.display().to_string(), "b:image"])?;

    for _ in 0..2 {
        let acked = scene.collector.acked();
        pass(&scene, 0)?;
        replica_is_whole(&scene, 1, acked)?;
    }
    a.cli(&["migrate", VM, "--to", "b", "--dry-run"])?;
    scene.migrate(0, 1)?;
    scene.settle()?;
    pass(&scene, 1)?;
    scene.migrate(1, 0)?;
    scene.settle()?;
    a.cli(&["migrate", VM, "--to", "b", "--cold"])?;
    scene.settle()?;
    for site in &scene.sites {
        site.cli(&["store", "verify"])?;
    }
    scene.prove(1).map(drop)
}

#[test]
#[ignore = "needs the version before: cargo xtask compat"]
fn every_use_from_the_version_before() -> Result<()> {
    let _turn = turn("every_use_from_the_version_before");
    every_use([Some(earlier()?), None])
}

#[test]
#[ignore = "needs the version before: cargo xtask compat"]
fn every_use_to_the_version_before() -> Result<()> {
    let _turn = turn("every_use_to_the_version_before");
    every_use([None, Some(earlier()?)])
}

/// What a platform has is the same after its upgrade, and goes on.
#[test]
#[ignore = "needs the version before: cargo xtask compat"]
fn an_upgrade_keeps_vms_bases_and_replicas() -> Result<()> {
    let _turn = turn("an_upgrade_keeps_vms_bases_and_replicas");
    let mut scene = scene([Some(earlier()?); 2])?;
    scene.sites[0].cli(&["base", "add", BASE, &lab()?.1.display().to_string()])?;
    scene.sites[0].cli(&["base", "push", BASE, "b"])?;
    // There and back, so that there are journals of both sides.
    scene.migrate(0, 1)?;
    scene.settle()?;
    scene.migrate(1, 0)?;
    scene.settle()?;
    let acked = scene.collector.acked();
    pass(&scene, 0)?;
    scene.sites.iter_mut().try_for_each(upgrade)?;

    ensure!(scene.owner()? == 0, "the VM has another owner");
    replica_is_whole(&scene, 1, acked)?;
    let [a, b] = &scene.sites;
    let generation = || -> Result<u64> { int(&b.cli(&["replica", "list"])?[0], "generation") };
    let before = generation()?;
    pass(&scene, 0)?;
    ensure!(generation()? == before + 1, "the pass began another replica");
    let again = a.cli(&["base", "push", BASE, "b"])?;
    ensure!(int(&again, "wire_bytes_disk")? < 1 << 20, "the base was sent again: {again}");
    for site in &scene.sites {
        site.cli(&["store", "verify"])?;
    }
    scene.migrate(0, 1)?;
    scene.settle()?;
    scene.prove(1).map(drop)
}

/// One side dies at a step of the hand-off and comes back upgraded: the guest runs on one side, with all its records.
fn upgraded_at(point: &str, owner: usize) -> Result<()> {
    let side = usize::from(point.starts_with("dest"));
    let mut scene = scene([Some(earlier()?); 2])?;
    scene.sites[side].kill9()?;
    scene.sites[side].start_with(&[("LONGHAUL_CRASH_AT", point)])?;
    let run = scene.sites[0].begin(&["migrate", VM, "--to", "b"])?;
    wait_for("the crash", JOB, || Ok((!scene.sites[side].is_running()).then_some(())))?;
    upgrade(&mut scene.sites[side])?;
    let _ = run.wait(JOB)?;
    scene.settle()?;
    ensure!(scene.owner()? == owner, "upgraded at {point}, it runs on the other side");
    upgrade(&mut scene.sites[1 - side])?;
    scene.migrate(owner, 1 - owner)?;
    scene.settle()?;
    scene.prove(1 - owner).map(drop)
}

#[test]
#[ignore = "needs the version before: cargo xtask compat"]
fn an_upgrade_in_the_middle_of_a_migration_leaves_one_guest() -> Result<()> {
    let _turn = turn("an_upgrade_in_the_middle_of_a_migration_leaves_one_guest");
    // As the version before names them.
    for (point, owner) in [
        ("source:action:copy_disks", 0),
        ("source:action:send_final", 0),
        ("source:journalled:released", 1),
        ("dest:action:start_incoming", 0),
        ("dest:journalled:ready", 0),
        ("dest:journalled:owned", 1),
    ] {
        upgraded_at(point, owner).with_context(|| point.to_owned())?;
    }
    Ok(())
}

/// A pass is under way when a daemon is killed, and it comes back upgraded: the replica is whole, and the next pass works.
#[test]
#[ignore = "needs the version before: cargo xtask compat"]
fn an_upgrade_in_the_middle_of_a_pass_leaves_a_whole_replica() -> Result<()> {
    let _turn = turn("an_upgrade_in_the_middle_of_a_pass_leaves_a_whole_replica");
    for side in 0..2 {
        let mut scene = Scene::new(Setting { earlier: [Some(earlier()?); 2], ..Setting::default() })?;
        // Takes long enough to be met.
        let disk = scene.sites[0].root().join("second.raw");
        fs::write(&disk, noise(7, 256 << 20))?;
        scene.sites[0].place_disk(VM, &lab()?.1)?;
        let more = format!("\n[[disks]]\nname = \"{SECOND}\"\npath = \"{}\"\n", disk.display());
        let file = scene.sites[0].root().join("guest.toml");
        fs::write(&file, scene.guest.definition() + &more)?;
        scene.sites[0].cli(&["vm", "define", &file.display().to_string()])?;
        scene.sites[0].cli(&["vm", "start", VM])?;
        scene.collector.wait_acked(16, PATIENCE)?;

        let run = scene.sites[0].begin(&["replicate", VM, "--to", "b"])?;
        wait_for("the pass", JOB, || {
            let jobs = scene.sites[0].cli(&["job", "list"])?;
            let running = jobs.as_array().into_iter().flatten().find(|job| job["kind"] == "replicate");
            Ok(running.filter(|job| job["wire_bytes_disk"].as_u64() > Some(1 << 20)).map(drop))
        })?;
        scene.sites[side].kill9()?;
        upgrade(&mut scene.sites[side])?;
        ensure!(run.wait(JOB)?.code != Some(0), "the pass was over before");
        scene.settle()?;
        // The side that was not killed may have to find out that the other one was.
        let acked = wait_for("a pass", JOB, || {
            let acked = scene.collector.acked();
            let outcome = scene.sites[0].begin(&["replicate", VM, "--to", "b"])?.wait(JOB)?;
            ensure!(matches!(outcome.code, Some(0 | BUSY)), "{outcome:?}");
            Ok((outcome.code == Some(0)).then_some(acked))
        })?;
        let copy = scene.sites[1].root().join("copy.raw");
        scene.sites[1].cli(&["replica", "restore", VM, &copy.display().to_string(), "--disk", DISK])?;
        scene.found(&copy, acked)?;
        ensure!(status(&scene.sites[0], VM)?.as_deref() == Some("Running"), "the guest does not run");
        scene.over();
    }
    Ok(())
}

/// The version before would take VMs that have moved away for its own, or forget them: it is not started on newer state.
#[test]
#[ignore = "needs the version before: cargo xtask compat"]
fn a_downgrade_is_refused() -> Result<()> {
    let _turn = turn("a_downgrade_is_refused");
    let mut scene = scene([None, None])?;
    scene.migrate(0, 1)?;
    scene.settle()?;
    for site in &mut scene.sites {
        site.restart()?;
        site.kill9()?;
        site.use_program(Some(earlier()?))?;
        let refused = site.start().err().context("the version before was started on newer state")?;
        // Its own words for a header that it does not know.
        ensure!(refused.to_string().contains("not a longhaul journal"), "it does not say why: {refused}");
        site.use_program(None)?;
        site.start()?;
    }
    ensure!(scene.owner()? == 1, "the VM has another owner");
    scene.prove(1).map(drop)
}
