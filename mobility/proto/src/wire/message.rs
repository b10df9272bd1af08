//! The messages of the Mobility Header: the fixed part of each, between the checksum and the options. Knows the layout;
//! never what a message does to a binding.

use std::net::Ipv6Addr;

use super::bytes::Reader;
use super::numbers::*;
use super::units::*;

/// A number that the tester makes up and gets back (RFC 6275 section 5.2.5).
pub type Cookie = [u8; 8];
/// What a correspondent gives who can be reached at an address (RFC 6275 section 5.2.5).
pub type KeygenToken = [u8; 8];

/// A message without its options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// The binding will end: renew it (RFC 6275 section 6.1.2).
    BindingRefreshRequest,
    /// Asks for a home keygen token, by way of the home agent (RFC 6275 section 6.1.3).
    HomeTestInit(Cookie),
    /// Asks for a care-of keygen token, directly (RFC 6275 section 6.1.4).
    CareOfTestInit(Cookie),
    /// Answers a Home Test Init (RFC 6275 section 6.1.5).
    HomeTest(RoutabilityTest),
    /// Answers a Care-of Test Init (RFC 6275 section 6.1.6).
    CareOfTest(RoutabilityTest),
    /// Registers a care-of address; with the P flag by a mobile access gateway (RFC 6275 section 6.1.7, RFC 5213 section
    /// 8.1).
    BindingUpdate(BindingUpdate),
    /// Answers a Binding Update (RFC 6275 section 6.1.8, RFC 5213 section 8.2).
    BindingAcknowledgement(BindingAcknowledgement),
    /// Something about mobility was not understood (RFC 6275 section 6.1.9).
    BindingError {
        /// What.
        status: BindingErrorStatus,
        /// From the Home Address option of the packet it answers; `::` when that had none.
        home_address: Ipv6Addr,
    },
    /// Are you there, and since when (RFC 5847 section 3.3).
    Heartbeat {
        /// R: an answer, not a question.
        response: bool,
        /// U: an answer that was not asked for, after a restart.
        unsolicited: bool,
        /// Copied from the question.
        sequence: u32,
    },
    /// From gateway to gateway: forward and buffer (RFC 5568 section 6.2.1, RFC 5949 section 6.1.1).
    HandoverInitiate {
        /// Copied into the answer.
        sequence: u16,
        /// What is asked for.
        flags: HandoverInitiateFlags,
        /// At which step.
        code: HandoverInitiateCode,
    },
    /// Answers a Handover Initiate (RFC 5568 section 6.2.2, RFC 5949 section 6.1.2).
    HandoverAcknowledge {
        /// Of the Handover Initiate; unsolicited, a number of its own.
        sequence: u16,
        /// What will be done.
        flags: HandoverAcknowledgeFlags,
        /// The result.
        code: HandoverAcknowledgeCode,
    },
    /// The binding has ended (RFC 5846 section 5.1).
    BindingRevocationIndication {
        /// Why.
        trigger: RevocationTrigger,
        /// Copied into the answer.
        sequence: u16,
        /// Of which bindings.
        flags: RevocationFlags,
    },
    /// Answers a Binding Revocation Indication (RFC 5846 section 5.2).
    BindingRevocationAcknowledgement {
        /// The result.
        status: RevocationStatus,
        /// Of the indication.
        sequence: u16,
        /// Of the indication.
        flags: RevocationFlags,
    },
    /// Route between two gateways without the anchor (RFC 6705 section 9.1).
    LocalizedRoutingInitiation {
        /// Copied into the answer.
        sequence: u16,
        /// For how long, in seconds; 0 ends it, 65535 is without end.
        lifetime_s: u16,
    },
    /// Answers a Localized Routing Initiation (RFC 6705 section 9.2).
    LocalizedRoutingAcknowledgment {
        /// Of the initiation.
        sequence: u16,
        /// U: not asked for.
        unsolicited: bool,
        /// The result.
        status: LocalizedRoutingStatus,
        /// For how long, in seconds; 65535 is without end.
        lifetime_s: u16,
    },
    /// The anchor tells a gateway that something has changed (RFC 7077 section 4.1).
    UpdateNotification {
        /// Copied into the answer.
        sequence: u16,
        /// What.
        reason: NotificationReason,
        /// Whether an answer is asked for, and whether it was sent before.
        flags: NotificationFlags,
    },
    /// Answers an Update Notification (RFC 7077 section 4.2).
    UpdateNotificationAcknowledgement {
        /// Of the notification.
        sequence: u16,
        /// The result.
        status: NotificationStatus,
    },
}

