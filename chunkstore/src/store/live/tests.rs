use super::LiveSet;
use crate::ChunkId;

fn id(number: u64) -> ChunkId {
    ChunkId::of(&number.to_le_bytes())
}

#[test]
fn nothing_added_is_ever_missing_and_few_others_are_taken_for_it() {
    let count = 50_000;
    let live = LiveSet::for_chunks(count);
    (0..count).for_each(|number| live.add(&id(number)));
    assert!((0..count).all(|number| live.contains(&id(number))));
    let mistaken = (count..5 * count).filter(|number| live.contains(&id(*number))).count();
    assert!(mistaken < 400, "{mistaken} of 200,000");
}

#[test]
fn too_small_a_set_keeps_more_and_loses_nothing() {
    let live = LiveSet::for_chunks(0);
    assert!(!live.contains(&id(1)));
    (0..20_000).for_each(|number| live.add(&id(number)));
    assert!((0..20_000).all(|number| live.contains(&id(number))));
}
