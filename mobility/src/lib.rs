//! Where a VM is reached: what happens to its address when it moves, and how long it was out of reach.
//!
//! This pillar knows nothing of disks and hypervisors. It adapts sockets and clocks to what `mobility-proto` decides.

pub mod access;
mod advertise;
mod agent;
mod checks;
mod data_plane;
mod dhcp;
mod error;
pub mod home_agent;
mod links;
pub mod mobile_node;
mod plane;
pub mod probe;
mod raw;
mod tunnels;
mod udp;

pub use access::AccessGateway;
pub use data_plane::{DataPlane, PlaneChoice};
pub use error::{AgentError, LinkError};
pub use home_agent::HomeAgent;
pub use mobile_node::MobileNode;
pub use mobility_proto::{anchor, auth, gateway, wire};
