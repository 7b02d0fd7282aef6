//! Kills a real server process under load, again and again, and holds it to what it acked: every acked message is there at
//! the seq that was told, once, in the order of its outbox, and the chain goes on. What is wrong ends in a panic.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, sync_channel},
    },
    time::Duration,
};

use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;
use waxwing::{
    core::{
        frame::{LogKind, ServerFrame},
        id::RoomId,
    },
    transport::{self, Kind, Target, Trust, discover::discover},
};

use super::{
    client::{Client, Seen},
    key,
};

const KINDS: [Kind; 3] = [Kind::WebSocket, Kind::WebTransport, Kind::Quic];
/// How many publishes a client has under way at most; the server recognises a retry of that many.
const WINDOW: u64 = 32;
/// How long a server may take to ack what ends its life.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server process; killed when dropped.
pub struct Server {
    process: Child,
    pub target: Target,
    /// Where its health is told, once it says so.
    ops: Mutex<Receiver<String>>,
}

impl Server {
    /// Runs `command` and waits until it says where it listens without TLS, as `waxwing serve` does.
    pub async fn start(command: &mut Command) -> Self {
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(process.stdout.take().unwrap()).lines();
        let plain = out.find_map(|line| Some(line.unwrap().trim().strip_prefix("Without TLS")?.trim().to_owned()));
        let origin = format!("http://{}", plain.expect("the server says where it listens"));
        let (tell, ops) = sync_channel(1);
        // What it prints must not block it.
        std::thread::spawn(move || {
            for line in out.map_while(Result::ok) {
                if let Some(address) = line.trim().strip_prefix("Health, metrics") {
                    let _ = tell.try_send(address.trim().to_owned());
                }
            }
        });
        Self { process, target: discover(&origin, Trust::WebPki).await.unwrap(), ops: Mutex::new(ops) }
    }

