//! Work: actions that begin, go on piece by piece, are cancelled, and end late.

use super::{Event, Res, World};
use crate::handoff::tests::node::{Fate, Progress, Simulated, Stage, Work};
use crate::handoff::tests::scenario::Flaw;
use crate::handoff::tests::{Side, node::Node};

/// What hangs is given up by the shell after this time, in microseconds.
const SILENCE_US: u64 = 60_000_000;

impl World {
    pub(super) fn begin<M: Simulated>(&mut self, at: usize, job: usize, action: M::Action) {
        let Some(node) = self.node::<M>(at, job) else { return };
        let begun = node.running.iter().any(|work| work.fate == Fate::Wanted && work.action == action);
        if begun || node.pending.as_ref() == Some(&action) {
            return;
        }
        if M::sweeps(&action) {
            self.cancel_all::<M>(at, job);
            if self.is_busy::<M>(at, job) {
                if let Some(node) = self.node::<M>(at, job) {
                    node.pending = Some(action);
                }
                return;
            }
        }
        self.begin_now::<M>(at, job, action);
    }

    fn begin_now<M: Simulated>(&mut self, at: usize, job: usize, action: M::Action) {
        M::begin(self, at, job, &action);
        self.sequence += 1;
        let (id, began) = (self.sequence, self.now);
        let peer = self.peer::<M>(job);
        let generation = self.link(at, peer).generation();
        let noisy = self.now < self.scenario.quiet_at;
        let fails = noisy && self.rng.percent(self.scenario.failing_percent);
        let hangs = noisy && !M::sweeps(&action) && self.rng.percent(self.scenario.hanging_percent);
        let slow = if self.rng.percent(90) { 150_000 } else { 1_500_000 };
        let mut took = self.rng.between(500, slow);
        // These may take long, and the machines bound how long without progress. The others the shell bounds.
        let endless = hangs && matches!(M::label(&action), "prepare_disks" | "send_memory");
        if hangs {
            took = SILENCE_US;
        }
        let process = self.platforms[at].life;
        let Some(node) = self.node::<M>(at, job) else { return };
        let (stage, fate, life, fails) = (Stage::Begun, Fate::Wanted, node.life, fails || hangs);
        node.running.push(Work { id, action, began, generation, stage, fate, fails, hangs, life });
        if !endless {
            self.after_us(took, Event::Step { at, life: process, side: M::END, job, id });
        }
    }

    /// Everything of the job is to end. What hangs ends because it is cancelled.
    pub(super) fn cancel_all<M: Simulated>(&mut self, at: usize, job: usize) {
        let Some(node) = self.node::<M>(at, job) else { return };
        let mut running = std::mem::take(&mut node.running);
        let process = self.platforms[at].life;
        for work in &mut running {
            if work.fate != Fate::Wanted {
                continue;
            }
            work.fate = if M::outlives(self, work) { Fate::Loose } else { Fate::Cancelled };
            if std::mem::take(&mut work.hangs) {
                let delay = self.rng.between(100, 2_000_000);
                self.after_us(delay, Event::Step { at, life: process, side: M::END, job, id: work.id });
            }
        }
        if let Some(node) = self.node::<M>(at, job) {
            node.running = running;
        }
        let outlives = self.has(Flaw::QueueOutlivesDiscard);
        if M::END == Side::Destination
            && let Some(incoming) = self.platforms[at].incoming.get_mut(&job)
            && incoming.fate == Fate::Wanted
        {
            incoming.fate = if outlives { Fate::Loose } else { Fate::Cancelled };
        }
    }

    /// Whether something runs that has to be waited for.
    pub(super) fn is_busy<M: Simulated>(&mut self, at: usize, job: usize) -> bool {
        let writes = M::END == Side::Destination
            && self.platforms[at]
                .incoming
                .get(&job)
                .is_some_and(|incoming| incoming.writing && incoming.fate != Fate::Loose);
        let runs = |node: &mut Node<M>| node.running.iter().any(|work| work.fate != Fate::Loose);
        writes || self.node::<M>(at, job).is_some_and(runs)
    }

    /// A piece of work is done, or is no more. What waits for the last one goes on.
    pub(super) fn work_ended<M: Simulated>(&mut self, at: usize, job: usize) -> Res {
        if self.is_busy::<M>(at, job) {
            return Ok(());
        }
        let Some(node) = self.node::<M>(at, job) else { return Ok(()) };
        if node.recovering {
            let life = node.life;
            let delay = self.rng.below(500_000);
            self.after_us(delay, Event::Recovered { at, side: M::END, job, life });
        } else if let Some(action) = node.pending.take() {
            self.begin_now::<M>(at, job, action);
        }
        self.maybe_leave::<M>(at, job)
    }

    pub(super) fn step<M: Simulated>(&mut self, at: usize, job: usize, id: u64) -> Res {
        let Some(node) = self.node::<M>(at, job) else { return Ok(()) };
        let Some(index) = node.running.iter().position(|work| work.id == id) else { return Ok(()) };
        let mut work = node.running.remove(index);
        let life = node.life;
        if work.fate == Fate::Cancelled {
            return self.end_cancelled::<M>(at, job, work);
        }
        // What failed may have happened all the same.
        let happens = !work.fails || self.rng.percent(50);
        let progress =
            if happens { M::step(self, at, job, &mut work) } else { Progress::Ended(Err(String::new())) };
        let input = match progress {
            Progress::Again { after_us, tell } if !work.fails => {
                let (fate, current) = (work.fate, work.life == life);
                if let Some(node) = self.node::<M>(at, job) {
                    node.running.push(work);
                }
                let process = self.platforms[at].life;
                self.after_us(after_us, Event::Step { at, life: process, side: M::END, job, id });
                return match tell {
                    Some(tell) if fate == Fate::Wanted && current && !self.has(Flaw::PreparingUntold) => {
                        self.feed::<M>(at, job, tell)
                    }
                    _ => Ok(()),
                };
            }
            Progress::Ended(Ok(input)) if !work.fails => input,
            Progress::Ended(Err(reason)) => {
                M::failed(&work.action, format!("{:?} failed: {reason}", work.action))
            }
            _ => M::failed(&work.action, format!("{:?} failed at its end", work.action)),
        };
        self.note(|| format!("[{at}] job {job} {}: {input:?} {:?}", M::SIDE, work.fate));
        if work.fate == Fate::Wanted && work.life == life {
            self.feed::<M>(at, job, input)?;
        }
        self.work_ended::<M>(at, job)
    }

    /// It may have done its next piece, and may have said so before the driver stopped listening.
    fn end_cancelled<M: Simulated>(&mut self, at: usize, job: usize, mut work: Work<M::Action>) -> Res {
        let outcome = match self.rng.below(3) {
            0 => Some(M::failed(&work.action, "cancelled".into())),
            1 => match M::step(self, at, job, &mut work) {
                Progress::Ended(Ok(input)) => Some(input),
                _ => None,
            },
            _ => None,
        };
        self.note(|| format!("[{at}] job {job} {}: {:?} was cancelled", M::SIDE, work.action));
        if let Some(input) = outcome {
            let delay = self.rng.below(50_000);
            self.after_us(delay, M::event(at, job, work.life, input));
        }
        self.work_ended::<M>(at, job)
    }
}
