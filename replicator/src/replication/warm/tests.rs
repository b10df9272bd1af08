//! The disk at the moment of a pass, and what is remembered between two.

use std::path::Path;

use chunkstore::{LEAF_BYTES, RawImage};

use super::*;

const LEAF: usize = LEAF_BYTES as usize;

/// An image of four leaves, the second one a hole, and an empty overlay for it. Gives the image to be written to as well.
fn moment(dir: &Path) -> (Moment, RawImage) {
    let guest = RawImage::create(dir.join("disk.raw"), 4 * LEAF_BYTES).unwrap();
    for leaf in [0, 2, 3] {
        guest.write_at(leaf * LEAF_BYTES, &[leaf as u8 + 1; LEAF]).unwrap();
    }
    let overlay = Arc::new(Overlay::new(4 * LEAF_BYTES, dir).unwrap());
    let image = Cut::new(RawImage::open_read(guest.path()).unwrap(), 4 * LEAF_BYTES);
    (Moment { image: Arc::new(Leased::new(image, &Lease::new())), overlay }, guest)
}

fn read(moment: &Moment, offset: u64) -> [u8; 1] {
    let mut byte = [0];
    moment.read_at(offset, &mut byte).unwrap();
    byte
}

#[test]
fn what_the_guest_overwrites_is_seen_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (moment, guest) = moment(dir.path());
    // As QEMU does it: the old data first, then the guest's.
    moment.overlay.write(0, &[1; LEAF]).unwrap();
    guest.write_at(0, &[99; LEAF]).unwrap();
    assert_eq!(read(&moment, 0), [1]);
    assert_eq!(read(&moment, 2 * LEAF_BYTES), [3], "elsewhere the image itself is read");
    assert_eq!(moment.size(), 4 * LEAF_BYTES);
}

#[test]
fn holes_are_skipped_but_not_where_there_was_data() {
    let dir = tempfile::tempdir().unwrap();
    let (moment, guest) = moment(dir.path());
    let found = moment.next_data(LEAF_BYTES).unwrap().unwrap();
    assert_eq!(found.start, 2 * LEAF_BYTES, "the second leaf is a hole");
    // The guest discards the third leaf: its old data goes into the overlay before the hole is punched.
    moment.overlay.write(2 * LEAF_BYTES, &[3; LEAF]).unwrap();
    guest.zero(2 * LEAF_BYTES, LEAF_BYTES).unwrap();
    assert_eq!(moment.next_data(LEAF_BYTES).unwrap(), Some(2 * LEAF_BYTES..3 * LEAF_BYTES));
    assert_eq!(read(&moment, 2 * LEAF_BYTES), [3]);
    let inside = 2 * LEAF_BYTES + 4096;
    assert_eq!(moment.next_data(inside).unwrap(), Some(inside..3 * LEAF_BYTES));
}

#[test]
fn the_end_of_the_disk_is_no_data() {
    let dir = tempfile::tempdir().unwrap();
    let (moment, guest) = moment(dir.path());
    guest.zero(3 * LEAF_BYTES, LEAF_BYTES).unwrap();
    assert_eq!(moment.next_data(3 * LEAF_BYTES).unwrap(), None);
    assert_eq!(moment.next_data(4 * LEAF_BYTES).unwrap(), None);
}

#[test]
fn a_range_grows_to_whole_leaves_within_the_disk() {
    let size = 3 * LEAF_BYTES + 4096;
    assert_eq!(leaves(&(1..2), size), 0..LEAF_BYTES);
    assert_eq!(leaves(&(LEAF_BYTES..2 * LEAF_BYTES), size), LEAF_BYTES..2 * LEAF_BYTES);
    assert_eq!(leaves(&(LEAF_BYTES - 1..LEAF_BYTES + 1), size), 0..2 * LEAF_BYTES);
    assert_eq!(leaves(&(size - 1..size), size), 3 * LEAF_BYTES..size);
}

#[test]
fn a_pass_takes_what_is_remembered_so_that_a_failed_one_leaves_nothing_to_trust() {
    let states = WarmStates::default();
    let key = |peer: &str| ("web".to_owned(), "root".to_owned(), peer.to_owned());
    let tree = ImageTree::new(LEAF_BYTES);
    states.keep(key("b"), Warm { generation: 4, root: tree.root(), tree });
    assert!(states.take(&key("c")).is_none(), "each peer has its own");
    assert_eq!(states.take(&key("b")).map(|warm| warm.generation), Some(4));
    assert!(states.take(&key("b")).is_none());
}

#[test]
fn what_is_remembered_goes_with_its_vm_and_its_peer() {
    let states = WarmStates::default();
    let key = |vm: &str, peer: &str| (vm.to_owned(), "root".to_owned(), peer.to_owned());
    for (vm, peer) in [("web", "b"), ("web", "c"), ("db", "b"), ("db", "c")] {
        let tree = ImageTree::new(LEAF_BYTES);
        states.keep(key(vm, peer), Warm { generation: 4, root: tree.root(), tree });
    }
    states.forget_vm("web");
    states.forget_peer("b");
    let kept: Vec<_> = states.states.lock().unwrap().keys().cloned().collect();
    assert_eq!(kept, [key("db", "c")]);
}

#[test]
fn an_overlay_that_lost_something_fails_the_pass_with_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let overlay = Overlay::new(LEAF_BYTES, dir.path()).unwrap();
    check(&overlay, "root").unwrap();
    overlay.fail("no space left");
    let message = check(&overlay, "root").unwrap_err().to_string();
    for part in ["'root'", "no space left", "scratch directory"] {
        assert!(message.contains(part), "no {part} in: {message}");
    }
}
