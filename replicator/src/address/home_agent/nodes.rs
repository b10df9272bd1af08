//! The mobile nodes of a home agent: those of the configuration, known again after a restart where they were last reached.
//! Never gives a key to anybody.

use anyhow::Context;
use mobility::HomeAgent;
use mobility::anchor::{Authorization, Registrant};
use mobility::wire::Ipv6Prefix;
use serde_json::{Value, json};

use super::bindings::Record;
use crate::address::mobile_node::NodeConfig;

/// The nodes.
pub(super) struct Nodes {
    list: Vec<NodeConfig>,
}

/// Whether what was kept is of this node, at the address that it has now.
pub(super) fn is_of(record: &Record, node: &NodeConfig) -> bool {
    (&record.node, record.prefix) == (&node.name, (node.home_address, 128))
}

impl Nodes {
    /// Lets those of `list`, whose addresses are within `prefixes`, register themselves. Where they were is among `records`.
    pub(super) async fn start(
        list: Vec<NodeConfig>,
        agent: &HomeAgent,
        prefixes: &[Ipv6Prefix],
        records: &[Record],
    ) -> anyhow::Result<Self> {
        for node in &list {
            let NodeConfig { name, home_address, .. } = node;
            anyhow::ensure!(
                prefixes.iter().any(|prefix| prefix.contains(*home_address)),
                "home_agent.nodes: {home_address} of {name:?} is not within home_agent.prefixes"
            );
            let authorization = Authorization {
                key: node.shared_key(),
                node: name.as_bytes().to_vec(),
                prefix: prefix(node),
                ipv4: None,
                registrant: Registrant::MobileNode,
            };
            let authorized = agent.authorize(authorization).await?;
            authorized.with_context(|| format!("home_agent.nodes: {name:?}"))?;
            let record = records.iter().find(|record| is_of(record, node));
            if let Some(binding) = record.and_then(|record| record.binding.as_ref()) {
                agent.restore_mobile_node(name, binding.care_of).await?;
            }
        }
        Ok(Self { list })
    }

    /// All of them, with where they are reached.
    pub(super) async fn list(&self, agent: &HomeAgent) -> Vec<Value> {
        let mut list = Vec::new();
        for node in &self.list {
            let binding = agent.binding(&node.name).await.ok().flatten();
            list.push(json!({
                "vm": node.name,
                "prefix": prefix(node).to_string(),
                "owner": "itself",
                "epoch": null,
                "care_of": binding.map(|binding| binding.care_of.to_canonical()),
            }));
        }
        list
    }
}

fn prefix(node: &NodeConfig) -> Ipv6Prefix {
    Ipv6Prefix::new(node.home_address, 128).expect("128 is a length")
}
