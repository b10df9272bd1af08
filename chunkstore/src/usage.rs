//! Who uses an image at this moment: QEMU's locks on it, a mount, swap, a loop device, device-mapper. It takes no lock that
//! lasts, so its answer may be out of date as soon as it is given: ask at the moment of use, and again where it matters.
//!
//! QEMU locks bytes of an image that it has open (`block/file-posix.c`): from byte 100 one for each permission that it uses,
//! from byte 200 one for each that it does not share. These are open file description locks, so a test sees them whichever
//! process holds them, and only on the same node of a device.
#![allow(unsafe_code)]

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::FileId;
use crate::open::{DeviceNumber, open_checked};

/// QEMU's `RAW_LOCK_PERM_BASE` and what follows it.
const USED: Range<i64> = 100..164;

/// QEMU's `RAW_LOCK_SHARED_BASE` and what follows it.
const NOT_SHARED: Range<i64> = 200..264;

/// QEMU's `BLK_PERM_WRITE` and `BLK_PERM_RESIZE`, in [`USED`].
const WRITES: [Range<i64>; 2] = [101..102, 103..104];

/// A use of an image by somebody else.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Use {
    /// A QEMU, or a tool that keeps to QEMU's image locks, has it open.
    Locked {
        /// It may write to it.
        writes: bool,
        /// The process, where it could be found.
        process: Option<Process>,
    },
    /// A file system on it is mounted.
    Mounted {
        /// Where.
        at: PathBuf,
    },
    /// The kernel swaps to it.
    Swap,
    /// A loop device is made of it.
    Loop {
        /// The device.
        device: PathBuf,
    },
    /// A block device that somebody holds for himself: device-mapper, RAID, a mounted partition of it, a process.
    Claimed {
        /// The block devices that are made of it.
        holders: Vec<String>,
    },
}

/// A process that has an image open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// The name of its program, as the kernel knows it.
    pub name: String,
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Use::Locked { writes, process } => {
                match process {
                    Some(Process { pid, name }) => write!(f, "in use by {name} (process {pid})")?,
                    None => f.write_str("in use by QEMU")?,
                }
                f.write_str(if *writes { ", which may write to it" } else { ", which reads it" })
            }
            Use::Mounted { at } => write!(f, "mounted at {}", at.display()),
            Use::Swap => f.write_str("in use as swap space"),
            Use::Loop { device } => write!(f, "in use by the loop device {}", device.display()),
            Use::Claimed { holders } if holders.is_empty() => {
                f.write_str("a block device in exclusive use by the kernel or another process")
            }
            Use::Claimed { holders } => write!(f, "a block device in use by {}", holders.join(", ")),
        }
    }
}

/// Who uses this image right now, apart from who has it merely open. `None` when nobody was found. An error where there is
/// no image or it may not be opened.
pub fn in_use(path: impl AsRef<Path>) -> io::Result<Option<Use>> {
    let path = path.as_ref();
    let file = open_checked(path, OpenOptions::new().read(true))?;
    let id = FileId::of_file(&file)?;
    if let Some(holder) = locked(file.as_fd(), USED)?.or(locked(file.as_fd(), NOT_SHARED)?) {
        let mut writes = false;
        for bytes in WRITES {
            writes |= locked(file.as_fd(), bytes)?.is_some();
        }
        let process = holder.pid().or_else(|| find_process(&file)).map(named);
        return Ok(Some(Use::Locked { writes, process }));
    }
    if is_swap(id)? {
        return Ok(Some(Use::Swap));
    }
    if let Some(device) = find_loop(id)? {
        return Ok(Some(Use::Loop { device }));
    }
    match id {
        FileId::File { .. } => Ok(None),
        FileId::BlockDevice { number } => match mounted_at(number)? {
            Some(at) => Ok(Some(Use::Mounted { at })),
            None => claimed(&file, number),
        },
    }
}

/// Who holds a lock.
struct Holder(i32);

impl Holder {
    /// Not known of the lock of an open file, as many processes may have that.
    fn pid(&self) -> Option<u32> {
        u32::try_from(self.0).ok().filter(|pid| *pid > 0)
    }
}

