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
    let setup = setup(args, workload == Workload::W4);
    meter::settle_disk();
    let time = Duration::from_secs_f64(args.seconds);
    let syncs = if workload == Workload::W4 { sample::syncs_per_second(&setup.dir, time)? } else { f64::NAN };
    let served = Served::start(contestant, &setup)?;
    let shape = workload.shape(contestant);
    let pace = match workload.pace() {
        Pace::Window(_) => Pace::Window(args.window),
        pace => pace,
    };
    let mut tally = Tally::new();
    // Whoever comes first makes a server prepare what it keeps; that is not the connections'.
    let first = Shape { connections: 2, rooms: 1, publishers: 1, run: 0x11, ..shape.clone() };
    let mut warm = connect(&served, contestant, &first)?;
    warm.play(Pace::Rate(20.0), Duration::from_millis(500), &mut tally)?;
    drop(warm);
    std::thread::sleep(REST / 2);
    let empty = meter::memory_kib(served.id())?;
    let mut player = connect(&served, contestant, &shape)?;
    let mut sample = Sample::default();
    if workload == Workload::W3 {
        // Idle as a crowd is, with time for what is put off.
        player.play(Pace::Idle, REST, &mut tally)?;
        sample.idle_kib = sample::per_connection(served.id(), empty, &shape)?;
        tally.clear();
        player.play(Pace::Window(64), time, &mut tally)?;
        sample.deliveries = tally.deliveries;
        player.play(Pace::Idle, REST * 2, &mut tally)?;
        sample.after_kib = sample::per_connection(served.id(), empty, &shape)?;
        return Ok(sample);
    }
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
