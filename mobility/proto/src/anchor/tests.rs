mod ipv4;

use std::net::Ipv6Addr;

use proptest::prelude::*;

use super::*;
use crate::auth::{Algorithm, SharedKey, VerifyError};

const ANCHOR: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const ANCHOR_USER_PLANE: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
const HOME: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xa, 0, 0, 0, 0, 0x10);
const NAME: &[u8] = b"vm@example.org";
const START_NS: u64 = 1_700_000_000_000_000_000;

fn prefix() -> Ipv6Prefix {
    Ipv6Prefix::new(HOME, 64).unwrap()
}

fn config() -> Config {
    Config {
        address: ANCHOR,
        user_plane: None,
        max_nodes: 2,
        max_lifetime: BindingLifetime::from_secs(600),
        max_transient: TransientLifetime::from_ms(2000),
        restart_counter: 5,
        started_unix_ns: 0,
    }
}

/// A platform with a virtual machine, in one epoch. Its clock may be wrong.
#[derive(Clone, Copy)]
struct Gateway {
    address: Ipv6Addr,
    epoch: u64,
    time: u64,
    sequence: u16,
}

impl Gateway {
    /// The gateway of each epoch has a clock that is behind the one before.
    fn of(epoch: u64) -> Self {
        let address = Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 0, epoch as u16);
        Self { address, epoch, time: Timestamp::from_unix_ns(START_NS).0 - epoch * 1000, sequence: 0 }
    }

    fn key(&self) -> SharedKey {
        SharedKey::new(1000 + self.epoch as u32, Algorithm::HmacSha256_128, &self.epoch.to_be_bytes())
    }

    fn authorization(&self) -> Authorization {
        let registrant = Registrant::Gateway { address: self.address, epoch: self.epoch };
        Authorization { key: self.key(), node: NAME.to_vec(), prefix: prefix(), ipv4: None, registrant }
    }

    fn covered(&self) -> Covered {
        Covered { care_of: self.address, peer: prefix().address() }
    }

    fn packet(&self, repr: &Repr) -> Vec<u8> {
        let addresses = Addresses::direct(self.address, ANCHOR);
        let message = self.key().emit(repr, addresses.endpoints(), self.covered()).unwrap();
        addresses.emit(MobilityHeader::new_checked(&message).unwrap())
    }

    fn repr(&mut self, seconds: u32, more: Vec<MobilityOption>) -> Repr {
        self.time += 1;
        self.sequence += 1;
        let update = BindingUpdate {
            sequence: SequenceNumber(self.sequence),
            flags: BindingUpdateFlags::ACKNOWLEDGE | BindingUpdateFlags::PROXY,
            lifetime: BindingLifetime::from_secs(seconds),
        };
        let options = vec![
            MobilityOption::MobileNodeIdentifier { kind: IdentifierType::NAI, identifier: NAME.to_vec() },
            MobilityOption::HomeNetworkPrefix(prefix()),
            MobilityOption::HandoffIndicator(HandoffIndicator::BETWEEN_GATEWAYS),
            MobilityOption::AccessTechnologyType(AccessTechnology::ETHERNET),
            MobilityOption::Timestamp(Timestamp(self.time)),
        ];
        Repr { message: Message::BindingUpdate(update), options: [options, more].concat() }
    }

    fn update(&mut self, seconds: u32) -> Vec<u8> {
        let repr = self.repr(seconds, vec![]);
        self.packet(&repr)
    }

    fn prepare(&mut self) -> Vec<u8> {
        let lifetime = TransientLifetime::from_ms(1000);
        let transient = MobilityOption::TransientBinding { late_path_switch: true, lifetime };
        let repr = self.repr(300, vec![transient]);
        self.packet(&repr)
    }

    /// A message of the anchor, whose proof holds.
    fn read(&self, packet: &[u8]) -> Repr {
        let found = Signalling::parse(packet).unwrap();
        assert_eq!(found.addresses, Addresses::direct(ANCHOR, self.address));
        let header = MobilityHeader::new_checked(found.message).unwrap();
        assert_eq!(self.key().verify(&header, self.covered()), Ok(()));
        Repr::parse(&header, found.addresses.endpoints()).unwrap()
    }
}

/// An anchor with the keys of epochs 1 to `epochs`.
fn anchor(epochs: u64) -> Anchor {
    let mut anchor = Anchor::new(config());
    for epoch in 1..=epochs {
        anchor.authorize(Gateway::of(epoch).authorization()).unwrap();
    }
    anchor
}

fn at_ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// What is to be done, but for what is to be taken from where, and what is to be kept: those have tests of their own.
fn drain(anchor: &mut Anchor) -> Vec<Output> {
    std::iter::from_fn(|| anchor.poll_output())
        .filter(|output| !matches!(output, Output::TakeFrom { .. } | Output::Keep { .. }))
        .collect()
}

