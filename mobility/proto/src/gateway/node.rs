//! One virtual machine at a gateway: where its packets go, and what of them waits.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use super::buffer::Buffer;
use super::config::{Config, Grant};
use super::output::{Carrier, Happened, Output};
use super::registration::{Registration, Wanted};
use crate::auth::{Covered, SharedKey, VerifyError};
use crate::inner::is_end_marker;
use crate::wire::*;

/// After how long a Handover Initiate is sent again, the first time; each further time doubles it. RFC 5949 section 5
/// leaves it to the implementation.
const HANDOVER_RETRY: Duration = Duration::from_millis(100);
const HANDOVER_SENDS: u32 = 6;
/// For how long a gateway goes on to forward what was under way to it when its binding was revoked.
pub(super) const LINGER: Duration = Duration::from_secs(2);

/// For how long a delivered packet is remembered: a hypervisor that has stopped a machine says so sooner.
const REMEMBERED: Duration = Duration::from_secs(1);
/// What is taken for the size of a remembered packet.
const BYTES_REMEMBERED_AS: usize = 1500;
/// How long a machine may have left a packet unread when it stopped.
const UNREAD: Duration = Duration::from_millis(5);

/// Where a virtual machine is, as its gateway sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Here.
    Here,
    /// Not here yet. Its packets wait.
    Coming { source: Ipv6Addr },
    /// Here; packets still come the old way, those of the new way wait.
    Settling { source: Ipv6Addr, until: Duration },
    /// Paused or gone. Its packets go on to the target, after a revocation only until then.
    Leaving { target: Ipv6Addr, until: Option<Duration> },
    /// Not here.
    Gone,
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) grant: Grant,
    pub(super) place: Place,
    pub(super) registration: Registration,
    pub(super) old_way: Buffer,
    new_way: Buffer,
    /// Copies of what was sent on to the target, which lets go of it when the move is given up.
    sent_on: Buffer,
    /// What was delivered of late, when the machine is about to leave: what it did not read before it stopped goes with it.
    /// Without a time as long as nobody has said that it is out.
    recent: Option<VecDeque<(Option<Duration>, Vec<u8>)>>,
    /// From which gateway it has come, and until when packets of the old way may still come from there.
    pub(super) came_from: Option<(Ipv6Addr, Duration)>,
    handover: Option<Handover>,
    /// The last Handover Initiate that was heeded: an older one, come again, changes nothing.
    heeded: Option<u16>,
}

/// A conversation with the gateway at the target, by the key that was given for it.
#[derive(Debug)]
struct Handover {
    key: SharedKey,
    target: Ipv6Addr,
    code: HandoverInitiateCode,
    sequence: u16,
    sends: u32,
    /// `None` once it is acknowledged.
    again: Option<Duration>,
}

impl Node {
    pub(super) fn new(now: Duration, grant: Grant, place: Place, wanted: Wanted) -> Self {
        let registration = Registration::new(now, wanted);
        let (old_way, new_way, sent_on) = Default::default();
        let (came_from, handover, heeded) = Default::default();
        let recent = None;
        Self { grant, place, registration, old_way, new_way, sent_on, recent, came_from, handover, heeded }
    }

    pub(super) fn name(&self) -> &[u8] {
        &self.grant.node
    }

    pub(super) fn has_key(&self, spi: u32) -> bool {
        self.key(spi).is_some()
    }

    fn key(&self, spi: u32) -> Option<&SharedKey> {
        let keys = std::iter::once(&self.grant.key).chain(self.handover.iter().map(|handover| &handover.key));
        keys.into_iter().find(|key| key.spi() == spi)
    }

    pub(super) fn verify(
        &self,
        spi: u32,
        header: &MobilityHeader<'_>,
        covered: Covered,
    ) -> Result<(), VerifyError> {
        self.key(spi).ok_or(VerifyError::OtherKey(spi))?.verify(header, covered)
    }

    pub(super) fn deadline(&self) -> Option<Duration> {
        let place = match self.place {
            Place::Settling { until, .. } => Some(until),
            Place::Leaving { until, .. } => until,
            _ => None,
        };
        let handover = self.handover.as_ref().and_then(|handover| handover.again);
        [place, handover, self.registration.deadline()].into_iter().flatten().min()
    }

