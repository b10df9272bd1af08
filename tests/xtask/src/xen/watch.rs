//! Whether a guest can be reached: it is listened to, and asked, all the while that it moves.

use std::time::Duration;

use anyhow::{Result, ensure};
use harness::xen::GUEST;
use harness::{Collector, XenPair};
use mobility_lab::Ping;

/// As often as the guest sends.
const INTERVAL: Duration = Duration::from_millis(20);

/// A watch kept over the guest.
pub(super) struct Watch<'a> {
    collector: &'a Collector,
    ping: Ping,
}

impl<'a> Watch<'a> {
    /// Begins it.
    pub(super) fn begin(pair: &XenPair, collector: &'a Collector) -> Result<Self> {
        collector.mark();
        Ok(Self { collector, ping: Ping::start(pair.namespace(), GUEST, INTERVAL)? })
    }

    /// How long the guest was not reached: nothing was heard of it, or it answered nothing, whichever was longer.
    pub(super) fn end(self) -> Result<Duration> {
        let heard = self.collector.longest_since_mark();
        let answers = self.ping.finish()?;
        let answered = answers.longest_gap();
        println!(
            "    {} of {} echo requests answered, the longest time without {:.0} ms; without a packet of its own {:.0} ms",
            answers.answered.len(),
            answers.sent,
            answered.as_secs_f64() * 1e3,
            heard.as_secs_f64() * 1e3,
        );
        ensure!(!answers.answered.is_empty(), "the guest answers no echo request");
        Ok(heard.max(answered))
    }
}
