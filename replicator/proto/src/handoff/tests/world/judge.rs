//! The promises: at every step, and at the end.

use std::time::Duration;

use super::{Outcome, Res, World};
use crate::handoff::tests::hosts::Domain;
use crate::handoff::tests::node::{Claim, LIMITS, Node, Simulated};

/// Beyond the switchover's limit: for what is cancelled to end, and for rolling back, which may fail a few times.
const TAKE_BACK: Duration = Duration::from_secs(20);

impl World {
    /// What must hold at every step.
    pub(super) fn check(&self) -> Res {
        if let Some(misuse) = self.misuse {
            return Err(misuse.to_owned());
        }
        for (vm, guest) in self.guests.iter().enumerate() {
            let mut running = None;
            let mut owners = 0;
            for (at, platform) in self.platforms.iter().enumerate() {
                let host = &platform.hosts[vm];
                let ours = matches!(platform.truth[vm], Some(Claim::Ours(_)));
                owners += u32::from(ours);
                if host.domain == Domain::Running {
                    if running.replace(at).is_some() {
                        return Err(format!("two platforms run VM {vm}"));
                    }
                    if !ours {
                        let claim = platform.truth[vm];
                        return Err(format!("platform {at} runs VM {vm}, and its journals say {claim:?}"));
                    }
                    if platform.files[host.open] != guest.truth {
                        return Err(format!("VM {vm} on platform {at} lacks acknowledged writes"));
                    }
                    if host.image != Some(host.open) {
                        return Err(format!("VM {vm} on platform {at} runs on a file that has another name"));
                    }
                }
                let released = matches!(platform.truth[vm], Some(Claim::Theirs(_)));
                if let Some(since) = host.paused_since
                    && platform.up
                    && !released
                    && !self.waits_for_restart(at, vm)
                    && self.now > since + LIMITS.switchover_timeout + TAKE_BACK
                {
                    return Err(format!("VM {vm} stands still on platform {at}, and nobody takes it back"));
                }
            }
            if owners > 1 {
                return Err(format!("{owners} platforms own VM {vm}"));
            }
        }
        Ok(())
    }

    fn waits_for_restart(&self, at: usize, vm: usize) -> bool {
        let platform = &self.platforms[at];
        platform.sources.iter().any(|(job, node)| node.doubtful && self.jobs[*job].vm == vm)
            || platform.destinations.iter().any(|(job, node)| node.doubtful && self.jobs[*job].vm == vm)
    }

    /// After the last event.
    pub(super) fn judge(&mut self) -> Result<Outcome, String> {
        for vm in 0..self.guests.len() {
            self.guest_writes(vm);
        }
        self.check()?;
        for (at, platform) in self.platforms.iter().enumerate() {
            platform.sources.iter().try_for_each(|(job, node)| judge_job(at, *job, node))?;
            platform.destinations.iter().try_for_each(|(job, node)| judge_job(at, *job, node))?;
            if let Some((vm, job)) = platform.holds.first_key_value() {
                return Err(format!("job {job} still holds VM {vm} on platform {at}"));
            }
        }
        for vm in 0..self.guests.len() {
            self.judge_vm(vm)?;
        }
        if self.scenario.must_move && !matches!(self.platforms[0].truth[0], Some(Claim::Theirs(_))) {
            return Err("the VM did not move at the first try".to_owned());
        }
        let moves = self.platforms.iter().flat_map(|platform| platform.destinations.values());
        let moves = moves.filter(|node| node.records.len() == 5).count();
        let moved = !matches!(self.platforms[0].truth[0], Some(Claim::Ours(_)));
        Ok(Outcome { moved, moves, jobs: self.jobs.len(), outputs: self.outputs })
    }

    fn judge_vm(&self, vm: usize) -> Res {
        let guest = &self.guests[vm];
        let mut owners = 0;
        for (at, platform) in self.platforms.iter().enumerate() {
            let host = &platform.hosts[vm];
            let ours = matches!(platform.truth[vm], Some(Claim::Ours(_)));
            owners += u32::from(ours);
            let expected = match host.domain {
                Domain::Running => ours,
                Domain::Absent => !ours || guest.stopped || guest.died,
                Domain::Dead => ours && guest.died,
                _ => false,
            };
            if !expected {
                let claim = platform.truth[vm];
                let domain = host.domain;
                return Err(format!("VM {vm} ended as {domain:?} on platform {at}, which claims {claim:?}"));
            }
            if host.tap.is_some() || (!host.defined && host.image.is_some()) {
                return Err(format!("something of VM {vm} is left on platform {at}: {host:?}"));
            }
        }
        if owners != 1 {
            return Err(format!("{owners} platforms own VM {vm} at the end"));
        }
        Ok(())
    }
}

fn judge_job<M: Simulated>(at: usize, job: usize, node: &Node<M>) -> Res {
    let idle = node.running.is_empty() && node.pending.is_none() && !node.recovering && !node.doubtful;
    if !node.over() || !idle {
        let (records, running) = (&node.records, &node.running);
        return Err(format!("job {job} has not ended at the {} {at}: {records:?} {running:?}", M::SIDE));
    }
    Ok(())
}
