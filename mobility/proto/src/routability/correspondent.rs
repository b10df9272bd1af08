//! A correspondent (RFC 6275 chapter 9): it keeps nothing of a test but a few nonces for all, and of a mobile node its binding.
//! Answers each test with one packet of about the same size, whoever asks.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv6Addr;
use std::time::Duration;

use super::{BINDING_LIFETIME_S, NONCE_LIFETIME};
use crate::auth::{BindingKey, CorrespondentKey, Covered, VerifyError};
use crate::received::Refusal;
use crate::wire::*;

/// What the correspondent is told once.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its own address.
    pub address: Ipv6Addr,
    /// Its secret.
    pub key: CorrespondentKey,
    /// How many mobile nodes it remembers at most.
    pub max_bindings: usize,
}

#[derive(Debug)]
struct Nonce {
    index: u16,
    value: [u8; 8],
    until: Duration,
}

/// What is known of a mobile node. Its number outlives the binding for as long as the tokens could be used again.
#[derive(Debug)]
struct Entry {
    care_of: Option<Ipv6Addr>,
    sequence: SequenceNumber,
    expires: Duration,
    forget: Duration,
}

/// The correspondent.
#[derive(Debug)]
pub struct Correspondent {
    config: Config,
    /// The newest last.
    nonces: VecDeque<Nonce>,
    entries: BTreeMap<Ipv6Addr, Entry>,
    outputs: VecDeque<Vec<u8>>,
}

