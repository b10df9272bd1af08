//! The window on simulated paths, and the relay over a real connection.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::service::net::testing::{Pair, pair, striped};

const FLOOR_BYTES: u64 = 128 << 10;
const PIPE_BYTES: u64 = 64 << 10;

const STEP: Duration = Duration::from_micros(200);

/// What a source that always has more brings over a path.
struct Outcome {
    /// Bytes taken in the last second.
    per_second: u64,
    /// Bytes under way at the end.
    under_way: u64,
}

/// A path that takes `delay` one way and passes `rate` bytes a second, behind a queue without bound.
fn simulate(delay: Duration, rate: u64, seconds: u64) -> Outcome {
    let mut window = Window::new(FLOOR_BYTES);
    let (mut arrivals, mut reports) = (VecDeque::new(), VecDeque::new());
    let (mut queued, mut taken, mut told, mut at_last_second) = (0u64, 0u64, 0u64, 0);
    let mut idle_at = Duration::ZERO;
    let steps = Duration::from_secs(seconds).as_nanos() / STEP.as_nanos();
    let per_step = rate * STEP.as_micros() as u64 / 1_000_000;
    for step in 0..steps as u32 {
        let now = STEP * step;
        if now == Duration::from_secs(seconds - 1) {
            at_last_second = taken;
        }
        while let piece @ 1.. = window.room().min(RELAY_BYTES) {
            window.send(now, piece);
            queued += piece;
        }
        let leaves = queued.min(per_step);
        queued -= leaves;
        arrivals.push_back((now + delay, leaves));
        let before = taken;
        while arrivals.front().is_some_and(|(at, _)| *at <= now) {
            taken += arrivals.pop_front().unwrap().1;
        }
        if taken > before {
            idle_at = now + REPORT_IDLE;
        }
        if taken - told >= REPORT_BYTES || taken > told && now >= idle_at {
            told = taken;
            reports.push_back((now + delay, taken));
        }
        while reports.front().is_some_and(|(at, _)| *at <= now) {
            window.take(now, reports.pop_front().unwrap().1).unwrap();
        }
    }
    Outcome { per_second: taken - at_last_second, under_way: window.sent - window.taken }
}

#[test]
fn the_path_is_kept_busy_and_little_waits() {
    // Loopback, a LAN, 1 Gb/s over 20, 100 and 200 ms, 100 Mb/s over 100 ms, 10 Mb/s over 50 ms.
    let paths = [
        (0, 600_000_000),
        (1, 125_000_000),
        (20, 125_000_000),
        (100, 125_000_000),
        (200, 125_000_000),
        (100, 12_500_000),
        (50, 1_250_000),
    ];
    for (rtt_ms, rate) in paths {
        let rtt = Duration::from_millis(rtt_ms);
        let outcome = simulate(rtt / 2, rate, 6);
        let share = outcome.per_second as f64 / rate as f64;
        assert!(share > 0.9, "{rtt_ms} ms, {rate} B/s: {share:.2} of it used");
        let bound = (rate as f64 * (rtt + 3 * SLACK).as_secs_f64()) as u64 + FLOOR_BYTES + RELAY_BYTES;
        assert!(outcome.under_way <= bound, "{rtt_ms} ms, {rate} B/s: {} under way", outcome.under_way);
    }
}

#[test]
fn a_fast_start_is_reached_within_a_second_at_100_ms() {
    let outcome = simulate(Duration::from_millis(50), 125_000_000, 2);
    assert!(outcome.per_second > 110_000_000, "{} in the second second", outcome.per_second);
}

#[test]
fn a_source_that_pauses_loses_nothing_of_its_window() {
    let mut window = Window::new(FLOOR_BYTES);
    let before = window.size;
    for step in 0..100 {
        let now = Duration::from_millis(20 * step);
        window.send(now, 1000);
        window.take(now + Duration::from_millis(10), window.sent).unwrap();
    }
    assert_eq!(window.size, before);
}

#[test]
fn counts_that_cannot_be_are_refused() {
    let mut window = Window::new(FLOOR_BYTES);
    window.send(Duration::ZERO, 100);
    assert_eq!(window.take(Duration::ZERO, 101), None);
    assert_eq!(window.take(Duration::ZERO, 60), Some(()));
    assert_eq!(window.take(Duration::ZERO, 59), None);
    assert_eq!(window.take(Duration::ZERO, 60), Some(()));
}

async fn streams(pair: &Pair) -> (MemoryStream, (SendStream, LaneRecv)) {
    let ((send, recv), there) = striped(pair).await;
    (MemoryStream { send, recv, own: None }, there)
}

