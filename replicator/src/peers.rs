//! Whom this platform trusts: a file of names, addresses and fingerprints. Opens no socket.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::RwLock;

use serde::{Deserialize, Serialize};

use crate::files;
use crate::identity::Fingerprint;

/// A trusted platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// `HOST:PORT`; resolved when it is dialled.
    pub address: String,
    /// Its key.
    pub fingerprint: Fingerprint,
}

/// The trusted platforms, by the names they have here. Shared: what is added counts at once.
#[derive(Debug)]
pub struct Peers {
    path: PathBuf,
    peers: RwLock<BTreeMap<String, Peer>>,
}

impl Peers {
    /// The peers in `dir/peers.toml`; none when there is no file.
    pub fn load(dir: &Path) -> Result<Self, PeersError> {
        let path = dir.join("peers.toml");
        let peers = match std::fs::read_to_string(&path) {
            Ok(text) => parse(&text, &path)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(source) => return Err(PeersError::Io { path, source }),
        };
        Ok(Peers { path, peers: RwLock::new(peers) })
    }

    /// Trusts a platform, or changes what is known of it.
    pub fn add(&self, name: &str, peer: Peer) -> Result<(), PeersError> {
        files::check_name("peer", name).map_err(PeersError::Name)?;
        if peer.address.rsplit_once(':').is_none_or(|(_, port)| port.parse::<u16>().is_err()) {
            return Err(PeersError::Address(peer.address));
        }
        self.change(|peers| {
            if let Some((other, _)) =
                peers.iter().find(|(n, p)| *n != name && p.fingerprint == peer.fingerprint)
            {
                return Err(PeersError::SameKey { name: name.to_owned(), other: other.clone() });
            }
            peers.insert(name.to_owned(), peer);
            Ok(())
        })
    }

    /// Trusts it no longer.
    pub fn remove(&self, name: &str) -> Result<(), PeersError> {
        self.change(|peers| match peers.remove(name) {
            Some(_) => Ok(()),
            None => Err(PeersError::Unknown { name: name.to_owned(), known: names(peers) }),
        })
    }

    /// All of them.
    pub fn list(&self) -> BTreeMap<String, Peer> {
        self.read().clone()
    }

    /// The one of this name.
    pub fn get(&self, name: &str) -> Result<Peer, PeersError> {
        let peers = self.read();
        peers
            .get(name)
            .cloned()
            .ok_or_else(|| PeersError::Unknown { name: name.to_owned(), known: names(&peers) })
    }

    /// The name of the peer with this key.
    pub fn name_of(&self, fingerprint: Fingerprint) -> Option<String> {
        self.read().iter().find(|(_, peer)| peer.fingerprint == fingerprint).map(|(name, _)| name.clone())
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<String, Peer>> {
        self.peers.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn change(
        &self,
        change: impl FnOnce(&mut BTreeMap<String, Peer>) -> Result<(), PeersError>,
    ) -> Result<(), PeersError> {
        let mut peers = self.peers.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut changed = peers.clone();
        change(&mut changed)?;
        let text = toml::to_string(&changed).map_err(|error| PeersError::Name(error.to_string()))?;
        files::write_atomic(&self.path, text.as_bytes())
            .map_err(|source| PeersError::Io { path: self.path.clone(), source })?;
        *peers = changed;
        Ok(())
    }
}

/// The peers that this text lists; `path` is only for the error message.
pub(crate) fn parse(text: &str, path: &Path) -> Result<BTreeMap<String, Peer>, PeersError> {
    toml::from_str(text)
        .map_err(|source| PeersError::Parse { path: path.to_owned(), source: Box::new(source) })
}

fn names(peers: &BTreeMap<String, Peer>) -> String {
    if peers.is_empty() {
        return "none".to_owned();
    }
    peers.keys().cloned().collect::<Vec<_>>().join(", ")
}

/// What can be wrong about a peer.
#[derive(Debug, thiserror::Error)]
pub enum PeersError {
    /// The file is out of reach.
    #[error("the list of peers {path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no list of peers.
    #[error("the list of peers {path}: {source}")]
    Parse {
        /// Which.
        path: PathBuf,
        /// Why.
        source: Box<toml::de::Error>,
    },
    /// A name that cannot be one.
    #[error("{0}")]
    Name(String),
    /// Not `HOST:PORT`.
    #[error("'{0}' is no address: give HOST:PORT, for example 192.0.2.7:4433 or [2001:db8::7]:4433")]
    Address(String),
    /// Nobody of that name.
    #[error(
        "there is no peer '{name}' (known: {known}); add it with `longhaul peer add {name} ADDRESS FINGERPRINT`"
    )]
    Unknown {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// Two names for one key would make it unclear who speaks.
    #[error("peer '{other}' has the same key as '{name}' would have; remove it first")]
    SameKey {
        /// The new name.
        name: String,
        /// The old one.
        other: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_survive_a_restart_and_errors_change_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let peers = Peers::load(dir.path()).unwrap();
        let peer = Peer { address: "127.0.0.1:1".into(), fingerprint: "ab".repeat(32).parse().unwrap() };
        peers.add("b", peer.clone()).unwrap();
        assert!(matches!(peers.add("c", peer.clone()), Err(PeersError::SameKey { .. })));
        assert!(matches!(peers.add("../c", peer.clone()), Err(PeersError::Name(_))));
        let nowhere = Peer { address: "nowhere".into(), ..peer.clone() };
        assert!(matches!(peers.add("d", nowhere), Err(PeersError::Address(_))));
        let again = Peers::load(dir.path()).unwrap();
        assert_eq!(again.list(), BTreeMap::from([("b".to_owned(), peer.clone())]));
        assert_eq!(again.name_of(peer.fingerprint).as_deref(), Some("b"));
        let message = again.get("x").unwrap_err().to_string();
        assert!(message.contains("known: b") && message.contains("peer add x"), "{message}");
    }
}
