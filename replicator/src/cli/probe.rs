//! `longhaul probe`: the paper's UDP tool. Needs no daemon.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use mobility::probe::{self, Report, SendOptions, Sent, ServeOptions, StreamReport};
use mobility_proto::probe::{PACKET_BYTES, SIZES};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use super::show;

/// What the tool does.
#[derive(Subcommand)]
pub(super) enum ProbeCommand {
    /// Receive until interrupted, then tell of each stream: lost, duplicated, reordered, longest gap, latency, jitter
    #[command(after_help = LATENCY)]
    Serve {
        /// Where to listen (UDP)
        #[arg(default_value = "[::]:4434")]
        listen: SocketAddr,
        /// Stop after this long
        #[arg(long, value_name = "DURATION", value_parser = duration)]
        r#for: Option<Duration>,
        /// Send each packet back, for `probe send --echo`
        #[arg(long)]
        echo: bool,
        /// Draw the first 8 streams over time: each packet's latency, gaps, losses
        #[arg(long, value_name = "FILE")]
        svg: Option<PathBuf>,
    },
    /// Send a stream: unless told otherwise a G.711 call, 210 bytes every 20 ms
    #[command(after_help = LATENCY)]
    Send(SendArgs),
}

const LATENCY: &str = "\
Latency is one way where both ends run on one machine, or with `send --wall-clock`; else it is shown above the smallest
seen. Jitter is RFC 3550's. A gap is a time in which nothing arrived: the downtime, as the paper measures it.";

/// Flags of `probe send`.
#[derive(Args)]
pub(super) struct SendArgs {
    /// Whereto
    address: SocketAddr,
    /// Time between packets, such as 20ms or 250us
    #[arg(long, value_name = "DURATION", default_value = "20ms", value_parser = duration)]
    interval: Duration,
    /// Bytes of UDP payload in a packet, 64 to 65507
    #[arg(long, value_name = "BYTES", default_value_t = PACKET_BYTES, value_parser = size)]
    size: usize,
    /// Bits of UDP payload in a second, such as 64k or 20M, instead of an interval
    #[arg(long, value_name = "RATE", conflicts_with = "interval", value_parser = rate)]
    rate: Option<f64>,
    /// Stop after this many
    #[arg(long)]
    count: Option<u64>,
    /// The two machines' clocks are kept in step: measure latency one way by the time of day
    #[arg(long)]
    wall_clock: bool,
    /// Tell round-trip times and losses there and back; needs `probe serve --echo`
    #[arg(long)]
    echo: bool,
    /// Draw the answers over time
    #[arg(long, value_name = "FILE", requires = "echo")]
    svg: Option<PathBuf>,
}

impl SendArgs {
    fn options(&self) -> SendOptions {
        SendOptions {
            stream: u64::from(std::process::id()),
            interval: self
                .rate
                .map_or(self.interval, |rate| Duration::from_secs_f64(self.size as f64 * 8.0 / rate)),
            bytes: self.size,
            count: self.count,
            wall_clock: self.wall_clock,
            echo: self.echo,
            draw: self.svg.is_some(),
        }
    }
}

