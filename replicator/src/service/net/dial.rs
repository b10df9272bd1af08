//! From a peer's name to a connection: each of its addresses in turn, none of which may take the time of all.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use longhaul_proto::wire::{Open, PeerStatus};
use quinn::Connection;

use super::{NetError, Network, expect, explain, send, tls};
use crate::service::identity::Fingerprint;
use crate::service::peers::Peer;

/// How long a peer has to answer a dial, at the last of its addresses.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long at each address before that.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(3);
/// A name with more addresses than these is tried at the first ones only.
const MAX_ADDRESSES: usize = 8;

impl Network {
    /// A new connection to a peer; its key is checked, and that it accepts ours. A name is tried at each of its addresses.
    pub(crate) async fn dial(&self, name: &str) -> Result<Connection, NetError> {
        let peer = self.peers.get(name)?;
        let failed =
            |why: String| NetError::Dial { peer: name.to_owned(), address: peer.address.clone(), why };
        let addresses = self.addresses(&peer).await.map_err(failed)?;
        let connection = self.connect_any(&addresses, peer.fingerprint).await.map_err(failed)?;
        // Nobody serves while the daemon shuts down.
        let _ = self.dialled.send((name.to_owned(), connection.clone()));
        Ok(connection)
    }

    /// Where a peer may be: its addresses of the kinds that our socket can send to.
    async fn addresses(&self, peer: &Peer) -> Result<Vec<SocketAddr>, String> {
        let found = tokio::time::timeout(DIAL_TIMEOUT, tokio::net::lookup_host(&peer.address)).await;
        let found = found.map_err(|_| "its name is not resolved; see whether the name server answers")?;
        let ours = self.endpoint.local_addr().map_err(|error| error.to_string())?;
        let reached = |address: SocketAddr| match (address, ours) {
            (SocketAddr::V4(v4), SocketAddr::V6(_)) => Some((v4.ip().to_ipv6_mapped(), v4.port()).into()),
            (address, _) => (address.is_ipv4() == ours.is_ipv4()).then_some(address),
        };
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for address in found.map_err(|error| error.to_string())?.filter_map(reached) {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        addresses.truncate(MAX_ADDRESSES);
        if addresses.is_empty() {
            return Err(format!("no address of the kind we listen on ({ours})"));
        }
        Ok(addresses)
    }

    /// The first of `addresses` at which the peer answers; else why not, of each.
    pub(super) async fn connect_any(
        &self,
        addresses: &[SocketAddr],
        fingerprint: Fingerprint,
    ) -> Result<Connection, String> {
        let mut reasons = Vec::new();
        for (index, address) in addresses.iter().enumerate() {
            let is_last = index + 1 == addresses.len();
            let patience = if is_last { DIAL_TIMEOUT } else { ADDRESS_TIMEOUT };
            let why = match tokio::time::timeout(patience, self.connect(*address, fingerprint)).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(why)) => why,
                Err(_) => "no answer (is the daemon running there, is UDP let through?)".to_owned(),
            };
            reasons.push(if addresses.len() == 1 { why } else { format!("{address}: {why}") });
        }
        Err(reasons.join("; "))
    }

    async fn connect(&self, address: SocketAddr, fingerprint: Fingerprint) -> Result<Connection, String> {
        let tls = tls::client_config(&self.identity, fingerprint).map_err(|error| error.to_string())?;
        let tls =
            quinn::crypto::rustls::QuicClientConfig::try_from(tls).map_err(|error| error.to_string())?;
        let mut config = quinn::ClientConfig::new(Arc::new(tls));
        config.transport_config(self.transport.clone());
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
}

pub(super) async fn status_of(connection: &Connection) -> Result<PeerStatus, NetError> {
    let (mut send_stream, mut recv_stream) = connection.open_bi().await?;
    send(&mut send_stream, &Open::Status).await?;
    expect(&mut recv_stream).await
}
