//! Metrics, in the Prometheus text format. Typed fields: a metric that is not here cannot be bumped by a misspelt name.
//!
//! Everything is an atomic; families keep their members behind a lock that is only read once a member exists.

use std::{
    fmt::Write as _,
    sync::{Arc, atomic::AtomicU64},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use crate::{
    core::close::{CloseCode, Refusal},
    transport::Kind,
};

/// A label value that is a fixed name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Name(pub &'static str);

impl EncodeLabelValue for Name {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        encoder.write_str(self.0)
    }
}

/// `transport="ws"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Transport {
    /// [`Kind::name`].
    pub transport: Name,
}

/// `reason="…"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reason {
    /// A short name.
    pub reason: Name,
}

/// `transport="tcp", group="…"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KeyExchange {
    /// `tcp` or `udp`.
    pub listener: Name,
    /// `X25519MLKEM768`, or `other`.
    pub group: Name,
}

/// A family with one counter for each reason.
pub type ByReason = Family<Reason, Counter>;

/// What the server counts. Share it in an [`Arc`].
#[derive(Debug)]
pub struct Metrics {
    /// Open connections.
    pub connections: Family<Transport, Gauge>,
    /// Connections accepted since the start.
    pub connections_accepted: Family<Transport, Counter>,
    /// Connection attempts that came to nothing: TLS, HTTP, origin, limits, time-outs.
    pub handshake_failures: ByReason,
    /// Connections that ended, by close code.
    pub closes: ByReason,
    /// TLS handshakes by key exchange group.
    pub key_exchanges: Family<KeyExchange, Counter>,
    /// Sessions that are logged in.
    pub sessions: Gauge,
    /// Connections whose first frame came before their handshake was complete.
    pub early: Counter,
    /// Logins by ticket that took one round trip.
    pub resumes: Counter,
    /// Those whose ticket was not accepted, and that were challenged.
    pub resumes_challenged: Counter,
    /// Rooms in memory.
    pub rooms: Gauge,
    /// Records delivered to subscribers.
    pub deliveries: Counter,
    /// Publishes acknowledged.
    pub acks: Counter,
    /// Posts through drop-boxes acknowledged.
    pub posts: Counter,
    /// Ephemeral envelopes passed on.
    pub ephemerals: Counter,
    /// Key packages handed out that are gone now.
    pub packages_taken: Counter,
    /// Key packages of the last resort handed out.
    pub last_resorts: Counter,
    /// Requests for a key package of a device that had none.
    pub packages_missing: Counter,
    /// Operations refused, by reason.
    pub refusals: ByReason,
    /// Bytes that wait in outboxes because clients do not take them now.
    pub outbox_bytes: Gauge,
    /// Subscriptions that fell behind and are fed from the log.
    pub catchups: Counter,
    /// Bytes of recent messages that rooms keep in memory.
    pub recent_bytes: Gauge,
    /// Payload bytes received.
    pub received_bytes: Family<Transport, Counter>,
    /// Payload bytes sent.
    pub sent_bytes: Family<Transport, Counter>,
    /// Appends in one commit.
    pub commit_batch: Histogram,
    /// Seconds that a commit took.
    pub commit_seconds: Histogram,
    /// Commits that failed.
    pub commit_failures: Counter,
    /// Memory of what was brought from the write-ahead log into the history file, in bytes.
    pub applied_bytes: Counter,
    /// Attempts to do so that failed.
    pub apply_failures: Counter,
    /// Seconds that commits waited because messages come faster than that goes.
    pub slowed_seconds: Counter<f64, AtomicU64>,
    /// Memory of what was logged and is not in the history file.
    pub backlog_bytes: Gauge,
    /// Files of the write-ahead log.
    pub wal_bytes: Gauge,
    /// Rooms whose history is damaged, as far as that has been found.
    pub damaged_rooms: Gauge,
    /// Times that a room's oldest messages were dropped.
    pub trims: Counter,
    registry: Registry,
}

