//! The home agent's part of a daemon: who owns which VM's prefix, and so whose gateway may register it. Each VM's permits are a
//! file, and where each is reached stands in one of all, so that a restart knows it again. It never decides where a VM runs: an
//! owner names its successor.

pub(crate) mod bindings;
mod nodes;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use longhaul_proto::wire::{PermitAnswer, PermitRequest};
use mobility::anchor::{Authorization, Registrant};
use mobility::auth::{Algorithm, SharedKey};
use mobility::home_agent::{Binding, Change, Config as AgentConfig, Keeper};
use mobility::wire::{Ipv4Interface, Ipv6Prefix};
use mobility::{DataPlane, HomeAgent};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::address::mobile_node::FIRST_SPI;
use crate::error_kind::{HasKind, Kind};
use crate::files;
use crate::random::random;
use crate::service::config::{ConfigError, HomeAgentConfig};
use crate::service::identity::Fingerprint;
use bindings::{Bindings, Record};
use nodes::Nodes;

/// Who may register a VM in one epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Permit {
    epoch: u64,
    gateway: Ipv6Addr,
    holder: Fingerprint,
    spi: u32,
    key: Secret,
}

/// A key, which is never printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Secret(pub [u8; 32]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// A VM, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Machine {
    /// Lowest address and length of its prefix.
    prefix: (Ipv6Addr, u8),
    /// Its IPv4 address, if it has one, and the length of its network's prefix.
    #[serde(default)]
    ipv4: Option<(Ipv4Addr, u8)>,
    /// Who owns it, since which epoch: the last that was bound, or the first that was asked for.
    holder: Fingerprint,
    epoch: u64,
    /// Whether it is bound in that epoch.
    bound: bool,
    /// Where the gateway it is bound at takes tunnelled packets.
    #[serde(default)]
    user_plane: Option<Ipv6Addr>,
    permits: Vec<Permit>,
}

/// Why a VM's address is not given up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReleaseError {
    /// No VM of that name.
    #[error("this home agent knows no VM of that name; `longhaul addresses` lists them")]
    Unknown,
    /// The file of its permits.
    #[error("VM '{vm}' is not forgotten: removing {file}: {source}", file = .file.display())]
    Io { vm: String, file: PathBuf, source: std::io::Error },
    /// The agent.
    #[error(transparent)]
    Agent(#[from] mobility::AgentError),
}

impl HasKind for ReleaseError {
    fn kind(&self) -> Kind {
        match self {
            ReleaseError::Unknown => Kind::NotFound,
            ReleaseError::Io { source, .. } => Kind::of_io(source),
            ReleaseError::Agent(error) => error.kind(),
        }
    }
}

/// The home agent of this host.
pub(crate) struct Home {
    agent: HomeAgent,
    prefixes: Vec<Ipv6Prefix>,
    dir: PathBuf,
    machines: Machines,
    nodes: Nodes,
}

type Machines = Arc<Mutex<BTreeMap<String, Machine>>>;

/// Whose a VM is follows from where it is bound.
#[derive(Debug)]
struct Ownership {
    machines: Machines,
    bindings: Bindings,
}

impl Keeper for Ownership {
    fn keep(&mut self, changes: &[Change]) -> std::io::Result<()> {
        let mut machines = self.machines.blocking_lock();
        for change in changes {
            if let Some(machine) = machines.get_mut(&change.node) {
                machine.take_over(change.floor, change.binding.as_ref());
            }
        }
        drop(machines);
        self.bindings.keep(changes)
    }
}

