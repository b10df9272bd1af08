//! What the kernel is told for guests' IPv4 addresses. Their packets all pass through this program, whatever carries those of
//! IPv6. A guest is set up as in any network, with whichever router it likes: on its link the kernel answers for all addresses but
//! its own (proxy ARP), with the link-layer address that every gateway has. So its router never changes when it moves.

use std::net::{IpAddr, Ipv4Addr};

use mobility_proto::wire::Ipv6Prefix;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{RouteMessage, RouteScope, RouteType};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

use super::variables::set;
use super::way::Way;
use super::{FROM_GUESTS, Links, OWN, PRIORITY, Result, TO_GUESTS, is_from};
use crate::checks::{check_ipv4_forwarding, check_reverse_path};
use crate::error::AgentError;

const ALL: (Ipv4Addr, u8) = (Ipv4Addr::UNSPECIFIED, 0);

impl Links {
    /// What comes from guests goes to this program, and from there to guests.
    pub(crate) async fn carry_ipv4(&self, (name, index): (&str, u32)) -> Result<(), AgentError> {
        check_ipv4_forwarding()?;
        check_reverse_path()?;
        set("ipv4/conf", name, "rp_filter", "0")?;
        let all = self.ipv4_message(FROM_GUESTS, ALL, Some(Way::Interface(index)));
        self.set_route(all, || "a route for guests' IPv4 packets".to_owned()).await?;
        let rule = self.handle.rule().add().v4().priority(PRIORITY).input_interface(name);
        Ok(self.add_rule(rule.table_id(TO_GUESTS).action(RuleAction::ToTable)).await?)
    }

    /// Makes this interface the link between a guest with this IPv4 address and its gateway.
    pub(crate) async fn attach_ipv4(
        &self,
        (name, index): (&str, u32),
        address: Ipv4Addr,
    ) -> Result<(), AgentError> {
        let host = Ipv6Prefix::of_ipv4(address, 32).expect("32 is a length");
        self.route(TO_GUESTS, host, Way::Interface(index)).await?;
        // Of an address that it had before a restart.
        self.remove_rules(|rule| is_from(rule, name) && address_of(rule).is_some_and(|of| of != address))
            .await?;
        let rule = |priority| self.handle.rule().add().v4().priority(priority);
        // Nobody answers for its own address.
        let itself = rule(PRIORITY - 1).input_interface(name).destination_prefix(address, 32);
        self.add_rule(itself.action(RuleAction::Blackhole)).await?;
        let own = rule(PRIORITY).input_interface(name).source_prefix(address, 32);
        self.add_rule(own.table_id(FROM_GUESTS).action(RuleAction::ToTable)).await?;
        self.add_rule(rule(PRIORITY + 1).input_interface(name).action(RuleAction::Blackhole)).await?;
        // That a packet is too long is told by this host; and a source is looked for where it would be sent to.
        let to = rule(PRIORITY + 2).input_interface(OWN).destination_prefix(address, 32);
        self.add_rule(to.table_id(TO_GUESTS).action(RuleAction::ToTable)).await?;
        set("ipv4/neigh", name, "proxy_delay", "0")?;
        set("ipv4/conf", name, "proxy_arp", "1")
    }

    /// Takes back what [`attach_ipv4`](Self::attach_ipv4) did, but for what goes with rules and settings of the interface.
    pub(crate) async fn detach_ipv4(&self, address: Ipv4Addr) -> Result<()> {
        self.remove_rules(|rule| address_of(rule) == Some(address)).await?;
        self.unroute(TO_GUESTS, Ipv6Prefix::of_ipv4(address, 32).expect("32 is a length")).await
    }

    pub(super) fn ipv4_message(&self, table: u32, to: (Ipv4Addr, u8), way: Option<Way>) -> RouteMessage {
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(to.0, to.1)
            .protocol(self.protocol)
            .table_id(table);
        let mut route = match way {
            None => route.scope(RouteScope::NoWhere),
            Some(Way::Interface(index)) => route.output_interface(index).scope(RouteScope::Link),
            // A tunnel of the kernel carries IPv6.
            Some(Way::Nowhere | Way::Tunnel(_) | Way::Held(..)) => route.kind(RouteType::BlackHole),
            Some(Way::Onward) => route.kind(RouteType::Throw),
        }
        .build();
        route.header.address_family = AddressFamily::Inet;
        route
    }
}

/// The one address that a rule of IPv4 is about.
pub(super) fn address_of(rule: &RuleMessage) -> Option<Ipv4Addr> {
    rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Source(IpAddr::V4(address)) | RuleAttribute::Destination(IpAddr::V4(address)) => {
            Some(*address)
        }
        _ => None,
    })
}
