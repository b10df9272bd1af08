//! The picture of streams over time, as SVG text: one panel a stream, time to the right, latency upwards; pauses shaded,
//! losses marked below.

use std::fmt::Write as _;

use super::timeline::{Sample, Timeline};

/// More panels than this are left out.
pub const MAX_PANELS: usize = 8;

const WIDTH: f64 = 960.0;
const PANEL_HEIGHT: f64 = 260.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 46.0;
/// Below the plot: the losses' strip, the tick labels, the axis label.
const BOTTOM: f64 = 56.0;
const STRIP: f64 = 8.0;
/// A pause is a gap when it is as many times as long as the usual one.
const GAP_FACTOR: f64 = 3.0;

const STYLE: &str = "text{font:12px sans-serif;fill:#333}.t{font-size:14px;font-weight:bold}.x{text-anchor:middle}\
    .y{text-anchor:end}.f{fill:none;stroke:#999}.g{stroke:#e4e4e4}.p{fill:none;stroke:#1f5fa8;stroke-width:2;\
    stroke-linecap:round}.gap{fill:#f0a030;fill-opacity:.45}.loss{fill:#c62828}";

/// One stream's panel.
#[derive(Debug, Clone, Copy)]
pub struct Panel<'a> {
    /// What stands above it.
    pub title: &'a str,
    /// What the vertical axis shows, such as "one-way latency".
    pub axis: &'a str,
    /// Where the vertical axis starts, by the two ends' clocks.
    pub origin_ns: i64,
    /// The stream.
    pub timeline: &'a Timeline,
}

