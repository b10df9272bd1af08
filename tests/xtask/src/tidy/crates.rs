//! Rules about which crate may use which, read from the manifests.

use std::path::Path;

use anyhow::{Context, Result};
use toml::Table;

use super::read;

/// The crates that only decide, and their folders.
const PURE: [(&str, &str); 2] =
    [("longhaul-proto", "replicator/proto"), ("mobility-proto", "mobility/proto")];
/// All that a pure crate may use. None of these opens a file, a socket or a clock on its own.
const PURE_MAY_USE: [&str; 10] = [
    "serde",
    "bincode",
    "bytes",
    "thiserror",
    "blake3",
    "hmac",
    "sha1",
    "sha2",
    "longhaul-proto",
    "mobility-proto",
];
/// What a pure crate's clippy.toml must ban.
const PURE_BANS: [&str; 5] =
    ["std::time::Instant::now", "std::time::SystemTime::now", "std::fs::", "std::net::", "std::thread::"];

/// The pillars: folder, crate, and what else of ours it may use.
const PILLARS: [(&str, &[&str]); 3] =
    [("chunkstore", &[]), ("migrate-driver", &[]), ("mobility", &["mobility-proto"])];
/// Our crates.
const OURS: [&str; 14] = [
    "chunkstore",
    "migrate-driver",
    "mobility",
    "mobility-proto",
    "longhaul",
    "longhaul-proto",
    "harness",
    "guest",
    "benches",
    "e2e",
    "interop",
    "mobility-lab",
    "xtask",
    "fuzz",
];
/// Those under tests/, which nothing outside may use.
const TESTS: [&str; 8] = ["harness", "guest", "benches", "e2e", "interop", "mobility-lab", "xtask", "fuzz"];

pub(super) fn check(root: &Path) -> Result<Vec<String>> {
    let mut broken = Vec::new();
    for (_, folder) in PURE {
        let manifest = manifest(root, folder)?;
        broken.extend(pure_dependencies(folder, &manifest));
        let clippy = read(&root.join(folder).join("clippy.toml")).unwrap_or_default();
        broken.extend(pure_bans(folder, &clippy));
    }
    for (folder, may_use) in PILLARS {
        broken.extend(pillar(folder, &manifest(root, folder)?, may_use));
    }
    let product = PILLARS.iter().map(|(folder, _)| *folder).chain(["replicator"]);
    for folder in product.chain(PURE.map(|(_, folder)| folder)) {
        broken.extend(no_tests(folder, &manifest(root, folder)?));
    }
    Ok(broken)
}

fn manifest(root: &Path, folder: &str) -> Result<Table> {
    let file = root.join(folder).join("Cargo.toml");
    read(&file)?.parse().with_context(|| format!("parsing {}", file.display()))
}

/// The names in the dependency tables `sections`, also below `[target.*]`.
fn dependencies(manifest: &Table, sections: &[&str]) -> Vec<String> {
    let targets = manifest.get("target").and_then(|t| t.as_table()).into_iter().flat_map(|t| t.values());
    let tables = std::iter::once(manifest).chain(targets.filter_map(|target| target.as_table()));
    tables
        .flat_map(|table| sections.iter().filter_map(|section| table.get(*section)?.as_table()))
        .flat_map(|table| table.iter())
        // `alias = { package = "real" }` uses the real one.
        .map(|(name, value)| value.get("package").and_then(|p| p.as_str()).unwrap_or(name).to_owned())
        .collect()
}

const SHIPPED: [&str; 2] = ["dependencies", "build-dependencies"];
const ALL: [&str; 3] = ["dependencies", "build-dependencies", "dev-dependencies"];

pub(super) fn pure_dependencies(folder: &str, manifest: &Table) -> Vec<String> {
    dependencies(manifest, &SHIPPED)
        .iter()
        .filter(|name| !PURE_MAY_USE.contains(&name.as_str()))
        .map(|name| format!("{folder}/Cargo.toml: a pure crate may not depend on {name}"))
        .collect()
}

pub(super) fn pure_bans(folder: &str, clippy: &str) -> Vec<String> {
    PURE_BANS
        .iter()
        .filter(|ban| !clippy.contains(&format!("\"{ban}")))
        .map(|ban| format!("{folder}/clippy.toml: a pure crate bans {ban}"))
        .collect()
}

pub(super) fn pillar(folder: &str, manifest: &Table, may_use: &[&str]) -> Vec<String> {
    dependencies(manifest, &ALL)
        .iter()
        .filter(|name| OURS.contains(&name.as_str()) && !may_use.contains(&name.as_str()))
        .map(|name| {
            format!("{folder}/Cargo.toml: no pillar knows another crate of ours, this one uses {name}")
        })
        .collect()
}

pub(super) fn no_tests(folder: &str, manifest: &Table) -> Vec<String> {
    dependencies(manifest, &ALL)
        .iter()
        .filter(|name| TESTS.contains(&name.as_str()))
        .map(|name| format!("{folder}/Cargo.toml: nothing outside tests/ uses {name}"))
        .collect()
}
