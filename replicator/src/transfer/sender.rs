//! The sending end: scan, deltas, sync, commit, in that order on one stream, so that what is sent later wins.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use chunkstore::{
    BLOCK_BYTES, ChunkId, Encoded, ImageRoot, Manifest, ManifestExtent, PieceData, ReadImage, Store,
};
use longhaul_proto::wire::{self, Extent, Open, Run, Target, TargetStatus, ToReceiver, ToSender};
use quinn::{Connection, RecvStream};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use super::{Counters, TransferError, pack};
use crate::service::net::lanes::LaneSend;
use crate::service::net::{self, NetError};

/// Plain bytes gathered into one batch: enough that a batch's question and answer weigh little, and so that all of its
/// chunks, the last one included, can travel in one group.
const BATCH_BYTES: u64 = (wire::MAX_GROUP_BYTES - wire::MAX_CHUNK_BYTES) as u64;
const _: () = assert!(chunkstore::MAX_BATCH_EXTENTS <= wire::MAX_BATCH_EXTENTS);
/// Compression jobs at once.
const PACKERS: usize = 2;
/// zstd level of deltas at most: in the switchover the guest stands still while they are made.
const DELTA_LEVEL: i32 = 1;

/// Where a chunk's bytes come from when the other side asks.
enum Supply {
    /// In memory: a running guest may have changed the image since it was hashed.
    Bytes(Bytes),
    /// In our store, of this length.
    Store(Arc<Store>, ChunkId, u32),
}

impl Supply {
    fn len(&self) -> u64 {
        match self {
            Supply::Bytes(bytes) => bytes.len() as u64,
            Supply::Store(_, _, len) => u64::from(*len),
        }
    }
}

struct Batch {
    extents: Vec<Extent>,
    supplies: Vec<Option<Supply>>,
}

/// Places of a batch, and their chunks.
type Group = (Vec<u32>, wire::Packed);

/// An image on its way out.
pub(crate) struct Sender {
    send: Arc<Mutex<LaneSend>>,
    answers: mpsc::Receiver<Result<ToSender, NetError>>,
    /// Reads the answers, and says that we are there.
    _attendant: AbortOnDropHandle<()>,
    counters: Arc<Counters>,
    level: i32,
    window_batches: usize,
    next_batch: u32,
    dry: bool,
}

impl Sender {
    /// Opens the stream and asks whether the other side will take the image. `size` in bytes.
    pub(crate) async fn open(
        connection: &Connection,
        target: Target,
        size: u64,
        settings: (i32, usize),
        counters: Arc<Counters>,
    ) -> Result<(Self, TargetStatus), TransferError> {
        let (send, receive) = connection.open_bi().await.map_err(NetError::from)?;
        let mut send = LaneSend::begin(connection, send).await?;
        let bytes = net::send(&mut send, &Open::Transfer { target, size }).await?;
        Counters::add(&counters.wire, bytes);
        let (sender, answers) = mpsc::channel(64);
        let is_current = send.is_striped();
        let send = Arc::new(Mutex::new(send));
        let alive = send.clone();
        let _attendant = AbortOnDropHandle::new(tokio::spawn(async move {
            tokio::select! {
                () = read_answers(receive, sender, is_current) => {}
                () = stay_alive(&alive), if is_current => {}
            }
        }));
        let (level, window_bytes) = settings;
        let window_batches = (window_bytes as u64 / BATCH_BYTES).max(2) as usize;
        let mut this =
            Sender { send, answers, _attendant, counters, level, window_batches, next_batch: 0, dry: false };
        match this.answer().await? {
            ToSender::Accepted(status) => Ok((this, status)),
            other => Err(unexpected(&other)),
        }
    }

