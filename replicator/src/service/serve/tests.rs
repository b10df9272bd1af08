//! Which connections end with a peer.

use super::*;
use crate::service::net::testing::pair;

#[tokio::test]
async fn a_peer_that_is_removed_loses_its_live_connections_and_nobody_else_does() {
    let (removed, other) = (pair().await, pair().await);
    let connections = Connections::default();
    let _of_removed = connections.enter("a", &removed.b);
    let of_other = connections.enter("c", &other.b);
    connections.close("a");
    removed.a.closed().await;
    assert!(other.a.close_reason().is_none());
    drop(of_other);
    assert!(connections.lock().is_empty(), "what is served no longer is not kept");
}
