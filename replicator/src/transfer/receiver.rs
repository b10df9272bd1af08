//! The receiving end: judges every message before it touches anything, asks for what its sink lacks, verifies what
//! comes, and applies everything in the order it was sent.

use std::collections::HashMap;

use bytes::Bytes;
use chunkstore::{Chunk, ChunkId, Group, MAX_CHUNK_BYTES, MAX_GROUP_BYTES};
use longhaul_proto::wire::{
    self, Extent, Packed, Refusal, RefusalKind, Run, TargetStatus, ToReceiver, ToSender,
};
use quinn::SendStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::sink::Sink;
use super::{TransferError, id, refuse, unpack};
use crate::lease::Lease;
use crate::service::net::lanes::LaneRecv;
use crate::service::net::{self, NetError};

/// Messages read ahead of the worker; a message holds a few MiB at most.
const READ_AHEAD: usize = 32;

/// Chunks that are asked for and have not come; the largest window of a sender holds fewer. Some 50 MiB.
const MAX_ASKED: usize = 1 << 19;
/// Places at which one chunk that is on its way may be wanted.
const MAX_PLACES: usize = 1 << 20;

/// What the wire bounds is what the store takes.
const _: () = assert!(wire::MAX_CHUNK_BYTES == MAX_CHUNK_BYTES && wire::MAX_GROUP_BYTES == MAX_GROUP_BYTES);

/// Receives one image into `sink`, until the sender ends it. `size` in bytes, already checked against
/// [`wire::MAX_IMAGE_BYTES`]. The sink is used under `lease`, and no longer when this returns.
pub(crate) async fn receive(
    mut send: SendStream,
    mut recv: LaneRecv,
    status: TargetStatus,
    size: u64,
    sink: Box<dyn Sink>,
    lease: &Lease,
) -> Result<(), TransferError> {
    net::send(&mut send, &ToSender::Accepted(status)).await?;
    let (messages, work) = mpsc::channel(READ_AHEAD);
    let (answers, mut outgoing) = mpsc::channel(READ_AHEAD);
    // Stops the worker between two messages when this future is dropped, or when the way back is gone: what it has not
    // begun to apply by then it must not apply.
    let stop = CancellationToken::new();
    let _stop_when_dropped = stop.clone().drop_guard();
    let stopped = stop.clone();
    let worker = lease.run_blocking(move || work_off(Receiver::new(size, sink), work, &answers, &stopped));
    let is_current = recv.is_striped();
    let reader = async {
        let messages = messages;
        while let Some(message) = next_message(&mut recv).await? {
            if message != ToReceiver::Alive && messages.send(message).await.is_err() {
                break; // the worker has refused
            }
        }
        Ok::<_, NetError>(())
    };
    let writer = async {
        loop {
            // While the worker works, and while there is nothing to do, the sender is told that we are there.
            let answer = tokio::time::timeout(net::KEEP_ALIVE, outgoing.recv()).await;
            let answer = match answer {
                Ok(Some(answer)) => answer,
                Ok(None) => break,
                Err(_) if is_current => ToSender::Working,
                Err(_) => continue,
            };
            net::send(&mut send, &answer).await?;
        }
        let _ = send.finish();
        Ok::<_, NetError>(())
    };
    // The writer ends with the worker, and the reader must not outlive it: a refused sender may go on for long.
    let link = {
        tokio::pin!(reader);
        tokio::pin!(writer);
        let mut link = None;
        loop {
            tokio::select! {
                read = &mut reader, if link.is_none() => link = Some(read),
                written = &mut writer => break match written {
                    Ok(()) => link,
                    Err(error) => {
                        stop.cancel();
                        Some(Err(error))
                    }
                }
            }
        }
    };
    let outcome = worker.await.map_err(|_| TransferError::Worker)?;
    recv.stop();
    match (outcome, link) {
        // What was to come has come: how the stream ended does not matter.
        (Ok(()), _) => Ok(()),
        // A link that broke is why the worker was left without an end.
        (Err(_), Some(Err(error))) => Err(error.into()),
        (Err(refusal), _) => Err(refusal.into()),
    }
}

/// Tells a sender that it will not be.
pub(crate) async fn refuse_transfer(mut send: SendStream, mut recv: LaneRecv, refusal: Refusal) {
    let _ = net::send(&mut send, &ToSender::Refused(refusal)).await;
    let _ = send.finish();
    recv.stop();
}