#[tokio::test]
async fn the_memory_arrives_as_it_was_sent_and_the_source_waits_for_a_slow_taker() {
    let pair = pair().await;
    let (stream, (send_b, recv_b)) = streams(&pair).await;
    let memory: Vec<u8> = (0..20_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let (input, expected) = (std::io::Cursor::new(memory.clone()), memory);
    let sent = AtomicU64::new(0);
    let (taker, mut hypervisor) = tokio::io::duplex(PIPE_BYTES as usize);
    let sending = send(input, stream, FLOOR_BYTES, |bytes| _ = sent.fetch_add(bytes, Ordering::Relaxed));
    let receiving = receive(taker, recv_b, send_b, |_| {});
    let taking = async {
        // The hypervisor stands still: no more than the first window, and what its pipe takes, is read at the source.
        while sent.load(Ordering::Relaxed) < FIRST_WINDOW_BYTES {
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        let read = sent.load(Ordering::Relaxed);
        assert!((FIRST_WINDOW_BYTES..=FIRST_WINDOW_BYTES + PIPE_BYTES).contains(&read), "{read}");
        let mut all = Vec::new();
        hypervisor.read_to_end(&mut all).await.unwrap();
        all
    };
    let (sent, received, all) = tokio::join!(sending, receiving, taking);
    sent.unwrap();
    received.unwrap();
    assert!(all == expected, "{} of {} bytes", all.len(), expected.len());
}

/// Gives some bytes, then breaks.
struct Breaks(bool);

impl AsyncRead for Breaks {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        if std::mem::replace(&mut self.0, true) {
            return std::task::Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        buf.put_slice(b"the first bytes");
        std::task::Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn memory_that_breaks_off_is_not_taken_for_whole() {
    let pair = pair().await;
    let (stream, (send_b, recv_b)) = streams(&pair).await;
    let (sent, received) = tokio::join!(
        send(Breaks(false), stream, FLOOR_BYTES, |_| {}),
        receive(tokio::io::sink(), recv_b, send_b, |_| {})
    );
    assert!(matches!(sent, Err(RelayError::Hypervisor(_))), "{sent:?}");
    assert!(matches!(received, Err(RelayError::Net(_))), "{received:?}");
}

#[tokio::test]
async fn a_taker_that_counts_too_much_ends_the_relay() {
    let pair = pair().await;
    let (stream, (mut send_b, _recv_b)) = streams(&pair).await;
    net::send(&mut send_b, &Taken { bytes: u64::MAX }).await.unwrap();
    let sent = send(tokio::io::repeat(7), stream, FLOOR_BYTES, |_| {}).await;
    assert!(matches!(sent, Err(RelayError::Count { taken: u64::MAX, .. })), "{sent:?}");
}

/// A hypervisor that says nothing.
struct Silent;

impl AsyncRead for Silent {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        _: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::task::Poll::Pending
    }
}

#[tokio::test]
async fn a_source_that_falls_silent_is_let_go_and_one_whose_hypervisor_is_silent_is_not() {
    let pair = pair().await;
    let (_held, (send_b, recv_b)) = streams(&pair).await;
    let received = receive(tokio::io::sink(), recv_b, send_b, |_| {}).await;
    assert!(matches!(received, Err(RelayError::Net(NetError::Silent))), "{received:?}");

    let (stream, (send_b, recv_b)) = streams(&pair).await;
    tokio::select! {
        sent = send(Silent, stream, FLOOR_BYTES, |_| {}) => panic!("{sent:?}"),
        received = receive(tokio::io::sink(), recv_b, send_b, |_| {}) => panic!("{received:?}"),
        () = tokio::time::sleep(net::SILENCE * 2) => {}
    }
}

#[tokio::test]
async fn a_taker_that_takes_nothing_is_let_go() {
    let pair = pair().await;
    let (stream, _there) = streams(&pair).await;
    let sent = send(tokio::io::repeat(7), stream, FLOOR_BYTES, |_| {}).await;
    assert!(matches!(sent, Err(RelayError::Net(NetError::Silent))), "{sent:?}");
}

#[tokio::test]
async fn a_piece_that_is_too_long_or_cut_short_is_refused() {
    let pair = pair().await;
    for (bytes, ends) in [(&[0, 0, 16, 0, 1][..], false), (&[5, 0, 0, 0, 1], true), (&[5, 0], true)] {
        let (mut stream, (send_b, recv_b)) = streams(&pair).await;
        stream.send.write_chunk(Bytes::copy_from_slice(bytes)).await.unwrap();
        if ends {
            stream.send.finish().await.unwrap();
        }
        let received = receive(tokio::io::sink(), recv_b, send_b, |_| {}).await;
        let refused = match &received {
            Err(RelayError::Net(NetError::Lanes(_))) => !ends,
            Err(RelayError::Net(NetError::Ended)) => ends,
            _ => false,
        };
        assert!(refused, "{bytes:?}: {received:?}");
    }
}
