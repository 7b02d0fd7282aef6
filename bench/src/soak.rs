//! `soak`: hours of everything at once. People come over every transport, talk, fall silent, read slowly, vanish, move to
//! another transport with their connection still open; and at the end the logs are held against every ack, and nothing may be
//! left of them: no memory, no file, no task.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::json;
use tokio::task::JoinSet;
use waxwing::{
    core::{
        chain,
        frame::{ClientFrame, LogKind, Page, ServerFrame},
        id::{Digest, RoomId},
    },
    transport::{self, Kind, Target},
};

use crate::{
    Common,
    common::{client::Client, key, payload},
    fanout::contestant::{Contestant, Served, Setup, Who, Wire},
    meter,
    report::{Table, number},
};

/// Publishes of one outbox under way at most.
const WINDOW: u64 = 32;
/// Nothing takes so long unless something hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between samples of the server.
const EVERY: Duration = Duration::from_secs(5);

/// Arguments of `soak`.
#[derive(Debug, Clone, Args)]
pub struct SoakArgs {
    #[command(flatten)]
    common: Common,
    /// How long.
    #[arg(long, default_value_t = 30.0)]
    minutes: f64,
    /// People, each of whom comes and goes.
    #[arg(long, default_value_t = 200)]
    people: usize,
    /// Rooms that they are spread over.
    #[arg(long, default_value_t = 20)]
    soak_rooms: usize,
    /// Messages a second of all together, about.
    #[arg(long, default_value_t = 600.0)]
    rate: f64,
    /// Memory may grow by so many KiB in the second half.
    #[arg(long, default_value_t = 8192)]
    growth_kib: u64,
    /// Seed of what people do.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What everybody counts.
#[derive(Debug, Default)]
struct Counters {
    connects: AtomicU64,
    drops: AtomicU64,
    moves: AtomicU64,
    stalls: AtomicU64,
    acked: AtomicU64,
    read: AtomicU64,
}

/// The server at one moment.
#[derive(Debug, Clone, Copy)]
struct Look {
    minute: f64,
    memory_kib: u64,
    files: usize,
    threads: usize,
    tasks: u64,
}

pub fn run(args: &SoakArgs) -> anyhow::Result<()> {
    let dir = args.common.dir.join("soak");
    meter::check_disk(&dir)?;
    meter::raise_file_limit();
    let setup = Setup {
        dir: dir.clone(),
        nats: args.common.nats_server.clone(),
        sockudo: args.common.sockudo.clone(),
        // What is meant to be kept in memory is full soon, so that what creeps shows.
        settings: ["store.apply_bytes=4194304", "store.cache_bytes=8388608", "recent_total_bytes_max=8388608"]
            .map(str::to_owned)
            .into(),
        durable: false,
        count_allocations: false,
    };
    let served = Arc::new(Served::start(Contestant { who: Who::Waxwing, wire: Wire::Ws }, &setup)?);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let result = runtime.block_on(soak(args, &served));
    drop(runtime);
    drop(served);
    drop(fs::remove_dir_all(&dir));
    result
}

async fn soak(args: &SoakArgs, served: &Arc<Served>) -> anyhow::Result<()> {
    let begin = Instant::now();
    let end = begin + Duration::from_secs_f64(args.minutes * 60.0);
    let look = || look(served, begin);
    let rooms: Vec<RoomId> =
        (0..args.soak_rooms).map(|room| RoomId([u8::try_from(room % 251).unwrap_or_default() + 1; 16])).collect();
    let ways = Ways::of(served)?;
    let mut owner = login(&ways.0[0], 0).await?;
    for room in &rooms {
        owner.create(*room, LogKind::Room).await;
    }
    drop(owner);
    // The server counts its tasks every second.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let empty = look()?;
    let counters = Arc::new(Counters::default());
    let stop = Arc::new(AtomicBool::new(false));
    let mut people = JoinSet::new();
    let pause = Duration::from_secs_f64(args.people as f64 / args.rate.max(0.1));
    for index in 0..args.people {
        let person = Person {
            id: 1 + index as u64,
            room: rooms[index % rooms.len()],
            random: Random(args.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ ((index as u64 + 1) << 20)),
            acked: Vec::new(),
            sent: 0,
            cursor: 0,
            chain: chain::start(rooms[index % rooms.len()]),
            pause,
        };
        people.spawn(person.live(ways.clone(), Arc::clone(&counters), Arc::clone(&stop)));
    }
    let mut looks = vec![empty];
    while Instant::now() < end {
        tokio::time::sleep(EVERY.min(end.saturating_duration_since(Instant::now()))).await;
        let seen = look()?;
        looks.push(seen);
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        eprintln!(
            "{:>6.1} min  {:>7} KiB  {:>5} files  {:>3} threads  {:>5} tasks  {} connects, {} drops, {} moves, {} stalls, {} acked, {} read",
            seen.minute,
            seen.memory_kib,
            seen.files,
            seen.threads,
            seen.tasks,
            load(&counters.connects),
            load(&counters.drops),
            load(&counters.moves),
            load(&counters.stalls),
            load(&counters.acked),
            load(&counters.read)
        );
        if let Some(done) = people.try_join_next() {
            done.context("somebody failed")??;
            bail!("somebody left");
        }
    }
    stop.store(true, Ordering::Relaxed);
    let mut everybody = Vec::new();
    while let Some(person) = people.join_next().await {
        everybody.push(person.context("somebody failed")??);
    }
    let audited = audit(&ways, &rooms, &everybody).await?;
    // Whoever vanished over UDP is noticed when the connection's time is out.
    let rest = settle(served, begin, &empty).await?;
    report(args, &looks, rest, &counters, audited)
}

fn look(served: &Served, begin: Instant) -> anyhow::Result<Look> {
    Ok(Look {
        minute: begin.elapsed().as_secs_f64() / 60.0,
        memory_kib: meter::memory_kib(served.id())?,
        files: meter::open_files(served.id())?,
        threads: meter::threads(served.id())?.len(),
        tasks: served.counts().tasks,
    })
}

/// Waits until no more files and tasks are there than before anybody came.
async fn settle(served: &Served, begin: Instant, empty: &Look) -> anyhow::Result<Look> {
    // A file or two of the store may be open that was not, and the blocking pool's threads end later.
    let left = Instant::now() + Duration::from_secs(90);
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let seen = look(served, begin)?;
        if (seen.files <= empty.files + 4 && seen.tasks <= empty.tasks) || Instant::now() > left {
            return Ok(seen);
        }
    }
}

