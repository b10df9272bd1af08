//! A program run to its end and measured: time, processor time and peak memory of that one process and those it waited
//! for. The same for ours and for the others. Never a shell.

use std::io::{Read, Seek};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use harness::{files, shell};
use wait4::Wait4;

/// What one run took.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Run {
    pub(crate) seconds: f64,
    /// Processor time, of all cores together.
    pub(crate) cpu_seconds: f64,
    /// Peak resident memory of the largest process.
    pub(crate) rss_bytes: u64,
    /// Its standard output.
    pub(crate) stdout: String,
}

/// Runs `command` while no other benchmark on this machine measures. What earlier runs have left to write is written
/// first, so that none pays for another.
///
/// # Errors
/// When it cannot be started or fails; the error holds the end of its messages.
pub(crate) fn measure(command: &mut Command) -> Result<Run> {
    measure_with(command, None)
}

/// As [`measure`], until what was written to the file system of `dir` is on its disk: some programs see to that themselves,
/// others leave it to the kernel.
///
/// # Errors
/// As [`measure`].
pub(crate) fn measure_durable(command: &mut Command, dir: &Path) -> Result<Run> {
    measure_with(command, Some(dir))
}

fn measure_with(command: &mut Command, dir: Option<&Path>) -> Result<Run> {
    let _alone = files::lock(&std::env::temp_dir().join("bench.lock"))?;
    shell::run(&mut Command::new("sync"))?;
    run(command, dir)
}

fn run(command: &mut Command, durable: Option<&Path>) -> Result<Run> {
    // Into files: a pipe would have to be drained while the clock runs.
    let (mut stdout, mut stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
    command.stdin(Stdio::null()).stdout(stdout.try_clone()?).stderr(stderr.try_clone()?);
    let start = Instant::now();
    let mut child = command.spawn().with_context(|| format!("starting `{}`", shell::line(command)))?;
    let used = child.wait4().with_context(|| format!("waiting for `{}`", shell::line(command)))?;
    if let Some(dir) = durable {
        shell::run(Command::new("sync").arg("--file-system").arg(dir))?;
    }
    let seconds = start.elapsed().as_secs_f64();
    if !used.status.success() {
        let messages = contents(&mut stderr)?;
        bail!("`{}` ended with {}: {}", shell::line(command), used.status, shell::tail(messages.as_bytes()));
    }
    Ok(Run {
        seconds,
        cpu_seconds: (used.rusage.utime + used.rusage.stime).as_secs_f64(),
        rss_bytes: used.rusage.maxrss,
        stdout: contents(&mut stdout)?,
    })
}

/// The same command on one core only.
pub(crate) fn on_one_core(command: &Command) -> Command {
    let mut pinned = Command::new("taskset");
    pinned.args(["--cpu-list", "0"]).arg(command.get_program()).args(command.get_args());
    let set = command.get_envs().filter_map(|(name, value)| Some((name, value?)));
    pinned.envs(set);
    if let Some(dir) = command.get_current_dir() {
        pinned.current_dir(dir);
    }
    pinned
}

/// Reads a file through, so that it lies in the page cache.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn warm(path: &Path) -> Result<()> {
    let reading = || format!("reading {}", path.display());
    let mut file = std::fs::File::open(path).with_context(reading)?;
    let mut buffer = vec![0; 1 << 20];
    while file.read(&mut buffer).with_context(reading)? > 0 {}
    Ok(())
}

/// The lengths of all files below `dir`.
///
/// # Errors
/// When the tree cannot be read.
pub(crate) fn tree_bytes(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))? {
        let entry = entry?;
        let meta = entry.metadata()?;
        bytes += if meta.is_dir() { tree_bytes(&entry.path())? } else { meta.len() };
    }
    Ok(bytes)
}

fn contents(file: &mut std::fs::File) -> Result<String> {
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).context("reading a program's output")?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests;
