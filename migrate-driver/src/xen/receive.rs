//! The destination's keeper: runs `xl migrate-receive`, feeds it the stream, and keeps the permission that it waits for.
//!
//! When this process ends, its xl destroys what has come: the copy never runs without GO.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use super::board::{self, Board, KeeperPaths, Orders, Phase};
use super::configuration::Rules;
use super::handshake::{Due, GO, READY, RECEIVER_READY, REPORT, RUNNING};
use super::stream::{self, Follower, XL_HEADER_BYTES};

const RELAY_BYTES: usize = 256 << 10;
/// The sender's level needs 512 KiB; nobody makes us hold more than 8 MiB.
const MAX_WINDOW_LOG: u32 = 23;

/// xl's input; gone once xl is to end.
type Input = Arc<Mutex<Option<ChildStdin>>>;

struct Xl {
    board: Board,
    input: Input,
}

fn lock(input: &Input) -> std::sync::MutexGuard<'_, Option<ChildStdin>> {
    input.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Orders for Xl {
    fn proceed(&self) {
        if self.board.phase() != Phase::Loaded {
            return;
        }
        let said = lock(&self.input).as_mut().map(|input| input.write_all(GO).and_then(|()| input.flush()));
        if matches!(said, Some(Ok(()))) {
            self.board.leaves(Phase::Loaded);
        }
    }

    fn undo(&self) {
        // xl destroys its copy when nobody can tell it any more that it may run.
        lock(&self.input).take();
    }
}

pub(super) fn run(paths: &KeeperPaths) -> io::Result<()> {
    let rules: Rules = serde_json::from_slice(&fs::read(paths.rules())?)?;
    let _ = fs::remove_file(paths.memory());
    let listener = UnixListener::bind(paths.memory())?;
    let mut xl: Child = Command::new("xl")
        .arg("migrate-receive")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| io::Error::other(format!("cannot run xl: {error}")))?;
    let board = Board::new();
    let input: Input = Arc::new(Mutex::new(xl.stdin.take()));
    board::serve(&paths.control(), &board, Arc::new(Xl { board: board.clone(), input: input.clone() }))?;
    if let Some(output) = xl.stdout.take() {
        let (paths, board, input) = (paths.clone(), board.clone(), input.clone());
        thread::spawn(move || {
            if let Err(error) = listen(output, &paths, &board) {
                eprintln!("longhaul xl-receive: {error}");
                board.enter(Phase::Failed);
                lock(&input).take();
            }
        });
    }
    {
        let (board, input) = (board.clone(), input.clone());
        thread::spawn(move || {
            let fed = listener.accept().and_then(|(from, _)| feed(from, &input, &rules, &board));
            if let Err(error) = fed {
                eprintln!("longhaul xl-receive: the memory stream: {error}");
                lock(&input).take();
            }
        });
    }
    let status = xl.wait()?;
    if board.phase() == Phase::Running {
        return Ok(());
    }
    board.enter(Phase::Failed);
    Err(io::Error::other(format!("xl migrate-receive ended with {status}")))
}

/// Passes the stream to xl, with the configuration adapted to this host.
fn feed(from: UnixStream, input: &Input, rules: &Rules, board: &Board) -> io::Result<()> {
    let mut from = zstd::Decoder::new(from)?;
    from.window_log_max(MAX_WINDOW_LOG)?;
    let mut follower = Follower::new();
    let mut pass = |bytes: &[u8]| -> io::Result<bool> {
        let taken = follower.follow(bytes).map_err(io::Error::other)?;
        if taken < bytes.len() {
            return Err(io::Error::other("it goes on after its end"));
        }
        board.count(bytes.len() as u64);
        // Not under the lock while xl is slow to read: whoever ends this takes the input away.
        let mut xl = lock(input).as_ref().map(dup).transpose()?.ok_or(io::ErrorKind::BrokenPipe)?;
        xl.write_all(bytes)?;
        Ok(follower.is_at_end())
    };
    let mut header = vec![0; XL_HEADER_BYTES];
    from.read_exact(&mut header)?;
    let mut optional = vec![0; stream::optional_bytes(&header).map_err(io::Error::other)? as usize];
    from.read_exact(&mut optional)?;
    let adapted = stream::with_configuration(&header, &optional, |text| rules.adapt(text));
    pass(&adapted.map_err(io::Error::other)?)?;
    let mut buffer = vec![0; RELAY_BYTES];
    let mut whole = false;
    // To the very end, although xl has it all: the frame has a few bytes more, and the daemon wants to be rid of them.
    loop {
        match from.read(&mut buffer) {
            // Whatever becomes of those bytes: xl has it all, and must not lose it for them.
            Ok(0) | Err(_) if whole => return Ok(()),
            Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it broke off")),
            Ok(length) => whole = pass(&buffer[..length])?,
            Err(error) => return Err(error),
        }
    }
}

fn dup(input: &ChildStdin) -> io::Result<fs::File> {
    use std::os::fd::AsFd;
    Ok(fs::File::from(input.as_fd().try_clone_to_owned()?))
}

/// What xl says, to its end.
fn listen(mut output: ChildStdout, paths: &KeeperPaths, board: &Board) -> io::Result<()> {
    let mut words = [Due::new(RECEIVER_READY), Due::new(READY), Due::new(REPORT)].into_iter();
    let mut due = words.next();
    let mut buffer = [0; 512];
    loop {
        let length = output.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            let Some(word) = &mut due else {
                // The byte behind the report; what may follow a failure is for a source's xl, not for us.
                if board.phase() == Phase::Loaded {
                    board.enter(if rest[0] == RUNNING { Phase::Running } else { Phase::Failed });
                }
                break;
            };
            let taken = word.take(rest).map_err(io::Error::other)?;
            rest = &rest[taken..];
            if word.is_complete() {
                due = words.next();
                if words.len() == 0 && due.is_some() {
                    fs::write(paths.loaded_mark(), b"")?;
                    board.enter(Phase::Loaded);
                }
            }
        }
    }
}
