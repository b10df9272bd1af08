//! Each flaw that a shell around the machines had, or could have, does the harm that it is known for, and is caught; the
//! same seeds without it are clean. So the simulation can see what it is there for.

use super::scenario::{Flaw, Scenario};
use super::world::World;

/// Seeds within which a flaw must have done each of its harms.
const WITHIN: u64 = 4_000;

#[track_caller]
fn is_caught(flaw: Flaw, scenario: fn(u64) -> Scenario, harms: &[&str]) {
    let mut missing = harms.to_vec();
    for seed in 0..WITHIN {
        let scenario = scenario(seed);
        if let Err(broken) = World::run(seed, &scenario.clone().with(flaw)) {
            let new = missing.iter().position(|harm| broken.contains(harm));
            let Some(new) = new else { continue };
            println!("{flaw:?}: seed {seed}: {broken}");
            missing.remove(new);
            if let Err(broken) = World::run(seed, &scenario) {
                panic!("seed {seed} is broken without {flaw:?} too: {broken}");
            }
        }
        if missing.is_empty() {
            return;
        }
    }
    panic!("{flaw:?} did not do {missing:?} within {WITHIN} seeds");
}

const LOST: &str = "lacks acknowledged writes";
const STANDS: &str = "nobody takes it back";
const PAUSED: &str = "ended as Paused";
const GIVEN_AWAY: &str = "its journals say Some(Theirs";

#[test]
fn a_copy_of_a_replica_that_outlives_its_attempt_overwrites_newer_blocks_and_the_root_agrees() {
    is_caught(Flaw::CopyOutlivesDiscard, Scenario::fleet, &[LOST]);
}

#[test]
fn queued_blocks_of_a_transfer_that_outlive_their_attempt_overwrite_newer_blocks() {
    is_caught(Flaw::QueueOutlivesDiscard, Scenario::fleet, &[LOST]);
}

#[test]
fn a_call_to_the_hypervisor_that_outlives_its_attempt_leaves_the_guest_standing() {
    is_caught(Flaw::CallsOutliveRollBack, Scenario::fleet, &[PAUSED, STANDS]);
}

#[test]
fn a_vm_that_a_doubtful_job_gives_back_is_run_although_it_may_be_released() {
    is_caught(Flaw::DoubtDropsHold, Scenario::fleet, &[GIVEN_AWAY]);
}

#[test]
fn a_long_copy_that_says_nothing_of_its_progress_times_out() {
    is_caught(Flaw::PreparingUntold, Scenario::slow_move, &["did not move at the first try"]);
}

#[test]
fn memory_that_hangs_without_a_limit_never_ends() {
    is_caught(Flaw::NoMemoryLimit, Scenario::fleet, &["no end after"]);
}

#[test]
fn a_switchover_that_hangs_without_a_limit_leaves_the_guest_standing() {
    is_caught(Flaw::NoSwitchoverLimit, Scenario::fleet, &[STANDS]);
}

#[test]
fn a_job_whose_owner_panicked_and_is_left_alone_leaves_the_guest_standing() {
    is_caught(Flaw::PanicIsNobodys, Scenario::fleet, &[STANDS, "has not ended"]);
}

#[test]
fn a_machine_that_goes_on_without_its_first_record_gives_the_vm_to_two() {
    is_caught(Flaw::PanicSkipsFirstRecord, Scenario::fleet, &["platforms own"]);
}

#[test]
fn work_that_outlives_the_panic_of_its_owner_is_seen() {
    is_caught(Flaw::RecoveryLoosensWork, Scenario::fleet, &[LOST, PAUSED]);
}

#[test]
fn two_jobs_on_one_vm_are_seen() {
    is_caught(
        Flaw::NoHold,
        Scenario::fleet,
        &["a file that has another name", "a running guest is discarded"],
    );
}

#[test]
fn an_old_claim_that_counts_runs_the_vm_twice() {
    is_caught(Flaw::FirstClaimCounts, Scenario::fleet, &["two platforms run", GIVEN_AWAY]);
}

#[test]
fn records_that_are_not_durable_before_what_follows_are_seen() {
    is_caught(Flaw::RecordsAreWrittenLater, Scenario::fleet, &["platforms own", STANDS]);
}

#[test]
fn a_loss_that_no_machine_hears_of_is_seen() {
    is_caught(Flaw::LossIsUntold, Scenario::fleet, &["has not ended"]);
}
