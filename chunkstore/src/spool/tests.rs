use std::sync::Arc;

use super::{IN_MEMORY_BYTES, Spool};
use crate::disk::{Disk, RealDisk};
use crate::testing::{noise, scratch};

#[test]
fn few_bytes_and_many_come_back_and_leave_nothing() {
    let dir = scratch();
    for len in [1, IN_MEMORY_BYTES, IN_MEMORY_BYTES + 1, 5 * IN_MEMORY_BYTES + 7] {
        let bytes = noise(len as u64, len);
        let mut spool = Spool::new(Arc::new(RealDisk), dir.path());
        bytes.chunks(100).for_each(|part| spool.write(part).unwrap());
        spool.write_head(&[9]).unwrap();
        let expected = [&[9], &bytes[1..]].concat();
        assert_eq!(spool.hash().unwrap(), blake3::hash(&expected));
        spool.write(b"end").unwrap();
        let map = spool.finish().unwrap();
        assert!(map.bytes() == [&expected[..], b"end"].concat());
        map.let_go(0..usize::MAX);
        assert!(map.bytes().ends_with(b"end"));
        assert!(RealDisk.list(dir.path()).unwrap().is_empty());
    }
}