/// The answer of a correspondent to a return-routability test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoutabilityTest {
    /// Which of the correspondent's nonces the token was made with.
    pub nonce_index: u16,
    /// Of the question.
    pub cookie: Cookie,
    /// Half of the key for a Binding Update.
    pub token: KeygenToken,
}

/// A Binding Update, or a Proxy Binding Update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BindingUpdate {
    /// Orders the updates of one mobile node.
    pub sequence: SequenceNumber,
    /// What kind of registration.
    pub flags: BindingUpdateFlags,
    /// For how long; zero deregisters.
    pub lifetime: BindingLifetime,
}

/// A Binding Acknowledgement, or a Proxy Binding Acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BindingAcknowledgement {
    /// The result.
    pub status: Status,
    /// What kind of registration.
    pub flags: BindingAcknowledgementFlags,
    /// Of the update; with [`Status::SEQUENCE_OUT_OF_WINDOW`] the last that was accepted.
    pub sequence: SequenceNumber,
    /// For how long it is granted.
    pub lifetime: BindingLifetime,
}

/// Why the fixed part of a message cannot be read.
pub(super) enum Unreadable {
    UnknownType,
    TooShort,
    /// The B.R. Type of a Binding Revocation.
    UnknownRevocation(u8),
}

const REVOCATION_INDICATION: u8 = 1;
const REVOCATION_ACKNOWLEDGEMENT: u8 = 2;

impl Message {
    /// Reads the fixed part of a message of this type and leaves the options.
    pub(super) fn parse(kind: MhType, r: &mut Reader<'_>) -> Result<Self, Unreadable> {
        if kind == MhType::BINDING_REVOCATION {
            let revocation = r.u8().ok_or(Unreadable::TooShort)?;
            return Self::parse_revocation(revocation, r).ok_or(Unreadable::TooShort)?;
        }
        Self::parse_known(kind, r).unwrap_or(Err(Unreadable::TooShort))
    }

