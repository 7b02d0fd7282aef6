//! The edge: listeners, admission, the page, the ops endpoint, and a clean stop.
//!
//! This layer turns sockets into [`Connection`]s and hands each to a [`Handler`]; what is said on it is the driver's.

pub mod admission;
pub mod auth;
pub mod certificate;
pub mod clock;
#[cfg(unix)]
pub mod control;
pub mod driver;
mod home;
mod http;
mod link;
mod listen;
mod ops;
pub mod origin;
pub mod page;
mod post;
pub mod service;
mod socket;
mod tcp;
pub mod tickets;
mod udp;

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Weak},
    time::Duration,
};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    config::Config,
    core::close::CloseCode,
    engine::{
        Engine,
        embedded::{self, EmbeddedEngine},
    },
    metrics::{KeyExchange, Metrics, Name},
    router::Worker,
    transport::{Connection, LargeFrames, tls},
};
use admission::{Admission, Permit};
use auth::Authenticator;
use home::{Home, Homes, Place, Threads};
use origin::Origins;
use service::Service;

/// What serves a connection on the thread that is the connection's home, until it ends or the server does not wait any more.
pub type Serving = Pin<Box<dyn Future<Output = ()>>>;

/// Begins to serve a connection.
pub type Handler = Arc<dyn Fn(Connection, Permit, Arc<Shared>) -> Serving + Send + Sync>;

/// Where a running server listens.
#[derive(Debug, Clone, Default)]
pub struct Addresses {
    /// TLS over TCP, and QUIC over UDP.
    pub tls: Vec<SocketAddr>,
    /// Without TLS.
    pub plain: Vec<SocketAddr>,
    /// Health and metrics.
    pub ops: Vec<SocketAddr>,
}

/// Bytes of frames larger than any with a message that may be on their way in at a time, over all connections. A connection with
/// one more is closed as overloaded, and comes back.
const LARGE_FRAMES_BYTES_MAX: u64 = 128 << 20;

/// Bytes of the largest frame with a message.
const fn usual_frame_max(config: &Config) -> u32 {
    config.limits.envelope_bytes_max.saturating_add(4 << 10)
}

/// What every connection may look at.
pub struct Shared {
    /// The configuration that is in effect.
    pub config: Config,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Cancelled when the server stops: sessions say goodbye, listeners take nobody in.
    pub stopping: CancellationToken,
    /// Who may log in.
    pub auth: Authenticator,
    /// Where the server listens.
    pub addresses: Addresses,
    /// SHA-256 of the development certificate; `None` when the certificate is one of the public web.
    pub fingerprint: Option<[u8; 32]>,
    pub(super) origins: Origins,
    pub(super) admission: Arc<Admission>,
    pub(super) large_frames: Arc<LargeFrames>,
    homes: Homes,
    tasks: TaskTracker,
    abort: CancellationToken,
    handler: Handler,
    /// Gone when the server is stopping, or has none.
    store: Weak<EmbeddedEngine>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

impl Shared {
    /// Whether clients should be sent here, and why not.
    ///
    /// # Errors
    /// The reason, for `/readyz`.
    pub fn ready(&self) -> Result<(), &'static str> {
        match self.store.upgrade() {
            _ if self.stopping.is_cancelled() => Err("the server is stopping"),
            Some(store) if !store.can_log() => Err("the store cannot write; see the log, and start again"),
            Some(store) if !store.is_healthy() => Err(
                "the history file cannot be written; it is tried again, and messages are taken until the write-ahead log is full",
            ),
            _ => Ok(()),
        }
    }

    /// Everything that is counted, as Prometheus reads it.
    fn measure(&self) -> String {
        if let Some(store) = self.store.upgrade() {
            let status = store.status();
            let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
            self.metrics.backlog_bytes.set(number(status.backlog_bytes));
            self.metrics.wal_bytes.set(number(status.wal_bytes));
            self.metrics.damaged_rooms.set(number(status.damaged));
        }
        self.metrics.encode()
    }

    fn handshake_timeout(&self) -> Duration {
        Duration::from_millis(self.config.limits.handshake_timeout_ms.into())
    }

