//! The guest of the Xen lab, and the directories that the two hosts get: the program under test, the guest's kernel and
//! its disk.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use ::guest::Workload;
use anyhow::{Context, Result};
use harness::xen::{GUEST, OURS};
use harness::{Lab, files, platform, shell};
use tempfile::TempDir;

/// The guest's name.
pub(super) const VM: &str = "u1";
/// The size of its disk, and how much of it is taken by files that no other disk has.
const DISK_MIB: u32 = 256;
const DATA_MIB: usize = 64;

/// Its memory: Debian's 6.1 kernel loses some of it with every move, by xl alone too (one of 80 MiB panics at the twelfth:
/// "System is deadlocked on memory"), and it moves often.
const MEMORY_MIB: u32 = 128;

/// The guest, ready to be booted by either host.
pub(super) struct Machine {
    dir: TempDir,
}

impl Machine {
    /// Makes its disk and puts together what the hosts get.
    pub(super) fn make(lab: &Lab) -> Result<Self> {
        let machine = Self { dir: harness::xen::directory()? };
        let kernel = lab.xen()?.guest_kernel;
        for own in [machine.own_a(), machine.own_b()] {
            files::create_dir(&own)?;
            let (longhaul, agent) =
                (platform::binary()?, platform::binary()?.with_file_name("conformance-agent"));
            for (program, name) in [(longhaul, "longhaul"), (agent, "agent")] {
                shell::run(Command::new("strip").arg("-o").arg(own.join(name)).arg(program))?;
            }
            fs::copy(&kernel, own.join("vmlinux")).context("copying the guest's kernel")?;
            fs::copy(lab.kernel(), own.join("vmlinuz")).context("copying the guest's kernel")?;
            fs::copy(lab.initrd(), own.join("initrd")).context("copying the guest's initramfs")?;
            files::create_dir(&own.join("ssh"))?;
        }
        let key = machine.own_a().join("ssh/id");
        shell::run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key))?;
        for name in ["id", "id.pub"] {
            let copied = fs::copy(key.with_file_name(name), machine.own_b().join("ssh").join(name));
            copied.context("copying the hosts' key")?;
        }
        machine.make_disk(&machine.own_a().join("disk.raw"))?;
        for copy in [machine.own_a().join("base.raw"), machine.shared()] {
            files::copy_sparse(&machine.own_a().join("disk.raw"), &copy)?;
        }
        Ok(machine)
    }

    fn make_disk(&self, disk: &Path) -> Result<()> {
        let tree = self.dir.path().join("tree");
        files::create_dir(&tree)?;
        let mut bytes = vec![0; DATA_MIB << 20];
        blake3::Hasher::new().update(b"the Xen lab's guest").finalize_xof().fill(&mut bytes);
        files::write(&tree.join("data"), &bytes)?;
        let mut mke2fs = Command::new("mke2fs");
        mke2fs.args([
            "-q",
            "-F",
            "-t",
            "ext4",
            "-m",
            "0",
            "-E",
            "lazy_itable_init=0,lazy_journal_init=0",
            "-d",
        ]);
        shell::run(mke2fs.arg(&tree).arg(disk).arg(format!("{DISK_MIB}M")))?;
        shell::run(Command::new("fallocate").arg("--dig-holes").arg(disk)).map(drop)
    }

    /// What host a has under /lab.
    pub(super) fn own_a(&self) -> PathBuf {
        self.dir.path().join("a")
    }

    /// What host b has under /lab.
    pub(super) fn own_b(&self) -> PathBuf {
        self.dir.path().join("b")
    }

    /// The disk that both hosts see as /dev/vdc.
    pub(super) fn shared(&self) -> PathBuf {
        self.dir.path().join("shared.raw")
    }

    /// What the guest does: 10 records of 4 KiB a second, each flushed; a packet every 20 ms.
    fn workload(host: IpAddr, port: u16) -> Workload {
        Workload {
            host,
            port,
            rate: 10,
            record_bytes: 4096,
            ring_mib: 16,
            address: GUEST,
            ..Workload::default()
        }
    }

    /// The kernel's command line of a guest whose packets go to `port`.
    pub(super) fn append(port: u16) -> String {
        Self::append_to(IpAddr::V4(OURS), port)
    }

    /// The same, of one whose packets go to `host`.
    pub(super) fn append_to(host: IpAddr, port: u16) -> String {
        format!("console=hvc0 quiet panic=-1 mitigations=off {}", Self::workload(host, port).to_cmdline())
    }

    /// The domain's configuration for xl, on `disk`.
    pub(super) fn xl_configuration(port: u16, disk: &str) -> String {
        format!(
            "name = \"{VM}\"\ntype = \"pvh\"\nkernel = \"/lab/vmlinux\"\nramdisk = \"/lab/initrd\"\n\
             extra = \"{}\"\nmemory = {MEMORY_MIB}\nvcpus = 1\n\
             disk = [ \"format=raw,vdev=xvda,access=rw,backendtype=qdisk,target={disk}\" ]\n\
             vif = [ \"mac=00:16:3e:00:00:50,bridge=xenbr0,script=vif-bridge\" ]\n",
            Self::append(port)
        )
    }
}
