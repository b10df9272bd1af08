//! The lifetime of a job's work. Every task and every blocking closure that touches what a job works on runs under the
//! job's [`Lease`]; whoever undoes the job's work ends the lease first, and that waits until the last of them is gone.
//! It knows nothing of what the work is.

use std::io;
use std::ops::Range;

use chunkstore::ReadImage;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::error_kind::{HasKind, Kind};

/// The job that this work belongs to is being undone or has been cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cancelled")]
pub struct Revoked;

impl HasKind for Revoked {
    fn kind(&self) -> Kind {
        Kind::Denied
    }
}

impl From<Revoked> for io::Error {
    fn from(revoked: Revoked) -> Self {
        io::Error::other(revoked)
    }
}

/// The right to work for a job, shared by everything that does. Once revoked it stays so.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lease {
    token: CancellationToken,
    tracker: TaskTracker,
}

impl Lease {
    /// A lease that nobody holds yet.
    pub(crate) fn new() -> Self {
        Lease::default()
    }

    /// Asks everything that runs under the lease to stop. Does not wait.
    pub(crate) fn revoke(&self) {
        self.token.cancel();
    }

    /// Revokes the lease and waits until nothing runs under it any more. Not to be called by what runs under it.
    pub(crate) async fn end(&self) {
        self.token.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }

    /// Fails once the lease has been revoked; for work on a blocking thread, between two pieces of it.
    pub(crate) fn check(&self) -> Result<(), Revoked> {
        if self.token.is_cancelled() { Err(Revoked) } else { Ok(()) }
    }

    /// Runs a future until it is done or the lease is revoked, which drops the future.
    pub(crate) async fn run<T>(&self, work: impl Future<Output = T>) -> Result<T, Revoked> {
        self.token.run_until_cancelled(work).await.ok_or(Revoked)
    }

    /// Spawns a task that ends when it is done or when the lease is revoked.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<Result<T, Revoked>> {
        let token = self.token.clone();
        self.tracker.spawn(async move { token.run_until_cancelled(work).await.ok_or(Revoked) })
    }

    /// Spawns a task that the lease waits for but does not stop: it ends by itself, soon after what it works with does.
    pub(crate) fn spawn_to_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.tracker.spawn(work)
    }

    /// Counts a future among what runs under the lease, for a caller that spawns it itself.
    pub(crate) fn track<F: Future>(&self, work: F) -> impl Future<Output = F::Output> + use<F> {
        self.tracker.track_future(work)
    }

    /// Runs a closure on a blocking thread. It must ask [`Lease::check`] often, or read and write only through
    /// [`Leased`] images; dropping the handle does not end it, the lease still waits for it.
    pub(crate) fn run_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        self.tracker.spawn_blocking(work)
    }

    /// A share of the lease for something that is no task, such as an open image: [`Lease::end`] waits until it is
    /// dropped.
    pub(crate) fn share(&self) -> TaskTrackerToken {
        self.tracker.token()
    }
}

/// An image that can only be used while its lease is not revoked.
pub(crate) struct Leased<I> {
    image: I,
    lease: Lease,
    _share: TaskTrackerToken,
}

impl<I> Leased<I> {
    /// `image`, under `lease`.
    pub(crate) fn new(image: I, lease: &Lease) -> Self {
        Leased { image, lease: lease.clone(), _share: lease.share() }
    }

    /// The image, for as long as the lease holds.
    pub(crate) fn get(&self) -> Result<&I, Revoked> {
        self.lease.check().map(|()| &self.image)
    }
}

impl<I: ReadImage> ReadImage for Leased<I> {
    fn size(&self) -> u64 {
        self.image.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.get()?.read_at(offset, buf)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.get()?.next_data(offset)
    }
}

#[cfg(test)]
mod tests;
