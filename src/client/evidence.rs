//! What a device can show others of a room: its copy of the hash chain, what contradicts it, and what it signs for that.
//!
//! A file is `"waxwing evidence" ‖ format (1) ‖ signature (64) ‖ postcard of an` [`Evidence`]; the signature is Ed25519 by the
//! exporting device over `"waxwing evidence v1" ‖ SHA-256(the postcard)`. It needs no key to be checked, and no network.
//!
//! What it can prove ends where signatures end. A member's message is signed, so that what it says of the chain is that member's
//! word; what the server said, and that a record was not there, is the exporting device's word alone. Two exports that differ show that
//! the server told two devices different histories, to whoever trusts both devices.

use serde::{Deserialize, Serialize};

use super::records::{OpenedRecord, Who};
use crate::{
    core::{
        chain,
        id::{DeviceKey, Digest, LogId, RoomId, Seq, Signature, UnixMillis},
    },
    seal::identity::{Identity, Statement},
};

const MAGIC: &[u8; 16] = b"waxwing evidence";
const FORMAT: u8 = 1;
const LABEL: &[u8] = b"waxwing evidence v1";
/// Largest file that is read, in bytes.
pub const FILE_LEN_MAX: usize = 4 << 20;
/// Largest quotations in all, in bytes: what contradicts first is quoted first.
const QUOTED_LEN_MAX: usize = 1 << 20;
/// How many answers of a server are kept for a room.
pub(super) const SAID_MAX: usize = 16;

/// A device's copy of a room's history, and what contradicts it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// The room.
    pub room: RoomId,
    /// The life of its log.
    pub log: LogId,
    /// When the file was made, by the clock of the device.
    pub made_ms: UnixMillis,
    /// Who made it.
    pub by: Who,
    /// The seq of the first chain value.
    pub first: Seq,
    /// The chain values of consecutive seqs; the last one is at the newest record of the device.
    pub chains: Vec<Digest>,
    /// The epoch that the device is in, and its authenticator.
    pub epoch: Option<(u64, Digest)>,
    /// What contradicts.
    pub findings: Vec<Finding>,
    /// The persons' statements of whose the devices are: the maker's, and of those quoted who are members now.
    pub certificates: Vec<(DeviceKey, Statement)>,
}

/// Something that contradicts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Finding {
    /// The sender had seen another chain value than the one in this file.
    Seen(Box<Quoted>),
    /// The sender had seen records that come behind its message here.
    Ahead(Box<Quoted>),
    /// The message does not follow its sender's message before it, which is quoted if there is one.
    Gap {
        /// The sender's message before it here.
        before: Option<Box<Quoted>>,
        /// The message.
        message: Box<Quoted>,
    },
    /// No member wrote this record there.
    Foreign {
        /// Its seq.
        at: Seq,
        /// SHA-256 of it.
        digest: Digest,
    },
    /// The server said something of the room that contradicts.
    Server(Contradicted),
}

/// A message, as its sender signed it and as the device has it in its log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quoted {
    /// Its seq.
    pub at: Seq,
    /// SHA-256 of its envelope.
    pub digest: Digest,
    /// What was signed.
    pub message: OpenedRecord,
}

/// What a server said of a log, not signed, and what the device had then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contradicted {
    /// The log's life.
    pub log: LogId,
    /// When, by the clock of the device.
    pub at_ms: UnixMillis,
    /// The device's newest record then.
    pub head: Seq,
    /// The chain value there.
    pub chain: Digest,
    /// What the server said.
    pub said: Said,
}

/// What a server said of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Said {
    /// The chain value at a seq.
    Chain {
        /// The seq.
        at: Seq,
        /// The value.
        chain: Digest,
    },
    /// The next record that there is has this seq.
    Next(Seq),
    /// The newest record has this seq.
    Head(Seq),
}

