//! What a VM is: name, memory, disks and the few QEMU settings a platform needs to start it.
//!
//! A [`VmDefinition`] that exists is valid: TOML and wire forms pass through the same check. Nothing here touches
//! the file system; whether a disk is there shows when the VM starts.

mod field;
mod foreign;
mod names;
mod xen;

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use field::MAX_DISKS;
use field::{FieldError, no_nul, parse_mac};
pub use foreign::{ANY_ARGUMENT, ForeignError, check_foreign};
pub(crate) use names::check_disk_name;
pub use names::{MAX_DISK_NAME_BYTES, NameError, VmName};
use names::{is_name_byte, shorten};
pub use xen::{DomainType, NicDefinition, XenDefinition};

/// Longest definition accepted, in bytes.
pub const MAX_DEFINITION_BYTES: usize = 256 * 1024;

/// What an image file is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// The disk's bytes as they are; also a block device.
    #[default]
    Raw,
    /// QEMU's own format. It moves, and is a raw image where it arrives; it cannot be replicated.
    Qcow2,
}

impl DiskFormat {
    /// As QEMU, xl and the definition's TOML call it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            DiskFormat::Raw => "raw",
            DiskFormat::Qcow2 => "qcow2",
        }
    }

    fn is_raw(&self) -> bool {
        *self == DiskFormat::Raw
    }
}

/// One disk of a VM: an image or a block device, seen by the guest as a virtio-blk disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskDefinition {
    /// Name of the disk within the VM: starts with a letter, then `[a-z0-9_-]`, 16 bytes at most.
    pub name: String,
    /// The image or block device. Relative paths are the caller's to resolve before a start.
    pub path: PathBuf,
    /// What is in it.
    #[serde(default, skip_serializing_if = "DiskFormat::is_raw")]
    pub format: DiskFormat,
}

/// How a VM is on the network: one interface, and the prefix that is its own wherever it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkDefinition {
    /// The tap interface on the platform, which QEMU makes; the same on every platform.
    pub interface: String,
    /// The guest's link-layer address, as `52:54:00:12:34:56`.
    pub mac: String,
    /// The VM's home network prefix, as `2001:db8:f:1::/64`.
    pub prefix: String,
    /// The VM's IPv4 address with the length of its network's prefix, as `198.51.100.10/24`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<String>,
}

impl NetworkDefinition {
    /// The guest's link-layer address.
    #[must_use]
    pub fn mac(&self) -> [u8; 6] {
        // What exists is valid.
        parse_mac(&self.mac).unwrap_or_default()
    }

    /// The prefix as its lowest address and its length in bits.
    #[must_use]
    pub fn prefix(&self) -> Option<(Ipv6Addr, u8)> {
        let (address, len) = self.prefix.split_once('/')?;
        let (address, len): (Ipv6Addr, u8) = (address.parse().ok()?, len.parse().ok()?);
        let beyond = u128::MAX.checked_shr(u32::from(len)).unwrap_or(0);
        ((48..=128).contains(&len) && u128::from(address) & beyond == 0).then_some((address, len))
    }

    /// The IPv4 address, and the length of its network's prefix in bits.
    #[must_use]
    pub fn ipv4(&self) -> Option<(Ipv4Addr, u8)> {
        // What exists is valid.
        parse_ipv4(self.ipv4.as_deref()?)
    }
}

/// How QEMU treats the host's page cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheMode {
    /// Through the page cache; a guest flush is an `fdatasync`.
    #[default]
    Writeback,
    /// Around the page cache (`O_DIRECT`); a guest flush is an `fdatasync`.
    None,
}

/// The QEMU part of a definition. Every field has a default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QemuDefinition {
    /// The program, found in PATH or by absolute path.
    pub binary: String,
    /// `-machine`.
    pub machine: String,
    /// `-accel`.
    pub accel: String,
    /// `-cpu`.
    pub cpu: String,
    /// `-kernel`; without it the guest boots from its first disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// `-initrd`, only with a kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// `-append`, only with a kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub append: Option<String>,
    /// How the disks are cached.
    pub cache: CacheMode,
    /// Further arguments, passed as they are, behind ours.
    pub args: Vec<String>,
}