impl Home {
    /// Starts it with what is in `dir`.
    pub(crate) async fn start(config: &HomeAgentConfig, dir: &Path) -> anyhow::Result<Arc<Self>> {
        let of_ipv4 = config.ipv4_prefixes.iter().map(|text| parse_ipv4_prefix(text, dir));
        let prefixes = config.prefixes.iter().map(|text| parse_prefix(text, dir));
        let prefixes = prefixes.chain(of_ipv4).collect::<Result<Vec<_>, _>>()?;
        std::fs::create_dir_all(dir)?;
        std::fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        let mut machines = load(dir)?;
        let is_known = |record: &Record| {
            machines.get(&record.node).is_some_and(|machine| machine.prefix == record.prefix)
                || config.nodes.iter().any(|node| nodes::is_of(record, node))
        };
        let (bindings, records) = Bindings::open(dir, is_known)
            .with_context(|| format!("opening the bindings in {}", dir.display()))?;
        for Record { node, floor, binding, .. } in &records {
            if let Some(machine) = machines.get_mut(node) {
                machine.take_over(*floor, binding.as_ref());
            }
        }
        let machines = Arc::new(Mutex::new(machines));
        let keeper = Ownership { machines: machines.clone(), bindings };
        let agent_config = AgentConfig {
            address: config.address,
            prefixes: prefixes.clone(),
            interface: config.interface.clone(),
            plane: config.plane,
            user_plane: config.user_plane,
            ipv4_address: config.ipv4_address,
            max_nodes: config.max_machines.saturating_add(config.nodes.len()),
            restart_counter: count_start(dir)?,
        };
        let agent = HomeAgent::start(agent_config, Some(Box::new(keeper))).await?;
        for (vm, machine) in &*machines.lock().await {
            for permit in &machine.permits {
                agent.authorize(machine.authorization(vm, permit)).await??;
            }
            let active = machine.permits.iter().find(|permit| machine.bound && permit.epoch == machine.epoch);
            agent.restore(vm, machine.epoch, active.map(|permit| permit.spi), machine.user_plane).await?;
        }
        let nodes = Nodes::start(config.nodes.clone(), &agent, &prefixes, &records).await?;
        // Behind all that is restored.
        agent.keep_only().await?;
        Ok(Arc::new(Home { agent, prefixes, dir: dir.to_owned(), machines, nodes }))
    }

    /// Answers a peer's request.
    pub(crate) async fn permit(&self, peer: Fingerprint, request: &PermitRequest) -> PermitAnswer {
        match self.try_permit(peer, request).await {
            Ok(permit) => PermitAnswer::Permitted { spi: permit.spi, key: permit.key.0 },
            Err(reason) => {
                tracing::info!("VM '{}' epoch {}: {reason}", request.vm, request.epoch);
                PermitAnswer::Refused { reason }
            }
        }
    }

    async fn try_permit(&self, peer: Fingerprint, request: &PermitRequest) -> Result<Permit, String> {
        let PermitRequest { vm, epoch, gateway, holder, .. } = request;
        files::check_name("VM", vm)?;
        let (epoch, gateway, holder) = (epoch.0, Ipv6Addr::from(*gateway), Fingerprint::from(*holder));
        let prefix = Ipv6Prefix::new(request.prefix.into(), request.prefix_len)
            .filter(|prefix| prefix.address().octets() == request.prefix)
            .ok_or("its prefix is not valid")?;
        let is_ours = |prefix: Ipv6Prefix| {
            self.prefixes.iter().any(|ours| ours.len() <= prefix.len() && ours.contains(prefix.address()))
        };
        if !is_ours(prefix) {
            return Err(format!("prefix {prefix} is not within those of this home agent"));
        }
        let ipv4 = request.ipv4.map(|(address, len)| (Ipv4Addr::from(address), len));
        if let Some((address, len)) = ipv4 {
            let interface = Ipv4Interface::new(address, len).ok_or("its IPv4 address is none")?;
            if !is_ours(interface.host()) {
                return Err(format!("{address} is not within home_agent.ipv4_prefixes of this home agent"));
            }
        }
        let mut machines = self.machines.lock().await;
        let kept = (prefix.address(), prefix.len());
        let mut machine = match machines.get(vm).cloned() {
            Some(mut machine) => {
                let now = self.agent.now(vm).await.map_err(|error| error.to_string())?;
                machine.take_over(
                    now.as_ref().map_or(0, |now| now.floor),
                    now.and_then(|now| now.binding).as_ref(),
                );
                machine
            }
            None if peer == holder => Machine {
                prefix: kept,
                ipv4,
                holder,
                epoch,
                bound: false,
                user_plane: None,
                permits: Vec::new(),
            },
            None => return Err("it was never registered by its present owner".to_owned()),
        };
        machine.judge(peer, (kept, ipv4), epoch, holder)?;
        let wanted = Permit { epoch, gateway, holder, spi: random_spi(), key: Secret(random()) };
        let (permit, over) = machine.permit(wanted);
        for spi in over {
            self.agent.withdraw(spi).await.map_err(|error| error.to_string())?;
        }
        if machines.get(vm).is_none_or(|known| !known.permits.contains(&permit)) {
            let authorized = self.agent.authorize(machine.authorization(vm, &permit)).await;
            authorized.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
            self.save(vm, &machine).map_err(|error| format!("keeping it: {error}"))?;
            machines.insert(vm.clone(), machine);
        }
        Ok(permit)
    }

