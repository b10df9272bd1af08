//! Agents in namespaces: each on a thread of its own that has entered its namespace. Stopping one without more is what a
//! crash does to it.

use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use harness::Namespace;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

/// An agent that runs in a namespace, and its handle. Dropped, it is killed.
#[derive(Debug)]
pub struct Running<T> {
    /// The agent's own handle.
    pub handle: T,
    /// `None` once it is killed.
    holds: Option<UnboundedSender<Duration>>,
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
        let (holds, mut held) = unbounded_channel();
        let namespace = Arc::clone(namespace);
        let thread = thread::spawn(move || {
            let ran = namespace.enter(|| -> Result<()> {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(async {
                    let _ = started.send(start().await.map_err(Into::into));
                    while let Some(time) = held.recv().await {
                        thread::sleep(time);
                    }
                });
                Ok(())
            });
            if let Err(error) = ran.and_then(|ran| ran) {
                eprintln!("an agent's thread: {error:#}");
            }
        });
        let handle = handle.recv().context("the agent's thread ended before it was started")??;
        Ok(Self { handle, holds: Some(holds), thread: Some(thread) })
    }
}

impl<T> Running<T> {
    /// For so long it does nothing, as on a host that has other things to do: what is for it waits.
    pub fn hold(&self, time: Duration) {
        // A dead one does nothing anyway.
        let _ = self.holds.as_ref().map(|holds| holds.send(time));
    }

    /// Stops it where it stands.
    pub fn kill(&mut self) {
        drop(self.holds.take());
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
