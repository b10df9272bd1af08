//! `longhaul mobile-node`: a guest on a host that is not ours keeps its address itself. Needs no daemon.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;

use super::probe::interrupted;
use super::show;
use crate::address::mobile_node::{self, HexKey, MobileNodeConfig, Proof};
use crate::service::config::Config;

/// Flags of `mobile-node`. Each takes the place of what `[mobile_node]` in longhaul.toml says; all that has no default is
/// needed when that is not there.
#[derive(Args)]
pub(super) struct MobileNodeArgs {
    /// The address that it keeps
    #[arg(long, value_name = "ADDRESS")]
    home_address: Option<Ipv6Addr>,
    /// Its home agent's address
    #[arg(long, value_name = "ADDRESS")]
    home_agent: Option<Ipv6Addr>,
    /// Its home agent's IPv4 address, for links that have IPv4 only
    #[arg(long, value_name = "ADDRESS")]
    home_agent_ipv4: Option<Ipv4Addr>,
    /// The name that the home agent knows it by, as node@example.org
    #[arg(long)]
    name: Option<String>,
    /// The interface by which it is attached, wherever it is
    #[arg(long, value_name = "INTERFACE")]
    link: Option<String>,
    /// The tunnel interface's name [default: longhaul-node]
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
    /// The number of the key at the home agent
    #[arg(long)]
    spi: Option<u32>,
    /// A file with the key, in hexadecimal digits
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// How messages are proved
    #[arg(long)]
    proof: Option<Proof>,
}

impl MobileNodeArgs {
    /// The whole configuration.
    fn over(self, file: Option<MobileNodeConfig>) -> anyhow::Result<MobileNodeConfig> {
        let missing = |flag: &str| format!("--{flag} is missing, and longhaul.toml has no [mobile_node]");
        let file = file.as_ref();
        let key = self.key_file.map(|path| read_key(&path)).transpose()?;
        Ok(MobileNodeConfig {
            home_address: self
                .home_address
                .or(file.map(|file| file.home_address))
                .with_context(|| missing("home-address"))?,
            home_agent: self
                .home_agent
                .or(file.map(|file| file.home_agent))
                .with_context(|| missing("home-agent"))?,
            home_agent_ipv4: self.home_agent_ipv4.or(file.and_then(|file| file.home_agent_ipv4)),
            name: self.name.or(file.map(|file| file.name.clone())).with_context(|| missing("name"))?,
            link: self.link.or(file.map(|file| file.link.clone())).with_context(|| missing("link"))?,
            interface: self
                .interface
                .or(file.map(|file| file.interface.clone()))
                .unwrap_or_else(mobile_node::interface),
            spi: self.spi.or(file.map(|file| file.spi)).with_context(|| missing("spi"))?,
            key: key.or(file.map(|file| file.key.clone())).with_context(|| missing("key-file"))?,
            proof: self.proof.or(file.map(|file| file.proof)).unwrap_or_default(),
        })
    }
}

fn read_key(path: &Path) -> anyhow::Result<HexKey> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    HexKey::try_from(text.trim().to_owned()).map_err(|what| anyhow::anyhow!("{}: {what}", path.display()))
}

/// Runs it until it is told to end.
pub(super) async fn run(args: MobileNodeArgs, file: &Path, json: bool) -> anyhow::Result<()> {
    let config = args.over(Config::load(file)?.mobile_node)?;
    config.check().map_err(anyhow::Error::msg)?;
    mobile_node::run(config, interrupted(), |event| {
        // The log says the same to a person.
        if json {
            show::value(event, true);
        }
    })
    .await
}

#[cfg(test)]
mod tests;
