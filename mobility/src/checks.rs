//! What this host must be set to before it can carry packets of others. It changes nothing.

use crate::error::AgentError;

/// Both agents make this host a router.
pub(crate) fn check_forwarding() -> Result<(), AgentError> {
    let forwards = is_set("/proc/sys/net/ipv6/conf/all/forwarding", "1")?;
    if forwards { Ok(()) } else { Err(AgentError::NoForwarding) }
}

pub(crate) fn check_ipv4_forwarding() -> Result<(), AgentError> {
    let forwards = is_set("/proc/sys/net/ipv4/ip_forward", "1")?;
    if forwards { Ok(()) } else { Err(AgentError::NoIpv4Forwarding) }
}

/// What a gateway's program gives to the kernel comes from anywhere.
pub(crate) fn check_reverse_path() -> Result<(), AgentError> {
    let is_off = is_set("/proc/sys/net/ipv4/conf/all/rp_filter", "0")?;
    if is_off { Ok(()) } else { Err(AgentError::ReversePath) }
}

fn is_set(path: &str, value: &str) -> Result<bool, AgentError> {
    let read = std::fs::read_to_string(path);
    read.map(|set| set.trim() == value)
        .map_err(|source| AgentError::Open { what: format!("reading {path}"), source })
}