    pub(super) fn timeout(
        &mut self,
        now: Duration,
        unix_ns: u64,
        config: &Config,
        outputs: &mut VecDeque<Output>,
    ) {
        match self.place {
            Place::Settling { until, .. } if until <= now => self.settled(now, config, outputs),
            Place::Leaving { until: Some(until), .. } if until <= now => self.place = Place::Gone,
            _ => {}
        }
        self.initiate_handover(now, config, outputs);
        if let Some(due) = self.registration.poll(now, unix_ns) {
            let is_end = due.wanted == Wanted::End;
            let message = Message::BindingUpdate(BindingUpdate {
                sequence: due.sequence,
                flags: BindingUpdateFlags::ACKNOWLEDGE | BindingUpdateFlags::PROXY,
                lifetime: if is_end { BindingLifetime::ZERO } else { config.lifetime },
            });
            let mut options = vec![
                MobilityOption::HandoffIndicator(HandoffIndicator::BETWEEN_GATEWAYS),
                MobilityOption::AccessTechnologyType(AccessTechnology::ETHERNET),
                MobilityOption::Timestamp(due.time),
            ];
            let user_plane = config.user_plane.map(IpAddr::V6);
            options.extend(user_plane.map(MobilityOption::LmaUserPlaneAddress));
            options.extend(self.grant.ipv4.map(MobilityOption::Ipv4HomeAddressRequest));
            if let Wanted::Transient(lifetime) = due.wanted {
                options.push(MobilityOption::TransientBinding { late_path_switch: true, lifetime });
            }
            self.send(&self.grant.key, config.address, config.anchor, message, options, outputs);
        }
    }

    /// Nothing is left to be done for it here.
    pub(super) fn is_over(&self) -> bool {
        self.place == Place::Gone && self.registration.deadline().is_none()
    }

    pub(super) fn waiting(&self) -> u64 {
        self.old_way.len() + self.new_way.len()
    }

    pub(super) fn hold_old(&mut self, packet: Vec<u8>, max_bytes: usize) -> u64 {
        self.old_way.push(packet, max_bytes)
    }

    pub(super) fn hold_new(&mut self, packet: Vec<u8>, max_bytes: usize) -> u64 {
        self.new_way.push(packet, max_bytes)
    }

    /// The machine runs here.
    pub(super) fn is_here(&self) -> bool {
        matches!(self.place, Place::Here | Place::Settling { .. })
    }

    pub(super) fn carrier(&self) -> Carrier {
        match self.place {
            Place::Gone => Carrier::Nobody,
            Place::Here if self.recent.is_none() => Carrier::Anyone,
            _ => Carrier::Gateway,
        }
    }

    pub(super) fn came_of_late_from(&self, from: Ipv6Addr, now: Duration) -> bool {
        self.came_from.is_some_and(|(source, until)| source == from && now < until)
    }

    /// The old way has ended.
    pub(super) fn settled(&mut self, now: Duration, config: &Config, outputs: &mut VecDeque<Output>) {
        if let Place::Settling { source, .. } = self.place {
            self.came_from = Some((source, now + LINGER));
        }
        self.place = Place::Here;
        for packet in self.new_way.take() {
            self.deliver(now, packet, config, outputs);
        }
    }

    /// From now on what is delivered is remembered for a while.
    pub(super) fn remember(&mut self) {
        self.recent = Some(VecDeque::new());
    }

    /// Gives a packet to the machine.
    pub(super) fn deliver(
        &mut self,
        now: Duration,
        packet: Vec<u8>,
        config: &Config,
        outputs: &mut VecDeque<Output>,
    ) {
        if let Some(recent) = &mut self.recent {
            recent.push_back((None, packet.clone()));
            // Whatever the rate, this is the order of what may wait at the target.
            let most = config.buffer_bytes / BYTES_REMEMBERED_AS;
            while recent.len() > most
                || recent.front().is_some_and(|(at, _)| at.is_some_and(|at| at + REMEMBERED < now))
            {
                recent.pop_front();
            }
        }
        outputs.push_back(Output::Deliver(packet));
    }

    /// What was to be delivered is out.
    pub(super) fn delivered(&mut self, now: Duration) {
        let waiting = self.recent.iter_mut().flat_map(|recent| recent.iter_mut().rev());
        waiting.map_while(|(at, _)| at.is_none().then_some(at)).for_each(|at| *at = Some(now));
    }

    /// The machine stopped at `stopped`: what was delivered since then is forwarded with what is to come.
    pub(super) fn forward(
        &mut self,
        now: Duration,
        stopped: Duration,
        key: SharedKey,
        target: Ipv6Addr,
        config: &Config,
        outputs: &mut VecDeque<Output>,
    ) {
        self.place = Place::Leaving { target, until: None };
        let unread = self
            .recent
            .take()
            .into_iter()
            .flatten()
            .filter(|(at, _)| at.is_none_or(|at| at + UNREAD >= stopped));
        // What was held for it here, when it goes on before its last move has settled, comes behind that.
        outputs.extend(unread.map(|(_, packet)| Output::Tunnel { to: target, packet }));
        for packet in self.new_way.take() {
            self.send_on(packet, config, outputs);
        }
        self.hand_over(now, key, target, HandoverInitiateCode::START);
    }

    /// Takes a packet that came for the machine while it is on its way.
    pub(super) fn send_on(&mut self, packet: Vec<u8>, config: &Config, outputs: &mut VecDeque<Output>) {
        let Place::Leaving { target, until } = self.place else { return };
        if is_end_marker(&packet, config.anchor, self.grant.prefix) {
            // It has arrived there.
            self.sent_on.take();
        } else if until.is_none() {
            self.sent_on.push(packet.clone(), config.buffer_bytes);
        }
        outputs.push_back(Output::Tunnel { to: target, packet });
    }

