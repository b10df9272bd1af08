//! The simulation: two nodes, their services, and a queue of events on virtual time.

mod faults;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use super::node::{LIMITS, Node, Running, Side, Simulated};
use super::rng::Rng;
use super::services::{DestinationVm, Services, SourceVm};
use crate::handoff::{Destination, DestinationInput, Message, Output, Record, Source, SourceInput};
use crate::ids::Epoch;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Crash(Side),
    Cut,
    HypervisorDeath,
    Cancel,
    /// A record cannot be written, and certainly is not: the service goes on from those that are.
    JournalFails,
}

/// Where in an output a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    Before,
    /// A record is written in part; other outputs as `Before`.
    Within,
    After,
}

/// Everything that goes wrong in one run.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults {
    /// At a node's output of this number.
    pub(super) at_output: Vec<(Side, usize, Moment, Fault)>,
    /// At a time, in milliseconds.
    pub(super) at_ms: Vec<(u64, Fault)>,
    /// Of a hundred actions so many fail.
    pub(super) failing_percent: u64,
    /// Of a hundred messages so many arrive twice.
    pub(super) twice_percent: u64,
    /// Of a hundred messages in flight when the connection is cut so many arrive.
    pub(super) escape_percent: u64,
    /// Of a hundred transfers so many lose a block without a word.
    pub(super) losing_percent: u64,
}

#[derive(Clone, Debug)]
pub(super) enum Event {
    Deliver {
        to: Side,
        message: Message,
        generation: u64,
    },
    Done {
        side: Side,
        id: u64,
        fails: bool,
    },
    SourceInput {
        life: u32,
        input: SourceInput,
    },
    DestinationInput {
        life: u32,
        input: DestinationInput,
    },
    Tick(Side),
    Restart(Side),
    NoticeLoss {
        side: Side,
        generation: u64,
    },
    /// A loss told after the next connection stands.
    LateLoss(Side),
    Connect,
    MemoryArrives {
        generation: u64,
        memory: u64,
    },
    Write,
    Fault(Fault),
}

#[derive(Debug)]
struct Link {
    generation: u64,
    up: bool,
    /// Which sides take it to be up: source, destination.
    held: [bool; 2],
    connecting: bool,
}

/// How a run ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outcome {
    pub(super) moved: bool,
    /// Outputs of source and destination.
    pub(super) outputs: [usize; 2],
}

pub(super) struct World {
    now: Duration,
    sequence: u64,
    queue: BTreeMap<(Duration, u64), Event>,
    rng: Rng,
    faults: Faults,
    link: Link,
    source: Node<Source>,
    destination: Node<Destination>,
    lives: [u32; 2],
    services: Services,
    steps: u32,
    trace: Option<Vec<String>>,
}

/// Access to the node of a machine.
pub(super) trait Hosted: Simulated {
    fn node(world: &mut World) -> &mut Node<Self>;
    fn event(life: u32, input: Self::Input) -> Event;
}

impl Hosted for Source {
    fn node(world: &mut World) -> &mut Node<Self> {
        &mut world.source
    }
    fn event(life: u32, input: SourceInput) -> Event {
        Event::SourceInput { life, input }
    }
}

impl Hosted for Destination {
    fn node(world: &mut World) -> &mut Node<Self> {
        &mut world.destination
    }
    fn event(life: u32, input: DestinationInput) -> Event {
        Event::DestinationInput { life, input }
    }
}

/// Faults strike until then, and the guest writes.
pub(super) const UNQUIET: Duration = Duration::from_secs(8);
const END: Duration = Duration::from_secs(120);

type Step = Result<(), String>;

