//! Two real endpoints on the loopback: who gets in, what a person is told who does not, and what a frame may be.

use longhaul_proto::wire::Open;
use tempfile::TempDir;

use super::*;
use crate::service::peers::Peer;

struct Site {
    network: Network,
    peers: Arc<Peers>,
    identity: Identity,
    _dialled: Dialled,
    _dir: TempDir,
}

impl Site {
    fn new() -> Site {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::load_or_create(dir.path()).unwrap();
        let peers = Arc::new(Peers::load(dir.path()).unwrap());
        let config = Config { listen: ([127, 0, 0, 1], 0).into(), idle_timeout_s: 1, ..Config::default() };
        let (network, dialled) = Network::open(&config, identity.clone(), peers.clone()).unwrap();
        Site { network, peers, identity, _dialled: dialled, _dir: dir }
    }

    fn address(&self) -> SocketAddr {
        self.network.endpoint.local_addr().unwrap()
    }

    /// Trusts `other` under `name`; `key` is what was given for it.
    fn trust(&self, name: &str, other: &Site, key: Fingerprint) {
        let peer = Peer { address: other.address().to_string(), fingerprint: key };
        self.peers.add(name, peer).unwrap();
    }

    /// Admits the next one that knocks, and answers what a dial asks.
    async fn admit(&self) -> Result<(String, Connection), NetError> {
        let incoming = self.network.accept().await.unwrap();
        let (name, connection) = self.network.admit(incoming).await?;
        let (mut answer, mut asked) = connection.accept_bi().await?;
        assert!(matches!(expect::<Open>(&mut asked).await?, Open::Status));
        send(&mut answer, &status()).await?;
        let _ = answer.finish();
        Ok((name, connection))
    }
}

fn status() -> PeerStatus {
    PeerStatus { name: "b".to_owned(), version: "1".to_owned(), free_bytes: 7, gateway: None }
}

/// Two that trust each other: `a` calls the other one `b`.
fn friends() -> (Site, Site) {
    let (a, b) = (Site::new(), Site::new());
    a.trust("b", &b, b.identity.fingerprint());
    b.trust("a", &a, a.identity.fingerprint());
    (a, b)
}

/// The connection between two friends, as each holds it.
async fn connected(a: &Site, b: &Site) -> (Connection, Connection) {
    let (dialled, admitted) = tokio::join!(a.network.dial("b"), b.admit());
    let (name, admitted) = admitted.unwrap();
    assert_eq!(name, "a");
    (dialled.unwrap(), admitted)
}

#[tokio::test]
async fn a_known_peer_gets_in_by_its_name_and_is_heard() {
    let (a, b) = friends();
    let (at_a, at_b) = connected(&a, &b).await;
    let (mut ask, mut hear) = at_a.open_bi().await.unwrap();
    let bytes = send(&mut ask, &Open::Status).await.unwrap();
    let (mut answer, mut asked) = at_b.accept_bi().await.unwrap();
    assert!(matches!(expect::<Open>(&mut asked).await.unwrap(), Open::Status));
    assert!(bytes > 4, "a frame has its length and something in it");
    send(&mut answer, &status()).await.unwrap();
    answer.finish().unwrap();
    assert_eq!(expect::<PeerStatus>(&mut hear).await.unwrap(), status());
    assert!(receive::<PeerStatus>(&mut hear).await.unwrap().is_none(), "the stream ended between messages");
}

#[tokio::test]
async fn a_stranger_does_not_get_past_the_handshake_and_is_told_what_to_do() {
    let (a, b) = (Site::new(), Site::new());
    a.trust("b", &b, b.identity.fingerprint());
    let (dialled, admitted) = tokio::join!(a.network.dial("b"), b.admit());
    let refused = admitted.unwrap_err();
    assert!(matches!(refused, NetError::Lost(_)), "refused in the handshake: {refused}");
    let error = dialled.unwrap_err();
    assert!(matches!(error, NetError::Dial { .. }), "told by the dial itself: {error}");
    let message = error.to_string();
    assert!(message.contains("does not know this platform's key"), "{message}");
    assert!(message.contains("`longhaul peer add`"), "{message}");
}

#[tokio::test]
async fn a_peer_that_was_removed_is_a_stranger_again() {
    let (a, b) = friends();
    connected(&a, &b).await;
    b.peers.remove("a").unwrap();
    let (dialled, admitted) = tokio::join!(a.network.dial("b"), b.admit());
    assert!(admitted.is_err());
    assert!(dialled.is_err());
}

#[tokio::test]
async fn another_key_than_the_one_given_is_told_on_the_dialling_side() {
    let (a, b, other) = (Site::new(), Site::new(), Site::new());
    a.trust("b", &b, other.identity.fingerprint());
    b.trust("a", &a, a.identity.fingerprint());
    let (dialled, admitted) = tokio::join!(a.network.dial("b"), b.admit());
    assert!(admitted.is_err());
    let error = dialled.unwrap_err();
    assert!(matches!(error, NetError::Dial { .. }), "{error}");
    let message = error.to_string();
    let (expected, found) = (other.identity.fingerprint(), b.identity.fingerprint());
    for part in [&expected.to_string(), &found.to_string(), "longhaul peer add", &b.address().to_string()] {
        assert!(message.contains(part), "no {part} in: {message}");
    }
}