    /// Runs `task` until it is done or the server gives up waiting.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let abort = self.abort.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = task => {}
                () = abort.cancelled() => {}
            }
        });
    }

    /// The same for a task that stays on this thread.
    fn spawn_here(&self, task: Serving) {
        let abort = self.abort.clone();
        self.tasks.spawn_local(async move {
            tokio::select! {
                () = task => {}
                () = abort.cancelled() => {}
            }
        });
    }

    /// The same for a task that is made at a place, and stays there.
    fn spawn_at<F: Future<Output = ()> + 'static>(&self, place: Place, make: impl FnOnce() -> F + Send + 'static) {
        let abort = self.abort.clone();
        self.homes.spawn(&self.tasks, place, move || {
            let task = Box::pin(make());
            async move {
                tokio::select! {
                    () = task => {}
                    () = abort.cancelled() => {}
                }
            }
        });
    }

    /// Hands a connection of this thread to the handler, in a task of its own: what led to it is let go. The task holds nothing else,
    /// not even what would end it: it hears of that itself.
    fn serve(self: &Arc<Self>, connection: Connection, permit: Permit) {
        self.tasks.spawn_local(self.serving(connection, permit));
    }

    fn serving(self: &Arc<Self>, connection: Connection, mut permit: Permit) -> Serving {
        permit.count(self.metrics.connected(connection.info.kind));
        tracing::debug!(transport = %connection.info.kind, remote = %connection.info.remote, "connected");
        (self.handler)(connection, permit, Arc::clone(self))
    }
}

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address} ({key}): {source}")]
    Listen {
        /// The key of the configuration.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The certificate cannot be used.
    #[error("the certificate cannot be used: {0}")]
    Tls(#[from] tls::Error),
    /// The development certificate cannot be made.
    #[error("cannot make a development certificate: {0}")]
    Certificate(#[from] certificate::Error),
    /// The token secret cannot be used.
    #[error(transparent)]
    Auth(#[from] auth::SecretError),
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] embedded::OpenError),
    /// The store of the first format cannot be brought over.
    #[error("the store of the first format cannot be brought over: {0}")]
    Migration(#[source] embedded::ops::Error),
    /// Something else that has to do with files or sockets.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A server at work. Dropping it stops the listeners without grace; use [`Running::shutdown`].
#[derive(Debug)]
pub struct Running {
    shared: Arc<Shared>,
    endpoints: Vec<quinn::Endpoint>,
    core: Option<Core>,
    threads: Option<Threads>,
}

/// What sessions are served with, and the store below it.
#[derive(Debug)]
struct Core {
    service: Arc<Service>,
    store: Arc<EmbeddedEngine>,
    shards: Vec<Worker>,
}

/// Starts a server that drives sessions.
///
/// # Errors
/// [`StartError`]
pub async fn start(config: Config) -> Result<Running, StartError> {
    let metrics = Metrics::new();
    let (settings, counted) = (config.clone(), Arc::clone(&metrics));
    let store =
        tokio::task::spawn_blocking(move || service::open_store(&settings, &counted)).await.map_err(io::Error::from)??;
    let (service, shards) = Service::new(&config, &metrics, Arc::clone(&store) as Arc<dyn Engine>);
    let service = Arc::new(service);
    let serving = Arc::clone(&service);
    let handler: Handler =
        Arc::new(move |connection, permit, shared| driver::drive(connection, permit, shared, Arc::clone(&serving)));
    listen(config, metrics, handler, Some(Core { service, store, shards }))
}

/// Starts a server that hands its connections to `handler`.
///
/// # Errors
/// [`StartError`]
#[expect(clippy::unused_async, reason = "it binds sockets to the runtime, as `start` does")]
pub async fn start_with(config: Config, metrics: Arc<Metrics>, handler: Handler) -> Result<Running, StartError> {
    // A handler need not know that the server may give up waiting.
    let handler: Handler = Arc::new(move |connection, permit, shared| {
        let (abort, serving) = (shared.abort.clone(), handler(connection, permit, shared));
        Box::pin(async move {
            tokio::select! {
                () = serving => {}
                () = abort.cancelled() => {}
            }
        })
    });
    listen(config, metrics, handler, None)
}

fn listen(config: Config, metrics: Arc<Metrics>, handler: Handler, mut core: Option<Core>) -> Result<Running, StartError> {
    let auth = Authenticator::new(&config)?;
    let (identity, fingerprint) = match (&config.cert, &config.key) {
        (Some(cert), Some(key)) => (tls::Identity::read(cert, key)?, None),
        _ => {
            let identity = certificate::development(&config.certs_dir, clock::unix_seconds())?;
            let fingerprint = identity.fingerprint();
            (identity, Some(fingerprint))
        }
    };
    let sockets = listen::bind(&config)?;
    let tcp_tls = tls::server_config(counting(&metrics, "tcp"), identity.clone(), &[b"h2", b"http/1.1"])?;
    let tcp_tls = tokio_rustls::TlsAcceptor::from(Arc::new(tcp_tls));
    let quic = udp::server_config(counting(&metrics, "udp"), identity, &config.limits)?;
    let stopping = CancellationToken::new();
    let (homes, threads) = Homes::start(&config, &metrics, &stopping)?;
    let endpoints = udp::endpoints(sockets.udp, &quic, &homes)?;

    let addresses = sockets.addresses;
    let shared = Arc::new(Shared {
        origins: Origins::new(&config, &addresses),
        admission: Admission::new(config.connections_max, config.connections_per_address_max),
        large_frames: Arc::new(LargeFrames::new(usual_frame_max(&config), LARGE_FRAMES_BYTES_MAX)),
        metrics,
        stopping,
        auth,
        addresses,
        fingerprint,
        homes,
        tasks: TaskTracker::new(),
        abort: CancellationToken::new(),
        handler,
        store: core.as_ref().map_or_else(Weak::new, |core| Arc::downgrade(&core.store)),
        config,
    });
    let app = http::router(&shared);
    let app = match &core {
        Some(core) => app.merge(post::router(&shared, &core.service)),
        None => app,
    };
    for listener in sockets.tls {
        shared.spawn(tcp::accept(
            listener,
            Some(tcp_tls.clone()),
            app.clone(),
            Arc::clone(&shared.admission),
            Arc::clone(&shared),
        ));
    }
    for listener in sockets.plain {
        shared.spawn(tcp::accept(listener, None, app.clone(), Arc::clone(&shared.admission), Arc::clone(&shared)));
    }
    let ops = ops::router(&shared);
    for listener in sockets.ops {
        // A slot budget of its own: a full server can still be looked at.
        shared.spawn(tcp::accept(listener, None, ops.clone(), Admission::new(64, 64), Arc::clone(&shared)));
    }
    let accept_on = |(endpoint, place): (quinn::Endpoint, Place)| {
        let (accepting, task) = (endpoint.clone(), Arc::clone(&shared));
        shared.spawn_at(place, move || udp::accept(accepting, task));
        endpoint
    };
    let endpoints = endpoints.into_iter().map(accept_on).collect();
    for shard in core.iter_mut().flat_map(|core| core.shards.drain(..)) {
        // A shard ends when its router does, which tracks it. It counts its work itself, so that the runtime need not.
        shared.homes.spawn(&TaskTracker::new(), shared.homes.place_at(shard.index()), move || {
            let home = Home::here().expect("shards run on homes");
            tokio::task::unconstrained(shard.run(move |sent| home.links.deliver(sent), socket::came))
        });
    }
    #[cfg(unix)]
    if core.is_some() {
        match control::bind(&shared.config.data) {
            Ok(listener) => shared.spawn(control::serve(listener, Arc::clone(&shared))),
            // It serves all the same; only a backup has to wait until it is stopped.
            Err(error) => tracing::warn!(
                path = %shared.config.data.join(control::SOCKET).display(), %error, "no control socket: `waxwing backup` cannot reach this server"
            ),
        }
    }
    Ok(Running { shared, endpoints, core, threads: Some(threads) })
}

/// The cryptography of a listener, counting key exchanges.
fn counting(metrics: &Arc<Metrics>, listener: &'static str) -> Arc<rustls::crypto::CryptoProvider> {
    let metrics = Arc::clone(metrics);
    tls::counting_provider(
        &(Arc::new(move |group| {
            let group = if group == rustls::NamedGroup::X25519MLKEM768 { "X25519MLKEM768" } else { "other" };
            metrics.key_exchanges.get_or_create(&KeyExchange { listener: Name(listener), group: Name(group) }).inc();
        }) as tls::OnGroup),
    )
}

impl Running {
    /// What connections see.
    #[must_use]
    pub const fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Where it listens; where port 0 was asked for, the port that was given.
    #[must_use]
    pub fn addresses(&self) -> &Addresses {
        &self.shared.addresses
    }

    /// Serves a connection that no listener accepted, such as one end of [`crate::transport::memory::pair`].
    ///
    /// # Errors
    /// [`admission::Full`].
    pub fn attach(&self, connection: Connection) -> Result<(), admission::Full> {
        let permit = self.shared.admission.admit(connection.info.remote.ip())?;
        let shared = Arc::clone(&self.shared);
        self.shared.spawn_at(self.shared.homes.place(), move || shared.serving(connection, permit));
        Ok(())
    }

    /// Stops: takes nobody in, lets sessions say goodbye, waits at most the drain time, then ends what is left.
    pub async fn shutdown(mut self) {
        self.shared.stopping.cancel();
        self.shared.tasks.close();
        let drain = Duration::from_millis(self.shared.config.drain_timeout_ms.into());
        if tokio::time::timeout(drain, self.shared.tasks.wait()).await.is_err() {
            tracing::warn!(left = self.shared.tasks.len(), "some connections did not end in time");
        }
        self.shared.abort.cancel();
        self.shared.tasks.wait().await;
        if let Some(Core { service, store, .. }) = self.core.take() {
            service.router.stop().await;
            // Its threads finish what was submitted; then nothing holds the file.
            let closed = tokio::task::spawn_blocking(move || store.shutdown()).await;
            debug_assert!(closed.is_ok(), "closing the store does not panic");
        }
        for endpoint in &self.endpoints {
            endpoint.close(quinn::VarInt::from_u32(CloseCode::GoingAway.quic()), b"going_away");
        }
        for endpoint in &self.endpoints {
            // QUIC repeats its goodbye for a while in case it is lost; clients that heard it need no more.
            let _ = tokio::time::timeout(Duration::from_millis(200), endpoint.wait_idle()).await;
        }
        if let Some(threads) = self.threads.take() {
            let joined = tokio::task::spawn_blocking(|| threads.join()).await;
            debug_assert!(joined.is_ok(), "ending the threads does not panic");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.stopping.cancel();
        self.shared.abort.cancel();
    }
}
