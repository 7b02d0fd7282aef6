//! A client's entries at rest: sealed one by one under a random key, which a passphrase wraps. So the passphrase costs its work once for each
//! opening, an entry costs microseconds, and what lies on the disk tells neither names nor contents.
//!
//! The key is wrapped as an exported identity is ([`super::backup`]). An entry's row is HKDF(key, "waxwing entry name v1", name); its value
//! `nonce (12) ‖ AES-256-GCM(HKDF(key, "waxwing entry v1", row), name length u32 LE ‖ name ‖ value)`, AAD = row. Each name has a key of its own, so
//! that random nonces do not run out.

use aes_gcm::{
    Aes256Gcm, KeyInit as _,
    aead::{Aead as _, Payload},
};
use zeroize::Zeroizing;

use super::{
    Random,
    backup::{self, BackupError},
    derive,
};

/// Where an entry lies: nobody learns its name from it.
pub type Row = [u8; 32];

const NONCE_LEN: usize = 12;
const LENGTH_LEN: usize = 4;

/// The key that seals entries.
pub struct Vault {
    key: Zeroizing<[u8; 32]>,
}

impl core::fmt::Debug for Vault {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Vault(…)")
    }
}

/// An entry that is too large, or bytes that are not one of this vault's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an entry of this vault")]
pub struct EntryError;

impl Vault {
    /// A new key.
    #[must_use]
    pub fn new(rng: &mut impl Random) -> Self {
        Self { key: Zeroizing::new(rng.bytes()) }
    }

    /// The key under a passphrase, to be kept. Takes about half a second on purpose.
    ///
    /// # Errors
    /// [`BackupError::Cost`] when there is no memory for it.
    pub fn wrap(&self, passphrase: &str, rng: &mut impl Random) -> Result<Vec<u8>, BackupError> {
        backup::encrypt(self.key.as_slice(), passphrase, rng)
    }

    /// The key that [`Vault::wrap`] wrapped.
    ///
    /// # Errors
    /// [`BackupError`].
    pub fn unwrap(wrapped: &[u8], passphrase: &str) -> Result<Self, BackupError> {
        let key = backup::decrypt(wrapped, passphrase)?;
        let key = key.as_slice().try_into().map_err(|_| BackupError::NotABackup)?;
        Ok(Self { key: Zeroizing::new(key) })
    }

    /// Where the entry of this name lies.
    #[must_use]
    pub fn row(&self, name: &str) -> Row {
        derive(&self.key, "waxwing entry name v1", name.as_bytes())
    }

    fn cipher(&self, row: &Row) -> Aes256Gcm {
        let key = Zeroizing::new(derive(&self.key, "waxwing entry v1", row));
        Aes256Gcm::new(&(*key).into())
    }

    /// Seals an entry.
    ///
    /// # Errors
    /// [`EntryError`] when it is too large: 4 GiB and more.
    pub fn seal(&self, name: &str, value: &[u8], rng: &mut impl Random) -> Result<(Row, Vec<u8>), EntryError> {
        let row = self.row(name);
        let nonce: [u8; NONCE_LEN] = rng.bytes();
        let len = u32::try_from(name.len()).map_err(|_| EntryError)?;
        let plaintext = Zeroizing::new([&len.to_le_bytes()[..], name.as_bytes(), value].concat());
        let payload = Payload { msg: &plaintext, aad: &row };
        let sealed = self.cipher(&row).encrypt(&nonce.into(), payload).map_err(|_| EntryError)?;
        Ok((row, [&nonce[..], &sealed].concat()))
    }

    /// The name and value of the entry that lies at `row`.
    ///
    /// # Errors
    /// [`EntryError`]: it was changed, or belongs elsewhere.
    pub fn open(&self, row: &Row, sealed: &[u8]) -> Result<(String, Zeroizing<Vec<u8>>), EntryError> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(EntryError)?;
        let plaintext = self.cipher(row).decrypt(nonce.into(), Payload { msg: sealed, aad: row }).map_err(|_| EntryError)?;
        let plaintext = Zeroizing::new(plaintext);
        let (len, rest) = plaintext.split_first_chunk::<LENGTH_LEN>().ok_or(EntryError)?;
        let (name, value) = rest.split_at_checked(u32::from_le_bytes(*len) as usize).ok_or(EntryError)?;
        let name = String::from_utf8(name.to_vec()).map_err(|_| EntryError)?;
        Ok((name, Zeroizing::new(value.to_vec())))
    }
}

#[cfg(test)]
mod tests {
    use rand_core::UnwrapErr;

    use super::*;

    #[test]
    fn an_entry_opens_where_it_lies_with_its_vaults_key_and_not_otherwise() {
        let rng = &mut UnwrapErr(getrandom::SysRng);
        let vault = Vault::new(rng);
        let (row, sealed) = vault.seal("room/7", b"secret", rng).unwrap();
        let (name, value) = vault.open(&row, &sealed).unwrap();
        assert_eq!((name.as_str(), value.as_slice(), vault.row("room/7")), ("room/7", &b"secret"[..], row));
        assert_ne!(vault.seal("room/7", b"secret", rng).unwrap().1, sealed, "the same entry again looks like another one");
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(vault.open(&row, &changed), Err(EntryError));
            assert_eq!(vault.open(&row, &sealed[..at]), Err(EntryError));
        }
        assert_eq!(vault.open(&vault.row("room/8"), &sealed), Err(EntryError), "it does not open as another entry");
        assert_eq!(Vault::new(rng).open(&row, &sealed), Err(EntryError));
    }

    #[test]
    fn the_key_comes_back_with_the_passphrase_only() {
        let rng = &mut UnwrapErr(getrandom::SysRng);
        let vault = Vault::new(rng);
        let (row, sealed) = vault.seal("identity", b"secret", rng).unwrap();
        let wrapped = vault.wrap("correct horse", rng).unwrap();
        let again = Vault::unwrap(&wrapped, "correct horse").unwrap();
        assert_eq!(again.open(&row, &sealed), vault.open(&row, &sealed));
        assert_eq!(Vault::unwrap(&wrapped, "correct hoarse").unwrap_err(), BackupError::Passphrase);
        assert_eq!(Vault::unwrap(b"", "correct horse").unwrap_err(), BackupError::NotABackup);
    }
}
