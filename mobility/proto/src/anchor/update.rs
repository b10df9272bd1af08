//! What a Binding Update that was proved does to a mobile node: judged against its key, then applied, then acknowledged
//! (RFC 6275 sections 9.5.1 and 10.3, RFC 5213 section 5.3, RFC 6058 section 4).

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use super::config::{Config, Registrant};
use super::freshness::Freshness;
use super::node::{Grant, Node, Registration, Sender};
use super::output::Output;
use crate::wire::*;

/// How far a mobile node's clock may be from ours (RFC 4285 section 6.2 leaves it open; 7 s is UMIP's).
const REPLAY_WINDOW_NS: u64 = 7_000_000_000;

/// How often a mobile node behind a NAT is to register again. RFC 5555 section 5.3 has 110 s; but there are NATs that forget
/// sooner than in 30.
const NAT_REFRESH_S: u32 = 25;

/// A Binding Update that was proved.
pub(super) struct Came<'a> {
    pub(super) now: Duration,
    pub(super) unix_ns: u64,
    pub(super) spi: u32,
    pub(super) sender: Sender,
    pub(super) update: BindingUpdate,
    pub(super) options: &'a [MobilityOption],
}

/// What an update that is not refused asks for.
enum Accepted {
    /// It was accepted before, and its acknowledgement may have been lost.
    Again,
    End,
    Bind,
    /// What will be bound does not belong to a transient binding any more.
    BindNotTransient,
    Prepare(TransientLifetime),
}

impl Came<'_> {
    fn option<T>(&self, pick: impl Fn(&MobilityOption) -> Option<T>) -> Option<T> {
        self.options.iter().find_map(pick)
    }

    fn has(&self, kind: OptionType) -> bool {
        self.options.iter().any(|option| option.kind() == kind)
    }

    fn freshness(&self) -> Freshness {
        let time = self.option(|option| match option {
            MobilityOption::Timestamp(Timestamp(time))
            | MobilityOption::MessageIdentification(NtpTimestamp(time)) => Some(*time),
            _ => None,
        });
        Freshness { sequence: self.update.sequence, time }
    }

    /// Where a gateway takes tunnelled packets. RFC 7389 has an anchor say so by this option; a gateway says it by the same,
    /// because an alternate care-of address, which the RFC has it use, would be another sender's to the proof.
    fn user_plane(&self) -> Option<Ipv6Addr> {
        self.option(|option| match option {
            MobilityOption::LmaUserPlaneAddress(IpAddr::V6(address)) if !address.is_unspecified() => {
                Some(*address)
            }
            _ => None,
        })
    }

    /// The IPv4 home address that a gateway asks for (RFC 5844 section 3.3.1).
    fn ipv4(&self) -> Option<Ipv4Interface> {
        self.option(|option| match option {
            MobilityOption::Ipv4HomeAddressRequest(interface) => Some(*interface),
            _ => None,
        })
    }

    /// What a mobile node is told that has registered over UDP (RFC 5555 section 3.2.2): whether there is a NAT, which its update
    /// shows by coming from another address than it names. Without one UDP is used all the same, for we have no other way over IPv4,
    /// but nothing has to be kept awake.
    fn nat_detection(&self) -> Option<MobilityOption> {
        let from = self.sender.udp?.ip().to_ipv6_mapped();
        let is_behind = from != self.sender.covered.care_of;
        let refresh_s = if is_behind { NAT_REFRESH_S } else { u32::MAX };
        Some(MobilityOption::NatDetection { force: !is_behind, refresh_s })
    }

    fn transient(&self) -> Option<TransientLifetime> {
        self.option(|option| match option {
            MobilityOption::TransientBinding { lifetime, .. } => Some(*lifetime),
            _ => None,
        })
    }
}

impl Node {
    pub(super) fn update(&mut self, came: &Came<'_>, config: &Config, outputs: &mut VecDeque<Output>) {
        let Some(grant) = self.grant(came.spi) else { return };
        let judged = self.judge(came, grant, config);
        let (epoch, lifetime) = (grant.epoch(), came.update.lifetime.min(config.max_lifetime));
        let user_plane = came.user_plane().filter(|_| self.is_gateway(came.spi));
        let registration =
            |expires| Registration { spi: came.spi, epoch, sender: came.sender, user_plane, expires };
        let until = came.now + Duration::from_secs(lifetime.as_secs().into());
        let mut status = Status::ACCEPTED;
        match judged {
            Err(refused) => status = refused,
            Ok(Accepted::Again) => {}
            Ok(Accepted::End) => self.end(came.spi, outputs),
            Ok(Accepted::Bind) => self.bind(came.now, registration(until), outputs),
            Ok(Accepted::BindNotTransient) => {
                self.bind(came.now, registration(until), outputs);
                status = Status::TRANSIENT_BINDING_IGNORED;
            }
            Ok(Accepted::Prepare(transient)) => {
                let ms = transient.min(config.max_transient).as_ms();
                let until = came.now + Duration::from_millis(ms.into());
                self.transient = Some(registration(until));
            }
        }
        if let Some(grant) = self.grant_mut(came.spi) {
            match came.freshness() {
                fresh if status.is_accepted() => grant.last = Some(fresh),
                Freshness { time: Some(time), .. } if status == Status::ID_MISMATCH => grant.refuse(time),
                _ => {}
            }
        }
        self.acknowledge(came, status, lifetime, config, outputs);
        self.send_revocations(came.now, config, outputs);
    }

