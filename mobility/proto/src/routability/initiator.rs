//! A mobile node towards one correspondent (RFC 6275 sections 11.6 and 11.7.2): both tests, then the update that they prove;
//! again before the tokens are too old, and with a new care-of address.

use std::collections::VecDeque;
use std::net::Ipv6Addr;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::{BINDING_LIFETIME_S, TOKEN_LIFETIME};
use crate::auth::{BindingKey, Covered, VerifyError};
use crate::received::Refusal;
use crate::wire::*;

/// INITIAL_BINDACK_TIMEOUT and MAX_BINDACK_TIMEOUT.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(32);

/// What the initiator is told once.
#[derive(Debug, Clone)]
pub struct Config {
    /// The node's home address.
    pub home_address: Ipv6Addr,
    /// The correspondent's address.
    pub correspondent: Ipv6Addr,
    /// Random: the cookies follow from it.
    pub secret: [u8; 16],
}

/// What has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happened {
    /// The correspondent sends straight to this care-of address.
    Bound(Ipv6Addr),
    /// The correspondent sends by way of the home agent again.
    Unbound,
    /// It does not want to.
    Refused(Status),
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send this IPv6 packet.
    Send(Vec<u8>),
    /// Send this one through the tunnel to the home agent.
    Tunnel(Vec<u8>),
    /// Something has happened.
    Event(Happened),
}

/// What is waited for, and asked for again.
#[derive(Debug, Default)]
struct Question {
    next: Option<Duration>,
    sends: u32,
}

impl Question {
    fn ask(&mut self, now: Duration) {
        (self.next, self.sends) = (Some(now), 0);
    }

    fn answered(&mut self) {
        self.next = None;
    }

    /// Whether it is to be asked now.
    fn is_due(&mut self, now: Duration) -> bool {
        if self.next.is_none_or(|next| next > now) {
            return false;
        }
        self.next = Some(now + (FIRST_RETRY * (1 << self.sends.min(16))).min(LONGEST_RETRY));
        self.sends += 1;
        true
    }
}

/// One of the two tests.
#[derive(Debug, Default)]
struct Test {
    question: Question,
    cookie: Cookie,
    /// The token, its nonce's index, and until when it is used.
    token: Option<(KeygenToken, u16, Duration)>,
}

impl Test {
    fn begin(&mut self, now: Duration, cookie: Cookie) {
        (self.cookie, self.token) = (cookie, None);
        self.question.ask(now);
    }

    fn answer(&mut self, now: Duration, told: &RoutabilityTest) -> Result<(), Refusal> {
        if self.question.next.is_none() || told.cookie != self.cookie {
            return Err(VerifyError::Wrong.into());
        }
        self.question.answered();
        self.token = Some((told.token, told.nonce_index, now + TOKEN_LIFETIME));
        Ok(())
    }

    fn valid(&self, now: Duration) -> Option<(KeygenToken, u16)> {
        self.token.filter(|(.., until)| *until > now).map(|(token, index, _)| (token, index))
    }
}

/// The mobile node's side.
#[derive(Debug)]
pub struct Initiator {
    config: Config,
    /// Where the node is; its home address when it is at home.
    care_of: Option<Ipv6Addr>,
    home_test: Test,
    care_of_test: Test,
    update: Question,
    sequence: SequenceNumber,
    /// Where the correspondent sends, and until when.
    bound: Option<(Ipv6Addr, Duration)>,
    /// When both tests are made again.
    refresh: Option<Duration>,
    /// When it is believed again, without a proof, that tokens are too old.
    doubt: Duration,
    cookies: u64,
    outputs: VecDeque<Output>,
}

