//! Echo requests to a guest (RFC 4443 section 4), and when each was answered: what an unmodified guest can be asked.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Result;
use harness::Namespace;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, recv, sendto, socket_with, sockopt,
};

const ECHO_REQUEST: u8 = 128;
const ECHO_REPLY: u8 = 129;
/// Tells our answers from anybody else's.
const IDENTIFIER: [u8; 2] = [0x4c, 0x48];

/// What was answered.
#[derive(Debug, Clone, Default)]
pub struct Answers {
    /// Requests sent.
    pub sent: u16,
    /// When each answered request was sent and answered.
    pub answered: BTreeMap<u16, (Instant, Instant)>,
}

impl Answers {
    /// Requests that were never answered.
    #[must_use]
    pub fn lost(&self) -> usize {
        usize::from(self.sent) - self.answered.len()
    }

    /// The longest time between two answers.
    #[must_use]
    pub fn longest_gap(&self) -> Duration {
        let mut times: Vec<_> = self.answered.values().map(|(_, answered)| *answered).collect();
        times.sort_unstable();
        times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }
}

/// Requests under way.
#[derive(Debug)]
pub struct Ping {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Answers>>,
}

impl Ping {
    /// Asks `target` from a namespace, every `interval`.
    ///
    /// # Errors
    /// When there is no raw socket to be had.
    pub fn start(from: &Namespace, target: Ipv6Addr, interval: Duration) -> Result<Self> {
        let socket = from.enter(|| {
            let flags = SocketFlags::CLOEXEC;
            socket_with(AddressFamily::INET6, SocketType::RAW, flags, Some(ipproto::ICMPV6))
        })??;
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                let target = SocketAddrV6::new(target, 0, 0, 0);
                let (mut answers, start) = (Answers::default(), Instant::now());
                let mut sent_at = BTreeMap::new();
                let mut buffer = [0; 256];
                // After the last request answers are waited for.
                let mut until = None;
                while until.is_none_or(|until| Instant::now() < until) {
                    let next = start + interval * u32::from(answers.sent);
                    if stop.load(Ordering::Relaxed) {
                        until.get_or_insert(Instant::now() + Duration::from_secs(1));
                    } else if Instant::now() >= next {
                        let [high, low] = answers.sent.to_be_bytes();
                        let request = [ECHO_REQUEST, 0, 0, 0, IDENTIFIER[0], IDENTIFIER[1], high, low];
                        sent_at.insert(answers.sent, Instant::now());
                        let _ = sendto(&socket, &request, SendFlags::empty(), &target);
                        answers.sent += 1;
                    }
                    let wait = next.saturating_duration_since(Instant::now());
                    let wait = wait.clamp(Duration::from_millis(1), Duration::from_millis(20));
                    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(wait))?;
                    let Ok((len, _)) = recv(&socket, &mut buffer, RecvFlags::empty()) else { continue };
                    if len >= 8 && buffer[0] == ECHO_REPLY && buffer[4..6] == IDENTIFIER {
                        let number = u16::from_be_bytes([buffer[6], buffer[7]]);
                        if let Some(sent) = sent_at.get(&number) {
                            answers.answered.entry(number).or_insert((*sent, Instant::now()));
                        }
                    }
                }
                Ok(answers)
            }
        });
        Ok(Self { stop, thread })
    }

    /// Ends it, a second after the last request.
    ///
    /// # Errors
    /// When its thread broke.
    pub fn finish(self) -> Result<Answers> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the thread that asks panicked"))?
    }
}
