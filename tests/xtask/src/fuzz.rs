//! `cargo xtask fuzz`: builds the fuzz targets of tests/fuzz with the instrumentation that libFuzzer reads, on stable
//! Rust, and runs them. Everything it makes is in `.cache/fuzz`. It never changes the tree: an input that fails is kept,
//! and it is a person who moves it to tests/fuzz/regressions.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use harness::lab::{apt, workspace};
use harness::{files, shell};

use crate::tasks::cargo_command;

/// The crate of the targets; it is no member of the workspace.
pub(crate) const MANIFEST: &str = "tests/fuzz/Cargo.toml";

/// What cargo-fuzz passes, less what needs a nightly compiler (sanitizers).
const INSTRUMENTATION: [&str; 7] = [
    "--cfg fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
];

/// Longest input. No decoder needs more to show all it does; a longer one makes each run slower.
const MAX_INPUT_BYTES: u32 = 16 << 10;
/// Resident memory at which libFuzzer ends a target. What one input may allocate is bounded much lower, by the target.
const RSS_LIMIT_MIB: u32 = 512;
/// Time for one input after which it counts as hanging, in seconds.
const INPUT_TIMEOUT_S: u32 = 10;
/// Lines of a failed target's output that are shown.
const SHOWN_LINES: usize = 40;
const MAX_SECONDS: u32 = 7 * 24 * 3600;

/// What to fuzz.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    /// The targets; all when empty.
    targets: Vec<String>,
    /// How long each.
    seconds: u32,
    /// One input to run once, instead of fuzzing.
    input: Option<PathBuf>,
}

impl Options {
    /// Reads the words after `fuzz`.
    ///
    /// # Errors
    /// Names the word that it does not know.
    pub(crate) fn parse(words: &[&str]) -> Result<Self> {
        let mut options = Self { targets: Vec::new(), seconds: 60, input: None };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} needs a value"));
            match *word {
                "--seconds" => options.seconds = parse_seconds(value()?)?,
                "--input" => options.input = Some(std::path::absolute(value()?)?),
                option if option.starts_with('-') => {
                    bail!("fuzz has no option `{option}`; it has --seconds N and --input FILE")
                }
                target => options.targets.push(target.to_owned()),
            }
        }
        if options.input.is_some() && options.targets.len() != 1 {
            bail!("--input needs the one target that reads it: cargo xtask fuzz TARGET --input FILE");
        }
        Ok(options)
    }
}

fn parse_seconds(text: &str) -> Result<u32> {
    let seconds = text.parse().ok().filter(|seconds| (1..=MAX_SECONDS).contains(seconds));
    seconds.with_context(|| format!("--seconds takes a number from 1 to {MAX_SECONDS}, not {text:?}"))
}

