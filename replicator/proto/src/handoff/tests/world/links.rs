//! The connections between platforms: what is sent, what is lost, who hears of it.

use super::{Event, Res, World};
use crate::handoff::tests::node::{Fate, Simulated};
use crate::handoff::tests::scenario::Flaw;
use crate::handoff::{Destination, Machine, Message, Source};

#[derive(Debug)]
pub(in super::super) struct Link {
    generation: u64,
    up: bool,
    /// Which of the two take it to be up.
    held: [bool; 2],
    connecting: bool,
}

impl Link {
    pub(super) fn new() -> Self {
        Link { generation: 1, up: true, held: [true; 2], connecting: false }
    }

    /// Whether it has been this connection all the time.
    pub(in super::super) fn is_up(&self, generation: Option<u64>) -> bool {
        self.up && generation == Some(self.generation)
    }

    pub(super) fn generation(&self) -> Option<u64> {
        self.up.then_some(self.generation)
    }
}

impl World {
    pub(in super::super) fn link(&mut self, at: usize, peer: usize) -> &mut Link {
        self.links.get_mut(&(at.min(peer), at.max(peer))).unwrap()
    }

    pub(super) fn transmit(&mut self, from: usize, to: usize, job: usize, message: Message) {
        let Some(generation) = self.link(from, to).generation() else { return };
        let twice = self.rng.percent(self.scenario.twice_percent);
        for _ in 0..=u32::from(twice) {
            let slow = if self.rng.percent(5) { 400_000 } else { 40_000 };
            let delay = self.rng.between(500, slow);
            self.after_us(delay, Event::Deliver { from, to, job, message: message.clone(), generation });
        }
    }

    /// Whether what was sent on that connection reaches this side of it.
    pub(super) fn arrives(&mut self, from: usize, to: usize, generation: u64) -> bool {
        let escapes = self.rng.percent(self.scenario.escape_percent);
        let link = self.link(from, to);
        let held = link.held[usize::from(to > from)] && link.generation == generation;
        held && (link.up || escapes) && self.platforms[to].up
    }

    pub(super) fn cut(&mut self, at: usize, peer: usize) {
        let link = self.link(at, peer);
        if !std::mem::take(&mut link.up) {
            return;
        }
        let generation = link.generation;
        for (at, peer) in [(at, peer), (peer, at)] {
            let slow = if self.rng.percent(50) { 50_000 } else { 3_000_000 };
            let delay = self.rng.between(100, slow);
            self.after_us(delay, Event::NoticeLoss { at, peer, generation });
        }
    }

    pub(super) fn forget_link(&mut self, at: usize, peer: usize) {
        self.link(at, peer).held[usize::from(at > peer)] = false;
    }

    pub(super) fn notice_loss(&mut self, at: usize, peer: usize, generation: u64) -> Res {
        let link = self.link(at, peer);
        if link.generation == generation && std::mem::take(&mut link.held[usize::from(at > peer)]) {
            self.tell_loss(at, peer)?;
            self.connect_later(at, peer);
        }
        Ok(())
    }

    pub(super) fn connect_later(&mut self, at: usize, peer: usize) {
        let link = self.link(at, peer);
        if !link.up && !std::mem::replace(&mut link.connecting, true) {
            let delay = self.rng.between(1_000, 2_000_000);
            self.after_us(delay, Event::Connect { a: at.min(peer), b: at.max(peer) });
        }
    }

    pub(super) fn connect(&mut self, a: usize, b: usize) -> Res {
        let both = self.platforms[a].up && self.platforms[b].up;
        let link = self.link(a, b);
        link.connecting = false;
        if link.up || !both {
            return Ok(());
        }
        let held = std::mem::replace(&mut link.held, [true; 2]);
        link.generation += 1;
        link.up = true;
        // Who has not noticed the loss of the old one does now, or a little later.
        for (held, at, peer) in [(held[0], a, b), (held[1], b, a)] {
            if held {
                let delay = if self.rng.percent(50) { 0 } else { self.rng.below(3_000_000) };
                self.after_us(delay, Event::LateLoss { at, peer });
            }
        }
        Ok(())
    }

