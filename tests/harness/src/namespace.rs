//! Network namespaces without a name: each lives as long as this process has it open (or a child runs in it), so that
//! nothing is left behind however a test ends. Never changes the namespace of a thread that it did not start.

// `unshare` is unsafe for its other flags; the only call is below.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::thread;

use anyhow::{Context, Result, bail};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use crate::lab::apt;
use crate::shell;

/// A network of its own, with `lo` up and nothing else.
#[derive(Debug)]
pub struct Namespace {
    open: File,
}

impl Namespace {
    /// Makes one.
    ///
    /// # Errors
    /// When the caller is not root, or the kernel refuses.
    pub fn new() -> Result<Self> {
        if !apt::is_root() {
            bail!("making a network namespace needs root: run the tests that need one with sudo");
        }
        let open = on_a_thread(|| -> Result<File> {
            // SAFETY: a new network namespace touches no memory and no table of descriptors, and the thread ends here.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.context("making a network namespace")?;
            File::open("/proc/thread-self/ns/net").context("opening a new network namespace")
        })??;
        let namespace = Self { open };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// A path that names it to other programs, as long as this value lives: `nsenter --net=PATH`,
    /// `ip link set DEVICE netns PATH`.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.open.as_raw_fd()))
    }

    /// Does `work` inside, on a thread of its own. Sockets opened and processes started there stay there.
    ///
    /// # Errors
    /// When the kernel refuses to enter, or `work` panics.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        on_a_thread(|| {
            move_into_link_name_space(self.open.as_fd(), Some(LinkNameSpaceType::Network))
                .context("entering a network namespace")?;
            Ok(work())
        })?
    }

    /// Starts a program inside.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        let started = self.enter(|| command.spawn())?;
        started.with_context(|| format!("starting `{}`", shell::line(command)))
    }

    /// Runs a program inside to its end, whatever its status.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn output(&self, command: &mut Command) -> Result<Output> {
        self.enter(|| shell::output(command))?
    }

    /// Runs a program inside to its end and returns its standard output as text.
    ///
    /// # Errors
    /// As for [`shell::run`].
    pub fn run(&self, command: &mut Command) -> Result<String> {
        self.enter(|| shell::run(command))?
    }

    /// Runs `ip` inside, with words parted by spaces.
    ///
    /// # Errors
    /// As for [`shell::run`].
    pub fn ip(&self, words: &str) -> Result<String> {
        self.run(Command::new("ip").args(words.split_whitespace()))
    }

    /// Sets a variable of the namespace, such as `net/ipv6/conf/all/forwarding`.
    ///
    /// # Errors
    /// When there is none of that name, or it does not take the value.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(name);
        self.enter(|| fs::write(&path, value))?.with_context(|| format!("setting {name} to {value}"))
    }
}

/// Runs `work` on a thread that ends with it: what the thread does to itself is gone afterwards.
fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    thread::scope(|scope| scope.spawn(work).join())
        .map_err(|panic| anyhow::anyhow!("the work in the namespace panicked: {}", message(&*panic)))
}

fn message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(test)]
mod tests;
