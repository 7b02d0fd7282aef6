//! `audit`: a server under load, killed with SIGKILL again and again, held to what it acked.

use std::{fs, time::Instant};

use clap::Args;
use serde_json::json;

use crate::{
    Common,
    common::audit::{Plan, audit},
    meter,
    report::{Table, number},
    server,
};

/// Arguments of `audit`.
#[derive(Debug, Clone, Args)]
pub struct AuditArgs {
    #[command(flatten)]
    common: Common,
    /// How often the server is killed.
    #[arg(long, default_value_t = 100)]
    kills: usize,
    /// Kills after which everything is read and compared; then fresh rooms follow on the same data.
    #[arg(long, default_value_t = 10)]
    kills_per_audit: usize,
    /// Publishers, spread over the transports; each changes its transport after every kill.
    #[arg(long, default_value_t = 24)]
    clients: usize,
    /// Rooms that they publish into.
    #[arg(long, default_value_t = 8)]
    audit_rooms: usize,
    /// Acks in one life of the server at most; how many is random.
    #[arg(long, default_value_t = 5000)]
    acks_max: u64,
    /// Seed of that randomness.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub fn run(args: &AuditArgs) -> anyhow::Result<()> {
    let dir = args.common.dir.join("audit");
    drop(fs::remove_dir_all(&dir));
    meter::check_disk(&dir)?;
    let command = server::command(&dir, &[])?;
    let runtime = tokio::runtime::Runtime::new()?;
    let mut random = args.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let begin = Instant::now();
    let (mut killed, mut acked, mut stored, mut audits, mut rounds) = (0, 0, 0, 0_u8, Vec::new());
    while killed < args.kills {
        let lives = (0..args.kills_per_audit.min(args.kills - killed).max(1)).map(|_| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            1 + (random >> 16) % args.acks_max.max(1)
        });
        let plan = Plan { run: audits, clients: args.clients, rooms: args.audit_rooms, lives: lives.collect() };
        let before = killed;
        let found = runtime.block_on(audit(
            || command(),
            &plan,
            |life, acks| eprintln!("kill {}/{}: {acks} acks since the last audit", before + life, args.kills),
        ));
        killed += plan.lives.len();
        eprintln!("audited: {} acked, {} stored, all there, each once, in order, chains intact", found.acked, found.stored);
        rounds.push(json!({ "kills": plan.lives.len(), "acked": found.acked, "stored": found.stored }));
        (acked, stored) = (acked + found.acked, stored + found.stored);
        audits = audits.wrapping_add(1);
    }
    let mut table = Table::new(&["kills", "clients", "audits", "messages acked", "in the logs", "lost", "duplicated", "seconds"]);
    let cells = [killed.to_string(), args.clients.to_string(), audits.to_string(), acked.to_string(), stored.to_string()];
    let found = ["0".to_owned(), "0".to_owned(), number(begin.elapsed().as_secs_f64())];
    table.row(cells.into_iter().chain(found));
    let settings = json!({
        "kills": args.kills, "clients": args.clients, "rooms": args.audit_rooms, "acks_max": args.acks_max, "seed": args.seed,
    });
    let result = table.publish(&args.common.out, "audit", settings, rounds.into());
    drop(fs::remove_dir_all(&dir));
    result
}
