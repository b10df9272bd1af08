//! What the kernel is told through rtnetlink: links, addresses, routes and rules. All of it carries [`PROTOCOL`] or the
//! gateway's address, so that a later start finds what a crash has left; nothing else is ever touched.

use std::net::Ipv6Addr;

use futures_util::TryStreamExt;
use mobility_proto::wire::Ipv6Prefix;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags};
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::route::{RouteMessage, RouteProtocol};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute};
use rtnetlink::{AddressMessageBuilder, Handle, IpVersion, LinkUnspec, RouteMessageBuilder};

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
const MAIN: u32 = 254;

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
        let found = self.0.link().get().match_name(name).execute().try_next().await;
        let missing = || rtnetlink::Error::RequestFailed;
        let link: LinkMessage = found
            .and_then(|link| link.ok_or_else(missing))
            .map_err(failed(|| format!("finding interface {name}")))?;
        Ok(link.header.index)
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
        self.rule(name, TO_GUESTS).await
    }

    /// Makes this interface the link between a guest with `prefix` and its gateway.
    pub(crate) async fn attach_guest(&self, name: &str, prefix: Ipv6Prefix) -> Result<u32> {
        let index = self.index(name).await?;
        let link = LinkUnspec::new_with_index(index).address(GATEWAY_LINK_LAYER.to_vec()).up().build();
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
        self.rule(name, FROM_GUESTS).await?;
        Ok(index)
    }

    /// Takes back what [`attach_guest`](Self::attach_guest) did; the interface may be gone already.
    pub(crate) async fn detach_guest(&self, name: &str, prefix: Ipv6Prefix) -> Result<()> {
        self.remove_rules(|input| input == name).await?;
        let Ok(index) = self.index(name).await else { return Ok(()) };
        let _ = self.0.route().del(route_to(prefix, index, TO_GUESTS)).execute().await;
        self.remove_gateway_address(Some(index)).await
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
        self.remove_gateway_address(None).await
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

    /// What comes in by this interface is looked up in this table, before any other but that of local addresses.
    async fn rule(&self, input: &str, table: u32) -> Result<()> {
        self.remove_rules(|other| other == input).await?;
        let mut rule =
            self.0.rule().add().v6().input_interface(input).table_id(table).action(RuleAction::ToTable);
        rule = rule.priority(FROM_GUESTS);
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
