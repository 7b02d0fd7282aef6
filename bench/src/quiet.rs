//! `store rooms`: what rooms that nobody uses cost in memory.

use std::{
    env, fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum as _};
use serde_json::json;
use waxwing::engine::{Answer, Request};

use crate::{
    Common,
    driver::{Driver, Rooms},
    engines::{Kind, Store},
    meter,
    report::{Table, number},
};

/// Arguments of `store rooms`.
#[derive(Debug, Clone, Args)]
pub struct RoomsArgs {
    #[command(flatten)]
    common: Common,
    /// Rooms.
    #[arg(long, default_value_t = 1_000_000)]
    count: usize,
    /// What is compared.
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = Kind::OURS)]
    engines: Vec<Kind>,
}

/// Arguments of the process whose memory is looked at.
#[derive(Debug, Clone, Args)]
pub struct RestArgs {
    #[command(flatten)]
    common: Common,
    #[arg(long, value_enum)]
    engine: Kind,
    /// Room of which the newest message is read.
    #[arg(long)]
    room: usize,
}

pub fn run(args: &RoomsArgs) -> anyhow::Result<()> {
    let dir = args.common.dir.join("rooms");
    drop(fs::remove_dir_all(&dir));
    meter::check_disk(&dir)?;
    let mut table = Table::new(&["engine", "rooms", "memory, MiB", "with one room, MiB", "bytes/room", "on disk, bytes/room"]);
    let mut rounds = Vec::new();
    for kind in args.common.available(&args.engines) {
        let (few, _) = measure(args, kind, &dir.join(format!("{kind:?}-1")), 1)?;
        let (many, disk) = measure(args, kind, &dir.join(format!("{kind:?}-many")), args.count)?;
        #[expect(clippy::cast_precision_loss, reason = "bytes of memory")]
        let (few, many, disk, count) = (few as f64, many as f64, disk as f64, args.count as f64);
        let each = (many - few) / count;
        table.row([
            kind.name().to_owned(),
            number(count),
            number(many / 1_048_576.0),
            number(few / 1_048_576.0),
            number(each),
            number(disk / count),
        ]);
        rounds.push(json!({ "engine": kind.name(), "bytes": many, "bytes_with_one_room": few, "disk_bytes": disk }));
    }
    drop(fs::remove_dir_all(&dir));
    table.publish(&args.common.out, "store-rooms", json!({ "rooms": args.count }), rounds.into())
}

/// Bytes of memory of a process that has opened a store of so many rooms, and bytes that the store has on disk.
fn measure(args: &RoomsArgs, kind: Kind, dir: &Path, count: usize) -> anyhow::Result<(u64, u64)> {
    fs::create_dir_all(dir)?;
    eprintln!("{}: making {count} rooms", kind.name());
    let store = Store::open(kind, dir, &args.common.tools())?;
    let driver = Driver::new(store.engine.clone());
    driver.create(&Rooms::new(count, args.common.payload))?;
    store.settle();
    drop((driver, store));
    let name = kind.to_possible_value().context("a name")?.get_name().to_owned();
    let out = Command::new(env::current_exe()?)
        .args(["store", "rest", "--engine", &name, "--room", &(count - 1).to_string(), "--dir"])
        .arg(dir)
        .stderr(Stdio::inherit())
        .output()?;
    let memory = String::from_utf8_lossy(&out.stdout).trim().parse().context("the process said something else")?;
    Ok((memory, meter::files(dir)?.iter().map(|(_, bytes)| bytes).sum()))
}

/// Opens the store, looks into one room, and tells its memory.
pub fn rest(args: &RestArgs) -> anyhow::Result<()> {
    let store = Store::open(args.engine, &args.common.dir, &args.common.tools())?;
    let driver = Driver::new(store.engine.clone());
    let Answer::Loaded(Some(_)) = driver.ask(Request::Load { room: Rooms::id(args.room) })?? else { bail!("no such room") };
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    println!("{}", kib * 1024);
    Ok(())
}