    /// Scans the image and sends what the other side lacks. When it returns everything is sent, not yet applied.
    pub(crate) async fn scan(&mut self, image: Arc<dyn ReadImage>, name: &str) -> Result<(), TransferError> {
        let (sender, batches) = mpsc::channel(2);
        let counters = self.counters.clone();
        let scan = tokio::task::spawn_blocking(move || scan_image(&*image, &counters, &sender));
        let sent = self.send_batches(batches).await;
        let scanned = scan.await.map_err(|_| TransferError::Worker)?;
        // A scan that broke off ends the batches; its own error says more than what follows from it.
        scanned.map_err(|source| TransferError::Image { image: name.to_owned(), source })?;
        sent
    }

    /// Scans the image and asks what the other side lacks, but sends none of it; the counters tell.
    pub(crate) async fn estimate(
        &mut self,
        image: Arc<dyn ReadImage>,
        name: &str,
    ) -> Result<(), TransferError> {
        self.dry = true;
        self.scan(image, name).await
    }

    /// Sends an image that is in our store.
    pub(crate) async fn manifest(
        &mut self,
        store: Arc<Store>,
        manifest: Manifest,
    ) -> Result<(), TransferError> {
        let (sender, batches) = mpsc::channel(2);
        let counters = self.counters.clone();
        let feed = tokio::task::spawn_blocking(move || feed_manifest(&store, &manifest, &counters, &sender));
        let sent = self.send_batches(batches).await;
        feed.await.map_err(|_| TransferError::Worker)?;
        sent
    }

