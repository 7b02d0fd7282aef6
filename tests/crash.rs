//! A real server process under load, killed with SIGKILL: every acked message is there when it runs again, once, and every
//! answer that makes publishing exactly-once stays what it was. The rig in `bench` does the same for as long as one likes
//! (`wax-bench audit`). And a real disk that fills up, and has space again; and what such a process asks of the system.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test's helpers fail like its tests, and say what they skip"
)]

mod common;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
};

use bytes::Bytes;
use common::{
    audit::{Plan, Server, audit},
    client::{Client, Seen},
    envelope,
};
use waxwing::{
    core::{
        close::Refusal,
        envelope::Kind as EnvelopeKind,
        frame::{ClientFrame, KeyPackage, LogKind, Publish, ServerFrame},
        id::{DeviceKey, ProducerId, RoomId},
        log::PRODUCER_RING,
        packages::Suite,
    },
    transport::Kind,
};

const ROOM: RoomId = RoomId([9; 16]);
const WAXWING: &str = env!("CARGO_BIN_EXE_waxwing");
const SERVE: [&str; 15] = [
    "serve",
    "--listen",
    "127.0.0.1:0",
    "--listen-plain",
    "127.0.0.1:0",
    "--certs-dir",
    "certs",
    "--data",
    "data",
    "--log-level",
    "warn",
    "--set",
    "limits.publishes_per_second_max=1000000",
    "--set",
    "limits.publish_burst_max=1000000",
];

