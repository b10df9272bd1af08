//! Moves of the guest, as whoever moves it tells the gateways. Decides nothing about what must come of them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mobility::access::{Event, Happened};
use tokio::sync::broadcast::Receiver;
use tokio::time::{sleep, timeout};

use crate::network::{NODE, grant};
use crate::{Network, Platform};

/// Longer than anything takes here, on a busy machine too: over a line that loses three of ten, an update and its answer both
/// arrive in one of two tries, and 20 are made in this time.
const PATIENCE: Duration = Duration::from_secs(60);

/// What happens at a gateway, from the time it was made.
#[derive(Debug)]
pub struct Watch(Receiver<Event>);

impl Watch {
    /// Waits until this has happened to some guest.
    ///
    /// # Errors
    /// When it does not, or the gateway ends.
    pub async fn until(&mut self, happened: Happened) -> Result<()> {
        let wait = async {
            while self.0.recv().await.context("the gateway has ended")?.happened != happened {}
            Ok(())
        };
        timeout(PATIENCE, wait).await.with_context(|| format!("waiting for {happened:?}"))?
    }
}

impl Network {
    /// What happens at `platform` from now on.
    #[must_use]
    pub fn watch(&self, platform: usize) -> Watch {
        Watch(self.platforms[platform].gateway.handle.events())
    }

    /// The guest starts at `platform`: how long until it is registered.
    ///
    /// # Errors
    /// When it is not.
    pub async fn appear(&self, platform: usize, epoch: u64) -> Result<Duration> {
        let mut watch = self.watch(platform);
        self.allow(platform, epoch).await?;
        self.resume(platform)?;
        let start = Instant::now();
        self.platforms[platform].gateway.handle.serve(grant(epoch)).await?;
        watch.until(Happened::Registered).await?;
        Ok(start.elapsed())
    }

    /// The guest moves to `to`, which was not told before; it is paused for `pause`. Ends when it is registered there.
    ///
    /// # Errors
    /// When it is not.
    pub async fn move_reactive(&self, to: usize, epoch: u64, pause: Duration) -> Result<()> {
        let mut watch = self.watch(to);
        self.allow(to, epoch).await?;
        self.pause(1 - to)?;
        sleep(pause).await;
        self.resume(to)?;
        self.platforms[to].gateway.handle.serve(grant(epoch)).await?;
        watch.until(Happened::Registered).await
    }

    /// The guest moves to `to`, which is prepared; it is paused for `pause`. Ends when it is registered there and revoked
    /// where it was.
    ///
    /// # Errors
    /// When it is not.
    pub async fn move_proactive(&self, to: usize, epoch: u64, pause: Duration) -> Result<()> {
        let (mut here, mut there) = (self.watch(1 - to), self.watch(to));
        self.prepare(to, epoch).await?;
        self.leave(to, epoch).await?;
        sleep(pause).await;
        self.arrive(to).await?;
        there.until(Happened::Registered).await?;
        here.until(Happened::Revoked).await
    }

    /// From the first platform, where the guest is in epoch 1, to the other and back, five times. It is expected
    /// for two moves, then not for two, and so on.
    ///
    /// # Errors
    /// When a move fails.
    pub async fn move_ten_times(&self, pause: Duration) -> Result<()> {
        for number in 0..10 {
            sleep(Duration::from_millis(150)).await;
            let (to, epoch) = ((number + 1) % 2, number as u64 + 2);
            if number / 2 % 2 == 0 {
                self.move_proactive(to, epoch, pause).await?;
            } else {
                self.move_reactive(to, epoch, pause).await?;
            }
        }
        Ok(())
    }

    /// Ends when `to` expects the guest, and its gateway remembers what it is given.
    ///
    /// # Errors
    /// When it does not.
    pub async fn prepare(&self, to: usize, epoch: u64) -> Result<()> {
        let mut there = self.watch(to);
        self.allow(to, epoch).await?;
        let Platform { gateway: source, address, .. } = &self.platforms[1 - to];
        source.handle.remember(NODE).await?;
        self.platforms[to].gateway.handle.expect(grant(epoch), *address).await?;
        there.until(Happened::Prepared).await?;
        // As long as a packet may lie unread before the pause.
        sleep(Duration::from_millis(10)).await;
        Ok(())
    }

    /// The guest is paused, and will go on at `to`.
    ///
    /// # Errors
    /// When the kernel or the gateway refuses.
    pub async fn leave(&self, to: usize, epoch: u64) -> Result<()> {
        let (source, target) = (&self.platforms[1 - to].gateway.handle, self.platforms[to].address);
        let stopped = Instant::now();
        self.pause(1 - to)?;
        Ok(source.forward(grant(epoch), target, stopped).await?)
    }

    /// The guest, which was expected, goes on at `to`.
    ///
    /// # Errors
    /// When the kernel or the gateway refuses.
    pub async fn arrive(&self, to: usize) -> Result<()> {
        self.resume(to)?;
        Ok(self.platforms[to].gateway.handle.arrived(NODE).await?)
    }

    /// Waits until the home agent has the guest at `platform`.
    ///
    /// # Errors
    /// When it has not.
    pub async fn until_owned_by(&self, platform: usize) -> Result<()> {
        let (start, owner) = (Instant::now(), self.platforms[platform].address);
        loop {
            let binding = self.home_agent.handle.binding(NODE).await?;
            if binding.as_ref().is_some_and(|binding| binding.care_of == owner) {
                return Ok(());
            }
            if start.elapsed() > PATIENCE {
                bail!("the guest is at {owner}, but bound to {binding:?}");
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Permission for `epoch`; those of moves long over are taken back.
    async fn allow(&self, platform: usize, epoch: u64) -> Result<()> {
        self.withdraw(epoch.saturating_sub(3)).await?;
        self.authorize(platform, epoch).await
    }
}
