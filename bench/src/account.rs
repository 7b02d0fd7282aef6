//! `account`: what one delivery costs the server: system calls, wake-ups, context switches, allocations, CPU time by thread.

use std::{
    collections::BTreeMap,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use clap::Args;
use serde_json::json;

use crate::{
    Common,
    fanout::{
        connect,
        contestant::{Contestant, Served, Setup, Who, Wire},
        sample::Marks,
        tally::Tally,
        workload::Workload,
    },
    meter,
    report::{Table, number},
};

/// Arguments of `account`.
#[derive(Debug, Clone, Args)]
pub struct AccountArgs {
    #[command(flatten)]
    common: Common,
    /// The workload.
    #[arg(value_enum)]
    workload: Workload,
    /// Whose server.
    #[arg(long, value_delimiter = ',', default_values_t = [Contestant { who: Who::Waxwing, wire: Wire::Ws }])]
    contestants: Vec<Contestant>,
    /// Seconds that are looked at.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// More settings of Waxwing's: `key=value`.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
}

/// Everything that a server of messages may ask of the kernel; what is not in it shows as "other".
const CALLS: [&str; 26] = [
    "accept4",
    "clock_nanosleep",
    "close",
    "epoll_ctl",
    "epoll_pwait",
    "epoll_pwait2",
    "epoll_wait",
    "fdatasync",
    "futex",
    "getrandom",
    "io_uring_enter",
    "madvise",
    "mmap",
    "munmap",
    "nanosleep",
    "pread64",
    "pwrite64",
    "read",
    "readv",
    "recvfrom",
    "recvmmsg",
    "recvmsg",
    "sched_yield",
    "sendmmsg",
    "sendmsg",
    "sendto",
];
const MORE_CALLS: [&str; 2] = ["write", "writev"];

pub fn run(args: &AccountArgs) -> anyhow::Result<()> {
    meter::raise_file_limit();
    for contestant in &args.contestants {
        account(args, *contestant).with_context(|| contestant.to_string())?;
    }
    Ok(())
}

fn account(args: &AccountArgs, contestant: Contestant) -> anyhow::Result<()> {
    let setup = Setup {
        dir: args.common.dir.join("account"),
        nats: args.common.nats_server.clone(),
        sockudo: args.common.sockudo.clone(),
        settings: args.settings.clone(),
        durable: args.workload == Workload::W4,
        count_allocations: true,
    };
    meter::check_disk(&setup.dir)?;
    let served = Served::start(contestant, &setup)?;
    let shape = args.workload.shape(contestant);
    let mut player = connect(&served, contestant, &shape)?;
    let (pace, time, mut tally) = (args.workload.pace(), Duration::from_secs(args.seconds), Tally::new());
    player.play(pace, Duration::from_secs(2), &mut tally)?;
    // Without perf looking on: it makes every system call dearer.
    tally.clear();
    let before = Marks::take(&served)?;
    player.play(pace, time, &mut tally)?;
    let marks = Marks::take(&served)?.since(&before);
    let (messages, deliveries) = (count(tally.published), count(tally.deliveries.max(tally.acks)));
    tally.clear();
    // It begins a moment later, and ends well before the traffic does.
    let perf = perf(served.id(), args.seconds, &setup.dir)?;
    let longer = time + Duration::from_secs(2);
    player.play(pace, longer, &mut tally)?;
    let rate = count(tally.deliveries.max(tally.acks)) / longer.as_secs_f64();
    let watched = rate * time.as_secs_f64();
    let calls = perf.finish()?;
    drop(std::fs::remove_dir_all(&setup.dir));

    let each = deliveries / messages;
    let mut table = Table::new(&["server's", "a delivery", "a message"]);
    let mut add = |what: String, per_delivery: f64| {
        // What happens less than once in a hundred messages is not part of a message's way.
        if per_delivery * each >= 0.01 {
            table.row([what, number(per_delivery), number(per_delivery * each)]);
        }
    };
    add("CPU, µs".into(), marks.cpu.as_secs_f64() * 1e6 / deliveries);
    let mut by_name: BTreeMap<&str, (Duration, u64, u64)> = BTreeMap::new();
    for thread in &marks.threads {
        let entry = by_name.entry(thread.name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '-')).or_default();
        *entry = (entry.0 + thread.cpu, entry.1 + thread.sleeps, entry.2 + thread.preempted);
    }
    for (name, (cpu, sleeps, preempted)) in by_name {
        add(format!("of them thread {name}, µs"), cpu.as_secs_f64() * 1e6 / deliveries);
        add(format!("sleeps of {name}"), count(sleeps) / deliveries);
        add(format!("preemptions of {name}"), count(preempted) / deliveries);
    }
    add("allocations".into(), count(marks.counts.allocations) / deliveries);
    add("bytes allocated".into(), count(marks.counts.allocated) / deliveries);
    add("syncs".into(), count(marks.counts.syncs) / deliveries);
    for (name, calls) in &calls {
        if *calls > 0 {
            add(name.clone(), count(*calls) / watched);
        }
    }
    let settings = json!({ "contestant": contestant.to_string(), "seconds": args.seconds, "deliveries_per_message": each });
    eprintln!("{} of {}: {} deliveries/s", args.workload.name(), contestant.title(), number(rate));
    table.publish(&args.common.out, &format!("account-{}-{contestant}", args.workload.name()), settings, json!(calls))
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn count(value: u64) -> f64 {
    value as f64
}

/// perf, counting the system calls of a process.
struct Perf(Option<(Child, std::path::PathBuf)>);

fn perf(pid: u32, seconds: u64, dir: &Path) -> anyhow::Result<Perf> {
    let names = CALLS.iter().chain(&MORE_CALLS).map(|name| format!("syscalls:sys_enter_{name}"));
    let events: Vec<String> = ["raw_syscalls:sys_enter", "sched:sched_wakeup", "context-switches"]
        .map(str::to_owned)
        .into_iter()
        .chain(names)
        .collect();
    let file = dir.join("perf");
    let child = Command::new("perf")
        .args(["stat", "-x", ",", "-o"])
        .arg(&file)
        .args(["-e", &events.join(","), "-p", &pid.to_string(), "--", "sleep", &seconds.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(child) = child else {
        eprintln!("no perf: system calls are not counted");
        return Ok(Perf(None));
    };
    Ok(Perf(Some((child, file))))
}

impl Perf {
    fn finish(self) -> anyhow::Result<Vec<(String, u64)>> {
        let Some((mut child, file)) = self.0 else { return Ok(Vec::new()) };
        child.wait()?;
        let text = std::fs::read_to_string(file).context("perf said nothing: tracepoints need root")?;
        let (mut calls, mut all, mut named) = (Vec::new(), 0, 0);
        for line in text.lines() {
            let mut fields = line.split(',');
            let (Some(Ok(value)), Some(event)) = (fields.next().map(str::parse::<u64>), fields.nth(1)) else { continue };
            match event {
                "raw_syscalls:sys_enter" => all = value,
                "sched:sched_wakeup" => calls.push(("wake-ups of other threads".to_owned(), value)),
                "context-switches" => calls.push(("context switches".to_owned(), value)),
                event => {
                    named += value;
                    calls.push((event.trim_start_matches("syscalls:sys_enter_").to_owned() + "()", value));
                }
            }
        }
        calls.push(("other system calls".into(), all.saturating_sub(named)));
        calls.push(("system calls in all".into(), all));
        Ok(calls)
    }
}
