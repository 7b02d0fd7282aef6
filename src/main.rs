//! The `waxwing` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    waxwing::cli::run()
}
