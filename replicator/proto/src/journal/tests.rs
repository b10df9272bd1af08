//! Journals that were cut off, changed, or are none.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::ids::Epoch;
use crate::wire::tests::record;

fn file(records: &[Record]) -> (Vec<u8>, Vec<usize>) {
    let mut bytes = HEADER.to_vec();
    let mut ends = vec![bytes.len()];
    for record in records {
        bytes.extend(encode(record).unwrap());
        ends.push(bytes.len());
    }
    (bytes, ends)
}

/// A source's whole life; all of it within one sector.
fn life() -> Vec<Record> {
    vec![
        Record::Started { vm: "web".into(), peer: "b".into(), epoch: Epoch(1) },
        Record::Released { epoch: Epoch(2) },
        Record::Retired,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_tail_torn_at_any_byte_is_cut(records in vec(record(), 1..8)) {
        let (bytes, ends) = file(&records);
        prop_assert_eq!(decode(&bytes).unwrap(), (records.clone(), bytes.len()));
        for length in 0..bytes.len() {
            let whole = ends.iter().rposition(|&end| end <= length);
            let (kept, good) = decode(&bytes[..length]).unwrap();
            prop_assert_eq!(good, whole.map_or(0, |index| ends[index]));
            prop_assert_eq!(&kept[..], &records[..whole.unwrap_or(0)]);
        }
    }

    /// A file system may make the file longer before it writes what stands there.
    #[test]
    fn a_tail_of_zeros_is_cut(records in vec(record(), 0..5), zeros in 1..9000usize) {
        let (mut bytes, ends) = file(&records);
        bytes.resize(bytes.len() + zeros, 0);
        prop_assert_eq!(decode(&bytes).unwrap(), (records, ends[ends.len() - 1]));
    }

    /// A record longer than a sector may lose any of its sectors.
    #[test]
    fn a_long_record_may_lose_sectors(lost in vec(any::<bool>(), 20)) {
        prop_assume!(lost[1..18].iter().any(|&lost| lost));
        let plan = vec![0x5a; 19 * SECTOR_BYTES];
        let last = Record::Accepted { vm: "web".into(), peer: "a".into(), epoch: Epoch(1), plan };
        let (mut bytes, ends) = file(&[Record::Ready, last]);
        for (sector, _) in lost.into_iter().enumerate().filter(|(_, lost)| *lost) {
            let end = ((sector + 1) * SECTOR_BYTES).min(bytes.len());
            let begin = (sector * SECTOR_BYTES).clamp(ends[1].min(end), end);
            bytes[begin..end].fill(0);
        }
        prop_assert_eq!(decode(&bytes).unwrap(), (vec![Record::Ready], ends[1]));
    }

    #[test]
    fn a_changed_byte_never_makes_a_record(
        records in vec(record(), 1..6),
        at in any::<prop::sample::Index>(),
        change in 1..=255u8,
    ) {
        let (mut bytes, _) = file(&records);
        let at = at.index(bytes.len());
        bytes[at] ^= change;
        if let Ok((kept, good)) = decode(&bytes) {
            prop_assert!(records.starts_with(&kept), "{:?} of {:?}", kept, records);
            prop_assert!(good <= at);
        }
    }

    #[test]
    fn random_bytes(bytes in vec(any::<u8>(), 0..300)) {
        let _ = decode(&bytes);
        let _ = decode(&[&HEADER[..], &bytes[..]].concat());
    }
}

/// A source that forgets that it released would run the guest a second time.
#[test]
fn no_flipped_bit_hides_a_release() {
    let records = life();
    for last in 1..=records.len() {
        let (bytes, _) = file(&records[..last]);
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&flipped).is_err(), "bit {bit} of {last} records");
        }
    }
}

#[test]
fn damage_is_told_with_its_place() {
    let (mut bytes, ends) = file(&life());
    bytes[ends[1] + 12] ^= 1;
    assert_eq!(decode(&bytes), Err(JournalError::Damaged(ends[1])));
}

#[test]
fn a_whole_record_that_says_nothing_is_damage() {
    let (mut bytes, _) = file(&life());
    let payload = [200, 1, 2, 3];
    bytes.extend((payload.len() as u32).to_le_bytes());
    bytes.extend(checksum(&payload));
    let good = bytes.len() - PREFIX_BYTES;
    bytes.extend(payload);
    assert!(decode(&bytes[..good]).is_ok());
    assert_eq!(decode(&bytes), Err(JournalError::Damaged(good)));
}

#[test]
fn another_version_is_refused() {
    let (mut bytes, _) = file(&life());
    bytes[6] = 2;
    assert_eq!(decode(&bytes), Err(JournalError::Header));
    assert_eq!(decode(b"something else"), Err(JournalError::Header));
    assert_eq!(decode(&[]), Ok((Vec::new(), 0)));
    assert_eq!(decode(&HEADER), Ok((Vec::new(), 8)));
    assert_eq!(decode(&[0; 40]), Ok((Vec::new(), 0)), "made longer, never written");
}

#[test]
fn an_over_long_record_is_not_written() {
    let record = Record::RolledBack { reason: "x".repeat(MAX_RECORD_BYTES) };
    assert!(matches!(encode(&record), Err(JournalError::TooLong(_))));
    let (mut bytes, good) = (HEADER.to_vec(), HEADER.len());
    bytes.extend(u32::MAX.to_le_bytes());
    bytes.extend([7; 100]);
    assert_eq!(decode(&bytes), Ok((Vec::new(), good)));
}
