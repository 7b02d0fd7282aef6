//! The writing side of connections, on their home: frames are queued, and written at the end of the turn that brought them,
//! without a task, a channel or a lock for any of them. A transport that takes no more wakes the connection's own task when
//! it does again.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    future::poll_fn,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use crate::{
    core::lane::Outgoing,
    router::{Conn, ConnId, outbox::ShardSet, shard::Sent},
    transport::{Error, FrameWriter},
};

/// Frames that a queue keeps room for when it is empty: a burst leaves no memory behind.
const QUEUE_KEPT: usize = 4;

/// The connections that live on one thread and are logged in.
#[derive(Debug, Default)]
pub(super) struct Links {
    links: RefCell<HashMap<ConnId, Rc<Link>>>,
    /// Those that have something to be written in this turn.
    dirty: RefCell<Vec<Rc<Link>>>,
}

impl Links {
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
        for link in dirty.drain(..) {
            link.flush();
        }
        self.dirty.replace(dirty);
    }
}

/// The writing side of one connection.
#[derive(Debug)]
pub(super) struct Link {
    conn: Arc<Conn>,
    out: RefCell<Out>,
    /// Something is queued, and will be written at the end of the turn.
    dirty: Cell<bool>,
}

#[derive(Debug)]
struct Out {
    queue: VecDeque<Outgoing>,
    /// Bytes of the frames in it.
    queued: usize,
    writer: FrameWriter,
    /// The connection's task.
    task: Waker,
    /// The transport takes no more now, and wakes the task when it does.
    blocked: bool,
    /// What the task has not been told yet.
    relieved: ShardSet,
    failed: Option<Error>,
}

/// What a connection's task hears of its writing side.
#[derive(Debug)]
pub(super) enum Heard {
    /// These shards wait for room, and there is some.
    Relieved(ShardSet),
    /// The transport has begun to take no more, or has taken something since this was last told.
    Blocked,
    /// The transport failed.
    Failed(Error),
}

impl Link {
    pub(super) fn new(conn: Arc<Conn>, writer: FrameWriter) -> Rc<Self> {
        let (queue, task) = (VecDeque::new(), Waker::noop().clone());
        let out = Out { queue, queued: 0, writer, task, blocked: false, relieved: 0, failed: None };
        Rc::new(Self { conn, out: RefCell::new(out), dirty: Cell::new(false) })
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
        out.queued += frame.frame.len();
        out.queue.push_back(frame);
        !out.blocked && !self.dirty.replace(true)
    }

    /// Writes what is queued, as far as the transport takes it now.
    fn flush(&self) {
        self.dirty.set(false);
        let mut out = self.out.borrow_mut();
        let out = &mut *out;
        if out.failed.is_some() {
            return;
        }
        let before = out.queued + out.writer.unwritten_bytes();
        let polled = out.writer.poll_send(&mut Context::from_waker(&out.task), &mut out.queue);
        out.queued = out.queue.iter().map(|next| next.frame.len()).sum();
        if out.queue.is_empty() && out.queue.capacity() > QUEUE_KEPT {
            out.queue = VecDeque::new();
        }
        let after = out.queued + out.writer.unwritten_bytes();
        if before > after {
            out.relieved |= self.conn.outbox.written(before - after);
        }
        let blocked = polled.is_pending();
        if let Poll::Ready(Err(error)) = polled {
            out.failed = Some(error);
        }
        if out.relieved != 0 || out.failed.is_some() || blocked != out.blocked {
            out.task.wake_by_ref();
        }
        out.blocked = blocked;
    }

    /// Waits for what the connection's task has to do with its writing side, which goes on meanwhile.
    pub(super) async fn heard(&self) -> Heard {
        let mut blocked = self.out.borrow().blocked;
        poll_fn(|cx| {
            let progress = {
                let mut out = self.out.borrow_mut();
                out.task.clone_from(cx.waker());
                out.queued + out.writer.unwritten_bytes()
            };
            if self.dirty.get() || self.out.borrow().blocked {
                self.flush();
            }
            let mut out = self.out.borrow_mut();
            let moved = out.queued + out.writer.unwritten_bytes() < progress;
            if let Some(error) = out.failed.take() {
                return Poll::Ready(Heard::Failed(error));
            }
            let relieved = std::mem::take(&mut out.relieved);
            if relieved != 0 {
                return Poll::Ready(Heard::Relieved(relieved));
            }
            let was = std::mem::replace(&mut blocked, out.blocked);
            if out.blocked && (!was || moved) { Poll::Ready(Heard::Blocked) } else { Poll::Pending }
        })
        .await
    }

    /// Whether the transport takes no more now.
    pub(super) fn is_blocked(&self) -> bool {
        self.out.borrow().blocked
    }

    /// Waits until everything queued is written.
    pub(super) async fn drained(&self) -> Result<(), Error> {
        poll_fn(|cx| {
            self.out.borrow_mut().task.clone_from(cx.waker());
            self.flush();
            let mut out = self.out.borrow_mut();
            match out.failed.take() {
                Some(error) => Poll::Ready(Err(error)),
                None if out.blocked => Poll::Pending,
                None => Poll::Ready(Ok(())),
            }
        })
        .await
    }

    /// The writer, at the end: nothing more is written by the link. What was still queued is dropped.
    pub(super) fn into_writer(self: Rc<Self>) -> Option<FrameWriter> {
        Rc::into_inner(self).map(|link| link.out.into_inner().writer)
    }
}
