#![expect(clippy::cast_possible_truncation, reason = "patterns of bytes")]

use proptest::prelude::*;

use super::*;
use crate::core::{
    frame::{Item, Page, ServerFrame, put_delimited},
    id::LogId,
};

const FRAME_MAX: u32 = 1 << 20;

fn room(n: u8) -> RoomId {
    RoomId([n; 16])
}

fn position(head: Seq) -> Position {
    Position { log: LogId([2; 16]), head, floor: 1 }
}

fn subscribed(n: u8, after: Seq) -> Bytes {
    ServerFrame::Subscribed { room: room(n), after, chain: Digest([3; 32]), position: position(after) }.encode()
}

fn page(n: u8, first: Seq, items: u64) -> Bytes {
    let item = |seq: Seq| Item { time_ms: 5, envelope: vec![seq as u8; 40].into() };
    let items = (first..first + items).map(item).collect();
    ServerFrame::Deliver(Page { room: room(n), position: position(first), first, chain: Digest([3; 32]), items }).encode()
}

fn delimited(frame: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_delimited(&mut bytes, frame);
    bytes
}

fn marked(announced: u64, frame: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    lane::put_mark(&mut bytes, announced, frame.len());
    bytes.extend_from_slice(frame);
    bytes
}

fn out(merge: &mut Merge) -> Vec<ServerFrame> {
    std::iter::from_fn(|| merge.poll()).map(|frame| ServerFrame::decode(&frame).unwrap()).collect()
}

fn firsts(frames: &[ServerFrame]) -> Vec<Seq> {
    let first = |frame: &ServerFrame| if let ServerFrame::Deliver(page) = frame { Some(page.first) } else { None };
    frames.iter().filter_map(first).collect()
}

#[test]
fn a_page_waits_for_its_announcement_and_for_the_pages_before_it() {
    let mut merge = Merge::new(FRAME_MAX);
    merge.take(Origin::Stream(1), &marked(1, &page(1, 3, 2))).unwrap();
    merge.take(Origin::Stream(2), &marked(1, &page(1, 1, 2))).unwrap();
    assert_eq!(out(&mut merge), [], "nothing was subscribed yet");
    merge.take(Origin::Control, &delimited(&subscribed(1, 0))).unwrap();
    let frames = out(&mut merge);
    assert!(matches!(frames[0], ServerFrame::Subscribed { .. }));
    assert_eq!(firsts(&frames), [1, 3]);
    merge.take(Origin::Stream(1), &marked(1, &page(1, 7, 1))).unwrap();
    merge.take(Origin::Stream(1), &marked(1, &page(1, 3, 2))).unwrap();
    assert_eq!(out(&mut merge), [], "a gap, and a page that was there");
    assert!(merge.waiting_bytes() > 0);
    merge.take(Origin::Control, &delimited(&page(1, 5, 2))).unwrap();
    assert_eq!(firsts(&out(&mut merge)), [5, 7], "a page may come on the control stream too");
    assert_eq!(merge.waiting_bytes(), 0);
}

#[test]
fn what_was_sent_before_a_new_announcement_is_stale() {
    let mut merge = Merge::new(FRAME_MAX);
    merge.take(Origin::Control, &delimited(&subscribed(1, 0))).unwrap();
    merge.take(Origin::Control, &delimited(&subscribed(1, 6))).unwrap();
    // Of the first subscription: cut where those of the second are not.
    merge.take(Origin::Stream(1), &marked(1, &page(1, 7, 1))).unwrap();
    merge.take(Origin::Stream(1), &marked(1, &page(1, 1, 6))).unwrap();
    merge.take(Origin::Stream(2), &marked(2, &page(1, 7, 5))).unwrap();
    assert_eq!(firsts(&out(&mut merge)), [7]);
    merge.take(Origin::Control, &delimited(&ServerFrame::Deleted { room: room(1) }.encode())).unwrap();
    merge.take(Origin::Stream(2), &marked(2, &page(1, 12, 5))).unwrap();
    assert_eq!(firsts(&out(&mut merge)), [] as [Seq; 0]);
    assert_eq!(merge.waiting_bytes(), 0);
}

