//! The taps of a warm pass: the disk as it was at one moment, while the guest writes on.
//!
//! Not `blockdev-backup` on the guest's disk: in QEMU its copy-before-write fails *the guest's write* when the target
//! fails, so a killed daemon would show as a broken disk. We put the filter in ourselves, with
//! `on-cbw-error=break-snapshot`: then a failing target breaks our view, never the guest.
//!
//! ```text
//! guest's device -> D -> longhaul-D.cbw --file--> D-file        before a block of D changes,
//!                             |    \--target--> longhaul-D (NBD) its old content goes to the target
//!                             +-- longhaul-D.snap               D as it was when the filter went in
//! ```
//!
//! The filter goes between a raw disk and its file, where one `blockdev-reopen` puts those of all disks in. A disk without
//! a file node of its own (qcow2; all of Xen's) has it between the guest's device and the disk.
//!
//! * `CopyBefore`: the filter alone. The daemon reads D's image and puts the overlay on top.
//! * `Dirty`: also a backup job from `longhaul-D.snap` into the same target, of the blocks dirty in the bitmap.
//!
//! Bits are never lost: the guest's bitmap stays as it is until the pass is whole. `longhaul-next` records from before
//! the filter goes in; when the job is done the bitmap is replaced by it in one transaction.

use serde_json::{Value, json};

use super::blocks::{self, Job, NEXT_BITMAP, Names, Nodes};
use super::session::Session;
use crate::hypervisor::{DriverError, TapKind};

/// How fine warm passes track: QEMU's default cluster for copies, and one leaf of the image tree.
const GRANULARITY_BYTES: u32 = 65536;
/// A target that answers no more breaks the view after this, in seconds; the guest's write waits no longer.
const CBW_TIMEOUT_S: u32 = 30;

/// Adds the copy-before-write filter, which sees no write of the guest's yet.
pub(super) async fn add_filter(s: &Session, nodes: &Nodes, names: &Names) -> Result<(), DriverError> {
    let below = nodes.has_file_node(names);
    let node = json!({
        "driver": "copy-before-write",
        "node-name": names.filter,
        "file": if below { &names.file } else { &names.disk },
        "target": names.target,
        "on-cbw-error": "break-snapshot",
        "cbw-timeout": CBW_TIMEOUT_S,
    });
    s.run("blockdev-add", node).await.map(drop)
}

/// Adds the view of the disk as it was when its filter went in.
pub(super) async fn add_snapshot(s: &Session, names: &Names) -> Result<(), DriverError> {
    let node = json!({"driver": "snapshot-access", "node-name": names.snapshot, "file": names.filter});
    s.run("blockdev-add", node).await.map(drop)
}

/// What starts the job of a [`TapKind::Dirty`]: a copy of the guest's bitmap on the view, and the backup by it.
pub(super) fn job_actions(names: &Names, kind: &TapKind) -> Vec<Value> {
    let TapKind::Dirty { bitmap } = kind else { return Vec::new() };
    let snapshot = &names.snapshot;
    let from = json!([{"node": names.disk, "name": bitmap}]);
    let merge = json!({"node": snapshot, "target": bitmap, "bitmaps": from});
    let job = json!({
        "job-id": names.target,
        "device": snapshot,
        "target": names.target,
        "sync": "bitmap",
        "bitmap": bitmap,
        // The copy on the snapshot node is ours to drop; the guest's own is settled in `finish_dirty`.
        "bitmap-mode": "never",
        "on-source-error": "report",
        "on-target-error": "report",
        "auto-dismiss": false,
    });
    vec![
        add_bitmap(snapshot, bitmap, false),
        json!({"type": "block-dirty-bitmap-merge", "data": merge}),
        json!({"type": "blockdev-backup", "data": job}),
    ]
}

/// Waits until all blocks of all these disks have arrived, then settles their bitmaps in one transaction. Unbounded; the
/// caller may drop this and `untap`.
pub(crate) async fn finish_dirty(s: &Session, disks: &[Names]) -> Result<(), DriverError> {
    let mut events = s.events();
    for names in disks {
        let (disk, id) = (names.disk.as_str(), names.target.as_str());
        let mut job = Job::query(s, id).await?;
        if job == Job::Active {
            job = blocks::wait_job(s, &mut events, id, false).await?;
        }
        if job != Job::Concluded(None) {
            return Err(s.tap_error(disk, job.describe(id)));
        }
    }
    let nodes = Nodes::query(s).await?;
    let mut settled = Vec::new();
    for names in disks {
        let Some(bitmap) = nodes.bitmap_names(&names.snapshot).next() else {
            return Err(s.tap_error(&names.disk, "the pass under way is not one of a bitmap"));
        };
        settled.extend(settle_actions(&names.disk, bitmap));
    }
    blocks::transaction(s, settled).await?;
    for names in disks {
        blocks::remove_tap(s, names).await?;
    }
    Ok(())
}

/// The bitmap becomes what was recorded since before the pass began.
fn settle_actions(disk: &str, bitmap: &str) -> [Value; 2] {
    let from = json!([{"node": disk, "name": NEXT_BITMAP}]);
    [
        json!({"type": "block-dirty-bitmap-clear", "data": {"node": disk, "name": bitmap}}),
        json!({"type": "block-dirty-bitmap-merge", "data": {"node": disk, "target": bitmap, "bitmaps": from}}),
    ]
}

/// An action of a transaction.
pub(super) fn add_bitmap(node: &str, name: &str, recording: bool) -> Value {
    let bitmap = json!({
        "node": node,
        "name": name,
        "granularity": GRANULARITY_BYTES,
        "persistent": false,
        "disabled": !recording,
    });
    json!({"type": "block-dirty-bitmap-add", "data": bitmap})
}

/// Whether the bitmap exists, records, and is free and sound.
pub(crate) async fn bitmap_ok(s: &Session, disk: &str, name: &str) -> Result<bool, DriverError> {
    let nodes = Nodes::query(s).await?;
    blocks::check_disk(s, &nodes, disk)?;
    Ok(is_usable(&nodes, disk, name))
}

pub(super) fn is_usable(nodes: &Nodes, disk: &str, name: &str) -> bool {
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
