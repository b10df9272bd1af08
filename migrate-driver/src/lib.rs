//! Where a VM runs: starting it, moving its memory, and letting it push its disk writes to us.
//!
//! * [`definition`]: what a VM is (a small TOML file), parsed once and valid from then on.
//! * [`hypervisor`]: the [`Hypervisor`] trait, the only thing the service above knows about a hypervisor.
//! * [`qemu`]: the QEMU adapter, over [`qmp`].
//! * [`xen`]: the Xen adapter, over xl and the [`qmp`] of the domains' disks.
//! * [`nbd`]: the server a hypervisor pushes guest writes into, and the overlay they land in.
//!
//! This crate never opens a network socket (unix sockets and files only), never decides whether a guest may run
//! (the hand-off does), and never ends a guest unless it is told to: guests outlive the daemon.

pub mod definition;
mod facts;
pub mod hypervisor;
pub mod nbd;
mod process;
pub mod qemu;
pub mod qmp;
pub mod xen;

/// The decoders of this crate that are not public, for the fuzz targets: each reads bytes and panics when what it read
/// breaks a promise.
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing {
    pub use crate::nbd::fuzzing::{
        option_seeds as nbd_option_seeds, options as nbd_options, request_seeds as nbd_request_seeds,
        requests as nbd_requests,
    };
    pub use crate::qmp::fuzzing::{lines as qmp_lines, seeds as qmp_seeds};
    pub use crate::xen::fuzzing::{seeds as xl_seeds, stream as xl_stream};
}

pub use definition::{
    ANY_ARGUMENT, CacheMode, DefinitionError, DiskDefinition, DiskFormat, DomainType, ForeignError,
    NameError, NetworkDefinition, NicDefinition, QemuDefinition, VmDefinition, VmName, XenDefinition,
    check_foreign,
};
pub use hypervisor::{
    DiskFile, DriverError, FeatureWord, GuestDisk, GuestFacts, GuestStatus, Hypervisor, MemoryParams,
    MemoryProgress, Mode, StopHow, Tap, TapKind,
};
pub use qemu::Qemu;
pub use xen::{Xen, XenSettings};
