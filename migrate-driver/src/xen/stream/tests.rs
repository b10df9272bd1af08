use proptest::prelude::*;

use super::sample::stream;
use super::*;

proptest! {
    #[test]
    fn the_end_is_found_however_the_bytes_are_cut(pages in 0usize..5000, cuts in prop::collection::vec(1usize..700, 1..40)) {
        let mut bytes = stream("{\"c_info\":{}}", pages);
        let whole = bytes.len();
        bytes.extend(b"domain is yours");
        let (mut follower, mut at, mut cuts) = (Follower::new(), 0, cuts.iter().cycle());
        while !follower.is_at_end() {
            let end = (at + cuts.next().unwrap()).min(bytes.len());
            prop_assert!(at < end);
            at += follower.follow(&bytes[at..end]).unwrap();
        }
        prop_assert_eq!(at, whole);
        prop_assert_eq!(follower.follow(b"more").unwrap(), 0);
    }

    #[test]
    fn nothing_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..4000), cut in 0usize..200) {
        let mut all = stream("{}", 64);
        all.truncate(cut);
        all.extend(bytes);
        let _ = Follower::new().follow(&all);
        let _ = with_configuration(&all, all.get(48..).unwrap_or_default(), |text| Ok(text.to_owned()));
    }
}

#[test]
fn a_configuration_is_replaced_and_nothing_else() {
    let bytes = stream("{\"name\":\"a\"}", 100);
    let optional = optional_bytes(&bytes[..XL_HEADER_BYTES]).unwrap() as usize;
    let (head, tail) = bytes.split_at(XL_HEADER_BYTES + optional);
    let changed = with_configuration(head, &head[XL_HEADER_BYTES..], |text| {
        assert_eq!(text, "{\"name\":\"a\"}");
        Ok("{\"name\":\"another\"}".to_owned())
    });
    assert_eq!([changed.unwrap(), tail.to_vec()].concat(), stream("{\"name\":\"another\"}", 100));
}

#[test]
fn what_is_no_migration_is_refused_at_once() {
    let good = stream("{}", 8);
    let damaged = |at: usize, bytes: &[u8]| {
        let mut stream = good.clone();
        stream[at..at + bytes.len()].copy_from_slice(bytes);
        Follower::new().follow(&stream).unwrap_err()
    };
    assert_eq!(damaged(0, b"Y"), StreamError::Header("xl header"));
    assert_eq!(damaged(36, &[1]), StreamError::Header("xl header"));
    assert!(matches!(damaged(44, &[255; 4]), StreamError::Length { what: "configuration", .. }));
    let libxl = XL_HEADER_BYTES + 4 + 3;
    assert_eq!(damaged(libxl, b"l"), StreamError::Header("libxl header"));
    assert_eq!(damaged(libxl + 16, &[4]), StreamError::Checkpoints);
    assert_eq!(damaged(libxl + 24, &[0]), StreamError::Header("libxc header"));
    assert!(matches!(damaged(libxl + 24 + 44, &[255; 4]), StreamError::Length { what: "record", .. }));
}
