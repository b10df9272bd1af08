//! What the end-to-end tests share: two platforms with a guest that moves between them, and the questions asked of
//! them afterwards. It drives the product only through its command line and never looks into its state.

pub mod monitor;

use std::cell::Cell;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use harness::guest::DISK;
use harness::lab::apt;
use harness::{Collector, Guest, Lab, LinkSettings, Platform, Relay, files, verify_records};
use serde_json::Value;

/// The name of the guest in every scene.
pub const VM: &str = "wanderer";
/// For anything that a guest is waited for; emulation on a busy machine is slow.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// For jobs. Longer than every time-out within them.
pub const JOB: Duration = Duration::from_secs(120);

/// A test's turn on the machine: within one test program one test at a time. Tells on standard error how long it took.
pub struct Turn {
    name: &'static str,
    started: Instant,
    _lock: MutexGuard<'static, ()>,
}

/// Waits for the turn of the test `name`.
pub fn turn(name: &'static str) -> Turn {
    static MACHINE: Mutex<()> = Mutex::new(());
    let lock = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    Turn { name, started: Instant::now(), _lock: lock }
}

impl Turn {
    /// A line about what the test found.
    pub fn say(&self, text: &str) {
        // Past the test runner, which would keep it for itself.
        let seconds = self.started.elapsed().as_secs_f64();
        let _ = writeln!(std::io::stderr(), "e2e {} {seconds:>6.1} s  {text}", self.name);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.say(if thread::panicking() { "FAILED" } else { "ended" });
    }
}

/// The lab and its small base image.
///
/// # Errors
/// When the lab cannot be built.
pub fn lab() -> Result<(Lab, PathBuf)> {
    apt::setup()?;
    let lab = Lab::open()?;
    let base = lab.small_base()?;
    Ok((lab, base))
}

/// A whole number in an answer.
///
/// # Errors
/// When there is none of that name.
pub fn int(value: &Value, field: &str) -> Result<u64> {
    value[field].as_u64().with_context(|| format!("no whole number `{field}` in {value}"))
}

/// Whether two files have the same bytes.
///
/// # Errors
/// When one cannot be read.
pub fn same_bytes(one: &Path, other: &Path) -> Result<bool> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    // Not the metadata's length, which is 0 for a device.
    if one.seek(SeekFrom::End(0))? != other.seek(SeekFrom::End(0))? {
        return Ok(false);
    }
    one.rewind()?;
    other.rewind()?;
    let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let length = one.read(&mut a)?;
        if length == 0 {
            return Ok(true);
        }
        other.read_exact(&mut b[..length])?;
        if a[..length] != b[..length] {
            return Ok(false);
        }
    }
}

/// Bytes that do not compress, the same for the same seed.
#[must_use]
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8
        })
        .collect()
}

