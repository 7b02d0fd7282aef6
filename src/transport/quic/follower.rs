//! What shows soon that a packet with nothing behind it was lost.
//!
//! QUIC notices a loss when a later packet is acknowledged (RFC 9002 §6.1). Behind a message that is alone there is none, until a timer
//! of more than a round trip sends one; and what quinn 0.11 sends then carries no data, which follows when that is acknowledged: two
//! round trips and more, where one does. So an empty datagram (RFC 9221) follows it, which says nothing but is acknowledged.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::task::JoinSet;

use super::streams::Streams;

/// For so long nothing has followed what is alone. An earlier one would travel in the same packet.
const ALONE: Duration = Duration::from_millis(5);
/// Where a round trip takes less, waiting for the timer is soon over.
const RTT_MIN: Duration = Duration::from_millis(10);

/// Made once it is needed.
#[derive(Debug, Default)]
pub(super) struct Follower(Option<Box<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    state: Arc<State>,
    /// One at most; it ends with this.
    task: JoinSet<()>,
}

#[derive(Debug, Default)]
struct State {
    /// Counts what was written.
    written: AtomicU64,
    /// Whether somebody waits whether something follows.
    waits: AtomicBool,
}

impl Follower {
    /// Something was written: unless more follows, it is followed.
    pub(super) fn written(&mut self, streams: &Arc<Streams>) {
        if streams.connection().rtt() < RTT_MIN {
            return;
        }
        let Waiting { state, task } = &mut **self.0.get_or_insert_default();
        state.written.fetch_add(1, Ordering::Relaxed);
        if state.waits.swap(true, Ordering::Relaxed) {
            return;
        }
        let (state, streams) = (Arc::clone(state), Arc::clone(streams));
        while task.try_join_next().is_some() {}
        task.spawn(async move {
            let mut before = None;
            while let now = Some(state.written.load(Ordering::Relaxed))
                && now != before
            {
                before = now;
                tokio::time::sleep(ALONE).await;
            }
            state.waits.store(false, Ordering::Relaxed);
            // Before a connection's first round trip it was a guess.
            if streams.connection().rtt() >= RTT_MIN {
                streams.send_nothing();
            }
        });
    }
}
