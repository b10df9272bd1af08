//! The hand-off on virtual time: both machines, the network between them, the guest and its disks, and every fault we
//! could think of, from a seed. `LONGHAUL_SEED=n cargo test -p longhaul-proto one_seed -- --nocapture` shows one run.

mod bounds;
mod cases;
mod node;
mod rng;
mod services;
mod world;

use node::Side;
use rng::Rng;
use world::{Fault, Faults, Moment, Outcome, UNQUIET, World};

const MOMENTS: [Moment; 3] = [Moment::Before, Moment::Within, Moment::After];

/// Runs one world; when a promise is broken, once more to tell how.
#[track_caller]
fn run(seed: u64, faults: &Faults) -> Outcome {
    World::run(seed, faults.clone(), false).unwrap_or_else(|broken| {
        let told = World::run(seed, faults.clone(), true).err().unwrap_or(broken);
        panic!("LONGHAUL_SEED={seed} {faults:?}\n{told}");
    })
}

fn random_faults(seed: u64) -> Faults {
    let mut rng = Rng(seed ^ 0x5eed);
    let mut faults = Faults { escape_percent: rng.below(100), ..Faults::default() };
    if rng.percent(50) {
        faults.failing_percent = rng.below(12);
    }
    if rng.percent(50) {
        faults.twice_percent = rng.below(40);
    }
    if rng.percent(20) {
        faults.losing_percent = 20;
    }
    for _ in 0..rng.below(4) {
        let side = if rng.percent(50) { Side::Source } else { Side::Destination };
        let fault = match rng.below(9) {
            0 | 1 => Fault::Crash(Side::Source),
            2 | 3 => Fault::Crash(Side::Destination),
            4 | 5 => Fault::Cut,
            6 => Fault::HypervisorDeath,
            7 => Fault::JournalFails,
            _ => Fault::Cancel,
        };
        if rng.percent(50) {
            faults.at_ms.push((rng.below(UNQUIET.as_millis() as u64 / 3), fault));
        } else {
            let moment = MOMENTS[rng.below(3) as usize];
            faults.at_output.push((side, rng.below(60) as usize, moment, fault));
        }
    }
    faults
}

#[test]
fn without_faults_the_guest_moves() {
    for seed in 0..200 {
        assert!(run(seed, &Faults::default()).moved, "seed {seed}");
    }
}

#[test]
fn repeated_and_reordered_messages_are_no_fault() {
    for seed in 0..300 {
        assert!(run(seed, &Faults { twice_percent: 50, ..Faults::default() }).moved, "seed {seed}");
    }
}

#[test]
fn a_block_lost_on_the_way_is_noticed() {
    let moved = (0..300).filter(|&seed| run(seed, &Faults { losing_percent: 60, ..Faults::default() }).moved);
    assert!(moved.count() < 200);
}

#[test]
fn random_faults_break_no_promise() {
    let (mut moved, mut stayed) = (0, 0);
    for seed in 0..20_000 {
        if run(seed, &random_faults(seed)).moved {
            moved += 1;
        } else {
            stayed += 1;
        }
    }
    assert!(moved > 2_000 && stayed > 2_000, "{moved} moved, {stayed} stayed: one side is hardly tried");
}

#[test]
fn a_fault_at_any_output_of_either_side() {
    let faults = [
        Fault::Crash(Side::Source),
        Fault::Crash(Side::Destination),
        Fault::Cut,
        Fault::HypervisorDeath,
        Fault::Cancel,
        Fault::JournalFails,
    ];
    for seed in 0..4 {
        let outputs = run(seed, &Faults::default()).outputs;
        for side in [Side::Source, Side::Destination] {
            // A few more than without a fault: the first life of a recovery is walked as well.
            for (number, moment, fault) in cross(outputs[side as usize], &MOMENTS, &faults) {
                run(seed, &Faults { at_output: vec![(side, number, moment, fault)], ..Faults::default() });
            }
        }
    }
}

#[test]
fn a_crash_of_both_at_any_two_outputs() {
    let seed = 7;
    let outputs = run(seed, &Faults::default()).outputs;
    let crash = |side| move |(number, moment): (usize, Moment)| (side, number, moment, Fault::Crash(side));
    let points = |side: Side| {
        let numbers = 0..outputs[side as usize] + 6;
        numbers.flat_map(|number| MOMENTS.map(|moment| (number, moment))).map(crash(side))
    };
    for first in points(Side::Source) {
        for second in points(Side::Destination) {
            run(seed, &Faults { at_output: vec![first, second], ..Faults::default() });
        }
    }
}

#[test]
fn a_side_that_crashes_twice() {
    let seed = 11;
    let outputs = run(seed, &Faults::default()).outputs;
    for side in [Side::Source, Side::Destination] {
        for first in 0..outputs[side as usize] {
            for second in first + 1..first + 10 {
                for moment in MOMENTS {
                    let again = (side, second, moment, Fault::Crash(side));
                    let at_output = vec![(side, first, Moment::After, Fault::Crash(side)), again];
                    run(seed, &Faults { at_output, ..Faults::default() });
                }
            }
        }
    }
}

#[test]
fn one_seed() {
    let Ok(seed) = std::env::var("LONGHAUL_SEED") else { return };
    let seed = seed.parse().expect("LONGHAUL_SEED is a number");
    println!("{:?}: {:?}", random_faults(seed), World::run(seed, random_faults(seed), true));
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
