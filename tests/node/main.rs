//! Independent implementations on npm: `@hpke/core` for envelopes, `ts-mls` for groups. What they are told is in `docs/protocol.md`.
#![allow(
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test fails by panicking, and says its seed"
)]
#![cfg(feature = "client")]

mod envelopes;
mod groups;
mod posts;
#[path = "../common/seeds.rs"]
mod seeds;

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Once,
};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    text.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn array<const N: usize>(text: &str) -> [u8; N] {
    unhex(text).try_into().unwrap()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

/// `node SCRIPT` in `tests/node`, with the locked packages installed.
fn installed(script: &str) -> Command {
    static NPM: Once = Once::new();
    let dir = root().join("node");
    NPM.call_once(|| {
        let (lock, installed) = (dir.join("package-lock.json"), dir.join("node_modules/.package-lock.json"));
        let changed = |path: &Path| path.metadata().and_then(|data| data.modified()).ok();
        if changed(&installed) < changed(&lock) {
            let status =
                Command::new("npm").args(["ci", "--no-audit", "--no-fund"]).current_dir(&dir).status().expect("npm runs");
            assert!(status.success(), "npm ci failed in {}", dir.display());
        }
    });
    let mut command = Command::new("node");
    command.arg(script).current_dir(dir);
    command
}