    /// The move was given up. What has come since the machine stopped is for it all the same; what it was given before that,
    /// it still has.
    pub(super) fn stay(&mut self, now: Duration, outputs: &mut VecDeque<Output>) {
        self.recent = None;
        let Place::Leaving { target, until: None } = self.place else { return };
        self.place = Place::Here;
        outputs.extend(self.sent_on.take().into_iter().map(Output::Deliver));
        if let Some(key) = self.handover.as_ref().map(|handover| handover.key.clone()) {
            self.hand_over(now, key, target, HandoverInitiateCode::FORWARDING_COMPLETE);
        }
    }

    pub(super) fn revoked(&mut self, now: Duration, outputs: &mut VecDeque<Output>) {
        self.place = match self.place {
            Place::Leaving { target, until: None } => Place::Leaving { target, until: Some(now + LINGER) },
            Place::Leaving { .. } | Place::Gone => return,
            // Who had the machine come sooner than it was let go is not known here.
            _ => Place::Gone,
        };
        self.sent_on.take();
        self.registration.over();
        let happened = Happened::Revoked;
        outputs.push_back(Output::Event { node: self.name().to_vec(), happened });
    }

    fn hand_over(&mut self, now: Duration, key: SharedKey, target: Ipv6Addr, code: HandoverInitiateCode) {
        let sequence = self.handover.as_ref().map_or(0, |handover| handover.sequence).wrapping_add(1);
        self.handover = Some(Handover { key, target, code, sequence, sends: 0, again: Some(now) });
    }

    fn initiate_handover(&mut self, now: Duration, config: &Config, outputs: &mut VecDeque<Output>) {
        let Some(handover) = &mut self.handover else { return };
        if handover.again.is_none_or(|again| again > now) {
            return;
        }
        handover.again =
            (handover.sends < HANDOVER_SENDS).then_some(now + HANDOVER_RETRY * (1 << handover.sends));
        handover.sends += 1;
        if handover.again.is_none() {
            return;
        }
        let flags =
            HandoverInitiateFlags::PROXY | HandoverInitiateFlags::FORWARD | HandoverInitiateFlags::BUFFER;
        let message = Message::HandoverInitiate { sequence: handover.sequence, flags, code: handover.code };
        let (key, target) = (handover.key.clone(), handover.target);
        self.send(&key, config.address, target, message, Vec::new(), outputs);
    }

    pub(super) fn handover_initiated(
        &mut self,
        from: Ipv6Addr,
        sequence: u16,
        code: HandoverInitiateCode,
        config: &Config,
        outputs: &mut VecDeque<Output>,
    ) {
        let is_newer =
            self.heeded.is_none_or(|heeded| SequenceNumber(sequence).follows(SequenceNumber(heeded)));
        let answer = match self.place {
            Place::Coming { source } | Place::Settling { source, .. } if source == from => {
                HandoverAcknowledgeCode::ACCEPTED
            }
            _ => HandoverAcknowledgeCode::FORWARDING_NOT_AVAILABLE,
        };
        if is_newer && answer == HandoverAcknowledgeCode::ACCEPTED {
            self.heeded = Some(sequence);
            let happened = if code == HandoverInitiateCode::FORWARDING_COMPLETE {
                Happened::ForwardingEnded
            } else {
                Happened::Forwarded
            };
            outputs.push_back(Output::Event { node: self.grant.node.clone(), happened });
        }
        let flags = HandoverAcknowledgeFlags::PROXY
            | HandoverAcknowledgeFlags::FORWARD
            | HandoverAcknowledgeFlags::BUFFER;
        let message = Message::HandoverAcknowledge { sequence, flags, code: answer };
        self.send(&self.grant.key, config.address, from, message, Vec::new(), outputs);
    }

    pub(super) fn handover_acknowledged(&mut self, from: Ipv6Addr, sequence: u16) {
        if let Some(handover) = &mut self.handover
            && (handover.target, handover.sequence) == (from, sequence)
        {
            handover.again = None;
        }
    }

    /// Sends a message about this machine, proved with `key`, from `own` to `to`.
    pub(super) fn send(
        &self,
        key: &SharedKey,
        own: Ipv6Addr,
        to: Ipv6Addr,
        message: Message,
        options: Vec<MobilityOption>,
        outputs: &mut VecDeque<Output>,
    ) {
        let prefix = self.grant.prefix;
        let mut all = vec![
            MobilityOption::MobileNodeIdentifier {
                kind: IdentifierType::NAI,
                identifier: self.name().to_vec(),
            },
            MobilityOption::HomeNetworkPrefix(prefix),
        ];
        all.extend(options);
        let addresses = Addresses::direct(own, to);
        let covered = Covered { care_of: own, peer: prefix.address() };
        // All that is sent is short: an identifier has at most 254 bytes.
        let Ok(message) = key.emit(&Repr { message, options: all }, addresses.endpoints(), covered) else {
            return;
        };
        if let Ok(header) = MobilityHeader::new_checked(&message) {
            outputs.push_back(Output::Send(addresses.emit(header)));
        }
    }
}
