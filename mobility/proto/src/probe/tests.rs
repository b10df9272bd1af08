use super::stats::WINDOW;
use super::*;

fn packet(seq: u64) -> Packet {
    Packet { stream: 7, seq, sent_ns: seq.wrapping_mul(20_000_000), words: [seq / 2, 0, 9, seq] }
}

fn feed(seqs: impl IntoIterator<Item = u64>) -> StreamSnapshot {
    let mut stats = StreamStats::new();
    for (i, seq) in seqs.into_iter().enumerate() {
        stats.arrived(i as u64 * 20_000_000, &packet(seq));
    }
    stats.snapshot()
}

#[test]
fn a_packet_survives_the_wire() {
    let sent =
        Packet { stream: u64::MAX, seq: 1, sent_ns: 0x0102_0304_0506_0708, words: [4, 3, 2, u64::MAX] };
    let bytes = sent.encode();
    assert_eq!(bytes.len(), 210);
    assert_eq!(&bytes[24..32], &[1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(Packet::parse(&bytes), Ok(sent));
}

#[test]
fn what_is_no_probe_is_refused() {
    let bytes = packet(1).encode();
    assert_eq!(Packet::parse(&bytes[..209]), Err(ParseError::Length(209)));
    assert_eq!(Packet::parse(&[]), Err(ParseError::Length(0)));
    let mut other = bytes;
    other[0] ^= 1;
    assert_eq!(Packet::parse(&other), Err(ParseError::Magic));
}

#[test]
fn nothing_arrived_is_all_zero() {
    assert_eq!(StreamStats::new().snapshot(), StreamSnapshot::default());
}

#[test]
fn a_clean_stream_loses_nothing() {
    let s = feed(1..=100);
    assert_eq!((s.received, s.lost, s.duplicated, s.reordered, s.stale), (100, 0, 0, 0, 0));
    assert_eq!((s.first_seq, s.last_seq, s.jitter_ns), (1, 100, 0));
    assert_eq!(s.word_max, [50, 0, 9, 100]);
}

#[test]
fn loss_duplication_and_reordering_are_told_apart() {
    let s = feed([10, 11, 14, 12, 12, 15]);
    assert_eq!((s.received, s.lost, s.duplicated, s.reordered), (6, 1, 1, 1));
}

#[test]
fn an_early_packet_that_comes_late_lowers_the_start() {
    let s = feed([5, 4, 6]);
    assert_eq!((s.first_seq, s.lost, s.reordered), (4, 0, 1));
}

#[test]
fn the_window_moves_and_forgets() {
    let s = feed([1, 2, WINDOW + 2, 2, WINDOW + 1]);
    assert_eq!((s.stale, s.duplicated, s.reordered), (1, 0, 1));
    // Number 3 shares its bit with WINDOW + 3; having seen the one must not make the other a duplicate.
    let s = feed([3, 4, WINDOW + 3, WINDOW + 4]);
    assert_eq!((s.duplicated, s.lost), (0, WINDOW + 4 - 3 + 1 - 4));
}

#[test]
fn a_jump_beyond_everything_does_not_overflow() {
    let s = feed([0, u64::MAX, u64::MAX - 1]);
    assert_eq!((s.lost, s.reordered), (u64::MAX - 3, 1));
}

#[test]
fn the_longest_gap_names_its_ends() {
    let mut stats = StreamStats::new();
    for (seq, arrival_ms) in [(1, 0), (2, 20), (3, 170), (4, 190)] {
        stats.arrived(arrival_ms * 1_000_000, &packet(seq));
    }
    let gap = stats.snapshot().longest_gap;
    assert_eq!((gap.ns, gap.before, gap.after), (150_000_000, 2, 3));
    assert!((gap.ms() - 150.0).abs() < 1e-9);
}

#[test]
fn jitter_follows_rfc_3550() {
    // Transit times alternate by 16 ms, so |D| is 16 ms for every packet: the estimate climbs towards 16 ms.
    let mut stats = StreamStats::new();
    for seq in 0..200u64 {
        let late = if seq % 2 == 0 { 0 } else { 16_000_000 };
        stats.arrived(seq * 20_000_000 + late, &packet(seq));
    }
    let jitter = stats.snapshot().jitter_ns;
    assert!((15_900_000..=16_000_000).contains(&jitter), "{jitter}");
    // One D of 16 ms on a calm stream moves it by a sixteenth.
    let mut stats = StreamStats::new();
    stats.arrived(0, &packet(0));
    stats.arrived(36_000_000, &packet(1));
    assert_eq!(stats.snapshot().jitter_ns, 1_000_000);
}
