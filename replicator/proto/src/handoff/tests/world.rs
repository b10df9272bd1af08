//! The simulation: platforms, their daemons and hosts, the connections between them, and a queue of events on virtual
//! time.

mod drive;
mod faults;
mod judge;
mod links;
mod operator;
mod work;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use super::hosts::{BLOCKS, Domain, Guest, Host, Incoming, Store};
use super::node::{Claim, LIMITS, Node, Side, Simulated};
use super::rng::Rng;
use super::scenario::{Fault, Flaw, Operation, Scenario};
use crate::handoff::{Destination, DestinationInput, Limits, Message, Source, SourceInput};
use crate::ids::Epoch;
use links::Link;

#[derive(Clone, Debug)]
pub(super) enum Event {
    Deliver {
        from: usize,
        to: usize,
        job: usize,
        message: Message,
        generation: u64,
    },
    Step {
        at: usize,
        life: u32,
        side: Side,
        job: usize,
        id: u64,
    },
    Recovered {
        at: usize,
        side: Side,
        job: usize,
        life: u32,
    },
    SourceInput {
        at: usize,
        job: usize,
        life: u32,
        input: SourceInput,
    },
    DestinationInput {
        at: usize,
        job: usize,
        life: u32,
        input: DestinationInput,
    },
    Tick {
        at: usize,
        side: Side,
        job: usize,
    },
    WriteBlock {
        at: usize,
        life: u32,
        job: usize,
    },
    MemoryArrives {
        job: usize,
        generation: u64,
        memory: u64,
    },
    NoticeLoss {
        at: usize,
        peer: usize,
        generation: u64,
    },
    LateLoss {
        at: usize,
        peer: usize,
    },
    Connect {
        a: usize,
        b: usize,
    },
    GuestWrites {
        vm: usize,
    },
    Restart {
        at: usize,
    },
    Operate(Operation),
    /// The operator looks for daemons that wait to be restarted.
    LookAround,
    Fault(Fault),
}

/// One migration, as those who draw it up know it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job {
    pub(super) vm: usize,
    pub(super) from: usize,
    pub(super) to: usize,
}

#[derive(Default)]
pub(super) struct Platform {
    pub(super) up: bool,
    /// Of the daemon's process.
    pub(super) life: u32,
    pub(super) hosts: Vec<Host>,
    pub(super) files: Store,
    pub(super) sources: BTreeMap<usize, Node<Source>>,
    pub(super) destinations: BTreeMap<usize, Node<Destination>>,
    /// Which job works on a VM.
    pub(super) holds: BTreeMap<usize, usize>,
    pub(super) incoming: BTreeMap<usize, Incoming>,
    /// What the journal files say of each VM, whatever the daemon knows of it.
    pub(super) truth: Vec<Option<Claim>>,
}

/// How a run ended.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    /// Whether VM 0 ended on another platform than 0.
    pub(super) moved: bool,
    /// How often VMs changed platforms, and how often one was to.
    pub(super) moves: usize,
    pub(super) jobs: usize,
    /// Outputs of sources and of destinations.
    pub(super) outputs: [usize; 2],
}

pub(super) struct World {
    pub(super) now: Duration,
    pub(super) rng: Rng,
    pub(super) scenario: Scenario,
    pub(super) platforms: Vec<Platform>,
    pub(super) guests: Vec<Guest>,
    pub(super) jobs: Vec<Job>,
    links: BTreeMap<(usize, usize), Link>,
    queue: BTreeMap<(Duration, u64), Event>,
    sequence: u64,
    outputs: [usize; 2],
    /// The job that faults concern.
    current: usize,
    retries: u32,
    /// The output that is being carried out is not.
    skipped: bool,
    misuse: Option<&'static str>,
    steps: u32,
    trace: Option<Vec<String>>,
}

const END: Duration = Duration::from_secs(200);
const MAX_STEPS: u32 = 100_000;

type Res = Result<(), String>;

