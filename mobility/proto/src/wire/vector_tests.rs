//! Messages written down byte by byte from the diagrams of the RFCs, and the units in them.

use std::net::Ipv6Addr;

use super::*;

const ENDS: Endpoints = Endpoints {
    source: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
    destination: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2),
};

/// The bytes of a text of hexadecimal digits; `|` and spaces separate fields.
fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        text.chars().filter_map(|digit| digit.to_digit(16)).map(|digit| digit as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// Emits what the text says, the checksum apart, and nothing else.
fn check(message: Message, options: Vec<MobilityOption>, text: &str) {
    let repr = Repr { message, options };
    let bytes = repr.emit(ENDS).unwrap();
    let mut unsummed = bytes.clone();
    unsummed[4..6].fill(0);
    assert_eq!(unsummed, hex(text), "{repr:?}");
    assert_eq!(Repr::parse(&MobilityHeader::new_checked(&bytes).unwrap(), ENDS), Ok(repr));
}

#[test]
fn the_messages_of_rfc_6275() {
    check(Message::BindingRefreshRequest, vec![], "3b 00 00 00 0000 0000");
    check(Message::HomeTestInit(*b"cookie01"), vec![], "3b 01 01 00 0000 0000 636f6f6b69653031");
    check(Message::CareOfTestInit(*b"cookie02"), vec![], "3b 01 02 00 0000 0000 636f6f6b69653032");
    let test = RoutabilityTest { nonce_index: 0x1234, cookie: *b"cookie01", token: *b"token..1" };
    check(Message::HomeTest(test), vec![], "3b 02 03 00 0000 1234 636f6f6b69653031 746f6b656e2e2e31");
    check(Message::CareOfTest(test), vec![], "3b 02 04 00 0000 1234 636f6f6b69653031 746f6b656e2e2e31");
    let update = BindingUpdate {
        sequence: SequenceNumber(0x0102),
        flags: BindingUpdateFlags::ACKNOWLEDGE | BindingUpdateFlags::HOME_REGISTRATION,
        lifetime: BindingLifetime::from_secs(420),
    };
    check(Message::BindingUpdate(update), vec![], "3b 01 05 00 0000 0102 c000 0069 | 0102 0000");
    let acknowledgement = BindingAcknowledgement {
        status: Status::SEQUENCE_OUT_OF_WINDOW,
        flags: BindingAcknowledgementFlags::KEY_MANAGEMENT,
        sequence: SequenceNumber(0x0102),
        lifetime: BindingLifetime::ZERO,
    };
    let advice = MobilityOption::BindingRefreshAdvice(BindingLifetime(0x00ff));
    let text = "3b 01 06 00 0000 87 80 0102 0000 | 02 02 00ff";
    check(Message::BindingAcknowledgement(acknowledgement), vec![advice], text);
    let error = Message::BindingError {
        status: BindingErrorStatus::UNRECOGNIZED_TYPE,
        home_address: "2001:db8::99".parse().unwrap(),
    };
    check(error, vec![], "3b 02 07 00 0000 02 00 20010db8000000000000000000000099");
}

#[test]
fn the_options_of_rfc_6275_stand_where_they_are_aligned() {
    let update = BindingUpdate {
        sequence: SequenceNumber(1),
        flags: BindingUpdateFlags::ACKNOWLEDGE,
        lifetime: BindingLifetime(2),
    };
    let options = vec![
        MobilityOption::NonceIndices { home: 0x0a0b, care_of: 0x0c0d },
        MobilityOption::AlternateCareOfAddress("2001:db8::33".parse().unwrap()),
        MobilityOption::BindingAuthorizationData(*b"authenticate"),
    ];
    // Option 4 at 12 (2n), option 3 at 22 (8n+6), option 5 at 42 (8n+2): it ends the header.
    let text = "3b 06 05 00 0000 0001 8000 0002 | 04 04 0a0b 0c0d | 01 02 0000 \
                | 03 10 20010db8000000000000000000000033 | 01 00 | 05 0c 61757468656e746963617465";
    check(Message::BindingUpdate(update), options, text);
}

#[test]
fn a_proxy_binding_update_of_rfc_5213() {
    let update = BindingUpdate {
        sequence: SequenceNumber(7),
        flags: BindingUpdateFlags::ACKNOWLEDGE
            | BindingUpdateFlags::HOME_REGISTRATION
            | BindingUpdateFlags::PROXY,
        lifetime: BindingLifetime(0x10),
    };
    let options = vec![
        MobilityOption::MobileNodeIdentifier { kind: IdentifierType::NAI, identifier: b"vm@x".to_vec() },
        MobilityOption::HomeNetworkPrefix(Ipv6Prefix::new("2001:db8:1::".parse().unwrap(), 64).unwrap()),
        MobilityOption::HandoffIndicator(HandoffIndicator::BETWEEN_GATEWAYS),
        MobilityOption::AccessTechnologyType(AccessTechnology::ETHERNET),
        MobilityOption::LinkLayerIdentifier(vec![0x02, 0, 0, 0, 0, 1]),
        MobilityOption::LinkLocalAddress("fe80::1".parse().unwrap()),
        MobilityOption::Timestamp(Timestamp::from_unix_ns(1_500_000_000)),
        MobilityOption::TransientBinding {
            late_path_switch: true,
            lifetime: TransientLifetime::from_ms(500),
        },
    ];
    // 12: 8 of 7 bytes; 20: 22 (8n+4); 40: 23; 44: 24; 48: 25 of 10; 62: 26 (8n+6); 82: 27 (8n+2); 92: 43.
    let text = "3b 0b 05 00 0000 0007 c200 0010 | 08 05 01 766d4078 | 00 | 16 12 00 40 20010db8000100000000000000000000 \
                | 17 02 00 03 | 18 02 00 03 | 19 08 0000 020000000001 | 01 02 0000 \
                | 1a 10 fe800000000000000000000000000001 | 01 00 | 1b 08 000000000001 8000 | 2b 02 01 05";
    check(Message::BindingUpdate(update), options, text);
}

#[test]
fn the_options_of_rfc_4283_and_rfc_4285() {
    let options = vec![
        MobilityOption::MessageIdentification(NtpTimestamp(0x0123_4567_89ab_cdef)),
        MobilityOption::Authentication {
            kind: AuthenticationType::MN_HA,
            spi: 256,
            authenticator: b"authenticate".to_vec(),
        },
    ];
    // Option 10 at 10 (8n+2), option 9 at 21 (4n+1).
    let text = "3b 04 00 00 0000 0000 | 01 00 | 0a 08 0123456789abcdef | 00 | 09 11 01 00000100 \
                61757468656e746963617465";
    check(Message::BindingRefreshRequest, options, text);
}

#[test]
fn the_messages_between_gateways_and_anchor() {
    let message = Message::Heartbeat { response: true, unsolicited: false, sequence: 0x0102_0304 };
    // RFC 5847: the restart counter at 14 (4n+2).
    let text = "3b 02 0d 00 0000 0001 01020304 | 01 00 | 1c 04 00000009 | 01 02 0000";
    check(message, vec![MobilityOption::RestartCounter(9)], text);
    let message = Message::HandoverInitiate {
        sequence: 0x0102,
        flags: HandoverInitiateFlags::BUFFER | HandoverInitiateFlags::PROXY | HandoverInitiateFlags::FORWARD,
        code: HandoverInitiateCode::START,
    };
    let anchor = MobilityOption::LocalMobilityAnchorAddress("2001:db8::5".parse().unwrap());
    let text = "3b 03 0e 00 0000 0102 70 00 | 01 00 | 29 12 01 00 20010db8000000000000000000000005";
    check(message, vec![anchor], text);
    let message = Message::HandoverAcknowledge {
        sequence: 0x0102,
        flags: HandoverAcknowledgeFlags::PROXY | HandoverAcknowledgeFlags::FORWARD,
        code: HandoverAcknowledgeCode::CONTEXT_COMPLETE,
    };
    let context = MobilityOption::ContextRequest(vec![
        ContextItem { kind: OptionType::HOME_NETWORK_PREFIX, data: vec![] },
        ContextItem { kind: OptionType::VENDOR_SPECIFIC, data: vec![1, 2] },
    ]);
    let text = "3b 02 0f 00 0000 0102 60 06 | 01 00 | 28 08 0000 16 00 13 02 0102 | 01 00";
    check(message, vec![context], text);
    let message = Message::BindingRevocationIndication {
        trigger: RevocationTrigger::HANDOVER_SAME_ACCESS_TYPE,
        sequence: 0x0102,
        flags: RevocationFlags::PROXY,
    };
    check(message, vec![], "3b 01 10 00 0000 01 02 0102 8000 | 01 02 0000");
    let message = Message::BindingRevocationAcknowledgement {
        status: RevocationStatus::NO_BINDING,
        sequence: 0x0102,
        flags: RevocationFlags::PROXY | RevocationFlags::GLOBAL,
    };
    check(message, vec![], "3b 01 10 00 0000 02 80 0102 a000 | 01 02 0000");
    let message = Message::LocalizedRoutingInitiation { sequence: 0x0102, lifetime_s: 60 };
    let gateway = MobilityOption::MagIpv6Address("2001:db8::6".parse().unwrap());
    let text = "3b 03 11 00 0000 0102 0000 003c | 33 12 00 80 20010db8000000000000000000000006";
    check(message, vec![gateway], text);
    let message = Message::LocalizedRoutingAcknowledgment {
        sequence: 0x0102,
        unsolicited: true,
        status: LocalizedRoutingStatus::NOT_ATTACHED,
        lifetime_s: 0xffff,
    };
    check(message, vec![], "3b 01 12 00 0000 0102 80 81 ffff | 01 02 0000");
    let message = Message::UpdateNotification {
        sequence: 0x0102,
        reason: NotificationReason::FORCE_REREGISTRATION,
        flags: NotificationFlags::ACKNOWLEDGE,
    };
    check(message, vec![], "3b 01 13 00 0000 0102 0001 8000 | 01 02 0000");
    let message = Message::UpdateNotificationAcknowledgement {
        sequence: 0x0102,
        status: NotificationStatus::UPDATE_FAILED,
    };
    check(message, vec![], "3b 01 14 00 0000 0102 80 000000 | 01 02 0000");
}

#[test]
fn the_options_for_ipv4() {
    let interface = Ipv4Interface::new([192, 0, 2, 1].into(), 24).unwrap();
    let acknowledgement = BindingAcknowledgement {
        status: Status::ACCEPTED,
        flags: BindingAcknowledgementFlags::PROXY,
        sequence: SequenceNumber(1),
        lifetime: BindingLifetime(2),
    };
    let status = Ipv4AddressStatus::INVALID_ADDRESS;
    let options = vec![
        MobilityOption::Ipv4HomeAddress { interface, prefix: true },
        MobilityOption::Ipv4AddressAcknowledgement { status, interface },
        MobilityOption::NatDetection { force: true, refresh_s: 110 },
        MobilityOption::Ipv4CareOfAddress([192, 0, 2, 9].into()),
        MobilityOption::Ipv4HomeAddressRequest(interface),
        MobilityOption::Ipv4HomeAddressReply { status, interface },
        MobilityOption::Ipv4DefaultRouterAddress([192, 0, 2, 254].into()),
        MobilityOption::LmaUserPlaneAddress("192.0.2.7".parse().unwrap()),
    ];
    let text = "3b 09 06 00 0000 00 20 0001 0002 | 1d 06 6200 c0000201 | 1e 06 83 60 c0000201 | 1f 06 8000 0000006e \
                | 20 06 0000 c0000209 | 24 06 6000 c0000201 | 25 06 83 60 c0000201 | 26 06 0000 c00002fe \
                | 3b 06 0000 c0000207 | 01 02 0000";
    // Every option has 8 bytes; the last one at 68 (8n+4).
    check(Message::BindingAcknowledgement(acknowledgement), options, text);
}

#[test]
fn the_checksum_covers_home_addresses() {
    // Added up by hand: 2001+0db8+0001 + 2001+0db8+0002 + length 8 + protocol 87, then 3b00: 0x9704; inverted 0x68fb.
    let bytes = Repr { message: Message::BindingRefreshRequest, options: vec![] }.emit(ENDS).unwrap();
    assert_eq!(MobilityHeader::new_checked(&bytes).unwrap().checksum(), 0x68fb);
    let addresses = Addresses {
        source: "2001:db8:f::1".parse().unwrap(),
        destination: "2001:db8:f::2".parse().unwrap(),
        home_address: Some(ENDS.source),
        routed_to: Some(ENDS.destination),
    };
    assert_eq!(addresses.endpoints(), ENDS);
    let packet = addresses.emit(MobilityHeader::new_checked(&bytes).unwrap());
    let text = "60000000 0038 2b 40 20010db8000f00000000000000000001 20010db8000f00000000000000000002 \
                | 3c 02 02 01 00000000 20010db8000000000000000000000002 \
                | 87 02 01 02 0000 c9 10 20010db8000000000000000000000001 | 3b 00 00 00 68fb 0000";
    assert_eq!(packet, hex(text));
}

#[test]
fn units_are_those_of_the_rfcs() {
    assert_eq!(BindingLifetime::from_secs(7).as_secs(), 4);
    assert_eq!(BindingLifetime::from_secs(u32::MAX), BindingLifetime(u16::MAX));
    assert_eq!(TransientLifetime::from_ms(999).as_ms(), 900);
    assert_eq!(Timestamp::from_unix_ns(2_250_000_000).0, 0x0000_0000_0002_4000);
    assert_eq!(Timestamp(u64::MAX).as_unix_ns(), u64::MAX);
    // 1970 in NTP time, as in every NTP implementation.
    assert_eq!(NtpTimestamp::from_unix_ns(500_000_000).0, 0x83aa_7e80_8000_0000);
    // The example of RFC 6275 section 9.5.1.
    let stale = |number: u16| !SequenceNumber(number).follows(SequenceNumber(15));
    assert!(stale(0) && stale(15) && stale(32783) && stale(65535) && !stale(16) && !stale(32782));
    let later = Timestamp(5).after(Timestamp(9));
    assert_eq!((later, Timestamp(50).after(later)), (Timestamp(10), Timestamp(50)));
    assert_eq!(Ipv6Prefix::new(ENDS.source, 129), None);
    assert_eq!(Ipv4Interface::new([0; 4].into(), 33), None);
}

#[test]
fn numbers_are_shown_with_their_meaning() {
    assert_eq!(Status(135).to_string(), "sequence number out of window (135)");
    assert_eq!(Status(250).to_string(), "unassigned number 250");
    assert!(Status(6).is_accepted() && !Status(128).is_accepted());
}
