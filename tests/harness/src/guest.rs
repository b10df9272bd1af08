//! A test guest as data: what it runs on and what it does, as a VM definition for the product and as arguments for a
//! plain QEMU. Starts nothing.

use std::path::{Path, PathBuf};

use ::guest::Workload;
use anyhow::Result;
use toml::{Table, Value};

use crate::{Lab, files};

/// The name of the guest's only disk in its definition.
pub const DISK: &str = "root";

/// Emulation only: no ordinary kernel survives under these machines' /dev/kvm.
const ACCEL: &str = "tcg,thread=multi";
const CPU: &str = "qemu64";
const MACHINE: &str = "q35";
const KERNEL_WORDS: &str = "console=ttyS0 quiet panic=-1 mitigations=off";

/// A guest that runs the lab's workload.
#[derive(Debug, Clone)]
pub struct Guest {
    /// The VM's name.
    pub name: String,
    /// Its memory. 72 MiB is the least the kernel starts in.
    pub memory_mib: u32,
    /// The image it runs on.
    pub disk: PathBuf,
    /// What is in it.
    pub disk_format: &'static str,
    /// What it does.
    pub workload: Workload,
    /// The network that moves with it, in place of QEMU's own: its tap interface, link-layer address and prefix.
    pub home: Option<[String; 3]>,
    /// Its IPv4 address there, with the length of its network's prefix.
    pub home_ipv4: Option<String>,
    kernel: PathBuf,
    initrd: PathBuf,
}

impl Guest {
    /// A guest of 96 MiB on `disk`, whose probe packets go to `port` on the host's loopback.
    #[must_use]
    pub fn new(lab: &Lab, name: &str, disk: &Path, port: u16) -> Self {
        Self {
            name: name.to_owned(),
            memory_mib: 96,
            disk: disk.to_path_buf(),
            disk_format: "raw",
            workload: Workload { port, ..Workload::default() },
            home: None,
            home_ipv4: None,
            kernel: lab.kernel().to_path_buf(),
            initrd: lab.initrd().to_path_buf(),
        }
    }

    /// Writes the definition that `longhaul vm define` takes.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn boot_spec(&self, file: &Path) -> Result<()> {
        files::write(file, self.definition())
    }

    /// The VM definition as TOML.
    #[must_use]
    pub fn definition(&self) -> String {
        let text = |s: &str| Value::String(s.to_owned());
        let path = |p: &Path| Value::String(p.display().to_string());
        let disk = [("name", text(DISK)), ("path", path(&self.disk)), ("format", text(self.disk_format))];
        let disk = Table::from_iter(disk.map(|(key, value)| (key.to_owned(), value)));
        let mut qemu = Table::from_iter([
            ("machine".into(), text(MACHINE)),
            ("accel".into(), text(ACCEL)),
            ("cpu".into(), text(CPU)),
            ("kernel".into(), path(&self.kernel)),
            ("initrd".into(), path(&self.initrd)),
            ("append".into(), text(&self.append())),
        ]);
        let mut table = Table::from_iter([
            ("name".into(), text(&self.name)),
            ("memory_mib".into(), Value::Integer(i64::from(self.memory_mib))),
            ("vcpus".into(), Value::Integer(1)),
            ("disks".into(), Value::Array(vec![Value::Table(disk)])),
        ]);
        match &self.home {
            Some([interface, mac, prefix]) => {
                let network = [("interface", interface), ("mac", mac), ("prefix", prefix)];
                let ipv4 = self.home_ipv4.as_ref().map(|ipv4| ("ipv4", ipv4));
                let network =
                    network.into_iter().chain(ipv4).map(|(key, value)| (key.to_owned(), text(value)));
                table.insert("network".into(), Value::Table(network.collect()));
            }
            None => {
                let args = NETWORK.iter().flatten().map(|argument| text(argument)).collect();
                qemu.insert("args".into(), Value::Array(args));
            }
        }
        table.insert("qemu".into(), Value::Table(qemu));
        table.to_string()
    }

    /// The arguments of a plain QEMU that runs this guest with its serial console on standard output.
    #[must_use]
    pub fn qemu_arguments(&self) -> Vec<String> {
        let memory = self.memory_mib.to_string();
        let append = self.append();
        let kernel = self.kernel.display().to_string();
        let initrd = self.initrd.display().to_string();
        let disk = format!(
            "driver={},node-name={DISK},file.driver=file,file.filename={}",
            self.disk_format,
            self.disk.display()
        );
        let device = format!("virtio-blk-pci,drive={DISK}");
        let mut arguments = vec![
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-display",
            "none",
            "-serial",
            "stdio",
            "-machine",
            MACHINE,
            "-accel",
            ACCEL,
            "-cpu",
            CPU,
            "-m",
            &memory,
            "-kernel",
            &kernel,
            "-initrd",
            &initrd,
            "-append",
            &append,
            "-blockdev",
            &disk,
            "-device",
            &device,
        ];
        arguments.extend(NETWORK.iter().flatten());
        arguments.into_iter().map(str::to_owned).collect()
    }

    fn append(&self) -> String {
        format!("{KERNEL_WORDS} {}", self.workload.to_cmdline())
    }
}

/// What a guest without a network of its own has QEMU do: each an option and its value.
pub(crate) const NETWORK: [[&str; 2]; 2] =
    [["-netdev", "user,id=n0"], ["-device", "virtio-net-pci,netdev=n0,romfile="]];

#[cfg(test)]
mod tests;
