//! Interfaces that are tunnels of the kernel: how they are made, what they are known by after a crash, and how they go.

use std::collections::HashSet;

use mobility_proto::wire::Ipv6Prefix;
use rtnetlink::LinkUnspec;
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoKind, LinkAttribute, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteProtocol, RouteType};
use rtnetlink::packet_route::rule::RuleAttribute;

use super::way::{Table, Tunnel};
use super::{EXISTS, Links, NO_SUCH_DEVICE, Result, Way, alias, errno, everything, failed, is_from};
use crate::data_plane::{DataPlane, Peer};
use crate::plane::INNER_MTU;

/// How the alias of a tunnel's interface begins.
const IS_TUNNEL: &str = "longhaul: tunnel ";
/// Each agent's interfaces are in a group of their own, numbered by its origin.
const GROUPS: u32 = 0x5213_0000;
/// What a tunnel's interface is known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Remembered {
    pub(crate) name: String,
    pub(crate) plane: DataPlane,
    pub(crate) peer: Peer,
}

impl Remembered {
    /// The alias that an agent of this origin gives it.
    fn alias(&self, origin: RouteProtocol) -> String {
        let Self { plane, peer, .. } = self;
        format!("{IS_TUNNEL}{} {plane} {} {}", u8::from(origin), peer.address, peer.user_plane)
    }

    /// Reads it, when it is of this origin.
    fn parse(name: &str, alias: &str, origin: RouteProtocol) -> Option<Self> {
        let mut words = alias.strip_prefix(IS_TUNNEL)?.split(' ');
        words.next()?.parse().ok().filter(|number: &u8| *number == u8::from(origin))?;
        let plane = words.next()?.parse().ok()?;
        let mut address = || words.next()?.parse().ok();
        let peer = Peer { address: address()?, user_plane: address()? };
        Some(Self { name: name.to_owned(), plane, peer })
    }
}

/// The other one of two joined interfaces.
pub(crate) fn inner_name(name: &str) -> String {
    format!("{name}x")
}