    fn is_gateway(&self, spi: u32) -> bool {
        let registrant = self.grant(spi).map(|grant| grant.authorization.registrant);
        matches!(registrant, Some(Registrant::Gateway { .. }))
    }

    fn judge(&self, came: &Came<'_>, grant: &Grant, config: &Config) -> Result<Accepted, Status> {
        match grant.authorization.registrant {
            Registrant::Gateway { .. } => self.judge_gateway(came)?,
            Registrant::MobileNode => self.judge_mobile_node(came, grant, config)?,
        }
        let epoch = grant.epoch();
        let other = |registration: &Registration| registration.spi != came.spi;
        let is_owned = epoch == self.floor && self.active.as_ref().is_some_and(other);
        if epoch < self.floor || is_owned {
            return Err(Status::MAG_NOT_AUTHORIZED);
        }
        if self.is_repeated(came, grant)? {
            return Ok(Accepted::Again);
        }
        let covered = came.sender.covered;
        let is_active = self.active.as_ref().is_some_and(|active| active.spi == came.spi);
        let deregisters = came.update.lifetime == BindingLifetime::ZERO || covered.care_of == covered.peer;
        match came.transient() {
            _ if deregisters => Ok(Accepted::End),
            None => Ok(Accepted::Bind),
            Some(_) if is_active => Ok(Accepted::BindNotTransient),
            Some(_) if self.transient.as_ref().is_some_and(|ahead| ahead.epoch > epoch) => {
                Err(Status::MAG_NOT_AUTHORIZED)
            }
            Some(lifetime) => Ok(Accepted::Prepare(lifetime)),
        }
    }

    /// RFC 5213 section 5.3.1.
    fn judge_gateway(&self, came: &Came<'_>) -> Result<(), Status> {
        let prefix = came.option(|option| match option {
            MobilityOption::HomeNetworkPrefix(prefix) => Some(*prefix),
            _ => None,
        });
        let is_other = |prefix: Ipv6Prefix| prefix != self.prefix && prefix.len() > 0;
        match (self.is_named(came), prefix) {
            _ if !came.update.flags.contains(BindingUpdateFlags::PROXY) => {
                Err(Status::ADMINISTRATIVELY_PROHIBITED)
            }
            (None, _) => Err(Status::MISSING_MOBILE_NODE_IDENTIFIER),
            (Some(false), _) => Err(Status::NOT_LMA),
            (_, None) => Err(Status::MISSING_HOME_NETWORK_PREFIX),
            (_, Some(prefix)) if is_other(prefix) => Err(Status::NOT_AUTHORIZED_FOR_HOME_NETWORK_PREFIX),
            _ if !came.has(OptionType::HANDOFF_INDICATOR) => Err(Status::MISSING_HANDOFF_INDICATOR),
            _ if !came.has(OptionType::ACCESS_TECHNOLOGY_TYPE) => Err(Status::MISSING_ACCESS_TECHNOLOGY_TYPE),
            _ => self.judge_ipv4(came),
        }
    }

    /// RFC 5844 section 3.1.2: the address that is asked for must be the node's own; 0.0.0.0 asks for whichever that is.
    fn judge_ipv4(&self, came: &Came<'_>) -> Result<(), Status> {
        match (came.ipv4(), self.ipv4) {
            (None, _) => Ok(()),
            (Some(_), None) => Err(Status::NOT_AUTHORIZED_FOR_IPV4_MOBILITY),
            (Some(asked), _) if asked.address().is_unspecified() => Ok(()),
            (Some(asked), Some(own)) if asked.address() == own.address() => Ok(()),
            _ => Err(Status::NOT_AUTHORIZED_FOR_IPV4_HOME_ADDRESS),
        }
    }

