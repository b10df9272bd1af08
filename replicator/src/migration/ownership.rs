//! Decisions about who owns a VM that no hand-off takes: what peers know is asked before a VM starts, and a person may take
//! a VM over, give it up or remove it. Records of this platform may be old (a restored backup, a cloned host), so a peer
//! that knows a higher epoch is believed; a peer that does not answer keeps no VM from starting.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use longhaul_proto::Epoch;
use longhaul_proto::wire::{ClaimAnswer, Open, Relation};
use migrate_driver::{GuestStatus, VmDefinition, VmName};
use quinn::{SendStream, VarInt};
use serde::Serialize;
use tokio::task::JoinSet;

use crate::error_kind::{HasKind, Kind};
use crate::migration::journal::Claim;
use crate::service::jobs::{self, JobState};
use crate::service::net::{self, NetError};
use crate::service::peers::PeersError;
use crate::service::platform::MigrationCx;
use crate::service::vms::{Hold, VmError};

/// How long peers have to answer before a VM starts without them.
const BEFORE_START: Duration = Duration::from_secs(5);
/// How long they have before a person's decision counts without them.
const BEFORE_DECISION: Duration = Duration::from_secs(10);

/// A VM that cannot be started, taken, given up or removed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub(crate) enum OwnershipError {
    #[error(transparent)]
    Vm(#[from] VmError),
    #[error(transparent)]
    Driver(#[from] migrate_driver::DriverError),
    #[error(transparent)]
    Name(#[from] migrate_driver::NameError),
    #[error(transparent)]
    Peers(#[from] PeersError),
    #[error(
        "cannot tell VM '{vm}' from that of peer '{peer}': it belongs to '{owner}', or may, by this platform's own records"
    )]
    NotOurs { vm: String, peer: String, owner: String },
    #[error("cannot tell VM '{vm}' from that of peer '{peer}': '{peer}' does not answer that it has one")]
    NoNamesake { vm: String, peer: String },
    #[error(
        "cannot run VM '{vm}' here: peer '{peer}' owns it at epoch {theirs}, this platform only at epoch {ours}; records \
         of this platform are old (a restored backup?). Accept that with `longhaul resolve {vm} --give-up`. If '{peer}' has \
         another VM of that name, say so with `longhaul resolve {vm} --keep --distinct-from {peer}`"
    )]
    OwnedElsewhere { vm: String, peer: String, theirs: Epoch, ours: Epoch },
    #[error(
        "cannot run VM '{vm}' here: peer '{peer}' knows of its epoch {theirs}, this platform only of epoch {ours}; records \
         of this platform are old (a restored backup?). Find out where the VM runs; if nowhere, take it with \
         `longhaul resolve {vm} --keep`"
    )]
    Newer { vm: String, peer: String, theirs: Epoch, ours: Epoch },
    #[error(
        "cannot tell whether VM '{vm}' belongs to this platform: {file} cannot be read, and these peers do not answer: \
         {silent}; start it when they do, or find out where it runs and decide with `longhaul resolve {vm} --keep`. If the \
         file holds nothing newer of any VM, move {file} out of journal/",
        file = .file.display()
    )]
    StillInDoubt { vm: String, file: PathBuf, silent: String },
    #[error(
        "cannot take VM '{vm}': peer '{peer}' answers that it owns it (epoch {theirs}); move it here with \
         `longhaul migrate {vm}` there. If '{peer}' has another VM of that name, say so with `longhaul resolve {vm} --keep \
         --distinct-from {peer}`"
    )]
    PeerOwns { vm: String, peer: String, theirs: Epoch },
    #[error(
        "cannot take VM '{vm}': peer '{peer}' answers that it is undecided about it (epoch {theirs}); decide there first, \
         with `longhaul resolve {vm} --keep` or `--give-up`"
    )]
    PeerUndecided { vm: String, peer: String, theirs: Epoch },
    #[error(
        "VM '{vm}' belongs to this platform (epoch {epoch}), and no peer contradicts: there is nothing to resolve"
    )]
    NothingToKeep { vm: String, epoch: Epoch },
    #[error(
        "cannot give up VM '{vm}': no peer answers that it owns it{silent}; to be rid of it here use `longhaul vm remove {vm}`"
    )]
    NobodyElse { vm: String, silent: String },
    #[error("cannot {what} VM '{vm}': it is {status} here; stop it first with `longhaul vm stop {vm}`")]
    NotStopped { what: &'static str, vm: String, status: String },
    #[error("cannot write the claims file for VM '{vm}': {source}; nothing was changed")]
    Claims { vm: String, source: std::io::Error },
    #[error("cannot take VM '{vm}': its ownership has changed meanwhile; look at it with `longhaul vm list`")]
    Changed { vm: String },
    #[error("a worker ended unexpectedly")]
    Worker,
}

