//! What lies where an image or a store is expected, and is none: pipes, sparse giants, strangers and broken files. One of them
//! costs no more than itself.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{PATIENCE, Scene, Setting, VM, lab, noise, turn};
use harness::{Platform, files, pair, platform, shell};

/// A refusal that would take longer waits for somebody.
const AT_ONCE: Duration = Duration::from_secs(30);

/// The most that the daemon has had in memory, in MiB.
fn peak_mib(platform: &Platform) -> Result<u64> {
    let pid = fs::read_to_string(platform.root().join("daemon.pid"))?;
    let status = fs::read_to_string(format!("/proc/{}/status", pid.trim()))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next());
    Ok(peak.context("a daemon's memory")?.parse::<u64>()? / 1024)
}

#[test]
fn a_pipe_is_refused_and_nobody_waits() -> Result<()> {
    let _turn = turn("a_pipe_is_refused_and_nobody_waits");
    let (a, b) = pair()?;
    let pipe = a.root().join("pipe");
    ensure!(Command::new("mkfifo").arg(&pipe).status()?.success(), "no pipe");
    let pipe = pipe.display().to_string();
    // More often than there are threads that could wait.
    for _ in 0..4 {
        for command in [
            &["base", "add", "pipe", &pipe][..],
            &["image", "send", &pipe, "b:pipe"],
            &["store", "import", &pipe],
        ] {
            let outcome = a.begin(command)?.wait(AT_ONCE)?;
            let message = format!("{}{}", outcome.stderr, outcome.stdout);
            assert!(outcome.code == Some(1) && message.contains("a named pipe"), "{outcome:?}");
        }
    }
    a.begin(&["vm", "list"])?.wait(AT_ONCE)?;
    b.begin(&["peer", "ask", "a"])?.wait(AT_ONCE)?;
    Ok(())
}

#[test]
fn a_sparse_image_takes_memory_by_its_data() -> Result<()> {
    let _turn = turn("a_sparse_image_takes_memory_by_its_data");
    let (a, b) = pair()?;
    let path = a.root().join("thin.raw");
    let image = File::create_new(&path)?;
    image.set_len(4 << 40)?;
    for at in [0, 3 << 40] {
        image.write_all_at(&noise(at, 1 << 20), at)?;
    }
    a.cli(&["image", "send", &path.display().to_string(), "b:thin"])?;
    for platform in [&a, &b] {
        let peak = peak_mib(platform)?;
        assert!(peak < 300, "{}: {peak} MiB", platform.name());
    }
    Ok(())
}

/// Restarts the daemon with this accident, which is undone afterwards.
fn survives(
    platform: &mut Platform,
    what: &str,
    path: &Path,
    accident: impl FnOnce() -> Result<()>,
) -> Result<()> {
    platform.kill9()?;
    let before = fs::read(path).ok();
    accident().with_context(|| what.to_owned())?;
    platform.start().with_context(|| what.to_owned())?;
    let listed = platform.cli(&["base", "list"]).with_context(|| what.to_owned())?;
    let sound =
        listed.as_array().into_iter().flatten().any(|base| base["name"] == "one" && base["error"].is_null());
    ensure!(sound, "{what}: {listed}");
    platform.kill9()?;
    match before {
        Some(bytes) => files::write(path, bytes)?,
        None => files::remove(path)?,
    }
    platform.start()
}

#[test]
fn accidents_in_a_store_keep_no_daemon_from_starting() -> Result<()> {
    let _turn = turn("accidents_in_a_store_keep_no_daemon_from_starting");
    let mut a = Platform::new("a")?;
    a.start()?;
    let image = a.root().join("disk.raw");
    files::write(&image, noise(1, 3 << 20))?;
    for name in ["one", "two"] {
        a.cli(&["base", "add", name, &image.display().to_string()])?;
    }
    let store = a.root().join("store");
    for place in ["", "packs", "refs"] {
        let stranger = store.join(place).join("lost+found");
        survives(&mut a, "lost+found", &stranger, || Ok(fs::create_dir(&stranger)?))?;
        let stranger = store.join(place).join("note.txt");
        survives(&mut a, "a note", &stranger, || files::write(&stranger, "x"))?;
    }
    let index = store.join("index.redb");
    survives(&mut a, "no index", &index, || Ok(fs::remove_file(&index)?))?;
    survives(&mut a, "an empty index", &index, || files::write(&index, ""))?;
    survives(&mut a, "garbage for an index", &index, || files::write(&index, noise(2, 100_000)))?;
    assert!(a.full_log().contains("index.redb"), "nothing was said of the index");

    let two = store.join("refs/two");
    survives(&mut a, "an empty reference", &two, || files::write(&two, ""))?;
    files::write(&two, "")?;
    let listed = a.cli(&["base", "list"])?;
    let damaged = listed.as_array().into_iter().flatten().find(|base| base["name"] == "two");
    let damaged = damaged.context("the damaged one is listed")?;
    assert!(damaged["error"].as_str().is_some_and(|error| error.contains("\"two\"")), "{damaged}");
    let refused = a.cli_fails(&["store", "gc"])?;
    assert!(format!("{}{}", refused.stderr, refused.stdout).contains("\"two\""), "{refused:?}");
    a.cli(&["base", "remove", "two"])?;
    a.cli(&["store", "gc"])?;
    assert!(a.cli(&["store", "verify"])?["result"]["clean"] == true);
    Ok(())
}

/// Refused before anything is made there; a link with another name is a way to have it all the same.
#[test]
fn a_root_that_is_not_utf8_is_refused_and_works_by_a_link() -> Result<()> {
    let _turn = turn("a_root_that_is_not_utf8_is_refused_and_works_by_a_link");
    let dir = tempfile::Builder::new().prefix("lh-odd-").tempdir()?;
    let odd = dir.path().join(OsStr::from_bytes(b"\xe9t\xe9"));
    for command in [&["daemon"][..], &["identity"], &["vm", "list"]] {
        // A daemon that comes up would not end.
        let mut line = Command::new("timeout");
        line.arg("20").arg(platform::binary()?).arg("--root").arg(&odd).args(command);
        let outcome = shell::output(&mut line)?;
        assert!(outcome.status.code() == Some(2) && !outcome.stderr.is_empty(), "{command:?}: {outcome:?}");
    }
    ensure!(!odd.exists(), "something was made there");

    let mut scene = Scene::new(Setting::default())?;
    let a = &mut scene.sites[0];
    a.kill9()?;
    fs::rename(a.root(), &odd)?;
    symlink(&odd, a.root())?;
    a.start()?;
    a.place_disk(VM, &lab()?.1)?;
    a.start_guest(&scene.guest)?;
    scene.collector.wait_acked(16, PATIENCE)?;
    scene.sites[0].cli(&["replicate", VM, "--to", "b"])?;
    scene.migrate(0, 1)?;
    scene.migrate(1, 0)?;
    scene.prove(0)?;
    Ok(())
}
