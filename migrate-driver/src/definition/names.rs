//! The names of VMs and disks: whichever exists is safe as a file name and a process argument. Pure.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest disk name: QEMU bounds node names at 31 bytes and ours carry a prefix and a suffix.
pub const MAX_DISK_NAME_BYTES: usize = 16;
/// A VM's name: 1 to 64 of `[a-z0-9_-]`, not starting with `-`. Safe as a file name and a process argument.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VmName(String);

/// A name that is not allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {given:?} is not allowed: use {rule}")]
pub struct NameError {
    what: &'static str,
    given: String,
    rule: &'static str,
}

impl VmName {
    /// Checks and takes a name.
    pub fn new(name: impl Into<String>) -> Result<VmName, NameError> {
        let name = name.into();
        let ok = (1..=64).contains(&name.len()) && !name.starts_with('-') && name.bytes().all(is_name_byte);
        if ok {
            Ok(VmName(name))
        } else {
            Err(NameError {
                what: "the VM name",
                given: shorten(&name),
                rule: "1 to 64 characters of a-z, 0-9, _ and -, not starting with -",
            })
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for VmName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl FromStr for VmName {
    type Err = NameError;
    fn from_str(s: &str) -> Result<VmName, NameError> {
        VmName::new(s)
    }
}

impl TryFrom<String> for VmName {
    type Error = NameError;
    fn try_from(s: String) -> Result<VmName, NameError> {
        VmName::new(s)
    }
}

impl From<VmName> for String {
    fn from(name: VmName) -> String {
        name.0
    }
}

/// A disk's name becomes part of QEMU node and device names. `longhaul-` is the prefix of the nodes we remove.
pub(crate) fn check_disk_name(name: &str) -> Result<(), NameError> {
    let ok = (1..=MAX_DISK_NAME_BYTES).contains(&name.len())
        && name.as_bytes()[0].is_ascii_lowercase()
        && name.bytes().all(is_name_byte)
        && !name.starts_with("longhaul")
        && !name.ends_with("-file")
        && !name.ends_with("-dev");
    if ok {
        return Ok(());
    }
    Err(NameError {
        what: "the disk name",
        given: shorten(name),
        rule: "1 to 16 characters of a-z, 0-9, _ and -, the first a letter, not starting with longhaul, \
               not ending in -file or -dev",
    })
}

pub(super) fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_' || byte == b'-'
}

pub(super) fn shorten(text: &str) -> String {
    text.chars().take(80).collect()
}
