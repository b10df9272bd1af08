//! An incoming domain's configuration, built anew from the fields that another host may decide. Everything else is refused by
//! its name, as long as it holds anything: files, programs, devices and other domains are this host's.

use std::path::Path;

use serde_json::{Map, Value};

use super::{Rules, VIF_BRIDGE};

/// Longest text and longest list taken.
const MAX_TEXT_BYTES: usize = 4096;
const MAX_ITEMS: usize = 1024;

/// What a part may hold: numbers, switches, texts and lists of them under these names.
struct Part {
    name: &'static str,
    plain: &'static [&'static str],
    parts: &'static [Part],
    /// Only for the host that it comes from: left out.
    dropped: &'static [&'static str],
}

const fn part(name: &'static str, plain: &'static [&'static str]) -> Part {
    Part { name, plain, parts: &[], dropped: &[] }
}

/// `libxl_domain_config` of libxl_types.idl, without disks and interfaces.
const DOMAIN: Part = Part {
    name: "",
    plain: &["on_poweroff", "on_reboot", "on_watchdog", "on_crash", "on_soft_reset"],
    parts: &[
        Part {
            name: "c_info",
            plain: &["type", "hap", "oos", "uuid", "run_hotplug_scripts"],
            parts: &[],
            dropped: &["passthrough"],
        },
        Part {
            name: "b_info",
            plain: &[
                "max_vcpus",
                "avail_vcpus",
                "tsc_mode",
                "max_memkb",
                "target_memkb",
                "video_memkb",
                "shadow_memkb",
                "iommu_memkb",
                "rtc_timeoffset",
                "localtime",
                "disable_migrate",
                "blkdev_start",
                "max_grant_frames",
                "max_maptrack_frames",
                "max_grant_version",
                "device_model_version",
                "claim_mode",
                "event_channels",
                "cmdline",
                "acpi",
                "timer_mode",
                "nested_hvm",
                "apic",
                "dm_restrict",
                "altp2m",
            ],
            parts: &[
                part("sched_params", &["sched", "weight", "cap", "period", "budget", "extratime"]),
                part("arch_x86", &["msr_relaxed"]),
                part("arch_arm", &["gic_version", "vuart"]),
                part("type.pvh", &["pvshim"]),
                part("type.pv", &["slack_memkb", "e820_host"]),
                Part {
                    name: "type.hvm",
                    plain: &[
                        "bios",
                        "pae",
                        "apic",
                        "acpi",
                        "acpi_s3",
                        "acpi_s4",
                        "acpi_laptop_slate",
                        "nx",
                        "viridian",
                        "viridian_enable",
                        "viridian_disable",
                        "timeoffset",
                        "hpet",
                        "vpt_align",
                        "mmio_hole_memkb",
                        "timer_mode",
                        "nested_hvm",
                        "altp2m",
                        "boot",
                        "usb",
                        "usbversion",
                        "xen_platform_pci",
                        "vkb_device",
                        "vendor_device",
                        "ms_vm_genid",
                        "mca_caps",
                        "hdtype",
                        "rdm_mem_boundary_memkb",
                    ],
                    parts: &[part("vga", &["kind"])],
                    // Its consoles are offered at addresses of the host that it comes from.
                    dropped: &["vnc", "sdl", "spice", "keymap", "rdm"],
                },
            ],
            // Processors and nodes of the host that it comes from; the kernel is the definition's.
            dropped: &[
                "kernel",
                "ramdisk",
                "cpumap",
                "nodemap",
                "vcpu_hard_affinity",
                "vcpu_soft_affinity",
                "numa_placement",
            ],
        },
    ],
    dropped: &["disks", "nics"],
};
const DISK: Part = part(
    "disks",
    &["vdev", "readwrite", "removable", "is_cdrom", "direct_io_safe", "discard_enable", "trusted"],
);
const NIC: Part = part(
    "nics",
    &["devid", "mac", "mtu", "model", "nictype", "rate_bytes_per_interval", "rate_interval_usecs", "trusted"],
);

impl Part {
    /// The fields that may be taken; an error names one that may not and is not empty.
    fn take(&self, object: &Map<String, Value>, also_known: &[&str]) -> Result<Map<String, Value>, String> {
        let mut taken = Map::new();
        for (name, value) in object.iter().filter(|(name, _)| !also_known.contains(&name.as_str())) {
            if self.plain.contains(&name.as_str()) && is_plain(value) {
                taken.insert(name.clone(), value.clone());
            } else if let (Some(part), Some(inner)) =
                (self.parts.iter().find(|part| part.name == name), value.as_object())
            {
                taken.insert(name.clone(), part.take(inner, &[])?.into());
            } else if !self.dropped.contains(&name.as_str()) && is_something(value) {
                let within =
                    if self.name.is_empty() { String::new() } else { format!(" in {:?}", self.name) };
                return Err(format!("it has {name:?}{within}, which another host may not decide here"));
            }
        }
        Ok(taken)
    }
}

fn is_plain(value: &Value) -> bool {
    match value {
        Value::Bool(_) | Value::Number(_) => true,
        Value::String(text) => text.len() <= MAX_TEXT_BYTES && !text.contains(char::is_control),
        Value::Array(items) => {
            items.len() <= MAX_ITEMS && items.iter().all(|item| !item.is_array() && is_plain(item))
        }
        _ => false,
    }
}

/// Whether a field says anything but what it would say if it were not there.
fn is_something(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty() && text != "False",
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => fields.values().any(is_something),
        Value::Bool(true) => true,
    }
}

