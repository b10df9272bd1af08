use mobility::wire::Ipv6Prefix;

use super::*;

fn change(number: u16, floor: u64) -> Change {
    let prefix = Ipv6Prefix::new(Ipv6Addr::new(0x2001, 0xdb8, 0xf, number, 0, 0, 0, 0), 64).unwrap();
    let node = format!("vm-{number}");
    let care_of = Ipv6Addr::new(0x2001, 0xdb8, floor as u16, 0, 0, 0, 0, 1);
    let binding = (!floor.is_multiple_of(3)).then(|| Binding {
        node: node.clone(),
        care_of,
        user_plane: None,
        epoch: floor,
    });
    Change { node, prefix, floor, binding }
}

fn open(dir: &Path) -> (Bindings, Vec<Record>) {
    Bindings::open(dir, |_| true).unwrap()
}

fn records(changes: &[Change]) -> Vec<Record> {
    changes.iter().map(Record::from).collect()
}

#[test]
fn the_last_record_of_each_node_is_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let (mut bindings, found) = open(dir.path());
    assert_eq!(found, []);
    bindings.keep(&[change(1, 1), change(2, 1)]).unwrap();
    bindings.keep(&[change(1, 2)]).unwrap();
    bindings.keep(&[change(2, 3)]).unwrap();
    drop(bindings);
    assert_eq!(open(dir.path()).1, records(&[change(1, 2), change(2, 3)]));
    // A node that nobody knows any more is forgotten.
    let known = |record: &Record| record.node == "vm-2";
    assert_eq!(Bindings::open(dir.path(), known).unwrap().1, records(&[change(2, 3)]));
    assert_eq!(open(dir.path()).1, records(&[change(2, 3)]));
}

#[test]
fn what_a_crash_has_torn_is_not_believed_and_takes_nothing_else_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(NAME);
    let mut bindings = open(dir.path()).0;
    bindings.keep(&[change(1, 1)]).unwrap();
    let whole = bindings.bytes as usize;
    bindings.keep(&[change(2, 1), change(1, 2)]).unwrap();
    let end = bindings.bytes as usize;
    drop(bindings);
    let bytes = std::fs::read(&path).unwrap();
    assert!(bytes.len() as u64 == ROOM_BYTES && bytes[end..].iter().all(|byte| *byte == 0));
    for at in whole..end {
        // Cut off there; and one byte of it never written.
        let mut torn = bytes.clone();
        torn[at..].fill(0);
        std::fs::write(&path, &torn).unwrap();
        let found = open(dir.path()).1;
        assert!(found.contains(&Record::from(&change(1, 1))) || at + 1 == end, "cut at {at}: {found:?}");
        let mut hole = bytes.clone();
        hole[at] = 0;
        std::fs::write(&path, &hole).unwrap();
        let found = open(dir.path()).1;
        assert!(found.iter().any(|record| record.node == "vm-1"), "a hole at {at}: {found:?}");
    }
    for at in [0, 5, DIGITS, DIGITS + 1, DIGITS + 9] {
        assert_eq!(parse(&bytes[..at]), None);
    }
}

#[test]
fn a_file_of_old_records_is_written_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(NAME);
    let mut bindings = open(dir.path()).0;
    for epoch in 1..=80 {
        let all: Vec<_> = (0..200).map(|number| change(number, epoch)).collect();
        bindings.keep(&all).unwrap();
        assert!(std::fs::metadata(&path).unwrap().len() < 2 * OLD_BYTES);
    }
    assert!(bindings.made_with > 0, "it was never written anew");
    drop(bindings);
    let found = open(dir.path()).1;
    assert_eq!(found.len(), 200);
    assert!(found.iter().all(|record| record.floor == 80));
}