    async fn send_batches(&mut self, mut batches: mpsc::Receiver<Batch>) -> Result<(), TransferError> {
        let mut waiting: HashMap<u32, Vec<Option<Supply>>> = HashMap::new();
        let mut packing: JoinSet<Result<(u32, Vec<Group>), TransferError>> = JoinSet::new();
        let mut more = true;
        while more || !waiting.is_empty() || !packing.is_empty() {
            tokio::select! {
                batch = batches.recv(), if more && waiting.len() < self.window_batches => match batch {
                    Some(batch) => {
                        let number = self.next_batch;
                        self.next_batch += 1;
                        waiting.insert(number, batch.supplies);
                        self.say(&ToReceiver::Extents { batch: number, extents: batch.extents }).await?;
                    }
                    None => more = false,
                },
                answer = self.answers.recv(), if !waiting.is_empty() && packing.len() < PACKERS * 2 => {
                    match self.check(answer)? {
                        ToSender::Want { batch, indices } => {
                            let supplies = waiting.remove(&batch).ok_or_else(|| {
                                TransferError::Protocol(format!("it answered batch {batch}, which does not wait"))
                            })?;
                            let held = bytes_held(&supplies, &indices);
                            Counters::add(&self.counters.dedup, held);
                            if !indices.is_empty() && !self.dry {
                                let level = self.level;
                                packing.spawn_blocking(move || {
                                    pack_wanted(batch, &indices, &supplies, level).map(|groups| (batch, groups))
                                });
                            }
                        }
                        other => return Err(unexpected(&other)),
                    }
                }
                Some(packed) = packing.join_next() => {
                    let (batch, groups) = packed.map_err(|_| TransferError::Worker)??;
                    for (indices, data) in groups {
                        self.count_sent(&data);
                        self.say(&ToReceiver::Chunks { batch, indices, data }).await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Sends blocks as they are in `image`. Ranges within the image, ascending. Returns their bytes.
    pub(crate) async fn delta(
        &mut self,
        image: Arc<dyn ReadImage>,
        ranges: Vec<Range<u64>>,
    ) -> Result<u64, TransferError> {
        let (sender, mut deltas) = mpsc::channel(4);
        let level = self.level.min(DELTA_LEVEL);
        let worker = tokio::task::spawn_blocking(move || make_deltas(&*image, &ranges, level, &sender));
        let mut total = 0;
        while let Some((runs, data)) = deltas.recv().await {
            total += runs.iter().map(|run: &Run| u64::from(run.len)).sum::<u64>();
            self.count_sent(&data);
            self.say(&ToReceiver::Delta { runs, data }).await?;
        }
        let made = worker.await.map_err(|_| TransferError::Worker)?;
        made.map_err(|source| TransferError::Image { image: "the blocks written since".to_owned(), source })?;
        Ok(total)
    }

    /// Asks the other side to say when everything sent so far is applied, without waiting for it.
    pub(crate) async fn mark(&mut self, mark: u32) -> Result<(), TransferError> {
        self.say(&ToReceiver::Sync { mark }).await
    }

    /// Waits until everything sent so far is applied.
    pub(crate) async fn sync(&mut self, mark: u32) -> Result<(), TransferError> {
        self.mark(mark).await?;
        match self.answer().await? {
            ToSender::Synced { mark: found } if found == mark => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Ends the transfer: the other side checks the root, makes the image durable and publishes it. Returns its
    /// generation there.
    pub(crate) async fn commit(
        mut self,
        root: ImageRoot,
        after: u64,
        taken_unix_ms: u64,
    ) -> Result<u64, TransferError> {
        self.say(&ToReceiver::Commit { root: *root.as_bytes(), after, taken_unix_ms }).await?;
        let _ = self.send.lock().await.finish().await;
        match self.answer().await? {
            ToSender::Committed { generation } => Ok(generation),
            other => Err(unexpected(&other)),
        }
    }

    async fn say(&mut self, message: &ToReceiver) -> Result<(), TransferError> {
        let sent = net::send(&mut *self.send.lock().await, message).await;
        match sent {
            Ok(bytes) => {
                Counters::add(&self.counters.wire, bytes);
                Ok(())
            }
            // A receiver that refuses says why, then stops the stream; the reason is worth more than the stop. Answers to
            // what came before may be in front of it.
            Err(NetError::Ended) => loop {
                match self.answers.recv().await {
                    Some(Ok(ToSender::Refused(refusal))) => return Err(refusal.into()),
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(error.into()),
                    None => return Err(NetError::Ended.into()),
                }
            },
            Err(error) => Err(error.into()),
        }
    }

    async fn answer(&mut self) -> Result<ToSender, TransferError> {
        let answer = self.answers.recv().await;
        self.check(answer)
    }

    fn check(&self, answer: Option<Result<ToSender, NetError>>) -> Result<ToSender, TransferError> {
        match answer.unwrap_or(Err(NetError::Ended))? {
            ToSender::Refused(refusal) => Err(refusal.into()),
            ToSender::Want { batch, indices } => {
                Counters::add(&self.counters.wire, 8 + 2 * indices.len() as u64);
                Ok(ToSender::Want { batch, indices })
            }
            answer => Ok(answer),
        }
    }

    fn count_sent(&self, data: &wire::Packed) {
        Counters::add(&self.counters.sent_plain, u64::from(data.plain_len));
        Counters::add(&self.counters.sent_packed, data.bytes.len() as u64);
    }
}

fn unexpected(answer: &ToSender) -> TransferError {
    TransferError::Protocol(format!("it answered {answer:?} out of place"))
}

/// Of a receiver of the protocol before it is not known how long it may be silent.
async fn read_answers(
    mut receive: RecvStream,
    sender: mpsc::Sender<Result<ToSender, NetError>>,
    is_current: bool,
) {
    loop {
        let answer = match is_current {
            true => net::expect(&mut receive).await,
            false => net::receive(&mut receive).await.and_then(|answer| answer.ok_or(NetError::Ended)),
        };
        if matches!(answer, Ok(ToSender::Working)) {
            continue;
        }
        let last = answer.is_err();
        if sender.send(answer).await.is_err() || last {
            return;
        }
    }
}

/// Says now and then that we are there, also while the owner of the transfer waits for something else. A stream that takes
/// nothing is busy, which says as much.
async fn stay_alive(send: &Mutex<LaneSend>) {
    loop {
        tokio::time::sleep(net::KEEP_ALIVE).await;
        if let Ok(mut send) = send.try_lock()
            && net::send(&mut *send, &ToReceiver::Alive).await.is_err()
        {
            return std::future::pending().await; // the answers tell why
        }
    }
}

/// On a blocking thread: reads, cuts and hashes the image, batch by batch. A closed channel ends it quietly.
fn scan_image(
    image: &dyn ReadImage,
    counters: &Counters,
    sender: &mpsc::Sender<Batch>,
) -> std::io::Result<()> {
    let mut batcher = Batcher::new(sender);
    for piece in chunkstore::pieces(image) {
        let piece = piece?;
        Counters::add(&counters.scanned, piece.len);
        if !batcher.make_room(1) {
            return Ok(());
        }
        match piece.data {
            PieceData::Hole => batcher.push(Extent::Hole { len: piece.len }, None),
            PieceData::Chunk { id, bytes } => {
                Counters::add(&counters.data, piece.len);
                let extent = Extent::Chunk { len: piece.len as u32, name: *id.as_bytes() };
                batcher.push(extent, Some(Supply::Bytes(bytes)));
            }
        }
    }
    batcher.flush();
    Ok(())
}

fn feed_manifest(store: &Arc<Store>, manifest: &Manifest, counters: &Counters, sender: &mpsc::Sender<Batch>) {
    let mut batcher = Batcher::new(sender);
    // What lies in the store as one group is asked for together, and leaves it as it is.
    for together in manifest.batches() {
        if !batcher.make_room(together.len()) {
            return;
        }
        for placed in together {
            Counters::add(&counters.scanned, placed.extent.len());
            match placed.extent {
                ManifestExtent::Hole { len } => batcher.push(Extent::Hole { len }, None),
                ManifestExtent::Data { len, id } => {
                    Counters::add(&counters.data, u64::from(len));
                    let supply = Supply::Store(store.clone(), id, len);
                    batcher.push(Extent::Chunk { len, name: *id.as_bytes() }, Some(supply));
                }
            }
        }
    }
    batcher.flush();
}

struct Batcher<'a> {
    sender: &'a mpsc::Sender<Batch>,
    batch: Batch,
    bytes: u64,
}

impl<'a> Batcher<'a> {
    fn new(sender: &'a mpsc::Sender<Batch>) -> Self {
        Batcher { sender, batch: Batch { extents: Vec::new(), supplies: Vec::new() }, bytes: 0 }
    }

    /// Sends the batch off if it is full, or cannot take so many more. False once nobody listens any more.
    fn make_room(&mut self, extents: usize) -> bool {
        let is_full = self.bytes >= BATCH_BYTES;
        if is_full || self.batch.extents.len() + extents > wire::MAX_BATCH_EXTENTS {
            self.flush()
        } else {
            true
        }
    }

    fn push(&mut self, extent: Extent, supply: Option<Supply>) {
        self.bytes += if supply.is_some() { extent.len() } else { 0 };
        self.batch.extents.push(extent);
        self.batch.supplies.push(supply);
    }

    fn flush(&mut self) -> bool {
        self.bytes = 0;
        let batch = std::mem::replace(&mut self.batch, Batch { extents: Vec::new(), supplies: Vec::new() });
        batch.extents.is_empty() || self.sender.blocking_send(batch).is_ok()
    }
}

/// Bytes of a batch's chunks that nobody asked for.
fn bytes_held(supplies: &[Option<Supply>], wanted: &[u32]) -> u64 {
    let all: u64 = supplies.iter().flatten().map(Supply::len).sum();
    let asked =
        wanted.iter().filter_map(|index| supplies.get(*index as usize)?.as_ref()).map(Supply::len).sum();
    all.saturating_sub(asked)
}

/// The wanted chunks of a batch in groups: those in memory in one, those of the store as they lie there, where they do.
fn pack_wanted(
    batch: u32,
    indices: &[u32],
    supplies: &[Option<Supply>],
    level: i32,
) -> Result<Vec<Group>, TransferError> {
    let mut groups = Vec::new();
    let (mut in_memory, mut bytes_in_memory) = (Vec::new(), Vec::new());
    let (mut stored, mut names, mut from) = (Vec::new(), Vec::new(), None);
    for index in indices {
        match supplies.get(*index as usize) {
            Some(Some(Supply::Bytes(bytes))) => {
                in_memory.push(*index);
                bytes_in_memory.extend_from_slice(bytes);
            }
            Some(Some(Supply::Store(store, id, len))) => {
                stored.push(*index);
                names.push((*id, *len));
                from = Some(store);
            }
            _ => {
                return Err(TransferError::Protocol(format!(
                    "it wants place {index} of batch {batch}, no chunk"
                )));
            }
        }
    }
    if !in_memory.is_empty() {
        groups.push((in_memory, pack(Encoded::encode(bytes_in_memory.into(), level))));
    }
    let mut at = 0;
    while let (Some(store), Some(rest)) = (from, names.get(at..).filter(|rest| !rest.is_empty())) {
        let (count, encoded) = store.group(rest, level).map_err(|error| TransferError::Image {
            image: "a base image in the store".to_owned(),
            source: std::io::Error::other(error),
        })?;
        groups.push((stored[at..at + count].to_vec(), pack(encoded)));
        at += count;
    }
    Ok(groups)
}

/// On a blocking thread: cuts the ranges into deltas, with zero blocks told apart.
fn make_deltas(
    image: &dyn ReadImage,
    ranges: &[Range<u64>],
    level: i32,
    sender: &mpsc::Sender<(Vec<Run>, wire::Packed)>,
) -> std::io::Result<()> {
    let mut runs: Vec<Run> = Vec::new();
    let mut data = Vec::with_capacity(wire::MAX_DELTA_BYTES);
    let mut buffer = vec![0; wire::MAX_DELTA_BYTES];
    for range in ranges {
        let mut at = range.start;
        while at < range.end {
            let len = (range.end - at).min((wire::MAX_DELTA_BYTES - data.len()) as u64) as usize;
            image.read_at(at, &mut buffer[..len])?;
            add_runs(at, &buffer[..len], &mut runs, &mut data);
            at += len as u64;
            let most_runs_more = wire::MAX_DELTA_BYTES / BLOCK_BYTES as usize;
            if data.len() == wire::MAX_DELTA_BYTES || runs.len() + most_runs_more > wire::MAX_BATCH_EXTENTS {
                let full = std::mem::take(&mut runs);
                if sender
                    .blocking_send((full, pack(Encoded::encode(Bytes::copy_from_slice(&data), level))))
                    .is_err()
                {
                    return Ok(());
                }
                data.clear();
            }
        }
    }
    if !runs.is_empty() {
        // A closed channel is told to the caller by what closed it.
        let _ = sender.blocking_send((runs, pack(Encoded::encode(Bytes::copy_from_slice(&data), level))));
    }
    Ok(())
}

/// Zero runs longer than this are told in several, so that a run's length fits its field.
const LONGEST_RUN: u32 = 1 << 30;

fn add_runs(offset: u64, bytes: &[u8], runs: &mut Vec<Run>, data: &mut Vec<u8>) {
    for (index, block) in bytes.chunks(BLOCK_BYTES as usize).enumerate() {
        let at = offset + index as u64 * BLOCK_BYTES;
        let zero = chunkstore::is_zero(block);
        if !zero {
            data.extend_from_slice(block);
        }
        match runs.last_mut() {
            Some(run)
                if run.zero == zero && run.len < LONGEST_RUN && run.offset + u64::from(run.len) == at =>
            {
                run.len += block.len() as u32;
            }
            _ => runs.push(Run { offset: at, len: block.len() as u32, zero }),
        }
    }
}

#[cfg(test)]
mod tests;
