//! A replica's state file, redo log and tree as fuzz targets see them: what is read of them must be true of them. Compiled
//! for the fuzz targets only.

use super::Generation;
use super::extents::Source;
use super::format::{self, Committed, LOG_HEADER_BYTES, LogHeader, MAX_SOURCE_BYTES};
use super::tree::{self, Subject};
use crate::parse::check8;
use crate::{ImageRoot, ImageTree, LEAF_BYTES};

/// Reads `bytes` as a state file, which has one form only.
pub fn state(bytes: &[u8]) {
    let Some(generation) = format::parse_state(bytes) else { return };
    assert!(generation.source.len() <= MAX_SOURCE_BYTES);
    assert_eq!(format::encode_state(&generation), bytes);
}

/// Reads `bytes` as a redo log: what is committed fits the image, lies in the log, and makes the image that the
/// records make when they are written one after the other.
pub fn log(bytes: &[u8]) {
    let read = |bytes: &[u8]| format::read_log(&mut &*bytes).expect("a slice can be read");
    let Some(committed) = read(bytes) else { return };
    let Committed { header, generation, extents } = &committed;
    assert!(generation.size == header.size && generation.number > header.base);
    let mut end = 0;
    for (range, source) in extents.iter() {
        assert!(end <= range.start && range.start < range.end && range.end <= header.size, "{range:?}");
        end = range.end;
        if let Source::Log(at) = source {
            let len = range.end - range.start;
            assert!(at >= LOG_HEADER_BYTES as u64 && at + len <= bytes.len() as u64, "{range:?} from {at}");
        }
    }
    // What follows the commit is ignored.
    let longer = read(&[bytes, b"LHRD"].concat()).expect("it is committed");
    assert!(longer.extents.iter().eq(extents.iter()) && longer.generation == *generation);
    if header.size <= 1 << 16 {
        assert!(image_of(&committed, bytes) == image_by_record(header.size, bytes), "another image");
    }
}

/// The image that the extents make of one that is all 0xee.
fn image_of(committed: &Committed, log: &[u8]) -> Vec<u8> {
    let mut image = vec![0xee; committed.header.size as usize];
    for (range, source) in committed.extents.iter() {
        let part = &mut image[range.start as usize..range.end as usize];
        match source {
            Source::Log(at) => part.copy_from_slice(&log[at as usize..][..part.len()]),
            Source::Zero => part.fill(0),
        }
    }
    image
}

/// The same, by FORMAT.md and without the reader: of a log that is known to be whole.
fn image_by_record(size: u64, log: &[u8]) -> Vec<u8> {
    let mut image = vec![0xee; size as usize];
    let mut rest = &log[LOG_HEADER_BYTES..];
    loop {
        let number = |at: usize, len: usize| {
            rest[at..at + len].iter().rev().fold(0, |value, byte| value << 8 | usize::from(*byte))
        };
        let (kind, offset, len, payload) = (rest[4], number(8, 8), number(16, 8), number(24, 4));
        assert_eq!(check8(&[&rest[..32], &rest[40..40 + payload]]), rest[32..40]);
        match kind {
            1 => image[offset..offset + len].copy_from_slice(&rest[40..40 + len]),
            2 => image[offset..offset + len].fill(0),
            _ => return image,
        }
        rest = &rest[40 + payload..];
    }
}

/// Larger images have larger trees, whatever the file has.
const TREE_BYTES: u64 = 1 << 30;

/// Reads `bytes` as a tree of what it says it is of: written again it has the same leaves.
pub fn tree(bytes: &[u8]) {
    let Some(subject) = Subject::parse(bytes).filter(|subject| subject.size <= TREE_BYTES) else { return };
    let Some(read) = tree::read(&mut &*bytes, &subject) else { return };
    assert!(read.is_settled() && read.size() == subject.size);
    let mut again = Vec::new();
    tree::write(&mut again, &subject, &read).expect("memory can be written to");
    // Another order of runs may say the same; what is written is the shortest.
    assert!(again.len() <= bytes.len(), "{} bytes written, {} read", again.len(), bytes.len());
    let back = tree::read(&mut &*again, &subject).expect("what was written can be read");
    assert!(back.leaves() == read.leaves() && back.root() == read.root());
}

/// Trees to begin with: of nothing, of zeroes, of data with holes before, between and behind.
pub fn trees() -> Vec<Vec<u8>> {
    let zero = [0; 32];
    let tree = |leaves: &[[u8; 32]]| {
        let size = leaves.len() as u64 * LEAF_BYTES;
        let subject = Subject { size, root: ImageRoot::from_bytes([0x5a; 32]), changed: (1_700_000_000, 9) };
        let (mut tree, mut bytes) = (ImageTree::new(size), Vec::new());
        (0..).zip(leaves).for_each(|(number, hash)| tree.keep_leaf(number, *hash));
        tree::write(&mut bytes, &subject, &tree).expect("memory can be written to");
        bytes
    };
    let mixed = [zero, [1; 32], [2; 32], zero, zero, [3; 32], zero];
    vec![tree(&[]), tree(&[zero; 300]), tree(&mixed), tree(&[[4; 32]; 3])]
}

fn generation(number: u64, size: u64, source: &str) -> Generation {
    let root = ImageRoot::from_bytes([0x5a; 32]);
    Generation { number, size, root, taken_unix_ms: 1_700_000_000_000, source: source.to_owned(), set: None }
}

/// State files to begin with.
pub fn states() -> Vec<Vec<u8>> {
    let of_a_set = Generation { set: Some([9; 16]), ..generation(7, 1 << 20, "site-a") };
    let mut states: Vec<_> = ["", "site-a", "a name of umlauts: äöü"]
        .map(|source| format::encode_state(&generation(7, 1 << 20, source)))
        .into();
    states.push(format::encode_state(&of_a_set));
    states
}

/// Redo logs to begin with: committed, with records that overlap, and not committed.
pub fn logs() -> Vec<Vec<u8>> {
    let size = 4096;
    let header = LogHeader { size, base: 6 }.encode().to_vec();
    let changes = [
        format::encode_data(0, &[1; 100]),
        format::encode_zero(50, 2000),
        format::encode_data(1000, &[2; 64]),
        format::encode_data(1010, &[3; 10]),
        format::encode_zero(0, size),
        format::encode_data(4095, &[4]),
    ];
    let log = |count: usize, committed: bool| {
        let mut log = [&header[..], &changes[..count].concat()].concat();
        if committed {
            log.extend(format::encode_commit(&generation(7, size, "site-a"), count as u64));
        }
        log
    };
    vec![log(0, true), log(1, true), log(4, true), log(6, true), log(3, false)]
}