    /// Where it tells its health, which it must have been asked to do; asked for once.
    pub fn ops(&self) -> String {
        self.ops.lock().unwrap().recv_timeout(PATIENCE).expect("the server says where")
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    pub async fn login(&self, kind: Kind, seed: u64) -> Client {
        let connection = transport::connect(&self.target, kind).await.unwrap();
        let mut client = Client::new(connection, key(seed));
        client.log_in().await;
        client
    }

    /// SIGTERM: it ends in order.
    pub fn stop(&mut self) {
        let asked = Command::new("kill").args(["-TERM", &self.id().to_string()]).status().unwrap();
        assert!(asked.success() && self.process.wait().unwrap().success());
    }

    /// SIGKILL, and gone.
    pub fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What is done to the server.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Distinguishes runs on the same data.
    pub run: u8,
    /// Publishers, which change their transport with every life of the server.
    pub clients: usize,
    /// Rooms that they are spread over.
    pub rooms: usize,
    /// For each life, after how many acks it is killed.
    pub lives: Vec<u64>,
}

/// What was found to be right.
#[derive(Debug, Clone, Copy, Default)]
pub struct Found {
    /// Messages that were acked.
    pub acked: u64,
    /// Messages in the logs: those, and some whose ack was lost.
    pub stored: u64,
}

struct Publisher {
    id: u64,
    room: RoomId,
    /// The seq of each acked message, by its number.
    acked: BTreeMap<u64, u64>,
}

fn payload(id: u64, n: u64) -> Vec<u8> {
    [id.to_le_bytes(), n.to_le_bytes()].concat()
}

impl Publisher {
    /// Publishes until the connection breaks or `until` is acked.
    async fn publish(&mut self, mut client: Client, until: u64, total: &watch::Sender<u64>, dead: &CancellationToken) {
        let mut next = self.acked.keys().last().map_or(1, |last| last + 1);
        loop {
            let first = self.acked.keys().last().map_or(1, |last| last + 1);
            if first > until {
                return;
            }
            while next < (first + WINDOW).min(until.saturating_add(1)) {
                if client.try_publish(self.room, next, &payload(self.id, next)).await.is_err() {
                    return;
                }
                next += 1;
            }
            // Over UDP a killed server is only silent.
            let Some(frame) = dead.run_until_cancelled(client.try_recv()).await else { return };
            match frame {
                Ok(Some(ServerFrame::Ack { client_seq, seq, .. })) => {
                    assert_eq!(*self.acked.entry(client_seq).or_insert(seq), seq, "the same answer every time");
                    total.send_modify(|total| *total += 1);
                }
                Ok(Some(ServerFrame::Refused { why, .. })) => panic!("{why}"),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }

    fn last(&self) -> u64 {
        self.acked.keys().last().copied().unwrap_or_default()
    }
}

/// Runs the plan on a server that `command` starts, and tells of every life that ended: its number, and all acks so far.
pub async fn audit(command: impl Fn() -> Command, plan: &Plan, mut progress: impl FnMut(usize, u64)) -> Found {
    let rooms: Vec<RoomId> =
        (0..plan.rooms).map(|room| RoomId([plan.run, u8::try_from(room).unwrap()].repeat(8).try_into().unwrap())).collect();
    let run = u64::from(plan.run) << 32;
    let owner = run + u64::from(u32::MAX);
    let mut publishers: Vec<Publisher> = (0..plan.clients)
        .map(|index| Publisher { id: run + index as u64, room: rooms[index % rooms.len()], acked: BTreeMap::new() })
        .collect();
    for (life, acks) in plan.lives.iter().enumerate() {
        let mut server = Server::start(&mut command()).await;
        if life == 0 {
            let mut client = server.login(Kind::WebSocket, owner).await;
            for room in &rooms {
                client.create(*room, LogKind::Room).await;
            }
        }
        publishers = live(&mut server, publishers, life, *acks).await;
        progress(life + 1, publishers.iter().map(|publisher| publisher.acked.len() as u64).sum());
    }
    verify(&Server::start(&mut command()).await, &mut publishers, &rooms, owner).await
}

/// One life: everybody publishes until so many were acked, and then it is killed.
async fn live(server: &mut Server, publishers: Vec<Publisher>, life: usize, acks: u64) -> Vec<Publisher> {
    let (total, mut reached) = watch::channel(0);
    let total = Arc::new(total);
    let dead = CancellationToken::new();
    let mut running = JoinSet::new();
    let count = publishers.len();
    for (index, mut publisher) in publishers.into_iter().enumerate() {
        // Everybody comes back over another transport.
        let mut client = server.login(KINDS[(index + life) % KINDS.len()], publisher.id).await;
        client.enter_room(publisher.room).await;
        let (total, dead) = (Arc::clone(&total), dead.clone());
        running.spawn(async move {
            publisher.publish(client, u64::MAX, &total, &dead).await;
            (index, publisher)
        });
    }
    let enough = tokio::time::timeout(PATIENCE, reached.wait_for(|total| *total >= acks)).await;
    assert!(enough.is_ok_and(|enough| enough.is_ok()), "the server acks while it lives");
    server.kill();
    dead.cancel();
    let mut ended = BTreeMap::new();
    while let Some(done) = running.join_next().await {
        let (index, publisher) = done.unwrap();
        ended.insert(index, publisher);
    }
    assert_eq!(ended.len(), count);
    ended.into_values().collect()
}

/// Everybody retries what was under way, and a little more; then the logs are read and held against what was acked.
async fn verify(server: &Server, publishers: &mut [Publisher], rooms: &[RoomId], owner: u64) -> Found {
    let mut last = Vec::new();
    for publisher in &mut *publishers {
        let until = publisher.last() + WINDOW;
        let mut client = server.login(Kind::WebSocket, publisher.id).await;
        client.enter_room(publisher.room).await;
        publisher.publish(client, until, &watch::channel(0).0, &CancellationToken::new()).await;
        assert_eq!(publisher.last(), until, "what is sent again is acked");
        last.push(until);
    }
    let mut reader = server.login(Kind::Quic, owner).await;
    let mut found = Found::default();
    for room in rooms {
        reader.enter_room(*room).await;
        reader.subscribe(*room, 0).await;
        let own = || publishers.iter().zip(&last).filter(|(publisher, _)| publisher.room == *room);
        let mut seen = Seen::new(*room);
        seen.read(&mut reader, own().map(|(_, last)| last).sum()).await;
        for (publisher, last) in own() {
            for (n, seq) in &publisher.acked {
                let there = &seen.payloads[usize::try_from(*seq).unwrap() - 1];
                assert_eq!(*there, payload(publisher.id, *n), "acked, and there");
            }
            let id = publisher.id.to_le_bytes();
            let stored = seen.payloads.iter().filter(|bytes| bytes[..8] == id).map(|bytes| bytes.to_vec());
            assert!(stored.eq((1..=*last).map(|n| payload(publisher.id, n))), "each once, in order");
            found.acked += publisher.acked.len() as u64;
        }
        found.stored += seen.head();
    }
    found
}