    /// RFC 6275 section 10.3.1, RFC 4285 sections 5 and 6.
    fn judge_mobile_node(&self, came: &Came<'_>, grant: &Grant, config: &Config) -> Result<(), Status> {
        let sent = came.option(|option| match option {
            MobilityOption::MessageIdentification(time) => Some(time.0),
            _ => None,
        });
        let window = |sent: u64| {
            let ours = NtpTimestamp::from_unix_ns(came.unix_ns).0;
            let started = NtpTimestamp::from_unix_ns(config.started_unix_ns).0;
            let is_known = grant.refused.contains(&sent);
            !is_known && sent >= started && sent.abs_diff(ours) <= (REPLAY_WINDOW_NS / 1_000_000_000) << 32
        };
        if came.update.flags.contains(BindingUpdateFlags::PROXY) {
            return Err(Status::MAG_NOT_AUTHORIZED);
        }
        if !came.update.flags.contains(BindingUpdateFlags::HOME_REGISTRATION) {
            return Err(Status::HOME_REGISTRATION_NOT_SUPPORTED);
        }
        if !self.prefix.contains(came.sender.covered.peer) || self.is_named(came) == Some(false) {
            return Err(Status::NOT_HOME_AGENT);
        }
        let sent = sent.ok_or(Status::MESSAGE_ID_REQUIRED)?;
        if window(sent) { Ok(()) } else { Err(Status::ID_MISMATCH) }
    }

    /// Whether the update names this node; `None` when it names none.
    fn is_named(&self, came: &Came<'_>) -> Option<bool> {
        came.option(|option| match option {
            MobilityOption::MobileNodeIdentifier { identifier, .. } => Some(*identifier == self.name),
            _ => None,
        })
    }

    /// Whether the update is the last that was accepted, come again; an error when it is an older one.
    fn is_repeated(&self, came: &Came<'_>, grant: &Grant) -> Result<bool, Status> {
        let (Some(last), new) = (grant.last, came.freshness()) else { return Ok(false) };
        let is_gateway = grant.authorization.registrant != Registrant::MobileNode;
        match (last.time, new.time) {
            // A gateway orders its updates by timestamps or by sequence numbers (RFC 5213 section 5.5).
            (Some(before), Some(now)) if is_gateway && now > before => Ok(false),
            (Some(_), Some(_)) if is_gateway && new == last => Ok(true),
            (Some(_), _) if is_gateway => Err(Status::TIMESTAMP_LOWER_THAN_PREVIOUS),
            // A mobile node by both.
            _ if !new.sequence.follows(last.sequence) => Err(Status::SEQUENCE_OUT_OF_WINDOW),
            (Some(before), Some(now)) if now <= before => Err(Status::ID_MISMATCH),
            _ => Ok(false),
        }
    }

    fn acknowledge(
        &self,
        came: &Came<'_>,
        status: Status,
        lifetime: BindingLifetime,
        config: &Config,
        outputs: &mut VecDeque<Output>,
    ) {
        let Some(grant) = self.grant(came.spi) else { return };
        let is_gateway = grant.authorization.registrant != Registrant::MobileNode;
        let last = grant.last.map_or(came.update.sequence, |last| last.sequence);
        let echoed = |option: &&MobilityOption| {
            matches!(
                option.kind(),
                OptionType::HANDOFF_INDICATOR
                    | OptionType::ACCESS_TECHNOLOGY_TYPE
                    | OptionType::LINK_LAYER_IDENTIFIER
                    | OptionType::LINK_LOCAL_ADDRESS
                    | OptionType::TIMESTAMP
                    | OptionType::MESSAGE_IDENTIFICATION
                    | OptionType::TRANSIENT_BINDING
            )
        };
        let mut options = vec![self.identifier()];
        if is_gateway {
            options.push(MobilityOption::HomeNetworkPrefix(self.prefix));
            let user_plane = config.user_plane.map(IpAddr::V6);
            options.extend(user_plane.map(MobilityOption::LmaUserPlaneAddress));
            if let Some(interface) = self.ipv4.filter(|_| status.is_accepted() && came.ipv4().is_some()) {
                let status = Ipv4AddressStatus::SUCCESS;
                options.push(MobilityOption::Ipv4HomeAddressReply { status, interface });
                options.push(MobilityOption::Ipv4DefaultRouterAddress(interface.router()));
            }
        }
        options.extend(came.nat_detection());
        options.extend(came.options.iter().filter(echoed).cloned());
        if status == Status::ID_MISMATCH {
            // Our clock, for the mobile node to set its own by (RFC 4285 section 6.3).
            options.retain(|option| option.kind() != OptionType::MESSAGE_IDENTIFICATION);
            options.push(MobilityOption::MessageIdentification(NtpTimestamp::from_unix_ns(came.unix_ns)));
        }
        let message = Message::BindingAcknowledgement(BindingAcknowledgement {
            status,
            flags: if is_gateway {
                BindingAcknowledgementFlags::PROXY
            } else {
                BindingAcknowledgementFlags::default()
            },
            sequence: if status == Status::SEQUENCE_OUT_OF_WINDOW { last } else { came.update.sequence },
            lifetime: if status.is_accepted() { lifetime } else { BindingLifetime::ZERO },
        });
        self.send(came.spi, came.sender, Repr { message, options }, config.address, outputs);
    }
}
