//! QEMU's own migration of memory, up to `pre-switchover`, through it, and back.
//!
//! Waits by events. Never resumes a guest except in [`resume`]; `migrate_cancel` makes QEMU itself resume a guest that ran.

use std::fs;
use std::path::Path;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{sleep, timeout};

use super::convergence::{Convergence, Figures, Verdict};
use super::session::{DISK_TIMEOUT, Outgoing, Session, Vm};
use crate::hypervisor::{DriverError, GuestStatus, MemoryParams, MemoryProgress, Mode};
use crate::process::{SocketId, io_error};

/// QEMU connects to our socket at once or never.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// A cancelled migration ends within a round trip of its main loop, plus a disk flush.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(60);
/// How long QEMU may take to let go of the disks, or to notice that nobody takes the rest.
const DEVICE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long QEMU may be busy with the rest of the memory, besides a multiple of the time that the guest may stand still.
const FINISH_TIMEOUT: Duration = Duration::from_secs(60);
/// The run state follows the migration's state within microseconds.
const RUN_STATE_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_PAUSE: Duration = Duration::from_millis(50);
/// QEMU's default is 128 MiB/s; our relay is the bound, not a number.
const UNLIMITED_BYTES_S: u64 = 1 << 40;
/// QEMU's own limit for `downtime-limit`.
const MAX_DOWNTIME_MS: u128 = 2_000_000;

/// Where the guest stands, from its run state and its migration's.
pub(crate) async fn status(s: &Session) -> Result<GuestStatus, DriverError> {
    let run_state = run_state(s).await?;
    Ok(match run_state.as_str() {
        "running" => GuestStatus::Running,
        "io-error" => GuestStatus::DiskError,
        "paused" | "prelaunch" => GuestStatus::Paused,
        "inmigrate" => GuestStatus::Incoming,
        "postmigrate" => GuestStatus::PostMigrate,
        "finish-migrate" if migration(s).await?.0 == "pre-switchover" => GuestStatus::PreSwitchover,
        _ => GuestStatus::Other(run_state),
    })
}

async fn run_state(s: &Session) -> Result<String, DriverError> {
    let answer = s.query("query-status").await?;
    Ok(answer.get("status").and_then(Value::as_str).unwrap_or("unknown").into())
}

/// The migration's state, "none" before the first, and QEMU's reason for a failure.
async fn migration(s: &Session) -> Result<(String, String), DriverError> {
    Ok(state_and_reason(&s.query("query-migrate").await?))
}

fn state_and_reason(answer: &Value) -> (String, String) {
    let text = |field| answer.get(field).and_then(Value::as_str);
    (
        text("status").unwrap_or("none").into(),
        text("error-desc").unwrap_or("no reason given").replace('\n', " "),
    )
}

/// Whether a `query-migrate` says that the migration is in one of `targets`; an error when it has ended in any other state.
fn is_over(s: &Session, answer: &Value, targets: &[&str]) -> Result<bool, DriverError> {
    let (status, reason) = state_and_reason(answer);
    if targets.contains(&status.as_str()) {
        return Ok(true);
    }
    if ["none", "failed", "cancelled", "completed"].contains(&status.as_str()) {
        return Err(DriverError::Migration { vm: s.vm.name.clone(), status, reason });
    }
    Ok(false)
}

/// Waits until the migration is in one of `targets`; fails when it ends in any other state.
async fn reaches(s: &Session, targets: &[&str]) -> Result<String, DriverError> {
    let mut events = s.events();
    loop {
        let answer = s.query("query-migrate").await?;
        if is_over(s, &answer, targets)? {
            return Ok(state_and_reason(&answer).0);
        }
        while s.next(&mut events).await?.is_some_and(|event| event.name != "MIGRATION") {}
    }
}

/// `events` tells us of every change; `pause-before-switchover` gives us the moment between the last guest
/// instruction and the loss of the disks. The destination needs the first and tolerates the second.
async fn set_capabilities(s: &Session) -> Result<(), DriverError> {
    let on = |name| json!({"capability": name, "state": true});
    let capabilities = json!({"capabilities": [on("events"), on("pause-before-switchover")]});
    s.run("migrate-set-capabilities", capabilities).await.map(drop)
}

/// Opens a waiting QEMU's ear and connects to it.
pub(crate) async fn open_incoming(s: &Session) -> Result<UnixStream, DriverError> {
    match status(s).await? {
        GuestStatus::Incoming => {}
        other => return Err(s.wrong_state(other, "start it with start_incoming")),
    }
    set_capabilities(s).await?;
    let path = s.vm.paths.memory();
    remove_socket(&path);
    s.run("migrate-incoming", json!({"uri": unix_uri(&path)})).await?;
    let stream = UnixStream::connect(&path).await.map_err(io_error(&s.vm.name, "connect to", &path))?;
    remove_socket(&path);
    Ok(stream)
}

/// Waits until the incoming memory is loaded.
pub(crate) async fn incoming_loaded(s: &Session) -> Result<(), DriverError> {
    reaches(s, &["completed"]).await.map(drop)
}

