//! The probe sender: one packet every few milliseconds with the writer's progress in its application words.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use guest::record::first_kept;
use guest::{Workload, word};
use mobility_proto::probe::{Packet, WORDS};

use super::boot;
use super::writer::State;

/// A sender this far behind gives the lost time up instead of sending in a burst.
const MAX_LAG: Duration = Duration::from_millis(200);

/// Sends until the machine stops. Without a port it returns at once.
pub(crate) fn run(workload: &Workload, state: &State) -> io::Result<()> {
    if workload.port == 0 {
        return Ok(());
    }
    let socket = connect(workload)?;
    let period = Duration::from_millis(workload.probe_ms);
    let mut due = Instant::now();
    for seq in 1.. {
        let up = boot::uptime();
        let acked = state.acked();
        let mut words = [0; WORDS];
        words[word::ACKED] = acked;
        words[word::FIRST] = first_kept(acked, workload.slots(), u64::from(workload.group));
        words[word::INSTANCE] = state.instance();
        words[word::UPTIME_MS] = up.as_millis() as u64;
        let packet = Packet { stream: workload.stream, seq, sent_ns: up.as_nanos() as u64, words };
        // A refused packet (nobody listens yet) is a lost packet, no reason to stop.
        let _ = socket.send(&packet.encode());

        due += period;
        let now = Instant::now();
        if now > due + MAX_LAG {
            due = now;
        }
        thread::sleep(due.saturating_duration_since(now));
    }
    Ok(())
}

/// Until its router has been heard and its address is known to be its own, a guest with IPv6 has no way, or none but from an
/// address that is good on its link only.
fn connect(workload: &Workload) -> io::Result<UdpSocket> {
    let target = (workload.host, workload.port);
    if workload.host.is_ipv4() {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        return socket.connect(target).map(|()| socket);
    }
    loop {
        // A new one each time: a socket keeps the address it was connected from.
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?;
        if socket.connect(target).is_ok()
            && let SocketAddr::V6(own) = socket.local_addr()?
            && !own.ip().is_unicast_link_local()
        {
            return Ok(socket);
        }
        thread::sleep(MAX_LAG);
    }
}
