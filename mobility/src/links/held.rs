//! Packets for a guest that wait in the kernel until they may go, in their order. They are routed by way of a router that nobody
//! is: a neighbour that seems to be looked for (RFC 4861 section 7.2.2: what is for it is queued meanwhile), though nobody does.
//! Once it has the guest's link-layer address, all that waits goes to the guest.
//!
//! It goes packet by packet, and what comes for that neighbour meanwhile does not wait any more. So that it overtakes none, it is
//! for another such neighbour by then; what has waited for that one is less, and so on.

use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use mobility_proto::wire::Ipv6Prefix;
use rtnetlink::packet_route::neighbour::NeighbourState;

use super::variables::set;
use super::{Links, Result, Way, failed};

/// Routers that nobody is. A guest that takes one's address for its own ends its packets' waiting, and no other's.
const NOBODY: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x5213), Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x5214)];
/// What has come in one turn of less than this is hardly anything.
const QUICK: Duration = Duration::from_millis(1);
/// How often at most what has come while others went waits in turn.
const MAX_TURNS: usize = 32;
/// Room for what waits, in bytes with all that the kernel keeps of a packet: 10 ms at 10 Gb/s.
const ROOM: &str = "16777216";

impl Links {
    /// What is for `prefix` waits for [`let_go`](Self::let_go), in one step whatever way it went before.
    pub(crate) async fn hold(
        &self,
        table: u32,
        prefix: Ipv6Prefix,
        (name, index): (&str, u32),
    ) -> Result<()> {
        room(name, ROOM);
        self.wait(table, prefix, index, NOBODY[0]).await
    }

    async fn wait(&self, table: u32, prefix: Ipv6Prefix, index: u32, nobody: Ipv6Addr) -> Result<()> {
        let wait = self.handle.neighbours().add(index, nobody.into()).state(NeighbourState::Incomplete);
        wait.replace().execute().await.map_err(failed(|| format!("having packets for {prefix} wait")))?;
        self.route(table, prefix, Way::Held(index, nobody)).await
    }

    /// What waits goes to the guest with this link-layer address, and behind it what comes from now on.
    pub(crate) async fn let_go(
        &self,
        table: u32,
        prefix: Ipv6Prefix,
        (name, index): (&str, u32),
        link_layer: [u8; 6],
    ) -> Result<()> {
        let [mut first, mut next] = NOBODY;
        let turns = async {
            for _ in 0..MAX_TURNS {
                let start = Instant::now();
                self.wait(table, prefix, index, next).await?;
                self.neighbour(index, first, link_layer).await?;
                (first, next) = (next, first);
                if start.elapsed() < QUICK {
                    break;
                }
            }
            self.neighbour(index, first, link_layer).await
        };
        let gone = turns.await;
        self.route(table, prefix, Way::Interface(index)).await?;
        self.wait_no_more(index).await;
        if let Ok(default) = std::fs::read_to_string("/proc/sys/net/ipv6/neigh/default/unres_qlen_bytes") {
            room(name, default.trim());
        }
        gone
    }

    /// Nothing waits there any more; what a crash has left waiting is lost.
    pub(crate) async fn wait_no_more(&self, index: u32) {
        for nobody in NOBODY {
            let mut found = self.handle.neighbours().add(index, nobody.into());
            let message = found.message_mut().clone();
            // There may be none.
            let _ = self.handle.neighbours().del(message).execute().await;
        }
    }
}

/// Makes room for what waits. The kernel has some of itself: without more, a fast stream may lose packets.
fn room(name: &str, bytes: &str) {
    if let Err(error) = set("ipv6/neigh", name, "unres_qlen_bytes", bytes) {
        tracing::debug!("{error}");
    }
}