/// The next message. A sender of the protocol before may be silent for long.
async fn next_message(recv: &mut LaneRecv) -> Result<Option<ToReceiver>, NetError> {
    if recv.is_striped() { net::receive_soon(recv).await } else { net::receive(recv).await }
}

/// On a blocking thread: the messages one by one. A refusal is sent and returned.
fn work_off(
    mut receiver: Receiver,
    mut work: mpsc::Receiver<ToReceiver>,
    answers: &mpsc::Sender<ToSender>,
    stop: &CancellationToken,
) -> Result<(), Refusal> {
    while let Some(message) = work.blocking_recv() {
        if stop.is_cancelled() {
            break;
        }
        match receiver.handle(message) {
            Ok(None) => {}
            Ok(Some(answer)) => {
                if answers.blocking_send(answer).is_err() {
                    break; // the link is gone
                }
            }
            Err(refusal) => {
                let _ = answers.blocking_send(ToSender::Refused(refusal.clone()));
                return Err(refusal);
            }
        }
    }
    receiver.ended()
}

/// A chunk that was asked for: its length, and where it is to stand.
struct Pending {
    len: u32,
    offsets: Vec<u64>,
}

struct Receiver {
    size: u64,
    sink: Box<dyn Sink>,
    next_batch: u32,
    /// Up to where the extents reach.
    covered: u64,
    /// The asked places: the chunk expected there.
    asked: HashMap<(u32, u32), ChunkId>,
    pending: HashMap<ChunkId, Pending>,
    /// Where pending chunks are wanted beside the first place of each.
    places: usize,
    finished: bool,
}

impl Receiver {
    fn new(size: u64, sink: Box<dyn Sink>) -> Self {
        Receiver {
            size,
            sink,
            next_batch: 0,
            covered: 0,
            asked: HashMap::new(),
            pending: HashMap::new(),
            places: 0,
            finished: false,
        }
    }

    fn handle(&mut self, message: ToReceiver) -> Result<Option<ToSender>, Refusal> {
        if self.finished {
            return Err(protocol("something follows the end of the image".to_owned()));
        }
        match message {
            ToReceiver::Extents { .. } if self.asked.len() > MAX_ASKED => {
                Err(protocol(format!("more than {MAX_ASKED} chunks are asked for and have not come")))
            }
            ToReceiver::Extents { batch, extents } => self.extents(batch, &extents).map(Some),
            ToReceiver::Chunks { batch, indices, data } => self.chunks(batch, &indices, data).map(|()| None),
            ToReceiver::Delta { runs, data } => self.delta(&runs, data).map(|()| None),
            ToReceiver::Sync { mark } => {
                self.nothing_pending()?;
                self.finished = mark == wire::FINAL_MARK;
                self.sink.sync(mark)?;
                Ok(Some(ToSender::Synced { mark }))
            }
            ToReceiver::Commit { root, after, taken_unix_ms } => {
                self.nothing_pending()?;
                self.finished = true;
                let generation = self.sink.commit(root, after, taken_unix_ms, self.covered == self.size)?;
                Ok(Some(ToSender::Committed { generation }))
            }
            ToReceiver::Alive => Ok(None),
        }
    }

    /// The stream has ended. Only after its last message may it.
    fn ended(self) -> Result<(), Refusal> {
        if self.finished { Ok(()) } else { Err(refuse(RefusalKind::Failed, "the sender broke off")) }
    }

    fn extents(&mut self, batch: u32, extents: &[Extent]) -> Result<ToSender, Refusal> {
        if batch != self.next_batch || extents.is_empty() || extents.len() > wire::MAX_BATCH_EXTENTS {
            return Err(protocol(format!(
                "batch {batch} of {} extents, expected {}",
                extents.len(),
                self.next_batch
            )));
        }
        self.next_batch += 1;
        let mut indices = Vec::new();
        for (index, extent) in (0u32..).zip(extents) {
            let (offset, len) = (self.covered, extent.len());
            if len == 0 || len > self.size - offset {
                return Err(protocol(format!("an extent of {len} bytes at {offset} leaves the image")));
            }
            self.covered += len;
            match *extent {
                Extent::Hole { len } => self.sink.hole(offset, len)?,
                Extent::Chunk { len, .. } if len as usize > MAX_CHUNK_BYTES => {
                    return Err(protocol(format!("a chunk of {len} bytes")));
                }
                Extent::Chunk { len, name } => {
                    if self.lacks(offset, len, id(name))? {
                        self.asked.insert((batch, index), id(name));
                        indices.push(index);
                    }
                }
            }
        }
        Ok(ToSender::Want { batch, indices })
    }

