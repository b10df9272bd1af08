//! Accidents of the hypervisor in the middle of a migration: whatever becomes of a QEMU, the guest goes on.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{JOB, PATIENCE, Scene, Setting, VM, running_phase, status, turn, wait_for};
use harness::LinkSettings;
use rustix::process::{Pid, Signal, kill_process};

/// So slow that the rest of the memory is on its way for seconds, in which the guest may stand still.
const SLOW: LinkSettings = LinkSettings {
    delay: Duration::ZERO,
    rate_bytes_s: Some(3 << 20),
    loss_permille: 0,
    queue_bytes: 1 << 20,
};

fn signal(pid: i32, signal: Signal) -> Result<()> {
    kill_process(Pid::from_raw(pid).context("a process id")?, signal).context("sending a signal")
}

/// As the OOM killer does. QEMU at the source is in the middle of a send that nobody reads any more.
#[test]
fn a_destination_whose_qemu_dies_in_the_switchover_gives_the_guest_back() -> Result<()> {
    let turn = turn("a_destination_whose_qemu_dies_in_the_switchover_gives_the_guest_back");
    let scene = Scene::boot(Setting { link: Some(SLOW), ..Setting::default() })?;
    let [a, b] = &scene.sites;
    for _ in 0..3 {
        let migration = a.begin_json(&["migrate", VM, "--to", "b", "--max-downtime", "60s"])?;
        wait_for("the switchover", JOB, || {
            Ok((running_phase(a, "migrate_out")?.as_deref() == Some("switchover")).then_some(()))
        })?;
        signal(b.qemu(VM).context("a QEMU at b")?, Signal::KILL)?;
        let told = migration.wait(JOB)?;
        ensure!(told.code != Some(0), "{told:?}");
        scene.settle()?;
        ensure!(scene.owner()? == 0, "the guest is not where it was");
        scene.lives()?;
        turn.say("the guest goes on at the source");
    }
    scene.prove(0)?;
    Ok(())
}

/// Its storage is gone, say: here it is stopped.
#[test]
fn a_qemu_that_does_not_answer_can_be_ended() -> Result<()> {
    let _turn = turn("a_qemu_that_does_not_answer_can_be_ended");
    let scene = Scene::boot(Setting::default())?;
    let a = &scene.sites[0];
    signal(a.qemu(VM).context("a QEMU at a")?, Signal::STOP)?;
    ensure!(status(a, VM)?.as_deref() == Some("Unresponsive"), "{:?}", status(a, VM)?);
    let told = a.cli_fails(&["migrate", VM, "--to", "b"])?;
    ensure!(told.stderr.contains("did not answer"), "{told:?}");
    scene.settle()?;
    a.cli(&["vm", "stop", VM, "--kill"])?;
    wait_for("its end", PATIENCE, || {
        Ok((status(a, VM)?.as_deref() == Some("Stopped") && a.qemu(VM).is_none()).then_some(()))
    })?;
    scene.over();
    Ok(())
}
