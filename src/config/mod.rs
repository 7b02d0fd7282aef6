//! Configuration: defaults, then `waxwing.toml`, then the environment, then flags. What is unknown, malformed or unsafe
//! does not start, and says why.

mod keys;
mod load;
mod network;
mod retention;
#[cfg(test)]
mod tests;
mod validate;

use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

pub use load::{ConfigError, Effective, Errors, Origin, Sources, load};
pub use network::{Network, ParseNetworkError};
pub use retention::{Keep, Retention};

use crate::core::limits::Limits;

/// Who may log in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auth {
    /// Any device key.
    Open,
    /// Device keys for which this deployment's secret has signed a token.
    Token,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

/// A secret that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub Vec<u8>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The store's own settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Store {
    /// Microseconds to wait for more after the first message of a batch, 0 to 2,000: messages come later, and a disk whose
    /// syncs are dear does fewer. Default 0.
    pub commit_wait_us: u32,
    /// Bytes of memory for pages of the history file. Default 64 MiB.
    pub cache_bytes: u64,
    /// Bytes of memory for messages of the history file that were read lately, checked and ready to be read again. Default 64 MiB.
    pub read_cache_bytes: u64,
    /// Bytes of disk for the write-ahead log. When it is full of messages that could not be brought into the history file,
    /// publishes are refused. Default 512 MiB.
    pub wal_bytes_max: u64,
    /// Bytes of memory of new messages at which they are brought into the history file; twice as much may be held. Default
    /// 96 MiB.
    pub apply_bytes: u64,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            commit_wait_us: 0,
            cache_bytes: 64 << 20,
            read_cache_bytes: 64 << 20,
            wal_bytes_max: 512 << 20,
            apply_bytes: 96 << 20,
        }
    }
}

/// What the server runs with. Defaults are those of development: every listener on this machine, a certificate of our own.
#[derive(Debug, Clone)]
pub struct Config {
    /// TLS over TCP, and QUIC over UDP, on the same addresses. Default 127.0.0.1:4433 and `[::1]:4433`. Port 0 takes any.
    pub listen: Vec<SocketAddr>,
    /// The page and `/ws` without TLS: for this machine, or behind a proxy. Default, in development, 127.0.0.1:8433 and
    /// `[::1]:8433`; else none.
    pub listen_plain: Vec<SocketAddr>,
    /// Health and metrics. Default 127.0.0.1:9433.
    pub listen_ops: Vec<SocketAddr>,
    /// Allows `listen_plain` on addresses that other machines reach. Default false.
    pub listen_plain_anywhere: bool,
    /// The store's directory. Default `data`.
    pub data: PathBuf,
    /// Where the development certificate is kept. Default `certs`.
    pub certs_dir: PathBuf,
    /// PEM file of the certificate chain. Absent: the development certificate.
    pub cert: Option<PathBuf>,
    /// PEM file of its private key.
    pub key: Option<PathBuf>,
    /// Names (`host` or `host:port`) under which clients reach this server. Default none, which is development.
    pub public_names: Vec<String>,
    /// `host:port` of QUIC, when it is not the page's host with the port of `listen`.
    pub public_quic: Option<String>,
    /// Origins of other pages that may connect, such as `https://app.example`. Default none.
    pub allowed_origins: Vec<String>,
    /// Proxies whose `X-Forwarded-For` is believed. Default none.
    pub trusted_proxies: Vec<Network>,
    /// Who may log in. Absent: open in development; elsewhere it must be set.
    pub auth: Option<Auth>,
    /// The secret of [`Auth::Token`], at least 32 bytes.
    pub token_secret: Option<Secret>,
    /// A file with that secret.
    pub token_secret_file: Option<PathBuf>,
    /// Shards, each a thread with rooms and connections; 0, the default, is one for each core but one, which is left to the store.
    pub shards: u16,
    /// Memory for recent messages, of all rooms together, in bytes. Default 64 MiB.
    pub recent_total_bytes_max: u64,
    /// Bytes of the disk that stay free: below, publishes are refused. Default 512 MiB.
    pub disk_reserve_bytes: u64,
    /// Connections at a time. Default 50,000.
    pub connections_max: u32,
    /// Connections that one address may have before they are logged in. Default 512.
    pub connections_per_address_max: u32,
    /// Milliseconds after which a client that takes nothing of what waits for it is closed, at least 1,000; it comes back to where it
    /// was. Default 60,000.
    pub stall_timeout_ms: u32,
    /// Milliseconds that a stopping server waits for its clients to go. Default 5,000.
    pub drain_timeout_ms: u32,
    /// How log lines look. Default human.
    pub log_format: LogFormat,
    /// What is logged, in the syntax of `tracing_subscriber::EnvFilter`. Default `info`.
    pub log_level: String,
    /// What connections, devices and rooms may use.
    pub limits: Limits,
    /// The store's own settings.
    pub store: Store,
    /// What the store keeps.
    pub retention: Retention,
}

impl Default for Config {
    fn default() -> Self {
        let both = |port| vec![SocketAddr::from(([127, 0, 0, 1], port)), SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], port))];
        Self {
            listen: both(4433),
            listen_plain: both(8433),
            listen_ops: vec![SocketAddr::from(([127, 0, 0, 1], 9433))],
            listen_plain_anywhere: false,
            data: "data".into(),
            certs_dir: "certs".into(),
            cert: None,
            key: None,
            public_names: Vec::new(),
            public_quic: None,
            allowed_origins: Vec::new(),
            trusted_proxies: Vec::new(),
            auth: None,
            token_secret: None,
            token_secret_file: None,
            shards: 0,
            recent_total_bytes_max: 64 << 20,
            disk_reserve_bytes: 256 << 20,
            connections_max: 50_000,
            connections_per_address_max: 512,
            stall_timeout_ms: 60_000,
            drain_timeout_ms: 5_000,
            log_format: LogFormat::Human,
            log_level: "info".into(),
            limits: Limits::default(),
            store: Store::default(),
            retention: Retention::default(),
        }
    }
}

impl Config {
    /// Whether only this machine can reach the server, and no public name says otherwise.
    #[must_use]
    pub fn is_development(&self) -> bool {
        self.public_names.is_empty() && self.listeners().all(|(_, address)| address.ip().to_canonical().is_loopback())
    }

    /// How long a client may take nothing.
    #[must_use]
    pub fn stall_timeout(&self) -> Duration {
        Duration::from_millis(self.stall_timeout_ms.into())
    }

    /// Every address that is listened on, with the key that names it.
    pub fn listeners(&self) -> impl Iterator<Item = (&'static str, SocketAddr)> {
        let of = |key, list: &[SocketAddr]| list.iter().map(move |address| (key, *address)).collect::<Vec<_>>();
        of("listen", &self.listen)
            .into_iter()
            .chain(of("listen_plain", &self.listen_plain))
            .chain(of("listen_ops", &self.listen_ops))
    }
}
