//! TLS, the same everywhere: version 1.3 only, aws-lc-rs, X25519MLKEM768 preferred.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use rustls::{
    NamedGroup, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{ActiveKeyExchange, CompletedKeyExchange, CryptoProvider, SupportedKxGroup, WebPkiSupportedAlgorithms},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
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

fn read_chain(path: &std::path::Path) -> Result<Vec<CertificateDer<'static>>, Error> {
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

/// A client's configuration.
///
/// # Errors
/// [`Error`] when a trust file cannot be used.
#[cfg(feature = "client")]
pub fn client_config(trust: &Trust, alpn: &[&[u8]]) -> Result<rustls::ClientConfig, Error> {
    let builder = rustls::ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&rustls::version::TLS13])?;
    let mut config = match trust {
        Trust::Pinned(hash) => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Pin {
                hash: *hash,
                algorithms: provider().signature_verification_algorithms,
            }))
            .with_no_client_auth(),
        Trust::WebPki => {
            let roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
            builder.with_root_certificates(roots).with_no_client_auth()
        }
        Trust::File(path) => {
            let mut roots = rustls::RootCertStore::empty();
            for cert in read_chain(path)? {
                roots.add(cert)?;
            }
            builder.with_root_certificates(roots).with_no_client_auth()
        }
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

/// Accepts one certificate, whatever its name and dates; the server must still prove its key.
#[derive(Debug)]
struct Pin {
    hash: [u8; 32],
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Pin {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if Sha256::digest(end_entity).as_slice() == self.hash {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(rustls::CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::Tls13RequiredForQuic.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
