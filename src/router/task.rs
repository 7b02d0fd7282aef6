//! Shards on tokio, and the handle through which connections reach them.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{
        Notify,
        mpsc::{
            self,
            error::{TryRecvError, TrySendError},
        },
    },
    time::MissedTickBehavior,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Conn, ConnId, Devices,
    outbox::ShardSet,
    shard::{Message, Sent, Setup, Shard, Slices, Stats},
};
use crate::{
    core::{
        id::{DeviceKey, LogId, RoomId, UnixMillis},
        limits::Limits,
    },
    engine::{Complete, Completion, Engine},
};

/// Messages that are handled in one turn at most; each completion of the engine counts as one, the last batch may exceed it.
const TURN_MAX: usize = 1024;
/// As many shards as a [`ShardSet`] can name.
const SHARDS_MAX: usize = ShardSet::BITS as usize;
/// How long a shard waits before it asks a busy or failing engine again.
const RETRY: Duration = Duration::from_millis(10);
/// How often a shard looks whether recent messages may go.
const REST: Duration = Duration::from_secs(1);
/// How long a turn waits at most while datagrams come faster than they are read.
const GATHER: Duration = Duration::from_millis(10);
/// It does so behind one that sent at least so many frames: where few are told there is little to be gathered, and it would only come later.
const GATHER_FROM: usize = 64;

/// What the router starts from.
#[derive(Clone)]
pub struct Config {
    /// Shards, 1 to 64.
    pub shards: usize,
    /// Messages that may wait for one shard; who sends more waits.
    pub mailbox_max: usize,
    /// What everybody may use.
    pub limits: Arc<Limits>,
    /// Bytes of recent messages that rooms keep in memory, over all shards.
    pub recent_bytes_max: u64,
    /// What keeps the logs.
    pub engine: Arc<dyn Engine>,
    /// The wall clock.
    pub clock: Arc<dyn Fn() -> UnixMillis + Send + Sync>,
    /// Makes random log ids.
    pub log_id: Arc<dyn Fn() -> LogId + Send + Sync>,
    /// Told after every turn of a shard: its index, how many more rooms are in memory, and what happened.
    pub observe: Arc<dyn Fn(usize, i64, Stats) + Send + Sync>,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").field("shards", &self.shards).field("mailbox_max", &self.mailbox_max).finish_non_exhaustive()
    }
}

/// The way to the shards. They end when it is dropped, or stopped.
#[derive(Debug)]
pub struct Handle {
    shards: Vec<mpsc::Sender<Message>>,
    /// Keyed, so that nobody can choose ids that all fall on one shard.
    hasher: RandomState,
    devices: Devices,
    next_conn: AtomicU64,
    tasks: TaskTracker,
    stopping: CancellationToken,
}

/// The shard has ended, which it does only after every connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the router has stopped")]
pub struct Stopped;

impl Handle {
    /// The way to the shards, and what runs each of them: to be driven by [`Worker::run`], each on a thread of its own.
    #[must_use]
    pub fn new(config: &Config) -> (Self, Vec<Worker>) {
        let (tasks, stopping) = (TaskTracker::new(), CancellationToken::new());
        let count = config.shards.clamp(1, SHARDS_MAX);
        let posts: Arc<[Post]> = (0..count).map(|_| Post::default()).collect();
        let (shards, workers) = (0..count)
            .map(|index| {
                let (sender, mailbox) = mpsc::channel(config.mailbox_max.max(1));
                let complete = Mailbox(sender.downgrade());
                let (config, posts) = (Config { shards: count, ..config.clone() }, Arc::clone(&posts));
                let worker = Worker { index, mailbox, complete, posts, config, tasks: tasks.clone(), stopping: stopping.clone() };
                (sender, worker)
            })
            .unzip();
        let (hasher, devices, next_conn) = (RandomState::new(), Devices::default(), AtomicU64::new(0));
        (Self { shards, hasher, devices, next_conn, tasks, stopping }, workers)
    }