/// What follows from a packet that must be believed.
fn deliver(anchor: &mut Anchor, ms: u64, packet: &[u8]) -> Vec<Output> {
    anchor.handle_timeout(at_ms(ms));
    let before = drain(anchor);
    assert_eq!(anchor.handle_packet(at_ms(ms), START_NS + ms * 1_000_000, packet), Ok(()));
    [before, drain(anchor)].concat()
}

fn place(care_of: Ipv6Addr) -> Place {
    Place { care_of, udp: None, user_plane: None }
}

fn switch(gateway: &Gateway) -> Output {
    Output::SwitchRoute { prefix: prefix(), place: place(gateway.address), before: None }
}

fn switch_from(before: &Gateway, gateway: &Gateway) -> Output {
    let before = Some(place(before.address));
    Output::SwitchRoute { prefix: prefix(), place: place(gateway.address), before }
}

fn acknowledgement(gateway: &Gateway, output: &Output) -> BindingAcknowledgement {
    let Output::Send(packet) = output else { panic!("{output:?} is no packet") };
    match gateway.read(packet).message {
        Message::BindingAcknowledgement(acknowledgement) => acknowledgement,
        other => panic!("{other:?} is no acknowledgement"),
    }
}

/// The status of the only thing that happened, an acknowledgement.
fn only_status(gateway: Gateway, outputs: &[Output]) -> Status {
    assert_eq!(outputs.len(), 1, "{outputs:?}");
    acknowledgement(&gateway, &outputs[0]).status
}

#[test]
fn a_route_is_switched_before_it_is_acknowledged_and_ends_with_the_binding() {
    let (mut anchor, mut gateway) = (anchor(1), Gateway::of(1));
    let outputs = deliver(&mut anchor, 0, &gateway.update(6000));
    assert_eq!((outputs.len(), &outputs[0]), (2, &switch(&gateway)));
    let told = acknowledgement(&gateway, &outputs[1]);
    assert_eq!((told.status, told.sequence), (Status::ACCEPTED, SequenceNumber(1)));
    assert_eq!((told.lifetime.as_secs(), told.flags), (600, BindingAcknowledgementFlags::PROXY));
    assert_eq!(anchor.binding(NAME), Some((gateway.address, 1)));

    // A refresh changes no route and puts the end off.
    assert_eq!(only_status(gateway, &deliver(&mut anchor, 100_000, &gateway.update(400))), Status::ACCEPTED);
    assert_eq!(anchor.deadline(), Some(at_ms(500_000)));
    anchor.handle_timeout(at_ms(499_999));
    assert_eq!(drain(&mut anchor), []);
    anchor.handle_timeout(at_ms(500_000));
    assert_eq!(drain(&mut anchor), [Output::RemoveRoute { prefix: prefix() }]);
    assert_eq!((anchor.binding(NAME), anchor.deadline()), (None, None));

    // It can be bound again, and deregistered.
    assert_eq!(deliver(&mut anchor, 600_000, &gateway.update(400))[0], switch(&gateway));
    let outputs = deliver(&mut anchor, 600_001, &gateway.update(0));
    assert_eq!(outputs[0], Output::RemoveRoute { prefix: prefix() });
    let told = acknowledgement(&gateway, &outputs[1]);
    assert_eq!((told.status, told.lifetime), (Status::ACCEPTED, BindingLifetime::ZERO));
}

#[test]
fn what_was_bound_before_a_restart_is_bound_and_older_epochs_stay_refused() {
    let (source, target) = (Gateway::of(1), Gateway::of(2));
    let mut restarted = anchor(3);
    restarted.restore(at_ms(10), NAME, 2, Some(target.key().spi()), None);
    assert_eq!(drain(&mut restarted), [switch(&target)]);
    assert_eq!(
        (restarted.binding(NAME), restarted.deadline()),
        (Some((target.address, 2)), Some(at_ms(600_010)))
    );
    assert_eq!(
        only_status(source, &deliver(&mut restarted, 20, &{ source }.update(300))),
        Status::MAG_NOT_AUTHORIZED
    );
    // Nobody was bound, but an epoch was reached.
    let mut restarted = anchor(3);
    restarted.restore(at_ms(10), NAME, 3, None, None);
    assert_eq!((drain(&mut restarted), restarted.binding(NAME)), (vec![], None));
    assert_eq!(
        only_status(target, &deliver(&mut restarted, 20, &{ target }.update(300))),
        Status::MAG_NOT_AUTHORIZED
    );
}

