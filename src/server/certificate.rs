//! The development certificate: ECDSA P-256, at most 14 days, which is what browsers take by hash for WebTransport.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256};
use time::{Duration, OffsetDateTime};

use crate::transport::tls::Identity;

const DAY: u64 = 24 * 60 * 60;
/// Browsers refuse to pin a certificate that is valid for more than 14 days in all.
const VALID_DAYS: i64 = 13;
/// Made anew when it is valid for less than this.
const RENEW: u64 = 2 * DAY;
/// Before the markers of a PEM file, text is allowed: it says when to renew, for people and for us.
const NOT_AFTER: &str = "# not after (unix seconds): ";

/// Why there is no development certificate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It cannot be made.
    #[error(transparent)]
    Make(#[from] rcgen::Error),
    /// It cannot be kept.
    #[error("{}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What was just written cannot be read.
    #[error(transparent)]
    Read(#[from] crate::transport::tls::Error),
}

/// The certificate file of a directory.
#[must_use]
pub fn cert_path(dir: &Path) -> PathBuf {
    dir.join("development-cert.pem")
}

/// The key file of a directory.
#[must_use]
pub fn key_path(dir: &Path) -> PathBuf {
    dir.join("development-key.pem")
}

/// The certificate in `dir`, made or renewed when it is missing, unreadable or about to expire at `now`, in Unix seconds.
///
/// # Errors
/// [`Error`]
pub fn development(dir: &Path, now: u64) -> Result<Identity, Error> {
    let (cert, key) = (cert_path(dir), key_path(dir));
    if not_after(&cert).is_some_and(|not_after| not_after > now + RENEW && not_after < now + 15 * DAY)
        && let Ok(identity) = Identity::read(&cert, &key)
    {
        return Ok(identity);
    }
    make(dir, now)?;
    tracing::info!(path = %cert.display(), "made a development certificate");
    Ok(Identity::read(&cert, &key)?)
}

fn not_after(cert: &Path) -> Option<u64> {
    let text = fs::read_to_string(cert).ok()?;
    text.lines().find_map(|line| line.strip_prefix(NOT_AFTER))?.trim().parse().ok()
}

fn make(dir: &Path, now: u64) -> Result<(), Error> {
    let seconds = i64::try_from(now).unwrap_or(i64::MAX);
    let start = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let mut params = CertificateParams::new(["localhost", "127.0.0.1", "::1"].map(String::from))?;
    params.distinguished_name.push(DnType::CommonName, "Waxwing development");
    params.not_before = start - Duration::HOUR;
    params.not_after = start + Duration::days(VALID_DAYS);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let cert = params.self_signed(&key)?;
    let text = format!(
        "# A development certificate of Waxwing, renewed by itself.\n{NOT_AFTER}{}\n{}",
        params.not_after.unix_timestamp(),
        cert.pem()
    );
    fs::create_dir_all(dir).map_err(|source| Error::Write { path: dir.into(), source })?;
    write(&key_path(dir), key.serialize_pem().as_bytes())?;
    write(&cert_path(dir), text.as_bytes())
}

/// Writes a file that only its owner reads, whole or not at all.
fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let temporary = path.with_extension("pem.new");
    let written = (|| {
        // A leftover could have other permissions.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = fs::OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        io::Write::write_all(&mut options.open(&temporary)?, bytes)?;
        fs::rename(&temporary, path)
    })();
    written.map_err(|source| Error::Write { path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_kept_until_it_is_stale_and_replaced_when_it_is_broken() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("certs");
        let now = 1_800_000_000;
        let first = development(&dir, now).unwrap().fingerprint();
        assert_eq!(development(&dir, now + 10 * DAY).unwrap().fingerprint(), first);
        let second = development(&dir, now + 12 * DAY).unwrap().fingerprint();
        assert_ne!(second, first, "renewed before it expires");
        assert_ne!(development(&dir, now).unwrap().fingerprint(), second, "made by a clock that was ahead");
        fs::write(key_path(&dir), "garbage").unwrap();
        development(&dir, now).unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(key_path(&dir)).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }
}
