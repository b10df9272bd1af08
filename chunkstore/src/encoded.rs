//! A chunk as it travels and as it lies in a pack: plain, or compressed when that pays. Never trusts a length.

use std::cell::RefCell;
use std::io::Cursor;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::{CParameter, ParamSwitch};

/// How the bytes of an [`Encoded`] are to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Codec {
    /// The plain bytes.
    Raw,
    /// One zstd frame.
    Zstd,
}

/// Bytes with the way to get the plain ones back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Encoded {
    /// How to decode.
    pub codec: Codec,
    /// Length of the plain bytes.
    pub plain_len: u32,
    /// The encoded bytes.
    pub bytes: Bytes,
}

/// Why bytes could not be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// More plain bytes than the caller takes.
    #[error("encoded data claims {plain_len} plain bytes where at most {max_len} may come: ask for it again")]
    TooLong {
        /// The claim.
        plain_len: u32,
        /// The limit.
        max_len: usize,
    },
    /// The bytes do not decode to what they claim to be.
    #[error("encoded data is damaged ({reason}): ask for it again")]
    Damaged {
        /// What was wrong.
        reason: String,
    },
}

/// Compression that saves less than a sixteenth costs the reader more than it spares.
const WORTHWHILE: usize = 16;

/// What travels, from this length on, has matches looked for further back than zstd does by itself: it takes two percent off. What
/// is made to lie in packs gains less, and takes longer.
const LONG: usize = 2 << 20;

/// All of a group is in view, as a power of two: 4 MiB, where zstd would see 1 MiB at fast levels.
const WINDOW_LOG: u32 = 22;

/// Negative levels. By itself zstd stores their literals as they are, and looks for matches in a table of twice this size, the more
/// seldom the lower the level. To code the literals, and to look more seldom still and for longer matches, takes less time for much
/// the same size: `cargo xtask bench store`, ours at -4 to borg's rolling lz4 by processor time, 1.53 x before, 1.64 to 1.85 x in four
/// runs since, and 0.6 % larger.
const FAST_PARAMETERS: [CParameter; 3] = [
    CParameter::LiteralCompressionMode(ParamSwitch::Enable),
    CParameter::HashLog(12),
    CParameter::MinMatch(7),
];
/// Bytes between two looks, for each level below zero, and at most.
const FAST_STEP_BYTES: u32 = 3;
const MAX_STEP_BYTES: u32 = 1 << 17;

thread_local! {
    static COMPRESSORS: [RefCell<Option<(i32, Compressor<'static>)>>; 2] = const { [const { RefCell::new(None) }; 2] };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

impl Encoded {
    /// Encodes `data` to travel, compressed at zstd `level` when that saves at least a sixteenth. `data` is at most 4 GiB - 1.
    pub fn encode(data: Bytes, level: i32) -> Encoded {
        let plain_len = u32::try_from(data.len()).expect("encoded data is below 4 GiB");
        match compress(&data, level) {
            Some(bytes) => Encoded { codec: Codec::Zstd, plain_len, bytes: bytes.into() },
            None => Encoded { codec: Codec::Raw, plain_len, bytes: data },
        }
    }

    /// The plain bytes, which are `plain_len` and at most `max_len` long; no more than that is ever allocated.
    pub fn decode(&self, max_len: usize) -> Result<Bytes, DecodeError> {
        match self.codec {
            Codec::Raw => {
                check_length(self.codec, self.plain_len, &self.bytes, max_len)?;
                Ok(self.bytes.clone())
            }
            Codec::Zstd => decode(self.codec, self.plain_len, &self.bytes, max_len).map(Bytes::from),
        }
    }
}

/// `Some` when compression pays.
pub(crate) fn compress(data: &[u8], level: i32) -> Option<Vec<u8>> {
    let mut compressed = Vec::new();
    let pays = compress_onto(&mut compressed, data, level, data.len() >= LONG);
    compressed.shrink_to_fit();
    pays.then_some(compressed)
}

/// Appends `data` to `out`, encoded to lie in a pack, and says how that is.
pub(crate) fn encode_onto(out: &mut Vec<u8>, data: &[u8], level: i32) -> Codec {
    if compress_onto(out, data, level, false) {
        return Codec::Zstd;
    }
    out.extend_from_slice(data);
    Codec::Raw
}

/// Appends `data` compressed and is true when that pays; else `out` stays as it was.
fn compress_onto(out: &mut Vec<u8>, data: &[u8], level: i32, long: bool) -> bool {
    let limit = data.len() - data.len().div_ceil(WORTHWHILE);
    let start = out.len();
    out.reserve_exact(limit);
    COMPRESSORS.with(|slots| {
        let slot = &mut *slots[usize::from(long)].borrow_mut();
        let compressor = match slot {
            Some((at, compressor)) if *at == level => compressor,
            _ => match compressor(level, long) {
                Some(made) => &mut slot.insert((level, made)).1,
                None => return false,
            },
        };
        let mut end = Cursor::new(&mut *out);
        end.set_position(start as u64);
        // Out of room means that it did not pay.
        let pays = compressor.compress_to_buffer(data, &mut end).is_ok_and(|len| len <= limit);
        if !pays {
            out.truncate(start);
        }
        pays
    })
}

fn compressor(level: i32, long: bool) -> Option<Compressor<'static>> {
    let mut compressor = Compressor::new(level).ok()?;
    compressor.set_parameter(CParameter::WindowLog(WINDOW_LOG)).ok()?;
    if level < 0 {
        let step = level.unsigned_abs().saturating_mul(FAST_STEP_BYTES).min(MAX_STEP_BYTES);
        let mut parameters = FAST_PARAMETERS.into_iter().chain([CParameter::TargetLength(step)]);
        parameters.try_for_each(|parameter| compressor.set_parameter(parameter)).ok()?;
    }
    if long {
        compressor.set_parameter(CParameter::EnableLongDistanceMatching(true)).ok()?;
    }
    Some(compressor)
}

/// Decodes from a borrowed slice.
pub(crate) fn decode(
    codec: Codec,
    plain_len: u32,
    bytes: &[u8],
    max_len: usize,
) -> Result<Vec<u8>, DecodeError> {
    check_length(codec, plain_len, bytes, max_len)?;
    if codec == Codec::Raw {
        return Ok(bytes.to_vec());
    }
    let plain_len = plain_len as usize;
    let damaged = |reason: String| DecodeError::Damaged { reason };
    DECOMPRESSOR.with_borrow_mut(|slot| {
        let decompressor = match slot {
            Some(decompressor) => decompressor,
            None => slot.insert(Decompressor::new().map_err(|error| damaged(error.to_string()))?),
        };
        let mut plain = Vec::with_capacity(plain_len);
        decompressor.decompress_to_buffer(bytes, &mut plain).map_err(|error| damaged(error.to_string()))?;
        if plain.len() != plain_len {
            return Err(damaged(format!("{} plain bytes instead of {plain_len}", plain.len())));
        }
        Ok(plain)
    })
}

fn check_length(codec: Codec, plain_len: u32, bytes: &[u8], max_len: usize) -> Result<(), DecodeError> {
    if plain_len as usize > max_len {
        return Err(DecodeError::TooLong { plain_len, max_len });
    }
    if codec == Codec::Raw && bytes.len() != plain_len as usize {
        return Err(DecodeError::Damaged { reason: format!("{} bytes instead of {plain_len}", bytes.len()) });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
