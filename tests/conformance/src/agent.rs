//! A [`Site`] at a TCP port, one question a connection: a line of JSON, answered by one, and for a memory stream the stream
//! after it. For the lab's own network: it trusts whoever asks.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UnixStream};

use crate::{Answer, Call, Site};

/// What a connection asks for.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) enum Asked {
    /// A call, answered by an [`Answer`].
    Call(Call),
    /// The memory, cold or not; the answer is followed by the stream.
    SendMemory(bool),
    /// The ear of a waiting guest, in the same way.
    OpenIncoming,
}

/// Answers at `address` for ever.
///
/// # Errors
/// When the port cannot be listened at.
pub async fn serve(site: impl Site + 'static, address: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("listening at {address}"))?;
    let site = Arc::new(site);
    loop {
        let (stream, _) = listener.accept().await?;
        let site = site.clone();
        tokio::spawn(async move {
            if let Err(error) = answer(&*site, stream).await {
                eprintln!("{error:#}");
            }
        });
    }
}

async fn answer(site: &impl Site, stream: TcpStream) -> Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    match serde_json::from_str(&line)? {
        Asked::Call(call) => {
            let answer = site.call(call).await.unwrap_or_else(|error| Answer::Failed(format!("{error:#}")));
            say(&mut stream, &answer).await
        }
        Asked::SendMemory(cold) => relay(stream, site.send_memory(cold).await).await,
        Asked::OpenIncoming => relay(stream, site.open_incoming().await).await,
    }
}

async fn relay(mut stream: BufReader<TcpStream>, memory: Result<UnixStream>) -> Result<()> {
    match memory {
        Ok(mut memory) => {
            say(&mut stream, &Answer::Done(None, 0)).await?;
            copy_bidirectional(&mut stream, &mut memory).await?;
            Ok(())
        }
        Err(error) => say(&mut stream, &Answer::Failed(format!("{error:#}"))).await,
    }
}

async fn say(stream: &mut BufReader<TcpStream>, answer: &Answer) -> Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    Ok(stream.write_all(&line).await?)
}
