use std::future::pending;
use std::net::Ipv4Addr;

use tokio::sync::oneshot;

use super::*;

const EVERY: Duration = Duration::from_millis(5);

async fn listen() -> (UdpSocket, SocketAddr) {
    let socket = bind((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

fn options(count: u64) -> SendOptions {
    SendOptions { stream: 5, interval: Duration::from_millis(2), count: Some(count) }
}

#[tokio::test]
async fn a_stream_is_received_and_reported() {
    let (socket, address) = listen().await;
    let (stop, stopped) = oneshot::channel::<()>();
    let receiver = tokio::spawn(async move {
        let mut reports = 0;
        let report = serve(socket, EVERY, |_| reports += 1, async { drop(stopped.await) }).await;
        (report, reports)
    });
    let sent = send(address, options(20), pending()).await.unwrap();
    assert_eq!(sent, Sent { packets: 20, refused: 0 });
    tokio::time::sleep(Duration::from_millis(50)).await;
    stop.send(()).unwrap();
    let (report, reports) = receiver.await.unwrap();
    let stream = report.streams[&5];
    assert_eq!((stream.received, stream.lost, stream.last_seq, report.ignored), (20, 0, 20, 0));
    assert!(reports >= 2, "{reports}");
}

#[tokio::test]
async fn what_is_no_probe_is_counted_and_streams_are_bounded() {
    let (socket, address) = listen().await;
    let receiver = tokio::spawn(serve(socket, EVERY, |_| {}, tokio::time::sleep(Duration::from_millis(300))));
    let sender = bind((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
    sender.send_to(&[0; PACKET_BYTES], address).await.unwrap();
    let packet = Packet { stream: 0, seq: 1, sent_ns: 0, words: [0; WORDS] };
    sender.send_to(&[&packet.encode()[..], &[0]].concat(), address).await.unwrap();
    for stream in 0..MAX_STREAMS as u64 + 3 {
        sender.send_to(&Packet { stream, ..packet }.encode(), address).await.unwrap();
        // One thread runs both ends: let the receiver empty its socket.
        tokio::task::yield_now().await;
    }
    let report = receiver.await.unwrap();
    assert_eq!((report.streams.len(), report.ignored), (MAX_STREAMS, 2 + 3));
}

#[tokio::test]
async fn sending_stops_when_told_and_refuses_nonsense() {
    let (_socket, address) = listen().await;
    let endless = SendOptions { count: None, ..options(0) };
    let sent = send(address, endless, tokio::time::sleep(Duration::from_millis(30))).await.unwrap();
    assert!((2..=30).contains(&sent.packets), "{sent:?}");
    let never = SendOptions { interval: Duration::ZERO, ..options(1) };
    assert!(matches!(send(address, never, pending()).await, Err(ProbeError::Interval)));
    let taken = bind(address).await.unwrap_err().to_string();
    assert!(taken.contains(&address.to_string()), "{taken}");
}
