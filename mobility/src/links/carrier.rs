//! One interface's carrier, and the addresses that become usable, as the kernel tells of them. Changes nothing.

use std::net::{IpAddr, Ipv6Addr};

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};

use super::{Links, Result};

/// What the kernel tells of one kind, from when this was made.
fn told<T: Send + 'static>(
    group: MulticastGroup,
    pick: fn(RouteNetlinkMessage) -> Option<T>,
) -> std::io::Result<BoxStream<'static, T>> {
    let (connection, _, messages) = rtnetlink::new_multicast_connection(&[group])?;
    // Ends when the stream of messages is dropped.
    tokio::spawn(connection);
    let picked = messages.filter_map(move |(message, _)| {
        std::future::ready(match message.payload {
            NetlinkPayload::InnerMessage(message) => pick(message),
            _ => None,
        })
    });
    Ok(picked.boxed())
}

/// What the kernel tells of links, from when this was made.
pub(crate) struct Changes(BoxStream<'static, LinkMessage>);

impl Changes {
    pub(crate) fn open() -> std::io::Result<Self> {
        let links = told(MulticastGroup::Link, |message| match message {
            RouteNetlinkMessage::NewLink(link) => Some(link),
            _ => None,
        })?;
        Ok(Self(links))
    }
}

/// The addresses that the kernel answers for, from when this was made.
pub(crate) struct Answered(BoxStream<'static, AddressMessage>);

impl Answered {
    pub(crate) fn open() -> std::io::Result<Self> {
        let addresses = told(MulticastGroup::Ipv6Ifaddr, |message| match message {
            RouteNetlinkMessage::NewAddress(address) => Some(address),
            _ => None,
        })?;
        Ok(Self(addresses))
    }

    /// Waits for the next one; `None` when the kernel tells no more.
    pub(crate) async fn next(&mut self) -> Option<Ipv6Addr> {
        loop {
            let message = self.0.next().await?;
            let address = message.attributes.into_iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(IpAddr::V6(address)) => Some(address),
                _ => None,
            });
            if address.is_some() {
                return address;
            }
        }
    }
}

/// An interface and whether there is anything at its other end.
pub(crate) struct Carrier {
    name: String,
    index: u32,
    is_up: bool,
    changes: Changes,
}

impl Links {
    /// Follows the carrier of the interface `name`.
    pub(crate) async fn carrier(&self, name: &str, changes: Changes) -> Result<Carrier> {
        let link = self.link(name).await?;
        Ok(Carrier { name: name.to_owned(), index: link.header.index, is_up: is_up(&link), changes })
    }
}

impl Carrier {
    /// The interface's.
    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    pub(crate) fn is_up(&self) -> bool {
        self.is_up
    }

    /// Waits until it is there again; `None` when the kernel tells no more.
    pub(crate) async fn came_up(&mut self) -> Option<()> {
        loop {
            let link = self.changes.0.next().await?;
            let name = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::IfName(name) if *name == self.name);
            if !link.attributes.iter().any(name) {
                continue;
            }
            // An interface that was taken away and put in again has another number.
            self.index = link.header.index;
            let was_up = std::mem::replace(&mut self.is_up, is_up(&link));
            if self.is_up && !was_up {
                return Some(());
            }
        }
    }
}

fn is_up(link: &LinkMessage) -> bool {
    link.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp)
}