fn object<'a>(value: &'a Value, what: &str) -> Result<&'a Map<String, Value>, String> {
    value.as_object().ok_or_else(|| format!("{what} is {value}"))
}

fn text<'a>(object: &'a Map<String, Value>, name: &str) -> &'a str {
    object.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn path(path: &Path) -> Result<Value, String> {
    Ok(path.to_str().ok_or("a path here is not UTF-8")?.into())
}

impl Rules {
    /// The configuration as it is to be on this host, or why it cannot be taken.
    pub(crate) fn adapt(&self, text: &str) -> Result<String, String> {
        let sent: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let sent = object(&sent, "it")?;
        // The name is the VM's own here.
        let mut sent = sent.clone();
        if let Some(create) = sent.get_mut("c_info").and_then(Value::as_object_mut)
            && create.remove("name").is_some_and(|name| name != self.name.as_str())
        {
            return Err(format!("it has another name than {:?}", self.name));
        }
        let mut taken = DOMAIN.take(&sent, &[])?;
        self.complete(&mut taken)?;
        let items =
            |name: &str| sent.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let disks = items("disks");
        if disks.len() != self.disks.len() {
            return Err(format!("it has not the {} disks of the definition", self.disks.len()));
        }
        let disks: Result<Vec<Value>, String> = disks.iter().map(|disk| self.disk(disk)).collect();
        let nics: Result<Vec<Value>, String> = items("nics").iter().map(|nic| self.nic(nic)).collect();
        taken.insert("disks".into(), disks?.into());
        taken.insert("nics".into(), nics?.into());
        Ok(Value::Object(taken).to_string())
    }

    /// What the definition says, in place of what was sent.
    fn complete(&self, taken: &mut Map<String, Value>) -> Result<(), String> {
        if let Some(create) = taken.get_mut("c_info").and_then(Value::as_object_mut) {
            create.insert("name".into(), self.name.clone().into());
        }
        if let Some(build) = taken.get_mut("b_info").and_then(Value::as_object_mut) {
            for (key, file) in [("kernel", &self.kernel), ("ramdisk", &self.ramdisk)] {
                if let Some(file) = file {
                    build.insert(key.into(), path(file)?);
                }
            }
        }
        Ok(())
    }

    fn disk(&self, sent: &Value) -> Result<Value, String> {
        let sent = object(sent, "a disk")?;
        let vdev = text(sent, "vdev");
        let image =
            self.disks.get(vdev).ok_or_else(|| format!("it has a disk {vdev:?} that was not announced"))?;
        let mut taken = DISK.take(sent, &["pdev_path", "backend", "format", "specification", "transport"])?;
        taken.insert("pdev_path".into(), path(image)?);
        taken.insert("backend".into(), "qdisk".into());
        // The images that come here are raw, whatever the source's are.
        taken.insert("format".into(), "raw".into());
        Ok(taken.into())
    }

    fn nic(&self, sent: &Value) -> Result<Value, String> {
        let sent = object(sent, "a network interface")?;
        let script = text(sent, "script");
        // Ours has the same name, wherever the other host keeps it.
        if !script.is_empty() && Path::new(script).file_name() != Some(VIF_BRIDGE.as_ref()) {
            return Err(format!(
                "a network interface wants the script {script:?}; only a vif-bridge is run here"
            ));
        }
        let mut taken = NIC.take(sent, &["bridge", "script"])?;
        taken.insert("bridge".into(), self.bridge(text(sent, "bridge")).into());
        taken.insert("script".into(), path(&self.script)?);
        Ok(taken.into())
    }
}
