//! The paper's figure, downtime against delay, with our curves in it, as SVG. Pure: no file, no measurement.

use std::fmt::Write;

/// What was measured at one round trip.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spot {
    /// The round trip, in ms.
    pub(super) at: u32,
    pub(super) min: f64,
    pub(super) median: f64,
    pub(super) max: f64,
}

/// One kind of move, by rising round trip.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Curve {
    pub(super) name: &'static str,
    pub(super) spots: Vec<Spot>,
}

/// The paper's downtime at no delay; it rises with the delay.
const PAPER_MS: f64 = 2500.0;
const COLOURS: [&str; 3] = ["#15803d", "#c2410c", "#1d4ed8"];
/// Powers of ten from the lowest line to the highest.
const DECADES: i32 = 4;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 620.0;
const TOP: f64 = 20.0;
const BOTTOM: f64 = 360.0;

/// The drawing. A downtime below 1 ms, also one that is less than nothing without the control's, is drawn at 1 ms.
pub(super) fn drawing(curves: &[Curve]) -> String {
    let spots = || curves.iter().flat_map(|curve| &curve.spots);
    let longest = spots().map(|spot| spot.at).max().unwrap_or(0).max(1);
    let x = |at: u32| LEFT + (RIGHT - LEFT) * f64::from(at) / f64::from(longest);
    let y = |ms: f64| BOTTOM - (BOTTOM - TOP) * ms.max(1.0).log10().min(DECADES.into()) / f64::from(DECADES);
    let mut svg = String::new();
    let mut line = |text: String| {
        svg += &text;
        svg.push('\n');
    };
    line("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 640 420\" font-family=\"sans-serif\" font-size=\"13\">".into());
    line("<rect width=\"640\" height=\"420\" fill=\"white\"/>".into());
    for decade in 0..=DECADES {
        let (ms, at) = (10_u32.pow(decade as u32), y(10_f64.powi(decade)));
        line(format!("<path d=\"M{LEFT} {at:.1}H{RIGHT}\" stroke=\"#ddd\"/>"));
        line(format!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{ms} ms</text>",
            LEFT - 6.0,
            at + 4.0
        ));
    }
    let mut ticks: Vec<u32> = spots().map(|spot| spot.at).collect();
    ticks.sort_unstable();
    ticks.dedup();
    for tick in ticks {
        line(format!("<text x=\"{:.1}\" y=\"378\" text-anchor=\"middle\">{tick}</text>", x(tick)));
    }
    line("<text x=\"345\" y=\"402\" text-anchor=\"middle\">round trip between platform and home agent, ms</text>".into());
    let paper = y(PAPER_MS);
    line(format!("<path d=\"M{LEFT} {paper:.1}H{RIGHT}\" stroke=\"#555\" stroke-dasharray=\"6 4\"/>"));
    line(format!("<text x=\"{}\" y=\"{:.1}\">the paper, at no delay: 2.5 s</text>", LEFT + 6.0, paper - 6.0));
    for (curve, colour) in curves.iter().zip(COLOURS) {
        let upper = curve.spots.iter().map(|spot| (x(spot.at), y(spot.max)));
        let lower = curve.spots.iter().rev().map(|spot| (x(spot.at), y(spot.min)));
        let band = points(upper.chain(lower));
        line(format!("<polygon points=\"{band}\" fill=\"{colour}\" fill-opacity=\"0.2\"/>"));
        let median = points(curve.spots.iter().map(|spot| (x(spot.at), y(spot.median))));
        line(format!("<polyline points=\"{median}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>"));
        if let Some(last) = curve.spots.last() {
            let at = y(last.median) - 8.0;
            line(format!(
                "<text x=\"{RIGHT}\" y=\"{at:.1}\" text-anchor=\"end\" fill=\"{colour}\">{}</text>",
                curve.name
            ));
        }
    }
    line("</svg>".into());
    svg
}

fn points(at: impl Iterator<Item = (f64, f64)>) -> String {
    at.fold(String::new(), |mut text, (x, y)| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{x:.1},{y:.1} ");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drawing_has_every_curve_and_the_papers_line() {
        let spot = |at, median| Spot { at, min: median - 5.0, median, max: median + 5.0 };
        let one = Curve { name: "one", spots: vec![spot(0, 1.0), spot(100, 10.0)] };
        let other = Curve { name: "other", spots: vec![spot(0, 100.0), spot(100, 1e9)] };
        let svg = drawing(&[one, other]);
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        // 1 ms at the bottom, 10 ms a quarter up, 100 ms half up, and nothing beyond the top.
        assert!(svg.contains("<polyline points=\"70.0,360.0 620.0,275.0 \""), "{svg}");
        assert!(svg.contains("<polyline points=\"70.0,190.0 620.0,20.0 \""), "{svg}");
        assert!(svg.contains(">one</text>") && svg.contains(">other</text>") && svg.contains("2.5 s"));
        assert!(drawing(&[]).contains("the paper"));
    }
}
