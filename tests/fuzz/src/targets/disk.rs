//! What lies on the disk and has a public decoder: manifests, encoded chunks, the hand-off's journal.

use bytes::Bytes;
use chunkstore::{ChunkId, Codec, Encoded, ImageRoot, MAX_CHUNK_BYTES, Manifest, ManifestExtent};
use longhaul_proto::Epoch;
use longhaul_proto::handoff::Record;
use longhaul_proto::journal;
use longhaul_proto::wire::MAX_DELTA_BYTES;

/// A manifest has one form only, and its extents make up the image.
pub(super) fn manifest(bytes: &[u8]) {
    let Ok(manifest) = Manifest::decode(bytes) else { return };
    let again = Manifest::of(manifest.root(), manifest.extents()).expect("what was decoded");
    assert!(again.encode() == bytes, "another form");
    let mut end = 0;
    for placed in manifest.placed() {
        assert_eq!(placed.offset, end);
        if let ManifestExtent::Data { len, .. } = placed.extent {
            assert!((1..=MAX_CHUNK_BYTES).contains(&(len as usize)), "a chunk of {len} bytes");
        }
        assert!(!placed.extent.is_empty());
        end += placed.extent.len();
    }
    assert_eq!(end, manifest.size());
    assert!(manifest.data_bytes() <= manifest.size());
}

pub(super) fn manifests() -> Vec<Vec<u8>> {
    let data = |len: u32| ManifestExtent::Data { len, id: ChunkId::of(&len.to_le_bytes()) };
    let hole = |len: u64| ManifestExtent::Hole { len };
    let manifest = |extents: Vec<ManifestExtent>| {
        Manifest::of(ImageRoot::from_bytes([9; 32]), extents).expect("extents that can be").encode()
    };
    let longest = MAX_CHUNK_BYTES as u32;
    vec![
        manifest(Vec::new()),
        manifest(vec![data(1), hole(1 << 40), data(longest)]),
        manifest(vec![hole(u64::MAX - 1), data(1)]),
        manifest((1..40).map(data).collect()),
    ]
}

/// The input is a codec (1 byte), the plain length (4, little endian) and the bytes.
pub(super) fn encoded(input: &[u8]) {
    let Some(([codec, plain_len @ ..], bytes)) = input.split_first_chunk::<5>() else { return };
    let codec = if codec % 2 == 0 { Codec::Raw } else { Codec::Zstd };
    let plain_len = u32::from_le_bytes(*plain_len);
    let encoded = Encoded { codec, plain_len, bytes: Bytes::copy_from_slice(bytes) };
    for max_len in [MAX_CHUNK_BYTES, MAX_DELTA_BYTES] {
        let plain = encoded.decode(max_len);
        if codec == Codec::Raw {
            let fits = bytes.len() == plain_len as usize && bytes.len() <= max_len;
            assert_eq!(plain.is_ok(), fits);
        }
        let Ok(plain) = plain else { continue };
        assert!(plain.len() == plain_len as usize && plain.len() <= max_len);
        if codec == Codec::Raw {
            assert_eq!(plain, bytes);
        }
        if plain.len() <= 1 << 16 {
            assert_eq!(Encoded::encode(plain.clone(), 1).decode(max_len), Ok(plain));
        }
    }
}

pub(super) fn encodeds() -> Vec<Vec<u8>> {
    let input = |data: &[u8], level: i32| {
        let Encoded { codec, plain_len, bytes } = Encoded::encode(Bytes::copy_from_slice(data), level);
        [&[u8::from(codec == Codec::Zstd)][..], &plain_len.to_le_bytes(), &bytes].concat()
    };
    let text: Vec<u8> =
        (0..400).flat_map(|line| format!("line {} of it\n", line % 37).into_bytes()).collect();
    vec![
        input(b"", 1),
        input(b"short", 1),
        input(&text, 1),
        input(&text, 9),
        input(&[0; MAX_CHUNK_BYTES], 1),
        input(&[0; MAX_DELTA_BYTES], 3),
        input(&[0; MAX_DELTA_BYTES + 1], 1),
    ]
}

/// What is good of a journal reads the same alone, and with one more record behind it.
pub(super) fn journal(bytes: &[u8]) {
    let Ok((records, good)) = journal::decode(bytes) else { return };
    let mut at = journal::HEADER.len().min(good);
    while at < good {
        let length = bytes[at..at + 4].iter().rev().fold(0, |value, byte| value << 8 | usize::from(*byte));
        let (sum, payload) = (&bytes[at + 4..at + 12], &bytes[at + 12..at + 12 + length]);
        assert_eq!(blake3::hash(payload).as_bytes()[..8], *sum, "the record at {at}");
        at += 12 + length;
    }
    assert_eq!(at, good);
    assert_eq!(journal::decode(&bytes[..good]), Ok((records.clone(), good)));
    let mut written = journal::HEADER.to_vec();
    for record in &records {
        written.extend(journal::encode(record).expect("what was read can be written"));
    }
    assert_eq!(journal::decode(&written), Ok((records.clone(), written.len())));
    let mut longer = if good == 0 { journal::HEADER.to_vec() } else { bytes[..good].to_vec() };
    longer.extend(journal::encode(&Record::Rebound).expect("it can be written"));
    let (more, end) = journal::decode(&longer).expect("a record may be appended");
    assert_eq!((more.split_last(), end), (Some((&Record::Rebound, &records[..])), longer.len()));
}

pub(super) fn journals() -> Vec<Vec<u8>> {
    let (vm, peer, reason) = ("web".to_owned(), "b".to_owned(), "because".to_owned());
    let plan = br#"{"definition": {}}"#.to_vec();
    let source = [
        Record::Started { vm: vm.clone(), peer: peer.clone(), epoch: Epoch(1) },
        Record::Released { epoch: Epoch(2) },
        Record::Retired,
    ];
    let destination = [
        Record::Accepted { vm, peer, epoch: Epoch(300), plan },
        Record::Ready,
        Record::Owned { epoch: Epoch(u64::MAX) },
        Record::Resumed,
        Record::Rebound,
    ];
    let off = [Record::RolledBack { reason: reason.clone() }, Record::Discarded { reason }];
    let journal = |records: &[Record]| {
        let records = records.iter().map(|record| journal::encode(record).expect("it can be written"));
        [journal::HEADER.to_vec(), records.collect::<Vec<_>>().concat()].concat()
    };
    let mut torn = journal(&destination);
    torn.truncate(torn.len() - 3);
    vec![journal(&[]), journal(&source), journal(&destination), journal(&off), torn]
}