impl HasKind for OwnershipError {
    fn kind(&self) -> Kind {
        match self {
            OwnershipError::Vm(error) => error.kind(),
            OwnershipError::Driver(error) => error.kind(),
            OwnershipError::Name(error) => error.kind(),
            OwnershipError::Peers(error) => error.kind(),
            OwnershipError::NotOurs { .. }
            | OwnershipError::NoNamesake { .. }
            | OwnershipError::OwnedElsewhere { .. }
            | OwnershipError::Newer { .. }
            | OwnershipError::StillInDoubt { .. }
            | OwnershipError::PeerOwns { .. }
            | OwnershipError::PeerUndecided { .. }
            | OwnershipError::NothingToKeep { .. }
            | OwnershipError::NobodyElse { .. }
            | OwnershipError::NotStopped { .. }
            | OwnershipError::Changed { .. } => Kind::Denied,
            OwnershipError::Claims { source, .. } => Kind::of_io(source),
            OwnershipError::Worker => Kind::Bug,
        }
    }
}

/// What peers say of a VM.
#[derive(Debug, Default)]
struct Asked {
    answers: Vec<(String, ClaimAnswer)>,
    /// Who did not answer in time.
    silent: Vec<String>,
}

/// Asks peers at once. One of an older version does not answer this question.
async fn ask(cx: &Arc<MigrationCx>, vm: &str, peers: Vec<String>, within: Duration) -> Asked {
    let mut asking = JoinSet::new();
    for peer in peers {
        let (cx, vm) = (cx.clone(), vm.to_owned());
        asking.spawn(async move {
            let answer = tokio::time::timeout(within, ask_one(&cx, &peer, vm)).await;
            (peer, answer.ok().and_then(Result::ok))
        });
    }
    let mut asked = Asked::default();
    while let Some(answer) = asking.join_next().await {
        match answer {
            Ok((peer, Some(answer))) => asked.answers.push((peer, answer)),
            Ok((peer, None)) => asked.silent.push(peer),
            Err(error) => tracing::error!("asking a peer about VM '{vm}': {error}"),
        }
    }
    asked.silent.sort();
    asked
}

async fn ask_one(cx: &MigrationCx, peer: &str, vm: String) -> Result<ClaimAnswer, NetError> {
    let connection = cx.reach.network.dial(peer).await?;
    let answer = async {
        if !net::is_current(&connection) {
            return Err(NetError::Ended);
        }
        let (mut send, mut recv) = connection.open_bi().await?;
        net::send(&mut send, &Open::Claim { vm }).await?;
        net::expect(&mut recv).await
    }
    .await;
    connection.close(VarInt::from_u32(0), b"answered");
    answer
}

/// Answers a peer: no more than the epoch and what the VM is to this platform.
pub(crate) async fn answer(cx: &MigrationCx, mut send: SendStream, vm: &str) -> Result<(), NetError> {
    let answer = match cx.guests.vms.ownership(vm) {
        None => ClaimAnswer { epoch: Epoch(0), relation: Relation::Stranger },
        Some(claim) => {
            let relation = match claim {
                Claim::Ours(_) => Relation::Owner,
                Claim::Theirs(..) => Relation::Elsewhere,
                Claim::Undecided(..) | Claim::Unknown(..) => Relation::Undecided,
                Claim::Removed(_) => Relation::Removed,
            };
            ClaimAnswer { epoch: claim.epoch(), relation }
        }
    };
    net::send(&mut send, &answer).await?;
    let _ = send.finish();
    let _ = send.stopped().await;
    Ok(())
}

/// To be called before a VM that is stopped is started, moved or replicated: whether no peer knows better. What should be
/// said to the person comes back. A platform whose epoch is not above that of every removed VM of this name takes a higher
/// one, so that the VM can move there.
pub(crate) async fn check(cx: &Arc<MigrationCx>, vm: &str) -> Result<Option<String>, OwnershipError> {
    check_with(cx, vm, cx.reach.peers.list().into_keys().collect()).await
}

