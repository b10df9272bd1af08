//! QUIC between platforms: one endpoint, connections to peers, framed streams. It knows nothing of what is said.

mod dial;
pub(crate) mod lanes;
#[cfg(test)]
pub(crate) mod testing;
mod tls;

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use longhaul_proto::wire::{self, FrameError, PeerStatus};
use quinn::crypto::rustls::HandshakeData;
use quinn::{Connection, Endpoint, RecvStream, SendStream, VarInt};
use rustls::pki_types::CertificateDer;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use crate::error_kind::{HasKind, Kind};
use crate::service::config::{Config, Congestion};
use crate::service::identity::{Fingerprint, Identity};
use crate::service::peers::{Peers, PeersError};

/// What may be sent and not acknowledged on one connection. It covers a path of 1 Gb/s at 500 ms.
const SEND_WINDOW_BYTES: u64 = 64 << 20;
/// Two-way streams that a peer may have open.
const BIDI_STREAMS: u32 = 64;
/// One-way streams that a peer may have open beside its lanes: the messages of hand-offs.
const MESSAGE_STREAMS: u32 = 256;
const UNI_STREAMS: u32 = MESSAGE_STREAMS + lanes::MAX_LANES_OUT as u32;
/// As much as all streams' windows together, 74 MiB: however many readers stand still, no stream takes another one's credit.
const CONNECTION_WINDOW_BYTES: u32 = (2 * BIDI_STREAMS + UNI_STREAMS) * lanes::WINDOW_BYTES;
/// The kernel's default loses thousands of packets at these rates.
const SOCKET_BUFFER_BYTES: usize = 8 << 20;
/// How often a side says that it is there while it has nothing else to say on a stream that has not ended: 15 s.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_millis(SILENCE.as_millis() as u64 / 4);
/// How long a side may be silent on a stream when it is its turn. Four times [`KEEP_ALIVE`]; longer than any outage that a
/// connection outlives by its default idle time-out.
pub(crate) const SILENCE: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 60 });

