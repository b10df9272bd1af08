//! How a VM's addresses follow it: this platform's gateway is told which VMs run here, which are coming and which are
//! leaving. It never decides where a VM runs, and a migration never fails because of it: what could not be done is said.

pub(crate) mod home_agent;
pub(crate) mod mobile_node;

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use longhaul_proto::Epoch;
use longhaul_proto::wire::{Open, PermitAnswer, PermitRequest};
use migrate_driver::{GuestStatus, NetworkDefinition, VmDefinition};
use mobility::DataPlane;
use mobility::access::{AccessGateway, Config, Event, Grant, Happened, Link};
use mobility::auth::{Algorithm, SharedKey};
use mobility::wire::{Ipv4Interface, Ipv6Prefix};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, broadcast, watch};
use tokio_util::task::AbortOnDropHandle;

use crate::address::home_agent::Secret;
use crate::migration::Plan;
use crate::migration::journal::Claim;
use crate::service::config::MobilityConfig;
use crate::service::identity::Fingerprint;
use crate::service::net::{self, NetError};
use crate::service::platform::AddressCx;

/// How often the VMs are looked at when nothing says that something has changed.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How many bytes may wait for a VM on its way: 1 Gb/s for 300 ms.
const BUFFER_BYTES: usize = 37_500_000;
/// How long a registration is waited for before the report says that it is under way.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the source tells the destination about a VM's address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PlanAddress {
    /// The number of the key that the home agent gave for the destination.
    spi: u32,
    key: Secret,
    source: Ipv6Addr,
    target: Ipv6Addr,
}

