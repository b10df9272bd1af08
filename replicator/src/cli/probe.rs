//! `longhaul probe`: the paper's UDP tool. Needs no daemon.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Subcommand;
use mobility::probe::{self, SendOptions};

use super::show;

/// What the tool does.
#[derive(Subcommand)]
pub(super) enum ProbeCommand {
    /// Receive until interrupted, then tell what was lost and how long the gaps were
    Serve {
        /// Where to listen (UDP)
        #[arg(default_value = "[::]:4434")]
        listen: SocketAddr,
    },
    /// Send a packet of 210 bytes every 20 ms
    Send {
        /// Whereto
        address: SocketAddr,
        /// Milliseconds between packets
        #[arg(long, default_value_t = 20)]
        interval_ms: u64,
        /// Stop after this many
        #[arg(long)]
        count: Option<u64>,
    },
}

/// Runs the tool.
pub(super) async fn run(command: ProbeCommand, json: bool) -> anyhow::Result<bool> {
    let interrupted = async {
        // Without a signal handler the process ends as it would without us: by the signal.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let value = match command {
        ProbeCommand::Serve { listen } => {
            let socket = probe::bind(listen).await?;
            let every = Duration::from_secs(10);
            let progress = |report: &probe::Report| tracing::debug!("{report:?}");
            serde_json::to_value(probe::serve(socket, every, progress, interrupted).await)?
        }
        ProbeCommand::Send { address, interval_ms, count } => {
            let interval = Duration::from_millis(interval_ms.max(1));
            let options = SendOptions { stream: u64::from(std::process::id()), interval, count };
            serde_json::to_value(probe::send(address, options, interrupted).await?)?
        }
    };
    show::value(&value, json);
    Ok(true)
}
