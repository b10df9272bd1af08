//! A binding as it is told to others, and kept.

use std::net::Ipv6Addr;

use serde::{Deserialize, Serialize};

/// Where a mobile node is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// The mobile node's identifier.
    pub node: String,
    /// Where it is reached.
    pub care_of: Ipv6Addr,
    /// Where the gateway there takes tunnelled packets.
    pub user_plane: Option<Ipv6Addr>,
    /// The ownership epoch in which it is there.
    pub epoch: u64,
}
