//! Everything that goes wrong.

use super::{Event, Res, World};
use crate::handoff::tests::hosts::Domain;
use crate::handoff::tests::node::{Side, Simulated};
use crate::handoff::tests::scenario::{Fault, Flaw, Moment};
use crate::handoff::{Destination, DestinationInput, Output, Source, SourceInput};

impl World {
    fn fault_at(&self, side: Side, number: usize, moment: Moment) -> Option<Fault> {
        let mut faults = self.scenario.at_output.iter();
        faults.find(|fault| (fault.0, fault.1, fault.2) == (side, number, moment)).map(|fault| fault.3)
    }

    /// What goes wrong in the middle of this output. One that is meant for a record strikes once.
    pub(super) fn fault_within<A>(&mut self, side: Side, number: usize, output: &Output<A>) -> Option<Fault> {
        if let Output::Journal(record) = output {
            let faults = &mut self.scenario.at_record;
            if let Some(index) = faults.iter().position(|(label, _)| *label == record.label()) {
                return Some(faults.remove(index).1);
            }
        }
        self.fault_at(side, number, Moment::Within)
    }

    pub(super) fn strike_at(&mut self, side: Side, job: usize, number: usize, moment: Moment) -> Res {
        self.fault_at(side, number, moment).map_or(Ok(()), |fault| self.strike(fault, job))
    }

    pub(super) fn strike(&mut self, fault: Fault, job: usize) -> Res {
        let Some(&super::Job { vm, from, to }) = self.jobs.get(job) else { return Ok(()) };
        self.note(|| format!("FAULT {fault:?}"));
        match fault {
            Fault::Crash(Side::Source) => self.crash(from),
            Fault::Crash(Side::Destination) => self.crash(to),
            Fault::Panic(Side::Source) => return self.panic::<Source>(from, job),
            Fault::Panic(Side::Destination) => return self.panic::<Destination>(to, job),
            Fault::Cut => self.cut(from, to),
            Fault::HypervisorDeath => self.kill_hypervisor(to, vm, job),
            // These have their effect where the record would be written.
            Fault::JournalFails | Fault::JournalDoubt => {}
            // From outside, so never in the middle of a drain.
            Fault::Cancel => {
                let life = self.node::<Source>(from, job).map_or(0, |node| node.life);
                let input = SourceInput::Cancel;
                self.after_us(0, Event::SourceInput { at: from, job, life, input });
            }
        }
        Ok(())
    }

    /// The owner's task ends in the middle of whatever it did.
    fn panic<M: Simulated>(&mut self, at: usize, job: usize) -> Res {
        let nobodys = self.has(Flaw::PanicIsNobodys);
        match self.node::<M>(at, job) {
            Some(node) if node.machine.is_some() && nobodys => {
                (node.machine, node.timer) = (None, None);
                node.life += 1;
                Ok(())
            }
            Some(node) if node.machine.is_some() => {
                if node.records.is_empty() && self.has(Flaw::PanicSkipsFirstRecord) {
                    self.skipped = true;
                    return Ok(());
                }
                self.recover::<M>(at, job)
            }
            _ => Ok(()),
        }
    }

    /// Of a VM on its way or just arrived.
    fn kill_hypervisor(&mut self, at: usize, vm: usize, job: usize) {
        let runs = match self.platforms[at].hosts[vm].domain {
            Domain::Incoming(_) => false,
            Domain::Running => true,
            _ => return,
        };
        self.guests[vm].died |= runs;
        self.set_domain(at, vm, Domain::Dead);
        self.tell_death(at, job);
    }

    fn tell_death(&mut self, at: usize, job: usize) {
        let life = self.node::<Destination>(at, job).map_or(0, |node| node.life);
        let delay = self.rng.below(50_000);
        let input = DestinationInput::Failed { reason: "the hypervisor died".into() };
        self.after_us(delay, Event::DestinationInput { at, job, life, input });
    }

    pub(super) fn crash(&mut self, at: usize) {
        if !std::mem::take(&mut self.platforms[at].up) {
            return;
        }
        self.crash_jobs::<Source>(at);
        self.crash_jobs::<Destination>(at);
        let platform = &mut self.platforms[at];
        platform.life += 1;
        platform.holds.clear();
        platform.incoming.clear();
        platform.hosts.iter_mut().for_each(|host| host.tap = None);
        for vm in 0..self.guests.len() {
            self.note_truth(at, vm);
        }
        for peer in self.peers(at) {
            self.forget_link(at, peer);
            self.cut(at, peer);
        }
        let delay = self.rng.between(1_000, 3_000_000);
        self.after_us(delay, Event::Restart { at });
    }

    fn crash_jobs<M: Simulated>(&mut self, at: usize) {
        let lies = self.has(Flaw::RecordsAreWrittenLater);
        let jobs: Vec<usize> = M::nodes(self, at).keys().copied().collect();
        for job in jobs {
            let lost = lies && self.rng.percent(50);
            let Some(node) = self.node::<M>(at, job) else { continue };
            let over = node.over();
            (node.machine, node.timer, node.pending, node.recovering) = (None, None, None, false);
            node.life += 1;
            if lost && !over {
                node.lose_last_record();
            }
            // What it asked the hypervisor for may still happen.
            for mut work in std::mem::take(&mut node.running) {
                if self.rng.percent(50) {
                    let _ = M::step(self, at, job, &mut work);
                }
            }
        }
    }

    pub(super) fn restart(&mut self, at: usize) -> Res {
        let now = self.now;
        let platform = &mut self.platforms[at];
        platform.up = true;
        for host in &mut platform.hosts {
            host.paused_since = host.paused_since.map(|_| now);
        }
        for peer in self.peers(at) {
            self.connect_later(at, peer);
        }
        self.reload_jobs::<Source>(at)?;
        self.reload_jobs::<Destination>(at)?;
        // A crash in the middle of this leaves nothing to go on with.
        self.drain_jobs::<Source>(at)?;
        self.drain_jobs::<Destination>(at)
    }

    fn reload_jobs<M: Simulated>(&mut self, at: usize) -> Res {
        let now = self.now;
        let jobs: Vec<usize> = M::nodes(self, at).keys().copied().collect();
        for job in jobs {
            let vm = self.jobs[job].vm;
            let Some(node) = self.node::<M>(at, job) else { continue };
            node.reload()?;
            if node.over() {
                continue;
            }
            let Some(mut machine) = node.recovered()? else { continue };
            machine.restart(now);
            node.machine = Some(machine);
            if !self.take_hold(at, vm, job) {
                return Err("two hand-offs of one VM are to be gone on with".into());
            }
            if M::END == Side::Destination && self.platforms[at].hosts[vm].domain == Domain::Dead {
                self.tell_death(at, job);
            }
        }
        Ok(())
    }

    fn drain_jobs<M: Simulated>(&mut self, at: usize) -> Res {
        let jobs: Vec<usize> = M::nodes(self, at).keys().copied().collect();
        jobs.into_iter().try_for_each(|job| self.drain::<M>(at, job))
    }
}
