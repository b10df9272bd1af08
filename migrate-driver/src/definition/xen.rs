//! The Xen part of a definition: what `xl create` is told besides name, memory, CPUs and disks.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::field::{FieldError, no_nul, parse_mac};
use super::names::shorten;

/// How a domain is virtualised.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DomainType {
    /// Hardware virtualisation without an emulated machine.
    #[default]
    Pvh,
    /// Hardware virtualisation with an emulated machine.
    Hvm,
    /// Paravirtualisation.
    Pv,
}

/// The Xen part of a definition. A definition that has it is a Xen domain's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct XenDefinition {
    /// xl's `type`.
    #[serde(rename = "type")]
    pub kind: DomainType,
    /// xl's `kernel`: a file of the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// xl's `ramdisk`, only with a kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ramdisk: Option<PathBuf>,
    /// xl's `extra`: the kernel's command line, only with a kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extra: Option<String>,
    /// The network interfaces.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nics: Vec<NicDefinition>,
}

/// A network interface of a domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicDefinition {
    /// The guest's link-layer address, as `00:16:3e:12:34:56`.
    pub mac: String,
    /// The bridge of the host that it is on; a destination may have another for it, see `bridges` in longhaul.toml.
    pub bridge: String,
}

/// Everything here becomes a part of a file in which quotes and line ends mean something.
fn plain(what: &'static str, text: &str) -> Result<(), FieldError> {
    no_nul(text.as_bytes())?;
    if text.is_empty() || text.contains(['"', '\\', '\n', '\r']) {
        return Err(FieldError::Xen(what, shorten(text)));
    }
    Ok(())
}

pub(super) fn check(xen: &XenDefinition) -> Result<(), FieldError> {
    for (what, path) in [("kernel", &xen.kernel), ("ramdisk", &xen.ramdisk)] {
        if let Some(path) = path {
            plain(what, path.to_str().ok_or_else(|| FieldError::Xen(what, "not UTF-8".into()))?)?;
        }
    }
    if xen.kernel.is_none() && (xen.ramdisk.is_some() || xen.extra.is_some()) {
        return Err(FieldError::Xen("ramdisk or extra", "without a kernel".into()));
    }
    xen.extra.as_deref().map_or(Ok(()), |extra| plain("extra", extra))?;
    for nic in &xen.nics {
        if nic.mac.len() != 17 || parse_mac(&nic.mac).is_none_or(|octets| octets[0] % 2 == 1) {
            return Err(FieldError::Xen("nics.mac", shorten(&nic.mac)));
        }
        let name = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
        if !(1..=15).contains(&nic.bridge.len()) || !nic.bridge.bytes().all(name) {
            return Err(FieldError::Xen("nics.bridge", shorten(&nic.bridge)));
        }
    }
    Ok(())
}
