//! What sessions are served with: the store, the router, and the check of who may log in.

use std::{fmt, ops::ControlFlow, sync::Arc, time::Duration};

use bytes::Bytes;
use hyper::http::uri::Authority;
use rustls::crypto::SecureRandom;

use super::{Shared, StartError, clock, tickets::Tickets};
use crate::{
    config::{self, Config},
    core::{
        close::CloseCode,
        frame::{Hello, Resume},
        id::{DeviceKey, Digest, LogId, Nonce, RoomId, Seq},
        session,
    },
    engine::{
        self, Engine, Failure,
        embedded::{self, Clock, EmbeddedEngine, Keep, Retention, ops},
        wal,
    },
    metrics::Metrics,
    router::{self, shard::Stats},
    transport::tls,
};

/// Messages that may wait for one shard.
const MAILBOX_MAX: usize = 4096;
/// The store within the data directory.
pub const STORE: &str = "store";

/// The store, the router, and the names of this server.
pub struct Service {
    pub(super) router: router::Handle,
    names: Vec<String>,
    tickets: Tickets,
    random: &'static dyn SecureRandom,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").field("names", &self.names).finish_non_exhaustive()
    }
}

/// Opens the store of a configuration; one of the first format is brought over first.
pub(super) fn open_store(config: &Config, metrics: &Arc<Metrics>) -> Result<Arc<EmbeddedEngine>, StartError> {
    bring_over(config)?;
    let observer = Arc::new(StoreMetrics(Arc::clone(metrics)));
    Ok(Arc::new(EmbeddedEngine::open(&config.data.join(STORE), store_settings(config), observer)?))
}

/// The engine's settings in a configuration.
#[must_use]
pub fn store_settings(config: &Config) -> embedded::Config {
    let default = embedded::Config::default();
    let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    embedded::Config {
        wal: wal::Config { bytes_max: config.store.wal_bytes_max, ..default.wal.clone() },
        cache_bytes: bytes(config.store.cache_bytes),
        read_cache_bytes: bytes(config.store.read_cache_bytes),
        commit_wait_us: config.store.commit_wait_us,
        apply_bytes: bytes(config.store.apply_bytes),
        disk_reserve_bytes: config.disk_reserve_bytes,
        retention: retention(&config.retention),
        ..default
    }
}

fn retention(config: &config::Retention) -> Retention {
    let keep = |keep: &config::Keep| Keep {
        age_ms: keep.max_age_days.map(|days| days.saturating_mul(24 * 60 * 60 * 1000)),
        count: keep.max_count,
        bytes: keep.max_bytes,
    };
    Retention {
        default: keep(&config.default),
        rooms: config.rooms.iter().map(|(room, limits)| (*room, keep(limits))).collect(),
        sweep_every_ms: config.sweep_minutes.saturating_mul(60_000),
        clock: Clock(Arc::new(clock::unix_millis)),
    }
}

fn bring_over(config: &Config) -> Result<(), StartError> {
    let mut tenth = 0;
    let migrated = ops::migrate(&config.data, STORE, &mut |progress| {
        let now = progress.bytes.saturating_mul(10).checked_div(progress.bytes_total).unwrap_or(10);
        if now > tenth {
            tenth = now;
            tracing::info!(percent = now * 10, records = progress.records, "bringing the store of the first format over");
        }
        ControlFlow::Continue(())
    });
    if let Some(done) = migrated.map_err(StartError::Migration)? {
        let kept = config.data.join(ops::KEPT);
        tracing::info!(logs = done.logs, records = done.records, kept = %kept.display(), "the store has the present format now");
    }
    Ok(())
}

impl Service {
    /// The router on a store; its shards are to be run.
    pub(super) fn new(config: &Config, metrics: &Arc<Metrics>, engine: Arc<dyn Engine>) -> (Self, Vec<router::Worker>) {
        let random = tls::provider().secure_random;
        let (router, shards) = router::Handle::new(&router::Config {
            shards: super::home::count(config.shards),
            mailbox_max: MAILBOX_MAX,
            limits: Arc::new(config.limits.clone()),
            recent_bytes_max: config.recent_total_bytes_max,
            engine,
            clock: Arc::new(clock::unix_millis),
            log_id: Arc::new(move || LogId(fill(random))),
            observe: observe(Arc::clone(metrics)),
        });
        (Self { router, names: names(config), tickets: Tickets::new(fill(random)), random }, shards)
    }

    /// A challenge for a new session.
    pub(super) fn nonce(&self) -> Nonce {
        Nonce(fill(self.random))
    }

    /// What a hello is checked against.
    pub(super) const fn gate<'a>(&'a self, shared: &'a Shared) -> Gate<'a> {
        Gate { service: self, shared }
    }
}

