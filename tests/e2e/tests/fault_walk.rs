//! Every fault at every step of the hand-off, with a real guest: whatever dies, exactly one guest runs afterwards, and it
//! has every record it ever acknowledged.

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{JOB, PATIENCE, Scene, Setting, Turn, VM, running_phase, status, turn, wait_for};
use harness::guest::DISK;
use harness::{LinkSettings, shell, verify_records};

/// Where the guest is to be when all is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// Before the point of no return: where it was.
    Back,
    /// After it: where it was to go.
    Forth,
    /// The promise is given, the decision is the source's: both are right.
    Either,
}
use Outcome::{Back, Either, Forth};

/// Every point at which one of the two daemons writes, says or begins something, in the order of the hand-off.
const POINTS: [(&str, Outcome); 32] = [
    ("source:journal:started", Back),
    ("source:journalled:started", Back),
    ("source:transmit:offer", Back),
    ("destination:journal:accepted", Back),
    ("destination:journalled:accepted", Back),
    ("destination:action:prepare_disks", Back),
    ("destination:transmit:accepted", Back),
    ("source:action:copy_disks", Back),
    ("source:action:run_round", Back),
    ("source:transmit:start_memory", Back),
    ("destination:action:start_incoming", Back),
    ("destination:transmit:memory_ready", Back),
    ("source:action:send_memory", Back),
    ("source:action:drain_disks", Back),
    ("source:action:send_final", Back),
    ("source:action:finish_memory", Back),
    ("source:transmit:final", Back),
    ("destination:action:seal_disks", Back),
    ("destination:journal:ready", Back),
    ("destination:journalled:ready", Either),
    ("destination:transmit:ready", Either),
    ("source:journal:released", Back),
    ("source:journalled:released", Forth),
    ("source:transmit:release", Forth),
    ("destination:journal:owned", Forth),
    ("destination:journalled:owned", Forth),
    ("destination:action:resume", Forth),
    ("destination:journal:resumed", Forth),
    ("destination:journalled:resumed", Forth),
    ("destination:transmit:resumed", Forth),
    ("destination:action:rebind", Forth),
    ("destination:journal:rebound", Forth),
];
/// The end of the hand-off, where the guest already runs at its new place.
const LAST_POINTS: [(&str, Outcome); 4] = [
    ("destination:journalled:rebound", Forth),
    ("source:action:retire", Forth),
    ("source:journal:retired", Forth),
    ("source:journalled:retired", Forth),
];
/// Of a migration that a person cancels while the memory is on its way.
const CANCELLED_POINTS: [&str; 5] = [
    "source:action:roll_back",
    "source:journal:rolled_back",
    "source:journalled:rolled_back",
    "destination:action:discard",
    "destination:journal:discarded",
];

/// The guest of a walk, and where it is.
struct Walk<'a> {
    turn: &'a Turn,
    scene: Scene,
    at: usize,
}

impl Walk<'_> {
    /// One attempt to move the guest, during which the daemon that `label` belongs to dies there.
    fn step(&mut self, label: &str, expected: Outcome, cancel: bool) -> Result<()> {
        let started = Instant::now();
        let (source, dest) = (self.at, 1 - self.at);
        let victim = if label.starts_with("source:") { source } else { dest };
        let to = self.scene.sites[dest].name().to_owned();

        let site = &mut self.scene.sites[victim];
        site.kill9()?;
        site.start_with(&[("LONGHAUL_CRASH_AT", label)])?;
        let migration = self.scene.sites[source].begin_json(&["migrate", VM, "--to", &to])?;
        if cancel {
            self.cancel(source)?;
        }
        let ended = self.scene.sites[victim].wait_ended(PATIENCE)?;
        ensure!(ended.signal() == Some(9), "the daemon was to be killed, it ended with {ended}");
        self.scene.sites[victim].start()?;
        let told = migration.wait(JOB)?;
        self.scene.settle()?;

        let owner = self.scene.owner()?;
        let outcome = if owner == dest { Forth } else { Back };
        ensure!(expected == Either || expected == outcome, "the guest went {outcome:?}, not {expected:?}");
        if victim == dest {
            // The daemon that was asked lives, so its answer must be the truth.
            ensure!((told.code == Some(0)) == (outcome == Forth), "it went {outcome:?}, told was {told:?}");
        }
        self.scene.lives()?;
        self.at = owner;
        let took = started.elapsed().as_secs_f64();
        self.turn.say(&format!("{took:>5.1} s  {label}: {outcome:?}"));
        Ok(())
    }

    fn cancel(&self, source: usize) -> Result<()> {
        let site = &self.scene.sites[source];
        let job = wait_for("the memory's way to begin", PATIENCE, || {
            let jobs = site.cli(&["job", "list"])?;
            let job = jobs.as_array().into_iter().flatten().find(|job| {
                let phase = job["phases"].as_array().and_then(|phases| phases.last());
                job["state"] == "running" && phase.is_some_and(|phase| phase["name"] == "memory")
            });
            Ok(job.and_then(|job| job["job"].as_str().map(str::to_owned)))
        })?;
        // A daemon that dies of it gives no answer.
        site.begin(&["job", "cancel", &job])?.wait(PATIENCE).map(drop)
    }

    /// Moves the guest without any fault: what came before has left nothing in the way.
    fn undisturbed(&mut self) -> Result<()> {
        self.scene.migrate(self.at, 1 - self.at)?;
        self.at = 1 - self.at;
        ensure!(self.scene.owner()? == self.at, "a migration without a fault did not move the guest");
        self.scene.lives()
    }
}

