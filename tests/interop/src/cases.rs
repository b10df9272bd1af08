//! Messages that are also written down, independently, in `oracles.py`, under the same names. Between them they have every
//! message and every option that any of the programs knows. Never made from the programs' output.

use std::net::Ipv6Addr;

use mobility_proto::wire::*;

/// The mobile node's home address.
pub const HOME: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10);
/// Where it is, or its gateway.
pub const CARE_OF: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x20);
/// Its home agent, or anchor.
pub const AGENT: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);

/// One message on its way.
#[derive(Debug, Clone)]
pub struct Case {
    /// Its name in `oracles.py`.
    pub name: &'static str,
    /// From whom to whom.
    pub addresses: Addresses,
    /// What it says.
    pub repr: Repr,
}

impl Case {
    fn new(name: &'static str, message: Message, options: Vec<MobilityOption>) -> Self {
        Self { name, addresses: Addresses::direct(CARE_OF, AGENT), repr: Repr { message, options } }
    }

    fn with(self, addresses: Addresses) -> Self {
        Self { addresses, ..self }
    }

    /// The Mobility Header.
    ///
    /// # Panics
    /// When it cannot be emitted.
    #[must_use]
    pub fn message(&self) -> Vec<u8> {
        self.repr.emit(self.addresses.endpoints()).expect("every case can be emitted")
    }

    /// The whole packet.
    ///
    /// # Panics
    /// When it cannot be emitted.
    #[must_use]
    pub fn packet(&self) -> Vec<u8> {
        let message = self.message();
        self.addresses.emit(MobilityHeader::new_checked(&message).expect("what is emitted is whole"))
    }
}

/// All of them.
#[must_use]
pub fn cases() -> Vec<Case> {
    [mobile_node(), proxy(), gateways()].concat()
}

/// The case of this name.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn case(name: &str) -> Case {
    cases().into_iter().find(|case| case.name == name).unwrap_or_else(|| panic!("there is no case {name:?}"))
}

const fn flags(flags: &[BindingUpdateFlags]) -> BindingUpdateFlags {
    let (mut all, mut at) = (0, 0);
    while at < flags.len() {
        all |= flags[at].0;
        at += 1;
    }
    BindingUpdateFlags(all)
}

const A: BindingUpdateFlags = BindingUpdateFlags::ACKNOWLEDGE;
const H: BindingUpdateFlags = BindingUpdateFlags::HOME_REGISTRATION;

fn update(sequence: u16, flags: BindingUpdateFlags, seconds: u32) -> Message {
    let (sequence, lifetime) = (SequenceNumber(sequence), BindingLifetime::from_secs(seconds));
    Message::BindingUpdate(BindingUpdate { sequence, flags, lifetime })
}

fn prefix() -> Ipv6Prefix {
    Ipv6Prefix::new(Ipv6Addr::new(0x2001, 0xdb8, 0xa, 0, 0, 0, 0, 0), 64).expect("64 is at most 128")
}

