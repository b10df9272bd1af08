//! A domain on its way, as the daemon sees it: starting xl and its keeper, asking and telling the keeper, and all ways
//! back. Never lets a guest run but in [`Move::unpause`] and [`Move::take_back`].

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::Command;
use tokio::time::{sleep, timeout};

use super::board::{self, Answer, KeeperPaths, Phase, Request};
use super::configuration::Rules;
use super::xl;
use crate::definition::VmName;
use crate::hypervisor::{DriverError, GuestStatus, Mode};
use crate::process::{Process, io_error};

/// xl and the keeper are up within a moment, or never.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long an xl that was told to take its domain back may take.
const UNDO_TIMEOUT: Duration = Duration::from_secs(60);
/// A keeper answers at once unless it waits for xl.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);
const LOG_TAIL_BYTES: usize = 2000;

/// A domain's move, at one end.
#[derive(Debug, Clone)]
pub(super) struct Move {
    pub(super) vm: VmName,
    pub(super) paths: KeeperPaths,
    pub(super) program: PathBuf,
}

impl Move {
    /// Starts `xl migrate` with our keeper as its transport, or the keeper with its `xl save`, and takes the keeper's
    /// connection.
    pub(super) async fn send_memory(&self, mode: Mode) -> Result<UnixStream, DriverError> {
        let path = self.paths.memory();
        self.remove(&[path.clone(), self.paths.control()])?;
        let listener = UnixListener::bind(&path).map_err(io_error(&self.vm, "listen on", &path))?;
        let command = match mode {
            Mode::Live => {
                let transport =
                    format!("exec {} xl-transport {}", quoted(&self.program), quoted(&self.mark()));
                let mut command = Command::new("xl");
                command.args(["migrate", "-s", "", self.vm.as_str(), &transport]);
                command
            }
            Mode::Cold => {
                let mut command = Command::new(&self.program);
                command.arg("xl-save").arg(self.mark());
                command
            }
        };
        let mut child = self.spawn(command).await?;
        let accepted = tokio::select! {
            accepted = timeout(START_TIMEOUT, listener.accept()) => accepted,
            _ = child.wait() => return Err(self.failed("over before it began")),
        };
        // Ends with the keeper, which outlives the daemon where it must.
        tokio::spawn(async move { child.wait().await });
        self.remove(std::slice::from_ref(&path))?;
        match accepted {
            Ok(Ok((stream, _))) => Ok(stream),
            Ok(Err(error)) => Err(io_error(&self.vm, "accept xl's transport on", &path)(error)),
            Err(_) => Err(self.too_long("the start of xl's migration", START_TIMEOUT)),
        }
    }

    /// Starts the keeper with its `xl migrate-receive`.
    pub(super) async fn start_receiver(&self, rules: &Rules) -> Result<(), DriverError> {
        self.clear_marks()?;
        self.remove(&[self.paths.memory(), self.paths.control()])?;
        let mark = self.paths.incoming_mark();
        fs::write(&mark, b"").map_err(io_error(&self.vm, "create", &mark))?;
        let path = self.paths.rules();
        let text =
            serde_json::to_vec(rules).map_err(|error| io_error(&self.vm, "write", &path)(error.into()))?;
        fs::write(&path, text).map_err(io_error(&self.vm, "write", &path))?;
        let mut command = Command::new(&self.program);
        command.arg("xl-receive").arg(self.mark());
        let mut child = self.spawn(command).await?;
        let deadline = Instant::now() + START_TIMEOUT;
        // The control socket is bound last.
        while !self.paths.control().exists() {
            if child.try_wait().is_ok_and(|ended| ended.is_some()) {
                return Err(self.failed("over before it began"));
            }
            if Instant::now() > deadline {
                return Err(self.too_long("the start of xl migrate-receive", START_TIMEOUT));
            }
            sleep(POLL).await;
        }
        // Ends with the keeper, which outlives the daemon where it must.
        tokio::spawn(async move { child.wait().await });
        Ok(())
    }

    pub(super) async fn open_incoming(&self) -> Result<UnixStream, DriverError> {
        let path = self.paths.memory();
        match UnixStream::connect(&path).await {
            Ok(stream) => {
                board::bound_buffer(&stream).map_err(io_error(&self.vm, "use", &path))?;
                self.remove(&[path])?;
                Ok(stream)
            }
            Err(_) => {
                let (doing, hint) = ("open it for its memory", "start it with start_incoming");
                let status = self.status().await?.unwrap_or(GuestStatus::Stopped);
                Err(DriverError::WrongState { vm: self.vm.clone(), doing, status, hint })
            }
        }
    }

