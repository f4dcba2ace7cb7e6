//! Parses the command line, starts telemetry, runs the command, turns an error into an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    sqjobs::cli::main()
}
