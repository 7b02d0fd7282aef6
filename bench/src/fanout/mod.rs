//! `fanout`: messages from one to many, by contestants that all play the same workloads.
//!
//! The server is a process of its own, so that its CPU time is its own; this process plays all the clients, with one thread.

pub mod contestant;
pub mod epoll;
pub mod player;
pub mod quic;
mod report;
pub mod sample;
pub mod session;
mod stream;
pub mod tally;
mod targets;
pub mod wire;
pub mod workload;

use std::{collections::BTreeMap, fs, time::Duration};

use anyhow::Context as _;
use clap::{Args, ValueEnum};

use crate::{Common, meter};

use self::{
    contestant::{Contestant, Served, Setup},
    player::Play,
    sample::{Marks, Sample},
    tally::Tally,
    workload::{Pace, Shape, Workload},
};

/// How long a contestant plays before it is measured.
const WARM_UP: Duration = Duration::from_secs(1);
/// How long a server is left alone before its memory is looked at.
const REST: Duration = Duration::from_secs(2);
/// After which a server has given back what it keeps for who comes back soon (Waxwing: recent messages, for 30 s).
const LONG_REST: Duration = Duration::from_secs(60);

/// What is played.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Choice {
    W1,
    W1Saturation,
    W2,
    W3,
    W4,
    /// All of them.
    All,
}

/// Arguments of `fanout`.
#[derive(Debug, Clone, Args)]
pub struct FanoutArgs {
    #[command(flatten)]
    common: Common,
    /// The workload.
    #[arg(value_enum, default_value = "all")]
    workload: Choice,
    /// Who is compared [default: everybody who is installed]. Names are of the form waxwing-ws; a wrong one lists them.
    #[arg(long, value_delimiter = ',', hide_default_value = true, default_values_t = Contestant::ALL)]
    contestants: Vec<Contestant>,
    /// Seconds that each is measured in each round.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Rounds; the median is reported.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Messages under way in W1 at saturation.
    #[arg(long, default_value_t = 16)]
    window: u64,
    /// Connections of W3, in a fifth as many rooms. A second, larger number tells what the next connection costs, without what a
    /// server has whatever their number.
    #[arg(long, value_delimiter = ',', default_values_t = [5000, 10_000], value_parser = clap::value_parser!(u32).range(50..=50_000))]
    connections: Vec<u32>,
    /// More settings of Waxwing's, as in `waxwing.toml`: `key=value`.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Keeps the results of an earlier run of other contestants, and puts these beside them.
    #[arg(long)]
    add: bool,
}

/// All measurements, by workload and contestant, a round each.
type Results = BTreeMap<(Workload, Contestant), Vec<Sample>>;

pub fn run(args: &FanoutArgs) -> anyhow::Result<()> {
    let dir = args.common.dir.join("fanout");
    drop(fs::remove_dir_all(&dir));
    meter::check_disk(&dir)?;
    meter::raise_file_limit();
    let workloads: Vec<Workload> = match args.workload {
        Choice::All => Workload::ALL.to_vec(),
        Choice::W1 => vec![Workload::W1],
        Choice::W1Saturation => vec![Workload::W1Saturation],
        Choice::W2 => vec![Workload::W2],
        Choice::W3 => vec![Workload::W3],
        Choice::W4 => vec![Workload::W4],
    };
    let contestants = available(args);
    for workload in workloads {
        let mut results = Results::new();
        let players: Vec<Contestant> = contestants.iter().copied().filter(|contestant| contestant.plays(workload)).collect();
        for round in 0..args.rounds.max(1) {
            for step in 0..players.len() {
                // Nobody always comes after the same neighbour.
                let contestant = players[(step + round) % players.len()];
                let sample = measure(args, workload, contestant).with_context(|| format!("{} of {contestant}", workload.name()));
                match sample {
                    Ok(sample) => {
                        let sample = Sample { round, ..sample };
                        eprintln!(
                            "{:<14} {}/{}  {:<24} {}",
                            workload.name(),
                            round + 1,
                            args.rounds,
                            contestant.to_string(),
                            sample.line()
                        );
                        results.entry((workload, contestant)).or_default().push(sample);
                    }
                    // One that fails does not take the others with it.
                    Err(error) => eprintln!("{:<14} {}/{}  {error:#}", workload.name(), round + 1, args.rounds),
                }
            }
        }
        report::publish(args, workload, &results)?;
    }
    drop(fs::remove_dir_all(&dir));
    targets::publish(&args.common.out)
}

