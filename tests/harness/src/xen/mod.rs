//! Two Xen hosts in emulators, a bridge between them, and this process on it: for what can only be shown on Xen itself.
//!
//! Everything is in a network namespace and in one temporary directory, and is gone with the value. It never touches
//! the host's own network and never installs anything.

mod host;

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::platform::process;
use crate::{Lab, Namespace, files, shell};
pub use host::XenHost;

/// This process's address on the hosts' network.
pub const OURS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 254);
/// The guest's.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 50);
/// Large packets halve what a byte costs an emulated network card.
const MTU: u32 = 60_000;
/// What passes between the hosts, each way, and from each of them to us: a line as between two small sites. The burst has
/// to be larger than a packet, the queue is short.
pub const LINK_MBIT_S: u32 = 100;
const LINK_SHAPE: &str = "burst 128k latency 30ms";
/// The size of the file system on which a host keeps what is its own.
const OWN_MIB: u32 = 2048;

/// Two hosts, `a` and `b`.
#[derive(Debug)]
pub struct XenPair {
    /// 10.77.0.1
    pub a: XenHost,
    /// 10.77.0.2
    pub b: XenHost,
    namespace: Arc<Namespace>,
    dir: TempDir,
}

impl XenPair {
    /// Boots both and waits until xl works on both. The files of `own_a` and `own_b` (directories) are on each under
    /// `/lab`; both see `shared` as `/dev/vdc`.
    ///
    /// # Errors
    /// When a host does not come up; the error holds the end of its console.
    pub fn boot(lab: &Lab, own_a: &Path, own_b: &Path, shared: &Path) -> Result<Self> {
        let files = lab.xen()?;
        let dir = directory()?;
        let namespace = Arc::new(Namespace::new()?);
        namespace.ip("link add br0 type bridge")?;
        namespace.ip(&format!("addr add {OURS}/24 dev br0"))?;
        let host = |name: &str, number: u8, own: &Path| -> Result<XenHost> {
            let disk = own_disk(dir.path(), name, own)?;
            let tap = format!("tap-{name}");
            namespace.ip(&format!("tuntap add {tap} mode tap"))?;
            namespace.ip(&format!("link set {tap} mtu {MTU} master br0 up"))?;
            XenHost::boot(&files, &namespace, dir.path(), name, number, [&disk, shared])
        };
        let (mut a, mut b) = (host("a", 1, own_a)?, host("b", 2, own_b)?);
        namespace.ip(&format!("link set br0 mtu {MTU} up"))?;
        a.wait_ready()?;
        b.wait_ready()?;
        for tap in ["tap-a", "tap-b"] {
            // Out of the bridge, so into the host: each way of the line once.
            let shape = format!("qdisc add dev {tap} root tbf rate {LINK_MBIT_S}mbit {LINK_SHAPE}");
            namespace.run(Command::new("tc").args(shape.split(' ')))?;
        }
        Ok(Self { a, b, namespace, dir })
    }

    /// The network they are on.
    #[must_use]
    pub fn namespace(&self) -> &Arc<Namespace> {
        &self.namespace
    }

    /// How many bytes have gone into a host.
    ///
    /// # Errors
    /// When its link cannot be asked.
    pub fn bytes_into(&self, host: &XenHost) -> Result<u64> {
        let link = self.namespace.ip(&format!("-j -s link show dev tap-{}", host.name()))?;
        let link: serde_json::Value = serde_json::from_str(&link)?;
        link[0]["stats64"]["tx"]["bytes"].as_u64().context("a link's counters")
    }

    /// Cuts the line between the two hosts, or mends it. Both still reach us.
    ///
    /// # Errors
    /// When the bridge cannot be told.
    pub fn cut(&self, cut: bool) -> Result<()> {
        let isolated = if cut { "on" } else { "off" };
        for tap in ["tap-a", "tap-b"] {
            self.namespace.ip(&format!("link set dev {tap} type bridge_slave isolated {isolated}"))?;
        }
        Ok(())
    }

    /// A collector of the guest's packets.
    ///
    /// # Errors
    /// When there is no free port.
    pub fn collector(&self) -> Result<crate::Collector> {
        crate::Collector::within(&self.namespace, IpAddr::V4(OURS))
    }

    /// Stops both and takes a file below `/lab` of one of them: `host` is `a` or `b`.
    ///
    /// # Errors
    /// When a host cannot be stopped or there is no such file.
    pub fn into_file(self, host: &str, path: &str) -> Result<(TempDir, PathBuf)> {
        let Self { a, b, dir, .. } = self;
        a.power_off()?;
        b.power_off()?;
        let out = dir.path().join("taken");
        let own = dir.path().join(format!("{host}.own.raw"));
        shell::run(
            Command::new("debugfs").arg("-R").arg(format!("dump {path} {}", out.display())).arg(&own),
        )?;
        if !out.exists() {
            anyhow::bail!("host {host} has no {path} below /lab");
        }
        Ok((dir, out))
    }
}

/// A directory for hosts and what they are given. First removes those of harnesses that were killed before they could, and
/// ends their emulators: the directories' names carry the harness's process id.
///
/// # Errors
/// When it cannot be made.
pub fn directory() -> Result<TempDir> {
    const PREFIX: &str = "lh-xen-";
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')?.0.parse::<i32>().ok());
        if owner.is_some_and(|pid| !process::exists(pid)) {
            process::end_all(&entry.path());
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let prefix = format!("{PREFIX}{}-", std::process::id());
    tempfile::Builder::new().prefix(&prefix).tempdir().context("making a directory")
}

/// A file system with what a host gets of its own.
fn own_disk(dir: &Path, name: &str, own: &Path) -> Result<PathBuf> {
    let image = dir.join(format!("{name}.own.raw"));
    files::remove(&image)?;
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.args(["-q", "-F", "-t", "ext4", "-m", "0", "-O", "^has_journal", "-E", "root_owner=0:0", "-d"]);
    shell::run(mke2fs.arg(own).arg(&image).arg(format!("{OWN_MIB}M")))?;
    Ok(image)
}
