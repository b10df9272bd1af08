//! Documents that specify bytes: each names the version it describes, and the code names the version it speaks.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::read;

/// A document, the folder whose code it describes, and the constant there that holds the version.
const SPECIFIED: [(&str, &str, &str); 2] = [
    ("replicator/PROTOCOL.md", "replicator/proto/src", "PROTOCOL_VERSION"),
    ("chunkstore/FORMAT.md", "chunkstore/src", "FORMAT_VERSION"),
];

pub(super) fn check(root: &Path, files: &[PathBuf]) -> Result<Vec<String>> {
    let mut broken = Vec::new();
    for (document, folder, constant) in SPECIFIED {
        let text = read(&root.join(document)).unwrap_or_default();
        let folder = root.join(folder);
        let mut versions = Vec::new();
        for file in files.iter().filter(|file| file.starts_with(&folder)) {
            versions.extend(constant_versions(&read(file)?, constant));
        }
        broken.extend(compare(document, document_version(&text), constant, &versions));
    }
    Ok(broken)
}

/// The number in the document's line `Version: N`.
pub(super) fn document_version(text: &str) -> Option<u32> {
    text.lines().find_map(|line| line.strip_prefix("Version: ")?.trim().parse().ok())
}

/// The numbers of all `pub const NAME: ... = N;`.
pub(super) fn constant_versions(code: &str, name: &str) -> Vec<u32> {
    let start = format!("pub const {name}:");
    code.lines()
        .filter_map(|line| line.trim().strip_prefix(&start)?.split_once('='))
        .filter_map(|(_, value)| value.trim().trim_end_matches(';').parse().ok())
        .collect()
}

pub(super) fn compare(document: &str, written: Option<u32>, constant: &str, coded: &[u32]) -> Option<String> {
    match (written, coded) {
        (None, _) => Some(format!("{document}: missing, or without a line `Version: N`")),
        (Some(_), []) => Some(format!("{document}: its code has no `pub const {constant}`")),
        (Some(_), [_, _, ..]) => {
            Some(format!("{document}: its code has more than one `pub const {constant}`"))
        }
        (Some(written), [coded]) if written != *coded => Some(format!(
            "{document}: describes version {written}, the code's {constant} is {coded}; change both together"
        )),
        (Some(_), [_]) => None,
    }
}
