//! Two TCP connections to the guest: a bulk transfer, of which every byte is checked, and one on which a line is answered
//! by a line. Neither knows of moves.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use harness::Namespace;

/// Nothing for as long as this is a connection that has died.
const PATIENCE: Duration = Duration::from_secs(20);
/// One write of the bulk transfer.
const BLOCK_BYTES: usize = 64 << 10;

/// A connection under way.
#[derive(Debug)]
pub struct Connection {
    stop: Arc<AtomicBool>,
    ends: [JoinHandle<Result<u64>>; 2],
}

impl Connection {
    /// Sends from one namespace to another for as long as it may. At the end both say how many bytes there were.
    ///
    /// # Errors
    /// When there is no connection.
    pub fn bulk(from: &Namespace, to: &Namespace, target: SocketAddr) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (mut sender, mut receiver) = connect(from, to, target)?;
        let sends = Arc::clone(&stop);
        let sends = thread::spawn(move || {
            let (mut sent, block) = (0, block());
            while !sends.load(Ordering::Relaxed) {
                sender.write_all(&block).context("the bulk transfer's sender")?;
                sent += block.len() as u64;
            }
            Ok(sent)
        });
        let receives = thread::spawn(move || {
            let (mut received, expected, mut buffer) = (0_usize, block(), vec![0; BLOCK_BYTES]);
            loop {
                let len = receiver.read(&mut buffer).context("the bulk transfer's receiver")?;
                if len == 0 {
                    return Ok(received as u64);
                }
                let mut rest = &buffer[..len];
                while !rest.is_empty() {
                    let at = received % BLOCK_BYTES;
                    let (now, later) = rest.split_at(rest.len().min(BLOCK_BYTES - at));
                    if now != &expected[at..at + now.len()] {
                        bail!("the bulk transfer has other bytes behind {received}");
                    }
                    received += now.len();
                    rest = later;
                }
            }
        });
        Ok(Self { stop, ends: [sends, receives] })
    }

    /// Asks from one namespace, a line at a time, and has it answered in the other. At the end both say how many there were.
    ///
    /// # Errors
    /// When there is no connection.
    pub fn interactive(from: &Namespace, to: &Namespace, target: SocketAddr) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (asker, answerer) = connect(from, to, target)?;
        let asks = Arc::clone(&stop);
        let asks = thread::spawn(move || {
            let (mut asked, mut lines) = (0, BufReader::new(asker));
            while !asks.load(Ordering::Relaxed) {
                writeln!(lines.get_mut(), "{asked}").context("asking")?;
                let mut answer = String::new();
                lines.read_line(&mut answer).context("waiting for an answer")?;
                if answer != format!("heard {asked}\n") {
                    bail!("question {asked} was answered {answer:?}");
                }
                asked += 1;
                thread::sleep(Duration::from_millis(2));
            }
            Ok(asked)
        });
        let answers = thread::spawn(move || {
            let (mut answered, mut lines, mut line) = (0, BufReader::new(answerer), String::new());
            while lines.read_line(&mut line).context("waiting for a question")? > 0 {
                write!(lines.get_mut(), "heard {line}").context("answering")?;
                answered += 1;
                line.clear();
            }
            Ok(answered)
        });
        Ok(Self { stop, ends: [asks, answers] })
    }

    /// Ends it; gives how much there was of it, when both ends agree.
    ///
    /// # Errors
    /// When it has died, or the ends do not agree.
    pub fn finish(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let mut counts = Vec::new();
        for end in self.ends {
            counts.push(end.join().map_err(|_| anyhow::anyhow!("an end of a connection panicked"))??);
        }
        if counts[0] != counts[1] {
            bail!("one end counted {}, the other {}", counts[0], counts[1]);
        }
        Ok(counts[0])
    }
}

/// A connection from one namespace to a listener in another.
fn connect(from: &Namespace, to: &Namespace, target: SocketAddr) -> Result<(TcpStream, TcpStream)> {
    let listener =
        to.enter(|| TcpListener::bind(target))?.with_context(|| format!("listening at {target}"))?;
    let out = from
        .enter(|| TcpStream::connect_timeout(&target, PATIENCE))?
        .with_context(|| format!("connecting to {target}"))?;
    let (into, _) = listener.accept().context("accepting the connection")?;
    for end in [&out, &into] {
        end.set_nodelay(true)?;
        end.set_read_timeout(Some(PATIENCE))?;
        end.set_write_timeout(Some(PATIENCE))?;
    }
    Ok((out, into))
}

/// Bytes that do not repeat within a block.
fn block() -> Vec<u8> {
    (0..BLOCK_BYTES as u32 / 4).flat_map(|n| n.wrapping_mul(0x9e37_79b1).to_be_bytes()).collect()
}