/// What can go wrong between platforms.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetError {
    /// Our own socket.
    #[error("cannot listen on {listen} (UDP): {source}; is another daemon running there?")]
    Listen { listen: SocketAddr, source: std::io::Error },
    /// TLS or QUIC refuse the configuration.
    #[error("cannot set up TLS: {0}")]
    Setup(String),
    /// Not a peer of ours.
    #[error(transparent)]
    Peer(#[from] PeersError),
    /// No connection.
    #[error("cannot connect to peer '{peer}' at {address}: {why}")]
    Dial {
        peer: String,
        address: String,
        /// What happened, and what to do.
        why: String,
    },
    /// The connection ended.
    #[error("the connection was lost: {0}")]
    Lost(String),
    /// The other side speaks another language.
    #[error("the other side sent something that is not of the protocol: {0}")]
    Frame(#[from] FrameError),
    /// A stream ended inside or before a message.
    #[error("the other side ended the stream early")]
    Ended,
    /// A stream on which nothing comes.
    #[error("the other side has sent nothing for {} s; see whether its daemon hangs", SILENCE.as_secs())]
    Silent,
    /// Lanes that do not belong together.
    #[error("the other side broke the protocol of lanes: {0}")]
    Lanes(String),
}

impl HasKind for NetError {
    fn kind(&self) -> Kind {
        match self {
            NetError::Listen { source, .. } => Kind::of_io(source),
            NetError::Setup(_) => Kind::Bug,
            NetError::Peer(error) => error.kind(),
            NetError::Dial { .. }
            | NetError::Lost(_)
            | NetError::Frame(_)
            | NetError::Ended
            | NetError::Silent
            | NetError::Lanes(_) => Kind::Peer,
        }
    }
}

impl From<quinn::ConnectionError> for NetError {
    fn from(error: quinn::ConnectionError) -> Self {
        NetError::Lost(explain(&error))
    }
}

impl From<quinn::WriteError> for NetError {
    fn from(error: quinn::WriteError) -> Self {
        match error {
            quinn::WriteError::ConnectionLost(error) => error.into(),
            quinn::WriteError::Stopped(_) => NetError::Ended,
            other => NetError::Lost(other.to_string()),
        }
    }
}

impl From<quinn::ReadExactError> for NetError {
    fn from(error: quinn::ReadExactError) -> Self {
        match error {
            quinn::ReadExactError::FinishedEarly(_) => NetError::Ended,
            quinn::ReadExactError::ReadError(error) => error.into(),
        }
    }
}

impl From<quinn::ReadError> for NetError {
    fn from(error: quinn::ReadError) -> Self {
        match error {
            quinn::ReadError::ConnectionLost(error) => error.into(),
            quinn::ReadError::Reset(_) => NetError::Ended,
            other => NetError::Lost(other.to_string()),
        }
    }
}

/// A connection's end in words that say what to do.
fn explain(error: &quinn::ConnectionError) -> String {
    match error {
        quinn::ConnectionError::TimedOut => {
            "no answer (is the daemon running there, is UDP let through?)".to_owned()
        }
        quinn::ConnectionError::ConnectionClosed(close) => {
            let text = close.to_string();
            // A TLS alert that concerns our key (RFC 8446, 6.2: 42 bad certificate to 46 unknown, 48, 49 access denied).
            let code: u64 = close.error_code.into();
            if (0x100 + 40..=0x100 + 49).contains(&code) {
                return format!(
                    "it does not know this platform's key; add us there with `longhaul peer add` ({text})"
                );
            }
            text
        }
        quinn::ConnectionError::TransportError(error) => {
            error.reason.trim_start_matches("unexpected error: ").to_owned()
        }
        other => other.to_string(),
    }
}

/// This platform on the network.
#[derive(Clone)]
pub(crate) struct Network {
    endpoint: Endpoint,
    identity: Identity,
    peers: Arc<Peers>,
    transport: Arc<quinn::TransportConfig>,
    dialled: mpsc::UnboundedSender<(String, Connection)>,
}

/// Connections that this platform has dialled: the other side opens streams on them too, so they want serving.
pub(crate) type Dialled = mpsc::UnboundedReceiver<(String, Connection)>;

impl Network {
    /// Opens the socket; to be called inside the runtime.
    pub(crate) fn open(
        config: &Config,
        identity: Identity,
        peers: Arc<Peers>,
    ) -> Result<(Self, Dialled), NetError> {
        let setup = |error: &dyn std::fmt::Display| NetError::Setup(error.to_string());
        let transport = Arc::new(transport(config));
        let tls = tls::server_config(&identity, peers.clone()).map_err(|error| setup(&error))?;
        let tls = quinn::crypto::rustls::QuicServerConfig::try_from(tls).map_err(|error| setup(&error))?;
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(tls));
        server.transport_config(transport.clone());
        let listen = config.listen;
        let socket = bind(listen).map_err(|source| NetError::Listen { listen, source })?;
        let runtime = quinn::default_runtime().ok_or_else(|| setup(&"no async runtime"))?;
        let mut endpoint_config = quinn::EndpointConfig::default();
        endpoint_config.max_udp_payload_size(MAX_UDP_PAYLOAD).map_err(|error| setup(&error))?;
        let endpoint = Endpoint::new(endpoint_config, Some(server), socket, runtime)
            .map_err(|source| NetError::Listen { listen, source })?;
        let (dialled, receiver) = mpsc::unbounded_channel();
        Ok((Network { endpoint, identity, peers, transport, dialled }, receiver))
    }

    /// The next peer that connects, with its name; `None` once the endpoint is closed. Strangers never get here.
    pub(crate) async fn accept(&self) -> Option<quinn::Incoming> {
        self.endpoint.accept().await
    }

    /// Finishes a handshake begun by the other side.
    pub(crate) async fn admit(&self, incoming: quinn::Incoming) -> Result<(String, Connection), NetError> {
        let connection = incoming.await?;
        match self.peer_of(&connection) {
            Some(name) => Ok((name, connection)),
            None => {
                connection.close(VarInt::from_u32(1), b"unknown key");
                Err(NetError::Lost("its key is not in the list of peers".to_owned()))
            }
        }
    }

    /// The peer at the other end of a connection, if it is one now.
    pub(crate) fn peer_of(&self, connection: &Connection) -> Option<String> {
        let keys =
            connection.peer_identity().and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
        self.peers.name_of(keys.as_ref().and_then(|keys| keys.first()).map(Fingerprint::of)?)
    }

    /// Asks a peer how it is.
    pub(crate) async fn ask_status(&self, name: &str) -> Result<PeerStatus, NetError> {
        dial::status_of(&self.dial(name).await?).await
    }

    /// Closes every connection and waits until the other sides have been told.
    pub(crate) async fn close(&self) {
        self.endpoint.close(VarInt::from_u32(0), b"shutting down");
        self.endpoint.wait_idle().await;
    }
}

/// Larger datagrams than Ethernet's are found by MTU discovery where a path has them: jumbo frames, loopback.
const MAX_UDP_PAYLOAD: u16 = 65527;
const LARGEST_MTU_TRIED: u16 = 16384;

