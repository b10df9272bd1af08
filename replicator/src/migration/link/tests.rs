//! What counts as a loss, over real connections.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Waker};

use super::*;
use crate::service::net::testing::{alone, pair};

const JOB: JobId = JobId([3; 16]);

/// Whether a loss has been told that nobody has heard of yet.
fn is_lost(lost: &Notify) -> bool {
    pin!(lost.notified()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
}

#[tokio::test]
async fn a_second_live_connection_is_no_loss_and_the_end_of_either_is_one() {
    let (network, first, second) = (alone(), pair().await, pair().await);
    let lost = Arc::new(Notify::new());
    let link = Link::new(network.0.clone(), "b".to_owned(), JOB, Some(first.a.clone()), lost.clone());
    link.attach(second.a.clone());
    link.attach(second.a.clone());
    assert!(!is_lost(&lost), "both live");
    // What was under way on the first may be gone.
    first.b.close(0_u8.into(), b"test");
    lost.notified().await;
    assert_eq!(link.connection().await.unwrap().stable_id(), second.a.stable_id());
    second.b.close(0_u8.into(), b"test");
    lost.notified().await;
    assert!(link.connection().await.is_err(), "nobody can be dialled");
    link.close().await;
}
