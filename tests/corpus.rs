//! Replays every committed fuzz input, so that what a fuzzer once found stays fixed.

#![expect(clippy::indexing_slicing, clippy::print_stdout, reason = "a test fails by panicking, and says its file")]

#[cfg(feature = "seal")]
#[path = "../fuzz/announcement.rs"]
mod announcement;
#[path = "../fuzz/bodies.rs"]
mod bodies;
#[cfg(feature = "seal")]
#[path = "../fuzz/evidence.rs"]
mod evidence;
#[cfg(feature = "seal")]
#[path = "../fuzz/group.rs"]
mod group;
#[cfg(feature = "seal")]
#[path = "../fuzz/handed.rs"]
mod handed;
#[path = "wire/samples.rs"]
mod samples;

use std::{fs, path::PathBuf};

use waxwing::engine::embedded::chunk;

fn corpus(target: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "fuzz", "corpus", target].iter().collect()
}

#[test]
fn the_committed_corpus_passes() {
    let targets = bodies::TARGETS.into_iter();
    #[cfg(feature = "seal")]
    let targets = targets.chain([
        ("group", group::group as fn(&[u8])),
        ("evidence", evidence::evidence),
        ("announcement", announcement::announcement),
        ("handed", handed::handed),
    ]);
    for (target, body) in targets {
        let mut files: Vec<PathBuf> = fs::read_dir(corpus(target)).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        assert!(!files.is_empty(), "no corpus for {target}");
        for file in files {
            // The name shows when the body panics.
            println!("{}", file.display());
            body(&fs::read(&file).unwrap());
        }
    }
}

/// Inputs that do not decode any more say little: a fuzzer that begins with them stays outside.
#[test]
fn the_seeds_are_of_todays_formats() {
    let mut old = Vec::new();
    seeds(|target, name, bytes| {
        if fs::read(corpus(target).join(&name)).ok().as_deref() != Some(bytes) {
            old.push(format!("{target}/{name}"));
        }
    });
    assert!(old.is_empty(), "cargo test --features test-utils --test corpus -- --ignored writes them anew: {old:?}");
}

#[test]
#[ignore = "writes into fuzz/corpus, when a format changes"]
fn write_the_seeds() {
    seeds(|target, name, bytes| {
        fs::create_dir_all(corpus(target)).unwrap();
        fs::write(corpus(target).join(name), bytes).unwrap();
    });
}

