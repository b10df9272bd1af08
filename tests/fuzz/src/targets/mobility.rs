//! What anybody can send to an agent: an IPv6 packet with a Mobility Header behind its extension headers.

use std::net::Ipv6Addr;

use mobility_proto::auth::{Algorithm, BindingKey, Covered, SharedKey};
use mobility_proto::wire::*;

const HOME: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2);
const COVERED: Covered = Covered { care_of: HOME, peer: HOME };

/// What is read of a packet is the same when it is written and read again; a proof is accepted only from who has the key.
pub(super) fn packet(bytes: &[u8]) {
    extensions(bytes);
    let Ok(found) = Signalling::parse(bytes) else { return };
    assert!(bytes[found.message_at..].starts_with(found.message));
    let Ok(header) = MobilityHeader::new_checked(found.message) else { return };
    assert_eq!(header.as_bytes().len(), 8 * (1 + usize::from(header.header_len())));
    let (ends, shared) =
        (found.addresses.endpoints(), SharedKey::new(300, Algorithm::HmacSha256_128, b"key"));
    let binding = BindingKey::new([1; 8], Some([2; 8]));
    assert!(shared.verify(&header, COVERED).is_err() && binding.verify(&header, COVERED).is_err());
    match Repr::parse(&header, ends) {
        Ok(repr) => {
            assert!(header.is_intact(ends) && header.payload_proto() == 59);
            again(&repr, found.addresses);
            for proved in [shared.emit(&repr, ends, COVERED), binding.emit(&repr, ends, COVERED)] {
                let Ok(proved) = proved else { continue };
                let header = MobilityHeader::new_checked(&proved).expect("what is emitted is whole");
                assert!(shared.verify(&header, COVERED).is_ok() != binding.verify(&header, COVERED).is_ok());
            }
        }
        Err(error) => {
            assert!(header.is_intact(ends) != (error == ParseError::Checksum));
            if let Answer::ParameterProblem { at } = error.answer() {
                assert!(at < 2);
            }
            assert!(!error.to_string().is_empty());
        }
    }
}

fn again(repr: &Repr, addresses: Addresses) {
    let message = match repr.emit(addresses.endpoints()) {
        Ok(message) => message,
        // Alignment takes room that the sender did not spend.
        Err(error) => return assert!(matches!(error, EmitError::TooLong(_)), "{error}"),
    };
    let packet = addresses.emit(MobilityHeader::new_checked(&message).expect("what is emitted is whole"));
    let found = Signalling::parse(&packet).expect("what is emitted can be read");
    assert_eq!((found.addresses, found.message), (addresses, &message[..]));
    let header = MobilityHeader::new_checked(found.message).expect("what is emitted is whole");
    assert_eq!(Repr::parse(&header, addresses.endpoints()).as_ref(), Ok(repr));
}

fn extensions(bytes: &[u8]) {
    if let Ok((options, len)) = DestinationOptions::parse(bytes) {
        assert!(len <= bytes.len());
        let written = options.emit();
        assert_eq!(DestinationOptions::parse(&written), Ok((options, written.len())));
    }
    if let Ok((routing, len)) = RoutingHeader::parse(bytes) {
        assert!(len <= bytes.len());
        assert_eq!(RoutingHeader::parse(&routing.emit()), Ok((routing, 24)));
    }
}

fn update() -> Message {
    let flags = BindingUpdateFlags::ACKNOWLEDGE | BindingUpdateFlags::PROXY;
    let (sequence, lifetime) = (SequenceNumber(7), BindingLifetime(15));
    Message::BindingUpdate(BindingUpdate { sequence, flags, lifetime })
}

