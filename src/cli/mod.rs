//! The command line, one file for each subcommand. What it prints for people and scripts goes to stdout; logs and errors
//! to stderr.

mod backup;
mod chat;
mod client;
mod config;
mod link;
mod load;
mod passphrase;
mod people;
mod post;
mod secret;
mod send;
mod serve;
mod settings;
mod since;
mod store;
mod token;
mod verify;

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
    /// Chats in a room, in this terminal.
    Chat(chat::ChatArgs),
    /// Sends a message, or each line of standard input, and ends when it is on the server's disk.
    Send(send::SendArgs),
    /// Posts into a room through its drop-box, without being a member: for scripts and monitoring. Prints the post's number.
    Post(post::PostArgs),
    /// Prints what is said in a room, as it is said.
    Tail(send::TailArgs),
    /// Makes a room and prints its link.
    Create(send::CreateArgs),
    /// Writes this person, with keys and rooms, to an encrypted file.
    Export(backup::Args),
    /// Prints who this profile is: name, keys, words to compare. Makes the identity if there is none.
    Whoami(backup::WhoamiArgs),
    /// Gives this profile a passphrase, another one, or none.
    Passphrase(passphrase::Args),
    /// Makes a fresh profile a device of the person in such a file.
    Import(backup::Args),
    /// Makes a fresh profile a device of a person: shows a code, and waits for a device of theirs to take it (`/adddevice` in a
    /// chat, or the page).
    Link(link::LinkArgs),
    /// Writes what this profile can show others of a room's history, and what contradicts it, to a file.
    Evidence(verify::EvidenceArgs),
    /// Checks such a file, or compares two of different devices; nothing is asked over the network. Succeeds if everything
    /// in the files holds and, of two, the histories agree.
    Verify(verify::VerifyArgs),
    /// Measures an edge: many connections that publish and listen.
    Load(load::LoadArgs),
    /// Writes everything that the server keeps into a new directory, while it runs.
    #[cfg(unix)]
    Backup(store::BackupArgs),
    /// Makes a store from a backup, where there is none; or only checks the backup.
    Restore(store::RestoreArgs),
    /// Looks after a store that no server has open.
    #[command(subcommand)]
    Store(store::StoreCommand),
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
        #[cfg(unix)]
        Some(Command::Backup(args)) => block_on(store::backup(&args)),
        Some(Command::Restore(args)) => store::restore(&args),
        Some(Command::Store(command)) => store::run(&command),
        Some(Command::Token(args)) => token::run(&args),
        Some(Command::Export(args)) => backup::export(&args),
        Some(Command::Whoami(args)) => backup::whoami(&args),
        Some(Command::Passphrase(args)) => passphrase::run(&args),
        Some(Command::Import(args)) => backup::import(&args),
        Some(Command::Link(args)) => block_on(link::run(&args)),
        Some(Command::Evidence(args)) => verify::evidence(&args),
        Some(Command::Verify(args)) => verify::verify(&args),
        Some(Command::Chat(args)) => block_on(chat::run(&args)),
        Some(Command::Send(args)) => block_on(send::send(&args)),
        Some(Command::Post(args)) => block_on(post::run(&args)),
        Some(Command::Tail(args)) => block_on(send::tail(&args)),
        Some(Command::Load(args)) => block_on(load::run(&args)),
        Some(Command::Create(args)) => block_on(send::create(&args)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Runs a client's command. What is left at the end (a thread that reads the terminal) does not hold the process up.
fn block_on(command: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let result = runtime.block_on(command);
    runtime.shutdown_background();
    result
}

/// Says on stderr what went wrong, or what to know. If stderr is gone there is nobody to tell.
fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "waxwing: {text}");
}

/// Prints to stdout. A closed pipe is not an error: whoever read has read enough.
fn print(text: impl fmt::Display) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match write!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}
