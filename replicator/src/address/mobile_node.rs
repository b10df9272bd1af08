//! Mobile nodes in the configuration: guests on hosts that are not ours, which look after their address themselves. On the home
//! agent each is known by name, address and key; in the guest `longhaul mobile-node` needs the same. Starts no daemon.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::Context;
use mobility::MobileNode;
use mobility::auth::{Algorithm, SharedKey};
use mobility::mobile_node::{Config as AgentConfig, Happened};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;

/// Those below are reserved (RFC 4285 section 5).
pub(crate) const FIRST_SPI: u32 = 256;
/// What a shared key may have, in bytes.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 16..=64;
/// What a name may have, in bytes (RFC 4283 section 3).
const NAME_BYTES: std::ops::RangeInclusive<usize> = 1..=254;

/// A key that a mobile node and its home agent share, written as hexadecimal digits. It is never printed.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct HexKey(Vec<u8>);

impl std::fmt::Debug for HexKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HexKey")
    }
}

impl TryFrom<String> for HexKey {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).map(|digit| digit as u8)).collect();
        let bytes = digits
            .filter(|digits| digits.len() % 2 == 0)
            .map(|digits| digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect::<Vec<u8>>());
        let bytes = bytes.filter(|bytes| KEY_BYTES.contains(&bytes.len()));
        // The text itself is not for a log.
        bytes.map(Self).ok_or_else(|| {
            "a key is 32 to 128 hexadecimal digits, as `openssl rand -hex 32` prints".to_owned()
        })
    }
}

/// How a message is proved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Proof {
    /// HMAC-SHA-256, 128 bits of it: where both ends are ours.
    #[default]
    #[serde(rename = "hmac-sha256-128")]
    #[value(name = "hmac-sha256-128")]
    HmacSha256,
    /// HMAC-SHA-1, 96 bits of it: what RFC 4285 asks for.
    #[serde(rename = "hmac-sha1-96")]
    #[value(name = "hmac-sha1-96")]
    HmacSha1,
}

/// The key as the agents take it.
fn shared_key(spi: u32, proof: Proof, key: &HexKey) -> SharedKey {
    let algorithm = match proof {
        Proof::HmacSha256 => Algorithm::HmacSha256_128,
        Proof::HmacSha1 => Algorithm::HmacSha1_96,
    };
    SharedKey::new(spi, algorithm, &key.0)
}

/// What is wrong with a name and an SPI, if anything.
fn judge(name: &str, spi: u32) -> Result<(), String> {
    if !NAME_BYTES.contains(&name.len()) {
        return Err(format!("a mobile node's name has 1 to 254 bytes, {name:?} has {}", name.len()));
    }
    if spi < FIRST_SPI {
        return Err(format!("spi = {spi} of mobile node {name:?} is reserved: take one from {FIRST_SPI} on"));
    }
    Ok(())
}

/// A mobile node, as its home agent knows it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NodeConfig {
    /// Its name, a network access identifier such as `node@example.org`.
    pub name: String,
    /// The address that it keeps, within the home agent's prefixes.
    pub home_address: Ipv6Addr,
    /// The number of the key, unique at this home agent, from 256 on.
    pub spi: u32,
    /// The key.
    pub key: HexKey,
    /// How it is used.
    #[serde(default)]
    pub proof: Proof,
}

impl NodeConfig {
    /// The key as the home agent takes it.
    #[must_use]
    pub(crate) fn shared_key(&self) -> SharedKey {
        shared_key(self.spi, self.proof, &self.key)
    }

    /// What is wrong with it, if anything.
    ///
    /// # Errors
    /// Says which value, and its bounds.
    pub(crate) fn check(&self) -> Result<(), String> {
        judge(&self.name, self.spi)
    }
}

/// This host as a mobile node.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MobileNodeConfig {
    /// The address that it keeps.
    pub home_address: Ipv6Addr,
    /// Its home agent's address.
    pub home_agent: Ipv6Addr,
    /// Its home agent's IPv4 address, for links that have IPv4 only.
    #[serde(default)]
    pub home_agent_ipv4: Option<Ipv4Addr>,
    /// The name that the home agent knows it by.
    pub name: String,
    /// The interface by which it is attached, wherever it is.
    pub link: String,
    /// The tunnel interface's name, at most 15 bytes.
    #[serde(default = "interface")]
    pub interface: String,
    /// The number of the key at the home agent.
    pub spi: u32,
    /// The key.
    pub key: HexKey,
    /// How it is used.
    #[serde(default)]
    pub proof: Proof,
}

/// The tunnel interface's name, unless it is given another.
pub(crate) fn interface() -> String {
    "longhaul-node".to_owned()
}

impl MobileNodeConfig {
    /// What is wrong with it, if anything.
    ///
    /// # Errors
    /// Says which value, and its bounds.
    pub(crate) fn check(&self) -> Result<(), String> {
        let interface = &self.interface;
        if !(1..=15).contains(&interface.len()) {
            return Err(format!("interface = {interface:?}: it must be 1 to 15 bytes long"));
        }
        judge(&self.name, self.spi)
    }
}

/// Runs until `told`, then ends the binding and takes back what the kernel was told. What happens is given to `show`.
///
/// # Errors
/// When it cannot start, or cannot go on.
pub(crate) async fn run(
    config: MobileNodeConfig,
    told: impl Future<Output = ()>,
    mut show: impl FnMut(&Value),
) -> anyhow::Result<()> {
    let MobileNodeConfig {
        home_address,
        home_agent,
        home_agent_ipv4,
        name,
        link,
        interface,
        spi,
        key,
        proof,
    } = config;
    let key = shared_key(spi, proof, &key);
    let config = AgentConfig { home_address, home_agent, home_agent_ipv4, name, key, link, interface };
    let node = MobileNode::start(config).await.context("starting the mobile node")?;
    let mut events = node.events();
    let mut told = std::pin::pin!(told);
    loop {
        tokio::select! {
            () = &mut told => break,
            event = events.recv() => match event {
                Ok(happened) => show(&shown(happened)),
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => anyhow::bail!("the mobile node cannot go on; see the log"),
            },
        }
    }
    node.end().await;
    Ok(())
}

fn shown(happened: Happened) -> Value {
    match happened {
        Happened::Registered(care_of) => json!({ "event": "registered", "care_of": care_of.to_canonical() }),
        Happened::Refused(status) => {
            json!({ "event": "refused", "status": status.0, "reason": status.to_string() })
        }
        Happened::Expired => json!({ "event": "expired" }),
        Happened::Deregistered => json!({ "event": "deregistered" }),
    }
}

#[cfg(test)]
mod tests;
