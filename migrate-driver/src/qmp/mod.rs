//! QEMU's monitor protocol: one owner task per connection, commands by id, events to everybody who asks.
//!
//! Knows nothing of what the commands mean. Never blocks on a slow listener (it lags and is told so), never reads a
//! line beyond [`MAX_LINE_BYTES`], never waits for an answer without a bound.

#[cfg(fuzzing)]
pub(crate) mod fuzzing;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::timeout;

/// Longest line taken from QEMU. Its answers are a few KiB.
pub const MAX_LINE_BYTES: usize = 8 << 20;
/// Events kept for a listener that is behind.
const EVENT_BACKLOG: usize = 512;
/// Lines for an earlier client that are skipped on a new connection.
const MAX_STALE_LINES: usize = 10_000;
/// Commands under way on one connection.
const MAX_IN_FLIGHT: usize = 64;

/// What went wrong on a monitor connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QmpError {
    /// Nobody listens on the socket: the process is gone.
    #[error("no QEMU listens on {}", path.display())]
    NotListening {
        /// The socket.
        path: PathBuf,
    },
    /// The socket could not be used.
    #[error("cannot connect to QEMU's monitor {}: {message}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why not.
        message: String,
    },
    /// QEMU took the connection and said nothing. It serves one client at a time.
    #[error(
        "QEMU did not greet on {} within {} ms; another program may hold its monitor", path.display(), after.as_millis()
    )]
    NoGreeting {
        /// The socket.
        path: PathBuf,
        /// The bound.
        after: Duration,
    },
    /// What arrived is not the monitor protocol.
    #[error("QEMU's monitor sent what we do not understand: {0}")]
    Protocol(String),
    /// QEMU answered with an error.
    #[error("{command}: {message}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's error class.
        class: String,
        /// QEMU's words.
        message: String,
    },
    /// No answer in time; the command may still take effect.
    #[error("{command} got no answer within {} ms; QEMU may be stuck", after.as_millis())]
    Timeout {
        /// The command.
        command: String,
        /// The bound.
        after: Duration,
    },
    /// The connection ended.
    #[error("the connection to QEMU's monitor is closed")]
    Closed,
}

/// An asynchronous message of QEMU's.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Event {
    /// For example `MIGRATION`.
    #[serde(rename = "event")]
    pub name: String,
    /// What belongs to it.
    #[serde(default)]
    pub data: Value,
}

impl Event {
    /// A text field of the event's data, or "".
    pub fn text(&self, field: &str) -> &str {
        self.data.get(field).and_then(Value::as_str).unwrap_or("")
    }
}

/// What a listener got.
#[derive(Debug, Clone, PartialEq)]
pub enum Heard {
    /// An event.
    Event(Event),
    /// Some events were lost: ask for the state again.
    Missed,
}

/// A listener to a connection's events, from the moment it was made.
#[derive(Debug)]
pub struct Events(broadcast::Receiver<Event>);

impl Events {
    /// The next event; [`QmpError::Closed`] when the connection ended.
    pub async fn next(&mut self) -> Result<Heard, QmpError> {
        match self.0.recv().await {
            Ok(event) => Ok(Heard::Event(event)),
            Err(broadcast::error::RecvError::Lagged(_)) => Ok(Heard::Missed),
            Err(broadcast::error::RecvError::Closed) => Err(QmpError::Closed),
        }
    }
}

/// A connection to one QEMU. Dropping it closes the socket and leaves QEMU alone.
#[derive(Debug)]
pub struct Qmp {
    commands: mpsc::Sender<Command>,
    // Weak, so that listeners see the end when the owner task, which holds the sender, is gone.
    events: broadcast::WeakSender<Event>,
    command_timeout: Duration,
}

#[derive(Debug)]
struct Command {
    name: String,
    arguments: Option<Value>,
    reply: oneshot::Sender<Result<Value, QmpError>>,
}