/// Those of the contestants that can run here.
fn available(args: &FanoutArgs) -> Vec<Contestant> {
    let setup = setup(args, false);
    let missing = |contestant: &Contestant| contestant.program(&setup).is_some_and(|program| !program.is_file());
    let (missing, here): (Vec<Contestant>, Vec<Contestant>) = args.contestants.iter().copied().partition(missing);
    for contestant in missing {
        eprintln!("{contestant}: its server is not installed; left out");
    }
    here
}

fn setup(args: &FanoutArgs, durable: bool) -> Setup {
    Setup {
        dir: args.common.dir.join("fanout"),
        nats: args.common.nats_server.clone(),
        sockudo: args.common.sockudo.clone(),
        settings: args.settings.clone(),
        durable,
        count_allocations: false,
    }
}

/// Everybody, logged in.
pub fn connect(served: &Served, contestant: Contestant, shape: &Shape) -> anyhow::Result<Box<dyn Play>> {
    Ok(match contestant.quic() {
        None => Box::new(player::Player::connect(&served.endpoint, shape)?),
        Some(kind) => Box::new(quic::Player::connect(served.target.as_ref().context("it has no UDP")?, kind, shape)?),
    })
}

fn measure(args: &FanoutArgs, workload: Workload, contestant: Contestant) -> anyhow::Result<Sample> {
    meter::settle_disk();
    if workload == Workload::W3 { measure_memory(args, contestant) } else { measure_work(args, workload, contestant) }
}

/// Whoever comes first makes a server prepare what it keeps; that is not the connections'. Its memory then, in KiB.
fn warm_up(served: &Served, contestant: Contestant, shape: &Shape) -> anyhow::Result<u64> {
    let first = Shape { connections: 2, rooms: 1, publishers: 1, run: 0x11, ..shape.clone() };
    connect(served, contestant, &first)?.play(Pace::Rate(20.0), Duration::from_millis(500), &mut Tally::new())?;
    std::thread::sleep(REST / 2);
    meter::memory_kib(served.id())
}

/// W3, with each number of connections.
fn measure_memory(args: &FanoutArgs, contestant: Contestant) -> anyhow::Result<Sample> {
    let mut sample = Sample::default();
    let mut points = Vec::new();
    for connections in &args.connections {
        let connections = usize::try_from(*connections)?;
        let rooms = connections / 5;
        let shape = Shape { connections, rooms, publishers: rooms, ..Workload::W3.shape(contestant) };
        let served = Served::start(contestant, &setup(args, false))?;
        let empty = warm_up(&served, contestant, &shape)?;
        let mut player = connect(&served, contestant, &shape)?;
        let mut tally = Tally::new();
        // Idle as a crowd is, with time for what is put off.
        player.play(Pace::Idle, REST, &mut tally)?;
        let idle = sample::per_connection(served.id(), empty, &shape)?;
        tally.clear();
        player.play(Pace::Window(64), Duration::from_secs_f64(args.seconds), &mut tally)?;
        player.play(Pace::Idle, LONG_REST, &mut tally)?;
        let after = sample::per_connection(served.id(), empty, &shape)?;
        if points.is_empty() {
            sample = Sample { idle_kib: idle, after_kib: after, deliveries: tally.deliveries, ..sample };
        }
        points.push((connections, idle, after));
    }
    if let [(few, idle, after), .., (many, idle_many, after_many)] = points[..] {
        sample.next_idle_kib = sample::slope((few, idle), (many, idle_many));
        sample.next_after_kib = sample::slope((few, after), (many, after_many));
    }
    Ok(sample)
}

fn measure_work(args: &FanoutArgs, workload: Workload, contestant: Contestant) -> anyhow::Result<Sample> {
    let setup = setup(args, workload == Workload::W4);
    let time = Duration::from_secs_f64(args.seconds);
    let syncs = if workload == Workload::W4 { sample::syncs_per_second(&setup.dir, time)? } else { f64::NAN };
    let served = Served::start(contestant, &setup)?;
    let shape = workload.shape(contestant);
    let pace = match workload.pace() {
        Pace::Window(_) => Pace::Window(args.window),
        pace => pace,
    };
    let mut tally = Tally::new();
    let empty = warm_up(&served, contestant, &shape)?;
    let mut player = connect(&served, contestant, &shape)?;
    let mut sample = Sample::default();
    player.play(pace, WARM_UP, &mut tally)?;
    tally.clear();
    let before = Marks::take(&served)?;
    player.play(pace, time, &mut tally)?;
    let marks = Marks::take(&served)?.since(&before);
    player.play(Pace::Idle, REST, &mut tally)?;
    sample.after_kib = sample::per_connection(served.id(), empty, &shape)?;
    sample.fill(workload, &marks, &tally);
    sample.syncs_per_second = syncs;
    Ok(sample)
}
