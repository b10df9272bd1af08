//! How what lies in a store is put into batches.

use chunkstore::IngestOptions;

use super::*;

#[test]
fn what_lies_in_the_store_as_one_group_leaves_it_as_one() {
    let mut image = vec![0; 20 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut image);
    // A hole, and islands that share a batch.
    image[5 << 20..6 << 20].fill(0);
    image[14 << 20..].chunks_mut(1 << 18).for_each(|part| part[1 << 16..].fill(0));
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(dir.path()).unwrap());
    let manifest = chunkstore::ingest(&store, &image, &IngestOptions::default(), &|_| ()).unwrap();
    let (sender, mut batches) = mpsc::channel(64);
    feed_manifest(&store, &manifest, &Counters::default(), &sender);
    drop(sender);
    let (mut extents, mut leave) = (0, Vec::new());
    while let Some(batch) = batches.blocking_recv() {
        extents += batch.extents.len();
        let chunks = (0..).zip(&batch.supplies).filter_map(|(at, supply)| supply.as_ref().map(|_| at));
        let groups = pack_wanted(0, &chunks.collect::<Vec<_>>(), &batch.supplies, 1).unwrap();
        leave.extend(groups.iter().map(|(indices, _)| indices.len()));
    }
    assert_eq!(extents, manifest.extents().count());
    let is_data = |placed: &&chunkstore::PlacedExtent| matches!(placed.extent, ManifestExtent::Data { .. });
    let lie: Vec<usize> = manifest.batches().map(|batch| batch.iter().filter(is_data).count()).collect();
    assert!(lie.len() > 5, "{lie:?}");
    assert_eq!(leave, lie);
}
