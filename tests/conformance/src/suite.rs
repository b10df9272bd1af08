//! The cases, in one order: a guest that is begun on the first host moves to the second and back, with everything that can
//! go wrong on the way. Each case says in its errors what was expected of whom.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use harness::Collector;
use migrate_driver::GuestStatus;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::{Answer, Call, Site};

/// Nothing takes longer, on the slowest host that is tested.
const PATIENCE: Duration = Duration::from_secs(240);
/// A guest that is not heard for so long stands still: it sends every 20 ms.
const STILL: Duration = Duration::from_secs(2);
/// So much of a stream is read before it is broken off.
const BROKEN_AFTER: usize = 64 << 10;

/// Two hosts, and the guest as it is heard.
pub struct Suite<'a> {
    /// Where the guest is begun.
    pub a: &'a dyn Site,
    /// Where it is moved to.
    pub b: &'a dyn Site,
    /// Hears it.
    pub collector: &'a Collector,
}

/// Runs all cases. The guest is on neither host before and after.
///
/// # Errors
/// Says which promise was broken in which case.
pub async fn run(suite: &Suite<'_>) -> Result<()> {
    let Suite { a, b, .. } = *suite;
    case("a guest is begun once, and stands and runs as it is told", suite.lifecycle()).await?;
    case("a tap that another driver left is no obstacle", suite.left_tap()).await?;
    case("one that waits for its memory cannot run, and ends when it is told", suite.waiting()).await?;
    case("a stream that is none is an error, and nothing runs of it", suite.garbage()).await?;
    case("a stream that breaks off leaves the guest at the source", suite.broken_stream()).await?;
    case("it is taken back before the disks are given up", suite.taken_back(false)).await?;
    case("it is taken back after they are, by another driver", suite.taken_back(true)).await?;
    case("it moves, and the source cannot have it back by chance", suite.moves(a, b, false)).await?;
    case("it moves back cold", suite.moves(b, a, true)).await?;
    case("what has ended is gone", suite.ended()).await
}

async fn case(what: &str, checked: impl Future<Output = Result<()>>) -> Result<()> {
    let started = std::time::Instant::now();
    checked.await.with_context(|| what.to_owned())?;
    println!("    {what} ({:.1} s)", started.elapsed().as_secs_f64());
    Ok(())
}

/// Asks, and does not wait for ever.
async fn ask(site: &dyn Site, call: Call) -> Result<Answer> {
    timeout(PATIENCE, site.call(call)).await.with_context(|| format!("{call:?} does not end"))?
}

/// It must be done; gives the bytes in the overlay.
async fn done(site: &dyn Site, call: Call) -> Result<u64> {
    match ask(site, call).await? {
        Answer::Done(_, written) => Ok(written),
        answer => bail!("{call:?}: {answer:?}"),
    }
}

async fn refused(site: &dyn Site, call: Call, expected: Answer) -> Result<()> {
    let answer = ask(site, call).await?;
    ensure!(answer == expected, "{call:?}: {answer:?} where {expected:?} was due");
    Ok(())
}

async fn fails(site: &dyn Site, call: Call) -> Result<()> {
    let answer = ask(site, call).await?;
    ensure!(!matches!(answer, Answer::Done(..)), "{call:?} did not fail");
    Ok(())
}

async fn stands(site: &dyn Site, call: Call, expected: GuestStatus) -> Result<()> {
    match ask(site, call).await? {
        Answer::Done(Some(status), _) if status == expected => Ok(()),
        answer => bail!("{call:?}: {answer:?} where {expected} was due"),
    }
}

/// A guest that runs.
async fn runs(site: &dyn Site) -> Result<()> {
    stands(site, Call::Status, GuestStatus::Running).await
}

