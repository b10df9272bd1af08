//! The one entry of a mobile node's binding update list (RFC 6275 section 11.1): what is asked of the home agent, when it is
//! asked again (section 11.8), and by which clock (RFC 4285 section 6.3). Builds no message.

use std::collections::VecDeque;
use std::time::Duration;

use crate::wire::*;

/// After how long the first update of all is sent again (RFC 6275 section 12, InitialBindackTimeoutFirstReg).
const FIRST_RETRY_EVER: Duration = Duration::from_millis(1500);
/// After how long any other is; each further time doubles it (INITIAL_BINDACK_TIMEOUT).
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// MAX_BINDACK_TIMEOUT; a home agent that has refused is asked again after as long.
const LONGEST_RETRY: Duration = Duration::from_secs(32);
/// How often an end is asked for; the binding's lifetime ends it otherwise.
const END_SENDS: u32 = 4;
/// How far a time that a home agent has accepted can be ahead of its clock (RFC 4285 section 6.2 leaves it open), in units of
/// 1/2^32 second.
const WINDOW: u64 = 7 << 32;
/// No more than so many updates in [`RATE_TIME`] (MAX_UPDATE_RATE).
const RATE_UPDATES: usize = 3;
const RATE_TIME: Duration = Duration::from_secs(1);

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// Not to be asked anything.
    Nothing,
    /// To be sent what is for the home address.
    Binding,
    /// The binding's end.
    End,
}

/// An update to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) sequence: SequenceNumber,
    pub(super) time: NtpTimestamp,
    pub(super) lifetime: BindingLifetime,
}

/// What an acknowledgement has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answered {
    /// Nothing that the node's owner has to know.
    Nothing,
    Bound,
    Ended,
    Refused(Status),
}

#[derive(Debug)]
pub(super) struct Registration {
    lifetime: BindingLifetime,
    wanted: Wanted,
    sequence: SequenceNumber,
    /// Of the last update, and of the first one that is not answered yet.
    time: NtpTimestamp,
    since: NtpTimestamp,
    /// Of the last one that was accepted.
    accepted: NtpTimestamp,
    /// How far the home agent's clock is ahead of ours, in units of 1/2^32 second.
    ahead: i64,
    /// How often the update was sent that is not answered yet.
    sends: u32,
    is_answered: bool,
    /// Whether it was sent again at once with what the home agent has said of number or time.
    is_corrected: bool,
    was_bound: bool,
    /// When the next update is to be sent; `None` when there is nothing to ask for.
    next: Option<Duration>,
    /// When the binding ends, as far as is known here.
    expires: Option<Duration>,
    /// When the last updates were sent.
    sent: VecDeque<Duration>,
}

impl Registration {
    pub(super) fn new(lifetime: BindingLifetime) -> Self {
        Self {
            lifetime,
            wanted: Wanted::Nothing,
            sequence: SequenceNumber::default(),
            time: NtpTimestamp(0),
            since: NtpTimestamp(0),
            accepted: NtpTimestamp(0),
            ahead: 0,
            sends: 0,
            is_answered: true,
            is_corrected: false,
            was_bound: false,
            next: None,
            expires: None,
            sent: VecDeque::new(),
        }
    }

    /// Asks to be bound from now on.
    pub(super) fn begin(&mut self, now: Duration) {
        self.want(now, Wanted::Binding);
    }

    /// Asks for the binding's end from now on, if there may be one.
    pub(super) fn end(&mut self, now: Duration) {
        if self.wanted == Wanted::Binding {
            self.want(now, Wanted::End);
        }
    }

    fn want(&mut self, now: Duration, wanted: Wanted) {
        self.wanted = wanted;
        self.is_corrected = false;
        self.renew(now);
    }

    /// A new update is sent at `next`.
    fn renew(&mut self, next: Duration) {
        (self.sends, self.is_answered, self.next) = (0, false, Some(next));
    }

    pub(super) fn is_over(&self) -> bool {
        self.wanted == Wanted::Nothing
    }

    pub(super) fn deadline(&self) -> Option<Duration> {
        let next = self.next.map(|next| next.max(self.allowed()));
        next.into_iter().chain(self.expires).min()
    }

    /// When one more update is not one too many.
    fn allowed(&self) -> Duration {
        let full = self.sent.len() >= RATE_UPDATES;
        self.sent.front().filter(|_| full).map_or(Duration::ZERO, |first| *first + RATE_TIME)
    }

    /// Whether the binding has just ended of itself.
    pub(super) fn expire(&mut self, now: Duration) -> bool {
        self.expires.take_if(|expires| *expires <= now).is_some()
    }