    /// Who carries packets.
    pub(crate) fn plane(&self) -> DataPlane {
        self.agent.plane()
    }

    /// Takes back what the kernel was told.
    pub(crate) async fn end(&self) {
        self.agent.end().await;
    }

    /// All VMs and mobile nodes, with where they are reached.
    pub(crate) async fn list(&self) -> Vec<serde_json::Value> {
        let mut list = self.nodes.list(&self.agent).await;
        for (vm, machine) in &*self.machines.lock().await {
            let binding = self.agent.binding(vm).await.ok().flatten();
            let (address, len) = machine.prefix;
            list.push(serde_json::json!({
                "vm": vm,
                "prefix": format!("{address}/{len}"),
                "ipv4": machine.ipv4.map(|(address, len)| format!("{address}/{len}")),
                "owner": machine.holder,
                "epoch": machine.epoch,
                "care_of": binding.map(|binding| binding.care_of),
            }));
        }
        list
    }

    /// Forgets a VM and who owns it: whoever asks for its prefix next owns it. Only for a platform that is gone for good.
    pub(crate) async fn release(&self, vm: &str) -> Result<(), ReleaseError> {
        let mut machines = self.machines.lock().await;
        let machine = machines.get(vm).ok_or(ReleaseError::Unknown)?;
        // First: what is forgotten here must not come back with a restart. Somebody may have removed it by hand.
        let file = self.file(vm);
        match std::fs::remove_file(&file) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(ReleaseError::Io { vm: vm.to_owned(), file, source });
            }
            _ => {}
        }
        for permit in &machine.permits {
            self.agent.withdraw(permit.spi).await?;
        }
        tracing::info!("VM '{vm}' is forgotten; it belonged to the platform with key {}", machine.holder);
        machines.remove(vm);
        Ok(())
    }

    fn file(&self, vm: &str) -> PathBuf {
        self.dir.join(format!("{vm}.json"))
    }

    fn save(&self, vm: &str, machine: &Machine) -> std::io::Result<()> {
        files::write_atomic(self.file(vm), &serde_json::to_vec(machine)?)
    }
}

impl Machine {
    /// Whoever was bound in a later epoch owns the machine from then on.
    fn take_over(&mut self, floor: u64, binding: Option<&Binding>) {
        self.bound = binding.is_some();
        if let Some(binding) = binding {
            self.user_plane = binding.user_plane;
        }
        if let Some(permit) = self.permits.iter().find(|permit| permit.epoch == floor && floor > self.epoch) {
            (self.epoch, self.holder) = (floor, permit.holder);
        }
    }

    /// Whether this peer may have a permit: the owner, for itself or its successor; a successor, once more for itself.
    fn judge(
        &self,
        peer: Fingerprint,
        (prefix, ipv4): ((Ipv6Addr, u8), Option<(Ipv4Addr, u8)>),
        epoch: u64,
        holder: Fingerprint,
    ) -> Result<(), String> {
        let named = |permit: &Permit| (permit.epoch, permit.holder) == (epoch, peer);
        let is_successor = peer == holder && self.permits.iter().any(named);
        if self.prefix != prefix {
            let (address, len) = self.prefix;
            return Err(format!("it has prefix {address}/{len} already"));
        }
        if self.ipv4 != ipv4 {
            let has =
                self.ipv4.map_or_else(|| "none".to_owned(), |(address, len)| format!("{address}/{len}"));
            return Err(format!(
                "its IPv4 address is {has} here: to change that, `longhaul addresses --release` it on the home agent first"
            ));
        }
        if peer != self.holder && !is_successor {
            return Err(format!(
                "it belongs to the platform with key {} (epoch {})",
                self.holder, self.epoch
            ));
        }
        if epoch < self.epoch || (epoch == self.epoch && holder != self.holder) {
            return Err(format!("epoch {} has been reached", self.epoch));
        }
        Ok(())
    }

