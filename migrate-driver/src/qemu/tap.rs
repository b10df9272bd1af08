//! Starting taps on several disks of one VM: all of them or none, and the copy-before-write filters all at one moment.
//!
//! The moment is one `blockdev-reopen` over all disks: QEMU drains every one of them before it changes the first, so no
//! write of the guest falls between two disks. A `transaction` cannot insert the filters (only `blockdev-backup` could,
//! whose filter fails *the guest's write* when the target fails, see `warm`); it makes the bitmaps and starts the jobs.
//!
//! A tap that an earlier owner left on one of the disks is removed first.

use std::collections::HashSet;
use std::path::Path;

use serde_json::{Value, json};

use super::blocks::{self, NEXT_BITMAP, Names, Nodes};
use super::session::{DISK_TIMEOUT, Session};
use super::{mirror, warm};
use crate::hypervisor::{DriverError, Tap, TapKind};

/// A tap to be started on a node, whatever the caller calls the disk.
#[derive(Debug, Clone)]
pub(crate) struct NodeTap {
    pub(crate) names: Names,
    pub(crate) export: String,
    pub(crate) kind: TapKind,
}

impl NodeTap {
    /// On the node of that name.
    pub(crate) fn new(node: &str, tap: &Tap) -> NodeTap {
        NodeTap { names: Names::of(node), export: tap.export.clone(), kind: tap.kind.clone() }
    }

    fn is_warm(&self) -> bool {
        matches!(self.kind, TapKind::CopyBefore { .. } | TapKind::Dirty { .. })
    }

    fn is_dirty(&self) -> bool {
        matches!(self.kind, TapKind::Dirty { .. })
    }
}

/// Starts all taps, or none. `held`: the guest's CPUs are stopped, so that the filters may go in one after the other.
pub(crate) async fn start_all(
    s: &Session,
    socket: &Path,
    taps: &[NodeTap],
    held: bool,
) -> Result<(), DriverError> {
    let mut seen = HashSet::new();
    if let Some(twice) = taps.iter().find(|tap| !seen.insert(&tap.names.disk)) {
        return Err(s.tap_error(&twice.names.disk, "it is to be tapped twice at once"));
    }
    let nodes = Nodes::query(s).await?;
    for tap in taps {
        blocks::check_disk(s, &nodes, &tap.names.disk)?;
    }
    blocks::check_devices(s, taps.iter().map(|tap| &tap.names)).await?;
    let tapped = nodes.tapped_disks();
    for tap in taps.iter().filter(|tap| tapped.contains(&tap.names.disk)) {
        tracing::info!(vm = %s.vm.name, disk = tap.names.disk, "removing the tap that an earlier owner left");
        blocks::remove_tap(s, &tap.names).await?;
    }
    let nodes = if tapped.is_empty() { nodes } else { Nodes::query(s).await? };
    check_bitmaps(s, &nodes, taps)?;
    let begun = begin(s, &nodes, socket, taps, held).await;
    if begun.is_err() {
        for tap in taps {
            if let Err(error) = undo(s, tap).await {
                tracing::warn!(vm = %s.vm.name, disk = tap.names.disk, %error, "cannot clean up after a tap that failed");
            }
        }
    }
    begun
}

/// Removes a tap that was begun. A bitmap that may have been cleared for it has lost what it knew and goes, too.
async fn undo(s: &Session, tap: &NodeTap) -> Result<(), DriverError> {
    blocks::remove_tap(s, &tap.names).await?;
    match &tap.kind {
        TapKind::CopyBefore { bitmap: Some(bitmap) } => warm::bitmap_remove(s, &tap.names.disk, bitmap).await,
        _ => Ok(()),
    }
}

fn check_bitmaps(s: &Session, nodes: &Nodes, taps: &[NodeTap]) -> Result<(), DriverError> {
    for tap in taps {
        if let TapKind::Dirty { bitmap } = &tap.kind
            && !warm::is_usable(nodes, &tap.names.disk, bitmap)
        {
            let reason = format!("its bitmap {bitmap:?} is missing or not usable; rescan");
            return Err(s.tap_error(&tap.names.disk, reason));
        }
    }
    Ok(())
}

