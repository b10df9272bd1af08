//! The store's upkeep through the command line: what decays is found and comes back from a peer, what nobody needs is given
//! back, and a base is carried to a site that no network reaches.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use anyhow::{Context, Result};
use e2e::{int, lab, noise, same_bytes, turn};
use harness::{Platform, files, pair};

/// The first pack of a platform's store.
fn first_pack(platform: &Platform) -> Result<PathBuf> {
    let mut packs: Vec<_> = std::fs::read_dir(platform.root().join("store/packs"))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    packs.sort();
    packs.into_iter().next().context("a pack")
}

#[test]
fn what_decays_is_found_and_comes_back_from_a_peer() -> Result<()> {
    let turn = turn("what_decays_is_found_and_comes_back_from_a_peer");
    let (_, base) = lab()?;
    let (a, b) = pair()?;
    a.cli(&["base", "add", "debian", &base.display().to_string()])?;
    a.cli(&["base", "push", "debian", "b"])?;
    let sound = b.cli(&["store", "verify"])?;
    assert!(sound["result"]["clean"] == true && int(&sound["result"], "chunks")? > 500, "{sound}");

    let pack = OpenOptions::new().write(true).open(first_pack(&b)?)?;
    for at in [100_000, 3_000_000, 9_000_000] {
        pack.write_all_at(b"rot", at)?;
    }
    let unsound = b.cli_fails(&["store", "verify"])?;
    assert_eq!(unsound.code, Some(1), "{unsound:?}");
    let told = format!("{}{}", unsound.stderr, unsound.stdout);
    // In each place what lies together, as far as it does not decode to what it was: 16 chunks or so at most.
    let broken = int(&b.cli(&["store", "stats"])?, "broken")?;
    assert!((3..=3 * 32).contains(&broken), "{broken} chunks");
    assert!(
        told.contains(&format!("{broken} chunks were found damaged")) && told.contains("--heal"),
        "{told}"
    );
    // What is broken is not served: a push brings it again, and so does healing.
    let healed = b.cli(&["store", "verify", "--base", "debian", "--heal"])?;
    turn.say(&format!("healed from a: {}", healed["summary"]));
    assert!(healed["result"]["clean"] == true && int(&healed["result"], "healed")? == broken, "{healed}");
    assert!(int(&healed, "wire_bytes_disk")? < 4 << 20, "{healed}");
    let again = b.cli(&["store", "verify", "--sample", "2", "--limit-mib-s", "400"])?;
    assert!(again["result"]["clean"] == true, "{again}");
    assert_eq!(int(&b.cli(&["store", "stats"])?, "broken")?, 0);

    // Nobody has it: the answer says so, and what to do.
    drop(a);
    pack.write_all_at(b"rot", 5_000_000)?;
    let lost = b.cli_fails(&["store", "verify", "--heal"])?;
    assert!(lost.code == Some(1) && lost.stdout.contains("nothing more from 'a'"), "{lost:?}");
    assert!(format!("{}{}", lost.stderr, lost.stdout).contains("add the base again"), "{lost:?}");
    b.cli(&["base", "add", "debian", &base.display().to_string()])?;
    assert!(b.cli(&["store", "verify"])?["result"]["clean"] == true);
    Ok(())
}

#[test]
fn what_nobody_needs_is_given_back_and_a_base_travels_in_a_file() -> Result<()> {
    let turn = turn("what_nobody_needs_is_given_back_and_a_base_travels_in_a_file");
    let (_, base) = lab()?;
    let dir = tempfile::Builder::new().prefix("lh-archive-").tempdir()?;
    let (a, b) = pair()?;
    let other = dir.path().join("other.raw");
    files::write(&other, noise(1, 8 << 20))?;
    a.cli(&["base", "add", "debian", &base.display().to_string()])?;
    a.cli(&["base", "add", "other", &other.display().to_string()])?;

    let archive = dir.path().join("debian.archive");
    let archive_text = archive.display().to_string();
    a.cli(&["store", "export", &archive_text, "debian"])?;
    let exists = a.cli_fails(&["store", "export", &archive_text, "debian"])?;
    assert!(exists.code == Some(1) && exists.stderr.contains("exists"), "{exists:?}");
    let unknown = a.cli_fails(&["store", "export", "/tmp/nowhere", "ghost"])?;
    assert!(unknown.code == Some(1) && unknown.stderr.contains("ghost"), "{unknown:?}");

    // Truncated on the way: nothing of it is published.
    let whole = std::fs::read(&archive)?;
    let torn = dir.path().join("torn.archive");
    files::write(&torn, &whole[..whole.len() / 2])?;
    let refused = b.cli_fails(&["store", "import", &torn.display().to_string()])?;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(b.cli(&["base", "list"])?.as_array().is_some_and(Vec::is_empty));
    b.cli(&["store", "import", &archive_text])?;
    assert_eq!(b.cli(&["base", "list"])?[0]["root"], a.cli(&["base", "list"])?[0]["root"]);
    assert_eq!(b.cli(&["store", "verify"])?["result"]["clean"], true);
    let sent = int(&b.cli(&["base", "push", "debian", "a"])?, "wire_bytes_disk")?;
    assert!(sent < 1 << 20, "{sent} bytes for what both hold");
    let image = dir.path().join("image.raw");
    files::copy_sparse(&base, &image)?;
    b.cli(&["image", "send", &image.display().to_string(), "a:copy"])?;
    let back = dir.path().join("back.raw");
    a.cli(&["replica", "restore", "copy", &back.display().to_string()])?;
    assert!(same_bytes(&base, &back)?);

    let before = a.cli(&["store", "stats"])?;
    a.cli(&["base", "remove", "other"])?;
    let plan = a.cli(&["store", "gc", "--dry-run", "--waste-percent", "1"])?;
    assert_eq!(a.cli(&["store", "stats"])?["chunks"], before["chunks"], "a dry run removed something");
    let done = a.cli(&["store", "gc", "--waste-percent", "1"])?;
    turn.say(&format!("planned: {}; done: {}", plan["summary"], done["summary"]));
    assert_eq!(int(&plan["result"], "chunks_dead")?, int(&done["result"], "chunks_removed")?);
    assert!(int(&done["result"], "bytes_freed")? > 8 << 20, "{done}");
    assert_eq!(a.cli(&["store", "verify"])?["result"]["clean"], true);
    a.cli(&["base", "remove", "debian"])?;
    a.cli(&["store", "gc"])?;
    let empty = a.cli(&["store", "stats"])?;
    assert_eq!((int(&empty, "chunks")?, int(&empty, "packs")?), (0, 0), "{empty}");
    Ok(())
}
