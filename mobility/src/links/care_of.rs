//! What the kernel of a mobile node is told: its home address is on the tunnel interface and used wherever a program does not
//! ask for another; what is for the home agent goes out by the link, from the care-of address. Other routes stay as they
//! are.

use std::net::Ipv6Addr;

use mobility_proto::discovery::Router;
use mobility_proto::wire::Ipv6Prefix;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags};
use rtnetlink::packet_route::rule::{RuleAction, RuleFlags};
use rtnetlink::{AddressMessageBuilder, RouteMessageBuilder, RuleAddRequest};

use super::{CARE_OF, HOME, Links, OWN, PRIORITY, Result, Way, failed};

/// A rule with this flag is for packets whose source is not chosen yet, too, if it would be chosen as the rule says
/// (linux/fib_rules.h, FIB_RULE_FIND_SADDR).
const FIND_SOURCE: RuleFlags = RuleFlags::from_bits_retain(0x0001_0000);

impl Links {
    /// Puts the home address on the tunnel interface, and what is from there into the tunnel.
    pub(crate) async fn attach_home(&self, tunnel: u32, home: Ipv6Addr, home_agent: Ipv6Addr) -> Result<()> {
        self.add_address(tunnel, home).await?;
        let all = Ipv6Prefix::new(Ipv6Addr::UNSPECIFIED, 0).expect("0 is a length");
        self.route(HOME, all, Way::Interface(tunnel)).await?;
        let own = |rule: RuleAddRequest<Ipv6Addr>, table| {
            rule.input_interface(OWN).table_id(table).action(RuleAction::ToTable)
        };
        self.rule(|rule| own(rule, HOME).source_prefix(home, 128), PRIORITY).await?;
        self.rule(|rule| own(rule, CARE_OF).destination_prefix(home_agent, 128), PRIORITY + 1).await?;
        let any_source = |rule| {
            let mut rule = own(rule, HOME).source_prefix(home, 128);
            rule.message_mut().header.flags |= FIND_SOURCE;
            rule
        };
        self.rule(any_source, PRIORITY + 2).await
    }

    /// The link's router and care-of address from now on: the only way to the home agent.
    pub(crate) async fn attach_care_of(&self, index: u32, care_of: Ipv6Addr, router: &Router) -> Result<()> {
        if let Some(link_layer) = router.link_layer {
            self.neighbour(index, router.address, link_layer).await?;
        }
        self.add_address(index, care_of).await?;
        let route = RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(Ipv6Addr::UNSPECIFIED, 0)
            .gateway(router.address)
            .output_interface(index)
            .pref_source(care_of)
            .protocol(self.protocol)
            .table_id(CARE_OF)
            .build();
        self.set_route(route, || format!("the route to the home agent by {}", router.address)).await
    }

    /// Takes a care-of address back, which may be gone already.
    pub(crate) async fn remove_care_of(&self, index: u32, care_of: Ipv6Addr) {
        let message = AddressMessageBuilder::<Ipv6Addr>::new().index(index).address(care_of, 128).build();
        let _ = self.handle.address().del(message).execute().await;
    }

    /// An address that nobody else has, to be used at once.
    async fn add_address(&self, index: u32, address: Ipv6Addr) -> Result<()> {
        let mut add = self.handle.address().add(index, address.into(), 128).replace();
        add.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        add.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        add.execute().await.map_err(failed(|| format!("adding the address {address}")))
    }
}