impl Metrics {
    /// All at zero.
    #[must_use]
    pub fn new() -> Arc<Self> {
        let powers = |start: f64, count: u16| std::iter::successors(Some(start), |x| Some(x * 2.0)).take(count.into());
        let mut metrics = Self {
            connections: Family::default(),
            connections_accepted: Family::default(),
            handshake_failures: Family::default(),
            closes: Family::default(),
            key_exchanges: Family::default(),
            sessions: Gauge::default(),
            early: Counter::default(),
            resumes: Counter::default(),
            resumes_challenged: Counter::default(),
            rooms: Gauge::default(),
            deliveries: Counter::default(),
            acks: Counter::default(),
            posts: Counter::default(),
            ephemerals: Counter::default(),
            packages_taken: Counter::default(),
            last_resorts: Counter::default(),
            packages_missing: Counter::default(),
            refusals: Family::default(),
            outbox_bytes: Gauge::default(),
            catchups: Counter::default(),
            recent_bytes: Gauge::default(),
            received_bytes: Family::default(),
            sent_bytes: Family::default(),
            commit_batch: Histogram::new(powers(1.0, 13)),
            commit_seconds: Histogram::new(powers(0.000_1, 16)),
            commit_failures: Counter::default(),
            applied_bytes: Counter::default(),
            apply_failures: Counter::default(),
            slowed_seconds: Counter::default(),
            backlog_bytes: Gauge::default(),
            wal_bytes: Gauge::default(),
            damaged_rooms: Gauge::default(),
            trims: Counter::default(),
            registry: Registry::with_prefix("waxwing"),
        };
        metrics.register();
        Arc::new(metrics)
    }

    fn register(&mut self) {
        let r = &mut self.registry;
        r.register("connections", "Open connections", self.connections.clone());
        r.register("connections_accepted", "Connections accepted", self.connections_accepted.clone());
        r.register("handshake_failures", "Connection attempts that failed", self.handshake_failures.clone());
        r.register("closes", "Connections ended, by close code", self.closes.clone());
        r.register("key_exchanges", "TLS handshakes by key exchange group", self.key_exchanges.clone());
        r.register("sessions", "Sessions logged in", self.sessions.clone());
        r.register("early", "Connections that began with early data", self.early.clone());
        r.register("resumes", "Logins by ticket", self.resumes.clone());
        r.register("resumes_challenged", "Tickets that were not accepted", self.resumes_challenged.clone());
        r.register("rooms", "Rooms in memory", self.rooms.clone());
        r.register("deliveries", "Records delivered to subscribers", self.deliveries.clone());
        r.register("acks", "Publishes acknowledged", self.acks.clone());
        r.register("posts", "Posts through drop-boxes acknowledged", self.posts.clone());
        r.register("ephemerals", "Ephemeral envelopes passed on", self.ephemerals.clone());
        r.register("key_packages_taken", "Key packages handed out", self.packages_taken.clone());
        r.register("key_packages_last_resort", "Key packages of the last resort handed out", self.last_resorts.clone());
        r.register("key_packages_missing", "Devices asked for a key package that had none", self.packages_missing.clone());
        r.register("refusals", "Operations refused", self.refusals.clone());
        r.register_with_unit("outbox", "Waiting in outboxes", Unit::Bytes, self.outbox_bytes.clone());
        r.register("catchups", "Subscriptions that fell behind", self.catchups.clone());
        r.register_with_unit("recent", "Recent messages in memory", Unit::Bytes, self.recent_bytes.clone());
        r.register_with_unit("received", "Payload received", Unit::Bytes, self.received_bytes.clone());
        r.register_with_unit("sent", "Payload sent", Unit::Bytes, self.sent_bytes.clone());
        r.register("commit_batch_size", "Appends in one commit", self.commit_batch.clone());
        r.register_with_unit("commit", "Duration of a commit", Unit::Seconds, self.commit_seconds.clone());
        r.register("commit_failures", "Commits that failed", self.commit_failures.clone());
        r.register_with_unit("store_applied", "Brought into the history file", Unit::Bytes, self.applied_bytes.clone());
        r.register("store_apply_failures", "Failures to bring messages into the history file", self.apply_failures.clone());
        r.register_with_unit(
            "store_slowed",
            "Held back until the history file keeps up",
            Unit::Seconds,
            self.slowed_seconds.clone(),
        );
        r.register_with_unit("store_backlog", "Logged, and not in the history file", Unit::Bytes, self.backlog_bytes.clone());
        r.register_with_unit("store_wal", "Files of the write-ahead log", Unit::Bytes, self.wal_bytes.clone());
        r.register("store_damaged_rooms", "Rooms whose history is damaged", self.damaged_rooms.clone());
        r.register("store_trims", "Times that a room's oldest messages were dropped", self.trims.clone());
    }

