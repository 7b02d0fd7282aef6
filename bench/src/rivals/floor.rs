//! The floor: one thread, one epoll, one buffer for each room and turn, one write of it for each member at the turn's end.
//! No protocol, no limits; durable only when asked, with group commit by a second thread.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::{self, ErrorKind, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::fs::FileExt as _,
    },
    path::Path,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread,
};

use rustls::{ServerConfig, ServerConnection};

use crate::fanout::{
    epoll::{self, Poll},
    wire,
};

const LISTENER: u64 = u64::MAX;
const STORED: u64 = u64::MAX - 1;
/// Bytes of the file of messages; it is used again from its beginning.
const FILE: u64 = 64 << 20;

/// Frames of one turn: to whom, and by room.
type Turn = Vec<(To, Vec<u8>)>;

/// A room; and who sent, if that is not to hear it.
type To = (u32, Option<u64>);

struct Conn {
    socket: TcpStream,
    tls: Option<Box<ServerConnection>>,
    /// Bytes of what is not all there yet.
    partial: Vec<u8>,
    /// `None` until the handshake is done.
    room: Option<u32>,
    /// What the socket did not take.
    unsent: Vec<u8>,
}

impl Conn {
    fn read(&mut self, scratch: &mut Vec<u8>) -> io::Result<()> {
        const ROOM: usize = 64 << 10;
        let Some(tls) = &mut self.tls else { return epoll::recv(self.socket.as_raw_fd(), scratch, ROOM) };
        if tls.read_tls(&mut self.socket)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let wanted = tls.process_new_packets().map_err(io::Error::other)?.plaintext_bytes_to_read();
        scratch.resize(wanted, 0);
        tls.reader().read_exact(scratch)?;
        while tls.wants_write() && tls.write_tls(&mut self.socket)? > 0 {}
        Ok(())
    }

    /// Sends all, or keeps the rest; whether there is a rest.
    fn write(&mut self, bytes: &[u8]) -> io::Result<bool> {
        let again = |result: io::Result<usize>| match result {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
            result => result,
        };
        if let Some(tls) = &mut self.tls {
            tls.writer().write_all(bytes)?;
            while tls.wants_write() && again(tls.write_tls(&mut self.socket))? > 0 {}
            return Ok(tls.wants_write());
        }
        if self.unsent.is_empty() {
            let written = again(self.socket.write(bytes))?;
            self.unsent.extend_from_slice(&bytes[written..]);
        } else {
            self.unsent.extend_from_slice(bytes);
            let written = again(self.socket.write(&self.unsent))?;
            self.unsent.drain(..written);
        }
        if self.unsent.is_empty() {
            self.unsent = Vec::new();
        }
        Ok(!self.unsent.is_empty())
    }
}

/// The thread that stores, if there is one.
struct Log {
    send: SyncSender<Turn>,
    stored: Receiver<Turn>,
    /// Readable when something was stored.
    event: OwnedFd,
    /// Turns that the thread had no room for.
    waiting: Turn,
}

struct Floor {
    poll: Poll,
    conns: HashMap<u64, Conn>,
    rooms: HashMap<u32, Vec<u64>>,
    /// Frames of this turn.
    turn: HashMap<To, Vec<u8>>,
    tls: Option<Arc<ServerConfig>>,
    log: Option<Log>,
    /// Whether who sends hears it too.
    echoes: bool,
    next: u64,
}

pub fn serve(listener: &TcpListener, tls: Option<Arc<ServerConfig>>, durable: Option<&Path>, echoes: bool) -> anyhow::Result<()> {
    let poll = Poll::new()?;
    poll.add(listener.as_raw_fd(), LISTENER, epoll::READ)?;
    let log = durable.map(start_log).transpose()?;
    if let Some(log) = &log {
        poll.add(log.event.as_raw_fd(), STORED, epoll::READ)?;
    }
    let (conns, rooms, turn) = (HashMap::new(), HashMap::new(), HashMap::new());
    let mut floor = Floor { poll, conns, rooms, turn, tls, log, echoes, next: 0 };
    let (mut scratch, mut ready) = (Vec::new(), Vec::new());
    loop {
        ready.extend(floor.poll.wait(None)?);
        for (token, events) in ready.drain(..) {
            match token {
                LISTENER => floor.accept(listener)?,
                STORED => floor.stored()?,
                token => {
                    if events & epoll::WRITE != 0 {
                        floor.send(token, &[]);
                    }
                    if events & !epoll::WRITE != 0 && floor.receive(token, &mut scratch).is_err() {
                        floor.leave(token);
                    }
                    scratch.clear();
                }
            }
        }
        floor.end_turn();
    }
}

