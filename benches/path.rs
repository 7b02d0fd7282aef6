//! Paths and what is chosen for them: how long messages take over a path that loses and delays, with each congestion controller
//! and with one stream or a stream for each message; and what a controller costs where nothing is lost.
//!
//! `cargo bench --bench path` prints both tables in about six minutes, with `-- brief` the parts that decide in one. A message is 300
//! bytes; times are from the moment that it was due.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    clippy::disallowed_methods,
    dead_code,
    unreachable_pub,
    reason = "a measurement, with the tests' relay"
)]

#[path = "../tests/common/relay.rs"]
mod relay;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use quinn::congestion::{BbrConfig, CubicConfig};
use relay::{Path, Relay};
use waxwing::{
    core::limits::Limits,
    server::certificate,
    transport::{Trust, quic, tls, trust},
};

const MESSAGE: usize = 300;
const SECONDS: u64 = 8;
const SEEDS: u64 = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Controller {
    Cubic,
    Bbr,
    Ours,
}

fn with(mut config: quinn::TransportConfig, controller: Controller) -> Arc<quinn::TransportConfig> {
    match controller {
        Controller::Cubic => {
            config.congestion_controller_factory(Arc::new(CubicConfig::default()));
        }
        Controller::Bbr => {
            config.congestion_controller_factory(Arc::new(BbrConfig::default()));
        }
        Controller::Ours => {}
    }
    Arc::new(config)
}

/// A connection, both ends, over a path or without one.
struct Pair {
    server: quinn::Connection,
    client: quinn::Connection,
    _ends: (quinn::Endpoint, quinn::Endpoint, Option<Relay>),
}

async fn pair(dir: &std::path::Path, controller: Controller, path: Option<Path>) -> Pair {
    let identity = certificate::development(dir, 1_800_000_000).unwrap();
    let pin = Trust::Pinned(identity.fingerprint());
    let tls = tls::server_config(tls::provider(), identity, &[b"bench"]).unwrap();
    let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(tls).unwrap();
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(with(quic::server_transport(&Limits::default()), controller));
    let accepting = quinn::Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap();
    let mut at: SocketAddr = accepting.local_addr().unwrap();
    let relay = match path {
        Some(path) => Some(Relay::start(at, path).await),
        None => None,
    };
    if let Some(relay) = &relay {
        at = relay.addr;
    }
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(trust::config(&pin, &[b"bench"]).unwrap()).unwrap();
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(quic::client_transport(&Limits::default())));
    let calling = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let accept = async { accepting.accept().await.unwrap().await.unwrap() };
    let (server, client) = tokio::join!(accept, async { calling.connect_with(config, at, "localhost").unwrap().await.unwrap() });
    Pair { server, client, _ends: (accepting, calling, relay) }
}

async fn take(mut stream: quinn::RecvStream, epoch: Instant, tell: tokio::sync::mpsc::Sender<u64>) {
    let mut message = [0; MESSAGE];
    while stream.read_exact(&mut message).await.is_ok() {
        let sent = u64::from_le_bytes(message[..8].try_into().unwrap());
        let now = epoch.elapsed().as_micros() as u64;
        if tell.send(now.saturating_sub(sent)).await.is_err() {
            return;
        }
    }
}

/// Latencies in microseconds of `rate` messages a second.
async fn latencies(pair: Pair, rate: u64, alone: bool) -> Vec<u64> {
    let epoch = Instant::now();
    let count = rate * SECONDS;
    let (tell, mut told) = tokio::sync::mpsc::channel(1024);
    let client = pair.client.clone();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        let mut streams = tokio::task::JoinSet::new();
        while let Ok(stream) = client.accept_uni().await {
            streams.spawn(take(stream, epoch, tell.clone()));
        }
    });
    let server = pair.server.clone();
    tasks.spawn(async move {
        let mut long = server.open_uni().await.unwrap();
        let mut tick = tokio::time::interval(Duration::from_micros(1_000_000 / rate));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
        for n in 0..count {
            tick.tick().await;
            let mut message = [0; MESSAGE];
            message[..8].copy_from_slice(&(n * 1_000_000 / rate).to_le_bytes());
            if alone {
                let mut stream = server.open_uni().await.unwrap();
                stream.write_all(&message).await.unwrap();
                stream.finish().unwrap();
            } else {
                long.write_all(&message).await.unwrap();
            }
        }
        std::future::pending::<()>().await;
    });
    let mut all = Vec::new();
    while all.len() < count as usize {
        all.push(told.recv().await.unwrap());
    }
    all
}

