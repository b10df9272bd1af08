use fastcdc::v2020::FastCDC;
use proptest::prelude::*;

use super::*;
use crate::testing::{noise, text};

/// Lengths of all chunks of a data run.
fn ours(data: &[u8]) -> Vec<usize> {
    let (mut rest, mut lengths) = (data, Vec::new());
    while !rest.is_empty() {
        let len = cut(rest, 0).unwrap_or(rest.len());
        lengths.push(len);
        rest = &rest[len..];
    }
    lengths
}

fn theirs(data: &[u8]) -> Vec<usize> {
    FastCDC::new(data, MIN_CHUNK_BYTES, AVERAGE_CHUNK_BYTES, MAX_CHUNK_BYTES)
        .map(|chunk| chunk.length)
        .collect()
}

#[test]
fn cuts_like_fastcdc() {
    for (seed, len) in [(1, 20 << 20), (2, (3 << 20) + 1), (3, MIN_CHUNK_BYTES + 1), (4, 1), (5, 0)] {
        assert_eq!(ours(&noise(seed, len)), theirs(&noise(seed, len)));
        assert_eq!(ours(&text(seed, len)), theirs(&text(seed, len)));
        assert_eq!(ours(&vec![0; len]), theirs(&vec![0; len]));
    }
    assert!(ours(&noise(1, 20 << 20)).len() > 200);
}

#[test]
fn what_follows_changes_no_cut() {
    let data = noise(7, 1 << 20);
    let len = cut(&data, 0).unwrap();
    for short in [0, 1, MIN_CHUNK_BYTES, MIN_CHUNK_BYTES + 1, len - 1, len] {
        assert_eq!(cut(&data[..short], 0), None, "{short} of {len} bytes");
    }
    // The hash that makes the cut takes in the byte behind it.
    for long in [len + 2, len + 3, len + 70_000] {
        assert_eq!(cut(&data[..long], 0), Some(len), "{long} of {len} bytes");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Any length, from any place on that was searched before.
    #[test]
    fn a_search_can_go_on_where_it_ended(
        seed in any::<u64>(),
        len in 0..3 * MAX_CHUNK_BYTES / 2,
        plain in any::<bool>(),
        part in 0.0..1.0,
    ) {
        let data = if plain { text(seed, len) } else { noise(seed, len) };
        prop_assert_eq!(ours(&data), theirs(&data));
        let whole = cut(&data, 0);
        let known = (whole.unwrap_or(len) as f64 * part) as usize;
        prop_assert_eq!(cut(&data, known), whole);
    }
}
