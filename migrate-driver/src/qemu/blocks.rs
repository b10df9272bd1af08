//! What both kinds of tap share: our nodes and jobs in QEMU's block graph, found by name, removed in order.
//!
//! Everything of ours begins with `longhaul-DISK`, so a daemon that was killed leaves nothing it cannot find again.
//! Touches no node or job of anybody else.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::session::Session;
use crate::hypervisor::DriverError;
use crate::qmp::{Events, QmpError};

/// Prefix of all our nodes and jobs.
const PREFIX: &str = "longhaul-";
/// The bitmap that collects while a pass is under way, see `warm.rs`.
pub(crate) const NEXT_BITMAP: &str = "longhaul-next";
/// A cancelled job drains its requests in flight; a node is busy for the moment after its job.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(60);
const DELETE_TIMEOUT: Duration = Duration::from_secs(10);

/// Names of ours for one disk. A disk's name has no dot, so no two disks share one.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    pub(crate) disk: String,
    /// The NBD client, and the job that writes to it.
    pub(crate) target: String,
    /// The copy-before-write filter.
    pub(crate) filter: String,
    /// The view of the disk as it was when the filter went in.
    pub(crate) snapshot: String,
}

impl Names {
    pub(crate) fn of(disk: &str) -> Names {
        Names {
            disk: disk.into(),
            target: format!("{PREFIX}{disk}"),
            filter: format!("{PREFIX}{disk}.cbw"),
            snapshot: format!("{PREFIX}{disk}.snap"),
        }
    }
}

/// QEMU's block nodes at one moment.
pub(crate) struct Nodes(Vec<Value>);

impl Nodes {
    pub(crate) async fn query(s: &Session) -> Result<Nodes, DriverError> {
        let answer = s.run("query-named-block-nodes", json!({"flat": true})).await?;
        Ok(Nodes(answer.as_array().cloned().unwrap_or_default()))
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|node| text(node, "node-name"))
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.names().any(|node| node == name)
    }

    fn bitmaps(&self, node: &str) -> &[Value] {
        let node = self.0.iter().find(|value| text(value, "node-name") == Some(node));
        node.and_then(|node| node.get("dirty-bitmaps")?.as_array()).map(Vec::as_slice).unwrap_or_default()
    }

    /// The names of a node's bitmaps.
    pub(crate) fn bitmap_names(&self, node: &str) -> impl Iterator<Item = &str> {
        self.bitmaps(node).iter().filter_map(|bitmap| text(bitmap, "name"))
    }

    /// A bitmap of a node.
    pub(crate) fn bitmap(&self, node: &str, name: &str) -> Option<&Value> {
        self.bitmaps(node).iter().find(|bitmap| text(bitmap, "name") == Some(name))
    }

    /// The disks that have a node of ours or a bitmap of a pass under way.
    pub(crate) fn tapped_disks(&self) -> BTreeSet<String> {
        let ours = self.names().filter_map(|name| name.strip_prefix(PREFIX)).map(|rest| {
            let end = rest.find('.').unwrap_or(rest.len());
            rest[..end].to_owned()
        });
        let passing = self.names().filter(|name| self.bitmap(name, NEXT_BITMAP).is_some()).map(str::to_owned);
        ours.chain(passing).filter(|disk| self.has(disk)).collect()
    }
}

fn text<'a>(value: &'a Value, field: &str) -> Option<&'a str> {
    value.get(field).and_then(Value::as_str)
}

/// Fails unless the VM has this disk and no tap is on it.
pub(crate) async fn check_free(s: &Session, names: &Names) -> Result<Nodes, DriverError> {
    let nodes = Nodes::query(s).await?;
    check_disk(s, &nodes, &names.disk)?;
    if nodes.tapped_disks().contains(&names.disk) {
        return Err(s.tap_error(&names.disk, "it is tapped already; untap it first"));
    }
    Ok(nodes)
}

/// Fails unless the VM has this disk.
pub(crate) fn check_disk(s: &Session, nodes: &Nodes, disk: &str) -> Result<(), DriverError> {
    // The format node of a disk is the one with a file node beside it.
    let known = crate::definition::check_disk_name(disk).is_ok() && nodes.has(disk);
    if known { Ok(()) } else { Err(DriverError::UnknownDisk { vm: s.vm.name.clone(), disk: disk.into() }) }
}

