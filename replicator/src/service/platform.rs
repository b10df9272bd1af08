//! What a platform has, in parts: each room of the service gets the few that it works with, and only the daemon, the
//! doors for peers and the control API see all of them.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use chunkstore::Store;
use migrate_driver::nbd::{NbdServer, Overlay};
use migrate_driver::{Hypervisor, VmName};

use crate::address::Addresses;
use crate::address::home_agent::Home;
use crate::images::origins::Origins;
use crate::migration::Handoffs;
use crate::replication::replicas::Replicas;
use crate::replication::warm::WarmStates;
use crate::service::config::{Config, HypervisorKind, Layout};
use crate::service::identity::Identity;
use crate::service::jobs::Jobs;
use crate::service::net::Network;
use crate::service::peers::Peers;
use crate::service::serve::Connections;
use crate::service::vms::Vms;
use crate::transfer::sink::Holdings;

/// The guests of a platform.
#[derive(Clone)]
pub(crate) struct Guests {
    /// Their definitions and owners.
    pub vms: Arc<Vms>,
    /// What runs them.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// Where everything is.
    pub layout: Layout,
}

impl Guests {
    /// Starts the server into which the hypervisor writes what a VM's taps bring. It listens in the VM's run directory, which a
    /// guest that was adopted has not yet.
    pub(crate) fn serve_taps(
        &self,
        vm: &VmName,
        exports: Vec<(String, Arc<Overlay>)>,
    ) -> io::Result<NbdServer> {
        let dir = self.layout.run().join("vm").join(vm.as_str());
        let at = |path: &Path, error: io::Error| {
            io::Error::new(error.kind(), format!("{}: {error}", path.display()))
        };
        DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(|error| at(&dir, error))?;
        let socket = dir.join("nbd.sock");
        NbdServer::start(&socket, exports).map_err(|error| at(&socket, error))
    }
}

/// The way to other platforms.
#[derive(Clone)]
pub(crate) struct Reach {
    /// How they are reached.
    pub network: Network,
    /// Who is trusted.
    pub peers: Arc<Peers>,
    /// What a transfer is set to: compression level and window in bytes.
    pub transfers: (i32, usize),
}

/// What a platform holds of disks.
#[derive(Clone)]
pub(crate) struct Images {
    /// Its chunks.
    pub holdings: Holdings,
    /// Its replicas of others' disks.
    pub replicas: Arc<Replicas>,
    /// Where its base images came from.
    pub origins: Arc<Origins>,
}

impl Images {
    /// The chunk store.
    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.holdings.store
    }
}

/// What the addresses of VMs work with.
#[derive(Clone)]
pub(crate) struct AddressCx {
    /// What lets addresses follow their VMs, when it is configured.
    pub gateway: Option<Arc<Addresses>>,
    /// Who this platform is.
    pub identity: Identity,
    /// Its guests.
    pub guests: Guests,
    /// The way to the home agent.
    pub reach: Reach,
}

/// What may come in from peers.
#[derive(Clone)]
pub(crate) struct Rules {
    /// The hypervisor of this platform.
    pub hypervisor: HypervisorKind,
    /// The programs that a peer's VM may be run by.
    pub qemu_binaries: Vec<String>,
    /// The QEMU arguments that a peer's VM may bring.
    pub qemu_arguments: Vec<String>,
}

/// What migrations, and decisions about owners, work with.
pub(crate) struct MigrationCx {
    /// The guests.
    pub guests: Guests,
    /// The way to other platforms.
    pub reach: Reach,
    /// What is here of their disks.
    pub images: Images,
    /// The jobs.
    pub jobs: Arc<Jobs>,
    /// The hand-offs that go on.
    pub handoffs: Arc<Handoffs>,
    /// What moves addresses.
    pub address: AddressCx,
    /// What may come in.
    pub rules: Rules,
}

/// What warm passes work with.
#[derive(Clone)]
pub(crate) struct ReplicationCx {
    /// The guests.
    pub guests: Guests,
    /// The way to other platforms.
    pub reach: Reach,
    /// The jobs.
    pub jobs: Arc<Jobs>,
    /// What is known of the VMs' replicas elsewhere.
    pub warm: Arc<WarmStates>,
}

/// What bases, replicas at rest and the store's upkeep work with.
#[derive(Clone)]
pub(crate) struct ImagesCx {
    /// What there is.
    pub images: Images,
    /// The guests, whose disks are not to be written over.
    pub guests: Guests,
    /// The way to other platforms.
    pub reach: Reach,
    /// The jobs.
    pub jobs: Arc<Jobs>,
    /// Compression level of what enters the store.
    pub store_level: i32,
}

/// A platform, while its daemon runs.
pub(crate) struct Platform {
    /// How it is configured.
    pub config: Config,
    /// Who it is.
    pub identity: Identity,
    /// The connections that are served.
    pub connections: Connections,
    /// The home agent, on the host that is one.
    pub home: Option<Arc<Home>>,
    /// Its guests.
    pub guests: Guests,
    /// How it reaches other platforms.
    pub reach: Reach,
    /// What it holds of disks.
    pub images: Images,
    /// Its jobs.
    pub jobs: Arc<Jobs>,
    /// For migrations.
    pub migration: Arc<MigrationCx>,
    /// For warm passes.
    pub replication: Arc<ReplicationCx>,
    /// For bases and the store.
    pub upkeep: Arc<ImagesCx>,
    /// For addresses.
    pub address: AddressCx,
}
