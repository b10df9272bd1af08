//! Everything a platform has, in one place: what the jobs and the control API work with.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use chunkstore::Store;
use migrate_driver::nbd::{NbdServer, Overlay};
use migrate_driver::{Hypervisor, VmName};

use crate::address::Addresses;
use crate::config::{Config, Layout};
use crate::home_agent::Home;
use crate::identity::Identity;
use crate::jobs::Jobs;
use crate::migrate::Handoffs;
use crate::net::Network;
use crate::origins::Origins;
use crate::peers::Peers;
use crate::replicas::Replicas;
use crate::serve::Connections;
use crate::transfer::sink::Holdings;
use crate::vms::Vms;
use crate::warm::WarmStates;

/// A platform, while its daemon runs.
pub struct Platform {
    /// Where its things are.
    pub layout: Layout,
    /// How it is configured.
    pub config: Config,
    /// Who it is.
    pub identity: Identity,
    /// Whom it trusts.
    pub peers: Arc<Peers>,
    /// How it reaches them.
    pub network: Network,
    /// Its chunks.
    pub holdings: Holdings,
    /// Where its base images came from.
    pub origins: Arc<Origins>,
    /// Its replicas of others' disks.
    pub replicas: Replicas,
    /// Its VMs.
    pub vms: Arc<Vms>,
    /// What runs them.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// Its jobs.
    pub jobs: Arc<Jobs>,
    /// The connections that are served.
    pub connections: Connections,
    /// Its hand-offs.
    pub handoffs: Arc<Handoffs>,
    /// What lets its VMs' addresses follow them, when it is configured.
    pub addresses: Option<Addresses>,
    /// The home agent, on the host that is one.
    pub home: Option<Arc<Home>>,
    /// What it knows of its VMs' replicas elsewhere.
    pub warm: WarmStates,
}

impl Platform {
    /// The chunk store.
    pub fn store(&self) -> &Arc<Store> {
        &self.holdings.store
    }

    /// Starts the server into which the hypervisor writes what a VM's taps bring. It listens in the VM's run directory, which a
    /// guest that was adopted has not yet.
    pub fn serve_taps(&self, vm: &VmName, exports: Vec<(String, Arc<Overlay>)>) -> io::Result<NbdServer> {
        let dir = self.layout.run().join("vm").join(vm.as_str());
        let at = |path: &Path, error: io::Error| {
            io::Error::new(error.kind(), format!("{}: {error}", path.display()))
        };
        DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(|error| at(&dir, error))?;
        let socket = dir.join("nbd.sock");
        NbdServer::start(&socket, exports).map_err(|error| at(&socket, error))
    }

    /// What a transfer is set to: compression level and window in bytes.
    pub fn transfer_settings(&self) -> (i32, usize) {
        (self.config.compression_level, self.config.window_bytes)
    }
}