/// Why an address does not follow.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AddressError {
    /// The home agent.
    #[error("asking the home agent: {0}")]
    Net(#[from] NetError),
    /// It refused.
    #[error("the home agent refused: {0}")]
    Refused(String),
    /// The agent here.
    #[error(transparent)]
    Agent(#[from] mobility::AgentError),
    /// Not everything that it takes is there.
    #[error("{0}")]
    Lacking(&'static str),
}

/// Where a VM stands with the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Standing {
    Served,
    Expected,
    Leaving,
}

/// This platform's gateway.
pub(crate) struct Addresses {
    gateway: AccessGateway,
    config: MobilityConfig,
    standing: Mutex<BTreeMap<String, Standing>>,
    /// Who gets VMs that leave without the home agent knowing of it, because it did not answer.
    unnamed: Mutex<BTreeMap<String, String>>,
    /// What came of the last arrivals.
    arrivals: watch::Sender<BTreeMap<String, Arrival>>,
    /// VMs may have been started or stopped.
    changed: Notify,
    _noting: AbortOnDropHandle<()>,
}

/// What came of a VM's arrival.
#[derive(Clone, Debug)]
enum Arrival {
    Waiting(Instant),
    Registered(Duration),
    Refused(String),
}

impl Addresses {
    /// Starts the gateway.
    pub(crate) async fn start(config: &MobilityConfig) -> Result<Self, AddressError> {
        let gateway = AccessGateway::start(Config {
            address: config.address,
            anchor: config.home_agent_address,
            interface: config.interface.clone(),
            plane: config.plane,
            user_plane: config.user_plane,
            buffer_bytes: BUFFER_BYTES,
            dns: config.dns.clone(),
        })
        .await?;
        let arrivals = watch::Sender::default();
        let _noting = AbortOnDropHandle::new(tokio::spawn(note_arrivals(gateway.events(), arrivals.clone())));
        let (standing, unnamed, changed) = Default::default();
        Ok(Addresses { gateway, config: config.clone(), standing, unnamed, arrivals, changed, _noting })
    }

    /// The gateway's address.
    pub(crate) fn address(&self) -> Ipv6Addr {
        self.config.address
    }

    /// Takes back what the kernel was told.
    pub(crate) async fn end(&self) {
        self.gateway.end().await;
    }

    /// Has the VMs looked at now.
    pub(crate) fn look(&self) {
        self.changed.notify_one();
    }

    /// All VMs it has to do with.
    pub(crate) fn list(&self) -> serde_json::Value {
        let vms: Vec<_> = lock(&self.standing)
            .iter()
            .map(|(vm, standing)| serde_json::json!({ "vm": vm, "standing": standing }))
            .collect();
        serde_json::json!({
            "gateway": self.config.address,
            "home_agent": self.config.home_agent_address,
            "data_plane": self.gateway.plane(),
            // Whatever carries IPv6.
            "data_plane_ipv4": DataPlane::Tun,
            "vms": vms,
        })
    }

    fn set(&self, vm: &str, standing: Option<Standing>) {
        match standing {
            Some(standing) => lock(&self.standing).insert(vm.to_owned(), standing),
            None => lock(&self.standing).remove(vm),
        };
    }

    fn stands(&self, vm: &str) -> Option<Standing> {
        lock(&self.standing).get(vm).copied()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn note_arrivals(
    mut events: broadcast::Receiver<Event>,
    arrivals: watch::Sender<BTreeMap<String, Arrival>>,
) {
    loop {
        let Event { node, happened } = match events.recv().await {
            Ok(event) => event,
            Err(broadcast::error::RecvError::Lagged(_)) => continue,
            Err(broadcast::error::RecvError::Closed) => return,
        };
        tracing::debug!("the address of VM '{node}': {happened:?}");
        arrivals.send_if_modified(|arrivals| {
            let Some(Arrival::Waiting(since)) = arrivals.get(&node) else { return false };
            let outcome = match happened {
                Happened::Registered => Arrival::Registered(since.elapsed()),
                Happened::Refused(status) => Arrival::Refused(status.to_string()),
                _ => return false,
            };
            arrivals.insert(node, outcome);
            true
        });
    }
}

/// Keeps the gateway at what is true: VMs that run here are served, others are not. Those that a job has hold of are the
/// job's to tell.
pub(crate) async fn keep(cx: AddressCx) {
    let Some(addresses) = &cx.gateway else { return };
    let mut told = BTreeMap::new();
    for definition in cx.guests.vms.list() {
        let vm = definition.name.to_string();
        if let Some(Claim::Theirs(_, peer)) = cx.guests.vms.ownership(&vm) {
            // Perhaps the home agent has not heard of it, and a restart made us forget that.
            lock(&addresses.unnamed).insert(vm, peer);
        }
    }
    let mut is_settled = false;
    loop {
        let mut are_all_looked_at = true;
        for definition in cx.guests.vms.list() {
            let vm = definition.name.to_string();
            if definition.network.is_none() {
                continue;
            }
            if cx.guests.vms.is_held(&vm) {
                are_all_looked_at = false;
                continue;
            }
            name_successor(&cx, addresses, &definition).await;
            let trouble = keep_one(&cx, addresses, &definition).await.err().map(|error| error.to_string());
            // What does not change is said once.
            if told.get(&vm) != Some(&trouble) {
                if let Some(trouble) = &trouble {
                    tracing::warn!("the address of VM '{vm}' is not reachable here: {trouble}");
                }
                told.insert(vm, trouble);
            }
        }
        // Before that the kernel may still carry packets of a VM that is not served again yet.
        if !is_settled && are_all_looked_at && told.values().all(Option::is_none) {
            is_settled = addresses.gateway.keep_only().await.is_ok();
        }
        let _ = tokio::time::timeout(LOOK_EVERY, addresses.changed.notified()).await;
    }
}

/// Tells the home agent of a VM that has left while it did not answer: until it knows, nobody can register the VM.
async fn name_successor(cx: &AddressCx, addresses: &Addresses, definition: &VmDefinition) {
    let vm = definition.name.as_str();
    let Some(peer) = lock(&addresses.unnamed).get(vm).cloned() else { return };
    let epoch = match cx.guests.vms.ownership(vm) {
        Some(Claim::Theirs(epoch, owner)) if owner == peer => epoch,
        Some(Claim::Undecided(..)) => return,
        _ => return drop(lock(&addresses.unnamed).remove(vm)),
    };
    match plan(cx, definition, &peer, epoch).await {
        Err(AddressError::Net(_)) => return,
        Ok(_) => tracing::info!("VM '{vm}': the home agent has been told that it belongs to '{peer}'"),
        // It knows already, or the VM has moved on.
        Err(error) => tracing::debug!("VM '{vm}', which belongs to '{peer}': {error}"),
    }
    lock(&addresses.unnamed).remove(vm);
}

async fn keep_one(
    cx: &AddressCx,
    addresses: &Addresses,
    definition: &VmDefinition,
) -> Result<(), AddressError> {
    let vm = definition.name.as_str();
    let owned = cx.guests.vms.owned(vm).ok();
    let is_running = matches!(cx.guests.hypervisor.status(&definition.name).await, Ok(GuestStatus::Running));
    match (owned.filter(|_| is_running), addresses.stands(vm)) {
        (Some(epoch), None | Some(Standing::Leaving | Standing::Expected)) => {
            let network = network_of(definition)?;
            let own = cx.identity.fingerprint();
            let (spi, key) = permit(cx, addresses, definition, epoch, addresses.config.address, own).await?;
            if cx.guests.vms.is_held(vm) {
                // A job has begun meanwhile: from now on it is the job's to tell.
                return Ok(());
            }
            addresses.gateway.attach(vm, network.link()).await?;
            addresses.gateway.serve(network.grant(definition, spi, &key)).await?;
            addresses.set(vm, Some(Standing::Served));
            tracing::info!("VM '{vm}' is registered with the home agent (epoch {epoch})");
        }
        (None, Some(Standing::Served)) => {
            addresses.gateway.forget(vm).await?;
            addresses.gateway.detach(vm).await?;
            addresses.set(vm, None);
        }
        _ => {}
    }
    Ok(())
}

/// What of a VM's definition its gateway is told.
struct Network<'a> {
    definition: &'a NetworkDefinition,
    prefix: Ipv6Prefix,
    ipv4: Option<Ipv4Interface>,
}

fn network_of(definition: &VmDefinition) -> Result<Network<'_>, AddressError> {
    let network =
        definition.network.as_ref().ok_or(AddressError::Lacking("the VM's definition has no [network]"))?;
    let prefix = network.prefix().and_then(|(address, len)| Ipv6Prefix::new(address, len));
    let prefix = prefix.ok_or(AddressError::Lacking("the VM has no valid home prefix"))?;
    let ipv4 = network.ipv4().and_then(|(address, len)| Ipv4Interface::new(address, len));
    Ok(Network { definition: network, prefix, ipv4 })
}

impl Network<'_> {
    fn link(&self) -> Link {
        Link {
            interface: self.definition.interface.clone(),
            prefix: self.prefix,
            ipv4: self.ipv4,
            link_layer: self.definition.mac(),
        }
    }

    fn grant(&self, definition: &VmDefinition, spi: u32, key: &[u8; 32]) -> Grant {
        let key = SharedKey::new(spi, Algorithm::HmacSha256_128, key);
        let node = definition.name.as_str().as_bytes().to_vec();
        Grant { key, node, prefix: self.prefix, ipv4: self.ipv4 }
    }
}

