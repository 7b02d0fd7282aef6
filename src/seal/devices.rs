//! A person's devices, as the person signs them: a list that only grows in number, names the one before it, and never takes back that a
//! device was removed. Members of the person's rooms are told of it in sealed traffic, and see who is in a room without being on it.
//!
//! Every device of a person can sign the next list, as it can certify devices. So a list says which devices the person's devices know
//! of, and does not protect from one that was stolen: that one can sign, too.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::identity::{Identity, UserKey};
use crate::core::{
    chain,
    id::{DeviceKey, Digest, Signature},
};

const LABEL: &[u8] = b"waxwing devices v1";
const FORMAT: u8 = 1;
/// How many devices a person can have.
pub const DEVICES_MAX: usize = 64;
/// How many that were removed are remembered.
pub const REMOVED_MAX: usize = 256;

/// The list. postcard, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceList {
    /// Format of this record: 1.
    pub format: u8,
    /// The person.
    pub user: UserKey,
    /// Higher replaces lower; the first one has 1.
    pub counter: u64,
    /// SHA-256 of the list that it was made from; zero for the first.
    pub previous: Digest,
    /// The person's devices, ascending.
    pub devices: BTreeSet<DeviceKey>,
    /// Devices that were the person's and are not any more, ascending.
    pub removed: BTreeSet<DeviceKey>,
    signature: Signature,
}

impl DeviceList {
    /// The list after `before`, with these devices and without those; `None` when that changes nothing, or is too much.
    #[must_use]
    pub fn next(
        before: Option<&Self>,
        identity: &Identity,
        devices: impl IntoIterator<Item = DeviceKey>,
        removed: impl IntoIterator<Item = DeviceKey>,
    ) -> Option<Self> {
        let gone: BTreeSet<_> = before.into_iter().flat_map(|list| list.removed.iter().copied()).chain(removed).collect();
        let all = before.into_iter().flat_map(|list| list.devices.iter().copied()).chain(devices);
        let devices: BTreeSet<_> = all.filter(|device| !gone.contains(device)).collect();
        if before.is_some_and(|list| list.devices == devices && list.removed == gone) {
            return None;
        }
        let mut list = Self {
            format: FORMAT,
            user: identity.user(),
            counter: before.map_or(0, |list| list.counter).checked_add(1)?,
            previous: before.map_or(Digest([0; 32]), Self::hash),
            devices,
            removed: gone,
            signature: [0; 64].into(),
        };
        list.signature = identity.sign_as_person(&list.signed());
        list.is_within_limits().then_some(list)
    }

    /// What two devices of the person know, as one list; `None` when `self` says it already and replaces the other one. Whoever
    /// has it from the other one does not sign it again, so that this comes to an end.
    #[must_use]
    pub fn with(&self, other: &Self, identity: &Identity) -> Option<Self> {
        let newest = if other.counter >= self.counter { other } else { self };
        let devices = self.devices.iter().chain(&other.devices).copied();
        let both = Self::next(Some(newest), identity, devices, self.removed.iter().chain(&other.removed).copied());
        both.or_else(|| (newest == other && other != self).then(|| other.clone()))
    }

    fn is_within_limits(&self) -> bool {
        self.devices.len() <= DEVICES_MAX && self.removed.len() <= REMOVED_MAX
    }

    /// Names the list.
    #[must_use]
    pub fn hash(&self) -> Digest {
        chain::digest(&postcard::to_allocvec(self).expect("a list encodes into memory"))
    }

    fn signed(&self) -> Vec<u8> {
        let said = (self.format, self.user, self.counter, self.previous, &self.devices, &self.removed);
        let said = postcard::to_allocvec(&said).expect("a list encodes into memory");
        [LABEL, &chain::digest(&said).0].concat()
    }

    /// Whether the person signed it, and it is one that can be.
    #[must_use]
    pub fn is_signed(&self) -> bool {
        let sound =
            self.format == FORMAT && self.counter > 0 && self.is_within_limits() && self.devices.is_disjoint(&self.removed);
        sound && self.signature.verifies(&self.user.0, &self.signed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_follow_each_other_and_what_was_removed_stays_removed() {
        let rng = &mut rand_core::UnwrapErr(getrandom::SysRng);
        let (ann, bob) = (Identity::generate(rng, 0), Identity::generate(rng, 0));
        let [one, two, three] = [1, 2, 3].map(|n| DeviceKey([n; 32]));
        let first = DeviceList::next(None, &ann, [one, two], []).unwrap();
        assert!(first.is_signed() && first.counter == 1);
        assert_eq!(DeviceList::next(Some(&first), &ann, [two], []), None, "nothing new");
        let second = DeviceList::next(Some(&first), &ann, [three], [two]).unwrap();
        assert!(second.is_signed());
        assert_eq!((second.counter, second.previous), (2, first.hash()));
        assert_eq!(second.devices, BTreeSet::from([one, three]));
        assert_eq!(DeviceList::next(Some(&second), &ann, [two], []), None, "it does not come back");
        // Two devices say something at once: either joins both, and takes over what the other one has signed.
        let other = DeviceList::next(Some(&first), &ann, [DeviceKey([4; 32])], [one]).unwrap();
        let both = second.with(&other, &ann).unwrap();
        assert_eq!(both.devices, other.with(&second, &ann).unwrap().devices);
        assert_eq!((both.devices.clone(), both.counter), (BTreeSet::from([three, DeviceKey([4; 32])]), 3));
        assert_eq!((both.with(&other, &ann), other.with(&both, &ann)), (None, Some(both.clone())));
        let theirs = other.with(&second, &ann).unwrap();
        assert_eq!((both.with(&both, &ann), both.with(&theirs, &ann)), (None, Some(theirs)));
        // One that says less under the same number is answered.
        let more = DeviceList::next(Some(&first), &ann, [three, DeviceKey([5; 32])], [two]).unwrap();
        assert_eq!(more.with(&second, &ann).unwrap().counter, 3);
        for changed in [
            DeviceList { counter: 9, ..second.clone() },
            DeviceList { user: bob.user(), ..second.clone() },
            DeviceList { previous: Digest([1; 32]), ..second.clone() },
            DeviceList { devices: BTreeSet::from([one]), ..second.clone() },
            DeviceList { removed: BTreeSet::new(), ..second },
        ] {
            assert!(!changed.is_signed(), "{changed:?}");
        }
        let many = (0..=u8::try_from(DEVICES_MAX).unwrap()).map(|n| DeviceKey([n; 32]));
        assert_eq!(DeviceList::next(None, &ann, many, []), None);
    }
}
