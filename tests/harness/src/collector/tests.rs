use mobility_proto::probe::WORDS;

use super::*;

fn packet(instance: u64, seq: u64, acked: u64) -> Packet {
    let mut words = [0; WORDS];
    words[word::ACKED] = acked;
    words[word::INSTANCE] = instance;
    Packet { stream: 1, seq, sent_ns: seq, words }
}

fn send(collector: &Collector, packets: &[Packet]) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    for packet in packets {
        socket.send_to(&packet.encode(), (Ipv4Addr::LOCALHOST, collector.port())).unwrap();
    }
}

const SOON: Duration = Duration::from_secs(5);

#[test]
fn progress_and_second_lives_are_seen() {
    let collector = Collector::start().unwrap();
    assert_eq!((collector.acked(), collector.instance()), (0, None));
    send(&collector, &[packet(9, 1, 0), packet(9, 2, 3), packet(9, 3, 4)]);
    assert_eq!(collector.wait_acked(4, SOON).unwrap(), 4);
    assert_eq!((collector.duplicates(), collector.instance()), (0, Some(9)));
    send(&collector, &[packet(9, 3, 4), packet(9, 4, 5)]);
    collector.wait_seq(3, SOON).unwrap();
    assert_eq!(collector.duplicates(), 1);
    send(&collector, &[packet(10, 1, 1)]);
    while collector.instances().len() < 2 {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!((collector.instance(), collector.acked()), (Some(10), 1));
}

#[test]
fn waiting_ends_and_says_how_far_it_came() {
    let collector = Collector::start().unwrap();
    send(&collector, &[packet(1, 1, 7)]);
    collector.wait_acked(7, SOON).unwrap();
    let error = collector.wait_acked(8, Duration::from_millis(60)).unwrap_err().to_string();
    assert!(error.contains("reach 8") && error.contains("at 7"), "{error}");
    assert!(collector.is_silent(Duration::from_millis(30)));
}

#[test]
fn a_mark_starts_the_longest_pause_anew() {
    let mut state = State::default();
    for (at_ms, seq) in [(0u64, 1), (500, 2), (520, 3)] {
        state.take(at_ms * 1_000_000, packet(1, seq, 0));
    }
    assert_eq!(state.boots[&1].mark.longest_ns, 500_000_000);
    state.boots.values_mut().for_each(|boot| boot.mark = Mark::default());
    state.take(540_000_000, packet(1, 4, 0));
    assert_eq!(state.boots[&1].mark.longest_ns, 20_000_000);
}

#[test]
fn foreign_datagrams_are_ignored() {
    let collector = Collector::start().unwrap();
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.send_to(&[0; 210], (Ipv4Addr::LOCALHOST, collector.port())).unwrap();
    socket.send_to(b"hello", (Ipv4Addr::LOCALHOST, collector.port())).unwrap();
    send(&collector, &[packet(1, 1, 1)]);
    collector.wait_acked(1, SOON).unwrap();
    assert_eq!(collector.snapshot().unwrap().received, 1);
}
