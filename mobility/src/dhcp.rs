//! DHCP for one guest with an IPv4 address (RFC 2131): its own address, its network's mask, a router, the MTU of its link. All
//! gateways answer the same (RFC 5844 section 3.4), so a guest that has moved keeps its lease where it is.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};

use mobility_proto::wire::Ipv4Interface;
use smoltcp::wire::{DhcpMessageType, DhcpOption, DhcpPacket, DhcpRepr};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
/// As long as a guest's prefix is advertised for.
const LEASE_S: u32 = 86_400;
/// When the guest asks its server, whose address is the router's, which nobody has on its link; and when it asks everybody.
const RENEWAL_S: u32 = LEASE_S / 2;
const REBINDING_S: u32 = RENEWAL_S + 60;

/// Options (RFC 2132 sections 3.8, 5.1, 9.11, 9.12 and 9.14; RFC 6842).
const MTU: u8 = 26;
const RENEWAL: u8 = 58;
const REBINDING: u8 = 59;
const CLIENT_IDENTIFIER: u8 = 61;
const DNS_SERVERS: u8 = 6;

/// A message is at most as long as its packet.
const MESSAGE_BYTES: usize = 1500;
/// A BOOTP message is no shorter (RFC 1542 section 2.1), and there are clients that insist.
const LEAST_BYTES: usize = 300;

/// What a guest is told.
#[derive(Debug, Clone)]
pub(crate) struct Lease {
    /// Who is answered: another on the same link shall not take the address too.
    pub(crate) guest: [u8; 6],
    pub(crate) address: Ipv4Interface,
    /// What a packet may have.
    pub(crate) mtu: u16,
    pub(crate) dns: Vec<Ipv4Addr>,
}

impl Lease {
    /// The answer to a message, and where it goes; `None` to what is not for us to answer.
    fn answer(&self, message: &[u8]) -> Option<(Vec<u8>, Ipv4Addr)> {
        let packet = DhcpPacket::new_checked(message).ok()?;
        let asked = DhcpRepr::parse(&packet).ok()?;
        if asked.client_hardware_address.0 != self.guest || !asked.relay_agent_ip.is_unspecified() {
            return None;
        }
        let (own, server) = (self.address.address(), self.address.router());
        let answer = match asked.message_type {
            DhcpMessageType::Discover => DhcpMessageType::Offer,
            // It has taken another's offer.
            DhcpMessageType::Request if asked.server_identifier.is_some_and(|other| other != server) => {
                return None;
            }
            DhcpMessageType::Request if asked.requested_ip.unwrap_or(asked.client_ip) == own => {
                DhcpMessageType::Ack
            }
            DhcpMessageType::Request => DhcpMessageType::Nak,
            DhcpMessageType::Inform => DhcpMessageType::Ack,
            _ => return None,
        };
        let is_refused = answer == DhcpMessageType::Nak;
        // Who asks for advice alone has an address.
        let is_leased = !is_refused && asked.message_type != DhcpMessageType::Inform;
        let (mtu, renewal, rebinding) =
            (self.mtu.to_be_bytes(), RENEWAL_S.to_be_bytes(), REBINDING_S.to_be_bytes());
        let dns: Vec<u8> = self.dns.iter().flat_map(Ipv4Addr::octets).collect();
        let mut options = Vec::new();
        options.extend(packet.options().find(|option| option.kind == CLIENT_IDENTIFIER));
        if !is_refused {
            options.push(DhcpOption { kind: MTU, data: &mtu });
            options.extend((!dns.is_empty()).then_some(DhcpOption { kind: DNS_SERVERS, data: &dns }));
        }
        if is_leased {
            options.push(DhcpOption { kind: RENEWAL, data: &renewal });
            options.push(DhcpOption { kind: REBINDING, data: &rebinding });
        }
        let answer = DhcpRepr {
            message_type: answer,
            secs: 0,
            client_ip: if asked.client_ip == own { own } else { Ipv4Addr::UNSPECIFIED },
            your_ip: if is_leased { own } else { Ipv4Addr::UNSPECIFIED },
            server_identifier: Some(server),
            router: (!is_refused).then_some(server),
            subnet_mask: (!is_refused).then_some(self.address.mask()),
            lease_duration: is_leased.then_some(LEASE_S),
            additional_options: &options,
            // What else the guest has said is for us.
            requested_ip: None,
            client_identifier: None,
            parameter_request_list: None,
            dns_servers: None,
            max_size: None,
            ..asked
        };
        let mut bytes = vec![0; answer.buffer_len().max(LEAST_BYTES)];
        answer.emit(&mut DhcpPacket::new_unchecked(&mut bytes)).ok()?;
        // Without its address it hears only what is for all.
        Some((bytes, if asked.client_ip == own { own } else { Ipv4Addr::BROADCAST }))
    }
}

