//! The wire: every frame's bytes as committed, round trips, mutated bytes, and frames that arrive in pieces.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod samples;

use std::{collections::BTreeSet, fmt::Write as _, fs, path::PathBuf};

use bytes::Bytes;
use proptest::prelude::*;
use waxwing::core::{
    close::CloseCode,
    frame::{self, ClientFrame, DecodeError, Item, Operation, Page, Position, Publish, ServerFrame},
    id::{Digest, LogId, ProducerId, RoomId},
};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// `direction name | hex | debug`, a frame a line.
fn listing() -> String {
    let mut text = String::from(
        "# One frame a line: direction and name | bytes without length prefix, hex | the frame in Rust's words.\n\
         # Written by `WAXWING_TEST_BLESS=1 cargo test --test wire`. A changed line is a changed protocol.\n",
    );
    for (name, frame) in samples::client() {
        writeln!(text, "client {name} | {} | {frame:?}", hex(&frame.encode())).unwrap();
    }
    for (name, frame) in samples::server() {
        writeln!(text, "server {name} | {} | {frame:?}", hex(&frame.encode())).unwrap();
    }
    text
}

fn vectors() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "vectors", "frames.txt"].iter().collect()
}

#[test]
fn every_frame_has_the_committed_bytes() {
    if std::env::var_os("WAXWING_TEST_BLESS").is_some() {
        fs::write(vectors(), listing()).unwrap();
    }
    let committed = fs::read_to_string(vectors()).unwrap();
    for (want, have) in committed.lines().zip(listing().lines()) {
        assert_eq!(want, have);
    }
    assert_eq!(committed, listing());
}

#[test]
fn the_committed_bytes_decode() {
    let committed = fs::read_to_string(vectors()).unwrap();
    for line in committed.lines().filter(|line| !line.starts_with('#')) {
        let mut columns = line.splitn(3, " | ");
        let (name, bytes, debug) = (columns.next().unwrap(), unhex(columns.next().unwrap()), columns.next().unwrap());
        let decoded = match name.split_once(' ').unwrap().0 {
            "client" => format!("{:?}", ClientFrame::decode(&bytes).unwrap()),
            _ => format!("{:?}", ServerFrame::decode(&bytes).unwrap()),
        };
        assert_eq!(decoded, debug, "{name}");
    }
}

#[test]
fn the_samples_hold_every_variant() {
    let discriminants = |frames: Vec<Bytes>| frames.iter().map(|frame| frame[0]).collect::<BTreeSet<u8>>();
    let client = discriminants(samples::client().iter().map(|(_, frame)| frame.encode()).collect());
    let server = discriminants(samples::server().iter().map(|(_, frame)| frame.encode()).collect());
    // The next number is no frame: so these are all.
    for (count, is_frame) in [
        (client.len(), (|bytes| !matches!(ClientFrame::decode(bytes), Err(DecodeError::Malformed(_)))) as fn(&[u8]) -> bool),
        (server.len(), |bytes| !matches!(ServerFrame::decode(bytes), Err(DecodeError::Malformed(_)))),
    ] {
        let mut bytes = vec![0; 4_096];
        bytes[0] = u8::try_from(count).unwrap();
        assert!(!is_frame(&bytes), "a frame {count} has no sample");
    }
    assert_eq!(client, (0..19).collect());
    assert_eq!(server, (0..19).collect());
}

#[test]
fn the_document_lists_every_refusal_and_close_code() {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "docs", "protocol.md"].iter().collect();
    let document = fs::read_to_string(path).unwrap();
    for why in samples::refusals() {
        let frame = ServerFrame::Failed { room: RoomId([0; 16]), what: Operation::Create, why }.encode();
        let row = format!("| {} | `{}` |", frame[18], why.name());
        assert!(document.contains(&row), "missing {row}");
    }
    for code in CloseCode::ALL {
        let number = ServerFrame::Closing { code, retry_after_ms: 0 }.encode()[1];
        let row = format!("| {number} | `{}` | {} |", code.name(), code.websocket());
        assert!(document.contains(&row), "missing {row}");
    }
}

#[test]
fn cut_and_lengthened_frames_are_refused() {
    for (name, frame) in samples::client() {
        let bytes = frame.encode();
        for len in 0..bytes.len() {
            assert!(ClientFrame::decode(&bytes[..len]).is_err(), "{name} cut to {len}");
        }
        assert_eq!(ClientFrame::decode(&[&bytes[..], &[0]].concat()), Err(DecodeError::Trailing(1)), "{name}");
    }
    for (name, frame) in samples::server() {
        let bytes = frame.encode();
        for len in 0..bytes.len() {
            assert!(ServerFrame::decode(&bytes[..len]).is_err(), "{name} cut to {len}");
        }
        assert_eq!(ServerFrame::decode(&[&bytes[..], &[0]].concat()), Err(DecodeError::Trailing(1)), "{name}");
    }
}

