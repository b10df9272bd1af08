use chunkstore::ChunkId;

use super::*;

/// Random bytes with a hole, a short run of zeroes, and a last block that is not whole.
fn image() -> Vec<u8> {
    let mut bytes = vec![0; (10 << 20) + 777];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes[4 << 20..5 << 20].fill(0);
    bytes[6 << 20..(6 << 20) + 8192].fill(0);
    bytes
}

fn lengths(scheme: Scheme, image: &dyn ReadImage) -> Vec<usize> {
    let mut lengths = Vec::new();
    scheme.chunks(image, &data_runs(image).unwrap(), |chunk| lengths.push(chunk.len())).unwrap();
    lengths
}

#[test]
fn at_64_kib_the_chunks_are_those_of_the_store() {
    let image = image();
    let mut ours = Vec::new();
    let scheme = Scheme::Meeting { average: chunkstore::AVERAGE_CHUNK_BYTES };
    scheme.chunks(&image, &data_runs(&image).unwrap(), |chunk| ours.push(ChunkId::of(chunk))).unwrap();
    let theirs: Vec<_> = chunkstore::pieces(&image)
        .filter_map(|piece| match piece.unwrap().data {
            PieceData::Chunk { id, .. } => Some(id),
            PieceData::Hole => None,
        })
        .collect();
    assert!(ours.len() > 50 && ours == theirs);
}

#[test]
fn runs_end_at_holes() {
    let image = image();
    assert_eq!(data_runs(&image).unwrap(), [0..4 << 20, 5 << 20..image.len() as u64]);
}

#[test]
fn every_scheme_covers_all_data_within_its_lengths() {
    let image = image();
    for scheme in ALL {
        let lengths = lengths(scheme, &image);
        let sum: usize = lengths.iter().sum();
        let zeroes = image.len() - (1 << 20) - sum;
        assert!(zeroes == 0 || zeroes == 8192, "{scheme:?}: {zeroes} bytes left out");
        assert!(lengths.iter().all(|len| *len <= scheme.longest()), "{scheme:?}");
    }
    assert_eq!(lengths(Scheme::Fixed { len: 4096 }, &image).len(), 9 * 256 - 2 + 1);
}
