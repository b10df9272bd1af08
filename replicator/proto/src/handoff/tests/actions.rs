//! The actions of both ends, piece by piece.

use std::collections::BTreeMap;

use super::hosts::{BLOCKS, Domain, Incoming, Tap, root};
use super::node::{Fate, Node, Progress, Side, Simulated, Stage, Work};
use super::scenario::Flaw;
use super::world::{Event, World};
use crate::handoff::{Destination, DestinationAction, DestinationInput, Source, SourceAction, SourceInput};

/// How long until it is looked again whether the other side has written everything.
const LOOK_AGAIN_US: u64 = 4_000;

fn ended<I>(input: I) -> Progress<I> {
    Progress::Ended(Ok(input))
}

fn failed<I>(reason: &str) -> Progress<I> {
    Progress::Ended(Err(reason.to_owned()))
}

impl Simulated for Source {
    const END: Side = Side::Source;

    fn nodes(world: &mut World, at: usize) -> &mut BTreeMap<usize, Node<Self>> {
        &mut world.platforms[at].sources
    }

    fn event(at: usize, job: usize, life: u32, input: SourceInput) -> Event {
        Event::SourceInput { at, job, life, input }
    }

    fn begin(world: &mut World, at: usize, job: usize, action: &SourceAction) {
        let vm = world.jobs[job].vm;
        let some = world.rng.below(20) as usize;
        let host = &mut world.platforms[at].hosts[vm];
        let mut misuse = None;
        match action {
            SourceAction::CopyDisks => {
                if host.tap.as_ref().is_some_and(|tap| tap.job != job) {
                    misuse = Some("a disk is tapped for two jobs");
                }
                host.tap = Some(Tap { job, ..Tap::default() });
            }
            SourceAction::RunRound | SourceAction::SendFinal => {
                if let Some(tap) = &mut host.tap {
                    if *action == SourceAction::RunRound {
                        tap.arrive(some);
                    }
                    if !tap.under_way.is_empty() {
                        misuse = Some("two rounds at once");
                    }
                    tap.under_way = std::mem::take(&mut tap.dirty).into_iter().collect();
                }
            }
            SourceAction::DrainDisks | SourceAction::FinishMemory if host.domain != Domain::Paused => {
                misuse = Some("switchover without a paused guest");
            }
            _ => {}
        }
        if *action == SourceAction::FinishMemory {
            world.send_last_memory(job);
        }
        world.misuse(misuse);
    }

    fn step(
        world: &mut World,
        at: usize,
        job: usize,
        work: &mut Work<SourceAction>,
    ) -> Progress<SourceInput> {
        let (vm, to) = (world.jobs[job].vm, world.jobs[job].to);
        let linked = world.link(at, to).is_up(work.generation);
        let local =
            matches!(work.action, SourceAction::RollBack | SourceAction::Retire | SourceAction::DrainDisks);
        if !linked && !local {
            return failed("the stream broke");
        }
        match work.action {
            SourceAction::CopyDisks | SourceAction::RunRound => send_blocks(world, at, job, work),
            SourceAction::SendMemory => send_memory(world, at, job, work),
            SourceAction::DrainDisks => {
                if let Some(tap) = &mut world.platforms[at].hosts[vm].tap {
                    tap.arrive(usize::MAX);
                }
                ended(SourceInput::DisksDrained)
            }
            SourceAction::SendFinal => {
                let host = &mut world.platforms[at].hosts[vm];
                let Some(tap) = &mut host.tap else { return failed("the disks are not open") };
                let blocks = std::mem::take(&mut tap.under_way);
                let open = host.open;
                if !world.give_blocks(job, blocks, true) {
                    return failed("nobody takes the blocks");
                }
                ended(SourceInput::FinalSent { roots: vec![root(&world.platforms[at].files[open])] })
            }
            SourceAction::FinishMemory => {
                world.set_domain(at, vm, Domain::PostMigrate);
                ended(SourceInput::MemorySent)
            }
            SourceAction::RollBack => {
                let host = &mut world.platforms[at].hosts[vm];
                host.tap = None;
                if matches!(host.domain, Domain::Paused | Domain::PostMigrate) {
                    world.set_domain(at, vm, Domain::Running);
                }
                ended(SourceInput::RolledBack)
            }
            SourceAction::Retire => {
                let host = &mut world.platforms[at].hosts[vm];
                host.tap = None;
                let runs = host.domain == Domain::Running;
                world.set_domain(at, vm, Domain::Absent);
                world.misuse(runs.then_some("a running guest is retired"));
                ended(SourceInput::Retired)
            }
        }
    }

