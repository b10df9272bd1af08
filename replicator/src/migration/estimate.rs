//! What a migration would send: the plan for `--dry-run`. Asks the peer, changes nothing on either side.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use longhaul_proto::Epoch;
use longhaul_proto::wire::{Judgement, Open, Target};
use migrate_driver::{DiskFormat, Mode};
use quinn::Connection;
use serde::Serialize;

use crate::error_kind::{HasKind, Kind};
use crate::migration::PlanError;
use crate::migration::source::{MigrateError, plan};
use crate::service::disks::Cut;
use crate::service::net::{self, NetError};
use crate::service::platform::MigrationCx;
use crate::transfer::sender::Sender;
use crate::transfer::{Counters, TransferError};

/// An estimate that could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EstimateError {
    /// The plan.
    #[error(transparent)]
    Plan(#[from] MigrateError),
    /// The peer.
    #[error(transparent)]
    Net(#[from] NetError),
    /// It would not take the VM.
    #[error("'{peer}' would refuse: {reason}")]
    Unfit { peer: String, reason: String },
    /// Asking it.
    #[error("asking what the peer lacks of disk '{disk}': {source}")]
    Transfer { disk: String, source: TransferError },
}

impl HasKind for EstimateError {
    fn kind(&self) -> Kind {
        match self {
            EstimateError::Plan(error) => error.kind(),
            EstimateError::Net(error) => error.kind(),
            EstimateError::Unfit { .. } => Kind::Peer,
            EstimateError::Transfer { source, .. } => source.kind(),
        }
    }
}

/// What a migration would do and send.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Estimate {
    /// The VM.
    pub vm: String,
    /// Whereto.
    pub to: String,
    /// Its epoch there.
    pub epoch: u64,
    /// What would happen, in order.
    pub phases: Vec<&'static str>,
    /// Guest memory, all of which may be sent.
    pub memory_bytes: u64,
    /// A line for each disk.
    pub disks: Vec<DiskEstimate>,
}

/// What would be sent of a disk.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct DiskEstimate {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// Of those neither hole nor zero.
    pub data_bytes: u64,
    /// Data the peer holds.
    pub held_bytes: u64,
    /// Data that would be sent, before compression; and what the guest writes meanwhile.
    pub to_send_bytes: u64,
}

/// Scans the VM's disks and asks `peer` what it lacks.
pub(crate) async fn estimate(
    cx: &MigrationCx,
    vm: &str,
    peer: &str,
    mode: Mode,
) -> Result<Estimate, EstimateError> {
    let owned = cx.guests.vms.owned(vm).map_err(MigrateError::from)?;
    let definition = cx.guests.vms.definition(vm).map_err(MigrateError::from)?;
    cx.guests.hypervisor.check_movable(&definition, mode).await.map_err(MigrateError::from)?;
    let (plan, seen) = plan(cx, vm).await?;
    let connection = cx.reach.network.dial(peer).await?;
    judge(&connection, peer, vm, owned, plan.encode().map_err(MigrateError::from)?).await?;
    let mut disks = Vec::new();
    for (index, (disk, definition)) in plan.disks.iter().zip(&plan.definition.disks).enumerate() {
        // What only its hypervisor can read counts as to be sent, all of it.
        let (data_bytes, held_bytes) = match definition.format {
            DiskFormat::Qcow2 => (disk.data_bytes, 0),
            DiskFormat::Raw => {
                let failed = |source| EstimateError::Transfer { disk: disk.name.clone(), source };
                let path = definition.path.display().to_string();
                let (opened, seen) = (definition.clone(), seen.get(index).copied().flatten());
                let image = tokio::task::spawn_blocking(move || Cut::open(&opened, seen));
                let image = image.await.map_err(|_| MigrateError::Worker)?.map_err(PlanError::from);
                let image = image.map_err(MigrateError::from)?;
                let counters = Arc::new(Counters::default());
                let target = Target::Estimate { vm: vm.to_owned(), disk: disk.name.clone() };
                let settings = cx.reach.transfers;
                let opened = Sender::open(&connection, target, disk.size, settings, counters.clone()).await;
                let (mut sender, _) = opened.map_err(failed)?;
                sender.estimate(Arc::new(image), &path).await.map_err(failed)?;
                let get = |counter: &AtomicU64| Counters::get(counter);
                (get(&counters.data), get(&counters.dedup))
            }
        };
        let to_send_bytes = data_bytes - held_bytes;
        disks.push(DiskEstimate {
            name: disk.name.clone(),
            size: disk.size,
            data_bytes,
            held_bytes,
            to_send_bytes,
        });
    }
    let memory_bytes = u64::from(plan.definition.memory_mib) << 20;
    let phases =
        vec!["prepare", "bulk", "precopy", "memory", "switchover", "release", "resume", "rebind", "done"];
    let epoch = owned.next().0;
    Ok(Estimate { vm: vm.to_owned(), to: peer.to_owned(), epoch, phases, memory_bytes, disks })
}

/// Asks the peer whether it would take the VM. The version before does not know the question.
async fn judge(
    connection: &Connection,
    peer: &str,
    vm: &str,
    epoch: Epoch,
    plan: Vec<u8>,
) -> Result<(), EstimateError> {
    if !net::is_current(connection) {
        return Ok(());
    }
    let (mut send, mut recv) = connection.open_bi().await.map_err(NetError::from)?;
    net::send(&mut send, &Open::Judge { vm: vm.to_owned(), epoch, plan }).await?;
    match net::expect(&mut recv).await {
        Ok(Judgement::Unfit { reason }) => Err(EstimateError::Unfit { peer: peer.to_owned(), reason }),
        Ok(Judgement::Fit) | Err(_) => Ok(()),
    }
}
