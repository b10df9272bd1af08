//! `cargo xtask compat`: builds the version that `tests/compat/baseline` names, and has it and this one use each other in
//! every way, also across an upgrade in the middle of each.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use harness::lab::workspace;
use harness::{files, shell};

use crate::tasks;

/// A line with the commit.
const BASELINE: &str = "tests/compat/baseline";

/// Takes the names of tests, or nothing for all.
pub(crate) fn run(names: &[&str]) -> Result<()> {
    let root = workspace();
    let commit =
        std::fs::read_to_string(root.join(BASELINE)).with_context(|| format!("reading {BASELINE}"))?;
    let commit = commit.trim();
    ensure!(
        commit.len() == 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{BASELINE} must hold the full hash of a commit, not {commit:?}"
    );
    let work = root.join(".cache/compat");
    let (sources, target) = (work.join(commit), work.join("target"));
    if !sources.join("Cargo.toml").exists() {
        println!("--- taking the sources of {commit}");
        files::create_dir(&sources)?;
        let archive = work.join("sources.tar");
        let archived = Command::new("git")
            .arg("-C")
            .arg(&root)
            .args(["archive", "-o"])
            .arg(&archive)
            .arg(commit)
            .status()?;
        ensure!(
            archived.success(),
            "git does not have commit {commit}; in a shallow clone, run `git fetch --unshallow`"
        );
        shell::run(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&sources))?;
        files::remove(&archive)?;
    }
    println!("--- building it");
    let mut build = Command::new("cargo");
    build
        .args(["build", "--locked", "--package", "longhaul"])
        .current_dir(&sources)
        .env("CARGO_TARGET_DIR", &target);
    ensure!(build.status()?.success(), "the version before does not build in {}", sources.display());
    tasks::build()?;
    let mut test = Command::new("cargo");
    test.args(["test", "--package", "e2e", "--test", "compat", "--", "--ignored"])
        .args(names)
        .current_dir(&root);
    test.env("LONGHAUL_EARLIER", target.join("debug/longhaul"));
    ensure!(test.status()?.success(), "the two versions do not work together; what failed stands above");
    Ok(())
}
