//! Tunnels of the kernel: what carries packets between home agent and platforms without this program, and goes on while it
//! does not run. One trait, [`Backend`], and three data planes; which of them a host can have is tried when an
//! agent starts.
//!
//! | plane | a tunnel is | needs |
//! |---|---|---|
//! | [`ip6tnl`](ip6tnl) | an interface of that kind (RFC 2473) | the kernel's module `ip6_tunnel` |
//! | [`seg6`](seg6) | two joined interfaces with routes that encapsulate and decapsulate behind them | `CONFIG_IPV6_SEG6_LWTUNNEL`, and an address for tunnels alone |
//! | TUN | none: every packet passes through this program | `/dev/net/tun` |
//!
//! On the wire all three are IPv6 in IPv6, so the two ends of a tunnel need not be of the same kind. Two that are both TUN put
//! packets in UDP, where the way between them carries it (`plane::bundles`): at a quarter of the cost. What is routed into a
//! tunnel's interface goes to its other end; what comes from there comes in by that interface, and by no other: so rules and
//! routes by interface decide what may come from whom.
//!
//! Tunnels of the kernel carry IPv6. IPv4 packets of guests pass through this program at both ends, whichever the plane: at a home
//! agent their sources must be judged by where they come from, for which the kernel has routes of IPv6 only.
//!
//! # Who carries what, and when
//! A virtual machine's packets are carried by the kernel while it runs where it is, and by this program during a move, when
//! they are remembered, forwarded, held and ordered. Each step below is one route replaced in place: at every moment a packet
//! finds either the one way or the other.
//!
//! ```text
//! home agent   kernel ......................... route to the source | route to the target, then the end marker
//! source       kernel | remember: this program ............................ revoked: nothing
//! target                expect: this program .......................... settled: kernel, once this program has passed on all
//! ```
//!
//! - *From the kernel to this program*, at the source and at a home agent's fallback: the new way is the slower one. A packet
//!   that takes it can overtake none that took the old one, which had left before it came.
//! - *At the home agent* the route changes from one tunnel to another. The end marker is sent from here, by another way through
//!   the kernel than packets that it is forwarding at that moment on another processor, so it is sent a little later
//!   (`home_agent::FENCE`). A packet that it overtakes all the same is still delivered: the target takes packets of the source
//!   for a while after it has settled. What comes to the target meanwhile by the new way waits for the marker.
//! - *From this program to the kernel*, at the target once it has settled: the new way is the quicker one, so a packet could
//!   overtake those that still wait here. So it waits in the kernel ([`crate::links`], `held`) until what had been given to this
//!   program is delivered, and goes behind that.
//!
//! What a virtual machine sends is carried by the kernel always: it is paused when its gateway changes.
//!
//! # What a registration need not wait for
//! Making an interface takes the kernel many milliseconds, and removing one more, seconds on a busy machine; all else is done in a
//! fraction of one. So where an interface can be made before it is known to whom it leads, one is in store, made again a while
//! after it was taken, and none is removed by whoever has something else to do. Nor is either done by way of the same netlink
//! socket: the kernel does what it is asked in the call that asks.
//!
//! # After a crash
//! Tunnels, rules and routes of kernel planes stay. A tunnel's interface has an alias that says what it is, so the next start
//! takes over what fits, and [`Tunnels::clear_but`] removes what does not. One that was made and not yet named is known by its group.

mod backend;
mod ip6tnl;
mod seg6;
mod tunnel_source;

use std::collections::{BTreeMap, HashSet};
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::data_plane::{DataPlane, Peer, PlaneChoice};
use crate::error::{AgentError, LinkError};
use crate::links::{Links, Remembered, Tunnel};
pub(crate) use backend::Own;
use backend::{Backend, STEM_BYTES};

/// How many tunnels an agent has at most: each is a few rules, and the kernel looks through all rules for a packet. What is
/// for further peers passes through this program.
const MAX_TUNNELS: usize = 100;
/// To whom an interface in store leads.
const NOBODY: Peer = Peer { address: Ipv6Addr::UNSPECIFIED, user_plane: Ipv6Addr::UNSPECIFIED };

/// How long after a tunnel the next one is made for the store: the kernel does nothing else for interfaces and routes while it
/// makes one, which is for seconds on a busy machine, and what a tunnel is opened for wants its routes at once.
const RESTOCK_AFTER: Duration = Duration::from_secs(1);

