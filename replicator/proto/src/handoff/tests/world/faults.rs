//! What comes between the machines and their plans: the connection, and everything that goes wrong.

use super::{Event, Fault, Hosted, Moment, Step, World};
use crate::handoff::tests::node::Side;
use crate::handoff::{Destination, DestinationInput, Machine, Message, Source, SourceInput};

impl World {
    // The connection.

    pub(super) fn transmit(&mut self, from: Side, message: Message) {
        if !self.link.up {
            return;
        }
        let twice = self.rng.percent(self.faults.twice_percent);
        for _ in 0..=u32::from(twice) {
            let slow = if self.rng.percent(5) { 400_000 } else { 40_000 };
            let delay = self.rng.between(500, slow);
            let generation = self.link.generation;
            self.after_us(delay, Event::Deliver { to: from.other(), message: message.clone(), generation });
        }
    }

    fn cut(&mut self) {
        if !std::mem::take(&mut self.link.up) {
            return;
        }
        let generation = self.link.generation;
        for side in [Side::Source, Side::Destination] {
            let slow = if self.rng.percent(50) { 50_000 } else { 3_000_000 };
            let delay = self.rng.between(100, slow);
            self.after_us(delay, Event::NoticeLoss { side, generation });
        }
    }

    pub(super) fn connect_later(&mut self) {
        if !self.link.up && !std::mem::replace(&mut self.link.connecting, true) {
            let delay = self.rng.between(1_000, 2_000_000);
            self.after_us(delay, Event::Connect);
        }
    }

    pub(super) fn connect(&mut self) -> Step {
        self.link.connecting = false;
        if self.link.up || !(self.source.up && self.destination.up) {
            return Ok(());
        }
        // Who has not noticed the loss of the old one does now, or a little later.
        for side in [Side::Source, Side::Destination] {
            if std::mem::replace(&mut self.link.held[side as usize], true) {
                let delay = if self.rng.percent(50) { 0 } else { self.rng.below(3_000_000) };
                self.after_us(delay, Event::LateLoss(side));
            }
        }
        self.link.generation += 1;
        self.link.up = true;
        Ok(())
    }

    pub(super) fn tell_loss(&mut self, side: Side) -> Step {
        match side {
            Side::Source => self.feed::<Source>(Source::link_lost()),
            Side::Destination => self.feed::<Destination>(Destination::link_lost()),
        }
    }

    // Faults.

    pub(super) fn fault_at(&self, side: Side, number: usize, moment: Moment) -> Option<Fault> {
        let mut faults = self.faults.at_output.iter();
        faults.find(|fault| (fault.0, fault.1, fault.2) == (side, number, moment)).map(|fault| fault.3)
    }

    pub(super) fn strike_at(&mut self, side: Side, number: usize, moment: Moment) -> Step {
        self.fault_at(side, number, moment).map_or(Ok(()), |fault| self.strike(fault))
    }

    pub(super) fn strike(&mut self, fault: Fault) -> Step {
        self.note(|| format!("FAULT {fault:?}"));
        match fault {
            Fault::Crash(Side::Source) => self.crash::<Source>(),
            Fault::Crash(Side::Destination) => self.crash::<Destination>(),
            Fault::Cut => self.cut(),
            Fault::HypervisorDeath => {
                if self.services.kill_destination() {
                    self.tell_death();
                }
            }
            // Has its effect where the record would be written.
            Fault::JournalFails => {}
            // From outside, so never in the middle of a drain.
            Fault::Cancel => {
                let life = self.lives[0];
                self.after_us(0, Event::SourceInput { life, input: SourceInput::Cancel });
            }
        }
        Ok(())
    }

    fn crash<M: Hosted>(&mut self) {
        if !std::mem::take(&mut M::node(self).up) {
            return;
        }
        M::node(self).machine = None;
        M::node(self).timer = None;
        self.lives[M::END as usize] += 1;
        // What it asked the hypervisor for may still happen.
        for running in std::mem::take(&mut M::node(self).running) {
            if self.rng.percent(50) {
                let _ = self.finish::<M>(&running);
            }
        }
        self.link.held[M::END as usize] = false;
        self.cut();
        let delay = self.rng.between(1_000, 3_000_000);
        self.after_us(delay, Event::Restart(M::END));
    }

    pub(super) fn tell_death(&mut self) {
        let (delay, life) = (self.rng.below(50_000), self.lives[1]);
        let input = DestinationInput::Failed { reason: "the hypervisor died".into() };
        self.after_us(delay, Event::DestinationInput { life, input });
    }
}
