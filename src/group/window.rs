//! The window of a room whose newcomers read the last days: the keys of the rungs that they go down by, as far as these days reach.
//!
//! There a rung is sealed under a key that no rung hands down, so that whoever opens one goes no further by it. Beside it each
//! commit's record has all of the keys that are still within the days, sealed under a key of the epoch that the commit begins, which
//! is not handed down either. Whoever commits leaves out at the old end what is too old by its clock. Each member checks that what is left
//! continues what was there, so that nobody brings back what was left out; how much is left out nobody checks, since members have no common clock.

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::ladder::{open_sealed, seal_padded};
use crate::{
    core::{
        chain,
        id::{Digest, RoomId, UnixMillis},
    },
    seal::{derive, message::padme},
};

/// Most keys of one window: what is older than so many commits newcomers do not read, whatever the days.
pub const WINDOW_MAX: usize = 1024;

const DAY_MS: u64 = 24 * 3600 * 1000;

/// What of an epoch leads down from it: MLS-Exporter("waxwing ladder", "", 32). It is in no rung.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub(super) struct LadderSecret(pub [u8; 32]);

impl core::fmt::Debug for LadderSecret {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("LadderSecret(…)")
    }
}

/// What the keys of an epoch's record are bound to.
pub(super) fn context(room: RoomId, epoch: u64) -> Vec<u8> {
    [&room.0[..], &epoch.to_le_bytes()].concat()
}

impl LadderSecret {
    /// The key of the group info that links open.
    pub(super) fn info_key(&self, context: &[u8]) -> [u8; 32] {
        derive(&self.0, "waxwing group info v1", context)
    }

    /// The key of the epoch's rung, where newcomers read the last days.
    pub(super) fn rung_key(&self, context: &[u8]) -> [u8; 32] {
        derive(&self.0, "waxwing rung key v1", context)
    }

    fn window_key(&self, context: &[u8]) -> [u8; 32] {
        derive(&self.0, "waxwing window v1", context)
    }
}

/// What opens one rung. postcard, in this order.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub struct RungKey {
    /// Of AES-256-GCM.
    pub key: [u8; 32],
    /// When the commit that the rung belongs to was made, by its maker's clock: then the epoch ended that the rung opens.
    pub made_ms: UnixMillis,
}

impl core::fmt::Debug for RungKey {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("RungKey").field("made_ms", &self.made_ms).finish_non_exhaustive()
    }
}

impl RungKey {
    fn digest(&self) -> Digest {
        chain::digest(&postcard::to_allocvec(self).expect("a key encodes into memory"))
    }
}

/// A group's window, as one member keeps it. postcard, in this order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Window {
    /// Newest first.
    pub keys: Vec<RungKey>,
    /// SHA-256 of those behind them that this member has deleted, and others may not have.
    pub gone: Vec<Digest>,
}

impl Window {
    /// The window after a commit made at `now_ms`, whose rung `key` opens, where newcomers read so many days.
    pub(super) fn next(&self, key: [u8; 32], now_ms: UnixMillis, days: u16) -> Vec<RungKey> {
        let since_ms = since(now_ms, days);
        let kept = self.keys.iter().take_while(|key| key.made_ms >= since_ms).take(WINDOW_MAX - 1).cloned();
        core::iter::once(RungKey { key, made_ms: now_ms }).chain(kept).collect()
    }

    /// Whether a commit whose rung `key` opens may bring these keys: that one, and from the newest on what is here.
    pub(super) fn leads_to(&self, keys: &[RungKey], key: &[u8; 32]) -> bool {
        let Some((first, rest)) = keys.split_first() else { return false };
        let here = self.keys.iter().map(RungKey::digest).chain(self.gone.iter().copied());
        first.key == *key
            && rest.len() <= self.keys.len() + self.gone.len()
            && rest.iter().map(RungKey::digest).zip(here).all(|(one, other)| one == other)
    }

    /// Deletes what was made before so many days, and all behind it; `false` if nothing was.
    pub(super) fn forget(&mut self, now_ms: UnixMillis, days: u16) -> bool {
        let since_ms = since(now_ms, days);
        let Some(at) = self.keys.iter().position(|key| key.made_ms < since_ms) else { return false };
        let gone: Vec<_> = self.keys.drain(at..).map(|key| key.digest()).collect();
        self.gone.splice(..0, gone);
        true
    }

    /// Opens a record's window.
    pub(super) fn open(ladder: &LadderSecret, context: &[u8], sealed: &[u8]) -> Option<Self> {
        let keys: Vec<RungKey> = open_sealed(&ladder.window_key(context), context, sealed)?;
        (keys.len() <= WINDOW_MAX).then_some(Self { keys, gone: Vec::new() })
    }
}

/// Seals the keys for a record. The key encrypts once, so that its nonce is zero.
pub(super) fn seal(keys: &[RungKey], ladder: &LadderSecret, context: &[u8]) -> Option<bytes::Bytes> {
    seal_padded(&ladder.window_key(context), context, &keys, padme)
}

const fn since(now_ms: UnixMillis, days: u16) -> UnixMillis {
    now_ms.saturating_sub(days as u64 * DAY_MS)
}
