use proptest::prelude::*;

use super::{HEADER_BYTES, STEP_HASHES, Subject, read, write};
use crate::testing::noise;
use crate::tree::Hash;
use crate::{ImageTree, LEAF_BYTES};

fn tree_of(leaves: &[Hash]) -> ImageTree {
    let mut tree = ImageTree::new(leaves.len() as u64 * LEAF_BYTES);
    (0..).zip(leaves).for_each(|(number, hash)| tree.keep_leaf(number, *hash));
    tree.rebuild();
    tree
}

fn file_of(tree: &ImageTree) -> (Subject, Vec<u8>) {
    let subject = Subject { size: tree.size(), root: tree.root(), changed: (u64::MAX, 5) };
    let mut bytes = Vec::new();
    write(&mut bytes, &subject, tree).unwrap();
    (subject, bytes)
}

/// Runs of zero leaves and of others.
fn leaves() -> impl Strategy<Value = Vec<Hash>> {
    let run = (any::<bool>(), 1..40_usize, any::<u8>()).prop_map(|(zero, len, seed)| {
        let hash = if zero { [0; 32] } else { [seed | 1; 32] };
        vec![hash; len]
    });
    prop::collection::vec(run, 0..20).prop_map(|runs| runs.concat())
}

proptest! {
    #[test]
    fn a_tree_comes_back_and_damage_does_not(leaves in leaves(), at in any::<prop::sample::Index>(), bit in 0..8) {
        let tree = tree_of(&leaves);
        let (subject, bytes) = file_of(&tree);
        let back = read(&mut &bytes[..], &subject).unwrap();
        prop_assert_eq!(back.leaves(), &leaves[..]);
        prop_assert_eq!(back.root(), tree.root());
        prop_assert!(back.is_settled());

        let mut damaged = bytes.clone();
        let at = at.index(bytes.len());
        damaged[at] ^= 1_u8 << bit;
        prop_assert!(read(&mut &damaged[..], &subject).is_none(), "byte {}", at);
        prop_assert!(read(&mut &bytes[..at], &subject).is_none());
        prop_assert!(read(&mut &[&bytes[..], &[0]].concat()[..], &subject).is_none());
    }
}

#[test]
fn long_runs_are_read_in_steps_and_holes_take_no_room() {
    let mut leaves = vec![[0; 32]; 100_000];
    for (number, hash) in leaves[50_000..50_000 + 2 * STEP_HASHES + 1].iter_mut().enumerate() {
        hash.copy_from_slice(&noise(number as u64, 32));
    }
    let tree = tree_of(&leaves);
    let (subject, bytes) = file_of(&tree);
    assert_eq!(bytes.len(), HEADER_BYTES + 2 * 16 + (2 * STEP_HASHES + 1) * 32 + 32);
    assert_eq!(read(&mut &bytes[..], &subject).unwrap().leaves(), leaves);
}

#[test]
fn a_tree_of_something_else_is_not_believed() {
    let (subject, bytes) = file_of(&tree_of(&[[7; 32], [0; 32], [8; 32]]));
    assert_eq!(Subject::parse(&bytes), Some(subject));
    let others = [
        Subject { size: subject.size + 1, ..subject },
        Subject { root: ImageTree::new(1).root(), ..subject },
        Subject { changed: (subject.changed.0, 6), ..subject },
        Subject { changed: (1, subject.changed.1), ..subject },
    ];
    for other in others {
        assert!(read(&mut &bytes[..], &other).is_none(), "{other:?}");
    }
    let mut newer = bytes.clone();
    newer[7] = 2;
    assert!(read(&mut &newer[..], &subject).is_none());
}

#[test]
fn runs_that_do_not_fit_are_refused() {
    let subject = Subject { size: 3 * LEAF_BYTES, root: ImageTree::new(1).root(), changed: (0, 0) };
    let file = |runs: &[(u64, u64)]| {
        let mut bytes = subject.encode().to_vec();
        for (zeroes, hashes) in runs {
            bytes.extend(zeroes.to_le_bytes());
            bytes.extend(hashes.to_le_bytes());
            bytes.extend(vec![9; 32 * (*hashes).min(4) as usize]);
        }
        let check = blake3::hash(&bytes);
        bytes.extend(check.as_bytes());
        bytes
    };
    assert!(read(&mut &file(&[(1, 2)])[..], &subject).is_some());
    for runs in [
        &[][..],
        &[(0, 0)],
        &[(3, 1)],
        &[(4, 0)],
        &[(1, 1)],
        &[(u64::MAX, 1)],
        &[(0, u64::MAX)],
        &[(1, u64::MAX)],
    ] {
        assert!(read(&mut &file(runs)[..], &subject).is_none(), "{runs:?}");
    }
}