    fn outlives(world: &World, work: &Work<SourceAction>) -> bool {
        world.has(Flaw::CallsOutliveRollBack)
            && matches!(work.action, SourceAction::SendMemory | SourceAction::FinishMemory)
    }
}

fn send_blocks(
    world: &mut World,
    at: usize,
    job: usize,
    work: &mut Work<SourceAction>,
) -> Progress<SourceInput> {
    let (vm, to) = (world.jobs[job].vm, world.jobs[job].to);
    let platform = &mut world.platforms[at];
    let host = &mut platform.hosts[vm];
    let Some(tap) = host.tap.as_mut().filter(|tap| tap.job == job) else {
        return failed("the disks are not open");
    };
    if work.stage == Stage::Begun {
        let mut blocks = std::mem::take(&mut tap.under_way);
        if work.action == SourceAction::CopyDisks {
            let image = platform.files[host.open];
            blocks = image.into_iter().enumerate().collect();
        }
        work.stage = Stage::Sent;
        if !world.give_blocks(job, blocks, false) {
            return failed("nobody takes the blocks");
        }
        return Progress::Again { after_us: LOOK_AGAIN_US, tell: None };
    }
    let dirty_bytes = tap.dirty_bytes();
    match world.platforms[to].incoming.get(&job) {
        Some(incoming) if incoming.fate == Fate::Wanted && incoming.queue.is_empty() => {}
        Some(incoming) if incoming.fate == Fate::Wanted => {
            return Progress::Again { after_us: LOOK_AGAIN_US, tell: None };
        }
        _ => return failed("nobody takes the blocks"),
    }
    if work.action == SourceAction::CopyDisks {
        return ended(SourceInput::DisksCopied { dirty_bytes });
    }
    let took = world.now - work.began;
    ended(SourceInput::RoundDone { sent_bytes: 65536, took, dirty_bytes })
}

fn send_memory(
    world: &mut World,
    at: usize,
    job: usize,
    work: &mut Work<SourceAction>,
) -> Progress<SourceInput> {
    let (vm, to) = (world.jobs[job].vm, world.jobs[job].to);
    let left = match work.stage {
        Stage::Streaming { left } => left,
        _ => world.rng.below(4) as u32,
    };
    let taken = world.platforms[to].hosts[vm].domain == Domain::Incoming(None);
    if !taken && work.fate != Fate::Loose {
        return failed("nobody takes the memory");
    }
    if left > 0 {
        work.stage = Stage::Streaming { left: left - 1 };
        // Slow, and longer in all than it may take without progress.
        let slow = if world.rng.percent(5) { 8_000_000 } else { 100_000 };
        let after_us = world.rng.between(500, slow);
        return Progress::Again { after_us, tell: Some(SourceInput::MemoryProgress) };
    }
    if world.platforms[at].hosts[vm].domain != Domain::Running {
        return failed("no guest runs");
    }
    world.set_domain(at, vm, Domain::Paused);
    ended(SourceInput::GuestPaused)
}

impl Simulated for Destination {
    const END: Side = Side::Destination;

    fn nodes(world: &mut World, at: usize) -> &mut BTreeMap<usize, Node<Self>> {
        &mut world.platforms[at].destinations
    }

    fn event(at: usize, job: usize, life: u32, input: DestinationInput) -> Event {
        Event::DestinationInput { at, job, life, input }
    }

    fn begin(_: &mut World, _: usize, _: usize, _: &DestinationAction) {}