/// Every message, and every option at least once.
pub(super) fn reprs() -> Vec<Repr> {
    let test = RoutabilityTest { nonce_index: 1, cookie: [2; 8], token: [3; 8] };
    let sequence = 7;
    let acknowledgement = BindingAcknowledgement {
        status: Status::ACCEPTED,
        flags: BindingAcknowledgementFlags::PROXY,
        sequence: SequenceNumber(7),
        lifetime: BindingLifetime(15),
    };
    let flags = RevocationFlags::PROXY;
    let bare = [
        Message::BindingRefreshRequest,
        Message::HomeTestInit([1; 8]),
        Message::CareOfTestInit([1; 8]),
        Message::HomeTest(test),
        Message::CareOfTest(test),
        Message::BindingAcknowledgement(acknowledgement),
        Message::BindingError { status: BindingErrorStatus::UNKNOWN_BINDING, home_address: HOME },
        Message::Heartbeat { response: true, unsolicited: false, sequence: 9 },
        Message::HandoverInitiate {
            sequence,
            flags: HandoverInitiateFlags(0x70),
            code: HandoverInitiateCode(0),
        },
        Message::HandoverAcknowledge {
            sequence,
            flags: HandoverAcknowledgeFlags(0x60),
            code: HandoverAcknowledgeCode(0),
        },
        Message::BindingRevocationIndication { trigger: RevocationTrigger(2), sequence, flags },
        Message::BindingRevocationAcknowledgement { status: RevocationStatus(0), sequence, flags },
        Message::LocalizedRoutingInitiation { sequence, lifetime_s: 60 },
        Message::LocalizedRoutingAcknowledgment {
            sequence,
            unsolicited: false,
            status: LocalizedRoutingStatus(0),
            lifetime_s: 60,
        },
        Message::UpdateNotification { sequence, reason: NotificationReason(1), flags: NotificationFlags(0) },
        Message::UpdateNotificationAcknowledgement { sequence, status: NotificationStatus(0) },
    ];
    let with_options = options().into_iter().map(|options| Repr { message: update(), options });
    bare.map(|message| Repr { message, options: Vec::new() }).into_iter().chain(with_options).collect()
}

fn options() -> [Vec<MobilityOption>; 4] {
    use MobilityOption::*;
    let prefix = Ipv6Prefix::new(HOME, 64).expect("64 is at most 128");
    let interface = Ipv4Interface::new([192, 0, 2, 1].into(), 24).expect("24 is at most 32");
    let status = Ipv4AddressStatus::SUCCESS;
    [
        vec![
            BindingRefreshAdvice(BindingLifetime(3)),
            AlternateCareOfAddress(HOME),
            NonceIndices { home: 1, care_of: 2 },
            MobileNetworkPrefix(prefix),
            LinkLayerAddress { code: 2, address: vec![2; 6] },
            BindingAuthorizationData([1; 12]),
        ],
        vec![
            MobileNodeIdentifier { kind: IdentifierType::NAI, identifier: b"vm@example.org".to_vec() },
            MessageIdentification(NtpTimestamp(1 << 60)),
            VendorSpecific { vendor: 32473, kind: 1, data: b"data".to_vec() },
            Authentication { kind: AuthenticationType::MN_HA, spi: 300, authenticator: vec![4; 16] },
        ],
        vec![
            HomeNetworkPrefix(prefix),
            HandoffIndicator(mobility_proto::wire::HandoffIndicator::BETWEEN_GATEWAYS),
            AccessTechnologyType(AccessTechnology::ETHERNET),
            LinkLayerIdentifier(vec![2; 6]),
            LinkLocalAddress(HOME),
            Timestamp(mobility_proto::wire::Timestamp(1 << 46)),
            RestartCounter(5),
            TransientBinding { late_path_switch: true, lifetime: TransientLifetime(5) },
            LocalMobilityAnchorAddress(HOME.into()),
            LinkLocalInterfaceIdentifier([7; 8]),
            ContextRequest(vec![ContextItem { kind: OptionType::VENDOR_SPECIFIC, data: vec![1; 5] }]),
            Ipv6AddressPrefix { code: 1, prefix_len: 64, address: HOME },
        ],
        vec![
            Ipv4HomeAddress { interface, prefix: true },
            Ipv4AddressAcknowledgement { status, interface },
            NatDetection { force: true, refresh_s: 110 },
            Ipv4CareOfAddress(interface.address()),
            Ipv4HomeAddressRequest(interface),
            Ipv4HomeAddressReply { status, interface },
            Ipv4DefaultRouterAddress(interface.address()),
            MagIpv6Address(HOME),
            LmaUserPlaneAddress(interface.address().into()),
            LmaUserPlaneAddress(HOME.into()),
            Unknown { kind: OptionType(200), data: vec![9; 30] },
        ],
    ]
}

pub(super) fn packets() -> Vec<Vec<u8>> {
    let direct = Addresses::direct(HOME, Ipv6Addr::LOCALHOST);
    let routes = [
        direct,
        Addresses { home_address: Some(HOME), ..direct },
        Addresses { routed_to: Some(HOME), ..direct },
        Addresses { home_address: Some(HOME), routed_to: Some(HOME), ..direct },
    ];
    let packet = |(repr, addresses): (Repr, &Addresses)| {
        let message = repr.emit(addresses.endpoints()).expect("a seed can be emitted");
        addresses.emit(MobilityHeader::new_checked(&message).expect("what is emitted is whole"))
    };
    reprs().into_iter().zip(routes.iter().cycle()).map(packet).collect()
}