impl World {
    /// Runs one hand-off to its end. `Err` says which promise was broken; with `trace` it says how.
    pub(super) fn run(seed: u64, faults: Faults, trace: bool) -> Result<Outcome, String> {
        let plan = seed.to_le_bytes().to_vec();
        let source = Source::new("web".into(), "b".into(), Epoch::FIRST, plan, LIMITS);
        let mut world = World {
            now: Duration::ZERO,
            sequence: 0,
            queue: BTreeMap::new(),
            rng: Rng(seed),
            link: Link { generation: 1, up: true, held: [true; 2], connecting: false },
            source: Node::new(Some(source)),
            destination: Node::new(None),
            lives: [0; 2],
            services: Services::new(),
            steps: 0,
            trace: trace.then(Vec::new),
            faults,
        };
        for (at, fault) in world.faults.at_ms.clone() {
            world.after_us(at * 1000, Event::Fault(fault));
        }
        world.after_us(0, Event::Write);
        world.services.losing_percent = world.faults.losing_percent;
        let start = world.rng.between(3_000, 1_000_000);
        world.after_us(start, Event::SourceInput { life: 0, input: SourceInput::Start });
        let ended = world.work().and_then(|()| world.judge());
        ended.map_err(|error| match world.trace {
            Some(trace) => format!("{error}\n{}", trace.join("\n")),
            None => error,
        })
    }

    fn work(&mut self) -> Step {
        while let Some(((at, _), event)) = self.queue.pop_first() {
            self.now = at;
            self.steps += 1;
            if at > END || self.steps > 20_000 {
                return Err(format!("no end after {at:?} and {} steps", self.steps));
            }
            if !matches!(event, Event::Write) {
                self.note(|| format!("  {event:?}"));
            }
            self.handle(event)?;
            self.check()?;
        }
        Ok(())
    }

    fn handle(&mut self, event: Event) -> Step {
        match event {
            Event::Deliver { to: Side::Source, message, generation } => {
                self.deliver::<Source>(message, generation, |_| None)
            }
            Event::Deliver { to: Side::Destination, message, generation } => {
                self.deliver::<Destination>(message, generation, |message| match message {
                    Message::Offer { vm, epoch, plan } => {
                        Some(Destination::new(vm.clone(), "a".into(), *epoch, plan.clone()))
                    }
                    _ => None,
                })
            }
            Event::Done { side: Side::Source, id, fails } => self.done::<Source>(id, fails),
            Event::Done { side: Side::Destination, id, fails } => self.done::<Destination>(id, fails),
            Event::SourceInput { life, input } if life == self.lives[0] => self.feed::<Source>(input),
            Event::DestinationInput { life, input } if life == self.lives[1] => {
                self.feed::<Destination>(input)
            }
            Event::SourceInput { .. } | Event::DestinationInput { .. } => Ok(()),
            Event::Tick(Side::Source) => self.tick::<Source>(),
            Event::Tick(Side::Destination) => self.tick::<Destination>(),
            Event::Restart(Side::Source) => self.restart::<Source>(),
            Event::Restart(Side::Destination) => self.restart::<Destination>(),
            Event::NoticeLoss { side, generation } => {
                if generation == self.link.generation && std::mem::take(&mut self.link.held[side as usize]) {
                    self.tell_loss(side)?;
                    self.connect_later();
                }
                Ok(())
            }
            Event::LateLoss(side) => self.tell_loss(side),
            Event::Connect => self.connect(),
            Event::MemoryArrives { generation, memory } => {
                let waits = self.services.destination == DestinationVm::Incoming(None);
                if waits && self.link.up && generation == self.link.generation {
                    self.services.destination = DestinationVm::Incoming(Some(memory));
                    return self.feed::<Destination>(DestinationInput::MemoryLoaded);
                }
                Ok(())
            }
            Event::Write => {
                if self.now < UNQUIET {
                    self.services.write();
                    let pause = self.rng.between(3_000, 30_000);
                    self.after_us(pause, Event::Write);
                }
                Ok(())
            }
            Event::Fault(fault) => self.strike(fault),
        }
    }

    // The machines.

    fn deliver<M: Hosted>(
        &mut self,
        message: Message,
        generation: u64,
        offered: impl Fn(&Message) -> Option<M>,
    ) -> Step {
        let held = self.link.held[M::END as usize] && generation == self.link.generation;
        let arrives = self.link.up || self.rng.percent(self.faults.escape_percent);
        if !(held && arrives && M::node(self).up) {
            return Ok(());
        }
        if M::node(self).machine.is_none() {
            M::node(self).machine = M::node(self).recovered()?;
        }
        if M::node(self).machine.is_some() {
            return self.feed::<M>(M::message(message));
        }
        match offered(&message) {
            Some(machine) => {
                M::node(self).machine = Some(machine);
                self.feed::<Destination>(DestinationInput::Start)
            }
            None => {
                if let Some(answer) = message.answer_for_unknown_job() {
                    self.transmit(M::END, answer);
                }
                Ok(())
            }
        }
    }