    fn step(
        world: &mut World,
        at: usize,
        job: usize,
        work: &mut Work<DestinationAction>,
    ) -> Progress<DestinationInput> {
        let vm = world.jobs[job].vm;
        match &work.action {
            DestinationAction::PrepareDisks => prepare(world, at, job, work),
            DestinationAction::StartIncoming => {
                let platform = &mut world.platforms[at];
                let Some(incoming) = platform.incoming.get(&job) else { return failed("no images") };
                if platform.hosts[vm].domain != Domain::Absent {
                    return failed("a hypervisor runs already");
                }
                platform.hosts[vm].open = incoming.file;
                world.set_domain(at, vm, Domain::Incoming(None));
                ended(DestinationInput::IncomingStarted)
            }
            DestinationAction::SealDisks { roots } => {
                let platform = &mut world.platforms[at];
                let Some(incoming) = platform.incoming.get_mut(&job) else { return failed("no images") };
                if incoming.fate != Fate::Wanted {
                    return failed("the images are closed");
                }
                if !incoming.complete || !incoming.queue.is_empty() {
                    return Progress::Again { after_us: LOOK_AGAIN_US, tell: None };
                }
                if roots[..] != [incoming.root(&platform.files)] {
                    return failed("the roots differ");
                }
                platform.hosts[vm].sealed = true;
                let took = world.now - work.began;
                ended(DestinationInput::DisksSealed { took })
            }
            DestinationAction::Resume => resume(world, at, vm),
            DestinationAction::Rebind => ended(DestinationInput::Rebound),
            DestinationAction::Discard => {
                let platform = &mut world.platforms[at];
                let host = &mut platform.hosts[vm];
                let runs = host.domain == Domain::Running;
                if !host.defined
                    && let Some(image) = host.image.take()
                {
                    host.partial = Some(image);
                }
                host.sealed = false;
                world.set_domain(at, vm, Domain::Absent);
                world.misuse(runs.then_some("a running guest is discarded"));
                ended(DestinationInput::Discarded)
            }
        }
    }

    fn outlives(world: &World, work: &Work<DestinationAction>) -> bool {
        world.has(Flaw::CopyOutlivesDiscard) && matches!(work.stage, Stage::Copying { .. })
    }
}

/// What there is of the disk is used: its image, what an earlier attempt left, a replica.
fn prepare(
    world: &mut World,
    at: usize,
    job: usize,
    work: &mut Work<DestinationAction>,
) -> Progress<DestinationInput> {
    let vm = world.jobs[job].vm;
    let pause = if world.scenario.slow_copies { 4_000_000 } else { 40_000 };
    let after_us = world.rng.between(500, pause);
    let pace_us = match world.scenario.slow_writes {
        true => [3_000, 300_000, 2_000_000][world.rng.below(3) as usize],
        false => 3_000,
    };
    let platform = &mut world.platforms[at];
    let host = &mut platform.hosts[vm];
    if work.stage == Stage::Begun {
        host.sealed = false;
    }
    match (work.stage, host.replica) {
        (Stage::Copying { file, next }, Some(replica)) if next < BLOCKS => {
            platform.files[file][next] = platform.files[replica][next];
            work.stage = Stage::Copying { file, next: next + 1 };
            return Progress::Again { after_us, tell: Some(DestinationInput::Preparing) };
        }
        (Stage::Copying { file, .. }, _) => {
            if host.partial != Some(file) {
                return failed("the copy is gone");
            }
            host.image = host.partial.take();
        }
        _ if host.image.is_some() => {}
        _ if host.partial.is_some() => host.image = host.partial.take(),
        (_, replica) => {
            let file = platform.files.len();
            platform.files.push([0; BLOCKS]);
            if replica.is_some() {
                host.partial = Some(file);
                work.stage = Stage::Copying { file, next: 0 };
                return Progress::Again { after_us, tell: None };
            }
            host.image = Some(file);
        }
    }
    let Some(file) = host.image else { return failed("no image") };
    platform.incoming.insert(job, Incoming::new(file, pace_us));
    ended(DestinationInput::DisksPrepared)
}

/// Wakes the guest that waits, or boots it from its disks.
fn resume(world: &mut World, at: usize, vm: usize) -> Progress<DestinationInput> {
    let writes = world.guests[vm].writes;
    let host = &mut world.platforms[at].hosts[vm];
    let mut misuse = None;
    match host.domain {
        Domain::Running => {}
        Domain::Incoming(Some(memory)) if memory != writes => {
            misuse = Some("the guest wakes with a memory that is not its last");
        }
        Domain::Incoming(Some(_)) => {}
        _ => {
            let Some(image) = host.image else { return failed("no image") };
            host.open = image;
        }
    }
    if !host.sealed {
        misuse = Some("the guest wakes on disks that are not durable");
    }
    host.defined = true;
    world.guests[vm].died = false;
    world.guests[vm].stopped = false;
    world.set_domain(at, vm, Domain::Running);
    world.misuse(misuse);
    ended(DestinationInput::Resumed)
}
