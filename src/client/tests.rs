//! The client's links against the server's session, on a virtual clock: who carries the session, and when it moves.
#![allow(clippy::unwrap_in_result, reason = "a test's helpers fail like its tests")]

mod complaints;
mod outbox;
mod packages;
mod posting;
mod restarts;
mod token;
mod world;

use std::collections::{BTreeMap, BTreeSet};

use self::world::{QUIC, Rng, WS, WT, World};
use super::{view::ConnectionState, *};
use crate::core::{
    close::CloseCode,
    id::Nonce,
    limits::Limits,
    session::{Session, Setup},
};

#[test]
fn websocket_answers_first_and_webtransport_takes_over_once_it_echoes() {
    let mut world = World::online(1, WS);
    let late = world.client.wire.opening(WT);
    world.mute.insert(WT);
    world.hang.clear();
    world.open(late, WT);
    world.settle();
    assert_eq!((world.over(), world.sessions.len()), (Some("ws"), 2), "a welcome over it is no echo");
    assert!(world.arrived.iter().any(|(link, frame)| *link == late && matches!(frame, ClientFrame::Resume(_))));
    let before = world.link(WS);
    world.client.received_frame(late, &ServerFrame::Pong { token: 77 }.encode(), world.now_ms);
    world.settle();
    assert_eq!(world.over(), Some("ws"), "nor is an answer to what was not asked");
    world.client.received_frame(late, &ServerFrame::Pong { token: 1 }.encode(), world.now_ms);
    world.settle();
    assert_eq!((world.over(), world.sessions.len()), (Some("wt"), 1));
    assert!(!world.sessions.contains_key(&before));
    assert!(world.arrived.contains(&(before, ClientFrame::Close)), "the server is told");
    assert_eq!(world.beginnings(), 2);
    let states: Vec<_> = world.seen.iter().map(|(state, _)| *state).skip(1).collect();
    assert!(states[1..].iter().all(|state| *state == ConnectionState::Online), "silently: {states:?}");
}

#[test]
fn an_echo_that_never_comes_costs_nothing_and_is_tried_again_later_and_later() {
    let mut world = World::new(2);
    world.mute.insert(WT);
    world.hang.insert(WS);
    world.begin();
    // Alone, it carries the session until it is found out.
    assert_eq!(world.over(), Some("wt"));
    world.hang.clear();
    world.wake();
    world.pass(1_000);
    assert_eq!(world.over(), Some("ws"), "a second link is opened beside it, and takes over");
    let begun = world.beginnings();
    let mut tried = Vec::new();
    let mut known = world.opened(WT);
    for _ in 0..4 * 3600 {
        world.pass(1_000);
        assert_eq!(world.over(), Some("ws"));
        if world.opened(WT) > known {
            known = world.opened(WT);
            tried.push(world.now_ms);
        }
    }
    assert_eq!(world.beginnings(), begun, "the session was never disturbed");
    let waits: Vec<_> = tried.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(waits[0] < 60_000 && waits[3] > 2 * waits[0], "{waits:?}");
    assert!(waits.iter().all(|wait| *wait <= 610_000) && waits.len() > 20, "{waits:?}");
    // What holds it up goes away.
    world.mute.clear();
    world.pass(610_000);
    assert_eq!(world.over(), Some("wt"));
}

#[test]
fn when_udp_dies_the_session_is_back_within_two_seconds() {
    let mut world = World::online(3, WT);
    world.pass(70_000);
    assert_eq!(world.over(), Some("wt"));
    world.dead.insert(WT);
    // Active: something was sent that calls for an answer.
    world.client.wire.asks(world.now_ms);
    world.client.tick(world.now_ms);
    world.settle();
    world.pass(1_499);
    assert_eq!(world.over(), Some("wt"));
    world.pass(1);
    assert_eq!((world.over(), world.sessions.len()), (Some("ws"), 1));
    world.pass(9_000);
    assert_eq!(world.opens.last().map(|(_, kind)| *kind), Some(WS), "what failed is left alone for a while");
    world.dead.clear();
    world.pass(20_000);
    assert_eq!(world.over(), Some("wt"), "and tried again");
}

#[test]
fn an_answer_that_is_only_late_moves_nothing() {
    let mut world = World::online(4, WT);
    world.mute.insert(WT);
    world.wake();
    world.hang.insert(WS);
    world.pass(1_200);
    assert_eq!(world.opens.last().map(|(_, kind)| *kind), Some(WS), "in case");
    let (wt, spare) = (world.link(WT), world.client.wire.opening(WS));
    world.client.heard(wt, world.now_ms);
    world.mute.clear();
    world.hang.clear();
    world.open(spare, WS);
    world.settle();
    world.pass(5_000);
    assert_eq!((world.over(), world.sessions.len(), world.beginnings()), (Some("wt"), 1, 1));
}

