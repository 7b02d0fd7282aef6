//! `store bytes`: what is written for each message, and what lies on disk in the end.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use clap::Args;
use serde_json::json;

use crate::{
    Common,
    driver::{Driver, Rooms, Until},
    engines::{Kind, Store},
    meter::{self, Usage},
    plot::Bars,
    report::{Table, number},
};

/// Arguments of `store bytes`.
#[derive(Debug, Clone, Args)]
pub struct BytesArgs {
    #[command(flatten)]
    common: Common,
    /// Messages that each stores at most.
    #[arg(long, default_value_t = 3_000_000)]
    messages: u64,
    /// Messages that are stored before anything is counted: files that are filled with zeros once are there by then.
    #[arg(long, default_value_t = 400_000)]
    warm_up: u64,
    /// Seconds that each may store at most.
    #[arg(long, default_value_t = 40.0)]
    seconds: f64,
    /// Publishers in flight.
    #[arg(long, default_value_t = 256)]
    in_flight: usize,
    /// Leaves the stores where they were made.
    #[arg(long)]
    keep: bool,
    /// What is compared [default: everything that is installed].
    #[arg(long, value_delimiter = ',', value_enum, hide_default_value = true, default_values_t = Kind::WITH_QUEUE)]
    engines: Vec<Kind>,
}

/// One measurement.
#[derive(Debug, Clone)]
struct Volume {
    kind: Kind,
    messages: u64,
    /// Stored, and everything settled.
    seconds: f64,
    cpu_us: f64,
    written: f64,
    stored: f64,
    device: f64,
    /// Without files of a write-ahead log, whose size does not depend on how much was stored.
    kept: f64,
    log_mib: f64,
    files: Vec<(String, u64)>,
}

pub fn run(args: &BytesArgs) -> anyhow::Result<()> {
    let dir = args.common.dir.join("bytes");
    drop(fs::remove_dir_all(&dir));
    meter::check_disk(&dir)?;
    let mut volumes = Vec::new();
    for kind in args.common.available(&args.engines) {
        let volume = measure(args, kind, &dir.join(format!("{kind:?}")))?;
        eprintln!("{:<24} {:>9} messages, {:>6} bytes to the device each", kind.name(), volume.messages, number(volume.device));
        volumes.push(volume);
        if !args.keep {
            drop(fs::remove_dir_all(&dir));
        }
    }
    report(args, &volumes)
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn measure(args: &BytesArgs, kind: Kind, dir: &Path) -> anyhow::Result<Volume> {
    fs::create_dir_all(dir)?;
    let mut rooms = Rooms::new(args.common.rooms, args.common.payload);
    let store = Store::open(kind, dir, &args.common.tools())?;
    let driver = Driver::new(store.engine.clone());
    driver.create(&rooms)?;
    let warm = Until { acks: args.warm_up, time: Duration::from_secs_f64(args.seconds) };
    driver.run(&mut rooms, args.in_flight, warm)?;
    meter::settle_disk();
    let (begin, device, usage) = (Instant::now(), meter::device_written(dir), Usage::of(store.pid())?);
    let until = Until { acks: args.messages, time: Duration::from_secs_f64(args.seconds) };
    let run = driver.run(&mut rooms, args.in_flight, until)?;
    store.settle();
    let used = Usage::of(store.pid())?.since(usage);
    let seconds = begin.elapsed().as_secs_f64();
    meter::settle_disk();
    let device = meter::device_written(dir).zip(device).map_or(f64::NAN, |(after, before)| (after - before) as f64);
    let files = meter::files(dir)?;
    let (log, kept): (Vec<_>, Vec<_>) = files.iter().partition(|(name, _)| name.contains("wal"));
    let [log, kept] = [log, kept].map(|files| files.iter().map(|(_, bytes)| bytes).sum::<u64>());
    drop((driver, store));
    let each = |bytes: f64| bytes / run.acks as f64;
    Ok(Volume {
        kind,
        messages: run.acks,
        seconds,
        cpu_us: each(used.cpu.as_secs_f64() * 1e6),
        written: each(used.written as f64),
        stored: each(used.stored as f64),
        device: each(device),
        kept: kept as f64 / rooms.total() as f64,
        log_mib: log as f64 / 1_048_576.0,
        files,
    })
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn report(args: &BytesArgs, volumes: &[Volume]) -> anyhow::Result<()> {
    let payload = args.common.payload as f64;
    let mut table = Table::new(&[
        "engine",
        "messages",
        "messages/s, settled",
        "CPU-µs/message",
        "write calls, B",
        "× payload",
        "device, B",
        "× payload",
        "kept × payload",
        "log, MiB",
    ]);
    for volume in volumes {
        table.row([
            volume.kind.name().to_owned(),
            number(volume.messages as f64),
            number(volume.messages as f64 / volume.seconds),
            number(volume.cpu_us),
            number(volume.written),
            number(volume.written / payload),
            number(volume.device),
            number(volume.device / payload),
            number(volume.kept / payload),
            number(volume.log_mib),
        ]);
    }
    let rows = volumes.iter().map(|volume| {
        json!({
            "engine": volume.kind.name(), "messages": volume.messages, "seconds": volume.seconds,
            "cpu_us_per_message": volume.cpu_us, "write_call_bytes_per_message": volume.written,
            "dirtied_bytes_per_message": volume.stored, "device_bytes_per_message": volume.device,
            "kept_bytes_per_message": volume.kept,
            "log_mib": volume.log_mib, "files": volume.files,
        })
    });
    let settings = json!({
        "payload": args.common.payload, "rooms": args.common.rooms, "messages_max": args.messages, "in_flight": args.in_flight,
    });
    table.publish(&args.common.out, "store-bytes", settings, rows.collect())?;
    Bars {
        title: "Bytes written to the device for a 300-byte message",
        unit: "as a multiple of the payload, log and tables together; logarithmic",
        groups: vec![String::new()],
        series: volumes.iter().map(|volume| (volume.kind.name(), vec![volume.device / payload])).collect(),
        log: true,
        mark: Some((3.0, "target: 3")),
    }
    .write(&args.common.out, "store-bytes")
}