    fn feed<M: Hosted>(&mut self, input: M::Input) -> Step {
        let now = self.now;
        if let Some(machine) = &mut M::node(self).machine {
            machine.input(now, input);
        }
        self.drain::<M>()
    }

    /// Carries out everything the machine wants; a fault may end that anywhere.
    fn drain<M: Hosted>(&mut self) -> Step {
        while let Some(output) = M::node(self).machine.as_mut().and_then(M::poll) {
            let number = M::node(self).outputs;
            M::node(self).outputs += 1;
            self.note(|| format!("{:?} {number}: {output:?}", M::END));
            self.strike_at(M::END, number, Moment::Before)?;
            if M::node(self).up {
                if let (Output::Journal(record), Some(Fault::Crash(side))) =
                    (&output, self.fault_at(M::END, number, Moment::Within))
                    && side == M::END
                {
                    let mut rng = self.rng.clone();
                    M::node(self).append_torn(record, &mut rng);
                }
                self.strike_at(M::END, number, Moment::Within)?;
            }
            if !M::node(self).up {
                return Ok(());
            }
            match output {
                Output::Journal(_)
                    if self.fault_at(M::END, number, Moment::Within) == Some(Fault::JournalFails) =>
                {
                    self.journal_failed::<M>()?;
                    continue;
                }
                Output::Journal(record) => M::node(self).append(record),
                Output::Transmit(message) => self.transmit(M::END, message),
                Output::Action(action) => self.begin::<M>(action),
                Output::Event(_) => {}
            }
            self.check()?;
            self.strike_at(M::END, number, Moment::After)?;
        }
        let due = M::node(self).machine.as_ref().and_then(M::due);
        if due != M::node(self).timer {
            M::node(self).timer = due;
            if let Some(due) = due {
                self.at(due, Event::Tick(M::END));
            }
        }
        // The daemon forgets an ended job sooner or later; its records stay.
        let forgets = self.rng.percent(50);
        let node = M::node(self);
        if forgets && node.running.is_empty() && node.machine.as_ref().is_some_and(M::ended) {
            node.machine = None;
        }
        Ok(())
    }

    fn journal_failed<M: Hosted>(&mut self) -> Step {
        let now = self.now;
        let machine = M::node(self).recovered()?;
        if machine.is_none() && M::END == Side::Destination {
            self.transmit(M::END, Message::Abort { reason: "the journal failed".into() });
        }
        M::node(self).machine = machine;
        if let Some(machine) = &mut M::node(self).machine {
            machine.restart(now);
        }
        Ok(())
    }

    fn tick<M: Hosted>(&mut self) -> Step {
        let now = self.now;
        if M::node(self).timer.is_some_and(|due| due <= now) {
            M::node(self).timer = None;
            return self.feed::<M>(M::tick());
        }
        Ok(())
    }

    fn begin<M: Hosted>(&mut self, action: M::Action) {
        if M::node(self).running.iter().any(|running| running.action == action) {
            return;
        }
        if M::sweeps(&action) {
            self.sweep::<M>();
        }
        M::begin(&mut self.services, &action, &mut self.rng);
        if M::brings_memory(&action) && self.link.up {
            // Before or after the source hears that it is done.
            let (delay, generation) = (self.rng.between(500, 300_000), self.link.generation);
            self.after_us(delay, Event::MemoryArrives { generation, memory: self.services.acked });
        }
        let (id, began) = (self.sequence, self.now);
        let generation = self.link.up.then_some(self.link.generation);
        M::node(self).running.push(Running { id, action, began, generation });
        let fails = self.now < UNQUIET && self.rng.percent(self.faults.failing_percent);
        let took = if self.rng.percent(90) {
            self.rng.between(500, 150_000)
        } else {
            self.rng.between(500, 1_500_000)
        };
        self.after_us(took, Event::Done { side: M::END, id, fails });
    }