/// Builds the targets, runs the inputs that once failed, then fuzzes. Every target has its turn, whatever failed before.
pub(crate) fn run(options: &Options) -> Result<()> {
    apt::install(apt::FUZZER)?;
    let fuzzer = Fuzzer::build()?;
    let targets = choose(&fuzzer.write_seeds()?, &options.targets)?;
    if let ([target], Some(input)) = (&targets[..], &options.input) {
        return fuzzer.reproduce(target, input);
    }
    let width = targets.iter().map(String::len).max().unwrap_or(0);
    let mut failed = Vec::new();
    for target in &targets {
        let mut told = fuzzer.regressions(target)?;
        if told.failure.is_none() {
            told = fuzzer.fuzz(target, options.seconds)?;
        }
        println!("{target:<width$}  {}", told.line());
        if let Some(failure) = &told.failure {
            println!("{}", failure.text(target));
            failed.push(target.as_str());
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    bail!(
        "{} of {} targets failed: {}. When the decoder is mended, put a small failing input into \
         tests/fuzz/regressions/TARGET/",
        failed.len(),
        targets.len(),
        failed.join(", ")
    );
}

/// The chosen targets; all when none is named.
fn choose(all: &[String], chosen: &[String]) -> Result<Vec<String>> {
    if let Some(unknown) = chosen.iter().find(|target| !all.contains(target)) {
        bail!("there is no fuzz target `{unknown}`; there are {}", all.join(", "));
    }
    Ok(if chosen.is_empty() { all.to_vec() } else { chosen.to_vec() })
}

/// The built targets, and where their things are kept.
struct Fuzzer {
    dir: PathBuf,
    program: PathBuf,
    /// Two at once would take each other's seeds away.
    _lock: files::Locked,
}

impl Fuzzer {
    fn build() -> Result<Self> {
        let dir = workspace().join(".cache/fuzz");
        files::create_dir(&dir)?;
        let lock = files::lock(&dir.join("lock"))?;
        let host = host()?;
        // With the host named as the target, what runs during the build is built without the instrumentation.
        let mut command = cargo_command();
        command
            .args(["build", "--locked", "--manifest-path", MANIFEST, "--target", &host, "--target-dir"])
            .arg(dir.join("target"))
            .env("RUSTFLAGS", INSTRUMENTATION.join(" "))
            .env_remove("CARGO_ENCODED_RUSTFLAGS");
        println!("$ {}", shell::line(&command));
        if !command.status().context("starting cargo build")?.success() {
            bail!("building the fuzz targets failed");
        }
        let program = dir.join("target").join(host).join("debug/fuzz");
        Ok(Self { dir, program, _lock: lock })
    }

    /// Writes what the targets begin with, anew; their names, sorted.
    fn write_seeds(&self) -> Result<Vec<String>> {
        let seeds = self.dir.join("seeds");
        if seeds.exists() {
            fs::remove_dir_all(&seeds).with_context(|| format!("removing {}", seeds.display()))?;
        }
        shell::run(Command::new(&self.program).env("LONGHAUL_FUZZ_SEEDS", &seeds))?;
        let mut targets = Vec::new();
        for entry in fs::read_dir(&seeds).with_context(|| format!("reading {}", seeds.display()))? {
            targets.push(entry?.file_name().to_string_lossy().into_owned());
        }
        targets.sort();
        Ok(targets)
    }

    /// The program for a target, with what holds for every use of it.
    fn command(&self, target: &str) -> Result<Command> {
        let failures = self.dir.join("failures").join(target);
        files::create_dir(&failures)?;
        let mut prefix = OsString::from("-artifact_prefix=");
        prefix.push(failures.join(""));
        let mut command = Command::new(&self.program);
        command
            .current_dir(workspace())
            .env("LONGHAUL_FUZZ", target)
            .arg(prefix)
            .arg(format!("-rss_limit_mb={RSS_LIMIT_MIB}"))
            .arg(format!("-timeout={INPUT_TIMEOUT_S}"));
        Ok(command)
    }

    fn reproduce(&self, target: &str, input: &Path) -> Result<()> {
        if !input.is_file() {
            bail!("there is no input {}", input.display());
        }
        let status = self.command(target)?.arg(input).status().context("starting the fuzz target")?;
        if !status.success() {
            bail!("{target} fails on {}", input.display());
        }
        println!("{target}: {} does not fail", input.display());
        Ok(())
    }

    /// Runs the inputs that once failed, each once.
    fn regressions(&self, target: &str) -> Result<Told> {
        let inputs = regression_inputs(target)?;
        if inputs.is_empty() {
            return Ok(Told::default());
        }
        self.follow(target, self.command(target)?.args(&inputs))
    }

    fn fuzz(&self, target: &str, seconds: u32) -> Result<Told> {
        // What it learns is kept from one time to the next.
        let corpus = self.dir.join("corpus").join(target);
        files::create_dir(&corpus)?;
        let mut command = self.command(target)?;
        command
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-max_len={MAX_INPUT_BYTES}"))
            .arg("-print_final_stats=1")
            .arg(corpus)
            .arg(self.dir.join("seeds").join(target));
        self.follow(target, &mut command)
    }

    /// Runs a target to its end and takes from its output what it tells; all of the output goes to a log.
    fn follow(&self, target: &str, command: &mut Command) -> Result<Told> {
        let path = self.dir.join(format!("{target}.log"));
        let mut log = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        let start = Instant::now();
        let mut child = Running(
            command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .with_context(|| format!("starting the fuzz target {target}"))?,
        );
        let output = child.0.stderr.take().context("the fuzz target's output")?;
        let mut told = Told::default();
        let mut tail = VecDeque::new();
        read_lines(output, |line| {
            told.take(line);
            tail.push_back(line.to_owned());
            if tail.len() > SHOWN_LINES {
                tail.pop_front();
            }
            writeln!(log, "{line}").with_context(|| format!("writing {}", path.display()))
        })?;
        let status = child.0.wait().with_context(|| format!("waiting for the fuzz target {target}"))?;
        told.seconds = start.elapsed().as_secs_f64();
        if !status.success() {
            let output = tail.make_contiguous().join("\n");
            told.failure = Some(Failure { output, input: told.input.take(), log: path });
        }
        Ok(told)
    }
}

/// A target at work; it ends with this value, however that comes about.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The compiler's name for this machine.
fn host() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = shell::run(Command::new(rustc).arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("`rustc -vV` does not name the host")
}

fn regression_inputs(target: &str) -> Result<Vec<PathBuf>> {
    let dir = workspace().join("tests/fuzz/regressions").join(target);
    let mut inputs = Vec::new();
    if dir.is_dir() {
        for entry in fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))? {
            inputs.push(entry?.path());
        }
    }
    inputs.sort();
    Ok(inputs)
}

