//! Bad input and hostile company: each gets a clear error that names the thing and says what to do, and afterwards
//! everything works as before.

use std::fs::OpenOptions;
use std::net::UdpSocket;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use e2e::{JOB, PATIENCE, Scene, Setting, VM, int, lab, noise, running_phase, same_bytes, turn, wait_for};
use harness::guest::DISK;
use harness::platform::CliOutcome;
use harness::{LinkSettings, Platform, files, pair, pair_over};

const MIB: u64 = 1 << 20;

/// The command failed with this exit code and a message that has all these words.
fn assert_told(outcome: &CliOutcome, code: i32, words: &[&str]) {
    let message = format!("{}{}", outcome.stderr, outcome.stdout);
    for word in words {
        assert!(message.contains(word), "no {word:?} in the message of {outcome:?}");
    }
    assert_eq!(outcome.code, Some(code), "{outcome:?}");
}

/// An image of a few MiB, for transfers that need no guest.
struct Image {
    _dir: tempfile::TempDir,
    path: PathBuf,
    text: String,
}

fn image(mib: u64) -> Result<Image> {
    let dir = tempfile::Builder::new().prefix("lh-image-").tempdir()?;
    let path = dir.path().join("disk.raw");
    files::write(&path, noise(mib, (mib * MIB) as usize))?;
    let text = path.display().to_string();
    Ok(Image { _dir: dir, path, text })
}

/// A transfer from `a` to `b` still works, and what arrives is what was sent.
fn works(a: &Platform, b: &Platform, name: &str) -> Result<()> {
    let image = image(3)?;
    a.cli(&["image", "send", &image.text, &format!("{}:{name}", b.name())])?;
    let back = image.path.with_file_name("back.raw");
    b.cli(&["replica", "restore", name, &back.display().to_string()])?;
    assert!(same_bytes(&image.path, &back)?, "{name} is not what was sent");
    Ok(())
}

#[test]
fn strangers_and_wrong_keys() -> Result<()> {
    let turn = turn("strangers_and_wrong_keys");
    let (a, b) = pair()?;
    let image = image(1)?;
    let send = |from: &Platform, to: &str| from.cli_fails(&["image", "send", &image.text, to]);

    assert_told(&send(&a, "nobody")?, 1, &["nobody", "known: b", "longhaul peer add nobody"]);
    assert_told(&a.cli_fails(&["peer", "add", "c", "127.0.0.1:1", "abc"])?, 1, &["abc", "64 hexadecimal"]);
    assert_told(
        &a.cli_fails(&["peer", "add", "c", "nowhere", &b.fingerprint()?])?,
        1,
        &["nowhere", "HOST:PORT"],
    );

    // A third platform that a knows by a wrong key, and that does not know a.
    let mut c = Platform::new("c")?;
    c.start()?;
    let (address, wrong) = (c.address().to_string(), "ab".repeat(32));
    a.cli(&["peer", "add", "c", &address, &wrong])?;
    assert_told(&send(&a, "c")?, 1, &["'c'", &address, &wrong, &c.fingerprint()?, "longhaul peer add"]);
    a.cli(&["peer", "remove", "c"])?;
    a.trust(&c, c.address())?;
    assert_told(&send(&a, "c")?, 1, &["'c'", "does not know this platform's key", "longhaul peer add"]);
    // The other direction: c knows a by a wrong key, so a is a stranger to it.
    c.cli(&["peer", "add", "a", &a.address().to_string(), &wrong])?;
    assert_told(&send(&c, "a")?, 1, &["'a'", &wrong, &a.fingerprint()?]);
    assert_told(&send(&a, "c")?, 1, &["'c'", "does not know this platform's key"]);
    assert!(c.full_log().contains(&format!("unknown key {}", a.fingerprint()?)), "{}", c.log());
    // A stranger with the right idea of a's key is not let in either.
    b.cli(&["peer", "remove", "a"])?;
    assert_told(&send(&a, "b")?, 1, &["'b'", "does not know this platform's key"]);
    assert!(b.cli(&["replica", "list"])?.as_array().is_some_and(Vec::is_empty));

    c.cli(&["peer", "remove", "a"])?;
    c.trust(&a, a.address())?;
    b.trust(&a, a.address())?;
    works(&a, &b, "after")?;
    works(&a, &c, "after")?;
    turn.say("all refused");
    Ok(())
}

