//! Whom this platform trusts: a file of names, addresses and fingerprints. Opens no socket.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, RwLock};

use serde::{Deserialize, Serialize};

use crate::error_kind::{HasKind, Kind};
use crate::files;
use crate::service::identity::Fingerprint;

/// A trusted platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Peer {
    /// `HOST:PORT`; resolved when it is dialled.
    pub address: String,
    /// Its key.
    pub fingerprint: Fingerprint,
}

/// The trusted platforms, by the names they have here. Shared: what is added counts at once.
#[derive(Debug)]
pub(crate) struct Peers {
    path: PathBuf,
    peers: RwLock<BTreeMap<String, Peer>>,
    /// Entries that cannot be read and why, or the whole file under its own name. Nobody of them is trusted.
    damaged: RwLock<BTreeMap<String, String>>,
    /// Held while the file is written. Who only looks does not wait for the disk.
    changing: Mutex<()>,
}

impl Peers {
    /// The peers in `dir/peers.toml`; none when there is no file. An entry that cannot be read is left out.
    pub(crate) fn load(dir: &Path) -> Result<Self, PeersError> {
        let path = dir.join("peers.toml");
        let (peers, damaged) = match files::read_regular(&path) {
            Ok(bytes) => read_entries(&String::from_utf8_lossy(&bytes), &path),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Default::default(),
            Err(error) => {
                (BTreeMap::new(), BTreeMap::from([(path.display().to_string(), error.to_string())]))
            }
        };
        for (entry, why) in &damaged {
            tracing::error!("{}: peer '{entry}' is left out and not trusted: {why}", path.display());
        }
        Ok(Peers {
            path,
            peers: RwLock::new(peers),
            damaged: RwLock::new(damaged),
            changing: Mutex::default(),
        })
    }

    /// What was left out, and why.
    pub(crate) fn damaged(&self) -> BTreeMap<String, String> {
        self.damaged.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Trusts a platform, or changes what is known of it.
    pub(crate) fn add(&self, name: &str, peer: Peer) -> Result<(), PeersError> {
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
    pub(crate) fn remove(&self, name: &str) -> Result<(), PeersError> {
        self.change(|peers| match peers.remove(name) {
            Some(_) => Ok(()),
            None => Err(PeersError::Unknown { name: name.to_owned(), known: names(peers) }),
        })
    }

    /// All of them.
    pub(crate) fn list(&self) -> BTreeMap<String, Peer> {
        self.read().clone()
    }

    /// The one of this name.
    pub(crate) fn get(&self, name: &str) -> Result<Peer, PeersError> {
        let peers = self.read();
        peers
            .get(name)
            .cloned()
            .ok_or_else(|| PeersError::Unknown { name: name.to_owned(), known: names(&peers) })
    }

    /// The name of the peer with this key.
    pub(crate) fn name_of(&self, fingerprint: Fingerprint) -> Option<String> {
        self.read().iter().find(|(_, peer)| peer.fingerprint == fingerprint).map(|(name, _)| name.clone())
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<String, Peer>> {
        self.peers.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn change(
        &self,
        change: impl FnOnce(&mut BTreeMap<String, Peer>) -> Result<(), PeersError>,
    ) -> Result<(), PeersError> {
        let _turn = self.changing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut changed = self.list();
        change(&mut changed)?;
        let text = toml::to_string(&changed).map_err(PeersError::Write)?;
        let io = |source| PeersError::Io { path: self.path.clone(), source };
        if !self.damaged().is_empty() {
            // A person may still find in it what was left out.
            let kept = self.path.with_extension(format!("toml.damaged-{}", crate::service::jobs::unix_ms()));
            std::fs::copy(&self.path, kept).map_err(io)?;
        }
        files::write_atomic(&self.path, text.as_bytes()).map_err(io)?;
        self.damaged.write().unwrap_or_else(std::sync::PoisonError::into_inner).clear();
        *self.peers.write().unwrap_or_else(std::sync::PoisonError::into_inner) = changed;
        Ok(())
    }
}

/// The peers that this text lists, and what of it cannot be read.
pub(crate) fn read_entries(text: &str, path: &Path) -> (BTreeMap<String, Peer>, BTreeMap<String, String>) {
    let (mut peers, mut damaged) = (BTreeMap::new(), BTreeMap::new());
    match text.parse::<toml::Table>() {
        Ok(entries) => {
            for (name, entry) in entries {
                match entry.try_into::<Peer>() {
                    Ok(peer) => drop(peers.insert(name, peer)),
                    Err(error) => drop(damaged.insert(name, error.to_string())),
                }
            }
        }
        Err(error) => drop(damaged.insert(path.display().to_string(), error.to_string())),
    }
    (peers, damaged)
}

fn names(peers: &BTreeMap<String, Peer>) -> String {
    if peers.is_empty() {
        return "none".to_owned();
    }
    peers.keys().cloned().collect::<Vec<_>>().join(", ")
}

/// What can be wrong about a peer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PeersError {
    /// The file is out of reach.
    #[error("the list of peers {path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
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
    SameKey { name: String, other: String },
    /// The list cannot be written as TOML.
    #[error("cannot write the list of peers: {0}")]
    Write(toml::ser::Error),
}

impl HasKind for PeersError {
    fn kind(&self) -> Kind {
        match self {
            PeersError::Unknown { .. } => Kind::NotFound,
            PeersError::Name(_) | PeersError::Address(_) => Kind::Invalid,
            PeersError::SameKey { .. } => Kind::Denied,
            PeersError::Io { source, .. } => Kind::of_io(source),
            PeersError::Write(_) => Kind::Bug,
        }
    }
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

    #[test]
    fn what_cannot_be_read_is_left_out_told_and_kept_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("peers.toml");
        let peer = Peer { address: "127.0.0.1:1".into(), fingerprint: "ab".repeat(32).parse().unwrap() };
        let whole = toml::to_string(&BTreeMap::from([("b", &peer)])).unwrap();
        let half = format!("{whole}\n[c]\naddress = \"127.0.0.1:2\"\n");
        for (text, known) in [(&half[..], 1), ("[b\n", 0), ("", 0)] {
            std::fs::write(&path, text).unwrap();
            let peers = Peers::load(dir.path()).unwrap();
            assert_eq!(
                (peers.list().len(), peers.damaged().len()),
                (known, usize::from(!text.is_empty())),
                "{text}"
            );
        }
        std::fs::write(&path, &half).unwrap();
        let peers = Peers::load(dir.path()).unwrap();
        peers.remove("b").unwrap();
        assert!(peers.damaged().is_empty());
        let aside = std::fs::read_dir(dir.path()).unwrap().flatten().map(|entry| entry.path());
        let aside: Vec<_> = aside.filter(|path| path.to_string_lossy().contains("damaged")).collect();
        assert_eq!(std::fs::read_to_string(&aside[0]).unwrap(), half);
    }

    #[test]
    fn a_pipe_in_place_of_the_list_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("peers.toml");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let peers = Peers::load(dir.path()).unwrap();
        let damaged = peers.damaged().into_values().next().unwrap();
        assert!(peers.list().is_empty() && damaged.contains("named pipe"), "{damaged}");
    }
}
