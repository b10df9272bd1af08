//! One ordered stream of bytes over many QUIC streams, its lanes. It knows nothing of what the bytes mean.
//!
//! # Why
//! A QUIC receiver keeps what arrives behind a gap until the gap is filled. quinn-proto keeps it in pieces, one for each
//! frame, and closes the whole connection ("too many gaps in stream buffer") when one stream has more than 1024 of them:
//! `connection/assembler.rs`, `insert`. It counts when there are more than 2048 pieces, or when they hold far more memory than
//! bytes; before it counts it removes overlaps and merges neighbours. A path that loses every second packet of 64 MiB in flight
//! leaves 27,000 gaps. So a stream must not have so much in flight.
//!
//! # The arithmetic
//! Pieces are disjoint and lie within the window of the stream, `WINDOW_BYTES` = 32,768. More than 1024 of them have a mean of
//! less than 32 bytes. The smallest packet of QUIC is 1200 bytes, and a frame that fills one has more than 1,100, so a window
//! that is sent whole is cut into 30 frames, and into 32 where other streams share the packets at its two ends. A frame ends
//! only where its data ends or where its packet is full. So each further piece takes one packet that ends within this window and
//! is sent while the first byte of the window is still missing. Without [`quinn::TransportConfig::send_fairness`] a lane's lost
//! bytes are sent together, neighbours merged: 30 packets each time at most. So 1025 pieces need the same byte to be lost more
//! than 30 times in a row, and all other losses to be such that no two neighbours are lost together. Packets that arrive late,
//! twice or in another order cut nothing.
//!
//! The same holds for a stream that is no lane, since every stream has this window; a peer of the protocol before, whose streams
//! share packets in turn, has to lose as much.
//!
//! # How
//! After the frame [`Open::Striped`] the bytes are dealt in cells of [`wire::CELL_BYTES`] over `lanes` streams in turn, the first
//! one being the stream that said so. A lane is opened when the first cell is dealt to it, so that a short transfer opens
//! few. What is in flight is bounded by the windows of the lanes together; neither side keeps a queue of its own.
//!
//! All lanes are one stream: [`LaneSend`] ends all or resets all, and one lane that breaks breaks [`LaneRecv`]. A peer of the
//! protocol before gets, and sends, one plain stream.

mod set;

use bytes::Bytes;
use longhaul_proto::wire::{self, Open};
use quinn::{Connection, RecvStream, SendStream, VarInt};

use super::{FrameSink, FrameSource, NetError};
use crate::random::random;
pub(super) use set::MAX_LANES_OUT;
use set::{Claim, Share, Token};
pub(crate) use set::{UNCLAIMED, of};

/// The receive window of every stream, in bytes. See the arithmetic above.
pub(super) const WINDOW_BYTES: u32 = 32 << 10;
/// A lane takes a whole cell at once when all before it has been read: the frame that opens a lane has 24 bytes, and credit is
/// given in steps of an eighth of the window.
const _: () = assert!(24 + wire::CELL_BYTES + WINDOW_BYTES / 8 <= WINDOW_BYTES);
/// Below everything that is said about the bytes: hand-offs, answers, status.
const PRIORITY: i32 = -1;
/// The code of a lane that is reset.
const BROKEN_OFF: VarInt = VarInt::from_u32(1);

/// Whose turn it is, and how many bytes it may still have.
#[derive(Debug)]
struct Cursor {
    lanes: u16,
    lane: u16,
    left: u32,
}

impl Cursor {
    fn new(lanes: u16) -> Self {
        Cursor { lanes, lane: 0, left: wire::CELL_BYTES }
    }

    /// So many bytes of `wanted` go on the lane whose turn it is.
    fn room(&self, wanted: usize) -> usize {
        wanted.min(self.left as usize)
    }

    /// Takes note of `bytes`, at most [`Self::room`].
    fn advance(&mut self, bytes: usize) {
        self.left -= bytes as u32;
        if self.left == 0 {
            self.lane = (self.lane + 1) % self.lanes;
            self.left = wire::CELL_BYTES;
        }
    }
}

