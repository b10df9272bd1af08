//! What the kernel is told through rtnetlink: links, addresses, routes and rules. All of it carries the agent's protocol
//! number, the gateway's address or an alias, so that a later start finds what a crash has left; nothing else is ever
//! touched.

mod care_of;
mod carrier;
mod doorway;
mod held;
mod ipv4;
mod segments;
mod tunnel;
mod variables;
mod way;

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use futures_util::{TryStream, TryStreamExt};
use mobility_proto::wire::Ipv6Prefix;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags};
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::neighbour::NeighbourState;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteType};
use rtnetlink::packet_route::rule::RuleMessage;
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute};
use rtnetlink::{AddressMessageBuilder, Handle, IpVersion, LinkUnspec, RouteMessageBuilder, RuleAddRequest};

use crate::error::LinkError;

pub(crate) use tunnel::{Remembered, inner_name};
pub(crate) use way::{Table, Tunnel, Way};

/// The address of every gateway on the link to a guest (RFC 6543 section 4).
pub(crate) const GATEWAY_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x200, 0x5eff, 0xfe00, 0x5213);
/// The link-layer address of every gateway there (RFC 6543 section 4).
pub(crate) const GATEWAY_LINK_LAYER: [u8; 6] = [0x00, 0x00, 0x5e, 0x00, 0x52, 0x13];

/// The origin of a gateway's routes and rules (rtnetlink(7): numbers over 4 are for the user).
pub(crate) const OF_GATEWAY: RouteProtocol = RouteProtocol::Other(213);
/// The origin of a home agent's.
pub(crate) const OF_HOME_AGENT: RouteProtocol = RouteProtocol::Other(214);
/// The origin of a mobile node's.
pub(crate) const OF_MOBILE_NODE: RouteProtocol = RouteProtocol::Other(215);
/// What comes from guests: all of it goes into the tunnel.
pub(crate) const FROM_GUESTS: u32 = 5213;
/// What this program gives to the kernel: to the guests.
pub(crate) const TO_GUESTS: u32 = 5214;
/// What comes from the home agent by a tunnel of the kernel: to the guests, or to this program.
pub(crate) const FROM_ANCHOR: u32 = 5215;
/// What a mobile node's own programs send: into the tunnel.
const HOME: u32 = 5216;
/// What is for its home agent: by the link.
const CARE_OF: u32 = 5217;
/// Where our rules stand among others: behind local addresses, before everything that is looked up by destination.
const PRIORITY: u32 = 5213;
pub(crate) const MAIN: u32 = 254;
/// How the alias of an interface begins whose link-layer address we have changed: behind it comes the address it had.
const REMEMBERS: &str = "longhaul: was ";

pub(crate) use carrier::{Answered, Carrier, Changes};

type Result<T, E = LinkError> = std::result::Result<T, E>;

/// A connection to the kernel, of one agent.
#[derive(Debug, Clone)]
pub(crate) struct Links {
    handle: Handle,
    /// The origin of its routes and rules.
    protocol: RouteProtocol,
}