    pub(super) async fn incoming_loaded(&self) -> Result<(), DriverError> {
        match self.ask(Request::Wait, None).await? {
            Some(Answer { phase: Phase::Loaded | Phase::Running, .. }) => Ok(()),
            _ => Err(self.failed("failed")),
        }
    }

    pub(super) async fn wait_paused(&self) -> Result<Instant, DriverError> {
        match self.ask(Request::Wait, None).await? {
            Some(Answer { phase: Phase::Sent | Phase::GivenUp, stopped_us, .. }) => {
                let ago = Duration::from_micros(stopped_us.unwrap_or(0));
                Ok(Instant::now().checked_sub(ago).unwrap_or_else(Instant::now))
            }
            _ => Err(self.failed("failed")),
        }
    }

    pub(super) async fn finish_memory(&self) -> Result<(), DriverError> {
        match self.ask(Request::Proceed, Some(ANSWER_TIMEOUT)).await? {
            Some(Answer { phase: Phase::GivenUp, .. }) => Ok(()),
            _ => Err(self.failed("failed")),
        }
    }

    /// How far the keeper is, if one is at work.
    pub(super) async fn answer(&self) -> Result<Option<Answer>, DriverError> {
        self.ask(Request::Status, Some(ANSWER_TIMEOUT)).await
    }

    /// Where the guest stands as its keeper has it; `None` without one.
    pub(super) async fn status(&self) -> Result<Option<GuestStatus>, DriverError> {
        let incoming = self.paths.incoming_mark().exists();
        Ok(match self.answer().await?.map(|answer| answer.phase) {
            Some(Phase::Streaming) if incoming => Some(GuestStatus::Incoming),
            // The guest runs while its memory passes.
            Some(Phase::Streaming) => Some(GuestStatus::Running),
            Some(Phase::Sent) => Some(GuestStatus::PreSwitchover),
            Some(Phase::GivenUp) => Some(GuestStatus::PostMigrate),
            Some(Phase::Loaded) => Some(GuestStatus::Paused),
            Some(Phase::Running | Phase::Failed) | None => None,
        })
    }

    /// Lets a paused guest run: one that came in, by GO to its xl or in xl's place; or one that `xl pause` holds.
    pub(super) async fn unpause(&self) -> Result<(), DriverError> {
        if let Some(Answer { phase: Phase::Loaded, .. }) = self.answer().await? {
            return match self.ask(Request::Proceed, Some(ANSWER_TIMEOUT)).await? {
                Some(Answer { phase: Phase::Running, .. }) => Ok(()),
                _ => Err(self.failed("not to be resumed")),
            };
        }
        let vm = self.vm.as_str();
        if xl::domains(&self.vm).await?.own.is_none() {
            // Its xl was killed after READY: the domain is whole, and what is left to do is all that GO does.
            xl::xl(
                &self.vm,
                "give the incoming domain its name",
                &["rename", &xl::incoming_name(&self.vm), vm],
            )
            .await?;
        }
        xl::xl(&self.vm, "let the guest run", &["unpause", vm]).await.map(drop)
    }

    /// Ends an outgoing migration wherever it is, so that the guest runs here under its own name; nothing to do where
    /// there is none. xl does it itself as long as it lives.
    pub(super) async fn take_back(&self) -> Result<(), DriverError> {
        self.ask(Request::Undo, Some(ANSWER_TIMEOUT)).await?;
        if let Some(xl) = self.process().await?
            && !xl.ended(UNDO_TIMEOUT).await
        {
            tracing::warn!(vm = %self.vm, "xl does not take its domain back; it is ended");
            self.end_processes().await?;
        }
        let domains = xl::domains(&self.vm).await?;
        let domain = match (domains.own, domains.away) {
            (Some(own), _) => Some(own),
            (None, Some(away)) => {
                let words = ["rename", &xl::away_name(&self.vm), self.vm.as_str()];
                xl::xl(&self.vm, "give the domain its name back", &words).await?;
                Some(away)
            }
            (None, None) => None,
        };
        let Some(domain) = domain.filter(|domain| !domain.dead) else { return Ok(()) };
        if domain.suspended {
            tracing::warn!(vm = %self.vm, "xl has left the domain suspended; it is resumed in its place");
            xl::resume_suspended(&self.vm, domain.id).await?;
        }
        if domain.paused {
            // Saved for a cold migration.
            xl::xl(&self.vm, "let the guest run", &["unpause", self.vm.as_str()]).await?;
        }
        Ok(())
    }