/// Connects QEMU to our NBD export.
pub(crate) async fn add_target(
    s: &Session,
    names: &Names,
    socket: &Path,
    export: &str,
) -> Result<(), DriverError> {
    let Some(path) = socket.to_str() else {
        return Err(s.tap_error(&names.disk, format!("the socket path {} is not UTF-8", socket.display())));
    };
    let node = json!({
        "driver": "nbd",
        "node-name": names.target,
        "server": {"type": "unix", "path": path},
        "export": export,
        // A server that vanished does not come back: fail at once.
        "reconnect-delay": 0,
        "discard": "unmap",
    });
    match s.try_run("blockdev-add", node).await {
        Ok(_) => Ok(()),
        Err(QmpError::Refused { message, .. }) => {
            let reason = format!("QEMU cannot open the export {export:?} on {path}: {message}");
            Err(s.tap_error(&names.disk, reason))
        }
        Err(error) => Err(s.error(error)),
    }
}

/// A block job of ours at one moment. Ours are not dismissed by QEMU itself, so that a result can always be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Job {
    /// There is none.
    Absent,
    /// At work.
    Active,
    /// A mirror that has sent everything up to now.
    Ready,
    /// Over, well or with an error.
    Concluded(Option<String>),
}

impl Job {
    /// The job as QEMU lists it now.
    pub(crate) async fn query(s: &Session, id: &str) -> Result<Job, DriverError> {
        let answer = s.query("query-jobs").await?;
        let jobs = answer.as_array().map(Vec::as_slice).unwrap_or_default();
        let Some(job) = jobs.iter().find(|job| text(job, "id") == Some(id)) else {
            return Ok(Job::Absent);
        };
        Ok(match text(job, "status") {
            Some("ready") => Job::Ready,
            Some("concluded" | "null") => Job::Concluded(text(job, "error").map(str::to_owned)),
            _ => Job::Active,
        })
    }

    /// For errors, when the job should have been in another state.
    pub(crate) fn describe(&self, id: &str) -> String {
        match self {
            Job::Absent => format!("there is no job {id}"),
            Job::Active => format!("the job {id} is not ready"),
            Job::Ready => format!("the job {id} is not over"),
            Job::Concluded(None) => format!("the job {id} is over"),
            Job::Concluded(Some(error)) => {
                format!("the job {id} failed: {error} (the NBD server refused a write or went away?)")
            }
        }
    }
}

/// Waits until the job is over, or ready when `or_ready`. `events` must be older than the job's last known state.
pub(crate) async fn wait_job(
    s: &Session,
    events: &mut Events,
    id: &str,
    or_ready: bool,
) -> Result<Job, DriverError> {
    let arrived = |job: &Job| match job {
        Job::Absent | Job::Concluded(_) => true,
        Job::Ready => or_ready,
        Job::Active => false,
    };
    loop {
        let look = match s.next(events).await? {
            Some(event) if event.name == "JOB_STATUS_CHANGE" && event.text("id") == id => {
                matches!(event.text("status"), "concluded" | "null" | "ready")
            }
            Some(_) => false,
            None => true,
        };
        if look {
            let job = Job::query(s, id).await?;
            if arrived(&job) {
                return Ok(job);
            }
        }
    }
}

/// Removes a job that is over from QEMU's list.
pub(crate) async fn dismiss_job(s: &Session, id: &str) -> Result<(), DriverError> {
    s.run("job-dismiss", json!({"id": id})).await.map(drop)
}

