//! Properties of the codec: what is emitted is read back, and whatever is read does not panic and is stable.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::collection::vec;
use proptest::prelude::*;

use super::bytes::Options;
use super::checksum::checksum;
use super::*;

const ENDS: Endpoints = Endpoints {
    source: Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 1),
    destination: Ipv6Addr::new(0x2001, 0xdb8, 0, 2, 0, 0, 0, 2),
};

fn ipv6() -> impl Strategy<Value = Ipv6Addr> {
    any::<u128>().prop_map(Ipv6Addr::from)
}

fn ipv4() -> impl Strategy<Value = Ipv4Addr> {
    any::<u32>().prop_map(Ipv4Addr::from)
}

fn ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![ipv6().prop_map(IpAddr::from), ipv4().prop_map(IpAddr::from)]
}

fn prefix() -> impl Strategy<Value = Ipv6Prefix> {
    (ipv6(), 0_u8..=128).prop_map(|(address, len)| Ipv6Prefix::new(address, len).unwrap())
}

fn interface() -> impl Strategy<Value = Ipv4Interface> {
    (ipv4(), 0_u8..=32).prop_map(|(address, len)| Ipv4Interface::new(address, len).unwrap())
}

fn bytes(max: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..=max)
}

fn message() -> impl Strategy<Value = Message> {
    let test = || {
        any::<(u16, [u8; 8], [u8; 8])>().prop_map(|(nonce_index, cookie, token)| RoutabilityTest {
            nonce_index,
            cookie,
            token,
        })
    };
    prop_oneof![
        Just(Message::BindingRefreshRequest),
        any::<Cookie>().prop_map(Message::HomeTestInit),
        any::<Cookie>().prop_map(Message::CareOfTestInit),
        test().prop_map(Message::HomeTest),
        test().prop_map(Message::CareOfTest),
        any::<(u16, u16, u16)>().prop_map(|(sequence, flags, lifetime)| {
            Message::BindingUpdate(BindingUpdate {
                sequence: SequenceNumber(sequence),
                flags: BindingUpdateFlags(flags),
                lifetime: BindingLifetime(lifetime),
            })
        }),
        any::<(u8, u8, u16, u16)>().prop_map(|(status, flags, sequence, lifetime)| {
            Message::BindingAcknowledgement(BindingAcknowledgement {
                status: Status(status),
                flags: BindingAcknowledgementFlags(flags),
                sequence: SequenceNumber(sequence),
                lifetime: BindingLifetime(lifetime),
            })
        }),
        (any::<u8>(), ipv6()).prop_map(|(status, home_address)| Message::BindingError {
            status: BindingErrorStatus(status),
            home_address
        }),
        any::<(bool, bool, u32)>().prop_map(|(response, unsolicited, sequence)| Message::Heartbeat {
            response,
            unsolicited,
            sequence
        }),
        gateway_message(),
    ]
}

fn gateway_message() -> impl Strategy<Value = Message> {
    prop_oneof![
        any::<(u16, u8, u8)>().prop_map(|(sequence, flags, code)| Message::HandoverInitiate {
            sequence,
            flags: HandoverInitiateFlags(flags),
            code: HandoverInitiateCode(code)
        }),
        any::<(u16, u8, u8)>().prop_map(|(sequence, flags, code)| Message::HandoverAcknowledge {
            sequence,
            flags: HandoverAcknowledgeFlags(flags),
            code: HandoverAcknowledgeCode(code)
        }),
        any::<(u8, u16, u16)>().prop_map(|(trigger, sequence, flags)| {
            Message::BindingRevocationIndication {
                trigger: RevocationTrigger(trigger),
                sequence,
                flags: RevocationFlags(flags),
            }
        }),
        any::<(u8, u16, u16)>().prop_map(|(status, sequence, flags)| {
            Message::BindingRevocationAcknowledgement {
                status: RevocationStatus(status),
                sequence,
                flags: RevocationFlags(flags),
            }
        }),
        any::<(u16, u16)>()
            .prop_map(|(sequence, lifetime_s)| Message::LocalizedRoutingInitiation { sequence, lifetime_s }),
        any::<(u16, bool, u8, u16)>().prop_map(|(sequence, unsolicited, status, lifetime_s)| {
            let status = LocalizedRoutingStatus(status);
            Message::LocalizedRoutingAcknowledgment { sequence, unsolicited, status, lifetime_s }
        }),
        any::<(u16, u16, u16)>().prop_map(|(sequence, reason, flags)| Message::UpdateNotification {
            sequence,
            reason: NotificationReason(reason),
            flags: NotificationFlags(flags)
        }),
        any::<(u16, u8)>().prop_map(|(sequence, status)| Message::UpdateNotificationAcknowledgement {
            sequence,
            status: NotificationStatus(status)
        }),
    ]
}