impl Links {
    pub(crate) fn connect(protocol: RouteProtocol) -> std::io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        // Ends when the last clone of the handle is dropped.
        tokio::spawn(connection);
        Ok(Self { handle, protocol })
    }

    /// A connection for a request that makes or removes an interface: on a busy machine the kernel takes seconds for that, and
    /// who asks by the same connection waits, as does the thread that serves it.
    fn apart() -> Result<Handle> {
        let connecting = failed(|| "connecting to the kernel".to_owned());
        let (connection, handle, _) = rtnetlink::new_connection().map_err(connecting)?;
        let runtime = tokio::runtime::Handle::current();
        tokio::task::spawn_blocking(move || runtime.block_on(connection));
        Ok(handle)
    }

    pub(crate) async fn index(&self, name: &str) -> Result<u32> {
        Ok(self.link(name).await?.header.index)
    }

    async fn link(&self, name: &str) -> Result<LinkMessage> {
        let found = self.handle.link().get().match_name(name).execute().try_next().await;
        let missing = || rtnetlink::Error::RequestFailed;
        found
            .and_then(|link| link.ok_or_else(missing))
            .map_err(failed(|| format!("finding interface {name}")))
    }

    /// Sets the link up with this MTU.
    pub(crate) async fn up(&self, index: u32, mtu: u32) -> Result<()> {
        let link = LinkUnspec::new_with_index(index).mtu(mtu).up().build();
        let done = self.handle.link().set(link).execute().await;
        done.map_err(failed(|| format!("setting interface {index} up")))
    }

    /// What is for `prefix` goes this way, in one step whatever way it went before.
    pub(crate) async fn route(&self, table: u32, prefix: Ipv6Prefix, way: Way) -> Result<()> {
        self.set_route(self.message(table, prefix, Some(way)), || format!("a route for {prefix}")).await
    }

    /// What is for `prefix` does not go that way any more.
    pub(crate) async fn unroute(&self, table: u32, prefix: Ipv6Prefix) -> Result<()> {
        self.remove_route(self.message(table, prefix, None)).await
    }

    /// What comes in by this interface is looked up in that table first.
    pub(crate) async fn look_up(&self, name: &str, table: u32) -> Result<()> {
        self.rule(|rule| rule.input_interface(name).table_id(table).action(RuleAction::ToTable), PRIORITY)
            .await
    }

    /// Makes this interface the link between a guest with `prefix` and its gateway.
    pub(crate) async fn attach_guest(&self, name: &str, prefix: Ipv6Prefix) -> Result<u32> {
        let link = self.link(name).await?;
        let index = link.header.index;
        let mut change = LinkUnspec::new_with_index(index).address(GATEWAY_LINK_LAYER.to_vec()).up();
        if let Some(alias) = remembering(&link, GATEWAY_LINK_LAYER) {
            change = change.append_extra_attribute(LinkAttribute::IfAlias(alias));
        }
        let link = change.build();
        let done = self.handle.link().set(link).execute().await;
        done.map_err(failed(|| format!("giving {name} the link-layer address of a gateway")))?;
        let mut address = self.handle.address().add(index, GATEWAY_LINK_LOCAL.into(), 64).replace();
        // Every gateway has it, and no two are on one link: nothing to be detected.
        address.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        address.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        let done = address.execute().await;
        done.map_err(failed(|| format!("giving {name} the address of a gateway")))?;
        self.route(TO_GUESTS, prefix, Way::Interface(index)).await?;
        // What is right already stays: a guest may be sending.
        self.remove_rules(|rule| {
            let source = RuleAttribute::Source(prefix.address().into());
            let is_right = rule.header.src_len == prefix.len() && rule.attributes.contains(&source);
            is_from(rule, name) && rule.header.src_len > 0 && !is_right
        })
        .await?;
        self.rule(
            |rule| {
                let rule = rule.input_interface(name).source_prefix(prefix.address(), prefix.len());
                rule.table_id(FROM_GUESTS).action(RuleAction::ToTable)
            },
            PRIORITY,
        )
        .await?;
        // Behind that one: a guest sends as itself or not at all. In the tunnel nobody could tell it from another guest here.
        self.rule(|rule| rule.input_interface(name).action(RuleAction::Blackhole), PRIORITY + 1).await?;
        // What this host itself tells a guest, as that a packet is too long. By way of the home agent it would come to nothing: an
        // ip6tnl takes a packet whose source is the tunnel's other end for one that goes in circles.
        self.rule(
            |rule| {
                let rule = rule.input_interface(OWN).destination_prefix(prefix.address(), prefix.len());
                rule.table_id(TO_GUESTS).action(RuleAction::ToTable)
            },
            PRIORITY + 2,
        )
        .await?;
        Ok(index)
    }

    /// Tells the kernel the link-layer address of a guest's address, so that no packet waits for it to be found.
    pub(crate) async fn neighbour(&self, index: u32, address: Ipv6Addr, link_layer: [u8; 6]) -> Result<()> {
        let address = address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4);
        let add = self.handle.neighbours().add(index, address).link_layer_address(&link_layer);
        // As found just now: from here on the kernel looks itself whether it is still so.
        let done = add.state(NeighbourState::Reachable).replace().execute().await;
        done.map_err(failed(|| format!("telling the kernel where {address} is")))
    }

    /// Takes back what [`attach_guest`](Self::attach_guest) did; the interface may be gone already.
    pub(crate) async fn detach_guest(&self, name: &str, prefix: Ipv6Prefix) -> Result<()> {
        self.remove_rules(|rule| is_from(rule, name) || destination_of(rule) == Some(prefix)).await?;
        let Ok(index) = self.index(name).await else { return Ok(()) };
        let _ = self.unroute(TO_GUESTS, prefix).await;
        self.remove_gateway_address(|other| other == index).await?;
        self.restore_link_layer(|link| link.header.index == index).await
    }

    /// Removes all that is ours.
    pub(crate) async fn clear(&self) -> Result<()> {
        for (tunnel, _) in self.tunnels().await? {
            self.remove_tunnel(tunnel).await?;
        }
        self.remove_rules(|_| true).await?;
        self.remove_routes(|_| true).await
    }

    /// Removes all that is ours, a gateway's.
    pub(crate) async fn clear_gateway(&self) -> Result<()> {
        self.clear().await?;
        self.remove_gateway_address(|_| true).await?;
        self.restore_link_layer(|_| true).await
    }

    /// Removes what is for guests at other interfaces than these, and with other prefixes and IPv4 addresses.
    pub(crate) async fn clear_guests_but(
        &self,
        keep: &HashSet<String>,
        prefixes: &HashSet<Ipv6Prefix>,
    ) -> Result<()> {
        let mut indices = HashSet::new();
        for name in keep {
            indices.extend(self.index(name).await.ok());
        }
        self.remove_rules(|rule| match input_of(rule) {
            Some(OWN) => !destination_of(rule).is_some_and(|to| prefixes.contains(&to)),
            input => input.is_some_and(|input| !keep.contains(input)),
        })
        .await?;
        self.remove_routes(|route| {
            let is_out =
                |a: &RouteAttribute| matches!(a, RouteAttribute::Oif(index) if indices.contains(index));
            route.header.kind == RouteType::Unicast && !route.attributes.iter().any(is_out)
        })
        .await?;
        self.remove_gateway_address(|index| !indices.contains(&index)).await?;
        self.restore_link_layer(|link| !indices.contains(&link.header.index)).await
    }

    /// Removes routes of the main table for other prefixes than are kept.
    pub(crate) async fn unroute_but(&self, is_kept: impl Fn(Ipv6Prefix) -> bool) -> Result<()> {
        self.remove_routes(|route| {
            let len = route.header.destination_prefix_length;
            let prefix = route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Destination(RouteAddress::Inet6(address)) => Ipv6Prefix::new(*address, len),
                RouteAttribute::Destination(RouteAddress::Inet(address)) => {
                    Ipv6Prefix::of_ipv4(*address, len)
                }
                _ => None,
            });
            u32::from(route.header.table) == MAIN && prefix.is_some_and(|prefix| !is_kept(prefix))
        })
        .await
    }

    /// Removes those routes of this agent.
    pub(crate) async fn remove_routes(&self, those: impl Fn(&RouteMessage) -> bool) -> Result<()> {
        let of_ipv4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let mut routes = Vec::new();
        for all in [RouteMessageBuilder::<Ipv6Addr>::new().build(), of_ipv4] {
            routes.extend(listed("listing routes", || self.handle.route().get(all.clone()).execute()).await?);
        }
        let ours = |route: &RouteMessage| route.header.protocol == self.protocol;
        for route in routes.into_iter().filter(|route| ours(route) && those(route)) {
            // One that went with its interface is gone.
            let _ = self.handle.route().del(route).execute().await;
        }
        Ok(())
    }

    async fn interfaces(&self) -> Result<Vec<LinkMessage>> {
        listed("listing interfaces", || self.handle.link().get().execute()).await
    }

    async fn restore_link_layer(&self, of: impl Fn(&LinkMessage) -> bool) -> Result<()> {
        let links = self.interfaces().await?;
        for link in links.into_iter().filter(of) {
            let Some((address, alias)) = remembered(&link) else { continue };
            let index = link.header.index;
            self.open_doorway(index).await;
            variables::answer_no_more(&link);
            let change = LinkUnspec::new_with_index(index)
                .address(address.to_vec())
                .append_extra_attribute(LinkAttribute::IfAlias(alias))
                .build();
            let done = self.handle.link().set(change).execute().await;
            done.map_err(failed(|| format!("giving interface {index} its link-layer address back")))?;
        }
        Ok(())
    }

    async fn remove_gateway_address(&self, from: impl Fn(u32) -> bool) -> Result<()> {
        let ask = || self.handle.address().get().set_address_filter(GATEWAY_LINK_LOCAL.into()).execute();
        let found = listed("listing addresses", ask).await?;
        for address in found.into_iter().filter(|address| from(address.header.index)) {
            let message = AddressMessageBuilder::<Ipv6Addr>::new()
                .index(address.header.index)
                .address(GATEWAY_LINK_LOCAL, 64)
                .build();
            let _ = self.handle.address().del(message).execute().await;
        }
        Ok(())
    }

    /// Adds a rule, unless it is there.
    async fn rule(
        &self,
        with: impl FnOnce(RuleAddRequest<Ipv6Addr>) -> RuleAddRequest<Ipv6Addr>,
        priority: u32,
    ) -> Result<()> {
        self.add_rule(with(self.handle.rule().add().v6().priority(priority))).await
    }

    async fn add_rule<Version>(&self, mut rule: RuleAddRequest<Version>) -> Result<()> {
        rule.message_mut().attributes.push(RuleAttribute::Protocol(self.protocol));
        match rule.execute().await {
            Err(error) if errno(&error) == Some(EXISTS) => Ok(()),
            done => done.map_err(failed(|| "adding a rule".to_owned())),
        }
    }

    async fn remove_rules(&self, of: impl Fn(&RuleMessage) -> bool) -> Result<()> {
        let mut rules = Vec::new();
        for version in [IpVersion::V6, IpVersion::V4] {
            let ask = || self.handle.rule().get(version.clone()).execute();
            rules.extend(listed("listing rules", ask).await?);
        }
        for rule in rules {
            if rule.attributes.contains(&RuleAttribute::Protocol(self.protocol)) && of(&rule) {
                let done = self.handle.rule().del(rule).execute().await;
                done.map_err(failed(|| "removing a rule".to_owned()))?;
            }
        }
        Ok(())
    }

    async fn set_route(&self, route: RouteMessage, what: impl FnOnce() -> String) -> Result<()> {
        let done = self.handle.route().add(route).replace().execute().await;
        done.map_err(failed(|| format!("adding {}", what())))
    }

    /// It may be gone already.
    async fn remove_route(&self, route: RouteMessage) -> Result<()> {
        match self.handle.route().del(route).execute().await {
            Err(error) if errno(&error) == Some(NO_SUCH_ROUTE) => Ok(()),
            done => done.map_err(failed(|| "removing a route".to_owned())),
        }
    }

    fn message(&self, table: u32, prefix: Ipv6Prefix, way: Option<Way>) -> RouteMessage {
        if let Some(prefix) = prefix.as_ipv4() {
            return self.ipv4_message(table, prefix, way);
        }
        let route = RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(prefix.address(), prefix.len())
            .protocol(self.protocol)
            .table_id(table);
        let mut route = match way {
            None => route,
            Some(Way::Interface(index)) => route.output_interface(index),
            Some(Way::Held(index, nobody)) => route.output_interface(index).gateway(nobody),
            Some(Way::Tunnel(tunnel)) => tunnel.via(route),
            Some(Way::Nowhere) => route.kind(RouteType::BlackHole),
            Some(Way::Onward) => route.kind(RouteType::Throw),
        }
        .build();
        route.header.address_family = AddressFamily::Inet6;
        route
    }
}