/// The same for a guest that runs, which only has to know better than `peer`; of one whose owner is in doubt here every
/// peer is asked.
pub(crate) async fn check_against(
    cx: &Arc<MigrationCx>,
    vm: &str,
    peer: &str,
) -> Result<Option<String>, OwnershipError> {
    if matches!(cx.guests.vms.ownership(vm), Some(Claim::Unknown(..))) {
        return check(cx, vm).await;
    }
    check_with(cx, vm, vec![peer.to_owned()]).await
}

async fn check_with(
    cx: &Arc<MigrationCx>,
    vm: &str,
    peers: Vec<String>,
) -> Result<Option<String>, OwnershipError> {
    let claim = cx.guests.vms.ownership(vm);
    if !matches!(claim, Some(Claim::Unknown(..))) {
        cx.guests.vms.owned(vm)?;
    }
    let mut asked = ask(cx, vm, peers, BEFORE_START).await;
    asked.answers.retain(|(peer, answer)| !is_of_another_vm(cx, vm, peer, answer));
    let Judged { raise_to, namesakes, removed_by } = judge(vm, claim.as_ref(), &asked)?;
    if let Some(epoch) = raise_to {
        settle(cx, vm, Claim::Ours(epoch)).await?;
    }
    let mut warnings = Vec::new();
    if !asked.silent.is_empty() {
        let silent = asked.silent.join(", ");
        warnings.push(format!(
            "these peers do not answer, so only this platform's own records were asked: {silent}"
        ));
    }
    if !namesakes.is_empty() {
        let namesakes = namesakes.join(", ");
        warnings.push(format!("peers have a VM of this name too, which was never moved either: {namesakes}"));
    }
    if !removed_by.is_empty() {
        let removed_by = removed_by.join(", ");
        warnings.push(format!("a VM of this name that was newer than this one was removed by: {removed_by}"));
    }
    let warning = (!warnings.is_empty()).then(|| warnings.join("; "));
    if let Some(warning) = &warning {
        tracing::warn!("VM '{vm}': {warning}");
    }
    Ok(warning)
}

/// Whether a person has said that what this peer owns is another VM of that name.
fn is_of_another_vm(cx: &MigrationCx, vm: &str, peer: &str, answer: &ClaimAnswer) -> bool {
    answer.relation == Relation::Owner
        && cx
            .reach
            .peers
            .get(peer)
            .is_ok_and(|known| cx.guests.vms.claims().is_distinct(vm, &known.fingerprint, answer.epoch))
}

#[derive(Debug, Default, PartialEq)]
struct Judged {
    /// The epoch to take before anything else is done.
    raise_to: Option<Epoch>,
    /// Peers with a VM of that name that was never handed over, as ours was not: most likely another VM.
    namesakes: Vec<String>,
    /// Peers that removed a VM of that name after we owned it.
    removed_by: Vec<String>,
}

/// What follows from the answers for a VM that this platform takes for its own, or is in doubt about.
fn judge(vm: &str, claim: Option<&Claim>, asked: &Asked) -> Result<Judged, OwnershipError> {
    let ours = claim.map_or(Epoch::FIRST, Claim::epoch);
    let mut judged = Judged::default();
    let mut removed = Epoch(0);
    for (peer, ClaimAnswer { epoch: theirs, relation }) in &asked.answers {
        let (vm, peer, theirs) = (vm.to_owned(), peer.clone(), *theirs);
        match relation {
            Relation::Owner if theirs == Epoch::FIRST && ours == Epoch::FIRST => judged.namesakes.push(peer),
            Relation::Owner if theirs >= ours => {
                return Err(OwnershipError::OwnedElsewhere { vm, peer, theirs, ours });
            }
            Relation::Elsewhere | Relation::Undecided if theirs > ours => {
                return Err(OwnershipError::Newer { vm, peer, theirs, ours });
            }
            Relation::Removed if theirs >= ours => {
                removed = removed.max(theirs);
                judged.removed_by.push(peer);
            }
            _ => {}
        }
    }
    if let Some(Claim::Unknown(_, file)) = claim {
        if !asked.silent.is_empty() {
            let (file, silent) = (file.clone(), asked.silent.join(", "));
            return Err(OwnershipError::StillInDoubt { vm: vm.to_owned(), file, silent });
        }
        judged.raise_to = Some(ours.max(removed).next().next());
    } else if removed >= ours {
        judged.raise_to = Some(removed.next());
    }
    Ok(judged)
}

