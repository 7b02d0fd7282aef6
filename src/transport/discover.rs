//! How a native client finds an edge: from the origin in a room's link to addresses, paths and whom to trust.

use serde::{Deserialize, Serialize};

use super::{
    ConnectError, Target, Trust,
    connect::Dial,
    http::{Origin, exchange},
};

/// Where a server says how it is reached.
pub const WELL_KNOWN: &str = "/.well-known/waxwing";
/// Bytes of its answer at most.
const ANSWER_MAX: usize = 16 << 10;

/// What [`WELL_KNOWN`] answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// 1.
    pub version: u16,
    /// `host:port` of WebTransport and raw QUIC; absent when the server has no UDP listener.
    pub quic: Option<String>,
    /// SHA-256 of the development certificate in hex; absent when the certificate is one of the public web.
    pub certificate_sha256: Option<String>,
    /// Path of WebSocket, on the same origin.
    pub ws: String,
    /// Path of WebTransport.
    pub wt: String,
}

/// Asks `origin` (`https://chat.example`, `http://localhost:8433`) how to connect. `trust` is for its TLS; a development
/// server's QUIC certificate is pinned by the hash that the answer carries, which therefore must come from this machine
/// or over verified TLS.
///
/// # Errors
/// [`ConnectError`]; [`ConnectError::Insecure`] when the origin is plain HTTP and not this machine.
pub async fn discover(origin: &str, trust: Trust) -> Result<Target, ConnectError> {
    let origin = Origin::parse(origin)?;
    let answer = exchange(&origin, origin.tls.then_some(&trust), WELL_KNOWN, None, ANSWER_MAX).await?.ok()?;
    let document: Document = serde_json::from_slice(&answer).map_err(|_| ConnectError::Answer("not a description"))?;
    if document.version != 1 {
        return Err(ConnectError::Answer("version"));
    }
    let Origin { dial, authority, tls } = origin;
    let quic_trust = match &document.certificate_sha256 {
        Some(hash) => Trust::Pinned(parse_hash(hash).ok_or(ConnectError::Answer("certificate_sha256"))?),
        None => trust.clone(),
    };
    let quic = document.quic.as_deref().map(|text| Dial::parse(text).ok_or(ConnectError::Answer("quic"))).transpose()?;
    if !document.ws.starts_with('/') || !document.wt.starts_with('/') {
        return Err(ConnectError::Answer("ws or wt"));
    }
    Ok(Target { authority, tls, tcp: dial, quic, ws_path: document.ws, wt_path: document.wt, trust, quic_trust })
}

fn parse_hash(hex: &str) -> Option<[u8; 32]> {
    let mut hash = [0; 32];
    if hex.len() != 64 || !hex.is_ascii() {
        return None;
    }
    for (index, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(hex.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(hash)
}

/// Whether a host names this machine.
#[must_use]
pub fn is_loopback(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    host.eq_ignore_ascii_case("localhost") || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_64_hex_digits() {
        assert_eq!(parse_hash(&"0a".repeat(32)), Some([10; 32]));
        for bad in ["", "0a", &"0g".repeat(32), &"é".repeat(32), &"0a".repeat(33)] {
            assert_eq!(parse_hash(bad), None, "{bad}");
        }
    }

    #[test]
    fn loopback_is_this_machine_only() {
        for host in ["localhost", "LOCALHOST", "127.0.0.1", "127.9.9.9", "[::1]", "::1"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["localhost.evil.example", "128.0.0.1", "10.0.0.1", "[::2]", ""] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[tokio::test]
    async fn plain_http_is_for_this_machine_only() {
        let refused = discover("http://chat.example", Trust::WebPki).await;
        assert!(matches!(refused, Err(ConnectError::Insecure(host)) if host == "chat.example"));
        for bad in ["chat.example", "ftp://localhost", "not a url"] {
            assert!(matches!(discover(bad, Trust::WebPki).await, Err(ConnectError::Origin(_))), "{bad}");
        }
    }
}
