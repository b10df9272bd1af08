//! Whose replicas a directory holds. The peer is known by its key: it may get another name here, and another platform its
//! old one.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::files;
use crate::service::identity::Fingerprint;

const FILE: &str = "owner";
const MAX_BYTES: u64 = 4096;

/// The platform that a pass comes from.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// Its name here.
    pub name: String,
    /// Its key.
    pub fingerprint: Fingerprint,
}

/// What `owner` in the directory of a VM says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Owner {
    /// The VM's name there.
    pub(super) vm: String,
    /// The peer's name here, when the directory was made. For people: the key decides.
    pub(super) peer: String,
    pub(super) fingerprint: Fingerprint,
}

impl Owner {
    pub(super) fn new(vm: &str, source: &Source) -> Owner {
        Owner { vm: vm.to_owned(), peer: source.name.clone(), fingerprint: source.fingerprint }
    }

    /// `None` when the directory has none.
    pub(super) fn load(dir: &Path) -> io::Result<Option<Owner>> {
        let path = dir.join(FILE);
        let bytes = match std::fs::metadata(&path) {
            Ok(found) if found.is_file() && found.len() <= MAX_BYTES => std::fs::read(&path)?,
            Ok(_) => return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not such a file")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        serde_json::from_slice(&bytes).map(Some).map_err(io::Error::from)
    }

    pub(super) fn save(&self, dir: &Path) -> io::Result<()> {
        files::write_atomic(dir.join(FILE), serde_json::to_string(self)?.as_bytes())
    }
}