/// Why a file is no evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EvidenceError {
    /// Not such a file, or cut short.
    #[error("this is not a file of evidence, or it is cut short")]
    NotEvidence,
    /// Made by a newer version.
    #[error("the file has format {0}, which this version does not know: update waxwing")]
    Format(u8),
    /// The device that it names did not sign it.
    #[error("the file was changed: its maker's signature does not verify")]
    Signature,
    /// A statement of whose a device is does not verify, or there is none of the maker.
    #[error("the file says whose a device is without that person's signature")]
    Certificate,
}

/// How far a finding holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strength {
    /// A member's signed words contradict the device's copy: either the server showed the two of them different histories, or one of the
    /// two is lying.
    Signed,
    /// The device says so, and nobody else has signed anything.
    Told,
    /// The file itself does not bear it out.
    Unfounded,
}

/// What two files say of each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compared {
    /// They are of different rooms.
    OtherRoom,
    /// They are of different lives of the room's log.
    OtherLife,
    /// They have no seq in common.
    Apart,
    /// The same history up to this seq.
    Same(Seq),
    /// They differ from this seq on. `since` is whether they are the same before it, or they have nothing in common before it.
    Differ {
        /// The first record that is another one.
        first: Seq,
        /// Whether they are known to be the same before it.
        since: bool,
    },
}

impl Evidence {
    /// The file, signed by its maker.
    #[must_use]
    pub fn encode(&self, identity: &Identity) -> Vec<u8> {
        let body = postcard::to_allocvec(self).expect("evidence encodes into memory");
        let signature = identity.sign(&signed(&body)).to_bytes();
        [&MAGIC[..], &[FORMAT], &signature, &body].concat()
    }

    /// Reads a file, and checks who made it.
    ///
    /// # Errors
    /// [`EvidenceError`].
    pub fn decode(file: &[u8]) -> Result<Self, EvidenceError> {
        let rest = file.strip_prefix(&MAGIC[..]).filter(|_| file.len() <= FILE_LEN_MAX).ok_or(EvidenceError::NotEvidence)?;
        let (format, rest) = rest.split_first().ok_or(EvidenceError::NotEvidence)?;
        if *format != FORMAT {
            return Err(EvidenceError::Format(*format));
        }
        let (signature, body) = rest.split_first_chunk::<{ Signature::LEN }>().ok_or(EvidenceError::NotEvidence)?;
        let evidence = Self::parse(body)?;
        if !Signature::from(*signature).verifies(&evidence.by.device.0, &signed(body)) {
            return Err(EvidenceError::Signature);
        }
        let certified = evidence.certificates.iter().all(|(device, statement)| statement.verify(*device).is_ok());
        if !certified || !evidence.is_of(evidence.by) {
            return Err(EvidenceError::Certificate);
        }
        Ok(evidence)
    }

    /// Reads what is signed, without the signature: nothing of it can be believed.
    ///
    /// # Errors
    /// [`EvidenceError::NotEvidence`].
    pub fn parse(body: &[u8]) -> Result<Self, EvidenceError> {
        let (evidence, rest): (Self, _) = postcard::take_from_bytes(body).map_err(|_| EvidenceError::NotEvidence)?;
        let kept = evidence.chains.len() as u64;
        if !rest.is_empty() || kept == 0 || evidence.first.checked_add(kept).is_none() {
            return Err(EvidenceError::NotEvidence);
        }
        Ok(evidence)
    }

    /// Whether the file has the person's statement that this device is theirs.
    #[must_use]
    pub fn is_of(&self, who: Who) -> bool {
        self.certificates.iter().any(|(device, statement)| *device == who.device && statement.user == who.user)
    }

    /// The newest record that the device had.
    #[must_use]
    pub fn head(&self) -> Seq {
        self.first.saturating_add(self.chains.len() as u64).saturating_sub(1)
    }

    /// The chain value at a seq, if it is here.
    #[must_use]
    pub fn chain_at(&self, seq: Seq) -> Option<Digest> {
        let at = usize::try_from(seq.checked_sub(self.first)?).ok()?;
        self.chains.get(at).copied()
    }

