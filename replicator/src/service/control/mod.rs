//! The control API: HTTP and JSON on a unix socket, for the command line and for `curl --unix-socket`. Handlers parse,
//! call the module that does the work, and answer; long work is begun as a job and answered with its id. A path that a
//! caller names is touched off the runtime only, and an answer to it is not waited for without end: it may be on a mount
//! that is gone.

mod asked;
mod vms;

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::body::{Body, Bytes};
use axum::extract::{Path as UrlPath, State};
use axum::http::Uri;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use crate::error_kind::{Failure, Kind};
use crate::service::jobs::{JobState, Report};
use crate::service::peers::Peer;
use crate::service::platform::Platform;
use crate::{
    files, images::bases, images::restore, images::targets, images::upkeep, replication::replicas,
    replication::warm,
};

use asked::Asked;
pub(crate) use vms::definition_request;

/// How long a path that a caller names has to answer.
const PATH_ANSWERS: Duration = Duration::from_secs(10);
/// How many pieces of work on such paths may be under way: those on a mount that is gone stay for ever.
const MAX_PATH_WORK: usize = 64;
/// How often a watcher sees a job's counters move.
const WATCH_EVERY: Duration = Duration::from_millis(500);

/// An error as the API answers it.
type ApiError = Failure;

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.kind.status(), Json(json!({ "error": self.reason, "kind": self.kind }))).into_response()
    }
}

type Answer = Result<Json<Value>, ApiError>;
type Shared = State<Arc<Platform>>;

/// Opens the control socket; only its owner may use it. One that a crash left is replaced: the store's lock says that
/// no daemon lives behind it.
pub(crate) fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).with_context(|| format!("control socket {}", path.display()))?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(listener)
}

/// Serves the API until the process ends.
pub(crate) async fn serve(platform: Arc<Platform>, listener: UnixListener) -> anyhow::Result<()> {
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
        .route("/v1/vms", get(vms::list).post(vms::define))
        .route("/v1/vms/{name}", delete(vms::remove))
        .route("/v1/vms/{name}/adopt", post(vms::adopt))
        .route("/v1/vms/{name}/start", post(vms::start))
        .route("/v1/vms/{name}/stop", post(vms::stop))
        .route("/v1/vms/{name}/migrate", post(vms::migrate))
        .route("/v1/vms/{name}/resolve", post(vms::resolve))
        .route("/v1/vms/{name}/replicate", post(vms::replicate))
        .route("/v1/addresses", get(list_addresses))
        .route("/v1/addresses/{name}", delete(release_address))
        .route("/v1/replicas", get(list_replicas))
        .route("/v1/replicas/verify", post(verify_replicas))
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
        .fallback(no_such_resource)
        .with_state(platform)
}

/// Runs synchronous work off the runtime.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
    Ok(tokio::task::spawn_blocking(work).await?)
}

/// Runs work on a path that a caller names. It goes on when its time is over, so it may still take effect.
async fn on_path<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    static UNDER_WAY: Semaphore = Semaphore::const_new(MAX_PATH_WORK);
    let stuck = |why: String| {
        let reason = format!("cannot open {}: {why}; is its file system reachable?", path.display());
        Failure::new(Kind::Io, reason)
    };
    let permit = UNDER_WAY.try_acquire();
    let permit = permit.map_err(|_| stuck(format!("{MAX_PATH_WORK} other paths do not answer either")))?;
    let working = blocking(move || {
        let _permit = permit;
        work()
    });
    let no_answer = |_| stuck(format!("no answer within {} s", PATH_ANSWERS.as_secs()));
    tokio::time::timeout(PATH_ANSWERS, working).await.map_err(no_answer)?
}

/// Refuses what can be no image before it is opened: opening a pipe waits until somebody writes to it.
fn check_image(path: &Path) -> Result<(), ApiError> {
    let kind = std::fs::metadata(path).map(|meta| meta.file_type());
    let what = match kind {
        Ok(kind) if kind.is_fifo() => "a named pipe",
        Ok(kind) if kind.is_socket() => "a socket",
        Ok(kind) if kind.is_char_device() => "a character device",
        // What is not there, the work itself says better.
        _ => return Ok(()),
    };
    let path = path.display();
    Err(invalid(format!("cannot read {path}: it is {what}; name a raw image file or a block device")))
}

fn job(id: impl std::fmt::Display) -> Answer {
    Ok(Json(json!({ "job": id.to_string() })))
}

fn invalid(reason: String) -> ApiError {
    Failure::new(Kind::Invalid, reason)
}

