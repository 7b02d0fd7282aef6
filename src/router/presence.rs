//! Which devices are subscribed to a room, and telling its subscribers. A device with several sessions is there once.
//!
//! What changes in a turn is told once. It costs as much as there are subscribers, so it is done only where there are few
//! of them: coming and going in a large room is a matter of two maps.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::{ConnId, context::Context, room::Room};
use crate::core::{frame::ServerFrame, id::DeviceKey, lane::Lane};

/// What a subscriber knows of who is there. Most know everything: what others lack is not kept in place.
#[derive(Debug)]
#[expect(clippy::box_collection, reason = "every member has one of these, and hardly any misses something")]
pub(super) enum Knows {
    /// Nothing: it must be given the whole list.
    Nothing,
    /// It was told of devices once, and must be given the whole list anew; these may have gone since.
    Stale(Box<BTreeSet<DeviceKey>>),
    /// Everything.
    All,
    /// All but what became of these devices.
    AllBut(Box<BTreeSet<DeviceKey>>),
}

impl Knows {
    /// It must be given the whole list, and hear of those who went unheard.
    pub(super) fn begin_anew(&mut self) {
        *self = match std::mem::replace(self, Self::Nothing) {
            Self::Nothing => Self::Nothing,
            Self::All => Self::Stale(Box::default()),
            Self::AllBut(missed) | Self::Stale(missed) => Self::Stale(missed),
        };
    }

    /// These changed, and it has not heard of it.
    fn miss(&mut self, devices: &[DeviceKey], missed_max: usize) {
        match self {
            Self::Nothing => {}
            Self::All => *self = Self::AllBut(Box::new(devices.iter().copied().collect())),
            Self::AllBut(missed) | Self::Stale(missed) => {
                missed.extend(devices);
                // Best effort beyond this: a reader that slow learns of these when they change again.
                while missed.len() > missed_max {
                    missed.pop_first();
                }
            }
        }
    }
}

/// The devices that are there, and what changed since the last turn.
#[derive(Debug)]
pub(super) struct Presence {
    sessions: BTreeMap<DeviceKey, u32>,
    /// Devices that came or went in this turn: whether they were there when it began.
    changed: BTreeMap<DeviceKey, bool>,
    /// Sessions of all devices.
    total: u32,
    /// Off in large rooms, where it would cost more than it is worth.
    on: bool,
}

/// What the members must hear.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing new.
    Nothing,
    /// These came and went.
    Delta {
        /// Now there.
        online: Vec<DeviceKey>,
        /// No longer there.
        offline: Vec<DeviceKey>,
    },
    /// Presence has been switched on: everybody must hear the whole list.
    Restart,
}

impl Presence {
    pub(super) const fn new() -> Self {
        Self { sessions: BTreeMap::new(), changed: BTreeMap::new(), total: 0, on: true }
    }

    pub(super) fn came(&mut self, device: DeviceKey) {
        self.total += 1;
        let sessions = self.sessions.entry(device).or_default();
        *sessions += 1;
        if *sessions == 1 {
            self.changed.entry(device).or_insert(false);
        }
    }

    pub(super) fn went(&mut self, device: DeviceKey) {
        let Some(sessions) = self.sessions.get_mut(&device) else { return };
        self.total -= 1;
        *sessions -= 1;
        if *sessions == 0 {
            self.sessions.remove(&device);
            self.changed.entry(device).or_insert(true);
        }
    }

    /// Whether members are told.
    pub(super) const fn is_on(&self) -> bool {
        self.on
    }

    /// Who is there.
    pub(super) fn online(&self) -> Vec<DeviceKey> {
        self.sessions.keys().copied().collect()
    }

    /// Whether this device is there.
    pub(super) fn is_online(&self, device: &DeviceKey) -> bool {
        self.sessions.contains_key(device)
    }

    /// Ends the turn. Presence stops above `sessions_max` and begins anew at three quarters of it.
    pub(super) fn turn(&mut self, sessions_max: u32) -> Change {
        let changed = std::mem::take(&mut self.changed);
        if self.on && self.total > sessions_max {
            self.on = false;
            let told = |device: &&DeviceKey| changed.get(*device) != Some(&false);
            let mut offline: Vec<_> = self.sessions.keys().filter(told).copied().collect();
            let left = |(device, was): (&DeviceKey, &bool)| (*was && !self.sessions.contains_key(device)).then_some(*device);
            offline.extend(changed.iter().filter_map(left));
            return if offline.is_empty() { Change::Nothing } else { Change::Delta { online: Vec::new(), offline } };
        }
        if !self.on {
            self.on = u64::from(self.total) * 4 <= u64::from(sessions_max) * 3;
            return if self.on { Change::Restart } else { Change::Nothing };
        }
        let (mut online, mut offline) = (Vec::new(), Vec::new());
        for (device, was) in changed {
            match (was, self.sessions.contains_key(&device)) {
                (false, true) => online.push(device),
                (true, false) => offline.push(device),
                _ => {}
            }
        }
        if online.is_empty() && offline.is_empty() { Change::Nothing } else { Change::Delta { online, offline } }
    }
}

