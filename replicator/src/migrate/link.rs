//! The way to the other end of a hand-off: messages in order, over whatever connection there is, dialled again when it
//! is gone. Losing it is an input like any other; what it means is the hand-off's to say.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use longhaul_proto::JobId;
use longhaul_proto::handoff::Message;
use longhaul_proto::wire::Open;
use quinn::Connection;
use tokio::sync::mpsc;

use crate::net::{self, NetError, Network};

/// Messages waiting for a connection. More than that are repetitions.
const MAX_QUEUED: usize = 16;
/// How long a message may take to be acknowledged before its stream is let go.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(10);

/// The way to one peer, for one job.
pub struct Link {
    network: Network,
    peer: String,
    connection: Mutex<Option<Connection>>,
    queue: mpsc::Sender<Message>,
    lost: Box<dyn Fn() + Send + Sync>,
}

impl Link {
    /// A link to `peer` for `job`; `lost` is called whenever a connection ends or a message could not be sent.
    pub fn new(
        network: Network,
        peer: String,
        job: JobId,
        connection: Option<Connection>,
        lost: impl Fn() + Send + Sync + 'static,
    ) -> Arc<Self> {
        let (queue, messages) = mpsc::channel(MAX_QUEUED);
        let link =
            Arc::new(Link { network, peer, connection: Mutex::default(), queue, lost: Box::new(lost) });
        if let Some(connection) = connection {
            link.attach(connection);
        }
        tokio::spawn(deliver_all(Arc::downgrade(&link), job, messages));
        link
    }

    /// The peer's name.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// Sends a message, or loses it.
    pub fn transmit(&self, message: Message) {
        if self.queue.try_send(message).is_err() {
            tracing::debug!(peer = %self.peer, "a message is dropped: the peer has been out of reach for long");
        }
    }

    /// Uses this connection from now on.
    pub fn attach(self: &Arc<Self>, connection: Connection) {
        let stable_id = connection.stable_id();
        if self.current().is_some_and(|current| current.stable_id() == stable_id) {
            return;
        }
        let before = self.lock().replace(connection.clone());
        if before.is_some() {
            // What was said on it may be lost, and nobody will see it end.
            (self.lost)();
        }
        let link = Arc::downgrade(self);
        tokio::spawn(async move {
            connection.closed().await;
            if let Some(link) = link.upgrade() {
                let mut current = link.lock();
                if current.as_ref().is_some_and(|current| current.stable_id() == stable_id) {
                    *current = None;
                    drop(current);
                    (link.lost)();
                }
            }
        });
    }

    /// The connection there is, or a new one.
    pub async fn connection(self: &Arc<Self>) -> Result<Connection, NetError> {
        if let Some(connection) = self.current() {
            return Ok(connection);
        }
        let connection = self.network.dial(&self.peer).await?;
        self.attach(connection.clone());
        Ok(connection)
    }

    /// Waits a little until what was transmitted is on its way; for the end of a job.
    pub async fn drain(&self) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(2);
        while self.queue.capacity() < MAX_QUEUED && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn current(&self) -> Option<Connection> {
        self.lock().clone().filter(|connection| connection.close_reason().is_none())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Connection>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn deliver(self: &Arc<Self>, job: JobId, message: Message) -> Result<(), NetError> {
        let mut stream = self.connection().await?.open_uni().await?;
        net::send(&mut stream, &Open::Handoff { job, message }).await?;
        let _ = stream.finish();
        // Held until it has arrived: a connection that is dropped loses what is under way.
        tokio::spawn(async move { tokio::time::timeout(DELIVERY_TIMEOUT, stream.stopped()).await });
        Ok(())
    }
}

async fn deliver_all(link: std::sync::Weak<Link>, job: JobId, mut messages: mpsc::Receiver<Message>) {
    while let Some(message) = messages.recv().await {
        let Some(link) = link.upgrade() else { return };
        let label = message.label();
        if let Err(error) = link.deliver(job, message).await {
            tracing::info!(%job, peer = %link.peer, "'{label}' could not be sent: {error}");
            (link.lost)();
        }
    }
}
