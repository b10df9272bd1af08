//! The taps of a warm pass: the disk as it was at one moment, while the guest writes on.
//!
//! Not `blockdev-backup` on the guest's disk: in QEMU its copy-before-write fails *the guest's write* when the target
//! fails, so a killed daemon would show as a broken disk. We put the filter in ourselves, with
//! `on-cbw-error=break-snapshot`: then a failing target breaks our view, never the guest.
//!
//! ```text
//! guest's device -> longhaul-D.cbw --file--> D -> D-file        before a block of D changes,
//!                        |    \--target--> longhaul-D (NBD)     its old content goes to the target
//!                        +-- longhaul-D.snap                    D as it was when the filter went in
//! ```
//!
//! * `CopyBefore`: the filter alone. The daemon reads D's image and puts the overlay on top.
//! * `Dirty`: also a backup job from `longhaul-D.snap` into the same target, of the blocks dirty in the bitmap.
//!
//! Bits are never lost: the guest's bitmap stays as it is until the pass is whole. `longhaul-next` records from before
//! the filter goes in; when the job is done the bitmap is replaced by it in one transaction.

use std::path::Path;

use serde_json::{Value, json};

use super::blocks::{self, Job, NEXT_BITMAP, Names, Nodes};
use super::session::Session;
use crate::hypervisor::DriverError;

/// How fine warm passes track: QEMU's default cluster for copies, and one leaf of the image tree.
const GRANULARITY_BYTES: u32 = 65536;

/// Starts a copy-before-write pass.
pub(crate) async fn start_copy_before(
    s: &Session,
    disk: &str,
    socket: &Path,
    export: &str,
    bitmap: Option<&str>,
) -> Result<(), DriverError> {
    let names = Names::of(disk);
    let nodes = blocks::check_free(s, &names).await?;
    let result = async {
        blocks::add_target(s, &names, socket, export).await?;
        if let Some(bitmap) = bitmap {
            if nodes.bitmap(disk, bitmap).is_some() {
                blocks::remove_bitmap(s, disk, bitmap).await?;
            }
            // Before the filter: what is recorded too early is sent twice, what is recorded too late is lost.
            add_bitmap(s, disk, bitmap, true).await?;
        }
        insert_filter(s, &names).await
    }
    .await;
    blocks::undo_on_error(s, &names, result).await
}

/// Starts a pass of a bitmap's blocks.
pub(crate) async fn start_dirty(
    s: &Session,
    disk: &str,
    socket: &Path,
    export: &str,
    bitmap: &str,
) -> Result<(), DriverError> {
    let names = Names::of(disk);
    let nodes = blocks::check_free(s, &names).await?;
    if !is_usable(&nodes, disk, bitmap) {
        return Err(s.tap_error(disk, format!("its bitmap {bitmap:?} is missing or not usable; rescan")));
    }
    let result = async {
        blocks::add_target(s, &names, socket, export).await?;
        add_bitmap(s, disk, NEXT_BITMAP, true).await?;
        insert_filter(s, &names).await?;
        let snapshot = &names.snapshot;
        let node = json!({"driver": "snapshot-access", "node-name": snapshot, "file": names.filter});
        s.run("blockdev-add", node).await?;
        add_bitmap(s, snapshot, bitmap, false).await?;
        let from = json!([{"node": disk, "name": bitmap}]);
        let merge = json!({"node": snapshot, "target": bitmap, "bitmaps": from});
        s.run("block-dirty-bitmap-merge", merge).await?;
        let job = json!({
            "job-id": names.target,
            "device": snapshot,
            "target": names.target,
            "sync": "bitmap",
            "bitmap": bitmap,
            // The copy on the snapshot node is ours to drop; the guest's own is settled in finish_dirty.
            "bitmap-mode": "never",
            "on-source-error": "report",
            "on-target-error": "report",
            "auto-dismiss": false,
        });
        s.run("blockdev-backup", job).await.map(drop)
    }
    .await;
    blocks::undo_on_error(s, &names, result).await
}

/// Waits until all blocks have arrived, then settles the bitmap. Unbounded; the caller may drop this and `untap`.
pub(crate) async fn finish_dirty(s: &Session, disk: &str) -> Result<(), DriverError> {
    let names = Names::of(disk);
    let id = names.target.as_str();
    let mut events = s.events();
    let mut job = Job::query(s, id).await?;
    if job == Job::Active {
        job = blocks::wait_job(s, &mut events, id, false).await?;
    }
    if job != Job::Concluded(None) {
        return Err(s.tap_error(disk, job.describe(id)));
    }
    let nodes = Nodes::query(s).await?;
    let Some(bitmap) = nodes.bitmap_names(&names.snapshot).next().map(str::to_owned) else {
        return Err(s.tap_error(disk, "the pass under way is not one of a bitmap"));
    };
    settle(s, disk, &bitmap).await?;
    blocks::remove_tap(s, &names).await
}

/// The bitmap becomes what was recorded since before the pass began. All or nothing, also when the daemon dies here.
async fn settle(s: &Session, disk: &str, bitmap: &str) -> Result<(), DriverError> {
    let from = json!([{"node": disk, "name": NEXT_BITMAP}]);
    let actions = json!([
        {"type": "block-dirty-bitmap-clear", "data": {"node": disk, "name": bitmap}},
        {"type": "block-dirty-bitmap-merge", "data": {"node": disk, "target": bitmap, "bitmaps": from}},
    ]);
    s.run("transaction", json!({"actions": actions})).await.map(drop)
}

/// Puts the copy-before-write filter between the guest's device and its disk: the moment of the pass.
async fn insert_filter(s: &Session, names: &Names) -> Result<(), DriverError> {
    let node = json!({
        "driver": "copy-before-write",
        "node-name": names.filter,
        "file": names.disk,
        "target": names.target,
        "on-cbw-error": "break-snapshot",
    });
    s.run("blockdev-add", node).await?;
    blocks::set_device_node(s, names, &names.filter).await
}

async fn add_bitmap(s: &Session, node: &str, name: &str, recording: bool) -> Result<(), DriverError> {
    let bitmap = json!({
        "node": node,
        "name": name,
        "granularity": GRANULARITY_BYTES,
        "persistent": false,
        "disabled": !recording,
    });
    s.run("block-dirty-bitmap-add", bitmap).await.map(drop)
}

/// Whether the bitmap exists, records, and is free and sound.
pub(crate) async fn bitmap_ok(s: &Session, disk: &str, name: &str) -> Result<bool, DriverError> {
    let nodes = Nodes::query(s).await?;
    blocks::check_disk(s, &nodes, disk)?;
    Ok(is_usable(&nodes, disk, name))
}

fn is_usable(nodes: &Nodes, disk: &str, name: &str) -> bool {
    let Some(bitmap) = nodes.bitmap(disk, name) else { return false };
    let flag = |field| bitmap.get(field).and_then(Value::as_bool).unwrap_or(false);
    flag("recording") && !flag("busy") && !flag("inconsistent")
}

/// Removes the bitmap if it is there.
pub(crate) async fn bitmap_remove(s: &Session, disk: &str, name: &str) -> Result<(), DriverError> {
    let nodes = Nodes::query(s).await?;
    blocks::check_disk(s, &nodes, disk)?;
    match nodes.bitmap(disk, name) {
        Some(_) => blocks::remove_bitmap(s, disk, name).await,
        None => Ok(()),
    }
}