fn walk(turn: &Turn, steps: &[(&str, Outcome)], cancel: bool) -> Result<()> {
    let scene = Scene::boot(Setting { long_life: true, ..Setting::default() })?;
    let mut walk = Walk { turn, scene, at: 0 };
    for (number, (label, expected)) in steps.iter().enumerate() {
        walk.step(label, *expected, cancel).with_context(|| format!("killed at {label}"))?;
        // After every fourth, and after the last.
        if number % 4 == 3 || number + 1 == steps.len() {
            walk.undisturbed().with_context(|| format!("the migration after {label}"))?;
        }
    }
    let found = walk.scene.prove(walk.at)?;
    turn.say(&format!("{found} records, all there"));
    Ok(())
}

#[test]
fn a_daemon_killed_before_the_memory_moves() -> Result<()> {
    walk(&turn("killed_before_the_memory_moves"), &POINTS[..12], false)
}

#[test]
fn a_daemon_killed_during_the_switchover() -> Result<()> {
    walk(&turn("killed_during_the_switchover"), &POINTS[12..22], false)
}

#[test]
fn a_daemon_killed_after_release() -> Result<()> {
    let steps = [&POINTS[22..], &LAST_POINTS[..]].concat();
    walk(&turn("killed_after_release"), &steps, false)
}

#[test]
fn a_daemon_killed_while_it_rolls_back() -> Result<()> {
    let steps = CANCELLED_POINTS.map(|label| (label, Back));
    walk(&turn("killed_while_it_rolls_back"), &steps, true)
}

#[test]
fn a_link_cut_in_the_middle() -> Result<()> {
    let turn = turn("a_link_cut_in_the_middle");
    let scene =
        Scene::boot(Setting { link: Some(LinkSettings::default()), long_life: true, ..Setting::default() })?;
    // The first moment of the memory's way, and its middle, when the guest may stand still already.
    for (phases, bytes) in [(&["bulk"][..], 2 << 20), (&["memory"], 0), (&["memory", "switchover"], 2 << 20)]
    {
        let rate_bytes_s = Some(8 << 20);
        scene.relays.iter().for_each(|r| r.set(LinkSettings { rate_bytes_s, ..LinkSettings::default() }));
        let migration = scene.sites[0].begin_json(&["migrate", VM, "--to", "b"])?;
        let passed = || scene.relays.iter().map(|relay| relay.counts().bytes).sum::<u64>();
        let mut begun = None;
        let phase = wait_for("the middle of it", JOB, || {
            let Some(phase) = running_phase(&scene.sites[0], "migrate_out")? else { return Ok(None) };
            if !phases.contains(&phase.as_str()) {
                return Ok(None);
            }
            let from = *begun.get_or_insert_with(passed);
            Ok((passed() >= from + bytes).then_some(phase))
        })?;
        scene.relays.iter().for_each(harness::Relay::cut);
        let told = migration.wait(JOB)?;
        assert!(told.code == Some(1) && told.stdout.contains("the connection"), "{told:?}");
        // The other side gives up by itself too: nothing reaches it.
        scene.settle()?;
        assert_eq!(scene.owner()?, 0);
        scene.lives()?;
        scene.relays.iter().for_each(harness::Relay::heal);
        turn.say(&format!("cut in {phase}: rolled back"));
    }
    scene.relays.iter().for_each(|relay| relay.set(LinkSettings::default()));
    scene.migrate(0, 1)?;
    scene.prove(1)?;
    Ok(())
}