    /// `None` when it is cut off.
    fn parse_known(kind: MhType, r: &mut Reader<'_>) -> Option<Result<Self, Unreadable>> {
        Some(Ok(match kind {
            MhType::BINDING_REFRESH_REQUEST => {
                r.u16()?;
                Self::BindingRefreshRequest
            }
            MhType::HOME_TEST_INIT => {
                r.u16()?;
                Self::HomeTestInit(r.array()?)
            }
            MhType::CARE_OF_TEST_INIT => {
                r.u16()?;
                Self::CareOfTestInit(r.array()?)
            }
            MhType::HOME_TEST => Self::HomeTest(parse_test(r)?),
            MhType::CARE_OF_TEST => Self::CareOfTest(parse_test(r)?),
            MhType::BINDING_UPDATE => Self::BindingUpdate(BindingUpdate {
                sequence: SequenceNumber(r.u16()?),
                flags: BindingUpdateFlags(r.u16()?),
                lifetime: BindingLifetime(r.u16()?),
            }),
            MhType::BINDING_ACKNOWLEDGEMENT => Self::BindingAcknowledgement(BindingAcknowledgement {
                status: Status(r.u8()?),
                flags: BindingAcknowledgementFlags(r.u8()?),
                sequence: SequenceNumber(r.u16()?),
                lifetime: BindingLifetime(r.u16()?),
            }),
            MhType::BINDING_ERROR => {
                let status = BindingErrorStatus((r.u16()? >> 8) as u8);
                Self::BindingError { status, home_address: r.ipv6()? }
            }
            MhType::HEARTBEAT => {
                let flags = r.u16()?;
                let (response, unsolicited) = (flags & 1 != 0, flags & 2 != 0);
                Self::Heartbeat { response, unsolicited, sequence: r.u32()? }
            }
            MhType::HANDOVER_INITIATE => Self::HandoverInitiate {
                sequence: r.u16()?,
                flags: HandoverInitiateFlags(r.u8()?),
                code: HandoverInitiateCode(r.u8()?),
            },
            MhType::HANDOVER_ACKNOWLEDGE => Self::HandoverAcknowledge {
                sequence: r.u16()?,
                flags: HandoverAcknowledgeFlags(r.u8()?),
                code: HandoverAcknowledgeCode(r.u8()?),
            },
            MhType::LOCALIZED_ROUTING_INITIATION => {
                let sequence = r.u16()?;
                r.u16()?;
                Self::LocalizedRoutingInitiation { sequence, lifetime_s: r.u16()? }
            }
            MhType::LOCALIZED_ROUTING_ACKNOWLEDGMENT => Self::LocalizedRoutingAcknowledgment {
                sequence: r.u16()?,
                unsolicited: r.u8()? & 0x80 != 0,
                status: LocalizedRoutingStatus(r.u8()?),
                lifetime_s: r.u16()?,
            },
            MhType::UPDATE_NOTIFICATION => Self::UpdateNotification {
                sequence: r.u16()?,
                reason: NotificationReason(r.u16()?),
                flags: NotificationFlags(r.u16()?),
            },
            MhType::UPDATE_NOTIFICATION_ACKNOWLEDGEMENT => {
                let (sequence, status) = (r.u16()?, NotificationStatus(r.u8()?));
                r.take(3)?;
                Self::UpdateNotificationAcknowledgement { sequence, status }
            }
            _ => return Some(Err(Unreadable::UnknownType)),
        }))
    }

    /// `None` when it is cut off.
    fn parse_revocation(revocation: u8, r: &mut Reader<'_>) -> Option<Result<Self, Unreadable>> {
        let (code, sequence, flags) = (r.u8()?, r.u16()?, RevocationFlags(r.u16()?));
        Some(match revocation {
            REVOCATION_INDICATION => {
                Ok(Self::BindingRevocationIndication { trigger: RevocationTrigger(code), sequence, flags })
            }
            REVOCATION_ACKNOWLEDGEMENT => {
                Ok(Self::BindingRevocationAcknowledgement { status: RevocationStatus(code), sequence, flags })
            }
            other => Err(Unreadable::UnknownRevocation(other)),
        })
    }

    /// Its MH Type.
    #[must_use]
    pub fn kind(&self) -> MhType {
        match self {
            Self::BindingRefreshRequest => MhType::BINDING_REFRESH_REQUEST,
            Self::HomeTestInit(_) => MhType::HOME_TEST_INIT,
            Self::CareOfTestInit(_) => MhType::CARE_OF_TEST_INIT,
            Self::HomeTest(_) => MhType::HOME_TEST,
            Self::CareOfTest(_) => MhType::CARE_OF_TEST,
            Self::BindingUpdate(_) => MhType::BINDING_UPDATE,
            Self::BindingAcknowledgement(_) => MhType::BINDING_ACKNOWLEDGEMENT,
            Self::BindingError { .. } => MhType::BINDING_ERROR,
            Self::Heartbeat { .. } => MhType::HEARTBEAT,
            Self::HandoverInitiate { .. } => MhType::HANDOVER_INITIATE,
            Self::HandoverAcknowledge { .. } => MhType::HANDOVER_ACKNOWLEDGE,
            Self::BindingRevocationIndication { .. } | Self::BindingRevocationAcknowledgement { .. } => {
                MhType::BINDING_REVOCATION
            }
            Self::LocalizedRoutingInitiation { .. } => MhType::LOCALIZED_ROUTING_INITIATION,
            Self::LocalizedRoutingAcknowledgment { .. } => MhType::LOCALIZED_ROUTING_ACKNOWLEDGMENT,
            Self::UpdateNotification { .. } => MhType::UPDATE_NOTIFICATION,
            Self::UpdateNotificationAcknowledgement { .. } => MhType::UPDATE_NOTIFICATION_ACKNOWLEDGEMENT,
        }
    }

