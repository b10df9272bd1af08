use std::fs;
use std::io;

use super::{RawImage, ReadImage, copy_sparse, copy_sparse_while, reflink};
use crate::testing::noise;

const MIB: u64 = 1 << 20;

#[test]
fn created_image_is_one_hole() {
    let dir = tempfile::tempdir().unwrap();
    let image = RawImage::create(dir.path().join("a"), 64 * MIB).unwrap();
    assert_eq!((image.size(), image.allocated_bytes().unwrap()), (64 * MIB, 0));
    assert_eq!(image.next_data(0).unwrap(), None);
    assert_eq!(RawImage::create(image.path(), 1).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
}

#[test]
fn zeroing_gives_room_back_and_reads_as_zero() {
    let dir = tempfile::tempdir().unwrap();
    let image = RawImage::create(dir.path().join("a"), 8 * MIB).unwrap();
    image.write_at(MIB, &noise(1, 4 << 20)).unwrap();
    assert_eq!(image.next_data(0).unwrap(), Some(MIB..5 * MIB));
    let full = image.allocated_bytes().unwrap();
    image.zero(MIB + 100, 3 * MIB).unwrap();
    assert!(image.allocated_bytes().unwrap() <= full - 2 * MIB);
    let mut bytes = vec![1; 5 << 20];
    image.read_at(0, &mut bytes).unwrap();
    let mut expected = vec![0; 5 << 20];
    expected[1 << 20..].copy_from_slice(&noise(1, 4 << 20));
    expected[(1 << 20) + 100..(4 << 20) + 100].fill(0);
    assert!(bytes == expected);
    image.zero(0, 8 * MIB).unwrap();
    image.zero(0, 8 * MIB).unwrap();
    assert_eq!(image.next_data(0).unwrap(), None);
}

#[test]
fn nothing_is_written_outside() {
    let dir = tempfile::tempdir().unwrap();
    let image = RawImage::create(dir.path().join("a"), 1000).unwrap();
    for (offset, len) in [(1000, 1), (999, 2), (u64::MAX, 2), (0, 1001)] {
        assert_eq!(image.write_at(offset, &vec![1; len]).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(image.zero(offset, len as u64).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
    assert_eq!(fs::metadata(image.path()).unwrap().len(), 1000);
}

#[test]
fn an_image_that_shrinks_is_an_error_not_a_hole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    fs::write(&path, noise(1, 1 << 20)).unwrap();
    let image = RawImage::open_read(&path).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(4096).unwrap();
    let error = image.next_data(8192).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    assert!(error.to_string().contains("shrank"), "{error}");
    assert!(image.read_at(0, &mut [0; 8192]).unwrap_err().to_string().contains("shrank"));
    assert!(crate::pieces(&image).any(|piece| piece.is_err()));
}

#[test]
fn only_files_and_devices_are_images() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(RawImage::open_read(dir.path()).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    assert_eq!(RawImage::open_read(dir.path().join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[test]
fn a_copy_is_as_sparse_as_its_original() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("a"), dir.path().join("b"));
    let image = RawImage::create(&from, 256 * MIB + 1234).unwrap();
    for (seed, at) in [(1, 0), (2, 100 * MIB + 512), (3, 256 * MIB)] {
        image.write_at(at, &noise(seed, 1234)).unwrap();
    }
    copy_sparse(&from, &to).unwrap();
    let copy = RawImage::open_read(&to).unwrap();
    assert_eq!(copy.size(), image.size());
    assert!(copy.allocated_bytes().unwrap() < MIB);
    assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap());
    assert_eq!(copy_sparse(&from, &to).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
}

#[test]
fn a_copy_stops_when_it_is_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("a"), dir.path().join("b"));
    let image = RawImage::create(&from, 64 * MIB).unwrap();
    image.write_at(8 * MIB, &noise(1, 5 << 20)).unwrap();
    if reflink(&from, dir.path().join("c")).unwrap() {
        return; // Done in one step here.
    }
    let mut steps = Vec::new();
    let stopped = copy_sparse_while(&from, &to, |copied| {
        steps.push(copied);
        copied < 3 * MIB
    });
    assert_eq!(stopped.unwrap_err().kind(), io::ErrorKind::Interrupted);
    assert_eq!(steps, [MIB, 2 * MIB, 3 * MIB]);
    assert!(!to.exists());
    copy_sparse_while(&from, &to, |copied| copied <= 5 * MIB).unwrap();
    assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap());
}

#[test]
fn a_reflink_never_replaces_and_leaves_nothing_where_it_cannot_be() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("a"), dir.path().join("b"));
    fs::write(&from, noise(1, 100_000)).unwrap();
    fs::write(&to, "mine").unwrap();
    assert_eq!(reflink(&from, &to).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(fs::read(&to).unwrap(), b"mine");
    let new = dir.path().join("c");
    assert_eq!(reflink(&from, &new).unwrap(), new.exists());
    assert!(!new.exists() || fs::read(&new).unwrap() == noise(1, 100_000));
}
