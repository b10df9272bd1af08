//! A TAP device: an interface of the kernel whose other end is a file. It goes away when the file is closed.

// Making one is an ioctl; the only call is below.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, Result, bail};
use rustix::fs::OFlags;
use rustix::ioctl::{Setter, ioctl, opcode};

/// `struct ifreq`: the name, then a union of which only the flags are used.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

const TUNSETIFF: rustix::ioctl::Opcode = opcode::write::<i32>(b'T', 202);
const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;

/// Makes one in the calling thread's network namespace. Its file never blocks; one read or write is one frame.
pub(super) fn make(name: &str) -> Result<File> {
    if name.is_empty() || name.len() >= 16 {
        bail!("the name of an interface has 1 to 15 bytes, `{name}` has {}", name.len());
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open("/dev/net/tun")
        .context("opening /dev/net/tun")?;
    let mut request = Request { name: [0; 16], flags: IFF_TAP | IFF_NO_PI, rest: [0; 22] };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, which has 40 bytes as `Request` has, and keeps no pointer.
    unsafe { ioctl(&file, Setter::<TUNSETIFF, Request>::new(request)) }
        .with_context(|| format!("making the TAP device {name}"))?;
    Ok(file)
}