/// What this host itself sends seems to come in here.
const OWN: &str = "lo";

/// The whole of IPv6.
pub(crate) fn everything() -> Ipv6Prefix {
    Ipv6Prefix::new(Ipv6Addr::UNSPECIFIED, 0).expect("0 is a length")
}

/// What errno.h says.
const NO_SUCH_ROUTE: i32 = 3;
const EXISTS: i32 = 17;
const BUSY: i32 = 16;
const NO_SUCH_DEVICE: i32 = 19;

/// All that the kernel has of a kind. It makes one list at a time for a socket, and says that it is busy while another task of
/// ours is reading one.
async fn listed<T, S>(what: &str, ask: impl Fn() -> S) -> Result<Vec<T>>
where
    S: TryStream<Ok = T, Error = rtnetlink::Error>,
{
    const TRIES: u32 = 100;
    const BETWEEN: Duration = Duration::from_millis(20);
    for _ in 1..TRIES {
        match ask().try_collect().await {
            Err(error) if errno(&error) == Some(BUSY) => {}
            list => return list.map_err(failed(|| what.to_owned())),
        }
        tokio::time::sleep(BETWEEN).await;
    }
    ask().try_collect().await.map_err(failed(|| what.to_owned()))
}

fn errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => Some(-message.raw_code()),
        _ => None,
    }
}

