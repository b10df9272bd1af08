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
mod rates;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use harness::{Namespace, files};
use mobility::DataPlane;
use mobility_lab::{Heard, Network, Roaming, Stream};
use tokio::runtime::Runtime;
use tokio::time::sleep;

use crate::figures::{Better, Figure, Metric, Samples, json_lines, short, table};
use crate::machine;
use crate::options::Options;
use drawing::{Curve, Spot, drawing};

const GAP: Metric = Metric { name: "gap", unit: "ms", better: Better::Less };
/// One value: that of all runs.
const GAP_P95: Metric = Metric { name: "gap_p95", unit: "ms", better: Better::Less };
const LOST: Metric = Metric { name: "lost", unit: "packets", better: Better::Less };
const REORDERED: Metric = Metric { name: "reordered", unit: "packets", better: Better::Less };
/// From the word that the guest runs, or from the carrier of a mobile node's link, to the acknowledgement.
const REGISTRATION: Metric = Metric { name: "registration", unit: "ms", better: Better::Less };

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
    let (planes, mut more) = rates::measure(options.runs.min(5))?;
    let best = planes.first().copied();
    let plane = options.plane.or(best).context("no data plane works here: is there a /dev/net/tun?")?;
    more.extend(bindings::measure(&runtime, options.quick)?);
    let mut points: Vec<Point> = options
        .points
        .iter()
        .map(|round_trip_ms| Point { round_trip_ms: *round_trip_ms, ..Point::default() })
        .collect();
    for run in 1..=options.runs {
        for point in &mut points {
            measure(&runtime, plane, point)
                .and_then(|()| measure_node(&runtime, plane, point))
                .with_context(|| format!("run {run} at {} ms of round trip", point.round_trip_ms))?;
        }
        println!("run {run} of {} on data plane {plane}", options.runs);
        // After each run, so that a later failure does not take the earlier figures with it.
        if let Some(file) = &options.json {
            let all: Vec<Figure> = points.iter().flat_map(figures).chain(more.iter().cloned()).collect();
            files::write(file, json_lines(&all)?)?;
            files::write(&file.with_extension("svg"), draw(&points))?;
        }
    }
    println!("\n{}", report(&points)?);
    println!("{}", json_lines(&more)?);
    Ok(())
}

/// One run.
fn measure(runtime: &Runtime, plane: DataPlane, point: &mut Point) -> Result<()> {
    let round_trip = Duration::from_millis(point.round_trip_ms.into());
    let network = Network::start([plane; 3], round_trip)?;
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
fn measure_node(runtime: &Runtime, plane: DataPlane, point: &mut Point) -> Result<()> {
    let round_trip = Duration::from_millis(point.round_trip_ms.into());
    let network = Roaming::start(plane, round_trip)?;
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

fn draw(points: &[Point]) -> String {
    let curve = |name: &'static str, of: fn(&Point) -> &Moved| {
        let spots = points.iter().filter_map(|point| {
            let gap = &of(point).gap;
            let (min, median, max) = (gap.min()?, gap.median()?, gap.max()?);
            Some(Spot { at: point.round_trip_ms, min, median, max })
        });
        Curve { name, spots: spots.collect() }
    };
    drawing(&[
        curve("mobile node in the guest", |point| &point.node),
        curve("not expected", |point| &point.reactive),
        curve("expected", |point| &point.proactive),
    ])
}