/// Lines as text, whatever bytes an input has put into them.
fn read_lines(output: impl Read, mut each: impl FnMut(&str) -> Result<()>) -> Result<()> {
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    while output.read_until(b'\n', &mut line).context("reading the fuzz target's output")? > 0 {
        each(String::from_utf8_lossy(&line).trim_end())?;
        line.clear();
    }
    Ok(())
}

/// What a target's output told.
#[derive(Debug, Default)]
struct Told {
    runs: u64,
    /// Edges of the code that were seen.
    coverage: u64,
    seconds: f64,
    /// The input that ran last: one that was named, or where libFuzzer has put the one that failed.
    input: Option<PathBuf>,
    failure: Option<Failure>,
}

#[derive(Debug)]
struct Failure {
    output: String,
    input: Option<PathBuf>,
    log: PathBuf,
}

impl Told {
    fn take(&mut self, line: &str) {
        if let Some(runs) = line.strip_prefix("stat::number_of_executed_units:") {
            self.runs = runs.trim().parse().unwrap_or(self.runs);
        } else if let Some(path) = line.strip_prefix("Running: ") {
            self.input = Some(PathBuf::from(path));
        } else if let Some((_, path)) = line.split_once("Test unit written to ") {
            self.input = Some(PathBuf::from(path));
        } else if line.starts_with('#')
            && let Some((_, rest)) = line.split_once(" cov: ")
            && let Some(coverage) = rest.split(' ').next().and_then(|word| word.parse().ok())
        {
            self.coverage = coverage;
        }
    }

    fn line(&self) -> String {
        let outcome = if self.failure.is_some() { "FAILED" } else { "ok" };
        format!("{:>10} runs  coverage {:>5}  {:>4.0} s  {outcome}", self.runs, self.coverage, self.seconds)
    }
}

impl Failure {
    /// The end of the output, where the input is, and how to run it again.
    fn text(&self, target: &str) -> String {
        let again = match &self.input {
            Some(input) => {
                let input = input.display();
                format!("the input is kept: {input}\nrun it again: cargo xtask fuzz {target} --input {input}")
            }
            None => "no input was kept: the target did not fail on one".to_owned(),
        };
        format!("{}\n\n{again}\nall of its output: {}\n", self.output, self.log.display())
    }
}

#[cfg(test)]
mod tests;
