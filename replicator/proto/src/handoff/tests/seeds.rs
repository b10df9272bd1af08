//! Many fleets, each from its seed, on all processors.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use super::scenario::Scenario;
use super::world::World;

/// Seeds without LONGHAUL_SEEDS.
const SEEDS: u64 = 10_000;
/// How often progress is shown.
const SHOWN_EVERY: u64 = 5_000;

/// A number from the environment.
fn number(name: &str, otherwise: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} must be a number, not {text:?}")),
        Err(_) => otherwise,
    }
}

/// `LONGHAUL_SEEDS` seeds from `LONGHAUL_FIRST_SEED` on; of a single one it tells all that happens.
#[test]
fn many_seeds() {
    let (seeds, first) = (number("LONGHAUL_SEEDS", SEEDS), number("LONGHAUL_FIRST_SEED", 0));
    if seeds == 1 {
        println!("{}\n{}", World::tell(first, &both(first)[0]), World::tell(first, &both(first)[1]));
    }
    let (next, failed) = (AtomicU64::new(0), AtomicU64::new(u64::MAX));
    let (moves, jobs) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let work = || {
        while failed.load(Relaxed) == u64::MAX {
            let number = next.fetch_add(1, Relaxed);
            if number >= seeds {
                return;
            }
            let seed = first.wrapping_add(number);
            for scenario in both(seed) {
                match World::run(seed, &scenario) {
                    Ok(outcome) => {
                        moves.fetch_add(outcome.moves, Relaxed);
                        jobs.fetch_add(outcome.jobs, Relaxed);
                    }
                    Err(_) => drop(failed.fetch_min(seed, Relaxed)),
                }
            }
            if (number + 1).is_multiple_of(SHOWN_EVERY) {
                println!("sim: {} of {seeds} seeds", number + 1);
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let (failed, moves, jobs) = (failed.into_inner(), moves.into_inner(), jobs.into_inner());
    if failed != u64::MAX {
        for scenario in both(failed) {
            if let Err(broken) = World::run(failed, &scenario) {
                panic!("{}\nsim: seed {failed} breaks a promise: {broken}", World::tell(failed, &scenario));
            }
        }
    }
    println!("sim: {seeds} seeds from {first} on are clean: {jobs} migrations, {moves} of them moved the VM");
    assert!(
        seeds < 1_000 || (moves > jobs / 10 && moves < jobs),
        "{moves} of {jobs}: one way is hardly tried"
    );
}

/// What is run of one seed.
fn both(seed: u64) -> [Scenario; 2] {
    [Scenario::one_move_with_faults(seed), Scenario::fleet(seed)]
}