fn denied(reason: String) -> ApiError {
    Failure::new(Kind::Denied, reason)
}

async fn no_such_resource(uri: Uri) -> ApiError {
    Failure::new(Kind::NotFound, format!("this API has no {}", uri.path()))
}

async fn identity(State(platform): Shared) -> Answer {
    Ok(Json(json!({ "name": platform.config.name, "fingerprint": platform.identity.fingerprint() })))
}

async fn list_peers(State(platform): Shared) -> Answer {
    let peers = platform.reach.peers.list().into_iter().map(|(name, Peer { address, fingerprint })| {
        json!({ "name": name, "address": address, "fingerprint": fingerprint, "error": null })
    });
    let damaged = platform
        .reach
        .peers
        .damaged()
        .into_iter()
        .map(|(name, why)| json!({ "name": name, "address": null, "fingerprint": null, "error": why }));
    Ok(Json(peers.chain(damaged).collect()))
}

#[derive(Deserialize)]
struct AddPeer {
    name: String,
    address: String,
    fingerprint: String,
}

async fn add_peer(State(platform): Shared, Asked(add): Asked<AddPeer>) -> Answer {
    let peer = Peer { address: add.address, fingerprint: add.fingerprint.parse()? };
    let name = add.name.clone();
    let (adding, key) = (platform.clone(), peer.fingerprint);
    let before = platform.reach.peers.get(&name).ok();
    blocking(move || adding.reach.peers.add(&add.name, peer)).await??;
    if before.is_some_and(|before| before.fingerprint != key) {
        platform.replication.warm.forget_peer(&name);
        platform.connections.close(&name);
    }
    Ok(Json(json!({ "added": name })))
}

async fn remove_peer(State(platform): Shared, UrlPath(name): UrlPath<String>) -> Answer {
    let (removing, removed) = (platform.clone(), name.clone());
    blocking(move || removing.reach.peers.remove(&removed)).await??;
    platform.replication.warm.forget_peer(&name);
    platform.connections.close(&name);
    Ok(Json(json!({ "removed": name })))
}

async fn ask_peer(State(platform): Shared, UrlPath(name): UrlPath<String>) -> Answer {
    let status = platform.reach.network.ask_status(&name).await?;
    Ok(Json(
        json!({ "name": name, "calls_itself": status.name, "version": status.version, "free_bytes": status.free_bytes }),
    ))
}

async fn list_bases(State(platform): Shared) -> Answer {
    Ok(Json(serde_json::to_value(blocking(move || bases::list(&platform.upkeep)).await??)?))
}

#[derive(Deserialize)]
struct AddBase {
    name: String,
    image: PathBuf,
}

async fn add_base(State(platform): Shared, Asked(add): Asked<AddBase>) -> Answer {
    let image = add.image.clone();
    let adding = move || {
        check_image(&add.image)?;
        Ok::<_, ApiError>(bases::add(&platform.upkeep, &add.name, &add.image)?)
    };
    job(on_path(&image, adding).await??)
}

async fn remove_base(State(platform): Shared, UrlPath(name): UrlPath<String>) -> Answer {
    let removing = name.clone();
    blocking(move || bases::remove(&platform.upkeep, &removing)).await??;
    Ok(Json(json!({ "removed": name })))
}

#[derive(Deserialize)]
struct PushBase {
    peers: Vec<String>,
}

async fn push_base(
    State(platform): Shared,
    UrlPath(name): UrlPath<String>,
    Asked(push): Asked<PushBase>,
) -> Answer {
    job(blocking(move || bases::push(&platform.upkeep, &name, push.peers)).await??)
}

async fn restore_base(
    State(platform): Shared,
    UrlPath(name): UrlPath<String>,
    Asked(request): Asked<restore::RestoreRequest>,
) -> Answer {
    let path = request.path.clone();
    let restoring = move || {
        check_image(&request.path)?;
        request.like.as_deref().map_or(Ok(()), check_image)?;
        Ok::<_, ApiError>(restore::restore(&platform.upkeep, &name, &request)?)
    };
    job(on_path(&path, restoring).await??)
}

#[derive(Deserialize)]
struct SendImage {
    image: PathBuf,
    peer: String,
    name: String,
}

async fn send_image(State(platform): Shared, Asked(send): Asked<SendImage>) -> Answer {
    files::check_name("replica", &send.name).map_err(invalid)?;
    let image = send.image.clone();
    let sending = move || {
        check_image(&send.image)?;
        Ok::<_, ApiError>(warm::send_image(&platform.replication, &send.image, &send.peer, &send.name)?)
    };
    job(on_path(&image, sending).await??)
}

