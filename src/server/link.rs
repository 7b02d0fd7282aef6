//! The writing side of connections, on their home: frames are queued, and written at the end of the turn that brought them,
//! without a task, a channel or a lock for any of them. A transport that takes no more wakes the connection's own task when
//! it does again. Deadlines are looked at for all connections together, a few times a second: a timer for each would be the
//! largest thing that a waiting connection holds.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    future::poll_fn,
    hint::black_box,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use crate::{
    core::lane::Outgoing,
    router::{Conn, ConnId, outbox::ShardSet, shard::Sent},
    transport::{Error, FrameWriter},
};

/// How often deadlines are looked at.
pub(super) const TICK: Duration = Duration::from_millis(250);
/// Frames that a queue keeps room for when it is empty: one at a time is the rule, and a burst leaves no memory behind.
const QUEUE_KEPT: usize = 1;

/// So many connections are looked at before the first of them is written to. What a write takes of the caches would else have to be fetched
/// again between one and the next, a line after the other; without a system call between them the processor fetches many at once.
const LOOKED_AHEAD: usize = 16;

/// The connections that live on one thread and are logged in.
#[derive(Debug)]
pub(super) struct Links {
    links: RefCell<HashMap<ConnId, Rc<Link>>>,
    /// Those that have something to be written in this turn.
    dirty: RefCell<Vec<Rc<Link>>>,
    /// A peer that takes nothing for so many ticks is given up.
    stalled_ticks: u128,
}

impl Links {
    /// None yet. Those that take nothing for so long are given up.
    pub(super) fn new(stall_timeout: Duration) -> Self {
        let stalled_ticks = stall_timeout.as_millis().div_ceil(TICK.as_millis());
        Self { links: RefCell::default(), dirty: RefCell::default(), stalled_ticks }
    }

    pub(super) fn insert(&self, link: &Rc<Link>) {
        self.links.borrow_mut().insert(link.conn.id, Rc::clone(link));
    }

    pub(super) fn remove(&self, id: ConnId) {
        self.links.borrow_mut().remove(&id);
    }

    /// Queues what has come, and writes it: for each connection all at once.
    pub(super) fn deliver(&self, sent: &mut Vec<Sent>) {
        let mut dirty = self.dirty.take();
        let links = self.links.borrow();
        for (id, frame) in sent.drain(..) {
            // What is for a connection that has ended is for nobody.
            if let Some(link) = links.get(&id)
                && link.queue(frame)
            {
                dirty.push(Rc::clone(link));
            }
        }
        drop(links);
        for few in dirty.chunks(LOOKED_AHEAD) {
            black_box(few.iter().map(|link| link.look()).sum::<usize>());
            few.iter().for_each(|link| link.flush());
        }
        dirty.clear();
        self.dirty.replace(dirty);
    }

    /// Time has passed: [`TICK`] since this was last called, and it is now `now_ms`. Returns how many bytes wait in all because peers
    /// do not take them.
    pub(super) fn tick(&self, now_ms: u64) -> usize {
        self.links.borrow().values().map(|link| link.tick(self.stalled_ticks, now_ms)).sum()
    }

    /// The server stops: every connection is told.
    pub(super) fn stop(&self) {
        self.links.borrow().values().for_each(|link| link.remark(Remark::Stop));
    }
}

/// The writing side of one connection, and its deadlines.
#[derive(Debug)]
pub(super) struct Link {
    conn: Arc<Conn>,
    out: RefCell<Out>,
    /// Something is queued, and will be written at the end of the turn.
    dirty: Cell<bool>,
    /// When the session wants to be asked whether it is over, in the home's milliseconds.
    deadline_ms: Cell<u64>,
    remark: Cell<Option<Remark>>,
}

#[derive(Debug)]
struct Out {
    queue: VecDeque<Outgoing>,
    writer: Box<FrameWriter>,
    /// The connection's task.
    task: Waker,
    /// The transport takes no more now, and wakes the task when it does.
    blocked: bool,
    /// For so many ticks it has taken nothing.
    stalled: u32,
    /// What the task has not been told yet.
    relieved: ShardSet,
    failed: Option<Box<Error>>,
}

