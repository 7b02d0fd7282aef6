//! Real browsers on a real edge: what people see. The scenarios are in `tests/browser/suite.mjs`,
//! which protocols carry them in `tls.mjs`, and what a page does beside talking in `page.mjs`.
#![cfg(all(feature = "server", feature = "client"))]
#![expect(clippy::print_stderr, reason = "a test tells what it does")]

use std::{
    path::Path,
    process::Command,
    sync::{Mutex, PoisonError},
};

/// Tests that install the same packages, or start browsers, wait for each other.
static ONE: Mutex<()> = Mutex::new(());

#[test]
#[cfg_attr(not(waxwing_page), ignore = "this build has no page: test with WAXWING_PAGE=1, or with --release")]
fn people_see_what_they_should() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser");
    install(&dir);
    node(&dir, "suite.mjs");
}

#[test]
#[cfg_attr(not(waxwing_page), ignore = "this build has no page: test with WAXWING_PAGE=1, or with --release")]
fn the_page_draws_in_portions_and_reads_codes() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser");
    install(&dir);
    node(&dir, "page.mjs");
}

#[test]
#[cfg_attr(not(waxwing_page), ignore = "this build has no page: test with WAXWING_PAGE=1, or with --release")]
fn browsers_use_http2_and_post_quantum_keys() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser");
    install(&dir);
    node(&dir, "tls.mjs");
}

/// Prints what sealing, opening and coming in cost in a browser.
#[test]
#[ignore = "measures: cargo test --test browser -- --ignored figures, in a build that has the page"]
fn figures() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser");
    install(&dir);
    node(&dir, "figures.mjs");
}

#[test]
fn the_pages_logic_holds() {
    node(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser"), "unit.test.mjs");
}

fn node(dir: &Path, suite: &str) {
    let status = Command::new("node")
        .args(["--experimental-websocket", "--test", "--test-reporter=spec", suite])
        .current_dir(dir)
        .env("EDGE_BINARY", env!("CARGO_BIN_EXE_waxwing"))
        .status()
        .expect("node runs (Debian: apt-get install nodejs npm chromium)");
    assert!(status.success(), "{suite} failed");
}

/// Installs the locked packages, unless they are there.
fn install(dir: &Path) {
    let (lock, installed) = (dir.join("package-lock.json"), dir.join("node_modules/.package-lock.json"));
    let changed = |path: &Path| path.metadata().and_then(|data| data.modified()).ok();
    if changed(&installed) >= changed(&lock) && installed.exists() {
        return;
    }
    eprintln!("installing the packages of {}", dir.display());
    let status = Command::new("npm").args(["ci", "--no-audit", "--no-fund"]).current_dir(dir).status().expect("npm runs");
    assert!(status.success(), "npm ci failed in {}", dir.display());
}