#[test]
fn a_server_cannot_make_a_client_keep_without_limit() {
    let mut merge = Merge::new(FRAME_MAX);
    merge.take(Origin::Control, &delimited(&subscribed(1, 0))).unwrap();
    let mut first = 2;
    let error = loop {
        if let Err(error) = merge.take(Origin::Stream(1), &marked(1, &page(1, first, 100))) {
            break error;
        }
        first += 100;
    };
    assert_eq!(error, MergeError::TooMuch);
    let mut merge = Merge::new(FRAME_MAX);
    let part = &marked(0, &vec![5; FRAME_MAX as usize - 9])[..1 << 19];
    assert!((0..64).any(|stream| merge.take(Origin::Stream(stream), part).is_err()), "nor by beginnings of frames");
}

#[test]
fn frames_are_accepted_on_their_own_lanes_only() {
    let mut merge = Merge::new(FRAME_MAX);
    assert_eq!(merge.take(Origin::Stream(1), &marked(0, &subscribed(1, 0))), Err(MergeError::Misplaced));
    let mut merge = Merge::new(FRAME_MAX);
    assert_eq!(merge.take(Origin::Datagram, &delimited(&page(1, 1, 1))), Err(MergeError::Misplaced));
    let mut merge = Merge::new(FRAME_MAX);
    let ephemeral = ServerFrame::Ephemeral { envelope: Bytes::from_static(b"typing") }.encode();
    let mut two = delimited(&ephemeral);
    two.extend(delimited(&ephemeral));
    merge.take(Origin::Datagram, &two).unwrap();
    assert_eq!(out(&mut merge).len(), 2);
    assert_eq!(merge.take(Origin::Datagram, &two[..4]), Err(MergeError::Frame(DecodeError::Truncated)));
    let mut merge = Merge::new(FRAME_MAX);
    merge.take(Origin::Stream(4), &marked(0, &ephemeral)[..3]).unwrap();
    assert_eq!(merge.end(4), Err(MergeError::Frame(DecodeError::Truncated)));
    assert_eq!(merge.end(5), Ok(()));
}

/// What a server does next for a room, and where it puts it.
#[derive(Debug, Clone, Copy)]
enum Op {
    Subscribe { back: u64 },
    Live { items: u64, alone: bool },
    History { items: u64 },
    Fetched,
    Pong,
    Delete,
}

fn op() -> impl Strategy<Value = (u8, Op)> {
    let op = prop_oneof![
        1 => (0_u64..6).prop_map(|back| Op::Subscribe { back }),
        8 => (1_u64..4, any::<bool>()).prop_map(|(items, alone)| Op::Live { items, alone }),
        4 => (1_u64..8).prop_map(|items| Op::History { items }),
        1 => Just(Op::Fetched),
        2 => Just(Op::Pong),
        1 => Just(Op::Delete),
    ];
    (0_u8..3, op)
}

/// What a server sent: by lane, as bytes, and in the order of a single stream.
#[derive(Debug, Default)]
struct Sent {
    lanes: Vec<Vec<Vec<u8>>>,
    single: Vec<ServerFrame>,
}

/// A server with three rooms. Lane 0 is the control stream, 1 and 2 are long streams, each further one has one page.
fn serve(ops: &[(u8, Op)]) -> Sent {
    let mut sent = Sent { lanes: vec![Vec::new(); 3], ..Sent::default() };
    let mut cursors: [Option<Seq>; 3] = [None; 3];
    let (mut announced, mut number) = (0, 0);
    for (n, op) in ops {
        let cursor = &mut cursors[usize::from(*n)];
        number += 1;
        let (lane, frame) = match (*op, *cursor) {
            (Op::Subscribe { back }, at) => {
                let after = at.unwrap_or(10).saturating_sub(back);
                *cursor = Some(after);
                announced += 1;
                (0, subscribed(*n, after))
            }
            (Op::Delete, Some(_)) => {
                *cursor = None;
                announced += 1;
                (0, ServerFrame::Deleted { room: room(*n) }.encode())
            }
            (Op::Live { items, alone }, Some(at)) => {
                *cursor = Some(at + items);
                let lane = if alone { sent.lanes.len() } else { 1 };
                (lane, page(*n, at + 1, items))
            }
            (Op::History { items }, Some(at)) => {
                *cursor = Some(at + items);
                (2, page(*n, at + 1, items))
            }
            (Op::Fetched, _) => {
                let page = Page { room: room(*n), position: position(3), first: 1, chain: Digest([3; 32]), items: Vec::new() };
                (2, ServerFrame::Fetched { request: number, page }.encode())
            }
            (Op::Pong, _) => (0, ServerFrame::Pong { token: number.into() }.encode()),
            (Op::Delete | Op::Live { .. } | Op::History { .. }, None) => continue,
        };
        if lane == sent.lanes.len() {
            sent.lanes.push(Vec::new());
        }
        sent.single.push(ServerFrame::decode(&frame).unwrap());
        sent.lanes[lane].push(if lane == 0 { delimited(&frame) } else { marked(announced, &frame) });
    }
    sent
}

