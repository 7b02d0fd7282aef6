//! Clients that share no code with the product, written from `docs/protocol.md` and `tests/vectors` alone: npm's `ws` with node's own
//! cryptography, and PyPI's `aioquic` with `cryptography`. What they cannot do, the document does not say well enough.
#![cfg(all(feature = "server", feature = "client"))]
#![allow(clippy::unwrap_used, clippy::unwrap_in_result, clippy::indexing_slicing, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use common::server::Edge;
use waxwing::{core::limits::Limits, server::certificate::cert_path};

fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers")
}

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors")
}

/// Runs it to its end beside the server; what it printed.
async fn run(mut command: Command) -> String {
    let ran = tokio::task::spawn_blocking(move || command.output()).await.unwrap();
    printed(&ran.expect("node and python3 run (Debian: apt-get install nodejs npm python3-venv)"))
}

fn printed(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Installs the locked packages of npm, unless they are there.
fn npm(dir: &Path) {
    let (lock, installed) = (dir.join("package-lock.json"), dir.join("node_modules/.package-lock.json"));
    let changed = |path: &Path| path.metadata().and_then(|data| data.modified()).ok();
    if changed(&installed) < changed(&lock) {
        let status = Command::new("npm").args(["ci", "--no-audit", "--no-fund"]).current_dir(dir).status().expect("npm runs");
        assert!(status.success(), "npm ci failed in {}", dir.display());
    }
}

/// A Python with the packages of `requirements.txt`, made once.
fn python(dir: &Path) -> PathBuf {
    let requirements = dir.join("requirements.txt");
    let wanted = fs::read(&requirements).unwrap();
    let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).join("peers-python");
    let (python, made) = (venv.join("bin/python"), venv.join("made-from.txt"));
    if fs::read(&made).is_ok_and(|made| made == wanted) {
        return python;
    }
    let run = |command: &mut Command| {
        let output = command.output().expect("python3 runs (Debian: apt-get install python3-venv)");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv));
    let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "-r"];
    run(Command::new(&python).args(install).arg(&requirements));
    fs::write(&made, wanted).unwrap();
    python
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_npms_ws_speaks_from_the_document() {
    let dir = here().join("node");
    npm(&dir);
    // The vectors name one room, so that each run needs a server of its own.
    for tls in [false, true] {
        let edge = Edge::start(Limits::default()).await;
        let addresses = edge.running.addresses();
        let url = if tls {
            format!("wss://localhost:{}/ws", addresses.tls[0].port())
        } else {
            format!("ws://localhost:{}/ws", addresses.plain[0].port())
        };
        let mut command = Command::new("node");
        command.arg("client.mjs").arg(url).arg(cert_path(&edge.dir.path().join("certs"))).arg(vectors()).current_dir(&dir);
        assert_eq!(run(command).await.trim(), "9 frames as in the vectors, 2 envelopes there and back");
        edge.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_aioquic_speaks_from_the_document() {
    let dir = here().join("python");
    let prepared = dir.clone();
    let python = tokio::task::spawn_blocking(move || python(&prepared)).await.unwrap();
    for transport in ["wt", "quic"] {
        let edge = Edge::start(Limits::default()).await;
        let port = edge.running.addresses().tls[0].port().to_string();
        let mut command = Command::new(&python);
        command.args(["-B", "client.py", transport, "localhost", &port]).arg(cert_path(&edge.dir.path().join("certs")));
        command.arg(vectors()).current_dir(&dir);
        let expected = format!("10 frames as in the vectors, 2 envelopes there and back over {transport}");
        assert_eq!(run(command).await.trim(), expected);
        edge.stop().await;
    }
}
