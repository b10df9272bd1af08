//! Accidents with other people's tools: one that has a monitor of its own at a guest's hypervisor, and puts the guest's disk on
//! another file.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::monitor::Monitor;
use e2e::{Scene, Setting, VM, status, turn};
use harness::guest::DISK;
use serde_json::json;

/// A refusal that takes longer waits for something.
const AT_ONCE: Duration = Duration::from_secs(30);

/// Everything that would copy the disk is refused, and nothing is left of it.
fn refused(scene: &Scene) -> Result<()> {
    let [a, b] = &scene.sites;
    for line in [
        &["replicate", VM, "--to", "b"][..],
        &["migrate", VM, "--to", "b", "--dry-run"],
        &["migrate", VM, "--to", "b"],
        &["migrate", VM, "--to", "b", "--cold"],
    ] {
        let outcome = a.begin(line)?.wait(AT_ONCE)?;
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
        let message = format!("{}{}", outcome.stderr, outcome.stdout);
        // Which node it is, and what to do about it.
        assert!(message.contains("other-tool") && message.contains("commit"), "{outcome:?}");
    }
    scene.settle()?;
    assert_eq!((status(a, VM)?.as_deref(), b.qemu(VM)), (Some("Running"), None));
    ensure!(!b.image(VM, DISK).exists(), "something came to b");
    Ok(())
}

/// The guest writes to the snapshot from then on, past whatever copies the disk.
#[test]
fn a_disk_that_another_tool_has_moved_is_refused_and_the_vm_is_free() -> Result<()> {
    let turn = turn("a_disk_that_another_tool_has_moved_is_refused_and_the_vm_is_free");
    let mut scene = Scene::new(Setting::default())?;
    let socket = scene.sites[0].root().join("tool.qmp");
    scene.start_with(&["-qmp", &format!("unix:{},server=on,wait=off", socket.display())])?;
    let overlay = scene.sites[0].root().join("tool.qcow2");
    let snapshot = json!({ "node-name": DISK, "snapshot-file": overlay, "snapshot-node-name": "other-tool",
        "format": "qcow2" });
    let mut monitor = Monitor::connect(&socket)?;
    monitor.execute("blockdev-snapshot-sync", snapshot)?;
    refused(&scene)?;
    // A new daemon has no rollback to take up again, and finds the disk where it is.
    scene.sites[0].restart()?;
    refused(&scene)?;
    scene.lives()?;

    // As the refusal says: with the snapshot committed all goes on.
    let device = monitor.devices(["other-tool"])?;
    turn.say(&format!("the device {} is on the other tool's node", device[0]));
    monitor.execute("block-commit", json!({ "job-id": "commit", "device": "other-tool" }))?;
    monitor.finish("commit")?;
    scene.sites[0].cli(&["replicate", VM, "--to", "b"])?;
    scene.lives()?;

    // And on another one it can be ended.
    let snapshot = json!({ "node-name": DISK, "snapshot-file": overlay.with_extension("2"),
        "snapshot-node-name": "other-tool", "format": "qcow2" });
    monitor.execute("blockdev-snapshot-sync", snapshot)?;
    let refused = scene.sites[0].begin(&["migrate", VM, "--to", "b"])?.wait(AT_ONCE)?;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let begun = Instant::now();
    scene.sites[0].cli(&["vm", "stop", VM, "--kill"])?;
    ensure!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    assert_eq!(status(&scene.sites[0], VM)?.as_deref(), Some("Stopped"));
    scene.sites[0].restart()?;
    scene.sites[0].cli(&["vm", "stop", VM, "--kill"])?;
    scene.sites[0].cli(&["vm", "remove", VM]).context("a VM that nothing holds")?;
    scene.over();
    Ok(())
}
