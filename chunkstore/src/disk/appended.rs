//! A file that grows at its end, written with direct I/O. The page cache would cost a copy that is not read soon, and 11 %
//! of the time of an ingest.
//!
//! What is below is written in whole blocks. The last bytes are therefore in memory until many blocks of them are full or the file
//! is synced; then the rest of the last block is zeroes, and the block is written again with what comes next. So until the file is
//! ended, or dropped, it may be longer by some zeroes than it is said to be. Nothing is ever written through the page cache beside.
//!
//! Who appends does not wait for the disk, but where it is a whole [`WRITE_BYTES`] behind. A write that failed is therefore told
//! to a later caller, and to every one after it: the file is of no use any more until it is opened anew.

use std::io;
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};

use super::DiskFile;
use crate::BLOCK_BYTES;
use crate::direct::Aligned;
use crate::map::Map;
use crate::sync::lock;

/// Written at a time: the longer, the better for the disk; each file that grows needs the memory, twice.
const WRITE_BYTES: usize = 4 << 20;

/// Room on the disk is asked for so many bytes ahead, so that a full disk is known before anything is taken in that would not
/// fit, and is in few pieces.
const RESERVE_BYTES: u64 = 16 << 20;

/// A file that takes and gives whole blocks.
pub(super) trait Below: DiskFile + 'static {
    /// Sees to it that there is room on the disk for the bytes in `from..to`. Its length stays.
    fn reserve(&self, from: u64, to: u64) -> io::Result<()>;
}

/// A new file.
#[derive(Debug)]
pub(super) struct Appended<File: Below> {
    below: Arc<File>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The end of the file, from a block on.
    tail: Aligned,
    tail_at: u64,
    /// What came before it and is being written.
    flight: Option<JoinHandle<(Aligned, io::Result<()>)>>,
    /// What was written last, to be used again.
    spare: Option<Aligned>,
    /// A write failed.
    failed: bool,
    /// Some of `tail` is not written.
    dirty: bool,
    /// Up to here there is room on the disk.
    reserved: u64,
    /// It does not change any more.
    ended: bool,
}

impl<File: Below> Appended<File> {
    /// `below` is empty.
    pub(super) fn new(below: File) -> Appended<File> {
        let state = State {
            tail: Aligned::with_capacity(WRITE_BYTES),
            tail_at: 0,
            flight: None,
            spare: None,
            failed: false,
            dirty: false,
            reserved: 0,
            ended: false,
        };
        Appended { below: Arc::new(below), state: Mutex::new(state) }
    }

    fn changing(&self, what: &str) -> io::Result<MutexGuard<'_, State>> {
        let state = lock(&self.state);
        if state.ended {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("{what} after the file's end was set"),
            ));
        }
        Ok(state)
    }

    /// Blocks from `at` on, so many bytes of them.
    fn blocks(&self, at: u64, len: usize) -> io::Result<Aligned> {
        let mut blocks = Aligned::with_capacity(len);
        blocks.resize(len);
        self.below.read_at(at, blocks.bytes_mut())?;
        Ok(blocks)
    }

    /// Has the tail, which is full, written by another thread, after the one before.
    fn send_off(&self, state: &mut State) -> io::Result<()> {
        state.land()?;
        let next = state.spare.take().unwrap_or_else(|| Aligned::with_capacity(WRITE_BYTES));
        let (full, at) = (std::mem::replace(&mut state.tail, next), state.tail_at);
        state.tail_at += full.len() as u64;
        state.dirty = false;
        // Until it is known to be there.
        state.failed = true;
        let below = self.below.clone();
        let write = move || {
            let written = below.write_at(at, full.bytes());
            (full, written)
        };
        state.flight = Some(thread::Builder::new().name("pack".to_owned()).spawn(write)?);
        Ok(())
    }

    /// Writes all there is.
    fn write_out(&self, state: &mut State) -> io::Result<()> {
        state.land()?;
        if !state.dirty {
            return Ok(());
        }
        let len = state.tail.len();
        let whole = (len as u64).next_multiple_of(BLOCK_BYTES) as usize;
        state.tail.resize(whole);
        let written = self.below.write_at(state.tail_at, state.tail.bytes());
        state.tail.resize(len);
        written?;
        state.dirty = false;
        let blocks = len as u64 / BLOCK_BYTES * BLOCK_BYTES;
        state.tail.remove_first(blocks as usize);
        state.tail_at += blocks;
        Ok(())
    }

    /// Writes all there is and lets the file end where it is said to.
    fn end_at_tail(&self, state: &mut State) -> io::Result<()> {
        self.write_out(state)?;
        self.below.set_len(state.len())
    }
}

