use super::*;

#[test]
fn what_was_used_last_stays_and_the_rest_is_bounded() {
    let decoded = Decoded::default();
    let group = |byte: u8| Bytes::from(vec![byte; MAX_BYTES / 4]);
    (0..4).for_each(|number| decoded.add((1, number), group(number as u8)));
    assert_eq!(decoded.get((1, 0)).unwrap()[0], 0);
    decoded.add((2, 0), group(9));
    let there = [(1, 0), (1, 1), (1, 2), (1, 3), (2, 0)].map(|place| decoded.get(place).is_some());
    assert_eq!(there, [true, false, true, true, true]);
    decoded.add((2, 0), group(8));
    assert_eq!(decoded.get((2, 0)).unwrap()[0], 8);
    decoded.forget((2, 0));
    assert!(decoded.get((2, 0)).is_none() && decoded.get((1, 0)).is_some());
    decoded.add((3, 0), vec![0; MAX_BYTES + 1].into());
    assert!(lock(&decoded.0).is_empty());
}
