//! The files in a replica's directory.

pub(super) const IMAGE: &str = "image.raw";
pub(super) const PARTIAL: &str = "image.partial";
pub(super) const LOG: &str = "redo.log";
pub(super) const STATE: &str = "state";
/// The state that belongs to [`PARTIAL`]: once it is there, that image is committed.
pub(super) const NEXT_STATE: &str = "state.next";
/// Beside a commit that counts only once the set's record names its set.
pub(super) const GUARD: &str = "prepared";
pub(super) const MANIFEST: &str = "manifest";
pub(super) const TREE: &str = "tree";
