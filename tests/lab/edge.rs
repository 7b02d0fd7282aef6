//! A server at its end of a link, and how clients at the other end reach it.

use std::{path::Path, thread::JoinHandle};

use tokio_util::sync::CancellationToken;
use waxwing::{
    config::Config,
    core::limits::Limits,
    server,
    transport::{Target, Trust, discover::discover},
};

use super::{
    link::{Conditions, End},
    nets::{Lab, SERVER},
};

pub struct Edge {
    pub lab: Lab,
    pub origin: String,
    pub trust: Trust,
    stop: CancellationToken,
    serving: Option<JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

impl Edge {
    /// A link, and a server with an empty store behind it. An error says why there can be no link here.
    pub fn start(seed: u64, conditions: Conditions) -> Result<Self, String> {
        Self::behind(Lab::new(seed, conditions)?)
    }

    /// A server behind that link.
    pub fn behind(lab: Lab) -> Result<Self, String> {
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let config = config(dir.path());
        let trust = Trust::File(config.cert.clone().expect("it was made"));
        let stop = CancellationToken::new();
        let (tell, told) = std::sync::mpsc::channel();
        let stopped = stop.clone();
        let serving = lab.run(End::Server, move || async move {
            let running = server::start(config).await.expect("the server starts");
            tell.send(running.addresses().tls[0].port()).expect("somebody waits for it");
            stopped.cancelled().await;
            running.shutdown().await;
        });
        let port = told.recv().map_err(|_| "the server did not start".to_owned())?;
        Ok(Self { lab, origin: format!("https://{SERVER}:{port}"), trust, stop, serving: Some(serving), _dir: dir })
    }

    /// As [`Edge::start`], for a test: says why it is skipped.
    pub fn start_or_skip(seed: u64, conditions: Conditions) -> Option<Self> {
        match Self::start(seed, conditions) {
            Ok(edge) => Some(edge),
            Err(why) => {
                println!("SKIPPED: network namespaces or TUN devices cannot be made here: {why}");
                None
            }
        }
    }

    /// Runs clients at their end until they are done.
    pub fn clients<T, F>(&self, make: impl FnOnce(Reach) -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T>,
    {
        self.at(End::Client, make).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Runs clients at an end: at the server's nothing of theirs is over the link.
    pub fn at<T, F>(&self, end: End, make: impl FnOnce(Reach) -> F + Send + 'static) -> JoinHandle<T>
    where
        T: Send + 'static,
        F: Future<Output = T>,
    {
        let (origin, trust) = (self.origin.clone(), self.trust.clone());
        self.lab.run(end, move || async move {
            let target = discover(&origin, trust).await.expect("the server is there");
            make(Reach { origin, target }).await
        })
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(serving) = self.serving.take() {
            // Its panic was printed, and a test's clients have noticed.
            let _ = serving.join();
        }
    }
}

/// How a client reaches the server.
#[derive(Debug, Clone)]
pub struct Reach {
    pub origin: String,
    pub target: Target,
}

fn config(dir: &Path) -> Config {
    let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    let made = rcgen::generate_simple_self_signed([SERVER.to_owned(), "localhost".to_owned()]).expect("a certificate");
    std::fs::write(&cert, made.cert.pem()).expect("a directory of our own");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("a directory of our own");
    Config {
        listen: vec![format!("{SERVER}:0").parse().expect("an address")],
        listen_plain: Vec::new(),
        listen_ops: Vec::new(),
        public_names: vec![SERVER.into(), "localhost".into()],
        cert: Some(cert),
        key: Some(key),
        data: dir.join("data"),
        certs_dir: dir.join("certs"),
        disk_reserve_bytes: 0,
        drain_timeout_ms: 2000,
        limits: Limits { publishes_per_second_max: 1_000_000, publish_burst_max: 1_000_000, ..Limits::default() },
        ..Config::default()
    }
}
