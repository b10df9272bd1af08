//! The program under test on both hosts: daemons that trust each other, and what they are told.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use harness::{XenHost, XenPair};
use serde_json::Value;

use super::machine::VM;
use super::step;

/// The name of the base image that both hosts hold before the guest moves.
const BASE: &str = "debian";
const UP: Duration = Duration::from_secs(60);
const LOG: &str = "LONGHAUL_LOG";
const COMMAND: Duration = Duration::from_secs(300);

/// Where the daemons listen for each other.
const PORT: u16 = 4433;

/// Starts both daemons, each in its own places under /etc, /var/lib and /run, and makes them trust each other.
pub(super) fn start(pair: &XenPair) -> Result<()> {
    start_at(pair, [&pair.a, &pair.b].map(|host| host.address().into()), [const { String::new() }; 2])
}

/// The same, at these addresses and with more in their configuration.
pub(super) fn start_at(pair: &XenPair, addresses: [IpAddr; 2], more: [String; 2]) -> Result<()> {
    step("longhaul on both hosts");
    let [at_a, at_b] = addresses.map(|address| SocketAddr::from((address, PORT)));
    for ((host, listen), more) in [(&pair.a, at_a), (&pair.b, at_b)].into_iter().zip(more) {
        let name = host.name();
        host.run(&format!(
            "mkdir -p /etc/longhaul; cat > /etc/longhaul/longhaul.toml <<'END'\n\
             name = \"{name}\"\nhypervisor = \"xen\"\nlisten = \"{listen}\"\n{more}END\n"
        ))?;
        start_daemon(host, "")?;
    }
    for (host, peer, address) in [(&pair.a, &pair.b, at_b), (&pair.b, &pair.a, at_a)] {
        json(host, &format!("peer add {} {address} {}", peer.name(), fingerprint(peer)?))?;
    }
    Ok(())
}

/// What a host's daemon is known by.
pub(super) fn fingerprint(host: &XenHost) -> Result<String> {
    let identity = json(host, "identity")?;
    Ok(identity["fingerprint"].as_str().context("an identity has a fingerprint")?.to_owned())
}

/// Starts a host's daemon with `environment` (`NAME=value`) and waits until it answers. It says as much as LONGHAUL_LOG
/// wants of us.
pub(super) fn start_daemon(host: &XenHost, environment: &str) -> Result<()> {
    host.run(&format!(
        "export LONGHAUL_LOG={}; {environment} setsid /lab/longhaul daemon >>/lab/daemon.log 2>&1 & echo $! >/run/daemon.pid",
        std::env::var(LOG).unwrap_or_else(|_| "info".to_owned())
    ))?;
    let started = Instant::now();
    while json(host, "peer list").is_err() {
        if started.elapsed() > UP {
            bail!("the daemon on {} does not answer:\n{}", host.name(), log(host));
        }
    }
    Ok(())
}

/// Gives both hosts the guest's disk as it was before its first boot, as a base.
pub(super) fn seed(pair: &XenPair) -> Result<()> {
    step("base add on a, base push to b");
    let started = Instant::now();
    json(&pair.a, &format!("base add {BASE} /lab/base.raw"))?;
    json(&pair.a, &format!("base push {BASE} b"))?;
    println!("    {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

/// Takes up the running domain as a VM.
pub(super) fn adopt(host: &XenHost) -> Result<()> {
    json(host, &format!("vm adopt {VM}")).map(drop)
}

/// Shows what the daemons have said since the last time, and how their clocks stand to ours, when LONGHAUL_LOG is set.
pub(super) fn show_logs(hosts: [&XenHost; 2]) -> Result<()> {
    if std::env::var_os(LOG).is_none() {
        return Ok(());
    }
    for host in hosts {
        let before = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs_f64();
        let theirs: f64 = host.run("date +%s.%N")?.trim().parse()?;
        println!("--- {}, whose clock is {:.3} s ahead", host.name(), theirs - before);
        println!("{}", host.run("cat /lab/daemon.log; : >/lab/daemon.log")?);
    }
    Ok(())
}

/// Moves the guest in the way that `how`, an option or none, says; the migration's report.
pub(super) fn migrate(from: &XenHost, to: &XenHost, how: &str) -> Result<Value> {
    json(from, &format!("migrate {VM} --to {} {how}", to.name())).with_context(|| {
        [from, to].map(|host| format!("--- {}\n{}", host.name(), trouble(host, VM))).join("\n")
    })
}

/// Runs `longhaul --json WORDS` on a host.
pub(super) fn json(host: &XenHost, words: &str) -> Result<Value> {
    let text = host.run_within(
        &format!("/lab/longhaul --json {words} 2>/tmp/said || {{ cat /tmp/said; exit 1; }}"),
        COMMAND,
    )?;
    serde_json::from_str(text.trim()).with_context(|| format!("`longhaul --json {words}` printed {text:?}"))
}

/// Kills a host's daemon as a crash would.
pub(super) fn kill_daemon(host: &XenHost) -> Result<()> {
    host.run("kill -9 $(cat /run/daemon.pid); while kill -0 $(cat /run/daemon.pid) 2>/dev/null; do sleep 0.1; done")
        .map(drop)
}

/// Sends a host's daemon a signal.
pub(super) fn signal_daemon(host: &XenHost, signal: &str) -> Result<()> {
    host.run(&format!("kill -{signal} $(cat /run/daemon.pid)")).map(drop)
}

/// How a host's daemon is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Daemon {
    /// It runs or sleeps.
    Alive,
    /// It has been halted by SIGSTOP.
    Halted,
    /// It is gone, or its parent has not looked at it yet.
    Dead,
}

/// Looks at a host's daemon.
pub(super) fn daemon(host: &XenHost) -> Result<Daemon> {
    let state = host
        .run("sed -n 's/^State:.\\(.\\).*/\\1/p' /proc/$(cat /run/daemon.pid)/status 2>/dev/null || true")?;
    Ok(match state.trim() {
        "R" | "S" | "D" => Daemon::Alive,
        "T" => Daemon::Halted,
        _ => Daemon::Dead,
    })
}

/// What a host has to say when something went wrong.
pub(super) fn trouble(host: &XenHost, vm: &str) -> String {
    let script = format!(
        "tail -n 40 /lab/daemon.log; echo \"xl.log:\"; tail -n 20 /run/longhaul/vm/{vm}/xl.log; \
         ls /run/longhaul/vm/{vm}; xl list; ps ax | grep '[x]l'; cat /tmp/migrate.out; \
         tail -n 12 /var/log/xen/*.log /var/log/xen/console/*; xl dmesg | tail -n 20; true"
    );
    host.run(&script).unwrap_or_else(|error| error.to_string())
}

/// The end of a host's daemon's log.
pub(super) fn log(host: &XenHost) -> String {
    host.run("tail -n 40 /lab/daemon.log").unwrap_or_else(|error| error.to_string())
}
