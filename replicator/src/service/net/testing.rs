//! Two platforms' ends of one connection over loopback, set up as the daemon does it, for tests of what runs on it.

use std::net::Ipv4Addr;
use std::sync::Arc;

use longhaul_proto::wire::{Open, PeerStatus};
use quinn::{Connection, RecvStream, SendStream};
use tempfile::TempDir;

use super::lanes::{self, LaneRecv, LaneSend};
use super::{Dialled, Network};
use crate::service::config::Config;
use crate::service::identity::Identity;
use crate::service::peers::{Peer, Peers};

/// One connection, seen from both of its ends. It lives as long as the value.
pub(crate) struct Pair {
    /// The end that dialled.
    pub(crate) a: Connection,
    /// The end that was dialled.
    pub(crate) b: Connection,
    _networks: [(Network, Dialled, TempDir); 2],
}

struct Side {
    dir: TempDir,
    identity: Identity,
    peers: Arc<Peers>,
}

impl Side {
    fn new() -> Side {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::load_or_create(dir.path()).unwrap();
        let peers = Arc::new(Peers::load(dir.path()).unwrap());
        Side { dir, identity, peers }
    }

    fn trust(&self, name: &str, other: &Side, address: String) {
        let fingerprint = other.identity.fingerprint();
        self.peers.add(name, Peer { address, fingerprint }).unwrap();
    }

    fn open(self) -> (Network, Dialled, TempDir) {
        let config = Config { listen: (Ipv4Addr::LOCALHOST, 0).into(), ..Config::default() };
        let (network, dialled) = Network::open(&config, self.identity, self.peers).unwrap();
        (network, dialled, self.dir)
    }
}

/// A new pair.
pub(crate) async fn pair() -> Pair {
    let (a, b) = (Side::new(), Side::new());
    b.trust("a", &a, "127.0.0.1:1".to_owned());
    let (peers_of_a, b_identity) = (a.peers.clone(), b.identity.fingerprint());
    let (a, b) = (a.open(), b.open());
    let address = b.0.endpoint.local_addr().unwrap().to_string();
    peers_of_a.add("b", Peer { address, fingerprint: b_identity }).unwrap();
    let admit = async {
        let incoming = b.0.accept().await.unwrap();
        let connection = b.0.admit(incoming).await.unwrap().1;
        // A dial asks how the other side is, to see that it lets us in.
        let (mut answer, mut asked) = connection.accept_bi().await.unwrap();
        assert_eq!(super::expect::<Open>(&mut asked).await.unwrap(), Open::Status);
        let status =
            PeerStatus { name: "b".to_owned(), version: String::new(), free_bytes: 0, gateway: None };
        super::send(&mut answer, &status).await.unwrap();
        answer.finish().unwrap();
        connection
    };
    let (dialled, admitted) = tokio::join!(a.0.dial("b"), admit);
    let (a_end, b_end) = (dialled.unwrap(), admitted);
    route_lanes(a_end.clone());
    route_lanes(b_end.clone());
    Pair { a: a_end, b: b_end, _networks: [a, b] }
}

/// Gives the lanes that the other side opens to their streams, as the daemon does, until the connection ends.
fn route_lanes(connection: Connection) {
    tokio::spawn(async move {
        let known = lanes::of(&connection);
        while let Ok(mut stream) = connection.accept_uni().await {
            let Ok(Open::Lane { token, index }) = super::expect(&mut stream).await else { continue };
            let known = known.clone();
            tokio::spawn(async move { known.deliver(token, index, stream, lanes::UNCLAIMED).await });
        }
    });
}

/// A stream from one end of the pair to the other, with its lanes, and the way back.
pub(crate) async fn striped(pair: &Pair) -> ((LaneSend, RecvStream), (SendStream, LaneRecv)) {
    let (send, recv) = pair.a.open_bi().await.unwrap();
    let mut send = LaneSend::begin(&pair.a, send).await.unwrap();
    super::send(&mut send, &Open::Status).await.unwrap();
    let (back, forth) = pair.b.accept_bi().await.unwrap();
    let mut forth = LaneRecv::plain(&pair.b, forth);
    assert_eq!(forth.opening().await.unwrap(), Open::Status);
    ((send, recv), (back, forth))
}

/// A platform's end of a network in which nobody else is.
pub(crate) fn alone() -> (Network, Dialled, TempDir) {
    Side::new().open()
}
