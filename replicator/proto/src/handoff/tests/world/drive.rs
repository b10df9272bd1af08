//! The driver of the machines, as a shell has it: messages in, outputs out, records first, jobs that begin and end.

use std::time::Duration;

use super::{Event, Res, World};
use crate::handoff::tests::node::{Claim, Fate, Node, Side, Simulated};
use crate::handoff::tests::scenario::{Fault, Flaw, Moment, Operation};
use crate::handoff::{Destination, DestinationInput, Message, Output, Record, Source};
use crate::ids::Epoch;

/// The operator restarts a daemon with a doubtful record, when all is quiet.
const RESTARTED_AFTER: Duration = Duration::from_secs(5);

impl World {
    pub(super) fn deliver(
        &mut self,
        from: usize,
        to: usize,
        job: usize,
        message: Message,
        generation: u64,
    ) -> Res {
        if !self.arrives(from, to, generation) {
            return Ok(());
        }
        if to == self.jobs[job].from {
            return self.hear::<Source>(to, job, message);
        }
        let known = self.node::<Destination>(to, job).is_some_and(|node| {
            node.machine.is_some() || node.recovering || node.doubtful || !node.records.is_empty()
        });
        match message {
            Message::Offer { epoch, plan, .. } if !known => self.offered(to, job, epoch, plan),
            message => self.hear::<Destination>(to, job, message),
        }
    }

    fn hear<M: Simulated>(&mut self, at: usize, job: usize, message: Message) -> Res {
        let peer = self.peer::<M>(job);
        let answers = match self.node::<M>(at, job) {
            Some(node) if node.machine.is_some() => return self.feed::<M>(at, job, M::message(message)),
            Some(node) if node.recovering || node.doubtful => return Ok(()),
            Some(node) => match node.recovered()? {
                Some(mut machine) => {
                    machine.input(Duration::ZERO, M::message(message));
                    std::iter::from_fn(|| machine.poll())
                        .filter_map(|output| match output {
                            Output::Transmit(message) => Some(message),
                            _ => None,
                        })
                        .collect()
                }
                None => message.answer_for_unknown_job().into_iter().collect::<Vec<_>>(),
            },
            None => message.answer_for_unknown_job().into_iter().collect(),
        };
        for answer in answers {
            self.note(|| format!("[{at}] job {job} answers {answer:?}"));
            self.transmit(at, peer, job, answer);
        }
        Ok(())
    }

    /// What the daemon knows of a VM.
    pub(super) fn claim(&self, at: usize, vm: usize) -> Option<Claim> {
        let platform = &self.platforms[at];
        let ours = |job: &usize| self.jobs[*job].vm == vm;
        let sources = platform.sources.iter().filter(|(job, _)| ours(job)).map(|(_, node)| &node.records);
        let theirs = platform.destinations.iter().filter(|(job, _)| ours(job)).map(|(_, node)| &node.records);
        let mut claims = sources.chain(theirs).filter_map(|records| Claim::of(records));
        let best = if self.has(Flaw::FirstClaimCounts) {
            claims.next()
        } else {
            claims.max_by_key(|claim| claim.epoch())
        };
        best.or_else(|| platform.hosts[vm].defined.then_some(Claim::Ours(Epoch::FIRST)))
    }

    /// What the journal files say of a VM, after one has changed.
    pub(super) fn note_truth(&mut self, at: usize, vm: usize) {
        let platform = &self.platforms[at];
        let ours = |job: &usize| self.jobs[*job].vm == vm;
        let sources = platform.sources.iter().filter(|(job, _)| ours(job)).map(|(_, node)| &node.durable);
        let theirs = platform.destinations.iter().filter(|(job, _)| ours(job)).map(|(_, node)| &node.durable);
        let claims = sources.chain(theirs).filter_map(|records| Claim::of(records));
        let best = claims.max_by_key(|claim| claim.epoch());
        let home = vm % self.platforms.len() == at;
        self.platforms[at].truth[vm] = best.or(home.then_some(Claim::Ours(Epoch::FIRST)));
    }

