//! A driver behind an agent on a machine of its own.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use harness::{Collector, Namespace};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpStream, UnixStream};

use crate::agent::Asked;
use crate::suite::{self, Suite};
use crate::{Answer, Call, Site};

/// Runs the suite on the drivers behind two agents.
///
/// # Errors
/// As for [`suite::run`].
pub fn run(namespace: &Arc<Namespace>, agents: [SocketAddr; 2], collector: &Collector) -> Result<()> {
    let [a, b] = agents.map(|address| Remote::new(namespace.clone(), address));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(suite::run(&Suite { a: &a, b: &b, collector }))
}

/// The longest answer.
const MAX_LINE_BYTES: usize = 64 << 10;

/// The agent at an address that is reached from within a network namespace.
pub struct Remote {
    namespace: Arc<Namespace>,
    address: SocketAddr,
}

impl Remote {
    /// Connects anew for each question.
    pub fn new(namespace: Arc<Namespace>, address: SocketAddr) -> Self {
        Self { namespace, address }
    }

    async fn ask(&self, asked: Asked) -> Result<(Answer, TcpStream)> {
        let asking = || format!("asking the agent at {}: {asked:?}", self.address);
        let stream =
            self.namespace.enter(|| std::net::TcpStream::connect(self.address))?.with_context(asking)?;
        stream.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(stream)?;
        let mut line = serde_json::to_vec(&asked)?;
        line.push(b'\n');
        stream.write_all(&line).await.with_context(asking)?;
        // Byte by byte: what follows the line is the memory's.
        let mut said = Vec::new();
        while said.last() != Some(&b'\n') {
            if said.len() > MAX_LINE_BYTES {
                bail!("{}: its answer does not end", asking());
            }
            said.push(stream.read_u8().await.with_context(asking)?);
        }
        Ok((serde_json::from_slice(&said).with_context(asking)?, stream))
    }

    async fn stream(&self, asked: Asked) -> Result<UnixStream> {
        let (answer, mut stream) = self.ask(asked).await?;
        if let Answer::Failed(why) = answer {
            bail!("{asked:?}: {why}");
        }
        let (ours, mut theirs) = UnixStream::pair()?;
        tokio::spawn(async move { copy_bidirectional(&mut stream, &mut theirs).await });
        Ok(ours)
    }
}

#[async_trait]
impl Site for Remote {
    async fn call(&self, call: Call) -> Result<Answer> {
        Ok(self.ask(Asked::Call(call)).await?.0)
    }

    async fn send_memory(&self, cold: bool) -> Result<UnixStream> {
        self.stream(Asked::SendMemory(cold)).await
    }

    async fn open_incoming(&self) -> Result<UnixStream> {
        self.stream(Asked::OpenIncoming).await
    }
}