    /// Whether the chain has this record at this seq; `None` where it does not reach.
    fn has(&self, at: Seq, digest: Digest) -> Option<bool> {
        let before = self.chain_at(at.checked_sub(1)?)?;
        Some(self.chain_at(at)? == chain::next_hashed(self.room, before, at, digest))
    }

    fn is_quoted(&self, quoted: &Quoted) -> bool {
        quoted.message.is_signed(self.room) && self.has(quoted.at, quoted.digest) != Some(false)
    }

    /// How far a finding holds, by nothing but this file.
    #[must_use]
    pub fn strength(&self, finding: &Finding) -> Strength {
        let holds = |holds: bool, strength: Strength| if holds { strength } else { Strength::Unfounded };
        match finding {
            Finding::Seen(quoted) => {
                let seen = quoted.message.seen;
                let differs = self.chain_at(seen.seq).is_some_and(|chain| chain != seen.chain);
                holds(self.is_quoted(quoted) && seen.log == self.log && seen.seq < quoted.at && differs, Strength::Signed)
            }
            Finding::Ahead(quoted) => {
                let seen = quoted.message.seen;
                holds(self.is_quoted(quoted) && seen.log == self.log && seen.seq >= quoted.at, Strength::Signed)
            }
            Finding::Gap { before: Some(before), message } => {
                let (one, next) = (&before.message, &message.message);
                let same = one.sender == next.sender && one.session == next.session && before.at < message.at;
                let follows = one.counter.checked_add(1) == Some(next.counter) && next.previous == before.digest;
                let quoted = self.is_quoted(before) && self.is_quoted(message);
                holds(quoted && same && !follows, Strength::Signed)
            }
            // That there was none before it is the device's word.
            Finding::Gap { before: None, message } => {
                let is_first = message.message.counter == 1 && message.message.previous == Digest([0; 32]);
                holds(self.is_quoted(message) && !is_first, Strength::Told)
            }
            Finding::Foreign { at, digest } => holds(self.has(*at, *digest) != Some(false), Strength::Told),
            Finding::Server(Contradicted { log, head, chain, said, .. }) => {
                let differs = match said {
                    Said::Chain { at, chain: told } => (at, told) != (head, chain) && at <= head,
                    Said::Next(next) => head.checked_add(1) != Some(*next),
                    Said::Head(newest) => newest < head,
                };
                let had = *log != self.log || self.chain_at(*head).is_none_or(|kept| kept == *chain);
                holds(differs && had, Strength::Told)
            }
        }
    }

    /// Leaves out what would make the file too large.
    #[must_use]
    pub(super) fn cut(mut self) -> Self {
        let mut left = QUOTED_LEN_MAX;
        self.findings.retain(|finding| {
            let len = postcard::to_allocvec(finding).map_or(usize::MAX, |bytes| bytes.len());
            left.checked_sub(len).map(|rest| left = rest).is_some()
        });
        self
    }
}

fn signed(body: &[u8]) -> Vec<u8> {
    [LABEL, &chain::digest(body).0].concat()
}

/// Compares what two devices have of a room.
#[must_use]
pub fn compare(one: &Evidence, other: &Evidence) -> Compared {
    if one.room != other.room {
        return Compared::OtherRoom;
    }
    if one.log != other.log {
        return Compared::OtherLife;
    }
    let (from, to) = (one.first.max(other.first), one.head().min(other.head()));
    if from > to {
        return Compared::Apart;
    }
    // Not a search by halves: a file can say anything, and a chain that differs may be said to agree again.
    match (from..=to).find(|seq| one.chain_at(*seq) != other.chain_at(*seq)) {
        None => Compared::Same(to),
        Some(first) => Compared::Differ { first, since: first > from },
    }
}

/// Whether two devices are in an epoch of the same number with different authenticators: the group itself has split. `None` where they
/// are not in epochs of one number.
#[must_use]
pub fn is_split(one: &Evidence, other: &Evidence) -> Option<bool> {
    let ((number, here), (other_number, there)) = (one.epoch?, other.epoch?);
    (number == other_number).then_some(here != there)
}
