//! `bench mobility`: how long a guest is out of reach when it moves, how fast its tunnel is, how soon a large anchor
//! switches. All of it in the lab's network namespaces with the real agents. It never measures a hypervisor: the guest is a
//! namespace, its pause is 20 ms, and what the same pause costs without a move is taken off.
//!
//! Each run has a network of its own: the guest is registered, paused and resumed where it is (the control), moves to the
//! other platform, which was prepared, and back to the first, which was not. Then another, whose guest is a mobile node
//! that the platforms know nothing of: it is unplugged and plugged in again where it is (its control), then at the other
//! platform, whose router advertises as often as the paper's.

mod bindings;
mod drawing;
mod guest;
mod rates;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use harness::{Namespace, files};
use mobility::DataPlane;
use mobility_lab::{Heard, Network, Roaming, Stream};
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::time::sleep;

use crate::figures::{Better, Figure, Metric, Samples, json_lines, short, table};
use crate::machine;
use crate::options::{Options, Part};
use drawing::{Curve, Spot, drawing};

const GAP: Metric = Metric { name: "gap", unit: "ms", better: Better::Less };
/// One value: that of all runs.
const GAP_P95: Metric = Metric { name: "gap_p95", unit: "ms", better: Better::Less };
const LOST: Metric = Metric { name: "lost", unit: "packets", better: Better::Less };
const REORDERED: Metric = Metric { name: "reordered", unit: "packets", better: Better::Less };
/// From the word that the guest runs, or from the carrier of a mobile node's link, to the acknowledgement.
const REGISTRATION: Metric = Metric { name: "registration", unit: "ms", better: Better::Less };

/// Kinds of moves, by their names in cases and in the drawing.
const KINDS: [(&str, &str); 3] = [
    ("node", "mobile node in the guest"),
    ("proxy-reactive", "not expected"),
    ("proxy-proactive", "expected"),
];

/// For how long the guest is paused.
const PAUSE: Duration = Duration::from_millis(20);
/// Between two packets of the stream: as finely as a gap can be measured.
const INTERVAL: Duration = Duration::from_millis(1);

/// What was measured of one kind of move at one point.
#[derive(Debug, Default)]
struct Moved {
    gap: Samples,
    lost: Samples,
    reordered: Samples,
}

/// What was measured at one point.
#[derive(Debug, Default)]
struct Point {
    round_trip_ms: u32,
    registration: Samples,
    /// The gap of the pause alone.
    control: Samples,
    proactive: Moved,
    reactive: Moved,
    node_registration: Samples,
    node_control: Samples,
    node: Moved,
}

impl Point {
    fn at(round_trip_ms: u32) -> Self {
        Self { round_trip_ms, ..Self::default() }
    }

    fn round_trip(&self) -> Duration {
        Duration::from_millis(self.round_trip_ms.into())
    }

    /// Each kind of move, with how long the first registration took and the gap of its pause alone.
    fn moved(&self) -> [(&'static str, &Moved, &Samples, &Samples); 3] {
        [
            ("proxy-proactive", &self.proactive, &self.registration, &self.control),
            ("proxy-reactive", &self.reactive, &self.registration, &self.control),
            ("node", &self.node, &self.node_registration, &self.node_control),
        ]
    }
}

/// Runs the benchmark, prints its table and writes its figures, and beside them, as `.svg`, the drawing.
///
/// # Errors
/// When the network cannot be made, or a move fails.
pub(crate) fn run(options: &Options) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let has = |part| options.part.is_none_or(|only| only == part);
    match (options.part, &options.json) {
        (Some(Part::Guest), json) => {
            let lines = guest::run(options)?;
            print!("{lines}");
            return json.as_ref().map_or(Ok(()), |file| write(file, &lines));
        }
        (Some(Part::Netem), _) => return guest::in_the_guest(&runtime, options),
        (Some(Part::Drawing), json) => {
            let file = json.as_ref().context("name the file with the figures: --json FILE")?;
            return write(file, &std::fs::read_to_string(file).context("reading the figures")?);
        }
        _ => {}
    }
    let mut more = Vec::new();
    let planes = if has(Part::Rates) {
        let (planes, rates) = rates::measure(options.plane, options.runs.min(5))?;
        more.extend(rates);
        planes
    } else {
        rates::planes()
    };
    if has(Part::Bindings) {
        more.extend(bindings::measure(&runtime, &planes, options.quick)?);
    }
    if has(Part::Moves) {
        let best = planes.first().copied();
        let plane = options.plane.or(best).context("no data plane works here: is there a /dev/net/tun?")?;
        moves(&runtime, plane, options, &more)?;
    } else if let Some(file) = &options.json {
        files::write(file, json_lines(&more)?)?;
    }
    println!("{}", json_lines(&more)?);
    Ok(())
}

