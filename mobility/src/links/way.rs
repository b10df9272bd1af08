//! Where a route leads, and the interface of a tunnel as a place to lead to. It asks the kernel nothing.

use std::net::Ipv6Addr;

use rtnetlink::RouteMessageBuilder;

/// The neighbour behind a tunnel of joined interfaces: any will do, since neither asks for it.
const BEHIND: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// Each tunnel has tables of its own, numbered from its interface's index on.
const TABLES: u32 = 0x5213_0000;

/// Where a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Out by the interface with this index.
    Interface(u32),
    /// Out by it too, once its router is found, who is nobody.
    Held(u32, Ipv6Addr),
    /// Into a tunnel.
    Tunnel(Tunnel),
    /// Nowhere, without a word.
    Nowhere,
    /// The rules behind the one that led to this table decide.
    Onward,
}

/// A tunnel's own tables.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Table {
    /// What is encapsulated.
    Into = 0,
    /// What is decapsulated.
    OutOf = 1,
    /// Where it goes then.
    Decapsulated = 2,
    /// Whose packets may come by it.
    Sources = 3,
}

/// A tunnel's interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tunnel {
    pub(crate) index: u32,
    /// Whether it is one of two joined interfaces, so that a route into it needs a next hop.
    pub(crate) is_joined: bool,
}

impl Tunnel {
    pub(crate) fn table(self, part: Table) -> u32 {
        TABLES + 4 * self.index + part as u32
    }

    pub(super) fn via(self, route: RouteMessageBuilder<Ipv6Addr>) -> RouteMessageBuilder<Ipv6Addr> {
        let route = route.output_interface(self.index);
        if self.is_joined { route.gateway(BEHIND) } else { route }
    }
}