fn option() -> impl Strategy<Value = MobilityOption> {
    use MobilityOption::*;
    prop_oneof![
        any::<u16>().prop_map(|units| BindingRefreshAdvice(BindingLifetime(units))),
        ipv6().prop_map(AlternateCareOfAddress),
        any::<(u16, u16)>().prop_map(|(home, care_of)| NonceIndices { home, care_of }),
        any::<[u8; 12]>().prop_map(BindingAuthorizationData),
        prefix().prop_map(MobileNetworkPrefix),
        (any::<u8>(), bytes(254)).prop_map(|(code, address)| LinkLayerAddress { code, address }),
        (any::<u8>(), vec(any::<u8>(), 1..=254))
            .prop_map(|(kind, identifier)| MobileNodeIdentifier { kind: IdentifierType(kind), identifier }),
        (any::<u8>(), any::<u32>(), bytes(250)).prop_map(|(kind, spi, authenticator)| Authentication {
            kind: AuthenticationType(kind),
            spi,
            authenticator
        }),
        any::<u64>().prop_map(|time| MessageIdentification(NtpTimestamp(time))),
        (any::<(u32, u8)>(), bytes(250)).prop_map(|((vendor, kind), data)| VendorSpecific {
            vendor,
            kind,
            data
        }),
        proxy_option(),
        later_option(),
    ]
}

fn proxy_option() -> impl Strategy<Value = MobilityOption> {
    use MobilityOption::*;
    prop_oneof![
        prefix().prop_map(HomeNetworkPrefix),
        any::<u8>().prop_map(|value| HandoffIndicator(super::HandoffIndicator(value))),
        any::<u8>().prop_map(|value| AccessTechnologyType(AccessTechnology(value))),
        bytes(253).prop_map(LinkLayerIdentifier),
        ipv6().prop_map(LinkLocalAddress),
        any::<u64>().prop_map(|time| Timestamp(super::Timestamp(time))),
        any::<u32>().prop_map(RestartCounter),
        (interface(), any::<bool>()).prop_map(|(interface, prefix)| Ipv4HomeAddress { interface, prefix }),
        (any::<u8>(), interface()).prop_map(|(status, interface)| Ipv4AddressAcknowledgement {
            status: Ipv4AddressStatus(status),
            interface
        }),
        any::<(bool, u32)>().prop_map(|(force, refresh_s)| NatDetection { force, refresh_s }),
        ipv4().prop_map(Ipv4CareOfAddress),
        interface().prop_map(Ipv4HomeAddressRequest),
        (any::<u8>(), interface()).prop_map(|(status, interface)| Ipv4HomeAddressReply {
            status: Ipv4AddressStatus(status),
            interface
        }),
        ipv4().prop_map(Ipv4DefaultRouterAddress),
    ]
}

fn later_option() -> impl Strategy<Value = MobilityOption> {
    use MobilityOption::*;
    let item = (any::<u8>(), bytes(20)).prop_map(|(kind, data)| ContextItem { kind: OptionType(kind), data });
    prop_oneof![
        (any::<(u8, u8)>(), ipv6()).prop_map(|((code, prefix_len), address)| Ipv6AddressPrefix {
            code,
            prefix_len,
            address
        }),
        vec(item, 0..=11).prop_map(ContextRequest),
        ip().prop_map(LocalMobilityAnchorAddress),
        any::<[u8; 8]>().prop_map(LinkLocalInterfaceIdentifier),
        any::<(bool, u8)>().prop_map(|(late_path_switch, lifetime)| TransientBinding {
            late_path_switch,
            lifetime: TransientLifetime(lifetime)
        }),
        ipv6().prop_map(MagIpv6Address),
        ip().prop_map(LmaUserPlaneAddress),
        (60_u8..=255, bytes(255)).prop_map(|(kind, data)| Unknown { kind: OptionType(kind), data }),
    ]
}

fn repr() -> impl Strategy<Value = Repr> {
    (message(), vec(option(), 0..=6)).prop_map(|(message, options)| Repr { message, options })
}

