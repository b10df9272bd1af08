//! The control API's part for VMs. Listing them asks all hypervisors at once, and none of them longer than a moment.

use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::Json;
use axum::extract::{Path as UrlPath, State};
use longhaul_proto::JobId;
use longhaul_proto::handoff::{Limits, Phase};
use migrate_driver::{GuestStatus, Mode, StopHow, VmDefinition, VmName};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::asked::{Asked, Options};
use super::{Answer, ApiError, Shared, blocking, denied, invalid, job};
use crate::error_kind::{Failure, Kind};
use crate::migration::journal::Claim;
use crate::service::platform::Platform;
use crate::service::vms::{self as defined, VmError};
use crate::{
    migration as handoff, migration::estimate, migration::ownership, replication::warm, service::jobs,
};

/// How long a guest has to power down before it is killed.
const POWERDOWN: Duration = Duration::from_secs(30);
/// How long a hypervisor has to say how a guest stands. One whose storage is gone never answers.
const STATUS_WITHIN: Duration = Duration::from_secs(2);
/// Hypervisors that are asked at once.
const ASKED_AT_ONCE: usize = 64;

#[derive(Serialize)]
struct Listed {
    name: String,
    status: Value,
    owner: String,
    epoch: u64,
    memory_mib: u32,
    disks: Vec<PathBuf>,
    /// What keeps it from being used.
    error: Option<String>,
}

pub(super) async fn list(State(platform): Shared) -> Answer {
    let mut listed = Vec::new();
    let mut asking = JoinSet::new();
    for definition in platform.guests.vms.list() {
        if asking.len() >= ASKED_AT_ONCE {
            listed.extend(asking.join_next().await.and_then(Result::ok).flatten());
        }
        let platform = platform.clone();
        asking.spawn(async move { list_one(&platform, definition).await });
    }
    while let Some(one) = asking.join_next().await {
        listed.extend(one.ok().flatten());
    }
    let definitions =
        platform.guests.vms.damaged().into_iter().map(|damaged| (damaged.name, damaged.path, damaged.why));
    let mut damaged: Vec<_> = definitions.collect();
    for journal in platform.guests.vms.claims().damaged() {
        // Others are told by the owner of each VM that they put in doubt.
        if let Some((vm, _)) = journal.about
            && listed.iter().all(|listed| listed.name != vm)
            && matches!(platform.guests.vms.ownership(&vm), Some(Claim::Unknown(..)))
        {
            damaged.push((vm, journal.path, journal.why));
        }
    }
    for (name, path, why) in damaged {
        let (owner, epoch) = owner(&platform, &name).unwrap_or_else(|| ("-".to_owned(), 0));
        let (error, status, disks) =
            (Some(format!("{}: {why}", path.display())), json!("Damaged"), Vec::new());
        listed.push(Listed { name, status, owner, epoch, memory_mib: 0, disks, error });
    }
    listed.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Json(serde_json::to_value(listed)?))
}

async fn list_one(platform: &Platform, definition: VmDefinition) -> Option<Listed> {
    let name = definition.name.to_string();
    let asked = platform.guests.hypervisor.status(&definition.name);
    let (status, error) = match tokio::time::timeout(STATUS_WITHIN, asked).await {
        Ok(Ok(status)) => (serde_json::to_value(status).unwrap_or_default(), None),
        Ok(Err(error)) => (json!("Unknown"), Some(error.to_string())),
        Err(_) => {
            let why = format!("its hypervisor does not answer within {} s", STATUS_WITHIN.as_secs());
            (json!("Unresponsive"), Some(why))
        }
    };
    let (owner, epoch) = owner(platform, &name)?;
    let disks = definition.disks.into_iter().map(|disk| disk.path).collect();
    Some(Listed { name, status, owner, epoch, memory_mib: definition.memory_mib, disks, error })
}

fn owner(platform: &Platform, vm: &str) -> Option<(String, u64)> {
    let claim = platform.guests.vms.ownership(vm)?;
    let epoch = claim.epoch().0;
    let owner = match claim {
        Claim::Ours(_) => "here".to_owned(),
        Claim::Theirs(_, peer) => peer,
        Claim::Undecided(_, peer) => format!("undecided: '{peer}' is asked"),
        Claim::Removed(_) => "nobody: removed".to_owned(),
        Claim::Unknown(_, file) => format!("in doubt: {} cannot be read", file.display()),
    };
    Some((owner, epoch))
}

