//! The daemon: puts the platform together, takes up what a crash left, and serves until it is told to end. Guests go on
//! without it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use chunkstore::{Seeds, Store};
use migrate_driver::{Hypervisor, Qemu, Xen, XenSettings};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::task::AbortOnDropHandle;

use crate::address::Addresses;
use crate::address::home_agent::Home;
use crate::images::origins::Origins;
use crate::replication::replicas::Replicas;
use crate::service::config::{Config, HypervisorKind, Layout};
use crate::service::identity::Identity;
use crate::service::jobs::Jobs;
use crate::service::net::Network;
use crate::service::peers::Peers;
use crate::service::platform::{
    AddressCx, Guests, Images, ImagesCx, MigrationCx, Platform, Reach, ReplicationCx, Rules,
};
use crate::service::serve::Connections;
use crate::service::vms::Vms;
use crate::service::{control, serve, state_version};
use crate::transfer::sink::Holdings;
use crate::{address, files, migration};

/// How long each part has to end in order once the daemon is told to.
const END_WITHIN: Duration = Duration::from_secs(5);

/// Runs until SIGTERM or SIGINT. As a home agent only where one is configured.
pub(crate) fn run(layout: Layout, as_home_agent: bool) -> anyhow::Result<()> {
    let config = Config::load(&layout.config())?;
    if as_home_agent && config.home_agent.is_none() {
        let path = layout.config();
        anyhow::bail!("{} has no [home_agent]; `longhaul example-config` shows one", path.display());
    }
    layout.create()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(serve_until_told(layout, config));
    // A thread that waits for a mount that is gone never ends.
    runtime.shutdown_timeout(END_WITHIN);
    ended
}

async fn serve_until_told(layout: Layout, config: Config) -> anyhow::Result<()> {
    // The store's lock is also what keeps two daemons from one root, so it comes before everything that changes anything.
    let store = Store::open(layout.store()).context("opening the chunk store")?;
    store.warnings().iter().for_each(|warning| tracing::warn!("chunk store: {warning}"));
    for dir in [layout.identity(), layout.journal(), layout.vms(), layout.home_agent()] {
        match files::remove_temporary(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!("cannot remove temporary files from {}: {error}", dir.display());
            }
            _ => {}
        }
    }
    state_version::take_over(&layout.journal())?;
    let identity = Identity::load_or_create(&layout.identity())?;
    let peers = Arc::new(Peers::load(&layout.identity())?);
    let origins = Origins::load(&layout.base_origins());
    let seeds = Arc::new(Seeds::new());
    let replicas = Replicas::load(&layout.replicas(), seeds.clone(), peers.clone());
    let vms = Arc::new(Vms::load(&layout.vms(), &layout.journal())?);
    let jobs = Arc::new(Jobs::load(&layout.journal()).context("reading the reports of earlier jobs")?);
    let addresses = match &config.mobility {
        Some(mobility) => {
            Some(Addresses::start(mobility).await.context("starting the mobile access gateway")?)
        }
        None => None,
    };
    let home = match &config.home_agent {
        Some(home) => Some(Home::start(home, &layout.home_agent()).await.context("starting the home agent")?),
        None => None,
    };
    let (network, dialled) = Network::open(&config, identity.clone(), peers.clone())?;
    let vms_run = layout.run().join("vm");
    let hypervisor: Arc<dyn Hypervisor> = match config.hypervisor {
        HypervisorKind::Qemu => Arc::new(Qemu::new(vms_run)),
        HypervisorKind::Xen => {
            let program = std::env::current_exe().context("finding this program, which xl is to run")?;
            Arc::new(Xen::new(XenSettings {
                run_dir: vms_run,
                scripts_dir: layout.scripts(),
                program,
                bridges: config.bridges.clone(),
                vif_script: config.vif_script.clone(),
            }))
        }
    };
    let platform = Arc::new(assemble(
        Guests { vms, hypervisor, layout },
        Reach { network, peers, transfers: (config.compression_level, config.window_bytes) },
        Images {
            holdings: Holdings { store: Arc::new(store), seeds },
            replicas: Arc::new(replicas),
            origins: Arc::new(origins),
        },
        jobs,
        addresses.map(Arc::new),
        home,
        identity,
        config,
    ));
    migration::recover_all(&platform.migration).await?;
    let _addresses = AbortOnDropHandle::new(tokio::spawn(address::keep(platform.address.clone())));
    let control = control::listen(&platform.guests.layout.control_socket())?;
    tracing::info!(
        "platform '{}' with key {} listens on {} (UDP)",
        platform.config.name,
        platform.identity.fingerprint(),
        platform.config.listen
    );
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let told = async {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("told to end"),
            _ = interrupt.recv() => tracing::info!("interrupted"),
        }
        // While peers are still served: a hand-off comes to its end by asking its other side.
        in_order("jobs", platform.jobs.end()).await;
    };
    tokio::select! {
        () = serve::serve(platform.clone(), dialled) => {}
        served = control::serve(platform.clone(), control) => served?,
        () = told => {}
    }
    let ending = async {
        if let Some(addresses) = &platform.address.gateway {
            addresses.end().await;
        }
        if let Some(home) = &platform.home {
            home.end().await;
        }
        platform.reach.network.close().await;
    };
    in_order("connections and addresses", ending).await;
    let _ = std::fs::remove_file(platform.guests.layout.control_socket());
    Ok(())
}

/// Gives a part of the daemon its time to end.
async fn in_order(what: &str, ending: impl Future<Output = ()>) {
    if tokio::time::timeout(END_WITHIN, ending).await.is_err() {
        tracing::warn!("not all {what} have ended in order within {} s", END_WITHIN.as_secs());
    }
}

/// Gives each room what it works with.
#[allow(clippy::too_many_arguments)]
fn assemble(
    guests: Guests,
    reach: Reach,
    images: Images,
    jobs: Arc<Jobs>,
    gateway: Option<Arc<Addresses>>,
    home: Option<Arc<Home>>,
    identity: Identity,
    config: Config,
) -> Platform {
    let address =
        AddressCx { gateway, identity: identity.clone(), guests: guests.clone(), reach: reach.clone() };
    let migration = MigrationCx {
        guests: guests.clone(),
        reach: reach.clone(),
        images: images.clone(),
        jobs: jobs.clone(),
        handoffs: Arc::default(),
        address: address.clone(),
        rules: Rules {
            hypervisor: config.hypervisor,
            qemu_binaries: config.qemu_binaries.clone(),
            qemu_arguments: config.qemu_arguments.clone(),
        },
    };
    let replication = ReplicationCx {
        guests: guests.clone(),
        reach: reach.clone(),
        jobs: jobs.clone(),
        warm: Arc::default(),
    };
    let upkeep = ImagesCx {
        images: images.clone(),
        guests: guests.clone(),
        reach: reach.clone(),
        jobs: jobs.clone(),
        store_level: config.store_level,
    };
    Platform {
        config,
        identity,
        connections: Connections::default(),
        home,
        guests,
        reach,
        images,
        jobs,
        migration: Arc::new(migration),
        replication: Arc::new(replication),
        upkeep: Arc::new(upkeep),
        address,
    }
}
