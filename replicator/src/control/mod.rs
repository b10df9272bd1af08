//! The control API: HTTP and JSON on a unix socket, for the command line and for `curl --unix-socket`. Handlers parse,
//! call the module that does the work, and answer; long work is begun as a job and answered with its id.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::body::{Body, Bytes};
use axum::extract::{Path as UrlPath, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use longhaul_proto::handoff::Limits;
use migrate_driver::{GuestStatus, Mode, StopHow, VmDefinition, VmName};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::UnixListener;

use crate::jobs::{JobState, Report};
use crate::journal::Claim;
use crate::migrate::source::MigrateError;
use crate::peers::Peer;
use crate::platform::Platform;
use crate::vms::VmError;
use crate::warm::WarmError;
use crate::{bases, estimate, files, migrate, restore, upkeep, vms, warm};

/// How long a guest has to power down before it is killed.
const POWERDOWN: Duration = Duration::from_secs(30);
/// How often a watcher sees a job's counters move.
const WATCH_EVERY: Duration = Duration::from_millis(500);

/// An error as the API answers it.
pub struct ApiError {
    status: StatusCode,
    message: String,
}

impl<E: std::error::Error + 'static> From<E> for ApiError {
    fn from(error: E) -> Self {
        let status = if is_busy(&error) { StatusCode::LOCKED } else { StatusCode::CONFLICT };
        ApiError { status, message: error.to_string() }
    }
}

/// Whether another job has hold of the VM: the same request may be granted later.
fn is_busy(error: &(dyn std::error::Error + 'static)) -> bool {
    let vm = error.downcast_ref().or_else(|| {
        if let Some(MigrateError::Vm(vm)) = error.downcast_ref() {
            Some(vm)
        } else if let Some(WarmError::Vm(vm)) = error.downcast_ref() {
            Some(vm)
        } else {
            None
        }
    });
    matches!(vm, Some(VmError::Busy { .. }))
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(json!({ "error": self.message }))).into_response()
    }
}

type Answer = Result<Json<Value>, ApiError>;
type Shared = State<Arc<Platform>>;

/// Opens the control socket; only its owner may use it. One that a crash left is replaced: the store's lock says that
/// no daemon lives behind it.
pub fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).with_context(|| format!("control socket {}", path.display()))?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(listener)
}

/// Serves the API until the process ends.
pub async fn serve(platform: Arc<Platform>, listener: UnixListener) -> anyhow::Result<()> {
    axum::serve(listener, router(platform)).await.context("serving the control socket")
}

fn router(platform: Arc<Platform>) -> Router {
    Router::new()
        .route("/v1/identity", get(identity))
        .route("/v1/peers", get(list_peers).post(add_peer))
        .route("/v1/peers/{name}", delete(remove_peer).get(ask_peer))
        .route("/v1/bases", get(list_bases).post(add_base))
        .route("/v1/bases/{name}", delete(remove_base))
        .route("/v1/bases/{name}/push", post(push_base))
        .route("/v1/bases/{name}/restore", post(restore_base))
        .route("/v1/images/send", post(send_image))
        .route("/v1/vms", get(list_vms).post(define_vm))
        .route("/v1/vms/{name}/adopt", post(adopt_vm))
        .route("/v1/vms/{name}/start", post(start_vm))
        .route("/v1/vms/{name}/stop", post(stop_vm))
        .route("/v1/vms/{name}/migrate", post(migrate_vm))
        .route("/v1/vms/{name}/resolve", post(resolve_vm))
        .route("/v1/vms/{name}/replicate", post(replicate_vm))
        .route("/v1/addresses", get(list_addresses))
        .route("/v1/addresses/{name}", delete(release_address))
        .route("/v1/replicas", get(list_replicas))
        .route("/v1/replicas/{name}/restore", post(restore_replica))
        .route("/v1/jobs", get(list_jobs))
        .route("/v1/jobs/{id}", get(show_job))
        .route("/v1/jobs/{id}/watch", get(watch_job))
        .route("/v1/jobs/{id}/cancel", post(cancel_job))
        .route("/v1/store", get(store_stats))
        .route("/v1/store/verify", post(verify_store))
        .route("/v1/store/gc", post(gc_store))
        .route("/v1/store/export", post(export_store))
        .route("/v1/store/import", post(import_store))
        .with_state(platform)
}

/// Runs synchronous work off the runtime.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
    Ok(tokio::task::spawn_blocking(work).await?)
}

fn job(id: impl std::fmt::Display) -> Answer {
    Ok(Json(json!({ "job": id.to_string() })))
}

fn refused(message: String) -> ApiError {
    ApiError { status: StatusCode::BAD_REQUEST, message }
}

async fn identity(State(platform): Shared) -> Answer {
    Ok(Json(json!({ "name": platform.config.name, "fingerprint": platform.identity.fingerprint() })))
}

