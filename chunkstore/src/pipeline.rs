//! Work on many cores, results in order, bounded memory: a source that one thread at a time draws from, workers that
//! draw and work, and a sink on the caller's thread. It never queues what is not worked on, and knows nothing of
//! chunks.

use std::any::Any;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::thread;

use crate::sync::lock;

/// Results that may wait for an earlier one, beside those being made. Only for results without bytes of the image.
pub(crate) const RESULTS_AHEAD: usize = 64;

/// All cores.
pub(crate) fn all_cores() -> NonZeroUsize {
    thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// Does `work` on everything that `source` gives until that is `None`, on `threads` threads, and gives the results to
/// `sink` in the order of the source. At most `ahead` results are being made or wait for their turn.
///
/// The first error in that order ends it and is what the caller gets; nothing is drawn any more then. A panic is
/// passed on. No thread is left behind in any case.
pub(crate) fn in_order<Job: Send, Done: Send, Error: Send>(
    threads: NonZeroUsize,
    ahead: usize,
    source: impl FnMut() -> Result<Option<Job>, Error> + Send,
    work: impl Fn(Job) -> Result<Done, Error> + Sync,
    mut sink: impl FnMut(Done) -> Result<(), Error>,
) -> Result<(), Error> {
    let ahead = ahead.max(threads.get());
    let (permit, permits) = sync_channel(ahead);
    for _ in 0..ahead {
        let _ = permit.send(());
    }
    let (sender, results) = channel();
    let tap = Mutex::new(Tap { permits, source: Some(source), next: 0 });
    thread::scope(|scope| {
        // Owned here, so that when this returns, workers that wait for a permit or send a result see the end.
        let (permit, results, sender) = (permit, results, sender);
        for _ in 0..threads.get() {
            let (tap, work, sender) = (&tap, &work, sender.clone());
            scope.spawn(move || run(tap, work, &sender));
        }
        drop(sender);
        let mut waiting = BTreeMap::new();
        let mut next = 0;
        for (number, result) in results {
            waiting.insert(number, result);
            while let Some(result) = waiting.remove(&next) {
                next += 1;
                sink(result.unwrap_or_else(|panic| resume_unwind(panic))?)?;
                // Full only if nobody takes permits any more.
                let _ = permit.try_send(());
            }
        }
        Ok(())
    })
}

struct Tap<Source> {
    permits: Receiver<()>,
    /// `None` at its end.
    source: Option<Source>,
    next: u64,
}

type Outcome<Done, Error> = Result<Result<Done, Error>, Box<dyn Any + Send>>;

/// One worker. What it has drawn it answers for, even by a panic: the caller waits for every number.
fn run<Job, Done, Error>(
    tap: &Mutex<Tap<impl FnMut() -> Result<Option<Job>, Error>>>,
    work: impl Fn(Job) -> Result<Done, Error>,
    sender: &Sender<(u64, Outcome<Done, Error>)>,
) {
    loop {
        // Not in one expression with what follows: the lock would last as long as the work.
        let drawn = draw(&mut lock(tap));
        let Some((number, drawn)) = drawn else { return };
        let outcome = drawn.and_then(|job| catch_unwind(AssertUnwindSafe(|| job.and_then(&work))));
        let failed = outcome.as_ref().map_or(true, Result::is_err);
        // Sent before the tap is asked for: who holds that may be waiting for this very result.
        if sender.send((number, outcome)).is_err() || failed {
            lock(tap).source = None;
            return;
        }
    }
}

/// `None` at the end of the source, or when the caller wants no more.
fn draw<Job, Error>(
    tap: &mut Tap<impl FnMut() -> Result<Option<Job>, Error>>,
) -> Option<(u64, Outcome<Job, Error>)> {
    let source = tap.source.as_mut()?;
    tap.permits.recv().ok()?;
    let drawn = catch_unwind(AssertUnwindSafe(source));
    let drawn = match drawn {
        Ok(Ok(None)) => {
            tap.source = None;
            return None;
        }
        Ok(Ok(Some(job))) => Ok(Ok(job)),
        Ok(Err(error)) => Ok(Err(error)),
        Err(panic) => Err(panic),
    };
    tap.next += 1;
    Some((tap.next - 1, drawn))
}

#[cfg(test)]
mod tests;
