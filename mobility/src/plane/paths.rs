//! To which peers packets can go in UDP: to those that have answered of late. A peer is asked again while packets go there, so a way
//! that is closed is noticed as soon as one that is opened.
//!
//! From one way to the other packets could overtake each other. To UDP they do not: who receives looks at UDP first, and gives
//! first what has come without (`super::Plane::tunnelled`). Back they might, so it is done for good reason only, and for a while.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::time::Duration;

use tokio::time::Instant;

/// How often a peer is asked.
const EVERY: Duration = Duration::from_secs(2);
/// One that has not answered so many times in a row may not know the question, and is asked rarely.
const PATIENCE: u32 = 5;
const RARELY: Duration = Duration::from_secs(60);
/// For how long an answer is good: three may be lost.
const GOOD_FOR: Duration = Duration::from_secs(7);
/// For how long packets take the other way after one that is too large for this one: it may be of a stream, which stays in order.
const LARGE_FOR: Duration = Duration::from_secs(10);
/// Those beyond are not asked.
const MAX_PEERS: usize = 4096;

/// What is known of the ways to peers.
#[derive(Debug, Default)]
pub(super) struct Paths(BTreeMap<Ipv6Addr, Path>);

#[derive(Debug, Default)]
struct Path {
    nonce: [u8; 8],
    asked: Option<Instant>,
    unanswered: u32,
    answered: Option<Instant>,
    large: Option<Instant>,
}

impl Paths {
    /// This is a peer that may be asked.
    pub(super) fn meet(&mut self, peer: Ipv6Addr) {
        if self.0.len() < MAX_PEERS {
            self.0.entry(peer).or_insert_with(|| {
                let mut path = Path::default();
                // Without chance it is a question all the same.
                let _ = rustix::rand::getrandom(&mut path.nonce, rustix::rand::GetRandomFlags::empty());
                path
            });
        }
    }

    /// What to ask the peer at this moment, if anything.
    pub(super) fn question(&mut self, now: Instant, peer: Ipv6Addr) -> Option<[u8; 8]> {
        let path = self.0.get_mut(&peer)?;
        let interval = if path.unanswered < PATIENCE { EVERY } else { RARELY };
        if path.asked.is_some_and(|asked| now < asked + interval) {
            return None;
        }
        (path.asked, path.unanswered) = (Some(now), path.unanswered.saturating_add(1));
        Some(path.nonce)
    }

    pub(super) fn answered(&mut self, now: Instant, peer: Ipv6Addr, nonce: [u8; 8]) {
        if let Some(path) = self.0.get_mut(&peer).filter(|path| path.nonce == nonce && path.asked.is_some()) {
            (path.answered, path.unanswered) = (Some(now), 0);
        }
    }

    /// Whether a packet can go to the peer in UDP, if it fits.
    pub(super) fn takes(&mut self, now: Instant, peer: Ipv6Addr, fits: bool) -> bool {
        let Some(path) = self.0.get_mut(&peer) else { return false };
        if !fits {
            path.large = Some(now);
        }
        let is_within = |since: Option<Instant>, time| since.is_some_and(|since| now < since + time);
        is_within(path.answered, GOOD_FOR) && !is_within(path.large, LARGE_FOR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: Ipv6Addr = Ipv6Addr::LOCALHOST;

    fn after(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    #[test]
    fn only_a_peer_that_has_answered_of_late_is_sent_to_in_udp() {
        let (mut paths, start) = (Paths::default(), Instant::now());
        assert_eq!(paths.question(start, PEER), None);
        paths.meet(PEER);
        assert!(!paths.takes(start, PEER, true));
        let nonce = paths.question(start, PEER).unwrap();
        assert_eq!(paths.question(after(start, 1999), PEER), None);
        assert_eq!(paths.question(after(start, 2000), PEER), Some(nonce));

        paths.answered(start, PEER, nonce.map(|byte| !byte));
        paths.answered(start, Ipv6Addr::UNSPECIFIED, nonce);
        assert!(!paths.takes(start, PEER, true));
        paths.answered(start, PEER, nonce);
        assert!(paths.takes(start, PEER, true));
        assert!(paths.takes(after(start, 6999), PEER, true));
        assert!(!paths.takes(after(start, 7000), PEER, true));
    }

    #[test]
    fn one_that_does_not_answer_is_asked_rarely_until_it_does() {
        let (mut paths, start) = (Paths::default(), Instant::now());
        paths.meet(PEER);
        let asked = |paths: &mut Paths, range: std::ops::Range<u64>| {
            range
                .filter(|second| paths.question(after(start, second * 1000), PEER).is_some())
                .collect::<Vec<_>>()
        };
        assert_eq!(asked(&mut paths, 0..129), [0, 2, 4, 6, 8, 68, 128]);
        let nonce = paths.0[&PEER].nonce;
        paths.answered(after(start, 129_000), PEER, nonce);
        assert_eq!(asked(&mut paths, 129..134), [130, 132]);
    }

    #[test]
    fn a_packet_that_is_too_large_takes_all_with_it_for_a_while() {
        let (mut paths, start) = (Paths::default(), Instant::now());
        paths.meet(PEER);
        let nonce = paths.question(start, PEER).unwrap();
        paths.answered(start, PEER, nonce);
        assert!(!paths.takes(start, PEER, false));
        paths.answered(after(start, 6000), PEER, nonce);
        assert!(!paths.takes(after(start, 9999), PEER, true));
        assert!(paths.takes(after(start, 10_000), PEER, true));
    }

    #[test]
    fn no_more_are_known_than_may_be() {
        let mut paths = Paths::default();
        (0..=MAX_PEERS as u128).for_each(|number| paths.meet(Ipv6Addr::from(number)));
        assert_eq!(paths.0.len(), MAX_PEERS);
    }
}