fn parse(bytes: &[u8]) -> Result<Repr, ParseError> {
    Repr::parse(&MobilityHeader::new_checked(bytes)?, ENDS)
}

/// Makes bytes pass all checks before the options: length, Payload Proto, a known type, the checksum.
fn repair(bytes: &mut Vec<u8>, kind: u8) {
    bytes.resize(bytes.len().max(8) / 8 * 8, 0);
    (bytes[0], bytes[1], bytes[2]) = (59, (bytes.len() / 8 - 1) as u8, kind);
    bytes[4..6].fill(0);
    let sum = checksum(ENDS, bytes);
    bytes[4..6].copy_from_slice(&sum.to_be_bytes());
}

proptest! {
    #[test]
    fn what_is_emitted_is_read_back(repr in repr()) {
        let bytes = repr.emit(ENDS).unwrap();
        prop_assert_eq!(bytes.len() % 8, 0);
        let header = MobilityHeader::new_checked(&bytes).unwrap();
        prop_assert_eq!(header.as_bytes(), &bytes[..]);
        prop_assert_eq!((header.payload_proto(), header.mh_type()), (59, repr.message.kind()));
        prop_assert_eq!(Repr::parse(&header, ENDS), Ok(repr));
    }

    #[test]
    fn every_option_is_aligned_as_its_rfc_says(repr in repr()) {
        let bytes = repr.emit(ENDS).unwrap();
        let mut r = bytes::Reader::new(&bytes[6..]);
        prop_assert!(Message::parse(MhType(bytes[2]), &mut r).is_ok());
        let options = r.rest();
        for raw in Options::new(options) {
            let raw = raw.unwrap();
            let at = bytes.len() - options.len() + raw.at;
            let (x, y) = match raw.kind {
                2 | 4 => (2, 0),
                3 | 26 => (8, 6),
                5 | 10 | 27 => (8, 2),
                9 => (4, 1),
                19 | 28 => (4, 2),
                6 | 22 | 34 | 51 => (8, 4),
                _ => (1, 0),
            };
            prop_assert_eq!(at % x, y, "option {} at {}", raw.kind, at);
        }
    }

    #[test]
    fn any_bytes_are_read_without_panic(bytes in bytes(80), trailing in bytes(9)) {
        let all = [bytes, trailing].concat();
        if let Ok(header) = MobilityHeader::new_checked(&all) {
            let _ = (header.payload_proto(), header.header_len(), header.mh_type(), header.checksum());
            let _ = (header.data(), header.is_intact(ENDS), Repr::parse(&header, ENDS));
        }
        let _ = DestinationOptions::parse(&all);
        let _ = RoutingHeader::parse(&all);
        let _ = Signalling::parse(&all);
    }

    #[test]
    fn what_is_read_is_the_same_when_emitted_and_read_again(mut bytes in bytes(120), kind in 0_u8..22) {
        repair(&mut bytes, kind);
        match parse(&bytes) {
            Ok(read) => prop_assert_eq!(parse(&read.emit(ENDS).unwrap()), Ok(read)),
            Err(error) => prop_assert_ne!(error, ParseError::Checksum),
        }
    }

    #[test]
    fn a_changed_bit_is_noticed(repr in repr(), bit in any::<prop::sample::Index>()) {
        let mut bytes = repr.emit(ENDS).unwrap();
        let bit = bit.index(bytes.len() * 8);
        // A longer or shorter header is another message, whose checksum may be right by chance.
        prop_assume!(bit / 8 != 1);
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert_eq!(parse(&bytes), Err(ParseError::Checksum));
    }

    #[test]
    fn a_packet_survives_its_extension_headers(
        repr in repr(),
        (source, destination) in (ipv6(), ipv6()),
        home_address in prop::option::of(ipv6()),
        routed_to in prop::option::of(ipv6()),
    ) {
        let addresses = Addresses { source, destination, home_address, routed_to };
        let message = repr.emit(addresses.endpoints()).unwrap();
        let packet = addresses.emit(MobilityHeader::new_checked(&message).unwrap());
        let found = Signalling::parse(&packet).unwrap();
        prop_assert_eq!(found.addresses, addresses);
        prop_assert_eq!(found.message, &message[..]);
        prop_assert_eq!(found.message_at + found.message.len(), packet.len());
    }

    #[test]
    fn sequence_numbers_split_into_newer_and_stale(last in any::<u16>(), step in any::<u16>()) {
        let (last, number) = (SequenceNumber(last), SequenceNumber(last.wrapping_add(step)));
        prop_assert_eq!(number.follows(last), (1..32768).contains(&step));
        prop_assert!(!(number.follows(last) && last.follows(number)));
        prop_assert!(last.next().follows(last));
    }

    #[test]
    fn a_timestamp_keeps_its_time(time in 0_u64..(1 << 50)) {
        prop_assert_eq!(Timestamp::from_unix_ns(Timestamp(time).as_unix_ns()), Timestamp(time));
        prop_assert!(Timestamp(time).after(Timestamp(time)) > Timestamp(time));
    }

    #[test]
    fn a_prefix_is_equal_by_what_it_covers(address in any::<u128>(), len in 0_u8..=128, other in any::<u128>()) {
        let prefix = Ipv6Prefix::new(address.into(), len).unwrap();
        prop_assert!(prefix.contains(address.into()));
        let same = len == 0 || address >> (128 - len) == other >> (128 - len);
        prop_assert_eq!(prefix.contains(other.into()), same);
    }
}

