//! What `xl migrate` sends: xl's header with the domain's configuration, then libxl's stream, with libxc's inside it.
//! Pure. It follows the records far enough to know the stream's last byte, and nothing of what they hold.
//!
//! Source: Xen's docs/specs/libxl-migration-stream.pandoc and libxc-migration-stream.pandoc, tools/xl/xl.h (4.17).

#[cfg(any(test, fuzzing))]
pub(super) mod sample;
#[cfg(test)]
mod tests;

/// The first bytes of every stream and save file of xl's.
const MAGIC: &[u8; 32] = b"Xen saved domain, xl format\n \0 \r";
/// xl's header: the magic, byte order, mandatory flags, optional flags, length of the optional data.
pub(crate) const XL_HEADER_BYTES: usize = 48;
const BYTE_ORDER: u32 = 0x0102_0304;
/// Configuration in JSON, stream of the second version: all that is known, and both are needed.
const FLAGS: u32 = 3;
/// A configuration is some KiB.
pub(crate) const MAX_OPTIONAL_BYTES: u32 = 1 << 20;

const LIBXL_HEADER_BYTES: usize = 16;
const LIBXL_IDENT: [u8; 12] = *b"LibxlFmt\0\0\0\x02";
const LIBXL_END: u32 = 0;
const LIBXL_LIBXC_CONTEXT: u32 = 1;
const LIBXL_CHECKPOINT_END: u32 = 4;

/// Image header and domain header.
const LIBXC_HEADER_BYTES: usize = 24 + 16;
const LIBXC_IDENT: [u8; 12] = *b"\xff\xff\xff\xff\xff\xff\xff\xffXENF";
const LIBXC_END: u32 = 0;

const RECORD_HEADER_BYTES: usize = 8;
/// libxc's own bound on a record's body.
const MAX_RECORD_BYTES: u32 = 128 << 20;