impl Qmp {
    /// Connects, waits for the greeting and negotiates. `greeting_timeout` bounds all of that.
    pub async fn connect(
        path: &Path,
        greeting_timeout: Duration,
        command_timeout: Duration,
    ) -> Result<Qmp, QmpError> {
        let stream = UnixStream::connect(path).await.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                QmpError::NotListening { path: path.into() }
            }
            // Nobody has taken the connections before ours.
            io::ErrorKind::WouldBlock => QmpError::NoGreeting { path: path.into(), after: greeting_timeout },
            _ => QmpError::Connect { path: path.into(), message: error.to_string() },
        })?;
        let no_greeting = || QmpError::NoGreeting { path: path.into(), after: greeting_timeout };
        timeout(greeting_timeout, Qmp::negotiate(stream, command_timeout))
            .await
            .unwrap_or_else(|_| Err(no_greeting()))
    }

    async fn negotiate(stream: UnixStream, command_timeout: Duration) -> Result<Qmp, QmpError> {
        let (reader, writer) = stream.into_split();
        let mut lines = Lines::new(reader);
        lines.skip_to_greeting().await?;
        let (commands, queue) = mpsc::channel(MAX_IN_FLIGHT);
        let (events, _) = broadcast::channel(EVENT_BACKLOG);
        let weak = events.downgrade();
        let owner = Owner { lines, writer, queue, events, waiting: HashMap::new(), next_id: first_id() };
        // Ends when the last clone of the client is dropped, or with the connection.
        tokio::spawn(owner.run());
        let qmp = Qmp { commands, events: weak, command_timeout };
        qmp.execute("qmp_capabilities", None).await?;
        Ok(qmp)
    }

    /// Runs one command and waits for its answer as long as commands usually may take. Dropping the future does not take the
    /// command back.
    pub async fn execute(&self, name: &str, arguments: Option<Value>) -> Result<Value, QmpError> {
        self.execute_within(self.command_timeout, name, arguments).await
    }

    /// [`Qmp::execute`] with another bound.
    pub async fn execute_within(
        &self,
        bound: Duration,
        name: &str,
        arguments: Option<Value>,
    ) -> Result<Value, QmpError> {
        let (reply, answer) = oneshot::channel();
        let command = Command { name: name.into(), arguments, reply };
        let run = async {
            self.commands.send(command).await.map_err(|_| QmpError::Closed)?;
            answer.await.unwrap_or(Err(QmpError::Closed))
        };
        match timeout(bound, run).await {
            Ok(result) => result,
            Err(_) => Err(QmpError::Timeout { command: name.into(), after: bound }),
        }
    }

    /// Listens to the events from now on. On a closed connection the listener says so at once.
    pub fn events(&self) -> Events {
        match self.events.upgrade() {
            Some(events) => Events(events.subscribe()),
            None => Events(broadcast::channel(1).1),
        }
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.commands.is_closed()
    }
}

/// A late answer to a client before us must not look like one to us: ids begin at the time in nanoseconds, so no two
/// connections share one.
fn first_id() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // QEMU's integers are signed.
    now.as_nanos() as u64 & (u64::MAX >> 1)
}

/// The task that owns the socket.
struct Owner {
    lines: Lines<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    queue: mpsc::Receiver<Command>,
    events: broadcast::Sender<Event>,
    waiting: HashMap<u64, (String, oneshot::Sender<Result<Value, QmpError>>)>,
    next_id: u64,
}

impl Owner {
    async fn run(mut self) {
        let end = loop {
            let step = tokio::select! {
                line = self.lines.next() => line.and_then(|line| self.take(line)),
                command = self.queue.recv() => match command {
                    Some(command) => self.send(command).await,
                    None => return,
                },
            };
            if let Err(error) = step {
                break error;
            }
        };
        tracing::debug!(%end, "QMP connection ended");
        for (_, (_, reply)) in self.waiting.drain() {
            // A caller that gave up has dropped its end.
            let _ = reply.send(Err(end.clone()));
        }
    }

