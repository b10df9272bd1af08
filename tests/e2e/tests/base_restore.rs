//! Bases out of the store again through the command line: into new files, over images that are there, sharing blocks where
//! the file system can; and what is refused.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use e2e::{int, noise, same_bytes, turn};
use harness::{Platform, files, shell};

const BLOCK: usize = 4096;
const MIB: usize = 1 << 20;

/// A running platform with the base `base`, and the image it was made from: data, then a hole.
fn platform(dir: &Path, data: usize) -> Result<(Platform, std::path::PathBuf)> {
    let image = dir.join("image.raw");
    files::write(&image, noise(1, data))?;
    OpenOptions::new().write(true).open(&image)?.set_len((data + 4 * MIB) as u64)?;
    let mut a = Platform::new("a")?;
    a.start()?;
    a.cli(&["base", "add", "base", &text(&image)])?;
    Ok((a, image))
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Writes other bytes over some blocks of a file.
fn change(path: &Path, blocks: &[usize]) -> Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    for block in blocks {
        file.write_all_at(&[7; BLOCK], (block * BLOCK) as u64)?;
    }
    Ok(())
}

#[test]
fn a_base_comes_out_of_the_store_again() -> Result<()> {
    let turn = turn("a_base_comes_out_of_the_store_again");
    let dir = tempfile::Builder::new().prefix("lh-restore-").tempdir()?;
    let (a, image) = platform(dir.path(), 8 * MIB)?;
    let copy = dir.path().join("copy.raw");
    let restore = ["base", "restore", "base", &text(&copy)];
    let new = a.cli(&restore)?;
    turn.say(&format!("{}", new["summary"]));
    assert!(same_bytes(&image, &copy)?);
    assert!(files::allocated(&copy)? < 9 * MIB as u64, "its hole is none");
    assert_eq!(int(&new["result"], "written_bytes")?, 8 * MIB as u64);
    assert_eq!((new["kind"].as_str(), int(&new, "scanned_bytes")?), (Some("base_restore"), 12 * MIB as u64));

    let told = |arguments: &[&str], code: i32, words: &[&str]| -> Result<()> {
        let outcome = a.cli_fails(arguments)?;
        let message = format!("{}{}", outcome.stderr, outcome.stdout);
        assert!(outcome.code == Some(code) && words.iter().all(|word| message.contains(word)), "{outcome:?}");
        Ok(())
    };
    told(&restore, 1, &["exists", "--in-place"])?;
    change(&copy, &[3, 1000, 2500])?;
    let again = a.cli(&[&restore[..], &["--in-place"]].concat())?;
    assert!(same_bytes(&image, &copy)?);
    let did = (int(&again["result"], "written_bytes")?, int(&again["result"], "zeroed_bytes")?);
    assert_eq!(did, (2 * BLOCK as u64, BLOCK as u64), "one of the three was in the hole");

    let short = dir.path().join("short.raw");
    files::write(&short, b"short")?;
    told(&["base", "restore", "base", &text(&short), "--in-place"], 1, &["5 bytes", "12582912"])?;
    told(&["base", "restore", "ghost", "/tmp/nowhere.raw"], 1, &["ghost"])?;
    told(&[&restore[..], &["--in-place", "--like", "/x"]].concat(), 2, &["--like"])?;
    let inside = a.root().join("store/new.raw");
    told(&["base", "restore", "base", &text(&inside)], 1, &["own state", "choose another"])?;

    let disk = dir.path().join("disk.raw");
    fs::copy(&image, &disk)?;
    let definition = dir.path().join("web.toml");
    let toml =
        format!("name = \"web\"\nmemory_mib = 64\n[[disks]]\nname = \"root\"\npath = {disk:?}\n[qemu]\n");
    files::write(&definition, toml)?;
    a.cli(&["vm", "define", &text(&definition)])?;
    change(&disk, &[1])?;
    told(&["base", "restore", "base", &text(&disk), "--in-place"], 1, &["disk of VM 'web'"])?;
    assert!(!same_bytes(&image, &disk)?, "it was written to");
    Ok(())
}

/// Blocks of a file in all, and of those the ones it shares with another.
fn blocks(path: &Path) -> Result<(u64, u64)> {
    let shown = shell::run(Command::new("filefrag").arg("-v").arg(path))?;
    let (mut all, mut shared) = (0, 0);
    for line in shown.lines() {
        let fields: Vec<&str> = line.split(':').map(str::trim).collect();
        if fields.len() < 5 || fields[0].parse::<u32>().is_err() {
            continue;
        }
        let length: u64 = fields[3].parse().with_context(|| line.to_owned())?;
        all += length;
        shared += if line.contains("shared") { length } else { 0 };
    }
    Ok((all, shared))
}

fn free_bytes(dir: &Path) -> Result<u64> {
    let shown = shell::run(Command::new("df").args(["--sync", "--block-size=1", "--output=avail"]).arg(dir))?;
    shown.lines().last().and_then(|line| line.trim().parse().ok()).with_context(|| shown.clone())
}

#[test]
fn a_restored_base_shares_blocks_with_an_image_like_it() -> Result<()> {
    let turn = turn("a_restored_base_shares_blocks_with_an_image_like_it");
    let dir = tempfile::Builder::new().prefix("lh-restore-").tempdir()?;
    let (a, image) = platform(dir.path(), 64 * MIB)?;
    let disk = a.reflink_disk("disk", 400)?;
    let (like, shares, alone) = (disk.join("like.raw"), disk.join("shares.raw"), disk.join("alone.raw"));
    files::copy_sparse(&image, &like)?;
    let changed = [0, 777, 9_000, 16_383];
    change(&like, &changed)?;
    let before = free_bytes(&disk)?;

    let restored = a.cli(&["base", "restore", "base", &text(&shares), "--like", &text(&like)])?;
    let between = free_bytes(&disk)?;
    assert!(same_bytes(&image, &shares)?);
    assert_eq!(int(&restored["result"], "written_bytes")?, (changed.len() * BLOCK) as u64, "{restored}");
    let (all, shared) = blocks(&shares)?;
    turn.say(&format!("{shared} of {all} blocks shared, {} KiB taken", (before - between) >> 10));
    // What is allocated anew beside a changed block is the file system's business.
    assert!(all >= (64 * MIB / BLOCK) as u64 && shared + 200 >= all, "{shared} of {all} blocks are shared");
    assert!(before - between < 2 * MIB as u64, "{} bytes taken", before - between);

    a.cli(&["base", "restore", "base", &text(&alone)])?;
    assert!(same_bytes(&image, &alone)?);
    assert!(
        between - free_bytes(&disk)? >= 64 * MIB as u64,
        "nothing was taken: the test cannot see sharing"
    );
    assert_eq!(blocks(&alone)?.1, 0);
    // An image elsewhere has nothing to share, and that is no error.
    let elsewhere = dir.path().join("elsewhere.raw");
    a.cli(&["base", "restore", "base", &text(&elsewhere), "--like", &text(&like)])?;
    assert!(same_bytes(&image, &elsewhere)?);
    Ok(())
}