#[test]
fn garbage_on_the_wire() -> Result<()> {
    let _turn = turn("garbage_on_the_wire");
    let (mut a, mut b) = pair()?;
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    for round in 0..2000u64 {
        let mut datagram = noise(round, 1 + (round as usize * 37) % 1400);
        if round % 3 == 0 {
            // The look of a QUIC initial packet of version 1.
            let head = [0xc0 | (datagram[0] & 0x0f), 0, 0, 0, 1, 8];
            let length = head.len().min(datagram.len());
            datagram[..length].copy_from_slice(&head[..length]);
        }
        socket.send_to(&datagram, b.address())?;
    }
    assert!(a.is_running() && b.is_running());
    works(&a, &b, "after")
}

#[test]
fn nobody_answers() -> Result<()> {
    let _turn = turn("nobody_answers");
    let (a, mut b) = pair()?;
    let image = image(1)?;
    b.kill9()?;
    assert_told(&b.cli_fails(&["vm", "list"])?, 3, &["no daemon answers", "longhaul daemon"]);
    let outcome = a.cli_fails(&["image", "send", &image.text, "b"])?;
    assert_told(&outcome, 1, &["'b'", &b.address().to_string(), "is the daemon running there"]);
    assert_told(&a.cli_fails(&["migrate"])?, 2, &["Usage"]);
    b.start()?;
    works(&a, &b, "after")
}

#[test]
fn a_root_in_use() -> Result<()> {
    let _turn = turn("a_root_in_use");
    let (a, b) = pair()?;
    let socket = a.root().join("run/longhaul.sock");
    let second = a.begin(&["daemon"])?.wait(PATIENCE)?;
    assert_told(&second, 1, &["in use", &a.root().display().to_string()]);
    assert!(socket.exists(), "the second daemon took the first one's socket away");
    works(&a, &b, "after")
}

#[test]
fn an_image_that_goes_or_shrinks() -> Result<()> {
    let turn = turn("an_image_that_goes_or_shrinks");
    let slow = LinkSettings { rate_bytes_s: Some(4 << 20), ..LinkSettings::default() };
    let (a, b, relays) = pair_over(slow)?;
    let missing = a.cli_fails(&["image", "send", "/nonexistent/disk.raw", "b"])?;
    assert_told(&missing, 1, &["/nonexistent/disk.raw", "No such file"]);

    let first = image(24)?;
    // Longer than what may be under way at once, or it would all have been read before anything could happen to it.
    let bytes = 160 * MIB;
    for way in ["shrinks", "changes", "goes"] {
        let image = image(8)?;
        let file = OpenOptions::new().read(true).write(true).open(&image.path)?;
        for at in (8 * MIB..bytes).step_by(8 << 20) {
            std::os::unix::fs::FileExt::write_all_at(&file, &noise(at, 8 << 20), at)?;
        }
        let before = relays[0].counts().bytes;
        let send = a.begin(&["image", "send", &image.text, &format!("b:{way}")])?;
        wait_for("the middle of the copy", PATIENCE, || {
            Ok((relays[0].counts().bytes > before + 6 * MIB).then_some(()))
        })?;
        match way {
            "shrinks" => file.set_len(bytes / 4)?,
            "changes" => {
                // Behind and before where it reads.
                for at in [MIB, bytes - MIB] {
                    std::os::unix::fs::FileExt::write_all_at(&file, &noise(7, 4096), at)?;
                }
            }
            _ => std::fs::remove_file(&image.path)?,
        }
        relays.iter().for_each(|relay| relay.set(LinkSettings::default()));
        let outcome = send.wait(JOB)?;
        relays.iter().for_each(|relay| relay.set(slow));
        turn.say(&format!("{way}: {:?} {}{}", outcome.code, outcome.stdout.trim(), outcome.stderr.trim()));
        match way {
            // Still open, still whole: the copy is one of what there was.
            "goes" => assert_eq!(outcome.code, Some(0), "{outcome:?}"),
            "shrinks" => assert_told(&outcome, 1, &[&image.text]),
            _ => assert_told(&outcome, 1, &[&image.text, "changed while it was read"]),
        }
        let listed = b.cli(&["replica", "list"])?.to_string();
        assert_eq!(listed.contains(&format!("\"{way}\"")), way == "goes", "{listed}");
    }
    relays.iter().for_each(|relay| relay.set(LinkSettings::default()));
    a.cli(&["image", "send", &first.text, "b:shrinks"])?;
    works(&a, &b, "after")
}

