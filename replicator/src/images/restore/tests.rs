use std::cell::Cell;
use std::os::unix::fs::symlink;

use chunkstore::{IngestOptions, ingest};

use super::*;

/// A store with the base `base` of 4 MiB, and the base's bytes.
fn store(dir: &Path) -> (Store, Manifest, Vec<u8>) {
    let mut bytes = vec![0; 4 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes[..3 << 20]);
    let store = Store::open(dir.join("store")).unwrap();
    let manifest = ingest(&store, &bytes, &IngestOptions::default(), &|_| {}).unwrap();
    store.publish("base", &manifest).unwrap();
    (store, manifest, bytes)
}

fn request(path: &Path, in_place: bool) -> RestoreRequest {
    RestoreRequest { path: path.to_owned(), in_place, like: None }
}

fn go_on(_: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn a_base_is_written_out_and_then_only_what_differs() {
    let dir = tempfile::tempdir().unwrap();
    let (store, manifest, bytes) = store(dir.path());
    let path = dir.path().join("image.raw");
    let write = |request: &RestoreRequest| {
        let target = Target::open(request, manifest.size()).unwrap();
        target.write(&store, &Seeds::new(), &manifest, &go_on).unwrap()
    };
    assert_eq!(write(&request(&path, false)), Restored { written_bytes: 3 << 20, zeroed_bytes: 0 });
    assert_eq!(fs::read(&path).unwrap(), bytes);

    let mut other = bytes.clone();
    other[70_000] ^= 1;
    other[(3 << 20) + 8192..(3 << 20) + 12288].fill(7);
    fs::write(&path, &other).unwrap();
    assert_eq!(write(&request(&path, true)).written_bytes, 4096);
    assert_eq!(fs::read(&path).unwrap(), bytes);
    assert_eq!(write(&request(&path, true)).written_bytes, 0);
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let there = dir.path().join("there");
    fs::write(&there, b"something").unwrap();
    let missing = dir.path().join("missing");
    let refusal = |request: &RestoreRequest| Target::open(request, 4096).err().unwrap().to_string();
    let cases = [
        (request(&there, false), "exists"),
        (request(&there, true), "9 bytes, the base 4096"),
        (request(&missing, true), "opening"),
        (RestoreRequest { like: Some(missing.clone()), ..request(&missing, false) }, "opening"),
        (RestoreRequest { like: Some(there.clone()), ..request(&there, true) }, "--like is for a new file"),
    ];
    for (request, word) in cases {
        let message = refusal(&request);
        assert!(message.contains(word) && message.contains(dir.path().to_str().unwrap()), "{message}");
    }
    assert_eq!(fs::read(&there).unwrap(), b"something");
    assert!(!missing.exists());
    // A link to nowhere is no new file either.
    symlink(&missing, dir.path().join("link")).unwrap();
    assert!(refusal(&request(&dir.path().join("link"), false)).contains("exists"));
}

#[test]
fn a_new_file_that_is_cancelled_is_gone_and_an_old_one_is_said_to_be_incomplete() {
    let dir = tempfile::tempdir().unwrap();
    let (store, manifest, bytes) = store(dir.path());
    let calls = Cell::new(0);
    let stop = |_| {
        calls.set(calls.get() + 1);
        ControlFlow::Break(())
    };
    let path = dir.path().join("new.raw");
    let target = Target::open(&request(&path, false), manifest.size()).unwrap();
    let error = target.write(&store, &Seeds::new(), &manifest, &stop).unwrap_err();
    assert!(matches!(error, RestoreError::Cancelled { .. }), "{error}");
    assert!(!path.exists());

    fs::write(&path, vec![1; bytes.len()]).unwrap();
    let target = Target::open(&request(&path, true), manifest.size()).unwrap();
    let error = target.write(&store, &Seeds::new(), &manifest, &stop).unwrap_err();
    assert_eq!(calls.get(), 2, "it went on after it was stopped");
    let message = error.to_string();
    assert!(message.contains("incomplete") && message.contains("--in-place` again"), "{message}");
    let again = target.write(&store, &Seeds::new(), &manifest, &go_on).unwrap();
    assert!(again.written_bytes < 3 << 20, "{again:?}: it had written something before it was stopped");
    assert_eq!(fs::read(&path).unwrap(), bytes);
}

#[tokio::test]
async fn cancelling_the_job_stops_the_writing() {
    let dir = tempfile::tempdir().unwrap();
    let (store, manifest, _) = store(dir.path());
    let holdings = Holdings { store: Arc::new(store), seeds: Arc::new(Seeds::new()) };
    let reports = dir.path().join("reports");
    fs::create_dir(&reports).unwrap();
    let running = Arc::new(jobs::Jobs::load(&reports).unwrap());
    let handle = running.begin(jobs::new_id(), JobKind::BaseRestore, "base", None);
    let lease = Lease::new();
    lease.revoke();
    let path = dir.path().join("new.raw");
    let target = Target::open(&request(&path, false), manifest.size()).unwrap();
    let error = write_out(holdings, &handle, &lease, manifest, target).await.unwrap_err();
    assert!(matches!(error, RestoreError::Cancelled { .. }), "{error}");
    assert!(!path.exists());
}

#[test]
fn a_new_file_that_fails_is_gone_and_an_old_one_is_said_to_be_incomplete() {
    let dir = tempfile::tempdir().unwrap();
    let (_, manifest, bytes) = store(dir.path());
    let empty = Store::open(dir.path().join("empty")).unwrap();
    let path = dir.path().join("image.raw");
    let target = Target::open(&request(&path, false), manifest.size()).unwrap();
    assert!(matches!(
        target.write(&empty, &Seeds::new(), &manifest, &go_on),
        Err(RestoreError::NewFile { .. })
    ));
    assert!(!path.exists());
    fs::write(&path, vec![1; bytes.len()]).unwrap();
    let target = Target::open(&request(&path, true), manifest.size()).unwrap();
    let error = target.write(&empty, &Seeds::new(), &manifest, &go_on).unwrap_err();
    assert!(error.to_string().contains("incomplete") && error.to_string().contains("again"), "{error}");
}
