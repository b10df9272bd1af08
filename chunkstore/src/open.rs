//! How a path that a person gave is opened: only regular files and block devices, and never waiting for the other end of a
//! pipe. Also what such a path stands for, whatever it is called: [`FileId`].

use std::fmt;
use std::fs::{self, File, FileType, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

/// Opens a regular file or a block device to read it. Anything else is `InvalidInput`, without waiting: opening a named
/// pipe would wait for a writer, and reading from a terminal for a person.
pub fn open_regular(path: impl AsRef<Path>) -> io::Result<File> {
    open_checked(path.as_ref(), OpenOptions::new().read(true))
}

/// As [`open_regular`], with these options.
pub(crate) fn open_checked(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    // Before it is opened, because opening some devices does something.
    check_kind(fs::metadata(path)?.file_type())?;
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = options.custom_flags(flags.bits() as i32).open(path)?;
    // Again: the path may lead elsewhere by now.
    check_kind(file.metadata()?.file_type())?;
    fcntl_setfl(&file, fcntl_getfl(&file)? - OFlags::NONBLOCK)?;
    Ok(file)
}

fn check_kind(kind: FileType) -> io::Result<()> {
    if kind.is_file() || kind.is_block_device() {
        return Ok(());
    }
    let name = if kind.is_fifo() {
        "a named pipe"
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_dir() {
        "a directory"
    } else if kind.is_char_device() {
        "a character device"
    } else {
        "of an unknown kind"
    };
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("it is {name}, not a regular file or block device"),
    ))
}

/// What a path or an open file stands for. Two paths with the same identity are one image, whatever they are called: links,
/// bind mounts, several nodes of one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileId {
    /// A regular file.
    File {
        /// The device number of its file system.
        device: u64,
        /// Its number there.
        inode: u64,
    },
    /// A block device.
    BlockDevice {
        /// Its device number.
        number: u64,
    },
}

impl FileId {
    /// Of what is at this path now. Symbolic links are followed. `InvalidInput` when it is neither a regular file nor a block
    /// device.
    pub fn of_path(path: impl AsRef<Path>) -> io::Result<FileId> {
        FileId::of_metadata(&fs::metadata(path)?)
    }

    /// Of an open file.
    pub fn of_file(file: &File) -> io::Result<FileId> {
        FileId::of_metadata(&file.metadata()?)
    }

    fn of_metadata(metadata: &Metadata) -> io::Result<FileId> {
        let kind = metadata.file_type();
        check_kind(kind)?;
        Ok(match kind.is_block_device() {
            true => FileId::BlockDevice { number: metadata.rdev() },
            false => FileId::File { device: metadata.dev(), inode: metadata.ino() },
        })
    }
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            FileId::File { device, inode } => {
                write!(f, "inode {inode} on device {}", DeviceNumber(device))
            }
            FileId::BlockDevice { number } => write!(f, "block device {}", DeviceNumber(number)),
        }
    }
}

/// A device's number as the kernel writes it.
pub(crate) struct DeviceNumber(pub(crate) u64);

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", rustix::fs::major(self.0), rustix::fs::minor(self.0))
    }
}

#[cfg(test)]
mod tests;
