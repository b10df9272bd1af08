use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use chunkstore::ReadImage;

use super::{Lease, Leased, Revoked};

#[tokio::test]
async fn the_end_of_a_lease_waits_for_what_runs_on_a_blocking_thread() {
    let lease = Lease::new();
    let written = Arc::new(AtomicUsize::new(0));
    let (started, has_started) = tokio::sync::oneshot::channel();
    let (work, counter) = (lease.clone(), written.clone());
    // Its handle is dropped, as a future that was waiting for it would be.
    drop(lease.run_blocking(move || {
        let _ = started.send(());
        while work.check().is_ok() {
            std::thread::yield_now();
        }
        counter.store(1, Ordering::SeqCst);
    }));
    has_started.await.unwrap();
    lease.end().await;
    assert_eq!(written.load(Ordering::SeqCst), 1, "the last write came before the end");
}

#[tokio::test]
async fn a_task_is_dropped_and_a_share_is_waited_for() {
    let lease = Lease::new();
    let task = lease.spawn(std::future::pending::<()>());
    let share = lease.share();
    let (ending, waited) = (lease.clone(), tokio::spawn(async {}));
    waited.await.unwrap();
    let end = tokio::spawn(async move { ending.end().await });
    assert_eq!(task.await.unwrap(), Err(Revoked));
    assert!(!end.is_finished());
    drop(share);
    end.await.unwrap();
}

#[test]
fn an_image_under_a_revoked_lease_cannot_be_read() {
    let lease = Lease::new();
    let image = Leased::new(vec![7_u8; 4], &lease);
    let mut byte = [0];
    image.read_at(3, &mut byte).unwrap();
    lease.revoke();
    let error = image.read_at(3, &mut byte).unwrap_err();
    assert!(error.get_ref().is_some_and(|inner| inner.is::<Revoked>()));
}

#[tokio::test]
async fn work_that_is_spawned_to_its_end_is_not_dropped() {
    let lease = Lease::new();
    let (go, gone) = mpsc::channel();
    let (send, receive) = tokio::sync::oneshot::channel::<()>();
    lease.spawn_to_end(async move {
        let _ = receive.await;
        go.send(()).unwrap();
    });
    lease.revoke();
    assert!(gone.try_recv().is_err());
    send.send(()).unwrap();
    lease.end().await;
    gone.try_recv().unwrap();
}