#[test]
fn the_destinations_hypervisor_dies_before_the_promise() -> Result<()> {
    let turn = turn("the_destinations_hypervisor_dies_before_the_promise");
    let scene =
        Scene::boot(Setting { link: Some(LinkSettings::default()), long_life: true, ..Setting::default() })?;
    let rate_bytes_s = Some(8 << 20);
    // The bulk may pass at full speed, the memory may not.
    let migration = scene.sites[0].begin_json(&["migrate", VM, "--to", "b"])?;
    let qemu = wait_for("the destination's QEMU", JOB, || Ok(scene.sites[1].qemu(VM)))?;
    scene.relays.iter().for_each(|r| r.set(LinkSettings { rate_bytes_s, ..LinkSettings::default() }));
    kill(qemu)?;
    let told = migration.wait(JOB)?;
    assert!(told.code == Some(1) && told.stdout.contains("at the destination"), "{told:?}");
    scene.settle()?;
    assert_eq!(scene.owner()?, 0);
    scene.lives()?;
    scene.relays.iter().for_each(|relay| relay.set(LinkSettings::default()));
    scene.migrate(0, 1)?;
    let found = scene.prove(1)?;
    turn.say(&format!("{found} records"));
    Ok(())
}

#[test]
fn the_destinations_hypervisor_dies_after_the_promise() -> Result<()> {
    let turn = turn("the_destinations_hypervisor_dies_after_the_promise");
    for label in ["destination:journalled:ready", "destination:journal:owned"] {
        let mut scene = Scene::boot(Setting { long_life: true, ..Setting::default() })?;
        scene.collector.wait_acked(100, PATIENCE)?;
        scene.sites[1].kill9()?;
        scene.sites[1].start_with(&[("LONGHAUL_CRASH_AT", label)])?;
        let migration = scene.sites[0].begin_json(&["migrate", VM, "--to", "b"])?;
        scene.sites[1].wait_ended(PATIENCE)?;
        kill(scene.sites[1].qemu(VM).context("a QEMU at the destination")?)?;
        let (instance, acked) = (scene.collector.instance().context("a guest")?, scene.collector.acked());
        scene.sites[1].start()?;
        let told = migration.wait(JOB)?;
        scene.settle()?;
        let owner = scene.owner()?;
        turn.say(&format!("QEMU killed after {label}: runs at {owner}, exit code {:?}", told.code));
        assert!(owner == 1 || label != "destination:journal:owned", "it was released and did not go forth");
        if owner == 0 {
            // Rolled back: it lives on with its memory.
            scene.prove(0)?;
            continue;
        }
        // Booted from its disks: another instance, which writes over the first records of the old one.
        let boots = |scene: &Scene| scene.collector.instances().len();
        wait_for("the second boot", PATIENCE, || Ok((boots(&scene) == 2).then_some(())))?;
        scene.collector.wait_acked(16, PATIENCE)?;
        let report = scene.sites[1].cli(&["job", "list"])?.to_string();
        assert!(report.contains("booted from its disks"), "{report}");
        assert_eq!(status(&scene.sites[0], VM)?.as_deref(), Some("Stopped"));
        scene.sites[1].cli(&["vm", "stop", VM, "--kill"])?;
        let image = scene.sites[1].image(VM, DISK);
        let young = scene.collector.instance().context("a guest")?;
        let now = verify_records(&image, young, scene.collector.acked())?;
        assert!(now.is_whole() && now.found >= 16, "{now:?}");
        let before = verify_records(&image, instance, acked)?;
        turn.say(&format!("before {before:?}, after {now:?}"));
        assert!(before.bad <= now.newest + 1, "records lost: {before:?}, overwritten by {now:?}");
        assert_eq!((scene.collector.duplicates(), boots(&scene)), (0, 2));
        scene.over();
    }
    Ok(())
}

/// Kills a QEMU of ours at once.
fn kill(pid: i32) -> Result<()> {
    shell::run(std::process::Command::new("kill").args(["-KILL", &pid.to_string()]))?;
    wait_for("the killed QEMU's end", Duration::from_secs(5), || {
        let gone = std::fs::read(format!("/proc/{pid}/cmdline")).map_or(true, |line| line.is_empty());
        Ok(gone.then_some(()))
    })
}
