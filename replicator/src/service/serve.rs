//! What peers may ask of this platform: every stream they open is looked at here and given to whom it concerns. Only
//! connections past the handshake get here, so the peer is known; what it says is still judged.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use longhaul_proto::JobId;
use longhaul_proto::handoff::{DestinationInput, Message};
use longhaul_proto::wire::{
    self, Judgement, Open, PeerStatus, PermitAnswer, Refusal, RefusalKind, Target, TargetStatus,
};
use quinn::{Connection, RecvStream, SendStream, VarInt};
use tokio::task::JoinSet;

use crate::files;
use crate::lease::Lease;
use crate::migration::landing;
use crate::migration::{self, destination};
use crate::replication::replicas::{SetOf, Source};
use crate::service::net::lanes::{self, LaneRecv};
use crate::service::net::{self, Dialled, NetError};
use crate::service::platform::Platform;
use crate::transfer::receiver;
use crate::transfer::sink::{EstimateSink, Sink};

/// How long nothing has gone over a connection that we have dialled before it is closed. What works on one says more often
/// that it is there.
const UNUSED: Duration = Duration::from_secs(300);

/// The connections that are served, by the peer's name.
#[derive(Default)]
pub(crate) struct Connections {
    live: Mutex<HashMap<String, Vec<Connection>>>,
}

impl Connections {
    /// Closes every connection of a peer that is trusted no longer, or whose key has changed.
    pub(crate) fn close(&self, peer: &str) {
        for connection in self.lock().remove(peer).unwrap_or_default() {
            connection.close(VarInt::from_u32(1), b"this peer has been removed");
        }
    }

    /// Notes a connection until the guard is dropped.
    fn enter<'a>(&'a self, peer: &'a str, connection: &Connection) -> Entered<'a> {
        self.lock().entry(peer.to_owned()).or_default().push(connection.clone());
        Entered { connections: self, peer, id: connection.stable_id() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Vec<Connection>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Entered<'a> {
    connections: &'a Connections,
    peer: &'a str,
    id: usize,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut live = self.connections.lock();
        if let Some(of_peer) = live.get_mut(self.peer) {
            of_peer.retain(|connection| connection.stable_id() != self.id);
            if of_peer.is_empty() {
                live.remove(self.peer);
            }
        }
    }
}

/// Serves every connection, from either side, until the endpoint is closed.
pub(crate) async fn serve(platform: Arc<Platform>, mut dialled: Dialled) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            incoming = platform.reach.network.accept() => match incoming {
                Some(incoming) => drop(connections.spawn(admit(platform.clone(), incoming))),
                None => return,
            },
            Some((peer, connection)) = dialled.recv() => {
                let platform = platform.clone();
                connections.spawn(async move {
                    tokio::select! {
                        () = serve_connection(platform, peer, connection.clone()) => {}
                        () = unused(&connection) => {}
                    }
                });
            }
            Some(ended) = connections.join_next() => note_panic(ended),
        }
    }
}

/// A stream that breaks us is its own loss.
fn note_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(broken) = ended
        && broken.is_panic()
    {
        tracing::error!("serving a peer: {broken}");
    }
}

/// Ends a connection that we have dialled and nobody has used for a while: it is kept alive, so that it would never end by
/// itself.
async fn unused(connection: &Connection) {
    let carried = || {
        let stats = connection.stats();
        (stats.frame_tx.stream, stats.frame_rx.stream)
    };
    let mut before = carried();
    loop {
        tokio::time::sleep(UNUSED).await;
        let now = carried();
        if std::mem::replace(&mut before, now) == now {
            return connection.close(VarInt::from_u32(0), b"not used");
        }
    }
}

async fn admit(platform: Arc<Platform>, incoming: quinn::Incoming) {
    let address = incoming.remote_address();
    match platform.reach.network.admit(incoming).await {
        Ok((peer, connection)) => serve_connection(platform, peer, connection).await,
        Err(error) => tracing::info!("{address} did not get in: {error}"),
    }
}