    /// Ends what runs. Some of it has just ended, well or badly, and says so later.
    fn sweep<M: Hosted>(&mut self) {
        for running in std::mem::take(&mut M::node(self).running) {
            let input = match self.rng.below(3) {
                0 => M::failed(&running.action, "ended".into()),
                1 => match self.finish::<M>(&running) {
                    Ok(input) => input,
                    Err(reason) => M::failed(&running.action, reason),
                },
                _ => continue,
            };
            let (delay, life) = (self.rng.below(50_000), self.lives[M::END as usize]);
            self.after_us(delay, M::event(life, input));
        }
    }

    fn finish<M: Hosted>(&mut self, running: &Running<M::Action>) -> Result<M::Input, String> {
        let linked = self.link.up && running.generation == Some(self.link.generation);
        let took = self.now - running.began;
        M::finish(&mut self.services, &running.action, linked, took, &mut self.rng)
    }

    fn done<M: Hosted>(&mut self, id: u64, fails: bool) -> Step {
        let Some(index) = M::node(self).running.iter().position(|running| running.id == id) else {
            return Ok(());
        };
        let running = M::node(self).running.remove(index);
        // What failed may have happened all the same.
        let happens = !fails || self.rng.percent(50);
        let outcome = if happens { self.finish::<M>(&running) } else { Err(String::new()) };
        let input = match outcome {
            Ok(input) if !fails => input,
            Ok(_) => M::failed(&running.action, format!("{:?} failed at its end", running.action)),
            Err(reason) => M::failed(&running.action, format!("{:?} failed: {reason}", running.action)),
        };
        self.note(|| format!("{:?}: {input:?}", M::END));
        self.feed::<M>(input)
    }

    fn restart<M: Hosted>(&mut self) -> Step {
        let now = self.now;
        M::node(self).up = true;
        M::node(self).reload()?;
        if let Some(mut machine) = M::node(self).recovered()?
            && !machine.ended()
        {
            machine.restart(now);
            M::node(self).machine = Some(machine);
        }
        self.connect_later();
        if M::END == Side::Destination && self.services.destination == DestinationVm::Dead {
            self.tell_death();
        }
        self.drain::<M>()
    }

    // The promises.

    fn check(&self) -> Step {
        let released = self.source.records().iter().any(|record| matches!(record, Record::Released { .. }));
        let owned = self.destination.records().iter().any(|record| matches!(record, Record::Owned { .. }));
        if owned && !released {
            return Err("the destination owns what was never released".into());
        }
        let source = self.source.machine.as_ref().is_some_and(Source::owns);
        let destination = self.destination.machine.as_ref().is_some_and(Destination::owns);
        if source && destination {
            return Err("both own the VM".into());
        }
        self.services.check(released, owned)
    }

    /// After the last event.
    fn judge(&mut self) -> Result<Outcome, String> {
        self.services.write();
        self.check()?;
        let ended = |ended: Option<bool>, side: &str| match ended {
            Some(false) => Err(format!("the {side} has not ended")),
            _ => Ok(()),
        };
        ended(self.source.machine.as_ref().map(Source::is_ended), "source")?;
        ended(self.destination.machine.as_ref().map(Destination::is_ended), "destination")?;
        let (ours, theirs) = (self.source.records().last(), self.destination.records().last());
        let services = (self.services.source, self.services.destination);
        let outputs = [self.source.outputs, self.destination.outputs];
        match (ours, theirs, services) {
            (Some(Record::Retired), Some(Record::Rebound), (SourceVm::Gone, destination))
                if destination == DestinationVm::Running
                    || (destination == DestinationVm::Dead && self.services.died_running) =>
            {
                Ok(Outcome { moved: true, outputs })
            }
            (
                None | Some(Record::RolledBack { .. }),
                None | Some(Record::Discarded { .. }),
                (SourceVm::Running, DestinationVm::None),
            ) if !self.services.leftovers() => Ok(Outcome { moved: false, outputs }),
            other => Err(format!("it ended as {other:?}")),
        }
    }

    fn at(&mut self, at: Duration, event: Event) {
        self.sequence += 1;
        self.queue.insert((at.max(self.now), self.sequence), event);
    }

    fn after_us(&mut self, delay_us: u64, event: Event) {
        self.at(self.now + Duration::from_micros(delay_us), event);
    }

    fn note<S: Debug + AsRef<str>>(&mut self, text: impl FnOnce() -> S) {
        let now = self.now;
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:9.3} {}", now.as_secs_f64() * 1e3, text().as_ref()));
        }
    }
}