fn mobile_node() -> Vec<Case> {
    let homed = Addresses { home_address: Some(HOME), ..Addresses::direct(CARE_OF, AGENT) };
    let back = Addresses { routed_to: Some(HOME), ..Addresses::direct(AGENT, CARE_OF) };
    let test = RoutabilityTest { nonce_index: 0x1234, cookie: *b"cookie01", token: *b"token..1" };
    let acknowledgement = Message::BindingAcknowledgement(BindingAcknowledgement {
        status: Status::SEQUENCE_OUT_OF_WINDOW,
        flags: BindingAcknowledgementFlags::KEY_MANAGEMENT,
        sequence: SequenceNumber(0x0102),
        lifetime: BindingLifetime::from_secs(36),
    });
    let error = Message::BindingError { status: BindingErrorStatus::UNRECOGNIZED_TYPE, home_address: HOME };
    let name = MobilityOption::MobileNodeIdentifier {
        kind: IdentifierType::NAI,
        identifier: b"node@example.org".to_vec(),
    };
    let replay = MobilityOption::MessageIdentification(NtpTimestamp(0x0123_4567_89ab_cdef));
    let proof = MobilityOption::Authentication {
        kind: AuthenticationType::MN_HA,
        spi: 0x1234,
        authenticator: b"authenticate".to_vec(),
    };
    let all_four = flags(&[A, H, BindingUpdateFlags::LINK_LOCAL, BindingUpdateFlags::KEY_MANAGEMENT]);
    vec![
        Case::new("refresh request", Message::BindingRefreshRequest, vec![]),
        Case::new("home test init", Message::HomeTestInit(*b"cookie01"), vec![]),
        Case::new("care-of test init", Message::CareOfTestInit(*b"cookie02"), vec![]),
        Case::new("home test", Message::HomeTest(test), vec![]),
        Case::new("care-of test", Message::CareOfTest(test), vec![]),
        Case::new(
            "binding update",
            update(0x0102, all_four, 420),
            vec![MobilityOption::AlternateCareOfAddress(CARE_OF)],
        )
        .with(homed),
        Case::new(
            "authenticated update",
            update(0x0103, flags(&[A, H]), 60),
            vec![name, replay.clone(), proof],
        )
        .with(homed),
        Case::new(
            "router's update",
            update(1, flags(&[A, H, BindingUpdateFlags::MOBILE_ROUTER]), 60),
            vec![MobilityOption::MobileNetworkPrefix(prefix())],
        ),
        Case::new(
            "acknowledgement",
            acknowledgement,
            vec![MobilityOption::BindingRefreshAdvice(BindingLifetime(7))],
        )
        .with(back),
        Case::new("binding error", error, vec![]),
        Case::new(
            "nonces",
            update(0x0102, A, 420),
            vec![MobilityOption::NonceIndices { home: 0x0a0b, care_of: 0x0c0d }],
        ),
        Case::new("all flags", update(0x0102, BindingUpdateFlags(0xfff0), 420), vec![]),
        Case::new("replay protection", update(0x0102, BindingUpdateFlags(0), 420), vec![replay]),
    ]
}

fn proxy() -> Vec<Case> {
    let acknowledgement = Message::BindingAcknowledgement(BindingAcknowledgement {
        status: Status::TIMESTAMP_LOWER_THAN_PREVIOUS,
        flags: BindingAcknowledgementFlags::PROXY,
        sequence: SequenceNumber(0x0102),
        lifetime: BindingLifetime::from_secs(420),
    });
    let name = MobilityOption::MobileNodeIdentifier {
        kind: IdentifierType::NAI,
        identifier: b"vm@example.org".to_vec(),
    };
    let user_plane = |address: &str| {
        MobilityOption::LmaUserPlaneAddress(address.parse().expect("the addresses here are addresses"))
    };
    let interface = Ipv4Interface::new([192, 0, 2, 1].into(), 24).expect("24 is at most 32");
    let status = Ipv4AddressStatus::INVALID_ADDRESS;
    vec![
        Case::new(
            "proxy update",
            update(0x0102, flags(&[A, H, BindingUpdateFlags::PROXY]), 420),
            vec![
                name.clone(),
                MobilityOption::HomeNetworkPrefix(prefix()),
                MobilityOption::HandoffIndicator(HandoffIndicator::BETWEEN_GATEWAYS),
                MobilityOption::AccessTechnologyType(AccessTechnology::ETHERNET),
                MobilityOption::LinkLayerIdentifier(vec![2, 0, 0, 0, 0, 1]),
                MobilityOption::LinkLocalAddress(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)),
                MobilityOption::Timestamp(Timestamp::from_unix_ns(1_700_000_000_500_000_000)),
                MobilityOption::TransientBinding {
                    late_path_switch: true,
                    lifetime: TransientLifetime::from_ms(500),
                },
            ],
        ),
        Case::new(
            "proxy acknowledgement",
            acknowledgement,
            vec![
                name,
                MobilityOption::VendorSpecific { vendor: 32473, kind: 5, data: b"epoch 7".to_vec() },
                user_plane("2001:db8:3::1"),
                user_plane("192.0.2.7"),
            ],
        ),
        Case::new(
            "IPv4",
            acknowledgement,
            vec![
                MobilityOption::Ipv4HomeAddress { interface, prefix: true },
                MobilityOption::Ipv4AddressAcknowledgement { status, interface },
                MobilityOption::NatDetection { force: true, refresh_s: 110 },
                MobilityOption::Ipv4CareOfAddress([192, 0, 2, 9].into()),
                MobilityOption::Ipv4HomeAddressRequest(interface),
                MobilityOption::Ipv4HomeAddressReply { status, interface },
                MobilityOption::Ipv4DefaultRouterAddress([192, 0, 2, 254].into()),
            ],
        ),
    ]
}