impl Default for QemuDefinition {
    fn default() -> QemuDefinition {
        QemuDefinition {
            binary: "qemu-system-x86_64".into(),
            machine: "q35".into(),
            accel: "tcg,thread=multi".into(),
            cpu: "qemu64".into(),
            kernel: None,
            initrd: None,
            append: None,
            cache: CacheMode::default(),
            args: Vec::new(),
        }
    }
}

/// A VM as a platform can start it. Deserialising checks it like [`VmDefinition::parse`] does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawDefinition")]
pub struct VmDefinition {
    /// The VM's name.
    pub name: VmName,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// Number of virtual CPUs.
    pub vcpus: u32,
    /// The disks, in the order the guest sees them.
    pub disks: Vec<DiskDefinition>,
    /// Its network, when it is ours to move.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkDefinition>,
    /// QEMU settings.
    pub qemu: QemuDefinition,
    /// Xen settings; with them it is a Xen domain, and the QEMU settings mean nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub xen: Option<XenDefinition>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDefinition {
    name: VmName,
    memory_mib: u32,
    #[serde(default = "one")]
    vcpus: u32,
    #[serde(default)]
    disks: Vec<DiskDefinition>,
    #[serde(default)]
    network: Option<NetworkDefinition>,
    #[serde(default)]
    qemu: QemuDefinition,
    #[serde(default)]
    xen: Option<XenDefinition>,
}

fn one() -> u32 {
    1
}

/// A definition that could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum DefinitionError {
    /// Not TOML, an unknown or missing field, or a wrong type; the message names line and field.
    #[error("cannot read the VM definition {}: {source}", path.display())]
    Toml {
        /// The file the text came from.
        path: PathBuf,
        /// Where and what.
        source: Box<toml::de::Error>,
    },
    /// The text is larger than any definition.
    #[error("the VM definition {} has {bytes} bytes; at most {MAX_DEFINITION_BYTES} are allowed", path.display())]
    TooLarge {
        /// The file the text came from.
        path: PathBuf,
        /// Its size.
        bytes: usize,
    },
    /// It cannot be written as TOML (a path that is not UTF-8).
    #[error("cannot write the definition of VM {name} as TOML: {source}")]
    Write {
        /// The VM.
        name: VmName,
        /// Why.
        source: Box<toml::ser::Error>,
    },
}

/// Options that would take away what the driver relies on: its monitor, its pid file, when the guest may run.
const RESERVED: [&str; 8] =
    ["incoming", "S", "daemonize", "pidfile", "monitor", "preconfig", "loadvm", "snapshot"];

impl VmDefinition {
    /// Reads a definition from TOML text. `path` is only for the error message.
    pub fn parse(toml: &str, path: &Path) -> Result<VmDefinition, DefinitionError> {
        if toml.len() > MAX_DEFINITION_BYTES {
            return Err(DefinitionError::TooLarge { path: path.into(), bytes: toml.len() });
        }
        toml::from_str(toml)
            .map_err(|source| DefinitionError::Toml { path: path.into(), source: Box::new(source) })
    }

    /// The definition as TOML that [`VmDefinition::parse`] takes again.
    pub fn to_toml(&self) -> Result<String, DefinitionError> {
        toml::to_string(self)
            .map_err(|source| DefinitionError::Write { name: self.name.clone(), source: Box::new(source) })
    }

    /// The files of the host that it boots from: kernel and initial RAM disk.
    pub fn boot_files(&self) -> impl Iterator<Item = &Path> {
        let files = match &self.xen {
            Some(xen) => [&xen.kernel, &xen.ramdisk],
            None => [&self.qemu.kernel, &self.qemu.initrd],
        };
        files.into_iter().flatten().map(PathBuf::as_path)
    }

    /// The disk of that name.
    pub fn disk(&self, name: &str) -> Option<&DiskDefinition> {
        self.disks.iter().find(|disk| disk.name == name)
    }
}

impl TryFrom<RawDefinition> for VmDefinition {
    type Error = String;

    fn try_from(raw: RawDefinition) -> Result<VmDefinition, String> {
        let RawDefinition { name, memory_mib, vcpus, disks, network, qemu, xen } = raw;
        check_size(memory_mib, vcpus)
            .and_then(|()| check_disks(&disks))
            .and_then(|()| network.as_ref().map_or(Ok(()), check_network))
            .and_then(|()| check_qemu(&qemu))
            .and_then(|()| xen.as_ref().map_or(Ok(()), xen::check))
            .map_err(|error| error.to_string())?;
        Ok(VmDefinition { name, memory_mib, vcpus, disks, network, qemu, xen })
    }
}

