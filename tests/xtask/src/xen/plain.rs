//! What Xen does by itself, to compare with: the paper's Experiment 1, `xl migrate` with a disk that both hosts see.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use harness::{Collector, XenPair};

use super::machine::{Machine, VM};
use super::step;
use super::watch::Watch;

const BOOT: Duration = Duration::from_secs(90);
const MIGRATE: Duration = Duration::from_secs(240);
/// How long the guest writes before it moves, and after.
const WRITING: Duration = Duration::from_secs(4);

/// The receiver: xl itself, on a port of the lab's network. The shell keeps socat from ending it early.
const RECEIVER: &str =
    "nohup socat -t 600 TCP-LISTEN:8002,reuseaddr EXEC:'xl migrate-receive' >/tmp/receiver.log 2>&1 &";

/// One move by xl alone.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shared {
    /// How long the guest was not reached.
    pub(super) unreachable: Duration,
    /// From the command to its end.
    pub(super) total: Duration,
    /// What went over the line, with everything around it.
    pub(super) bytes: u64,
}

/// Boots the guest on a's view of the shared disk and moves it to b, and back, `moves` times in all.
pub(super) fn live(pair: &XenPair, moves: usize) -> Result<Vec<Shared>> {
    step("Experiment 1: xl migrate with a disk that both hosts see");
    let collector = pair.collector()?;
    boot(pair, &collector, "/dev/vdc")?;
    let (mut from, mut to) = (&pair.a, &pair.b);
    let mut all = Vec::new();
    for _ in 0..moves {
        // What it has read of the disk before is no longer so.
        to.run(&format!("blockdev --flushbufs /dev/vdc; {RECEIVER}"))?;
        let watch = Watch::begin(pair, &collector)?;
        let (started, before) = (Instant::now(), pair.bytes_into(to)?);
        let transport = format!("socat -t 600 - TCP:{}:8002", to.address());
        let said = from.run_within(&format!("xl migrate -s '' {VM} '{transport}' 2>&1"), MIGRATE)?;
        let (total, bytes) = (started.elapsed(), pair.bytes_into(to)? - before);
        collector
            .wait_progress(1, BOOT)
            .with_context(|| format!("the guest on {}; xl: {said}", to.name()))?;
        thread::sleep(WRITING);
        let moved = Shared { unreachable: watch.end()?, total, bytes };
        println!("    to {}: {moved:?}", to.name());
        ensure!(collector.instances().len() == 1 && collector.duplicates() == 0, "the guest ran twice");
        all.push(moved);
        (from, to) = (to, from);
    }
    from.run(&format!("xl destroy {VM}"))?;
    Ok(all)
}

/// The paper's Experiment 2: the guest is saved, image and memory are copied by scp, the guest is restored.
#[derive(Debug, Clone, Copy)]
pub(super) struct Copied {
    /// The whole, from the command to the guest on b; that long it was not reached.
    pub(super) unreachable: Duration,
    /// Its parts: save, image copy, memory copy, restore.
    pub(super) parts: [Duration; 4],
    /// Bytes of the image and of the saved memory, as they were copied.
    pub(super) bytes: [u64; 2],
}

/// Copies the guest from a to b without storage that they share.
pub(super) fn copied(pair: &XenPair) -> Result<Copied> {
    step("Experiment 2: xl save, scp of the image and the memory, xl restore");
    let collector = pair.collector()?;
    pair.a.run("cp --sparse=always /lab/base.raw /lab/paper.raw")?;
    boot(pair, &collector, "/lab/paper.raw")?;
    let scp = |file: &str| {
        format!(
            "scp -q -i /root/.ssh/id -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null {file} {}:{file}",
            pair.b.address()
        )
    };
    let watch = Watch::begin(pair, &collector)?;
    let timed = |host: &harness::XenHost, script: &str| -> Result<Duration> {
        let started = Instant::now();
        host.run_within(script, MIGRATE)?;
        Ok(started.elapsed())
    };
    let parts = [
        timed(&pair.a, &format!("xl save {VM} /lab/{VM}.save"))?,
        timed(&pair.a, &scp("/lab/paper.raw"))?,
        timed(&pair.a, &scp(&format!("/lab/{VM}.save")))?,
        timed(&pair.b, &format!("xl restore /lab/{VM}.save"))?,
    ];
    collector.wait_progress(1, BOOT).context("the guest restored on b")?;
    thread::sleep(WRITING);
    let size = |file: &str| -> Result<u64> { Ok(pair.b.run(&format!("stat -c %s {file}"))?.trim().parse()?) };
    let bytes = [size("/lab/paper.raw")?, size(&format!("/lab/{VM}.save"))?];
    let copied = Copied { unreachable: watch.end()?, parts, bytes };
    println!("    {copied:?}");
    ensure!(collector.instances().len() == 1 && collector.duplicates() == 0, "the guest ran twice");
    pair.b.run(&format!("xl destroy {VM}; rm /lab/{VM}.save /lab/paper.raw"))?;
    pair.a.run(&format!("rm /lab/{VM}.save /lab/paper.raw"))?;
    Ok(copied)
}

/// Boots the guest on a and lets it write for a while.
pub(super) fn boot(pair: &XenPair, collector: &Collector, disk: &str) -> Result<()> {
    let configuration = Machine::xl_configuration(collector.port(), disk);
    let started = Instant::now();
    pair.a.run(&format!("cat > /tmp/{VM}.cfg <<'END'\n{configuration}END\nxl create -q /tmp/{VM}.cfg"))?;
    println!("    created after {:.1} s", started.elapsed().as_secs_f64());
    collector.wait_acked(1, BOOT).with_context(|| {
        let log =
            pair.a.run("tail -n 30 /var/log/xen/console/guest-u1.log /var/log/xen/*.log").unwrap_or_default();
        format!("the guest on a; its console:\n{log}")
    })?;
    println!("    first record after {:.1} s", started.elapsed().as_secs_f64());
    thread::sleep(WRITING);
    Ok(())
}
