//! `store size`: what rooms of a given size take on the disk, and rooms of all these sizes, as they come to be there and after
//! `waxwing store compact`.

use std::{fs, ops::ControlFlow, path::Path, time::Duration};

use anyhow::Context as _;
use clap::Args;
use serde_json::json;
use waxwing::engine::embedded::ops;

use crate::{
    Common,
    driver::{Driver, Random, Rooms, Until},
    engines::{Kind, Store},
    meter,
    report::{Table, number},
};

/// Arguments of `store size`.
#[derive(Debug, Clone, Args)]
pub struct SizeArgs {
    #[command(flatten)]
    common: Common,
    /// Messages in each room; a list is measured one after the other, and then a mixture of what lies between.
    #[arg(long, value_delimiter = ',', default_values_t = [55, 60, 67, 80, 100, 200, 1000])]
    messages: Vec<u64>,
    /// Bytes that all rooms together have, in MB: that many rooms are made.
    #[arg(long, default_value_t = 400)]
    megabytes: u64,
}

/// Where each message goes.
struct Plan {
    /// Messages of a room, fewest and most.
    messages: (u64, u64),
    rooms: usize,
    /// The room of each message, in order.
    turns: Vec<usize>,
}

/// Kept, and kept once compacted, in bytes.
struct Size {
    kept: u64,
    compacted: u64,
}

pub fn run(args: &SizeArgs) -> anyhow::Result<()> {
    let dir = args.common.dir.join("size");
    drop(fs::remove_dir_all(&dir));
    meter::check_disk(&dir)?;
    let total = usize::try_from(args.megabytes * 1_000_000 / args.common.payload as u64)?;
    let mut plans = args.messages.iter().map(|messages| Plan::alike(*messages, total)).collect::<anyhow::Result<Vec<_>>>()?;
    if let (Some(least), Some(most)) = (args.messages.iter().min(), args.messages.iter().max())
        && least < most
    {
        plans.push(Plan::mixed((*least, *most), total)?);
    }
    let mut table = Table::new(&["messages a room", "KB a room", "rooms", "kept × payload", "compacted × payload"]);
    let mut rows = Vec::new();
    for plan in &plans {
        let size = measure(args, plan, &dir)?;
        drop(fs::remove_dir_all(&dir));
        rows.push(json!({
            "messages_min": plan.messages.0, "messages_max": plan.messages.1, "rooms": plan.rooms,
            "kept_bytes": size.kept, "compacted_bytes": size.compacted,
        }));
        table.row(cells(args, plan, &size));
        eprintln!("{} rooms, {} messages", plan.rooms, plan.turns.len());
    }
    table.publish(&args.common.out, "store-size", json!({ "payload": args.common.payload }), rows.into())
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn cells(args: &SizeArgs, plan: &Plan, size: &Size) -> [String; 5] {
    let payload = args.common.payload as f64;
    let ratio = |bytes: u64| number(bytes as f64 / (payload * plan.turns.len() as f64));
    let (least, most) = plan.messages;
    let range = |of: &dyn Fn(u64) -> String| if least == most { of(least) } else { format!("{} to {}", of(least), of(most)) };
    [
        range(&|messages| messages.to_string()),
        range(&|messages| number(messages as f64 * payload / 1000.0)),
        plan.rooms.to_string(),
        ratio(size.kept),
        ratio(size.compacted),
    ]
}

impl Plan {
    /// Rooms of one size, which get their messages in turn: all of them outgrow their chunks at the same time.
    fn alike(messages: u64, total: usize) -> anyhow::Result<Self> {
        let rooms = (total / usize::try_from(messages).context("too many messages")?.max(1)).max(1);
        let each = usize::try_from(messages)?;
        Ok(Self { messages: (messages, messages), rooms, turns: (0..rooms * each).map(|turn| turn % rooms).collect() })
    }

    /// Rooms of all sizes between these, which get their messages at random, each as often as it is large.
    fn mixed((least, most): (u64, u64), total: usize) -> anyhow::Result<Self> {
        let mut random = Random::new();
        let (mut turns, mut rooms) = (Vec::with_capacity(total), 0);
        let span = usize::try_from(most - least)? + 1;
        while turns.len() < total {
            let messages = usize::try_from(least)? + random.below(span);
            turns.extend(std::iter::repeat_n(rooms, messages));
            rooms += 1;
        }
        for last in (1..turns.len()).rev() {
            turns.swap(last, random.below(last + 1));
        }
        Ok(Self { messages: (least, most), rooms, turns })
    }
}

/// Every room gets its messages one by one, so they are applied in many parts.
fn measure(args: &SizeArgs, plan: &Plan, dir: &Path) -> anyhow::Result<Size> {
    fs::create_dir_all(dir)?;
    let mut rooms = Rooms::new(plan.rooms, args.common.payload);
    let tools = args.common.tools();
    let store = Store::open(Kind::Embedded, dir, &tools)?;
    let driver = Driver::new(store.engine.clone());
    driver.create(&rooms)?;
    let mut turns = plan.turns.iter().copied();
    let until = Until { acks: plan.turns.len() as u64, time: Duration::MAX };
    driver.run_with(&mut rooms, plan.rooms.min(256), until, |_| turns.next().unwrap_or_default())?;
    store.settle();
    drop((driver, store));
    let kept = history(dir)?;
    ops::compact(&dir.join("embedded"), &tools.settings, &mut |_| ControlFlow::Continue(()))?;
    Ok(Size { kept, compacted: history(dir)? })
}

/// Bytes of the history: the log's files are used again, however much is kept.
fn history(dir: &Path) -> anyhow::Result<u64> {
    let files = meter::files(dir)?;
    Ok(files.iter().filter(|(name, _)| name.ends_with("history.redb")).map(|(_, bytes)| bytes).sum())
}
