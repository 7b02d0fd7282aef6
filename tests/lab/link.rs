//! A link between two ends that loses, delays, reorders and holds back packets, from a seed. Pure: packets and the time go in,
//! packets come out when their time has come.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    time::{Duration, Instant},
};

/// One way across the link.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Way {
    /// Share of packets that are lost, 0 to 1.
    pub loss: f64,
    /// How many packets are lost in a row on average, at least 1; with 1 each is lost or not by itself.
    pub burst: f64,
    /// How long a packet takes.
    pub delay: Duration,
    /// What it takes more, at most, at random. Packets that come closer together than this overtake each other.
    pub jitter: Duration,
    /// Bytes per second; 0 is without limit.
    pub rate: u64,
    /// Bytes that wait for their turn at most; what comes then is lost.
    pub queue: u64,
}

impl Default for Way {
    /// A cable.
    fn default() -> Self {
        Self { loss: 0.0, burst: 1.0, delay: Duration::ZERO, jitter: Duration::ZERO, rate: 0, queue: 256 << 10 }
    }
}

/// What a link is like. Both ways are alike.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Conditions {
    pub way: Way,
    /// Nothing passes.
    pub cut: bool,
    /// UDP does not pass.
    pub no_udp: bool,
    /// The client's end is behind an address translation that adds this to its UDP ports: another value is what the server
    /// sees when the translation forgot a flow and began a new one.
    pub shift: u16,
}

/// Which end a packet comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Client,
    Server,
}

/// What has happened to the packets of one end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    pub packets: u64,
    pub bytes: u64,
    /// Of those: lost at random, for want of room in the queue, or because the link was cut.
    pub lost: u64,
    pub overflowed: u64,
    pub cut: u64,
}

/// Vigna's SplitMix64: what a seed means must not change with a crate.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 to 1.
    fn share(&mut self) -> f64 {
        f64::from(u32::try_from(self.next() >> 32).expect("32 bits are left")) / f64::from(u32::MAX)
    }
}

#[derive(Debug)]
struct Lane {
    random: Random,
    /// Within a burst of losses.
    losing: bool,
    /// When the sender's queue is empty.
    idle_at: Option<Instant>,
    count: Count,
}

impl Lane {
    fn new(seed: u64) -> Self {
        Self { random: Random(seed), losing: false, idle_at: None, count: Count::default() }
    }

    /// Two states (Gilbert): a burst ends with probability 1/burst, and begins so often that `loss` are lost in all.
    fn loses(&mut self, way: &Way) -> bool {
        let share = self.random.share();
        self.losing = if self.losing && way.burst > 1.0 {
            share >= 1.0 / way.burst
        } else {
            share < if way.burst > 1.0 { way.loss / (way.burst * (1.0 - way.loss)) } else { way.loss }
        };
        self.losing
    }

    /// When the packet arrives, if it does.
    fn carry(&mut self, way: &Way, len: u64, now: Instant) -> Option<Instant> {
        // Drawn for every packet, so that a change of conditions does not shift what follows.
        let (lost, jitter) = (self.loses(way), way.jitter.mul_f64(self.random.share()));
        if lost {
            self.count.lost += 1;
            return None;
        }
        let mut out_at = now;
        if way.rate > 0 {
            let begins = self.idle_at.map_or(now, |idle| idle.max(now));
            let waits = u64::try_from((begins - now).as_micros()).unwrap_or(u64::MAX);
            if waits.saturating_mul(way.rate) / 1_000_000 + len > way.queue {
                self.count.overflowed += 1;
                return None;
            }
            out_at = begins + Duration::from_micros(len * 1_000_000 / way.rate);
            self.idle_at = Some(out_at);
        }
        Some(out_at + way.delay + jitter)
    }
}

/// A packet on its way, ordered by when it arrives and then by when it was sent.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Flying {
    at: Instant,
    number: u64,
    to_client: bool,
    bytes: Vec<u8>,
}

#[derive(Debug)]
pub struct Link {
    pub conditions: Conditions,
    lanes: [Lane; 2],
    flying: BinaryHeap<Reverse<Flying>>,
    sent: u64,
}

impl Link {
    pub fn new(seed: u64, conditions: Conditions) -> Self {
        let mut seeds = Random(seed);
        let lanes = [Lane::new(seeds.next()), Lane::new(seeds.next())];
        Self { conditions, lanes, flying: BinaryHeap::new(), sent: 0 }
    }

    /// What has come from an end.
    pub fn count(&self, from: End) -> Count {
        self.lanes[from as usize].count
    }

    /// A packet enters at an end.
    pub fn send(&mut self, from: End, mut bytes: Vec<u8>, now: Instant) {
        // The kernel's own IPv6 chatter must not take part in what a seed means.
        if bytes.first().is_none_or(|byte| byte >> 4 != 4) {
            return;
        }
        let lane = &mut self.lanes[from as usize];
        lane.count.packets += 1;
        lane.count.bytes += bytes.len() as u64;
        let udp = udp_header(&bytes);
        if self.conditions.cut || (self.conditions.no_udp && udp.is_some()) {
            lane.count.cut += 1;
            return;
        }
        let Some(at) = lane.carry(&self.conditions.way, bytes.len() as u64, now) else { return };
        if let (Some(udp), true) = (udp, self.conditions.shift != 0) {
            translate(&mut bytes[udp..], from, self.conditions.shift);
        }
        self.sent += 1;
        self.flying.push(Reverse(Flying { at, number: self.sent, to_client: from == End::Server, bytes }));
    }

    /// A packet that has arrived by now, and at which end.
    pub fn arrived(&mut self, now: Instant) -> Option<(End, Vec<u8>)> {
        if self.next_at()? > now {
            return None;
        }
        let Reverse(flying) = self.flying.pop()?;
        Some((if flying.to_client { End::Client } else { End::Server }, flying.bytes))
    }

    /// When the next packet arrives.
    pub fn next_at(&self) -> Option<Instant> {
        self.flying.peek().map(|Reverse(flying)| flying.at)
    }
}

/// Where the UDP header of an IPv4 packet begins, if it has one.
fn udp_header(packet: &[u8]) -> Option<usize> {
    let start = usize::from(packet[0] & 0x0f) * 4;
    (packet.get(9) == Some(&17) && packet.len() >= start + 8).then_some(start)
}

/// Shifts the client's port: the source from the client, the destination back to it.
fn translate(udp: &mut [u8], from: End, shift: u16) {
    let at = if from == End::Client { 0 } else { 2 };
    let old = u16::from_be_bytes([udp[at], udp[at + 1]]);
    let new = if from == End::Client { old.wrapping_add(shift) } else { old.wrapping_sub(shift) };
    udp[at..at + 2].copy_from_slice(&new.to_be_bytes());
    let sum = u16::from_be_bytes([udp[6], udp[7]]);
    if sum != 0 {
        // RFC 1624: the checksum without the old word, with the new one.
        let mut total = u32::from(!sum) + u32::from(!old) + u32::from(new);
        while total > 0xffff {
            total = (total & 0xffff) + (total >> 16);
        }
        let sum = !u16::try_from(total).expect("folded");
        udp[6..8].copy_from_slice(&(if sum == 0 { 0xffff } else { sum }).to_be_bytes());
    }
}