impl Out {
    /// Bytes that are queued, and that the transport has taken and not written.
    fn unwritten_bytes(&self) -> usize {
        self.queue.iter().map(|next| next.frame.len()).sum::<usize>() + self.writer.unwritten_bytes()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Remark {
    Deadline,
    Stalled,
    Stop,
}

/// What a connection's task hears.
#[derive(Debug)]
pub(super) enum Heard {
    /// These shards wait for room in its outbox, and there is some.
    Relieved(ShardSet),
    /// The deadline has passed.
    Deadline,
    /// The peer takes nothing any more.
    Stalled,
    /// The server stops.
    Stop,
    /// The transport failed.
    Failed(Error),
}

impl Link {
    pub(super) fn new(conn: Arc<Conn>, writer: Box<FrameWriter>) -> Rc<Self> {
        let (queue, task) = (VecDeque::new(), Waker::noop().clone());
        let out = Out { queue, writer, task, blocked: false, stalled: 0, relieved: 0, failed: None };
        let (dirty, deadline_ms, remark) = (Cell::new(false), Cell::new(u64::MAX), Cell::new(None));
        Rc::new(Self { conn, out: RefCell::new(out), dirty, deadline_ms, remark })
    }

    /// [`Heard::Deadline`] comes soon after this time, unless another one is set before.
    pub(super) fn set_deadline(&self, at_ms: u64) {
        self.deadline_ms.set(at_ms);
    }

    /// Returns the bytes that wait because the peer does not take them.
    fn tick(&self, stalled_ticks: u128, now_ms: u64) -> usize {
        let (stalled, waiting) = {
            let mut out = self.out.borrow_mut();
            out.stalled = if out.blocked { out.stalled.saturating_add(1) } else { 0 };
            (u128::from(out.stalled) >= stalled_ticks, if out.blocked { self.conn.outbox.bytes() } else { 0 })
        };
        if stalled {
            self.remark(Remark::Stalled);
        } else if now_ms >= self.deadline_ms.get() {
            self.remark(Remark::Deadline);
        }
        waiting
    }

    /// Tells the task. What ends the connection is not forgotten over what may not.
    fn remark(&self, remark: Remark) {
        if self.remark.get().is_none_or(|before| before == Remark::Deadline) {
            self.remark.set(Some(remark));
        }
        self.out.borrow().task.wake_by_ref();
    }

    pub(super) const fn conn(&self) -> &Arc<Conn> {
        &self.conn
    }

    /// Queues an answer of the session itself. The connection's task writes it when it has read what there is.
    pub(super) fn answer(&self, frame: bytes::Bytes) {
        self.conn.outbox.push(frame.len());
        self.queue(Outgoing::control(frame));
    }

    /// Queues a frame that the outbox has counted. Whether the link is to be flushed now, and was not before.
    fn queue(&self, frame: Outgoing) -> bool {
        let mut out = self.out.borrow_mut();
        if out.queue.capacity() == 0 {
            out.queue.reserve_exact(QUEUE_KEPT);
        }
        out.queue.push_back(frame);
        // A transport with lanes takes what is for one although another is blocked.
        (!out.blocked || out.writer.has_lanes()) && !self.dirty.replace(true)
    }

    /// Touches what [`Self::flush`] will need, and changes nothing. What it returns means nothing.
    fn look(&self) -> usize {
        let out = self.out.borrow();
        let first = out.queue.front().map_or(0, |next| next.frame.len());
        first + out.writer.look() + self.conn.outbox.bytes()
    }

    /// Writes what is queued, as far as the transport takes it now.
    fn flush(&self) {
        self.dirty.set(false);
        let mut out = self.out.borrow_mut();
        let out = &mut *out;
        if out.failed.is_some() {
            return;
        }
        let before = out.unwritten_bytes();
        let polled = out.writer.poll_send(&mut Context::from_waker(&out.task), &mut out.queue);
        if out.queue.is_empty() && out.queue.capacity() > QUEUE_KEPT {
            out.queue = VecDeque::new();
        }
        let after = out.unwritten_bytes();
        if before > after {
            out.stalled = 0;
            out.relieved |= self.conn.outbox.written(before - after);
        }
        out.blocked = polled.is_pending();
        if let Poll::Ready(Err(error)) = polled {
            out.failed = Some(Box::new(error));
        }
        if out.relieved != 0 || out.failed.is_some() {
            out.task.wake_by_ref();
        }
    }

    /// What the connection's task has to do besides reading. Meanwhile its writing side goes on.
    pub(super) fn poll_heard(&self, cx: &Context<'_>) -> Poll<Heard> {
        let blocked = {
            let mut out = self.out.borrow_mut();
            out.task.clone_from(cx.waker());
            out.blocked
        };
        if blocked || self.dirty.get() {
            self.flush();
        }
        let mut out = self.out.borrow_mut();
        Poll::Ready(match (out.failed.take(), self.remark.take()) {
            (Some(error), _) => Heard::Failed(*error),
            (None, Some(Remark::Stop)) => Heard::Stop,
            (None, Some(Remark::Stalled)) => Heard::Stalled,
            (None, Some(Remark::Deadline)) => Heard::Deadline,
            (None, None) if out.relieved != 0 => Heard::Relieved(std::mem::take(&mut out.relieved)),
            (None, None) => return Poll::Pending,
        })
    }

    /// Waits until everything queued is written.
    pub(super) async fn drained(&self) -> Result<(), Error> {
        poll_fn(|cx| {
            self.out.borrow_mut().task.clone_from(cx.waker());
            self.flush();
            let mut out = self.out.borrow_mut();
            match out.failed.take() {
                Some(error) => Poll::Ready(Err(*error)),
                None if out.blocked => Poll::Pending,
                None => Poll::Ready(Ok(())),
            }
        })
        .await
    }

    /// The writer, at the end: nothing more is written by the link. What was still queued is dropped.
    pub(super) fn into_writer(self: Rc<Self>) -> Option<Box<FrameWriter>> {
        Rc::into_inner(self).map(|link| link.out.into_inner().writer)
    }
}
