//! What a gateway has its owner do and tells it.

use std::net::Ipv6Addr;

use crate::wire::Status;

/// What has happened, for the owner of the virtual machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happened {
    /// The anchor has accepted that the machine will come here.
    Prepared,
    /// The anchor sends here what is for the machine.
    Registered,
    /// The anchor has refused. Nothing more is asked for it.
    Refused(Status),
    /// The source forwards what comes for the machine.
    Forwarded,
    /// The source forwards no more: the move was given up there.
    ForwardingEnded,
    /// The binding went elsewhere.
    Revoked,
    /// The machine is deregistered and forgotten.
    Forgotten,
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send this IPv6 packet: signalling.
    Send(Vec<u8>),
    /// Send this packet through the tunnel to that address.
    Tunnel {
        /// The anchor, or another gateway.
        to: Ipv6Addr,
        /// A packet of IPv6, or of IPv4.
        packet: Vec<u8>,
    },
    /// Give this packet to the virtual machine that its destination belongs to.
    Deliver(Vec<u8>),
    /// Tell the virtual machine at once who its router is: it has just come, or been started.
    Advertise {
        /// Its identifier.
        node: Vec<u8>,
    },
    /// The anchor does not answer any more (RFC 5847 section 3.2); or it does again, or has been started anew, and is asked once
    /// more for every binding.
    Anchor {
        /// Whether it answers.
        answers: bool,
    },
    /// The anchor takes tunnelled packets at this address from now on.
    AnchorAt(Ipv6Addr),
    /// Something has happened to a virtual machine.
    Event {
        /// Its identifier.
        node: Vec<u8>,
        /// What.
        happened: Happened,
    },
}

/// Who may carry what comes from the anchor for a virtual machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// Nobody: it is not here.
    Nobody,
    /// Only the gateway itself, which holds, remembers or forwards it.
    Gateway,
    /// Whoever is quicker: all that is to be done with it is to give it to the machine.
    Anyone,
}
