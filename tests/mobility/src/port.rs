//! The link of a guest that is paused and resumed.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use harness::Namespace;
use rtnetlink::packet_core::DefaultNla;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage, LinkProtoInfoBridge};
use tokio::runtime;

/// IFLA_BRPORT_STATE, and two of its values (linux/if_link.h, linux/if_bridge.h).
const STATE: u16 = 1;
const DISABLED: u8 = 0;
const FORWARDING: u8 = 3;

/// Whether the bridge in the guest takes anything from this port and gives anything to it. The link itself stays up, as a tap
/// interface does while its machine is paused. Asked of the kernel at once: to start a program for it takes an emulated machine
/// longer than a move.
pub(crate) fn set_port(guest: &Namespace, port: &str, forwards: bool) -> Result<()> {
    // A link that has just been set up at its other end is not up at once.
    let start = Instant::now();
    loop {
        match guest.enter(|| ask(port, if forwards { FORWARDING } else { DISABLED }))? {
            Err(_) if start.elapsed() < Duration::from_secs(2) => {
                std::thread::sleep(Duration::from_millis(5));
            }
            done => return done.with_context(|| format!("setting the state of the bridge's port {port}")),
        }
    }
}

fn ask(port: &str, state: u8) -> Result<()> {
    runtime::Builder::new_current_thread().enable_io().build()?.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        let links = handle.link().get().match_name(port.to_owned()).execute().try_collect::<Vec<_>>();
        let link = links.await?.pop().context("there is no such interface")?;
        let mut message = LinkMessage::default();
        (message.header.interface_family, message.header.index) = (AddressFamily::Bridge, link.header.index);
        let state = LinkProtoInfoBridge::Other(DefaultNla::new(STATE, vec![state]));
        message.attributes.push(LinkAttribute::ProtoInfoBridge(vec![state]));
        Ok(handle.link().set(message).execute().await?)
    })
}