    /// Appends the fixed part.
    pub(super) fn emit(&self, out: &mut Vec<u8>) {
        match *self {
            Self::BindingRefreshRequest => out.extend([0, 0]),
            Self::HomeTestInit(cookie) | Self::CareOfTestInit(cookie) => {
                out.extend([0, 0]);
                out.extend(cookie);
            }
            Self::HomeTest(test) | Self::CareOfTest(test) => {
                out.extend(test.nonce_index.to_be_bytes());
                out.extend(test.cookie);
                out.extend(test.token);
            }
            Self::BindingUpdate(BindingUpdate { sequence, flags, lifetime }) => {
                out.extend(sequence.0.to_be_bytes());
                out.extend(flags.0.to_be_bytes());
                out.extend(lifetime.0.to_be_bytes());
            }
            Self::BindingAcknowledgement(BindingAcknowledgement { status, flags, sequence, lifetime }) => {
                out.extend([status.0, flags.0]);
                out.extend(sequence.0.to_be_bytes());
                out.extend(lifetime.0.to_be_bytes());
            }
            Self::BindingError { status, home_address } => {
                out.extend([status.0, 0]);
                out.extend(home_address.octets());
            }
            Self::Heartbeat { response, unsolicited, sequence } => {
                out.extend([0, u8::from(response) | u8::from(unsolicited) << 1]);
                out.extend(sequence.to_be_bytes());
            }
            Self::HandoverInitiate { sequence, flags, code } => {
                out.extend(sequence.to_be_bytes());
                out.extend([flags.0, code.0]);
            }
            Self::HandoverAcknowledge { sequence, flags, code } => {
                out.extend(sequence.to_be_bytes());
                out.extend([flags.0, code.0]);
            }
            Self::BindingRevocationIndication { trigger, sequence, flags } => {
                out.extend([REVOCATION_INDICATION, trigger.0]);
                out.extend(sequence.to_be_bytes());
                out.extend(flags.0.to_be_bytes());
            }
            Self::BindingRevocationAcknowledgement { status, sequence, flags } => {
                out.extend([REVOCATION_ACKNOWLEDGEMENT, status.0]);
                out.extend(sequence.to_be_bytes());
                out.extend(flags.0.to_be_bytes());
            }
            Self::LocalizedRoutingInitiation { sequence, lifetime_s } => {
                out.extend(sequence.to_be_bytes());
                out.extend([0, 0]);
                out.extend(lifetime_s.to_be_bytes());
            }
            Self::LocalizedRoutingAcknowledgment { sequence, unsolicited, status, lifetime_s } => {
                out.extend(sequence.to_be_bytes());
                out.extend([u8::from(unsolicited) << 7, status.0]);
                out.extend(lifetime_s.to_be_bytes());
            }
            Self::UpdateNotification { sequence, reason, flags } => {
                out.extend(sequence.to_be_bytes());
                out.extend(reason.0.to_be_bytes());
                out.extend(flags.0.to_be_bytes());
            }
            Self::UpdateNotificationAcknowledgement { sequence, status } => {
                out.extend(sequence.to_be_bytes());
                out.extend([status.0, 0, 0, 0]);
            }
        }
    }
}

fn parse_test(r: &mut Reader<'_>) -> Option<RoutabilityTest> {
    Some(RoutabilityTest { nonce_index: r.u16()?, cookie: r.array()?, token: r.array()? })
}