    /// Ends xl and the keeper at once, whatever they do. What becomes of the domain is the caller's to see.
    pub(super) async fn end_processes(&self) -> Result<(), DriverError> {
        if let Some(process) = self.process().await? {
            // A receiver destroys its copy itself when it is told that it will not run.
            let receiver = self.paths.incoming_mark().exists();
            let told = receiver && self.ask(Request::Undo, Some(ANSWER_TIMEOUT)).await?.is_some();
            if !told || !process.ended(UNDO_TIMEOUT).await {
                process.kill(&self.vm, &self.pid()).await?;
            }
        }
        // Its other half ends with it, but not necessarily by now.
        let deadline = Instant::now() + UNDO_TIMEOUT;
        while self.answer().await?.is_some() {
            if Instant::now() > deadline {
                return Err(self.too_long("the end of xl", UNDO_TIMEOUT));
            }
            sleep(POLL).await;
        }
        self.remove(&[self.paths.control(), self.paths.memory(), self.pid()])
    }

    /// Forgets that the VM came in.
    pub(super) fn clear_marks(&self) -> Result<(), DriverError> {
        self.remove(&[self.paths.incoming_mark(), self.paths.loaded_mark()])
    }

    /// One question to the keeper. `None` when there is none, or it ended before it answered.
    async fn ask(&self, request: Request, bound: Option<Duration>) -> Result<Option<Answer>, DriverError> {
        let path = self.paths.control();
        let asked = async {
            let mut stream = match UnixStream::connect(&path).await {
                Ok(stream) => stream,
                Err(error)
                    if matches!(
                        error.kind(),
                        // The last one: it ended between our call and its answer.
                        io::ErrorKind::NotFound
                            | io::ErrorKind::ConnectionRefused
                            | io::ErrorKind::ConnectionReset
                    ) =>
                {
                    return Ok(None);
                }
                Err(error) => return Err(error),
            };
            let mut line = serde_json::to_string(&request)?;
            line.push('\n');
            let mut answer = String::new();
            let talked = async {
                stream.write_all(line.as_bytes()).await?;
                BufReader::new(&mut stream).read_line(&mut answer).await
            };
            match talked.await {
                Ok(0) | Err(_) => Ok(None),
                Ok(_) => serde_json::from_str(&answer).map(Some).map_err(io::Error::from),
            }
        };
        let answer = match bound {
            None => asked.await,
            Some(bound) => match timeout(bound, asked).await {
                Ok(answer) => answer,
                Err(_) => return Err(self.too_long("xl's answer to its transport", bound)),
            },
        };
        answer.map_err(io_error(&self.vm, "talk on", &path))
    }

    /// A process of its own: it does not end with us.
    async fn spawn(&self, mut command: Command) -> Result<tokio::process::Child, DriverError> {
        let path = self.paths.log();
        let log = fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&path);
        let log = log.map_err(io_error(&self.vm, "create", &path))?;
        let errors = log.try_clone().map_err(io_error(&self.vm, "create", &path))?;
        command.stdin(Stdio::null()).stdout(log).stderr(errors).process_group(0);
        let child = command.spawn().map_err(|error| DriverError::Start {
            vm: self.vm.clone(),
            message: format!("cannot run {}: {error}", command.as_std().get_program().to_string_lossy()),
        })?;
        let pid = self.pid();
        let id = child.id().unwrap_or(0).to_string();
        fs::write(&pid, id).map_err(io_error(&self.vm, "write", &pid))?;
        Ok(child)
    }

    async fn process(&self) -> Result<Option<Process>, DriverError> {
        Process::find(&self.vm, &self.pid(), &self.mark()).await
    }

    /// The id of the process that we started: xl at the source of a live migration, else the keeper.
    fn pid(&self) -> PathBuf {
        self.paths.dir.join("xl.pid")
    }

    /// The directory as the processes' command lines have it; with the slash it is no beginning of another's.
    fn mark(&self) -> PathBuf {
        self.paths.dir.join("")
    }

    fn remove(&self, paths: &[PathBuf]) -> Result<(), DriverError> {
        paths.iter().try_for_each(|path| match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(io_error(&self.vm, "remove", path)(error))
            }
            _ => Ok(()),
        })
    }

    fn failed(&self, status: &str) -> DriverError {
        let log = fs::read(self.paths.log()).unwrap_or_default();
        let tail = String::from_utf8_lossy(&log[log.len().saturating_sub(LOG_TAIL_BYTES)..]);
        let reason = format!("xl says: {}", tail.trim().replace('\n', " | "));
        DriverError::Migration { vm: self.vm.clone(), status: status.into(), reason }
    }

    fn too_long(&self, doing: &'static str, after: Duration) -> DriverError {
        DriverError::Timeout {
            vm: self.vm.clone(),
            doing,
            after,
            hint: "see xl.log in its directory; roll back",
        }
    }
}

/// A word for the shell that xl runs its transport with.
fn quoted(path: &std::path::Path) -> String {
    format!("'{}'", path.to_string_lossy().replace('\'', "'\\''"))
}