impl World {
    /// Runs a scenario to its end. `Err` says which promise was broken.
    pub(super) fn run(seed: u64, scenario: &Scenario) -> Result<Outcome, String> {
        let mut world = World::new(seed, scenario.clone(), false);
        world.work().and_then(|()| world.judge())
    }

    /// Everything that happens in a scenario, and how it ends.
    pub(super) fn tell(seed: u64, scenario: &Scenario) -> String {
        let mut world = World::new(seed, scenario.clone(), true);
        let ended = world.work().and_then(|()| world.judge());
        let trace = world.trace.unwrap_or_default().join("\n");
        format!("seed {seed}: {scenario:#?}\n{trace}\nseed {seed} ends with {ended:?}")
    }

    fn new(seed: u64, scenario: Scenario, trace: bool) -> Self {
        let platform = |_| {
            let hosts = (0..scenario.vms).map(|_| Host::default()).collect();
            Platform { up: true, hosts, truth: vec![None; scenario.vms], ..Platform::default() }
        };
        let pairs = (0..scenario.platforms).flat_map(|b| (0..b).map(move |a| (a, b)));
        let mut world = World {
            now: Duration::ZERO,
            rng: Rng(seed),
            platforms: (0..scenario.platforms).map(platform).collect(),
            guests: (0..scenario.vms).map(|_| Guest::default()).collect(),
            jobs: Vec::new(),
            links: pairs.map(|pair| (pair, Link::new())).collect(),
            queue: BTreeMap::new(),
            sequence: 0,
            outputs: [0; 2],
            current: 0,
            retries: 0,
            skipped: false,
            misuse: None,
            steps: 0,
            trace: trace.then(Vec::new),
            scenario,
        };
        for vm in 0..world.scenario.vms {
            // Each VM is at home somewhere, VM 0 on platform 0.
            let home = &mut world.platforms[vm % world.scenario.platforms];
            home.files.push([0; BLOCKS]);
            let image = home.files.len() - 1;
            let host = &mut home.hosts[vm];
            (host.image, host.open, host.defined) = (Some(image), image, true);
            host.domain = Domain::Running;
            home.truth[vm] = Some(Claim::Ours(Epoch::FIRST));
            world.after_us(0, Event::GuestWrites { vm });
        }
        for (at, operation) in world.scenario.operations.clone() {
            world.at(at, Event::Operate(operation));
        }
        for (at, fault) in world.scenario.at.clone() {
            world.at(at, Event::Fault(fault));
        }
        world
    }

    fn work(&mut self) -> Res {
        while let Some(((at, _), event)) = self.queue.pop_first() {
            if let Event::Tick { at: place, side, job } = event
                && !self.is_due(place, side, job, at)
            {
                continue;
            }
            self.now = at;
            self.steps += 1;
            if at > END || self.steps > MAX_STEPS {
                return Err(format!("no end after {at:?} and {} steps", self.steps));
            }
            if !matches!(event, Event::GuestWrites { .. } | Event::WriteBlock { .. } | Event::Step { .. }) {
                self.note(|| format!("  {event:?}"));
            }
            self.handle(event)?;
            self.check()?;
        }
        Ok(())
    }

    /// Whether a timer still stands as it was set.
    fn is_due(&self, at: usize, side: Side, job: usize, now: Duration) -> bool {
        let platform = &self.platforms[at];
        let timer = match side {
            Side::Source => platform.sources.get(&job).and_then(|node| node.timer),
            Side::Destination => platform.destinations.get(&job).and_then(|node| node.timer),
        };
        timer.is_some_and(|due| due <= now)
    }

