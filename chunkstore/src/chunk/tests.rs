use bytes::Bytes;

use super::{Chunk, Group, join};
use crate::testing::{noise, text};
use crate::{ChunkId, Codec, DecodeError, Encoded, MAX_CHUNK_BYTES, MAX_GROUP_BYTES};

#[test]
fn chunks_have_the_names_of_their_bytes() {
    let plain = [text(1, 50_000), noise(2, 300), text(3, 1)].map(Bytes::from);
    let chunks = plain.clone().map(Chunk::of);
    for (chunk, plain) in chunks.iter().zip(&plain) {
        assert_eq!((chunk.id(), chunk.plain()), (ChunkId::of(plain), plain));
    }
    let together = Encoded::encode(join(&chunks.each_ref()), 3);
    assert_eq!(together.codec, Codec::Zstd);
    let group = Group::decode(together.clone(), &[50_000, 300, 1]).unwrap();
    assert_eq!((group.chunks(), group.encoded()), (&chunks[..], Some(&together)));
    assert!(Group::of(chunks.to_vec()).encoded().is_none());
    assert_eq!(group.plain(), Some(&Bytes::from(plain.concat())));
    assert_eq!(join(&[&chunks[0]]), plain[0]);
}

#[test]
fn what_gained_nothing_is_to_be_encoded_anew() {
    let plain = noise(1, 1000);
    let bytes = zstd::bulk::compress(&plain, 1).unwrap();
    assert!(bytes.len() > plain.len());
    let loose = Encoded { codec: Codec::Zstd, plain_len: 1000, bytes: bytes.into() };
    assert!(Group::decode(loose, &[400, 600]).unwrap().encoded().is_none());
}

#[test]
fn what_is_too_long_or_damaged_is_none() {
    let decode = |data: Vec<u8>, lens: &[u32]| Group::decode(Encoded::encode(data.into(), 1), lens);
    let longest = MAX_CHUNK_BYTES as u32;
    assert!(decode(vec![7; MAX_CHUNK_BYTES], &[longest]).is_ok());
    let damaged = |outcome| matches!(outcome, Err(DecodeError::Damaged { .. }));
    assert!(damaged(decode(vec![7; MAX_CHUNK_BYTES + 1], &[longest + 1])));
    for lens in [&[5, 0, 5][..], &[10, 1], &[9], &[]] {
        assert!(damaged(decode(vec![7; 10], lens)), "{lens:?}");
    }
    assert!(damaged(decode(vec![7; 10], &[u32::MAX; 3])));
    let long = decode(vec![7; MAX_GROUP_BYTES + 1], &[&[longest; 15][..], &[1]].concat());
    assert!(matches!(long, Err(DecodeError::TooLong { .. })));
    let bytes = Bytes::from_static(b"not a frame");
    assert!(damaged(Group::decode(Encoded { codec: Codec::Zstd, plain_len: 100, bytes }, &[100])));
}
