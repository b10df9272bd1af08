//! The hash of an inner node and of a root, and what they are made of. Pure; it never reads an image.

use crate::ImageRoot;

/// Children of one inner node.
pub(super) const FANOUT: usize = 256;

/// BLAKE3 contexts, so that no leaf can stand for a node and no node for a root.
pub(super) const NODE_CONTEXT: &str = "longhaul 2026 image tree: node";
pub(super) const ROOT_CONTEXT: &str = "longhaul 2026 image tree: root";

/// The hash of zeroes, at every height.
pub(super) const ZERO: [u8; 32] = [0; 32];

pub(crate) type Hash = [u8; 32];

pub(super) fn root_of(size: u64, top: &Hash) -> ImageRoot {
    let mut hasher = blake3::Hasher::new_derive_key(ROOT_CONTEXT);
    hasher.update(&size.to_le_bytes());
    hasher.update(top);
    ImageRoot::from_bytes(*hasher.finalize().as_bytes())
}

pub(super) fn hash_node(hasher: &blake3::Hasher, height: usize, children: &[Hash]) -> Hash {
    if children.iter().all(|child| *child == ZERO) {
        return ZERO;
    }
    let mut hasher = hasher.clone();
    hasher.update(&[u8::try_from(height).unwrap_or(u8::MAX)]);
    hasher.update(children.as_flattened());
    *hasher.finalize().as_bytes()
}
