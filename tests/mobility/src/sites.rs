//! The real daemons in the lab's network: a home agent and two platforms, and a real guest whose address follows it.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use harness::guest::DISK;
use harness::{Collector, Guest, Lab, Platform};

use crate::Wires;
use crate::network::HOME_IPV4;
use crate::wires::{CORRESPONDENT_IPV4, Host};

/// The guest's name.
pub const VM: &str = "wanderer";
/// The guest's address: the prefix with an identifier made of its link-layer address (RFC 4291 appendix A).
pub const GUEST: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xf, 1, 0x5054, 0xff, 0xfe12, 0x3456);
const MAC: &str = "52:54:00:12:34:56";
const PREFIX: &str = "2001:db8:f:1::/64";
const TAP: &str = "tap-wanderer";
const PORT: u16 = 7200;

/// A home agent, two platforms, and what is heard of the guest where the correspondent is.
#[derive(Debug)]
pub struct Sites {
    /// The home agent.
    pub home: Platform,
    /// The platforms `a` and `b`.
    pub platforms: [Platform; 2],
    /// Hears the guest, in the correspondent's namespace.
    pub collector: Collector,
    /// The guest, whose disk is on `a`.
    pub guest: Guest,
    /// The network they are in.
    pub wires: Wires,
}

fn platform(host: &Host, name: &str, config: &str) -> Result<Platform> {
    let listen = SocketAddr::from((host.address, PORT));
    let mut platform = Platform::within(&host.namespace, listen, name, config)?;
    platform.start()?;
    Ok(platform)
}

impl Sites {
    /// Starts the daemons, who trust each other; the guest is not started.
    ///
    /// # Errors
    /// When one does not come up.
    pub fn start(lab: &Lab, base: &Path, round_trip: Duration) -> Result<Self> {
        Self::start_hearing(lab, base, round_trip, false)
    }

    /// As [`start`](Self::start), with a guest that speaks over IPv4.
    ///
    /// # Errors
    /// When a daemon does not come up.
    pub fn start_ipv4(lab: &Lab, base: &Path, round_trip: Duration) -> Result<Self> {
        Self::start_hearing(lab, base, round_trip, true)
    }

    fn start_hearing(lab: &Lab, base: &Path, round_trip: Duration, over_ipv4: bool) -> Result<Self> {
        let wires = Wires::lay(Some(1))?;
        wires.set_round_trip(round_trip);
        let anchor = wires.anchor.address;
        let home = format!(
            "[home_agent]\naddress = \"{anchor}\"\nprefixes = [\"2001:db8:f::/48\"]\n\
             ipv4_prefixes = [\"198.51.100.0/24\"]"
        );
        let home = platform(&wires.anchor, "home", &home)?;
        let mobility = |host: &Host| {
            let own = host.address;
            format!(
                "[mobility]\naddress = \"{own}\"\nhome_agent = \"home\"\nhome_agent_address = \"{anchor}\""
            )
        };
        let [a, b] = &wires.platforms;
        let platforms = [platform(a, "a", &mobility(a))?, platform(b, "b", &mobility(b))?];
        let all = [&home, &platforms[0], &platforms[1]];
        for one in all {
            for other in all.into_iter().filter(|other| other.name() != one.name()) {
                one.trust(other, other.address())?;
            }
        }
        let correspondent = &wires.correspondent;
        let heard_at =
            if over_ipv4 { IpAddr::from(CORRESPONDENT_IPV4) } else { correspondent.address.into() };
        let collector = Collector::within(&correspondent.namespace, heard_at)?;
        let disk = platforms[0].place_disk(VM, base)?;
        let mut guest = Guest::new(lab, VM, &disk, collector.port());
        guest.workload.host = heard_at;
        guest.workload.address = HOME_IPV4;
        guest.home_ipv4 = over_ipv4.then(|| format!("{HOME_IPV4}/24"));
        guest.workload.ring_mib = 32;
        guest.home = Some([TAP, MAC, PREFIX].map(str::to_owned));
        Ok(Self { home, platforms, collector, guest, wires })
    }

    /// What the destination says of the address after a move to it.
    ///
    /// # Errors
    /// When nothing has come there.
    pub fn rebind_note(&self, at: usize) -> Result<String> {
        let jobs = self.platforms[at].cli(&["job", "list"])?;
        let last = jobs.as_array().and_then(|jobs| jobs.iter().rev().find(|job| job["kind"] == "migrate_in"));
        let notes = last.context("an incoming job")?["notes"].as_array().cloned().unwrap_or_default();
        Ok(notes.iter().filter_map(|note| note.as_str()).collect::<Vec<_>>().join("; "))
    }

    /// Starts the guest on `a` and waits until it has been heard.
    ///
    /// # Errors
    /// When it is not heard.
    pub fn boot(&self, patience: Duration) -> Result<()> {
        self.platforms[0].start_guest(&self.guest)?;
        self.collector.wait_acked(16, patience).with_context(|| {
            let asked = [&self.home, &self.platforms[0]]
                .map(|site| site.cli_text(&["addresses"]).unwrap_or_default());
            format!("the guest was not heard over its own address: {}", asked.join("\n"))
        })?;
        Ok(())
    }

    /// Where the guest's image is on a platform.
    #[must_use]
    pub fn image(&self, at: usize) -> std::path::PathBuf {
        self.platforms[at].image(VM, DISK)
    }
}