/// The sending end. Dropped before [`Self::finish`], it resets every lane: the other side does not take what it has for
/// the whole.
#[derive(Debug)]
pub(crate) struct LaneSend {
    connection: Connection,
    token: Token,
    /// The main stream first. They are opened in turn.
    streams: Vec<SendStream>,
    cursor: Cursor,
    striped: bool,
    ended: bool,
    _share: Share,
}

impl LaneSend {
    /// Makes `main`, which has carried nothing yet, the first of as many lanes as this connection has to give. Its peer may be
    /// one that knows no lanes.
    pub(crate) async fn begin(connection: &Connection, mut main: SendStream) -> Result<Self, NetError> {
        let _ = main.set_priority(PRIORITY);
        let striped = super::is_current(connection);
        let share = of(connection).share(if striped { wire::MAX_LANES } else { 1 });
        let (token, lanes) = (random(), share.lanes());
        if striped {
            super::send(&mut main, &Open::Striped { token, lanes }).await?;
        }
        Ok(LaneSend {
            connection: connection.clone(),
            token,
            streams: vec![main],
            cursor: Cursor::new(lanes),
            striped,
            ended: false,
            _share: share,
        })
    }

    /// Whether the other side speaks the protocol of this version.
    pub(crate) fn is_striped(&self) -> bool {
        self.striped
    }

    /// Sends bytes.
    pub(crate) async fn write_chunk(&mut self, mut bytes: Bytes) -> Result<(), NetError> {
        if self.ended {
            return Err(NetError::Ended);
        }
        while !bytes.is_empty() {
            let part = bytes.split_to(self.cursor.room(bytes.len()));
            let length = part.len();
            self.lane().await?.write_chunk(part).await?;
            self.cursor.advance(length);
        }
        Ok(())
    }

    /// Ends the stream.
    pub(crate) async fn finish(&mut self) -> Result<(), NetError> {
        // The end of the lane whose turn it is ends the stream, so there must be one.
        self.lane().await?;
        for stream in &mut self.streams {
            let _ = stream.finish();
        }
        self.ended = true;
        Ok(())
    }

    /// Waits until the other side has everything, or wants no more of it.
    pub(crate) async fn stopped(&self) {
        for stream in &self.streams {
            let _ = stream.stopped().await;
        }
    }

    /// The lane whose turn it is, opened if it has not been.
    async fn lane(&mut self) -> Result<&mut SendStream, NetError> {
        let lane = usize::from(self.cursor.lane);
        if lane == self.streams.len() {
            let mut stream = self.connection.open_uni().await?;
            let _ = stream.set_priority(PRIORITY);
            super::send(&mut stream, &Open::Lane { token: self.token, index: self.cursor.lane }).await?;
            self.streams.push(stream);
        }
        self.streams.get_mut(lane).ok_or(NetError::Ended)
    }
}

impl Drop for LaneSend {
    fn drop(&mut self) {
        if !self.ended {
            for stream in &mut self.streams {
                let _ = stream.reset(BROKEN_OFF);
            }
        }
    }
}

impl FrameSink for LaneSend {
    async fn put(&mut self, bytes: Bytes) -> Result<(), NetError> {
        self.write_chunk(bytes).await
    }
}

/// The receiving end.
#[derive(Debug)]
pub(crate) struct LaneRecv {
    connection: Connection,
    /// The main stream first; a place is empty until its lane is there.
    streams: Vec<Option<RecvStream>>,
    cursor: Cursor,
    /// Where the lanes come from.
    claim: Option<Claim>,
}

impl LaneRecv {
    /// One plain stream, as each is until it says otherwise.
    pub(crate) fn plain(connection: &Connection, main: RecvStream) -> Self {
        let (connection, streams) = (connection.clone(), vec![Some(main)]);
        LaneRecv { connection, streams, cursor: Cursor::new(1), claim: None }
    }

