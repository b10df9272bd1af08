//! How soon an anchor with many bindings has switched one of them: in what decides, by itself, and in the running home
//! agent, from a packet on the wire to its acknowledgement, before which the way is switched, in the kernel's table where the
//! kernel carries packets, and the binding is on the disk where it is kept.

use std::fs::File;
use std::net::Ipv6Addr;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use longhaul::measured::Bindings;
use mobility::access::Grant;
use mobility::anchor::{Anchor, Authorization, Config, Output, Registrant};
use mobility::auth::{Algorithm, SharedKey};
use mobility::home_agent::{self, Keeper};
use mobility::wire::{BindingLifetime, Ipv6Prefix, MhType, MobilityHeader, TransientLifetime};
use mobility::{DataPlane, HomeAgent};
use mobility_lab::Running;
use mobility_lab::network::{ANCHOR, home_agent_config, join, namespace};
use mobility_lab::raw::{Raw, SIGNALLING, registration_at};
use tokio::runtime::Runtime;

use super::ms;
use crate::figures::{Better, Figure, Metric, Samples};

const P50: Metric = Metric { name: "bindings_p50", unit: "ms", better: Better::Less };
const P99: Metric = Metric { name: "bindings_p99", unit: "ms", better: Better::Less };

const BINDINGS: u32 = 100_000;
const BINDINGS_QUICK: u32 = 10_000;
/// How many of them are switched, and measured.
const SWITCHED: u32 = 10_000;

/// The platforms: where the mobile nodes are, and where those go that are switched.
const PLATFORMS: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0xa), Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0xb)];
/// Where they take tunnelled packets.
const USER_PLANES: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 1, 0xa), Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 1, 0xb)];
/// How many are registered at a time before anything is measured.
const AT_A_TIME: u32 = 64;

/// One way to run the home agent.
#[derive(Debug, Clone, Copy)]
struct Variant {
    name: &'static str,
    plane: DataPlane,
    /// Whether bindings are on the disk before they are acknowledged, as a daemon has it.
    is_kept: bool,
}

/// What decides, a daemon's socket on top of it, the kernel's routes on top of that, and then the disk.
const VARIANTS: [Variant; 3] = [
    Variant { name: "socket", plane: DataPlane::Tun, is_kept: false },
    Variant { name: "seg6", plane: DataPlane::Seg6, is_kept: false },
    Variant { name: "seg6-kept", plane: DataPlane::Seg6, is_kept: true },
];

/// Measures all of it, on the data planes that this kernel has.
pub(super) fn measure(runtime: &Runtime, planes: &[DataPlane], quick: bool) -> Result<Vec<Figure>> {
    let bindings = if quick { BINDINGS_QUICK } else { BINDINGS };
    let dir = tempfile::tempdir().context("a directory for bindings")?;
    let mut cases = vec![("core", in_the_core(bindings)?)];
    for variant in VARIANTS.into_iter().filter(|variant| planes.contains(&variant.plane)) {
        let keeper = variant.is_kept.then(|| Bindings::open(dir.path(), |_| true)).transpose()?;
        let keeper = keeper.map(|(bindings, _)| Box::new(bindings) as Box<dyn Keeper>);
        cases.push((variant.name, runtime.block_on(through_the_socket(bindings, variant.plane, keeper))?));
    }
    let disk = on_the_disk(dir.path())?;
    let mut figures = Vec::new();
    for (case, samples) in cases {
        for (metric, part) in [(P50, 0.5), (P99, 0.99)] {
            let value = samples.quantile(part).context("nothing was measured")?;
            println!("{} of {bindings}, {case}: {value:.4} ms", metric.name);
            let alone = disk.quantile(part).filter(|_| case == "seg6-kept").map(Samples::from);
            let peer = alone.as_ref().map(|alone| ("fdatasync", alone));
            figures.extend(Figure::new(
                "mobility",
                &format!("{case}@{bindings}"),
                metric,
                &value.into(),
                peer,
            ));
        }
    }
    let [p50, p99] = [0.5, 0.99].map(|part| disk.quantile(part).unwrap_or_default());
    println!("of the disk alone, a record written into a file and synced: {p50:.4} ms, p99 {p99:.4} ms");
    Ok(figures)
}

/// What the disk takes for as many bytes as a binding has.
fn on_the_disk(dir: &Path) -> Result<Samples> {
    let (file, record) = (File::create(dir.join("alone"))?, [b'x'; 250]);
    file.write_all_at(&vec![0; record.len() * SWITCHED as usize], 0)?;
    file.sync_all()?;
    let mut times = Samples::default();
    for number in 0..u64::from(SWITCHED) {
        let begin = Instant::now();
        file.write_all_at(&record, number * record.len() as u64)?;
        file.sync_data()?;
        times.push(ms(begin.elapsed()));
    }
    Ok(times)
}