/// Draws streams of one receiver.
#[must_use]
pub fn draw(panels: &[Panel<'_>]) -> String {
    let panels = &panels[..panels.len().min(MAX_PANELS)];
    let height = PANEL_HEIGHT * panels.len() as f64;
    let samples = || panels.iter().flat_map(|panel| panel.timeline.samples());
    let start = samples().map(|sample| sample.from_ns).min().unwrap_or(0);
    let end = samples().map(|sample| sample.to_ns).max().unwrap_or(0);
    let mut svg = String::new();
    // Writing to a string never fails.
    let _ = write!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\">\n<style>{STYLE}</style>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    );
    for (index, panel) in panels.iter().enumerate() {
        let _ = writeln!(svg, "<g transform=\"translate(0 {})\">", PANEL_HEIGHT * index as f64);
        plot(&mut svg, panel, start, end);
        svg.push_str("</g>\n");
    }
    svg.push_str("</svg>\n");
    svg
}

/// From a value to a place on the page.
#[derive(Clone, Copy)]
struct Scale {
    from: f64,
    span: f64,
    at: f64,
    length: f64,
}

impl Scale {
    fn place(&self, value: f64) -> f64 {
        self.at + (value - self.from) / self.span * self.length
    }

    /// Round values on the scale, about `count` of them, and how many decimals they need.
    fn ticks(&self, count: f64) -> (Vec<f64>, usize) {
        let power = (self.span / count).log10().floor();
        let unit = 10_f64.powf(power);
        let step = [1.0, 2.0, 5.0].map(|n| n * unit).into_iter().find(|step| self.span / step <= count);
        let step = step.unwrap_or(10.0 * unit);
        let first = (self.from / step).ceil() as i64;
        let last = ((self.from + self.span) / step).floor() as i64;
        let decimals = (-step.log10().floor()).clamp(0.0, 6.0) as usize;
        ((first..=last).map(|n| n as f64 * step).collect(), decimals)
    }
}

fn plot(svg: &mut String, panel: &Panel<'_>, start: u64, end: u64) {
    let samples = panel.timeline.samples();
    let ms = |ns: i64| i128::from(ns).saturating_sub(panel.origin_ns.into()) as f64 / 1e6;
    let least = samples.iter().map(|sample| ms(sample.least_ns)).fold(0.0, f64::min);
    let most = samples.iter().map(|sample| ms(sample.most_ns)).fold(0.0, f64::max);
    let plot_height = PANEL_HEIGHT - TOP - BOTTOM;
    let bottom = TOP + plot_height;
    let seconds = |ns: u64| ns.saturating_sub(start) as f64 / 1e9;
    // A stream of one packet, or one without any latency, has a scale as well.
    let x = Scale { from: 0.0, span: seconds(end).max(0.001), at: LEFT, length: WIDTH - LEFT - RIGHT };
    let y = Scale { from: least, span: ((most - least) * 1.05).max(0.001), at: bottom, length: -plot_height };

    let _ = writeln!(svg, "<text class=\"t\" x=\"{LEFT}\" y=\"20\">{}</text>", escape(panel.title));
    axes(svg, panel.axis, x, y);
    let least_gap = GAP_FACTOR * usual_gap(samples);
    for gap in panel.timeline.gaps().iter().filter(|gap| gap.ns as f64 > least_gap) {
        band(svg, "gap", x, [gap.at_ns, gap.at_ns.saturating_add(gap.ns)].map(seconds), TOP, plot_height);
    }
    packets(svg, panel.timeline, x, y, seconds, ms);
    for loss in panel.timeline.losses() {
        band(svg, "loss", x, [loss.from_ns, loss.to_ns].map(seconds), bottom + 2.0, STRIP);
    }
    legend(svg);
}

/// Frame, grid, tick labels and axis labels.
fn axes(svg: &mut String, label: &str, x: Scale, y: Scale) {
    let (right, bottom) = (WIDTH - RIGHT, y.at);
    let (ticks, decimals) = x.ticks(10.0);
    for tick in ticks {
        let at = x.place(tick);
        let _ = writeln!(
            svg,
            "<path class=\"g\" d=\"M{at:.1} {TOP}V{bottom}\"/>\
             <text class=\"x\" x=\"{at:.1}\" y=\"{:.1}\">{tick:.decimals$}</text>",
            bottom + STRIP + 18.0
        );
    }
    let (ticks, decimals) = y.ticks(5.0);
    for tick in ticks {
        let at = y.place(tick);
        let _ = writeln!(
            svg,
            "<path class=\"g\" d=\"M{LEFT} {at:.1}H{right}\"/>\
             <text class=\"y\" x=\"{}\" y=\"{:.1}\">{tick:.decimals$}</text>",
            LEFT - 6.0,
            at + 4.0
        );
    }
    let (middle, height) = (TOP - y.length / 2.0, -y.length);
    let _ = writeln!(
        svg,
        "<rect class=\"f\" x=\"{LEFT}\" y=\"{TOP}\" width=\"{}\" height=\"{height}\"/>\n\
         <text class=\"x\" x=\"{}\" y=\"{}\">time since the first packet (s)</text>\n\
         <text class=\"x\" transform=\"translate(16 {middle}) rotate(-90)\">{} (ms)</text>",
        x.length,
        LEFT + x.length / 2.0,
        bottom + BOTTOM - 12.0,
        escape(label)
    );
}

/// A stroke for each sample, a dot where it is one packet. What would fall on the same spot is drawn once.
fn packets(
    svg: &mut String,
    timeline: &Timeline,
    x: Scale,
    y: Scale,
    seconds: impl Fn(u64) -> f64,
    ms: impl Fn(i64) -> f64,
) {
    svg.push_str("<path class=\"p\" d=\"");
    let mut last = None;
    for sample in timeline.samples() {
        let at = x.place((seconds(sample.from_ns) + seconds(sample.to_ns)) / 2.0);
        let tenths =
            [at, y.place(ms(sample.most_ns)), y.place(ms(sample.least_ns))].map(|v| (v * 10.0).round());
        if last.replace(tenths) != Some(tenths) {
            let [at, high, low] = tenths.map(|v| v / 10.0);
            let _ = write!(svg, "M{at} {high}V{low}");
        }
    }
    svg.push_str("\"/>\n");
}

/// A band from one time to another, never too thin to be seen.
fn band(svg: &mut String, class: &str, x: Scale, [from, to]: [f64; 2], top: f64, height: f64) {
    let (left, right) = (x.place(from), x.place(to));
    let _ = writeln!(
        svg,
        "<rect class=\"{class}\" x=\"{left:.1}\" y=\"{top}\" width=\"{:.1}\" height=\"{height}\"/>",
        (right - left).max(1.5)
    );
}

fn legend(svg: &mut String) {
    let y = TOP - 16.0;
    let _ = writeln!(
        svg,
        "<path class=\"p\" d=\"M{} {}h0\"/><text x=\"{}\" y=\"{}\">packet</text>",
        LEFT + 4.0,
        y + 5.0,
        LEFT + 12.0,
        y + 9.0
    );
    for (class, label, at) in [("gap", "gap", LEFT + 70.0), ("loss", "lost", LEFT + 120.0)] {
        let _ = writeln!(
            svg,
            "<rect class=\"{class}\" x=\"{at}\" y=\"{y}\" width=\"10\" height=\"10\"/>\
             <text x=\"{}\" y=\"{}\">{label}</text>",
            at + 15.0,
            y + 9.0
        );
    }
}

/// The usual pause between packets: the median over the samples, in nanoseconds.
fn usual_gap(samples: &[Sample]) -> f64 {
    let mut pauses: Vec<u64> = samples.windows(2).map(|pair| pair[1].from_ns - pair[0].to_ns).collect();
    let middle = pauses.len() / 2;
    if pauses.is_empty() { 0.0 } else { *pauses.select_nth_unstable(middle).1 as f64 }
}

fn escape(text: &str) -> String {
    text.chars().fold(String::new(), |mut out, c| {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
        out
    })
}
