//! The mobile nodes of a home agent: those of the configuration, and where each was last reached, so that a restart knows it
//! again. Never gives a key to anybody.

use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use mobility::HomeAgent;
use mobility::anchor::{Authorization, Registrant};
use mobility::wire::Ipv6Prefix;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::files;
use crate::mobile_node::NodeConfig;

/// Where a node was reached, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    home_address: Ipv6Addr,
    care_of: Ipv6Addr,
}

/// The nodes.
pub(super) struct Nodes {
    list: Vec<NodeConfig>,
    dir: PathBuf,
}

impl Nodes {
    /// Lets those of `list`, whose addresses are within `prefixes`, register themselves. Where they were is in `dir`.
    pub(super) async fn start(
        list: Vec<NodeConfig>,
        agent: &HomeAgent,
        prefixes: &[Ipv6Prefix],
        dir: PathBuf,
    ) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        let nodes = Self { list, dir };
        for node in &nodes.list {
            let NodeConfig { name, home_address, .. } = node;
            anyhow::ensure!(
                prefixes.iter().any(|prefix| prefix.contains(*home_address)),
                "home_agent.nodes: {home_address} of {name:?} is not within home_agent.prefixes"
            );
            let authorization = Authorization {
                key: node.shared_key(),
                node: name.as_bytes().to_vec(),
                prefix: nodes.prefix(node),
                ipv4: None,
                registrant: Registrant::MobileNode,
            };
            let authorized = agent.authorize(authorization).await?;
            authorized.with_context(|| format!("home_agent.nodes: {name:?}"))?;
            if let Some(kept) = nodes.kept(node)?.filter(|kept| kept.home_address == *home_address) {
                agent.restore_mobile_node(name, kept.care_of).await?;
            }
        }
        Ok(nodes)
    }

    fn prefix(&self, node: &NodeConfig) -> Ipv6Prefix {
        Ipv6Prefix::new(node.home_address, 128).expect("128 is a length")
    }

    /// By the number of its key: a name may have any characters.
    fn path(&self, node: &NodeConfig) -> PathBuf {
        self.dir.join(format!("{}.json", node.spi))
    }

    fn kept(&self, node: &NodeConfig) -> anyhow::Result<Option<Kept>> {
        let path = self.path(node);
        match std::fs::read(&path) {
            Ok(bytes) => {
                Ok(Some(serde_json::from_slice(&bytes).with_context(|| path.display().to_string())?))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| path.display().to_string()),
        }
    }

    /// Keeps where the node of this home address is, or all are; an error when the agent has ended.
    pub(super) async fn keep(
        &self,
        agent: &HomeAgent,
        changed: Option<Ipv6Prefix>,
    ) -> Result<(), mobility::AgentError> {
        for node in &self.list {
            if changed.is_some_and(|changed| changed != self.prefix(node)) {
                continue;
            }
            let care_of = agent.binding(&node.name).await?.map(|binding| binding.care_of);
            if let Err(error) = self.save(node, care_of) {
                tracing::error!("the binding of mobile node {:?} could not be kept: {error}", node.name);
            }
        }
        Ok(())
    }

    fn save(&self, node: &NodeConfig, care_of: Option<Ipv6Addr>) -> std::io::Result<()> {
        let path = self.path(node);
        match care_of {
            Some(care_of) => {
                let kept = Kept { home_address: node.home_address, care_of };
                files::write_atomic(&path, &serde_json::to_vec(&kept)?)
            }
            None => match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                _ => files::sync_dir(path.parent().unwrap_or(Path::new("."))),
            },
        }
    }

    /// All of them, with where they are reached.
    pub(super) async fn list(&self, agent: &HomeAgent) -> Vec<Value> {
        let mut list = Vec::new();
        for node in &self.list {
            let binding = agent.binding(&node.name).await.ok().flatten();
            list.push(json!({
                "vm": node.name,
                "prefix": self.prefix(node).to_string(),
                "owner": "itself",
                "epoch": null,
                "care_of": binding.map(|binding| binding.care_of.to_canonical()),
            }));
        }
        list
    }
}
