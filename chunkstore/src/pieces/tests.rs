use std::io;
use std::ops::{ControlFlow, Range};

use proptest::prelude::*;

use super::*;
use crate::testing::{Holed, noise};
use crate::{ChunkId, MAX_CHUNK_BYTES, MIN_HOLE_BYTES, ReadImage};

fn all(image: &dyn ReadImage) -> Vec<Piece> {
    pieces(image).collect::<io::Result<_>>().unwrap()
}

/// What pieces must be, written down in the plainest way.
fn reference(bytes: &[u8]) -> Vec<Piece> {
    let mut runs: Vec<(bool, Range<usize>)> = Vec::new();
    for start in (0..bytes.len()).step_by(4096) {
        let end = (start + 4096).min(bytes.len());
        let zero = bytes[start..end].iter().all(|byte| *byte == 0);
        match runs.last_mut() {
            Some((last, range)) if *last == zero => range.end = end,
            _ => runs.push((zero, start..end)),
        }
    }
    let mut merged: Vec<(bool, Range<usize>)> = Vec::new();
    for (zero, range) in runs {
        let hole = zero && range.len() >= MIN_HOLE_BYTES as usize;
        match merged.last_mut() {
            Some((false, last)) if !hole => last.end = range.end,
            _ => merged.push((hole, range)),
        }
    }
    let mut pieces = Vec::new();
    for (hole, range) in merged {
        if hole {
            pieces.push(Piece { offset: range.start as u64, len: range.len() as u64, data: PieceData::Hole });
            continue;
        }
        let data = &bytes[range.clone()];
        let mut at = 0;
        for len in crate::gear::tests::plainly(range.start as u64, data) {
            let bytes = Bytes::copy_from_slice(&data[at..at + len]);
            let offset = (range.start + at) as u64;
            let data = PieceData::Chunk { id: ChunkId::of(&bytes), bytes };
            pieces.push(Piece { offset, len: len as u64, data });
            at += len;
        }
    }
    pieces
}

/// The bytes with as much of their zeroes as `keep` lets be said to be holes, at a granularity of `unit` bytes.
fn holed(bytes: &[u8], unit: usize, keep: impl Fn(usize) -> bool) -> Holed {
    let mut data: Vec<Range<u64>> = Vec::new();
    for (index, block) in bytes.chunks(unit).enumerate() {
        let range = (index * unit) as u64..(index * unit + block.len()) as u64;
        if keep(index) || block.iter().any(|byte| *byte != 0) {
            match data.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => data.push(range),
            }
        }
    }
    Holed { bytes: bytes.to_vec(), data }
}

#[test]
fn nothing_has_no_pieces() {
    assert_eq!(all(&vec![]), []);
}

#[test]
fn a_run_longer_than_any_buffer_is_cut_as_a_whole() {
    let bytes = noise(1, 11 << 20);
    assert!(all(&bytes) == reference(&bytes));
    assert!(all(&bytes).len() > 100);
}

#[test]
fn chunks_of_repeating_data_are_the_longest() {
    let bytes = vec![7; (9 << 20) + 5];
    assert!(all(&bytes) == reference(&bytes));
    assert_eq!(all(&bytes)[0].len, MAX_CHUNK_BYTES as u64);
}

#[test]
fn short_zero_runs_belong_to_the_data() {
    let mut bytes = noise(1, 1 << 20);
    bytes[4096 * 10..4096 * 25].fill(0);
    bytes[4096 * 40 + 1..4096 * 56 + 4095].fill(0);
    bytes[4096 * 80..4096 * 96].fill(0);
    let holes: Vec<_> = all(&bytes).into_iter().filter(|piece| piece.data == PieceData::Hole).collect();
    assert_eq!(holes, [Piece { offset: 4096 * 80, len: 65536, data: PieceData::Hole }]);
}

#[test]
fn the_last_partial_block_counts() {
    for (zeroes, hole) in [(65536, true), (65535, false), (65537, true), (69631, true), (61441, false)] {
        let mut bytes = noise(1, 4096);
        bytes.resize(4096 + zeroes, 0);
        let pieces = all(&bytes);
        assert_eq!(pieces.last().unwrap().data == PieceData::Hole, hole, "{zeroes} zeroes at the end");
        assert!(pieces == reference(&bytes));
    }
}

#[test]
fn holes_of_a_file_are_not_read() {
    struct Untouchable(Holed);
    impl ReadImage for Untouchable {
        fn size(&self) -> u64 {
            self.0.size()
        }
        fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
            let end = offset + buf.len() as u64;
            assert!(
                self.0.data.iter().any(|data| data.start <= offset && end <= data.end),
                "{offset}..{end}"
            );
            self.0.read_at(offset, buf)
        }
        fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
            self.0.next_data(offset)
        }
    }
    let mut bytes = vec![0; 30 << 20];
    bytes[5 << 20..6 << 20].copy_from_slice(&noise(1, 1 << 20));
    bytes[20 << 20..29 << 20].copy_from_slice(&noise(2, 9 << 20));
    let image = Untouchable(Holed { bytes: bytes.clone(), data: vec![5 << 20..6 << 20, 20 << 20..29 << 20] });
    assert!(all(&image) == reference(&bytes));
}