/// Serves the streams of one connection, as many as QUIC lets its peer open, until it has ended and they have.
async fn serve_connection(platform: Arc<Platform>, peer: String, connection: Connection) {
    let mut streams = JoinSet::new();
    // Held for as long as the connection is served.
    let _lanes = lanes::of(&connection);
    let _entered = platform.connections.enter(&peer, &connection);
    // It may have been removed between the handshake and now.
    if platform.reach.network.peer_of(&connection).as_ref() != Some(&peer) {
        return connection.close(VarInt::from_u32(1), b"this peer has been removed");
    }
    loop {
        tokio::select! {
            stream = connection.accept_bi() => match stream {
                Ok((send, recv)) => {
                    let (platform, peer) = (platform.clone(), peer.clone());
                    let (recv, connection) = (LaneRecv::plain(&connection, recv), connection.clone());
                    streams.spawn(async move {
                        told(&peer, serve_bi(&platform, &peer, &connection, send, recv).await);
                    });
                }
                Err(_) => break,
            },
            stream = connection.accept_uni() => match stream {
                Ok(recv) => {
                    let (platform, peer, connection) = (platform.clone(), peer.clone(), connection.clone());
                    streams.spawn(async move { told(&peer, serve_uni(&platform, &peer, &connection, recv).await) });
                }
                Err(_) => break,
            },
            Some(ended) = streams.join_next() => note_panic(ended),
        }
    }
    while let Some(ended) = streams.join_next().await {
        note_panic(ended);
    }
}

fn told(peer: &str, outcome: Result<(), NetError>) {
    if let Err(error) = outcome {
        tracing::info!("a stream of peer '{peer}' ended: {error}");
    }
}

async fn serve_uni(
    platform: &Arc<Platform>,
    peer: &str,
    connection: &Connection,
    mut recv: RecvStream,
) -> Result<(), NetError> {
    match net::expect::<Open>(&mut recv).await? {
        Open::Handoff { job, message } => handoff(platform, peer, connection, job, message).await,
        Open::Lane { token, index } => {
            lanes::of(connection).deliver(token, index, recv, lanes::UNCLAIMED).await?;
        }
        other => return Err(NetError::Lost(format!("it opened a one-way stream for {other:?}"))),
    }
    Ok(())
}

async fn handoff(
    platform: &Arc<Platform>,
    peer: &str,
    connection: &Connection,
    job: JobId,
    message: Message,
) {
    if platform.migration.handoffs.deliver(job, peer, message.clone(), connection) {
        return;
    }
    let answer = match message {
        Message::Offer { vm, epoch, plan } => {
            match destination::offered(&platform.migration, job, peer, connection, (vm, epoch, plan)).await {
                Ok(()) => return,
                Err(error) => {
                    Message::Abort { reason: format!("'{}' refused: {error}", platform.config.name) }
                }
            }
        }
        message => {
            return migration::answer_from_journal(&platform.migration, job, peer, message, connection).await;
        }
    };
    migration::reply(connection, job, answer).await;
}

async fn serve_bi(
    platform: &Arc<Platform>,
    peer: &str,
    connection: &Connection,
    mut send: SendStream,
    mut recv: LaneRecv,
) -> Result<(), NetError> {
    match recv.opening().await? {
        Open::Transfer { target, size } => {
            let migration = match &target {
                Target::Migration { job, .. } => platform.migration.handoffs.incoming(*job, peer),
                _ => None,
            };
            // What a migration writes is written under its lease; the rest is the stream's own.
            let lease = migration.as_ref().and_then(|port| Some(port.incoming()?.lease().clone()));
            let lease = lease.unwrap_or_else(Lease::new);
            let (opening, asked) = (platform.clone(), target.clone());
            let owner = peer.to_owned();
            let opened =
                tokio::task::spawn_blocking(move || open_target(&opening, &owner, &asked, size)).await;
            let opened = opened.unwrap_or_else(|_| Err(refusal(RefusalKind::Failed, "the receiver broke")));
            let (status, sink) = match opened {
                Ok(opened) => opened,
                Err(refusal) => {
                    tracing::info!("a transfer of peer '{peer}' is refused: {refusal}");
                    receiver::refuse_transfer(send, recv, refusal).await;
                    return Ok(());
                }
            };
            let receiving = lease.track(receiver::receive(send, recv, status, size, sink, &lease));
            if let Ok(Err(error)) = lease.run(receiving).await {
                tracing::info!("a transfer from peer '{peer}' ended early: {error}");
                if let Some(port) = migration {
                    port.fail(error.into()).await;
                }
            }
        }
        Open::Memory { job } => {
            let port = platform.migration.handoffs.incoming(job, peer);
            let Some((port, incoming)) =
                port.and_then(|port| port.incoming().map(|incoming| (port, incoming)))
            else {
                return Err(NetError::Lost(format!(
                    "it sends memory for job {job}, which is not going on here"
                )));
            };
            let lease = incoming.lease();
            let loading = lease.track(incoming.load_memory((send, recv), |bytes| port.count_memory(bytes)));
            match lease.run(loading).await {
                Ok(Ok(())) => port.input(DestinationInput::MemoryLoaded).await,
                Ok(Err(error)) => port.fail(error.into()).await,
                Err(_) => {}
            }
        }
        Open::Status => {
            let free_bytes = files::free_bytes(&platform.guests.layout.store()).unwrap_or(0);
            let name = platform.config.name.clone();
            let version = env!("CARGO_PKG_VERSION").to_owned();
            let gateway = platform.address.gateway.as_ref().map(|addresses| addresses.address().octets());
            net::send(&mut send, &PeerStatus { name, version, free_bytes, gateway }).await?;
            let _ = send.finish();
        }
        Open::Judge { vm, epoch, plan } => {
            let judgement = match destination::judge(&platform.migration, &vm, epoch, &plan).await {
                Ok(()) => Judgement::Fit,
                Err(error) => Judgement::Unfit { reason: error.to_string() },
            };
            net::send(&mut send, &judgement).await?;
            let _ = send.finish();
        }
        Open::Permit(request) => {
            let answer = match (&platform.home, platform.reach.peers.get(peer)) {
                (Some(home), Ok(known)) => home.permit(known.fingerprint, &request).await,
                (None, _) => PermitAnswer::Refused { reason: "this platform is no home agent".to_owned() },
                (_, Err(error)) => PermitAnswer::Refused { reason: error.to_string() },
            };
            net::send(&mut send, &answer).await?;
            let _ = send.finish();
            let _ = send.stopped().await;
        }
        Open::Claim { vm } => crate::migration::ownership::answer(&platform.migration, send, &vm).await?,
        Open::Fetch { names } => {
            crate::images::upkeep::serve_fetch(&platform.upkeep, connection, send, names).await?
        }
        other => return Err(NetError::Lost(format!("it opened a two-way stream for {other:?}"))),
    }
    Ok(())
}

