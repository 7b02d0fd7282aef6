//! TLS, the same everywhere: version 1.3 only, aws-lc-rs, X25519MLKEM768 preferred.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use rustls::{
    NamedGroup,
    crypto::{ActiveKeyExchange, CompletedKeyExchange, CryptoProvider, SupportedKxGroup},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use sha2::{Digest as _, Sha256};

/// The label of the TLS exporter that a login signs (RFC 8446 §7.5).
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-waxwing-login";

/// Whom a client trusts to be the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// Whoever has a certificate of the public web for the name that was dialled.
    WebPki,
    /// Whoever has the certificate with this SHA-256 (of its DER): a development server.
    Pinned([u8; 32]),
    /// Whoever has a certificate that chains to one of those in this PEM file.
    File(PathBuf),
}

/// Why TLS could not be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A PEM file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: rustls::pki_types::pem::Error,
    },
    /// A PEM file has no certificate.
    #[error("{} has no certificate", .0.display())]
    NoCertificate(PathBuf),
    /// rustls refuses the certificate or the key.
    #[error(transparent)]
    Rustls(#[from] rustls::Error),
}

/// The cryptography of every connection.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider())))
}

/// Called with the key exchange group of each handshake.
pub type OnGroup = Arc<dyn Fn(NamedGroup) + Send + Sync>;

/// The same cryptography, telling which group each handshake of a server used: quinn does not say.
pub fn counting_provider(on_group: &OnGroup) -> Arc<CryptoProvider> {
    let mut provider = provider().as_ref().clone();
    for group in &mut provider.kx_groups {
        // One small leak for each configuration: rustls wants groups that live for ever, and a server has one or two.
        *group = Box::leak(Box::new(Counting { group: *group, on_group: Arc::clone(on_group) }));
    }
    Arc::new(provider)
}

struct Counting {
    group: &'static dyn SupportedKxGroup,
    on_group: OnGroup,
}

impl std::fmt::Debug for Counting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.group.fmt(f)
    }
}

impl SupportedKxGroup for Counting {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, rustls::Error> {
        self.group.start()
    }

    fn start_and_complete(&self, peer_pub_key: &[u8]) -> Result<CompletedKeyExchange, rustls::Error> {
        let complete = self.group.start_and_complete(peer_pub_key)?;
        (self.on_group)(complete.group);
        Ok(complete)
    }

    fn ffdhe_group(&self) -> Option<rustls::ffdhe_groups::FfdheGroup<'static>> {
        self.group.ffdhe_group()
    }

    fn name(&self) -> NamedGroup {
        self.group.name()
    }

    fn fips(&self) -> bool {
        self.group.fips()
    }

    fn usable_for_version(&self, version: rustls::ProtocolVersion) -> bool {
        self.group.usable_for_version(version)
    }
}

/// A certificate chain and its key.
#[derive(Debug)]
pub struct Identity {
    /// The chain, the server's own certificate first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its private key.
    pub key: PrivateKeyDer<'static>,
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

impl Identity {
    /// Reads PEM files.
    ///
    /// # Errors
    /// [`Error::Pem`], [`Error::NoCertificate`]
    pub fn read(cert: &std::path::Path, key: &std::path::Path) -> Result<Self, Error> {
        let key_der = PrivateKeyDer::from_pem_file(key).map_err(|source| Error::Pem { path: key.into(), source })?;
        Ok(Self { chain: read_chain(cert)?, key: key_der })
    }

    /// SHA-256 of the server's certificate in DER: what browsers take in `serverCertificateHashes`.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        self.chain.first().map_or([0; 32], |cert| Sha256::digest(cert).into())
    }
}

pub(super) fn read_chain(path: &std::path::Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let chain = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|source| Error::Pem { path: path.into(), source })?;
    if chain.is_empty() { Err(Error::NoCertificate(path.into())) } else { Ok(chain) }
}

/// A server's configuration for these protocols.
///
/// # Errors
/// [`Error::Rustls`] when key and certificate do not fit.
pub fn server_config(provider: Arc<CryptoProvider>, identity: Identity, alpn: &[&[u8]]) -> Result<rustls::ServerConfig, Error> {
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(identity.chain, identity.key)?;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}
