//! A real server in this process, on ports of its own, reached over any transport.

use std::{net::SocketAddr, time::Duration};

use waxwing::{
    config::Config,
    core::{frame::Resume, limits::Limits},
    server::{self, Running},
    transport::{self, Connection, Kind, Target, Trust, connect::Dial, discover::discover, memory},
};

use super::relay::Relay;

/// What fits between the two ends of the memory transport.
const MEMORY_BYTES: usize = 16 << 10;

/// A server, and the directory it lives in.
pub struct Edge {
    pub running: Running,
    pub dir: tempfile::TempDir,
    /// How clients reach it.
    pub target: Target,
    limits: Limits,
}

impl Edge {
    pub async fn start(limits: Limits) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), limits).await
    }

    /// On the data that another one left.
    pub async fn start_in(dir: tempfile::TempDir, limits: Limits) -> Self {
        Self::start_with(dir, limits, |_| {}).await
    }

    /// With further settings.
    pub async fn start_with(dir: tempfile::TempDir, limits: Limits, set: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config {
            listen: vec!["127.0.0.1:0".parse().unwrap()],
            listen_plain: vec!["127.0.0.1:0".parse().unwrap()],
            listen_ops: vec!["127.0.0.1:0".parse().unwrap()],
            data: dir.path().join("data"),
            certs_dir: dir.path().join("certs"),
            disk_reserve_bytes: 0,
            drain_timeout_ms: 5000,
            shards: 3,
            limits: limits.clone(),
            ..Config::default()
        };
        set(&mut config);
        let running = server::start(config).await.unwrap();
        let target = discover(&format!("http://{}", running.addresses().plain[0]), Trust::WebPki).await.unwrap();
        Self { running, dir, target, limits }
    }

    /// Stops it in order; its directory stays.
    pub async fn stop(self) -> tempfile::TempDir {
        self.running.shutdown().await;
        self.dir
    }

    /// A connection on which nothing was said.
    pub async fn connect(&self, kind: Kind) -> Connection {
        if kind == Kind::Memory {
            let (client, mut server) = memory::pair(MEMORY_BYTES, self.limits.frame_bytes_max);
            server.reader.set_frame_max(self.limits.unauthenticated_bytes_max);
            self.running.attach(server).unwrap();
            return client;
        }
        let connect = transport::connect(&self.target, kind);
        tokio::time::timeout(Duration::from_secs(20), connect).await.expect("the server answers").unwrap()
    }

    /// Scheme and authority, without TLS.
    pub fn origin(&self) -> String {
        format!("http://{}", self.running.addresses().plain[0])
    }

    /// As [`Edge::connect`], by a client that does not know lanes.
    pub async fn connect_single(&self, kind: Kind) -> Connection {
        let connect = transport::connect::connect_single(&self.target, kind);
        tokio::time::timeout(Duration::from_secs(20), connect).await.expect("the server answers").unwrap()
    }

    /// As [`Edge::connect`], through a relay.
    pub async fn connect_through(&self, relay: &Relay, kind: Kind) -> Connection {
        let target = through(relay, &self.target);
        let connect = transport::connect(&target, kind);
        tokio::time::timeout(Duration::from_secs(20), connect).await.expect("the server answers").unwrap()
    }

    /// A connection over raw QUIC through a relay, and whether the server took the resume in its first packets.
    pub async fn connect_resuming(&self, relay: &Relay, resume: &Resume) -> (Connection, bool) {
        let target = through(relay, &self.target);
        let connect = transport::connect_resuming(&target, resume);
        tokio::time::timeout(Duration::from_secs(20), connect).await.expect("the server answers").unwrap()
    }

    /// Where it listens for QUIC.
    pub fn udp(&self) -> SocketAddr {
        self.running.addresses().tls[0]
    }

    /// Everything that is counted.
    pub fn metrics(&self) -> String {
        self.running.shared().metrics.encode()
    }

    /// The value of a metric; its labels belong to its name.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.metrics();
        let line = text.lines().find(|line| line.split(' ').next() == Some(name));
        line.unwrap_or_else(|| panic!("no metric {name} in\n{text}")).rsplit(' ').next().unwrap().parse().unwrap()
    }
}

/// The same edge, with its UDP behind a relay.
pub fn through(relay: &Relay, target: &Target) -> Target {
    let quic = Some(Dial { host: relay.addr.ip().to_string(), port: relay.addr.port() });
    Target { quic, ..target.clone() }
}
