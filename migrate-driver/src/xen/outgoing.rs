//! What the two keepers of a source have in common: the stream on its way to the daemon, and the moment in which the guest
//! stopped.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use super::board::Board;
use super::stream::Follower;

/// Read at once.
const RELAY_BYTES: usize = 256 << 10;
/// zstd's quickest: the guest waits for the last of it.
const LEVEL: i32 = 1;

/// Passes the stream on to its last byte, as one zstd frame: most of a guest's memory is zeroes or text.
pub(super) fn relay(input: &mut impl Read, out: &mut impl Write, board: &Board) -> io::Result<()> {
    let mut follower = Follower::new();
    let mut out = zstd::Encoder::new(out, LEVEL)?;
    let mut buffer = vec![0; RELAY_BYTES];
    while !follower.is_at_end() {
        let length = input.read(&mut buffer)?;
        if length == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "xl ended its stream early"));
        }
        let taken = follower.follow(&buffer[..length]).map_err(io::Error::other)?;
        if taken < length {
            return Err(io::Error::other("xl sends more than its stream"));
        }
        out.write_all(&buffer[..length])?;
        board.count(length as u64);
    }
    out.finish().map(drop)
}

/// xenstore's news of domains that have stopped. One of them is of ours: the last before the end of a stream that is
/// sent while the guest runs, the first of one that is sent after it was stopped. Without them the guest counts as
/// stopped at the end of the stream, which is later.
#[derive(Clone, Default)]
pub(super) struct Watch(Arc<Mutex<Option<Child>>>);

/// Which of the news is ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    First,
    Last,
}

impl Watch {
    pub(super) fn start(board: &Board, which: News) -> Watch {
        let watch = Watch::default();
        let mut command = Command::new("xenstore-watch");
        command.arg("@releaseDomain").stdin(Stdio::null()).stdout(Stdio::piped());
        match command.spawn() {
            Ok(mut child) => {
                if let Some(news) = child.stdout.take() {
                    let board = board.clone();
                    // The first line only says that it watches.
                    thread::spawn(move || {
                        for _ in BufReader::new(news).lines().map_while(Result::ok).skip(1) {
                            if which == News::Last || board.answer().stopped_us.is_none() {
                                board.stopped(Instant::now());
                            }
                        }
                    });
                }
                *watch.lock() = Some(child);
            }
            Err(error) => eprintln!("longhaul: cannot run xenstore-watch: {error}"),
        }
        watch
    }

    pub(super) fn end(&self) {
        if let Some(mut child) = self.lock().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