type Opened = (TargetStatus, Box<dyn Sink>);

fn open_target(platform: &Platform, peer: &str, target: &Target, size: u64) -> Result<Opened, Refusal> {
    if size == 0 || size > wire::MAX_IMAGE_BYTES {
        return Err(refusal(RefusalKind::Protocol, format!("an image of {size} bytes")));
    }
    let name = |what: &str, name: &str| {
        files::check_name(what, name).map_err(|reason| refusal(RefusalKind::Protocol, reason))
    };
    match target {
        Target::Base { name: base } => {
            name("base image", base)?;
            let status = TargetStatus { generation: 0, root: None };
            Ok((status, Box::new(crate::images::bases::sink(&platform.upkeep, peer, base, size)?)))
        }
        Target::Replica { vm, disk } => {
            name("replica", vm)?;
            name("disk", disk)?;
            replica_sink(platform, peer, (vm, disk), size, None)
        }
        Target::ReplicaSet { vm, disk, set, disks } => {
            name("replica", vm)?;
            name("disk", disk)?;
            replica_sink(platform, peer, (vm, disk), size, Some(SetOf { id: *set, disks: *disks }))
        }
        Target::Migration { job, disk } => {
            let port = platform.migration.handoffs.incoming(*job, peer);
            let incoming = port.and_then(|port| port.incoming()).ok_or_else(|| {
                refusal(
                    RefusalKind::Unknown,
                    format!("job {job} is not going on here, or its disks are not ready"),
                )
            })?;
            let sink = incoming.sink(*disk, size);
            let sink = sink.map_err(|error| refusal(RefusalKind::Unknown, error.to_string()))?;
            Ok((TargetStatus { generation: 0, root: None }, Box::new(sink)))
        }
        Target::Estimate { vm, disk } => {
            name("VM", vm)?;
            name("disk", disk)?;
            let start = landing::existing_image(&platform.migration, peer, vm, disk);
            let sink = EstimateSink::new(platform.images.holdings.clone(), start);
            Ok((platform.images.replicas.status(vm, disk, &source(platform, peer)?), Box::new(sink)))
        }
    }
}

fn replica_sink(
    platform: &Platform,
    peer: &str,
    (vm, disk): (&str, &str),
    size: u64,
    set: Option<SetOf>,
) -> Result<Opened, Refusal> {
    let source = source(platform, peer)?;
    let sink = platform.images.replicas.sink(vm, disk, size, &source, set, platform.images.holdings.clone());
    let sink = sink.map_err(|error| error.refusal())?;
    Ok((sink.status(), Box::new(sink)))
}

/// The peer, as the owner of replicas.
fn source(platform: &Platform, peer: &str) -> Result<Source, Refusal> {
    let known =
        platform.reach.peers.get(peer).map_err(|error| refusal(RefusalKind::Failed, error.to_string()))?;
    Ok(Source { name: peer.to_owned(), fingerprint: known.fingerprint })
}

fn refusal(kind: RefusalKind, reason: impl Into<String>) -> Refusal {
    Refusal { kind, reason: reason.into() }
}

#[cfg(test)]
mod tests;
