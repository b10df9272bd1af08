//! The source's keeper: what `xl migrate` takes for its way to the other host.
//!
//! Until READY is given, this process's end makes xl resume the guest; after GO nothing does but a report of failure.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::board::{self, Board, KeeperPaths, Orders, Phase};
use super::handshake::{Due, FAILED, GO, READY, RECEIVER_READY, REPORT};
use super::outgoing::{News, Watch, relay};

struct Xl {
    board: Board,
    watch: Watch,
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
    let watch = Watch::start(&board, News::Last);
    let xl = Xl { board: board.clone(), watch: watch.clone() };
    // Before the daemon hears of us: from then on it asks.
    board::serve(&paths.control(), &board, Arc::new(xl))?;
    let mut out = UnixStream::connect(paths.memory())?;
    board::bound_buffer(&out)?;
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
