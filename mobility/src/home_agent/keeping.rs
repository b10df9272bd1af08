//! What must outlive a crash, on its way to the disk, and the packets that may not leave before it is there. A thread of its
//! own writes: what has changed while it did is written together the next time, so a disk that is slow is not asked more often.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::net::SocketAddrV4;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mobility_proto::anchor::Kept;
use mobility_proto::wire::Ipv6Prefix;
use tokio::sync::watch;

use super::binding::Binding;

/// How many packets may wait: a gateway whose acknowledgement is lost asks again.
const MAX_HELD: usize = 65_536;
/// After how long a disk that has refused is asked again.
const RETRY: Duration = Duration::from_secs(1);

/// What is known of a mobile node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Its identifier.
    pub node: String,
    /// Its prefix.
    pub prefix: Ipv6Prefix,
    /// The highest epoch in which it was bound.
    pub floor: u64,
    /// Where it is reached.
    pub binding: Option<Binding>,
}

impl Change {
    pub(super) fn of(node: String, Kept { prefix, floor, bound }: Kept) -> Self {
        let binding = bound.map(|(place, epoch)| Binding {
            node: node.clone(),
            care_of: place.care_of,
            user_plane: place.user_plane,
            epoch,
        });
        Self { node, prefix, floor, binding }
    }
}

/// Keeps what is known of mobile nodes where a crash does not reach it.
pub trait Keeper: Send + fmt::Debug {
    /// Ends when all of it is there. Called from a thread that may wait; of each node there is at most one.
    ///
    /// # Errors
    /// What the disk says. The same, or what has become of it, is given again then.
    fn keep(&mut self, changes: &[Change]) -> io::Result<()>;
}

/// A packet of signalling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outgoing {
    /// With the header that it brings.
    Whole(Vec<u8>),
    /// In UDP.
    Datagram(SocketAddrV4, Vec<u8>),
}

#[derive(Debug)]
pub(super) struct Keeping {
    shared: Arc<Shared>,
    done: watch::Receiver<u64>,
    /// How many changes there were.
    asked: u64,
    /// Packets, each with how many changes it waits for.
    held: VecDeque<(u64, Outgoing)>,
}

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    changes: BTreeMap<String, Change>,
    asked: u64,
    is_over: bool,
}

impl Keeping {
    pub(super) fn start(keeper: Box<dyn Keeper>) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (told, done) = watch::channel(0);
        let writes = Arc::clone(&shared);
        std::thread::Builder::new().name("bindings".into()).spawn(move || write(&writes, keeper, &told))?;
        Ok(Self { shared, done, asked: 0, held: VecDeque::new() })
    }

    /// Has a change written. What is sent from now on waits for it.
    pub(super) fn keep(&mut self, change: Change) {
        self.asked += 1;
        let mut waiting = self.shared.waiting();
        waiting.changes.insert(change.node.clone(), change);
        waiting.asked = self.asked;
        self.shared.wake.notify_one();
    }

    /// The packet, when there is nothing that it has to wait for.
    pub(super) fn send(&mut self, packet: Outgoing) -> Option<Outgoing> {
        if *self.done.borrow() == self.asked && self.held.is_empty() {
            return Some(packet);
        }
        if self.held.len() < MAX_HELD {
            self.held.push_back((self.asked, packet));
        }
        None
    }

    /// The packets that wait no more, in order.
    pub(super) fn released(&mut self) -> impl Iterator<Item = Outgoing> {
        let done = *self.done.borrow_and_update();
        let count = self.held.iter().take_while(|(asked, _)| *asked <= done).count();
        self.held.drain(..count).map(|(_, packet)| packet)
    }
}

impl Drop for Keeping {
    fn drop(&mut self) {
        self.shared.waiting().is_over = true;
        self.shared.wake.notify_one();
    }
}

/// Waits until something was kept; never ends without a keeper.
pub(super) async fn kept(keeping: &mut Option<Keeping>) {
    let ended = match keeping {
        Some(keeping) => keeping.done.changed().await.is_err(),
        None => true,
    };
    if ended {
        std::future::pending::<()>().await;
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has changed; `None` when nothing has and nothing will.
    fn next(&self) -> Option<(u64, BTreeMap<String, Change>)> {
        let idle = |waiting: &mut Waiting| waiting.changes.is_empty() && !waiting.is_over;
        let mut waiting = self.wake.wait_while(self.waiting(), idle).unwrap_or_else(PoisonError::into_inner);
        let changes = std::mem::take(&mut waiting.changes);
        (!changes.is_empty()).then_some((waiting.asked, changes))
    }
}

/// The thread: ends when all is written of an agent that has ended.
fn write(shared: &Shared, mut keeper: Box<dyn Keeper>, told: &watch::Sender<u64>) {
    while let Some((mut asked, changes)) = shared.next() {
        let mut changes: Vec<Change> = changes.into_values().collect();
        while let Err(error) = keeper.keep(&changes) {
            tracing::error!(
                "{} bindings could not be kept, and are not acknowledged: {error}",
                changes.len()
            );
            if shared.waiting().is_over {
                return;
            }
            std::thread::sleep(RETRY);
            let mut waiting = shared.waiting();
            let newer = std::mem::take(&mut waiting.changes);
            changes.retain(|change| !newer.contains_key(&change.node));
            changes.extend(newer.into_values());
            asked = waiting.asked;
        }
        told.send_replace(asked);
    }
}

#[cfg(test)]
mod tests;