    /// Whether the chunk must be asked for. A chunk that is under way already is only noted.
    fn lacks(&mut self, offset: u64, len: u32, name: ChunkId) -> Result<bool, Refusal> {
        if let Some(pending) = self.pending.get_mut(&name) {
            if pending.len != len {
                return Err(protocol(format!("chunk {name} has two lengths")));
            }
            if self.places == MAX_PLACES {
                return Err(protocol(format!(
                    "chunks on their way are wanted at more than {MAX_PLACES} places"
                )));
            }
            self.places += 1;
            pending.offsets.push(offset);
            self.sink.expect(offset, len, name)?;
            return Ok(false);
        }
        if self.sink.place(offset, len, name)? {
            return Ok(false);
        }
        self.sink.expect(offset, len, name)?;
        self.pending.insert(name, Pending { len, offsets: vec![offset] });
        Ok(true)
    }

    fn chunks(&mut self, batch: u32, indices: &[u32], data: Packed) -> Result<(), Refusal> {
        if indices.is_empty() || indices.len() > wire::MAX_BATCH_EXTENTS {
            return Err(protocol(format!("a group of {} chunks", indices.len())));
        }
        let lens: Vec<u32> = indices
            .iter()
            .map(|index| {
                let name = self.asked.get(&(batch, *index)).and_then(|name| self.pending.get(name));
                let not_asked = || protocol(format!("chunk {index} of batch {batch} was not asked for"));
                name.map(|pending| pending.len).ok_or_else(not_asked)
            })
            .collect::<Result<_, _>>()?;
        let group = Group::decode(unpack(data)?, &lens)
            .map_err(|error| protocol(format!("chunks of batch {batch}: {error}")))?;
        let mut offsets = Vec::with_capacity(indices.len());
        for (index, chunk) in indices.iter().zip(group.chunks()) {
            offsets.push(self.expected(batch, *index, chunk)?);
        }
        self.sink.chunks(&group, &offsets)
    }

    /// Strikes a chunk off what is asked for, if it is what was asked for there; gives where it is to stand.
    fn expected(&mut self, batch: u32, index: u32, chunk: &Chunk) -> Result<Vec<u64>, Refusal> {
        let name = self
            .asked
            .remove(&(batch, index))
            .ok_or_else(|| protocol(format!("chunk {index} of batch {batch} was not asked for")))?;
        match self.pending.remove(&name) {
            Some(pending) if chunk.id() == name => {
                self.places -= pending.offsets.len() - 1;
                Ok(pending.offsets)
            }
            _ => Err(protocol(format!("chunk {name} arrived with other content"))),
        }
    }

    fn delta(&mut self, runs: &[Run], data: Packed) -> Result<(), Refusal> {
        self.nothing_pending()?;
        if runs.is_empty() || runs.len() > wire::MAX_BATCH_EXTENTS {
            return Err(protocol(format!("a delta of {} runs", runs.len())));
        }
        let plain: Bytes = unpack(data)?
            .decode(wire::MAX_DELTA_BYTES)
            .map_err(|error| protocol(format!("a delta: {error}")))?;
        let mut rest = &plain[..];
        for run in runs {
            let len = u64::from(run.len);
            if len == 0 || run.offset > self.size || len > self.size - run.offset {
                return Err(protocol(format!("a run of {len} bytes at {} leaves the image", run.offset)));
            }
            if run.zero {
                self.sink.hole(run.offset, len)?;
                continue;
            }
            let Some((bytes, after)) = rest.split_at_checked(run.len as usize) else {
                return Err(protocol("a delta has fewer bytes than its runs".to_owned()));
            };
            self.sink.write(run.offset, bytes)?;
            rest = after;
        }
        if rest.is_empty() {
            Ok(())
        } else {
            Err(protocol("a delta has more bytes than its runs".to_owned()))
        }
    }

    fn nothing_pending(&self) -> Result<(), Refusal> {
        if self.pending.is_empty() && (self.covered == 0 || self.covered == self.size) {
            return Ok(());
        }
        Err(protocol("chunks or extents are missing before this message".to_owned()))
    }
}

fn protocol(reason: String) -> Refusal {
    refuse(RefusalKind::Protocol, reason)
}

#[cfg(test)]
mod tests;
