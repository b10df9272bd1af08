//! What the keepers of both ends share: their phase and their count, the socket on which the daemon asks for them, and
//! the files of a move. It knows nothing of xl.

use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// The longest line that a keeper or its daemon says.
const MAX_LINE_BYTES: u64 = 4096;

/// How far a keeper is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// The stream passes, or is awaited.
    Streaming,
    /// Source: its last byte has passed; xl, its domain suspended, waits for READY.
    Sent,
    /// Source: xl has said GO and given its domain up; it waits for the report. Cold: it has ended, its domain is paused.
    GivenUp,
    /// Destination: xl has said READY; its domain is paused and waits for GO.
    Loaded,
    /// Destination: xl has reported that its domain runs.
    Running,
    /// It came to nothing; the reason is in the log.
    Failed,
}

/// What the daemon asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    /// How far are you?
    Status,
    /// The same, once the stream has passed.
    Wait,
    /// Go on to the next phase: READY at the source, GO at the destination. Answered when xl has followed.
    Proceed,
    /// End it: at the source xl resumes the guest (one that it has saved stays paused), at the destination it destroys the
    /// copy. Answered before that.
    Undo,
}

/// What a keeper answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// How far it is.
    pub(crate) phase: Phase,
    /// Bytes of the stream that have passed.
    pub(crate) bytes: u64,
    /// Source: how long ago the guest was stopped, once it is.
    pub(crate) stopped_us: Option<u64>,
}

/// What the threads of a keeper share.
#[derive(Debug, Clone)]
pub(super) struct Board(Arc<(Mutex<State>, Condvar)>);

#[derive(Debug)]
struct State {
    phase: Phase,
    bytes: u64,
    stopped: Option<Instant>,
}

impl Board {
    pub(super) fn new() -> Board {
        let state = State { phase: Phase::Streaming, bytes: 0, stopped: None };
        Board(Arc::new((Mutex::new(state), Condvar::new())))
    }

    pub(super) fn count(&self, bytes: u64) {
        self.lock().bytes += bytes;
    }

    /// The guest stands still from now on, as far as is known.
    pub(super) fn stopped(&self, now: Instant) {
        let mut state = self.lock();
        if state.phase == Phase::Streaming {
            state.stopped = Some(now);
        }
    }

    pub(super) fn enter(&self, phase: Phase) {
        let mut state = self.lock();
        if phase == Phase::Sent && state.stopped.is_none() {
            state.stopped = Some(Instant::now());
        }
        state.phase = phase;
        self.0.1.notify_all();
    }

    pub(super) fn phase(&self) -> Phase {
        self.lock().phase
    }

    /// Waits until it is in another phase than `phase`.
    pub(super) fn leaves(&self, phase: Phase) -> Phase {
        let waited = self.0.1.wait_while(self.lock(), |state| state.phase == phase);
        waited.unwrap_or_else(PoisonError::into_inner).phase
    }

    pub(super) fn answer(&self) -> Answer {
        let state = self.lock();
        let stopped_us = state.stopped.map(|stopped| stopped.elapsed().as_micros() as u64);
        Answer { phase: state.phase, bytes: state.bytes, stopped_us }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a keeper does when it is told to go on, or to end it.
pub(super) trait Orders: Send + Sync + 'static {
    /// READY or GO; returns when xl has followed or failed.
    fn proceed(&self);
    /// After its answer has been given.
    fn undo(&self);
}

/// Serves the daemon on `socket`, on threads of its own.
pub(super) fn serve(socket: &Path, board: &Board, orders: Arc<impl Orders>) -> io::Result<()> {
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket)?;
    let board = board.clone();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (board, orders) = (board.clone(), orders.clone());
            thread::spawn(move || {
                if let Err(error) = answer_all(&stream, &board, &*orders) {
                    eprintln!("longhaul: a request of the daemon: {error}");
                }
            });
        }
    });
    Ok(())
}

fn answer_all(stream: &UnixStream, board: &Board, orders: &impl Orders) -> io::Result<()> {
    let mut lines = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if io::Read::take(&mut lines, MAX_LINE_BYTES).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let request: Request = serde_json::from_str(&line)?;
        match request {
            Request::Status | Request::Undo => {}
            Request::Wait => drop(board.leaves(Phase::Streaming)),
            Request::Proceed => orders.proceed(),
        }
        let mut answer = serde_json::to_vec(&board.answer())?;
        answer.push(b'\n');
        (&mut &*stream).write_all(&answer)?;
        if request == Request::Undo {
            orders.undo();
        }
    }
}

/// Where the files of one domain's move are: `RUN_DIR/NAME/`. Names only.
#[derive(Debug, Clone)]
pub(crate) struct KeeperPaths {
    pub(crate) dir: PathBuf,
}

impl KeeperPaths {
    /// The keeper's socket for the daemon.
    pub(crate) fn control(&self) -> PathBuf {
        self.dir.join("xl.sock")
    }

    /// The stream between daemon and keeper.
    pub(crate) fn memory(&self) -> PathBuf {
        self.dir.join("mem.sock")
    }

    /// What xl and the keeper say.
    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("xl.log")
    }

    /// Exists from before a domain comes in until it is resumed: this host must not run it on its own.
    pub(crate) fn incoming_mark(&self) -> PathBuf {
        self.dir.join("incoming")
    }

    /// Exists once the incoming domain is whole.
    pub(crate) fn loaded_mark(&self) -> PathBuf {
        self.dir.join("loaded")
    }

    /// How the incoming domain's configuration is adapted to this host.
    pub(crate) fn rules(&self) -> PathBuf {
        self.dir.join("rules.json")
    }

    /// The configuration of a domain that is started here, for xl.
    pub(crate) fn configuration(&self) -> PathBuf {
        self.dir.join("xl.cfg")
    }
}

/// What a socket between daemon and keeper may hold of a stream. What is in it when the guest is stopped, the guest waits
/// for.
const STREAM_BUFFER_BYTES: usize = 32 << 10;

/// Bounds what waits in a stream's socket, at the end that writes.
pub(super) fn bound_buffer(writer: impl AsFd) -> io::Result<()> {
    Ok(rustix::net::sockopt::set_socket_send_buffer_size(writer, STREAM_BUFFER_BYTES)?)
}
