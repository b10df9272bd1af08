//! Routes and rules of segment routing (linux/seg6_iptunnel.h, linux/seg6_local.h), and the address that it takes.

use std::net::Ipv6Addr;
use std::time::Duration;

use futures_util::TryStreamExt;
use mobility_proto::wire::Ipv6Prefix;
use rtnetlink::packet_route::IpProtocol;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, CacheInfo,
};
use rtnetlink::packet_route::route::{
    RouteProtocol, RouteSeg6LocalTunnel, RouteType, Seg6LocalAction, Seg6Mode,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute};
use rtnetlink::{AddressMessageBuilder, RouteMessageBuilder, RuleAddRequest};
use tokio::time::{Instant, sleep};

use super::way::Table;
use super::{Links, MAIN, NO_SUCH_ROUTE, PRIORITY, Result, Tunnel, errno, failed};
use crate::raw::ICMPV6;

/// SEG6_IPTUN_MODE_ENCAP_RED.
const ENCAPSULATE_REDUCED: Seg6Mode = Seg6Mode::Other(3);
/// Behind the rules for guests: none of them speaks for the other end of a tunnel.
const BEHIND_GUESTS: u32 = PRIORITY + 2;
const LOCAL: u32 = 255;
/// For how long the kernel is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// For trials.
const TRIAL: u32 = 0x5213_0000;
/// What is asked of the address for tunnels.
const ASKED: u32 = TRIAL + 1;

impl Links {
    /// What is for `prefix` is encapsulated to `to`; `inner` is the interface behind which that is done.
    pub(crate) async fn encapsulate(
        &self,
        table: u32,
        prefix: Ipv6Prefix,
        to: Ipv6Addr,
        inner: u32,
    ) -> Result<()> {
        let route = self.segment_route(table, prefix, inner).output_seg6(ENCAPSULATE_REDUCED, vec![to]);
        self.set_route(route.build(), || format!("a route into the tunnel to {to}")).await
    }

    /// What is for `end` is decapsulated and looked up in table `into`.
    pub(crate) async fn decapsulate(&self, table: u32, end: Ipv6Prefix, into: u32, inner: u32) -> Result<()> {
        let action = RouteSeg6LocalTunnel::Action(Seg6LocalAction::EndDt6);
        let actions = vec![action, RouteSeg6LocalTunnel::Table(into)];
        let route = self.segment_route(table, end, inner).encap_seg6local(actions);
        self.set_route(route.build(), || format!("a route out of the tunnels at {end}")).await
    }

    fn segment_route(&self, table: u32, prefix: Ipv6Prefix, out: u32) -> RouteMessageBuilder<Ipv6Addr> {
        RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(prefix.address(), prefix.len())
            .output_interface(out)
            .protocol(self.protocol)
            .table_id(table)
    }

    /// The rules of one tunnel.
    pub(crate) async fn segment_rules(
        &self,
        tunnel: Tunnel,
        inner: &str,
        own: Ipv6Addr,
        peer: Ipv6Addr,
        user_plane: Ipv6Addr,
    ) -> Result<()> {
        self.rule(
            |rule| {
                let rule = rule.input_interface(inner).source_prefix(own, 128);
                rule.table_id(MAIN).action(RuleAction::ToTable)
            },
            BEHIND_GUESTS,
        )
        .await?;
        let into = tunnel.table(Table::Into);
        self.rule(
            |rule| rule.input_interface(inner).table_id(into).action(RuleAction::ToTable),
            BEHIND_GUESTS + 1,
        )
        .await?;
        let out_of = tunnel.table(Table::OutOf);
        self.rule(
            |rule| {
                let rule = rule.source_prefix(peer, 128).destination_prefix(user_plane, 128);
                rule.table_id(out_of).action(RuleAction::ToTable)
            },
            BEHIND_GUESTS + 1,
        )
        .await
    }

    /// Tries whether the kernel can do all of it.
    pub(crate) async fn try_segments(&self, own: Ipv6Addr, user_plane: Ipv6Addr) -> Result<()> {
        let end = Ipv6Prefix::new(user_plane, 128).expect("128 is a length");
        let interface = self.index_of_address(own).await?;
        let tried = self.encapsulate(TRIAL, end, user_plane, interface).await;
        let tried = tried.and(self.decapsulate(TRIAL, end, TRIAL, interface).await);
        self.unroute(TRIAL, end).await.and(tried)
    }

