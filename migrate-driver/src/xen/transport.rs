//! The source's keeper: what `xl migrate` takes for its way to the other host.
//!
//! Until READY is given, this process's end makes xl resume the guest; after GO nothing does but a report of failure.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use super::handshake::{Due, FAILED, GO, READY, RECEIVER_READY, REPORT};
use super::keeper::{self, Board, KeeperPaths, Orders, Phase};
use super::stream::Follower;

/// Read at once.
const RELAY_BYTES: usize = 256 << 10;
/// zstd's quickest: the guest waits for the last of it.
const LEVEL: i32 = 1;

struct Xl {
    board: Board,
    watch: Watch,
}

/// xenstore's news of domains that have stopped: the last before the stream's end is of ours. Without it the guest
/// counts as stopped at the end of the stream, which is later.
#[derive(Clone, Default)]
struct Watch(Arc<Mutex<Option<Child>>>);

impl Watch {
    fn start(board: &Board) -> Watch {
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
                            board.stopped(Instant::now());
                        }
                    });
                }
                *watch.lock() = Some(child);
            }
            Err(error) => eprintln!("longhaul xl-transport: cannot run xenstore-watch: {error}"),
        }
        watch
    }

    fn end(&self) {
        if let Some(mut child) = self.lock().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes to xl.
fn say(words: &[&[u8]]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    words.iter().try_for_each(|word| out.write_all(word))?;
    out.flush()
}

impl Orders for Xl {
    fn proceed(&self) {
        if self.board.phase() != Phase::Sent {
            return;
        }
        if say(&[READY]).is_ok() {
            self.board.leaves(Phase::Sent);
        }
    }

    fn undo(&self) {
        if self.board.phase() == Phase::GivenUp {
            // xl then says no more, takes its domain back and ends; with it ends our input, and so this process.
            if let Err(error) = say(&[REPORT, &[FAILED], GO]) {
                eprintln!("longhaul xl-transport: cannot tell xl to resume the guest: {error}");
            }
            return;
        }
        self.watch.end();
        std::process::exit(1);
    }
}

pub(super) fn run(paths: &KeeperPaths) -> io::Result<()> {
    let board = Board::new();
    let watch = Watch::start(&board);
    let xl = Xl { board: board.clone(), watch: watch.clone() };
    // Before the daemon hears of us: from then on it asks.
    keeper::serve(&paths.control(), &board, Arc::new(xl))?;
    let mut out = UnixStream::connect(paths.memory())?;
    say(&[RECEIVER_READY])?;
    let mut input = io::stdin().lock();
    let relayed = relay(&mut input, &mut out, &board);
    watch.end();
    relayed?;
    // The daemon takes the end of the stream for the end of the memory.
    out.shutdown(std::net::Shutdown::Write)?;
    board.enter(Phase::Sent);
    let mut go = Due::new(GO);
    let mut buffer = [0; 256];
    loop {
        let length = input.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        let taken = go.take(&buffer[..length]).map_err(io::Error::other)?;
        if taken < length {
            return Err(io::Error::other("xl goes on talking after its last word"));
        }
        if go.is_complete() {
            board.enter(Phase::GivenUp);
        }
    }
}

/// Passes the stream on to its last byte, as one zstd frame: most of a guest's memory is zeroes or text.
fn relay(input: &mut impl Read, out: &mut impl Write, board: &Board) -> io::Result<()> {
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
