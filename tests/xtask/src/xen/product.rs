//! The program under test on both hosts: daemons that trust each other, and what they are told.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use harness::{XenHost, XenPair};
use serde_json::Value;

use super::machine::VM;
use super::step;

/// The name of the base image that both hosts hold before the guest moves.
const BASE: &str = "debian";
const UP: Duration = Duration::from_secs(60);
const COMMAND: Duration = Duration::from_secs(300);

/// Starts both daemons, each in its own places under /etc, /var/lib and /run, and makes them trust each other.
pub(super) fn start(pair: &XenPair) -> Result<()> {
    step("longhaul on both hosts");
    for host in [&pair.a, &pair.b] {
        let name = host.name();
        host.run(&format!(
            "mkdir -p /etc/longhaul && printf 'name = \"{name}\"\\nhypervisor = \"xen\"\\nlisten = \"0.0.0.0:4433\"\\n' \
             > /etc/longhaul/longhaul.toml"
        ))?;
        start_daemon(host, "")?;
    }
    for (host, peer) in [(&pair.a, &pair.b), (&pair.b, &pair.a)] {
        let identity = json(peer, "identity")?;
        let fingerprint = identity["fingerprint"].as_str().context("an identity has a fingerprint")?;
        json(host, &format!("peer add {} {}:4433 {fingerprint}", peer.name(), peer.address()))?;
    }
    Ok(())
}

/// Starts a host's daemon with `environment` (`NAME=value`) and waits until it answers.
pub(super) fn start_daemon(host: &XenHost, environment: &str) -> Result<()> {
    host.run(&format!(
        "{environment} setsid /lab/longhaul daemon >>/lab/daemon.log 2>&1 & echo $! >/run/daemon.pid"
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

/// Moves the guest; the migration's report.
pub(super) fn migrate(from: &XenHost, to: &XenHost) -> Result<Value> {
    json(from, &format!("migrate {VM} --to {}", to.name()))
        .with_context(|| [from, to].map(|host| format!("--- {}\n{}", host.name(), trouble(host))).join("\n"))
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

/// Whether a host's daemon lives.
pub(super) fn is_daemon_running(host: &XenHost) -> Result<bool> {
    // A dead one that its parent has not looked at yet is no process any more.
    let script = "grep -qs '^State:.[RSD]' /proc/$(cat /run/daemon.pid)/status && echo yes || true";
    Ok(host.run(script)?.contains("yes"))
}

/// What a host has to say when something went wrong.
pub(super) fn trouble(host: &XenHost) -> String {
    let script = format!(
        "tail -n 40 /lab/daemon.log; echo \"xl.log:\"; tail -n 20 /run/longhaul/vm/{VM}/xl.log; \
         ls /run/longhaul/vm/{VM}; xl list; ps ax | grep '[x]l'; cat /tmp/migrate.out; true"
    );
    host.run(&script).unwrap_or_else(|error| error.to_string())
}

/// The end of a host's daemon's log.
pub(super) fn log(host: &XenHost) -> String {
    host.run("tail -n 40 /lab/daemon.log").unwrap_or_else(|error| error.to_string())
}