/// Asks the home agent that the gateway at `target` may register the VM in `epoch`, for the platform `holder`.
async fn permit(
    cx: &AddressCx,
    addresses: &Addresses,
    definition: &VmDefinition,
    epoch: Epoch,
    target: Ipv6Addr,
    holder: Fingerprint,
) -> Result<(u32, [u8; 32]), AddressError> {
    let Network { prefix, ipv4, .. } = network_of(definition)?;
    let request = PermitRequest {
        vm: definition.name.to_string(),
        prefix: prefix.address().octets(),
        prefix_len: prefix.len(),
        ipv4: ipv4.map(|ipv4| (ipv4.address().octets(), ipv4.prefix_len())),
        epoch,
        gateway: target.octets(),
        holder: holder.into(),
    };
    let connection = cx.reach.network.dial(&addresses.config.home_agent).await?;
    let (mut send, mut recv) = connection.open_bi().await.map_err(NetError::from)?;
    net::send(&mut send, &Open::Permit(request)).await?;
    let answer = net::expect(&mut recv).await?;
    connection.close(0_u8.into(), b"done");
    match answer {
        PermitAnswer::Permitted { spi, key } => Ok((spi, key)),
        PermitAnswer::Refused { reason } => Err(AddressError::Refused(reason)),
    }
}

/// What the destination needs to be told, with the permit for it; or why the address stays behind.
pub(crate) async fn plan(
    cx: &AddressCx,
    definition: &VmDefinition,
    peer: &str,
    epoch: Epoch,
) -> Result<Option<PlanAddress>, AddressError> {
    if definition.network.is_none() {
        return Ok(None);
    }
    let addresses = cx.gateway.as_ref().ok_or(AddressError::Lacking("no [mobility] is configured here"))?;
    let status = cx.reach.network.ask_status(peer).await?;
    let target =
        status.gateway.ok_or(AddressError::Lacking("no [mobility] is configured at the destination"))?;
    let target = Ipv6Addr::from(target);
    let holder = cx.reach.peers.get(peer).map_err(NetError::from)?.fingerprint;
    let permitted = permit(cx, addresses, definition, epoch, target, holder).await;
    if matches!(permitted, Err(AddressError::Net(_))) {
        lock(&addresses.unnamed).insert(definition.name.to_string(), peer.to_owned());
    }
    let (spi, key) = permitted?;
    Ok(Some(PlanAddress { spi, key: Secret(key), source: addresses.config.address, target }))
}

/// The source: the guest will be paused soon.
pub(crate) async fn leaves_soon(cx: &AddressCx, plan: &Plan) {
    let Some((addresses, _)) = cx.gateway.as_ref().zip(plan.address.as_ref()) else { return };
    let vm = plan.definition.name.as_str();
    told(vm, "some packets may be lost", addresses.gateway.remember(vm).await.map_err(AddressError::from));
}

/// The source: the guest has stopped at that moment. What comes for it goes on to the destination, where it waits.
pub(crate) async fn leaving(cx: &AddressCx, plan: &Plan, stopped: Instant) {
    let Some((addresses, address)) = cx.gateway.as_ref().zip(plan.address.as_ref()) else { return };
    let vm = plan.definition.name.as_str();
    let left = async {
        let grant = network_of(&plan.definition)?.grant(&plan.definition, address.spi, &address.key.0);
        addresses.set(vm, Some(Standing::Leaving));
        Ok::<_, AddressError>(addresses.gateway.forward(grant, address.target, stopped).await?)
    };
    told(vm, "packets for it are not forwarded", left.await);
}

