//! `store size`: what rooms of a given size take on the disk, as they come to be there and after `waxwing store compact`.

use std::{fs, ops::ControlFlow, path::Path, time::Duration};

use anyhow::Context as _;
use clap::Args;
use serde_json::json;
use waxwing::engine::embedded::ops;

use crate::{
    Common,
    driver::{Driver, Rooms, Until},
    engines::{Kind, Store},
    meter,
    report::{Table, number},
};

/// Arguments of `store size`.
#[derive(Debug, Clone, Args)]
pub struct SizeArgs {
    #[command(flatten)]
    common: Common,
    /// Messages in each room; a list is measured one after the other.
    #[arg(long, value_delimiter = ',', default_values_t = [55, 60, 67, 80, 100, 200, 1000])]
    messages: Vec<u64>,
    /// Bytes that all rooms together have, in MB: that many rooms are made.
    #[arg(long, default_value_t = 400)]
    megabytes: u64,
}

/// Kept, and kept once compacted, in bytes.
struct Size {
    messages: u64,
    rooms: u64,
    kept: u64,
    compacted: u64,
}

pub fn run(args: &SizeArgs) -> anyhow::Result<()> {
    let dir = args.common.dir.join("size");
    drop(fs::remove_dir_all(&dir));
    meter::check_disk(&dir)?;
    let mut table = Table::new(&["messages a room", "KB a room", "rooms", "kept × payload", "compacted × payload"]);
    let mut rows = Vec::new();
    for messages in &args.messages {
        let size = measure(args, *messages, &dir)?;
        drop(fs::remove_dir_all(&dir));
        rows.push(json!({
            "messages": size.messages, "rooms": size.rooms, "kept_bytes": size.kept, "compacted_bytes": size.compacted,
        }));
        table.row(cells(args, &size));
        eprintln!("{} rooms of {messages} messages", size.rooms);
    }
    table.publish(&args.common.out, "store-size", json!({ "payload": args.common.payload }), rows.into())
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn cells(args: &SizeArgs, size: &Size) -> [String; 5] {
    let payload = size.messages as f64 * args.common.payload as f64;
    let ratio = |bytes: u64| number(bytes as f64 / (payload * size.rooms as f64));
    [size.messages.to_string(), number(payload / 1000.0), size.rooms.to_string(), ratio(size.kept), ratio(size.compacted)]
}

/// Every room gets its messages one by one, all rooms in turn: so they are applied in many parts.
fn measure(args: &SizeArgs, messages: u64, dir: &Path) -> anyhow::Result<Size> {
    fs::create_dir_all(dir)?;
    let payload = args.common.payload as u64;
    let count = usize::try_from(args.megabytes * 1_000_000 / (messages * payload)).context("too many rooms")?.max(1);
    let mut rooms = Rooms::new(count, args.common.payload);
    let tools = args.common.tools();
    let store = Store::open(Kind::Embedded, dir, &tools)?;
    let driver = Driver::new(store.engine.clone());
    driver.create(&rooms)?;
    let mut next = 0;
    let acks = messages * count as u64;
    driver.run_with(&mut rooms, count.min(256), Until { acks, time: Duration::MAX }, |_| {
        next += 1;
        (next - 1) % count
    })?;
    store.settle();
    drop((driver, store));
    let kept = history(dir)?;
    ops::compact(&dir.join("embedded"), &tools.settings, &mut |_| ControlFlow::Continue(()))?;
    Ok(Size { messages, rooms: count as u64, kept, compacted: history(dir)? })
}

/// Bytes of the history: the log's files are used again, however much is kept.
fn history(dir: &Path) -> anyhow::Result<u64> {
    let files = meter::files(dir)?;
    Ok(files.iter().filter(|(name, _)| name.ends_with("history.redb")).map(|(_, bytes)| bytes).sum())
}