#[test]
fn a_move_is_prepared_activated_and_the_old_gateway_revoked() {
    let (mut anchor, mut source, mut target) = (anchor(2), Gateway::of(1), Gateway::of(2));
    deliver(&mut anchor, 0, &source.update(300));
    assert_eq!(only_status(target, &deliver(&mut anchor, 100, &target.prepare())), Status::ACCEPTED);
    assert_eq!(anchor.binding(NAME), Some((source.address, 1)));
    // The source never stopped being authoritative.
    assert_eq!(only_status(source, &deliver(&mut anchor, 200, &source.update(300))), Status::ACCEPTED);

    let outputs = deliver(&mut anchor, 300, &target.update(300));
    assert_eq!((outputs.len(), &outputs[0]), (3, &switch_from(&source, &target)));
    assert_eq!(acknowledgement(&target, &outputs[1]).status, Status::ACCEPTED);
    let Output::Send(revocation) = &outputs[2] else { panic!("{outputs:?}") };
    let revocation = source.read(revocation);
    let Message::BindingRevocationIndication { trigger, sequence, flags } = revocation.message else {
        panic!("{revocation:?}")
    };
    assert_eq!((trigger, flags), (RevocationTrigger::HANDOVER_SAME_ACCESS_TYPE, RevocationFlags::PROXY));
    assert_eq!(revocation.options[1], MobilityOption::HomeNetworkPrefix(prefix()));

    // Late, the source asks for what it had.
    let late = deliver(&mut anchor, 400, &source.update(300));
    assert_eq!(only_status(source, &late), Status::MAG_NOT_AUTHORIZED);
    let late = deliver(&mut anchor, 401, &source.update(0));
    assert_eq!(only_status(source, &late), Status::MAG_NOT_AUTHORIZED);
    assert_eq!(anchor.binding(NAME), Some((target.address, 2)));

    // An acknowledgement of another revocation is not the one; the right one ends the repetitions.
    assert_eq!(anchor.deadline(), Some(at_ms(1300)));
    for (sequence, deadline) in [(sequence + 1, 1300), (sequence, 300_300)] {
        let status = RevocationStatus::SUCCESS;
        let message = Message::BindingRevocationAcknowledgement { status, sequence, flags };
        let packet = source.packet(&Repr { message, options: vec![] });
        assert_eq!(deliver(&mut anchor, 500, &packet), []);
        assert_eq!(anchor.deadline(), Some(at_ms(deadline)));
    }
}

#[test]
fn a_revocation_is_sent_for_half_a_minute_at_most() {
    let (mut anchor, mut source, mut target) = (anchor(2), Gateway::of(1), Gateway::of(2));
    deliver(&mut anchor, 0, &source.update(300));
    deliver(&mut anchor, 0, &target.update(300));
    let mut sent = Vec::new();
    while let Some(deadline) = anchor.deadline().filter(|deadline| *deadline < at_ms(300_000)) {
        anchor.handle_timeout(deadline);
        sent.extend(drain(&mut anchor).iter().map(|_| deadline.as_secs()));
    }
    assert_eq!(sent, [1, 3, 7, 11, 15, 19, 23, 27]);
}

#[test]
fn an_aborted_move_leaves_the_source_in_place() {
    let (mut anchor, mut source) = (anchor(2), Gateway::of(1));
    deliver(&mut anchor, 0, &source.update(300));
    let mut target = Gateway::of(2);
    deliver(&mut anchor, 0, &target.prepare());
    assert_eq!(anchor.deadline(), Some(at_ms(1000)));
    anchor.handle_timeout(at_ms(1000));
    assert_eq!((drain(&mut anchor), anchor.deadline()), (vec![], Some(at_ms(300_000))));
    // Or the target says so itself.
    deliver(&mut anchor, 2000, &target.prepare());
    assert_eq!(only_status(target, &deliver(&mut anchor, 2001, &target.update(0))), Status::ACCEPTED);
    assert_eq!(anchor.deadline(), Some(at_ms(300_000)));
    assert_eq!(anchor.binding(NAME), Some((source.address, 1)));
    // The next attempt succeeds; a transient binding for what is bound already is none.
    deliver(&mut anchor, 3000, &target.update(300));
    assert_eq!(
        only_status(target, &deliver(&mut anchor, 3100, &target.prepare())),
        Status::TRANSIENT_BINDING_IGNORED
    );
    assert_eq!(anchor.binding(NAME), Some((target.address, 2)));
}