/// The ways to the server.
#[derive(Debug, Clone)]
struct Ways(Arc<Vec<(Target, Kind)>>);

impl Ways {
    fn of(served: &Served) -> anyhow::Result<Self> {
        let tls = served.target.clone().context("no target")?;
        let plain = served.plain.clone().context("no target")?;
        let ways =
            [(plain, Kind::WebSocket), (tls.clone(), Kind::WebSocket), (tls.clone(), Kind::WebTransport), (tls, Kind::Quic)];
        Ok(Self(Arc::new(ways.into())))
    }

    fn any(&self, random: &mut Random) -> &(Target, Kind) {
        &self.0[random.below(self.0.len())]
    }
}

async fn login((target, kind): &(Target, Kind), id: u64) -> anyhow::Result<Client> {
    let connection = transport::connect(target, *kind).await?;
    let mut client = Client::new(connection, key(id));
    client.log_in().await;
    Ok(client)
}

/// xorshift: repeatable, and good enough to live by.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 11
    }

    fn below(&mut self, count: usize) -> usize {
        usize::try_from(self.next() % count.max(1) as u64).unwrap_or_default()
    }
}

/// Somebody who comes and goes.
#[derive(Debug)]
struct Person {
    id: u64,
    room: RoomId,
    random: Random,
    /// Where each own message is, as the acks said: the first is at 0.
    acked: Vec<u64>,
    /// Own messages that were sent at least once.
    sent: u64,
    /// How far the room's log was read, and its chain value there.
    cursor: u64,
    chain: Digest,
    pause: Duration,
}

/// What is done on a connection, and how it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// In good order.
    Goodbye,
    /// It is dropped with whatever is under way.
    Vanish,
    /// Nothing is read for a while, and then all.
    Stall,
    /// Another connection takes over while this one is open.
    Move,
}

