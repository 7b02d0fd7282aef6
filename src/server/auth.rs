//! Who may log in: anybody, or devices for which the deployment's own back end has made a token.
//!
//! A token is base64url without padding of `expiry ‖ HMAC-SHA256(secret, "waxwing token v1" ‖ device key ‖ expiry)`, where the
//! expiry is Unix seconds as u64, little-endian. Any back end can make one.

use std::{io, path::PathBuf};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::{
    config::{Auth, Config, Secret},
    core::id::DeviceKey,
};

const LABEL: &[u8] = b"waxwing token v1";
/// Bytes of a secret at least.
const SECRET_MIN: usize = 32;

/// Why a token is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// There is none, or it is no token.
    #[error("the token is missing or malformed")]
    Malformed,
    /// It was made for another device, or with another secret.
    #[error("the token is not for this device")]
    Wrong,
    /// It is too old.
    #[error("the token has expired")]
    Expired,
}

/// Why the secret cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SecretError {
    /// The file cannot be read.
    #[error("token_secret_file = {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is too short to be a secret.
    #[error("the token secret has {0} bytes; at least {SECRET_MIN} random ones are needed")]
    Short(usize),
    /// There is none.
    #[error("auth is not \"token\", or there is no token_secret")]
    Missing,
}

/// Checks logins.
#[derive(Debug, Clone)]
pub enum Authenticator {
    /// Every device may log in.
    Open,
    /// Those with a token.
    Token(Secret),
}

/// The secret of a configuration, from the key or the file (whose trailing line end does not count).
///
/// # Errors
/// [`SecretError`]
pub fn secret(config: &Config) -> Result<Secret, SecretError> {
    let secret = match (&config.token_secret, &config.token_secret_file) {
        (Some(secret), _) => secret.clone(),
        (None, Some(path)) => {
            let mut bytes = std::fs::read(path).map_err(|source| SecretError::Read { path: path.clone(), source })?;
            bytes.truncate(bytes.trim_ascii_end().len());
            Secret(bytes)
        }
        (None, None) => return Err(SecretError::Missing),
    };
    if secret.0.len() < SECRET_MIN { Err(SecretError::Short(secret.0.len())) } else { Ok(secret) }
}

fn mac(secret: &Secret, device: &DeviceKey, expiry: u64) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(&secret.0).expect("HMAC takes keys of any length");
    mac.update(LABEL);
    mac.update(device.as_bytes());
    mac.update(&expiry.to_le_bytes());
    mac
}

/// A token for a device, until `expiry` in Unix seconds.
#[must_use]
pub fn mint(secret: &Secret, device: &DeviceKey, expiry: u64) -> String {
    let mut bytes = expiry.to_le_bytes().to_vec();
    bytes.extend_from_slice(&mac(secret, device, expiry).finalize().into_bytes());
    BASE64.encode(bytes)
}

impl Authenticator {
    /// As the configuration says; open when it says nothing, which only development may.
    ///
    /// # Errors
    /// [`SecretError`]
    pub fn new(config: &Config) -> Result<Self, SecretError> {
        match config.auth {
            None | Some(Auth::Open) => Ok(Self::Open),
            Some(Auth::Token) => Ok(Self::Token(secret(config)?)),
        }
    }

    /// Whether `device` may log in with `token` (its text) at `now`, in Unix seconds. Takes the same time for every wrong
    /// token of the right length.
    ///
    /// # Errors
    /// [`TokenError`]
    pub fn check(&self, device: &DeviceKey, token: &[u8], now: u64) -> Result<(), TokenError> {
        let Self::Token(secret) = self else { return Ok(()) };
        let bytes = BASE64.decode(token).map_err(|_| TokenError::Malformed)?;
        let (expiry, tag) = bytes.split_first_chunk::<8>().ok_or(TokenError::Malformed)?;
        let expiry = u64::from_le_bytes(*expiry);
        if tag.len() != 32 {
            return Err(TokenError::Malformed);
        }
        mac(secret, device, expiry).verify_slice(tag).map_err(|_| TokenError::Wrong)?;
        if expiry <= now { Err(TokenError::Expired) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_opens_for_its_device_until_it_expires() {
        let secret = Secret(vec![7; 32]);
        let (device, other) = (DeviceKey([1; 32]), DeviceKey([2; 32]));
        let auth = Authenticator::Token(secret.clone());
        let token = mint(&secret, &device, 1000);
        assert_eq!(auth.check(&device, token.as_bytes(), 999), Ok(()));
        assert_eq!(auth.check(&device, token.as_bytes(), 1000), Err(TokenError::Expired));
        assert_eq!(auth.check(&other, token.as_bytes(), 999), Err(TokenError::Wrong));
        assert_eq!(auth.check(&device, mint(&Secret(vec![8; 32]), &device, 1000).as_bytes(), 999), Err(TokenError::Wrong));
        for malformed in ["", "AAAA", "not base64!", &token[..token.len() - 2], &format!("{token}AAAA")] {
            assert_eq!(auth.check(&device, malformed.as_bytes(), 999), Err(TokenError::Malformed), "{malformed}");
        }
        // A later expiry under the same tag.
        let mut bytes = BASE64.decode(&token).unwrap();
        bytes[1] ^= 0xff;
        assert_eq!(auth.check(&device, BASE64.encode(bytes).as_bytes(), 999), Err(TokenError::Wrong));
        assert_eq!(Authenticator::Open.check(&device, b"", 0), Ok(()));
    }

    #[test]
    fn the_format_is_fixed() {
        let token = mint(&Secret(vec![0; 32]), &DeviceKey([0; 32]), 1);
        assert_eq!(token.len(), 54);
        assert!(token.starts_with("AQAAAAAAAA"), "{token}");
    }

    #[test]
    fn a_secret_file_must_hold_a_secret() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let config = Config { auth: Some(Auth::Token), token_secret_file: Some(path.clone()), ..Config::default() };
        assert!(matches!(Authenticator::new(&config), Err(SecretError::Read { .. })));
        std::fs::write(&path, "short\n").unwrap();
        assert!(matches!(Authenticator::new(&config), Err(SecretError::Short(5))));
        std::fs::write(&path, format!("{}\n", "x".repeat(32))).unwrap();
        assert_eq!(secret(&config).unwrap().0.len(), 32);
    }
}
