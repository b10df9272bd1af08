//! The heartbeat between a gateway and its anchor (RFC 5847): does the anchor answer, and has it been started anew since it
//! last did? Builds no message.

use std::time::Duration;

/// HEARTBEAT_INTERVAL (RFC 5847 section 5).
const INTERVAL: Duration = Duration::from_secs(60);
/// MISSING_HEARTBEATS_ALLOWED (RFC 5847 section 5).
const MISSING_ALLOWED: u32 = 3;

/// What an answer tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    /// It answers nothing that was asked.
    Nothing,
    /// All is as it was.
    Alive,
    /// The anchor has been started anew, or was silent: what it knows may be old.
    Back,
}

/// One question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Beat {
    pub(super) sequence: u32,
    /// As many as are allowed have not been answered, as of now.
    pub(super) falls_silent: bool,
}

#[derive(Debug, Default)]
pub(super) struct Heartbeat {
    /// `None` while there is nobody to ask for.
    next: Option<Duration>,
    sequence: u32,
    unanswered: u32,
    is_silent: bool,
    /// The anchor's restart counter, as it last said.
    counter: Option<u32>,
}

impl Heartbeat {
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.next
    }

    /// Nobody is here whose binding could be lost.
    pub(super) fn rest(&mut self) {
        self.next = None;
    }

    /// The next question, if it is time. The first comes an interval after the first call.
    pub(super) fn poll(&mut self, now: Duration) -> Option<Beat> {
        let next = *self.next.get_or_insert(now + INTERVAL);
        if now < next {
            return None;
        }
        self.next = Some(now + INTERVAL);
        let falls_silent = self.unanswered >= MISSING_ALLOWED && !self.is_silent;
        self.is_silent |= falls_silent;
        self.unanswered = self.unanswered.saturating_add(1);
        self.sequence = self.sequence.wrapping_add(1);
        Some(Beat { sequence: self.sequence, falls_silent })
    }

    /// An answer, with the restart counter that came with it. Only the last question can be answered: an answer that is
    /// played back says nothing.
    pub(super) fn answered(&mut self, sequence: u32, counter: Option<u32>) -> Heard {
        if self.unanswered == 0 || sequence != self.sequence {
            return Heard::Nothing;
        }
        self.unanswered = 0;
        let has_restarted = self.counter.zip(counter).is_some_and(|(before, now)| before != now);
        self.counter = counter.or(self.counter);
        let was_silent = std::mem::take(&mut self.is_silent);
        if was_silent || has_restarted { Heard::Back } else { Heard::Alive }
    }
}
