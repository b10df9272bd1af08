//! NBD's bytes, fixed newstyle with simple replies (NetworkBlockDevice/nbd, doc/proto.md). Pure: no sockets.
//!
//! Every length that comes from a client is bounded here before anybody allocates for it.

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;

/// "NBDMAGIC".
pub(super) const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// "IHAVEOPT", before the server's greeting flags and before every option.
pub(super) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;

/// Greeting flags, both ways: fixed newstyle, no 124 zero bytes.
pub(super) const FLAG_FIXED_NEWSTYLE: u16 = 1;
pub(super) const FLAG_NO_ZEROES: u16 = 2;

/// Flags, flush, FUA, trim, write zeroes, several connections.
pub(super) const EXPORT_FLAGS: u16 = 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 8;

/// Longest option data taken. A name has at most 4096 bytes.
pub(super) const MAX_OPTION_BYTES: u32 = 8192;
/// Longest read and write. QEMU's own limit too.
pub(super) const MAX_PAYLOAD_BYTES: u32 = 32 << 20;
/// What we like best: one leaf of the image tree.
const PREFERRED_BLOCK_BYTES: u32 = 65536;

/// Option replies.
pub(super) const REP_ACK: u32 = 1;
pub(super) const REP_SERVER: u32 = 2;
pub(super) const REP_INFO: u32 = 3;
pub(super) const REP_ERR_UNSUP: u32 = 1 << 31 | 1;
pub(super) const REP_ERR_INVALID: u32 = 1 << 31 | 3;
pub(super) const REP_ERR_UNKNOWN: u32 = 1 << 31 | 6;
pub(super) const REP_ERR_TOO_BIG: u32 = 1 << 31 | 9;

/// Why a client's bytes end its connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum WireError {
    #[error("a message begins with {0:#x}, not with NBD's magic")]
    BadMagic(u64),
    #[error("the client does not speak fixed newstyle (flags {0:#x})")]
    NotFixedNewstyle(u32),
    #[error("a write of {0} bytes, more than {MAX_PAYLOAD_BYTES}")]
    WriteTooLong(u32),
}

/// An option's kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OptionKind {
    ExportName,
    Abort,
    List,
    Info,
    Go,
    Other,
}

/// An option's header: its kind, its number (for the reply), the length of its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OptionHeader {
    pub(super) kind: OptionKind,
    pub(super) number: u32,
    pub(super) len: u32,
}

impl OptionHeader {
    pub(super) const BYTES: usize = 16;

    pub(super) fn parse(bytes: &[u8; Self::BYTES]) -> Result<OptionHeader, WireError> {
        let magic = be64(bytes, 0);
        if magic != OPTION_MAGIC {
            return Err(WireError::BadMagic(magic));
        }
        let number = be32(bytes, 8);
        let kind = match number {
            1 => OptionKind::ExportName,
            2 => OptionKind::Abort,
            3 => OptionKind::List,
            6 => OptionKind::Info,
            7 => OptionKind::Go,
            _ => OptionKind::Other,
        };
        Ok(OptionHeader { kind, number, len: be32(bytes, 12) })
    }
}

/// The export name in the data of INFO or GO; `None` when the data is not well-formed.
pub(super) fn export_name(data: &[u8]) -> Option<&str> {
    let (len, rest) = data.split_at_checked(4)?;
    let (name, rest) = rest.split_at_checked(be32(len, 0) as usize)?;
    let (count, requests) = rest.split_at_checked(2)?;
    let count = usize::from(u16::from_be_bytes([count[0], count[1]]));
    if requests.len() != count * 2 {
        return None;
    }
    std::str::from_utf8(name).ok()
}

pub(super) fn option_reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let mut reply = Vec::with_capacity(20 + data.len());
    reply.extend(OPTION_REPLY_MAGIC.to_be_bytes());
    reply.extend(option.to_be_bytes());
    reply.extend(kind.to_be_bytes());
    reply.extend((data.len() as u32).to_be_bytes());
    reply.extend(data);
    reply
}

/// Data of REP_SERVER.
pub(super) fn server_name(name: &str) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data
}

/// Data of REP_INFO about the export.
pub(super) fn info_export(size: u64) -> Vec<u8> {
    let mut data = vec![0, 0];
    data.extend(size.to_be_bytes());
    data.extend(EXPORT_FLAGS.to_be_bytes());
    data
}

/// Data of REP_INFO about block sizes. The minimum is 1, so that a client never completes a block by reading back what
/// only the guest's disk has.
pub(super) fn info_block_size() -> Vec<u8> {
    let mut data = vec![0, 3];
    for bytes in [1, PREFERRED_BLOCK_BYTES, MAX_PAYLOAD_BYTES] {
        data.extend(bytes.to_be_bytes());
    }
    data
}

/// What a client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    Read,
    Write,
    Disconnect,
    Flush,
    Trim,
    WriteZeroes,
    Other,
}

/// A request. `len` bytes of payload follow a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) command: Command,
    pub(super) handle: u64,
    pub(super) offset: u64,
    pub(super) len: u32,
}

impl Request {
    pub(super) const BYTES: usize = 28;

    pub(super) fn parse(bytes: &[u8; Self::BYTES]) -> Result<Request, WireError> {
        let magic = be32(bytes, 0);
        if magic != REQUEST_MAGIC {
            return Err(WireError::BadMagic(magic.into()));
        }
        let command = match u16::from_be_bytes([bytes[6], bytes[7]]) {
            0 => Command::Read,
            1 => Command::Write,
            2 => Command::Disconnect,
            3 => Command::Flush,
            4 => Command::Trim,
            6 => Command::WriteZeroes,
            _ => Command::Other,
        };
        let len = be32(bytes, 24);
        // There is no way to answer before the payload, and no room for it.
        if command == Command::Write && len > MAX_PAYLOAD_BYTES {
            return Err(WireError::WriteTooLong(len));
        }
        Ok(Request { command, handle: be64(bytes, 8), offset: be64(bytes, 16), len })
    }
}

/// An error as the protocol numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum NbdError {
    Io = 5,
    NoMemory = 12,
    Invalid = 22,
    NoSpace = 28,
}

impl NbdError {
    pub(super) fn of(error: &std::io::Error) -> NbdError {
        use std::io::ErrorKind::{FileTooLarge, InvalidInput, OutOfMemory, QuotaExceeded, StorageFull};
        match error.kind() {
            InvalidInput => NbdError::Invalid,
            StorageFull | QuotaExceeded | FileTooLarge => NbdError::NoSpace,
            OutOfMemory => NbdError::NoMemory,
            _ => NbdError::Io,
        }
    }
}

/// A simple reply's header; the data of a successful read follows it.
pub(super) fn reply(result: Result<(), NbdError>, handle: u64) -> [u8; 16] {
    let error = result.err().map_or(0, |error| error as u32);
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&REPLY_MAGIC.to_be_bytes());
    bytes[4..8].copy_from_slice(&error.to_be_bytes());
    bytes[8..].copy_from_slice(&handle.to_be_bytes());
    bytes
}

/// Callers give slices that are long enough.
fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().fold(0, |value, &byte| value << 8 | u32::from(byte))
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().fold(0, |value, &byte| value << 8 | u64::from(byte))
}