impl State {
    fn len(&self) -> u64 {
        self.tail_at + self.tail.len() as u64
    }

    /// Waits for what is being written.
    fn land(&mut self) -> io::Result<()> {
        if let Some(flight) = self.flight.take() {
            let (mut buffer, written) = flight.join().unwrap_or_else(|panic| resume_unwind(panic));
            written?;
            buffer.resize(0);
            self.spare = Some(buffer);
            self.failed = false;
        }
        if self.failed {
            Err(io::Error::other("an earlier write to it failed; restart to go on with what is on the disk"))
        } else {
            Ok(())
        }
    }

    /// Sees to it that there is room up to `end`, and for more where there is.
    fn reserve(&mut self, end: u64, below: &impl Below) -> io::Result<()> {
        if end <= self.reserved {
            return Ok(());
        }
        let ahead = end.max(self.reserved + RESERVE_BYTES);
        let exactly = end.next_multiple_of(BLOCK_BYTES);
        self.reserved = match below.reserve(self.reserved, ahead) {
            Ok(()) => ahead,
            Err(_) => below.reserve(self.reserved, exactly).map(|()| exactly)?,
        };
        Ok(())
    }
}

impl<File: Below> DiskFile for Appended<File> {
    fn len(&self) -> io::Result<u64> {
        Ok(lock(&self.state).len())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = offset.saturating_add(buf.len() as u64);
        let written = {
            let mut state = lock(&self.state);
            if end > state.len() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if offset < state.tail_at {
                state.land()?;
            }
            let written = end.min(state.tail_at).saturating_sub(offset) as usize;
            if let Some(from) = (offset + written as u64).checked_sub(state.tail_at) {
                let buf = &mut buf[written..];
                buf.copy_from_slice(&state.tail.bytes()[from as usize..][..buf.len()]);
            }
            written
        };
        // What is before the tail does not change.
        if written > 0 {
            let before = (offset % BLOCK_BYTES) as usize;
            let len = ((before + written) as u64).next_multiple_of(BLOCK_BYTES) as usize;
            let blocks = self.blocks(offset - before as u64, len)?;
            buf[..written].copy_from_slice(&blocks.bytes()[before..before + written]);
        }
        Ok(())
    }

    /// Only at the end.
    fn write_at(&self, offset: u64, mut data: &[u8]) -> io::Result<()> {
        let mut state = self.changing("a write")?;
        if offset != state.len() {
            let message = format!("a write at {offset} to a file that grows at {}", state.len());
            return Err(io::Error::new(io::ErrorKind::Unsupported, message));
        }
        state.reserve(offset + data.len() as u64, &*self.below)?;
        while !data.is_empty() {
            let (now, later) = data.split_at(data.len().min(WRITE_BYTES - state.tail.len()));
            state.tail.extend(now);
            state.dirty = true;
            if state.tail.len() == WRITE_BYTES {
                self.send_off(&mut state)?;
            }
            data = later;
        }
        Ok(())
    }

    /// Only cuts.
    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.changing("a cut")?;
        if len > state.len() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "a file that grows by writes only"));
        }
        state.land()?;
        let in_block = len % BLOCK_BYTES;
        if len < state.tail_at {
            // None when it ends with one.
            let block = self.blocks(len - in_block, in_block.next_multiple_of(BLOCK_BYTES) as usize)?;
            state.tail.resize(0);
            state.tail.extend(&block.bytes()[..in_block as usize]);
            state.tail_at = len - in_block;
        } else {
            let left = (len - state.tail_at) as usize;
            state.tail.resize(left);
        }
        // What is behind it goes from the disk too, but not from the last block: that is written in its whole.
        state.dirty = true;
        let whole = len.next_multiple_of(BLOCK_BYTES);
        if self.below.len()? > whole {
            self.below.set_len(whole)?;
            state.reserved = whole;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.write_out(&mut lock(&self.state))?;
        self.below.sync()
    }

    fn end(&self) -> io::Result<()> {
        let mut state = lock(&self.state);
        if !state.ended {
            self.end_at_tail(&mut state)?;
            state.ended = true;
        }
        Ok(())
    }

    fn map(&self) -> io::Result<Map> {
        self.end()?;
        self.below.map()
    }
}

impl<File: Below> Drop for Appended<File> {
    /// What is not synced may be lost, but need not be.
    fn drop(&mut self) {
        let state = &mut *lock(&self.state);
        if !state.ended {
            let _ = self.end_at_tail(state);
        }
    }
}

#[cfg(test)]
mod tests;