/// The first inputs: target, name, bytes.
fn seeds(mut each: impl FnMut(&str, String, &[u8])) {
    let mut write = |target: &str, name: String, bytes: &[u8]| each(target, name.replace(' ', "-"), bytes);
    for (number, (name, frame)) in samples::client().into_iter().enumerate() {
        write("client_frame", format!("seed-{number:02}-{name}"), &frame.encode());
    }
    for (number, (name, frame)) in samples::server().into_iter().enumerate() {
        write("server_frame", format!("seed-{number:02}-{name}"), &frame.encode());
    }
    let mut stream = Vec::new();
    for (_, frame) in samples::client() {
        waxwing::core::frame::put_delimited(&mut stream, &frame.encode());
    }
    write("client_frame", "seed-stream".to_owned(), &stream);
    for kind in 1..=7_u8 {
        for suite in [1_u8, 2] {
            let mut bytes = vec![1, kind, suite, 0];
            bytes.resize(48 + if suite == 1 { 32 } else { 1120 } + 16, kind);
            write("envelope", format!("seed-{kind}-{suite}"), &bytes);
        }
    }
    for (name, lens) in [("one", vec![1]), ("small", vec![30; 20]), ("large", vec![4_096, 0, 200])] {
        let envelopes: Vec<Vec<u8>> = lens.into_iter().map(|len| vec![7; len]).collect();
        let chain = Some(waxwing::core::id::Digest([3; 32]));
        let items: Vec<_> = envelopes.iter().map(|envelope| chunk::Item { time_ms: 1_000, envelope, chain }).collect();
        let mut bytes = vec![0; chunk::encoded_len(5, &items)];
        let (log, before) = (waxwing::core::id::LogId([1; 16]), waxwing::core::id::Digest([2; 32]));
        chunk::encode(log, 5, before, &items, &mut bytes);
        write("chunk", format!("seed-{name}"), &[&5_u64.to_le_bytes()[..], &bytes].concat());
    }
    let publish_all = [0, 0, 0, 9].repeat(90);
    let retries: Vec<u8> = (0..70).flat_map(|back| [1, 0, back]).collect();
    for (name, ops) in [
        ("in-order", [&publish_all[..40], &[5; 10]].concat()),
        ("retries", [&publish_all[..], &[5; 40], &retries[..]].concat()),
        ("conflicts", vec![0, 1, 0, 5, 2, 1, 0, 6, 3, 1, 2, 7, 4, 1, 0, 8, 5, 1, 1, 0]),
        ("taken-back", vec![0, 0, 0, 1, 0, 1, 0, 2, 7, 7, 0, 0, 0, 3, 5, 1, 0, 0]),
        ("failed", vec![0, 0, 0, 1, 0, 1, 0, 2, 0, 2, 0, 3, 8, 2, 1, 0, 0, 1, 1, 0, 0, 2, 0, 3, 5]),
        ("resumes", {
            let resume = |how: u8| [250, how, 0, 0, how];
            [&publish_all[..20], &[5; 5], &(0..64).flat_map(resume).collect::<Vec<_>>(), &[250, 0, 250, 1, 250, 1, 1, 0, 3, 5]]
                .concat()
        }),
        ("frames", vec![19, 11, 0xef, 0xfd, 0xb6, 0xf5, 0x0d, 0, 0, 0, 1, 5, 9, 12]),
    ] {
        write("session_ops", format!("seed-{name}"), &ops);
    }
    #[cfg(feature = "seal")]
    {
        let [file, body] = evidence::sample().expect("it can be made");
        write("evidence", "seed-file".to_owned(), &[&[0], &file[..]].concat());
        write("evidence", "seed-unsigned".to_owned(), &[&[1], &body[..]].concat());
        let samples = announcement::samples().expect("they can be made");
        for (name, bytes) in ["seed-announcement", "seed-shared", "seed-address", "seed-post"].into_iter().zip(&samples) {
            write("announcement", name.to_owned(), bytes);
        }
        for (name, bytes) in handed::samples() {
            write("handed", format!("seed-{name}"), &bytes);
        }
        let scene = group::scene();
        for (number, record) in [0, 1].into_iter().zip(&scene.records) {
            write("group", format!("seed-record-{number}"), &[&[0], &record.encode()[..]].concat());
        }
        for what in 1..6 {
            write("group", format!("seed-whole-{what}"), &[what]);
            write("group", format!("seed-begin-{what}"), &[what, 5, 0, 1]);
            write("group", format!("seed-middle-{what}"), &[what, 100, 1, 0x80, 200, 2, 4]);
        }
    }
    for (name, bytes) in lanes() {
        write("merge", format!("seed-{name}"), &bytes);
    }
    let batches: Vec<u8> = (0..40_u8).flat_map(|n| [0, n.wrapping_mul(7), n % 5, n]).collect();
    for (name, log) in [
        ("whole", [&[0][..], &batches].concat()),
        ("changed", [&[0][..], &batches, &[1, 0x40, 0x10, 0xff]].concat()),
        ("changed-header", [&[0][..], &batches, &[1, 0x10, 0, 0xff, 1, 0x10, 2, 0xff]].concat()),
        ("records", [&[1, 0, 0, 0, 0][..], &[77, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], &[0; 90]].concat()),
        ("file", [&[2][..], b"waxwal\r\n", &[1, 0, 0, 0], &[0; 600]].concat()),
    ] {
        write("wal", format!("seed-{name}"), &log);
    }
}

/// Pieces of lanes as `bodies::merge` reads them: a subscription and three pages, in order and not.
fn lanes() -> Vec<(&'static str, Vec<u8>)> {
    use waxwing::core::{
        frame::{Item, Page, Position, ServerFrame},
        id::{Digest, LogId, RoomId},
        lane::put_mark,
    };
    let (room, position) = (RoomId([1; 16]), Position { log: LogId([2; 16]), head: 9, floor: 1 });
    let chain = Digest([3; 32]);
    let piece = |lane: u8, bytes: &[u8]| [&[lane, u8::try_from(bytes.len()).expect("seeds are short")], bytes].concat();
    let control = |frame: ServerFrame| {
        let mut bytes = Vec::new();
        waxwing::core::frame::put_delimited(&mut bytes, &frame.encode());
        piece(0, &bytes)
    };
    let page = |lane: u8, announced: u64, first: u64| {
        let items = vec![Item { time_ms: 1, envelope: vec![7; 9].into() }; 2];
        let frame = ServerFrame::Deliver(Page { room, position, first, chain, items }).encode();
        let mut bytes = Vec::new();
        put_mark(&mut bytes, announced, frame.len());
        bytes.extend_from_slice(&frame);
        piece(lane, &bytes)
    };
    let subscribed = || control(ServerFrame::Subscribed { room, after: 0, chain, position });
    let deleted = control(ServerFrame::Deleted { room });
    let ephemeral = {
        let mut bytes = Vec::new();
        waxwing::core::frame::put_delimited(&mut bytes, &ServerFrame::Ephemeral { envelope: vec![5; 20].into() }.encode());
        piece(1, &bytes)
    };
    vec![
        ("in-order", [subscribed(), page(3, 1, 1), page(3, 1, 3), page(4, 1, 5), ephemeral, vec![2, 0]].concat()),
        ("not", [page(3, 1, 5), page(4, 1, 3), subscribed(), page(5, 1, 1), vec![2, 1]].concat()),
        ("stale", [subscribed(), page(3, 1, 1), subscribed(), page(4, 1, 3), page(3, 2, 1), deleted, page(3, 2, 3)].concat()),
    ]
}
