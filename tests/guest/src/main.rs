//! `/init` of the test guests: brings a minimal system up, mounts the disk image's root file system and runs the
//! workload until the machine is switched off.
//!
//! It writes numbered, checksummed records to the disk and acknowledges each only after a flush; it sends a probe
//! packet every few milliseconds that says how far it has come. It never reads anything back: checking is for the
//! harness, outside.

mod init;

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use guest::Workload;
use init::{boot, probe, writer};

fn main() {
    if let Err(error) = run() {
        println!("LONGHAUL-ERROR {error}");
        // Let the console drain; then end the emulator rather than leave a guest that does nothing.
        thread::sleep(Duration::from_millis(200));
    }
    boot::power_off();
}

fn run() -> Result<(), boot::BootError> {
    let cmdline = boot::basics()?;
    let workload = Arc::new(
        Workload::from_cmdline(&cmdline).map_err(|error| boot::BootError::Workload(error.to_string()))?,
    );
    boot::modules()?;
    boot::network(&workload)?;
    boot::disk()?;
    let state = Arc::new(writer::State::new(boot::instance()?));
    println!(
        "LONGHAUL-UP {:.2}s instance {:016x} {}",
        boot::uptime().as_secs_f64(),
        state.instance(),
        workload.to_cmdline()
    );

    let (w, s) = (Arc::clone(&workload), Arc::clone(&state));
    thread::spawn(move || {
        if let Err(error) = writer::run(&w, &s) {
            println!("LONGHAUL-WRITE-ERROR after record {}: {error}", s.acked());
        }
    });
    let (w, s) = (workload, Arc::clone(&state));
    thread::spawn(move || {
        if let Err(error) = probe::run(&w, &s) {
            println!("LONGHAUL-PROBE-ERROR {error}");
        }
    });
    loop {
        thread::sleep(Duration::from_secs(1));
        println!("COUNT {} up {:.2}", state.acked(), boot::uptime().as_secs_f64());
    }
}
