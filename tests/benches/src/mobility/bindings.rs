//! How soon an anchor with many bindings has switched one of them: in what decides, by itself, and in the running home
//! agent, from a packet on the wire to its acknowledgement, before which the way is switched.

use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mobility::access::Grant;
use mobility::anchor::{Anchor, Authorization, Config, Output, Registrant};
use mobility::auth::{Algorithm, SharedKey};
use mobility::home_agent;
use mobility::wire::{BindingLifetime, Ipv6Prefix, MhType, MobilityHeader, TransientLifetime};
use mobility::{DataPlane, HomeAgent};
use mobility_lab::Running;
use mobility_lab::network::{ANCHOR, home_agent_config, join, namespace};
use mobility_lab::raw::{Raw, SIGNALLING, registration};
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

/// Measures both.
pub(super) fn measure(runtime: &Runtime, quick: bool) -> Result<Vec<Figure>> {
    let bindings = if quick { BINDINGS_QUICK } else { BINDINGS };
    let core = in_the_core(bindings)?;
    let socket = runtime.block_on(through_the_socket(bindings))?;
    let mut figures = Vec::new();
    for (case, samples) in [("core", core), ("socket", socket)] {
        for (metric, part) in [(P50, 0.5), (P99, 0.99)] {
            let value = samples.quantile(part).context("nothing was measured")?;
            println!("{} of {bindings}, {case}: {value:.4} ms", metric.name);
            let case = format!("{case}@{bindings}");
            figures.extend(Figure::new("mobility", &case, metric, &value.into(), None));
        }
    }
    Ok(figures)
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
    Ok(registration(&grant(number, platform)?, PLATFORMS[platform], 1, 600))
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
async fn through_the_socket(bindings: u32) -> Result<Samples> {
    let (anchor, platform) = (namespace()?, namespace()?);
    join((&anchor, "edge", "2001:db8:1::1/64"), (&platform, "edge", "2001:db8:1::2/64"))?;
    for address in PLATFORMS {
        platform.ip(&format!("address add {address}/64 dev edge nodad"))?;
    }
    let config = home_agent::Config { max_nodes: bindings as usize, ..home_agent_config(DataPlane::Tun) };
    let home_agent = Running::start(&anchor, async || HomeAgent::start(config).await)?;
    let (sender, receiver) = (Raw::sender(&platform)?, Raw::open(&platform, SIGNALLING)?);
    let bind = |number, at| -> Result<Duration> {
        let packet = update(number, at)?;
        let begin = Instant::now();
        sender.send(&packet)?;
        loop {
            let heard = receiver.hear(Duration::from_secs(1))?;
            let (_, message) = heard.with_context(|| format!("binding {number} is not answered"))?;
            // Others are revocations, which nobody here acknowledges.
            if MobilityHeader::new_checked(&message)?.mh_type() == MhType::BINDING_ACKNOWLEDGEMENT {
                return Ok(begin.elapsed());
            }
        }
    };
    for number in 0..bindings {
        for at in 0..2 {
            home_agent.handle.authorize(authorization(number, at)?).await??;
        }
        bind(number, 0)?;
    }
    let mut times = Samples::default();
    for number in switched(bindings) {
        times.push(ms(bind(number, 1)?));
    }
    for number in switched(bindings).take(100) {
        let binding = home_agent.handle.binding(&format!("vm-{number}")).await?.context("no binding")?;
        ensure!(binding.care_of == PLATFORMS[1], "binding {number} was not switched");
    }
    Ok(times)
}
