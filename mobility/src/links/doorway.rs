//! Filters on guests' links (tc-u32(8)), for the data plane whose tunnels end at addresses of the host itself: there the kernel
//! takes a tunnelled packet by its addresses alone, whichever interface it comes by. So no guest may claim to be the other end.

use std::net::Ipv6Addr;

use futures_util::{StreamExt, TryStreamExt};
use rtnetlink::packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{
    TcAction, TcActionAttribute, TcActionOption, TcAttribute, TcFilterU32, TcFilterU32Option, TcHandle,
    TcMessage, TcOption, TcU32Key, TcU32Selector, TcU32SelectorFlags,
};

use super::{EXISTS, Links, Result, errno, failed};

/// Where our filter stands among others on the same link.
const PREFERENCE: u32 = 5213;
/// ETH_P_IPV6, in the network's order.
const IPV6: u16 = 0x86dd_u16.to_be();
/// Of the source address, in an IPv6 header.
const SOURCE_AT: i32 = 8;
/// linux/tc_act/tc_gact.h: TCA_GACT_PARMS, and a struct tc_gact whose action is TC_ACT_SHOT.
const PARAMETERS: u16 = 2;
const DROP: [i32; 5] = [0, 0, 2, 0, 0];

impl Links {
    /// What comes in by this interface from this source is dropped.
    pub(crate) async fn close_doorway(&self, index: u32, source: Ipv6Addr) -> Result<()> {
        let what = || format!("filtering what comes by interface {index}");
        match self.handle.qdisc().add(index.cast_signed()).ingress().execute().await {
            // Ours from before, or another's: there is room for all.
            Err(error) if errno(&error) == Some(EXISTS) => {}
            done => done.map_err(failed(what))?,
        }
        let mut selector = TcU32Selector::default();
        selector.flags = TcU32SelectorFlags::Terminal;
        let octets = source.octets();
        let (words, _) = octets.as_chunks::<4>();
        for (number, word) in (0..).zip(words) {
            let mut key = TcU32Key::default();
            (key.mask, key.val, key.off) = (u32::MAX, u32::from_be_bytes(*word), SOURCE_AT + 4 * number);
            selector.keys.push(key);
        }
        selector.nkeys = 4;
        let parameters = DefaultNla::new(PARAMETERS, DROP.map(i32::to_ne_bytes).concat());
        let mut drop = TcAction::default();
        drop.attributes = vec![
            TcActionAttribute::Kind("gact".to_owned()),
            TcActionAttribute::Options(vec![TcActionOption::Other(parameters)]),
        ];
        let options = [TcFilterU32Option::Selector(selector), TcFilterU32Option::Action(vec![drop])];
        let mut message = filter(index);
        message.attributes.push(TcAttribute::Kind(TcFilterU32::KIND.to_owned()));
        message.attributes.push(TcAttribute::Options(options.map(TcOption::U32).to_vec()));
        // That of before a crash may be of another home agent.
        let _ = self.ask(RouteNetlinkMessage::DelTrafficFilter(filter(index)), 0).await;
        self.ask(RouteNetlinkMessage::NewTrafficFilter(message), NLM_F_CREATE | NLM_F_EXCL)
            .await
            .map_err(failed(what))
    }

    /// Takes back what [`close_doorway`](Self::close_doorway) did, if it did it. The interface may be gone.
    pub(crate) async fn open_doorway(&self, index: u32) {
        if self.ask(RouteNetlinkMessage::DelTrafficFilter(filter(index)), 0).await.is_err() {
            return;
        }
        let filters = self.handle.traffic_filter(index.cast_signed()).get().ingress().execute();
        let others = filters.try_collect::<Vec<_>>().await;
        if others.is_ok_and(|others| others.is_empty()) {
            let mut delete = self.handle.qdisc().del(index.cast_signed());
            delete.message_mut().header.parent = TcHandle::INGRESS;
            let _ = delete.execute().await;
        }
    }

    async fn ask(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> std::result::Result<(), rtnetlink::Error> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut answers = self.handle.clone().request(request)?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload
                && error.code.is_some()
            {
                return Err(rtnetlink::Error::NetlinkError(error));
            }
        }
        Ok(())
    }
}

/// Our filter of this interface.
fn filter(index: u32) -> TcMessage {
    let mut message = TcMessage::with_index(index.cast_signed());
    message.header.parent = TcHandle { major: 0xffff, minor: TcHandle::MIN_INGRESS };
    message.header.info = PREFERENCE << 16 | u32::from(IPV6);
    message
}
