//! The command line, one file for each subcommand. What it prints for people and scripts goes to stdout; logs and errors
//! to stderr.

mod config;
mod serve;
mod settings;
mod token;

use std::{
    fmt,
    io::{self, Write},
    process::ExitCode,
};

use clap::{Parser, Subcommand};

use settings::Settings;

/// An end-to-end-encrypted chat edge. Without a subcommand it serves.
#[derive(Debug, Parser)]
#[command(name = "waxwing", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the edge (the default).
    Serve(Settings),
    /// Prints the configuration that is in effect, and where each value comes from.
    Config(Settings),
    /// Makes a login token for a device, for servers with auth = "token".
    Token(token::Args),
}

/// Runs the command that the process was started with.
#[must_use]
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        None => serve::run(&cli.settings),
        Some(Command::Serve(settings)) => serve::run(&settings),
        Some(Command::Config(settings)) => config::run(&settings),
        Some(Command::Token(args)) => token::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If stderr is gone there is nobody to tell.
            let _ = writeln!(io::stderr(), "waxwing: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints to stdout. A closed pipe is not an error: whoever read has read enough.
fn print(text: impl fmt::Display) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match write!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}
