use std::fs;

use super::*;

fn run(words: &[&str]) -> Value {
    Task::parse(words).unwrap().run().unwrap()
}

#[test]
fn an_image_goes_in_and_comes_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (store, image, copy) = (path("store"), path("image"), path("copy"));
    let mut bytes = vec![0; 1 << 20];
    bytes[300_000..700_000].fill(7);
    fs::write(&image, &bytes).unwrap();
    let ingested = run(&["ingest", &store, &image, "name", "3"]);
    assert_eq!(run(&["ingest", &store, &image, "again", "3"]), ingested);
    assert_eq!(run(&["chunk-hash", &image]), ingested);
    assert_eq!(run(&["restore", &store, "name", &copy]), ingested);
    assert_eq!(fs::read(copy).unwrap(), bytes);
}

#[test]
fn half_of_a_filled_store_is_collected() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store").display().to_string();
    run(&["fill", &store, "2000"]);
    assert_eq!(run(&["open", &store])["asked"], 2000);
    let collected = run(&["gc", &store]);
    assert_eq!((&collected["chunks_removed"], &collected["left"]), (&json!(1000), &json!(1000)));
}

#[test]
fn a_large_image_is_many_short_chunks() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store").display().to_string();
    let extents = run(&["large", &store, "1"])["extents"].as_u64().unwrap();
    assert_eq!(extents, 65_536);
}

#[test]
fn no_task_is_an_error() {
    assert!(Task::parse(&["sing"]).unwrap_err().to_string().contains("sing"));
    assert!(Task::parse(&["fill", "store", "many"]).is_err());
}
