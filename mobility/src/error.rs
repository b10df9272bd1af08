//! Why an agent cannot run, for the person who has to do something about it.

use std::io;
use std::net::Ipv6Addr;

/// Why an agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A socket or an interface cannot be had.
    #[error("{what}: {source}; {}", hint(source))]
    Open {
        /// What was to be opened.
        what: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The kernel did not do what it was asked.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Segment routing has no address to take packets at.
    #[error(
        "data plane seg6 needs an address for tunnels alone: set user_plane to one that nobody has, in the network of the \
         agent's own"
    )]
    NoUserPlane,
    /// Somebody else uses segment routing here, with another source address.
    #[error(
        "data plane seg6 needs its own source address for all segment routing of this host, which has {0} already: see \
         `ip sr tunsrc show`, or choose another data plane"
    )]
    TunnelSource(Ipv6Addr),
    /// The host does not forward IPv4 packets, and there are IPv4 addresses.
    #[error(
        "this host forwards no IPv4, which IPv4 home addresses need: run `sysctl -w net.ipv4.ip_forward=1`"
    )]
    NoIpv4Forwarding,
    /// The host judges IPv4 packets on all interfaces by where their sources are reached.
    #[error(
        "this host takes IPv4 packets only from where it would send to their sources, which is not where guests' come from: run \
         `sysctl -w net.ipv4.conf.all.rp_filter=0` (what each other interface's own rp_filter says stays so)"
    )]
    ReversePath,
    /// The host does not forward packets.
    #[error(
        "this host forwards no IPv6: run `sysctl -w net.ipv6.conf.all.forwarding=1` (an interface that gets its own \
         routes from advertisements then needs accept_ra = 2)"
    )]
    NoForwarding,
    /// The agent has ended.
    #[error("the mobility agent is not running any more; see the log")]
    Ended,
}

/// What to do about it.
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrNotAvailable => "is it an address of this host, and up?",
        io::ErrorKind::ResourceBusy => "is another daemon running here, or has another interface that name?",
        io::ErrorKind::PermissionDenied => "it needs root, or CAP_NET_ADMIN and CAP_NET_RAW",
        _ => "see `ip link` and `ip -6 address`, and whether the kernel has /dev/net/tun",
    }
}

/// The kernel did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct LinkError {
    /// What was asked for.
    pub(crate) what: String,
    /// The kernel's reason.
    #[source]
    pub(crate) source: Box<dyn std::error::Error + Send + Sync>,
}

pub(crate) fn opening(what: &str) -> impl FnOnce(io::Error) -> AgentError {
    let what = format!("opening {what}");
    move |source| AgentError::Open { what, source }
}