fn gateways() -> Vec<Case> {
    let sequence = 0x0102;
    let initiate = Message::HandoverInitiate {
        sequence,
        flags: HandoverInitiateFlags::BUFFER | HandoverInitiateFlags::PROXY | HandoverInitiateFlags::FORWARD,
        code: HandoverInitiateCode::FORWARDING_COMPLETE,
    };
    let acknowledge = Message::HandoverAcknowledge {
        sequence,
        flags: HandoverAcknowledgeFlags::BUFFER | HandoverAcknowledgeFlags::PROXY,
        code: HandoverAcknowledgeCode::CONTEXT_COMPLETE,
    };
    let context = vec![
        ContextItem { kind: OptionType::HOME_NETWORK_PREFIX, data: vec![] },
        // Which one: vendor 32473, type 5.
        ContextItem { kind: OptionType::VENDOR_SPECIFIC, data: vec![0, 0, 0x7e, 0xd9, 5] },
    ];
    let revoked = RevocationFlags::PROXY | RevocationFlags::IPV4_ONLY | RevocationFlags::GLOBAL;
    vec![
        Case::new(
            "heartbeat",
            Message::Heartbeat { response: true, unsolicited: true, sequence: 0x0102_0304 },
            vec![MobilityOption::RestartCounter(9)],
        ),
        Case::new(
            "handover initiate",
            initiate,
            vec![
                MobilityOption::LocalMobilityAnchorAddress(AGENT.into()),
                MobilityOption::LocalMobilityAnchorAddress([192, 0, 2, 7].into()),
                MobilityOption::LinkLocalInterfaceIdentifier(*b"interfac"),
                MobilityOption::Ipv6AddressPrefix { code: 2, prefix_len: 64, address: CARE_OF },
            ],
        ),
        Case::new("handover acknowledge", acknowledge, vec![MobilityOption::ContextRequest(context)]),
        Case::new(
            "revocation",
            Message::BindingRevocationIndication {
                trigger: RevocationTrigger::HANDOVER_SAME_ACCESS_TYPE,
                sequence,
                flags: RevocationFlags::PROXY,
            },
            vec![],
        ),
        Case::new(
            "revocation acknowledged",
            Message::BindingRevocationAcknowledgement {
                status: RevocationStatus::NO_BINDING,
                sequence,
                flags: revoked,
            },
            vec![],
        ),
        Case::new(
            "localized routing",
            Message::LocalizedRoutingInitiation { sequence, lifetime_s: 60 },
            vec![MobilityOption::MagIpv6Address(AGENT)],
        ),
        Case::new(
            "localized routing acknowledged",
            Message::LocalizedRoutingAcknowledgment {
                sequence,
                unsolicited: true,
                status: LocalizedRoutingStatus::NOT_ATTACHED,
                lifetime_s: u16::MAX,
            },
            vec![],
        ),
        Case::new(
            "notification",
            Message::UpdateNotification {
                sequence,
                reason: NotificationReason::FORCE_REREGISTRATION,
                flags: NotificationFlags::ACKNOWLEDGE | NotificationFlags::RETRANSMISSION,
            },
            vec![],
        ),
        Case::new(
            "notification acknowledged",
            Message::UpdateNotificationAcknowledgement {
                sequence,
                status: NotificationStatus::UPDATE_FAILED,
            },
            vec![],
        ),
    ]
}