#[derive(Deserialize)]
pub(super) struct Define {
    toml: String,
    /// Where it came from, for messages.
    file: PathBuf,
}

pub(super) async fn define(State(platform): Shared, Asked(define): Asked<Define>) -> Answer {
    let definition = VmDefinition::parse(&define.toml, &define.file)?;
    let name = definition.name.to_string();
    let _hold = platform.guests.vms.hold(&name, jobs::new_id(), "define")?;
    let epoch = ownership::check_name_is_free(&platform.migration, &name).await?;
    match platform.guests.hypervisor.status(&definition.name).await? {
        GuestStatus::Stopped => ownership::define(&platform.migration, definition, epoch).await?,
        status => return Err(denied(format!("VM '{name}' is {status}: stop it before it is defined anew"))),
    }
    Ok(Json(json!({ "defined": name })))
}

/// Takes up a guest that runs here and that somebody else has started.
pub(super) async fn adopt(State(platform): Shared, UrlPath(name): UrlPath<String>) -> Answer {
    let _hold = platform.guests.vms.hold(&name, jobs::new_id(), "adopt")?;
    let epoch = ownership::check_name_is_free(&platform.migration, &name).await?;
    let vm = VmName::new(name.as_str())?;
    match platform.guests.hypervisor.discover(&vm).await? {
        Some(mut definition) => {
            // The hypervisor does not know it; who adopts a VM anew keeps what was said of it.
            definition.network =
                platform.guests.vms.definition(&name).ok().and_then(|known| known.network.clone());
            ownership::define(&platform.migration, definition, epoch).await?;
        }
        None => {
            let why = format!(
                "the hypervisor knows no running guest '{name}'; describe it with `longhaul vm define`"
            );
            return Err(Failure::new(Kind::NotFound, why));
        }
    }
    Ok(Json(json!({ "adopted": name })))
}

#[derive(Deserialize)]
pub(super) struct Remove {
    #[serde(default)]
    disks: bool,
}

pub(super) async fn remove(
    State(platform): Shared,
    UrlPath(name): UrlPath<String>,
    Options(remove): Options<Remove>,
) -> Answer {
    let removed = ownership::remove(&platform.migration, &name, remove.disks).await?;
    platform.replication.warm.forget_vm(&name);
    look_at_addresses(&platform);
    Ok(Json(serde_json::to_value(removed)?))
}

pub(super) async fn start(State(platform): Shared, UrlPath(name): UrlPath<String>) -> Answer {
    let hold = platform.guests.vms.hold(&name, jobs::new_id(), "start")?;
    let definition = platform.guests.vms.definition(&name)?;
    let mut answer = json!({ "started": name });
    // One that has a process here, paused by a full disk perhaps, is gone on with and not started.
    if platform.guests.hypervisor.status(&definition.name).await? == GuestStatus::Stopped {
        if let Some(warning) = ownership::check(&platform.migration, &name).await? {
            answer["warning"] = warning.into();
        }
    } else {
        platform.guests.vms.owned(&name)?;
    }
    platform.guests.hypervisor.start(&definition).await?;
    drop(hold);
    look_at_addresses(&platform);
    Ok(Json(answer))
}

fn look_at_addresses(platform: &Platform) {
    if let Some(addresses) = &platform.address.gateway {
        addresses.look();
    }
}

#[derive(Deserialize)]
pub(super) struct Stop {
    #[serde(default)]
    kill: bool,
}

pub(super) async fn stop(
    State(platform): Shared,
    UrlPath(name): UrlPath<String>,
    Asked(stop): Asked<Stop>,
) -> Answer {
    let hold = match platform.guests.vms.hold(&name, jobs::new_id(), "stop") {
        // A rollback that cannot succeed must not keep a person from pulling the plug: it goes on and finds the VM stopped.
        Err(VmError::Busy { job, .. }) if stop.kill && is_rolling_back(&platform, job) => None,
        held => Some(held?),
    };
    let vm = match platform.guests.vms.definition(&name) {
        Ok(definition) => definition.name,
        // A guest whose definition was lost can be stopped all the same.
        Err(VmError::Damaged(_)) => VmName::new(name.as_str())?,
        Err(error) => return Err(error.into()),
    };
    let how = if stop.kill { StopHow::Kill } else { StopHow::Powerdown(POWERDOWN) };
    platform.guests.hypervisor.stop(&vm, how).await?;
    drop(hold);
    Ok(Json(json!({ "stopped": name })))
}

