//! How fast a guest is reached through its tunnel, beside plain routing through the same namespaces. The line that takes
//! time is left out: it would be slower than either.

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;
use mobility::DataPlane;
use mobility_lab::Network;
use mobility_lab::connections::Connection;

use crate::figures::{Better, Figure, Metric, Samples};

const TUNNEL_RATE: Metric = Metric { name: "tunnel_rate", unit: "Gb/s", better: Better::More };
/// For how long bytes are sent.
const TIME: Duration = Duration::from_secs(2);

/// On the data plane that is named, or each that this kernel has, by turns through the tunnel and without. Gives those
/// planes too, the best first.
pub(super) fn measure(only: Option<DataPlane>, runs: u32) -> Result<(Vec<DataPlane>, Vec<Figure>)> {
    let (mut planes, mut figures) = (Vec::new(), Vec::new());
    for plane in DataPlane::ALL.into_iter().filter(|plane| only.is_none_or(|only| only == *plane)) {
        match Network::direct([plane; 3]) {
            Ok(network) => {
                planes.push(plane);
                figures.extend(on_plane(plane, &network, runs)?);
            }
            Err(error) => println!("tunnel_rate: {plane} is left out: {error:#}"),
        }
    }
    Ok((planes, figures))
}

/// The data planes that this kernel has, the best first.
pub(super) fn planes() -> Vec<DataPlane> {
    DataPlane::ALL.into_iter().filter(|plane| Network::direct([*plane; 3]).is_ok()).collect()
}

fn on_plane(plane: DataPlane, network: &Network, runs: u32) -> Result<Option<Figure>> {
    let plain_address = network.add_plain_way()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(network.appear(0, 1))?;
    let (mut tunnel, mut plain) = (Samples::default(), Samples::default());
    for _ in 0..runs {
        tunnel.push(rate(network, Network::target(4001))?);
        plain.push(rate(network, (plain_address, 4001).into())?);
    }
    println!("tunnel_rate: {} Gb/s by {plane}, {} Gb/s by plain routing", tunnel.show(), plain.show());
    Ok(Figure::new("mobility", plane.name(), TUNNEL_RATE, &tunnel, Some(("plain routing", &plain))))
}

/// In Gb/s.
fn rate(network: &Network, target: SocketAddr) -> Result<f64> {
    let bulk = Connection::bulk(&network.correspondent, &network.guest, target)?;
    let start = Instant::now();
    sleep(TIME);
    let bytes = bulk.finish()?;
    Ok(bytes as f64 * 8.0 / 1e9 / start.elapsed().as_secs_f64())
}