/// Starts the outgoing migration into a socket of ours and takes QEMU's connection.
pub(crate) async fn send_memory(s: &Session, params: &MemoryParams) -> Result<UnixStream, DriverError> {
    match status(s).await? {
        GuestStatus::Running | GuestStatus::Paused => {}
        other => return Err(s.wrong_state(other, "roll back first")),
    }
    set_capabilities(s).await?;
    let downtime_ms = params.max_downtime.as_millis().clamp(1, MAX_DOWNTIME_MS) as u64;
    let bandwidth = params.max_bandwidth_bytes_s.unwrap_or(UNLIMITED_BYTES_S).clamp(1, UNLIMITED_BYTES_S);
    let parameters = json!({"downtime-limit": downtime_ms, "max-bandwidth": bandwidth});
    s.run("migrate-set-parameters", parameters).await?;
    if params.mode == Mode::Cold {
        pause(s).await?;
    }
    let stopped = (params.mode == Mode::Cold).then(Instant::now);
    *outgoing(s) = Outgoing { stopped, max_downtime: params.max_downtime, stream: None };
    let path = s.vm.paths.memory();
    remove_socket(&path);
    let listener = UnixListener::bind(&path).map_err(io_error(&s.vm.name, "listen on", &path))?;
    s.run("migrate", json!({"uri": unix_uri(&path)})).await?;
    let accepted = tokio::select! {
        accepted = timeout(CONNECT_TIMEOUT, listener.accept()) => accepted,
        // Only a failure ends this wait: no state is a target.
        failed = reaches(s, &[]) => return Err(failed.err().unwrap_or_else(|| no_connection(s))),
    };
    remove_socket(&path);
    match accepted {
        Ok(Ok((stream, _))) => {
            outgoing(s).stream = Some(SocketId::of(&stream).map_err(io_error(&s.vm.name, "look at", &path))?);
            Ok(stream)
        }
        Ok(Err(error)) => Err(io_error(&s.vm.name, "accept QEMU on", &path)(error)),
        Err(_) => Err(no_connection(s)),
    }
}

fn outgoing(s: &Session) -> std::sync::MutexGuard<'_, Outgoing> {
    s.vm.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
}

fn no_connection(s: &Session) -> DriverError {
    s.too_long("QEMU's connection to the memory socket", CONNECT_TIMEOUT, "roll back")
}

/// Waits until the guest is stopped at `pre-switchover`.
pub(crate) async fn wait_paused(s: &Session) -> Result<Instant, DriverError> {
    // QEMU flushes the disks before it says that the guest is stopped.
    let s = &s.within(DISK_TIMEOUT);
    let (mut stopped, begun) = (outgoing(s).stopped, Instant::now());
    let mut convergence = Convergence::default();
    let mut events = s.events();
    loop {
        let answer = s.query("query-migrate").await?;
        if is_over(s, &answer, &["pre-switchover"])? {
            return Ok(stopped.unwrap_or_else(Instant::now));
        }
        let figures = figures(&answer, begun.elapsed());
        if stopped.is_none() {
            reject(s, convergence.judge(figures), figures)?;
        } else if let verdict @ Verdict::Stalled(_) = convergence.judge(figures) {
            reject(s, verdict, figures)?;
        }
        loop {
            match s.next(&mut events).await? {
                Some(event) if event.name == "STOP" => stopped = Some(Instant::now()),
                Some(event) if event.name == "MIGRATION" || event.name == "MIGRATION_PASS" => break,
                Some(_) => {}
                None => break,
            }
        }
    }
}

/// The figures of a `query-migrate`.
fn figures(answer: &Value, at: Duration) -> Figures {
    let number = |field: &str| answer.pointer(field).and_then(Value::as_u64).unwrap_or(0);
    Figures {
        at,
        passes: number("/ram/dirty-sync-count"),
        remaining_bytes: number("/ram/remaining"),
        sent_bytes: number("/ram/transferred"),
    }
}

/// The error for a migration that does not come to an end.
fn reject(s: &Session, verdict: Verdict, figures: Figures) -> Result<(), DriverError> {
    match verdict {
        Verdict::GoOn => Ok(()),
        Verdict::Stalled(after) => Err(s.too_long(
            "the wait for the memory stream to move on",
            after,
            "see whether the connection to the destination and its disk work, then retry",
        )),
        Verdict::NotConverging { bytes_s, expected } => Err(DriverError::NotConverging {
            vm: s.vm.name.clone(),
            passes: figures.passes,
            after: figures.at,
            remaining_bytes: figures.remaining_bytes,
            bytes_s,
            expected,
            allowed: outgoing(s).max_downtime,
        }),
    }
}

/// How far the memory is.
pub(crate) async fn progress(s: &Session) -> Result<MemoryProgress, DriverError> {
    let answer = s.query("query-migrate").await?;
    let number =
        |field| answer.get("ram").and_then(|ram| ram.get(field)).and_then(Value::as_u64).unwrap_or(0);
    Ok(MemoryProgress {
        transferred: number("transferred"),
        remaining: number("remaining"),
        total: number("total"),
        dirty_pages_rate_bytes: number("dirty-pages-rate").saturating_mul(number("page-size")),
    })
}