/// Before a definition: the epoch at which the VM is ours once it is defined, `None` when it is settled already. The name of
/// a VM that moved to a peer is free again once that peer answers that it was removed. Nothing is changed.
pub(crate) async fn check_name_is_free(
    cx: &Arc<MigrationCx>,
    vm: &str,
) -> Result<Option<Epoch>, OwnershipError> {
    match cx.guests.vms.ownership(vm) {
        None => Ok(Some(Epoch::FIRST)),
        Some(Claim::Removed(epoch)) => Ok(Some(epoch.next())),
        Some(Claim::Theirs(epoch, peer)) => {
            let asked = ask(cx, vm, vec![peer], BEFORE_START).await;
            match asked.answers.first() {
                Some((_, ClaimAnswer { epoch: removed, relation: Relation::Removed }))
                    if *removed >= epoch =>
                {
                    Ok(Some(removed.next()))
                }
                _ => Ok(cx.guests.vms.owned(vm).map(|_| None)?),
            }
        }
        Some(_) => Ok(cx.guests.vms.owned(vm).map(|_| None)?),
    }
}

/// Keeps a definition of a VM whose name [`check_name_is_free`] found free, then settles that it is ours at `epoch`. When
/// either fails, all is as it was.
pub(crate) async fn define(
    cx: &Arc<MigrationCx>,
    definition: VmDefinition,
    epoch: Option<Epoch>,
) -> Result<(), OwnershipError> {
    let (cx, vm) = (cx.clone(), definition.name.to_string());
    let defining = tokio::task::spawn_blocking(move || {
        cx.guests.vms.define_and(definition, || match epoch {
            Some(epoch) => cx
                .guests
                .vms
                .claims()
                .settle_defined(&vm, Claim::Ours(epoch))
                .map_err(|source| OwnershipError::Claims { vm: vm.clone(), source }),
            None => Ok(()),
        })
    });
    defining.await.map_err(|_| OwnershipError::Worker)?
}

/// A person takes a VM whose owner is gone for good, or whose ownership cannot be told. Refused while a peer owns it. The
/// new epoch is above that of the lost owner, so that a returning one loses. Gives the epoch. The VMs of that name at the
/// peers in `distinct_from` are other ones: that is kept, and what they answer counts no more.
pub(crate) async fn keep(
    cx: &Arc<MigrationCx>,
    vm: &str,
    distinct_from: &[String],
) -> Result<Epoch, OwnershipError> {
    let Some(claim) = cx.guests.vms.ownership(vm) else { return Ok(cx.guests.vms.owned(vm)?) };
    let mut asked = ask(cx, vm, cx.reach.peers.list().into_keys().collect(), BEFORE_DECISION).await;
    for peer in distinct_from {
        distinguish(cx, vm, &claim, peer, &asked).await?;
    }
    asked.answers.retain(|(peer, answer)| !is_of_another_vm(cx, vm, peer, answer));
    if let (Claim::Ours(epoch), false) = (&claim, distinct_from.is_empty())
        && asked.answers.iter().all(|(_, answer)| answer.epoch <= *epoch)
    {
        return Ok(*epoch);
    }
    let epoch = judge_keep(vm, &claim, &asked)?;
    if matches!(claim, Claim::Theirs(..)) {
        end_release(cx, vm).await;
    }
    let _hold = hold(cx, vm, "resolve")?;
    if cx.guests.vms.ownership(vm) != Some(claim) {
        return Err(OwnershipError::Changed { vm: vm.to_owned() });
    }
    settle(cx, vm, Claim::Ours(epoch)).await?;
    tracing::warn!(
        "VM '{vm}' is taken at epoch {epoch}, by a person's decision; no answer from: {:?}",
        asked.silent
    );
    Ok(epoch)
}