/// What changed, and the frame that says so.
type Delta = Option<(Vec<DeviceKey>, Bytes)>;

impl Room {
    /// Tells the subscribers who came and went, and newcomers who is there.
    pub(super) fn tell_presence(&mut self, ctx: &mut Context) {
        let delta = match self.presence.turn(ctx.limits.presence_sessions_max) {
            Change::Nothing => None,
            Change::Delta { online, offline } => {
                let devices: Vec<DeviceKey> = online.iter().chain(&offline).copied().collect();
                Some((devices, ServerFrame::Presence { room: self.id, online, offline }.encode()))
            }
            Change::Restart => {
                self.members.values_mut().filter(|member| member.is_subscribed()).for_each(|member| member.knows.begin_anew());
                self.uninformed = self.subscribers(ctx);
                None
            }
        };
        let mut hearers = std::mem::take(&mut self.uninformed);
        if delta.is_some() {
            hearers = self.subscribers(ctx);
        }
        ctx.work += hearers.len() as u64;
        let mut all = None;
        for id in hearers {
            self.tell_member(id, &delta, &mut all, ctx);
        }
    }

    /// Members that are subscribed. To pass over the others is work, too.
    fn subscribers(&self, ctx: &mut Context) -> Vec<ConnId> {
        let found: Vec<ConnId> = self.members.iter().filter(|(_, member)| member.is_subscribed()).map(|(id, _)| *id).collect();
        ctx.work += (self.members.len() - found.len()) as u64;
        found
    }

    fn tell_member(&mut self, id: ConnId, delta: &Delta, all: &mut Option<Bytes>, ctx: &mut Context) {
        let (room, presence) = (self.id, &self.presence);
        let Some(member) = self.members.get_mut(&id).filter(|member| member.is_subscribed()) else { return };
        if let (Knows::All, true, Some((_, frame))) = (&member.knows, member.announced, delta)
            && member.push_page(Lane::Control, frame, room, ctx)
        {
            return;
        }
        if let Some((devices, _)) = delta {
            member.knows.miss(devices, 2 * ctx.limits.presence_sessions_max as usize);
        }
        if !member.announced || member.stalled {
            return; // Told when it is, or when there is room.
        }
        // Where presence is off, nobody is there for anybody.
        let is_online = |device: &DeviceKey| presence.is_on() && presence.is_online(device);
        let (frame, then) = match &member.knows {
            Knows::All => return,
            Knows::AllBut(missed) => {
                let (online, offline) = missed.iter().partition(|device| is_online(device));
                (ServerFrame::Presence { room, online, offline }.encode(), Knows::All)
            }
            Knows::Nothing | Knows::Stale(_) => {
                let missed = if let Knows::Stale(missed) = &member.knows { Some(missed) } else { None };
                let offline: Vec<_> =
                    missed.into_iter().flat_map(|missed| missed.iter()).filter(|device| !is_online(device)).copied().collect();
                match (presence.is_on(), offline.is_empty()) {
                    (true, true) => {
                        let list = || ServerFrame::Presence { room, online: presence.online(), offline }.encode();
                        (all.get_or_insert_with(list).clone(), Knows::All)
                    }
                    (true, false) => (ServerFrame::Presence { room, online: presence.online(), offline }.encode(), Knows::All),
                    (false, true) => return,
                    (false, false) => (ServerFrame::Presence { room, online: Vec::new(), offline }.encode(), Knows::Nothing),
                }
            }
        };
        if member.push_page(Lane::Control, &frame, room, ctx) {
            member.knows = then;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: DeviceKey = DeviceKey([1; 32]);
    const B: DeviceKey = DeviceKey([2; 32]);

    #[test]
    fn a_device_is_there_once_and_coming_and_going_in_one_turn_is_nothing() {
        let mut presence = Presence::new();
        presence.came(A);
        presence.came(A);
        assert_eq!(presence.turn(9), Change::Delta { online: vec![A], offline: vec![] });
        presence.went(A);
        assert_eq!(presence.turn(9), Change::Nothing);
        presence.went(A);
        presence.came(B);
        assert_eq!(presence.turn(9), Change::Delta { online: vec![B], offline: vec![A] });
        presence.went(B);
        presence.came(B);
        presence.came(A);
        presence.went(A);
        assert_eq!(presence.turn(9), Change::Nothing);
    }

    #[test]
    fn large_rooms_have_none_and_say_so() {
        let mut presence = Presence::new();
        presence.came(A);
        assert_eq!(presence.turn(1), Change::Delta { online: vec![A], offline: vec![] });
        presence.came(B);
        assert_eq!(presence.turn(1), Change::Delta { online: vec![], offline: vec![A] });
        assert!(!presence.is_on());
        presence.went(A);
        assert_eq!(presence.turn(1), Change::Nothing);
        presence.went(B);
        assert_eq!(presence.turn(1), Change::Restart);
        assert!(presence.is_on() && !presence.is_online(&B));
    }
}