/// Asks again and again until `question` has an answer.
///
/// # Errors
/// When it has none within `timeout`, saying what was waited for; and the question's own errors.
pub fn wait_for<T>(
    what: &str,
    timeout: Duration,
    mut question: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(answer) = question()? {
            return Ok(answer);
        }
        ensure!(start.elapsed() < timeout, "waited {timeout:?} for {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until no job runs on a platform.
///
/// # Errors
/// When one runs longer than [`JOB`]; the error shows it.
pub fn settled(platform: &Platform) -> Result<()> {
    let mut last = Vec::new();
    wait_for(&format!("the jobs on {} to end", platform.name()), JOB, || {
        let jobs = platform.cli(&["job", "list"])?;
        last =
            jobs.as_array().into_iter().flatten().filter(|job| job["state"] == "running").cloned().collect();
        Ok(last.is_empty().then_some(()))
    })
    .with_context(|| format!("still running: {last:?}"))
}

/// The status of a VM on a platform as `vm list` tells it; none when it is not listed there.
///
/// # Errors
/// When `vm list` fails.
pub fn status(platform: &Platform, vm: &str) -> Result<Option<String>> {
    let listed = platform.cli(&["vm", "list"])?;
    let found = listed.as_array().context("a list of VMs")?.iter().find(|listed| listed["name"] == vm);
    Ok(found.map(|vm| vm["status"].as_str().map_or_else(|| vm["status"].to_string(), str::to_owned)))
}

/// Where a VM's first disk stands on a platform.
///
/// # Errors
/// When `vm list` fails or does not have the VM.
pub fn disk(platform: &Platform, vm: &str) -> Result<PathBuf> {
    let listed = platform.cli(&["vm", "list"])?;
    let mut found = listed.as_array().into_iter().flatten().filter(|listed| listed["name"] == vm);
    let path = found.find_map(|vm| vm["disks"][0].as_str().map(PathBuf::from));
    path.with_context(|| format!("a disk of {vm} in {listed}"))
}

/// The phase a running job of a platform is in, of the kind `kind`; none when there is no such job.
///
/// # Errors
/// When `job list` fails.
pub fn running_phase(platform: &Platform, kind: &str) -> Result<Option<String>> {
    let jobs = platform.cli(&["job", "list"])?;
    let job = jobs
        .as_array()
        .context("a list of jobs")?
        .iter()
        .find(|job| job["state"] == "running" && job["kind"] == kind);
    let phase = |job: &Value| Some(job["phases"].as_array()?.last()?["name"].as_str()?.to_owned());
    Ok(job.map(|job| phase(job).unwrap_or_default()))
}

/// Two platforms and a guest that began its life on the first of them.
#[derive(Debug)]
pub struct Scene {
    /// The platforms `a` and `b`.
    pub sites: [Platform; 2],
    /// What is heard of the guest.
    pub collector: Collector,
    /// The guest.
    pub guest: Guest,
    /// With a link: the first stands before `b`, the second before `a`.
    pub relays: Vec<Relay>,
    over: Cell<bool>,
}

impl Drop for Scene {
    fn drop(&mut self) {
        // A test that panics has the platforms show their logs themselves.
        if !self.over.get() && !thread::panicking() {
            for site in &self.sites {
                println!("--- end of the log of {}\n{}", site.name(), site.log());
            }
        }
    }
}

/// How a scene differs from the usual one.
#[derive(Debug, Clone, Copy, Default)]
pub struct Setting {
    /// A link between the platforms, instead of a direct one.
    pub link: Option<LinkSettings>,
    /// Small records, few of them and a ring that keeps all: for a guest that lives long.
    pub long_life: bool,
    /// Earlier versions of the program that the platforms run.
    pub earlier: [Option<&'static Path>; 2],
}

/// Silence after which the platforms of a scene give a connection up.
const CONFIG: &str = "idle_timeout_s = 4";

impl Scene {
    /// Two platforms that trust each other; the guest is not defined anywhere yet.
    ///
    /// # Errors
    /// When the lab or a daemon does not come up.
    pub fn new(setting: Setting) -> Result<Self> {
        let (lab, _) = lab()?;
        let collector = Collector::start()?;
        let mut sites = [Platform::with_config("a", CONFIG)?, Platform::with_config("b", CONFIG)?];
        let mut relays = Vec::new();
        for (site, earlier) in sites.iter_mut().zip(setting.earlier) {
            site.use_program(earlier)?;
            site.start()?;
        }
        let mut addresses = [sites[0].address(), sites[1].address()];
        if let Some(link) = setting.link {
            relays = vec![Relay::start(addresses[1], link)?, Relay::start(addresses[0], link)?];
            addresses = [relays[1].address(), relays[0].address()];
        }
        sites[0].trust(&sites[1], addresses[1])?;
        sites[1].trust(&sites[0], addresses[0])?;
        let mut guest = Guest::new(&lab, VM, &sites[0].image(VM, DISK), collector.port());
        guest.workload.ring_mib = 32;
        if setting.long_life {
            (guest.workload.rate, guest.workload.record_bytes, guest.workload.ring_mib) = (32, 4096, 128);
        }
        Ok(Self { sites, collector, guest, relays, over: Cell::new(false) })
    }

    /// As [`Scene::new`], with the guest running on `a`.
    ///
    /// # Errors
    /// Also when the guest does not come up.
    pub fn boot(setting: Setting) -> Result<Self> {
        let scene = Self::new(setting)?;
        scene.sites[0].place_disk(VM, &lab()?.1)?;
        scene.sites[0].start_guest(&scene.guest)?;
        scene.collector.wait_acked(16, PATIENCE)?;
        Ok(scene)
    }

    /// Starts the guest on `a`, on the lab's image, with further arguments for its hypervisor.
    ///
    /// # Errors
    /// When the guest does not come up.
    pub fn start_with(&self, arguments: &[&str]) -> Result<()> {
        let a = &self.sites[0];
        a.place_disk(VM, &lab()?.1)?;
        let quoted: Vec<_> = arguments.iter().map(|argument| format!("{argument:?}, ")).collect();
        let definition = self.guest.definition();
        let (before, after) = definition.split_once("args = [").context("a guest with arguments")?;
        let file = a.root().join("guest.toml");
        files::write(&file, format!("{before}args = [{}{after}", quoted.concat()))?;
        a.cli(&["vm", "define", &file.display().to_string()])?;
        a.cli(&["vm", "start", VM])?;
        self.collector.wait_acked(16, PATIENCE).map(drop)
    }

    /// Migrates the guest from one platform to the other and returns the report.
    ///
    /// # Errors
    /// When that fails.
    pub fn migrate(&self, from: usize, to: usize) -> Result<Value> {
        let run = self.sites[from].begin_json(&["migrate", VM, "--to", self.sites[to].name()])?;
        let outcome = run.wait(JOB)?;
        ensure!(outcome.code == Some(0), "migrate: {outcome:?}");
        outcome.json()
    }

    /// Waits until no job runs on either platform.
    ///
    /// # Errors
    /// When one runs longer than [`JOB`]; the error shows it.
    pub fn settle(&self) -> Result<()> {
        self.sites.iter().try_for_each(settled)
    }

    /// Where the guest runs, after making sure that it runs there and nowhere else.
    ///
    /// # Errors
    /// When it runs nowhere or on both, or a second QEMU of it is there at all.
    pub fn owner(&self) -> Result<usize> {
        let mut seen = Vec::new();
        for site in &self.sites {
            seen.push((status(site, VM)?, site.qemu(VM)));
        }
        let owners: Vec<usize> = (0..2).filter(|&site| seen[site].0.as_deref() == Some("Running")).collect();
        match owners[..] {
            [owner] => {
                ensure!(seen[owner].1.is_some(), "no QEMU runs it on {owner}: {seen:?}");
                ensure!(seen[1 - owner].1.is_none(), "a second QEMU of the guest is left: {seen:?}");
                Ok(owner)
            }
            _ => bail!("the guest must run on exactly one platform: {seen:?}"),
        }
    }

    /// The guest goes on writing and sending; it never ran twice and never was booted again.
    ///
    /// # Errors
    /// When it does not.
    pub fn lives(&self) -> Result<()> {
        self.collector
            .wait_progress(4, PATIENCE)
            .with_context(|| format!("the guest's last packet: {:?}", self.collector.last()))?;
        ensure!(self.collector.duplicates() == 0, "{} packets came twice", self.collector.duplicates());
        let boots = self.collector.instances().len();
        ensure!(boots == 1, "the guest was booted {boots} times");
        Ok(())
    }

    /// Pulls the guest's plug where it runs, and looks for every acknowledged record on the disk there. Returns how many
    /// were found.
    ///
    /// # Errors
    /// When one is missing, or the guest did not run there alone.
    pub fn prove(&self, owner: usize) -> Result<u64> {
        ensure!(self.owner()? == owner, "the guest runs on the other platform");
        self.lives()?;
        self.sites[owner].cli(&["vm", "stop", VM, "--kill"])?;
        let found = self.found(&disk(&self.sites[owner], VM)?, self.collector.acked())?;
        self.over();
        Ok(found)
    }

    /// Nothing more can fail: the logs are not wanted.
    pub fn over(&self) {
        self.over.set(true);
    }

    /// How many records up to `acked` are on `image`.
    ///
    /// # Errors
    /// When one is missing or the file system is damaged.
    pub fn found(&self, image: &Path, acked: u64) -> Result<u64> {
        let instance = self.collector.instance().context("a guest that was heard")?;
        let report = verify_records(image, instance, acked)?;
        ensure!(report.is_whole() && report.found > 0, "{report:?} on {}", image.display());
        Ok(report.found)
    }
}
