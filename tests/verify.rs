//! `waxwing verify` on files: what it says, and whether it succeeds.
#![cfg(all(feature = "server", feature = "client"))]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking, and says what it does")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use waxwing::{
    client::{
        evidence::{Contradicted, Evidence, Finding, Said},
        records::Who,
    },
    core::{
        chain,
        id::{Digest, LogId, RoomId},
    },
    seal::identity::Identity,
};

/// A device's file of a log of these records.
fn file(directory: &Path, name: &str, records: &[u8], said: Option<Said>) -> PathBuf {
    let (room, log) = (RoomId([1; 16]), LogId([2; 16]));
    let identity = Identity::generate(&mut rand_core::UnwrapErr(getrandom::SysRng), 0);
    let mut chains = vec![chain::start(room)];
    for (seq, record) in (1..).zip(records) {
        chains.push(chain::next(room, *chains.last().unwrap(), seq, &[*record]));
    }
    let (head, newest) = (records.len() as u64, *chains.last().unwrap());
    let told = said.map(|said| Finding::Server(Contradicted { log, at_ms: 5, head, chain: newest, said }));
    let evidence = Evidence {
        room,
        log,
        made_ms: 6,
        by: Who { device: identity.device(), user: identity.user() },
        first: 0,
        chains,
        epoch: Some((1, Digest([3; 32]))),
        findings: told.into_iter().collect(),
        certificates: vec![(identity.device(), identity.certificate().statement())],
    };
    let path = directory.join(name);
    fs::write(&path, evidence.encode(&identity)).unwrap();
    path
}

/// Whether it succeeds, and what it prints.
fn verify(files: &[&Path]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_waxwing")).arg("verify").args(files).env_clear().output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

#[test]
fn verify_says_what_holds_and_succeeds_only_then() {
    let home = tempfile::tempdir().unwrap();
    let make = |name: &str, records: &[u8], said| file(home.path(), name, records, said);
    let (one, more, other) = (make("one", &[1, 2, 3], None), make("more", &[1, 2, 3, 4], None), make("other", &[1, 9, 3], None));
    let (told, made_up) = (make("told", &[1, 2, 3], Some(Said::Head(2))), make("made up", &[1, 2, 3], Some(Said::Head(3))));
    for (files, holds, said) in [
        (vec![&one], true, "Nothing contradicted"),
        (vec![&one, &more], true, "the same history up to 3"),
        (vec![&one, &other], false, "the same up to 1, and differ from 2 on"),
        (vec![&told], true, "this device's word"),
        (vec![&made_up], false, "DOES NOT HOLD"),
        (vec![&one, &made_up], false, "the same history up to 3"),
    ] {
        let files: Vec<_> = files.iter().map(|path| path.as_path()).collect();
        let (success, text) = verify(&files);
        assert!(success == holds && text.contains(said), "{files:?}: {text}");
    }
    let mut changed = fs::read(&one).unwrap();
    *changed.last_mut().unwrap() ^= 1;
    fs::write(&other, changed).unwrap();
    assert!(matches!(verify(&[&other]), (false, text) if text.contains("signature does not verify")), "of who made it");
    assert!(!verify(&[home.path().join("none").as_path()]).0);
}