    /// The permit that was given before for the same, or `wanted`; and the keys that are worth nothing any more: those of
    /// epochs that are over, and of a successor that did not come to be one.
    fn permit(&mut self, wanted: Permit) -> (Permit, Vec<u32>) {
        let same = |permit: &&Permit| {
            (permit.epoch, permit.gateway, permit.holder) == (wanted.epoch, wanted.gateway, wanted.holder)
        };
        if let Some(permit) = self.permits.iter().find(same) {
            return (permit.clone(), Vec::new());
        }
        let (over, kept): (Vec<_>, _) = std::mem::take(&mut self.permits)
            .into_iter()
            .partition(|permit| permit.epoch < self.epoch || permit.epoch == wanted.epoch);
        self.permits = kept;
        self.permits.push(wanted.clone());
        (wanted, over.into_iter().map(|permit| permit.spi).collect())
    }

    fn authorization(&self, vm: &str, permit: &Permit) -> Authorization {
        let (address, len) = self.prefix;
        Authorization {
            key: SharedKey::new(permit.spi, Algorithm::HmacSha256_128, &permit.key.0),
            node: vm.as_bytes().to_vec(),
            prefix: Ipv6Prefix::new(address, len.min(128)).expect("at most 128"),
            ipv4: self.ipv4.and_then(|(address, len)| Ipv4Interface::new(address, len)),
            registrant: Registrant::Gateway { address: permit.gateway, epoch: permit.epoch },
        }
    }
}

fn parse_prefix(text: &str, path: &Path) -> Result<Ipv6Prefix, ConfigError> {
    let parsed = text.split_once('/').and_then(|(address, len)| {
        Ipv6Prefix::new(address.parse().ok()?, len.parse().ok()?).filter(|prefix| prefix.to_string() == text)
    });
    let what = || format!("home_agent.prefixes: {text:?} is no IPv6 prefix as 2001:db8:f::/48");
    parsed.ok_or_else(|| ConfigError::Value { path: path.to_owned(), what: what() })
}

fn parse_ipv4_prefix(text: &str, path: &Path) -> Result<Ipv6Prefix, ConfigError> {
    let parsed = text.split_once('/').and_then(|(address, len)| {
        let (address, len): (Ipv4Addr, u8) = (address.parse().ok()?, len.parse().ok()?);
        Ipv6Prefix::of_ipv4(address, len).filter(|prefix| prefix.as_ipv4() == Some((address, len)))
    });
    let what = || format!("home_agent.ipv4_prefixes: {text:?} is no IPv4 prefix as 198.51.100.0/24");
    parsed.ok_or_else(|| ConfigError::Value { path: path.to_owned(), what: what() })
}

fn load(dir: &Path) -> anyhow::Result<BTreeMap<String, Machine>> {
    let mut machines = BTreeMap::new();
    for entry in std::fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json")
            && let Some(vm) = path.file_stem().and_then(|stem| stem.to_str())
        {
            let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
            let machine = serde_json::from_slice(&bytes).with_context(|| path.display().to_string())?;
            machines.insert(vm.to_owned(), machine);
        }
    }
    Ok(machines)
}

/// How often the home agent has been started here, this time included (RFC 5847 section 4.1).
fn count_start(dir: &Path) -> anyhow::Result<u32> {
    let path = dir.join("starts");
    let before = std::fs::read_to_string(&path).ok().and_then(|text| text.trim().parse::<u32>().ok());
    let now = before.map_or(1, |before| before.wrapping_add(1));
    files::write_atomic(&path, now.to_string().as_bytes())?;
    Ok(now)
}

fn random_spi() -> u32 {
    u32::from_le_bytes(random()).max(FIRST_SPI)
}

#[cfg(test)]
mod tests;
