//! Work that writes, and beside it a thread that has the disk take what is written so far, so that the disk is busy from
//! the beginning and little is left for the last sync. It never decides what is durable: who works syncs at the end.

use std::cell::Cell;
use std::panic::resume_unwind;
use std::sync::mpsc::sync_channel;
use std::thread;

/// Bytes after which the disk is told.
const EVERY_BYTES: u64 = 128 << 20;

/// Does `work`, which gets something to tell its bytes to. A `sync` that fails fails the work: the kernel reports a lost
/// write once and then forgets it.
pub(crate) fn beside<Done, Error: From<Lost>, Lost: Send>(
    sync: impl Fn() -> Result<(), Lost> + Send,
    work: impl FnOnce(&dyn Fn(u64)) -> Result<Done, Error>,
) -> Result<Done, Error> {
    thread::scope(|scope| {
        let (due, dues) = sync_channel(1);
        let syncing = scope.spawn(move || dues.iter().try_for_each(|()| sync()));
        let written = Cell::new(0);
        let done = work(&|bytes| {
            written.set(written.get() + bytes);
            if written.get() >= EVERY_BYTES && due.try_send(()).is_ok() {
                written.set(0);
            }
        });
        drop(due);
        let synced = syncing.join().unwrap_or_else(|panic| resume_unwind(panic));
        let done = done?;
        synced?;
        Ok(done)
    })
}

#[cfg(test)]
mod tests;
