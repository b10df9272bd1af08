use bytes::Bytes;

use super::Chunk;
use crate::testing::{noise, text};
use crate::{ChunkId, Codec, DecodeError, Encoded, MAX_CHUNK_BYTES};

#[test]
fn a_chunk_has_the_name_of_its_bytes() {
    let plain = Bytes::from(text(1, 50_000));
    let came = Encoded::encode(plain.clone(), 3);
    for chunk in [Chunk::of(plain.clone()), Chunk::decode(came.clone()).unwrap()] {
        assert_eq!((chunk.id(), chunk.plain()), (ChunkId::of(&plain), &plain));
        assert_eq!(chunk.encoded(1).decode(50_000).unwrap(), plain);
    }
    assert_eq!(Chunk::decode(came.clone()).unwrap().encoded(1), came);
}

#[test]
fn what_gained_nothing_is_encoded_anew() {
    let plain = noise(1, 1000);
    let bytes = zstd::bulk::compress(&plain, 1).unwrap();
    assert!(bytes.len() > plain.len());
    let loose = Encoded { codec: Codec::Zstd, plain_len: 1000, bytes: bytes.into() };
    assert_eq!(Chunk::decode(loose).unwrap().encoded(1).codec, Codec::Raw);
}

#[test]
fn what_is_too_long_or_damaged_is_none() {
    let long = Encoded::encode(vec![7; MAX_CHUNK_BYTES + 1].into(), 1);
    assert!(matches!(Chunk::decode(long), Err(DecodeError::TooLong { .. })));
    let bytes = Bytes::from_static(b"not a frame");
    let bad = Encoded { codec: Codec::Zstd, plain_len: 100, bytes };
    assert!(matches!(Chunk::decode(bad), Err(DecodeError::Damaged { .. })));
}
