//! What both kinds of tap share: our nodes and jobs in QEMU's block graph, found by name, removed in order.
//!
//! Everything of ours begins with `longhaul-DISK`, so a daemon that was killed leaves nothing it cannot find again.
//! Touches no node or job of anybody else.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::command::{device_id, file_node};
use super::session::{DISK_TIMEOUT, Session};
use crate::hypervisor::DriverError;
use crate::qmp::{Events, QmpError};

/// Prefix of all our nodes and jobs.
const PREFIX: &str = "longhaul-";
/// The bitmap that collects while a pass is under way, see `warm.rs`.
pub(crate) const NEXT_BITMAP: &str = "longhaul-next";
/// A cancelled job drains its requests in flight; a node is busy for the moment after its job.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(60);
const DELETE_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_PAUSE: Duration = Duration::from_millis(100);
/// How long the host's disk may take to write back before the graph is changed all the same.
const SYNC_TIMEOUT: Duration = Duration::from_secs(20);
/// A path that leads to a FIFO by now must not hold us.
const O_NONBLOCK: i32 = rustix::fs::OFlags::NONBLOCK.bits() as i32;

/// Names of ours for one disk. A disk's name has no dot, so no two disks share one.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    pub(crate) disk: String,
    /// The node under a disk of a VM that we have started.
    pub(crate) file: String,
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
            file: file_node(disk),
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

    fn node(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|node| text(node, "node-name") == Some(name))
    }

    /// Whether the disk is a raw one over a file node of its own, so that a filter can be put between the two.
    pub(crate) fn has_file_node(&self, names: &Names) -> bool {
        let is_raw = self.node(&names.disk).is_some_and(|node| text(node, "drv") == Some("raw"));
        is_raw && self.has(&names.file)
    }

    /// The options with which such a disk is opened again over another node: all else stays as it is.
    pub(crate) fn reopened(&self, names: &Names, over: &str) -> Value {
        let flag = |path: &str| self.node(&names.disk).and_then(|node| node.pointer(path)?.as_bool());
        json!({
            "driver": "raw",
            "node-name": names.disk,
            "file": over,
            "read-only": flag("/ro").unwrap_or(false),
            "cache": {
                "direct": flag("/cache/direct").unwrap_or(false),
                "no-flush": flag("/cache/no-flush").unwrap_or(false),
            },
            // As on the command line.
            "discard": "unmap",
        })
    }

    /// The file under a disk, by QEMU's name for it.
    pub(crate) fn file_name(&self, names: &Names) -> Option<&str> {
        text(self.node(&names.file)?, "file")
    }

    /// A disk's size in bytes, as its guest sees it.
    pub(crate) fn size(&self, names: &Names) -> Option<u64> {
        self.node(&names.disk)?.pointer("/image/virtual-size")?.as_u64()
    }

    fn bitmaps(&self, node: &str) -> &[Value] {
        self.node(node)
            .and_then(|node| node.get("dirty-bitmaps")?.as_array())
            .map(Vec::as_slice)
            .unwrap_or_default()
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
    // QEMU tells of no event when a node is free.
    let mut pause = Duration::from_millis(1);
    loop {
        match s.try_run("blockdev-del", json!({"node-name": node})).await {
            Ok(_) => return Ok(()),
            Err(QmpError::Refused { message, .. }) if Instant::now() < deadline => {
                if !Nodes::query(s).await?.has(node) {
                    return Ok(());
                }
                tracing::debug!(vm = %s.vm.name, node, message, "node not deletable yet");
                sleep(pause).await;
                pause = (pause * 2).min(MAX_PAUSE);
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
        bypass_filter(s, &nodes, names).await?;
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

/// The guest's devices, as `query-block` lists them.
struct Devices(Vec<Value>);

impl Devices {
    async fn query(s: &Session) -> Result<Devices, DriverError> {
        Ok(Devices(s.query("query-block").await?.as_array().cloned().unwrap_or_default()))
    }

    /// A disk's device: the one that our command line made for it, or else the one that sits on its node.
    fn of(&self, names: &Names) -> Option<&Value> {
        let made = format!("/{}/", device_id(&names.disk));
        let made = |device: &&Value| text(device, "qdev").is_some_and(|path| path.contains(&made));
        let sits =
            |device: &&Value| node_of(device).is_some_and(|node| node == names.disk || node == names.filter);
        self.0.iter().find(made).or_else(|| self.0.iter().find(sits))
    }
}

/// The node that a device sits on.
fn node_of(device: &Value) -> Option<&str> {
    device.get("inserted").and_then(|inserted| text(inserted, "node-name"))
}

/// Fails when another tool has put a device of these disks on another node: what the guest writes would pass us by.
pub(crate) async fn check_devices(
    s: &Session,
    disks: impl Iterator<Item = &Names>,
) -> Result<(), DriverError> {
    let devices = Devices::query(s).await?;
    for names in disks {
        let Some(device) = devices.of(names) else { continue };
        let Some(node) = node_of(device).filter(|&node| node != names.disk && node != names.filter) else {
            continue;
        };
        let file = device.get("inserted").and_then(|inserted| text(inserted, "file")).unwrap_or("no file");
        return Err(DriverError::ForeignGraph {
            vm: s.vm.name.clone(),
            disk: names.disk.clone(),
            node: node.into(),
            file: file.into(),
        });
    }
    Ok(())
}

/// Writes back what the page cache holds of these disks, as well as it can: what is not written when QEMU changes the graph,
/// the guest waits for.
pub(crate) async fn sync_files(nodes: &Nodes, disks: impl Iterator<Item = &Names>) {
    let paths: Vec<String> = disks.filter_map(|names| nodes.file_name(names)).map(str::to_owned).collect();
    let synced = tokio::task::spawn_blocking(move || {
        for path in paths {
            let file = fs::OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(&path);
            if let Err(error) = file.and_then(|file| file.sync_data()) {
                tracing::debug!(path, %error, "not synced");
            }
        }
    });
    let _ = timeout(SYNC_TIMEOUT, synced).await;
}

/// Changes the node a guest's device works on; QEMU finishes the guest's requests first.
pub(crate) async fn set_device_node(s: &Session, names: &Names, node: &str) -> Result<(), DriverError> {
    let devices = Devices::query(s).await?;
    let Some(device) = devices.of(names).and_then(|device| text(device, "qdev")) else {
        return Err(s.tap_error(&names.disk, "no device of the guest uses it"));
    };
    let arguments = json!({"path": device, "property": "drive", "value": node});
    s.within(DISK_TIMEOUT).run("qom-set", arguments).await.map(drop)
}

/// Takes the filter out of the way of the guest's writes, wherever it is.
async fn bypass_filter(s: &Session, nodes: &Nodes, names: &Names) -> Result<(), DriverError> {
    let device = Devices::query(s).await?;
    if device.of(names).and_then(node_of) == Some(&names.filter) {
        set_device_node(s, names, &names.disk).await?;
    }
    if nodes.has_file_node(names) {
        sync_files(nodes, std::iter::once(names)).await;
        let options = json!({"options": [nodes.reopened(names, &names.file)]});
        s.within(DISK_TIMEOUT).run("blockdev-reopen", options).await?;
    }
    Ok(())
}

/// Removes a bitmap that exists.
pub(crate) async fn remove_bitmap(s: &Session, node: &str, name: &str) -> Result<(), DriverError> {
    s.run("block-dirty-bitmap-remove", json!({"node": node, "name": name})).await.map(drop)
}

/// Does all of these or none; nothing to do without any.
pub(super) async fn transaction(s: &Session, actions: Vec<Value>) -> Result<(), DriverError> {
    if actions.is_empty() {
        return Ok(());
    }
    s.within(DISK_TIMEOUT).run("transaction", json!({"actions": actions})).await.map(drop)
}