fn input_of(rule: &RuleMessage) -> Option<&str> {
    rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Iifname(name) => Some(name.as_str()),
        _ => None,
    })
}

fn is_from(rule: &RuleMessage, name: &str) -> bool {
    input_of(rule) == Some(name)
}

/// What a rule is for; an IPv4 address as a prefix of those that are mapped.
fn destination_of(rule: &RuleMessage) -> Option<Ipv6Prefix> {
    let len = rule.header.dst_len;
    rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Destination(IpAddr::V6(address)) => Ipv6Prefix::new(*address, len),
        RuleAttribute::Destination(IpAddr::V4(address)) => Ipv6Prefix::of_ipv4(*address, len),
        _ => None,
    })
}

/// The alias under which an interface remembers, also over a crash of ours, the link-layer address that it is about to lose
/// to `gateway`; `None` when it has no such address or remembers already.
fn remembering(link: &LinkMessage, gateway: [u8; 6]) -> Option<String> {
    let address = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(address) => <[u8; 6]>::try_from(address.as_slice()).ok(),
        _ => None,
    })?;
    let octets = address.map(|octet| format!("{octet:02x}")).join(":");
    let alias = alias(link);
    (address != gateway && !alias.starts_with(REMEMBERS)).then(|| format!("{REMEMBERS}{octets} {alias}"))
}

