//! Keys and fingerprints.

use std::os::unix::fs::PermissionsExt;

use super::*;

#[test]
fn a_key_is_made_once_and_only_its_owner_may_read_it() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("identity");
    let made = Identity::load_or_create(&dir).unwrap().fingerprint();
    assert_eq!(Identity::load_or_create(&dir).unwrap().fingerprint(), made);
    let names: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["key.pk8"], "nothing is left behind");
    let mode = std::fs::metadata(dir.join("key.pk8")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn two_platforms_differ() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [a, b] = dirs.map(|dir| Identity::load_or_create(dir.path()).unwrap().fingerprint());
    assert_ne!(a, b);
}

#[test]
fn a_file_that_is_no_key_is_an_error_that_says_what_to_do_and_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key.pk8");
    for content in [&b""[..], b"not a key"] {
        std::fs::write(&path, content).unwrap();
        let message = Identity::load_or_create(dir.path()).err().unwrap().to_string();
        assert!(message.contains("key.pk8") && message.contains("restore it"), "{message}");
        assert_eq!(std::fs::read(&path).unwrap(), content);
    }
}

#[test]
fn a_fingerprint_is_written_as_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let fingerprint = Identity::load_or_create(dir.path()).unwrap().fingerprint();
    let text = fingerprint.to_string();
    assert_eq!(text.len(), 64);
    assert_eq!(text.parse::<Fingerprint>().unwrap(), fingerprint);
    let json = serde_json::to_string(&fingerprint).unwrap();
    assert_eq!(json, format!("\"{text}\""));
    assert_eq!(serde_json::from_str::<Fingerprint>(&json).unwrap(), fingerprint);
}

#[test]
fn what_is_no_fingerprint_is_told_where_to_find_one() {
    for text in ["", "ab", &"zz".repeat(32), &"ab".repeat(33), &"é".repeat(32)] {
        let message = text.parse::<Fingerprint>().unwrap_err().to_string();
        assert!(message.contains("longhaul identity"), "{message}");
        assert!(serde_json::from_str::<Fingerprint>(&format!("\"{text}\"")).is_err());
    }
}