/// The source: the guest runs on here.
pub(crate) async fn stays(cx: &AddressCx, vm: &str) {
    let Some(addresses) = &cx.gateway else { return };
    if addresses.stands(vm).is_some() {
        told(vm, "it is not served on", addresses.gateway.stay(vm).await.map_err(AddressError::from));
        addresses.set(vm, Some(Standing::Served));
    }
}

/// The source: the guest runs elsewhere. What was under way to it is still forwarded, by the gateway alone.
pub(crate) async fn left(cx: &AddressCx, vm: &str) {
    let Some(addresses) = &cx.gateway else { return };
    if addresses.stands(vm).is_some() {
        told(
            vm,
            "its link is not taken back",
            addresses.gateway.detach(vm).await.map_err(AddressError::from),
        );
        addresses.set(vm, None);
    }
}

/// The destination: the hypervisor waits for the guest, its interface is there.
pub(crate) async fn expect(cx: &AddressCx, plan: &Plan) {
    let Some((addresses, address)) = cx.gateway.as_ref().zip(plan.address.as_ref()) else { return };
    let vm = plan.definition.name.as_str();
    let expected = async {
        let network = network_of(&plan.definition)?;
        addresses.gateway.attach(vm, network.link()).await?;
        let grant = network.grant(&plan.definition, address.spi, &address.key.0);
        addresses.gateway.expect(grant, address.source).await?;
        addresses.set(vm, Some(Standing::Expected));
        Ok::<_, AddressError>(())
    };
    told(vm, "it is not expected", expected.await);
}

/// The destination: the guest runs here.
pub(crate) async fn arrived(cx: &AddressCx, vm: &str) {
    let Some(addresses) = &cx.gateway else { return };
    if addresses.stands(vm) == Some(Standing::Expected) {
        let waiting = Arrival::Waiting(Instant::now());
        addresses.arrivals.send_modify(|arrivals| drop(arrivals.insert(vm.to_owned(), waiting)));
        told(vm, "it is not registered", addresses.gateway.arrived(vm).await.map_err(AddressError::from));
    }
}

/// The destination: waits for the registration. Gives what was done, in a sentence.
pub(crate) async fn rebind(cx: &AddressCx, plan: &Plan) -> String {
    let vm = plan.definition.name.as_str();
    if plan.definition.network.is_none() {
        return "the VM has no [network] in its definition: its address was not moved; on a shared network segment the \
                hypervisor's own announcement suffices"
            .to_owned();
    }
    let Some(addresses) = &cx.gateway else {
        return "no mobility configured: the address was not moved; set [mobility] in longhaul.toml here"
            .to_owned();
    };
    if addresses.stands(vm) != Some(Standing::Expected) {
        // Taken up after a restart, or there was no permit to be told: then the watch over all VMs does it.
        addresses.look();
        return "the address will follow as soon as the home agent permits it: see `longhaul addresses` and the log"
            .to_owned();
    }
    addresses.set(vm, Some(Standing::Served));
    let mut arrivals = addresses.arrivals.subscribe();
    let answered = |arrivals: &BTreeMap<_, _>| !matches!(arrivals.get(vm), Some(Arrival::Waiting(_)));
    let outcome = match tokio::time::timeout(PATIENCE, arrivals.wait_for(answered)).await {
        Ok(Ok(arrivals)) => arrivals.get(vm).cloned(),
        _ => None,
    };
    match outcome {
        Some(Arrival::Registered(took)) => {
            let ms = took.as_secs_f64() * 1e3;
            format!("the address followed: registered with the home agent {ms:.1} ms after the guest ran")
        }
        Some(Arrival::Refused(status)) => {
            format!("the address did not follow: the home agent refused ({status})")
        }
        _ => "the home agent has not answered yet; the gateway goes on asking".to_owned(),
    }
}

/// The destination: the guest will not come.
pub(crate) async fn discard(cx: &AddressCx, vm: &str) {
    let Some(addresses) = &cx.gateway else { return };
    if addresses.stands(vm) == Some(Standing::Expected) {
        told(vm, "it is still expected", addresses.gateway.forget(vm).await.map_err(AddressError::from));
        told(
            vm,
            "its link is not taken back",
            addresses.gateway.detach(vm).await.map_err(AddressError::from),
        );
        addresses.set(vm, None);
    }
}

fn told(vm: &str, what: &str, outcome: Result<(), AddressError>) {
    if let Err(error) = outcome {
        tracing::warn!("the address of VM '{vm}': {what}: {error}");
    }
}
