//! What QEMU said, for errors to quote.

use std::fs;

use super::paths::VmPaths;

/// How much of QEMU's log an error quotes.
const LOG_TAIL_BYTES: usize = 2000;

/// The end of QEMU's log, on one line.
pub(crate) fn log_tail(paths: &VmPaths) -> String {
    let log = fs::read(paths.log()).unwrap_or_default();
    let tail =
        String::from_utf8_lossy(&log[log.len().saturating_sub(LOG_TAIL_BYTES)..]).trim().replace('\n', " | ");
    if tail.is_empty() { format!("nothing (see {})", paths.log().display()) } else { tail }
}