impl Floor {
    fn accept(&mut self, listener: &TcpListener) -> anyhow::Result<()> {
        loop {
            let socket = match listener.accept() {
                Ok((socket, _)) => socket,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            socket.set_nonblocking(true)?;
            socket.set_nodelay(true)?;
            let tls = self.tls.as_ref().map(|config| ServerConnection::new(Arc::clone(config)).map(Box::new)).transpose()?;
            self.poll.add(socket.as_raw_fd(), self.next, epoll::READ)?;
            self.conns.insert(self.next, Conn { socket, tls, partial: Vec::new(), room: None, unsent: Vec::new() });
            self.next += 1;
        }
    }

    fn receive(&mut self, token: u64, scratch: &mut Vec<u8>) -> io::Result<()> {
        let Some(conn) = self.conns.get_mut(&token) else { return Ok(()) };
        match conn.read(scratch) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            read => read?,
        }
        let mut joined = std::mem::take(&mut conn.partial);
        let bytes = if joined.is_empty() {
            scratch.as_mut_slice()
        } else {
            joined.extend_from_slice(scratch);
            joined.as_mut_slice()
        };
        let mut at = 0;
        if conn.room.is_none() {
            let Some(end) = wire::head_end(bytes) else {
                conn.partial = bytes.to_vec();
                return Ok(());
            };
            let (room, accept) = super::upgrade(&bytes[..end]).ok_or(ErrorKind::InvalidData)?;
            at = end;
            let answer = format!(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
            );
            conn.write(answer.as_bytes())?;
            conn.room = Some(room);
            self.rooms.entry(room).or_default().push(token);
        }
        let Some(room) = conn.room else { return Ok(()) };
        let to = (room, (!self.echoes).then_some(token));
        while let Some(frame) = wire::peek(&bytes[at..]) {
            let payload = &mut bytes[at + frame.start..at + frame.end];
            if let Some(mask) = frame.mask {
                wire::unmask(payload, mask);
            }
            match frame.opcode {
                wire::CLOSE => return Err(ErrorKind::UnexpectedEof.into()),
                wire::PING | wire::PONG => {}
                _ => wire::put(self.turn.entry(to).or_default(), wire::BINARY, payload, None),
            }
            at += frame.end;
        }
        conn.partial = bytes[at..].to_vec();
        Ok(())
    }

    fn end_turn(&mut self) {
        let mut turn = std::mem::take(&mut self.turn);
        let Some(log) = &mut self.log else {
            for (to, frames) in turn.drain() {
                self.broadcast(to, &frames);
            }
            self.turn = turn;
            return;
        };
        log.waiting.extend(turn.drain());
        self.turn = turn;
        log.submit();
    }

    /// Passes on what was stored.
    fn stored(&mut self) -> io::Result<()> {
        let Some(log) = &mut self.log else { return Ok(()) };
        let mut count = [0; 8];
        // SAFETY: reads eight bytes into eight.
        unsafe { libc::read(log.event.as_raw_fd(), count.as_mut_ptr().cast(), 8) };
        let turns: Vec<Turn> = log.stored.try_iter().collect();
        log.submit();
        for (to, frames) in turns.into_iter().flatten() {
            self.broadcast(to, &frames);
        }
        Ok(())
    }

    fn broadcast(&mut self, (room, sender): To, frames: &[u8]) {
        let members = self.rooms.remove(&room).unwrap_or_default();
        for token in members.iter().filter(|token| Some(**token) != sender) {
            self.send(*token, frames);
        }
        self.rooms.insert(room, members);
    }

    fn send(&mut self, token: u64, frames: &[u8]) {
        let Some(conn) = self.conns.get_mut(&token) else { return };
        let was_behind = !conn.unsent.is_empty() || conn.tls.as_ref().is_some_and(|tls| tls.wants_write());
        // Who is gone is found gone when it is read from.
        let is_behind = conn.write(frames).unwrap_or(false);
        if is_behind != was_behind {
            let events = if is_behind { epoll::READ | epoll::WRITE } else { epoll::READ };
            drop(self.poll.change(conn.socket.as_raw_fd(), token, events));
        }
    }

    fn leave(&mut self, token: u64) {
        let Some(conn) = self.conns.remove(&token) else { return };
        if let Some(members) = conn.room.and_then(|room| self.rooms.get_mut(&room)) {
            members.retain(|member| *member != token);
        }
    }
}

impl Log {
    fn submit(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        if let Err(TrySendError::Full(turn)) = self.send.try_send(std::mem::take(&mut self.waiting)) {
            self.waiting = turn;
        }
    }
}

/// One turn is stored while the next gathers.
fn start_log(path: &Path) -> anyhow::Result<Log> {
    let file = OpenOptions::new().create(true).truncate(true).write(true).open(path)?;
    file.write_all_at(&vec![0; usize::try_from(FILE)?], 0)?;
    file.sync_all()?;
    // SAFETY: takes numbers; the descriptor is fresh and ours.
    let event = unsafe { OwnedFd::from_raw_fd(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)) };
    let wake = event.try_clone()?;
    let (send, turns) = sync_channel::<Turn>(1);
    let (done, stored) = sync_channel(2);
    thread::Builder::new().name("store-log".into()).spawn(move || store(&file, &turns, &done, &wake))?;
    Ok(Log { send, stored, event, waiting: Vec::new() })
}

fn store(file: &File, turns: &Receiver<Turn>, done: &SyncSender<Turn>, wake: &OwnedFd) -> anyhow::Result<()> {
    let (mut at, mut bytes) = (0, Vec::new());
    while let Ok(turn) = turns.recv() {
        bytes.clear();
        for ((room, _), frames) in &turn {
            bytes.extend_from_slice(&room.to_le_bytes());
            bytes.extend_from_slice(frames);
        }
        if at + bytes.len() as u64 > FILE {
            at = 0;
        }
        file.write_all_at(&bytes, at)?;
        file.sync_data()?;
        at += bytes.len() as u64;
        done.send(turn)?;
        let one = 1_u64.to_ne_bytes();
        // SAFETY: writes eight bytes from eight.
        unsafe { libc::write(wake.as_raw_fd(), one.as_ptr().cast(), 8) };
    }
    Ok(())
}