    async fn send(&mut self, command: Command) -> Result<(), QmpError> {
        // Answers to callers that gave up still come; forget those that no one waits for.
        self.waiting.retain(|_, (_, reply)| !reply.is_closed());
        let id = self.next_id;
        self.next_id += 1;
        let mut message = Map::new();
        message.insert("execute".into(), json!(command.name));
        if let Some(arguments) = command.arguments {
            message.insert("arguments".into(), arguments);
        }
        message.insert("id".into(), json!(id));
        let mut line = Value::Object(message).to_string();
        tracing::trace!(%line, "QMP >");
        line.push('\n');
        self.waiting.insert(id, (command.name, command.reply));
        self.writer.write_all(line.as_bytes()).await.map_err(|_| QmpError::Closed)
    }

    fn take(&mut self, line: Value) -> Result<(), QmpError> {
        tracing::trace!(%line, "QMP <");
        match Said::parse(line)? {
            // No listener is no error.
            Said::Event(event) => drop(self.events.send(event)),
            Said::Answer { id, result } => {
                let Some((command, reply)) = self.waiting.remove(&id) else { return Ok(()) };
                let answer = result.map_err(|(class, message)| QmpError::Refused { command, class, message });
                let _ = reply.send(answer);
            }
        }
        Ok(())
    }
}

/// What QEMU says with one line.
#[derive(Debug, PartialEq)]
enum Said {
    Event(Event),
    /// To the command of this id; an error as its class and QEMU's words.
    Answer {
        id: u64,
        result: Result<Value, (String, String)>,
    },
}

impl Said {
    fn parse(line: Value) -> Result<Said, QmpError> {
        if line.get("event").is_some() {
            let event = Event::deserialize(line).map_err(|error| QmpError::Protocol(error.to_string()))?;
            return Ok(Said::Event(event));
        }
        let Some(id) = line.get("id").and_then(Value::as_u64) else {
            return Err(QmpError::Protocol(line.to_string().chars().take(200).collect()));
        };
        let result = match line.get("error") {
            Some(error) => Err((
                error.get("class").and_then(Value::as_str).unwrap_or("").into(),
                error.get("desc").and_then(Value::as_str).unwrap_or("no reason given").into(),
            )),
            None => Ok(line.get("return").cloned().unwrap_or(Value::Null)),
        };
        Ok(Said::Answer { id, result })
    }
}

/// Lines of JSON, bounded. `next` may be dropped and called again without losing bytes.
struct Lines<R> {
    reader: R,
    buffer: Vec<u8>,
    /// How much of `buffer` is known to hold no newline.
    searched: usize,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    fn new(reader: R) -> Lines<R> {
        Lines { reader, buffer: Vec::with_capacity(8192), searched: 0 }
    }

    /// What QEMU could not send to the client before us, it sends to us: whole lines, or the end of one.
    async fn skip_to_greeting(&mut self) -> Result<(), QmpError> {
        for _ in 0..MAX_STALE_LINES {
            match self.next().await {
                Ok(line) if line.get("QMP").is_some() => return Ok(()),
                Ok(line) => tracing::debug!(%line, "QMP: meant for an earlier client"),
                Err(QmpError::Protocol(reason)) => tracing::debug!(reason, "QMP: the end of an earlier line"),
                Err(error) => return Err(error),
            }
        }
        Err(QmpError::Protocol("it does not greet".into()))
    }

    async fn next(&mut self) -> Result<Value, QmpError> {
        loop {
            if let Some(at) = self.buffer[self.searched..].iter().position(|&byte| byte == b'\n') {
                let end = self.searched + at;
                let line = serde_json::from_slice(&self.buffer[..end])
                    .map_err(|error| QmpError::Protocol(format!("not JSON: {error}")));
                self.buffer.drain(..=end);
                self.searched = 0;
                return line;
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > MAX_LINE_BYTES {
                return Err(QmpError::Protocol(format!("a line of more than {MAX_LINE_BYTES} bytes")));
            }
            match self.reader.read_buf(&mut self.buffer).await {
                Ok(0) | Err(_) => return Err(QmpError::Closed),
                Ok(_) => {}
            }
        }
    }
}
