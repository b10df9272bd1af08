//! What is written past the page cache: how a file is opened for it, and the memory it takes, which begins with a block.
//! It never decides what is worth it.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::{AtFlags, OFlags, StatxFlags, statx};

use crate::BLOCK_BYTES;

const BLOCK: usize = BLOCK_BYTES as usize;

/// The same file, to read and write whole blocks of [`BLOCK_BYTES`] that begin with one in memory too; as `file` is open
/// for. `None` when the file system cannot do it so.
pub(crate) fn reopen(file: &File, read: bool) -> Option<File> {
    // Through the open file: by its path it might be another one by now.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = OFlags::DIRECT.bits() as i32;
    let direct = OpenOptions::new().read(read).write(true).custom_flags(flags).open(path).ok()?;
    let facts = statx(&direct, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
    let fits = |align: u32| align != 0 && BLOCK_BYTES.is_multiple_of(align.into());
    (fits(facts.stx_dio_mem_align) && fits(facts.stx_dio_offset_align)).then_some(direct)
}

/// Bytes that begin with a block in memory.
#[derive(Debug)]
pub(crate) struct Aligned {
    /// Never grows: that would move them.
    memory: Vec<u8>,
    /// Where in `memory` they begin.
    start: usize,
}

impl Aligned {
    /// Room for so many bytes, and at the end of them for the rest of a block.
    pub(crate) fn with_capacity(len: usize) -> Aligned {
        let mut memory = Vec::<u8>::with_capacity(len + 2 * BLOCK);
        // Of a pointer to bytes it is always found, below the alignment.
        let start = memory.as_ptr().align_offset(BLOCK);
        memory.resize(start, 0);
        Aligned { memory, start }
    }

    pub(crate) fn len(&self) -> usize {
        self.memory.len() - self.start
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.memory[self.start..]
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..]
    }

    pub(crate) fn extend(&mut self, bytes: &[u8]) {
        self.check_room(self.len() + bytes.len());
        self.memory.extend_from_slice(bytes);
    }

    /// Cuts them, or adds zeroes.
    pub(crate) fn resize(&mut self, len: usize) {
        self.check_room(len);
        self.memory.resize(self.start + len, 0);
    }

    /// The first of them go.
    pub(crate) fn remove_first(&mut self, count: usize) {
        let left = self.len() - count;
        self.bytes_mut().copy_within(count.., 0);
        self.resize(left);
    }

    fn check_room(&self, len: usize) {
        assert!(self.start + len <= self.memory.capacity(), "more than there was to be");
    }
}
