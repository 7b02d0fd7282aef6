//! A real server process under load, killed with SIGKILL: every acked message is there when it runs again, once. The rig in
//! `bench` does the same for as long as one likes (`wax-bench audit`).

mod common;

use std::process::Command;

use common::audit::{Plan, audit};

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acked_survives_kill_minus_nine() {
    let dir = tempfile::tempdir().unwrap();
    let command = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_waxwing"));
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--listen-plain", "127.0.0.1:0", "--listen-ops", "127.0.0.1:0"])
            .args(["--data", "data", "--certs-dir", "certs", "--set", "disk_reserve_bytes=0", "--log-level", "warn"])
            .args(["--set", "limits.publishes_per_second_max=1000000", "--set", "limits.publish_burst_max=1000000"])
            .current_dir(dir.path());
        command
    };
    let plan = Plan { run: 7, clients: 3, rooms: 1, lives: vec![300; 4] };
    let found = audit(command, &plan, |_, _| {}).await;
    assert!(found.acked >= 4 * 300 && found.stored == found.acked, "{found:?}");
}
