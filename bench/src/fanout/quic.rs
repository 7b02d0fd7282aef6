//! The generator for WebTransport and QUIC: the product's own client on one thread, one UDP socket for each connection.

use std::{
    cell::{Cell, RefCell},
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    rc::Rc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use tokio::{
    io::{Interest, unix::AsyncFd},
    runtime::Runtime,
    sync::Notify,
    task::{JoinSet, LocalSet},
};
use waxwing::{
    core::{
        frame::{ClientFrame, ServerFrame},
        login::Transcript,
    },
    transport::{Connection, FrameReader, FrameWriter, Kind, Target, connect},
};

use super::{
    epoll,
    player::Play,
    session::{Outbox, Role, sign, take_frame},
    tally::Tally,
    workload::{Pace, Shape},
};

/// Connections that log in at the same time.
const LOGINS: usize = 16;

/// What the readers share with the one who publishes.
#[derive(Default)]
struct Board {
    tally: RefCell<Option<Tally>>,
    /// Why a connection ended; there must be none.
    failure: RefCell<Option<anyhow::Error>>,
    /// Publishers whose message was acked.
    acked: RefCell<Vec<usize>>,
    /// Told when something came, if somebody waits for that.
    news: Notify,
    wants_news: Cell<bool>,
}

/// All connections, logged in.
pub struct Player {
    runtime: Runtime,
    local: LocalSet,
    board: Rc<Board>,
    publishers: Vec<(FrameWriter, Outbox)>,
    /// Writers of those who only listen: dropped ones would end their connections.
    _others: Vec<FrameWriter>,
    readers: JoinSet<()>,
    shape: Shape,
    turn: usize,
}

impl Player {
    pub fn connect(target: &Target, kind: Kind, shape: &Shape) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let local = LocalSet::new();
        let roles: Vec<Role> = (0..shape.connections).map(|index| shape.role(index)).collect();
        let (makers, members) = roles.split_at(shape.rooms);
        let mut open = Vec::with_capacity(shape.connections);
        for part in [makers, members] {
            local.block_on(&runtime, open_all(target, kind, part, &mut open))?;
        }
        open.sort_by_key(|(index, _, _)| *index);
        let board = Rc::new(Board::default());
        let (mut publishers, mut others, mut readers) = (Vec::new(), Vec::new(), JoinSet::new());
        for (index, reader, writer) in open {
            readers.spawn_local_on(read(index, reader, Rc::clone(&board)), &local);
            if index < shape.publishers {
                publishers.push((writer, Outbox::new(&shape.role(index))));
            } else {
                others.push(writer);
            }
        }
        epoll::precise_timers();
        Ok(Self { runtime, local, board, publishers, _others: others, readers, shape: shape.clone(), turn: 0 })
    }
}

type Open = Vec<(usize, FrameReader, FrameWriter)>;

async fn open_all(target: &Target, kind: Kind, roles: &[Role], open: &mut Open) -> anyhow::Result<()> {
    let mut logins = JoinSet::new();
    for role in roles.iter().copied() {
        while logins.len() >= LOGINS {
            open.extend(logins.join_next().await.transpose()?.transpose()?);
        }
        let target = target.clone();
        logins.spawn_local(async move {
            let (reader, writer) = log_in(&target, kind, &role).await.with_context(|| format!("connection {}", role.index))?;
            anyhow::Ok((role.index, reader, writer))
        });
    }
    while let Some(done) = logins.join_next().await {
        open.push(done??);
    }
    Ok(())
}