#[test]
fn a_delimited_stream_may_be_cut_anywhere() {
    let frames: Vec<Bytes> = samples::client().iter().map(|(_, frame)| frame.encode()).collect();
    let mut stream = Vec::new();
    frames.iter().for_each(|frame| frame::put_delimited(&mut stream, frame));
    for cut in 0..=stream.len() {
        let (mut taken, mut buffer) = (Vec::new(), Bytes::new());
        for part in [&stream[..cut], &stream[cut..]] {
            buffer = [&buffer[..], part].concat().into();
            while let Some(frame) = frame::take_delimited(&mut buffer, 10_000).unwrap() {
                taken.push(frame);
            }
        }
        assert_eq!(taken, frames);
        assert!(buffer.is_empty());
    }
}

#[test]
fn a_bad_length_shows_at_once() {
    let take = |bytes: &[u8], max| frame::take_delimited(&mut Bytes::copy_from_slice(bytes), max);
    assert_eq!(take(&[], 10), Ok(None));
    assert_eq!(take(&[0x80], 10), Ok(None));
    assert_eq!(take(&[0], 10), Ok(Some(Bytes::new())));
    let too_large = take(&[11], 10);
    assert_eq!(too_large, Err(DecodeError::TooLarge { len: 11, max: 10 }));
    assert_eq!(too_large.unwrap_err().close_code(), CloseCode::TooLarge);
    let largest = take(&[0xff, 0xff, 0xff, 0xff, 0x0f], 10);
    assert_eq!(largest, Err(DecodeError::TooLarge { len: u32::MAX, max: 10 }));
    for prefix in [&[0xff, 0xff, 0xff, 0xff, 0x10][..], &[0x80, 0x80, 0x80, 0x80, 0x80]] {
        assert_eq!(take(prefix, 10), Err(DecodeError::Prefix));
    }
    assert_eq!(DecodeError::Prefix.close_code(), CloseCode::Protocol);
}

fn envelope() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..600).prop_map(Bytes::from)
}

prop_compose! {
    fn publish()(room: [u8; 16], producer: [u8; 16], client_seq: u64, handshake: u64, envelope in envelope()) -> Publish {
        Publish { room: RoomId(room), producer: ProducerId(producer), client_seq, handshake, envelope }
    }
}

prop_compose! {
    fn page()(
        room: [u8; 16], log: [u8; 16], chain: [u8; 32], head: u64, floor: u64, first: u64,
        items in prop::collection::vec((any::<u64>(), envelope()), 0..5),
    ) -> Page {
        let items = items.into_iter().map(|(time_ms, envelope)| Item { time_ms, envelope }).collect();
        Page { room: RoomId(room), position: Position { log: LogId(log), head, floor }, first, chain: Digest(chain), items }
    }
}

proptest! {
    #[test]
    fn frames_round_trip(publish in publish(), page in page(), request: u32, before: u64) {
        let fetch = ClientFrame::Fetch { request, room: publish.room, before, count_max: request };
        for frame in [ClientFrame::Publish(publish), fetch] {
            prop_assert_eq!(ClientFrame::decode(&frame.encode()), Ok(frame));
        }
        for frame in [ServerFrame::Fetched { request, page: page.clone() }, ServerFrame::Deliver(page)] {
            prop_assert_eq!(ServerFrame::decode(&frame.encode()), Ok(frame));
        }
    }

    #[test]
    fn mutated_bytes_never_panic(
        which: prop::sample::Index,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut: prop::sample::Index,
    ) {
        let mut frames: Vec<Bytes> = samples::client().iter().map(|(_, frame)| frame.encode()).collect();
        frames.extend(samples::server().iter().map(|(_, frame)| frame.encode()));
        let mut bytes = which.get(&frames).to_vec();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        for bytes in [&bytes[..], &bytes[..cut.index(bytes.len() + 1)]] {
            if let Ok(frame) = ClientFrame::decode(bytes) {
                prop_assert_eq!(ClientFrame::decode(&frame.encode()), Ok(frame));
            }
            if let Ok(frame) = ServerFrame::decode(bytes) {
                prop_assert_eq!(ServerFrame::decode(&frame.encode()), Ok(frame));
            }
        }
    }
}