/// Writes figures and the drawing of them.
fn write(file: &Path, lines: &str) -> Result<()> {
    files::write(file, lines)?;
    files::write(&file.with_extension("svg"), draw(lines)?)
}

fn moves(runtime: &Runtime, plane: DataPlane, options: &Options, more: &[Figure]) -> Result<()> {
    let mut points: Vec<Point> = options.points.iter().map(|ms| Point::at(*ms)).collect();
    for run in 1..=options.runs {
        for point in &mut points {
            let round_trip = point.round_trip();
            Network::start([plane; 3], round_trip)
                .and_then(|network| measure(runtime, &network, point))
                .and_then(|()| Roaming::start(plane, round_trip))
                .and_then(|network| measure_node(runtime, &network, point))
                .with_context(|| format!("run {run} at {round_trip:?} of round trip"))?;
        }
        println!("run {run} of {} on data plane {plane}", options.runs);
        // After each run, so that a later failure does not take the earlier figures with it.
        if let Some(file) = &options.json {
            let all: Vec<Figure> = points.iter().flat_map(figures).chain(more.iter().cloned()).collect();
            write(file, &json_lines(&all)?)?;
        }
    }
    println!("\n{}", report(&points)?);
    Ok(())
}

/// One run.
fn measure(runtime: &Runtime, network: &Network, point: &mut Point) -> Result<()> {
    let round_trip = point.round_trip();
    runtime.block_on(async {
        point.registration.push(ms(network.appear(0, 1).await?));
        let ends = (&network.correspondent, &network.guest);
        let control = heard(ends, round_trip, async || {
            network.pause(0)?;
            sleep(PAUSE).await;
            network.resume(0)
        })
        .await?;
        let control = ms(control.longest_gap);
        point.control.push(control);
        let moved = heard(ends, round_trip, async || network.move_proactive(1, 2, PAUSE).await).await?;
        point.proactive.push(&moved, control);
        let moved = heard(ends, round_trip, async || network.move_reactive(0, 3, PAUSE).await).await?;
        point.reactive.push(&moved, control);
        Ok(())
    })
}

/// One run of a mobile node.
fn measure_node(runtime: &Runtime, network: &Roaming, point: &mut Point) -> Result<()> {
    let round_trip = point.round_trip();
    runtime.block_on(async {
        point.node_registration.push(ms(network.appear(0).await?));
        let ends = (&network.correspondent, &network.guest);
        let control = heard(ends, round_trip, async || {
            network.unplug(0)?;
            sleep(PAUSE).await;
            network.plug(0)
        })
        .await?;
        let control = ms(control.longest_gap);
        point.node_control.push(control);
        let moved = heard(ends, round_trip, async || network.move_to(1, PAUSE).await).await?;
        point.node.push(&moved, control);
        Ok(())
    })
}

impl Moved {
    fn push(&mut self, heard: &Heard, control_ms: f64) {
        self.gap.push(ms(heard.longest_gap) - control_ms);
        self.lost.push(heard.lost() as f64);
        self.reordered.push(heard.reordered as f64);
    }
}