/// Keeps that a peer's VM of this name is another one, up to the epoch at which it answers that it owns it. Should ours move
/// there later, it is at a higher one.
async fn distinguish(
    cx: &Arc<MigrationCx>,
    vm: &str,
    claim: &Claim,
    peer: &str,
    asked: &Asked,
) -> Result<(), OwnershipError> {
    let fingerprint = cx.reach.peers.get(peer)?.fingerprint;
    let ours = match claim {
        Claim::Ours(epoch) | Claim::Unknown(epoch, _) => Claim::Ours(*epoch),
        Claim::Theirs(_, owner) | Claim::Undecided(_, owner) => {
            let (vm, peer, owner) = (vm.to_owned(), peer.to_owned(), owner.clone());
            return Err(OwnershipError::NotOurs { vm, peer, owner });
        }
        Claim::Removed(_) => return Ok(cx.guests.vms.owned(vm).map(drop)?),
    };
    let owns = |(name, answer): &&(String, ClaimAnswer)| name == peer && answer.relation == Relation::Owner;
    let Some((_, answer)) = asked.answers.iter().find(owns) else {
        return Err(OwnershipError::NoNamesake { vm: vm.to_owned(), peer: peer.to_owned() });
    };
    let distinct = BTreeMap::from([(fingerprint, answer.epoch)]);
    tracing::warn!("VM '{vm}' is another one than that of peer '{peer}', by a person's decision");
    let (cx, name) = (cx.clone(), vm.to_owned());
    let settling =
        tokio::task::spawn_blocking(move || cx.guests.vms.claims().settle_distinct(&name, ours, distinct));
    let settled = settling.await.map_err(|_| OwnershipError::Worker)?;
    settled.map_err(|source| OwnershipError::Claims { vm: vm.to_owned(), source })
}

/// Ends the job that still tells a peer which is gone that the VM is its own.
async fn end_release(cx: &MigrationCx, vm: &str) {
    let Some(job) = cx.guests.vms.holder(vm) else { return };
    if let (true, Some(mut watch)) = (cx.handoffs.presume_resumed(job), cx.jobs.watch(job)) {
        let ended = watch.wait_for(|report| report.state != JobState::Running);
        // One that does not end keeps its hold, which is told.
        let _ = tokio::time::timeout(BEFORE_DECISION, ended).await;
    }
}

fn judge_keep(vm: &str, claim: &Claim, asked: &Asked) -> Result<Epoch, OwnershipError> {
    let ours = claim.epoch();
    let contested = asked.answers.iter().any(|(_, answer)| answer.epoch > ours);
    if matches!(claim, Claim::Ours(_)) && !contested {
        return Err(OwnershipError::NothingToKeep { vm: vm.to_owned(), epoch: ours });
    }
    let mut highest = ours;
    for (peer, ClaimAnswer { epoch: theirs, relation }) in &asked.answers {
        let (vm, peer, theirs) = (vm.to_owned(), peer.clone(), *theirs);
        match relation {
            // One at a lower epoch has another VM of that name, or records that are older than ours.
            Relation::Owner if theirs >= ours => {
                return Err(OwnershipError::PeerOwns { vm, peer, theirs });
            }
            Relation::Undecided => return Err(OwnershipError::PeerUndecided { vm, peer, theirs }),
            _ => highest = highest.max(theirs),
        }
    }
    Ok(highest.next().next())
}

/// A person accepts that the peer which says so owns a VM. Gives its name and epoch.
pub(crate) async fn give_up(cx: &Arc<MigrationCx>, vm: &str) -> Result<(String, Epoch), OwnershipError> {
    let _hold = hold(cx, vm, "resolve")?;
    let Some(claim) = cx.guests.vms.ownership(vm) else {
        return Err(cx.guests.vms.owned(vm).map_or_else(OwnershipError::from, |epoch| {
            OwnershipError::NothingToKeep { vm: vm.to_owned(), epoch }
        }));
    };
    check_stopped(cx, vm, "give up").await?;
    let asked = ask(cx, vm, cx.reach.peers.list().into_keys().collect(), BEFORE_DECISION).await;
    let owner = asked
        .answers
        .iter()
        .filter(|(_, answer)| answer.relation == Relation::Owner && answer.epoch >= claim.epoch())
        .max_by_key(|(_, answer)| answer.epoch);
    let Some((peer, answer)) = owner.cloned() else {
        let silent = match &asked.silent[..] {
            [] => String::new(),
            silent => format!(" (no answer from {})", silent.join(", ")),
        };
        return Err(OwnershipError::NobodyElse { vm: vm.to_owned(), silent });
    };
    settle(cx, vm, Claim::Theirs(answer.epoch, peer.clone())).await?;
    tracing::warn!(
        "VM '{vm}' is given up to peer '{peer}' at epoch {}, by a person's decision",
        answer.epoch
    );
    Ok((peer, answer.epoch))
}

