//! QUIC between platforms: one endpoint, connections to peers, framed streams. It knows nothing of what is said.

#[cfg(test)]
pub(crate) mod testing;
mod tls;

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use longhaul_proto::wire::{self, FrameError, Open, PeerStatus};
use quinn::{Connection, Endpoint, RecvStream, SendStream, VarInt};
use rustls::pki_types::CertificateDer;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use crate::config::{Config, Congestion};
use crate::identity::{Fingerprint, Identity};
use crate::peers::{Peer, Peers, PeersError};

/// Receive windows cover a path of 1 Gb/s at 500 ms, the limit of what one stream can fill.
const WINDOW_BYTES: u32 = 64 << 20;
/// The kernel's default loses thousands of packets at these rates.
const SOCKET_BUFFER_BYTES: usize = 8 << 20;
/// How long a peer has to answer a dial.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// What can go wrong between platforms.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// Our own socket.
    #[error("cannot listen on {listen} (UDP): {source}; is another daemon running there?")]
    Listen {
        /// The address.
        listen: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// TLS or QUIC refuse the configuration.
    #[error("cannot set up TLS: {0}")]
    Setup(String),
    /// Not a peer of ours.
    #[error(transparent)]
    Peer(#[from] PeersError),
    /// No connection.
    #[error("cannot connect to peer '{peer}' at {address}: {why}")]
    Dial {
        /// Its name.
        peer: String,
        /// Its address.
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
pub struct Network {
    endpoint: Endpoint,
    identity: Identity,
    peers: Arc<Peers>,
    transport: Arc<quinn::TransportConfig>,
    dialled: mpsc::UnboundedSender<(String, Connection)>,
}

/// Connections that this platform has dialled: the other side opens streams on them too, so they want serving.
pub type Dialled = mpsc::UnboundedReceiver<(String, Connection)>;

impl Network {
    /// Opens the socket; to be called inside the runtime.
    pub fn open(config: &Config, identity: Identity, peers: Arc<Peers>) -> Result<(Self, Dialled), NetError> {
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
    pub async fn accept(&self) -> Option<quinn::Incoming> {
        self.endpoint.accept().await
    }

    /// Finishes a handshake begun by the other side.
    pub async fn admit(&self, incoming: quinn::Incoming) -> Result<(String, Connection), NetError> {
        let connection = incoming.await?;
        let keys =
            connection.peer_identity().and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
        let fingerprint = keys.as_ref().and_then(|keys| keys.first()).map(Fingerprint::of);
        match fingerprint.and_then(|fingerprint| self.peers.name_of(fingerprint)) {
            Some(name) => Ok((name, connection)),
            None => {
                connection.close(VarInt::from_u32(1), b"unknown key");
                Err(NetError::Lost("its key is not in the list of peers".to_owned()))
            }
        }
    }

    /// A new connection to a peer; its key is checked, and that it accepts ours.
    pub async fn dial(&self, name: &str) -> Result<Connection, NetError> {
        let peer = self.peers.get(name)?;
        let failed =
            |why: String| NetError::Dial { peer: name.to_owned(), address: peer.address.clone(), why };
        match tokio::time::timeout(DIAL_TIMEOUT, self.connect(&peer)).await {
            Ok(Ok(connection)) => {
                // Nobody serves while the daemon shuts down.
                let _ = self.dialled.send((name.to_owned(), connection.clone()));
                Ok(connection)
            }
            Ok(Err(why)) => Err(failed(why)),
            Err(_) => Err(failed("no answer (is the daemon running there, is UDP let through?)".to_owned())),
        }
    }

    async fn connect(&self, peer: &Peer) -> Result<Connection, String> {
        let tls = tls::client_config(&self.identity, peer.fingerprint).map_err(|error| error.to_string())?;
        let tls =
            quinn::crypto::rustls::QuicClientConfig::try_from(tls).map_err(|error| error.to_string())?;
        let mut config = quinn::ClientConfig::new(Arc::new(tls));
        config.transport_config(self.transport.clone());
        let addresses: Vec<SocketAddr> =
            tokio::net::lookup_host(&peer.address).await.map_err(|error| error.to_string())?.collect();
        let ours = self.endpoint.local_addr().map_err(|error| error.to_string())?;
        let address = addresses
            .iter()
            .find(|address| address.is_ipv4() == ours.is_ipv4() || ours.is_ipv6())
            .ok_or_else(|| format!("no address of the kind we listen on ({ours})"))?;
        let address = match (address, ours) {
            (SocketAddr::V4(v4), SocketAddr::V6(_)) => {
                SocketAddr::from((v4.ip().to_ipv6_mapped(), v4.port()))
            }
            (address, _) => *address,
        };
        let connecting =
            self.endpoint.connect_with(config, address, "longhaul").map_err(|error| error.to_string())?;
        let connection = connecting.await.map_err(|error| explain(&error))?;
        // Our side of the handshake ends before the other has looked at our key: only an answer says that it lets us in.
        match status_of(&connection).await {
            Ok(_) => Ok(connection),
            Err(NetError::Lost(why)) => Err(why),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Asks a peer how it is.
    pub async fn ask_status(&self, name: &str) -> Result<PeerStatus, NetError> {
        status_of(&self.dial(name).await?).await
    }

    /// Closes every connection and waits until the other sides have been told.
    pub async fn close(&self) {
        self.endpoint.close(VarInt::from_u32(0), b"shutting down");
        self.endpoint.wait_idle().await;
    }
}

async fn status_of(connection: &Connection) -> Result<PeerStatus, NetError> {
    let (mut send_stream, mut recv_stream) = connection.open_bi().await?;
    send(&mut send_stream, &Open::Status).await?;
    expect(&mut recv_stream).await
}

/// Larger datagrams than Ethernet's are found by MTU discovery where a path has them: jumbo frames, loopback.
const MAX_UDP_PAYLOAD: u16 = 65527;
const LARGEST_MTU_TRIED: u16 = 16384;

fn transport(config: &Config) -> quinn::TransportConfig {
    let mut transport = quinn::TransportConfig::default();
    let idle = Duration::from_secs(config.idle_timeout_s);
    let window = VarInt::from_u32(WINDOW_BYTES);
    let mut mtu = quinn::MtuDiscoveryConfig::default();
    mtu.upper_bound(LARGEST_MTU_TRIED);
    transport
        .max_idle_timeout(idle.try_into().ok())
        .keep_alive_interval(Some(idle / 4))
        .stream_receive_window(window)
        .receive_window(window)
        .send_window(u64::from(WINDOW_BYTES))
        .max_concurrent_bidi_streams(VarInt::from_u32(64))
        .max_concurrent_uni_streams(VarInt::from_u32(256))
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

/// Sends one message. Returns its bytes on the stream.
pub async fn send<T: Serialize>(stream: &mut SendStream, message: &T) -> Result<u64, NetError> {
    let frame = wire::frame(message)?;
    let bytes = frame.len() as u64;
    stream.write_chunk(Bytes::from(frame)).await?;
    Ok(bytes)
}

/// Receives one message; `None` when the stream ends before it.
pub async fn receive<T: DeserializeOwned>(stream: &mut RecvStream) -> Result<Option<T>, NetError> {
    let mut prefix = [0; 4];
    match stream.read_exact(&mut prefix).await {
        Ok(()) => {}
        Err(quinn::ReadExactError::FinishedEarly(0)) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let mut frame = vec![0; wire::frame_len(prefix)?];
    stream.read_exact(&mut frame).await?;
    Ok(Some(wire::from_bytes(&frame)?))
}

/// Receives one message that must come.
pub async fn expect<T: DeserializeOwned>(stream: &mut RecvStream) -> Result<T, NetError> {
    receive(stream).await?.ok_or(NetError::Ended)
}

#[cfg(test)]
mod tests;
