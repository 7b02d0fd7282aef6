//! The key packages of one device for groups of one suite (RFC 9420 §10): with one of them others add it to a group while it is away. Each is
//! handed out once; when none is left, the one that the device has marked as its last resort is handed out again and again. Pure: whoever
//! calls it makes the result durable before anybody hears of it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    chain,
    close::Refusal,
    frame::KeyPackage,
    id::{DeviceKey, UnixMillis},
    limits::Limits,
};

/// Bytes that all packages of one device and suite may have together.
pub const PACKAGES_BYTES_MAX: usize = 2 << 20;

/// The cryptography of a group, fixed when it is made. A server keeps key packages for each apart, and knows nothing else of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Suite {
    /// X-Wing, AES-128-GCM, SHA-256, Ed25519 (`0x004F`, draft-ietf-mls-pq-ciphersuites): epochs that quantum computers do not open.
    XWing,
    /// X25519, AES-128-GCM, SHA-256, Ed25519 (`0x0001`, RFC 9420 §17.1).
    X25519,
}

impl Suite {
    /// All there are.
    pub const ALL: [Self; 2] = [Self::XWing, Self::X25519];
}

/// The name under which an engine keeps a device's packages for groups of this suite: the device's own, and for the classical suite a hash, which
/// no device has for a key.
#[must_use]
pub fn kept_under(device: DeviceKey, suite: Suite) -> DeviceKey {
    match suite {
        Suite::XWing => device,
        Suite::X25519 => DeviceKey(chain::digest(&[&b"waxwing classical packages v1"[..], &device.0].concat()).0),
    }
}

/// The packages of one device and suite, in the order in which they are handed out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Packages(Vec<KeyPackage>);

/// One that was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// The package.
    pub bytes: Bytes,
    /// Whether it is gone: then it may be handed out only when that is durable.
    pub is_gone: bool,
}

