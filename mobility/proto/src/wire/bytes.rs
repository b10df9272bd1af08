//! Reading big-endian fields off the front of a slice. Never reads past the end, never panics, never allocates.

use std::net::{Ipv4Addr, Ipv6Addr};

/// What is left of a slice.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Everything that is left.
    pub(super) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    pub(super) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    pub(super) fn ipv4(&mut self) -> Option<Ipv4Addr> {
        self.array::<4>().map(Ipv4Addr::from)
    }

    pub(super) fn ipv6(&mut self) -> Option<Ipv6Addr> {
        self.array::<16>().map(Ipv6Addr::from)
    }
}

/// The type and the data of each option of a type-length-value list as RFC 6275 section 6.2 and RFC 8200 section 4.2
/// lay it out: type 0 is one byte alone. Ends behind an option that is cut off, which it gives as `None`.
pub(super) struct Options<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Options<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }
}

/// One option of a list.
pub(super) struct RawOption<'a> {
    /// Where it begins in the list.
    pub(super) at: usize,
    pub(super) kind: u8,
    /// What follows type and length.
    pub(super) data: &'a [u8],
}

impl<'a> Iterator for Options<'a> {
    type Item = Option<RawOption<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        let at = self.at;
        let mut reader = Reader::new(self.bytes.get(at..)?);
        let kind = reader.u8()?;
        let data = match kind {
            0 => Some(&[][..]),
            _ => reader.u8().and_then(|len| reader.take(len.into())),
        };
        self.at = self.bytes.len() - reader.rest().len();
        if data.is_none() {
            self.at = self.bytes.len();
        }
        Some(data.map(|data| RawOption { at, kind, data }))
    }
}

/// Appends padding options until the next option may begin, at a position `y` past a multiple of `x` from the start of
/// `out` (RFC 6275 sections 6.2.2 and 6.2.3; RFC 8200 section 4.2 has the same two).
pub(super) fn pad(out: &mut Vec<u8>, (x, y): (usize, usize)) {
    let gap = (x + y - out.len() % x) % x;
    match gap {
        0 => {}
        1 => out.push(0),
        _ => {
            out.extend([1, (gap - 2) as u8]);
            out.resize(out.len() + gap - 2, 0);
        }
    }
}