/// Runs the tool.
pub(super) async fn run(command: ProbeCommand, json: bool) -> anyhow::Result<bool> {
    match command {
        ProbeCommand::Serve { listen, r#for, echo, svg } => {
            let socket = probe::bind(listen).await?;
            let options = ServeOptions { echo, draw: svg.is_some() };
            let stop = async {
                tokio::select! {
                    () = interrupted() => {}
                    () = tokio::time::sleep(r#for.unwrap_or_default()), if r#for.is_some() => {}
                }
            };
            let outcome = probe::serve(socket, options, stop).await;
            tell(&outcome.report, json, received)?;
            save(svg, outcome.svg)?;
        }
        ProbeCommand::Send(args) => {
            let outcome = probe::send(args.address, args.options(), interrupted()).await?;
            tell(&outcome.report, json, sent)?;
            save(args.svg, outcome.svg)?;
        }
    }
    Ok(true)
}

/// Resolves when the user or a script wants the report.
pub(super) async fn interrupted() {
    let end = async {
        // Without a handler the process ends as it would without us: by the signal.
        match signal(SignalKind::terminate()) {
            Ok(mut signal) => drop(signal.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        Ok(()) = tokio::signal::ctrl_c() => {}
        () = end => {}
    }
}

fn tell<T: Serialize>(report: &T, json: bool, text: impl Fn(&T) -> String) -> anyhow::Result<()> {
    if json {
        show::value(&serde_json::to_value(report)?, true);
    } else {
        crate::service::output::text(format_args!("{}", text(report)));
    }
    Ok(())
}

fn save(path: Option<PathBuf>, svg: Option<String>) -> anyhow::Result<()> {
    let (Some(path), Some(svg)) = (path, svg) else { return Ok(()) };
    std::fs::write(&path, svg).with_context(|| format!("writing the picture to {}", path.display()))
}

fn received(report: &Report) -> String {
    let mut out: String = report
        .streams
        .iter()
        .map(|(id, report)| format!("stream {id} from {}\n{}", report.from, stream(report)))
        .collect();
    if report.streams.is_empty() {
        out.push_str("no stream\n");
    }
    if report.ignored > 0 {
        out.push_str(&format!(
            "ignored {} datagrams that are no probe packets, or of too many streams\n",
            report.ignored
        ));
    }
    out
}

fn sent(sent: &Sent) -> String {
    let seconds = sent.took_ns as f64 / 1e9;
    let mut out = format!("sent {} packets in {seconds:.1} s, {} refused\n", sent.packets, sent.refused);
    if let Some(answers) = &sent.answers {
        out.push_str(&format!("answers from {}\n{}", answers.from, stream(answers)));
    }
    out
}

fn stream(report: &StreamReport) -> String {
    let s = &report.arrivals;
    let expected = (s.received - s.duplicated - s.stale).saturating_add(s.lost);
    let percent = s.lost as f64 * 100.0 / expected.max(1) as f64;
    let after_ms = s.longest_gap.at_ns.saturating_sub(s.first_arrival_ns) / 1_000_000;
    let ms = |ns: i64| ns as f64 / 1e6;
    let [min, mean, p95, max] = {
        let l = report.latency.summary;
        [l.min_ns, l.mean_ns, l.p95_ns, l.max_ns].map(ms)
    };
    format!(
        "  received     {} in {:.1} s\n\
         \x20 lost         {} ({percent:.2} %)\n\
         \x20 duplicated   {}\n\
         \x20 reordered    {}\n\
         \x20 longest gap  {:.1} ms, {:.1} s after the first packet ({} UTC), between numbers {} and {}\n\
         \x20 latency      min {min:.3}, mean {mean:.3}, p95 {p95:.3}, max {max:.3} ms ({})\n\
         \x20 jitter       {:.3} ms at the end, {:.3} ms at most\n",
        s.received,
        s.last_arrival_ns.saturating_sub(s.first_arrival_ns) as f64 / 1e9,
        s.lost,
        s.duplicated,
        s.reordered,
        s.longest_gap.ms(),
        after_ms as f64 / 1e3,
        time_of_day(report.since_unix_ms.saturating_add(after_ms)),
        s.longest_gap.before,
        s.longest_gap.after,
        report.latency.of.as_str(),
        s.jitter_ns as f64 / 1e6,
        s.jitter_max_ns as f64 / 1e6,
    )
}

fn time_of_day(unix_ms: u64) -> String {
    let seconds = unix_ms / 1000;
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{hour:02}:{minute:02}:{second:02}.{:03}", unix_ms % 1000)
}

/// A number and its unit.
fn quantity(text: &str) -> Option<(f64, &str)> {
    let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len()));
    Some((number.parse().ok()?, unit))
}

fn duration(text: &str) -> Result<Duration, String> {
    let seconds = match quantity(text) {
        Some((number, "us")) => number / 1e6,
        Some((number, "ms")) => number / 1e3,
        Some((number, "s")) => number,
        _ => return Err("write it as 250us, 20ms or 2s".to_owned()),
    };
    if (1e-6..=1e6).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err("it must be within 1us and 1000000s".to_owned())
    }
}

fn rate(text: &str) -> Result<f64, String> {
    let bits_s = match quantity(text) {
        Some((number, "")) => number,
        Some((number, "k")) => number * 1e3,
        Some((number, "M")) => number * 1e6,
        Some((number, "G")) => number * 1e9,
        _ => return Err("write it as 64k, 20M or 1G".to_owned()),
    };
    if (1.0..=100e9).contains(&bits_s) { Ok(bits_s) } else { Err("it must be within 1 and 100G".to_owned()) }
}

fn size(text: &str) -> Result<usize, String> {
    let bytes = text.parse().ok().filter(|bytes| SIZES.contains(bytes));
    bytes.ok_or_else(|| format!("it must be within {} and {}", SIZES.start(), SIZES.end()))
}

#[cfg(test)]
mod tests;
