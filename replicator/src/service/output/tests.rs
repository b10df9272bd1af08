//! Lines that cannot be written, and a reader that has stopped.

use std::sync::{Mutex, PoisonError};

use super::*;

/// A writer that fails, or waits, while its gate is closed.
#[derive(Clone, Default)]
struct Gated {
    written: Arc<Mutex<Vec<u8>>>,
    full: Arc<std::sync::atomic::AtomicBool>,
    gate: Arc<Mutex<()>>,
}

impl Write for Gated {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _open = self.gate.lock().unwrap();
        if self.full.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.written.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Gated {
    fn text(&self) -> String {
        String::from_utf8(self.written.lock().unwrap().clone()).unwrap()
    }
}

#[test]
fn lines_come_in_order_and_what_was_lost_on_a_full_disk_is_counted() {
    let out = Gated::default();
    let mut log = Log::start(out.clone()).unwrap();
    log.write_all(b"one\n").unwrap();
    Log::flush(&log);
    out.full.store(true, Ordering::SeqCst);
    log.write_all(b"two\n").unwrap();
    log.write_all(b"three\n").unwrap();
    Log::flush(&log);
    out.full.store(false, Ordering::SeqCst);
    log.write_all(b"four\n").unwrap();
    Log::flush(&log);
    assert_eq!(out.text(), "one\nlonghaul: 2 lines of the log were lost\nfour\n");
}

#[test]
fn a_reader_that_has_stopped_keeps_nobody_waiting() {
    let out = Gated::default();
    let mut log = Log::start(out.clone()).unwrap();
    let stopped = out.gate.lock().unwrap();
    for _ in 0..3 * QUEUE_LINES {
        log.write_all(b"x\n").unwrap();
    }
    assert!(log.dropped.load(Ordering::SeqCst) >= (2 * QUEUE_LINES - 2) as u64);
    drop(stopped);
    Log::flush(&log);
    log.write_all(b"last\n").unwrap();
    Log::flush(&log);
    assert!(out.text().contains("lines of the log were lost") && out.text().ends_with("last\n"));
}
