//! `store open`: how long a store takes to answer after its process was killed in the middle of writing.

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::json;
use waxwing::engine::{Answer, Request};

use crate::{
    Common,
    driver::{Driver, Rooms, Until},
    engines::{Kind, Store},
    meter,
    report::{Table, median, number},
};

/// Arguments of `store open`.
#[derive(Debug, Clone, Args)]
pub struct OpenArgs {
    #[command(flatten)]
    common: Common,
    /// Messages in the store.
    #[arg(long, default_value_t = 5_000_000)]
    messages: u64,
    /// How often it is killed and opened.
    #[arg(long, default_value_t = 5)]
    kills: usize,
    /// Milliseconds that it is written into before each kill, with 256 publishers in flight.
    #[arg(long, default_value_t = 1500)]
    write_ms: u64,
    /// What is compared.
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = Kind::OURS)]
    engines: Vec<Kind>,
}

/// Arguments of the process that is killed.
#[derive(Debug, Clone, Args)]
pub struct WriteArgs {
    #[command(flatten)]
    common: Common,
    #[arg(long, value_enum)]
    engine: Kind,
    #[arg(long)]
    messages: u64,
}

pub fn run(args: &OpenArgs) -> anyhow::Result<()> {
    let dir = args.common.dir.join("open");
    drop(fs::remove_dir_all(&dir));
    meter::check_disk(&dir)?;
    let mut table = Table::new(&[
        "engine",
        "messages",
        "killed",
        "open ms, median",
        "open ms, worst",
        "first read ms, median",
        "sum ms, worst",
    ]);
    let mut rounds = Vec::new();
    for kind in args.common.available(&args.engines) {
        let dir = dir.join(format!("{kind:?}"));
        fs::create_dir_all(&dir)?;
        let (mut opened, mut read) = (Vec::new(), Vec::new());
        for kill in 1..=args.kills.max(1) {
            let heads = crash(args, kind, &dir)?;
            let (open_ms, read_ms) = reopen(args, kind, &dir)?;
            eprintln!(
                "{:<24} kill {kill}/{}: {heads} messages, open {} ms, first read {} ms",
                kind.name(),
                args.kills,
                number(open_ms),
                number(read_ms)
            );
            rounds.push(
                json!({ "engine": kind.name(), "kill": kill, "messages": heads, "open_ms": open_ms, "first_read_ms": read_ms }),
            );
            opened.push(open_ms);
            read.push(read_ms);
        }
        let worst = |values: &[f64]| values.iter().copied().fold(0.0, f64::max);
        let sums: Vec<f64> = opened.iter().zip(&read).map(|(open, read)| open + read).collect();
        table.row([
            kind.name().to_owned(),
            args.messages.to_string(),
            format!("{} ×", opened.len()),
            number(median(opened.iter().copied())),
            number(worst(&opened)),
            number(median(read.iter().copied())),
            number(worst(&sums)),
        ]);
        fs::remove_dir_all(&dir)?;
    }
    let settings = json!({
        "messages": args.messages, "rooms": args.common.rooms, "payload": args.common.payload, "write_ms": args.write_ms,
    });
    table.publish(&args.common.out, "store-open", settings, rounds.into())
}

/// Killed when dropped, whatever happens to the one who waits.
struct Writer(Child);

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Has a process of its own fill the store and write on, and kills it. How many messages there were at least.
fn crash(args: &OpenArgs, kind: Kind, dir: &Path) -> anyhow::Result<u64> {
    let program: PathBuf = env::current_exe()?;
    let name = clap::ValueEnum::to_possible_value(&kind).context("a name")?.get_name().to_owned();
    let child = Command::new(program)
        .args(["store", "write", "--engine", &name, "--messages", &args.messages.to_string()])
        .args(["--rooms", &args.common.rooms.to_string(), "--payload", &args.common.payload.to_string(), "--dir"])
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut writer = Writer(child);
    let out = writer.0.stdout.take().context("a pipe")?;
    let Some(line) = BufReader::new(out).lines().next() else { bail!("the writer ended early") };
    let messages = line?.trim().parse().context("the writer said something else")?;
    thread::sleep(Duration::from_millis(args.write_ms));
    if let Some(status) = writer.0.try_wait()? {
        bail!("the writer ended by itself: {status}");
    }
    drop(writer);
    Ok(messages)
}

fn reopen(args: &OpenArgs, kind: Kind, dir: &Path) -> anyhow::Result<(f64, f64)> {
    let begin = Instant::now();
    let store = Store::open(kind, dir, &args.common.tools())?;
    let open = begin.elapsed();
    let driver = Driver::new(store.engine.clone());
    let request = Request::ReadBefore { room: Rooms::id(0), before: u64::MAX, count_max: 50, bytes_max: 1 << 16 };
    let Answer::Records(page) = driver.ask(request)?? else { bail!("no page") };
    let both = begin.elapsed();
    anyhow::ensure!(!page.records.is_empty(), "the room is empty");
    Ok((open.as_secs_f64() * 1000.0, (both - open).as_secs_f64() * 1000.0))
}

/// The process that is killed: fills the store up, says so, and writes on.
pub fn write(args: &WriteArgs) -> anyhow::Result<()> {
    let mut rooms = Rooms::new(args.common.rooms, args.common.payload);
    let store = Store::open(args.engine, &args.common.dir, &args.common.tools())?;
    let driver = Driver::new(store.engine.clone());
    driver.create(&rooms)?;
    driver.load(&mut rooms)?;
    let there = rooms.total();
    if there < args.messages {
        // Room by room: filling is not what is measured.
        let missing = args.messages - there;
        let (each, mut count) = (missing.div_ceil(args.common.rooms as u64), 0);
        driver.run_with(&mut rooms, 4096, Until { acks: missing, time: Duration::MAX }, |_| {
            count += 1;
            usize::try_from((count - 1) / each).unwrap_or_default()
        })?;
    }
    println!("{}", rooms.total());
    std::io::stdout().flush()?;
    driver.run(&mut rooms, 256, Until { acks: u64::MAX, time: Duration::MAX })?;
    Ok(())
}
