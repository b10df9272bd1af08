use super::*;

const LENGTH: u32 = 512;

/// A ring of eight slots into which the instance 7 has written the numbers up to `last`.
fn ring(last: u64) -> Vec<u8> {
    let mut bytes = vec![0; 8 * LENGTH as usize];
    for number in 1..=last {
        put(&mut bytes, 7, number);
    }
    bytes
}

fn put(bytes: &mut [u8], instance: u64, number: u64) {
    let at = ::guest::record::slot_of(number, 8) as usize * LENGTH as usize;
    Record { instance, number, length: LENGTH, group: 1 }.encode(&mut bytes[at..at + LENGTH as usize]);
}

fn check(bytes: &[u8], acked: u64) -> RecordReport {
    check_ring(bytes, bytes.len() as u64, 7, acked).unwrap()
}

#[test]
fn all_there() {
    assert_eq!(check(&ring(5), 5), RecordReport { acked: 5, first: 1, newest: 5, found: 5, bad: 0 });
    // One more was written than was reported.
    assert_eq!(check(&ring(6), 5), RecordReport { acked: 5, first: 1, newest: 6, found: 5, bad: 0 });
}

#[test]
fn only_what_the_ring_still_holds_is_asked_for() {
    let report = check(&ring(20), 20);
    assert_eq!((report.first, report.found, report.bad), (14, 7, 0));
}

#[test]
fn a_missing_a_damaged_and_a_foreign_record_are_bad() {
    assert_eq!(check(&ring(4), 5).bad, 1);
    let mut damaged = ring(5);
    damaged[2 * LENGTH as usize + 100] ^= 1;
    assert_eq!(check(&damaged, 5).bad, 1);
    let mut foreign = ring(5);
    put(&mut foreign, 8, 3);
    assert_eq!((check(&foreign, 5).found, check(&foreign, 5).bad), (4, 1));
}

#[test]
fn an_older_state_of_the_ring_is_noticed() {
    // The image stopped at 12 although 20 was acknowledged: all that must still be there and is not counts.
    let report = check(&ring(12), 20);
    assert_eq!((report.first, report.found, report.bad), (14, 0, 7));
}

#[test]
fn an_empty_ring_lacks_everything() {
    assert_eq!(check(&[0; 4096], 3), RecordReport { acked: 3, first: 1, newest: 0, found: 0, bad: 3 });
}