impl Packages {
    /// Reads what [`Packages::encode`] wrote; no bytes are no packages. `None` if it is something else.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.is_empty() {
            return Some(Self::default());
        }
        postcard::take_from_bytes(bytes).ok().filter(|(_, rest)| rest.is_empty()).map(|(packages, _)| packages)
    }

    /// As an engine keeps them: postcard, and no bytes for no packages.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        if self.0.is_empty() {
            return Bytes::new();
        }
        postcard::to_allocvec(self).expect("a list of known length encodes into memory").into()
    }

    /// Adds packages behind those that are there; with `replace` those go. What has expired goes too, and a last resort takes
    /// the place of the former one.
    ///
    /// # Errors
    /// [`Refusal::TooLarge`] or [`Refusal::TooManyPackages`]; nothing has changed.
    pub fn publish(
        &mut self,
        packages: &[KeyPackage],
        replace: bool,
        now_ms: UnixMillis,
        limits: &Limits,
    ) -> Result<(), Refusal> {
        let (max, bytes_max) = (limits.key_packages_max, limits.key_package_bytes_max);
        if packages.iter().any(|package| package.bytes.len() > bytes_max as usize) {
            return Err(Refusal::TooLarge { max: bytes_max });
        }
        let resort = packages.iter().rposition(|package| package.last_resort);
        let former = self.0.iter().filter(|package| !(replace || package.last_resort && resort.is_some()));
        // One that comes again, because nobody heard that it had come, is not handed out twice.
        let known = |package: &KeyPackage| former.clone().any(|former| former.bytes == package.bytes);
        let new = packages.iter().enumerate().filter(|(at, package)| match package.last_resort {
            true => Some(*at) == resort,
            false => !known(package),
        });
        let all = former.clone().chain(new.map(|(_, package)| package)).filter(|package| package.expires_ms > now_ms);
        let all: Vec<KeyPackage> = all.cloned().collect();
        let bytes: usize = all.iter().map(|package| package.bytes.len()).sum();
        if all.len() > max as usize || bytes > PACKAGES_BYTES_MAX {
            return Err(Refusal::TooManyPackages { max });
        }
        self.0 = all;
        Ok(())
    }

    /// Hands one out: the oldest that has not expired, or else the last resort.
    pub fn take(&mut self, now_ms: UnixMillis) -> Option<Taken> {
        self.0.retain(|package| package.expires_ms > now_ms);
        if let Some(at) = self.0.iter().position(|package| !package.last_resort) {
            return Some(Taken { bytes: self.0.remove(at).bytes, is_gone: true });
        }
        self.0.first().map(|package| Taken { bytes: package.bytes.clone(), is_gone: false })
    }

    /// How many can be taken, the last resort not counted.
    #[must_use]
    pub fn left(&self, now_ms: UnixMillis) -> u32 {
        let left = self.0.iter().filter(|package| !package.last_resort && package.expires_ms > now_ms).count();
        u32::try_from(left).unwrap_or(u32::MAX)
    }

    /// Forgets those that are handed out once: after the store was restored from a backup, nobody knows which of them were
    /// handed out since.
    pub fn keep_last_resort(&mut self) {
        self.0.retain(|package| package.last_resort);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn package(number: u8, expires_ms: u64, last_resort: bool) -> KeyPackage {
        KeyPackage { expires_ms, last_resort, bytes: Bytes::from(vec![number; 10]) }
    }

    fn taken(packages: &mut Packages, now_ms: u64) -> Option<(u8, bool)> {
        packages.take(now_ms).map(|taken| (taken.bytes[0], taken.is_gone))
    }

    #[test]
    fn each_is_handed_out_once_and_the_last_resort_when_there_is_no_other() {
        let (mut packages, limits) = (Packages::default(), Limits::default());
        assert_eq!(taken(&mut packages, 0), None);
        let new = vec![package(1, 100, false), package(9, 1000, true), package(2, 50, false), package(3, 100, false)];
        packages.publish(&new, false, 0, &limits).unwrap();
        assert_eq!((packages.left(0), packages.left(50)), (3, 2));
        assert_eq!(
            [0, 60, 60, 60].map(|now| taken(&mut packages, now)),
            [Some((1, true)), Some((3, true)), Some((9, false)), Some((9, false))]
        );
        packages.publish(&[package(4, 100, false)], false, 60, &limits).unwrap();
        packages.publish(&[package(4, 100, false)], false, 60, &limits).unwrap();
        assert_eq!(packages.left(60), 1, "one that comes again is the same");
        packages.publish(&[package(8, 1000, true), package(7, 1000, true)], false, 60, &limits).unwrap();
        assert_eq!([60, 60].map(|now| taken(&mut packages, now)), [Some((4, true)), Some((7, false))], "the newest of them");
        assert_eq!(taken(&mut packages, 1000), None, "it expires too");
        assert!(packages.encode().is_empty());
    }

    #[test]
    fn limits_refuse_all_of_it_and_replacing_makes_room() {
        let limits = Limits { key_packages_max: 3, key_package_bytes_max: 10, ..Limits::default() };
        let mut packages = Packages::default();
        let mut number = 0;
        let mut new = |count: u8| {
            number += count;
            (number - count..number).map(|number| package(number, 9, false)).collect::<Vec<_>>()
        };
        assert_eq!(packages.publish(&new(4), false, 0, &limits), Err(Refusal::TooManyPackages { max: 3 }));
        packages.publish(&new(2), false, 0, &limits).unwrap();
        let before = packages.clone();
        assert_eq!(packages.publish(&new(2), false, 0, &limits), Err(Refusal::TooManyPackages { max: 3 }));
        let large = vec![KeyPackage { bytes: vec![0; 11].into(), ..package(1, 9, false) }];
        assert_eq!(packages.publish(&large, true, 0, &limits), Err(Refusal::TooLarge { max: 10 }));
        assert_eq!(packages, before);
        packages.publish(&new(3), true, 0, &limits).unwrap();
        assert_eq!(packages.left(0), 3);
        packages.publish(&new(3), false, 9, &limits).unwrap();
        assert_eq!(packages.left(0), 0, "what has expired takes no place, and is not taken in");
        let roomy = Limits { key_packages_max: 200, ..Limits::default() };
        let many = vec![KeyPackage { bytes: vec![0; 16 << 10].into(), ..package(1, 99, false) }; 129];
        assert_eq!(packages.publish(&many, false, 0, &roomy), Err(Refusal::TooManyPackages { max: 200 }));
        packages.publish(&[package(1, 99, false), package(2, 99, true)], false, 0, &roomy).unwrap();
        packages.keep_last_resort();
        assert_eq!((packages.left(0), taken(&mut packages, 0)), (0, Some((2, false))));
    }

    proptest! {
        #[test]
        fn they_are_kept_as_they_are_and_no_bytes_panic(
            kept in proptest::collection::vec((any::<u8>(), any::<u64>(), any::<bool>()), 0..9),
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let packages = Packages(kept.into_iter().map(|(number, expires, last)| package(number, expires, last)).collect());
            prop_assert_eq!(Packages::decode(&packages.encode()), Some(packages));
            let _ = Packages::decode(&bytes);
        }
    }
}
