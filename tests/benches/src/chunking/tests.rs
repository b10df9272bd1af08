use super::*;

#[test]
fn what_two_images_share_is_counted_once() {
    let chunk = |byte: u8| ChunkId::of(&[byte]);
    let mut sizes = HashMap::new();
    for (byte, plain, compressed) in [(1, 100, [60, 50]), (2, 200, [150, 140]), (3, 300, [300, 290])] {
        sizes.insert(chunk(byte), Sizes { plain, compressed });
    }
    // The second repeats what it shares, and repeats what is new.
    let first = [chunk(1), chunk(2)];
    let second = [chunk(1), chunk(1), chunk(3), chunk(3)];
    let found = Found::of(&first, &second, &sizes);
    let expected =
        Found { unique: 600, dedup: 1100.0 / 600.0, new: 300, compressed: [510, 480], manifest: 4 * 36 };
    assert_eq!(found, expected);
    assert_eq!(found.figures("case").len(), 6);
    assert_eq!(found.row(scheme::ALL[0], &Samples::from(2.0)).len(), titles().len());
}

#[test]
fn what_does_not_shrink_keeps_its_length() {
    let mut compressors = LEVELS.map(|level| Compressor::new(level).unwrap());
    assert_eq!(Sizes::of(b"abc", &mut compressors).compressed, [3, 3]);
    assert!(Sizes::of(&[7; 4096], &mut compressors).compressed[0] < 100);
}