    fn handle(&mut self, event: Event) -> Res {
        match event {
            Event::Deliver { from, to, job, message, generation } => {
                self.deliver(from, to, job, message, generation)
            }
            Event::Step { at, life, side, job, id } if life == self.platforms[at].life => match side {
                Side::Source => self.step::<Source>(at, job, id),
                Side::Destination => self.step::<Destination>(at, job, id),
            },
            Event::Recovered { at, side: Side::Source, job, life } => self.recovered::<Source>(at, job, life),
            Event::Recovered { at, side: Side::Destination, job, life } => {
                self.recovered::<Destination>(at, job, life)
            }
            Event::SourceInput { at, job, life, input } => self.late::<Source>(at, job, life, input),
            Event::DestinationInput { at, job, life, input } => {
                self.late::<Destination>(at, job, life, input)
            }
            Event::Tick { at, side: Side::Source, job } => self.tick::<Source>(at, job),
            Event::Tick { at, side: Side::Destination, job } => self.tick::<Destination>(at, job),
            Event::WriteBlock { at, life, job } if life == self.platforms[at].life => {
                self.write_block(at, job)
            }
            Event::Step { .. } | Event::WriteBlock { .. } => Ok(()),
            Event::MemoryArrives { job, generation, memory } => self.memory_arrives(job, generation, memory),
            Event::NoticeLoss { at, peer, generation } => self.notice_loss(at, peer, generation),
            Event::LateLoss { at, peer } => self.tell_loss(at, peer),
            Event::Connect { a, b } => self.connect(a, b),
            Event::GuestWrites { vm } => {
                self.guest_writes(vm);
                if self.now < self.scenario.quiet_at {
                    let pause = self.rng.between(3_000, 40_000);
                    self.after_us(pause, Event::GuestWrites { vm });
                }
                Ok(())
            }
            Event::Restart { at } => self.restart(at),
            Event::Operate(operation) => self.operate(operation),
            Event::LookAround => self.look_around(),
            Event::Fault(fault) => self.strike(fault, self.current),
        }
    }

    pub(super) fn has(&self, flaw: Flaw) -> bool {
        self.scenario.flaw == Some(flaw)
    }

    pub(super) fn limits(&self) -> Limits {
        let mut limits = LIMITS;
        if self.has(Flaw::NoMemoryLimit) {
            limits.memory_stall = Duration::from_secs(86_400);
        }
        if self.has(Flaw::NoSwitchoverLimit) {
            limits.switchover_timeout = Duration::from_secs(86_400);
        }
        limits
    }

    /// What no service should ever have been asked for.
    pub(super) fn misuse(&mut self, text: Option<&'static str>) {
        self.misuse = self.misuse.or(text);
    }

    pub(super) fn set_domain(&mut self, at: usize, vm: usize, domain: Domain) {
        let now = self.now;
        let host = &mut self.platforms[at].hosts[vm];
        host.domain = domain;
        host.paused_since = match domain {
            Domain::Paused | Domain::PostMigrate => host.paused_since.or(Some(now)),
            _ => None,
        };
    }

    /// The running guest writes once.
    fn guest_writes(&mut self, vm: usize) {
        let block = self.rng.below(BLOCKS as u64) as usize;
        let guest = &mut self.guests[vm];
        for platform in &mut self.platforms {
            let host = &mut platform.hosts[vm];
            if host.domain == Domain::Running {
                guest.writes += 1;
                guest.truth[block] = guest.writes;
                platform.files[host.open][block] = guest.writes;
                if let Some(tap) = &mut host.tap {
                    tap.pending.push((block, guest.writes));
                }
                return;
            }
        }
    }

    /// What a job's machine there is, with all around it.
    fn node<M: Simulated>(&mut self, at: usize, job: usize) -> Option<&mut Node<M>> {
        M::nodes(self, at).get_mut(&job)
    }

    fn at(&mut self, at: Duration, event: Event) {
        self.sequence += 1;
        self.queue.insert((at.max(self.now), self.sequence), event);
    }

    pub(super) fn after_us(&mut self, delay_us: u64, event: Event) {
        self.at(self.now + Duration::from_micros(delay_us), event);
    }

    fn note<S: Debug + AsRef<str>>(&mut self, text: impl FnOnce() -> S) {
        let now = self.now;
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:9.3} {}", now.as_secs_f64() * 1e3, text().as_ref()));
        }
    }
}