/// The permission of a mobile node's platform, 0 or 1, which is its epoch too.
fn grant(number: u32, platform: usize) -> Result<Grant> {
    let spi = 1000 + 2 * number + platform as u32;
    let key = SharedKey::new(spi, Algorithm::HmacSha256_128, &spi.to_be_bytes());
    let [high, low] = [number >> 16, number].map(|half| half as u16);
    let prefix = Ipv6Prefix::new(Ipv6Addr::new(0x2001, 0xdb8, 0xf, 0, high, low, 0, 0), 96);
    Ok(Grant {
        key,
        node: format!("vm-{number}").into_bytes(),
        prefix: prefix.context("96 is a length")?,
        ipv4: None,
    })
}

fn authorization(number: u32, platform: usize) -> Result<Authorization> {
    let Grant { key, node, prefix, ipv4 } = grant(number, platform)?;
    let registrant = Registrant::Gateway { address: PLATFORMS[platform], epoch: platform as u64 };
    Ok(Authorization { key, node, prefix, ipv4, registrant })
}

fn update(number: u32, platform: usize) -> Result<Vec<u8>> {
    let at = Some(USER_PLANES[platform]);
    Ok(registration_at(&grant(number, platform)?, PLATFORMS[platform], at, 1, 600))
}

/// Those that are switched, spread over all.
fn switched(bindings: u32) -> impl Iterator<Item = u32> {
    let count = SWITCHED.min(bindings);
    // A number without a factor in common with either count.
    (0..count).map(move |number| (u64::from(number) * 7_919 % u64::from(bindings)) as u32)
}

/// From the update handed in to the route named.
fn in_the_core(bindings: u32) -> Result<Samples> {
    let mut anchor = Anchor::new(Config {
        address: ANCHOR,
        user_plane: None,
        max_nodes: bindings as usize,
        max_lifetime: BindingLifetime::from_secs(600),
        max_transient: TransientLifetime::from_ms(10_000),
        restart_counter: 0,
        started_unix_ns: 0,
    });
    let start = Instant::now();
    for number in 0..bindings {
        for platform in 0..2 {
            anchor.authorize(authorization(number, platform)?)?;
        }
        anchor.handle_packet(start.elapsed(), 0, &update(number, 0)?)?;
        while anchor.poll_output().is_some() {}
    }
    let mut times = Samples::default();
    for number in switched(bindings) {
        let packet = update(number, 1)?;
        let begin = Instant::now();
        anchor.handle_packet(start.elapsed(), 0, &packet)?;
        let output = anchor.poll_output();
        times.push(ms(begin.elapsed()));
        ensure!(matches!(output, Some(Output::SwitchRoute { .. })), "binding {number} was not switched");
        while anchor.poll_output().is_some() {}
    }
    Ok(times)
}

/// From the update sent to its acknowledgement.
async fn through_the_socket(
    bindings: u32,
    plane: DataPlane,
    keeper: Option<Box<dyn Keeper>>,
) -> Result<Samples> {
    let (anchor, platform) = (namespace()?, namespace()?);
    join((&anchor, "edge", "2001:db8:1::1/64"), (&platform, "edge", "2001:db8:1::2/64"))?;
    for address in [PLATFORMS, USER_PLANES].concat() {
        platform.ip(&format!("address add {address}/64 dev edge nodad"))?;
    }
    let config = home_agent::Config { max_nodes: bindings as usize, ..home_agent_config(plane) };
    let home_agent = Running::start(&anchor, async || HomeAgent::start(config, keeper).await)?;
    let (sender, receiver) = (Raw::sender(&platform)?, Raw::open(&platform, SIGNALLING)?);
    let answered = |number| loop {
        let heard = receiver.hear(Duration::from_secs(10))?;
        let (_, message) = heard.with_context(|| format!("binding {number} is not answered"))?;
        // Others are revocations, which nobody here acknowledges.
        if MobilityHeader::new_checked(&message)?.mh_type() == MhType::BINDING_ACKNOWLEDGEMENT {
            return anyhow::Ok(());
        }
    };
    for first in (0..bindings).step_by(AT_A_TIME as usize) {
        let some = first..bindings.min(first + AT_A_TIME);
        for number in some.clone() {
            for at in 0..2 {
                home_agent.handle.authorize(authorization(number, at)?).await??;
            }
            sender.send(&update(number, 0)?)?;
        }
        some.into_iter().try_for_each(answered)?;
    }
    let mut times = Samples::default();
    for number in switched(bindings) {
        let packet = update(number, 1)?;
        let begin = Instant::now();
        sender.send(&packet)?;
        answered(number)?;
        times.push(ms(begin.elapsed()));
    }
    for number in switched(bindings).take(100) {
        let binding = home_agent.handle.binding(&format!("vm-{number}")).await?.context("no binding")?;
        ensure!(binding.care_of == PLATFORMS[1], "binding {number} was not switched");
        if plane != DataPlane::Tun {
            let route = anchor.ip(&format!("-6 route show {}", grant(number, 1)?.prefix))?;
            ensure!(route.contains("lh-anchor."), "binding {number} is not in the kernel: {route:?}");
        }
    }
    Ok(times)
}
