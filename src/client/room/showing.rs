//! A room as people see it: [`view`].

use super::place::Place;
use super::{Room, Shown, What, first_16};
use crate::client::contacts::{person_code, room_code, safety_hash};
use crate::client::records::{ContactRecord, Letter, OutRecord, Stage, Who};
use crate::client::timeline::Newcomer;
use crate::client::view::{self, Author, Check, Member, MessageKind, MessageState};
use crate::core::id::{DeviceKey, MessageId, Seq};
use crate::group::{Role, Suite};
use crate::seal::body::{Message, tidy};
use crate::seal::identity::{Identity, UserKey};
use crate::seal::words::words;
use std::collections::{BTreeMap, BTreeSet};

impl Room {
    pub(super) fn view(&self, me: &Identity, contacts: &BTreeMap<UserKey, ContactRecord>) -> view::Room {
        let owner = self.role(me.user()) == Some(Role::Owner);
        let (state, reason) = match &self.record.stage {
            _ if self.wire.stopped => {
                (view::RoomState::Refused, Some("the server's history contradicts what this device has seen".to_owned()))
            }
            Stage::Deleted | Stage::Deleting => (view::RoomState::Deleted, None),
            Stage::Removed => (view::RoomState::Refused, Some("this device was removed from the room".to_owned())),
            Stage::Missed => {
                (view::RoomState::Refused, Some("the invitation does not let this device in: ask for another one".to_owned()))
            }
            _ if self.record.leaving => {
                (view::RoomState::Refused, Some("leaving: another member's device takes this one out".to_owned()))
            }
            _ if self.shut_out.is_some() => (view::RoomState::Refused, self.shut_out.as_ref().map(|(why, _)| why.clone())),
            Stage::Joined if self.place.seat().is_some() && self.timeline.handshake() > 0 => (view::RoomState::Open, None),
            Stage::Creating | Stage::Invited | Stage::Added | Stage::Joined => (view::RoomState::Joining, None),
        };
        let direct = self.peer();
        let title = match (self.timeline.title(), &self.place) {
            _ if direct.is_some() => direct.map(|user| self.name_of_user(user)).unwrap_or_default(),
            ("", Place::Joining(joining)) => tidy(joining.group().policy().title()),
            ("", Place::In(seat)) => seat.wanted_title(),
            (title, _) => title.to_owned(),
        };
        let (words_at, hash) = self.words_hash();
        view::Room {
            id: self.id.to_string(),
            title,
            drop_box: self.drop_box(me),
            direct: direct.map(|user| user.to_string()),
            link: self.live_link().map(|link| link.to_string()).unwrap_or_default(),
            owner,
            state,
            reason,
            members: self.members(me, contacts),
            head: self.timeline.head(),
            up_to_date: self.up_to_date(),
            settled: self.settled(),
            integrity: self.timeline.integrity(),
            words: words(&hash.0),
            words_at,
            code: room_code(self.id, (words_at, hash)),
            closed: self.closed(),
            post_quantum: self.place.seat().is_none_or(|seat| seat.group.suite() == Suite::XWing),
            history: self.history(),
        }
    }

    /// What this device cannot read, and why.
    pub(super) fn closed(&self) -> Option<Box<str>> {
        let since = match self.history() {
            view::History::FromJoin => "newcomers read from their join here".to_owned(),
            view::History::Everything => "newcomers read what was written since that was chosen".to_owned(),
            view::History::Days(1) => "newcomers read the last day here, since that was chosen".to_owned(),
            view::History::Days(days) => format!("newcomers read the last {days} days here, since that was chosen"),
        };
        let before = match self.record.base {
            0 => None,
            1 => Some(format!("1 entry from before this device came in: {since}")),
            count => Some(format!("{count} entries from before this device came in: {since}")),
        };
        let meanwhile = match self.timeline.sealed_count() {
            0 => None,
            1 => {
                Some(format!("1 message from while this device was out of the room, or could not follow it{}", self.gap_words()))
            }
            count => Some(format!(
                "{count} messages from while this device was out of the room, or could not follow it{}",
                self.gap_words()
            )),
        };
        let parts: Vec<_> = before.into_iter().chain(meanwhile).collect();
        (!parts.is_empty()).then(|| parts.join("; ").into())
    }

