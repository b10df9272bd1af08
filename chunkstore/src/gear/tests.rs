use fastcdc::v2020;
use proptest::prelude::*;

use super::*;
use crate::testing::{noise, text};

/// Lengths of all chunks of a data run that begins at `offset`.
fn ours(mut offset: u64, data: &[u8]) -> Vec<usize> {
    let (mut rest, mut lengths) = (data, Vec::new());
    while !rest.is_empty() {
        let len = cut(offset, rest, 0).unwrap_or(rest.len());
        lengths.push(len);
        offset += len as u64;
        rest = &rest[len..];
    }
    lengths
}

/// The same, as the format says it, place by place.
pub(crate) fn plainly(offset: u64, data: &[u8]) -> Vec<usize> {
    let gear = v2020::get_gear_with_seed(0).0;
    let hash = |bytes: &[u8]| {
        let added = bytes.iter().enumerate().map(|(at, byte)| gear[usize::from(*byte)] << (63 - at));
        added.fold(0, u64::wrapping_add)
    };
    let is_cut = |start: usize, place: usize| {
        let len = place - start;
        if len >= 262_144 {
            return true;
        }
        if len < 16384 || !(offset + place as u64).is_multiple_of(4096) || place + 64 > data.len() {
            return false;
        }
        let ends_file = data[place - 64..place].iter().all(|byte| *byte == 0);
        match hash(&data[place..place + 64]) {
            hash if len < 65536 => hash < 1 << 59,
            hash => hash < 1 << 61 || ends_file,
        }
    };
    let (mut start, mut lengths) = (0, Vec::new());
    for place in 1..=data.len() {
        if place == data.len() || is_cut(start, place) {
            lengths.push(place - start);
            start = place;
        }
    }
    lengths
}

/// Files of all lengths, each from a block on, as in a file system.
fn files(seed: u64, count: u64) -> Vec<u8> {
    let lengths = [10, 5000, 4096, 4000, 70_000, 200, 12_288, 300_001, 8191, 40_000];
    let mut bytes = Vec::new();
    for number in 0..count {
        bytes.extend(noise(seed + number, lengths[number as usize % lengths.len()]));
        bytes.resize(bytes.len().next_multiple_of(4096), 0);
    }
    bytes
}

#[test]
fn cuts_where_the_format_says() {
    for (seed, len) in [(1, 20 << 20), (2, (3 << 20) + 1), (3, MIN_CHUNK_BYTES + 1), (4, 1), (5, 0)] {
        for offset in [0, 4096, 1_000_003] {
            for data in [noise(seed, len), text(seed, len), vec![0; len], files(seed, 50)] {
                assert_eq!(ours(offset, &data), plainly(offset, &data));
            }
        }
    }
}

/// Half the chunks of random data are longer than the average, and those of files end with one.
#[test]
fn chunks_have_the_average_length() {
    let chunks = ours(0, &noise(1, 64 << 20)).len();
    assert!((800..1300).contains(&chunks), "{chunks} of {} would have the average", 64 << 4);
    let all = files(7, 2000);
    let lengths = ours(0, &all);
    let average = all.len() / lengths.len();
    assert!((40_000..90_000).contains(&average), "{average} bytes");
}

#[test]
fn what_follows_changes_no_cut() {
    let data = noise(7, 1 << 20);
    let len = cut(0, &data, 0).unwrap();
    for short in [0, 1, MIN_CHUNK_BYTES, MIN_CHUNK_BYTES + 1, len - 1, len, len + SIGHT_BYTES - 1] {
        assert_eq!(cut(0, &data[..short], 0), None, "{short} of {len} bytes");
    }
    for long in [len + SIGHT_BYTES, len + 70_000] {
        assert_eq!(cut(0, &data[..long], 0), Some(len), "{long} of {len} bytes");
    }
}

/// A file that lies elsewhere, behind others, is cut alike soon after its beginning.
#[test]
fn what_was_moved_by_blocks_is_found_again() {
    let file = noise(1, 4 << 20);
    let cuts = |before: usize| {
        let lengths = ours(0, &[noise(2, before), file.clone()].concat());
        let mut at = 0;
        let ends = lengths.into_iter().map(move |len| {
            at += len;
            at
        });
        ends.filter_map(|end| end.checked_sub(before)).collect::<Vec<_>>()
    };
    let (here, there) = (cuts(0), cuts(3 * 65536 + 4096));
    let same = here.iter().filter(|end| there.contains(end)).count();
    assert!(same * 10 >= here.len() * 8, "{same} of {} cuts", here.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Any length, anywhere in the image, from any place on that was searched before.
    #[test]
    fn a_search_can_go_on_where_it_ended(
        seed in any::<u64>(),
        offset in 0..1_u64 << 40,
        len in 0..3 * MAX_CHUNK_BYTES / 2,
        plain in any::<bool>(),
        part in 0.0..1.0,
    ) {
        let data = if plain { text(seed, len) } else { noise(seed, len) };
        prop_assert_eq!(ours(offset, &data), plainly(offset, &data));
        let whole = cut(offset, &data, 0);
        let known = (whole.unwrap_or((len + 1).saturating_sub(SIGHT_BYTES)) as f64 * part) as usize;
        prop_assert_eq!(cut(offset, &data, known), whole);
    }
}