/// The link-layer address that an interface remembers, and the alias that it had before.
fn remembered(link: &LinkMessage) -> Option<([u8; 6], String)> {
    let (octets, before) = alias(link).strip_prefix(REMEMBERS)?.split_once(' ')?;
    let octets: Vec<u8> = octets
        .split(':')
        .map(|octet| u8::from_str_radix(octet, 16))
        .collect::<std::result::Result<_, _>>()
        .ok()?;
    Some((octets.try_into().ok()?, before.to_owned()))
}

fn alias(link: &LinkMessage) -> &str {
    let alias = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfAlias(alias) => Some(alias.as_str()),
        _ => None,
    });
    alias.unwrap_or_default()
}

fn failed<E>(what: impl FnOnce() -> String) -> impl FnOnce(E) -> LinkError
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    move |source| LinkError { what: what(), source: source.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_remembers_its_link_layer_address_and_its_alias() {
        for before in ["", "the alias of somebody else"] {
            let mut link = LinkMessage::default();
            assert_eq!(remembering(&link, GATEWAY_LINK_LAYER), None);
            link.attributes.push(LinkAttribute::Address(vec![2, 0, 0, 0, 0, 0xab]));
            link.attributes.push(LinkAttribute::IfAlias(before.to_owned()));
            assert_eq!(remembered(&link), None);
            let alias = remembering(&link, GATEWAY_LINK_LAYER).unwrap();
            link.attributes[1] = LinkAttribute::IfAlias(alias);
            assert_eq!(remembering(&link, GATEWAY_LINK_LAYER), None);
            assert_eq!(remembered(&link), Some(([2, 0, 0, 0, 0, 0xab], before.to_owned())));
        }
    }
}
