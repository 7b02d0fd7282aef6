//! What opened a room before. A handshake record may name a new access key; whoever was away then knows only the former one, and
//! learns the new one by processing that record. So who proves a former key is let in to read up to the record that replaced
//! it, and no further.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::id::{AccessKey, Seq};

/// Replaced keys that a room remembers; who knows only an older one has to be let in anew.
pub const FORMER_KEYS_MAX: usize = 64;

/// The access keys that handshake records have replaced.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FormerKeys {
    /// The newest record that replaced a key which is not remembered; 0 when all are.
    forgotten: Seq,
    /// Each with the record that replaced it, ascending.
    keys: VecDeque<(Seq, AccessKey)>,
}

impl FormerKeys {
    /// The handshake record at `seq` puts `next` in the place of `access`.
    pub fn replace(&mut self, access: &mut AccessKey, seq: Seq, next: AccessKey) {
        self.keys.push_back((seq, std::mem::replace(access, next)));
        if self.keys.len() > FORMER_KEYS_MAX
            && let Some((seq, _)) = self.keys.pop_front()
        {
            self.forgotten = seq;
        }
    }

    /// What opens the room for those who have processed the handshake record at `handshake` and none after it, where `access`
    /// is in force; and the record that brought that key, 0 if the room was made with it. `None` if it is forgotten.
    #[must_use]
    pub fn opening(&self, handshake: Seq, access: AccessKey) -> Option<(Seq, AccessKey)> {
        if handshake < self.forgotten {
            return None;
        }
        let (before, after): (Vec<_>, Vec<_>) = self.keys.iter().partition(|(seq, _)| *seq <= handshake);
        let since = before.last().map_or(self.forgotten, |(seq, _)| *seq);
        Some((since, after.first().map_or(access, |(_, key)| *key)))
    }

    /// How far who proved the key that the record at `since` brought may read: up to the record that replaced it, [`Seq::MAX`]
    /// while it is in force, 0 when it is forgotten.
    #[must_use]
    pub fn until(&self, since: Seq) -> Seq {
        if since < self.forgotten { 0 } else { self.next_after(since).unwrap_or(Seq::MAX) }
    }

    /// The first record after `after` that replaced a key, as far as they are remembered.
    #[must_use]
    pub fn next_after(&self, after: Seq) -> Option<Seq> {
        self.keys.iter().map(|(seq, _)| *seq).find(|seq| *seq > after)
    }

    /// Whether they can be those of a log whose newest handshake record is at `handshake`.
    #[must_use]
    pub fn is_plausible(&self, handshake: Seq) -> bool {
        let seqs = || self.keys.iter().map(|(seq, _)| *seq);
        let ascends = seqs().zip(seqs().skip(1)).all(|(one, next)| one < next);
        ascends
            && self.keys.len() <= FORMER_KEYS_MAX
            && seqs().next().is_none_or(|first| first > self.forgotten)
            && seqs().next_back().unwrap_or(self.forgotten) <= handshake
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn key(number: u8) -> AccessKey {
        AccessKey([number; 32])
    }

    #[test]
    fn each_key_opens_up_to_the_record_that_replaced_it() {
        let (mut former, mut access) = (FormerKeys::default(), key(0));
        assert_eq!((former.opening(0, access), former.until(0)), (Some((0, key(0))), Seq::MAX));
        former.replace(&mut access, 10, key(1));
        former.replace(&mut access, 20, key(2));
        assert_eq!(access, key(2));
        for (handshake, since, opens, until) in
            [(0, 0, 0, 10), (9, 0, 0, 10), (10, 10, 1, 20), (19, 10, 1, 20), (20, 20, 2, Seq::MAX)]
        {
            assert_eq!((former.opening(handshake, access), former.until(since)), (Some((since, key(opens))), until));
        }
        assert_eq!(former.opening(Seq::MAX, access), Some((20, key(2))));
        assert_eq!([0, 9, 10, 20].map(|after| former.next_after(after)), [Some(10), Some(10), Some(20), None]);
        assert!(former.is_plausible(20) && former.is_plausible(25) && !former.is_plausible(19));
    }

    #[test]
    fn the_oldest_are_forgotten() {
        let (mut former, mut access) = (FormerKeys::default(), key(0));
        let most = u8::try_from(FORMER_KEYS_MAX).unwrap();
        for number in 1..=most + 2 {
            former.replace(&mut access, u64::from(number) * 10, key(number));
        }
        assert_eq!((former.opening(0, access), former.opening(19, access)), (None, None));
        assert_eq!(former.opening(20, access), Some((20, key(2))));
        assert_eq!([0, 10, 20].map(|since| former.until(since)), [0, 0, 30], "a session that entered long ago is out");
        assert!(former.is_plausible(Seq::MAX) && !FormerKeys { forgotten: 30, ..former }.is_plausible(Seq::MAX));
    }
}
