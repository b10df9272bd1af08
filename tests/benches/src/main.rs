//! The benchmarks behind `cargo xtask bench`. Each compares with the real programs, on real Debian images (an index: with
//! another database), in the same run, and prints what it ran on (mobility: the lab's network with moves and without). The file formats of the figures are in the architecture's chapter on figures: one
//! JSON object a line.

mod chunking;
mod figures;
mod index;
mod machine;
mod mobility;
mod options;
mod process;
mod store;
mod worker;

use std::process::ExitCode;

use anyhow::Result;
use options::{Bench, Options};
use worker::Task;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(arguments: &[String]) -> Result<()> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let ["worker", task @ ..] = words.as_slice() {
        println!("{}", Task::parse(task)?.run()?);
        return Ok(());
    }
    let options = Options::parse(&words)?;
    match options.bench {
        Bench::Store => store::run(&options),
        Bench::Chunking => chunking::run(&options),
        Bench::Index => index::run(&options),
        Bench::Mobility => mobility::run(&options),
    }
}