    /// Ends the shards, and waits until they let go of the engine. For when every connection has ended: what the engine has
    /// not completed is not acked.
    pub async fn stop(&self) {
        self.stopping.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Devices and what they use.
    #[must_use]
    pub const fn devices(&self) -> &Devices {
        &self.devices
    }

    /// A name for a new connection.
    pub fn next_conn(&self) -> ConnId {
        ConnId(self.next_conn.fetch_add(1, Ordering::Relaxed))
    }

    /// The index of the shard that owns `room`.
    #[must_use]
    pub fn shard_of(&self, room: RoomId) -> usize {
        let hash = self.hasher.hash_one(room) % self.shards.len() as u64;
        usize::try_from(hash).unwrap_or(0)
    }

    /// The index of the shard that looks after the key packages of `device`.
    #[must_use]
    pub fn shard_of_device(&self, device: DeviceKey) -> usize {
        let hash = self.hasher.hash_one(device) % self.shards.len() as u64;
        usize::try_from(hash).unwrap_or(0)
    }

    /// Sends a message to one shard, waiting while its mailbox is full.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn send(&self, shard: usize, message: Message) -> Result<(), Stopped> {
        let sender = self.shards.get(shard).ok_or(Stopped)?;
        sender.send(message).await.map_err(|_| Stopped)
    }

    /// As [`Handle::send`], without waiting.
    ///
    /// # Errors
    /// The message, when the shard's mailbox is full or it has ended.
    pub fn try_send(&self, shard: usize, message: Message) -> Result<(), Box<Message>> {
        match self.shards.get(shard) {
            Some(sender) => sender.try_send(message).map_err(|error: TrySendError<_>| Box::new(error.into_inner())),
            None => Err(Box::new(message)),
        }
    }

    /// How many shards there are.
    #[must_use]
    pub const fn shards(&self) -> usize {
        self.shards.len()
    }

    /// Tells the shards of `set` that the outbox of `conn` has room.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn drained(&self, set: ShardSet, conn: ConnId) -> Result<(), Stopped> {
        self.tell(set, || Message::Drained { conn }).await
    }

    /// Tells the shards of `set` that `conn` is gone.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn closed(&self, set: ShardSet, conn: &Conn) -> Result<(), Stopped> {
        conn.outbox.close();
        self.tell(set, || Message::Closed { conn: conn.id }).await
    }

    async fn tell(&self, set: ShardSet, message: impl Fn() -> Message) -> Result<(), Stopped> {
        for shard in (0..self.shards.len()).filter(|shard| set & (1 << shard) != 0) {
            self.send(shard, message()).await?;
        }
        Ok(())
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stopping.cancel();
    }
}

/// Where the engine puts a shard's completions. It does not keep the shard alive.
#[derive(Debug)]
struct Mailbox(mpsc::WeakSender<Message>);

impl Complete for Mailbox {
    fn complete(&self, batch: Vec<Completion>) {
        // A shard never waits, so its mailbox empties. One that has ended needs no answer.
        if let Some(sender) = self.0.upgrade() {
            let _ = sender.blocking_send(Message::Completed(batch));
        }
    }
}

/// What a shard has for the connections of another one. It holds no more than their outboxes count.
#[derive(Debug, Default)]
struct Post {
    sent: Mutex<Vec<Sent>>,
    filled: Notify,
}

impl Post {
    fn put(&self, batch: &mut Vec<Sent>) {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner).append(batch);
        self.filled.notify_one();
    }

    async fn take(&self, into: &mut Vec<Sent>) {
        loop {
            self.filled.notified().await;
            std::mem::swap(&mut *self.sent.lock().unwrap_or_else(PoisonError::into_inner), into);
            if !into.is_empty() {
                return;
            }
        }
    }
}

/// One shard, to be run.
#[derive(Debug)]
pub struct Worker {
    index: usize,
    mailbox: mpsc::Receiver<Message>,
    complete: Mailbox,
    posts: Arc<[Post]>,
    config: Config,
    tasks: TaskTracker,
    stopping: CancellationToken,
}

impl Worker {
    /// Its number.
    #[must_use]
    pub const fn index(&self) -> usize {
        self.index
    }

