use std::collections::HashSet;

use super::*;

#[test]
fn entries_ascend_and_others_are_others() {
    let entries = 10_000;
    let keys: Vec<Key> = (0..entries).map(|number| entry(number, entries).0).collect();
    assert!(keys.is_sorted_by(|a, b| a < b));
    let known: HashSet<Key> = keys.into_iter().collect();
    let others: HashSet<Key> = (0..entries).map(other).collect();
    assert_eq!(others.len() as u64, entries);
    assert!(known.is_disjoint(&others));
    assert_eq!(entry(7, entries).1, value(7));
}

#[test]
fn what_begins_alike_is_kept_apart() {
    assert_eq!(key(5, 0)[..8], key(5, 1)[..8]);
    assert_ne!(key(5, 0)[8..16], key(5, 1)[8..16]);
    assert_ne!(key(5, 0)[8..16], key(5, 0)[16..24]);
}
