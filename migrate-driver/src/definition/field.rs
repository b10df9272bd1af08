//! What the fields of a definition may hold, as far as several parts of one ask it. Pure.

use std::path::PathBuf;

use super::names::NameError;

/// Most disks of one VM.
pub const MAX_DISKS: usize = 16;

/// What the fields of a definition contradict.
#[derive(Debug, thiserror::Error)]
pub(super) enum FieldError {
    #[error("memory_mib = {0}: use 1 to 16777216")]
    Memory(u32),
    #[error("vcpus = {0}: use 1 to 1024")]
    Vcpus(u32),
    #[error("disks: {0} given, at most {MAX_DISKS} are allowed")]
    TooManyDisks(usize),
    #[error(transparent)]
    DiskName(#[from] NameError),
    #[error("disks: the name {0:?} is used twice")]
    DuplicateDisk(String),
    #[error("disks: disk {0:?} has an empty path")]
    EmptyPath(String),
    #[error("disks: the path {} is used twice", .0.display())]
    DuplicatePath(PathBuf),
    #[error("network.interface = {0:?}: use 1 to 15 characters of a-z, 0-9, _ and -")]
    Interface(String),
    #[error("network.mac = {0:?}: use six bytes as in 52:54:00:12:34:56, the first one even")]
    Mac(String),
    #[error(
        "network.prefix = {0:?}: use an IPv6 prefix of 48 to 128 bits as in 2001:db8:f:1::/64, no bits behind it"
    )]
    Prefix(String),
    #[error(
        "network.ipv4 = {0:?}: use the address of one host with its network's prefix of 8 to 32 bits, as in 198.51.100.10/24"
    )]
    Ipv4(String),
    #[error("qemu.{0} is empty: leave it out for the default")]
    Empty(&'static str),
    #[error("qemu.{0} needs qemu.kernel")]
    NeedsKernel(&'static str),
    #[error("qemu.args: {0:?} is longhaul's own to set; remove it")]
    ReservedArgument(String),
    #[error("xen.{0}: {1:?} is not allowed: give what xl takes, without quotes, backslashes and line ends")]
    Xen(&'static str, String),
    #[error("a text of the definition has a NUL byte")]
    Nul,
}

pub(super) fn no_nul(bytes: &[u8]) -> Result<(), FieldError> {
    if bytes.contains(&0) { Err(FieldError::Nul) } else { Ok(()) }
}

pub(super) fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let octets: Option<Vec<u8>> = text.split(':').map(|octet| u8::from_str_radix(octet, 16).ok()).collect();
    octets?.try_into().ok()
}