#[test]
fn packets_are_taken_from_where_a_node_is_or_will_be_and_sent_where_its_gateway_says() {
    let (mut anchor, mut source, mut target) = (anchor(2), Gateway::of(1), Gateway::of(2));
    anchor.config.user_plane = Some(ANCHOR_USER_PLANE);
    let user_plane = Some(Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 1, 2));
    let all = |anchor: &mut Anchor| std::iter::from_fn(|| anchor.poll_output()).collect::<Vec<_>>();
    let mut came = |ms: u64, packet: &[u8]| {
        anchor.handle_timeout(at_ms(ms));
        let ended = all(&mut anchor);
        anchor.handle_packet(at_ms(ms), START_NS, packet).unwrap();
        let outputs = [ended, all(&mut anchor)].concat();
        let taken = outputs.iter().filter_map(|output| match output {
            Output::TakeFrom { places, .. } => Some(places.clone()),
            _ => None,
        });
        (taken.collect::<Vec<_>>(), outputs)
    };
    let (first, second) = (place(source.address), Place { care_of: target.address, udp: None, user_plane });
    let (taken, outputs) = came(0, &source.update(300));
    assert_eq!(taken, [vec![first]]);
    let Output::Send(packet) = &outputs[2] else { panic!("{outputs:?}") };
    let told = MobilityOption::LmaUserPlaneAddress(ANCHOR_USER_PLANE.into());
    assert!(source.read(packet).options.contains(&told));
    assert_eq!(came(1, &source.update(300)).0, <[Vec<Place>; 0]>::default());

    let option = |address: Option<Ipv6Addr>| MobilityOption::LmaUserPlaneAddress(address.unwrap().into());
    let ahead = |target: &mut Gateway| {
        let lifetime = TransientLifetime::from_ms(1000);
        let transient = MobilityOption::TransientBinding { late_path_switch: true, lifetime };
        let repr = target.repr(300, vec![transient, option(user_plane)]);
        target.packet(&repr)
    };
    // A transient binding expires; another is activated.
    assert_eq!(came(2, &ahead(&mut target)).0, [vec![first, second]]);
    assert_eq!(came(5000, &ahead(&mut target)).0, [vec![first], vec![first, second]]);
    let repr = target.repr(300, vec![option(user_plane)]);
    let (taken, outputs) = came(5001, &target.packet(&repr));
    assert_eq!(taken, [vec![second]]);
    let switched = Output::SwitchRoute { prefix: prefix(), place: second, before: Some(first) };
    assert_eq!(outputs[0], switched);
    // And its gateway takes them elsewhere from now on, as after a restart with another data plane.
    let (taken, outputs) = came(5002, &target.update(300));
    assert_eq!(taken, [vec![place(target.address)]]);
    let before = Some(second);
    assert_eq!(outputs[0], Output::SwitchRoute { prefix: prefix(), place: place(target.address), before });
    assert_eq!(came(5003, &target.update(0)).0, [Vec::<Place>::new()]);
}

#[test]
fn what_must_outlive_a_crash_is_named_before_anybody_is_told() {
    let (mut anchor, mut source, mut target) = (anchor(2), Gateway::of(1), Gateway::of(2));
    let mut come = |ms: u64, packet: &[u8]| {
        anchor.handle_packet(at_ms(ms), START_NS, packet).unwrap();
        let outputs: Vec<_> = std::iter::from_fn(|| anchor.poll_output()).collect();
        let keep = outputs.iter().position(|output| matches!(output, Output::Keep { .. }));
        let sent = outputs.iter().position(|output| matches!(output, Output::Send(_)));
        assert!(keep.is_none_or(|keep| Some(keep + 1) == sent), "{outputs:?}");
        keep.map(|keep| outputs[keep].clone())
    };
    let keep = |floor, bound: Option<(&Gateway, u64)>| {
        let bound = bound.map(|(gateway, epoch)| (place(gateway.address), epoch));
        Some(Output::Keep { node: NAME.to_vec(), kept: Kept { prefix: prefix(), floor, bound } })
    };
    assert_eq!(come(0, &source.update(300)), keep(1, Some((&source, 1))));
    // Neither a refresh nor what is registered ahead.
    assert_eq!(come(1, &source.update(300)), None);
    assert_eq!(come(2, &target.prepare()), None);
    assert_eq!(come(3, &target.update(300)), keep(2, Some((&target, 2))));
    assert_eq!(come(4, &source.update(300)), None);
    assert_eq!(come(5, &target.update(0)), keep(2, None));
    // What is known of before is kept already.
    let mut restarted = super::tests::anchor(2);
    restarted.restore(at_ms(0), NAME, 2, Some(target.key().spi()), None);
    assert!(
        !std::iter::from_fn(|| restarted.poll_output()).any(|output| matches!(output, Output::Keep { .. }))
    );
}

