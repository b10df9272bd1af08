use std::future::pending;
use std::net::Ipv4Addr;

use mobility_proto::probe::{PACKET_BYTES, svg};
use tokio::sync::oneshot;

use super::*;

async fn listen() -> (UdpSocket, SocketAddr) {
    let socket = bind((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

fn options(count: u64) -> SendOptions {
    SendOptions {
        stream: 5,
        interval: Duration::from_millis(2),
        bytes: PACKET_BYTES,
        count: Some(count),
        wall_clock: false,
        echo: false,
        draw: false,
    }
}

/// Sends to a receiver, and gives what both say.
async fn run(options: SendOptions, serving: ServeOptions) -> (Outcome<Sent>, Outcome<Report>) {
    let (socket, address) = listen().await;
    let (stop, stopped) = oneshot::channel::<()>();
    let receiver = tokio::spawn(serve(socket, serving, async { drop(stopped.await) }));
    let sent = send(address, options, pending()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    stop.send(()).unwrap();
    (sent, receiver.await.unwrap())
}

#[tokio::test]
async fn a_stream_is_received_and_reported() {
    let (sent, received) = run(options(20), ServeOptions::default()).await;
    let Outcome { report: Sent { packets, refused, took_ns, answers }, svg } = sent;
    assert_eq!((packets, refused, answers, svg), (20, 0, None, None));
    assert!(took_ns >= 38_000_000, "{took_ns}");
    assert_eq!((received.report.ignored, received.svg), (0, None));
    let stream = received.report.streams[&5];
    let s = stream.arrivals;
    assert_eq!((s.received, s.lost, s.duplicated, s.reordered, s.last_seq), (20, 0, 0, 0, 20));
    // Both ends have the same clock, and know it.
    let latency = stream.latency;
    assert_eq!(latency.of, LatencyKind::OneWay);
    let s = latency.summary;
    assert!(
        0 < s.min_ns && s.min_ns <= s.mean_ns && s.p95_ns <= s.max_ns && s.max_ns < 1_000_000_000,
        "{s:?}"
    );
}

#[tokio::test]
async fn any_size_any_rate_and_the_time_of_day() {
    for (bytes, interval_us) in [(64, 100), (1400, 500), (60_000, 5000)] {
        let interval = Duration::from_micros(interval_us);
        let sending = SendOptions { bytes, interval, wall_clock: true, ..options(40) };
        let start = Instant::now();
        let (_, received) = run(sending, ServeOptions::default()).await;
        assert!(start.elapsed() >= interval * 39);
        let stream = received.report.streams[&5];
        assert_eq!((stream.arrivals.received, stream.latency.of), (40, LatencyKind::OneWayTimeOfDay));
        assert!((0..1_000_000_000).contains(&stream.latency.summary.min_ns), "{stream:?}");
    }
}

#[tokio::test]
async fn answers_give_the_round_trip_and_both_ends_draw() {
    let serving = ServeOptions { echo: true, draw: true };
    let sending = SendOptions { echo: true, draw: true, ..options(20) };
    let (sent, received) = run(sending, serving).await;
    let answers = sent.report.answers.unwrap();
    assert_eq!((answers.arrivals.received, answers.arrivals.lost), (20, 0));
    assert_eq!(answers.latency.of, LatencyKind::RoundTrip);
    let there = received.report.streams[&5].latency.summary;
    assert!(answers.latency.summary.min_ns > there.min_ns, "{answers:?} {there:?}");
    for (svg, axis) in [(sent.svg, "round-trip time (ms)"), (received.svg, "one-way latency (ms)")] {
        let svg = svg.unwrap();
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n") && svg.contains(axis), "{svg}");
        assert!(svg.contains("20 received, 0 lost"), "{svg}");
    }
}

#[tokio::test]
async fn an_answer_is_never_answered() {
    let (socket, address) = listen().await;
    let serving = ServeOptions { echo: true, draw: false };
    let receiver = tokio::spawn(serve(socket, serving, tokio::time::sleep(Duration::from_millis(200))));
    let mut words = [0; WORDS];
    words[word::ANSWER] = word::ANSWERED;
    let answered = Packet { stream: 1, seq: 1, sent_ns: 0, words };
    let (sender, _) = listen().await;
    sender.send_to(&answered.encode(), address).await.unwrap();
    assert_eq!(receiver.await.unwrap().report.streams.len(), 1);
    assert!(sender.try_recv(&mut [0; PACKET_BYTES]).is_err());
}

#[tokio::test]
async fn what_is_no_probe_is_counted_and_streams_are_bounded() {
    let (socket, address) = listen().await;
    let receiver = tokio::spawn(serve(
        socket,
        ServeOptions { echo: false, draw: true },
        tokio::time::sleep(Duration::from_millis(300)),
    ));
    let sender = bind((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
    sender.send_to(&[0; PACKET_BYTES], address).await.unwrap();
    let packet = Packet { stream: 0, seq: 1, sent_ns: 0, words: [0; WORDS] };
    sender.send_to(&packet.encode()[..63], address).await.unwrap();
    for stream in 0..MAX_STREAMS as u64 + 3 {
        sender.send_to(&Packet { stream, ..packet }.encode(), address).await.unwrap();
        // One thread runs both ends: let the receiver empty its socket.
        tokio::task::yield_now().await;
    }
    let Outcome { report, svg } = receiver.await.unwrap();
    assert_eq!(svg.unwrap().matches("<g ").count(), svg::MAX_PANELS);
    assert_eq!((report.streams.len(), report.ignored), (MAX_STREAMS, 2 + 3));
}

#[tokio::test]
async fn sending_stops_when_told_and_refuses_nonsense() {
    let (_socket, address) = listen().await;
    let endless = SendOptions { count: None, ..options(0) };
    let sent = send(address, endless, tokio::time::sleep(Duration::from_millis(30))).await.unwrap();
    assert!((2..=30).contains(&sent.report.packets), "{sent:?}");
    let never = SendOptions { interval: Duration::ZERO, ..options(1) };
    assert!(matches!(send(address, never, pending()).await, Err(ProbeError::Interval)));
    let short = SendOptions { bytes: 63, ..options(1) };
    assert!(matches!(send(address, short, pending()).await, Err(ProbeError::Size { bytes: 63 })));
    let taken = bind(address).await.unwrap_err().to_string();
    assert!(taken.contains(&address.to_string()), "{taken}");
}

/// What the receiver says of two packets that took 5 and 7 ms, whose sender says that its clock is `clock` and which
/// is `ahead_ns` ahead of the receiver's monotonic clock.
fn latency(clock: u64, ahead_ns: u64) -> Latency {
    let mut streams = Streams::new(77, false);
    let mut words = [0; WORDS];
    words[word::CLOCK] = clock;
    for (seq, took_ms) in [(1, 5), (2, 7)] {
        let sent_ns = seq * 20_000_000;
        let monotonic_ns = sent_ns + took_ms * 1_000_000;
        let arrival = Arrival { monotonic_ns, unix_ns: monotonic_ns + 1_700_000_000_000_000_000 };
        let packet = Packet { stream: 1, seq, sent_ns: sent_ns + ahead_ns, words };
        streams.arrived(arrival, (Ipv4Addr::LOCALHOST, 1).into(), Some(packet));
    }
    streams.report().streams[&1].latency
}

#[test]
fn latency_is_one_way_only_where_the_clocks_allow() {
    let ends = |latency: Latency| (latency.of, latency.summary.min_ns, latency.summary.max_ns);
    assert_eq!(ends(latency(77, 0)), (LatencyKind::OneWay, 5_000_000, 7_000_000));
    assert_eq!(ends(latency(78, 9_000_000_000)), (LatencyKind::AboveSmallest, 0, 2_000_000));
    assert_eq!(ends(latency(0, 9_000_000_000)), (LatencyKind::AboveSmallest, 0, 2_000_000));
    let wall = latency(word::WALL_CLOCK, 1_700_000_000_000_000_000);
    assert_eq!(ends(wall), (LatencyKind::OneWayTimeOfDay, 5_000_000, 7_000_000));
}