async fn log_in(target: &Target, kind: Kind, role: &Role) -> anyhow::Result<(FrameReader, FrameWriter)> {
    let Connection { info, mut reader, mut writer } = connect(target, kind).await?;
    let hello = role.hello(&target.authority, info.exporter.is_some());
    writer.send(&[ClientFrame::Hello(hello.clone()).encode()]).await?;
    let challenge = expect(&mut reader, |frame| matches!(frame, ServerFrame::Challenge { .. })).await?;
    let ServerFrame::Challenge { nonce: challenge } = challenge else { bail!("no challenge") };
    let transcript = Transcript { hello: &hello, challenge, exporter: info.exporter.as_ref() };
    writer.send(&[ClientFrame::Authenticate { signature: sign(&role.key(), &transcript.message()) }.encode()]).await?;
    expect(&mut reader, |frame| matches!(frame, ServerFrame::Welcome { .. })).await?;
    if role.makes_room {
        writer.send(&[role.create().encode()]).await?;
        expect(&mut reader, |frame| matches!(frame, ServerFrame::Created { .. })).await?;
    }
    let enter = role.enter(transcript.binding()).encode();
    if role.subscribes {
        writer.send(&[enter, role.subscribe().encode()]).await?;
        expect(&mut reader, |frame| matches!(frame, ServerFrame::Subscribed { .. })).await?;
    } else {
        writer.send(&[enter]).await?;
        expect(&mut reader, |frame| matches!(frame, ServerFrame::Entered { .. })).await?;
    }
    Ok((reader, writer))
}

async fn expect(reader: &mut FrameReader, wanted: impl Fn(&ServerFrame) -> bool) -> anyhow::Result<ServerFrame> {
    loop {
        let bytes = reader.recv().await?.context("the server closed the connection")?;
        match ServerFrame::decode(&bytes)? {
            frame if wanted(&frame) => return Ok(frame),
            ServerFrame::Failed { what, why, .. } => bail!("{what:?} was refused: {why}"),
            ServerFrame::Closing { code, .. } => bail!("the server closed the connection: {code}"),
            _ => {}
        }
    }
}

/// Counts what comes on one connection, until it ends.
async fn read(index: usize, mut reader: FrameReader, board: Rc<Board>) {
    loop {
        let result = match reader.recv().await {
            Ok(Some(frame)) => board.take(index, &frame),
            Ok(None) => Err(anyhow::anyhow!("the server closed connection {index}")),
            Err(error) => Err(error.into()),
        };
        if let Err(error) = result {
            *board.failure.borrow_mut() = Some(error);
            board.news.notify_one();
            return;
        }
    }
}

impl Board {
    fn take(&self, index: usize, frame: &[u8]) -> anyhow::Result<()> {
        let mut tally = self.tally.borrow_mut();
        let Some(tally) = tally.as_mut() else { return Ok(()) };
        let (now, acks) = (tally.now(), tally.acks);
        take_frame(frame, now, tally)?;
        if self.wants_news.get() {
            if tally.acks != acks {
                self.acked.borrow_mut().push(index);
            }
            self.news.notify_one();
        }
        Ok(())
    }

    fn with<T>(&self, what: impl FnOnce(&mut Tally) -> T) -> T {
        what(self.tally.borrow_mut().as_mut().expect("it is here while something is played"))
    }
}

impl Play for Player {
    fn play(&mut self, pace: Pace, time: Duration, tally: &mut Tally) -> anyhow::Result<()> {
        *self.board.tally.borrow_mut() = Some(std::mem::replace(tally, Tally::new()));
        self.board.wants_news.set(matches!(pace, Pace::Window(_) | Pace::Acked));
        let Self { runtime, local, board, publishers, shape, turn, .. } = self;
        let result = local.block_on(runtime, publish(board, publishers, shape, turn, pace, time));
        if let Some(counted) = self.board.tally.borrow_mut().take() {
            *tally = counted;
        }
        if let Some(failure) = self.board.failure.borrow_mut().take() {
            return Err(failure);
        }
        if self.readers.is_empty() {
            bail!("nobody is there");
        }
        result
    }
}

