use super::stats::WINDOW;
use super::timeline::{Loss, MAX_GAPS, MAX_LOSSES, MAX_SAMPLES};
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
fn a_packet_has_any_size_from_its_fields_up() {
    for size in [64, 65, 1000, 65_507] {
        let mut datagram = vec![0; size];
        packet(3).write(&mut datagram);
        assert_eq!(Packet::parse(&datagram), Ok(packet(3)));
    }
}

#[test]
fn what_is_no_probe_is_refused() {
    let bytes = packet(1).encode();
    assert_eq!(Packet::parse(&bytes[..63]), Err(ParseError::Length { bytes: 63 }));
    assert_eq!(
        Packet::parse(&[&bytes[..], &[0; 65_298]].concat()),
        Err(ParseError::Length { bytes: 65_508 })
    );
    assert_eq!(Packet::parse(&[]), Err(ParseError::Length { bytes: 0 }));
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
    assert_eq!((gap.ns, gap.at_ns, gap.before, gap.after), (150_000_000, 20_000_000, 2, 3));
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

#[test]
fn jitter_is_what_the_rfc_s_formula_gives_by_hand() {
    // Transit times 10, 12, 9, 9, 15 ms: |D| is 2, 3, 0, 6. J = J + (|D| - J) / 16 gives in turn
    // 0.125, 0.3046875, 0.28564453125, 0.642791748046875 ms.
    let mut stats = StreamStats::new();
    let mut jitters = Vec::new();
    for (seq, transit_ms) in [10, 12, 9, 9, 15].into_iter().enumerate() {
        let sent_ns = seq as u64 * 20_000_000;
        stats.arrived(sent_ns + transit_ms * 1_000_000, &Packet { sent_ns, ..packet(seq as u64) });
        jitters.push(stats.snapshot().jitter_ns);
    }
    for (got, expected) in jitters.iter().zip([0, 125_000, 304_687, 285_644, 642_791]) {
        assert!(got.abs_diff(expected) <= 1, "{jitters:?}");
    }
    // A calm packet lowers the jitter; the highest stays: 0.6027 ms after D = 0.
    stats.arrived(115_000_000, &Packet { sent_ns: 100_000_000, ..packet(5) });
    let s = stats.snapshot();
    assert!(s.jitter_ns.abs_diff(602_617) <= 1 && s.jitter_max_ns.abs_diff(642_791) <= 1, "{s:?}");
}

/// Packets sent every 20 ms, of which the nth takes as many milliseconds as the nth number says.
fn transit(transits_ms: impl IntoIterator<Item = i64>, clocks_apart_ns: i64) -> Summary {
    let mut stats = StreamStats::new();
    for (seq, transit_ms) in (0_u64..).zip(transits_ms) {
        let sent_ns = seq * 20_000_000;
        let arrival_ns = sent_ns.wrapping_add_signed(transit_ms * 1_000_000);
        let packet = Packet { sent_ns: sent_ns.wrapping_sub_signed(clocks_apart_ns), ..packet(seq) };
        stats.arrived(arrival_ns, &packet);
    }
    stats.transit().unwrap()
}

#[test]
fn latency_is_summed_up_whatever_the_clocks() {
    assert_eq!(StreamStats::new().transit(), None);
    // 100 packets: 94 of 10 ms, 5 of 30 ms, one of 200 ms. The 95th is one of 30 ms.
    let transits = || {
        (0..100).map(|n| {
            if n == 50 {
                200
            } else if n % 20 == 1 {
                30
            } else {
                10
            }
        })
    };
    for apart in [0, 5_000_000_000, -7_000_000_000, i64::MAX / 2] {
        let s = transit(transits(), apart).since(apart);
        assert_eq!((s.min_ns, s.mean_ns, s.max_ns), (10_000_000, 12_900_000, 200_000_000), "{apart}");
        assert!(s.p95_ns.abs_diff(30_000_000) <= 1000, "{apart}: {s:?}");
    }
    let s = transit(transits(), 5_000_000_000);
    assert_eq!(s.since(s.min_ns).max_ns, 190_000_000);
}

#[test]
fn a_distribution_is_bounded_and_still_near() {
    let mut spread = distribution::Distribution::new();
    // A million different values over 10 s.
    for n in 0..1_000_000_i64 {
        spread.add(n * 7_919 % 1_000_000 * 10_000);
    }
    let p95 = spread.summary().unwrap().p95_ns;
    assert!(p95.abs_diff(9_500_000_000) < 5_000_000, "{p95}");
    for extreme in [i64::MIN, i64::MAX, 0] {
        (0..5000).for_each(|n| spread.add(extreme.saturating_add(n)));
    }
    let s = spread.summary().unwrap();
    assert!(s.min_ns == i64::MIN && s.max_ns == i64::MAX, "{s:?}");
}

fn line(arrivals: impl IntoIterator<Item = (u64, u64)>) -> Timeline {
    let mut timeline = Timeline::default();
    for (arrival_ms, seq) in arrivals {
        timeline.arrived(arrival_ms * 1_000_000, &packet(seq));
    }
    timeline
}

fn numbers(timeline: &Timeline) -> Vec<[u64; 2]> {
    timeline.losses().iter().map(|loss| [loss.first, loss.last]).collect()
}

#[test]
fn a_timeline_knows_gaps_and_what_was_lost() {
    let timeline = line([(0, 1), (20, 2), (300, 10), (320, 11), (340, 14)]);
    assert_eq!(numbers(&timeline), [[3, 9], [12, 13]]);
    let first = Loss { from_ns: 20_000_000, to_ns: 300_000_000, first: 3, last: 9 };
    assert_eq!(timeline.losses()[0], first);
    let longest = timeline.gaps().iter().max_by_key(|gap| gap.ns).unwrap();
    assert_eq!((longest.at_ns, longest.before, longest.after), (20_000_000, 2, 10));
    assert_eq!(timeline.samples().len(), 5);
}

#[test]
fn what_comes_late_was_not_lost() {
    let late = |seqs: &[u64]| numbers(&line((0..).zip([1, 10].into_iter().chain(seqs.iter().copied()))));
    assert_eq!(late(&[5]), [[2, 4], [6, 9]]);
    assert_eq!(late(&[2, 9]), [[3, 8]]);
    assert_eq!(late(&[5, 5, 1, 4, 6]), [[2, 3], [7, 9]]);
    assert_eq!(late(&[0, 2, 3, 4, 5, 6, 7, 8, 9]), [[0; 2]; 0]);
}

#[test]
fn a_long_stream_is_kept_more_coarsely() {
    let count = 5 * MAX_SAMPLES as u64;
    // Every second packet is lost.
    let timeline = line((0..count).map(|n| (n * 20, n * 2)));
    let samples = timeline.samples();
    assert!((MAX_SAMPLES / 2..=MAX_SAMPLES).contains(&samples.len()) && timeline.packets_per_sample() == 8);
    assert_eq!((timeline.gaps().len(), timeline.losses().len()), (MAX_GAPS, MAX_LOSSES));
    assert!(samples.is_sorted_by(|a, b| a.to_ns + 20_000_000 == b.from_ns));
    let last = (count - 1) * 20_000_000;
    assert_eq!((samples[0].from_ns, samples[0].to_ns, samples.last().unwrap().to_ns), (0, 140_000_000, last));
}

/// Whether every element is closed and every attribute quoted: enough for what is drawn here.
fn assert_well_formed(svg: &str) {
    let mut open = Vec::new();
    for part in svg.split('<').skip(1) {
        let (tag, text) = part.split_once('>').unwrap();
        assert!(!text.contains('>') && tag.matches('"').count() % 2 == 0, "{part}");
        let name = tag.trim_matches('/').split_whitespace().next().unwrap();
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name));
        } else if !tag.ends_with('/') {
            open.push(name);
        }
    }
    assert!(open.is_empty() && !svg.contains("NaN") && !svg.contains("inf"), "{open:?}");
}

#[test]
fn the_picture_is_well_formed_and_shows_what_happened() {
    let broken = line((0..400).filter(|n| !(100..150).contains(n) && *n != 300).map(|n| (n * 20, n)));
    let (calm, silent) = (line([(0, 1)]), Timeline::default());
    let panels = [(&broken, "stream <1> & more"), (&calm, "one packet"), (&silent, "nothing")]
        .map(|(timeline, title)| svg::Panel { title, axis: "latency", origin_ns: 0, timeline });
    let picture = svg::draw(&panels);
    assert_well_formed(&picture);
    assert!(picture.contains("stream &lt;1&gt; &amp; more") && picture.contains("latency (ms)"));
    // One in each legend, and then one gap, two losses.
    assert_eq!(
        (picture.matches("class=\"gap\"").count(), picture.matches("class=\"loss\"").count()),
        (3 + 1, 3 + 2)
    );
    assert_well_formed(&svg::draw(&[]));
    let last = svg::draw(&[panels[0]; 20]);
    assert_eq!(last.matches("<g ").count(), svg::MAX_PANELS);
}