    pub(super) fn tell_loss(&mut self, at: usize, peer: usize) -> Res {
        if self.has(Flaw::LossIsUntold) {
            return Ok(());
        }
        let jobs = |world: &World, keep: &dyn Fn(usize) -> bool| -> Vec<usize> {
            (0..world.jobs.len()).filter(|job| keep(*job)).collect()
        };
        for job in jobs(self, &|job| (self.jobs[job].from, self.jobs[job].to) == (at, peer)) {
            self.feed::<Source>(at, job, Source::link_lost())?;
        }
        for job in jobs(self, &|job| (self.jobs[job].from, self.jobs[job].to) == (peer, at)) {
            self.feed::<Destination>(at, job, Destination::link_lost())?;
        }
        Ok(())
    }

    /// Blocks go to the destination, which writes them one after the other. False when it takes none.
    pub(in super::super) fn give_blocks(
        &mut self,
        job: usize,
        mut blocks: Vec<(usize, u64)>,
        complete: bool,
    ) -> bool {
        if self.rng.percent(self.scenario.losing_percent) {
            blocks.pop();
        }
        let to = self.jobs[job].to;
        let life = self.platforms[to].life;
        let Some(incoming) = self.platforms[to].incoming.get_mut(&job) else { return false };
        if incoming.fate != Fate::Wanted || incoming.complete {
            return false;
        }
        incoming.queue.extend(blocks);
        incoming.complete = complete;
        if !incoming.queue.is_empty() && !std::mem::replace(&mut incoming.writing, true) {
            let delay = self.rng.between(100, 3_000);
            self.after_us(delay, Event::WriteBlock { at: to, life, job });
        }
        true
    }

    pub(super) fn write_block(&mut self, at: usize, job: usize) -> Res {
        let once_more = self.rng.percent(50);
        let slow = self.rng.percent(4);
        let part = self.rng.below(1_000);
        let platform = &mut self.platforms[at];
        let life = platform.life;
        let Some(incoming) = platform.incoming.get_mut(&job) else { return Ok(()) };
        let delay = 100 + part * if slow { 300 } else { incoming.pace_us / 1_000 };
        if incoming.fate != Fate::Cancelled || once_more {
            incoming.write(&mut platform.files);
        }
        if incoming.fate == Fate::Cancelled {
            incoming.queue.clear();
        }
        incoming.writing = !incoming.queue.is_empty();
        if incoming.writing {
            self.after_us(delay, Event::WriteBlock { at, life, job });
            return Ok(());
        }
        self.work_ended::<Destination>(at, job)
    }

    /// The hypervisor's last state is under way: it comes before or after the source hears that it has left.
    pub(in super::super) fn send_last_memory(&mut self, job: usize) {
        let (from, to, vm) = (self.jobs[job].from, self.jobs[job].to, self.jobs[job].vm);
        let memory = self.guests[vm].writes;
        if let Some(generation) = self.link(from, to).generation() {
            let delay = self.rng.between(500, 300_000);
            self.after_us(delay, Event::MemoryArrives { job, generation, memory });
        }
    }

    pub(super) fn memory_arrives(&mut self, job: usize, generation: u64, memory: u64) -> Res {
        use crate::handoff::DestinationInput;
        use crate::handoff::tests::hosts::Domain;

        let (from, to, vm) = (self.jobs[job].from, self.jobs[job].to, self.jobs[job].vm);
        let open = self.platforms[to].incoming.get(&job).is_some_and(|one| one.fate == Fate::Wanted);
        let waits = self.platforms[to].hosts[vm].domain == Domain::Incoming(None);
        if open && waits && self.link(from, to).is_up(Some(generation)) {
            self.set_domain(to, vm, Domain::Incoming(Some(memory)));
            return self.feed::<Destination>(to, job, DestinationInput::MemoryLoaded);
        }
        Ok(())
    }

    /// The platforms that one may speak to.
    pub(super) fn peers(&self, at: usize) -> impl Iterator<Item = usize> + use<> {
        (0..self.platforms.len()).filter(move |peer| *peer != at)
    }

    /// Where the other end of a job is.
    pub(super) fn peer<M: Simulated>(&self, job: usize) -> usize {
        match M::END {
            super::Side::Source => self.jobs[job].to,
            super::Side::Destination => self.jobs[job].from,
        }
    }
}
