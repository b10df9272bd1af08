//! The mobility lab: a home agent, two platforms and a correspondent in network namespaces, joined by a line that takes time,
//! and a guest that moves between the platforms. The agents are the real ones, each in its own namespace; the guest is a
//! namespace too, which a move takes from one platform's link to the other's.
//!
//! ```text
//!   correspondent --- home agent ===(delay line)=== edge --- platform a --+
//!                                                       --- platform b --+-- guest
//! ```
//!
//! Nothing here is left behind: namespaces, interfaces and agents end with the value that holds them.

pub mod agents;
pub mod connections;
pub mod moves;
pub mod network;
pub mod ping;
mod port;
pub mod raw;
pub mod roaming;
pub mod sites;
pub mod stream;
pub mod wires;

pub use agents::Running;
pub use connections::Connection;
pub use moves::Watch;
pub use network::{Network, Planes, Platform};
pub use ping::{Answers, Ping};
pub use raw::Raw;
pub use roaming::{ForeignLinks, Roaming};
pub use sites::Sites;
pub use stream::{Heard, Stream};
pub use wires::Wires;

/// Makes of each function a test on each data plane that the kernel of these machines has, and one on [`MIXED`] planes; and
/// one on that which only a guest's kernel has, to be run there. A function takes [`Planes`].
#[macro_export]
macro_rules! on_each_plane {
    ($($test:ident),* $(,)?) => {
        $crate::on_each_plane!(@ tun [mobility::DataPlane::Tun; 3]; $($test)*);
        $crate::on_each_plane!(@ mixed $crate::MIXED; $($test)*);
        $crate::on_each_kernel_plane!($($test),*);
    };
    (@ $name:ident $planes:expr; $($test:ident)*) => {
        mod $name {
            $(
                #[test]
                fn $test() {
                    super::$test($planes);
                }
            )*
        }
    };
}

/// As [`on_each_plane`], for what only the kernel's data planes promise.
#[macro_export]
macro_rules! on_each_kernel_plane {
    ($($test:ident),* $(,)?) => {
        $crate::on_each_plane!(@ seg6 [mobility::DataPlane::Seg6; 3]; $($test)*);
        mod ip6tnl {
            $(
                #[test]
                #[ignore = "needs a kernel with ip6_tunnel: tests/guest_kernel.rs runs it in a guest"]
                fn $test() {
                    super::$test([mobility::DataPlane::Ip6tnl; 3]);
                }
            )*
        }
    };
}

/// The home agent and the second platform on the kernel, the first platform not.
pub const MIXED: Planes = [mobility::DataPlane::Seg6, mobility::DataPlane::Tun, mobility::DataPlane::Seg6];
