//! What every data plane of the kernel is given, and does its own way.

use std::fmt;
use std::net::Ipv6Addr;

use futures_util::future::BoxFuture;

use crate::data_plane::{DataPlane, Peer};
use crate::error::LinkError;
use crate::links::{Remembered, Tunnel};

/// An agent's part in its tunnels.
#[derive(Debug, Clone)]
pub(crate) struct Own {
    /// The agent's address.
    pub(crate) address: Ipv6Addr,
    /// Its address for tunnels alone.
    pub(crate) user_plane: Option<Ipv6Addr>,
    /// Its TUN interface, with whose name those of its tunnels begin.
    pub(crate) interface: String,
}

/// What a data plane does its own way.
pub(crate) trait Backend: Send + Sync + fmt::Debug {
    fn plane(&self) -> DataPlane;

    /// Where it takes tunnelled packets, when that is not the agent's own address.
    fn user_plane(&self) -> Option<Ipv6Addr> {
        None
    }

    /// Whether an interface can be made before its peer is known.
    fn has_store(&self) -> bool {
        false
    }

    /// Makes an interface of this name; `false` when there is one.
    fn make<'a>(&'a self, name: &'a str, peer: Peer) -> BoxFuture<'a, Result<bool, LinkError>>;

    /// Marks the interface, and does with it what is the same for all peers.
    fn equip<'a>(&'a self, remembered: &'a Remembered) -> BoxFuture<'a, Result<Tunnel, LinkError>>;

    /// Makes the interface the tunnel that it is to be. Done again, it changes nothing, and stops no packet.
    fn fit_out<'a>(&'a self, remembered: &'a Remembered) -> BoxFuture<'a, Result<Tunnel, LinkError>> {
        self.equip(remembered)
    }

    /// Takes back what is not a tunnel's.
    fn close(&self) -> BoxFuture<'_, Result<(), LinkError>>;
}

/// An interface's name has at most 15 bytes: here room for the number and for the second one of two joined interfaces.
pub(super) const STEM_BYTES: usize = 10;