fn serve(dir: &Path) -> Command {
    let mut command = Command::new(WAXWING);
    command.args(SERVE).args(["--listen-ops", "127.0.0.1:0", "--set", "disk_reserve_bytes=0"]).current_dir(dir);
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acked_survives_kill_minus_nine() {
    let dir = tempfile::tempdir().unwrap();
    let plan = Plan { run: 7, clients: 3, rooms: 1, lives: vec![300; 4] };
    let found = audit(|| serve(dir.path()), &plan, |_, _| {}).await;
    assert!(found.acked >= 4 * 300 && found.stored == found.acked, "{found:?}");
}

async fn say(client: &mut Client, client_seq: u64, envelope: Bytes) -> Result<u64, Refusal> {
    say_after(client, client_seq, 0, envelope).await
}

/// Says it as one who has processed the handshake record at `handshake`.
async fn say_after(client: &mut Client, client_seq: u64, handshake: u64, envelope: Bytes) -> Result<u64, Refusal> {
    let publish = Publish { room: ROOM, producer: ProducerId([3; 16]), client_seq, handshake, envelope };
    client.send(&ClientFrame::Publish(publish)).await;
    match client.until(|frame| matches!(frame, ServerFrame::Ack { .. } | ServerFrame::Refused { .. })).await {
        ServerFrame::Ack { seq, .. } => Ok(seq),
        ServerFrame::Refused { why, .. } => Err(why),
        other => panic!("{other:?}"),
    }
}

/// Says it again while nobody knows: after a failure a room asks its log how it stands, and decides nothing meanwhile.
async fn decided(client: &mut Client, client_seq: u64, envelope: Bytes) -> Result<u64, Refusal> {
    for _ in 0..10_000 {
        match say(client, client_seq, envelope.clone()).await {
            Err(Refusal::OutcomeUnknown) => {}
            decided => return decided,
        }
    }
    panic!("nobody ever knows")
}

fn sealed(text: &str) -> Bytes {
    envelope(EnvelopeKind::Room, ROOM, text.as_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answers_to_a_publisher_stay_the_same_over_kills_and_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let ring = PRODUCER_RING as u64;
    let mut last = ring + 6;
    let mut server = Server::start(&mut serve(dir.path())).await;
    let mut client = server.login(Kind::WebSocket, 1).await;
    client.create(ROOM, LogKind::Room).await;
    client.enter_room(ROOM).await;
    for n in 1..=last {
        assert_eq!(say(&mut client, n, sealed(&n.to_string())).await, Ok(n));
    }
    // Killed: what the server knows then, it knows from the write-ahead log. Stopped: from the history.
    for stop in [Server::kill, Server::stop, Server::kill, Server::kill, Server::stop] {
        drop(client);
        stop(&mut server);
        server = Server::start(&mut serve(dir.path())).await;
        client = server.login(Kind::Quic, 1).await;
        client.enter_room(ROOM).await;
        let (oldest, expired) = (last - ring + 1, last - ring);
        for n in [oldest, last - 1, last] {
            assert_eq!(say(&mut client, n, sealed(&n.to_string())).await, Ok(n), "a duplicate: the first one's seq");
            assert_eq!(say(&mut client, n, sealed("other")).await, Err(Refusal::Conflict), "other bytes under {n}");
            // Recognised before it is asked what its sender has processed.
            assert_eq!(say_after(&mut client, n, 7, sealed("other")).await, Err(Refusal::Conflict));
        }
        for n in [1, expired] {
            assert_eq!(say(&mut client, n, sealed(&n.to_string())).await, Err(Refusal::Expired));
            assert_eq!(say(&mut client, n, sealed("other")).await, Err(Refusal::Expired));
        }
        let next = Refusal::OutOfOrder { expected: last + 1 };
        for n in [0, last + 2, last + 100] {
            assert_eq!(say(&mut client, n, sealed("ahead")).await, Err(next));
        }
        let stale = Refusal::StaleEpoch { handshake: 0 };
        assert_eq!(say_after(&mut client, last + 1, 7, sealed("new")).await, Err(stale));
        last += 1;
        assert_eq!(say(&mut client, last, sealed(&last.to_string())).await, Ok(last), "a refusal stored nothing");
    }
    // Nothing of all that was refused is there.
    client.subscribe(ROOM, 0).await;
    let mut seen = Seen::new(ROOM);
    seen.read(&mut client, last).await;
    assert!((1..=last).map(|n| n.to_string()).eq(seen.payloads.iter().map(|bytes| String::from_utf8_lossy(bytes).into_owned())));
}

/// A server on a small disk of its own, which only its processes see by its name; `None` where such a disk cannot be made.
struct SmallDisk {
    server: Server,
    ops: String,
    /// The disk, seen from here.
    seen: PathBuf,
}

impl SmallDisk {
    async fn start(dir: &Path, megabytes: u32, set: &[&str]) -> Option<Self> {
        let data = dir.join("data");
        fs::create_dir_all(&data).unwrap();
        let user = if fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0) {
            "-m"
        } else {
            "-rm"
        };
        if !Command::new("unshare")
            .args([user, "mount", "-t", "tmpfs", "tmpfs", "data"])
            .current_dir(dir)
            .status()
            .is_ok_and(|status| status.success())
        {
            eprintln!("skipped: this system lets nobody mount a disk in a namespace of its own");
            return None;
        }
        let mut command = Command::new("unshare");
        let script = format!("mount -t tmpfs -o size={megabytes}m tmpfs data && exec \"$@\"");
        command
            .args([user, "sh", "-c", &script, "sh", WAXWING])
            .args(SERVE)
            .args(["--listen-ops", "127.0.0.1:0"])
            .current_dir(dir);
        for set in set {
            command.args(["--set", set]);
        }
        let server = Server::start(&mut command).await;
        let seen = Path::new("/proc").join(server.id().to_string()).join("root").join(data.strip_prefix("/").unwrap());
        let ops = server.ops();
        Some(Self { server, ops, seen })
    }

    /// Fills the disk until so many bytes are left.
    fn leave(&self, bytes: u64) {
        let mut ballast = fs::OpenOptions::new().create(true).append(true).open(self.seen.join("ballast")).unwrap();
        let chunk = vec![1; 64 << 10];
        while self.free() > bytes + chunk.len() as u64 {
            ballast.write_all(&chunk).unwrap();
        }
    }

    fn free(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.seen).unwrap();
        stat.f_bavail * stat.f_frsize
    }

    fn give_back(&self) {
        fs::remove_file(self.seen.join("ballast")).unwrap();
    }

    fn readiness(&self) -> String {
        let mut stream = TcpStream::connect(&self.ops).unwrap();
        write!(stream, "GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn publishers_are_refused_before_the_disk_is_full_and_accepted_when_there_is_space() {
    let dir = tempfile::tempdir().unwrap();
    let reserve = 16 << 20;
    let Some(disk) = SmallDisk::start(dir.path(), 192, &[&format!("disk_reserve_bytes={reserve}")]).await else { return };
    let mut client = disk.server.login(Kind::WebSocket, 1).await;
    client.create(ROOM, LogKind::Room).await;
    client.enter_room(ROOM).await;
    assert_eq!(say(&mut client, 1, sealed("one")).await, Ok(1));
    for round in 1..4 {
        disk.leave(reserve - (1 << 20));
        assert!(disk.free() > 1 << 20, "the disk is not full");
        for _ in 0..3 {
            assert_eq!(decided(&mut client, round + 1, sealed("more")).await, Err(Refusal::DiskFull));
        }
        assert!(disk.readiness().starts_with("HTTP/1.1 200"), "it serves, and who reads does not notice");
        disk.give_back();
        assert_eq!(decided(&mut client, round + 1, sealed("more")).await, Ok(round + 1), "stored once");
    }
    client.subscribe(ROOM, 0).await;
    Seen::new(ROOM).read(&mut client, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_that_cannot_grow_is_told_apart_from_a_store_that_cannot_write() {
    let dir = tempfile::tempdir().unwrap();
    let set = ["disk_reserve_bytes=0", "store.apply_bytes=1048576", "store.wal_bytes_max=67108864"];
    let Some(disk) = SmallDisk::start(dir.path(), 192, &set).await else { return };
    let mut client = disk.server.login(Kind::WebSocket, 1).await;
    client.create(ROOM, LogKind::Room).await;
    client.enter_room(ROOM).await;
    let large = |n: u64| envelope(EnvelopeKind::Room, ROOM, &[&n.to_le_bytes()[..], &vec![7; 50_000]].concat());
    assert_eq!(say(&mut client, 1, large(1)).await, Ok(1));
    disk.leave(0);
    let mut n = 1;
    // The log has its files already: publishing goes on, and the history fails.
    while disk.readiness().starts_with("HTTP/1.1 200") {
        n += 1;
        assert_eq!(say(&mut client, n, large(n)).await, Ok(n));
        assert!(n < 600, "the history does not notice");
    }
    let told = disk.readiness();
    assert!(told.starts_with("HTTP/1.1 503") && told.contains("the history file cannot be written"), "{told}");
    assert!(!told.contains("start again"), "{told}");
    disk.give_back();
    let tried = (0..1_000_000).find(|_| disk.readiness().starts_with("HTTP/1.1 200"));
    assert!(tried.is_some(), "it comes back by itself");
    client.subscribe(ROOM, 0).await;
    Seen::new(ROOM).read(&mut client, n).await;
}

/// The newest handshake record of the room, as who asks for it alone gets it; nothing when there is none.
async fn newest(client: &mut Client) -> Option<(u64, Bytes)> {
    client.send(&ClientFrame::Handshake { request: 1, room: ROOM, before: u64::MAX, whole: true }).await;
    let ServerFrame::Fetched { page, .. } = client.until(|frame| matches!(frame, ServerFrame::Fetched { .. })).await else {
        panic!("no page")
    };
    page.items.first().map(|item| (page.first, item.envelope.clone()))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_order_of_handshakes_survives_kills_and_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(&mut serve(dir.path())).await;
    let mut client = server.login(Kind::WebSocket, 1).await;
    client.create(ROOM, LogKind::Room).await;
    client.enter_room(ROOM).await;
    let change = |after, large: bool| common::handshake(ROOM, after, None, b"change", (if large { 2 << 20 } else { 10 }, 9));
    let mut last = 0;
    let mut handshake = 0;
    for (turn, stop) in [Server::kill, Server::stop, Server::kill, Server::kill, Server::stop].into_iter().enumerate() {
        let record = change(handshake, turn % 2 == 1);
        last += 1;
        assert_eq!(say_after(&mut client, last, handshake, record.clone()).await, Ok(last));
        let before = std::mem::replace(&mut handshake, last);
        last += 1;
        let message = sealed(&last.to_string());
        assert_eq!(say_after(&mut client, last, before, message.clone()).await, Err(Refusal::StaleEpoch { handshake }));
        assert_eq!(say_after(&mut client, last, handshake, message).await, Ok(last));
        drop(client);
        stop(&mut server);
        server = Server::start(&mut serve(dir.path())).await;
        client = server.login(Kind::Quic, 1).await;
        let proof = common::proof(ROOM, client.binding);
        client.send(&ClientFrame::Enter { room: ROOM, handshake: 0, proof }).await;
        let entered = client.until(|frame| matches!(frame, ServerFrame::Entered { .. })).await;
        assert!(matches!(entered, ServerFrame::Entered { handshake: known, .. } if known == handshake), "{entered:?}");
        assert_eq!(newest(&mut client).await, Some((handshake, record.clone())));
        assert_eq!(say_after(&mut client, handshake, before, record).await, Ok(handshake), "recognised, and stored once");
        for rival in [change(before, false), sealed("left behind")] {
            let stale = Err(Refusal::StaleEpoch { handshake });
            assert_eq!(say_after(&mut client, last + 1, before, rival).await, stale);
        }
    }
}

async fn take(client: &mut Client, device: DeviceKey) -> Option<Bytes> {
    client.send(&ClientFrame::TakeKeyPackage { request: 9, device, suite: Suite::XWing }).await;
    match client.until(|frame| matches!(frame, ServerFrame::KeyPackage { .. })).await {
        ServerFrame::KeyPackage { request: 9, result } => result.unwrap(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_key_package_is_handed_out_twice_over_kills_and_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(&mut serve(dir.path())).await;
    let mut owner = server.login(Kind::WebSocket, 1).await;
    let package = |number: u8| KeyPackage { expires_ms: u64::MAX, last_resort: number == 0, bytes: vec![number; 3_000].into() };
    let packages = (0..10).map(package).collect();
    owner.send(&ClientFrame::PublishKeyPackages { request: 3, suite: Suite::XWing, packages, replace: true }).await;
    let answer = owner.until(|frame| matches!(frame, ServerFrame::KeyPackages { .. })).await;
    assert_eq!(answer, ServerFrame::KeyPackages { request: 3, result: Ok(9) });
    let device = common::device_of(&owner.key);
    let mut taken = Vec::new();
    for stop in [Server::kill, Server::stop, Server::kill, Server::kill, Server::stop] {
        stop(&mut server);
        server = Server::start(&mut serve(dir.path())).await;
        let mut other = server.login(Kind::Quic, 2).await;
        taken.extend(take(&mut other, device).await);
        taken.extend(take(&mut other, device).await);
        let nobody = common::device_of(&common::key(77));
        assert_eq!(take(&mut other, nobody).await, None);
    }
    assert_eq!(taken, (1..10).chain([0]).map(|number| package(number).bytes).collect::<Vec<_>>());
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_server_has_no_huge_pages_whatever_the_system_gives() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&mut serve(dir.path())).await;
    let status = fs::read_to_string(format!("/proc/{}/status", server.id())).unwrap();
    assert!(status.lines().any(|line| line.split_whitespace().eq(["THP_enabled:", "0"])), "{status}");
}