async fn list_peers(State(platform): Shared) -> Answer {
    let peers = platform.peers.list().into_iter().map(|(name, Peer { address, fingerprint })| {
        json!({ "name": name, "address": address, "fingerprint": fingerprint })
    });
    Ok(Json(peers.collect()))
}

#[derive(Deserialize)]
struct AddPeer {
    name: String,
    address: String,
    fingerprint: String,
}

async fn add_peer(State(platform): Shared, Json(add): Json<AddPeer>) -> Answer {
    let peer = Peer { address: add.address, fingerprint: add.fingerprint.parse()? };
    platform.peers.add(&add.name, peer)?;
    Ok(Json(json!({ "added": add.name })))
}

async fn remove_peer(State(platform): Shared, UrlPath(name): UrlPath<String>) -> Answer {
    platform.peers.remove(&name)?;
    Ok(Json(json!({ "removed": name })))
}

async fn ask_peer(State(platform): Shared, UrlPath(name): UrlPath<String>) -> Answer {
    let status = platform.network.ask_status(&name).await?;
    Ok(Json(
        json!({ "name": name, "calls_itself": status.name, "version": status.version, "free_bytes": status.free_bytes }),
    ))
}

async fn list_bases(State(platform): Shared) -> Answer {
    Ok(Json(serde_json::to_value(blocking(move || bases::list(&platform)).await??)?))
}

#[derive(Deserialize)]
struct AddBase {
    name: String,
    image: PathBuf,
}

async fn add_base(State(platform): Shared, Json(add): Json<AddBase>) -> Answer {
    job(blocking(move || bases::add(&platform, &add.name, &add.image)).await??)
}

async fn remove_base(State(platform): Shared, UrlPath(name): UrlPath<String>) -> Answer {
    platform.store().remove(&name)?;
    Ok(Json(json!({ "removed": name })))
}

#[derive(Deserialize)]
struct PushBase {
    peers: Vec<String>,
}

async fn push_base(
    State(platform): Shared,
    UrlPath(name): UrlPath<String>,
    Json(push): Json<PushBase>,
) -> Answer {
    job(bases::push(&platform, &name, push.peers)?)
}

async fn restore_base(
    State(platform): Shared,
    UrlPath(name): UrlPath<String>,
    Json(request): Json<restore::RestoreRequest>,
) -> Answer {
    job(blocking(move || restore::restore(&platform, &name, &request)).await??)
}

#[derive(Deserialize)]
struct SendImage {
    image: PathBuf,
    peer: String,
    name: String,
}

async fn send_image(State(platform): Shared, Json(send): Json<SendImage>) -> Answer {
    files::check_name("replica", &send.name).map_err(refused)?;
    job(warm::send_image(&platform, &send.image, &send.peer, &send.name)?)
}

#[derive(Serialize)]
struct ListedVm {
    name: String,
    status: GuestStatus,
    owner: String,
    epoch: u64,
    memory_mib: u32,
    disks: Vec<PathBuf>,
}

async fn list_vms(State(platform): Shared) -> Answer {
    let mut listed = Vec::new();
    for definition in platform.vms.list() {
        let name = definition.name.to_string();
        let status = platform.hypervisor.status(&definition.name).await?;
        let (owner, epoch) = match platform.vms.ownership(&name) {
            Some(Claim::Ours(epoch)) => ("here".to_owned(), epoch.0),
            Some(Claim::Theirs(epoch, peer)) => (peer, epoch.0),
            Some(Claim::Undecided(epoch, peer)) => (format!("undecided: '{peer}' is asked"), epoch.0),
            None => continue,
        };
        let disks = definition.disks.into_iter().map(|disk| disk.path).collect();
        listed.push(ListedVm { name, status, owner, epoch, memory_mib: definition.memory_mib, disks });
    }
    Ok(Json(serde_json::to_value(listed)?))
}

#[derive(Deserialize)]
struct DefineVm {
    toml: String,
    /// Where it came from, for messages.
    file: PathBuf,
}

async fn define_vm(State(platform): Shared, Json(define): Json<DefineVm>) -> Answer {
    let definition = VmDefinition::parse(&define.toml, &define.file)?;
    let name = definition.name.to_string();
    let _hold = platform.vms.hold(&name, crate::jobs::new_id(), "define")?;
    if platform.vms.ownership(&name).is_some() {
        platform.vms.owned(&name)?;
    }
    match platform.hypervisor.status(&definition.name).await? {
        GuestStatus::Stopped => platform.vms.define(definition)?,
        status => return Err(refused(format!("VM '{name}' is {status}: stop it before it is defined anew"))),
    }
    Ok(Json(json!({ "defined": name })))
}