/// The pages of each stretch between two announcements of a room, and what the announcement was.
fn stretches(frames: &[ServerFrame], n: u8) -> Vec<Vec<ServerFrame>> {
    let mut all = vec![Vec::new()];
    for frame in frames {
        match frame {
            ServerFrame::Subscribed { room: of, .. } | ServerFrame::Deleted { room: of } if *of == room(n) => {
                all.push(vec![frame.clone()]);
            }
            ServerFrame::Deliver(page) if page.room == room(n) => all.last_mut().unwrap().push(frame.clone()),
            _ => {}
        }
    }
    all
}

proptest! {
    /// However the lanes are interleaved and cut: the control stream comes out as it was, nothing is lost but pages that a later
    /// announcement of their room overtook, and each room's pages follow each other.
    #[test]
    fn any_interleaving_is_an_order_that_one_stream_could_have_had(
        ops in proptest::collection::vec(op(), 0..60),
        picks in proptest::collection::vec((any::<prop::sample::Index>(), 1_usize..200), 400),
    ) {
        let sent = serve(&ops);
        let mut merge = Merge::new(FRAME_MAX);
        let mut rest: Vec<Vec<u8>> = sent.lanes.iter().map(|lane| lane.concat()).collect();
        let mut got = Vec::new();
        let mut picks = picks.into_iter();
        loop {
            let open: Vec<usize> = (0..rest.len()).filter(|lane| !rest[*lane].is_empty()).collect();
            if open.is_empty() {
                break;
            }
            // Once the picks are used up, lane by lane, the control stream last.
            let (lane, cut) = picks.next().map_or_else(|| (*open.last().unwrap(), usize::MAX), |(at, cut)| (*at.get(&open), cut));
            let cut = cut.min(rest[lane].len());
            let bytes: Vec<u8> = rest[lane].drain(..cut).collect();
            let origin = if lane == 0 { Origin::Control } else { Origin::Stream(lane as u64) };
            merge.take(origin, &bytes).unwrap();
            if lane > 2 && rest[lane].is_empty() {
                merge.end(lane as u64).unwrap();
            }
            got.extend(out(&mut merge));
        }
        prop_assert_eq!(merge.waiting_bytes(), 0, "nothing waits when everything has come");
        let control = |frames: &[ServerFrame]| -> Vec<ServerFrame> {
            let other = |frame: &&ServerFrame| !matches!(frame, ServerFrame::Deliver(_) | ServerFrame::Fetched { .. });
            frames.iter().filter(other).cloned().collect()
        };
        prop_assert_eq!(control(&got), control(&sent.single));
        let fetched = |frames: &[ServerFrame]| frames.iter().filter(|f| matches!(f, ServerFrame::Fetched { .. })).count();
        prop_assert_eq!(fetched(&got), fetched(&sent.single));
        for n in 0..3 {
            let (got, sent) = (stretches(&got, n), stretches(&sent.single, n));
            prop_assert_eq!(got.len(), sent.len());
            for (got, sent) in got.iter().zip(&sent) {
                prop_assert!(sent.starts_with(got), "in order, from the announcement on");
            }
            prop_assert_eq!(got.last(), sent.last(), "what nothing overtook is complete");
        }
    }

    /// Whatever bytes come, on whatever lanes: an error or frames, never a panic.
    #[test]
    fn hostile_bytes_never_panic(
        pieces in proptest::collection::vec((0_u64..4, proptest::collection::vec(any::<u8>(), 0..60)), 0..20),
    ) {
        let mut merge = Merge::new(FRAME_MAX);
        for (lane, bytes) in pieces {
            let origin = match lane {
                0 => Origin::Control,
                1 => Origin::Datagram,
                number => Origin::Stream(number),
            };
            if merge.take(origin, &bytes).is_err() {
                break;
            }
        }
    }
}
