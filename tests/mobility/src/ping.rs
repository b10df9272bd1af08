//! Echo requests to a guest (RFC 792, RFC 4443 section 4), and when each was answered: what an unmodified guest can be asked.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Result;
use harness::Namespace;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, recv, sendto, socket_with, sockopt,
};

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
    pub fn start(from: &Namespace, target: impl Into<IpAddr>, interval: Duration) -> Result<Self> {
        let target = SocketAddr::new(target.into(), 0);
        let (family, protocol, [request, reply]) = match target {
            SocketAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP, [8, 0]),
            SocketAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6, [128, 129]),
        };
        let socket =
            from.enter(|| socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(protocol)))??;
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
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
                        let mut request = [request, 0, 0, 0, IDENTIFIER[0], IDENTIFIER[1], high, low];
                        if target.is_ipv4() {
                            // That of IPv6 is the kernel's to make.
                            let checksum = checksum(&request);
                            request[2..4].copy_from_slice(&checksum.to_be_bytes());
                        }
                        sent_at.insert(answers.sent, Instant::now());
                        let _ = sendto(&socket, &request, SendFlags::empty(), &target);
                        answers.sent += 1;
                    }
                    let wait = next.saturating_duration_since(Instant::now());
                    let wait = wait.clamp(Duration::from_millis(1), Duration::from_millis(20));
                    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(wait))?;
                    let Ok((len, _)) = recv(&socket, &mut buffer, RecvFlags::empty()) else { continue };
                    // With IPv4 its header comes too.
                    let header = if target.is_ipv4() { 4 * usize::from(buffer[0] & 0xf) } else { 0 };
                    if let Some(&[kind, _, _, _, a, b, high, low]) = buffer[..len].get(header..header + 8)
                        && kind == reply
                        && [a, b] == IDENTIFIER
                    {
                        let number = u16::from_be_bytes([high, low]);
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

/// Of a message whose length is even (RFC 1071).
fn checksum(message: &[u8]) -> u16 {
    let words = message.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    // Of at most some thousand words two steps fold all carries.
    let folded = (sum >> 16) + (sum & 0xffff);
    !((folded >> 16) + folded) as u16
}
