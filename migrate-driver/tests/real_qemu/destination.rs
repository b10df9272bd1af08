//! A destination that is less than the source is found out before anything is copied.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use migrate_driver::{DriverError, GuestFacts, GuestStatus};

use crate::common::guest::{DISK_BYTES, Pace};
use crate::common::{Host, soon};

/// A host whose QEMU takes these features from every CPU.
fn lesser(features: &str) -> Host {
    let mut host = Host::new();
    let qemu = host.path().join("lesser-qemu");
    let script = format!(
        "#!/bin/bash\na=(); for x in \"$@\"; do case \"$x\" in qemu64*) x=\"$x,{features}\";; esac; a+=(\"$x\"); done\n\
         exec {} \"${{a[@]}}\"\n",
        host.def.qemu.binary
    );
    fs::write(&qemu, script).unwrap();
    fs::set_permissions(&qemu, fs::Permissions::from_mode(0o755)).unwrap();
    host.def.qemu.binary = qemu.to_str().unwrap().to_owned();
    host
}

async fn probe(host: &Host, facts: Option<&GuestFacts>) -> Result<(), DriverError> {
    let probed = soon("probe", host.driver.probe(&host.def, &[DISK_BYTES], facts)).await;
    let left: Vec<_> =
        fs::read_dir(host.path().join("run")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "a probe leaves {left:?}");
    assert!(!is_running(&host.path().join("run").to_string_lossy()), "a probe's QEMU runs on");
    assert_eq!(host.status().await, GuestStatus::Stopped);
    probed
}

/// Whether a process has this in its arguments.
fn is_running(text: &str) -> bool {
    let command = |entry: fs::DirEntry| fs::read(entry.path().join("cmdline")).unwrap_or_default();
    let mut commands = fs::read_dir("/proc").unwrap().flatten().map(command);
    commands.any(|command| String::from_utf8_lossy(&command).contains(text))
}

#[tokio::test]
async fn the_source_tells_what_its_guest_has_and_an_equal_host_takes_it() {
    let source = Host::with_guest(Pace::Steady).await;
    let facts = source.driver.facts(source.vm()).await.unwrap();
    let machine = facts.machine.clone().unwrap();
    assert!(machine.starts_with("pc-q35-"), "{machine}");
    assert!(facts.version.is_some() && facts.cpu.len() > 3, "{facts:?}");
    // As it travels.
    let facts: GuestFacts = serde_json::from_str(&serde_json::to_string(&facts).unwrap()).unwrap();
    let target = Host::new();
    probe(&target, Some(&facts)).await.unwrap();
    probe(&target, None).await.unwrap();

    let pinned = facts.pinned(&target.def);
    assert_eq!(pinned.qemu.machine, machine);
    let mut target = Host::empty();
    target.def = migrate_driver::VmDefinition { qemu: target.def.qemu.clone(), ..target.def.clone() };
    target.driver.start_incoming(&facts.pinned(&target.def)).await.unwrap();
    assert_eq!(target.driver.facts(target.vm()).await.unwrap().machine.unwrap(), machine);
}

#[tokio::test]
async fn a_lesser_processor_is_refused_by_its_missing_features() {
    let source = Host::with_guest(Pace::Steady).await;
    let facts = source.driver.facts(source.vm()).await.unwrap();
    let target = lesser("-sse3,-popcnt,-cx16");
    let error = probe(&target, Some(&facts)).await.unwrap_err();
    let DriverError::LesserCpu { missing, .. } = &error else { panic!("{error}") };
    assert_eq!(missing, &["sse3", "cx16"], "{error}");
    probe(&target, None).await.unwrap();
}

#[tokio::test]
async fn what_qemu_misses_is_told_in_its_words() {
    let mut target = Host::new();
    let refused = async |target: &Host, facts: Option<&GuestFacts>, words: &str| {
        let error = probe(target, facts).await.unwrap_err();
        assert!(matches!(error, DriverError::CannotRunHere { .. }), "{error}");
        assert!(error.to_string().contains(words), "{words:?} is not in {error}");
    };
    let iso = target.path().join("x.iso");
    let drive = format!("file={},if=none,id=cd,media=cdrom,readonly=on", iso.display());
    target.def.qemu.args = ["-drive", &drive, "-device", "ide-cd,drive=cd"].map(String::from).into();
    refused(&target, None, "x.iso").await;
    fs::write(&iso, vec![0; 1 << 20]).unwrap();
    probe(&target, None).await.unwrap();

    target.def.qemu.args = ["-device", "no-such-device"].map(String::from).into();
    refused(&target, None, "no-such-device").await;
    target.def.qemu.args.clear();
    let facts = GuestFacts { machine: Some("pc-q35-99.9".into()), ..GuestFacts::default() };
    refused(&target, Some(&facts), "unsupported machine type").await;
    target.def.qemu.machine = "pc-q35-88.8".into();
    refused(&target, None, "unsupported machine type").await;
    target.def.qemu.machine = "q35".into();
    target.def.qemu.kernel = Some(target.path().join("vmlinuz"));
    refused(&target, None, "vmlinuz").await;
    target.def.qemu.kernel = None;
    target.def.qemu.binary = "/nonexistent/qemu".into();
    refused(&target, None, "/nonexistent/qemu").await;
}

#[tokio::test]
async fn a_probe_that_is_dropped_or_whose_daemon_died_leaves_nothing() {
    let target = Host::new();
    for after_ms in [0, 5, 20, 50, 100, 200] {
        let bound = Duration::from_millis(after_ms);
        let probing = target.driver.probe(&target.def, &[DISK_BYTES], None);
        eprintln!("dropped after {after_ms} ms: done {}", tokio::time::timeout(bound, probing).await.is_ok());
    }
    // As if a daemon with another process id had been killed: what it left is removed by the next probe.
    let left = target.path().join("run/.probe-1-7");
    fs::create_dir_all(&left).unwrap();
    let pid_path = left.join("pid");
    let mut orphan = tokio::process::Command::new("sleep").arg("600").spawn().unwrap();
    let mut qemu = tokio::process::Command::new(&target.def.qemu.binary)
        .args(["-machine", "none", "-nodefaults", "-display", "none", "-pidfile"])
        .arg(&pid_path)
        .spawn()
        .unwrap();
    soon("its pid file", async {
        while !pid_path.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    probe(&target, None).await.unwrap();
    assert!(soon("its end", qemu.wait()).await.unwrap().code().is_none(), "it was killed");
    assert!(orphan.try_wait().unwrap().is_none(), "and no other process");
    orphan.kill().await.unwrap();
}
