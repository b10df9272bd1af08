//! The data planes that there are, and the ends of tunnels. It carries nothing itself.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::plane::{BUNDLED_MTU, INNER_MTU};

/// Who carries tunnelled packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataPlane {
    /// The kernel, with `ip6tnl` interfaces.
    Ip6tnl,
    /// The kernel, with segment routing: one segment, so that plain IPv6 in IPv6 is on the wire.
    Seg6,
    /// This program, with a TUN interface.
    Tun,
}

impl DataPlane {
    /// In the order in which they are tried.
    pub const ALL: [Self; 3] = [Self::Ip6tnl, Self::Seg6, Self::Tun];

    /// What a guest's packets may have.
    pub(crate) fn guest_mtu(self) -> u16 {
        match self {
            Self::Ip6tnl | Self::Seg6 => INNER_MTU,
            Self::Tun => BUNDLED_MTU,
        }
    }

    /// Its name in configuration and status.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ip6tnl => "ip6tnl",
            Self::Seg6 => "seg6",
            Self::Tun => "tun",
        }
    }
}

impl fmt::Display for DataPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DataPlane {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|plane| plane.name() == name).ok_or(())
    }
}

/// Which data plane an agent is to have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum PlaneChoice {
    /// The first of [`DataPlane::ALL`] that works here.
    #[default]
    Auto,
    /// This one, or the agent does not start.
    Only(DataPlane),
}

impl TryFrom<String> for PlaneChoice {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        match name.parse() {
            Ok(plane) => Ok(Self::Only(plane)),
            Err(()) if name == "auto" => Ok(Self::Auto),
            Err(()) => {
                let names = DataPlane::ALL.map(DataPlane::name).join(", ");
                Err(format!("{name:?} is no data plane: choose auto, {names}"))
            }
        }
    }
}

/// The other end of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Peer {
    /// Its own address, from which its packets come.
    pub(crate) address: Ipv6Addr,
    /// Where it takes packets.
    pub(crate) user_plane: Ipv6Addr,
}
