//! Agents in namespaces: each on a thread of its own that has entered its namespace. Stopping one without more is what a
//! crash does to it.

use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use harness::Namespace;
use tokio::sync::oneshot;

/// An agent that runs in a namespace, and its handle. Dropped, it is killed.
#[derive(Debug)]
pub struct Running<T> {
    /// The agent's own handle.
    pub handle: T,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> Running<T> {
    /// Runs `start` in `namespace`, and all that it spawns.
    ///
    /// # Errors
    /// What `start` says.
    pub fn start<F, E>(namespace: &Arc<Namespace>, start: F) -> Result<Self>
    where
        F: AsyncFnOnce() -> std::result::Result<T, E> + Send + 'static,
        E: Into<anyhow::Error>,
    {
        let (started, handle) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let namespace = Arc::clone(namespace);
        let thread = thread::spawn(move || {
            let ran = namespace.enter(|| -> Result<()> {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(async {
                    let _ = started.send(start().await.map_err(Into::into));
                    let _ = stopped.await;
                });
                Ok(())
            });
            if let Err(error) = ran.and_then(|ran| ran) {
                eprintln!("an agent's thread: {error:#}");
            }
        });
        let handle = handle.recv().context("the agent's thread ended before it was started")??;
        Ok(Self { handle, stop: Some(stop), thread: Some(thread) })
    }
}

impl<T> Running<T> {
    /// Stops it where it stands.
    pub fn kill(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl<T> Drop for Running<T> {
    fn drop(&mut self) {
        self.kill();
    }
}
