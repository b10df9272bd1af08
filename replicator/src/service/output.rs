//! Where lines go: the log of the daemon, and what commands print. Nothing here fails, blocks a runtime or panics because a
//! line cannot be written: a full disk or a reader that has stopped costs lines, and nothing else.

use std::fmt::Arguments;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// Lines of the log that wait to be written, at most.
const QUEUE_LINES: usize = 4096;
/// How long the end of the process waits for them.
const FLUSH_WITHIN: Duration = Duration::from_secs(1);

/// Prints a line on standard output.
#[macro_export]
macro_rules! say {
    ($($part:tt)*) => { $crate::service::output::line(format_args!($($part)*)) };
}

/// Prints a line on standard error.
#[macro_export]
macro_rules! complain {
    ($($part:tt)*) => { $crate::service::output::error_line(format_args!($($part)*)) };
}

/// Writes a line to standard output. When that fails for another reason than a reader that has seen enough, standard error is
/// told.
pub(crate) fn line(line: Arguments<'_>) {
    text(format_args!("{line}\n"));
}

/// Writes text to standard output as it is; see [`line()`].
pub(crate) fn text(text: Arguments<'_>) {
    let mut out = io::stdout().lock();
    match out.write_all(text.to_string().as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            error_line(format_args!("longhaul: cannot write to standard output: {error}"));
        }
        _ => {}
    }
}

/// Writes a line to standard error.
pub(crate) fn error_line(line: Arguments<'_>) {
    error_text(format_args!("{line}\n"));
}

/// Writes text to standard error as it is.
pub(crate) fn error_text(text: Arguments<'_>) {
    let _ = io::stderr().write_all(text.to_string().as_bytes());
}

enum Entry {
    Line(Vec<u8>),
    /// Answered when everything before it is written.
    Flush(SyncSender<()>),
}

/// The log's way to standard error, by a thread that alone waits for it.
#[derive(Clone)]
pub(crate) struct Log {
    queue: SyncSender<Entry>,
    dropped: Arc<AtomicU64>,
}

impl Log {
    /// Begins to write to `out`.
    pub(crate) fn start(out: impl Write + Send + 'static) -> io::Result<Self> {
        let (queue, entries) = sync_channel(QUEUE_LINES);
        let dropped = Arc::new(AtomicU64::new(0));
        let lost = dropped.clone();
        std::thread::Builder::new().name("log".to_owned()).spawn(move || write_all(out, &entries, &lost))?;
        Ok(Log { queue, dropped })
    }

    /// Waits until what was logged is written, but not for long.
    pub(crate) fn flush(&self) {
        let (done, written) = sync_channel(1);
        let mut entry = Entry::Flush(done);
        // The queue may be full.
        for _ in 0..10 {
            match self.queue.try_send(entry) {
                Ok(()) => {
                    let _ = written.recv_timeout(FLUSH_WITHIN);
                    return;
                }
                Err(TrySendError::Full(back)) => entry = back,
                Err(TrySendError::Disconnected(_)) => return,
            }
            std::thread::sleep(FLUSH_WITHIN / 10);
        }
    }
}

fn write_all(mut out: impl Write, entries: &Receiver<Entry>, dropped: &AtomicU64) {
    while let Ok(entry) = entries.recv() {
        match entry {
            Entry::Line(line) => {
                let lost = dropped.swap(0, Ordering::Relaxed);
                let said = match lost {
                    0 => Ok(()),
                    lost => {
                        out.write_all(format!("longhaul: {lost} lines of the log were lost\n").as_bytes())
                    }
                };
                if said.is_err() {
                    dropped.fetch_add(lost, Ordering::Relaxed);
                }
                if out.write_all(&line).is_err() {
                    dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
            Entry::Flush(done) => drop(done.try_send(())),
        }
    }
}

/// One line for the log.
impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.queue.try_send(Entry::Line(line.to_owned())).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Log;

    fn make_writer(&'a self) -> Log {
        self.clone()
    }
}

#[cfg(test)]
mod tests;
