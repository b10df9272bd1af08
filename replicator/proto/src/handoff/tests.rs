//! The hand-off on virtual time: platforms with several VMs, the machines of every migration between them, connections,
//! guests and their disks, an operator, and every fault we could think of, from a seed. `cargo xtask sim` runs as many
//! seeds as one likes.

mod actions;
mod bounds;
mod cases;
mod flaws;
mod hosts;
mod node;
mod rng;
mod scenario;
mod seeds;
mod world;

use node::Side;
use scenario::{Fault, Moment, Scenario};
use world::{Outcome, World};

const MOMENTS: [Moment; 3] = [Moment::Before, Moment::Within, Moment::After];

/// Runs one scenario; when a promise is broken, once more to tell how.
#[track_caller]
fn run(seed: u64, scenario: &Scenario) -> Outcome {
    World::run(seed, scenario).unwrap_or_else(|broken| panic!("{broken}\n{}", World::tell(seed, scenario)))
}

#[test]
fn without_faults_the_guest_moves() {
    for seed in 0..200 {
        assert!(run(seed, &Scenario::one_move(seed)).moved, "seed {seed}");
    }
}

#[test]
fn a_copy_longer_than_an_answer_may_take_moves_at_the_first_try() {
    for seed in 0..200 {
        run(seed, &Scenario::slow_move(seed));
    }
}

#[test]
fn repeated_and_reordered_messages_are_no_fault() {
    for seed in 0..300 {
        assert!(run(seed, &Scenario { twice_percent: 50, ..Scenario::one_move(seed) }).moved, "seed {seed}");
    }
}

#[test]
fn a_block_lost_on_the_way_is_noticed() {
    let lossy = |seed| Scenario { losing_percent: 60, ..Scenario::one_move(seed) };
    let moved = (0..300).filter(|&seed| run(seed, &lossy(seed)).moved);
    assert!(moved.count() < 200);
}

#[test]
fn faults_in_one_move_break_no_promise() {
    let (mut moved, mut stayed) = (0, 0);
    for seed in 0..10_000 {
        if run(seed, &Scenario::one_move_with_faults(seed)).moved {
            moved += 1;
        } else {
            stayed += 1;
        }
    }
    assert!(moved > 1_000 && stayed > 1_000, "{moved} moved, {stayed} stayed: one side is hardly tried");
}

#[test]
fn a_fault_at_any_output_of_either_side() {
    let faults = [
        Fault::Crash(Side::Source),
        Fault::Crash(Side::Destination),
        Fault::Panic(Side::Source),
        Fault::Panic(Side::Destination),
        Fault::Cut,
        Fault::HypervisorDeath,
        Fault::Cancel,
        Fault::JournalFails,
        Fault::JournalDoubt,
    ];
    for seed in 0..4 {
        let outputs = run(seed, &Scenario::one_move(seed)).outputs;
        for side in [Side::Source, Side::Destination] {
            // A few more than without a fault: the first life of a recovery is walked as well.
            for (number, moment, fault) in cross(outputs[side as usize], &MOMENTS, &faults) {
                let at_output = vec![(side, number, moment, fault)];
                run(seed, &Scenario { at_output, ..Scenario::one_move(seed) });
            }
        }
    }
}

#[test]
fn a_crash_or_panic_of_both_at_any_two_outputs() {
    let seed = 7;
    let outputs = run(seed, &Scenario::one_move(seed)).outputs;
    for fault in [Fault::Crash, Fault::Panic] {
        let points = |side: Side| {
            let numbers = 0..outputs[side as usize] + 6;
            let moments = numbers.flat_map(|number| MOMENTS.map(|moment| (number, moment)));
            moments.map(move |(number, moment)| (side, number, moment, fault(side)))
        };
        for first in points(Side::Source) {
            for second in points(Side::Destination) {
                run(seed, &Scenario { at_output: vec![first, second], ..Scenario::one_move(seed) });
            }
        }
    }
}

#[test]
fn a_side_that_crashes_twice() {
    let seed = 11;
    let outputs = run(seed, &Scenario::one_move(seed)).outputs;
    for side in [Side::Source, Side::Destination] {
        for first in 0..outputs[side as usize] {
            for second in first + 1..first + 10 {
                for moment in MOMENTS {
                    let again = (side, second, moment, Fault::Crash(side));
                    let at_output = vec![(side, first, Moment::After, Fault::Crash(side)), again];
                    run(seed, &Scenario { at_output, ..Scenario::one_move(seed) });
                }
            }
        }
    }
}

fn cross(numbers: usize, moments: &[Moment], faults: &[Fault]) -> Vec<(usize, Moment, Fault)> {
    let mut all = Vec::new();
    for number in 0..numbers + 6 {
        for &moment in moments {
            all.extend(faults.iter().map(|&fault| (number, moment, fault)));
        }
    }
    all
}
