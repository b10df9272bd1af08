//! The workload's parameters, as they travel on the kernel's command line: `longhaul.port=9000 longhaul.rate=64` and
//! so on. Parses and prints; does no I/O.

use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use crate::record;

const PREFIX: &str = "longhaul.";

/// What the guest does from boot until it is killed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// Where the probe packets go: QEMU's user networking makes this the host's loopback. When it is an IPv6 address, the
    /// guest makes its own of what its router advertises.
    pub host: IpAddr,
    /// The UDP port of the probe packets' receiver; 0 sends none.
    pub port: u16,
    /// The stream id in the probe packets.
    pub stream: u64,
    /// Milliseconds between two packets.
    pub probe_ms: u64,
    /// Records written in a second; 0 writes none.
    pub rate: u32,
    /// Bytes in a record.
    pub record_bytes: u32,
    /// Records between two flushes.
    pub group: u32,
    /// The size of the ring file in MiB.
    pub ring_mib: u32,
    /// The guest's own address, in a /24 whose `.2` is the gateway.
    pub address: Ipv4Addr,
}

impl Default for Workload {
    /// 64 records of 16 KiB a second (1 MiB/s), each flushed, in 256 MiB; a packet every 20 ms.
    fn default() -> Self {
        Self {
            host: IpAddr::V4(Ipv4Addr::new(10, 0, 2, 2)),
            port: 0,
            stream: 1,
            probe_ms: 20,
            rate: 64,
            record_bytes: 16 << 10,
            group: 1,
            ring_mib: 256,
            address: Ipv4Addr::new(10, 0, 2, 15),
        }
    }
}

/// What is wrong with a workload's parameters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WorkloadError {
    /// The value of this parameter does not parse.
    #[error("longhaul.{0}={1} on the kernel command line is not a value it can have")]
    Value(String, String),
    /// There is no such parameter.
    #[error("longhaul.{0} on the kernel command line is no parameter of the workload")]
    Unknown(String),
    /// The parameters contradict each other.
    #[error("the workload is impossible: {0}")]
    Impossible(&'static str),
}

impl Workload {
    /// Reads the parameters out of a kernel command line; what is not there keeps its default.
    ///
    /// # Errors
    /// [`WorkloadError`] names the parameter.
    pub fn from_cmdline(cmdline: &str) -> Result<Self, WorkloadError> {
        let mut w = Self::default();
        for (name, value) in cmdline
            .split_ascii_whitespace()
            .filter_map(|word| word.strip_prefix(PREFIX))
            .filter_map(|word| word.split_once('='))
        {
            match name {
                "host" => w.host = parse(name, value)?,
                "port" => w.port = parse(name, value)?,
                "stream" => w.stream = parse(name, value)?,
                "probe_ms" => w.probe_ms = parse(name, value)?,
                "rate" => w.rate = parse(name, value)?,
                "record" => w.record_bytes = parse(name, value)?,
                "group" => w.group = parse(name, value)?,
                "ring_mib" => w.ring_mib = parse(name, value)?,
                "address" => w.address = parse(name, value)?,
                _ => return Err(WorkloadError::Unknown(name.to_owned())),
            }
        }
        w.checked()
    }

    /// The parameters as words for a kernel command line.
    #[must_use]
    pub fn to_cmdline(&self) -> String {
        let Self { host, port, stream, probe_ms, rate, record_bytes, group, ring_mib, address } = self;
        [
            format!("{PREFIX}host={host}"),
            format!("{PREFIX}port={port}"),
            format!("{PREFIX}stream={stream}"),
            format!("{PREFIX}probe_ms={probe_ms}"),
            format!("{PREFIX}rate={rate}"),
            format!("{PREFIX}record={record_bytes}"),
            format!("{PREFIX}group={group}"),
            format!("{PREFIX}ring_mib={ring_mib}"),
            format!("{PREFIX}address={address}"),
        ]
        .join(" ")
    }

    /// How many records fit the ring.
    #[must_use]
    pub fn slots(&self) -> u64 {
        self.ring_bytes() / u64::from(self.record_bytes)
    }

    /// The size of the ring file in bytes.
    #[must_use]
    pub fn ring_bytes(&self) -> u64 {
        u64::from(self.ring_mib) << 20
    }

    /// The gateway of the guest's network.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        let [a, b, c, _] = self.address.octets();
        Ipv4Addr::new(a, b, c, 2)
    }

    fn checked(self) -> Result<Self, WorkloadError> {
        if !record::LENGTHS.contains(&self.record_bytes) || !self.record_bytes.is_multiple_of(512) {
            return Err(WorkloadError::Impossible("a record has 512 bytes to 1 MiB, a multiple of 512"));
        }
        if self.group == 0 || self.probe_ms == 0 {
            return Err(WorkloadError::Impossible("group and probe_ms start at 1"));
        }
        if self.slots() < 4 * u64::from(self.group)
            || !self.ring_bytes().is_multiple_of(u64::from(self.record_bytes))
        {
            return Err(WorkloadError::Impossible(
                "the ring holds a whole number of records, at least 4 groups",
            ));
        }
        Ok(self)
    }
}

fn parse<T: FromStr>(name: &str, value: &str) -> Result<T, WorkloadError> {
    value.parse().map_err(|_| WorkloadError::Value(name.to_owned(), value.to_owned()))
}