async fn publish(
    board: &Board,
    publishers: &mut [(FrameWriter, Outbox)],
    shape: &Shape,
    turn: &mut usize,
    pace: Pace,
    time: Duration,
) -> anyhow::Result<()> {
    let timer = Timer::new()?;
    let end = board.with(|tally| tally.now()) + u64::try_from(time.as_nanos())?;
    let each = shape.deliveries_per_message();
    let mut due = board.with(|tally| tally.now());
    let mut sent = 0;
    let mut sent_at = vec![0; publishers.len()];
    let mut next = || {
        let publisher = *turn;
        *turn = (*turn + 1) % shape.publishers.max(1);
        publisher
    };
    if pace == Pace::Acked {
        board.acked.borrow_mut().extend(0..publishers.len());
    }
    loop {
        let now = board.with(|tally| tally.now());
        if now >= end || board.failure.borrow().is_some() {
            return Ok(());
        }
        let wait = match pace {
            Pace::Rate(rate) => {
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "nanoseconds between messages")]
                let interval = (1e9 / rate) as u64;
                while due <= now {
                    send(board, &mut publishers[next()], due).await?;
                    due += interval;
                }
                due.min(end).saturating_sub(now)
            }
            Pace::Window(window) => {
                let came = board.with(|tally| tally.deliveries);
                sent = sent.max(came);
                // A commit gathers what is stored, nothing what is not: its window opens again when all of it has come.
                let opens = !shape.ephemeral || came == sent;
                while opens && sent < came + window * each {
                    let stamp = board.with(|tally| tally.now());
                    send(board, &mut publishers[next()], stamp).await?;
                    sent += each;
                }
                // What may be dropped was dropped, if nothing comes for so long.
                let stall = tokio::time::timeout(Duration::from_millis(300), board.news.notified()).await;
                if stall.is_err() {
                    sent = 0;
                }
                continue;
            }
            Pace::Acked => {
                let acked = std::mem::take(&mut *board.acked.borrow_mut());
                for index in acked {
                    let stamp = board.with(|tally| {
                        let now = tally.now();
                        if sent_at[index] != 0 {
                            tally.ack_latency.add(Duration::from_nanos(now - sent_at[index]));
                        }
                        now
                    });
                    sent_at[index] = stamp;
                    send(board, &mut publishers[index], stamp).await?;
                }
                // The end is looked at whenever something comes.
                drop(tokio::time::timeout(Duration::from_millis(10), board.news.notified()).await);
                continue;
            }
            Pace::Idle => end - now,
        };
        timer.wait(Duration::from_nanos(wait.max(1))).await?;
    }
}

async fn send(board: &Board, (writer, outbox): &mut (FrameWriter, Outbox), stamp: u64) -> anyhow::Result<()> {
    // Ephemerals go as datagrams.
    writer.send_requests(&[outbox.publish(stamp).encode()]).await?;
    board.with(|tally| tally.published += 1);
    Ok(())
}

/// A timer to the microsecond: the runtime's own are to the millisecond.
struct Timer(AsyncFd<OwnedFd>);

impl Timer {
    fn new() -> io::Result<Self> {
        // SAFETY: takes numbers; the descriptor is fresh and ours.
        let fd = unsafe {
            let fd = libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC | libc::TFD_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        // SAFETY: the descriptor is owned, and stays the same as long as it is registered.
        Ok(Self(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?))
    }

    async fn wait(&self, time: Duration) -> io::Result<()> {
        let never = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let seconds = libc::time_t::try_from(time.as_secs()).unwrap_or(libc::time_t::MAX);
        let value = libc::timespec { tv_sec: seconds, tv_nsec: libc::c_long::from(time.subsec_nanos().cast_signed()) };
        let time = libc::itimerspec { it_interval: never, it_value: value };
        // SAFETY: the time lives through the call; null asks for no answer.
        let result = unsafe { libc::timerfd_settime(self.0.as_raw_fd(), 0, &raw const time, std::ptr::null_mut()) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        loop {
            let mut ready = self.0.readable().await?;
            let mut count = [0_u8; 8];
            // SAFETY: reads eight bytes into eight.
            if unsafe { libc::read(self.0.as_raw_fd(), count.as_mut_ptr().cast(), 8) } == 8 {
                return Ok(());
            }
            ready.clear_ready();
        }
    }
}
