//! Points at which a test may kill or halt the daemon: `LONGHAUL_CRASH_AT=source:journal:released` ends the process as
//! SIGKILL would, the moment it reaches that label; `LONGHAUL_STOP_AT` halts it as SIGSTOP does, until it gets SIGCONT.
//! `LABEL#N` means the N-th time. Without the variables it does nothing.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::Signal;

struct Target {
    label: String,
    count: u32,
    signal: Signal,
}

static TARGET: LazyLock<Option<Target>> = LazyLock::new(|| {
    let of = |name, signal| {
        let text = std::env::var(name).ok()?;
        let (label, count) = match text.split_once('#') {
            Some((label, count)) => (label.to_owned(), count.parse().ok()?),
            None => (text, 1),
        };
        Some(Target { label, count, signal })
    };
    of("LONGHAUL_CRASH_AT", Signal::KILL).or_else(|| of("LONGHAUL_STOP_AT", Signal::STOP))
});
static SEEN: AtomicU32 = AtomicU32::new(0);

/// Here is the point `{side}:{kind}:{what}`.
pub(crate) fn reach(side: &str, kind: &str, what: &str) {
    let Some(target) = &*TARGET else { return };
    let mut parts = target.label.split(':');
    if parts.next() != Some(side) || parts.next() != Some(kind) || parts.next() != Some(what) {
        return;
    }
    if SEEN.fetch_add(1, Ordering::Relaxed) + 1 == target.count {
        let _ = rustix::process::kill_process(rustix::process::getpid(), target.signal);
    }
}

#[cfg(test)]
mod tests;
