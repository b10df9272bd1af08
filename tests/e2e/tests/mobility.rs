//! A real guest moves between two platforms and keeps its IPv6 address: real daemons in network namespaces, a home agent, a
//! correspondent that talks with the guest all the while. And one that keeps its address itself, on hosts that know nothing
//! of it.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use e2e::{JOB, PATIENCE, lab, settled, status, turn};
use harness::platform::binary;
use harness::{Platform, verify_records};
use mobility_lab::network::{ANCHOR, HOME};
use mobility_lab::roaming::LINK;
use mobility_lab::sites::{GUEST, VM};
use mobility_lab::{ForeignLinks, Ping, Sites};
use serde_json::Value;

fn migrate(sites: &Sites, from: usize, to: usize) -> Result<Value> {
    let run = sites.platforms[from].begin_json(&["migrate", VM, "--to", sites.platforms[to].name()])?;
    let outcome = run.wait(JOB)?;
    anyhow::ensure!(outcome.code == Some(0), "migrate: {outcome:?}");
    outcome.json()
}

fn care_of(sites: &Sites) -> Result<String> {
    let addresses = sites.home.cli(&["addresses"])?;
    Ok(addresses["home_agent"][0]["care_of"].as_str().context("a binding")?.to_owned())
}

#[test]
fn a_guest_keeps_its_address_and_its_correspondent() -> Result<()> {
    let turn = turn("a_guest_keeps_its_address_and_its_correspondent");
    let (lab, base) = lab()?;
    let sites = Sites::start(&lab, &base, Duration::from_millis(20))?;
    sites.boot(2 * PATIENCE)?;
    turn.say("the guest is heard");
    assert_eq!(care_of(&sites)?, sites.wires.platforms[0].address.to_string());

    for (from, to) in [(0, 1), (1, 0)] {
        let ping = Ping::start(&sites.wires.correspondent.namespace, GUEST, Duration::from_millis(20))?;
        sites.collector.mark();
        let report = migrate(&sites, from, to)?;
        sites.collector.wait_progress(16, PATIENCE)?;
        sleep(Duration::from_secs(1));
        let answers = ping.finish()?;
        turn.say(&format!(
            "{} of {} echo requests answered, longest gap {:?}, not heard for {:?}, guest stood still for {} ms; {}",
            answers.answered.len(),
            answers.sent,
            answers.longest_gap(),
            sites.collector.longest_since_mark(),
            report["downtime_ms"],
            sites.rebind_note(to)?,
        ));
        assert_eq!(answers.lost(), 0);
        assert!(sites.rebind_note(to)?.contains("the address followed"), "{}", sites.rebind_note(to)?);
        assert_eq!(care_of(&sites)?, sites.wires.platforms[to].address.to_string());
        assert_eq!(status(&sites.platforms[to], VM)?.as_deref(), Some("Running"));
    }
    assert_eq!((sites.collector.duplicates(), sites.collector.instances().len()), (0, 1));

    sites.platforms[0].cli(&["vm", "stop", VM, "--kill"])?;
    let instance = sites.collector.instance().context("a guest that was heard")?;
    let records = verify_records(&sites.image(0), instance, sites.collector.acked())?;
    assert!(records.is_whole() && records.found > 0, "{records:?}");
    Ok(())
}

#[test]
fn a_guest_keeps_its_ipv4_address_and_its_correspondent() -> Result<()> {
    let turn = turn("a_guest_keeps_its_ipv4_address_and_its_correspondent");
    let (lab, base) = lab()?;
    let sites = Sites::start_ipv4(&lab, &base, Duration::from_millis(20))?;
    sites.boot(2 * PATIENCE)?;
    assert_eq!(sites.home.cli(&["addresses"])?["home_agent"][0]["ipv4"].as_str(), Some("198.51.100.10/24"));
    for (from, to) in [(0, 1), (1, 0)] {
        sites.collector.mark();
        let report = migrate(&sites, from, to)?;
        sites.collector.wait_progress(16, PATIENCE)?;
        let silence = sites.collector.longest_since_mark();
        turn.say(&format!("not heard for {silence:?}, stood still for {} ms", report["downtime_ms"]));
        assert!(sites.rebind_note(to)?.contains("the address followed"), "{}", sites.rebind_note(to)?);
        assert_eq!(care_of(&sites)?, sites.wires.platforms[to].address.to_string());
    }
    assert_eq!((sites.collector.duplicates(), sites.collector.instances().len()), (0, 1));
    Ok(())
}

