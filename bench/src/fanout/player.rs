//! The generator for TCP: one thread, one epoll, all connections.

use std::{
    sync::Mutex,
    sync::PoisonError,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use anyhow::Context as _;

use super::{
    epoll::{self, Poll},
    session::{Endpoint, Role, Session},
    tally::Tally,
    workload::{Pace, Shape},
};

/// Connections that log in at the same time.
const LOGINS: usize = 8;
/// A closed window is opened again when nothing comes for so long: what may be dropped was dropped.
const STALL: Duration = Duration::from_millis(300);

/// What plays a workload, on whatever transport.
pub trait Play {
    /// Publishes at this pace, and counts what comes, for so long.
    fn play(&mut self, pace: Pace, time: Duration, tally: &mut Tally) -> anyhow::Result<()>;
}

/// All connections, logged in.
pub struct Player {
    poll: Poll,
    sessions: Vec<Session>,
    shape: Shape,
    /// Whose turn it is to publish.
    turn: usize,
    scratch: Vec<u8>,
    /// Those that have something to send still.
    behind: Vec<usize>,
}

impl Player {
    /// Connects everybody. The makers of rooms come first.
    pub fn connect(endpoint: &Endpoint, shape: &Shape) -> anyhow::Result<Self> {
        let roles: Vec<Role> = (0..shape.connections).map(|index| shape.role(index)).collect();
        let (makers, others) = roles.split_at(shape.rooms);
        let mut sessions = open_all(endpoint, makers)?;
        sessions.extend(open_all(endpoint, others)?);
        let poll = Poll::new()?;
        for (index, session) in sessions.iter().enumerate() {
            poll.add(session.stream.fd(), index as u64, epoll::READ)?;
        }
        epoll::precise_timers();
        Ok(Self { poll, sessions, shape: shape.clone(), turn: 0, scratch: Vec::new(), behind: Vec::new() })
    }

    fn publish(&mut self, publisher: usize, stamp: u64, tally: &mut Tally) -> anyhow::Result<()> {
        let session = self.sessions.get_mut(publisher).context("no such publisher")?;
        session.publish(stamp)?;
        if session.stream.is_behind() {
            self.behind.push(publisher);
        }
        tally.published += 1;
        Ok(())
    }

    /// The next publisher's turn.
    fn next(&mut self) -> usize {
        let publisher = self.turn;
        self.turn = (self.turn + 1) % self.shape.publishers.max(1);
        publisher
    }
}

fn open_all(endpoint: &Endpoint, roles: &[Role]) -> anyhow::Result<Vec<Session>> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(roles.len())));
    thread::scope(|scope| {
        let work = || {
            while let Some(role) = roles.get(next.fetch_add(1, Ordering::Relaxed)) {
                let session = Session::open(endpoint, role)
                    .with_context(|| format!("connection {} of {}", role.index, endpoint.address))?;
                done.lock().unwrap_or_else(PoisonError::into_inner).push((role.index, session));
            }
            anyhow::Ok(())
        };
        let threads: Vec<_> = (0..LOGINS).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a login panicked"))?)
    })?;
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(index, _)| *index);
    Ok(done.into_iter().map(|(_, session)| session).collect())
}

impl Play for Player {
    fn play(&mut self, pace: Pace, time: Duration, tally: &mut Tally) -> anyhow::Result<()> {
        let end = tally.now() + u64::try_from(time.as_nanos())?;
        let each = self.shape.deliveries_per_message();
        let mut due = tally.now();
        let (mut sent, mut came_before, mut last_came) = (0, tally.deliveries, tally.now());
        if pace == Pace::Acked {
            for publisher in 0..self.shape.publishers {
                let now = tally.now();
                self.publish(publisher, now, tally)?;
            }
        }
        loop {
            let now = tally.now();
            if now >= end {
                return Ok(());
            }
            let wait = match pace {
                Pace::Rate(rate) => {
                    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "nanoseconds between messages")]
                    let interval = (1e9 / rate) as u64;
                    while due <= now {
                        let publisher = self.next();
                        self.publish(publisher, due, tally)?;
                        due += interval;
                    }
                    due.min(end) - now
                }
                Pace::Window(window) => {
                    if tally.deliveries > came_before {
                        (came_before, last_came) = (tally.deliveries, now);
                    } else if now - last_came > u64::try_from(STALL.as_nanos())? {
                        (sent, last_came) = (tally.deliveries, now);
                    }
                    sent = sent.max(tally.deliveries);
                    while sent < tally.deliveries + window * each {
                        let publisher = self.next();
                        self.publish(publisher, tally.now(), tally)?;
                        sent += each;
                    }
                    (end - now).min(10_000_000)
                }
                Pace::Acked | Pace::Idle => end - now,
            };
            let events: Vec<(u64, u32)> = self.poll.wait(Some(Duration::from_nanos(wait)))?.collect();
            for (token, _) in events {
                let index = usize::try_from(token)?;
                let before = (tally.acks, tally.deliveries);
                let now = tally.now();
                let session = self.sessions.get_mut(index).context("no such connection")?;
                session.receive(&mut self.scratch, now, tally)?;
                if pace == Pace::Acked && (tally.acks, tally.deliveries) != before {
                    tally.ack_latency.add(Duration::from_nanos(now - session.sent_at));
                    let now = tally.now();
                    self.publish(index, now, tally)?;
                }
            }
            for index in std::mem::take(&mut self.behind) {
                let stream = &mut self.sessions[index].stream;
                stream.flush()?;
                if stream.is_behind() {
                    self.behind.push(index);
                }
            }
        }
    }
}