/// Takes up a guest that runs here and that somebody else has started.
async fn adopt_vm(State(platform): Shared, UrlPath(name): UrlPath<String>) -> Answer {
    let _hold = platform.vms.hold(&name, crate::jobs::new_id(), "adopt")?;
    if platform.vms.ownership(&name).is_some() {
        platform.vms.owned(&name)?;
    }
    let vm = VmName::new(name.as_str())?;
    match platform.hypervisor.discover(&vm).await? {
        Some(mut definition) => {
            // The hypervisor does not know it; who adopts a VM anew keeps what was said of it.
            definition.network = platform.vms.definition(&name).ok().and_then(|known| known.network.clone());
            platform.vms.define(definition)?;
        }
        None => {
            let why = format!(
                "the hypervisor knows no running guest '{name}'; describe it with `longhaul vm define`"
            );
            return Err(refused(why));
        }
    }
    Ok(Json(json!({ "adopted": name })))
}

async fn start_vm(State(platform): Shared, UrlPath(name): UrlPath<String>) -> Answer {
    let hold = platform.vms.hold(&name, crate::jobs::new_id(), "start")?;
    platform.vms.owned(&name)?;
    platform.hypervisor.start(&platform.vms.definition(&name)?).await?;
    drop(hold);
    if let Some(addresses) = &platform.addresses {
        addresses.look();
    }
    Ok(Json(json!({ "started": name })))
}

async fn release_address(State(platform): Shared, UrlPath(name): UrlPath<String>) -> Answer {
    let home = platform.home.as_ref().ok_or_else(|| refused("this platform is no home agent".to_owned()))?;
    home.release(&name).await.map_err(refused)?;
    Ok(Json(json!({ "released": name })))
}

async fn list_addresses(State(platform): Shared) -> Answer {
    let gateway = platform.addresses.as_ref().map(|addresses| addresses.list());
    let home = match &platform.home {
        Some(home) => Some(home.list().await),
        None => None,
    };
    let plane = platform.home.as_ref().map(|home| home.plane());
    Ok(Json(json!({ "gateway": gateway, "home_agent": home, "home_agent_data_plane": plane })))
}

#[derive(Deserialize)]
struct StopVm {
    #[serde(default)]
    kill: bool,
}

async fn stop_vm(
    State(platform): Shared,
    UrlPath(name): UrlPath<String>,
    Json(stop): Json<StopVm>,
) -> Answer {
    let _hold = platform.vms.hold(&name, crate::jobs::new_id(), "stop")?;
    let definition = platform.vms.definition(&name)?;
    let how = if stop.kill { StopHow::Kill } else { StopHow::Powerdown(POWERDOWN) };
    platform.hypervisor.stop(&definition.name, how).await?;
    Ok(Json(json!({ "stopped": name })))
}

#[derive(Deserialize)]
struct MigrateVm {
    to: String,
    max_downtime_ms: Option<u64>,
    #[serde(default)]
    cold: bool,
    #[serde(default)]
    dry_run: bool,
}

async fn migrate_vm(
    State(platform): Shared,
    UrlPath(name): UrlPath<String>,
    Json(migrate): Json<MigrateVm>,
) -> Answer {
    let mode = if migrate.cold { Mode::Cold } else { Mode::Live };
    if migrate.dry_run {
        let estimate = estimate::estimate(&platform, &name, &migrate.to, mode).await?;
        return Ok(Json(serde_json::to_value(estimate)?));
    }
    let mut limits = Limits::default();
    if let Some(ms) = migrate.max_downtime_ms {
        if !(1..=60_000).contains(&ms) {
            return Err(refused(format!("a downtime of {ms} ms is not within 1 to 60000 ms")));
        }
        limits = Limits::with_max_downtime(Duration::from_millis(ms));
    }
    job(migrate::source::start(&platform, &name, &migrate.to, limits, mode).await?)
}

#[derive(Deserialize)]
struct ResolveVm {
    keep: bool,
}

async fn resolve_vm(
    State(platform): Shared,
    UrlPath(name): UrlPath<String>,
    Json(resolve): Json<ResolveVm>,
) -> Answer {
    let open = matches!(platform.vms.ownership(&name), Some(Claim::Undecided(..)));
    if !open || !platform.handoffs.resolve(&name, resolve.keep) {
        return Err(refused(format!("VM '{name}' is not undecided here: there is nothing to resolve")));
    }
    Ok(Json(json!({ "resolved": name, "kept": resolve.keep })))
}

#[derive(Deserialize)]
struct ReplicateVm {
    to: String,
}

async fn replicate_vm(
    State(platform): Shared,
    UrlPath(name): UrlPath<String>,
    Json(replicate): Json<ReplicateVm>,
) -> Answer {
    job(warm::start(&platform, &name, &replicate.to)?)
}

