//! Quantities with the units and the arithmetic that the RFCs give them. Nothing here reads a clock.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

const NS_PER_S: u64 = 1_000_000_000;

/// How long a binding lasts, in units of 4 seconds (RFC 6275 sections 6.1.7 and 6.1.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct BindingLifetime(pub u16);

impl BindingLifetime {
    /// Asks for, or grants, the end of the binding.
    pub const ZERO: Self = Self(0);

    /// The longest lifetime not over `seconds`.
    #[must_use]
    pub fn from_secs(seconds: u32) -> Self {
        Self(u16::try_from(seconds / 4).unwrap_or(u16::MAX))
    }

    /// In seconds.
    #[must_use]
    pub fn as_secs(self) -> u32 {
        u32::from(self.0) * 4
    }
}

/// How long a transient binding lasts, in units of 100 milliseconds (RFC 6058 section 5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TransientLifetime(pub u8);

impl TransientLifetime {
    /// The longest lifetime not over `ms` milliseconds.
    #[must_use]
    pub fn from_ms(ms: u32) -> Self {
        Self(u8::try_from(ms / 100).unwrap_or(u8::MAX))
    }

    /// In milliseconds.
    #[must_use]
    pub fn as_ms(self) -> u32 {
        u32::from(self.0) * 100
    }
}

/// The sequence number of a Binding Update, a counter modulo 2^16 (RFC 6275 section 9.5.1). It has no order that `<`
/// could mean: half of all numbers lie ahead of any number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct SequenceNumber(pub u16);

impl SequenceNumber {
    /// Whether this number is one of the 32767 that come after `last`. The others, `last` itself among them, are stale:
    /// status 135, with the last number that was accepted.
    #[must_use]
    pub fn follows(self, last: Self) -> bool {
        (1..=0x7fff).contains(&self.0.wrapping_sub(last.0))
    }

    /// The number that comes next.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }
}

impl fmt::Display for SequenceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The time of the Timestamp option (RFC 5213 section 8.8): since 1970 in UTC, 48 bits of seconds and 16 of 1/65536
/// second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The time `ns` nanoseconds after 1970 began.
    #[must_use]
    pub fn from_unix_ns(ns: u64) -> Self {
        Self(((ns / NS_PER_S) << 16) | (((ns % NS_PER_S) << 16) / NS_PER_S))
    }

    /// Nanoseconds since 1970 began; the highest number for what no `u64` of them can say (after the year 2554).
    #[must_use]
    pub fn as_unix_ns(self) -> u64 {
        // Rounded up, so that making a timestamp of it again gives this one.
        let fraction_ns = ((self.0 & 0xffff) * NS_PER_S).div_ceil(1 << 16);
        (self.0 >> 16).saturating_mul(NS_PER_S).saturating_add(fraction_ns)
    }

    /// The timestamp to send now when `last` was sent before, by whichever host: each is later than the one before,
    /// whatever the hosts' clocks say.
    #[must_use]
    pub fn after(self, last: Self) -> Self {
        self.max(Self(last.0.saturating_add(1)))
    }
}

/// The time of the mobility message replay protection option (RFC 4285 section 6): the NTP format, since 1900 in UTC, 32
/// bits of seconds and 32 of 1/2^32 second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NtpTimestamp(pub u64);

impl NtpTimestamp {
    /// From 1900 to 1970, in seconds: 70 years, 17 of them leap years.
    const UNIX_EPOCH_S: u64 = (70 * 365 + 17) * 86_400;

    /// The time `ns` nanoseconds after 1970 began. Wraps in 2036, as the format does.
    #[must_use]
    pub fn from_unix_ns(ns: u64) -> Self {
        let seconds = ns / NS_PER_S + Self::UNIX_EPOCH_S;
        Self((seconds << 32) | (((ns % NS_PER_S) << 32) / NS_PER_S))
    }
}

/// An IPv6 prefix. Two are equal when they cover the same addresses: the bits behind the prefix are always zero.
///
/// One of IPv4-mapped addresses (RFC 4291 section 2.5.5.2) stands for IPv4 addresses, so that one table holds both. No packet
/// has such an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ipv6Prefix {
    address: Ipv6Addr,
    len: u8,
}

impl Ipv6Prefix {
    /// The prefix of `len` bits in which `address` lies; `None` when `len` is over 128.
    #[must_use]
    pub fn new(address: Ipv6Addr, len: u8) -> Option<Self> {
        let mask = match len {
            0 => 0,
            1..=128 => u128::MAX << (128 - len),
            _ => return None,
        };
        Some(Self { address: (u128::from(address) & mask).into(), len })
    }

    /// What stands for the IPv4 prefix of `len` bits in which `address` lies; `None` when `len` is over 32.
    #[must_use]
    pub fn of_ipv4(address: Ipv4Addr, len: u8) -> Option<Self> {
        Self::new(address.to_ipv6_mapped(), len.checked_add(96).filter(|_| len <= 32)?)
    }

    /// The lowest address and the length of the IPv4 prefix that this one stands for, if it does.
    #[must_use]
    pub fn as_ipv4(self) -> Option<(Ipv4Addr, u8)> {
        Some((self.address.to_ipv4_mapped()?, self.len.checked_sub(96)?))
    }

    /// Its lowest address.
    #[must_use]
    pub fn address(self) -> Ipv6Addr {
        self.address
    }

    /// Its length in bits, at most 128.
    #[must_use]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(self) -> u8 {
        self.len
    }

    /// Whether `address` lies in it.
    #[must_use]
    pub fn contains(self, address: Ipv6Addr) -> bool {
        Self::new(address, self.len) == Some(self)
    }
}

impl fmt::Display for Ipv6Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

/// An IPv4 address and the length of the prefix on its link, as RFC 5555 and RFC 5844 carry them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ipv4Interface {
    address: Ipv4Addr,
    prefix_len: u8,
}

impl Ipv4Interface {
    /// `None` when `prefix_len` is over 32.
    #[must_use]
    pub fn new(address: Ipv4Addr, prefix_len: u8) -> Option<Self> {
        (prefix_len <= 32).then_some(Self { address, prefix_len })
    }

    /// The address.
    #[must_use]
    pub fn address(self) -> Ipv4Addr {
        self.address
    }

    /// The length of the prefix in bits, at most 32.
    #[must_use]
    pub fn prefix_len(self) -> u8 {
        self.prefix_len
    }

    /// The mask of its network.
    #[must_use]
    pub fn mask(self) -> Ipv4Addr {
        u32::MAX.checked_shl(32 - u32::from(self.prefix_len)).unwrap_or(0).into()
    }

    /// What stands for the address alone among prefixes.
    #[must_use]
    pub fn host(self) -> Ipv6Prefix {
        Ipv6Prefix { address: self.address.to_ipv6_mapped(), len: 128 }
    }

    /// The default router that a host with this address has unless it is told another: the first address of its network, the
    /// second when it has that itself. A network of one address or two has none, so there it is one for the link alone.
    #[must_use]
    pub fn router(self) -> Ipv4Addr {
        const ON_LINK: Ipv4Addr = Ipv4Addr::new(169, 254, 82, 19);
        let first = u32::from(self.address & self.mask()) + 1;
        match u32::from(self.address) {
            _ if self.prefix_len > 30 => ON_LINK,
            own if own == first => (first + 1).into(),
            _ => first.into(),
        }
    }
}

impl fmt::Display for Ipv4Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_len)
    }
}