/// What `vm remove` did.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Removed {
    /// The VM.
    pub removed: String,
    /// Images that were deleted.
    pub deleted: Vec<PathBuf>,
    /// Images that stay.
    pub kept: Vec<PathBuf>,
}

/// Forgets a stopped VM. Of one that is ours the epoch stays known, so that an older offer of it is refused; of one that
/// moved away, where it went. With `disks` its images in this platform's own directory of images are deleted.
pub(crate) async fn remove(cx: &Arc<MigrationCx>, vm: &str, disks: bool) -> Result<Removed, OwnershipError> {
    let _hold = hold(cx, vm, "remove")?;
    let claim = cx.guests.vms.ownership(vm);
    match &claim {
        None | Some(Claim::Removed(_) | Claim::Undecided(..) | Claim::Unknown(..)) => {
            cx.guests.vms.owned(vm)?;
        }
        Some(Claim::Ours(_) | Claim::Theirs(..)) => {}
    }
    check_stopped(cx, vm, "remove").await?;
    let images = cx.guests.vms.definition(vm).map(|definition| definition.disks).unwrap_or_default();
    let images: Vec<PathBuf> = images.into_iter().map(|disk| disk.path).collect();
    if let Some(Claim::Ours(epoch)) = claim {
        settle(cx, vm, Claim::Removed(epoch)).await?;
    }
    let (cx, vm) = (cx.clone(), vm.to_owned());
    let removing = tokio::task::spawn_blocking(move || {
        cx.guests.vms.undefine(&vm)?;
        let mut removed = Removed { removed: vm.clone(), ..Removed::default() };
        for image in images {
            let gone = disks && is_own_image(&cx, &image) && std::fs::remove_file(&image).is_ok();
            if gone { removed.deleted.push(image) } else { removed.kept.push(image) }
        }
        // Only when nothing is left in it.
        let _ = std::fs::remove_dir(cx.guests.layout.image(&vm, "x").with_file_name(""));
        Ok(removed)
    });
    removing.await.map_err(|_| OwnershipError::Worker)?
}

/// Whether this is a file in our own directory of images that no VM uses.
fn is_own_image(cx: &MigrationCx, image: &std::path::Path) -> bool {
    let Ok(real) = image.canonicalize() else { return false };
    let Ok(own) = cx.guests.layout.images().canonicalize() else { return false };
    let plain = std::fs::symlink_metadata(image).is_ok_and(|meta| meta.is_file());
    let used = cx.guests.vms.list().into_iter().flat_map(|vm| vm.disks);
    plain
        && real.starts_with(own)
        && !used.filter_map(|disk| disk.path.canonicalize().ok()).any(|used| used == real)
}

fn hold(cx: &Arc<MigrationCx>, vm: &str, what: &'static str) -> Result<Hold, VmError> {
    cx.guests.vms.hold(vm, jobs::new_id(), what)
}

async fn check_stopped(cx: &MigrationCx, vm: &str, what: &'static str) -> Result<(), OwnershipError> {
    // What has no VM's name runs nowhere.
    let Ok(name) = VmName::new(vm) else { return Ok(()) };
    match cx.guests.hypervisor.status(&name).await? {
        GuestStatus::Stopped => Ok(()),
        status => Err(OwnershipError::NotStopped { what, vm: vm.to_owned(), status: status.to_string() }),
    }
}

async fn settle(cx: &Arc<MigrationCx>, vm: &str, claim: Claim) -> Result<(), OwnershipError> {
    let (cx, name) = (cx.clone(), vm.to_owned());
    let settling = tokio::task::spawn_blocking(move || cx.guests.vms.claims().settle(&name, claim));
    let settled = settling.await.map_err(|_| OwnershipError::Worker)?;
    settled.map_err(|source| OwnershipError::Claims { vm: vm.to_owned(), source })
}

#[cfg(test)]
mod tests;
