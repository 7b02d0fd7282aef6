//! The loss laboratory: a real server and clients in two network namespaces, joined by a link that loses, delays, reorders and
//! stops. Needs root and Linux with TUN devices; elsewhere the tests say that they are skipped. `wax-bench loss` measures with the
//! same link.
#![cfg(all(target_os = "linux", feature = "server", feature = "client"))]
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::big_endian_bytes,
    reason = "a test fails by panicking, and says what it does; a link has a clock; packets are big-endian"
)]

#[path = "../common/mod.rs"]
mod common;
mod edge;
mod link;
mod member;
mod nets;
mod scenarios;
mod terminals;

use std::time::{Duration, Instant};

use link::{Conditions, End, Link, Way};

/// An IPv4 packet of UDP with this source port; the destination is 443.
fn packet(port: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 77, 0, 1, 10, 77, 0, 2];
    bytes.extend_from_slice(&port.to_be_bytes());
    bytes.extend_from_slice(&[1, 187, 0, 8, 0x12, 0x34]);
    bytes.extend_from_slice(payload);
    bytes
}

/// When each of so many packets, one a millisecond, arrives; in the order of arrival.
fn fates(seed: u64, way: Way, count: u64) -> (Vec<(u64, Duration)>, Link) {
    let start = Instant::now();
    let mut link = Link::new(seed, Conditions { way, ..Conditions::default() });
    for n in 0..count {
        link.send(End::Client, packet(1000, &n.to_le_bytes()), start + Duration::from_millis(n));
    }
    let far = start + Duration::from_secs(3600);
    let mut fates = Vec::new();
    while let Some(at) = link.next_at() {
        let (end, bytes) = link.arrived(far).unwrap();
        assert_eq!(end, End::Server);
        let n = u64::from_le_bytes(bytes[28..].try_into().unwrap());
        fates.push((n, at - start - Duration::from_millis(n)));
    }
    (fates, link)
}

#[test]
fn a_seed_decides_the_fate_of_every_packet() {
    let way = Way { loss: 0.1, jitter: Duration::from_millis(3), delay: Duration::from_millis(20), ..Way::default() };
    let (first, link) = fates(1, way, 10_000);
    assert_eq!(first, fates(1, way, 10_000).0);
    assert_ne!(first, fates(2, way, 10_000).0);
    assert_eq!(link.count(End::Client).lost + first.len() as u64, 10_000);
    assert!((800..1200).contains(&link.count(End::Client).lost), "{:?}", link.count(End::Client));
    assert!(first.iter().all(|(_, took)| (20..=23).contains(&took.as_millis())), "delay and jitter");
    assert!(!first.is_sorted_by_key(|(n, _)| *n), "some overtook others");
}

#[test]
fn losses_come_in_bursts_when_asked() {
    let way = Way { loss: 0.05, burst: 5.0, ..Way::default() };
    let (arrived, link) = fates(3, way, 100_000);
    let gaps = arrived.windows(2).filter(|pair| pair[1].0 != pair[0].0 + 1).count() as u64;
    let lost = link.count(End::Client).lost;
    assert!((4000..6000).contains(&lost), "{lost}");
    assert!((4..=6).contains(&(lost / gaps)), "{lost} lost in {gaps} bursts");
}

#[test]
fn a_slow_link_queues_and_then_drops() {
    // One packet of 36 bytes takes 4 ms; one comes each millisecond.
    let way = Way { rate: 9000, queue: 360, ..Way::default() };
    let (arrived, link) = fates(4, way, 1000);
    assert!(arrived.is_sorted_by_key(|(n, _)| *n));
    assert!(arrived.iter().all(|(_, took)| took.as_millis() <= 40), "the queue is bounded");
    assert!((230..270).contains(&arrived.len()), "{}", arrived.len());
    assert_eq!(link.count(End::Client).overflowed, 1000 - arrived.len() as u64);
}

#[test]
fn a_cut_link_carries_nothing_and_a_translation_is_undone_on_the_way_back() {
    let now = Instant::now();
    let mut link = Link::new(5, Conditions { cut: true, ..Conditions::default() });
    link.send(End::Client, packet(1000, b""), now);
    link.conditions = Conditions { no_udp: true, ..Conditions::default() };
    link.send(End::Client, packet(1000, b""), now);
    assert_eq!((link.next_at(), link.count(End::Client).cut), (None, 2));
    let mut tcp = packet(1000, b"");
    tcp[9] = 6;
    link.send(End::Client, tcp.clone(), now);
    assert_eq!(link.arrived(now), Some((End::Server, tcp)));

    link.conditions = Conditions { shift: 7, ..Conditions::default() };
    link.send(End::Client, packet(1000, b"x"), now);
    let (_, there) = link.arrived(now).unwrap();
    assert_eq!(there[20..22], 1007_u16.to_be_bytes());
    let words = |bytes: &[u8]| bytes[20..28].chunks(2).map(|word| u64::from(word[0]) << 8 | u64::from(word[1])).sum::<u64>();
    assert_eq!(words(&there) % 0xffff, words(&packet(1000, b"x")) % 0xffff, "the checksum covers it");
    let mut back = packet(443, b"y");
    back[22..24].copy_from_slice(&1007_u16.to_be_bytes());
    link.send(End::Server, back, now);
    let (end, back) = link.arrived(now).unwrap();
    assert_eq!((end, &back[22..24]), (End::Client, &1000_u16.to_be_bytes()[..]));
}
