//! A real server process under load, killed with SIGKILL: every acked message is there when it runs again, once.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test's helpers fail like its tests")]

mod common;

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use common::{
    client::{Client, Seen},
    key,
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

const ROOM: RoomId = RoomId([7; 16]);
const KINDS: [Kind; 3] = [Kind::WebSocket, Kind::WebTransport, Kind::Quic];
/// How many publishes a client has under way at most; the server recognises a retry of that many.
const WINDOW: u64 = 32;

/// A server process; killed when dropped.
struct Server {
    process: Child,
    target: Target,
}

impl Server {
    async fn start(dir: &Path) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_waxwing"))
            .args(["serve", "--listen", "127.0.0.1:0", "--listen-plain", "127.0.0.1:0", "--listen-ops", "127.0.0.1:0"])
            .args(["--data", "data", "--certs-dir", "certs", "--set", "disk_reserve_bytes=0", "--log-level", "warn"])
            .args(["--set", "limits.publishes_per_second_max=1000000", "--set", "limits.publish_burst_max=1000000"])
            .current_dir(dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(process.stdout.take().unwrap()).lines();
        let plain = out.find_map(|line| Some(line.unwrap().trim().strip_prefix("Without TLS")?.trim().to_owned()));
        let origin = format!("http://{}", plain.expect("the server says where it listens"));
        // It prints nothing more of interest; what it may print must not block it.
        std::thread::spawn(move || out.for_each(drop));
        Self { process, target: discover(&origin, Trust::WebPki).await.unwrap() }
    }

    async fn login(&self, kind: Kind, seed: u64) -> Client {
        let connection = transport::connect(&self.target, kind).await.unwrap();
        let mut client = Client::new(connection, key(seed));
        client.log_in().await;
        client
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn payload(id: u64, n: u64) -> Vec<u8> {
    [id.to_le_bytes(), n.to_le_bytes()].concat()
}

/// Publishes from `from` on until the connection breaks or `until` is acked; what was acked goes into `acked`.
async fn publish(
    mut client: Client,
    id: u64,
    acked: &mut BTreeMap<u64, u64>,
    until: u64,
    total: &watch::Sender<u64>,
    dead: &CancellationToken,
) {
    let mut next = acked.keys().last().map_or(1, |last| last + 1);
    loop {
        let first = acked.keys().last().map_or(1, |last| last + 1);
        if first > until {
            return;
        }
        while next < (first + WINDOW).min(until.saturating_add(1)) {
            if client.try_publish(ROOM, next, &payload(id, next)).await.is_err() {
                return;
            }
            next += 1;
        }
        // Over UDP a killed server is only silent.
        let Some(frame) = dead.run_until_cancelled(client.try_recv()).await else { return };
        match frame {
            Ok(Some(ServerFrame::Ack { client_seq, seq, .. })) => {
                assert_eq!(*acked.entry(client_seq).or_insert(seq), seq, "the same answer every time");
                total.send_modify(|total| *total += 1);
            }
            Ok(Some(ServerFrame::Refused { why, .. })) => panic!("{why}"),
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => return,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acked_survives_kill_minus_nine() {
    let dir = tempfile::tempdir().unwrap();
    let mut acked: Vec<BTreeMap<u64, u64>> = vec![BTreeMap::new(); KINDS.len()];
    for round in 0..4 {
        let mut server = Server::start(dir.path()).await;
        if round == 0 {
            server.login(Kind::WebSocket, 100).await.create(ROOM, LogKind::Room).await;
        }
        let (total, mut reached) = watch::channel(0);
        let dead = CancellationToken::new();
        let mut publishers = JoinSet::new();
        for (index, known) in acked.iter().enumerate() {
            // Everybody comes back over another transport.
            let kind = KINDS[(index + round) % KINDS.len()];
            let id = index as u64;
            let mut client = server.login(kind, id).await;
            client.enter_room(ROOM).await;
            let (mut known, total, dead) = (known.clone(), total.clone(), dead.clone());
            publishers.spawn(async move {
                publish(client, id, &mut known, u64::MAX, &total, &dead).await;
                (index, known)
            });
        }
        let enough = tokio::time::timeout(Duration::from_secs(30), reached.wait_for(|total| *total >= 300)).await;
        assert!(enough.is_ok_and(|enough| enough.is_ok()), "the server acks while it lives");
        server.process.kill().unwrap();
        server.process.wait().unwrap();
        dead.cancel();
        while let Some(done) = publishers.join_next().await {
            let (index, known) = done.unwrap();
            acked[index] = known;
        }
    }
    let server = Server::start(dir.path()).await;
    // Everybody retries what it had under way, and a little more; then the log is read.
    let mut last = Vec::new();
    for (index, known) in acked.iter_mut().enumerate() {
        let id = index as u64;
        let until = known.keys().last().map_or(0, |last| *last) + WINDOW;
        let mut client = server.login(Kind::WebSocket, id).await;
        client.enter_room(ROOM).await;
        publish(client, id, known, until, &watch::channel(0).0, &CancellationToken::new()).await;
        last.push(until);
    }
    let mut reader = server.login(Kind::Quic, 100).await;
    reader.enter_room(ROOM).await;
    reader.subscribe(ROOM, 0).await;
    let mut seen = Seen::new(ROOM);
    seen.read(&mut reader, last.iter().sum()).await;
    for (index, known) in acked.iter().enumerate() {
        let id = index as u64;
        for (n, seq) in known {
            assert_eq!(seen.payloads[usize::try_from(*seq).unwrap() - 1], payload(id, *n), "acked, and there");
        }
        let own = seen.payloads.iter().filter(|bytes| bytes[..8] == id.to_le_bytes());
        assert!(own.map(|bytes| bytes.to_vec()).eq((1..=last[index]).map(|n| payload(id, n))), "each once, in order");
    }
}