/// Who has one of these bytes locked, in whatever way.
fn locked(file: BorrowedFd<'_>, bytes: Range<i64>) -> io::Result<Option<Holder>> {
    // SAFETY: of plain numbers, for all of which zero will do.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as _;
    lock.l_whence = libc::SEEK_SET as _;
    lock.l_start = bytes.start;
    lock.l_len = bytes.end - bytes.start;
    // SAFETY: the file is open, and the kernel reads and writes one `flock`, which `lock` is, and keeps nothing of it. The
    // command only asks: no lock is taken.
    let asked = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &mut lock) };
    if asked != 0 {
        let error = io::Error::last_os_error();
        // A file system without locks, on which nobody can hold one.
        return if error.raw_os_error() == Some(libc::ENOLCK) { Ok(None) } else { Err(error) };
    }
    Ok((i32::from(lock.l_type) != libc::F_UNLCK).then_some(Holder(lock.l_pid)))
}

/// A process other than this one that has the image open, for the person who reads of it. By the path only: looking at what
/// other processes have open may wait for a file system that is gone.
fn find_process(file: &File) -> Option<u32> {
    let own = std::process::id();
    let image = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
    let pids = fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid| *pid != own).find(|pid| {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        files.into_iter().any(|file| fs::read_link(file.path()).is_ok_and(|path| path == image))
    })
}

fn named(pid: u32) -> Process {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let name = Some(name.trim()).filter(|name| !name.is_empty()).unwrap_or("a program");
    Process { pid, name: name.to_owned() }
}

/// `None` where there is no such thing. Any other failure says nothing of who uses an image.
fn there<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        // A device that went meanwhile is the other one.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_swap(id: FileId) -> io::Result<bool> {
    let swaps = there(fs::read("/proc/swaps"))?.unwrap_or_default();
    let mut paths = swaps.split(|byte| *byte == b'\n').skip(1).filter_map(first_word);
    Ok(paths.any(|path| FileId::of_path(path).is_ok_and(|other| other == id)))
}

fn first_word(line: &[u8]) -> Option<PathBuf> {
    let word = line.split(|byte| byte.is_ascii_whitespace()).next()?;
    (!word.is_empty()).then(|| unescaped(word))
}

/// The loop device that has this file below it.
fn find_loop(id: FileId) -> io::Result<Option<PathBuf>> {
    let Some(devices) = there(fs::read_dir("/sys/block"))? else { return Ok(None) };
    for device in devices {
        let name = device?.file_name();
        if !name.as_encoded_bytes().starts_with(b"loop") {
            continue;
        }
        let backing = Path::new("/sys/block").join(&name).join("loop/backing_file");
        let Some(mut backing) = there(fs::read(backing))? else { continue };
        backing.pop_if(|last| *last == b'\n');
        // The file may have no name any more.
        if FileId::of_path(OsString::from_vec(backing)).is_ok_and(|other| other == id) {
            return Ok(Some(Path::new("/dev").join(name)));
        }
    }
    Ok(None)
}

/// Where the file system on this device is mounted.
fn mounted_at(number: u64) -> io::Result<Option<PathBuf>> {
    let mounts = fs::read("/proc/self/mountinfo")?;
    let number = DeviceNumber(number).to_string();
    Ok(mounts.split(|byte| *byte == b'\n').find_map(|line| {
        let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let (device, at) = (words.get(2)?, words.get(4)?);
        (*device == number.as_bytes()).then(|| unescaped(at))
    }))
}

/// As these files of the kernel write a path: `\040` for a space.
fn unescaped(word: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((first, more)) = rest.split_first() {
        let code = more.get(..3).filter(|_| *first == b'\\');
        let code = code.and_then(|code| u8::from_str_radix(std::str::from_utf8(code).ok()?, 8).ok());
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &more[3..] } else { more };
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// Is the device held exclusively? It is opened so for a moment, which fails when it is.
fn claimed(file: &File, number: u64) -> io::Result<Option<Use>> {
    // Through the open file: the path may lead elsewhere by now.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = (OFlags::EXCL | OFlags::NONBLOCK).bits() as i32;
    match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Err(error) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {
            let holders = fs::read_dir(format!("/sys/dev/block/{}/holders", DeviceNumber(number)));
            let holders = holders.into_iter().flatten().flatten();
            let mut holders: Vec<_> =
                holders.map(|holder| holder.file_name().to_string_lossy().into_owned()).collect();
            holders.sort_unstable();
            Ok(Some(Use::Claimed { holders }))
        }
        Err(error) => Err(error),
        Ok(_) => Ok(None),
    }
}

#[cfg(test)]
mod tests;