#[test]
fn both_die_and_the_client_comes_back_by_itself() {
    let mut world = World::online(5, WT);
    world.dead.extend([WS, WT]);
    world.wake();
    world.pass(2_999);
    assert_eq!(world.over(), Some("wt"), "there is nothing better");
    world.pass(1);
    assert_eq!(world.over(), None);
    world.pass(60_000);
    assert!(world.opened(WS) > 3 && world.opened(WT) > 3, "{:?}", world.opens);
    world.dead.clear();
    world.pass(20_000);
    assert!(world.over().is_some());
}

#[test]
fn the_old_link_dies_in_mid_move() {
    let mut world = World::online(6, WS);
    let late = world.client.wire.opening(WT);
    world.mute.insert(WT);
    world.open(late, WT);
    world.settle();
    world.lose(WS);
    assert_eq!(world.over(), Some("wt"), "the other one is logged in");
    // And the other way round: it is not.
    let mut world = World::online(6, WS);
    world.edge.forgotten = true;
    world.lose(WS);
    assert_eq!(world.over(), None);
    world.hang.clear();
    let late = world.client.wire.opening(WT);
    world.open(late, WT);
    world.settle();
    assert_eq!(world.over(), Some("wt"), "it logs in and begins");
}

#[test]
fn what_worked_has_a_head_start() {
    let mut world = World::online(12, WT);
    world.pass(20_000);
    let websockets = world.opened(WS);
    world.is_closed(WT, CloseCode::GoingAway, 0);
    world.pass(500);
    assert_eq!((world.over(), world.opened(WS)), (Some("wt"), websockets), "WebSocket was not even asked for");
    // When it takes too long, both are tried, and the one that comes first is enough.
    world.hang.extend([WS, WT]);
    world.is_closed(WT, CloseCode::GoingAway, 0);
    world.pass(1_000 + 400);
    assert_eq!(world.opened(WS), websockets + 1);
    let late = world.client.wire.opening(WT);
    world.open(late, WT);
    world.settle();
    assert_eq!((world.over(), world.beginnings()), (Some("wt"), 3));
    world.hang.clear();
    world.pass(20_000);
    assert_eq!(world.sessions.len(), 1);
}

#[test]
fn a_link_is_asked_and_found_dead_in_time() {
    for (transport, quiet, suspect, dead) in [(WS, 2_000, 3_000, 5_000), (WT, 500, 1_500, 3_500)] {
        use super::link::{Health, Link};
        let mut link = Link::new(LinkId(1), transport, 0);
        link.open_for_test(0);
        link.asks(0);
        assert_eq!((link.health(0, quiet - 1), link.health(0, quiet)), (Health::Fine, Health::Quiet));
        assert_eq!(link.health_changes_ms(0, 0), quiet);
        link.ping(quiet);
        assert_eq!((link.health(0, suspect - 1), link.health(0, suspect)), (Health::Fine, Health::Suspect));
        assert_eq!(link.health_changes_ms(0, quiet), suspect);
        assert_eq!((link.health(0, dead - 1), link.health(0, dead)), (Health::Suspect, Health::Dead));
        assert_eq!(link.health_changes_ms(0, suspect), dead);
        assert!(dead <= 5_000, "noticed within five seconds while active");
        assert_eq!(link.health(1, dead), Health::Suspect, "twice the patience");
        link.heard(dead);
        assert_eq!(link.health(0, dead + 9_999), Health::Fine, "any byte is life");
        assert_eq!(link.health(0, dead + 10_000), Health::Quiet, "silence is asked about");
    }
}

#[test]
fn slow_is_not_dead() {
    let mut world = World::online(7, WS);
    world.mute.insert(WS);
    world.dead.insert(WT);
    world.wake();
    let link = world.link(WS);
    for _ in 0..60 {
        world.client.heard(link, world.now_ms);
        world.client.wire.asks(world.now_ms);
        world.pass(900);
    }
    assert_eq!((world.over(), world.beginnings()), (Some("ws"), 1), "a page that takes a minute");
    // Where the shell sees whole messages only, patience grows instead.
    let mut gaps = Vec::new();
    for _ in 0..4 {
        let (since_ms, begun) = (world.now_ms, world.beginnings());
        while world.beginnings() == begun {
            world.now_ms += 100;
            let (wire, mut turn) = world.client.wire(world.now_ms);
            let change = wire.tick(true, &mut turn);
            world.client.changed(change, world.now_ms);
            world.settle();
            assert!(world.now_ms < since_ms + 120_000, "it is found dead some time");
        }
        gaps.push(world.now_ms - since_ms);
    }
    assert!(gaps.windows(2).all(|pair| pair[1] > pair[0] + 1_500), "{gaps:?}");
}