/// A stream that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StreamError {
    /// The bytes of a header are not those of xl 4.17 and its kind.
    #[error("it has no {0} where one is due: the two hosts need Xen of one version, 4.6 or later")]
    Header(&'static str),
    /// A length that cannot be.
    #[error("its {what} claims {bytes} bytes; at most {max} are possible")]
    Length {
        /// Of what.
        what: &'static str,
        /// The claim.
        bytes: u32,
        /// The bound.
        max: u32,
    },
    /// A record of checkpoints, which no migration has.
    #[error("it is a stream of checkpoints (Remus), not a migration")]
    Checkpoints,
    /// The configuration in front.
    #[error("the domain's configuration in it cannot be understood: {0}")]
    Configuration(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    XlHeader,
    LibxlHeader,
    LibxlRecord,
    LibxcHeader,
    LibxcRecord,
    End,
}

/// Follows a stream as it passes.
#[derive(Debug)]
pub(crate) struct Follower {
    state: State,
    /// The part of a header that has come.
    header: Vec<u8>,
    /// Bytes to pass over.
    skip: u64,
}

impl Follower {
    pub(crate) fn new() -> Follower {
        Follower { state: State::XlHeader, header: Vec::new(), skip: 0 }
    }

    /// Whether the last byte of the stream has passed.
    pub(crate) fn is_at_end(&self) -> bool {
        self.state == State::End
    }

    /// Follows the next bytes. Returns how many of them belong to the stream: fewer than all only at its end.
    pub(crate) fn follow(&mut self, bytes: &[u8]) -> Result<usize, StreamError> {
        let mut at = 0;
        while at < bytes.len() && self.state != State::End {
            if self.skip > 0 {
                let step = self.skip.min((bytes.len() - at) as u64);
                self.skip -= step;
                at += step as usize;
                continue;
            }
            let wanted = self.header_bytes() - self.header.len();
            let step = wanted.min(bytes.len() - at);
            self.header.extend_from_slice(&bytes[at..at + step]);
            at += step;
            if step == wanted {
                self.take_header()?;
                self.header.clear();
            }
        }
        Ok(at)
    }

    fn header_bytes(&self) -> usize {
        match self.state {
            State::XlHeader => XL_HEADER_BYTES,
            State::LibxlHeader => LIBXL_HEADER_BYTES,
            State::LibxcHeader => LIBXC_HEADER_BYTES,
            State::LibxlRecord | State::LibxcRecord => RECORD_HEADER_BYTES,
            State::End => 0,
        }
    }

    fn take_header(&mut self) -> Result<(), StreamError> {
        let header = self.header.as_slice();
        self.state = match self.state {
            State::XlHeader => {
                self.skip = u64::from(optional_bytes(header)?);
                State::LibxlHeader
            }
            State::LibxlHeader if header.starts_with(&LIBXL_IDENT) => State::LibxlRecord,
            State::LibxlHeader => return Err(StreamError::Header("libxl header")),
            State::LibxcHeader if header.starts_with(&LIBXC_IDENT) => State::LibxcRecord,
            State::LibxcHeader => return Err(StreamError::Header("libxc header")),
            State::LibxlRecord => {
                let (kind, body) = record(header)?;
                self.skip = body;
                match kind {
                    LIBXL_END => State::End,
                    LIBXL_LIBXC_CONTEXT => State::LibxcHeader,
                    LIBXL_CHECKPOINT_END => return Err(StreamError::Checkpoints),
                    _ => State::LibxlRecord,
                }
            }
            State::LibxcRecord => {
                let (kind, body) = record(header)?;
                self.skip = body;
                if kind == LIBXC_END { State::LibxlRecord } else { State::LibxcRecord }
            }
            State::End => State::End,
        };
        Ok(())
    }
}

/// A record's type, and the bytes of its body with their padding.
fn record(header: &[u8]) -> Result<(u32, u64), StreamError> {
    let (kind, bytes) = (number(header, 0), number(header, 4));
    if bytes > MAX_RECORD_BYTES {
        return Err(StreamError::Length { what: "record", bytes, max: MAX_RECORD_BYTES });
    }
    Ok((kind, u64::from(bytes).next_multiple_of(8)))
}

/// Little-endian: x86's, which is all that is checked for.
fn number(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
}

/// How many bytes of optional data follow xl's header.
pub(crate) fn optional_bytes(header: &[u8]) -> Result<u32, StreamError> {
    if !header.starts_with(MAGIC) || number(header, 32) != BYTE_ORDER || number(header, 36) != FLAGS {
        return Err(StreamError::Header("xl header"));
    }
    let bytes = number(header, 44);
    if bytes > MAX_OPTIONAL_BYTES {
        return Err(StreamError::Length { what: "configuration", bytes, max: MAX_OPTIONAL_BYTES });
    }
    Ok(bytes)
}

/// Header and optional data with another configuration in them: `change` gets the one that is there.
pub(crate) fn with_configuration(
    header: &[u8],
    optional: &[u8],
    change: impl FnOnce(&str) -> Result<String, String>,
) -> Result<Vec<u8>, StreamError> {
    let wrong = |why: &str| StreamError::Configuration(why.to_owned());
    let length = number(optional, 0) as usize;
    let (text, rest) = match optional.get(4..).filter(|rest| rest.len() >= length) {
        Some(rest) => rest.split_at(length),
        None => return Err(wrong("it is longer than the data it stands in")),
    };
    let text = std::str::from_utf8(text).map_err(|_| wrong("it is not UTF-8"))?;
    // xl counts the NUL that ends it.
    let changed = change(text.trim_end_matches('\0')).map_err(StreamError::Configuration)? + "\0";
    let length = |bytes: usize| u32::try_from(bytes).map_err(|_| wrong("it has grown too long"));
    let mut out = header.get(..44).unwrap_or_default().to_vec();
    out.extend(length(4 + changed.len() + rest.len())?.to_le_bytes());
    out.extend(length(changed.len())?.to_le_bytes());
    out.extend(changed.as_bytes());
    out.extend(rest);
    Ok(out)
}
