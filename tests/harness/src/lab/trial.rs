//! Programs of the host run under the guests' kernel: a machine without a disk that runs them one after the other and
//! switches itself off. For what the host's own kernel cannot do.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::cpio::Archive;
use super::initramfs::{BUSYBOX, load_order};
use super::kernel::{self, Kernel};
use super::{apt, directory};
use crate::{files, shell};

const MEMORY_MIB: &str = "768";
/// With two, the host may stop one of them that has packets in its backlog, and what the other sends overtakes them.
const CPUS: &str = "1";
/// `/init`: what has to be there before a program runs.
pub(super) const PREPARE: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin RUST_BACKTRACE=0
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
for module in $(cat /lib/modules/order); do insmod /lib/modules/$module; done
ip link set lo up
";

/// What is to be run.
#[derive(Debug, Default)]
pub struct Trial {
    /// Modules that the kernel needs for it.
    pub modules: Vec<&'static str>,
    /// Programs that are called by others: names as `ip`, found in the host's `PATH`.
    pub tools: Vec<&'static str>,
    /// The programs, each with its arguments.
    pub programs: Vec<(PathBuf, Vec<String>)>,
}

/// What came of one program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Its exit status; `None` when the machine ended before it did.
    pub status: Option<i32>,
    /// What it wrote.
    pub output: String,
}

impl Trial {
    /// Runs it all: what came of each program.
    ///
    /// # Errors
    /// When the machine cannot be made, or does not end in time: the error shows its console.
    pub fn run(&self, patience: Duration) -> Result<Vec<Ended>> {
        apt::setup()?;
        let lab = directory();
        files::create_dir(&lab)?;
        let kernel = {
            let _lock = files::lock(&lab.join("lock"))?;
            kernel::fetch(&lab)?
        };
        let dir = tempfile::Builder::new().prefix("lh-trial-").tempdir()?;
        let initrd = dir.path().join("initrd.cpio");
        files::write(&initrd, self.archive(&kernel)?)?;
        let console = dir.path().join("console");
        let machine = Machine(start(&kernel.image, &initrd, &console)?);
        machine.wait(patience, &console)?;
        let shown = String::from_utf8_lossy(&fs::read(&console)?).replace('\r', "");
        Ok((0..self.programs.len()).map(|number| ended(&shown, number)).collect())
    }

    fn archive(&self, kernel: &Kernel) -> Result<Vec<u8>> {
        let mut content = Content::default();
        content.programs.push((PathBuf::from("/bin/busybox"), PathBuf::from(BUSYBOX)));
        for tool in &self.tools {
            let found =
                shell::run(Command::new("which").arg(tool)).with_context(|| format!("looking for {tool}"))?;
            content.program(&Path::new("/bin").join(tool), &fs::canonicalize(found.trim())?)?;
        }
        let mut init = PREPARE.to_owned();
        for (number, (program, arguments)) in self.programs.iter().enumerate() {
            let within = format!("/bin/trial-{number}");
            content.program(Path::new(&within), program)?;
            let words = arguments.iter().map(|word| format!(" '{word}'")).collect::<String>();
            init += &format!(
                "echo; echo BEGIN-{number}; {within}{words} 2>&1; status=$?; echo; echo END-{number} $status\n"
            );
        }
        init += "poweroff -f\n";
        content.modules(&kernel.modules, &self.modules)?;
        // For programs that look who they are.
        content.files.push((PathBuf::from("/etc/passwd"), b"root:x:0:0:root:/:/bin/sh\n".to_vec()));
        content.files.push((PathBuf::from("/etc/group"), b"root:x:0:\n".to_vec()));
        content.finish(init.as_bytes())
    }
}

/// What is in the archive, by its place there.
#[derive(Default)]
pub(super) struct Content {
    pub(super) programs: Vec<(PathBuf, PathBuf)>,
    pub(super) files: Vec<(PathBuf, Vec<u8>)>,
}