#[test]
fn a_range_is_cut_as_if_it_were_all() {
    let mut bytes = noise(1, 12 << 20);
    bytes[3 << 20..5 << 20].fill(0);
    for (start, end) in
        [(0, 12 << 20), (1 << 20, 7 << 20), (4 << 20, 11 << 20), (4096, 4096), (12345, 10 << 20)]
    {
        let range: io::Result<Vec<Piece>> = pieces_in(&bytes, start as u64..end as u64).collect();
        let range = range.unwrap();
        assert_eq!(concat(&range), bytes[start..end]);
        assert_eq!(range.first().map_or(start as u64, |piece| piece.offset), start as u64);
        if start % 4096 == 0 {
            let alone = reference(&bytes[start..end]);
            assert!(range.iter().map(|piece| &piece.data).eq(alone.iter().map(|piece| &piece.data)));
        }
    }
    assert!(pieces_in(&bytes, u64::MAX - 1..u64::MAX).next().is_none());
}

fn concat(pieces: &[Piece]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in pieces {
        match &piece.data {
            PieceData::Hole => bytes.resize(bytes.len() + piece.len as usize, 0),
            PieceData::Chunk { bytes: data, .. } => bytes.extend_from_slice(data),
        }
    }
    bytes
}

#[test]
fn a_scan_on_two_threads_gives_the_same() {
    let mut bytes = noise(1, 20 << 20);
    bytes[7 << 20..9 << 20].fill(0);
    for (threads, window) in [(1, 0), (2, 0), (2, 1 << 20), (4, 64 << 20)] {
        let mut scanned = Vec::new();
        scan(&bytes, threads, window, |piece| {
            scanned.push(piece);
            ControlFlow::Continue(())
        })
        .unwrap();
        assert!(scanned == all(&bytes));
        let mut taken = 0;
        scan(&bytes, threads, window, |_| {
            taken += 1;
            if taken == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
        assert_eq!(taken, 3);
    }
}

#[test]
fn an_error_comes_once_and_after_what_was_good() {
    struct Bad;
    impl ReadImage for Bad {
        fn size(&self) -> u64 {
            64 << 20
        }
        fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
            if offset >= 9 << 20 {
                return Err(io::Error::other("bad sector"));
            }
            buf.fill(3);
            Ok(())
        }
    }
    let results: Vec<_> = pieces(&Bad).collect();
    assert!(results.len() > 30 && results.last().unwrap().is_err());
    assert_eq!(results.iter().filter(|piece| piece.is_err()).count(), 1);
    for threads in [1, 2] {
        let mut taken = 0;
        let result = scan(&Bad, threads, 1 << 20, |_| {
            taken += 1;
            ControlFlow::Continue(())
        });
        assert_eq!(result.unwrap_err().to_string(), "bad sector");
        assert_eq!(taken, results.len() - 1);
    }
}

#[test]
fn zeroes_that_are_no_holes_of_the_file_are_not_kept() {
    let mut bytes = vec![0; 100 << 20];
    bytes[..1 << 20].copy_from_slice(&noise(1, 1 << 20));
    bytes[99 << 20..].copy_from_slice(&noise(2, 1 << 20));
    let mut cuts = Cuts::new(&bytes, 0..bytes.size());
    while let Some(batch) = cuts.batch().unwrap() {
        assert!(batch.reads.iter().map(|read| read.bytes.len()).sum::<usize>() <= 4 << 20);
    }
}

/// Runs of data, of zeroes and of sparse data (a byte here and there), with odd lengths.
fn image() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec((0..4_u64, 1..600_000_usize, any::<bool>()), 0..8).prop_map(|runs| {
        let mut bytes = Vec::new();
        for (index, (kind, len, aligned)) in runs.into_iter().enumerate() {
            let len = if aligned { len.next_multiple_of(4096) } else { len };
            match kind {
                0 => bytes.extend(noise(index as u64, len)),
                1 => bytes.resize(bytes.len() + len, 0),
                2 => bytes.resize(bytes.len() + len / 6, 0),
                _ => bytes.extend((0..len).map(|at| u8::from(at % 70_000 == 0))),
            }
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn pieces_are_the_image_and_follow_its_content_only(
        bytes in image(),
        unit in prop::sample::select(vec![512_usize, 1024, 4096, 65536]),
        pattern in any::<u64>(),
    ) {
        let plain = all(&bytes);
        prop_assert!(concat(&plain) == bytes);
        prop_assert!(plain == reference(&bytes));
        prop_assert!(all(&holed(&bytes, unit, |_| false)) == plain);
        prop_assert!(all(&holed(&bytes, unit, |index| pattern >> (index % 64) & 1 == 1)) == plain);
    }
}
