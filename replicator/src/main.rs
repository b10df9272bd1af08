//! The `longhaul` binary: the command line and, with `longhaul daemon`, the service.

fn main() -> std::process::ExitCode {
    longhaul::cli::main()
}
