//! What a room contradicts, gathered for others to look at.

use super::{Room, What};
use crate::client::Client;
use crate::client::Output;
use crate::client::evidence::{Contradicted, Evidence, Finding, Quoted, SAID_MAX, Said};
use crate::client::records::{Who, encode, evidence_key};
use crate::client::timeline::Found;
use crate::client::view::{Event, Level};
use crate::core::frame::ClientFrame;
use crate::core::id::{RoomId, Seq};
use crate::seal::identity::Identity;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};

impl Room {
    /// The room's chain, what contradicts it, and whose the devices are that are quoted; `None` while the server has said nothing of it.
    fn evidence(&self, me: &Identity, now_ms: u64) -> Option<Evidence> {
        let (first, chains) = self.timeline.chains();
        let by = Who { device: me.device(), user: me.user() };
        let told = self.contradicted.iter().cloned().map(Finding::Server);
        let found = self.timeline.found().iter().filter_map(|found| self.finding(*found));
        let findings: Vec<_> = told.chain(found).collect();
        let quoted: Vec<_> =
            findings.iter().filter_map(|finding| finding.message()).map(|quoted| quoted.message.sender).collect();
        let known = self.place.seat().map(|seat| seat.group.statements()).unwrap_or_default();
        let others =
            known.into_iter().filter(|(device, _)| *device != by.device && quoted.iter().any(|who| who.device == *device));
        let certificates = core::iter::once((by.device, me.certificate().statement())).chain(others).collect();
        let epoch = self.place.seat().map(|seat| seat.group.epoch()).map(|epoch| (epoch.number, epoch.authenticator));
        let evidence = Evidence {
            room: self.id,
            log: self.record.log?,
            made_ms: now_ms,
            by,
            first,
            chains: chains.collect(),
            epoch,
            findings,
            certificates,
        };
        Some(evidence).filter(|evidence| !evidence.chains.is_empty()).map(Evidence::cut)
    }

    fn quote(&self, at: Seq) -> Option<Box<Quoted>> {
        let shown = self.shown.get(&at)?;
        let What::Message(message) = &shown.what else { return None };
        // Where a link's seed was deleted, nobody can check it.
        message.is_signed(self.id).then_some(())?;
        Some(Box::new(Quoted { at, digest: shown.digest, message: message.as_ref().clone() }))
    }

    fn finding(&self, found: Found) -> Option<Finding> {
        Some(match found {
            Found::Seen(at) => Finding::Seen(self.quote(at)?),
            Found::Ahead(at) => Finding::Ahead(self.quote(at)?),
            Found::Gap(at, before) => Finding::Gap { before: self.quote(before), message: self.quote(at)? },
            Found::Foreign(at, digest) => Finding::Foreign { at, digest },
        })
    }
}

impl Finding {
    /// The message that it is about.
    #[must_use]
    pub fn message(&self) -> Option<&Quoted> {
        match self {
            Self::Seen(quoted) | Self::Ahead(quoted) | Self::Gap { message: quoted, .. } => Some(quoted),
            Self::Foreign { .. } | Self::Server(_) => None,
        }
    }
}

impl Client {
    /// What this device can show others of a room: a file that `waxwing verify` reads. `None` when there is no such room, or nothing of
    /// it yet.
    #[must_use]
    pub fn evidence(&self, room: RoomId, now_ms: u64) -> Option<Vec<u8>> {
        let me = self.me.as_ref()?;
        let evidence = self.rooms.get(&room)?.evidence(&me.identity, now_ms)?;
        Some(evidence.encode(&me.identity))
    }

    /// Tells the evidence as an event.
    pub(in crate::client) fn tell_evidence(&mut self, id: RoomId, now_ms: u64) {
        match self.evidence(id, now_ms) {
            Some(file) => {
                self.outputs.push_back(Output::Event(Event::Evidence { room: id.to_string(), file: BASE64.encode(file) }));
            }
            None => self.notice(Level::Warn, "there is nothing of this room on this device yet", Some(id)),
        }
    }

    /// The server contradicts this device's copy: stop taking anything from it, keep the copy and what it said, say so.
    pub(in crate::client) fn contradiction(&mut self, id: RoomId, text: &str, said: Said, now_ms: u64) {
        let Some(room) = self.rooms.get_mut(&id) else { return };
        room.wire.stopped = true;
        room.timeline.contradicted();
        let head = room.timeline.head();
        // What it says on every connection is kept once.
        let is_known = room.contradicted.iter().any(|known| known.said == said && known.head == head);
        let place = room.record.log.zip(room.timeline.chain_at(head));
        if let Some((log, chain)) = place.filter(|_| !is_known && room.contradicted.len() < SAID_MAX) {
            room.contradicted.push(Contradicted { log, at_ms: now_ms, head, chain, said });
            let value = encode(&room.contradicted);
            self.persist(evidence_key(id), Some(value));
        }
        self.send(&ClientFrame::Leave { room: id });
        self.notice(Level::Alarm, text, Some(id));
        self.tell_room(id);
    }
}