    /// Runs the shard until its [`Handle`] is dropped or stopped. `deliver` is given, and empties, what there is for the
    /// connections that live here: once at the end of a turn, and when other shards have something. `came` tells whether datagrams
    /// have come to this thread since it was last asked.
    pub async fn run(self, deliver: impl Fn(&mut Vec<Sent>), came: impl Fn() -> bool) {
        let Self { index, mut mailbox, complete, posts, config, tasks, stopping } = self;
        let (log_id, shards) = (Arc::clone(&config.log_id), config.shards);
        let mut shard = Shard::new(Setup {
            index,
            limits: Arc::clone(&config.limits),
            engine: Arc::clone(&config.engine),
            complete: Arc::new(complete),
            log_id: Box::new(move || log_id()),
            slices: Slices::default(),
            recent_bytes_max: usize::try_from(config.recent_bytes_max).unwrap_or(usize::MAX) / shards,
        });
        let others = async {
            let mut sent = Vec::new();
            while let Some(post) = posts.get(index) {
                post.take(&mut sent).await;
                deliver(&mut sent);
                sent.clear();
            }
        };
        let send = |home: usize, batch: &mut Vec<Sent>| match posts.get(home) {
            Some(post) if home != index => post.put(batch),
            _ => deliver(batch),
        };
        let turns = turns(&mut shard, index, &mut mailbox, &config, send, came);
        let run = async {
            tokio::select! {
                () = turns => {}
                () = others => {}
                () = stopping.cancelled() => {}
            }
        };
        tasks.track_future(run).await;
    }
}

async fn turns(
    shard: &mut Shard,
    index: usize,
    mailbox: &mut mpsc::Receiver<Message>,
    config: &Config,
    send: impl Fn(usize, &mut Vec<Sent>),
    came: impl Fn() -> bool,
) {
    let (mut rooms, mut ticked_ms, mut told) = (0, 0, 0);
    let mut rests = tokio::time::interval(REST);
    rests.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let mut rested = false;
        if shard.wants_turn() || !mailbox.is_empty() {
            // Connections of this thread are read first: what they bring is part of this turn.
            tokio::task::yield_now().await;
        }
        let first = if shard.wants_turn() {
            match if shard.is_full() { Err(TryRecvError::Empty) } else { mailbox.try_recv() } {
                Ok(message) => Some(message),
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Disconnected) => return,
            }
        } else if shard.wants_tick() {
            match tokio::time::timeout(RETRY, mailbox.recv()).await {
                Ok(None) => return,
                Ok(message) => message,
                Err(_) => {
                    rested = true;
                    None
                }
            }
        } else {
            tokio::select! {
                biased;
                message = mailbox.recv() => match message {
                    None => return,
                    message => message,
                },
                _ = rests.tick(), if shard.recent_bytes() > 0 => {
                    shard.rest((config.clock)());
                    None
                }
            }
        };
        if told >= GATHER_FROM {
            gather(&came).await;
        }
        let now_ms = (config.clock)();
        // At most so often, however many messages come; and they do not put it off, nor does a clock that is set back.
        if shard.wants_tick() && (rested || u128::from(now_ms.abs_diff(ticked_ms)) >= RETRY.as_millis()) {
            ticked_ms = now_ms;
            shard.tick();
        }
        take_in(shard, first, mailbox, now_ms);
        shard.end_turn();
        told = shard.sent().iter().map(Vec::len).sum();
        for (home, batch) in shard.sent().iter_mut().enumerate().filter(|(_, batch)| !batch.is_empty()) {
            send(home, batch);
            batch.clear();
        }
        let before = std::mem::replace(&mut rooms, i64::try_from(shard.rooms_len()).unwrap_or(i64::MAX));
        (config.observe)(index, rooms - before, shard.take_stats());
    }
}

/// Lets others work while datagrams come, for [`GATHER`] at most. Each may bring something to this turn, and a turn for what one of them
/// brought would have its own packet for each member, with an acknowledgement of it to be read before the next.
async fn gather(came: &impl Fn() -> bool) {
    let begun = tokio::time::Instant::now();
    while came() && begun.elapsed() < GATHER {
        tokio::task::yield_now().await;
    }
}

/// Handles what has come, up to a turn's worth.
fn take_in(shard: &mut Shard, first: Option<Message>, mailbox: &mut mpsc::Receiver<Message>, now_ms: UnixMillis) {
    let (mut message, mut taken) = (first, 0);
    while let Some(now) = message {
        taken += if let Message::Completed(batch) = &now { batch.len() } else { 1 };
        shard.handle(now, now_ms);
        message = if taken < TURN_MAX && !shard.is_full() { mailbox.try_recv().ok() } else { None };
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn a_turn_waits_while_datagrams_come_and_not_for_ever() {
        let left = Cell::new(0_u32);
        let came = || left.replace(left.get().saturating_sub(1)) > 0;
        gather(&came).await;
        left.set(3);
        gather(&came).await;
        assert_eq!(left.get(), 0);
        gather(&|| true).await;
    }
}