/// An interface in store, made or to be made.
#[derive(Debug)]
struct Stored {
    made: JoinHandle<Result<Remembered, LinkError>>,
    /// Dropped, it is made without delay.
    unhurried: oneshot::Sender<()>,
}

/// The tunnels of one agent.
#[derive(Debug)]
pub(crate) struct Tunnels {
    links: Links,
    stem: String,
    /// `None`: every packet passes through this program.
    backend: Option<Arc<dyn Backend>>,
    store: Option<Stored>,
    removals: JoinSet<()>,
    open: BTreeMap<Peer, (Tunnel, Remembered)>,
    /// From before a crash, and not asked for yet.
    left: BTreeMap<Peer, (Tunnel, Remembered)>,
}

impl Tunnels {
    /// Finds the data plane that is asked for, with the tunnels of it that a crash has left; those of another are removed.
    pub(crate) async fn start(links: &Links, own: &Own, choice: PlaneChoice) -> Result<Self, AgentError> {
        let backend = choose(links, own, choice).await?;
        let plane = backend.as_ref().map_or(DataPlane::Tun, |backend| backend.plane());
        tracing::info!("the data plane at {} is {plane}", own.address);
        links.remove_unfinished().await?;
        let mut left = BTreeMap::new();
        for (tunnel, remembered) in links.tunnels().await? {
            if remembered.plane == plane {
                left.insert(remembered.peer, (tunnel, remembered));
            } else {
                links.close_tunnel(&(tunnel, remembered)).await?;
                links.remove_tunnel(tunnel).await?;
            }
        }
        let stem = own.interface.chars().take(STEM_BYTES).collect();
        let store = left.remove(&NOBODY).map(|(_, remembered)| Stored {
            // Ends at once: what is in store already.
            made: tokio::spawn(async { Ok(remembered) }),
            unhurried: oneshot::channel().0,
        });
        let (links, removals, open) = (links.clone(), JoinSet::new(), BTreeMap::new());
        let mut tunnels = Self { links, stem, backend, store, removals, open, left };
        tunnels.restock(Duration::ZERO);
        Ok(tunnels)
    }

    /// Puts an interface in store, unless there is one.
    fn restock(&mut self, after: Duration) {
        let Some(backend) = self.backend.clone().filter(|backend| backend.has_store()) else { return };
        if self.store.is_none() && self.open.len() < MAX_TUNNELS {
            let (stem, number) = (self.stem.clone(), self.open.len() + self.left.len());
            let (unhurried, hurry) = oneshot::channel();
            // Ends when the interface is made; whoever takes or closes the store waits for that.
            let made = tokio::spawn(async move {
                let _ = timeout(after, hurry).await;
                let remembered = make(&*backend, &stem, number, NOBODY).await?;
                backend.equip(&remembered).await.map(|_| remembered)
            });
            self.store = Some(Stored { made, unhurried });
        }
    }

    /// An interface for this peer.
    async fn take(&mut self, backend: &dyn Backend, peer: Peer) -> Result<Remembered, LinkError> {
        if let Some((_, remembered)) = self.left.remove(&peer) {
            return Ok(remembered);
        }
        if let Some(Stored { made, unhurried }) = self.store.take() {
            drop(unhurried);
            if let Ok(Ok(stored)) = made.await {
                return Ok(Remembered { peer, ..stored });
            }
        }
        make(backend, &self.stem, self.open.len() + self.left.len(), peer).await
    }

    pub(crate) fn plane(&self) -> DataPlane {
        self.backend.as_ref().map_or(DataPlane::Tun, |backend| backend.plane())
    }

    /// Where the agent takes tunnelled packets, when that is not its own address.
    pub(crate) fn user_plane(&self) -> Option<Ipv6Addr> {
        self.backend.as_ref()?.user_plane()
    }

    /// Where this peer took packets before a crash.
    pub(crate) fn before(&self, address: Ipv6Addr) -> Option<Peer> {
        self.left.keys().find(|peer| peer.address == address).copied()
    }