    pub(super) fn poll(&mut self, now: Duration, unix_ns: u64) -> Option<Due> {
        self.next.filter(|next| *next <= now && self.allowed() <= now)?;
        if self.wanted == Wanted::End && self.sends == END_SENDS {
            (self.wanted, self.next, self.expires) = (Wanted::Nothing, None, None);
            return None;
        }
        if self.is_answered {
            self.renew(now);
            self.is_corrected = false;
        }
        // Also an update that is sent again has a number and a time of its own (RFC 6275 section 11.8).
        self.sequence = self.sequence.next();
        let clock = NtpTimestamp::from_unix_ns(unix_ns).0.wrapping_add_signed(self.ahead);
        self.time = NtpTimestamp(clock.max(self.time.0.saturating_add(1)));
        if self.sends == 0 {
            self.since = self.time;
        }
        let first = if self.was_bound { FIRST_RETRY } else { FIRST_RETRY_EVER };
        self.next = Some(now + (first * (1 << self.sends.min(16))).min(LONGEST_RETRY));
        self.sends += 1;
        self.sent.push_back(now);
        while self.sent.len() > RATE_UPDATES {
            self.sent.pop_front();
        }
        let lifetime = if self.wanted == Wanted::End { BindingLifetime::ZERO } else { self.lifetime };
        Some(Due { sequence: self.sequence, time: self.time, lifetime })
    }

    pub(super) fn acknowledged(
        &mut self,
        now: Duration,
        unix_ns: u64,
        told: &BindingAcknowledgement,
        options: &[MobilityOption],
    ) -> Answered {
        let time = options.iter().find_map(|option| match option {
            MobilityOption::MessageIdentification(time) => Some(*time),
            _ => None,
        });
        // What is echoed must be of those that wait, or the answer is to somebody who was here before.
        let is_of_another = time.is_some_and(|time| !(self.since..=self.time).contains(&time));
        if self.is_answered || (told.status != Status::ID_MISMATCH && is_of_another) {
            return Answered::Nothing;
        }
        // Of the updates that ask for this, any may be the one that arrived.
        let is_ours = u32::from(self.sequence.0.wrapping_sub(told.sequence.0)) < self.sends;
        match told.status {
            // The last number that was accepted. A number behind which ours comes says nothing about ours.
            Status::SEQUENCE_OUT_OF_WINDOW if !self.sequence.follows(told.sequence) => {
                self.sequence = told.sequence;
                self.correct(now)
            }
            Status::SEQUENCE_OUT_OF_WINDOW => Answered::Nothing,
            _ if !is_ours => Answered::Nothing,
            Status::ID_MISMATCH => {
                let Some(clock) = time else { return self.refused(now, told.status) };
                self.ahead = clock.0.wrapping_sub(NtpTimestamp::from_unix_ns(unix_ns).0) as i64;
                // What was refused need not be followed, nor what cannot have been accepted.
                let possible = self.accepted.0 <= clock.0.saturating_add(WINDOW);
                self.time = if possible { self.accepted } else { NtpTimestamp(0) };
                self.since = self.time;
                self.correct(now)
            }
            status if !status.is_accepted() => self.refused(now, status),
            _ => self.granted(now, told, options),
        }
    }

    /// What was wrong is put right: once at once, further times when it would be sent again anyway.
    fn correct(&mut self, now: Duration) -> Answered {
        if !std::mem::replace(&mut self.is_corrected, true) {
            // What is still under way of the old numbers answers nothing any more.
            self.renew(now);
        }
        Answered::Nothing
    }

    fn refused(&mut self, now: Duration, status: Status) -> Answered {
        self.is_answered = true;
        if self.wanted == Wanted::End {
            (self.wanted, self.next) = (Wanted::Nothing, None);
        } else {
            self.next = Some(now + LONGEST_RETRY);
        }
        Answered::Refused(status)
    }

    fn granted(
        &mut self,
        now: Duration,
        told: &BindingAcknowledgement,
        options: &[MobilityOption],
    ) -> Answered {
        self.is_answered = true;
        self.accepted = self.time;
        if self.wanted == Wanted::End {
            (self.wanted, self.next, self.expires) = (Wanted::Nothing, None, None);
            return Answered::Ended;
        }
        self.was_bound = true;
        let lifetime = Duration::from_secs(told.lifetime.as_secs().into());
        self.expires = Some(now + lifetime);
        let advice = options.iter().find_map(|option| match option {
            MobilityOption::BindingRefreshAdvice(advice) => Some(advice.as_secs()),
            _ => None,
        });
        let keep_awake = options.iter().find_map(|option| match option {
            // Neither "as you like" nor "never" (RFC 5555 section 3.2.2).
            MobilityOption::NatDetection { refresh_s, .. } if !matches!(refresh_s, 0 | &u32::MAX) => {
                Some(*refresh_s)
            }
            _ => None,
        });
        let sooner = advice.into_iter().chain(keep_awake).min();
        let refresh =
            sooner.map_or(lifetime / 2, |sooner| Duration::from_secs(sooner.into()).min(lifetime / 2));
        self.next = Some(now + refresh.max(FIRST_RETRY));
        Answered::Bound
    }
}