#[test]
fn an_epoch_has_one_gateway_and_a_deregistration_prepares_nothing() {
    let (mut anchor, mut owner) = (anchor(1), Gateway::of(1));
    // Another gateway with a key for the same epoch, as after a move that was tried twice.
    let mut other = Gateway { address: HOME, ..Gateway::of(2) };
    let registrant = Registrant::Gateway { address: other.address, epoch: 1 };
    anchor.authorize(Authorization { registrant, ..other.authorization() }).unwrap();
    deliver(&mut anchor, 0, &owner.update(300));
    for packet in [other.update(300), other.prepare(), other.update(0)] {
        assert_eq!(only_status(other, &deliver(&mut anchor, 1, &packet)), Status::MAG_NOT_AUTHORIZED);
        assert_eq!(anchor.binding(NAME), Some((owner.address, 1)));
    }
    let transient = MobilityOption::TransientBinding {
        late_path_switch: true,
        lifetime: TransientLifetime::from_ms(1000),
    };
    let repr = owner.repr(0, vec![transient]);
    let outputs = deliver(&mut anchor, 2, &owner.packet(&repr));
    assert_eq!(outputs[0], Output::RemoveRoute { prefix: prefix() });
    assert_eq!((anchor.binding(NAME), anchor.deadline()), (None, None));
    // What the owner has left, another of its epoch may take.
    assert_eq!(deliver(&mut anchor, 3, &other.update(300))[0], switch(&other));
}

#[test]
fn a_message_that_comes_again_is_acknowledged_and_changes_nothing() {
    let (mut anchor, mut gateway) = (anchor(1), Gateway::of(1));
    let (first, second) = (gateway.update(300), gateway.update(200));
    deliver(&mut anchor, 0, &first);
    deliver(&mut anchor, 1000, &second);
    assert_eq!(only_status(gateway, &deliver(&mut anchor, 50_000, &second)), Status::ACCEPTED);
    assert_eq!(anchor.deadline(), Some(at_ms(201_000)));
    let older = deliver(&mut anchor, 50_000, &first);
    assert_eq!(only_status(gateway, &older), Status::TIMESTAMP_LOWER_THAN_PREVIOUS);
    // Nor does it bring back what has ended.
    deliver(&mut anchor, 60_000, &gateway.update(0));
    for old in [first, second] {
        let outputs = deliver(&mut anchor, 60_001, &old);
        assert_eq!(only_status(gateway, &outputs), Status::TIMESTAMP_LOWER_THAN_PREVIOUS);
    }
    assert_eq!(anchor.binding(NAME), None);
}

#[test]
fn what_is_missing_has_the_status_of_rfc_5213() {
    let (mut anchor, mut gateway) = (anchor(1), Gateway::of(1));
    let mut status = |change: &dyn Fn(&mut Repr)| {
        let mut repr = gateway.repr(300, vec![]);
        change(&mut repr);
        let outputs = deliver(&mut anchor, 0, &gateway.packet(&repr));
        only_status(gateway, &outputs)
    };
    let without = |at: usize| move |repr: &mut Repr| drop(repr.options.remove(at));
    assert_eq!(status(&without(0)), Status::MISSING_MOBILE_NODE_IDENTIFIER);
    assert_eq!(status(&without(1)), Status::MISSING_HOME_NETWORK_PREFIX);
    assert_eq!(status(&without(2)), Status::MISSING_HANDOFF_INDICATOR);
    assert_eq!(status(&without(3)), Status::MISSING_ACCESS_TECHNOLOGY_TYPE);
    let other = Ipv6Prefix::new(ANCHOR, 64).unwrap();
    assert_eq!(
        status(&|repr| repr.options[1] = MobilityOption::HomeNetworkPrefix(other)),
        Status::NOT_AUTHORIZED_FOR_HOME_NETWORK_PREFIX
    );
    let named = |name: &[u8]| MobilityOption::MobileNodeIdentifier {
        kind: IdentifierType::NAI,
        identifier: name.to_vec(),
    };
    assert_eq!(status(&|repr| repr.options[0] = named(b"other")), Status::NOT_LMA);
    let plain = |repr: &mut Repr| {
        if let Message::BindingUpdate(update) = &mut repr.message {
            update.flags = BindingUpdateFlags::ACKNOWLEDGE;
        }
    };
    assert_eq!(status(&plain), Status::ADMINISTRATIVELY_PROHIBITED);
    assert_eq!(anchor.binding(NAME), None);
}

