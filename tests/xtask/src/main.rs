//! `cargo xtask`: the project's own tasks. Each is a module; this file only reads the command line. Nothing here is
//! part of the product.

mod compat;
mod demo;
mod fuzz;
mod lines;
mod sim;
mod tasks;
mod tidy;
mod xen;

use std::process::ExitCode;

use anyhow::{Result, bail};

const USAGE: &str = "\
cargo xtask TASK

  demo [--json FILE] [--no-preseed] [--runs N]
             a real guest on a real disk moves between two platforms, with proof; installs and builds what it needs
  bench NAME [--json FILE] [--quick] [--runs N]
             figures against the real programs (store), of the ways to cut (chunking), of the database behind the
             store's index beside another one (index, with --entries N), or of guests that move (mobility, with --points
             MS,MS and --part rates|bindings|moves|guest|drawing; needs root); installs what it needs; --quick: a small
             image, index or choice, and one run
  lab xen [--figures | --smoke | --walk FAULTS | --conformance | --kinds | --mobility | --hold]
             [--alone] [--moves N] [--json FILE]
             two real Xen hosts in emulators, and a guest that moves between them: figures, then every fault; builds what
             it needs, as root
  lab lines  [--mib N] [--rate MB_S] [--congestion cubic|bbr]
             an image of N MiB (32) over each of 96 lines: 100 to 1000 Mb/s, round trips of 20 to 200 ms, queues of 0.1
             to 4 BDP; needs root
  test       all tests, the ones with real guests included; installs and builds what it needs
  ci         what CI runs: formatting, tidy, clippy, documentation, test
  compat [TEST...]
             builds the version that tests/compat/baseline names, and has both versions use each other in every way
  fuzz [TARGET...] [--seconds N] [--input FILE]
             coverage-guided fuzzing of every decoder, 60 s each; with --input one input once, as a failure says
  sim [--seeds N] [--from S]
             the hand-off between simulated platforms, 100000 seeds; a seed that breaks a promise is told in full
  tidy       the rules of this source tree that no compiler checks
  setup      installs the Debian packages that demo and test need (by apt, as root), and nothing else
";

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
    match words.as_slice() {
        ["demo", rest @ ..] => demo::run(&demo::Options::parse(rest)?),
        ["bench", rest @ ..] => tasks::bench(rest),
        ["lab", "xen", rest @ ..] => xen::run(&xen::Options::parse(rest)?),
        ["lab", "lines", rest @ ..] => lines::run(&lines::Options::parse(rest)?),
        ["test"] => tasks::test().map(drop),
        ["ci"] => tasks::ci(),
        ["compat", rest @ ..] => compat::run(rest),
        ["fuzz", rest @ ..] => fuzz::run(&fuzz::Options::parse(rest)?),
        ["sim", rest @ ..] => sim::run(&sim::Options::parse(rest)?),
        ["tidy"] => tasks::tidy(),
        ["setup"] => harness::lab::apt::setup(),
        [] | ["help" | "--help" | "-h"] => {
            print!("{USAGE}");
            Ok(())
        }
        _ => bail!("there is no task `{}`\n\n{USAGE}", words.join(" ")),
    }
}
