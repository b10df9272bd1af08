//! Where the files of one VM's process are. Names only; makes and removes nothing.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::definition::VmName;
use crate::hypervisor::DriverError;

/// The kernel's limit on a unix socket path, without the NUL.
const MAX_SOCKET_PATH_BYTES: usize = 107;

/// `RUN_DIR/NAME/`.
#[derive(Debug, Clone)]
pub(crate) struct VmPaths {
    pub(crate) dir: PathBuf,
    qmp: PathBuf,
    log: PathBuf,
}

impl VmPaths {
    /// Makes the paths absolute: QEMU changes its directory when it daemonizes.
    pub(crate) fn new(run_dir: &Path, vm: &VmName) -> io::Result<VmPaths> {
        Ok(VmPaths::within(std::path::absolute(run_dir)?.join(vm.as_str())))
    }

    /// Those in this directory.
    pub(crate) fn within(dir: PathBuf) -> VmPaths {
        VmPaths { qmp: dir.join("qmp.sock"), log: dir.join("qemu.log"), dir }
    }

    /// Those of a QEMU that somebody else has started.
    pub(crate) fn foreign(dir: PathBuf, qmp: PathBuf, log: PathBuf) -> VmPaths {
        VmPaths { dir, qmp, log }
    }

    /// The monitor.
    pub(crate) fn qmp(&self) -> PathBuf {
        self.qmp.clone()
    }

    /// The memory stream, while one is being set up.
    pub(crate) fn memory(&self) -> PathBuf {
        self.dir.join("mem.sock")
    }

    /// QEMU's process id.
    pub(crate) fn pid(&self) -> PathBuf {
        self.dir.join("pid")
    }

    /// Which files the disks are in, see `files`.
    pub(crate) fn disks(&self) -> PathBuf {
        self.dir.join("disks.json")
    }

    /// What the guest says on its serial port.
    pub(crate) fn serial(&self) -> PathBuf {
        self.dir.join("serial.log")
    }

    /// What QEMU says.
    pub(crate) fn log(&self) -> PathBuf {
        self.log.clone()
    }

    /// Exists from before an incoming QEMU starts until its guest is resumed: this host must not run it on its own.
    pub(crate) fn incoming_mark(&self) -> PathBuf {
        self.dir.join("incoming")
    }

    /// Refuses a directory too deep for sockets. Both socket names have the same length.
    pub(crate) fn check(&self, vm: &VmName) -> Result<(), DriverError> {
        let path = self.qmp();
        if path.as_os_str().as_bytes().len() <= MAX_SOCKET_PATH_BYTES {
            return Ok(());
        }
        Err(DriverError::PathTooLong { vm: vm.clone(), path, max: MAX_SOCKET_PATH_BYTES })
    }
}
