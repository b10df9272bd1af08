//! The way to the other end of a hand-off: messages in order, over whatever connection there is, dialled again when it
//! is gone. Losing it is an input like any other; what it means is the hand-off's to say.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use longhaul_proto::JobId;
use longhaul_proto::handoff::Message;
use longhaul_proto::wire::Open;
use quinn::Connection;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::task::TaskTracker;

use crate::lease::Lease;
use crate::service::net::{self, NetError, Network};

/// Messages waiting for a connection. Later ones are dropped; the protocol repeats what matters.
const MAX_QUEUED: usize = 16;
/// How long a message may take to be acknowledged before its stream is let go.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the end of a job waits for its last messages to be delivered.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// Live connections that one job watches. A peer that comes by more is answered, but not by the newer ones.
const MAX_WATCHED: usize = 8;

/// The way to one peer, for one job.
pub(crate) struct Link {
    network: Network,
    peer: String,
    connections: Mutex<Connections>,
    queue: mpsc::Sender<Item>,
    lost: Arc<Notify>,
    /// Of the tasks that deliver and watch.
    lease: Lease,
    /// Messages that are on their way.
    deliveries: TaskTracker,
}

enum Item {
    Message(Message),
    /// Everything before this is on its way.
    Flush(oneshot::Sender<()>),
}

#[derive(Default)]
struct Connections {
    /// The one that messages are sent by.
    current: Option<Connection>,
    /// All whose end is waited for, by their ids.
    watched: Vec<usize>,
}

impl Link {
    /// A link to `peer` for `job`; `lost` is notified whenever a connection ends or a message could not be sent.
    pub(crate) fn new(
        network: Network,
        peer: String,
        job: JobId,
        connection: Option<Connection>,
        lost: Arc<Notify>,
    ) -> Arc<Self> {
        let (queue, items) = mpsc::channel(MAX_QUEUED);
        let (connections, lease, deliveries) = Default::default();
        let link = Arc::new(Link { network, peer, connections, queue, lost, lease, deliveries });
        if let Some(connection) = connection {
            link.attach(connection);
        }
        link.lease.spawn(deliver_all(Arc::downgrade(&link), job, items));
        link
    }

    /// The peer's name.
    pub(crate) fn peer(&self) -> &str {
        &self.peer
    }

    /// Sends a message, or loses it.
    pub(crate) fn transmit(&self, message: Message) {
        if self.queue.try_send(Item::Message(message)).is_err() {
            tracing::debug!(peer = %self.peer, "a message is dropped: the peer has been out of reach for long");
        }
    }

    /// Uses this connection from now on. One that was used before and still lives goes on to carry what is under way on
    /// it; when it ends, that is a loss.
    pub(crate) fn attach(self: &Arc<Self>, connection: Connection) {
        let stable_id = connection.stable_id();
        {
            let mut connections = self.lock();
            if connections.watched.contains(&stable_id) {
                connections.current = Some(connection);
                return;
            }
            if connections.watched.len() == MAX_WATCHED {
                return;
            }
            connections.current = Some(connection.clone());
            connections.watched.push(stable_id);
        }
        let link = Arc::downgrade(self);
        self.lease.spawn(async move {
            connection.closed().await;
            let Some(link) = link.upgrade() else { return };
            let mut connections = link.lock();
            connections.watched.retain(|id| *id != stable_id);
            connections.current.take_if(|now| now.stable_id() == stable_id);
            drop(connections);
            link.lost.notify_one();
        });
    }

    /// The connection there is, or a new one.
    pub(crate) async fn connection(self: &Arc<Self>) -> Result<Connection, NetError> {
        if let Some(connection) = self.current() {
            return Ok(connection);
        }
        let connection = self.network.dial(&self.peer).await?;
        self.attach(connection.clone());
        Ok(connection)
    }

    /// Waits a little until what was transmitted has arrived, then ends everything the link does; for the end of a job.
    pub(crate) async fn close(&self) {
        let drained = async {
            let (flush, flushed) = oneshot::channel();
            if self.queue.send(Item::Flush(flush)).await.is_ok() {
                // An error means the same: nothing is delivered any more.
                let _ = flushed.await;
            }
            self.deliveries.close();
            self.deliveries.wait().await;
        };
        let _ = tokio::time::timeout(DRAIN_TIMEOUT, drained).await;
        self.lease.end().await;
    }

    fn current(&self) -> Option<Connection> {
        self.lock().current.clone().filter(|connection| connection.close_reason().is_none())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends the message. Its stream is held until it has arrived, or for as long as it may take.
    async fn deliver(self: &Arc<Self>, job: JobId, message: Message) -> Result<(), NetError> {
        let connection = self.connection().await?;
        if message == Message::Preparing && !net::is_current(&connection) {
            // The version before does not know it, and waits for a bounded time.
            return Ok(());
        }
        let mut stream = connection.open_uni().await?;
        net::send(&mut stream, &Open::Handoff { job, message }).await?;
        let _ = stream.finish();
        let arrived = async move { tokio::time::timeout(DELIVERY_TIMEOUT, stream.stopped()).await };
        self.lease.spawn(self.deliveries.track_future(arrived));
        Ok(())
    }
}

async fn deliver_all(link: std::sync::Weak<Link>, job: JobId, mut items: mpsc::Receiver<Item>) {
    while let Some(item) = items.recv().await {
        let Some(link) = link.upgrade() else { return };
        let message = match item {
            Item::Message(message) => message,
            Item::Flush(flushed) => {
                let _ = flushed.send(());
                continue;
            }
        };
        let label = message.label();
        if let Err(error) = link.deliver(job, message).await {
            tracing::info!(%job, peer = %link.peer, "'{label}' could not be sent: {error}");
            link.lost.notify_one();
        }
    }
}

#[cfg(test)]
mod tests;