    /// The tunnel to this peer and its interface's name, made unless there is one. `None` when what is for the peer has to
    /// pass through this program.
    pub(crate) async fn open(&mut self, peer: Peer) -> Result<Option<(Tunnel, &str)>, LinkError> {
        let Some(backend) = self.backend.clone() else { return Ok(None) };
        if !self.open.contains_key(&peer) {
            if self.open.len() >= MAX_TUNNELS {
                return Ok(None);
            }
            let remembered = self.take(&*backend, peer).await?;
            let tunnel = backend.fit_out(&remembered).await?;
            self.open.insert(peer, (tunnel, remembered));
            self.restock(RESTOCK_AFTER);
        }
        Ok(self.open.get(&peer).map(|(tunnel, remembered)| (*tunnel, remembered.name.as_str())))
    }

    /// The tunnel to this peer, if it is open.
    pub(crate) fn get(&self, peer: Peer) -> Option<Tunnel> {
        self.open.get(&peer).map(|(tunnel, _)| *tunnel)
    }

    /// The names of all open ones' interfaces.
    pub(crate) fn names(&self) -> HashSet<String> {
        let names = self.open.values().map(|(_, remembered)| &remembered.name);
        names.flat_map(|name| [name.clone(), crate::links::inner_name(name)]).collect()
    }

    /// The peers whose tunnelled packets come to this program too, though the kernel takes them.
    pub(crate) fn taken_twice(&self) -> Vec<Ipv6Addr> {
        match self.plane() {
            DataPlane::Ip6tnl => self.open.keys().chain(self.left.keys()).map(|peer| peer.address).collect(),
            DataPlane::Seg6 | DataPlane::Tun => Vec::new(),
        }
    }

    /// Closes the tunnels that are not kept, and all that a crash has left and nobody has asked for; they are removed as soon as
    /// may be.
    pub(crate) async fn clear_but(&mut self, keeps: impl Fn(&Peer) -> bool) -> Result<(), LinkError> {
        let dropped: Vec<_> = self.open.keys().filter(|peer| !keeps(peer)).copied().collect();
        let dropped = dropped.iter().filter_map(|peer| self.open.remove(peer)).collect::<Vec<_>>();
        for tunnel in dropped.into_iter().chain(std::mem::take(&mut self.left).into_values()) {
            self.links.close_tunnel(&tunnel).await?;
            let links = self.links.clone();
            self.removals.spawn(async move {
                if let Err(error) = links.remove_tunnel(tunnel.0).await {
                    tracing::warn!("a tunnel that nobody needs stays until the next start: {error}");
                }
            });
        }
        Ok(())
    }

    /// Takes everything back.
    pub(crate) async fn end(&mut self) -> Result<(), LinkError> {
        self.clear_but(|_| false).await?;
        while self.removals.join_next().await.is_some() {}
        if let Some(Stored { made, unhurried }) = self.store.take() {
            // The agent removes all its interfaces, this one too.
            drop(unhurried);
            let _ = made.await;
        }
        match &self.backend {
            Some(backend) => backend.close().await,
            None => Ok(()),
        }
    }
}

/// Makes an interface under the first name that nobody has.
async fn make(
    backend: &dyn Backend,
    stem: &str,
    mut number: usize,
    peer: Peer,
) -> Result<Remembered, LinkError> {
    let mut name = format!("{stem}.{number}");
    while !backend.make(&name, peer).await? {
        number += 1;
        name = format!("{stem}.{number}");
    }
    Ok(Remembered { name, plane: backend.plane(), peer })
}

async fn choose(
    links: &Links,
    own: &Own,
    choice: PlaneChoice,
) -> Result<Option<Arc<dyn Backend>>, AgentError> {
    let plane = match choice {
        PlaneChoice::Only(plane) => return attempt(links, own, plane).await,
        PlaneChoice::Auto => DataPlane::ALL,
    };
    for plane in plane {
        match attempt(links, own, plane).await {
            Ok(backend) => return Ok(backend),
            Err(error) => tracing::debug!("data plane {plane} does not work here: {error}"),
        }
    }
    Ok(None)
}

async fn attempt(links: &Links, own: &Own, plane: DataPlane) -> Result<Option<Arc<dyn Backend>>, AgentError> {
    Ok(match plane {
        DataPlane::Ip6tnl => Some(Arc::new(ip6tnl::Ip6tnl::open(links, own).await?)),
        DataPlane::Seg6 => Some(Arc::new(seg6::Seg6::open(links, own).await?)),
        DataPlane::Tun => None,
    })
}
