//! One entry of a binding update list (RFC 6275 section 11.1, RFC 5213 section 6.1): what is asked of the anchor, when it
//! is asked again, and when it must be renewed. Builds no message.

use std::time::Duration;

use crate::wire::*;

/// After how long an update that was not answered is sent again, the first time (RFC 6275 section 12 has 1 s and lets it
/// be configured: here a move waits for it); each further time doubles it.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(32);
/// But not beyond this as long as a move may be waiting: over a line that loses many, the next one is not far.
const SOON: Duration = Duration::from_secs(2);
/// How often it is sent at that pace: for half a minute.
const SOON_SENDS: u32 = 16;
/// How often an end is asked for; the binding's lifetime ends it otherwise.
const END_SENDS: u32 = 4;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// To be registered ahead (RFC 6058).
    Transient(TransientLifetime),
    /// To be the one who is sent what is for the mobile node.
    Active,
    /// Nothing any more.
    End,
}

/// An update to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) wanted: Wanted,
    pub(super) sequence: SequenceNumber,
    pub(super) time: Timestamp,
}

/// What an acknowledgement has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answered {
    /// It answers no update that waits.
    Nothing,
    Accepted(Wanted),
    Refused(Status),
}

#[derive(Debug)]
pub(super) struct Registration {
    wanted: Wanted,
    sequence: SequenceNumber,
    time: Timestamp,
    /// How often the update was sent that is not answered yet.
    sends: u32,
    is_answered: bool,
    /// When the next update is to be sent; `None` when there is nothing to ask for any more.
    next: Option<Duration>,
}

impl Registration {
    pub(super) fn new(now: Duration, wanted: Wanted) -> Self {
        let (sequence, time) = (SequenceNumber(0), Timestamp(0));
        Self { wanted, sequence, time, sends: 0, is_answered: false, next: Some(now) }
    }

    /// Asks for something else from now on.
    pub(super) fn want(&mut self, now: Duration, wanted: Wanted) {
        (self.wanted, self.sends, self.is_answered, self.next) = (wanted, 0, false, Some(now));
    }

    /// The anchor may have forgotten what it has accepted. Nothing to do for what it was never asked or has refused.
    pub(super) fn renew(&mut self, now: Duration) {
        if self.next.is_some() && self.wanted != Wanted::End {
            self.next = Some(now);
        }
    }

    pub(super) fn deadline(&self) -> Option<Duration> {
        self.next
    }

    /// There is nothing to ask for any more.
    pub(super) fn over(&mut self) {
        (self.wanted, self.sends, self.next) = (Wanted::End, 0, None);
    }

    pub(super) fn poll(&mut self, now: Duration, unix_ns: u64) -> Option<Due> {
        self.next.filter(|next| *next <= now)?;
        if self.wanted == Wanted::End && self.sends == END_SENDS {
            self.next = None;
            return None;
        }
        // Also an update that is sent again has a number and a time of its own: to accept it twice changes nothing.
        self.sequence = self.sequence.next();
        self.time = Timestamp::from_unix_ns(unix_ns).after(self.time);
        self.is_answered = false;
        let longest = if self.sends < SOON_SENDS { SOON } else { LONGEST_RETRY };
        self.next = Some(now + (FIRST_RETRY * (1 << self.sends.min(16))).min(longest));
        self.sends += 1;
        Some(Due { wanted: self.wanted, sequence: self.sequence, time: self.time })
    }

    pub(super) fn acknowledged(&mut self, now: Duration, told: &BindingAcknowledgement) -> Answered {
        // Of the updates that ask for this, any may be the one that arrived.
        let age = self.sequence.0.wrapping_sub(told.sequence.0);
        if self.is_answered || u32::from(age) >= self.sends {
            return Answered::Nothing;
        }
        self.is_answered = true;
        if !told.status.is_accepted() {
            self.next = None;
            return Answered::Refused(told.status);
        }
        self.sends = 0;
        self.next = match self.wanted {
            Wanted::Transient(lifetime) => Some(now + Duration::from_millis(u64::from(lifetime.as_ms()) / 2)),
            Wanted::Active => Some(now + Duration::from_secs(u64::from(told.lifetime.as_secs()).max(2)) / 2),
            Wanted::End => None,
        };
        Answered::Accepted(self.wanted)
    }
}
