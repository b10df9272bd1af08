//! The tap of a migration: `blockdev-mirror` with `sync=none`, so that every write after its start arrives, or with
//! `sync=full`, so that the whole disk does.
//!
//! QEMU acknowledges the guest's write before it mirrors it (`copy-mode=background`): the guest neither waits for us
//! nor sees our errors. What it gains for that is ours to lose: only [`drain`] says that everything has arrived.

use std::time::Duration;

use serde_json::json;
use tokio::time::timeout;

use super::blocks::{self, Job, Names};
use super::session::{DISK_TIMEOUT, Session};
use crate::hypervisor::DriverError;
use crate::qmp::QmpError;

/// How fine QEMU tracks the guest's writes: a 4 KiB write travels as 4 KiB.
const GRANULARITY_BYTES: u32 = 4096;
/// With nothing to copy at first, a mirror is ready at once.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// Starts the mirror; `whole`: all that the disk holds is copied once, too.
pub(super) async fn launch(s: &Session, names: &Names, whole: bool) -> Result<(), DriverError> {
    let job = json!({
        "job-id": names.target,
        "device": names.disk,
        "target": names.target,
        "sync": if whole { "full" } else { "none" },
        "granularity": GRANULARITY_BYTES,
        "copy-mode": "background",
        "on-source-error": "report",
        "on-target-error": "report",
        "auto-dismiss": false,
    });
    s.within(DISK_TIMEOUT).run("blockdev-mirror", job).await.map(drop)
}

/// Waits until every write from now on is tracked and, if the mirror is `whole`, the disk has been copied once. That takes
/// its time; the caller may drop this, and untap.
pub(super) async fn wait_ready(s: &Session, names: &Names, whole: bool) -> Result<(), DriverError> {
    let mut events = s.events();
    let ready = async {
        match Job::query(s, &names.target).await? {
            Job::Active => blocks::wait_job(s, &mut events, &names.target, true).await,
            job => Ok(job),
        }
    };
    match if whole { Ok(ready.await) } else { timeout(READY_TIMEOUT, ready).await } {
        Ok(Ok(Job::Ready)) => Ok(()),
        Ok(Ok(job)) => Err(s.tap_error(&names.disk, job.describe(&names.target))),
        Ok(Err(error)) => Err(error),
        Err(_) => {
            Err(s.too_long("the start of the mirror", READY_TIMEOUT, "see whether the host's disk hangs"))
        }
    }
}

/// Ends the mirror once everything has arrived. Unbounded: the guest's dirt may take long, the caller may drop this.
pub(crate) async fn drain(s: &Session, disk: &str) -> Result<(), DriverError> {
    let names = Names::of(disk);
    let id = names.target.as_str();
    let mut events = s.events();
    match Job::query(s, id).await? {
        Job::Ready => {}
        job => return Err(s.tap_error(disk, job.describe(id))),
    }
    // Not forced, a ready mirror first sends all that is dirty.
    match s.try_run("block-job-cancel", json!({"device": id, "force": false})).await {
        Ok(_) => {}
        // It failed between the two commands: the wait below says why.
        Err(QmpError::Refused { message, .. }) => {
            tracing::debug!(vm = %s.vm.name, id, message, "not drained")
        }
        Err(error) => return Err(s.error(error)),
    }
    match blocks::wait_job(s, &mut events, id, false).await? {
        Job::Concluded(None) => {
            blocks::dismiss_job(s, id).await?;
            blocks::delete_node(s, &names.target).await
        }
        job => Err(s.tap_error(disk, job.describe(id))),
    }
}
