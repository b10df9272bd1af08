//! The entries of an index, made from their numbers: nothing is kept, so that only the database's memory is seen. Pure.

/// A chunk's name.
pub(super) type Key = [u8; 32];
/// A chunk's place, as long as the store's.
pub(super) type Value = [u8; 24];

/// Entry `number` of `entries`. Names look random, as hashes do, and ascend with the number: each is somewhere in its own
/// part of all names. So a database is filled in order without sorting anything.
pub(super) fn entry(number: u64, entries: u64) -> (Key, Value) {
    let part = u64::MAX / entries;
    (key(number * part + mixed(number) % part, 0), value(number))
}

/// A name that is no entry's; random ones, for questions that are to be answered with no, and for what is added.
pub(super) fn other(number: u64) -> Key {
    key(mixed(number ^ 0x5851_f42d_4c95_7f2d), 1)
}

/// What belongs to entry `number`.
pub(super) fn value(number: u64) -> Value {
    let mut value = [0; 24];
    value[..8].copy_from_slice(&mixed(number).to_le_bytes());
    value[8..16].copy_from_slice(&number.to_le_bytes());
    value
}

/// Numbers that look random, the same for the same `number` (splitmix64).
pub(super) fn mixed(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// `kind` keeps apart what begins alike.
fn key(beginning: u64, kind: u64) -> Key {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&beginning.to_be_bytes());
    for (word, bytes) in (0..).zip(key[8..].chunks_exact_mut(8)) {
        bytes.copy_from_slice(&mixed(beginning ^ mixed(2 * word + kind)).to_be_bytes());
    }
    key
}

#[cfg(test)]
mod tests;