    fn offered(&mut self, at: usize, job: usize, epoch: Epoch, plan: Vec<u8>) -> Res {
        let vm = self.jobs[job].vm;
        let claim = self.claim(at, vm);
        let refused = match claim {
            Some(Claim::Theirs(known)) => known > epoch,
            Some(Claim::Ours(_) | Claim::Undecided(_)) => true,
            None => false,
        };
        if !self.take_hold(at, vm, job) || refused {
            self.give_back(at, vm, job);
            self.note(|| format!("[{at}] refuses job {job}: {claim:?}"));
            let reason = "refused".to_owned();
            self.transmit(at, self.jobs[job].from, job, Message::Abort { reason });
            return Ok(());
        }
        let (vm, peer) = (vm.to_string(), self.jobs[job].from.to_string());
        let node = Node::new(Destination::new(vm, peer, epoch, plan));
        self.platforms[at].destinations.insert(job, node);
        self.feed::<Destination>(at, job, DestinationInput::Start)
    }

    pub(super) fn take_hold(&mut self, at: usize, vm: usize, job: usize) -> bool {
        let free = self.has(Flaw::NoHold);
        let holds = &mut self.platforms[at].holds;
        let taken = *holds.entry(vm).or_insert(job) == job || free;
        if free {
            holds.insert(vm, job);
        }
        taken
    }

    pub(super) fn give_back(&mut self, at: usize, vm: usize, job: usize) {
        let holds = &mut self.platforms[at].holds;
        if holds.get(&vm) == Some(&job) {
            holds.remove(&vm);
        }
    }

    /// An outcome that comes a little later than it was made.
    pub(super) fn late<M: Simulated>(&mut self, at: usize, job: usize, life: u32, input: M::Input) -> Res {
        match self.node::<M>(at, job) {
            Some(node) if node.life == life => self.feed::<M>(at, job, input),
            _ => Ok(()),
        }
    }

    pub(super) fn feed<M: Simulated>(&mut self, at: usize, job: usize, input: M::Input) -> Res {
        let now = self.now;
        let Some(machine) = self.node::<M>(at, job).and_then(|node| node.machine.as_mut()) else {
            return Ok(());
        };
        machine.input(now, input);
        self.drain::<M>(at, job)
    }

    pub(super) fn tick<M: Simulated>(&mut self, at: usize, job: usize) -> Res {
        if let Some(node) = self.node::<M>(at, job) {
            node.timer = None;
        }
        self.feed::<M>(at, job, M::tick())
    }

    /// Carries out everything the machine wants; a fault may end that anywhere.
    pub(super) fn drain<M: Simulated>(&mut self, at: usize, job: usize) -> Res {
        let Some(node) = self.node::<M>(at, job) else { return Ok(()) };
        let life = node.life;
        let alive = |world: &mut World| {
            world.node::<M>(at, job).is_some_and(|node| node.life == life && node.machine.is_some())
        };
        loop {
            let node = self.node::<M>(at, job);
            let Some(output) = node.and_then(|node| node.machine.as_mut()).and_then(M::poll) else { break };
            let number = self.outputs[M::END as usize];
            self.outputs[M::END as usize] += 1;
            self.current = job;
            self.note(|| format!("[{at}] job {job} {} {number}: {output:?}", M::SIDE));
            self.strike_at(M::END, job, number, Moment::Before)?;
            let within = self.fault_within(M::END, number, &output);
            if alive(self)
                && let Some(fault) = within
            {
                if let Output::Journal(record) = &output
                    && fault == Fault::Crash(M::END)
                {
                    let mut rng = self.rng.clone();
                    if let Some(node) = self.node::<M>(at, job) {
                        node.append_torn(record, &mut rng);
                    }
                }
                self.strike(fault, job)?;
            }
            if !alive(self) {
                return Ok(());
            }
            if std::mem::take(&mut self.skipped) {
                continue;
            }
            match output {
                Output::Journal(record) => match within {
                    Some(Fault::JournalFails) => return self.recover::<M>(at, job),
                    Some(Fault::JournalDoubt) => return self.doubt::<M>(at, job, &record),
                    _ => self.append::<M>(at, job, record),
                },
                Output::Transmit(message) => self.transmit(at, self.peer::<M>(job), job, message),
                Output::Action(action) => self.begin::<M>(at, job, action),
                Output::Event(_) => {}
            }
            self.check()?;
            self.strike_at(M::END, job, number, Moment::After)?;
            if !alive(self) {
                return Ok(());
            }
        }
        self.set_timer::<M>(at, job);
        self.maybe_leave::<M>(at, job)
    }

    fn append<M: Simulated>(&mut self, at: usize, job: usize, record: Record) {
        if let Some(node) = self.node::<M>(at, job) {
            node.append(record);
        }
        self.note_truth(at, self.jobs[job].vm);
    }

