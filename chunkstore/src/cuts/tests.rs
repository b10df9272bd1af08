use proptest::prelude::*;

use super::{CutData, Cuts, Expected};
use crate::testing::{noise, text};
use crate::{ImageRoot, Manifest, ManifestExtent, ReadImage};

/// What an image is cut into, and how many of the names were expected.
fn cut(image: &dyn ReadImage, like: Option<&Manifest>) -> (Manifest, usize) {
    let mut named = 0;
    let extents = Cuts::expecting(image, like).map(|cut| {
        let cut = cut.unwrap();
        named += usize::from(matches!(cut.data, CutData::Named(_)));
        match cut.data.chunk() {
            Some(chunk) => ManifestExtent::Data { len: chunk.plain().len() as u32, id: chunk.id() },
            None => ManifestExtent::Hole { len: cut.len },
        }
    });
    let manifest = Manifest::of(ImageRoot::from_bytes([0; 32]), extents).unwrap();
    (manifest, named)
}

/// A stretch of an image: content, length, seed.
type Stretch = (u8, usize, u64);

fn build(stretches: &[Stretch]) -> Vec<u8> {
    let bytes = stretches.iter().flat_map(|(kind, len, seed)| match kind % 5 {
        0 | 1 => noise(*seed, *len),
        2 => text(*seed, *len),
        // Chunks of it are the longest.
        3 => vec![7; 3 * len],
        _ => vec![0; *len],
    });
    bytes.collect()
}

fn stretches() -> impl Strategy<Value = Vec<Stretch>> {
    prop::collection::vec((any::<u8>(), 1..300_000_usize, 0..4_u64), 0..8)
}

/// What became of an image since.
#[derive(Debug, Clone)]
enum Change {
    Overwrite(prop::sample::Index, usize, u64),
    Zero(prop::sample::Index, usize),
    Insert(prop::sample::Index, usize),
    Remove(prop::sample::Index, usize),
    Cut(prop::sample::Index),
    Append(usize),
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let (at, len) = (any::<prop::sample::Index>, 1..200_000_usize);
    let change = prop_oneof![
        (at(), 1..5000_usize, any::<u64>()).prop_map(|(at, len, seed)| Change::Overwrite(at, len, seed)),
        (at(), len.clone()).prop_map(|(at, len)| Change::Zero(at, len)),
        (at(), len.clone()).prop_map(|(at, len)| Change::Insert(at, len)),
        (at(), len.clone()).prop_map(|(at, len)| Change::Remove(at, len)),
        at().prop_map(Change::Cut),
        len.prop_map(Change::Append),
    ];
    prop::collection::vec(change, 0..4)
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    let place = |at: &prop::sample::Index| at.index(bytes.len() + 1);
    let end = |start: usize, len: usize| bytes.len().min(start + len);
    match change {
        Change::Overwrite(at, len, seed) => {
            let start = place(at);
            let end = end(start, *len);
            bytes[start..end].copy_from_slice(&noise(*seed, end - start));
        }
        Change::Zero(at, len) => {
            let start = place(at);
            let end = end(start, *len);
            bytes[start..end].fill(0);
        }
        Change::Insert(at, len) => {
            let start = place(at);
            bytes.splice(start..start, noise(9, *len));
        }
        Change::Remove(at, len) => {
            let start = place(at);
            let end = end(start, *len);
            bytes.drain(start..end);
        }
        Change::Cut(at) => bytes.truncate(place(at)),
        Change::Append(len) => bytes.extend(noise(8, *len)),
    }
}

#[test]
fn an_image_that_has_not_changed_is_not_searched() {
    let mut bytes = noise(1, 3_000_000);
    bytes.extend(vec![0; 100_000]);
    bytes.extend(text(2, 500_001));
    let (manifest, named) = cut(&bytes, None);
    assert_eq!(named, 0);
    assert_eq!(cut(&bytes, Some(&manifest)), (manifest.clone(), manifest.chunks().count()));
}

/// Where all is new, chunks that begin at the same places are hashed twice only now and then.
#[test]
fn what_is_expected_in_vain_is_soon_expected_no_more() {
    let islands = |seed: u64| -> Vec<u8> {
        (0..100).flat_map(|number| [noise(seed + number, 20_480), vec![0; 77_824]].concat()).collect()
    };
    let (like, _) = cut(&islands(1000), None);
    let mut expected = Expected::of(&like);
    let looks = like.placed().filter(|placed| {
        let looked =
            matches!(placed.extent, ManifestExtent::Data { .. }) && expected.at(placed.offset).is_some();
        if looked {
            expected.found(false);
        }
        looked
    });
    assert_eq!(looks.count(), 8, "the 1st, 2nd, 4th, 8th, 16th, 32nd, 64th and 96th");
    assert_eq!(cut(&islands(2000), Some(&like)), cut(&islands(2000), None));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn what_is_expected_changes_no_cut(stretches in stretches(), changes in changes()) {
        let mut bytes = build(&stretches);
        let (like, _) = cut(&bytes, None);
        changes.iter().for_each(|change| apply(&mut bytes, change));
        let (expected, _) = cut(&bytes, None);
        let (found, named) = cut(&bytes, Some(&like));
        prop_assert_eq!(&found, &expected);
        prop_assert!(!changes.is_empty() || named == expected.chunks().count());
    }

    /// Not even when it is of another image altogether that has much in common with it.
    #[test]
    fn what_is_expected_of_another_image_changes_no_cut(
        (one, other, common) in (stretches(), stretches(), stretches()),
    ) {
        let (one, other) = ([&one[..], &common].concat(), [&other[..], &common].concat());
        let bytes = build(&one);
        let (like, _) = cut(&build(&other), None);
        prop_assert_eq!(cut(&bytes, Some(&like)).0, cut(&bytes, None).0);
    }
}
