//! A domain's configuration: the file that `xl create` takes, the JSON that xl keeps and sends, and how that is adapted
//! to the host it comes to. Pure.
//!
//! What comes from another host names files and programs of this one: see [`incoming`].

mod incoming;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::definition::{
    DiskDefinition, DiskFormat, DomainType, NicDefinition, VmDefinition, VmName, XenDefinition,
};

/// The name of Xen's script that connects an interface to a bridge, and of our short form of it.
pub(crate) const VIF_BRIDGE: &str = "vif-bridge";

/// How an incoming domain's configuration is adapted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rules {
    /// The VM's name.
    pub(crate) name: String,
    /// The kernel of its definition here.
    #[serde(default)]
    pub(crate) kernel: Option<PathBuf>,
    /// And its initial RAM disk.
    #[serde(default)]
    pub(crate) ramdisk: Option<PathBuf>,
    /// Each disk's image here, by the name of the guest's device.
    pub(crate) disks: BTreeMap<String, PathBuf>,
    /// Bridges of other hosts, and which of ours stands for them.
    pub(crate) bridges: BTreeMap<String, String>,
    /// What connects an interface to its bridge here, in place of another host's vif-bridge.
    pub(crate) script: PathBuf,
}

impl Rules {
    /// For a domain whose definition is already the one of this host.
    pub(crate) fn of(def: &VmDefinition, bridges: &BTreeMap<String, String>, script: PathBuf) -> Rules {
        let disks = def.disks.iter().map(|disk| (disk.name.clone(), disk.path.clone()));
        let boot =
            |file: fn(&XenDefinition) -> &Option<PathBuf>| def.xen.as_ref().and_then(|xen| file(xen).clone());
        Rules {
            name: def.name.to_string(),
            kernel: boot(|xen| &xen.kernel),
            ramdisk: boot(|xen| &xen.ramdisk),
            disks: disks.collect(),
            bridges: bridges.clone(),
            script,
        }
    }

    /// The bridge here that stands for another host's.
    pub(crate) fn bridge<'a>(&'a self, theirs: &'a str) -> &'a str {
        self.bridges.get(theirs).map_or(theirs, String::as_str)
    }
}

/// The file that `xl create` takes.
pub(crate) fn for_create(def: &VmDefinition, xen: &XenDefinition, rules: &Rules) -> Result<String, String> {
    let quoted = |path: &PathBuf| match path.to_str() {
        Some(path) if !path.contains(['"', '\\', '\n']) => Ok(path.to_owned()),
        _ => Err(format!("the path {} has characters that xl's configuration cannot hold", path.display())),
    };
    let kind = match xen.kind {
        DomainType::Pvh => "pvh",
        DomainType::Hvm => "hvm",
        DomainType::Pv => "pv",
    };
    let mut lines = vec![
        format!("name = \"{}\"", def.name),
        format!("type = \"{kind}\""),
        format!("memory = {}", def.memory_mib),
        format!("vcpus = {}", def.vcpus),
    ];
    for (key, path) in [("kernel", &xen.kernel), ("ramdisk", &xen.ramdisk)] {
        if let Some(path) = path {
            lines.push(format!("{key} = \"{}\"", quoted(path)?));
        }
    }
    lines.extend(xen.extra.iter().map(|extra| format!("extra = \"{extra}\"")));
    let mut disks = Vec::new();
    for DiskDefinition { name, path, format } in &def.disks {
        let (format, path) = (format.as_str(), quoted(path)?);
        disks.push(format!("\"format={format},vdev={name},access=rw,backendtype=qdisk,target={path}\""));
    }
    lines.push(format!("disk = [ {} ]", disks.join(", ")));
    let script = quoted(&rules.script)?;
    let nics = xen
        .nics
        .iter()
        .map(|nic| format!("\"mac={},bridge={},script={script}\"", nic.mac, rules.bridge(&nic.bridge)));
    lines.push(format!("vif = [ {} ]\n", nics.collect::<Vec<_>>().join(", ")));
    Ok(lines.join("\n"))
}

/// What `xl list -l NAME` tells of a running domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) definition: VmDefinition,
    /// Why it cannot move, if so.
    pub(crate) obstacle: Option<String>,
}

impl Found {
    pub(crate) fn is_pv(&self) -> bool {
        self.definition.xen.as_ref().is_some_and(|xen| xen.kind == DomainType::Pv)
    }
}

/// Reads a domain out of `xl list -l`.
pub(crate) fn found(vm: &VmName, text: &str) -> Result<Found, String> {
    let list: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let domain = if list.is_array() { &list[0] } else { &list };
    let configuration = &domain["config"];
    let (create, build) = (&configuration["c_info"], &configuration["b_info"]);
    let mut obstacle = None;
    let kind = match create["type"].as_str() {
        Some("pvh") => DomainType::Pvh,
        Some("hvm") => DomainType::Hvm,
        Some("pv") => DomainType::Pv,
        other => return Err(format!("its type is {other:?}")),
    };
    let mut disks = Vec::new();
    for disk in configuration["disks"].as_array().into_iter().flatten() {
        let name = disk["vdev"].as_str().ok_or("a disk has no vdev")?;
        let path = disk["pdev_path"].as_str().ok_or("a disk has no path")?;
        let format = match disk["format"].as_str() {
            Some("qcow2") => DiskFormat::Qcow2,
            _ => DiskFormat::Raw,
        };
        obstacle = obstacle.or_else(|| disk_obstacle(name, disk));
        disks.push(DiskDefinition { name: name.to_owned(), path: path.into(), format });
    }
    let mut nics = Vec::new();
    for nic in configuration["nics"].as_array().into_iter().flatten() {
        let text = |key: &str| nic[key].as_str().unwrap_or_default().to_owned();
        nics.push(NicDefinition { mac: text("mac"), bridge: text("bridge") });
    }
    let text = |key: &str| build[key].as_str().map(str::to_owned);
    let xen = XenDefinition {
        kind,
        kernel: text("kernel").map(PathBuf::from),
        ramdisk: text("ramdisk").map(PathBuf::from),
        extra: text("cmdline"),
        nics,
    };
    let definition = serde_json::json!({
        "name": vm,
        "memory_mib": build["max_memkb"].as_u64().unwrap_or(0) / 1024,
        "vcpus": build["max_vcpus"].as_u64().unwrap_or(1),
        "disks": disks,
        "xen": xen,
    });
    let definition = serde_json::from_value(definition).map_err(|error| error.to_string())?;
    Ok(Found { definition, obstacle })
}

/// Why a disk's writes cannot be followed.
fn disk_obstacle(name: &str, disk: &Value) -> Option<String> {
    match disk["backend"].as_str() {
        Some("qdisk") => {}
        other => {
            return Some(format!(
                "its disk {name} is served by {}, whose writes nobody can follow; start it with \
                 backendtype=qdisk in the disk's line",
                other.unwrap_or("an unknown back end")
            ));
        }
    }
    match disk["format"].as_str() {
        Some("raw" | "qcow2") => None,
        other => Some(format!(
            "its disk {name} has the format {}; only raw and qcow2 images and block devices can be moved",
            other.unwrap_or("unknown")
        )),
    }
}