    /// Gives the interface of `own` the address `user_plane` too: neighbours find it there, but nothing that is sent from here
    /// has it, and what comes for it is for no socket.
    pub(crate) async fn add_tunnel_address(&self, own: Ipv6Addr, user_plane: Ipv6Addr) -> Result<()> {
        let is_new = self.find_address(user_plane).await?.is_none();
        if is_new {
            let index = self.index_of_address(own).await?;
            let mut address = self.handle.address().add(index, user_plane.into(), 128);
            let message = address.message_mut();
            message.header.flags |= AddressHeaderFlags::Nodad;
            let flags = AddressFlags::Nodad | AddressFlags::Noprefixroute;
            message.attributes.push(AddressAttribute::Flags(flags));
            let mut lifetime = CacheInfo::default();
            (lifetime.ifa_preferred, lifetime.ifa_valid) = (0, u32::MAX);
            message.attributes.push(AddressAttribute::CacheInfo(lifetime));
            let done = address.execute().await;
            done.map_err(failed(|| format!("adding the address {user_plane} for tunnels")))?;
        }
        // The kernel makes an address local a moment after it was added.
        let give_up = Instant::now() + PATIENCE;
        loop {
            match self.remove_local(user_plane).await {
                Err(error) if is_new && errno(&error) == Some(NO_SUCH_ROUTE) && Instant::now() < give_up => {
                    sleep(Duration::from_millis(1)).await;
                }
                Err(error) if !is_new && errno(&error) == Some(NO_SUCH_ROUTE) => break,
                done => {
                    break done.map_err(failed(|| format!("making the address {user_plane} not local")))?;
                }
            }
        }
        // But neighbours ask for it, also at the address itself (RFC 4861 section 7.3.3).
        let index = self.index_of_address(user_plane).await?;
        let local = RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(user_plane, 128)
            .output_interface(index)
            .protocol(self.protocol)
            .table_id(ASKED)
            .kind(RouteType::Local);
        self.set_route(local.build(), || format!("a route for questions to {user_plane}")).await?;
        let to_it = |rule: RuleAddRequest<Ipv6Addr>| rule.destination_prefix(user_plane, 128);
        let asked = |rule| {
            let mut rule = to_it(rule).table_id(ASKED).action(RuleAction::ToTable);
            rule.message_mut().attributes.push(RuleAttribute::IpProtocol(IpProtocol::Other(ICMPV6 as i32)));
            rule
        };
        self.rule(asked, BEHIND_GUESTS + 2).await?;
        self.rule(|rule| to_it(rule).action(RuleAction::Blackhole), BEHIND_GUESTS + 3).await
    }

    async fn remove_local(&self, address: Ipv6Addr) -> std::result::Result<(), rtnetlink::Error> {
        let route = RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(address, 128)
            .protocol(RouteProtocol::Unspec)
            .table_id(LOCAL)
            .kind(RouteType::Local)
            .build();
        self.handle.route().del(route).execute().await
    }

    /// Takes back what [`add_tunnel_address`](Self::add_tunnel_address) did.
    pub(crate) async fn remove_tunnel_address(&self, user_plane: Ipv6Addr) -> Result<()> {
        let to = RuleAttribute::Destination(user_plane.into());
        self.remove_rules(|rule| rule.attributes.contains(&to)).await?;
        self.unroute(ASKED, Ipv6Prefix::new(user_plane, 128).expect("128 is a length")).await?;
        let Some(found) = self.find_address(user_plane).await? else { return Ok(()) };
        let index = found.header.index;
        let message = AddressMessageBuilder::<Ipv6Addr>::new().index(index).address(user_plane, 128).build();
        let done = self.handle.address().del(message).execute().await;
        done.map_err(failed(|| format!("removing the address {user_plane}")))
    }

    /// Of the interface with this address.
    async fn index_of_address(&self, address: Ipv6Addr) -> Result<u32> {
        let found = self.find_address(address).await?;
        let found = found.ok_or(rtnetlink::Error::RequestFailed);
        let found = found.map_err(failed(|| format!("finding the interface with address {address}")))?;
        Ok(found.header.index)
    }

    async fn find_address(&self, address: Ipv6Addr) -> Result<Option<AddressMessage>> {
        let list = self.handle.address().get().set_address_filter(address.into());
        list.execute().try_next().await.map_err(failed(|| "listing addresses".to_owned()))
    }
}
