//! The variables of an interface that rtnetlink does not have.

use std::fs;

use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};

use crate::error::{AgentError, opening};

/// Sets a variable of an interface.
pub(super) fn set(part: &str, interface: &str, name: &str, value: &str) -> Result<(), AgentError> {
    let path = format!("/proc/sys/net/{part}/{interface}/{name}");
    fs::write(&path, value).map_err(opening(&path))
}

/// The kernel answers for nobody any more on this link.
pub(super) fn answer_no_more(link: &LinkMessage) {
    let name = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name),
        _ => None,
    });
    let Some(name) = name else { return };
    let delay = fs::read_to_string("/proc/sys/net/ipv4/neigh/default/proxy_delay");
    let done = set("ipv4/conf", name, "proxy_arp", "0")
        .and_then(|()| delay.map_or(Ok(()), |delay| set("ipv4/neigh", name, "proxy_delay", delay.trim())));
    if let Err(error) = done {
        tracing::debug!("{error}");
    }
}