    fn set_timer<M: Simulated>(&mut self, at: usize, job: usize) {
        let Some(node) = self.node::<M>(at, job) else { return };
        let due = node.machine.as_ref().and_then(M::due);
        if due != node.timer {
            node.timer = due;
            if let Some(due) = due {
                self.at(due, Event::Tick { at, side: M::END, job });
            }
        }
    }

    /// A job that has come to its end leaves when all its work has ended.
    pub(super) fn maybe_leave<M: Simulated>(&mut self, at: usize, job: usize) -> Res {
        let Some(node) = self.node::<M>(at, job) else { return Ok(()) };
        if !node.machine.as_ref().is_some_and(M::ended) || node.pending.is_some() {
            return Ok(());
        }
        let failed = node.machine.as_ref().is_some_and(|machine| machine.failure().is_some());
        self.cancel_all::<M>(at, job);
        if self.is_busy::<M>(at, job) {
            return Ok(());
        }
        let vm = self.jobs[job].vm;
        if self.platforms[at].holds.get(&vm) == Some(&job) {
            self.give_back(at, vm, job);
            if failed && M::END == Side::Source {
                self.try_again(job);
            }
        }
        // The daemon forgets an ended job sooner or later; its records stay.
        if self.rng.percent(50)
            && let Some(node) = self.node::<M>(at, job)
        {
            node.machine = None;
        }
        Ok(())
    }

    /// The operator of a failed migration does not wait.
    pub(super) fn try_again(&mut self, job: usize) {
        let (vm, from, to) = (self.jobs[job].vm, self.jobs[job].from, self.jobs[job].to);
        if self.now >= self.scenario.quiet_at || self.retries >= 12 {
            return;
        }
        let delay = if self.rng.percent(50) { 0 } else { self.rng.below(300_000) };
        if self.rng.percent(self.scenario.bounce_percent) {
            self.after_us(delay, Event::Operate(Operation::Bounce { vm, at: from }));
        }
        if self.rng.percent(self.scenario.retry_percent) {
            self.retries += 1;
            let skip = usize::from(to != (from + 1) % self.platforms.len());
            self.after_us(delay, Event::Operate(Operation::Migrate { vm, skip }));
        }
    }

    /// In a process that lives: the machine is gone, and comes back when nothing of its life is left.
    pub(super) fn recover<M: Simulated>(&mut self, at: usize, job: usize) -> Res {
        let loosens = self.has(Flaw::RecoveryLoosensWork);
        let Some(node) = self.node::<M>(at, job) else { return Ok(()) };
        (node.machine, node.timer, node.pending) = (None, None, None);
        node.life += 1;
        node.recovering = true;
        if loosens {
            node.running.iter_mut().for_each(|work| work.fate = Fate::Loose);
            self.platforms[at].incoming.get_mut(&job).into_iter().for_each(|one| one.fate = Fate::Loose);
        }
        self.cancel_all::<M>(at, job);
        self.work_ended::<M>(at, job)
    }

    pub(super) fn recovered<M: Simulated>(&mut self, at: usize, job: usize, life: u32) -> Res {
        let (now, vm) = (self.now, self.jobs[job].vm);
        let Some(node) = self.node::<M>(at, job) else { return Ok(()) };
        if node.life != life || !std::mem::take(&mut node.recovering) {
            return Ok(());
        }
        node.machine = node.recovered()?;
        match &mut node.machine {
            Some(machine) => machine.restart(now),
            // Nothing is written of it, so nothing of it was begun.
            None => {
                let peer = self.peer::<M>(job);
                let reason = "the journal failed".to_owned();
                self.transmit(at, peer, job, Message::Abort { reason });
                self.give_back(at, vm, job);
            }
        }
        self.drain::<M>(at, job)
    }

    /// Nobody can say whether this record is in the file.
    fn doubt<M: Simulated>(&mut self, at: usize, job: usize, record: &Record) -> Res {
        let (vm, drops) = (self.jobs[job].vm, self.has(Flaw::DoubtDropsHold));
        let mut rng = self.rng.clone();
        self.rng.next();
        let Some(node) = self.node::<M>(at, job) else { return Ok(()) };
        node.append_doubtfully(record, &mut rng);
        (node.machine, node.timer, node.pending) = (None, None, None);
        node.life += 1;
        self.cancel_all::<M>(at, job);
        self.note_truth(at, vm);
        if drops {
            self.give_back(at, vm, job);
        }
        if M::END == Side::Source {
            self.try_again(job);
        }
        self.at(self.now.max(self.scenario.quiet_at) + RESTARTED_AFTER, Event::LookAround);
        Ok(())
    }
}
