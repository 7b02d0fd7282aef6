//! An encrypted file that keeps a person: what a cleared browser or a lost disk must not take away.
//!
//! `"waxwing-backup" ‖ format (1) ‖ memory KiB u32 LE ‖ passes u32 LE ‖ salt (16) ‖ nonce (12) ‖ AES-256-GCM(key, payload)`, key =
//! Argon2id(passphrase, salt) (RFC 9106); everything before the ciphertext is the AAD.

use aes_gcm::{
    Aes256Gcm, KeyInit as _,
    aead::{Aead as _, Payload},
};
use zeroize::Zeroizing;

use super::Random;

const MAGIC: &[u8; 14] = b"waxwing-backup";
const FORMAT: u8 = 1;
/// 64 MiB and three passes: the second recommendation of RFC 9106 §4, with one lane (browsers have one thread here).
const MEMORY_KIB: u32 = 64 << 10;
const PASSES: u32 = 3;
/// What a file may ask for at most, so that a hostile one cannot exhaust the reader.
const MEMORY_KIB_MAX: u32 = 256 << 10;
const PASSES_MAX: u32 = 16;
const HEAD_LEN: usize = 14 + 1 + 4 + 4 + 16 + 12;

/// Why a backup was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// Not a backup, or cut short.
    #[error("this is not a waxwing backup, or it is cut short")]
    NotABackup,
    /// Made by a newer version.
    #[error("the backup has format {0}, which this version does not know: update waxwing")]
    Format(u8),
    /// It asks for more work than is reasonable.
    #[error("the backup asks for an unreasonable amount of work")]
    Cost,
    /// Wrong passphrase, or changed bytes.
    #[error("wrong passphrase, or the backup is damaged")]
    Passphrase,
}

fn key(passphrase: &str, salt: &[u8], memory_kib: u32, passes: u32) -> Result<Zeroizing<[u8; 32]>, BackupError> {
    let params = argon2::Params::new(memory_kib, passes, 1, Some(32)).map_err(|_| BackupError::Cost)?;
    let mut key = Zeroizing::new([0; 32]);
    argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params)
        .hash_password_into(passphrase.as_bytes(), salt, key.as_mut())
        .map_err(|_| BackupError::Cost)?;
    Ok(key)
}

/// Encrypts `payload` under a passphrase. Takes about half a second on purpose.
///
/// # Errors
/// [`BackupError::Cost`] when there is no memory for the key derivation.
pub fn encrypt(payload: &[u8], passphrase: &str, rng: &mut impl Random) -> Result<Vec<u8>, BackupError> {
    let (salt, nonce): ([u8; 16], [u8; 12]) = (rng.bytes(), rng.bytes());
    let mut file = MAGIC.to_vec();
    file.push(FORMAT);
    file.extend_from_slice(&MEMORY_KIB.to_le_bytes());
    file.extend_from_slice(&PASSES.to_le_bytes());
    file.extend_from_slice(&salt);
    file.extend_from_slice(&nonce);
    let key = key(passphrase, &salt, MEMORY_KIB, PASSES)?;
    let sealed = Aes256Gcm::new(&(*key).into())
        .encrypt(&nonce.into(), Payload { msg: payload, aad: &file })
        .map_err(|_| BackupError::Cost)?;
    file.extend_from_slice(&sealed);
    Ok(file)
}

/// Decrypts what [`encrypt`] made.
///
/// # Errors
/// [`BackupError`].
pub fn decrypt(file: &[u8], passphrase: &str) -> Result<Zeroizing<Vec<u8>>, BackupError> {
    let (head, sealed) = file.split_first_chunk::<HEAD_LEN>().ok_or(BackupError::NotABackup)?;
    let (magic, rest) = head.split_first_chunk::<14>().ok_or(BackupError::NotABackup)?;
    if magic != MAGIC {
        return Err(BackupError::NotABackup);
    }
    let (format, rest) = rest.split_first().ok_or(BackupError::NotABackup)?;
    if *format != FORMAT {
        return Err(BackupError::Format(*format));
    }
    let (memory_kib, rest) = rest.split_first_chunk().ok_or(BackupError::NotABackup)?;
    let (passes, rest) = rest.split_first_chunk().ok_or(BackupError::NotABackup)?;
    let (salt, nonce) = rest.split_first_chunk::<16>().ok_or(BackupError::NotABackup)?;
    let nonce: [u8; 12] = nonce.try_into().map_err(|_| BackupError::NotABackup)?;
    let (memory_kib, passes) = (u32::from_le_bytes(*memory_kib), u32::from_le_bytes(*passes));
    if memory_kib > MEMORY_KIB_MAX || passes > PASSES_MAX {
        return Err(BackupError::Cost);
    }
    let key = key(passphrase, salt, memory_kib, passes)?;
    Aes256Gcm::new(&(*key).into())
        .decrypt(&nonce.into(), Payload { msg: sealed, aad: head })
        .map(Zeroizing::new)
        .map_err(|_| BackupError::Passphrase)
}

#[cfg(test)]
mod tests {
    use rand_core::UnwrapErr;

    use super::*;

    const AT_MEMORY: usize = 15;
    const AT_PASSES: usize = 19;
    const AT_SALT: usize = 23;
    const AT_NONCE: usize = 39;

    fn made() -> Vec<u8> {
        encrypt(b"keys", "correct horse", &mut UnwrapErr(getrandom::SysRng)).unwrap()
    }

    #[test]
    fn a_file_opens_with_its_passphrase_as_it_was_made_and_not_otherwise() {
        let file = made();
        assert_eq!(decrypt(&file, "correct horse").unwrap().as_slice(), b"keys");
        assert_eq!(decrypt(&file, "correct hoarse"), Err(BackupError::Passphrase));
        // One bit of every field: cheaper parameters would make guessing cheaper.
        for at in [AT_MEMORY, AT_PASSES, AT_SALT, AT_NONCE, HEAD_LEN, file.len() - 1] {
            let mut changed = file.clone();
            changed[at] ^= 2;
            assert_eq!(decrypt(&changed, "correct horse"), Err(BackupError::Passphrase), "byte {at}");
        }
        assert_eq!(decrypt(&file[..file.len() - 1], "correct horse"), Err(BackupError::Passphrase));
    }

    #[test]
    fn a_file_that_asks_for_too_much_is_refused_before_any_work() {
        let file = made();
        let with = |at: usize, field: u32| {
            let mut changed = file.clone();
            changed[at..at + 4].copy_from_slice(&field.to_le_bytes());
            decrypt(&changed, "correct horse")
        };
        for (at, max) in [(AT_MEMORY, MEMORY_KIB_MAX), (AT_PASSES, PASSES_MAX)] {
            assert_eq!(with(at, max + 1), Err(BackupError::Cost));
            assert_eq!(with(at, u32::MAX), Err(BackupError::Cost));
            assert_eq!(with(at, 0), Err(BackupError::Cost), "nor for none, which Argon2 does not do");
        }
        for len in 0..HEAD_LEN {
            assert_eq!(decrypt(&file[..len], ""), Err(BackupError::NotABackup));
        }
        let changed = |at: usize| [&file[..at], &[9], &file[at + 1..]].concat();
        assert_eq!(decrypt(&changed(0), ""), Err(BackupError::NotABackup));
        assert_eq!(decrypt(&changed(14), ""), Err(BackupError::Format(9)));
    }
}