#[test]
fn what_cannot_be_read_back_is_not_emitted() {
    let emit = |option: MobilityOption| {
        Repr { message: Message::BindingRefreshRequest, options: vec![option] }.emit(ENDS)
    };
    let kind = OptionType::LINK_LAYER_IDENTIFIER;
    assert_eq!(
        emit(MobilityOption::LinkLayerIdentifier(vec![0; 254])),
        Err(EmitError::OptionTooLong { kind, len: 256 })
    );
    for (kind, data) in [(OptionType::PADN, vec![]), (OptionType::TIMESTAMP, vec![0; 8])] {
        assert_eq!(emit(MobilityOption::Unknown { kind, data }), Err(EmitError::OptionInvalid { kind }));
    }
    let kind = IdentifierType::NAI;
    let nameless = emit(MobilityOption::MobileNodeIdentifier { kind, identifier: Vec::new() });
    assert_eq!(nameless, Err(EmitError::OptionInvalid { kind: OptionType::MOBILE_NODE_IDENTIFIER }));
    let item = ContextItem { kind: OptionType(19), data: vec![0; 300] };
    assert!(matches!(emit(MobilityOption::ContextRequest(vec![item])), Err(EmitError::OptionTooLong { .. })));
}

#[test]
fn a_message_has_at_most_2048_bytes() {
    let option = |len: usize| MobilityOption::Unknown { kind: OptionType(200), data: vec![0; len] };
    let repr = |last: usize| Repr {
        message: Message::BindingRefreshRequest,
        options: std::iter::repeat_with(|| option(253)).take(7).chain([option(last)]).collect(),
    };
    // 8 bytes before the options, seven times 255, and 255 for the last.
    let longest = repr(253).emit(ENDS).unwrap();
    assert_eq!((longest.len(), longest[1]), (2048, 255));
    assert_eq!(parse(&longest), Ok(repr(253)));
    assert_eq!(repr(254).emit(ENDS), Err(EmitError::TooLong(2049)));
}

#[test]
fn the_checks_have_the_order_and_the_answers_of_rfc_6275_section_9_2() {
    let answer = |change: &dyn Fn(&mut Vec<u8>), summed: bool| {
        let message = Message::HomeTestInit([7; 8]);
        let mut bytes = Repr { message, options: Vec::new() }.emit(ENDS).unwrap();
        change(&mut bytes);
        if summed {
            bytes[4..6].fill(0);
            let sum = checksum(ENDS, &bytes[..8 + 8 * usize::from(bytes[1])]);
            bytes[4..6].copy_from_slice(&sum.to_be_bytes());
        }
        let error = parse(&bytes).unwrap_err();
        (error, error.answer())
    };
    // Everything is wrong: the checksum is seen first, then the type, the Payload Proto, the length.
    let all = |bytes: &mut Vec<u8>| (bytes[0], bytes[1], bytes[2]) = (6, 0, 250);
    assert_eq!(answer(&all, false), (ParseError::Checksum, Answer::Discard));
    assert_eq!(answer(&all, true), (ParseError::UnknownType(MhType(250)), Answer::BindingError));
    let proto_and_length = |bytes: &mut Vec<u8>| (bytes[0], bytes[1]) = (6, 0);
    let told = Answer::ParameterProblem { at: 0 };
    assert_eq!(answer(&proto_and_length, true), (ParseError::PayloadProto(6), told));
    let too_short = ParseError::TooShort { kind: MhType::HOME_TEST_INIT, len: 8 };
    let told = Answer::ParameterProblem { at: 1 };
    assert_eq!(answer(&|bytes| bytes[1] = 0, true), (too_short, told));
    let cut_off = ParseError::CutOff { needs: 24, has: 16 };
    assert_eq!(answer(&|bytes| bytes[1] = 2, false), (cut_off, Answer::Discard));
}

