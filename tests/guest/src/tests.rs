use crate::record::{first_kept, slot_of};
use crate::workload::WorkloadError;
use crate::{Record, RecordError, Workload};

fn written() -> Vec<u8> {
    let mut slot = vec![0; 4096];
    Record { instance: 0xfeed, number: 42, length: 4096, group: 8 }.encode(&mut slot);
    slot
}

#[test]
fn a_record_is_recognised_again() {
    let slot = written();
    assert_eq!(Record::decode(&slot), Ok(Record { instance: 0xfeed, number: 42, length: 4096, group: 8 }));
    assert_eq!(Record::claimed_length(&slot), Some(4096));
}

#[test]
fn every_damaged_byte_is_noticed() {
    let good = written();
    for at in (0..good.len()).step_by(7) {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        assert!(Record::decode(&bad).is_err(), "byte {at}");
    }
    assert_eq!(Record::decode(&good[..4095]), Err(RecordError::Length));
    assert_eq!(Record::decode(&good[..10]), Err(RecordError::Length));
    assert_eq!(Record::decode(&[0; 4096]), Err(RecordError::Magic));
    assert_eq!(Record::claimed_length(&[0; 64]), None);
}

#[test]
fn the_ring_keeps_what_the_writer_cannot_have_overwritten() {
    assert_eq!((slot_of(1, 4), slot_of(4, 4), slot_of(5, 4)), (0, 3, 0));
    assert_eq!(first_kept(3, 100, 1), 1);
    // Ten slots, 100 is in: 91..=100 were; 101 may be half written over 91.
    assert_eq!(first_kept(100, 10, 1), 92);
    assert_eq!(first_kept(100, 10, 4), 95);
}

#[test]
fn parameters_travel_on_the_command_line() {
    let w = Workload { port: 9000, rate: 10, group: 4, ring_mib: 8, stream: 77, ..Workload::default() };
    let cmdline = format!("console=ttyS0 quiet {} panic=1", w.to_cmdline());
    assert_eq!(Workload::from_cmdline(&cmdline), Ok(w));
    assert_eq!(Workload::from_cmdline("quiet"), Ok(Workload::default()));
}

#[test]
fn impossible_parameters_are_refused_by_name() {
    let error = |s: &str| Workload::from_cmdline(s).unwrap_err();
    assert_eq!(error("longhaul.port=70000"), WorkloadError::Value("port".into(), "70000".into()));
    assert_eq!(error("longhaul.prot=7"), WorkloadError::Unknown("prot".into()));
    for bad in [
        "longhaul.record=100",
        "longhaul.group=0",
        "longhaul.ring_mib=0",
        "longhaul.record=24576 longhaul.ring_mib=1",
    ] {
        assert!(matches!(error(bad), WorkloadError::Impossible(_)), "{bad}");
    }
}