#[test]
fn waits_are_random_and_bounded_and_what_the_server_asks_for() {
    let mut firsts = BTreeSet::new();
    for seed in 0..40 {
        let mut world = World::online(seed, WS);
        world.dead.extend([WS, WT]);
        world.lose(WS);
        let begun_ms = world.now_ms;
        world.pass(120_000);
        let tries: Vec<_> =
            world.opens.iter().filter(|(at_ms, kind)| *kind == WS && *at_ms > begun_ms).map(|(at, _)| *at).collect();
        firsts.insert(tries[0] - begun_ms);
        assert!(tries[0] - begun_ms <= 8_500, "{tries:?}");
        // An attempt takes eight seconds here.
        assert!(tries.windows(2).all(|pair| pair[1] - pair[0] < 8_000 + 10_000), "{tries:?}");
    }
    assert!(firsts.len() > 30, "spread out: {firsts:?}");

    let mut backs = BTreeSet::new();
    for seed in 0..40 {
        let mut world = World::only_websocket(seed);
        world.is_closed(WS, CloseCode::GoingAway, 5_000);
        assert!(world.is_offline() && world.sessions.is_empty(), "it does not wait to be thrown out");
        world.pass(2_000);
        world.wake();
        world.pass(2_999);
        assert!(world.is_offline(), "whoever looks at the page does not hurry a server that asked for time");
        world.pass(5_001);
        assert_eq!(world.over(), Some("ws"));
        backs.extend(world.opens.iter().map(|(at_ms, _)| *at_ms).max());
    }
    assert!(backs.len() > 30, "they do not come back at one moment");

    let mut world = World::only_websocket(50);
    world.is_closed(WS, CloseCode::Overloaded, u32::MAX);
    world.pass(1_200_000);
    assert!(world.over().is_some(), "nobody is sent away for weeks");
}

#[test]
fn after_sleep_the_link_is_asked_at_once() {
    let mut world = World::only_websocket(8);
    world.hang.insert(WS);
    let pings = |world: &World| world.arrived.iter().filter(|(_, frame)| matches!(frame, ClientFrame::Ping { .. })).count();
    let before = pings(&world);
    world.now_ms += 3_600_000;
    world.client.tick(world.now_ms);
    world.settle();
    assert_eq!((pings(&world), world.over()), (before + 1, Some("ws")), "it lives");
    world.dead.extend([WS, WT]);
    world.now_ms += 3_600_000;
    world.client.tick(world.now_ms);
    world.settle();
    assert_eq!(world.over(), Some("ws"), "it has a chance to answer");
    world.pass(3_000);
    assert_eq!(world.over(), None);
}

#[test]
fn a_clock_that_is_set_back_stops_nothing() {
    let mut world = World::only_websocket(9);
    world.pass(30_000);
    world.now_ms -= 20_000;
    world.timer_ms = None;
    world.client.tick(world.now_ms);
    world.settle();
    world.dead.extend([WS, WT]);
    world.pass(13_001);
    assert_eq!(world.over(), None, "found dead in its usual time");
    world.dead.clear();
    world.now_ms -= 500_000;
    world.client.tick(world.now_ms);
    world.settle();
    world.pass(10_001);
    assert!(world.over().is_some(), "and back");
}

#[test]
fn another_network_gets_another_chance() {
    let mut world = World::new(10);
    world.dead.insert(WT);
    world.begin();
    world.pass(30_000);
    let tried = world.opened(WT);
    world.dead.clear();
    world.client.network_changed(world.now_ms);
    world.settle();
    world.pass(1);
    assert_eq!((world.opened(WT), world.over()), (tried + 1, Some("wt")));
}

/// A client that uses one transport, and comes back with what an earlier one left.
fn back_over(transport: Transport, stored: &BTreeMap<String, Vec<u8>>) -> World {
    let mut client = Client::new("http://localhost:8433", Bytes::new(), Box::new(Rng(99)));
    client.choose(Choice::Only(transport));
    for (key, value) in stored {
        client.load(key, value).unwrap();
    }
    World::with(client)
}

