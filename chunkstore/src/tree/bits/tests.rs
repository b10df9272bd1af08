use std::collections::BTreeSet;

use proptest::prelude::*;

use super::{Bits, PAGE};

#[test]
fn all_of_much_is_little() {
    let mut bits = Bits::new(1 << 30);
    bits.set(0..1 << 30);
    assert_eq!(
        (bits.count(), bits.next(5), bits.next((1 << 30) - 1)),
        (1 << 30, Some(5), Some((1 << 30) - 1))
    );
    assert_eq!(bits.next(1 << 30), None);
    assert!(bits.pages.values().all(|page| matches!(page, super::Page::Full)));
}

proptest! {
    #[test]
    fn they_are_a_set(
        len in 1..5 * PAGE,
        ranges in prop::collection::vec((0..5 * PAGE, 0..2 * PAGE), 0..8),
    ) {
        let (mut bits, mut set) = (Bits::new(len), BTreeSet::new());
        for (start, count) in ranges {
            let range = start.min(len)..(start + count).min(len);
            bits.set(range.clone());
            set.extend(range);
        }
        let mut found = BTreeSet::new();
        let mut next = bits.next(0);
        while let Some(number) = next {
            prop_assert!(bits.contains(number));
            found.insert(number);
            next = bits.next(number + 1);
        }
        prop_assert_eq!(bits.count(), set.len() as u64);
        prop_assert_eq!(bits.is_empty(), set.is_empty());
        prop_assert_eq!(found, set);
        bits.clear();
        prop_assert!(bits.is_empty() && bits.next(0).is_none());
    }
}
