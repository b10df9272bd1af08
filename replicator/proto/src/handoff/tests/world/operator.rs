//! The operator: migrations, stops, starts and restarts, as far as the daemons allow them.

use super::{Job, Res, World};
use crate::handoff::tests::hosts::Domain;
use crate::handoff::tests::node::{Claim, Node};
use crate::handoff::tests::scenario::Operation;
use crate::handoff::{Source, SourceInput};

impl World {
    pub(super) fn operate(&mut self, operation: Operation) -> Res {
        match operation {
            Operation::Migrate { vm, skip } => self.migrate(vm, skip),
            Operation::Stop { vm, at } => {
                self.stop(vm, at);
                Ok(())
            }
            Operation::Start { vm, at } => {
                self.start(vm, at);
                Ok(())
            }
            Operation::Bounce { vm, at } => {
                self.stop(vm, at);
                self.check()?;
                self.start(vm, at);
                Ok(())
            }
            Operation::Cancel { vm } => {
                let last = (0..self.jobs.len()).rev().find(|job| self.jobs[*job].vm == vm);
                last.map_or(Ok(()), |job| self.feed::<Source>(self.jobs[job].from, job, SourceInput::Cancel))
            }
            Operation::RestartDaemon { at } => {
                self.crash(at);
                Ok(())
            }
            Operation::Replicate { vm, to } => {
                self.replicate(vm, to);
                Ok(())
            }
        }
    }

    /// Whether the daemon there lets the operator touch the VM.
    fn may(&self, at: usize, vm: usize) -> bool {
        let platform = &self.platforms[at];
        platform.up && !platform.holds.contains_key(&vm)
    }

    fn migrate(&mut self, vm: usize, skip: usize) -> Res {
        let runs = |at: &usize| {
            self.platforms[*at].hosts[vm].domain == Domain::Running
                && self.may(*at, vm)
                && matches!(self.claim(*at, vm), Some(Claim::Ours(_)))
        };
        let Some(from) = (0..self.platforms.len()).find(runs) else { return Ok(()) };
        let Some(Claim::Ours(epoch)) = self.claim(from, vm) else { return Ok(()) };
        let others = self.platforms.len() - 1;
        let to = (from + 1 + skip % others) % self.platforms.len();
        let job = self.jobs.len();
        self.jobs.push(Job { vm, from, to });
        self.current = job;
        if !self.take_hold(from, vm, job) {
            return Ok(());
        }
        let plan = vec![vm as u8];
        let machine = Source::new(vm.to_string(), to.to_string(), epoch, plan, self.limits());
        self.platforms[from].sources.insert(job, Node::new(machine));
        self.feed::<Source>(from, job, SourceInput::Start)
    }

    fn stop(&mut self, vm: usize, at: usize) {
        let host = &self.platforms[at].hosts[vm];
        if self.may(at, vm) && host.domain != Domain::Absent {
            self.set_domain(at, vm, Domain::Absent);
            self.guests[vm].stopped = true;
        }
    }

    fn start(&mut self, vm: usize, at: usize) {
        let host = &self.platforms[at].hosts[vm];
        let ours = matches!(self.claim(at, vm), Some(Claim::Ours(_)));
        let off = matches!(host.domain, Domain::Absent | Domain::Dead);
        if let (true, true, true, Some(image)) = (self.may(at, vm), ours, off, host.image) {
            self.platforms[at].hosts[vm].open = image;
            (self.guests[vm].stopped, self.guests[vm].died) = (false, false);
            self.set_domain(at, vm, Domain::Running);
        }
    }

    /// A warm pass: the other platform has the disk as it is now.
    fn replicate(&mut self, vm: usize, to: usize) {
        let runs =
            |at: &usize| self.platforms[*at].hosts[vm].domain == Domain::Running && self.platforms[*at].up;
        let from = (0..self.platforms.len()).find(runs);
        if from.is_some_and(|from| from != to) && self.platforms[to].up {
            let files = &mut self.platforms[to].files;
            files.push(self.guests[vm].truth);
            let replica = files.len() - 1;
            self.platforms[to].hosts[vm].replica = Some(replica);
        }
    }

    /// Daemons with a doubtful record are restarted.
    pub(super) fn look_around(&mut self) -> Res {
        for at in 0..self.platforms.len() {
            let platform = &self.platforms[at];
            let doubtful = platform.sources.values().any(|node| node.doubtful)
                || platform.destinations.values().any(|node| node.doubtful);
            if doubtful {
                self.crash(at);
            }
        }
        Ok(())
    }
}