async fn list_replicas(State(platform): Shared) -> Answer {
    Ok(Json(serde_json::to_value(platform.replicas.list())?))
}

#[derive(Deserialize)]
struct RestoreReplica {
    disk: Option<String>,
    path: PathBuf,
}

async fn restore_replica(
    State(platform): Shared,
    UrlPath(name): UrlPath<String>,
    Json(restore): Json<RestoreReplica>,
) -> Answer {
    let disks: Vec<_> = platform.replicas.list().into_iter().filter(|replica| replica.name == name).collect();
    let chosen = match (&restore.disk, &disks[..]) {
        (_, []) => {
            return Err(refused(format!(
                "there is no replica '{name}'; `longhaul replica list` shows those there are"
            )));
        }
        (None, [one]) => one.disk.clone(),
        (None, several) => {
            let names: Vec<_> = several.iter().map(|replica| replica.disk.as_str()).collect();
            return Err(refused(format!(
                "replica '{name}' has several disks: give --disk, one of {}",
                names.join(", ")
            )));
        }
        (Some(disk), _) if disks.iter().any(|replica| replica.disk == *disk) => disk.clone(),
        (Some(disk), _) => return Err(refused(format!("replica '{name}' has no disk '{disk}'"))),
    };
    let path = restore.path.clone();
    let generation = blocking(move || platform.replicas.restore(&name, &chosen, &path)).await??;
    Ok(Json(json!({ "restored": restore.path, "generation": generation.number, "root": generation.root })))
}

async fn list_jobs(State(platform): Shared) -> Answer {
    Ok(Json(serde_json::to_value(platform.jobs.list())?))
}

async fn show_job(State(platform): Shared, UrlPath(id): UrlPath<String>) -> Answer {
    Ok(Json(serde_json::to_value(platform.jobs.report(id.parse()?)?)?))
}

async fn cancel_job(State(platform): Shared, UrlPath(id): UrlPath<String>) -> Answer {
    platform.jobs.cancel(id.parse()?)?;
    Ok(Json(json!({ "cancelled": id })))
}

/// One report a line, whenever it changes, until the job has ended.
async fn watch_job(State(platform): Shared, UrlPath(id): UrlPath<String>) -> Result<Response, ApiError> {
    let id = id.parse()?;
    let first = platform.jobs.report(id)?;
    let (lines, body) = tokio::sync::mpsc::channel::<Result<Bytes, std::io::Error>>(4);
    tokio::spawn(async move {
        let mut report = first;
        loop {
            let ended = report.state != JobState::Running;
            if lines.send(line(&report)).await.is_err() || ended {
                return;
            }
            if let Some(mut watch) = platform.jobs.watch(id) {
                let _ = tokio::time::timeout(
                    WATCH_EVERY,
                    watch.wait_for(|now| *now.phases != report.phases || now.state != report.state),
                )
                .await;
            }
            match platform.jobs.report(id) {
                Ok(now) => report = now,
                Err(_) => return,
            }
        }
    });
    Ok(Body::from_stream(ReceiverStream(body)).into_response())
}

fn line(report: &Report) -> Result<Bytes, std::io::Error> {
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    Ok(line.into())
}

struct ReceiverStream(tokio::sync::mpsc::Receiver<Result<Bytes, std::io::Error>>);

impl futures_core::Stream for ReceiverStream {
    type Item = Result<Bytes, std::io::Error>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.poll_recv(context)
    }
}

async fn store_stats(State(platform): Shared) -> Answer {
    Ok(Json(serde_json::to_value(blocking(move || platform.store().stats()).await??)?))
}

async fn verify_store(State(platform): Shared, Json(request): Json<upkeep::VerifyRequest>) -> Answer {
    job(upkeep::verify(&platform, request)?)
}

async fn gc_store(State(platform): Shared, Json(request): Json<upkeep::GcRequest>) -> Answer {
    job(upkeep::gc(&platform, request))
}

#[derive(Deserialize)]
struct ExportStore {
    path: PathBuf,
    #[serde(default)]
    names: Vec<String>,
}

async fn export_store(State(platform): Shared, Json(export): Json<ExportStore>) -> Answer {
    job(upkeep::export(&platform, &export.path, export.names)?)
}

#[derive(Deserialize)]
struct ImportStore {
    path: PathBuf,
    #[serde(default)]
    replace: bool,
}

async fn import_store(State(platform): Shared, Json(import): Json<ImportStore>) -> Answer {
    job(upkeep::import(&platform, &import.path, import.replace)?)
}

/// The definition in a file, as `POST /v1/vms` takes it; read on the caller's side, where its path means something.
pub fn definition_request(path: &Path) -> Result<Value, VmError> {
    let definition = vms::read_definition(path)?;
    let toml = definition.to_toml()?;
    Ok(json!({ "toml": toml, "file": path }))
}