#[test]
fn a_replica_on_a_full_disk() -> Result<()> {
    let _turn = turn("a_replica_on_a_full_disk");
    let (mut a, mut b) = (Platform::new("a")?, Platform::new("b")?);
    b.small_disk("replicas", 24)?;
    a.start()?;
    b.start()?;
    a.trust(&b, b.address())?;
    b.trust(&a, a.address())?;
    let (small, large) = (image(8)?, image(64)?);
    a.cli(&["image", "send", &small.text, "b:kept"])?;
    for target in ["b:kept", "b:new"] {
        let outcome = a.cli_fails(&["image", "send", &large.text, target])?;
        assert_told(&outcome, 1, &[&large.text, "space"]);
    }
    let back = small.path.with_file_name("back.raw");
    let answer = b.cli(&["replica", "restore", "kept", &back.display().to_string()])?;
    assert!(int(&answer, "generation")? == 1 && same_bytes(&small.path, &back)?);
    // What the failed ones took is given back: this fits again.
    works(&a, &b, "after")
}

#[test]
fn a_vm_that_does_not_fit() -> Result<()> {
    let turn = turn("a_vm_that_does_not_fit");
    let mut scene =
        Scene::boot(Setting { link: Some(LinkSettings::default()), long_life: true, ..Setting::default() })?;
    let filled = |scene: &mut Scene, mib| -> Result<PathBuf> {
        scene.sites[1].kill9()?;
        let dir = scene.sites[1].small_disk("images", mib)?;
        scene.sites[1].start()?;
        Ok(dir)
    };
    // Too small from the start: refused before anything is sent.
    let dir = filled(&mut scene, 64)?;
    let refused = scene.sites[0].cli_fails(&["migrate", VM, "--to", "b"])?;
    assert_told(&refused, 1, &["at the destination", &dir.display().to_string(), "make room there"]);
    assert_eq!(scene.owner()?, 0);
    scene.lives()?;

    // Large enough at first, and filled by somebody else while the bulk is under way.
    let dir = filled(&mut scene, 400)?;
    let rate_bytes_s = Some(8 << 20);
    scene.relays.iter().for_each(|r| r.set(LinkSettings { rate_bytes_s, ..LinkSettings::default() }));
    let migration = scene.sites[0].begin(&["migrate", VM, "--to", "b"])?;
    wait_for("the bulk", PATIENCE, || {
        Ok(running_phase(&scene.sites[0], "migrate_out")?.filter(|phase| phase == "bulk"))
    })?;
    let hog = dir.join("hog");
    // Ends by itself: there is no more room.
    let _ = std::fs::write(&hog, vec![1; 400 << 20]);
    scene.relays.iter().for_each(|relay| relay.set(LinkSettings::default()));
    let outcome = migration.wait(JOB)?;
    turn.say(outcome.stderr.trim());
    assert_told(&outcome, 1, &["space"]);
    scene.settle()?;
    assert_eq!(scene.owner()?, 0);
    scene.lives()?;
    std::fs::remove_file(&hog)?;
    scene.migrate(0, 1)?;
    scene.prove(1)?;
    Ok(())
}

#[test]
fn definitions_that_are_wrong() -> Result<()> {
    let _turn = turn("definitions_that_are_wrong");
    let scene = Scene::new(Setting::default())?;
    let [a, _] = &scene.sites;
    let file = a.root().join("wrong.toml");
    let define = |text: &str| -> Result<CliOutcome> {
        files::write(&file, text)?;
        a.begin(&["vm", "define", &file.display().to_string()])?.wait(PATIENCE)
    };
    let good = scene.guest.definition();
    let name = file.display().to_string();
    assert_told(&define(&good.replacen("memory_mib", "memory_mb", 1))?, 1, &[&name, "memory_mb"]);
    assert_told(&define(&good.replace(VM, "../etc"))?, 1, &[&name, "../etc"]);
    assert_told(&define("name = \"x\"\nmemory_mib = 0\n")?, 1, &[&name, "memory_mib"]);
    assert_told(&define("name = ")?, 1, &[&name, "line 1"]);
    std::fs::remove_file(&file)?;
    assert_told(&a.cli_fails(&["vm", "define", &name])?, 1, &[&name, "No such file"]);
    for command in
        [&["vm", "start", "ghost"][..], &["vm", "stop", "ghost"], &["migrate", "ghost", "--to", "b"]]
    {
        assert_told(&a.cli_fails(command)?, 1, &["ghost", "longhaul vm define"]);
    }
    assert!(a.cli(&["vm", "list"])?.as_array().is_some_and(Vec::is_empty));
    assert_eq!(define(&good)?.code, Some(0));
    // The disk is not there yet.
    assert_told(&a.cli_fails(&["vm", "start", VM])?, 1, &[VM, &scene.guest.disk.display().to_string()]);
    scene.over();
    Ok(())
}