fn fill<const N: usize>(random: &dyn SecureRandom) -> [u8; N] {
    let mut bytes = [0; N];
    random.fill(&mut bytes).expect("the system's randomness does not fail once the process runs");
    bytes
}

/// The hosts under which clients reach this server.
fn names(config: &Config) -> Vec<String> {
    if config.is_development() {
        return ["localhost", "127.0.0.1", "[::1]"].map(str::to_owned).to_vec();
    }
    config.public_names.iter().chain(&config.public_quic).filter_map(|name| host(name)).collect()
}

fn host(authority: &str) -> Option<String> {
    let authority: Authority = authority.parse().ok()?;
    Some(authority.host().to_ascii_lowercase())
}

/// Checks a hello: that the client dialled this server and no other that relays, and that its device may log in.
pub(super) struct Gate<'a> {
    service: &'a Service,
    shared: &'a Shared,
}

impl session::Admission for Gate<'_> {
    fn admit(&self, hello: &Hello, now_ms: u64) -> Result<(), CloseCode> {
        let refuse = |reason| {
            self.shared.metrics.handshake_failed(reason);
            CloseCode::Unauthenticated
        };
        let dialled = host(&hello.authority);
        if !dialled.is_some_and(|host| self.service.names.contains(&host)) {
            return Err(refuse("authority"));
        }
        self.shared.auth.check(&hello.device, &hello.token, now_ms / 1000).map_err(|_| refuse("token"))
    }

    fn ticket(&self, device: &DeviceKey, now_ms: u64) -> Bytes {
        self.service.tickets.issue(device, now_ms)
    }

    fn recognises(&self, resume: &Resume, now_ms: u64) -> bool {
        self.counted(self.service.tickets.recognises(resume, now_ms))
    }

    fn is_first(&self, binding: Digest, now_ms: u64) -> bool {
        let first = self.counted(self.service.tickets.is_first(binding, now_ms));
        self.shared.metrics.resumes.inc_by(u64::from(first));
        first
    }
}

impl Gate<'_> {
    /// Counts a ticket that is not accepted.
    fn counted(&self, accepted: bool) -> bool {
        self.shared.metrics.resumes_challenged.inc_by(u64::from(!accepted));
        accepted
    }
}

/// What the router's shards tell, into the metrics.
fn observe(metrics: Arc<Metrics>) -> Arc<dyn Fn(usize, i64, Stats) + Send + Sync> {
    Arc::new(move |_shard, rooms_change, stats| {
        metrics.rooms.inc_by(rooms_change);
        metrics.deliveries.inc_by(stats.deliveries);
        metrics.acks.inc_by(stats.acks);
        metrics.ephemerals.inc_by(stats.ephemerals);
        metrics.packages_taken.inc_by(stats.packages_taken);
        metrics.last_resorts.inc_by(stats.last_resorts);
        metrics.packages_missing.inc_by(stats.packages_missing);
        metrics.catchups.inc_by(stats.catch_ups);
        metrics.recent_bytes.inc_by(stats.recent_bytes);
        for (why, count) in stats.refusals {
            metrics.refused_by_name(why, count);
        }
    })
}

/// What the store tells, into the metrics.
struct StoreMetrics(Arc<Metrics>);

impl engine::Observer for StoreMetrics {
    fn committed(&self, requests: usize, _bytes: usize, took: Duration) {
        self.0.commit_batch.observe(f64::from(u32::try_from(requests).unwrap_or(u32::MAX)));
        self.0.commit_seconds.observe(took.as_secs_f64());
    }

    fn failed(&self, failure: Failure) {
        if failure == Failure::OutcomeUnknown {
            self.0.commit_failures.inc();
        }
    }

    fn latched(&self, why: &str) {
        tracing::error!(why, "the store accepts nothing until the process starts again; reading goes on");
    }

    fn applied(&self, bytes: usize, _took: Duration) {
        self.0.applied_bytes.inc_by(bytes as u64);
    }

    fn slowed(&self, waited: Duration) {
        self.0.slowed_seconds.inc_by(waited.as_secs_f64());
    }

    fn damaged(&self, room: RoomId, why: &str) {
        tracing::error!(%room, why, "the history of a room is damaged: it takes nothing more; see `waxwing store check`");
    }

    fn trimmed(&self, room: RoomId, floor: Seq) {
        self.0.trims.inc();
        tracing::debug!(%room, floor, "older messages of a room were dropped");
    }

    fn apply_failed(&self, why: &str) {
        self.0.apply_failures.inc();
        tracing::warn!(why, "the history file failed; the log goes on and it is tried again");
    }
}