#[test]
fn what_is_not_proved_is_not_answered() {
    let (mut anchor, mut gateway) = (anchor(1), Gateway::of(1));
    let mut refusal = |packet: &[u8]| {
        let refusal = anchor.handle_packet(at_ms(0), START_NS, packet).unwrap_err();
        assert_eq!((drain(&mut anchor), anchor.deadline()), (vec![], None));
        refusal
    };
    let good = gateway.update(300);
    let mut flipped = good.clone();
    flipped[good.len() - 20] ^= 1;
    assert_eq!(refusal(&flipped), Refusal::Message(ParseError::Checksum));
    let stranger = Gateway::of(2);
    assert_eq!(refusal(&{ stranger }.update(300)), Refusal::UnknownKey(1002));
    let repr = gateway.repr(300, vec![]);
    let addresses = Addresses::direct(gateway.address, ANCHOR);
    let emit = |message: Vec<u8>, addresses: Addresses| {
        addresses.emit(MobilityHeader::new_checked(&message).unwrap())
    };
    let unproved = emit(repr.emit(addresses.endpoints()).unwrap(), addresses);
    assert_eq!(refusal(&unproved), Refusal::Proof(VerifyError::Missing));
    let wrong = SharedKey::new(1001, Algorithm::HmacSha256_128, b"guessed");
    let forged = wrong.emit(&repr, addresses.endpoints(), gateway.covered()).unwrap();
    assert_eq!(refusal(&emit(forged, addresses)), Refusal::Proof(VerifyError::Wrong));
    // A gateway that has the key for one address registers another.
    let elsewhere = Covered { care_of: stranger.address, ..gateway.covered() };
    let addresses = Addresses::direct(stranger.address, ANCHOR);
    let stolen = gateway.key().emit(&repr, addresses.endpoints(), elsewhere).unwrap();
    assert_eq!(refusal(&emit(stolen, addresses)), Refusal::Address(stranger.address));
    let mut alternate = repr.clone();
    alternate.options.push(MobilityOption::AlternateCareOfAddress(stranger.address));
    let addresses = Addresses::direct(gateway.address, ANCHOR);
    let stolen = gateway.key().emit(&alternate, addresses.endpoints(), elsewhere).unwrap();
    assert_eq!(refusal(&emit(stolen, addresses)), Refusal::Address(stranger.address));
    let addresses = Addresses::direct(gateway.address, HOME);
    let message = gateway.key().emit(&repr, addresses.endpoints(), gateway.covered()).unwrap();
    assert_eq!(refusal(&emit(message, addresses)), Refusal::Destination(HOME));
    let message = Message::BindingRefreshRequest;
    let packet = gateway.packet(&Repr { message, options: vec![] });
    assert_eq!(refusal(&packet), Refusal::Type(MhType::BINDING_REFRESH_REQUEST));
}

#[test]
fn a_mobile_node_registers_itself() {
    let key = SharedKey::new(300, Algorithm::HmacSha1_96, b"shared");
    let home = Ipv6Prefix::new(HOME, 128).unwrap();
    let mut anchor = Anchor::new(config());
    let node = NAME.to_vec();
    anchor
        .authorize(Authorization {
            key: key.clone(),
            node,
            prefix: home,
            ipv4: None,
            registrant: Registrant::MobileNode,
        })
        .unwrap();
    let care_of = Ipv6Addr::new(0x2001, 0xdb8, 0x200, 0, 0, 0, 0, 9);
    let covered = Covered { care_of, peer: HOME };
    let packet = |sequence: u16, seconds: u32, sent_ns: Option<u64>| {
        let update = BindingUpdate {
            sequence: SequenceNumber(sequence),
            flags: BindingUpdateFlags::ACKNOWLEDGE | BindingUpdateFlags::HOME_REGISTRATION,
            lifetime: BindingLifetime::from_secs(seconds),
        };
        let options = sent_ns.map(|ns| MobilityOption::MessageIdentification(NtpTimestamp::from_unix_ns(ns)));
        let repr = Repr { message: Message::BindingUpdate(update), options: options.into_iter().collect() };
        let addresses = Addresses { home_address: Some(HOME), ..Addresses::direct(care_of, ANCHOR) };
        let message = key.emit(&repr, addresses.endpoints(), covered).unwrap();
        addresses.emit(MobilityHeader::new_checked(&message).unwrap())
    };
    let told = |output: &Output| {
        let Output::Send(packet) = output else { panic!("{output:?}") };
        let found = Signalling::parse(packet).unwrap();
        assert_eq!((found.addresses.destination, found.addresses.routed_to), (care_of, Some(HOME)));
        let header = MobilityHeader::new_checked(found.message).unwrap();
        assert_eq!(key.verify(&header, covered), Ok(()));
        match Repr::parse(&header, found.addresses.endpoints()).unwrap().message {
            Message::BindingAcknowledgement(told) => (told.status, told.sequence.0),
            other => panic!("{other:?}"),
        }
    };
    let outputs = deliver(&mut anchor, 0, &packet(65535, 300, Some(START_NS)));
    assert_eq!(outputs[0], Output::SwitchRoute { prefix: home, place: place(care_of), before: None });
    assert_eq!(told(&outputs[1]), (Status::ACCEPTED, 65535));
    for (sequence, sent_ns, expected) in [
        (65535, Some(START_NS + 1000), (Status::SEQUENCE_OUT_OF_WINDOW, 65535)),
        (32767, Some(START_NS + 1000), (Status::SEQUENCE_OUT_OF_WINDOW, 65535)),
        (1, Some(START_NS), (Status::ID_MISMATCH, 1)),
        (1, Some(START_NS - 8_000_000_000), (Status::ID_MISMATCH, 1)),
        (1, None, (Status::MESSAGE_ID_REQUIRED, 1)),
        (1, Some(START_NS + 1000), (Status::ACCEPTED, 1)),
    ] {
        let outputs = deliver(&mut anchor, 0, &packet(sequence, 300, sent_ns));
        assert_eq!((outputs.len(), told(&outputs[0])), (1, expected));
    }
    let outputs = deliver(&mut anchor, 1, &packet(2, 0, Some(START_NS + 2000)));
    assert_eq!(outputs[0], Output::RemoveRoute { prefix: home });
}