fn check_size(memory_mib: u32, vcpus: u32) -> Result<(), FieldError> {
    if !(1..=16 << 20).contains(&memory_mib) {
        return Err(FieldError::Memory(memory_mib));
    }
    if !(1..=1024).contains(&vcpus) {
        return Err(FieldError::Vcpus(vcpus));
    }
    Ok(())
}

fn check_disks(disks: &[DiskDefinition]) -> Result<(), FieldError> {
    if disks.len() > MAX_DISKS {
        return Err(FieldError::TooManyDisks(disks.len()));
    }
    let mut names = HashSet::new();
    let mut paths = HashSet::new();
    for disk in disks {
        check_disk_name(&disk.name)?;
        if !names.insert(&disk.name) {
            return Err(FieldError::DuplicateDisk(disk.name.clone()));
        }
        if disk.path.as_os_str().is_empty() {
            return Err(FieldError::EmptyPath(disk.name.clone()));
        }
        if !paths.insert(&disk.path) {
            return Err(FieldError::DuplicatePath(disk.path.clone()));
        }
        no_nul(disk.path.as_os_str().as_encoded_bytes())?;
    }
    Ok(())
}

/// A tap interface's name becomes a part of QEMU's arguments and of the kernel's rules.
fn check_network(network: &NetworkDefinition) -> Result<(), FieldError> {
    let NetworkDefinition { interface, mac, .. } = network;
    if !(1..=15).contains(&interface.len()) || !interface.bytes().all(is_name_byte) {
        return Err(FieldError::Interface(shorten(interface)));
    }
    // The first byte's lowest bit is set in addresses of groups.
    if mac.len() != 17 || parse_mac(mac).is_none_or(|octets| octets[0] % 2 == 1) {
        return Err(FieldError::Mac(shorten(mac)));
    }
    network.prefix().ok_or_else(|| FieldError::Prefix(shorten(&network.prefix)))?;
    match &network.ipv4 {
        Some(text) if parse_ipv4(text).is_none() => Err(FieldError::Ipv4(shorten(text))),
        _ => Ok(()),
    }
}

/// A host's address: neither its network's own nor that for all in it.
fn parse_ipv4(text: &str) -> Option<(Ipv4Addr, u8)> {
    let (address, len) = text.split_once('/')?;
    let (address, len): (Ipv4Addr, u8) = (address.parse().ok()?, len.parse().ok()?);
    let host_bits = u32::MAX.checked_shr(len.into()).unwrap_or(0);
    let host = u32::from(address) & host_bits;
    let is_host = len > 30 || (host != 0 && host != host_bits);
    let is_special =
        address.is_loopback() || address.is_multicast() || !(1..240).contains(&address.octets()[0]);
    ((8..=32).contains(&len) && is_host && !is_special).then_some((address, len))
}

fn check_qemu(qemu: &QemuDefinition) -> Result<(), FieldError> {
    for (field, value) in
        [("binary", &qemu.binary), ("machine", &qemu.machine), ("accel", &qemu.accel), ("cpu", &qemu.cpu)]
    {
        if value.is_empty() {
            return Err(FieldError::Empty(field));
        }
        no_nul(value.as_bytes())?;
    }
    if qemu.kernel.is_none() {
        if qemu.initrd.is_some() {
            return Err(FieldError::NeedsKernel("initrd"));
        }
        if qemu.append.is_some() {
            return Err(FieldError::NeedsKernel("append"));
        }
    }
    for path in [&qemu.kernel, &qemu.initrd].into_iter().flatten() {
        no_nul(path.as_os_str().as_encoded_bytes())?;
    }
    no_nul(qemu.append.as_deref().unwrap_or("").as_bytes())?;
    for arg in &qemu.args {
        no_nul(arg.as_bytes())?;
        // QEMU takes one dash or two.
        let option = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-'));
        if option.is_some_and(|option| RESERVED.contains(&option)) {
            return Err(FieldError::ReservedArgument(arg.clone()));
        }
    }
    Ok(())
}
