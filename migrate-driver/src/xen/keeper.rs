//! The processes that hold xl's hand while a domain moves, one at each end: `longhaul xl-transport`, which `xl migrate`
//! runs as its transport, or `longhaul xl-save`, which runs `xl save`; and `longhaul xl-receive`, which runs
//! `xl migrate-receive`. They outlive the daemon, as the guests do; a daemon that was restarted finds them by their socket
//! and goes on.
//!
//! A keeper decides nothing: it relays the stream, keeps what xl waits for, and does what the daemon tells it. Of itself
//! it only ends what cannot become whole any more: a stream that breaks before its last byte.

use std::io;
use std::path::Path;

use super::board::KeeperPaths;
use super::{receive, save, transport};

/// Which end a keeper is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The source's: run by `xl migrate`, whose words are its standard input and output.
    Transport,
    /// The source's of a cold migration: runs `xl save`.
    Save,
    /// The destination's: runs `xl migrate-receive`.
    Receive,
}

/// Keeps, until xl has ended. `dir` is the directory of the domain.
pub fn run(role: Role, dir: &Path) -> io::Result<()> {
    let paths = KeeperPaths { dir: dir.to_owned() };
    match role {
        Role::Transport => transport::run(&paths),
        Role::Save => save::run(&paths),
        Role::Receive => receive::run(&paths),
    }
}
