//! The shards' threads. Each runs one single-threaded runtime: a shard of the router and the connections whose home it is.
//!
//! A connection never leaves its home: it is read there, and whatever any shard has for it is written there, directly. A TCP
//! connection is given to the home that has the fewest. A QUIC endpoint lives on one home with all of its connections: several
//! threads around one endpoint cost more than they bring, and a client that changes its address stays where it is.

use std::{
    cell::RefCell,
    future::Future,
    io,
    num::NonZero,
    ops::Deref,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
};

use tokio::{
    runtime::{Builder, Handle, LocalOptions},
    time::{Instant, MissedTickBehavior},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::link::{self, Links};
use crate::{config::Config, memory, metrics::Metrics, router::outbox::ShardSet};

/// Every so many ticks a home gives back the memory that is free: two seconds. What is in use is only looked at, a page of 64 KiB in
/// some nanoseconds.
const GIVE_BACK_TICKS: u32 = 8;

/// A home, on its own thread.
#[derive(Debug)]
pub(super) struct Home {
    /// Its number, which is that of its shard.
    pub(super) index: usize,
    /// The connections that live here and are logged in.
    pub(super) links: Links,
    epoch: Instant,
    stopping: CancellationToken,
    lodgers: Arc<AtomicUsize>,
    metrics: Arc<Metrics>,
}

thread_local! {
    static HOME: RefCell<Option<Rc<Home>>> = const { RefCell::new(None) };
}

impl Home {
    /// That of this thread.
    pub(super) fn here() -> Option<Rc<Self>> {
        HOME.with_borrow(Clone::clone)
    }

    /// Milliseconds since the home was made.
    pub(super) fn now_ms(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Looks after what concerns all connections here.
    async fn keep(&self) {
        let mut ticks = tokio::time::interval(link::TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut stopped, mut waiting, mut count) = (false, 0, 0_u32);
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    let bytes = i64::try_from(self.links.tick(self.now_ms())).unwrap_or(i64::MAX);
                    // Other homes have their shares in it.
                    self.metrics.outbox_bytes.inc_by(bytes - waiting);
                    waiting = bytes;
                    count = (count + 1) % GIVE_BACK_TICKS;
                    if count == 0 {
                        memory::give_back();
                    }
                }
                () = self.stopping.cancelled(), if !stopped => {
                    stopped = true;
                    self.links.stop();
                }
            }
        }
    }

    /// This home, of one more connection that lives here.
    pub(super) fn lodge(self: Rc<Self>) -> Lodging {
        self.lodgers.fetch_add(1, Ordering::Relaxed);
        Lodging(self)
    }
}

/// The home of a connection that has come to it: counted there until it is dropped.
#[derive(Debug)]
pub(super) struct Lodging(Rc<Home>);

impl Deref for Lodging {
    type Target = Home;

    fn deref(&self) -> &Home {
        &self.0
    }
}

impl Drop for Lodging {
    fn drop(&mut self) {
        self.0.lodgers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The way to the homes.
#[derive(Debug)]
pub(super) struct Homes(Vec<Door>);

#[derive(Debug)]
struct Door {
    runtime: Handle,
    lodgers: Arc<AtomicUsize>,
}

/// The threads. They end when this is dropped.
#[derive(Debug)]
pub(super) struct Threads {
    halt: CancellationToken,
    threads: Vec<JoinHandle<()>>,
}

/// A place at a home, for a connection that will live there: counted until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) index: usize,
    lodgers: Arc<AtomicUsize>,
}

impl Place {
    fn new(index: usize, lodgers: &Arc<AtomicUsize>) -> Self {
        lodgers.fetch_add(1, Ordering::Relaxed);
        Self { index, lodgers: Arc::clone(lodgers) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.lodgers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How many homes a configuration asks for: 0 means one for each core but one, which is left to the store.
pub(super) fn count(shards: u16) -> usize {
    let cores = || thread::available_parallelism().map_or(1, NonZero::get);
    let wanted = if shards == 0 { cores() - 1 } else { usize::from(shards) };
    wanted.clamp(1, ShardSet::BITS as usize)
}

impl Homes {
    /// Starts as many as the configuration says. Their connections are told when `stopping` is cancelled.
    pub(super) fn start(config: &Config, metrics: &Arc<Metrics>, stopping: &CancellationToken) -> io::Result<(Self, Threads)> {
        let mut all = Threads { halt: CancellationToken::new(), threads: Vec::new() };
        let mut doors = Vec::new();
        let stall_timeout = config.stall_timeout();
        for index in 0..count(config.shards) {
            let (tell, told) = mpsc::sync_channel(1);
            let lodgers: Arc<AtomicUsize> = Arc::default();
            let (halt, stopping, metrics) = (all.halt.clone(), stopping.clone(), Arc::clone(metrics));
            let counted = Arc::clone(&lodgers);
            let run = move || {
                // A runtime of this kind cannot leave its thread.
                let runtime = match Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
                    Ok(runtime) => runtime,
                    Err(error) => return drop(tell.send(Err(error))),
                };
                let links = Links::new(stall_timeout);
                let home = Rc::new(Home { index, links, epoch: Instant::now(), stopping, lodgers: counted, metrics });
                HOME.set(Some(Rc::clone(&home)));
                if tell.send(Ok(runtime.handle().clone())).is_ok() {
                    runtime.block_on(async {
                        tokio::select! {
                            () = halt.cancelled() => {}
                            () = home.keep() => {}
                        }
                    });
                }
                // What is left is dropped here, where it lives, while its home is still there.
                drop(runtime);
                HOME.set(None);
            };
            all.threads.push(thread::Builder::new().name(format!("shard-{index}")).spawn(run)?);
            let runtime = told.recv().map_err(io::Error::other)??;
            doors.push(Door { runtime, lodgers });
        }
        Ok((Self(doors), all))
    }

    /// A place where there are fewest.
    pub(super) fn place(&self) -> Place {
        let lodgers = |door: &Door| door.lodgers.load(Ordering::Relaxed);
        let index = (0..self.0.len()).min_by_key(|index| self.0.get(*index).map_or(usize::MAX, lodgers)).unwrap_or(0);
        self.place_at(index)
    }

    /// A place at this one; at the first where there is no such home.
    pub(super) fn place_at(&self, index: usize) -> Place {
        let (index, door) = match self.0.get(index) {
            Some(door) => (index, door),
            None => (0, self.0.first().expect("there is one home at least")),
        };
        Place::new(index, &door.lodgers)
    }

    /// The runtime of a home: what `act` makes and spawns is driven there.
    pub(super) fn enter<T>(&self, place: &Place, act: impl FnOnce() -> T) -> T {
        let _inside = self.0.get(place.index).map(|door| door.runtime.enter());
        act()
    }

    /// Makes a task at its place, and runs it there, among `tasks`.
    pub(super) fn spawn<F>(&self, tasks: &TaskTracker, place: Place, make: impl FnOnce() -> F + Send + 'static)
    where
        F: Future<Output = ()> + 'static,
    {
        let Some(door) = self.0.get(place.index) else { return };
        let there = tasks.clone();
        let begin = async move {
            there.spawn_local(async move {
                make().await;
                drop(place);
            });
        };
        tasks.spawn_on(begin, &door.runtime);
    }
}

impl Threads {
    /// Ends them, with whatever still runs there, and waits for that. Blocks.
    pub(super) fn join(mut self) {
        self.halt.cancel();
        for thread in self.threads.drain(..) {
            // A panic there was reported when it happened.
            drop(thread.join());
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.halt.cancel();
    }
}