/// Whether a migration waits for a hypervisor to do what only its end may make possible: to take the guest back, or, at
/// the destination, to let it run.
fn is_rolling_back(platform: &Platform, job: JobId) -> bool {
    platform.jobs.report(job).is_ok_and(|report| {
        let waits: &[Phase] = match report.kind {
            jobs::JobKind::MigrateOut => &[Phase::RollingBack],
            jobs::JobKind::MigrateIn => &[Phase::RollingBack, Phase::Resume],
            _ => &[],
        };
        report.phases.last().is_some_and(|phase| waits.iter().any(|waits| waits.label() == phase.name))
    })
}

#[derive(Deserialize)]
pub(super) struct Migrate {
    to: String,
    max_downtime_ms: Option<u64>,
    #[serde(default)]
    cold: bool,
    #[serde(default)]
    dry_run: bool,
}

pub(super) async fn migrate(
    State(platform): Shared,
    UrlPath(name): UrlPath<String>,
    Asked(migrate): Asked<Migrate>,
) -> Answer {
    let mode = if migrate.cold { Mode::Cold } else { Mode::Live };
    if migrate.dry_run {
        let estimate = estimate::estimate(&platform.migration, &name, &migrate.to, mode).await?;
        return Ok(Json(serde_json::to_value(estimate)?));
    }
    let mut limits = Limits::default();
    if let Some(ms) = migrate.max_downtime_ms {
        if !(1..=60_000).contains(&ms) {
            return Err(invalid(format!("a downtime of {ms} ms is not within 1 to 60000 ms")));
        }
        limits = Limits::with_max_downtime(Duration::from_millis(ms));
    }
    check_before_move(&platform, &name, &migrate.to).await?;
    job(handoff::source::start(&platform.migration, &name, &migrate.to, limits, mode).await?)
}

/// A guest that runs here only has to be ours in the eyes of where it goes.
async fn check_before_move(platform: &std::sync::Arc<Platform>, vm: &str, to: &str) -> Result<(), ApiError> {
    platform.reach.peers.get(to)?;
    // Another job's hold is told by the work itself, and its VM's ownership may be on its way.
    if platform.guests.vms.is_held(vm) {
        return Ok(());
    }
    let definition = platform.guests.vms.definition(vm)?;
    if platform.guests.hypervisor.status(&definition.name).await? == GuestStatus::Stopped {
        ownership::check(&platform.migration, vm).await?;
    } else {
        ownership::check_against(&platform.migration, vm, to).await?;
    }
    Ok(())
}

#[derive(Deserialize)]
pub(super) struct Resolve {
    keep: bool,
    /// Peers that have another VM of that name.
    #[serde(default)]
    distinct_from: Vec<String>,
}

pub(super) async fn resolve(
    State(platform): Shared,
    UrlPath(name): UrlPath<String>,
    Asked(resolve): Asked<Resolve>,
) -> Answer {
    let undecided = matches!(platform.guests.vms.ownership(&name), Some(Claim::Undecided(..)));
    if undecided && platform.migration.handoffs.resolve(&name, resolve.keep) {
        return Ok(Json(json!({ "resolved": name, "kept": resolve.keep })));
    }
    if resolve.keep {
        let epoch = ownership::keep(&platform.migration, &name, &resolve.distinct_from).await?;
        return Ok(Json(json!({ "resolved": name, "kept": true, "epoch": epoch.0 })));
    }
    let (owner, epoch) = ownership::give_up(&platform.migration, &name).await?;
    Ok(Json(json!({ "resolved": name, "kept": false, "owner": owner, "epoch": epoch.0 })))
}

#[derive(Deserialize)]
pub(super) struct Replicate {
    to: String,
}

pub(super) async fn replicate(
    State(platform): Shared,
    UrlPath(name): UrlPath<String>,
    Asked(replicate): Asked<Replicate>,
) -> Answer {
    check_before_move(&platform, &name, &replicate.to).await?;
    job(blocking(move || warm::start(&platform.replication, &name, &replicate.to)).await??)
}

/// The definition in a file, as `POST /v1/vms` takes it; read on the caller's side, where its path means something.
pub(crate) fn definition_request(path: &Path) -> Result<Value, VmError> {
    let definition = defined::read_definition(path)?;
    let toml = definition.to_toml()?;
    Ok(json!({ "toml": toml, "file": path.to_string_lossy() }))
}