    /// Counts an operation that was refused.
    pub fn refused(&self, why: &Refusal) {
        self.refusals.get_or_create(&Reason { reason: Name(why.name()) }).inc();
    }

    /// Counts operations that were refused, by [`Refusal::name`].
    pub fn refused_by_name(&self, why: &'static str, count: u64) {
        self.refusals.get_or_create(&Reason { reason: Name(why) }).inc_by(count);
    }

    /// Counts a connection that ended.
    pub fn closed(&self, code: CloseCode) {
        self.closes.get_or_create(&Reason { reason: Name(code.name()) }).inc();
    }

    /// Counts a connection attempt that failed.
    pub fn handshake_failed(&self, reason: &'static str) {
        self.handshake_failures.get_or_create(&Reason { reason: Name(reason) }).inc();
    }

    /// Counts an accepted connection, until the guard is dropped.
    #[must_use]
    pub fn connected(self: &Arc<Self>, kind: Kind) -> ConnectionGauge {
        let label = Transport { transport: Name(kind.name()) };
        self.connections_accepted.get_or_create(&label).inc();
        self.connections.get_or_create(&label).inc();
        ConnectionGauge { metrics: Arc::clone(self), kind }
    }

    /// Everything, as Prometheus reads it.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail; a metric that cannot be encoded leaves what came before it.
        if encode(&mut text, &self.registry).is_err() {
            let _ = writeln!(text, "# encoding failed");
        }
        text
    }
}

/// An open connection in the metrics.
#[derive(Debug)]
pub struct ConnectionGauge {
    metrics: Arc<Metrics>,
    kind: Kind,
}

impl ConnectionGauge {
    /// The name of its transport.
    #[must_use]
    pub const fn transport(&self) -> &'static str {
        self.kind.name()
    }

    const fn label(&self) -> Transport {
        Transport { transport: Name(self.transport()) }
    }

    /// Adds to the bytes of its transport.
    pub fn count_bytes(&self, received: u64, sent: u64) {
        self.metrics.received_bytes.get_or_create(&self.label()).inc_by(received);
        self.metrics.sent_bytes.get_or_create(&self.label()).inc_by(sent);
    }
}

impl Drop for ConnectionGauge {
    fn drop(&mut self) {
        self.metrics.connections.get_or_create(&self.label()).dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_what_is_told() {
        let metrics = Metrics::new();
        let guard = metrics.connected(Kind::WebSocket);
        drop(metrics.connected(Kind::WebSocket));
        guard.count_bytes(3, 4);
        metrics.refused(&Refusal::RoomFull);
        metrics.closed(CloseCode::Idle);
        metrics.commit_seconds.observe(0.001);
        metrics.slowed_seconds.inc_by(0.25);
        let text = metrics.encode();
        for line in [
            r#"waxwing_connections{transport="ws"} 1"#,
            r#"waxwing_connections_accepted_total{transport="ws"} 2"#,
            r#"waxwing_received_bytes_total{transport="ws"} 3"#,
            r#"waxwing_refusals_total{reason="room_full"} 1"#,
            r#"waxwing_closes_total{reason="idle"} 1"#,
            "waxwing_commit_seconds_count 1",
            "waxwing_store_slowed_seconds_total 0.25",
            "waxwing_outbox_bytes 0",
            "# EOF",
        ] {
            assert!(text.contains(line), "{line}\nis not in\n{text}");
        }
    }
}
