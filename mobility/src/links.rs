//! What the kernel is told through rtnetlink: links, addresses, routes and rules. All of it carries [`PROTOCOL`] or the
//! gateway's address, so that a later start finds what a crash has left; nothing else is ever touched.

mod care_of;
mod carrier;

use std::net::Ipv6Addr;

use futures_util::TryStreamExt;
use mobility_proto::wire::Ipv6Prefix;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags};
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::neighbour::NeighbourState;
use rtnetlink::packet_route::route::{RouteMessage, RouteProtocol};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute};
use rtnetlink::{AddressMessageBuilder, Handle, IpVersion, LinkUnspec, RouteMessageBuilder, RuleAddRequest};

/// The address of every gateway on the link to a guest (RFC 6543 section 4).
pub(crate) const GATEWAY_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x200, 0x5eff, 0xfe00, 0x5213);
/// The link-layer address of every gateway there (RFC 6543 section 4).
pub(crate) const GATEWAY_LINK_LAYER: [u8; 6] = [0x00, 0x00, 0x5e, 0x00, 0x52, 0x13];

/// The origin of our routes and rules (rtnetlink(7): numbers over 4 are for the user).
const PROTOCOL: RouteProtocol = RouteProtocol::Other(213);
/// What comes from guests: all of it goes into the tunnel.
const FROM_GUESTS: u32 = 5213;
/// What comes out of the tunnel: to the guests.
const TO_GUESTS: u32 = 5214;
/// What a mobile node's own programs send: into the tunnel.
const HOME: u32 = 5215;
/// What is for its home agent: by the link.
const CARE_OF: u32 = 5216;
/// Where our rules stand among others: behind local addresses, before everything that is looked up by destination.
const PRIORITY: u32 = 5213;
const MAIN: u32 = 254;
/// How the alias of an interface begins whose link-layer address we have changed: behind it comes the address it had.
const REMEMBERS: &str = "longhaul: was ";

/// The kernel did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct LinkError {
    /// What was asked for.
    pub(crate) what: String,
    /// The kernel's reason.
    #[source]
    pub(crate) source: rtnetlink::Error,
}

pub(crate) use carrier::{Answered, Carrier, Changes};

type Result<T> = std::result::Result<T, LinkError>;

/// A connection to the kernel.
#[derive(Debug, Clone)]
pub(crate) struct Links(Handle);