#[tokio::test]
async fn another_version_of_the_protocol_does_not_get_in() {
    let (a, b) = friends();
    let mut tls = tls::client_config(&a.identity, b.identity.fingerprint()).unwrap();
    tls.alpn_protocols = vec![b"longhaul/0".to_vec()];
    let tls = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(tls));
    let connecting = a.network.endpoint.connect_with(config, b.address(), "longhaul").unwrap();
    let (dialled, admitted) = tokio::join!(connecting, b.admit());
    assert!(admitted.is_err());
    // no_application_protocol, RFC 7301: TLS alert 120.
    let message = dialled.unwrap_err().to_string();
    assert!(message.contains("120") || message.contains("application protocol"), "{message}");
}

#[tokio::test]
async fn silence_ends_a_dial_and_says_what_to_look_at() {
    let (a, b) = (Site::new(), Site::new());
    let deaf = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = deaf.local_addr().unwrap().to_string();
    a.peers.add("b", Peer { address: address.clone(), fingerprint: b.identity.fingerprint() }).unwrap();
    let message = a.network.dial("b").await.unwrap_err().to_string();
    assert!(message.contains(&address) && message.contains("is the daemon running there"), "{message}");
}

#[tokio::test]
async fn a_name_that_nobody_has_is_an_error_before_anything_is_sent() {
    let a = Site::new();
    assert!(matches!(a.network.dial("b").await, Err(NetError::Peer(PeersError::Unknown { .. }))));
}

/// What `receive` makes of these bytes, the stream ended behind them.
async fn received(bytes: &[u8]) -> Result<Option<Open>, NetError> {
    let (a, b) = friends();
    let (at_a, at_b) = connected(&a, &b).await;
    let mut stream = at_a.open_uni().await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream.finish().unwrap();
    let mut stream = at_b.accept_uni().await.unwrap();
    receive(&mut stream).await
}

#[tokio::test]
async fn a_frame_longer_than_any_is_refused_by_its_length_alone() {
    for length in [wire::MAX_FRAME_BYTES as u32 + 1, u32::MAX] {
        let outcome = received(&length.to_le_bytes()).await;
        assert!(matches!(outcome, Err(NetError::Frame(FrameError::TooLong(_)))), "{outcome:?}");
    }
}

#[tokio::test]
async fn a_stream_that_ends_inside_a_message_is_an_error_and_before_one_is_none() {
    let whole = wire::frame(&Open::Status).unwrap();
    assert!(matches!(received(&whole).await, Ok(Some(Open::Status))));
    assert!(matches!(received(&[]).await, Ok(None)));
    for part in [1, 3, 4] {
        let outcome = received(&whole[..part]).await;
        assert!(matches!(outcome, Err(NetError::Ended)), "{part} bytes: {outcome:?}");
    }
}

#[tokio::test]
async fn a_frame_that_is_no_message_or_more_than_one_is_refused() {
    let hostile = [&[1, 0, 0, 0, 255][..], &[3, 0, 0, 0, 2, 0, 0], &[0, 0, 0, 0]];
    for bytes in hostile {
        let outcome = received(bytes).await;
        assert!(matches!(outcome, Err(NetError::Frame(FrameError::Malformed(_)))), "{bytes:?}: {outcome:?}");
    }
}

#[tokio::test]
async fn a_peer_that_closes_is_lost_not_a_protocol_error() {
    let (a, b) = friends();
    let (at_a, at_b) = connected(&a, &b).await;
    let mut stream = at_a.open_uni().await.unwrap();
    stream.write_all(&[9]).await.unwrap();
    let mut stream = at_b.accept_uni().await.unwrap();
    a.network.close().await;
    assert!(matches!(receive::<Open>(&mut stream).await, Err(NetError::Lost(_))));
}

#[tokio::test]
async fn a_peer_is_found_at_its_second_address() {
    let (a, b) = friends();
    // Somebody is there who never answers.
    let silent = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    let addresses = [silent.local_addr().unwrap(), b.address()];
    let key = b.identity.fingerprint();
    let (dialled, admitted) = tokio::join!(a.network.connect_any(&addresses, key), b.admit());
    assert_eq!(dialled.unwrap().remote_address(), b.address());
    admitted.unwrap();
    let nowhere = a.network.connect_any(&addresses[..1], key).await.unwrap_err();
    assert!(nowhere.contains("is UDP let through?"), "{nowhere}");
}

#[tokio::test]
async fn a_peer_of_the_protocol_before_gets_one_plain_stream() {
    let (a, b) = friends();
    let (current, _) = connected(&a, &b).await;
    assert!(is_current(&current));
    let mut tls = tls::client_config(&a.identity, b.identity.fingerprint()).unwrap();
    tls.alpn_protocols = vec![wire::ALPN_BEFORE.to_vec()];
    let tls = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(tls));
    let connecting = a.network.endpoint.connect_with(config, b.address(), "longhaul").unwrap();
    let admit = async { b.network.admit(b.network.accept().await.unwrap()).await.unwrap().1 };
    let (before, at_b) = tokio::join!(connecting, admit);
    let before = before.unwrap();
    assert!(!is_current(&before) && !is_current(&at_b));
    let (main, _) = at_b.open_bi().await.unwrap();
    let mut sent = lanes::LaneSend::begin(&at_b, main).await.unwrap();
    let bytes = vec![5; 100_000];
    let sending = async {
        sent.write_chunk(bytes.clone().into()).await.unwrap();
        sent.finish().await.unwrap();
    };
    let receiving = async {
        let (_, mut plain) = before.accept_bi().await.unwrap();
        plain.read_to_end(200_000).await.unwrap()
    };
    let ((), received) = tokio::join!(sending, receiving);
    assert!(!sent.is_striped() && received == bytes);
}