/// Ends a job at once and removes it, whatever state it is in.
async fn cancel_job(s: &Session, id: &str) -> Result<(), DriverError> {
    let mut events = s.events();
    match Job::query(s, id).await? {
        Job::Absent => return Ok(()),
        Job::Concluded(_) => return dismiss_job(s, id).await,
        Job::Active | Job::Ready => {}
    }
    match s.try_run("block-job-cancel", json!({"device": id, "force": true})).await {
        Ok(_) => {}
        // It may have ended on its own between the two commands; the wait below finds out.
        Err(QmpError::Refused { message, .. }) => {
            tracing::debug!(vm = %s.vm.name, id, message, "not cancelled")
        }
        Err(error) => return Err(s.error(error)),
    }
    match timeout(CANCEL_TIMEOUT, wait_job(s, &mut events, id, false)).await {
        Ok(job) => {
            tracing::info!(vm = %s.vm.name, id, job = ?job?, "block job cancelled");
            dismiss_job(s, id).await
        }
        Err(_) => {
            Err(s.too_long("cancelling a block job", CANCEL_TIMEOUT, "the NBD server may hang; end it"))
        }
    }
}

/// Removes a node. It may be in use for a moment after the job that used it.
pub(crate) async fn delete_node(s: &Session, node: &str) -> Result<(), DriverError> {
    let deadline = Instant::now() + DELETE_TIMEOUT;
    loop {
        match s.try_run("blockdev-del", json!({"node-name": node})).await {
            Ok(_) => return Ok(()),
            Err(QmpError::Refused { message, .. }) if Instant::now() < deadline => {
                if !Nodes::query(s).await?.has(node) {
                    return Ok(());
                }
                tracing::debug!(vm = %s.vm.name, node, message, "node not deletable yet");
                sleep(Duration::from_millis(2)).await;
            }
            Err(error) => return Err(s.error(error)),
        }
    }
}

/// Ends any tap of a disk that the VM has.
pub(crate) async fn untap(s: &Session, disk: &str) -> Result<(), DriverError> {
    check_disk(s, &Nodes::query(s).await?, disk)?;
    remove_tap(s, &Names::of(disk)).await
}

/// Whatever is left of any tap on this disk: ends it and removes all of it.
pub(crate) async fn remove_tap(s: &Session, names: &Names) -> Result<(), DriverError> {
    cancel_job(s, &names.target).await?;
    let nodes = Nodes::query(s).await?;
    if nodes.has(&names.snapshot) {
        delete_node(s, &names.snapshot).await?;
    }
    if nodes.has(&names.filter) {
        // The guest's device back onto its disk; harmless when it is there. While the snapshot node holds the filter,
        // QEMU refuses this.
        set_device_node(s, names, &names.disk).await?;
        delete_node(s, &names.filter).await?;
    }
    if nodes.has(&names.target) {
        delete_node(s, &names.target).await?;
    }
    if nodes.bitmap(&names.disk, NEXT_BITMAP).is_some() {
        remove_bitmap(s, &names.disk, NEXT_BITMAP).await?;
    }
    Ok(())
}

/// Changes the node a guest's device works on; QEMU finishes the guest's requests first.
pub(crate) async fn set_device_node(s: &Session, names: &Names, node: &str) -> Result<(), DriverError> {
    let blocks = s.query("query-block").await?;
    let ours = |block: &&Value| {
        let name = block.get("inserted").and_then(|inserted| text(inserted, "node-name"));
        name.is_some_and(|name| name == names.disk || name == names.filter)
    };
    let device = blocks.as_array().into_iter().flatten().find(ours).and_then(|block| text(block, "qdev"));
    let Some(device) = device else { return Err(s.tap_error(&names.disk, "no device of the guest uses it")) };
    s.run("qom-set", json!({"path": device, "property": "drive", "value": node})).await.map(drop)
}

/// Removes a bitmap that exists.
pub(crate) async fn remove_bitmap(s: &Session, node: &str, name: &str) -> Result<(), DriverError> {
    s.run("block-dirty-bitmap-remove", json!({"node": node, "name": name})).await.map(drop)
}

/// Passes a result on; after a failure removes what was begun. The error that counts is the first one.
pub(crate) async fn undo_on_error(
    s: &Session,
    names: &Names,
    result: Result<(), DriverError>,
) -> Result<(), DriverError> {
    if result.is_err()
        && let Err(error) = remove_tap(s, names).await
    {
        tracing::warn!(vm = %s.vm.name, disk = names.disk, %error, "cannot clean up after a tap that failed");
    }
    result
}