#[test]
fn an_address_survives_its_home_agent_and_a_move_that_fails() -> Result<()> {
    let turn = turn("an_address_survives_its_home_agent_and_a_move_that_fails");
    let (lab, base) = lab()?;
    let mut sites = Sites::start(&lab, &base, Duration::from_millis(10))?;
    sites.boot(2 * PATIENCE)?;

    // The home agent is killed: what it knew it knows again, and the guest notices no more than the time in between.
    sites.home.kill9()?;
    sites.home.start()?;
    sites
        .collector
        .wait_progress(8, PATIENCE)
        .context("the guest, after the home agent was started again")?;
    assert_eq!(care_of(&sites)?, sites.wires.platforms[0].address.to_string());
    turn.say("the home agent was killed and started again");

    // The destination dies when it is about to promise: the guest runs on at the source, under its address.
    sites.platforms[1].kill9()?;
    sites.platforms[1].start_with(&[("LONGHAUL_CRASH_AT", "destination:journal:ready")])?;
    let failed = sites.platforms[0].begin_json(&["migrate", VM, "--to", "b"])?.wait(JOB)?;
    assert_ne!(failed.code, Some(0), "{failed:?}");
    sites.platforms[1].wait_ended(PATIENCE)?;
    sites.collector.wait_progress(8, PATIENCE).context("the guest, after a move that failed")?;
    let ping = Ping::start(&sites.wires.correspondent.namespace, GUEST, Duration::from_millis(20))?;
    sleep(Duration::from_secs(1));
    let answers = ping.finish()?;
    assert_eq!(answers.lost(), 0);
    assert_eq!(care_of(&sites)?, sites.wires.platforms[0].address.to_string());
    turn.say("a move has failed");

    // The next one succeeds, and the source's daemon may be killed and started: it has nothing to do with it any more.
    sites.platforms[1].start()?;
    settled(&sites.platforms[1]).context("the destination's recovery")?;
    migrate(&sites, 0, 1)?;
    sites.platforms[0].restart()?;
    sites.collector.wait_progress(8, PATIENCE)?;
    assert_eq!(care_of(&sites)?, sites.wires.platforms[1].address.to_string());

    // The daemon under the guest is killed: with it goes the tunnel, and with its start it comes again.
    sites.platforms[1].restart()?;
    sites.collector.wait_progress(8, PATIENCE).context("the guest, after its daemon was started again")?;
    turn.say("daemons were killed and started again");

    // A move while the home agent is away: the guest moves, its address follows when the home agent is there again.
    sites.home.kill9()?;
    let report = migrate(&sites, 1, 0)?;
    assert!(report["notes"].to_string().contains("the address does not follow"), "{report}");
    sites.home.start()?;
    sites.collector.wait_progress(8, PATIENCE).context("the guest, after a move without the home agent")?;
    assert_eq!(care_of(&sites)?, sites.wires.platforms[0].address.to_string());

    // The home agent is made to forget who owns it: whoever runs it says so again.
    sites.home.cli(&["addresses", "--release", VM])?;
    assert_eq!(sites.home.cli(&["addresses"])?["home_agent"].as_array().map(Vec::len), Some(0));
    assert!(sites.home.cli(&["addresses", "--release", VM]).is_err());
    sites.platforms[0].restart()?;
    sites.collector.wait_progress(8, PATIENCE).context("the guest, after its address was released")?;
    assert_eq!(care_of(&sites)?, sites.wires.platforms[0].address.to_string());
    assert_eq!((sites.collector.duplicates(), sites.collector.instances().len()), (0, 1));
    Ok(())
}

/// The command line of both ends: a home agent's configuration, and `longhaul mobile-node` with flags in the guest.
#[test]
fn a_mobile_node_keeps_its_address_where_the_hosts_know_nothing_of_it() -> Result<()> {
    let turn = turn("a_mobile_node_keeps_its_address_where_the_hosts_know_nothing_of_it");
    let links = ForeignLinks::lay(Duration::from_millis(20))?;
    let key = "5a".repeat(32);
    let config = format!(
        "[home_agent]\naddress = \"{ANCHOR}\"\nprefixes = [\"2001:db8:f::/48\"]\n[[home_agent.nodes]]\n\
         name = \"node@example.org\"\nhome_address = \"{HOME}\"\nspi = 4096\nkey = \"{key}\"\n"
    );
    let mut home = Platform::within(&links.anchor, (ANCHOR, 7200).into(), "home", &config)?;
    home.start()?;
    let dir = tempfile::tempdir()?;
    let key_file = dir.path().join("key");
    std::fs::write(&key_file, &key)?;
    let mut command = Command::new(binary()?);
    command.args(["--json", "--root"]).arg(dir.path()).args(["mobile-node", "--link", LINK, "--spi", "4096"]);
    command.args(["--home-address", &HOME.to_string(), "--home-agent", &ANCHOR.to_string()]);
    command.args(["--name", "node@example.org", "--key-file"]).arg(&key_file).stdout(Stdio::piped());
    let mut node = links.guest.spawn(&mut command)?;
    let mut events = BufReader::new(node.stdout.take().context("its output")?).lines();
    let mut registered = |site| -> Result<()> {
        for line in events.by_ref() {
            let event: Value = serde_json::from_str(&line?)?;
            let care_of = event["care_of"].as_str().and_then(|text| text.parse().ok());
            if care_of.is_some_and(|care_of| links.is_at(care_of, site)) {
                assert_eq!(care_of.map(|care_of| care_of.to_string()), Some(care_of_node(&home)?));
                return Ok(());
            }
        }
        anyhow::bail!("the mobile node has ended")
    };
    links.plug(0)?;
    registered(0)?;
    let ping = Ping::start(&links.correspondent, HOME, Duration::from_millis(20))?;
    sleep(Duration::from_millis(300));
    links.unplug(0)?;
    links.plug(1)?;
    registered(1)?;
    sleep(Duration::from_millis(500));
    let answers = ping.finish()?;
    turn.say(&format!("longest gap {:?}, {} lost", answers.longest_gap(), answers.lost()));
    assert!(answers.answered.len() > 20, "{answers:?}");

    // The home agent is killed, and knows the node when it starts again: it was told before.
    home.kill9()?;
    home.start()?;
    let ping = Ping::start(&links.correspondent, HOME, Duration::from_millis(20))?;
    sleep(Duration::from_millis(500));
    assert!(!ping.finish()?.answered.is_empty());

    // Told to end, it says farewell.
    let pid = rustix::process::Pid::from_child(&node);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    assert!(node.wait()?.success());
    assert_eq!(care_of_node(&home)?, "null");
    Ok(())
}

fn care_of_node(home: &Platform) -> Result<String> {
    let addresses = home.cli(&["addresses"])?;
    let care_of = &addresses["home_agent"][0]["care_of"];
    Ok(care_of.as_str().map_or_else(|| care_of.to_string(), str::to_owned))
}
