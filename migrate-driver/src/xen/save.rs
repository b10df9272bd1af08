//! The source's keeper of a cold migration: runs `xl save` and relays what it writes.
//!
//! xl leaves the domain paused, whole and under its own name, once all is written. A stream that breaks before that makes
//! it resume the guest.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::thread;

use super::board::{self, Board, KeeperPaths, Orders, Phase};
use super::outgoing::{News, Watch, relay};

struct Xl {
    board: Board,
    watch: Watch,
    /// Where the stream goes, once it does.
    out: Arc<OnceLock<UnixStream>>,
}

impl Orders for Xl {
    /// There is nothing to be said to xl: it ends by itself.
    fn proceed(&self) {
        self.board.leaves(Phase::Sent);
    }

    fn undo(&self) {
        if matches!(self.board.leaves(Phase::Sent), Phase::GivenUp) {
            self.watch.end();
            std::process::exit(1);
        }
        // xl finds nobody who reads on, and takes its domain back; then this process ends as well.
        if let Some(out) = self.out.get() {
            let _ = out.shutdown(Shutdown::Both);
        }
    }
}

pub(super) fn run(paths: &KeeperPaths) -> io::Result<()> {
    let vm = paths.dir.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let board = Board::new();
    let watch = Watch::start(&board, News::First);
    let known: Arc<OnceLock<UnixStream>> = Arc::default();
    let orders = Xl { board: board.clone(), watch: watch.clone(), out: known.clone() };
    // Before the daemon hears of us: from then on it asks.
    board::serve(&paths.control(), &board, Arc::new(orders))?;
    let mut out = UnixStream::connect(paths.memory())?;
    board::bound_buffer(&out)?;
    let _ = known.set(out.try_clone()?);
    let mut xl = Command::new("xl")
        .args(["save", "-p"])
        .arg(vm)
        // Its own standard output, by the name that needs no /dev.
        .arg("/proc/self/fd/1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| io::Error::other(format!("cannot run xl: {error}")))?;
    let stream = xl.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
    let saved = save(&mut xl, stream, &mut out, &board);
    watch.end();
    if saved.is_err() {
        board.enter(Phase::Failed);
        // It resumes the guest, and whoever asks for us is not told before it has.
        eprintln!("longhaul xl-save: xl ended with {}", xl.wait()?);
        return saved;
    }
    // Until it is told that the guest stays here, or ended: the domain is paused, whatever becomes of this process.
    loop {
        thread::park();
    }
}

fn save(xl: &mut Child, mut stream: ChildStdout, out: &mut UnixStream, board: &Board) -> io::Result<()> {
    relay(&mut stream, out, board)?;
    // The daemon takes the end of the stream for the end of the memory.
    out.shutdown(Shutdown::Write)?;
    board.enter(Phase::Sent);
    let status = xl.wait()?;
    if !status.success() {
        return Err(io::Error::other(format!("xl save ended with {status}")));
    }
    board.enter(Phase::GivenUp);
    Ok(())
}
