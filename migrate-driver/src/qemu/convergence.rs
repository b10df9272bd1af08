//! Whether sending the memory of a running guest comes to an end: judged once a pass, from QEMU's figures alone. Pure.

use std::time::Duration;

/// Passes over the memory that may go by without a shorter pause in sight.
const MAX_IDLE_PASSES: u32 = 3;
/// On a fast path three passes are over before anything can be said of the guest.
const MIN_IDLE: Duration = Duration::from_secs(30);
/// A pause counts as shorter when it is at most this part of the best so far, in percent.
const SHORTER_PERCENT: u64 = 90;
/// How long no byte may move.
const MAX_STALL: Duration = Duration::from_secs(60);

/// The figures of one moment, as `query-migrate` gives them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Figures {
    /// Since the migration has begun.
    pub(crate) at: Duration,
    /// The passes over the memory that have begun.
    pub(crate) passes: u64,
    /// Bytes left to be sent.
    pub(crate) remaining_bytes: u64,
    /// Bytes sent.
    pub(crate) sent_bytes: u64,
}

/// What is to be thought of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It may still come to an end.
    GoOn,
    /// The pause that the guest would need has not become shorter over several passes.
    NotConverging {
        /// Bytes a second.
        bytes_s: u64,
        /// That pause.
        expected: Duration,
    },
    /// No byte has moved for so long.
    Stalled(Duration),
}

/// Follows one migration.
#[derive(Debug, Default)]
pub(crate) struct Convergence {
    /// The figures at the beginning of the pass under way.
    pass: Option<Figures>,
    /// The shortest pause that was expected at the beginning of a pass, and when that was.
    best: Option<(Duration, Duration)>,
    idle_passes: u32,
    /// When a byte was last seen to move, and how many had been sent then.
    moved: (Duration, u64),
}

impl Convergence {
    /// Takes new figures.
    pub(crate) fn judge(&mut self, now: Figures) -> Verdict {
        if now.sent_bytes != self.moved.1 {
            self.moved = (now.at, now.sent_bytes);
        }
        let still = now.at.saturating_sub(self.moved.0);
        if still >= MAX_STALL {
            return Verdict::Stalled(still);
        }
        match self.pass.filter(|pass| pass.passes < now.passes) {
            Some(before) => {
                self.pass = Some(now);
                self.new_pass(before, now)
            }
            None => {
                self.pass.get_or_insert(now);
                Verdict::GoOn
            }
        }
    }

    fn new_pass(&mut self, before: Figures, now: Figures) -> Verdict {
        let time = now.at.saturating_sub(before.at).as_micros().max(1) as u64;
        let sent = now.sent_bytes.saturating_sub(before.sent_bytes);
        let bytes_s = (u128::from(sent) * 1_000_000 / u128::from(time)).min(u64::MAX.into()) as u64;
        let expected = Duration::from_micros(
            (u128::from(now.remaining_bytes) * 1_000_000 / u128::from(bytes_s.max(1))).min(1 << 50) as u64,
        );
        let is_shorter = |best: Duration| expected <= best * SHORTER_PERCENT as u32 / 100;
        match self.best {
            Some((best, since)) if !is_shorter(best) => {
                self.idle_passes += 1;
                if self.idle_passes >= MAX_IDLE_PASSES && now.at.saturating_sub(since) >= MIN_IDLE {
                    return Verdict::NotConverging { bytes_s, expected };
                }
            }
            _ => {
                self.best = Some((expected, now.at));
                self.idle_passes = 0;
            }
        }
        Verdict::GoOn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Sends passes of these sizes, in MiB, at so many MiB/s; gives the verdict and the pass in which it fell.
    fn passes(mib_s: u64, sizes: &[u64]) -> (Verdict, usize) {
        let mut convergence = Convergence::default();
        let (mut at, mut sent) = (0, 0);
        for (index, &size) in sizes.iter().enumerate() {
            let figures = |at_ms: u64, sent: u64, left: u64| Figures {
                at: Duration::from_millis(at_ms),
                passes: index as u64 + 1,
                remaining_bytes: left * MIB,
                sent_bytes: sent * MIB,
            };
            for part in 0..4 {
                let done = size * part / 4;
                let verdict = convergence.judge(figures(at + done * 1000 / mib_s, sent + done, size - done));
                if verdict != Verdict::GoOn {
                    return (verdict, index);
                }
            }
            at += size * 1000 / mib_s;
            sent += size;
        }
        (Verdict::GoOn, sizes.len())
    }

    #[test]
    fn a_guest_that_dirties_as_fast_as_the_line_does_not_converge() {
        let (verdict, pass) = passes(6, &[200, 80, 82, 79, 81, 80, 80, 80]);
        assert_eq!(pass, 4, "one that was the best, and three that were no better");
        let Verdict::NotConverging { bytes_s, expected } = verdict else { panic!("{verdict:?}") };
        assert!(bytes_s.abs_diff(6 * MIB) < MIB / 2, "{bytes_s}");
        assert!((13..14).contains(&expected.as_secs()), "{expected:?}");
    }

    #[test]
    fn one_whose_rest_shrinks_goes_on_however_slowly() {
        let sizes: Vec<u64> =
            (0..40).map(|pass| 4000 * 89_u64.pow(pass / 2) / 100_u64.pow(pass / 2)).take(16).collect();
        assert_eq!(passes(6, &sizes).0, Verdict::GoOn, "{sizes:?}");
    }

    #[test]
    fn short_passes_are_no_reason_before_their_time() {
        // 16 ms a pass.
        let sizes = vec![16; 1500];
        assert_eq!(passes(1000, &sizes).0, Verdict::GoOn);
        let sizes = vec![16; 3000];
        assert!(matches!(passes(1000, &sizes).0, Verdict::NotConverging { .. }));
    }

    #[test]
    fn a_burst_is_forgiven() {
        let sizes = [200, 80, 90, 95, 60, 50, 200, 40, 30, 20, 10];
        assert_eq!(passes(6, &sizes).0, Verdict::GoOn);
    }

    #[test]
    fn a_stream_that_stands_still_is_told_in_its_time() {
        let mut convergence = Convergence::default();
        let figures = |at: u64, sent_bytes: u64| Figures {
            at: Duration::from_secs(at),
            passes: 1,
            remaining_bytes: 100 * MIB,
            sent_bytes,
        };
        for at in 0..200 {
            assert_eq!(convergence.judge(figures(at, at * MIB)), Verdict::GoOn);
        }
        assert_eq!(convergence.judge(figures(258, 199 * MIB)), Verdict::GoOn);
        assert_eq!(convergence.judge(figures(259, 199 * MIB)), Verdict::Stalled(Duration::from_secs(60)));
        assert_eq!(convergence.judge(figures(260, 200 * MIB)), Verdict::GoOn);
    }
}
