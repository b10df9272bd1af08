//! The fuzz targets as one libFuzzer program. `LONGHAUL_FUZZ` names the target; the command line is libFuzzer's. With
//! `LONGHAUL_FUZZ_SEEDS` it writes the seeds of all targets into that directory, a folder each, and ends.
//!
//! `cargo xtask fuzz` builds it with the instrumentation and runs it; it is no part of the product.
#![no_main]

#[cfg(not(fuzzing))]
compile_error!("this crate needs instrumentation: `cargo xtask fuzz` builds it");

mod memory;
mod repair;
mod targets;

use std::path::Path;
use std::sync::OnceLock;
use std::{fs, io, process};

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

use targets::{TARGETS, Target};

/// What reading an input may take beside a target's own allowance, for each byte of the input.
const BYTES_A_BYTE: usize = 128;

static TARGET: OnceLock<&Target> = OnceLock::new();

fuzz_target!(init: initialize(), |input: &[u8]| {
    let target = target();
    memory::at_most(target.spare_bytes + BYTES_A_BYTE * input.len(), || (target.judge)(input));
});

// libFuzzer's own mutations; then, three times in four, the checksums are made right, or nothing behind them would ever
// be read. The fourth time stays as it is, so that wrong checksums are seen too.
fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let size = fuzzer_mutate(data, size, max_size);
    if !seed.is_multiple_of(4) {
        (target().repair)(&mut data[..size], seed);
    }
    size
});

fn target() -> &'static Target {
    TARGET.get().expect("the target is set before anything runs")
}

fn initialize() {
    if let Some(dir) = std::env::var_os("LONGHAUL_FUZZ_SEEDS") {
        write_seeds(Path::new(&dir)).expect("the seeds can be written");
        process::exit(0);
    }
    // Whoever started us reads our output; alone we would run on for nobody.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .expect("the kernel knows parents");
    let name = std::env::var("LONGHAUL_FUZZ").unwrap_or_default();
    let Some(target) = TARGETS.iter().find(|target| target.name == name) else {
        eprintln!("LONGHAUL_FUZZ={name} is no target; `cargo xtask fuzz` runs all there are");
        process::exit(2);
    };
    TARGET.get_or_init(|| target);
}

fn write_seeds(dir: &Path) -> io::Result<()> {
    for target in TARGETS {
        let dir = dir.join(target.name);
        fs::create_dir_all(&dir)?;
        for (number, seed) in (target.seeds)().iter().enumerate() {
            fs::write(dir.join(number.to_string()), seed)?;
        }
    }
    Ok(())
}