fn transport(config: &Config) -> quinn::TransportConfig {
    let mut transport = quinn::TransportConfig::default();
    let idle = Duration::from_secs(config.idle_timeout_s);
    let mut mtu = quinn::MtuDiscoveryConfig::default();
    mtu.upper_bound(LARGEST_MTU_TRIED);
    transport
        .max_idle_timeout(idle.try_into().ok())
        .keep_alive_interval(Some(idle / 4))
        .stream_receive_window(VarInt::from_u32(lanes::WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(SEND_WINDOW_BYTES)
        .send_fairness(false)
        .max_concurrent_bidi_streams(VarInt::from_u32(BIDI_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(UNI_STREAMS))
        .mtu_discovery_config(Some(mtu));
    match config.congestion {
        Congestion::Cubic => {
            transport.congestion_controller_factory(Arc::new(quinn::congestion::CubicConfig::default()))
        }
        Congestion::Bbr => {
            transport.congestion_controller_factory(Arc::new(quinn::congestion::BbrConfig::default()))
        }
    };
    transport
}

fn bind(listen: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind(listen)?;
    // Beyond the system's limit only root may go; what can be had is good enough.
    use rustix::net::sockopt;
    if sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BUFFER_BYTES).is_err() {
        sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER_BYTES)?;
    }
    sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER_BYTES)?;
    Ok(socket)
}

/// Whether the peer speaks the protocol of this version, and not only the one before.
pub(crate) fn is_current(connection: &Connection) -> bool {
    let data = connection.handshake_data().and_then(|any| any.downcast::<HandshakeData>().ok());
    data.and_then(|data| data.protocol).is_some_and(|protocol| protocol == wire::ALPN)
}

/// Where frames go.
pub(crate) trait FrameSink: Send {
    /// Sends all of these bytes.
    fn put(&mut self, bytes: Bytes) -> impl Future<Output = Result<(), NetError>> + Send;
}

/// Where frames come from.
pub(crate) trait FrameSource: Send {
    /// Receives at least one byte, or `None` at the end.
    fn some(&mut self, buffer: &mut [u8]) -> impl Future<Output = Result<Option<usize>, NetError>> + Send;
}

impl FrameSink for SendStream {
    async fn put(&mut self, bytes: Bytes) -> Result<(), NetError> {
        Ok(self.write_chunk(bytes).await?)
    }
}

impl FrameSource for RecvStream {
    async fn some(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, NetError> {
        Ok(self.read(buffer).await?)
    }
}

/// Sends one message. Returns its bytes on the stream.
pub(crate) async fn send<T: Serialize>(stream: &mut impl FrameSink, message: &T) -> Result<u64, NetError> {
    let frame = wire::frame(message)?;
    let bytes = frame.len() as u64;
    stream.put(Bytes::from(frame)).await?;
    Ok(bytes)
}

/// Receives one message; `None` when the stream ends before it. It may take as long as it likes to begin; once begun, it is
/// [`NetError::Silent`] when nothing comes for [`SILENCE`].
pub(crate) async fn receive<T: DeserializeOwned>(
    stream: &mut impl FrameSource,
) -> Result<Option<T>, NetError> {
    let mut prefix = [0; 4];
    match stream.some(&mut prefix).await? {
        Some(begun) => receive_rest(stream, prefix, begun).await.map(Some),
        None => Ok(None),
    }
}

/// As [`receive`], but the message must begin within [`SILENCE`] as well.
pub(crate) async fn receive_soon<T: DeserializeOwned>(
    stream: &mut impl FrameSource,
) -> Result<Option<T>, NetError> {
    let mut prefix = [0; 4];
    match soon(stream.some(&mut prefix)).await? {
        Some(begun) => receive_rest(stream, prefix, begun).await.map(Some),
        None => Ok(None),
    }
}

async fn receive_rest<T: DeserializeOwned>(
    stream: &mut impl FrameSource,
    mut prefix: [u8; 4],
    begun: usize,
) -> Result<T, NetError> {
    fill(stream, &mut prefix[begun..]).await?;
    let mut frame = vec![0; wire::frame_len(prefix)?];
    fill(stream, &mut frame).await?;
    Ok(wire::from_bytes(&frame)?)
}

async fn fill(stream: &mut impl FrameSource, mut buffer: &mut [u8]) -> Result<(), NetError> {
    while !buffer.is_empty() {
        let read = soon(stream.some(buffer)).await?.ok_or(NetError::Ended)?;
        buffer = &mut buffer[read..];
    }
    Ok(())
}

/// What comes within [`SILENCE`].
pub(crate) async fn soon<T>(coming: impl Future<Output = Result<T, NetError>>) -> Result<T, NetError> {
    tokio::time::timeout(SILENCE, coming).await.unwrap_or(Err(NetError::Silent))
}

/// Receives one message that must come, and within [`SILENCE`].
pub(crate) async fn expect<T: DeserializeOwned>(stream: &mut impl FrameSource) -> Result<T, NetError> {
    receive_soon(stream).await?.ok_or(NetError::Ended)
}

#[cfg(test)]
mod tests;