#[test]
fn a_heartbeat_tells_how_often_the_anchor_has_started() {
    let (mut anchor, gateway) = (anchor(1), Gateway::of(1));
    let message = Message::Heartbeat { response: false, unsolicited: false, sequence: 77 };
    let outputs = deliver(&mut anchor, 0, &gateway.packet(&Repr { message, options: vec![] }));
    let [Output::Send(packet)] = &outputs[..] else { panic!("{outputs:?}") };
    let answer = gateway.read(packet);
    assert_eq!(answer.message, Message::Heartbeat { response: true, unsolicited: false, sequence: 77 });
    assert_eq!(answer.options[0], MobilityOption::RestartCounter(5));
}

#[test]
fn the_table_holds_what_was_authorized_and_no_more() {
    let mut anchor = anchor(MAX_KEYS_PER_NODE as u64);
    let with = |change: &dyn Fn(&mut Authorization)| {
        let mut authorization = Gateway::of(9).authorization();
        change(&mut authorization);
        authorization
    };
    let other = Ipv6Prefix::new(ANCHOR, 64).unwrap();
    assert_eq!(anchor.authorize(Gateway::of(1).authorization()), Err(AuthorizeError::SpiInUse(1001)));
    assert_eq!(anchor.authorize(with(&|_| {})), Err(AuthorizeError::TooManyKeys));
    assert_eq!(anchor.authorize(with(&|a| a.prefix = other)), Err(AuthorizeError::Prefix(other)));
    assert_eq!(anchor.authorize(with(&|a| a.node.clear())), Err(AuthorizeError::Identifier(0)));
    for len in [63, 64, 65, 128] {
        let overlapping = Ipv6Prefix::new(HOME, len).unwrap();
        let stolen = with(&|a| (a.node, a.prefix) = (b"other".to_vec(), overlapping));
        assert_eq!(anchor.authorize(stolen), Err(AuthorizeError::Prefix(overlapping)));
    }
    let second = with(&|a| (a.node, a.prefix) = (b"other".to_vec(), other));
    assert_eq!(anchor.authorize(second), Ok(()));
    let third = Ipv6Prefix::new("2001:db8:b::".parse().unwrap(), 64).unwrap();
    let third = with(&|a| {
        (a.node, a.prefix, a.key) =
            (b"third".to_vec(), third, SharedKey::new(7, Algorithm::HmacSha1_96, b"k"));
    });
    assert_eq!(anchor.authorize(third.clone()), Err(AuthorizeError::Full(2)));

    // A withdrawn key ends its binding; with the last one the place is free.
    let mut gateway = Gateway::of(2);
    deliver(&mut anchor, 0, &gateway.update(300));
    anchor.withdraw(1002);
    assert_eq!(drain(&mut anchor), [Output::RemoveRoute { prefix: prefix() }]);
    let refused = anchor.handle_packet(at_ms(1), START_NS, &gateway.update(300));
    assert_eq!(refused, Err(Refusal::UnknownKey(1002)));
    for spi in [1001, 1003, 1004] {
        anchor.withdraw(spi);
    }
    assert_eq!((anchor.deadline(), anchor.authorize(third)), (None, Ok(())));
}

