//! Points at which a test may kill the daemon: `LONGHAUL_CRASH_AT=source:journal:released` ends the process as SIGKILL
//! would, the moment it reaches that label. `LABEL#N` means the N-th time. Without the variable it does nothing.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

static TARGET: LazyLock<Option<(String, u32)>> = LazyLock::new(|| {
    let text = std::env::var("LONGHAUL_CRASH_AT").ok()?;
    match text.split_once('#') {
        Some((label, count)) => Some((label.to_owned(), count.parse().ok()?)),
        None => Some((text, 1)),
    }
});
static SEEN: AtomicU32 = AtomicU32::new(0);

/// Here is the point `{side}:{kind}:{what}`.
pub fn reach(side: &str, kind: &str, what: &str) {
    let Some((label, count)) = &*TARGET else { return };
    let mut parts = label.split(':');
    if parts.next() != Some(side) || parts.next() != Some(kind) || parts.next() != Some(what) {
        return;
    }
    if SEEN.fetch_add(1, Ordering::Relaxed) + 1 == *count {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

#[cfg(test)]
mod tests;