#[test]
fn only_a_resume_is_said_early_and_only_over_quic() {
    let mut first = back_over(QUIC, &BTreeMap::new());
    first.begin();
    assert_eq!((first.over(), &first.earlies[..]), (Some("quic"), &[(QUIC, None)][..]), "a hello waits for the handshake");
    for transport in [WS, WT] {
        let mut back = back_over(transport, &first.stored);
        back.client.start(back.now_ms);
        back.settle();
        assert_eq!((back.over(), &back.earlies[..]), (Some(transport.name()), &[(transport, None)][..]));
    }
    for (taken, forgotten) in [(true, false), (true, true), (false, false), (false, true)] {
        let mut back = back_over(QUIC, &first.stored);
        back.edge.early = taken;
        back.edge.forgotten = forgotten;
        back.client.start(back.now_ms);
        back.settle();
        assert_eq!(back.over(), Some("quic"), "taken: {taken}, ticket forgotten: {forgotten}");
        let [(QUIC, Some(early))] = &back.earlies[..] else { panic!("{:?}", back.earlies) };
        assert!(!early.hello.exporter, "there is none yet");
        let frames: Vec<_> = back.arrived.iter().map(|(_, frame)| frame).collect();
        let resumes: Vec<_> = frames.iter().filter(|frame| matches!(frame, ClientFrame::Resume(_))).collect();
        let [ClientFrame::Resume(resume)] = resumes[..] else { panic!("one resume: {frames:?}") };
        // What was not taken was not said: another one signs the exporter that there is now.
        assert_eq!((resume == early, resume.hello.exporter, resume.hello.nonce == early.hello.nonce), (taken, !taken, taken));
        assert!(matches!(frames[0], ClientFrame::Resume(_)), "{frames:?}");
        let challenged = frames.iter().any(|frame| matches!(frame, ClientFrame::Authenticate { .. }));
        assert_eq!((challenged, back.beginnings()), (forgotten, 1 + usize::from(forgotten)), "the session begins behind it");
    }
}

#[test]
fn a_link_that_said_nothing_early_is_not_taken_for_one_that_resumes() {
    let mut world = back_over(QUIC, &BTreeMap::new());
    world.hang.insert(QUIC);
    world.begin();
    let link = world.client.wire.opening(QUIC);
    world.client.opened_resuming(link, world.now_ms);
    assert_eq!(world.client.poll(), Some(Output::Close { link }));
    world.client.opened_resuming(LinkId(77), world.now_ms);
    assert_eq!(world.client.poll(), Some(Output::Close { link: LinkId(77) }));
}

#[test]
fn a_resume_is_one_flight_within_what_strangers_may_send() {
    let mut world = World::online(11, WS);
    for n in 0..100 {
        world.client.command(Command::CreateRoom { title: format!("room {n}") }, world.now_ms);
    }
    world.settle();
    let rooms: Vec<_> = world.client.rooms.keys().copied().collect();
    for room in &rooms {
        world.client.set_stage(*room, records::Stage::Joined);
    }
    world.settle();
    // Another process of the same device.
    for forgotten in [false, true] {
        let mut again = back_over(WS, &world.stored);
        again.edge.forgotten = forgotten;
        again.now_ms = world.now_ms + 5;
        again.hang.insert(WS);
        again.client.start(again.now_ms);
        again.settle();
        let link = again.client.wire.opening(WS);
        again.client.opened(link, None, again.now_ms);
        // Before the server has said a word.
        let mut flight = 0;
        let mut outputs = Vec::new();
        while let Some(output) = again.client.poll() {
            if let Output::Send { frame, .. } = &output {
                flight += frame.len() + 2;
                outputs.push(frame.clone());
            }
        }
        let first: Vec<_> = outputs.iter().map(|frame| ClientFrame::decode(frame).unwrap()).collect();
        assert!(matches!(first[..2], [ClientFrame::Resume(_), ClientFrame::Create { .. }]), "{first:?}");
        let subscribed = first.iter().filter(|frame| matches!(frame, ClientFrame::Subscribe { .. })).count();
        assert!((20..101).contains(&subscribed), "{subscribed}");
        let limits = Limits::default();
        assert!(flight < limits.unauthenticated_bytes_max as usize, "{flight}");
        let setup = Setup { limits, nonce: Nonce([5; 32]), exporter: None, agent: String::new() };
        again.sessions.insert(link, (WS, Session::new(setup, 0)));
        for frame in outputs {
            again.serve(link, &frame);
        }
        again.settle();
        assert_eq!(again.over(), Some("ws"));
        let arrived = |room: &RoomId| {
            let entered = |frame: &ClientFrame| matches!(frame, ClientFrame::Enter { room: named, .. } if named == room);
            let subscribed = |frame: &ClientFrame| matches!(frame, ClientFrame::Subscribe { room: named, .. } if named == room);
            let frames = || again.arrived.iter().map(|(_, frame)| frame);
            (frames().filter(|frame| entered(frame)).count(), frames().filter(|frame| subscribed(frame)).count())
        };
        let times: BTreeSet<_> = rooms.iter().map(arrived).collect();
        // Behind a ticket that was forgotten, the server has dropped the first flight, and everything comes again.
        assert!(times.contains(&(1, 1)) && times.contains(&(2, 2)) == forgotten, "{times:?}");
        assert!(times.iter().all(|(entered, subscribed)| subscribed <= entered && (forgotten || *entered == 1)), "{times:?}");
    }
}