impl Links {
    pub(crate) fn connect() -> std::io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self(handle))
    }

    pub(crate) async fn index(&self, name: &str) -> Result<u32> {
        Ok(self.link(name).await?.header.index)
    }

    async fn link(&self, name: &str) -> Result<LinkMessage> {
        let found = self.0.link().get().match_name(name).execute().try_next().await;
        let missing = || rtnetlink::Error::RequestFailed;
        found
            .and_then(|link| link.ok_or_else(missing))
            .map_err(failed(|| format!("finding interface {name}")))
    }

    /// Sets the link up with this MTU.
    pub(crate) async fn up(&self, index: u32, mtu: u32) -> Result<()> {
        let link = LinkUnspec::new_with_index(index).mtu(mtu).up().build();
        let done = self.0.link().set(link).execute().await;
        done.map_err(failed(|| format!("setting interface {index} up")))
    }

    /// What is for `prefix` goes to this interface.
    pub(crate) async fn route(&self, prefix: Ipv6Prefix, index: u32) -> Result<()> {
        let route = route_to(prefix, index, MAIN);
        let done = self.0.route().add(route).replace().execute().await;
        done.map_err(failed(|| format!("adding a route for {prefix}")))
    }

    /// Makes the tunnel interface the one between the guests and the world.
    pub(crate) async fn attach_tunnel(&self, name: &str, index: u32) -> Result<()> {
        let all = Ipv6Prefix::new(Ipv6Addr::UNSPECIFIED, 0).expect("0 is a length");
        let done = self.0.route().add(route_to(all, index, FROM_GUESTS)).replace().execute().await;
        done.map_err(failed(|| format!("adding the route of guests into {name}")))?;
        self.remove_rules(|other| other == name).await?;
        self.rule(name, PRIORITY, |rule| rule.table_id(TO_GUESTS).action(RuleAction::ToTable)).await
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
        let done = self.0.link().set(link).execute().await;
        done.map_err(failed(|| format!("giving {name} the link-layer address of a gateway")))?;
        let mut address = self.0.address().add(index, GATEWAY_LINK_LOCAL.into(), 64).replace();
        // Every gateway has it, and no two are on one link: nothing to be detected.
        address.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        address.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        let done = address.execute().await;
        done.map_err(failed(|| format!("giving {name} the address of a gateway")))?;
        let done = self.0.route().add(route_to(prefix, index, TO_GUESTS)).replace().execute().await;
        done.map_err(failed(|| format!("adding a route for {prefix} to {name}")))?;
        self.remove_rules(|other| other == name).await?;
        self.rule(name, PRIORITY, |rule| {
            let rule = rule.source_prefix(prefix.address(), prefix.len());
            rule.table_id(FROM_GUESTS).action(RuleAction::ToTable)
        })
        .await?;
        // Behind that one: a guest sends as itself or not at all. In the tunnel nobody could tell it from another guest here.
        self.rule(name, PRIORITY + 1, |rule| rule.action(RuleAction::Blackhole)).await?;
        Ok(index)
    }

    /// Tells the kernel the link-layer address of a guest's address, so that no packet waits for it to be found.
    pub(crate) async fn neighbour(&self, index: u32, address: Ipv6Addr, link_layer: [u8; 6]) -> Result<()> {
        let add = self.0.neighbours().add(index, address.into()).link_layer_address(&link_layer);
        // As found just now: from here on the kernel looks itself whether it is still so.
        let done = add.state(NeighbourState::Reachable).replace().execute().await;
        done.map_err(failed(|| format!("telling the kernel where {address} is")))
    }

    /// Takes back what [`attach_guest`](Self::attach_guest) did; the interface may be gone already.
    pub(crate) async fn detach_guest(&self, name: &str, prefix: Ipv6Prefix) -> Result<()> {
        self.remove_rules(|input| input == name).await?;
        let Ok(index) = self.index(name).await else { return Ok(()) };
        let _ = self.0.route().del(route_to(prefix, index, TO_GUESTS)).execute().await;
        self.remove_gateway_address(Some(index)).await?;
        self.restore_link_layer(|link| link.header.index == index).await
    }

    /// Removes all that is ours.
    pub(crate) async fn clear(&self) -> Result<()> {
        self.remove_rules(|_| true).await?;
        let all = RouteMessageBuilder::<Ipv6Addr>::new().build();
        let routes: Vec<RouteMessage> = self
            .0
            .route()
            .get(all)
            .execute()
            .try_collect()
            .await
            .map_err(failed(|| "listing routes".to_owned()))?;
        for route in routes.into_iter().filter(|route| route.header.protocol == PROTOCOL) {
            // One that went with its interface is gone.
            let _ = self.0.route().del(route).execute().await;
        }
        self.remove_gateway_address(None).await?;
        self.restore_link_layer(|_| true).await
    }

    async fn restore_link_layer(&self, of: impl Fn(&LinkMessage) -> bool) -> Result<()> {
        let links: Vec<LinkMessage> = self
            .0
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(failed(|| "listing interfaces".to_owned()))?;
        for link in links.into_iter().filter(of) {
            let Some((address, alias)) = remembered(&link) else { continue };
            let index = link.header.index;
            let change = LinkUnspec::new_with_index(index)
                .address(address.to_vec())
                .append_extra_attribute(LinkAttribute::IfAlias(alias))
                .build();
            let done = self.0.link().set(change).execute().await;
            done.map_err(failed(|| format!("giving interface {index} its link-layer address back")))?;
        }
        Ok(())
    }

    async fn remove_gateway_address(&self, index: Option<u32>) -> Result<()> {
        let list = self.0.address().get().set_address_filter(GATEWAY_LINK_LOCAL.into()).execute();
        let found: Vec<_> = list.try_collect().await.map_err(failed(|| "listing addresses".to_owned()))?;
        for address in
            found.into_iter().filter(|address| index.is_none_or(|index| address.header.index == index))
        {
            let message = AddressMessageBuilder::<Ipv6Addr>::new()
                .index(address.header.index)
                .address(GATEWAY_LINK_LOCAL, 64)
                .build();
            let _ = self.0.address().del(message).execute().await;
        }
        Ok(())
    }

    /// What is done with what comes in by this interface.
    async fn rule(
        &self,
        input: &str,
        priority: u32,
        with: impl FnOnce(RuleAddRequest<Ipv6Addr>) -> RuleAddRequest<Ipv6Addr>,
    ) -> Result<()> {
        let mut rule = with(self.0.rule().add().v6().input_interface(input).priority(priority));
        rule.message_mut().attributes.push(RuleAttribute::Protocol(PROTOCOL));
        let done = rule.execute().await;
        done.map_err(failed(|| format!("adding a rule for what comes from {input}")))
    }

    async fn remove_rules(&self, of: impl Fn(&str) -> bool) -> Result<()> {
        let list = self.0.rule().get(IpVersion::V6).execute();
        let rules: Vec<_> = list.try_collect().await.map_err(failed(|| "listing rules".to_owned()))?;
        for rule in rules {
            let is_ours = rule.attributes.contains(&RuleAttribute::Protocol(PROTOCOL));
            let is_of = rule.attributes.iter().any(|a| matches!(a, RuleAttribute::Iifname(name) if of(name)));
            if is_ours && is_of {
                self.0.rule().del(rule).execute().await.map_err(failed(|| "removing a rule".to_owned()))?;
            }
        }
        Ok(())
    }
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

fn route_to(prefix: Ipv6Prefix, index: u32, table: u32) -> RouteMessage {
    let mut route = RouteMessageBuilder::<Ipv6Addr>::new()
        .destination_prefix(prefix.address(), prefix.len())
        .output_interface(index)
        .protocol(PROTOCOL)
        .table_id(table)
        .build();
    route.header.address_family = AddressFamily::Inet6;
    route
}

fn failed(what: impl FnOnce() -> String) -> impl FnOnce(rtnetlink::Error) -> LinkError {
    move |source| LinkError { what: what(), source }
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