/// Goes on from `pre-switchover` to the end.
pub(crate) async fn finish_memory(s: &Session) -> Result<(), DriverError> {
    // QEMU answers nothing while it sends the rest, for as long as the guest may stand still.
    let s = &s.within(FINISH_TIMEOUT + outgoing(s).max_downtime * 4);
    s.run("migrate-continue", json!({"state": "pre-switchover"})).await?;
    reaches(s, &["completed"]).await?;
    settled(s).await
}

/// Ends an outgoing migration that is still under way. QEMU resumes a guest that ran before.
pub(crate) async fn cancel(s: &Session) -> Result<(), DriverError> {
    const OVER: [&str; 4] = ["none", "failed", "cancelled", "completed"];
    // While QEMU lets go of the disks it must not be cancelled: it would run the guest without them, and die of its first write
    // (`bdrv_co_write_req_prepare`). It is soon over, well or badly, and either way takes them back.
    if migration(s).await?.0 == "device" {
        timeout(DEVICE_TIMEOUT, reaches(s, &OVER)).await.ok().transpose()?;
    }
    if !OVER.contains(&migration(s).await?.0.as_str()) {
        s.query("migrate_cancel").await?;
        let state = timeout(CANCEL_TIMEOUT, reaches(s, &OVER))
            .await
            .map_err(|_| s.too_long("cancelling the migration", CANCEL_TIMEOUT, "stop the VM"))??;
        tracing::info!(vm = %s.vm.name, state, "outgoing migration ended");
    }
    settled(s).await
}

/// Ends the memory stream. QEMU sends the rest of the memory with its main loop locked: while nobody reads the stream it
/// answers no command, `migrate_cancel` neither.
pub(crate) fn sever(vm: &Vm) {
    let stream = vm.outgoing.lock().unwrap_or_else(PoisonError::into_inner).stream.take();
    if let Some(Err(error)) = stream.map(SocketId::sever) {
        tracing::warn!(vm = %vm.name, %error, "cannot end the memory stream");
    }
}

/// Waits until the run state has followed the end of an outgoing migration. QEMU's migration thread announces the end,
/// good or bad, before it takes the lock under which it sets the run state: to `postmigrate`, or back to `running`.
/// `cont` is only right after that.
async fn settled(s: &Session) -> Result<(), DriverError> {
    let deadline = Instant::now() + RUN_STATE_TIMEOUT;
    // RESUME tells of the way back to `running`; of the one to `postmigrate` no event does.
    let mut pause = Duration::from_millis(1);
    while run_state(s).await? == "finish-migrate" {
        if Instant::now() > deadline {
            return Err(s.too_long("the end of the migration", RUN_STATE_TIMEOUT, "stop the VM"));
        }
        sleep(pause).await;
        pause = (pause * 2).min(MAX_PAUSE);
    }
    Ok(())
}

/// Lets the guest run, from any state in which it is whole and this host may.
pub(crate) async fn resume(s: &Session) -> Result<(), DriverError> {
    match status(s).await? {
        GuestStatus::Running => {}
        // In `inmigrate`, QEMU would remember `cont` and run the guest the moment it is loaded.
        status @ GuestStatus::Incoming => {
            return Err(s.wrong_state(status, "wait until its memory is loaded"));
        }
        // `cont` here would run the guest while its migration goes on.
        status @ GuestStatus::PreSwitchover => return Err(s.wrong_state(status, "roll back")),
        status @ GuestStatus::Other(_) => {
            return Err(s.wrong_state(status, "stop it and start it again"));
        }
        _ => cont(s).await?,
    }
    let mark = s.vm.paths.incoming_mark();
    match fs::remove_file(&mark) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(io_error(&s.vm.name, "remove", &mark)(error))
        }
        _ => Ok(()),
    }
}

/// Runs `cont` and returns when the guest is about to run: at its event, which comes before the CPUs start. QEMU's answer
/// comes after, and may have to compete with an emulated CPU for the machine.
async fn cont(s: &Session) -> Result<(), DriverError> {
    let mut events = s.events();
    let s = &s.within(DISK_TIMEOUT);
    let answer = s.query("cont");
    tokio::pin!(answer);
    loop {
        tokio::select! {
            answer = &mut answer => {
                answer?;
                return match status(s).await? {
                    GuestStatus::Running => Ok(()),
                    other => Err(s.wrong_state(other, "see its QEMU log")),
                };
            }
            event = s.next(&mut events) => if event?.is_some_and(|event| event.name == "RESUME") {
                return Ok(());
            },
        }
    }
}

/// Stops the guest's CPUs.
pub(crate) async fn pause(s: &Session) -> Result<(), DriverError> {
    match status(s).await? {
        GuestStatus::Running => s.within(DISK_TIMEOUT).query("stop").await.map(drop),
        _ => Ok(()),
    }
}

/// Whether the VM came in and was never resumed here.
pub(crate) fn awaits_resume(s: &Session) -> bool {
    s.vm.paths.incoming_mark().exists()
}

fn unix_uri(path: &Path) -> String {
    format!("unix:{}", path.display())
}

fn remove_socket(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "cannot remove the memory socket");
    }
}