/// What happens to the packets between gateways and anchor, and who else sends some.
#[derive(Debug, Clone)]
enum Step {
    /// The gateway of this epoch sends: 0 a transient binding, 1 an update, 2 a deregistration.
    Send { epoch: u64, what: u8 },
    /// One of the packets sent so far arrives, for the first time or again; those that never do are lost.
    Arrive { which: prop::sample::Index },
    /// One of them arrives with a bit changed, its checksum repaired or not.
    Forge { which: prop::sample::Index, bit: prop::sample::Index, repaired: bool },
    /// Time goes on.
    Wait { ms: u64 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1_u64..=3, 0_u8..8).prop_map(|(epoch, what)| Step::Send { epoch, what: what.min(2) }),
        6 => any::<prop::sample::Index>().prop_map(|which| Step::Arrive { which }),
        2 => (any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<bool>())
            .prop_map(|(which, bit, repaired)| Step::Forge { which, bit, repaired }),
        1 => prop_oneof![1_u64..1500, 1000_u64..400_000].prop_map(|ms| Step::Wait { ms }),
    ];
    prop::collection::vec(step, 1..60)
}

/// An anchor, the route it has set, and the highest epoch that has asked for it.
struct World {
    anchor: Anchor,
    ms: u64,
    route: Option<Ipv6Addr>,
    epoch: u64,
}

impl World {
    fn arrive(&mut self, packet: &[u8]) -> Result<(), Refusal> {
        let taken = self.anchor.handle_packet(at_ms(self.ms), START_NS, packet);
        self.settle();
        taken
    }

    fn settle(&mut self) {
        for output in drain(&mut self.anchor) {
            match output {
                Output::SwitchRoute { place, .. } => self.route = Some(place.care_of),
                Output::RemoveRoute { .. } => self.route = None,
                Output::Send(_)
                | Output::SendDatagram { .. }
                | Output::TakeFrom { .. }
                | Output::Keep { .. } => {}
            }
        }
        let binding = self.anchor.binding(NAME);
        assert_eq!(self.route, binding.map(|(care_of, _)| care_of), "the route is not the binding's");
        if let Some((care_of, epoch)) = binding {
            assert!(epoch >= self.epoch, "epoch {epoch} has taken the address back from {}", self.epoch);
            assert_eq!(care_of, Gateway::of(epoch).address);
            self.epoch = epoch;
        }
    }
}

proptest! {
    #[test]
    fn the_address_is_where_the_highest_epoch_is(steps in steps()) {
        let mut world = World { anchor: anchor(4), ms: 0, route: None, epoch: 0 };
        let mut gateways: Vec<Gateway> = (1..=4).map(Gateway::of).collect();
        let mut sent: Vec<Vec<u8>> = Vec::new();
        for step in steps {
            match step {
                Step::Send { epoch, what } => {
                    let gateway = &mut gateways[epoch as usize - 1];
                    sent.push(match what {
                        0 => gateway.prepare(),
                        1 => gateway.update(300),
                        _ => gateway.update(0),
                    });
                }
                Step::Arrive { which } if !sent.is_empty() => {
                    prop_assert_eq!(world.arrive(&sent[which.index(sent.len())]), Ok(()));
                }
                Step::Forge { which, bit, repaired } if !sent.is_empty() => {
                    let mut packet = sent[which.index(sent.len())].clone();
                    forge(&mut packet, bit, repaired);
                    let before = world.anchor.binding(NAME);
                    prop_assert!(world.arrive(&packet).is_err());
                    prop_assert_eq!(world.anchor.binding(NAME), before);
                }
                Step::Wait { ms } => {
                    world.ms += ms;
                    world.anchor.handle_timeout(at_ms(world.ms));
                    world.settle();
                }
                _ => {}
            }
        }
        // The hand-off ends in epoch 4, whose gateway repeats itself until it is heard. Nothing of before undoes it.
        let last = gateways[3].update(300);
        prop_assert_eq!(world.arrive(&last), Ok(()));
        for packet in sent.iter().chain([&last]) {
            prop_assert_eq!(world.arrive(packet), Ok(()));
            prop_assert_eq!(world.anchor.binding(NAME), Some((gateways[3].address, 4)));
        }
    }
}

/// Changes a bit that the proof covers: none of the IPv6 header but the source, none of the padding behind the proof.
fn forge(packet: &mut [u8], bit: prop::sample::Index, repaired: bool) {
    let message = 40;
    let covered = packet.len() - message - 8;
    let at = match bit.index(16 + covered) {
        source if source < 16 => 8 + source,
        at => message + at - 16,
    };
    // The checksum is not covered; without it the change would be seen before.
    let at = if (message + 4..message + 6).contains(&at) { message + 6 } else { at };
    packet[at] ^= 1 << bit.index(8);
    if repaired {
        let found = Signalling::parse(packet).unwrap();
        let (mut bytes, ends) = (found.message.to_vec(), found.addresses.endpoints());
        bytes[4..6].fill(0);
        let mut sum = 135 + bytes.len() as u32;
        for part in [&ends.source.octets()[..], &ends.destination.octets(), &bytes] {
            sum += part.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum::<u32>();
        }
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        packet[message + 4..message + 6].copy_from_slice(&(!sum as u16).to_be_bytes());
    }
}
