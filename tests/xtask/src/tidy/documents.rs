//! Documents: those that specify bytes name the versions that the code speaks, links lead to files, and the README stays short.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::read;

/// The wire has one version. The document, the folder whose code it describes, and the constant there that holds it.
const WIRE: (&str, &str, &str) = ("replicator/PROTOCOL.md", "replicator/proto/src", "PROTOCOL_VERSION");
/// A file has a version of its own, at the end of its magic. The document, and the folder whose code it describes.
const FILES: (&str, &str) = ("chunkstore/FORMAT.md", "chunkstore/src");
const README: &str = "README.md";

pub(super) fn check(root: &Path, files: &[PathBuf]) -> Result<Vec<String>> {
    let code = |folder: &str| -> Result<Vec<String>> {
        let folder = root.join(folder);
        files.iter().filter(|file| file.starts_with(&folder)).map(|file| read(file)).collect()
    };
    let document = |name: &str| read(&root.join(name)).unwrap_or_default();
    let mut broken = Vec::new();

    let (name, folder, constant) = WIRE;
    let versions: Vec<u32> =
        code(folder)?.iter().flat_map(|text| constant_versions(text, constant)).collect();
    broken.extend(compare(name, document_version(&document(name)), constant, &versions));

    let (name, folder) = FILES;
    let coded = code(folder)?.iter().flat_map(|text| coded_magics(text)).collect();
    broken.extend(compare_magics(name, &document_magics(&document(name)), &coded));

    broken.extend(too_long(README, &document(README)));
    for file in files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "md")) {
        let name = file.strip_prefix(root).unwrap_or(file).display().to_string();
        broken.extend(dead_links(&name, file.parent().unwrap_or(root), &read(file)?));
    }
    Ok(broken)
}

/// The newcomer's page is read in one go.
pub(super) fn too_long(document: &str, text: &str) -> Vec<String> {
    const MAX_LINES: usize = 150;
    const MAX_COLUMNS: usize = 120;
    let lines = text.lines().count();
    let total = (lines > MAX_LINES).then(|| format!("{document}: {lines} lines; at most {MAX_LINES}"));
    let wide = text.lines().enumerate().filter(|(_, line)| line.chars().count() > MAX_COLUMNS);
    total
        .into_iter()
        .chain(wide.map(|(at, _)| format!("{document}:{}: over {MAX_COLUMNS} columns", at + 1)))
        .collect()
}

/// Links to files that are not there; `dir` is where the document stands.
pub(super) fn dead_links(document: &str, dir: &Path, text: &str) -> Vec<String> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
    let files = targets.map(|target| target.split('#').next().unwrap_or_default());
    let files = files.filter(|file| !file.is_empty() && !file.contains(':'));
    files.filter(|file| !dir.join(file).exists()).map(|file| format!("{document}: no file {file}")).collect()
}

/// The magics that code writes, `..MAGIC: .. = b"LHPACK\x00\x01";`, as the document shows them: `LHPACK` 0 1.
pub(super) fn coded_magics(code: &str) -> BTreeSet<String> {
    let literals = code.lines().filter(|line| line.contains("MAGIC: ")).filter_map(|line| {
        let (_, literal) = line.split_once("= b\"")?;
        literal.trim_end().strip_suffix("\";")
    });
    literals
        .map(|literal| {
            let (name, bytes) =
                literal.split_once("\\x").map_or((literal, ""), |(name, bytes)| (name, bytes));
            let bytes = bytes.split("\\x").filter_map(|digits| u8::from_str_radix(digits, 16).ok());
            bytes.fold(format!("`{name}`"), |shown, byte| format!("{shown} {byte}"))
        })
        .collect()
}

/// The magics in a document: a name in backticks that starts with `LH`, and the bytes behind it.
pub(super) fn document_magics(text: &str) -> BTreeSet<String> {
    let names = text.match_indices("`LH").filter_map(|(at, _)| {
        let (name, rest) = text[at + 1..].split_once('`')?;
        name.bytes().all(|byte| byte.is_ascii_uppercase()).then_some((name, rest))
    });
    names
        .map(|(name, rest)| {
            let bytes = rest.split([' ', '\n']).skip(1).map_while(|word| word.parse::<u8>().ok());
            bytes.fold(format!("`{name}`"), |shown, byte| format!("{shown} {byte}"))
        })
        .collect()
}

pub(super) fn compare_magics(
    document: &str,
    written: &BTreeSet<String>,
    coded: &BTreeSet<String>,
) -> Vec<String> {
    if coded.is_empty() {
        return vec![format!("{document}: its code has no magic")];
    }
    let unwritten = coded.difference(written).map(|magic| {
        format!("{document}: the code writes the magic {magic}, which is not described; change both together")
    });
    let uncoded = written.difference(coded).map(|magic| {
        format!(
            "{document}: describes the magic {magic}, which the code does not write; change both together"
        )
    });
    unwritten.chain(uncoded).collect()
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