    pub(super) fn members(&self, me: &Identity, contacts: &BTreeMap<UserKey, ContactRecord>) -> Vec<Member> {
        let mut people: BTreeMap<UserKey, BTreeSet<DeviceKey>> = BTreeMap::new();
        for who in self.place.seat().into_iter().flat_map(|seat| seat.roster.values()) {
            people.entry(who.user).or_default().insert(who.device);
        }
        let member = |(user, devices): (UserKey, BTreeSet<DeviceKey>)| Member {
            user: user.to_string(),
            name: devices.first().map_or_else(|| self.name_of_user(user), |device| self.name_of(Who { device: *device, user })),
            you: user == me.user(),
            role: match self.role(user) {
                Some(Role::Owner) => view::Role::Owner,
                Some(Role::Moderator) => view::Role::Moderator,
                None => view::Role::Member,
            },
            online: devices.iter().any(|device| self.online.contains(device)),
            confirmed: devices.iter().all(|device| self.timeline.is_confirmed(*device)),
            devices: u32::try_from(devices.len()).unwrap_or(u32::MAX),
            unlisted: self
                .timeline
                .list_of(user)
                .map_or(0, |list| u32::try_from(devices.difference(&list.devices).count()).unwrap_or(u32::MAX)),
            verified: contacts.contains_key(&user),
            safety: if user == me.user() { Vec::new() } else { words(&safety_hash(me.user(), user).0) },
            code: if user == me.user() { String::new() } else { person_code(me.user(), user) },
        };
        people.into_iter().map(member).collect()
    }

    /// A record of the log, for people; `None` for what is not shown.
    pub(super) fn message_view(&self, me: &Identity, seq: Seq) -> Option<view::Message> {
        let shown = self.shown.get(&seq)?;
        let Shown { time_ms, digest, check, what, .. } = shown;
        let (sender, kind, text) = match what {
            What::Message(opened) => {
                let (kind, text) = content_view(&opened.content.message())?;
                (opened.sender, kind, text)
            }
            What::Post(post) => return self.post_view(seq, shown, post),
            What::Sent(sent) => {
                let (kind, text) = content_view(&sent.content.message())?;
                (sent.sender, kind, text)
            }
            What::Change(change, newcomer) => {
                let names = |who: &[Who]| who.iter().map(|who| self.name_of(*who)).collect::<Vec<_>>().join(", ");
                match (newcomer, change.gone.first(), change.left.first()) {
                    (Some((who, Newcomer::Device)), ..) if who.device != me.device() => {
                        (*who, MessageKind::Device, self.name_of(*who))
                    }
                    (Some((who, Newcomer::Namesake)), ..) if who.device != me.device() => {
                        (*who, MessageKind::Namesake, self.name_of(*who))
                    }
                    (Some(_), ..) if change.joined.iter().all(|who| who.user != change.by.user) => {
                        (change.by, MessageKind::Added, names(&change.joined))
                    }
                    (Some((who, _)), ..) => (*who, MessageKind::Join, names(&change.joined)),
                    (None, Some(_), _) => (change.by, MessageKind::Removed, names(&change.gone)),
                    (None, None, Some(who)) => (*who, MessageKind::Left, names(&change.left)),
                    (None, None, None) => {
                        (change.by, MessageKind::History, view::History::from(change.history?).told().into_owned())
                    }
                }
            }
        };
        let of_this_device = sender.device == me.device();
        let key = match what {
            What::Message(opened) if of_this_device => opened.message.to_string(),
            What::Sent(sent) => sent.message.to_string(),
            _ => MessageId(first_16(digest)).to_string(),
        };
        Some(view::Message {
            key,
            seq: Some(seq),
            author: Author { user: sender.user.to_string(), name: self.name_of(sender) },
            mine: sender.user == me.user(),
            kind,
            text,
            time_ms: *time_ms,
            state: if of_this_device { MessageState::Sent } else { MessageState::Received },
            reason: None,
            check: *check,
        })
    }

    /// A message of the outbox, for people.
    pub(super) fn out_view(&self, me: &Identity, name: &str, out: &OutRecord) -> Option<view::Message> {
        let Letter::Content(content) = &out.letter else { return None };
        let (kind, text) = content_view(&content.message())?;
        Some(view::Message {
            key: out.message.to_string(),
            seq: None,
            author: Author { user: me.user().to_string(), name: name.to_owned() },
            mine: true,
            kind,
            text,
            time_ms: out.time_ms,
            state: if out.failed.is_some() { MessageState::Failed } else { MessageState::Pending },
            reason: out.failed.clone(),
            check: Check::Unchecked,
        })
    }

    /// A message of the outbox that the log has at `seq`.
    pub(super) fn sent_view(&self, me: &Identity, name: &str, message: MessageId, seq: Seq) -> Option<view::Message> {
        let out = self.outbox.iter().find(|out| out.message == message)?;
        let view = self.out_view(me, name, out)?;
        Some(view::Message { seq: Some(seq), state: MessageState::Sent, ..view })
    }
}

fn content_view(message: &Message) -> Option<(MessageKind, String)> {
    match message {
        Message::Text(text) => Some((MessageKind::Text, text.clone())),
        Message::Typing
        | Message::Link(_)
        | Message::Device(_)
        | Message::Devices(_)
        | Message::Leave(_)
        | Message::DropBox(_)
        | Message::DropBoxClosed(_)
        | Message::Complaint(_) => None,
        Message::Unknown(fallback) if fallback.is_empty() => None,
        Message::Unknown(fallback) => Some((MessageKind::Unknown, fallback.clone())),
    }
}