impl Correspondent {
    /// A correspondent that answers nobody until it has a nonce.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self { config, nonces: VecDeque::new(), entries: BTreeMap::new(), outputs: VecDeque::new() }
    }

    /// From now on tokens are made with this nonce, which is random. About every 30 s (RFC 6275 section 5.2.2); the earlier
    /// ones are taken until they are 240 s old.
    pub fn renew_nonce(&mut self, now: Duration, value: [u8; 8]) {
        self.nonces.retain(|nonce| nonce.until > now);
        let index = self.nonces.back().map_or(1, |nonce| nonce.index.wrapping_add(1));
        self.nonces.push_back(Nonce { index, value, until: now + NONCE_LIFETIME });
    }

    /// Takes an IPv6 packet with signalling.
    ///
    /// # Errors
    /// [`Refusal`]: nothing has changed, and nothing is sent.
    pub fn handle_packet(&mut self, now: Duration, packet: &[u8]) -> Result<(), Refusal> {
        let Signalling { addresses, message, .. } = Signalling::parse(packet)?;
        if addresses.destination != self.config.address {
            return Err(Refusal::Destination(addresses.destination));
        }
        let header = MobilityHeader::new_checked(message)?;
        let repr = Repr::parse(&header, addresses.endpoints())?;
        match repr.message {
            // A test with a Home Address option proves nothing (RFC 6275 sections 9.4.1 and 9.4.2).
            Message::HomeTestInit(_) | Message::CareOfTestInit(_) if addresses.home_address.is_some() => {
                Err(Refusal::Address(addresses.source))
            }
            Message::HomeTestInit(cookie) => {
                self.answer(now, addresses.source, |nonce, key| {
                    let token = key.home_token(addresses.source, &nonce.value);
                    Message::HomeTest(RoutabilityTest { nonce_index: nonce.index, cookie, token })
                });
                Ok(())
            }
            Message::CareOfTestInit(cookie) => {
                self.answer(now, addresses.source, |nonce, key| {
                    let token = key.care_of_token(addresses.source, &nonce.value);
                    Message::CareOfTest(RoutabilityTest { nonce_index: nonce.index, cookie, token })
                });
                Ok(())
            }
            Message::BindingUpdate(update) => self.update(now, &addresses, &header, update, &repr.options),
            _ => Err(Refusal::Type(repr.message.kind())),
        }
    }

    fn answer(
        &mut self,
        now: Duration,
        to: Ipv6Addr,
        make: impl FnOnce(&Nonce, &CorrespondentKey) -> Message,
    ) {
        let Some(nonce) = self.nonces.back().filter(|nonce| nonce.until > now) else { return };
        let repr = Repr { message: make(nonce, &self.config.key), options: vec![] };
        self.send(Addresses::direct(self.config.address, to), |ends| repr.emit(ends));
    }

    fn update(
        &mut self,
        now: Duration,
        addresses: &Addresses,
        header: &MobilityHeader<'_>,
        update: BindingUpdate,
        options: &[MobilityOption],
    ) -> Result<(), Refusal> {
        let indices = options.iter().find_map(|option| match option {
            MobilityOption::NonceIndices { home, care_of } => Some((*home, *care_of)),
            _ => None,
        });
        let (home_index, care_of_index) = indices.ok_or(VerifyError::Missing)?;
        let home = addresses.home_address.unwrap_or(addresses.source);
        let care_of = addresses.source;
        let ends = update.lifetime == BindingLifetime::ZERO || care_of == home;
        let value = |index| {
            let nonce = self.nonces.iter().find(|nonce| nonce.index == index && nonce.until > now)?;
            Some(nonce.value)
        };
        let needs_care_of = care_of != home;
        let (home_nonce, care_of_nonce) = (value(home_index), value(care_of_index));
        let told = |status| BindingAcknowledgement {
            status,
            flags: BindingAcknowledgementFlags::default(),
            sequence: update.sequence,
            lifetime: BindingLifetime::ZERO,
        };
        let Some((home_nonce, care_of_nonce)) =
            home_nonce.filter(|_| care_of_nonce.is_some() || !needs_care_of).zip(Some(care_of_nonce))
        else {
            let status = match (home_nonce, care_of_nonce) {
                (None, None) if needs_care_of => Status::EXPIRED_NONCES,
                (None, _) => Status::EXPIRED_HOME_NONCE,
                _ => Status::EXPIRED_CARE_OF_NONCE,
            };
            // Without a nonce there is nothing to prove the answer with (RFC 6275 section 9.5.4).
            let repr = Repr { message: Message::BindingAcknowledgement(told(status)), options: vec![] };
            self.send(self.back(care_of, home), |ends| repr.emit(ends));
            return Ok(());
        };
        let key = BindingKey::new(
            self.config.key.home_token(home, &home_nonce),
            care_of_nonce
                .filter(|_| needs_care_of)
                .map(|nonce| self.config.key.care_of_token(care_of, &nonce)),
        );
        let covered = Covered { care_of, peer: self.config.address };
        key.verify(header, covered)?;
        let mut told = told(self.judge(home, &update));
        if told.status.is_accepted() {
            let seconds = update.lifetime.as_secs().min(BINDING_LIFETIME_S);
            told.lifetime = if ends { BindingLifetime::ZERO } else { BindingLifetime::from_secs(seconds) };
            let expires = now + Duration::from_secs(told.lifetime.as_secs().into());
            let care_of = Some(care_of).filter(|_| !ends);
            let forget = expires.max(now + NONCE_LIFETIME);
            self.entries.insert(home, Entry { care_of, sequence: update.sequence, expires, forget });
        } else if let (Status::SEQUENCE_OUT_OF_WINDOW, Some(entry)) = (told.status, self.entries.get(&home)) {
            told.sequence = entry.sequence;
        }
        if update.flags.contains(BindingUpdateFlags::ACKNOWLEDGE) || !told.status.is_accepted() {
            let repr = Repr { message: Message::BindingAcknowledgement(told), options: vec![] };
            self.send(self.back(care_of, home), |ends| key.emit(&repr, ends, covered));
        }
        Ok(())
    }

    fn judge(&self, home: Ipv6Addr, update: &BindingUpdate) -> Status {
        match self.entries.get(&home) {
            _ if update.flags.contains(BindingUpdateFlags::HOME_REGISTRATION) => {
                Status::HOME_REGISTRATION_NOT_SUPPORTED
            }
            Some(entry) if !update.sequence.follows(entry.sequence) => Status::SEQUENCE_OUT_OF_WINDOW,
            None if self.entries.len() >= self.config.max_bindings => Status::INSUFFICIENT_RESOURCES,
            _ => Status::ACCEPTED,
        }
    }

    /// To a mobile node, behind a type 2 routing header when it is away.
    fn back(&self, care_of: Ipv6Addr, home: Ipv6Addr) -> Addresses {
        let routed_to = Some(home).filter(|home| *home != care_of);
        Addresses { routed_to, ..Addresses::direct(self.config.address, care_of) }
    }

    fn send(&mut self, addresses: Addresses, emit: impl FnOnce(Endpoints) -> Result<Vec<u8>, EmitError>) {
        let Ok(message) = emit(addresses.endpoints()) else { return };
        if let Ok(header) = MobilityHeader::new_checked(&message) {
            self.outputs.push_back(addresses.emit(header));
        }
    }

    /// A packet that is no signalling has come from `source` with a Home Address option: whether it may be believed. If not,
    /// the source is told so by a Binding Error (RFC 6275 section 9.3.3).
    pub fn accepts(&mut self, source: Ipv6Addr, home: Ipv6Addr) -> bool {
        let is_bound = self.care_of(home) == Some(source);
        if !is_bound {
            let status = BindingErrorStatus::UNKNOWN_BINDING;
            let repr =
                Repr { message: Message::BindingError { status, home_address: home }, options: vec![] };
            self.send(Addresses::direct(self.config.address, source), |ends| repr.emit(ends));
        }
        is_bound
    }

    /// Where packets for this home address are sent, behind a type 2 routing header.
    #[must_use]
    pub fn care_of(&self, home: Ipv6Addr) -> Option<Ipv6Addr> {
        self.entries.get(&home)?.care_of
    }

    /// Ends bindings whose time is over.
    pub fn handle_timeout(&mut self, now: Duration) {
        for entry in self.entries.values_mut().filter(|entry| entry.expires <= now) {
            entry.care_of = None;
        }
        self.entries.retain(|_, entry| entry.forget > now);
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called, if nothing comes before.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        let due = |entry: &Entry| if entry.care_of.is_some() { entry.expires } else { entry.forget };
        self.entries.values().map(due).min()
    }

    /// The next packet to be sent, if any.
    pub fn poll_output(&mut self) -> Option<Vec<u8>> {
        self.outputs.pop_front()
    }
}