impl Suite<'_> {
    async fn lifecycle(&self) -> Result<()> {
        let a = self.a;
        stands(a, Call::Status, GuestStatus::Stopped).await?;
        done(a, Call::Stop).await?;
        stands(a, Call::Rollback, GuestStatus::Stopped).await?;
        refused(a, Call::Resume, Answer::NotRunning).await?;
        done(a, Call::Start).await?;
        runs(a).await?;
        self.collector.wait_acked(3, PATIENCE)?;
        refused(a, Call::Start, Answer::AlreadyRunning).await?;
        done(a, Call::CheckMovable(true)).await?;
        done(a, Call::Resume).await?;
        for _ in 0..2 {
            done(a, Call::Pause).await?;
            stands(a, Call::Status, GuestStatus::Paused).await?;
        }
        self.is_still()?;
        done(a, Call::Resume).await?;
        self.lives()
    }

    /// The overlay of the first tap is gone when the second one is put in its place.
    async fn left_tap(&self) -> Result<()> {
        let a = self.a;
        done(a, Call::Tap).await?;
        done(a, Call::Restart).await?;
        done(a, Call::Tap).await?;
        self.lives()?;
        done(a, Call::Untap).await?;
        self.lives()
    }

    async fn waiting(&self) -> Result<()> {
        let b = self.b;
        done(b, Call::StartIncoming).await?;
        stands(b, Call::Status, GuestStatus::Incoming).await?;
        refused(b, Call::Resume, Answer::WrongState).await?;
        refused(b, Call::StartIncoming, Answer::AlreadyRunning).await?;
        done(b, Call::Restart).await?;
        stands(b, Call::Rollback, GuestStatus::Incoming).await?;
        done(b, Call::Stop).await?;
        stands(b, Call::Status, GuestStatus::Stopped).await
    }

    async fn garbage(&self) -> Result<()> {
        let b = self.b;
        done(b, Call::StartIncoming).await?;
        let mut stream = b.open_incoming().await?;
        let _ = stream.write_all(&[0x5a; 64 << 10]).await;
        let _ = stream.shutdown().await;
        fails(b, Call::IncomingLoaded).await?;
        let answer = ask(b, Call::Status).await?;
        ensure!(
            !matches!(answer, Answer::Done(Some(GuestStatus::Running | GuestStatus::Paused), _)),
            "{answer:?}"
        );
        done(b, Call::Stop).await?;
        stands(b, Call::Status, GuestStatus::Stopped).await
    }

    async fn broken_stream(&self) -> Result<()> {
        let a = self.a;
        let mut stream = a.send_memory(false).await?;
        stream.read_exact(&mut vec![0; BROKEN_AFTER]).await?;
        drop(stream);
        fails(a, Call::WaitPaused).await?;
        stands(a, Call::Rollback, GuestStatus::Running).await?;
        self.lives()
    }

    /// The guest, stopped at the source; its memory on the way to the destination.
    async fn send(
        &self,
        from: &dyn Site,
        to: &dyn Site,
        cold: bool,
    ) -> Result<JoinHandle<std::io::Result<u64>>> {
        done(to, Call::StartIncoming).await?;
        done(from, Call::Tap).await?;
        // A cold one stops the guest at once: there are writes to be tapped only if it runs a while.
        self.lives()?;
        let mut incoming = to.open_incoming().await?;
        let mut memory = from.send_memory(cold).await?;
        let relay = tokio::spawn(async move {
            let bytes = tokio::io::copy(&mut memory, &mut incoming).await?;
            incoming.shutdown().await?;
            Ok(bytes)
        });
        done(from, Call::WaitPaused).await?;
        self.is_still()?;
        ensure!(done(from, Call::Drain).await? > 0, "the guest's writes did not come into the overlay");
        Ok(relay)
    }

    async fn taken_back(&self, given_up: bool) -> Result<()> {
        let Suite { a, b, .. } = *self;
        let relay = self.send(a, b, false).await?;
        if given_up {
            done(a, Call::FinishMemory).await?;
            stands(a, Call::Status, GuestStatus::PostMigrate).await?;
            relay.await??;
            done(b, Call::IncomingLoaded).await?;
            stands(b, Call::Status, GuestStatus::Paused).await?;
            done(b, Call::Restart).await?;
            stands(b, Call::Rollback, GuestStatus::Paused).await?;
            self.is_still()?;
        } else {
            stands(a, Call::Status, GuestStatus::PreSwitchover).await?;
            refused(a, Call::Resume, Answer::WrongState).await?;
        }
        done(b, Call::Stop).await?;
        stands(b, Call::Status, GuestStatus::Stopped).await?;
        done(a, Call::Restart).await?;
        for _ in 0..2 {
            stands(a, Call::Rollback, GuestStatus::Running).await?;
        }
        done(a, Call::Untap).await?;
        self.lives()
    }

    async fn moves(&self, from: &dyn Site, to: &dyn Site, cold: bool) -> Result<()> {
        done(from, Call::CheckMovable(!cold)).await?;
        let relay = self.send(from, to, cold).await?;
        done(from, Call::FinishMemory).await?;
        relay.await??;
        done(to, Call::IncomingLoaded).await?;
        stands(from, Call::Status, GuestStatus::PostMigrate).await?;
        stands(to, Call::Status, GuestStatus::Paused).await?;
        self.is_still()?;
        for _ in 0..2 {
            done(to, Call::Resume).await?;
        }
        runs(to).await?;
        self.lives()?;
        done(from, Call::Stop).await?;
        stands(from, Call::Status, GuestStatus::Stopped).await?;
        stands(to, Call::Rollback, GuestStatus::Running).await?;
        self.lives()
    }

    async fn ended(&self) -> Result<()> {
        for site in [self.a, self.b] {
            done(site, Call::Stop).await?;
            stands(site, Call::Status, GuestStatus::Stopped).await?;
        }
        self.is_still()?;
        ensure!(self.collector.duplicates() == 0, "the guest ran twice");
        ensure!(self.collector.instances().len() == 1, "it was begun more than once");
        Ok(())
    }

    fn lives(&self) -> Result<()> {
        self.collector.wait_progress(5, PATIENCE).context("the guest does not run").map(drop)
    }

    fn is_still(&self) -> Result<()> {
        // What was sent before has time to come.
        std::thread::sleep(STILL / 4);
        ensure!(self.collector.is_silent(STILL), "the guest runs");
        Ok(())
    }
}