impl Person {
    async fn live(mut self, ways: Ways, counters: Arc<Counters>, stop: Arc<AtomicBool>) -> anyhow::Result<Self> {
        let mut moved: Option<Client> = None;
        while !stop.load(Ordering::Relaxed) {
            let way = ways.any(&mut self.random).clone();
            let mut client = match moved.take() {
                Some(client) => client,
                None => self.enter(&way, &counters).await?,
            };
            let ending = match self.random.below(10) {
                0..=2 => Ending::Goodbye,
                3..=5 => Ending::Vanish,
                6 => Ending::Stall,
                _ => Ending::Move,
            };
            let life = Duration::from_millis(500 + self.random.next() % 8000);
            self.talk(&mut client, life, &counters, &stop).await?;
            match ending {
                Ending::Goodbye => {
                    client.try_send(&ClientFrame::Close).await?;
                    client.writer.close(waxwing::core::close::CloseCode::Normal).await;
                }
                Ending::Vanish => {
                    counters.drops.fetch_add(1, Ordering::Relaxed);
                    drop(client);
                    tokio::time::sleep(Duration::from_millis(self.random.next() % 2000)).await;
                }
                Ending::Stall => {
                    counters.stalls.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(2000 + self.random.next() % 6000)).await;
                    self.talk(&mut client, Duration::from_millis(500), &counters, &stop).await?;
                    drop(client);
                }
                Ending::Move => {
                    counters.moves.fetch_add(1, Ordering::Relaxed);
                    // The new one subscribes from the cursor while the old one still delivers; what the old one has is dropped.
                    let next = ways.any(&mut self.random).clone();
                    moved = Some(self.enter(&next, &counters).await?);
                    drop(client);
                }
            }
        }
        // What is under way is decided before the end.
        let way = ways.any(&mut self.random).clone();
        let mut client = self.enter(&way, &counters).await?;
        let begin = Instant::now();
        while (self.acked.len() as u64) < self.sent {
            self.hear(&mut client, &counters).await?;
            if begin.elapsed() > PATIENCE {
                bail!("somebody's messages were not acked");
            }
        }
        Ok(self)
    }

    /// Connects, and sends again whatever was not acked.
    async fn enter(&self, way: &(Target, Kind), counters: &Counters) -> anyhow::Result<Client> {
        let mut client = login(way, self.id).await?;
        client.enter_room(self.room).await;
        client.subscribe(self.room, self.cursor).await;
        counters.connects.fetch_add(1, Ordering::Relaxed);
        for n in self.acked.len() as u64 + 1..=self.sent {
            client.try_publish(self.room, n, &self.message(n)).await?;
        }
        Ok(client)
    }

    fn message(&self, n: u64) -> Vec<u8> {
        let mut bytes = [self.id.to_le_bytes(), n.to_le_bytes()].concat();
        // Of all sizes, and the same each time.
        bytes.resize(16 + usize::try_from((self.id * 31 + n * 17) % 700).unwrap_or_default(), 0x5a);
        bytes
    }

    /// Publishes now and then, and reads.
    async fn talk(&mut self, client: &mut Client, time: Duration, counters: &Counters, stop: &AtomicBool) -> anyhow::Result<()> {
        let end = tokio::time::Instant::now() + time;
        let mut due = tokio::time::Instant::now() + self.pause.mul_f64(self.random.below(1000) as f64 / 1000.0);
        loop {
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(end) => return Ok(()),
                () = tokio::time::sleep_until(due) => {
                    due += self.pause;
                    if self.sent - (self.acked.len() as u64) < WINDOW {
                        self.sent += 1;
                        let message = self.message(self.sent);
                        client.try_publish(self.room, self.sent, &message).await?;
                    }
                }
                frame = client.try_recv() => self.take(frame?.context("the server closed the connection")?, counters)?,
            }
        }
    }

    async fn hear(&mut self, client: &mut Client, counters: &Counters) -> anyhow::Result<()> {
        let frame = client.recv().await;
        self.take(frame, counters)
    }

    fn take(&mut self, frame: ServerFrame, counters: &Counters) -> anyhow::Result<()> {
        match frame {
            ServerFrame::Deliver(page) => self.read(&page, counters),
            ServerFrame::Ack { client_seq, seq, .. } => {
                let known = self.acked.len() as u64;
                if client_seq == known + 1 {
                    self.acked.push(seq);
                    counters.acked.fetch_add(1, Ordering::Relaxed);
                } else if self.acked.get(usize::try_from(client_seq)?.wrapping_sub(1)) != Some(&seq) {
                    bail!("message {client_seq} of {} was acked at {seq}, after {known} were acked", self.id);
                }
                Ok(())
            }
            ServerFrame::Refused { why, .. } => bail!("a publish was refused: {why}"),
            ServerFrame::Failed { what, why, .. } => bail!("{what:?} was refused: {why}"),
            ServerFrame::Closing { code, .. } => bail!("the server closed the connection: {code}"),
            _ => Ok(()),
        }
    }

    /// Every page goes on where the last one ended, whatever connection it came by.
    fn read(&mut self, page: &Page, counters: &Counters) -> anyhow::Result<()> {
        if page.first != self.cursor + 1 || page.chain != self.chain {
            bail!("a page begins at {} where {} was read", page.first, self.cursor);
        }
        for item in &page.items {
            self.cursor += 1;
            self.chain = chain::next(self.room, self.chain, self.cursor, &item.envelope);
        }
        counters.read.fetch_add(page.items.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}

/// Reads all logs, and holds them against what everybody was told. Tells how many messages were acked, and are there.
async fn audit(ways: &Ways, rooms: &[RoomId], everybody: &[Person]) -> anyhow::Result<(u64, u64)> {
    let (mut acked, mut stored) = (0, 0);
    let mut reader = login(&ways.0[0], 0).await?;
    for room in rooms {
        let people: Vec<&Person> = everybody.iter().filter(|person| person.room == *room).collect();
        let wanted: u64 = people.iter().map(|person| person.sent).sum();
        reader.enter_room(*room).await;
        reader.subscribe(*room, 0).await;
        let (mut head, mut value) = (0, chain::start(*room));
        let mut next: std::collections::BTreeMap<u64, u64> = people.iter().map(|person| (person.id, 1)).collect();
        while head < wanted {
            let frame = reader.recv().await;
            let ServerFrame::Deliver(page) = frame else { continue };
            if page.room != *room {
                continue;
            }
            if page.first != head + 1 || page.chain != value {
                bail!("the log has a gap at {}", head + 1);
            }
            for item in &page.items {
                head += 1;
                value = chain::next(*room, value, head, &item.envelope);
                let bytes = payload(&item.envelope);
                let number =
                    |at: usize| bytes.get(at..).and_then(|rest| rest.first_chunk()).map(|bytes| u64::from_le_bytes(*bytes));
                let (id, n) = (number(0).context("a strange message")?, number(8).context("a strange message")?);
                let expected = next.get_mut(&id).context("a message of nobody")?;
                if n != *expected {
                    bail!("message {n} of {id} is where {expected} should be");
                }
                *expected += 1;
                let person = people.iter().find(|person| person.id == id).context("nobody")?;
                if person.acked.get(usize::try_from(n - 1)?) != Some(&head) {
                    bail!("message {n} of {id} is not where its ack said");
                }
            }
        }
        reader.send(&ClientFrame::Leave { room: *room }).await;
        acked += people.iter().map(|person| person.acked.len() as u64).sum::<u64>();
        stored += head;
    }
    Ok((acked, stored))
}

fn report(args: &SoakArgs, looks: &[Look], rest: Look, counters: &Counters, (acked, stored): (u64, u64)) -> anyhow::Result<()> {
    let empty = looks[0];
    let half = &looks[looks.len() / 2..];
    let slope = slope(half);
    let grown = slope * half.last().zip(half.first()).map_or(0.0, |(last, first)| last.minute - first.minute);
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let mut table = Table::new(&["what", "found"]);
    let mut add = |what: &str, found: String| table.row([what.to_owned(), found]);
    add("minutes", number(args.minutes));
    add("people, rooms", format!("{}, {}", args.people, args.soak_rooms));
    add("connections made", load(&counters.connects).to_string());
    add("of them vanished", load(&counters.drops).to_string());
    add("moved to another transport", load(&counters.moves).to_string());
    add("stalled readers", load(&counters.stalls).to_string());
    add("messages acked, found in the logs", format!("{acked}, {stored}"));
    add("messages read live or behind", load(&counters.read).to_string());
    add("memory before, at the end, with nobody there, KiB", {
        format!("{}, {}, {}", empty.memory_kib, looks[looks.len() - 1].memory_kib, rest.memory_kib)
    });
    add("memory's slope in the second half, KiB a minute", number(slope));
    add("files before, most, at last", {
        format!("{}, {}, {}", empty.files, looks.iter().map(|look| look.files).max().unwrap_or_default(), rest.files)
    });
    add("tasks before, most, at last", {
        format!("{}, {}, {}", empty.tasks, looks.iter().map(|look| look.tasks).max().unwrap_or_default(), rest.tasks)
    });
    let rounds: Vec<_> = looks
        .iter()
        .chain([&rest])
        .map(|look| {
            json!({ "minute": look.minute, "memory_kib": look.memory_kib, "files": look.files, "threads": look.threads, "tasks": look.tasks })
        })
        .collect();
    let settings =
        json!({ "minutes": args.minutes, "people": args.people, "rooms": args.soak_rooms, "rate": args.rate, "seed": args.seed });
    table.publish(&args.common.out, "soak", settings, rounds.into())?;
    if rest.files > empty.files + 4 {
        bail!("{} files are open, {} were before anybody came", rest.files, empty.files);
    }
    if rest.tasks > empty.tasks {
        bail!("{} tasks are left, {} were there before anybody came", rest.tasks, empty.tasks);
    }
    if grown > args.growth_kib as f64 {
        bail!("memory grew by {} KiB in the second half", number(grown));
    }
    Ok(())
}

/// KiB a minute, by least squares.
fn slope(looks: &[Look]) -> f64 {
    let count = looks.len() as f64;
    let mean = |of: fn(&Look) -> f64| looks.iter().map(of).sum::<f64>() / count;
    let memory = |look: &Look| look.memory_kib as f64;
    let (x, y) = (mean(|look| look.minute), mean(memory));
    let spread: f64 = looks.iter().map(|look| (look.minute - x).powi(2)).sum();
    let together: f64 = looks.iter().map(|look| (look.minute - x) * (memory(look) - y)).sum();
    if spread > 0.0 { together / spread } else { 0.0 }
}