/// The server on one guest's link.
#[derive(Debug)]
pub(crate) struct Server {
    lease: Lease,
    incoming: UdpSocket,
    /// Sends as the server, whose address is none of this host's.
    outgoing: UdpSocket,
}

impl Server {
    /// Needs CAP_NET_ADMIN, and port 67 on the interface.
    pub(crate) fn open(interface: &str, lease: Lease) -> io::Result<Self> {
        let socket = |address: Ipv4Addr| {
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
            socket.bind_device(Some(interface.as_bytes()))?;
            // Others of this host may serve other links.
            socket.set_reuse_address(true)?;
            socket.set_broadcast(true)?;
            socket.set_ip_transparent_v4(true)?;
            socket.set_nonblocking(true)?;
            socket.bind(&SocketAddrV4::new(address, SERVER_PORT).into())?;
            UdpSocket::from_std(socket.into())
        };
        let (incoming, outgoing) = (socket(Ipv4Addr::UNSPECIFIED)?, socket(lease.address.router())?);
        Ok(Self { lease, incoming, outgoing })
    }

    /// Answers whatever the guest asks. Ends only when the socket is gone.
    pub(crate) async fn run(self) {
        let mut buffer = [0; MESSAGE_BYTES];
        loop {
            let length = match self.incoming.recv_from(&mut buffer).await {
                Ok((length, _)) => length,
                Err(error) => {
                    tracing::warn!("there is no DHCP for {} any more: {error}", self.lease.address.address());
                    return;
                }
            };
            let Some((answer, to)) = self.lease.answer(&buffer[..length]) else { continue };
            if let Err(error) = self.outgoing.send_to(&answer, (to, CLIENT_PORT)).await {
                tracing::debug!("an answer of DHCP to {to} was lost: {error}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smoltcp::wire::EthernetAddress;

    const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const OWN: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
    const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
    /// As of a client that is not known by its link-layer address (RFC 4361).
    const IDENTIFIER: DhcpOption<'_> =
        DhcpOption { kind: CLIENT_IDENTIFIER, data: &[255, 1, 2, 3, 4, 5, 6, 7, 8] };

    fn lease() -> Lease {
        let address = Ipv4Interface::new(OWN, 24).unwrap();
        Lease { guest: GUEST, address, mtu: 1452, dns: vec![Ipv4Addr::new(192, 0, 2, 53)] }
    }

    fn question(message_type: DhcpMessageType) -> DhcpRepr<'static> {
        DhcpRepr {
            message_type,
            transaction_id: 0x5213,
            secs: 3,
            client_hardware_address: EthernetAddress(GUEST),
            client_ip: Ipv4Addr::UNSPECIFIED,
            your_ip: Ipv4Addr::UNSPECIFIED,
            server_ip: Ipv4Addr::UNSPECIFIED,
            relay_agent_ip: Ipv4Addr::UNSPECIFIED,
            router: None,
            subnet_mask: None,
            broadcast: false,
            requested_ip: None,
            client_identifier: None,
            server_identifier: None,
            parameter_request_list: None,
            dns_servers: None,
            max_size: None,
            lease_duration: None,
            renew_duration: None,
            rebind_duration: None,
            additional_options: &[IDENTIFIER],
        }
    }

    fn bytes(question: &DhcpRepr<'_>) -> Vec<u8> {
        let mut bytes = vec![0; question.buffer_len()];
        question.emit(&mut DhcpPacket::new_unchecked(&mut bytes)).unwrap();
        bytes
    }

    /// The kind of the answer, the address that it gives and where it goes.
    fn answered(question: &DhcpRepr<'_>) -> Option<(DhcpMessageType, Ipv4Addr, Ipv4Addr)> {
        let (answer, to) = lease().answer(&bytes(question))?;
        let packet = DhcpPacket::new_checked(&answer[..]).unwrap();
        assert_eq!(packet.options().find(|option| option.kind == CLIENT_IDENTIFIER), Some(IDENTIFIER));
        let answer = DhcpRepr::parse(&packet).unwrap();
        assert_eq!((answer.transaction_id, answer.server_identifier), (0x5213, Some(SERVER)));
        assert_eq!(answer.client_hardware_address, question.client_hardware_address);
        Some((answer.message_type, answer.your_ip, to))
    }

    #[test]
    fn a_guest_is_given_its_address_and_what_goes_with_it() {
        let (offer, _) = lease().answer(&bytes(&question(DhcpMessageType::Discover))).unwrap();
        assert!(offer.len() >= LEAST_BYTES);
        let packet = DhcpPacket::new_checked(&offer[..]).unwrap();
        let mtu = packet.options().find(|option| option.kind == MTU).unwrap();
        assert_eq!(mtu.data, 1452_u16.to_be_bytes());
        let offer = DhcpRepr::parse(&packet).unwrap();
        assert_eq!((offer.your_ip, offer.router), (OWN, Some(SERVER)));
        assert_eq!(offer.subnet_mask, Some(Ipv4Addr::new(255, 255, 255, 0)));
        assert_eq!(offer.dns_servers.unwrap()[..], [Ipv4Addr::new(192, 0, 2, 53)]);
        let times = [offer.renew_duration, offer.rebind_duration, offer.lease_duration];
        assert_eq!(times, [RENEWAL_S, REBINDING_S, LEASE_S].map(Some));
    }

    #[test]
    fn each_question_has_its_answer() {
        use DhcpMessageType::{Ack, Decline, Discover, Inform, Nak, Offer, Release, Request};
        let (all, nobody, other) = (Ipv4Addr::BROADCAST, Ipv4Addr::UNSPECIFIED, Ipv4Addr::new(192, 0, 2, 7));
        assert_eq!(answered(&question(Discover)), Some((Offer, OWN, all)));
        let request = |requested_ip, server_identifier, client_ip| DhcpRepr {
            requested_ip,
            server_identifier,
            client_ip,
            ..question(Request)
        };
        // Selecting; after a reboot; a renewal; of another network; of another server (RFC 2131 section 4.3.2).
        assert_eq!(answered(&request(Some(OWN), Some(SERVER), nobody)), Some((Ack, OWN, all)));
        assert_eq!(answered(&request(Some(OWN), None, nobody)), Some((Ack, OWN, all)));
        assert_eq!(answered(&request(None, None, OWN)), Some((Ack, OWN, OWN)));
        assert_eq!(answered(&request(Some(other), None, nobody)), Some((Nak, nobody, all)));
        assert_eq!(answered(&request(None, None, other)), Some((Nak, nobody, all)));
        assert_eq!(answered(&request(Some(OWN), Some(other), nobody)), None);
        let inform = DhcpRepr { client_ip: OWN, ..question(Inform) };
        assert_eq!(answered(&inform), Some((Ack, nobody, OWN)));
        for message_type in [Decline, Release, Offer, Ack] {
            assert_eq!(answered(&question(message_type)), None);
        }
        let by_relay = DhcpRepr { relay_agent_ip: other, ..question(Discover) };
        let of_another = DhcpRepr { client_hardware_address: EthernetAddress([2; 6]), ..question(Discover) };
        assert_eq!((answered(&by_relay), answered(&of_another)), (None, None));
    }

    #[test]
    fn what_is_no_message_is_not_answered() {
        let whole = bytes(&question(DhcpMessageType::Discover));
        for length in 0..whole.len() {
            lease().answer(&whole[..length]);
        }
        for bit in 0..8 * whole.len() {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            lease().answer(&flipped);
        }
        assert!(lease().answer(&[]).is_none() && lease().answer(&[0xff; MESSAGE_BYTES]).is_none());
    }
}
