//! What a message says, inside the seal.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{devices::DeviceList, identity::Certificate};
use crate::core::id::{Digest, LogId, ProducerId, Seq};

/// The signed and sealed part of an envelope of kinds 1 and 7. postcard, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Body {
    /// The sender's session: its outbox's producer id, so that a new outbox is a new session.
    pub session: ProducerId,
    /// The message's number in that session and room, from 1: its client seq. For kind 7 a count of its own.
    pub counter: u64,
    /// SHA-256 of the sender's previous envelope in that session and room; zero for the first. Zero for kind 7.
    pub previous: Digest,
    /// What of the log the sender had verified.
    pub seen: Seen,
    /// What it says.
    pub content: Content,
}

impl Body {
    /// The bytes that are signed and sealed.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_allocvec(self).expect("a body encodes into memory")
    }
}

/// A point of the log's hash chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The log's life: in another one nothing can be compared.
    pub log: LogId,
    /// The newest seq that the sender had; 0 when none.
    pub seq: Seq,
    /// The chain value there.
    pub chain: Digest,
}

/// Versioned content: a reader that does not know the type shows the fallback.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// The type's number.
    pub kind: u16,
    /// What a reader shows that does not know the type; empty for "nothing".
    pub fallback: String,
    /// The type's own encoding (postcard of the payload in [`Message`]).
    pub data: Bytes,
}

/// The types that this build knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// 1: text of a person.
    Text(String),
    /// 2: the sender's certificate, for other devices of the same person.
    Device(Box<Certificate>),
    /// 3: a link that leads into the room, for members to hand on.
    Link(SharedLink),
    /// 4: someone is typing (kind 7 only).
    Typing,
    /// 5: the sender goes: an MLS message with its proposal to be removed, for a member that stays to commit.
    Leave(Bytes),
    /// 6: the sender's person's list of their devices.
    Devices(Box<DeviceList>),
    /// 7: a key of the room's drop-box, for members to read posts with.
    DropBox(Box<SharedDropBox>),
    /// 8: the drop-box is closed: what was announced up to this counter is not to be used any more.
    DropBoxClosed(u64),
    /// 9: the sender could not follow a change of the group that breaks no rule, and had to take its place again.
    Complaint(Complaint),
    /// Any other: the fallback.
    Unknown(String),
}

/// The change that a device complains about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Complaint {
    /// Where in the log it is.
    pub seq: Seq,
    /// SHA-256 of its record, as this device was given it.
    pub record: Digest,
}

/// A key of a drop-box, with what proves that its host has announced it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedDropBox {
    /// The announcement ([`super::dropbox::Announcement`]), as posters see it.
    pub announcement: Bytes,
    /// The seed of the X-Wing key in it.
    pub seed: [u8; 32],
}

/// The seed of a link that its maker's group lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedLink {
    /// The seed.
    pub seed: [u8; 32],
}

/// Longest name, title and text that is shown, in bytes; longer ones are cut at a character.
pub const NAME_LEN_MAX: usize = 64;
/// Longest text of one message, in bytes.
pub const TEXT_LEN_MAX: usize = 48 << 10;

impl Content {
    /// Encodes a message.
    #[must_use]
    pub fn new(message: &Message) -> Self {
        let encode = |kind, fallback: &str, data: Result<Vec<u8>, postcard::Error>| Self {
            kind,
            fallback: fallback.to_owned(),
            data: data.expect("content encodes into memory").into(),
        };
        match message {
            Message::Text(text) => encode(1, "", postcard::to_allocvec(text)),
            Message::Device(certificate) => encode(2, "", postcard::to_allocvec(certificate.as_ref())),
            Message::Link(link) => encode(3, "", postcard::to_allocvec(link)),
            Message::Typing => encode(4, "", Ok(Vec::new())),
            Message::Leave(proposal) => encode(5, "", postcard::to_allocvec(proposal)),
            Message::Devices(list) => encode(6, "", postcard::to_allocvec(list.as_ref())),
            Message::Complaint(complaint) => encode(9, "", postcard::to_allocvec(complaint)),
            Message::DropBox(shared) => encode(7, "", postcard::to_allocvec(shared.as_ref())),
            Message::DropBoxClosed(counter) => encode(8, "", postcard::to_allocvec(counter)),
            Message::Unknown(fallback) => encode(u16::MAX, fallback, Ok(Vec::new())),
        }
    }

    /// Decodes: an unknown type, or a known one in another form, is its fallback.
    #[must_use]
    pub fn message(&self) -> Message {
        let known = match self.kind {
            1 => postcard::from_bytes(&self.data).map(Message::Text).ok(),
            2 => postcard::from_bytes(&self.data).map(|certificate| Message::Device(Box::new(certificate))).ok(),
            3 => postcard::from_bytes(&self.data).map(Message::Link).ok(),
            4 => Some(Message::Typing),
            5 => postcard::from_bytes(&self.data).map(Message::Leave).ok(),
            6 => postcard::from_bytes(&self.data).map(|list| Message::Devices(Box::new(list))).ok(),
            7 => postcard::from_bytes(&self.data).map(|shared| Message::DropBox(Box::new(shared))).ok(),
            8 => postcard::from_bytes(&self.data).map(Message::DropBoxClosed).ok(),
            9 => postcard::from_bytes(&self.data).map(Message::Complaint).ok(),
            _ => None,
        };
        known.unwrap_or_else(|| Message::Unknown(self.fallback.clone()))
    }
}

/// Cuts a name or title to what is shown: one line, no control characters, limited.
#[must_use]
pub fn tidy(name: &str) -> String {
    let mut tidy = String::new();
    for word in name.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()) {
        if !tidy.is_empty() {
            tidy.push(' ');
        }
        tidy.extend(word.chars().filter(|c| !is_invisible(*c)));
    }
    let end = (0..=NAME_LEN_MAX.min(tidy.len())).rev().find(|at| tidy.is_char_boundary(*at)).unwrap_or(0);
    tidy.truncate(end);
    tidy
}

/// Characters that change how their neighbours look without being seen: directional overrides and zero-width ones.
const fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}