/// What is heard of a stream while `work` goes on.
async fn heard(
    (from, to): (&Arc<Namespace>, &Arc<Namespace>),
    round_trip: Duration,
    work: impl AsyncFnOnce() -> Result<()>,
) -> Result<Heard> {
    let stream = Stream::start(from, to, Network::target(4000), INTERVAL)?;
    let margin = Duration::from_millis(100);
    sleep(round_trip + margin).await;
    work().await?;
    // What is sent now must come the new way, and what came the old way has come.
    sleep(2 * round_trip + margin).await;
    stream.finish(round_trip + margin)
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn figures(point: &Point) -> Vec<Figure> {
    let new = |mode: &str, metric, samples: &Samples| {
        let case = format!("{mode}@{}ms", point.round_trip_ms);
        Figure::new("mobility", &case, metric, samples, None)
    };
    let mut all = vec![
        new("proxy", REGISTRATION, &point.registration),
        new("control", GAP, &point.control),
        new("node", REGISTRATION, &point.node_registration),
        new("node-control", GAP, &point.node_control),
    ];
    for (mode, moved, ..) in point.moved() {
        all.push(new(mode, GAP, &moved.gap));
        all.push(moved.gap.quantile(0.95).and_then(|p95| new(mode, GAP_P95, &p95.into())));
        all.push(new(mode, LOST, &moved.lost));
        all.push(new(mode, REORDERED, &moved.reordered));
    }
    all.into_iter().flatten().collect()
}

fn report(points: &[Point]) -> Result<String> {
    let heads = ["RTT, ms", "registration, ms", "control, ms", "mode", "gap, ms", "p95", "lost", "reordered"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    for point in points {
        for (mode, moved, registration, control) in point.moved() {
            rows.push(vec![
                point.round_trip_ms.to_string(),
                registration.show(),
                control.show(),
                mode.to_owned(),
                moved.gap.show(),
                moved.gap.quantile(0.95).map(short).unwrap_or_default(),
                moved.lost.show(),
                moved.reordered.show(),
            ]);
        }
    }
    Ok(format!(
        "{}\nmedian (min-max), gaps without that of the control; {}\n",
        table(&rows),
        machine::describe()?
    ))
}

/// The drawing of figures, one JSON object a line.
fn draw(lines: &str) -> Result<String> {
    let mut curves = KINDS.map(|(_, name)| Curve { name, spots: Vec::new() });
    for line in lines.lines() {
        let figure: Value = serde_json::from_str(line).with_context(|| format!("no figure: {line}"))?;
        let case = figure["case"].as_str().and_then(|case| case.strip_suffix("ms")?.split_once('@'));
        let Some((kind, at)) = case.filter(|_| figure["metric"] == GAP.name) else { continue };
        let number = |name: &str| figure[name].as_f64().with_context(|| format!("no {name}: {line}"));
        let spot =
            Spot { at: at.parse()?, min: number("min")?, median: number("value")?, max: number("max")? };
        let curve = KINDS.iter().position(|(name, _)| *name == kind);
        curve.into_iter().for_each(|curve| curves[curve].spots.push(spot));
    }
    curves.iter_mut().for_each(|curve| curve.spots.sort_by_key(|spot| spot.at));
    Ok(drawing(&curves))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_drawn_from_their_lines() {
        let mut points = [Point::at(100), Point::at(0)];
        for (point, gap) in points.iter_mut().zip([101.0, 2.0]) {
            point.reactive.gap.push(gap);
        }
        let lines = json_lines(&points.iter().flat_map(figures).collect::<Vec<_>>()).unwrap();
        let svg = draw(&lines).unwrap();
        // From left to right, whatever the order of the lines.
        assert!(svg.contains("<polyline points=\"70.0,334.4 620.0,189.6 \""), "{svg}");
        assert!(draw("{}\n").is_ok() && draw("no line").is_err());
    }
}
