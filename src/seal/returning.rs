//! Coming back: a device that fell behind its room's group asks members for its place, and then for the keys of what it missed, and one of them
//! answers. Both are kind 6 envelopes, posted to inboxes, so that nobody has to be there at the same time.
//!
//! Neither side can know the other's certificate beforehand. An ask is sealed to the X-Wing key of an epoch that its sender was in, and bound
//! to that epoch's authenticator; an answer is sealed to the asking device, and bound to the random name that the ask gave itself. So who asks for
//! keys has to be in the group again: it asks in an epoch behind all of those that it asks for.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    Random,
    epoch::{Epoch, EpochSecrets},
    hpke::{XWingPrivate, XWingPublic},
    identity::{Certificate, Identity, UserKey, inbox_id},
    message::{OpenError, SealError, open_letter, seal_letter},
};
use crate::core::{
    chain,
    id::{Digest, RoomId, Seq},
};

/// For what an ask is: part of `info`.
const TO_ASK: &str = "return";
/// For what an answer is: part of `info`.
const TO_ANSWER: &str = "place";
const FORMAT: u8 = 2;
/// Most epochs whose keys are in one answer: what fits into an envelope.
pub const KEYS_MAX: usize = 256;

/// What a device asks of members. postcard, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// Format of this record: 2.
    pub format: u8,
    /// Where.
    pub room: RoomId,
    /// Its random name: an answer is bound to it.
    pub name: [u8; 32],
    /// Who asks.
    pub asking: Certificate,
    /// For what.
    pub wants: Wants,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Wants {
    /// Its place.
    Place,
    /// The keys of the epochs between this one and the one that it asks in.
    Keys {
        /// The last epoch that it knows.
        after: u64,
    },
}

/// What a member says. postcard, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Format of this record: 2.
    pub format: u8,
    /// Where.
    pub room: RoomId,
    /// Who answers.
    pub by: Certificate,
    /// What was asked for.
    pub given: Given,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Given {
    /// What opens the server's door, and the group's.
    Place {
        /// What opens the room at the server.
        access: [u8; 32],
        /// How the group is found.
        way: Way,
    },
    /// Epochs behind the one that was named, one after the other, as far as the asking device was in them; at most [`KEYS_MAX`].
    Keys(Vec<EpochKeys>),
}

/// An epoch, for who was in it and has lost it. postcard, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochKeys {
    /// Its number.
    pub epoch: u64,
    /// SHA-256 of the record that began it.
    pub record: Digest,
    /// Its authenticator.
    pub authenticator: Digest,
    /// Its secrets.
    pub secrets: EpochSecrets,
}

/// How a device finds its group again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Way {
    /// By a link that leads in.
    Link {
        /// Its seed.
        seed: [u8; 32],
        /// Who made it.
        host: UserKey,
    },
    /// By the group info itself, where no link leads in.
    Group {
        /// The newest change of the group that who answers has taken.
        handshake: Seq,
        /// `group::GroupInfo`.
        info: Bytes,
    },
}

fn encode(letter: &impl Serialize) -> Vec<u8> {
    postcard::to_allocvec(letter).expect("a letter encodes into memory")
}

impl Ask {
    /// One of `identity`'s device.
    #[must_use]
    pub fn new(room: RoomId, name: [u8; 32], wants: Wants, identity: &Identity) -> Self {
        Self { format: FORMAT, room, name, asking: identity.certificate().clone(), wants }
    }

    /// Seals it to the members of the epoch whose X-Wing key and authenticator these are, for the one with this inbox.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn seal(
        &self,
        to: &XWingPublic,
        (epoch, authenticator): (u64, Digest),
        inbox: RoomId,
        identity: &Identity,
        rng: &mut impl Random,
    ) -> Result<Bytes, SealError> {
        seal_letter(to, (inbox, epoch), authenticator, TO_ASK, identity, &encode(self), rng)
    }

    /// Opens one that came to `inbox`, with an epoch. That the device may come back is for the caller to see.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(epoch: &Epoch, inbox: RoomId, envelope: &[u8]) -> Result<Self, OpenError> {
        let (private, public) = XWingPrivate::from_seed(&epoch.secrets().xwing);
        let opened = open_letter(&private, &public, (inbox, epoch.number), epoch.authenticator, TO_ASK, envelope)?;
        let ask: Self = opened.verify_with(|ask: &Self| ask.asking.verify().is_ok().then_some(ask.asking.device))?;
        if ask.format == FORMAT && ask.room == epoch.room { Ok(ask) } else { Err(OpenError::Foreign) }
    }
}

/// What an answer is bound to.
fn bound(name: &[u8; 32]) -> Digest {
    chain::digest(&[&b"waxwing return v1"[..], name].concat())
}

impl Answer {
    /// Seals an answer to an ask. Returns the inbox to post to and the envelope.
    ///
    /// # Errors
    /// [`SealError`]; [`SealError::TooLarge`] where a group info does not fit.
    pub fn seal(ask: &Ask, given: Given, identity: &Identity, rng: &mut impl Random) -> Result<(RoomId, Bytes), SealError> {
        let to = XWingPublic::from_bytes(&ask.asking.inbox)?;
        let answer = Self { format: FORMAT, room: ask.room, by: identity.certificate().clone(), given };
        let inbox = inbox_id(&to);
        Ok((inbox, seal_letter(&to, (inbox, 0), bound(&ask.name), TO_ANSWER, identity, &encode(&answer), rng)?))
    }

    /// Opens one to the ask of this name. That a member answers is for the caller to see.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(with: &XWingPrivate, public: &XWingPublic, name: &[u8; 32], envelope: &[u8]) -> Result<Self, OpenError> {
        let opened = open_letter(with, public, (inbox_id(public), 0), bound(name), TO_ANSWER, envelope)?;
        let answer: Self = opened.verify_with(|answer: &Self| answer.by.verify().is_ok().then_some(answer.by.device))?;
        let fits = !matches!(&answer.given, Given::Keys(keys) if keys.len() > KEYS_MAX);
        if answer.format == FORMAT && fits { Ok(answer) } else { Err(OpenError::Foreign) }
    }
}