#[test]
fn a_vm_in_the_wrong_state() -> Result<()> {
    let turn = turn("a_vm_in_the_wrong_state");
    let scene =
        Scene::new(Setting { link: Some(LinkSettings::default()), long_life: true, ..Setting::default() })?;
    let [a, b] = &scene.sites;
    let define = |site: &Platform, name: &str| -> Result<CliOutcome> {
        let file = site.root().join(format!("{name}.toml"));
        scene.guest.boot_spec(&file)?;
        site.begin(&["vm", "define", &file.display().to_string()])?.wait(PATIENCE)
    };
    a.place_disk(VM, &lab()?.1)?;
    // Defined twice while it is stopped: the later one counts.
    assert_eq!([define(a, "one")?.code, define(a, "two")?.code], [Some(0); 2]);
    let stopped = a.cli_fails(&["migrate", VM, "--to", "b"])?;
    assert_told(&stopped, 1, &[VM, "stopped", "longhaul vm start"]);
    a.cli(&["vm", "start", VM])?;
    scene.collector.wait_acked(16, PATIENCE)?;
    assert_told(&define(a, "three")?, 1, &[VM, "running", "stop it"]);
    assert_told(&a.cli_fails(&["vm", "start", VM])?, 1, &[VM, "running"]);

    // While it moves, nobody else may touch it, on either side.
    let rate_bytes_s = Some(8 << 20);
    scene.relays.iter().for_each(|r| r.set(LinkSettings { rate_bytes_s, ..LinkSettings::default() }));
    let migration = a.begin_json(&["migrate", VM, "--to", "b"])?;
    wait_for("the bulk", PATIENCE, || Ok(running_phase(a, "migrate_out")?.filter(|phase| phase == "bulk")))?;
    for command in [
        &["migrate", VM, "--to", "b"][..],
        &["replicate", VM, "--to", "b"],
        &["vm", "start", VM],
        &["vm", "stop", VM, "--kill"],
    ] {
        assert_told(&a.cli_fails(command)?, 4, &[VM, "busy with job", "longhaul job cancel"]);
    }
    assert_told(&define(b, "mine")?, 4, &[VM, "busy with job"]);
    scene.relays.iter().for_each(|relay| relay.set(LinkSettings::default()));
    let outcome = migration.wait(JOB)?;
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    scene.settle()?;
    assert_eq!(scene.owner()?, 1);

    // It moved away: nothing may be done with it here any more.
    for command in [&["vm", "start", VM][..], &["migrate", VM, "--to", "b"], &["replicate", VM, "--to", "b"]]
    {
        assert_told(&a.cli_fails(command)?, 1, &[VM, "belongs to peer 'b'", "move it back"]);
    }
    assert_told(&define(a, "again")?, 1, &[VM, "belongs to peer 'b'"]);
    assert_eq!(scene.owner()?, 1);
    scene.lives()?;
    turn.say("moved");

    // The same name on the other platform is another machine: it may not be overwritten.
    let found = scene.prove(1)?;
    assert!(found >= 16, "{found}");
    assert!(b.image(VM, DISK).exists());
    let ours = b.cli_fails(&["migrate", VM, "--to", "a"])?;
    assert_told(&ours, 1, &[VM, "stopped", "longhaul vm start"]);
    Ok(())
}

#[test]
fn a_name_that_both_use() -> Result<()> {
    let _turn = turn("a_name_that_both_use");
    let scene = Scene::boot(Setting::default())?;
    let [a, b] = &scene.sites;
    let mut theirs = scene.guest.clone();
    theirs.disk = b.place_disk(VM, &lab()?.1)?;
    let file = b.root().join("theirs.toml");
    theirs.boot_spec(&file)?;
    b.cli(&["vm", "define", &file.display().to_string()])?;
    let before = std::fs::metadata(&theirs.disk).context("the other machine's disk")?.modified()?;
    let refused = a.cli_fails(&["migrate", VM, "--to", "b"])?;
    assert_told(&refused, 1, &[VM, "'b' refused", "rename one of them"]);
    assert_eq!(std::fs::metadata(&theirs.disk)?.modified()?, before);
    sleep(Duration::from_millis(200));
    scene.lives()?;
    scene.prove(0)?;
    Ok(())
}