fn percentile(sorted: &[u64], permille: usize) -> f64 {
    sorted[(sorted.len() - 1) * permille / 1000] as f64 / 1000.0
}

async fn lossy(dir: &std::path::Path, rates: &[u64], losses: &[u64]) {
    println!("| messages/s | loss | controller | streams | p50 | p90 | p99 | p99.9 ms |\n|---|---|---|---|---|---|---|---|");
    for &rate in rates {
        for &loss_permille in losses {
            for controller in [Controller::Cubic, Controller::Bbr, Controller::Ours] {
                for alone in [false, true] {
                    let mut runs = tokio::task::JoinSet::new();
                    for seed in 1..=SEEDS {
                        let path = Path { loss_permille, delay: Duration::from_millis(20), seed };
                        let pair = pair(dir, controller, Some(path)).await;
                        runs.spawn(latencies(pair, rate, alone));
                    }
                    let mut all: Vec<u64> = runs.join_all().await.concat();
                    all.sort_unstable();
                    let [p50, p90, p99, p999] = [500, 900, 990, 999].map(|permille| percentile(&all, permille));
                    let streams = if alone { "one each" } else { "one" };
                    let loss = loss_permille as f64 / 10.0;
                    println!("| {rate} | {loss} % | {controller:?} | {streams} | {p50:.0} | {p90:.0} | {p99:.0} | {p999:.0} |");
                }
            }
        }
    }
}

/// CPU time of this process, in microseconds.
fn cpu_us() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<f64> =
        stat.rsplit_once(')').unwrap().1.split_whitespace().skip(11).take(2).map(|field| field.parse().unwrap()).collect();
    (fields[0] + fields[1]) * 10_000.0
}

async fn clean(dir: &std::path::Path) {
    println!("| controller | CPU-us of both ends for a message, no loss, as fast as it goes |\n|---|---|");
    for controller in [Controller::Cubic, Controller::Bbr, Controller::Ours, Controller::Cubic, Controller::Bbr, Controller::Ours]
    {
        let pair = pair(dir, controller, None).await;
        let (count, block) = (600_000, vec![7; MESSAGE * 50]);
        let before = cpu_us();
        let send = async {
            let mut stream = pair.server.open_uni().await.unwrap();
            for _ in 0..count / 50 {
                stream.write_all(&block).await.unwrap();
            }
            stream.finish().unwrap();
            stream.stopped().await.unwrap();
        };
        let receive = async {
            let mut stream = pair.client.accept_uni().await.unwrap();
            while stream.read_chunk(1 << 20, true).await.unwrap().is_some() {}
        };
        tokio::join!(send, receive);
        println!("| {controller:?} | {:.3} |", (cpu_us() - before) / f64::from(count));
    }
}

fn main() {
    let dir = std::env::temp_dir().join(format!("waxwing-bench-path-{}", std::process::id()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let asked = |name: &str| std::env::args().any(|argument| argument == name);
    if asked("brief") {
        runtime.block_on(clean(&dir));
        runtime.block_on(lossy(&dir, &[100], &[20]));
    } else if asked("--bench") {
        runtime.block_on(clean(&dir));
        runtime.block_on(lossy(&dir, &[50, 200], &[0, 20, 50]));
    }
    // Tests of all targets say nothing, and need only know that it compiles.
    let _ = std::fs::remove_dir_all(&dir);
}
