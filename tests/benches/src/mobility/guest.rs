//! The moves under Debian's kernel in an emulated machine: with that kernel's own tunnels (ip6_tunnel) and its own delay (netem). This same program runs there. Its times are an emulator's: more than
//! what a machine would take.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::lab::{Trial, apt};
use mobility::DataPlane;
use mobility_lab::{Network, Roaming};
use tokio::runtime::Runtime;

use super::{Point, figures, measure, measure_node};
use crate::figures::json_lines;
use crate::options::Options;

/// How long the machine may take to start, and for one point of one run: many times what it does.
const START: Duration = Duration::from_secs(60);
const POINT: Duration = Duration::from_secs(30);

/// Runs it in the guest: its figures, one JSON object a line.
pub(super) fn run(options: &Options) -> Result<String> {
    let points = options.points.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let runs = options.runs.to_string();
    let arguments = ["mobility", "--part", "netem", "--runs", &runs, "--points", &points].map(str::to_owned);
    apt::install(apt::ROUTER)?;
    let program = std::env::current_exe().context("finding this program")?;
    let trial = Trial {
        modules: vec![
            "bridge",
            "veth",
            "tun",
            "ip6_tunnel",
            "sch_netem",
            "sch_ingress",
            "cls_u32",
            "act_gact",
        ],
        tools: vec!["ip", "bridge", "tc", "radvd"],
        programs: vec![(program, arguments.to_vec())],
    };
    let patience = START + POINT * options.runs * options.points.len() as u32;
    let ended = trial.run(patience)?.pop().context("a program that was run")?;
    ensure!(ended.status == Some(0), "in the guest ({:?}):\n{}", ended.status, ended.output);
    let lines = ended.output.lines().filter(|line| line.starts_with('{'));
    Ok(lines.map(|line| format!("{line}\n")).collect())
}

/// What runs there.
pub(super) fn in_the_guest(runtime: &Runtime, options: &Options) -> Result<()> {
    let mut points: Vec<Point> = options.points.iter().map(|ms| Point::at(*ms)).collect();
    for run in 1..=options.runs {
        for point in &mut points {
            let plane = options.plane.unwrap_or(DataPlane::Ip6tnl);
            Network::with_netem([plane; 3], point.round_trip())
                .and_then(|network| measure(runtime, &network, point))
                .and_then(|()| Roaming::with_netem(plane, point.round_trip()))
                .and_then(|network| measure_node(runtime, &network, point))
                .with_context(|| format!("run {run} at {:?} of round trip", point.round_trip()))?;
        }
    }
    let figures: Vec<_> = points.iter().flat_map(figures).map(|figure| figure.within("guest")).collect();
    print!("{}", json_lines(&figures)?);
    Ok(())
}
