use super::*;

/// A socket that answers every datagram with itself, `count` times.
fn echo(count: usize) -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        for _ in 0..count {
            let Ok((bytes, from)) = socket.recv_from(&mut buffer) else { return };
            socket.send_to(&buffer[..bytes], from).unwrap();
        }
    });
    address
}

fn client() -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(400))).unwrap();
    socket
}

fn ask(client: &UdpSocket, relay: &Relay, text: &[u8]) -> Option<Duration> {
    let start = Instant::now();
    client.send_to(text, relay.address()).unwrap();
    let mut buffer = [0; 2048];
    let (bytes, _) = client.recv_from(&mut buffer).ok()?;
    assert_eq!(&buffer[..bytes], text);
    Some(start.elapsed())
}

#[test]
fn two_clients_each_get_their_own_answers() {
    let relay = Relay::start(echo(2), LinkSettings::default()).unwrap();
    let (one, two) = (client(), client());
    assert!(ask(&one, &relay, b"one").is_some());
    assert!(ask(&two, &relay, b"two").is_some());
    assert_eq!(relay.counts(), RelayCounts { forwarded: 4, bytes: 12, dropped: 0 });
}

#[test]
fn delay_and_rate_take_their_time() {
    let delay = Duration::from_millis(40);
    let settings = LinkSettings { delay, ..LinkSettings::default() };
    let relay = Relay::start(echo(2), settings).unwrap();
    assert!(ask(&client(), &relay, b"x").unwrap() >= delay * 2);
    // 1000 bytes at 10 kB/s are 100 ms, each way.
    relay.set(LinkSettings { rate_bytes_s: Some(10_000), ..LinkSettings::default() });
    assert!(ask(&client(), &relay, &[7; 1000]).unwrap() >= Duration::from_millis(200));
}

#[test]
fn a_cut_link_carries_nothing_until_healed() {
    let relay = Relay::start(echo(2), LinkSettings::default()).unwrap();
    let client = client();
    relay.cut();
    assert_eq!(ask(&client, &relay, b"lost"), None);
    relay.heal();
    assert!(ask(&client, &relay, b"there").is_some());
    assert_eq!(relay.counts().dropped, 1);
}

#[test]
fn loss_is_near_what_was_asked_for_and_the_queue_is_bounded() {
    let socket = Arc::new(client());
    let to = socket.local_addr().unwrap();
    let settings = LinkSettings { loss_permille: 100, queue_bytes: 1 << 30, ..LinkSettings::default() };
    let relay = Relay::start(to, settings).unwrap();
    let now = Instant::now() + Duration::from_secs(60);
    let mut link = relay.shared.link();
    link.settings.delay = Duration::from_secs(60);
    for _ in 0..10_000 {
        link.accept(now, Direction::Forth, &socket, to, &[0; 100]);
    }
    assert!((900..1100).contains(&link.counts.dropped), "{:?}", link.counts);
    link.settings = LinkSettings { queue_bytes: link.queued_bytes + 150, ..LinkSettings::default() };
    let before = link.counts.dropped;
    link.accept(now, Direction::Forth, &socket, to, &[0; 100]);
    link.accept(now, Direction::Forth, &socket, to, &[0; 100]);
    assert_eq!(link.counts.dropped, before + 1);
}
