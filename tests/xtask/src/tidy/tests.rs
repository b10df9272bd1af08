use toml::Table;

use super::*;

fn table(text: &str) -> Table {
    text.parse().unwrap()
}

#[test]
fn a_source_file_says_what_it_is_for_and_leaves_nothing_behind() {
    let good = "//! What this is for.\nfn main() {}\n";
    assert!(sources::check("a/src/main.rs", good).is_empty());
    assert!(sources::check("a/src/tests.rs", "use super::*;\n").is_empty());
    assert_eq!(sources::check("a/src/lib.rs", "use x;\n").len(), 1);
    let leftover = format!("{good}// {}: later\n    {}x);\n", concat!("TO", "DO"), concat!("db", "g!("));
    let broken = sources::check("a/src/lib.rs", &leftover);
    assert_eq!(broken.len(), 2, "{broken:?}");
    assert!(broken[0].starts_with("a/src/lib.rs:3: "));
    assert_eq!(sources::check("a.rs", &format!("//! x\n{}", "\n".repeat(800))).len(), 1);
}

#[test]
fn pure_crates_use_little_and_ban_the_world() {
    let manifest =
        table("[dependencies]\nserde = \"1\"\ntokio.workspace = true\n[dev-dependencies]\nproptest = \"1\"");
    assert_eq!(
        crates::pure_dependencies("p", &manifest),
        ["p/Cargo.toml: a pure crate may not depend on tokio"]
    );
    let renamed = table("[dependencies]\nserde = { package = \"mio\", version = \"1\" }");
    assert_eq!(crates::pure_dependencies("p", &renamed).len(), 1);
    let hidden = table("[target.'cfg(unix)'.dependencies]\nlibc = \"1\"");
    assert_eq!(crates::pure_dependencies("p", &hidden).len(), 1);
    assert_eq!(crates::pure_bans("p", "").len(), 5);
    let own = read(&harness::lab::workspace().join("mobility/proto/clippy.toml")).unwrap();
    assert!(crates::pure_bans("p", &own).is_empty());
}

#[test]
fn pillars_stand_apart_and_nothing_uses_the_tests() {
    let manifest =
        table("[dependencies]\nmobility-proto.workspace = true\nchunkstore.workspace = true\nserde = \"1\"");
    assert_eq!(crates::pillar("mobility", &manifest, &["mobility-proto"]).len(), 1);
    let testing = table("[dev-dependencies]\nharness.workspace = true");
    assert_eq!(crates::no_tests("chunkstore", &testing).len(), 1);
    assert_eq!(crates::pillar("chunkstore", &testing, &[]).len(), 1);
}

#[test]
fn documents_follow_the_code() {
    assert_eq!(documents::document_version("# Wire\n\nVersion: 3\n"), Some(3));
    assert_eq!(documents::document_version("Version three\n"), None);
    let code = "//! x\npub const PROTOCOL_VERSION: u16 = 3;\npub const OTHER: u16 = 4;\n";
    assert_eq!(documents::constant_versions(code, "PROTOCOL_VERSION"), [3]);
    assert_eq!(documents::compare("D.md", Some(3), "V", &[3]), None);
    for (written, coded) in [(None, &[3][..]), (Some(3), &[]), (Some(3), &[4]), (Some(3), &[3, 3])] {
        assert!(documents::compare("D.md", written, "V", coded).is_some());
    }
}

#[test]
fn formats_follow_the_code_magic_by_magic() {
    let code = "pub(super) const PACK_MAGIC: &[u8; 8] = b\"LHPACK\\x00\\x01\";\nconst SEAL_MAGIC: &[u8; 4] = b\"LHSE\";\n\
                header.starts_with(PACK_MAGIC);\nconst OTHER: &[u8; 2] = b\"LH\";\n";
    let text =
        "| 0 | 8 | magic `LHPACK` 0 1 |\n| 56 | 4 | `LHSE` |\nat the next `LHSE` that begins, `LHx` is none";
    let (coded, written) = (documents::coded_magics(code), documents::document_magics(text));
    assert_eq!(coded.iter().collect::<Vec<_>>(), ["`LHPACK` 0 1", "`LHSE`"]);
    assert_eq!(written, coded);
    assert!(documents::compare_magics("F.md", &written, &coded).is_empty());
    let newer = documents::coded_magics(&code.replace("x01", "x02"));
    let broken = documents::compare_magics("F.md", &written, &newer);
    assert_eq!(broken.len(), 2, "{broken:?}");
    assert!(broken[0].contains("`LHPACK` 0 2") && broken[1].contains("`LHPACK` 0 1"), "{broken:?}");
    assert_eq!(documents::compare_magics("F.md", &written, &Default::default()).len(), 1);
}

#[test]
fn the_readme_stays_short_and_links_lead_somewhere() {
    let lines = |count| "text\n".repeat(count);
    assert!(documents::too_long("R.md", &lines(150)).is_empty());
    assert_eq!(documents::too_long("R.md", &lines(151)).len(), 1);
    assert_eq!(
        documents::too_long("R.md", &format!("short\n{}\n", "é".repeat(121))),
        ["R.md:2: over 120 columns"]
    );

    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let good =
        "[here](Cargo.toml), [a part](src/main.rs#there), [far](https://example.org/x), [below](#part)";
    assert!(documents::dead_links("D.md", dir, good).is_empty());
    assert_eq!(documents::dead_links("D.md", dir, "[gone](src/gone.rs)"), ["D.md: no file src/gone.rs"]);
}
