//! Who this platform is: an Ed25519 key, made once, and the fingerprint by which peers know it. Opens no socket.

use std::fmt;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};

use crate::error_kind::{HasKind, Kind};

/// BLAKE3-256 over the DER of a key's SubjectPublicKeyInfo, written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The fingerprint of a raw public key (RFC 7250), as TLS hands it over.
    pub fn of(public_key: &CertificateDer<'_>) -> Self {
        Fingerprint(*blake3::hash(public_key.as_ref()).as_bytes())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(blake3::Hash::from(self.0).to_hex().as_str())
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

impl From<[u8; 32]> for Fingerprint {
    fn from(bytes: [u8; 32]) -> Fingerprint {
        Fingerprint(bytes)
    }
}

impl From<Fingerprint> for [u8; 32] {
    fn from(fingerprint: Fingerprint) -> [u8; 32] {
        fingerprint.0
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> String {
        fingerprint.to_string()
    }
}

/// A text that is no fingerprint.
#[derive(Debug, thiserror::Error)]
#[error(
    "'{0}' is no key fingerprint: give the 64 hexadecimal digits that `longhaul identity` prints on the peer"
)]
pub struct BadFingerprint(String);

impl HasKind for BadFingerprint {
    fn kind(&self) -> Kind {
        Kind::Invalid
    }
}

impl FromStr for Fingerprint {
    type Err = BadFingerprint;

    fn from_str(text: &str) -> Result<Self, BadFingerprint> {
        blake3::Hash::from_hex(text)
            .map(|hash| Fingerprint(*hash.as_bytes()))
            .map_err(|_| BadFingerprint(text.to_owned()))
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = BadFingerprint;

    fn try_from(text: String) -> Result<Self, BadFingerprint> {
        text.parse()
    }
}

/// This platform's key.
#[derive(Clone)]
pub(crate) struct Identity {
    key: Arc<CertifiedKey>,
    fingerprint: Fingerprint,
}

impl Identity {
    /// The key in `dir/key.pk8`, made when there is none. Two callers at once end with the same key.
    pub(crate) fn load_or_create(dir: &Path) -> Result<Self, IdentityError> {
        let path = dir.join("key.pk8");
        let io = |source| IdentityError::Io { path: path.clone(), source };
        std::fs::create_dir_all(dir).map_err(io)?;
        if !path.exists() {
            let random = ring::rand::SystemRandom::new();
            let key = ring::signature::Ed25519KeyPair::generate_pkcs8(&random)
                .map_err(|_| IdentityError::Key { path: path.clone(), why: "no randomness".to_owned() })?;
            let temporary = dir.join(format!("key.{}", std::process::id()));
            let mut file = std::fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&temporary)
                .map_err(io)?;
            file.write_all(key.as_ref()).and_then(|()| file.sync_all()).map_err(io)?;
            match std::fs::hard_link(&temporary, &path) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(io(error)),
                _ => std::fs::remove_file(&temporary).map_err(io)?,
            }
        }
        Self::from_pkcs8(std::fs::read(&path).map_err(io)?)
            .map_err(|why| IdentityError::Key { path: path.clone(), why })
    }

    fn from_pkcs8(bytes: Vec<u8>) -> Result<Self, String> {
        let key = rustls::crypto::ring::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(bytes))
            .map_err(|error| error.to_string())?;
        let public = key.public_key().ok_or("it has no public half")?;
        let public = CertificateDer::from(public.as_ref().to_vec());
        let fingerprint = Fingerprint::of(&public);
        Ok(Identity { key: Arc::new(CertifiedKey::new(vec![public], key)), fingerprint })
    }

    /// By which peers know it.
    pub(crate) fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// For TLS.
    pub(crate) fn key(&self) -> Arc<CertifiedKey> {
        self.key.clone()
    }
}

/// A key that cannot be read or made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    /// The file is out of reach.
    #[error("the platform's key {path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    /// The file is no key.
    #[error(
        "the platform's key {path} cannot be used ({why}); restore it, or remove it to get a new identity, which every peer must then be told"
    )]
    Key { path: PathBuf, why: String },
}

#[cfg(test)]
mod tests;
