//! The lanes of one connection: how many each transfer may open, and which stream that a peer opens belongs to which of
//! its transfers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use longhaul_proto::wire;
use quinn::{Connection, RecvStream};
use tokio::sync::{mpsc, watch};

use super::super::NetError;

/// What a peer calls one set of lanes.
pub(super) type Token = [u8; 16];

/// The most lanes that are open at once in one direction of a connection, beside the main streams. Their windows hold 64 MiB.
pub(in super::super) const MAX_LANES_OUT: u16 = 2048;
/// How long a lane may wait for the stream that says which set it is of: both are under way at the same time.
pub(crate) const UNCLAIMED: Duration = Duration::from_secs(10);

/// The lanes of one connection, both ways.
#[derive(Debug)]
pub(crate) struct Lanes {
    /// Lanes that this side has open.
    out: Mutex<u16>,
    claims: Mutex<HashMap<Token, mpsc::Sender<(u16, RecvStream)>>>,
    /// Told of each new claim.
    claimed: watch::Sender<()>,
}

/// Keyed by [`Connection::stable_id`]. Whoever holds the lanes also holds the connection, so that its number is no other's.
static CONNECTIONS: Mutex<Vec<(usize, Weak<Lanes>)>> = Mutex::new(Vec::new());

/// The lanes of this connection. They are forgotten when nobody holds them.
pub(crate) fn of(connection: &Connection) -> Arc<Lanes> {
    let mut connections = lock(&CONNECTIONS);
    connections.retain(|(_, lanes)| lanes.strong_count() > 0);
    let known = connections.iter().find(|(id, _)| *id == connection.stable_id());
    if let Some(lanes) = known.and_then(|(_, lanes)| lanes.upgrade()) {
        return lanes;
    }
    let lanes = Lanes { out: Mutex::default(), claims: Mutex::default(), claimed: watch::Sender::new(()) };
    let lanes = Arc::new(lanes);
    connections.push((connection.stable_id(), Arc::downgrade(&lanes)));
    lanes
}

impl Lanes {
    /// The right to `wanted` lanes, or to half of those that are left, so that those that come later get some as well. One, the
    /// main stream, is always to be had.
    pub(super) fn share(self: &Arc<Self>, wanted: u16) -> Share {
        let mut out = lock(&self.out);
        let extra = (wanted - 1).min((MAX_LANES_OUT - *out) / 2);
        *out += extra;
        Share { lanes: self.clone(), extra }
    }

    /// Takes the lanes with this token, those that are there and those that come.
    pub(super) fn claim(self: &Arc<Self>, token: Token) -> Result<Claim, NetError> {
        let (sender, arriving) = mpsc::channel(usize::from(wire::MAX_LANES));
        let mut claims = lock(&self.claims);
        if claims.contains_key(&token) {
            return Err(NetError::Lanes("the token of a set is used twice".to_owned()));
        }
        claims.insert(token, sender);
        drop(claims);
        self.claimed.send_replace(());
        Ok(Claim { lanes: self.clone(), token, arriving })
    }

    /// Gives a lane that the peer has opened to whoever claims its set. Lets it go when nobody does within `patience`.
    pub(crate) async fn deliver(
        &self,
        token: Token,
        index: u16,
        stream: RecvStream,
        patience: Duration,
    ) -> Result<(), NetError> {
        let mut claimed = self.claimed.subscribe();
        let owner = async {
            loop {
                if let Some(owner) = lock(&self.claims).get(&token) {
                    return owner.clone();
                }
                // The sender of the notes is in `self`.
                let _ = claimed.changed().await;
            }
        };
        let owner = tokio::time::timeout(patience, owner).await;
        let owner = owner.map_err(|_| NetError::Lanes("a lane belongs to no stream here".to_owned()))?;
        // Full: more lanes than a set may have. Closed: the set has ended meanwhile.
        match owner.try_send((index, stream)) {
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
            Err(mpsc::error::TrySendError::Full(_)) => {
                Err(NetError::Lanes("a set has more lanes than it may".to_owned()))
            }
        }
    }
}

/// The right to a number of lanes, given back when dropped.
#[derive(Debug)]
pub(super) struct Share {
    lanes: Arc<Lanes>,
    extra: u16,
}

impl Share {
    /// How many, the main stream included.
    pub(super) fn lanes(&self) -> u16 {
        self.extra + 1
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        *lock(&self.lanes.out) -= self.extra;
    }
}

/// The lanes of one set as they arrive.
#[derive(Debug)]
pub(super) struct Claim {
    lanes: Arc<Lanes>,
    token: Token,
    arriving: mpsc::Receiver<(u16, RecvStream)>,
}

impl Claim {
    /// The next lane to arrive, whichever it is.
    pub(super) async fn next(&mut self) -> Result<(u16, RecvStream), NetError> {
        self.arriving.recv().await.ok_or(NetError::Ended)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        lock(&self.lanes.claims).remove(&self.token);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