impl Links {
    /// All tunnels that this agent has made, before a crash too, with what they are known by.
    pub(crate) async fn tunnels(&self) -> Result<Vec<(Tunnel, Remembered)>> {
        let links = self.interfaces().await?;
        let read = |link: &LinkMessage| {
            let name = link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name),
                _ => None,
            })?;
            let tunnel = Tunnel { index: link.header.index, is_joined: is_veth(link) };
            Some((tunnel, Remembered::parse(name, alias(link), self.protocol)?))
        };
        Ok(links.iter().filter_map(read).collect())
    }

    /// Makes an interface; `false` when there is one of that name. The kernel takes an alias only later, but the group at once: so a
    /// crash leaves none that is not known.
    pub(crate) async fn make(&self, mut link: LinkMessage) -> Result<bool> {
        link.attributes.push(self.group());
        match Self::apart()?.link().add(link).execute().await {
            Err(error) if errno(&error) == Some(EXISTS) => Ok(false),
            done => done.map(|()| true).map_err(failed(|| "making a tunnel's interface".to_owned())),
        }
    }

    /// Of all interfaces that this agent has made.
    fn group(&self) -> LinkAttribute {
        LinkAttribute::Group(GROUPS + u32::from(u8::from(self.protocol)))
    }

    /// Removes what a crash has left that was made and not yet set up.
    pub(crate) async fn remove_unfinished(&self) -> Result<()> {
        for link in self.interfaces().await? {
            if link.attributes.contains(&self.group()) && !alias(&link).starts_with(IS_TUNNEL) {
                self.remove_interface(link.header.index).await?;
            }
        }
        Ok(())
    }

    async fn remove_interface(&self, index: u32) -> Result<()> {
        match Self::apart()?.link().del(index).execute().await {
            Err(error) if errno(&error) == Some(NO_SUCH_DEVICE) => Ok(()),
            done => done.map_err(failed(|| format!("removing the interface with index {index}"))),
        }
    }

    /// Sets a tunnel's interface up, with what it is known by.
    pub(crate) async fn set_tunnel(&self, remembered: &Remembered) -> Result<Tunnel> {
        let name = &remembered.name;
        let link = self.link(name).await?;
        let alias = LinkAttribute::IfAlias(remembered.alias(self.protocol));
        let change =
            quiet(link.header.index).mtu(INNER_MTU.into()).up().append_extra_attribute(alias).build();
        let done = self.handle.link().set(change).execute().await;
        done.map_err(failed(|| format!("setting up the tunnel {name}")))?;
        Ok(Tunnel { index: link.header.index, is_joined: is_veth(&link) })
    }

    /// Sets up the other one of two joined interfaces, both deaf to questions for neighbours.
    pub(crate) async fn set_joined(&self, name: &str) -> Result<()> {
        let outer = self.link(name).await?;
        let inner = self.index(&inner_name(name)).await?;
        let address = outer.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Address(address) => Some(address.clone()),
            _ => None,
        });
        for (index, mtu) in [(outer.header.index, INNER_MTU.into()), (inner, 1500)] {
            // Without questions each takes the other's link-layer address to be its own.
            let change = quiet(index).arp(false).mtu(mtu).address(address.clone().unwrap_or_default());
            let done = self.handle.link().set(change.up().build()).execute().await;
            done.map_err(failed(|| format!("setting up an end of the tunnel {name}")))?;
        }
        Ok(())
    }

    /// Nothing goes through a tunnel any more: what its peer sends takes another to that peer, if there is one.
    pub(crate) async fn close_tunnel(&self, (tunnel, remembered): &(Tunnel, Remembered)) -> Result<()> {
        let table = RuleAttribute::Table(tunnel.table(Table::OutOf));
        // First: what came out of it without the other rules would be for anybody.
        self.remove_rules(|rule| rule.attributes.contains(&table)).await?;
        let (outer, inner) = (&remembered.name, inner_name(&remembered.name));
        self.remove_rules(|rule| is_from(rule, outer) || is_from(rule, &inner)).await
    }

    /// Removes a closed tunnel; its routes go with it.
    pub(crate) async fn remove_tunnel(&self, tunnel: Tunnel) -> Result<()> {
        self.remove_interface(tunnel.index).await?;
        // Those are no interface's.
        let sources = RouteAttribute::Table(tunnel.table(Table::Sources));
        self.remove_routes(|route| route.attributes.contains(&sources)).await
    }

    /// Only packets whose source is allowed come out of this tunnel.
    pub(crate) async fn guard(&self, tunnel: Tunnel, name: &str) -> Result<()> {
        let table = tunnel.table(Table::Sources);
        self.route(table, everything(), Way::Nowhere).await?;
        self.look_up(name, table).await
    }

    /// Removes what these do not allow, from before a crash: of each tunnel's table the prefixes that may come by it.
    pub(crate) async fn forbid_but(&self, allowed: &HashSet<(u32, Ipv6Prefix)>) -> Result<()> {
        self.remove_routes(|route| {
            let table = route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Table(table) => Some(*table),
                _ => None,
            });
            let source = route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Source(RouteAddress::Inet6(address)) => Some(*address),
                _ => None,
            });
            let source = source.and_then(|source| Ipv6Prefix::new(source, route.header.source_prefix_length));
            let entry = table.zip(source);
            route.header.kind == RouteType::Throw && !entry.is_some_and(|entry| allowed.contains(&entry))
        })
        .await
    }

    /// Packets from this prefix may, or may not, come out of the tunnel.
    pub(crate) async fn allow(&self, tunnel: Tunnel, prefix: Ipv6Prefix, is_allowed: bool) -> Result<()> {
        let mut route = self.message(tunnel.table(Table::Sources), everything(), Some(Way::Onward));
        route.header.source_prefix_length = prefix.len();
        route.attributes.push(RouteAttribute::Source(RouteAddress::Inet6(prefix.address())));
        if is_allowed {
            self.set_route(route, || format!("{prefix} to what may come by a tunnel")).await
        } else {
            self.remove_route(route).await
        }
    }
}

fn is_veth(link: &LinkMessage) -> bool {
    let kind = |info: &LinkInfo| *info == LinkInfo::Kind(InfoKind::Veth);
    let of = |a: &LinkAttribute| matches!(a, LinkAttribute::LinkInfo(infos) if infos.iter().any(kind));
    link.attributes.iter().any(of)
}

/// No addresses of its own.
fn quiet(index: u32) -> rtnetlink::LinkMessageBuilder<LinkUnspec> {
    let mode = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
    LinkUnspec::new_with_index(index).append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![mode]))
}