async fn begin(
    s: &Session,
    nodes: &Nodes,
    socket: &Path,
    taps: &[NodeTap],
    held: bool,
) -> Result<(), DriverError> {
    for tap in taps {
        blocks::add_target(s, &tap.names, socket, &tap.export).await?;
    }
    let warm: Vec<&NodeTap> = taps.iter().filter(|tap| tap.is_warm()).collect();
    if !warm.is_empty() {
        // Before the filters: what is recorded too early is sent twice, what is recorded too late is lost.
        for tap in &warm {
            drop_unusable(s, nodes, tap).await?;
        }
        blocks::transaction(s, warm.iter().filter_map(|tap| bitmap_action(nodes, tap)).collect()).await?;
        for tap in &warm {
            warm::add_filter(s, nodes, &tap.names).await?;
        }
        insert_filters(s, nodes, &warm, held).await?;
    }
    let dirty: Vec<&NodeTap> = taps.iter().filter(|tap| tap.is_dirty()).collect();
    for tap in &dirty {
        warm::add_snapshot(s, &tap.names).await?;
    }
    blocks::transaction(s, dirty.iter().flat_map(|tap| warm::job_actions(&tap.names, &tap.kind)).collect())
        .await?;
    for tap in taps {
        match tap.kind {
            TapKind::Mirror => mirror::launch(s, &tap.names, false).await?,
            TapKind::Copy => mirror::launch(s, &tap.names, true).await?,
            TapKind::CopyBefore { .. } | TapKind::Dirty { .. } => {}
        }
    }
    // A mirror is started for every disk before any is waited for.
    for tap in taps {
        match tap.kind {
            TapKind::Mirror => mirror::wait_ready(s, &tap.names, false).await?,
            TapKind::Copy => mirror::wait_ready(s, &tap.names, true).await?,
            TapKind::CopyBefore { .. } | TapKind::Dirty { .. } => {}
        }
    }
    Ok(())
}

/// A bitmap that cannot be cleared for a new pass, for example because a crash has left it inconsistent.
async fn drop_unusable(s: &Session, nodes: &Nodes, tap: &NodeTap) -> Result<(), DriverError> {
    let disk = &tap.names.disk;
    match &tap.kind {
        TapKind::CopyBefore { bitmap: Some(bitmap) }
            if nodes.bitmap(disk, bitmap).is_some() && !warm::is_usable(nodes, disk, bitmap) =>
        {
            blocks::remove_bitmap(s, disk, bitmap).await
        }
        _ => Ok(()),
    }
}

fn bitmap_action(nodes: &Nodes, tap: &NodeTap) -> Option<Value> {
    let disk = &tap.names.disk;
    match &tap.kind {
        // Within one transaction a removed bitmap still has its name.
        TapKind::CopyBefore { bitmap: Some(bitmap) } if warm::is_usable(nodes, disk, bitmap) => {
            Some(json!({"type": "block-dirty-bitmap-clear", "data": {"node": disk, "name": bitmap}}))
        }
        TapKind::CopyBefore { bitmap: Some(bitmap) } => Some(warm::add_bitmap(disk, bitmap, true)),
        TapKind::Dirty { .. } => Some(warm::add_bitmap(disk, NEXT_BITMAP, true)),
        _ => None,
    }
}

/// The moment of the pass.
async fn insert_filters(
    s: &Session,
    nodes: &Nodes,
    taps: &[&NodeTap],
    held: bool,
) -> Result<(), DriverError> {
    let (below, above): (Vec<&NodeTap>, Vec<&NodeTap>) =
        taps.iter().partition(|tap| nodes.has_file_node(&tap.names));
    if let (Some(tap), true) = (above.first(), taps.len() > 1 && !held) {
        let reason = "QEMU cannot tap it in the same moment as other disks unless it is a raw image; \
                      `qemu-img convert -O raw` it with the VM stopped";
        return Err(s.tap_error(&tap.names.disk, reason));
    }
    if !below.is_empty() {
        blocks::sync_files(nodes, below.iter().map(|tap| &tap.names)).await;
        let options: Vec<Value> =
            below.iter().map(|tap| nodes.reopened(&tap.names, &tap.names.filter)).collect();
        s.within(DISK_TIMEOUT).run("blockdev-reopen", json!({"options": options})).await?;
    }
    for tap in above {
        blocks::set_device_node(s, &tap.names, &tap.names.filter).await?;
    }
    Ok(())
}
