use super::{END_BYTES, Entry, Place, Places};
use crate::MAX_CHUNK_BYTES;

#[test]
fn a_chunk_takes_16_bytes() {
    assert_eq!(size_of::<Entry>(), 16);
    let place = Place::new(0, 1).unwrap();
    // As many as there are, and not what a growing vector had left.
    assert_eq!(Places::new((0..1001).map(|prefix| (prefix, place))).0.len(), 1001);
}

#[test]
fn places_keep_what_fits() {
    let longest = MAX_CHUNK_BYTES as u32;
    let last = END_BYTES - u64::from(longest);
    for (offset, len) in [(0, 1), (0, longest), (12345, 67890), (last, longest), (END_BYTES - 1, 1)] {
        let place = Place::new(offset, len).unwrap();
        assert_eq!((place.offset(), place.len()), (offset, len as usize));
        let places = Places::new([(7, place)].into_iter());
        assert_eq!(places.find(7), Some(place), "{place:?} is not taken for a forgotten one");
    }
    for (offset, len) in [(0, 0), (0, longest + 1), (last + 1, longest), (END_BYTES, 1), (u64::MAX, longest)]
    {
        assert_eq!(Place::new(offset, len), None);
    }
}

#[test]
fn the_first_place_of_a_prefix_is_kept_until_it_is_forgotten() {
    let place = |offset| Place::new(offset, 10).unwrap();
    let places = Places::new([(9, place(50)), (5, place(40)), (9, place(20)), (9, place(30))].into_iter());
    assert_eq!(places.0.len(), 2);
    assert_eq!(places.find(9), Some(place(20)));
    places.forget(9);
    places.forget(8);
    assert_eq!((places.find(9), places.find(8), places.find(5)), (None, None, Some(place(40))));
    assert_eq!(Places::new(std::iter::empty()).find(0), None);
}