#[test]
fn malformed_options_are_named_by_place_and_type() {
    // A Binding Refresh Request: its options begin at byte 8.
    let error = |options: &[u8]| {
        let mut bytes = [&[0; 8][..], options].concat();
        repair(&mut bytes, 0);
        parse(&bytes).unwrap_err()
    };
    let timestamp = OptionType::TIMESTAMP;
    assert_eq!(error(&[0, 27, 4, 0, 0, 0, 0, 0]), ParseError::Option { kind: timestamp, at: 9 });
    assert_eq!(error(&[0, 0, 200, 2, 0, 0, 27, 1]), ParseError::OptionCutOff { at: 14 });
    assert_eq!(error(&[0, 0, 0, 0, 0, 0, 0, 200]), ParseError::OptionCutOff { at: 15 });
    let error = error(&[22, 18, 0, 129, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0]);
    assert_eq!(error, ParseError::Option { kind: OptionType::HOME_NETWORK_PREFIX, at: 8 });
    assert_eq!(
        error.to_string(),
        "the option at byte 8 of the Mobility Header is malformed: Home Network Prefix (22)"
    );
}

#[test]
fn extension_headers_are_taken_or_refused_as_rfc_8200_says() {
    let home: Ipv6Addr = "2001:db8::99".parse().unwrap();
    let options = |options: &[u8]| {
        let mut bytes = [&[135, 0][..], options].concat();
        bytes.resize(bytes.len().div_ceil(8) * 8, 0);
        bytes[1] = (bytes.len() / 8 - 1) as u8;
        DestinationOptions::parse(&bytes).map(|(options, _)| options.home_address)
    };
    let home_option = [&[0xc9, 16][..], &home.octets()].concat();
    assert_eq!(options(&[0x1e, 2, 0, 0]), Ok(None));
    assert_eq!(options(&[&[0x1e, 2, 0, 0][..], &home_option].concat()), Ok(Some(home)));
    for kind in [0x5e, 0x9e, 0xde] {
        assert_eq!(options(&[0, kind, 0]), Err(ExtensionError::UnknownOption { kind, at: 3 }));
    }
    let twice = [&home_option[..], &home_option].concat();
    assert_eq!(options(&twice), Err(ExtensionError::SecondHomeAddress { at: 20 }));
    assert_eq!(options(&[0xc9, 2, 0, 0]), Err(ExtensionError::Malformed { at: 2 }));

    let routing = RoutingHeader { next_header: 135, segments_left: 1, home_address: home };
    assert_eq!(RoutingHeader::parse(&routing.emit()), Ok((routing, 24)));
    for (at, value) in [(1, 4), (2, 0), (3, 2)] {
        let mut bytes = [routing.emit(), vec![0; 32]].concat();
        bytes[at] = value;
        assert!(matches!(RoutingHeader::parse(&bytes), Err(ExtensionError::Routing { .. })), "byte {at}");
    }
}

#[test]
fn a_packet_that_is_no_signalling_says_why() {
    let addresses = Addresses::direct(ENDS.source, ENDS.destination);
    let message = Repr { message: Message::BindingRefreshRequest, options: Vec::new() };
    let message = message.emit(addresses.endpoints()).unwrap();
    let packet = addresses.emit(MobilityHeader::new_checked(&message).unwrap());
    let with = |at: usize, value: u8| {
        let mut packet = packet.clone();
        packet[at] = value;
        packet
    };
    assert_eq!(Signalling::parse(&packet[..47]), Err(SignallingError::NotIpv6(47)));
    assert_eq!(Signalling::parse(&with(0, 0x45)), Err(SignallingError::NotIpv6(48)));
    assert_eq!(Signalling::parse(&with(6, 58)), Err(SignallingError::OtherProtocol(58)));
    // A fragment's rest is elsewhere.
    assert_eq!(Signalling::parse(&with(6, 44)), Err(SignallingError::OtherProtocol(44)));
    let error = Signalling::parse(&with(6, 43)).unwrap_err();
    assert!(matches!(error, SignallingError::Extension { at: 40, .. }), "{error}");
}