impl Content {
    /// Adds a program with the libraries that it is linked with.
    pub(super) fn program(&mut self, within: &Path, program: &Path) -> Result<()> {
        self.programs.push((within.to_owned(), program.to_owned()));
        let linked = shell::run(Command::new("ldd").arg(program))?;
        let libraries = linked.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from);
        for library in libraries {
            if self.programs.iter().all(|(within, _)| *within != library) {
                self.programs.push((library.clone(), library));
            }
        }
        Ok(())
    }

    /// Adds modules, in the order in which they are to be loaded.
    pub(super) fn modules(&mut self, all: &Path, wanted: &[&str]) -> Result<()> {
        let mut order = String::new();
        for path in load_order(all, wanted)? {
            let name = path.file_name().context("a module's file name")?.to_string_lossy().into_owned();
            order += &format!("{name}\n");
            self.files.push((Path::new("/lib/modules").join(name), fs::read(path)?));
        }
        self.files.push((PathBuf::from("/lib/modules/order"), order.into_bytes()));
        Ok(())
    }

    pub(super) fn finish(self, init: &[u8]) -> Result<Vec<u8>> {
        let mut archive = Archive::default();
        let fixed = ["/bin", "/dev", "/proc", "/sys", "/tmp", "/etc", "/run"].map(PathBuf::from);
        let places =
            self.programs.iter().map(|(within, _)| within).chain(self.files.iter().map(|(within, _)| within));
        let mut directories: BTreeSet<PathBuf> = fixed.into();
        directories.extend(places.flat_map(|place| place.ancestors().skip(1)).map(Path::to_owned));
        directories.remove(Path::new("/"));
        directories.iter().for_each(|path| archive.directory(relative(path)));
        archive.character_device("dev/console", 5, 1);
        archive.program("init", init);
        for (within, program) in &self.programs {
            archive.program(relative(within), &stripped(program)?);
        }
        self.files.iter().for_each(|(within, content)| archive.file(relative(within), content));
        Ok(archive.finish())
    }
}

fn relative(path: &Path) -> &str {
    path.to_str().unwrap_or_default().trim_start_matches('/')
}

/// A program without what debuggers read, which is most of it: the emulator would have to load that too.
fn stripped(program: &Path) -> Result<Vec<u8>> {
    let dir = tempfile::tempdir()?;
    let to = dir.path().join("stripped");
    shell::run(Command::new("strip").arg("-o").arg(&to).arg(program))?;
    fs::read(&to).with_context(|| format!("reading {}", to.display()))
}

fn start(kernel: &Path, initrd: &Path, console: &Path) -> Result<Child> {
    let output = File::create(console).with_context(|| format!("creating {}", console.display()))?;
    let errors = output.try_clone()?;
    Command::new("qemu-system-x86_64")
        .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"])
        .args(["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "qemu64"])
        .args(["-smp", CPUS, "-m", MEMORY_MIB, "-append", "console=ttyS0 quiet panic=-1 mitigations=off"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initrd)
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .spawn()
        .context("starting qemu-system-x86_64 (package qemu-system-x86)")
}

/// A running emulator, which dies with the value.
struct Machine(Child);

impl Machine {
    fn wait(mut self, patience: Duration, console: &Path) -> Result<()> {
        let start = Instant::now();
        while self.0.try_wait()?.is_none() {
            if start.elapsed() > patience {
                let shown = fs::read(console).unwrap_or_default();
                bail!("the machine ran on after {patience:?}:\n{}", String::from_utf8_lossy(&shown));
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ended(console: &str, number: usize) -> Ended {
    let begin = format!("\nBEGIN-{number}\n");
    let output = console.split_once(&begin).map_or("", |(_, rest)| rest);
    let end = format!("\nEND-{number} ");
    match output.split_once(&end) {
        Some((output, rest)) => {
            let status = rest.lines().next().and_then(|status| status.trim().parse().ok());
            Ended { status, output: output.to_owned() }
        }
        None => Ended { status: None, output: output.to_owned() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_of_a_program_is_read_from_the_console() {
        let console = "boot\n\nBEGIN-0\none\ntwo\n\nEND-0 0\n\nBEGIN-1\nbad\n\nEND-1 101\n\nBEGIN-2\nhalf";
        let read = |number| {
            let Ended { status, output } = ended(console, number);
            (status, output)
        };
        assert_eq!(read(0), (Some(0), "one\ntwo\n".to_owned()));
        assert_eq!(read(1), (Some(101), "bad\n".to_owned()));
        assert_eq!(read(2), (None, "half".to_owned()));
        assert_eq!(read(3), (None, String::new()));
    }
}