async fn release_address(State(platform): Shared, UrlPath(name): UrlPath<String>) -> Answer {
    let home = platform.home.as_ref().ok_or_else(|| denied("this platform is no home agent".to_owned()))?;
    home.release(&name).await?;
    Ok(Json(json!({ "released": name })))
}

async fn list_addresses(State(platform): Shared) -> Answer {
    let gateway = platform.address.gateway.as_ref().map(|addresses| addresses.list());
    let home = match &platform.home {
        Some(home) => Some(home.list().await),
        None => None,
    };
    let plane = platform.home.as_ref().map(|home| home.plane());
    Ok(Json(json!({ "gateway": gateway, "home_agent": home, "home_agent_data_plane": plane })))
}

async fn list_replicas(State(platform): Shared) -> Answer {
    Ok(Json(serde_json::to_value(blocking(move || platform.images.replicas.list()).await?)?))
}

async fn restore_replica(
    State(platform): Shared,
    UrlPath(name): UrlPath<String>,
    Asked(request): Asked<replicas::RestoreRequest>,
) -> Answer {
    let path = request.path.clone();
    let done = blocking(move || {
        targets::check(
            &platform.guests.layout,
            &platform.guests.vms,
            &request.path,
            targets::Lost::Restored,
        )?;
        platform.images.replicas.restore(&name, &request)
    })
    .await??;
    let mut answer = match &done.restored[..] {
        [one] => {
            json!({ "restored": path, "disk": one.disk, "generation": one.generation, "root": one.root })
        }
        several => json!({ "restored": path, "disks": several }),
    };
    if !done.left_out.is_empty() {
        answer["left_out"] = json!(done.left_out);
        answer["warning"] = left_out_warning(&done.left_out).into();
    }
    Ok(Json(answer))
}

fn left_out_warning(left_out: &[replicas::LeftOut]) -> String {
    let disks: Vec<_> = left_out.iter().map(|left| format!("'{}'", left.disk)).collect();
    format!("the last pass did not bring disk {}: restore it by itself with --disk", disks.join(", "))
}

#[derive(Deserialize)]
struct VerifyReplicas {
    name: Option<String>,
}

async fn verify_replicas(State(platform): Shared, Asked(request): Asked<VerifyReplicas>) -> Answer {
    job(blocking(move || replicas::verify(&platform.upkeep, request.name.as_deref())).await??)
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
    let watching = AbortOnDropHandle::new(tokio::spawn(async move {
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
    }));
    Ok(Body::from_stream(Lines { lines: body, _watching: watching }).into_response())
}

fn line(report: &Report) -> Result<Bytes, std::io::Error> {
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    Ok(line.into())
}

/// The lines of a watcher's answer, and who makes them.
struct Lines {
    lines: tokio::sync::mpsc::Receiver<Result<Bytes, std::io::Error>>,
    _watching: AbortOnDropHandle<()>,
}

impl futures_core::Stream for Lines {
    type Item = Result<Bytes, std::io::Error>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.lines.poll_recv(context)
    }
}

async fn store_stats(State(platform): Shared) -> Answer {
    Ok(Json(serde_json::to_value(blocking(move || platform.images.store().stats()).await??)?))
}

async fn verify_store(State(platform): Shared, Asked(request): Asked<upkeep::VerifyRequest>) -> Answer {
    job(blocking(move || upkeep::verify(&platform.upkeep, request)).await??)
}

async fn gc_store(State(platform): Shared, Asked(request): Asked<upkeep::GcRequest>) -> Answer {
    job(upkeep::gc(&platform.upkeep, request))
}

#[derive(Deserialize)]
struct ExportStore {
    path: PathBuf,
    #[serde(default)]
    names: Vec<String>,
}

async fn export_store(State(platform): Shared, Asked(export): Asked<ExportStore>) -> Answer {
    let path = export.path.clone();
    job(on_path(&path, move || upkeep::export(&platform.upkeep, &export.path, export.names)).await??)
}

#[derive(Deserialize)]
struct ImportStore {
    path: PathBuf,
    #[serde(default)]
    replace: bool,
}

async fn import_store(State(platform): Shared, Asked(import): Asked<ImportStore>) -> Answer {
    let path = import.path.clone();
    let importing = move || {
        check_image(&import.path)?;
        Ok::<_, ApiError>(upkeep::import(&platform.upkeep, &import.path, import.replace)?)
    };
    job(on_path(&path, importing).await??)
}