impl Initiator {
    /// One that has not begun.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            config,
            care_of: None,
            home_test: Test::default(),
            care_of_test: Test::default(),
            update: Question::default(),
            sequence: SequenceNumber::default(),
            bound: None,
            refresh: None,
            doubt: Duration::ZERO,
            cookies: 0,
            outputs: VecDeque::new(),
        }
    }

    /// The node is registered with its home agent at this care-of address.
    pub fn attach(&mut self, now: Duration, care_of: Ipv6Addr) {
        self.care_of = Some(care_of);
        self.begin(now);
    }

    /// The node is at home: a binding ends, which the home test alone proves (RFC 6275 section 5.2.5).
    pub fn come_home(&mut self, now: Duration) {
        self.care_of = Some(self.config.home_address);
        self.begin(now);
    }

    /// Asks for what is not known, or not for long enough.
    fn begin(&mut self, now: Duration) {
        (self.refresh, self.update) = (None, Question::default());
        if self.home_test.valid(now + TOKEN_LIFETIME / 2).is_none() {
            let cookie = self.cookie();
            self.home_test.begin(now, cookie);
        }
        self.care_of_test = Test::default();
        if self.is_away() {
            let cookie = self.cookie();
            self.care_of_test.begin(now, cookie);
        }
        self.prove(now);
    }

    fn is_away(&self) -> bool {
        self.care_of.is_some_and(|care_of| care_of != self.config.home_address)
    }

    fn cookie(&mut self) -> Cookie {
        self.cookies += 1;
        let digest = Sha256::new()
            .chain_update(self.config.secret)
            .chain_update(self.cookies.to_be_bytes())
            .finalize();
        digest[..8].try_into().unwrap_or_default()
    }

    /// The key, with the indices of the nonces behind it, when both tests have been answered.
    fn key(&self, now: Duration) -> Option<(BindingKey, u16, u16)> {
        let (home, home_index) = self.home_test.valid(now)?;
        if !self.is_away() {
            return Some((BindingKey::new(home, None), home_index, 0));
        }
        let (care_of, care_of_index) = self.care_of_test.valid(now)?;
        Some((BindingKey::new(home, Some(care_of)), home_index, care_of_index))
    }

    /// When all is known that an update needs, it is sent. At home there is nothing to end when there was no binding.
    fn prove(&mut self, now: Duration) {
        if self.key(now).is_some() && (self.is_away() || self.bound.is_some()) {
            self.update.ask(now);
        }
        self.handle_timeout(now);
    }

    /// Takes an IPv6 packet with signalling, from the link or out of the tunnel.
    ///
    /// # Errors
    /// [`Refusal`]: nothing has changed, and nothing is sent.
    pub fn handle_packet(&mut self, now: Duration, packet: &[u8]) -> Result<(), Refusal> {
        let Signalling { addresses, message, .. } = Signalling::parse(packet)?;
        let Config { home_address, correspondent, .. } = self.config;
        let Some(care_of) = self.care_of else { return Err(Refusal::Destination(addresses.destination)) };
        if addresses.source != correspondent || addresses.home_address.is_some() {
            return Err(Refusal::Address(addresses.source));
        }
        let header = MobilityHeader::new_checked(message)?;
        let repr = Repr::parse(&header, addresses.endpoints())?;
        let is_to = |to| (addresses.destination, addresses.routed_to) == (to, None);
        match repr.message {
            Message::HomeTest(told) if is_to(home_address) => self.home_test.answer(now, &told)?,
            Message::CareOfTest(told) if is_to(care_of) => self.care_of_test.answer(now, &told)?,
            Message::BindingAcknowledgement(told) if addresses.destination == care_of => {
                if addresses.endpoints().destination != home_address {
                    return Err(Refusal::Destination(addresses.destination));
                }
                return self.acknowledged(now, &header, &told);
            }
            _ => return Err(Refusal::Type(repr.message.kind())),
        }
        self.prove(now);
        Ok(())
    }

    fn acknowledged(
        &mut self,
        now: Duration,
        header: &MobilityHeader<'_>,
        told: &BindingAcknowledgement,
    ) -> Result<(), Refusal> {
        let (Some(care_of), Some((key, ..))) = (self.care_of, self.key(now)) else {
            return Err(VerifyError::Missing.into());
        };
        let is_awaited = self.update.next.is_some();
        let is_ours =
            is_awaited && u32::from(self.sequence.0.wrapping_sub(told.sequence.0)) < self.update.sends;
        let is_expired = (Status::EXPIRED_HOME_NONCE.0..=Status::EXPIRED_NONCES.0).contains(&told.status.0);
        if is_expired {
            // Nobody can prove this: it is believed once a second, so that nobody makes a flood of it.
            if is_ours && self.doubt <= now {
                self.doubt = now + FIRST_RETRY;
                self.home_test.token = None;
                self.begin(now);
            }
            return Ok(());
        }
        key.verify(header, Covered { care_of, peer: self.config.correspondent })?;
        match told.status {
            Status::SEQUENCE_OUT_OF_WINDOW if is_awaited && !self.sequence.follows(told.sequence) => {
                self.sequence = told.sequence;
                self.update.ask(now);
            }
            _ if !is_ours => {}
            status if !status.is_accepted() => {
                self.update.answered();
                self.outputs.push_back(Output::Event(Happened::Refused(status)));
            }
            _ if !self.is_away() => {
                self.update.answered();
                self.bound = None;
                self.outputs.push_back(Output::Event(Happened::Unbound));
            }
            _ => {
                self.update.answered();
                let lifetime = Duration::from_secs(told.lifetime.as_secs().into());
                self.bound = Some((care_of, now + lifetime));
                // Before the tokens are too old to prove the next update.
                self.refresh = Some(now + (lifetime / 2).min(TOKEN_LIFETIME / 2).max(FIRST_RETRY));
                self.outputs.push_back(Output::Event(Happened::Bound(care_of)));
            }
        }
        self.handle_timeout(now);
        Ok(())
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Duration) {
        if self.bound.take_if(|(_, until)| *until <= now).is_some() {
            self.outputs.push_back(Output::Event(Happened::Unbound));
        }
        if self.refresh.take_if(|refresh| *refresh <= now).is_some() {
            return self.begin(now);
        }
        let Some(care_of) = self.care_of else { return };
        let Config { home_address, correspondent, .. } = self.config;
        if self.home_test.question.is_due(now) {
            let message = Message::HomeTestInit(self.home_test.cookie);
            let packet = plain(Addresses::direct(home_address, correspondent), message);
            // At home there is no tunnel.
            let is_away = self.is_away();
            self.outputs.extend(packet.map(if is_away { Output::Tunnel } else { Output::Send }));
        }
        if self.care_of_test.question.is_due(now) {
            let message = Message::CareOfTestInit(self.care_of_test.cookie);
            let packet = plain(Addresses::direct(care_of, correspondent), message);
            self.outputs.extend(packet.map(Output::Send));
        }
        if self.update.next.is_some_and(|next| next <= now) {
            match self.key(now) {
                Some(key) if self.update.is_due(now) => self.send_update(care_of, &key),
                Some(_) => {}
                // The tokens have become too old while nobody answered.
                None => self.begin(now),
            }
        }
    }

    fn send_update(&mut self, care_of: Ipv6Addr, (key, home, care_of_index): &(BindingKey, u16, u16)) {
        let Config { home_address, correspondent, .. } = self.config;
        self.sequence = self.sequence.next();
        let seconds = if self.is_away() { BINDING_LIFETIME_S } else { 0 };
        let message = Message::BindingUpdate(BindingUpdate {
            sequence: self.sequence,
            flags: BindingUpdateFlags::ACKNOWLEDGE,
            lifetime: BindingLifetime::from_secs(seconds),
        });
        let options = vec![MobilityOption::NonceIndices { home: *home, care_of: *care_of_index }];
        let addresses = Addresses {
            home_address: Some(home_address).filter(|_| self.is_away()),
            ..Addresses::direct(care_of, correspondent)
        };
        let covered = Covered { care_of, peer: correspondent };
        let Ok(message) = key.emit(&Repr { message, options }, addresses.endpoints(), covered) else {
            return;
        };
        if let Ok(header) = MobilityHeader::new_checked(&message) {
            self.outputs.push_back(Output::Send(addresses.emit(header)));
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called, if nothing comes before.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        let questions = [&self.home_test.question, &self.care_of_test.question, &self.update];
        let bound = self.bound.map(|(_, until)| until);
        questions.into_iter().filter_map(|question| question.next).chain(self.refresh).chain(bound).min()
    }

    /// What is to be done next, if anything.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }
}

/// A packet that is proved by nothing.
fn plain(addresses: Addresses, message: Message) -> Option<Vec<u8>> {
    let message = Repr { message, options: vec![] }.emit(addresses.endpoints()).ok()?;
    Some(addresses.emit(MobilityHeader::new_checked(&message).ok()?))
}