    /// Receives what the stream is for, and takes its lanes together if it has any.
    pub(crate) async fn opening(&mut self) -> Result<Open, NetError> {
        match super::expect(self).await? {
            Open::Striped { token, lanes } => {
                self.stripe(token, lanes)?;
                super::expect(self).await
            }
            open => Ok(open),
        }
    }

    /// An answer that is striped, from a peer that knows lanes.
    pub(crate) async fn answer(connection: &Connection, main: RecvStream) -> Result<Self, NetError> {
        let mut this = Self::plain(connection, main);
        if super::is_current(connection) {
            match super::expect(&mut this).await? {
                Open::Striped { token, lanes } => this.stripe(token, lanes)?,
                other => return Err(NetError::Lanes(format!("it answered with {other:?}"))),
            }
        }
        Ok(this)
    }

    fn stripe(&mut self, token: Token, lanes: u16) -> Result<(), NetError> {
        if self.claim.is_some() || lanes == 0 || lanes > wire::MAX_LANES {
            return Err(NetError::Lanes(format!("a set of {lanes} lanes")));
        }
        self.claim = Some(of(&self.connection).claim(token)?);
        self.streams.resize_with(usize::from(lanes), || None);
        self.cursor = Cursor::new(lanes);
        Ok(())
    }

    /// Whether the other side speaks the protocol of this version.
    pub(crate) fn is_striped(&self) -> bool {
        self.claim.is_some()
    }

    /// Receives at least one byte, or `None` at the end. Nothing is lost when the future is dropped.
    pub(crate) async fn read(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, NetError> {
        let room = self.cursor.room(buffer.len());
        let read = self.lane().await?.read(&mut buffer[..room]).await?;
        self.cursor.advance(read.unwrap_or(0));
        Ok(read)
    }

    /// Receives at most `most` bytes, or `None` at the end. Nothing is lost when the future is dropped.
    pub(crate) async fn read_chunk(&mut self, most: usize) -> Result<Option<Bytes>, NetError> {
        let room = self.cursor.room(most);
        let chunk = self.lane().await?.read_chunk(room, true).await?;
        self.cursor.advance(chunk.as_ref().map_or(0, |chunk| chunk.bytes.len()));
        Ok(chunk.map(|chunk| chunk.bytes))
    }

    /// Wants no more of it.
    pub(crate) fn stop(&mut self) {
        self.claim = None;
        for stream in self.streams.iter_mut().flatten() {
            let _ = stream.stop(VarInt::from_u32(0));
        }
    }

    /// The lane whose turn it is, once it is there.
    async fn lane(&mut self) -> Result<&mut RecvStream, NetError> {
        let turn = usize::from(self.cursor.lane);
        while self.streams.get(turn).is_none_or(Option::is_none) {
            let claim = self.claim.as_mut().ok_or(NetError::Ended)?;
            let main = self.streams.first_mut().and_then(Option::as_mut).ok_or(NetError::Ended)?;
            let (index, stream) = tokio::select! {
                arrived = claim.next() => arrived?,
                broken = broken(main) => return Err(broken),
            };
            let free = self.streams.get_mut(usize::from(index)).filter(|place| place.is_none());
            *free.ok_or_else(|| {
                NetError::Lanes(format!("lane {index} is there already or none of its set"))
            })? = Some(stream);
        }
        self.streams[turn].as_mut().ok_or(NetError::Ended)
    }
}

/// Why the set ends before its next lane is there.
async fn broken(main: &mut RecvStream) -> NetError {
    match main.received_reset().await {
        Ok(Some(_)) => NetError::Ended,
        // It has ended as it should: the lane is on its way.
        Ok(None) => std::future::pending().await,
        Err(_) => NetError::Lost("it ended while a lane was awaited".to_owned()),
    }
}

impl FrameSource for LaneRecv {
    async fn some(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, NetError> {
        self.read(buffer).await
    }
}

#[cfg(test)]
mod tests;
