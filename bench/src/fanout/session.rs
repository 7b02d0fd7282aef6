//! One connection of the load over TCP: how it enters its room, publishes, and understands what comes.

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
    sync::Arc,
};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use ed25519_dalek::{Signer as _, SigningKey};
use hmac::{Hmac, KeyInit as _, Mac as _};
use rustls::ClientConfig;
use serde_json::json;
use sha2::Sha256;
use waxwing::core::{
    envelope::{Header, Kind, Suite},
    frame::{ClientFrame, Hello, LogKind, PROTOCOL_VERSION, Publish, SUBPROTOCOL, ServerFrame, put_delimited, take_delimited},
    id::{AccessKey, DeviceKey, Digest, MessageId, Nonce, ProducerId, RoomId, Signature},
    login::{self, Transcript},
};

use super::{stream::Stream, tally::Tally, wire};

/// Bytes of a message: of an envelope, where there are envelopes.
pub const PAYLOAD: usize = 256;
/// Where in it the time is when it was due: where an envelope's ciphertext begins.
pub const STAMP: usize = 80;
/// A frame of a server has at most so many bytes.
const FRAME_MAX: u32 = 1 << 20;
const EPOCH: u64 = 1;
/// The secret of the application that Sockudo is started with.
pub const PUSHER_SECRET: &str = "secret";

/// What a server speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// WebSocket; the room is the path; every message is passed on as it is.
    Raw,
    /// WebSocket with Waxwing's frames.
    Waxwing,
    /// NATS's lines, in WebSocket messages.
    Nats,
    /// Pusher's protocol, as Sockudo speaks it: client events on private channels.
    Pusher,
}

/// Whom to connect to, and how.
#[derive(Debug, Clone)]
pub struct Endpoint {
    pub address: SocketAddr,
    pub dialect: Dialect,
    pub tls: Option<Arc<ClientConfig>>,
}

/// What a connection is for.
#[derive(Debug, Clone, Copy)]
pub struct Role {
    /// Its number, which is its identity.
    pub index: usize,
    /// The room.
    pub room: usize,
    /// Whether it makes the room.
    pub makes_room: bool,
    /// Whether it hears what is said there.
    pub subscribes: bool,
    /// Whether what it publishes is ephemeral.
    pub ephemeral: bool,
    /// Distinguishes runs against one server.
    pub run: u8,
}

impl Role {
    pub fn room_id(&self) -> RoomId {
        let mut id = [self.run; 16];
        id[..8].copy_from_slice(&(self.room as u64).to_le_bytes());
        RoomId(id)
    }

    pub fn key(&self) -> SigningKey {
        let mut bytes = [self.run; 32];
        bytes[..8].copy_from_slice(&(self.index as u64).to_le_bytes());
        SigningKey::from_bytes(&bytes)
    }

    fn room_key(&self) -> SigningKey {
        let id = self.room_id().0;
        let mut bytes = [0; 32];
        bytes[..16].copy_from_slice(&id);
        SigningKey::from_bytes(&bytes)
    }

    /// The frame that makes the room.
    pub fn create(&self) -> ClientFrame {
        let access = AccessKey(self.room_key().verifying_key().to_bytes());
        ClientFrame::Create { room: self.room_id(), access, kind: LogKind::Room }
    }

    /// The frame that enters it.
    pub fn enter(&self, binding: Digest) -> ClientFrame {
        let proof = sign(&self.room_key(), &login::access_message(binding, self.room_id()));
        ClientFrame::Enter { room: self.room_id(), handshake: 0, proof }
    }

    pub fn subscribe(&self) -> ClientFrame {
        ClientFrame::Subscribe { room: self.room_id(), after: 0 }
    }

    /// The first frame of a login.
    pub fn hello(&self, authority: &str, exporter: bool) -> Hello {
        Hello {
            version: PROTOCOL_VERSION,
            nonce: Nonce([3; 32]),
            device: DeviceKey(self.key().verifying_key().to_bytes()),
            authority: authority.to_owned(),
            exporter,
            token: Bytes::new(),
            agent: "wax-bench".into(),
        }
    }
}

pub fn sign(key: &SigningKey, message: &[u8]) -> Signature {
    key.sign(message).to_bytes().into()
}

/// What a publisher of envelopes remembers.
#[derive(Debug, Clone)]
pub struct Outbox {
    room: RoomId,
    producer: ProducerId,
    next: u64,
    template: Vec<u8>,
    ephemeral: bool,
}

impl Outbox {
    pub fn new(role: &Role) -> Self {
        let room = role.room_id();
        let mut producer = [role.run; 16];
        producer[..8].copy_from_slice(&(role.index as u64).to_le_bytes());
        let kind = if role.ephemeral { Kind::Ephemeral } else { Kind::Room };
        let header = Header { kind, suite: Suite::X25519Psk, room, epoch: EPOCH, leaf: 1, message: MessageId(producer) };
        let mut template = header.to_bytes().to_vec();
        template.resize(PAYLOAD, 0x5a);
        Self { room, producer: ProducerId(producer), next: 1, template, ephemeral: role.ephemeral }
    }

    /// The next message, due at `stamp` nanoseconds.
    pub fn publish(&mut self, stamp: u64) -> ClientFrame {
        self.template[STAMP..STAMP + 8].copy_from_slice(&stamp.to_le_bytes());
        self.template[32..40].copy_from_slice(&self.next.to_le_bytes());
        let (envelope, client_seq) = (Bytes::copy_from_slice(&self.template), self.next);
        self.next += 1;
        if self.ephemeral {
            return ClientFrame::Ephemeral { envelope };
        }
        ClientFrame::Publish(Publish { room: self.room, producer: self.producer, client_seq, handshake: 0, envelope })
    }
}

/// A connection that is in its room.
#[derive(Debug)]
pub struct Session {
    pub stream: Stream,
    dialect: Dialect,
    room: usize,
    /// Bytes of a WebSocket frame that is not all there.
    partial: Vec<u8>,
    /// NATS: bytes of a line or body that is not all there.
    lines: Vec<u8>,
    outbox: Option<Box<Outbox>>,
    masks: u32,
    /// When what waits for its ack was sent, in nanoseconds.
    pub sent_at: u64,
}

impl Session {
    /// Connects, logs in, enters. Blocks.
    pub fn open(endpoint: &Endpoint, role: &Role) -> anyhow::Result<Self> {
        let stream = Stream::connect(endpoint.address, endpoint.tls.as_ref())?;
        let mut session = Self {
            stream,
            dialect: endpoint.dialect,
            room: role.room,
            partial: Vec::new(),
            lines: Vec::new(),
            outbox: None,
            masks: 1,
            sent_at: 0,
        };
        match endpoint.dialect {
            Dialect::Raw => session.upgrade(endpoint, &format!("/{}", role.room), None)?,
            Dialect::Nats => {
                session.upgrade(endpoint, "/", None)?;
                session.enter_nats(role)?;
            }
            Dialect::Pusher => {
                session.upgrade(endpoint, "/app/key?protocol=7&client=bench&version=1", None)?;
                session.enter_pusher(role)?;
            }
            Dialect::Waxwing => {
                session.upgrade(endpoint, "/ws", Some(SUBPROTOCOL))?;
                session.log_in(endpoint, role)?;
                session.outbox = Some(Box::new(Outbox::new(role)));
            }
        }
        session.stream.set_nonblocking()?;
        Ok(session)
    }

    fn upgrade(&mut self, endpoint: &Endpoint, path: &str, subprotocol: Option<&str>) -> anyhow::Result<()> {
        let request = wire::request(&endpoint.address.to_string(), path, subprotocol);
        self.stream.write(request.as_bytes())?;
        let mut bytes = Vec::new();
        let end = loop {
            self.stream.read(&mut bytes)?;
            if let Some(end) = wire::head_end(&bytes) {
                break end;
            }
        };
        wire::accepted(&bytes[..end])?;
        self.partial = bytes.split_off(end);
        self.partial.shrink_to_fit();
        Ok(())
    }

    /// One message.
    fn send(&mut self, payload: &[u8]) -> io::Result<()> {
        self.masks = self.masks.wrapping_mul(0x9e37_79b1) | 1;
        let mut bytes = Vec::with_capacity(payload.len() + 14);
        let opcode = if self.dialect == Dialect::Pusher { wire::TEXT } else { wire::BINARY };
        wire::put(&mut bytes, opcode, payload, Some(self.masks.to_le_bytes()));
        self.stream.write(&bytes)
    }

    fn send_frames(&mut self, frames: &[ClientFrame]) -> io::Result<()> {
        let mut bytes = Vec::new();
        for frame in frames {
            put_delimited(&mut bytes, &frame.encode());
        }
        self.send(&bytes)
    }

    /// The next message, waited for.
    fn recv(&mut self) -> anyhow::Result<Vec<u8>> {
        loop {
            if let Some(frame) = wire::peek(&self.partial) {
                let payload = self.partial[frame.start..frame.end].to_vec();
                self.partial.drain(..frame.end);
                match frame.opcode {
                    wire::CLOSE => bail!("the server closed the connection"),
                    wire::PING | wire::PONG => continue,
                    _ => return Ok(payload),
                }
            }
            self.stream.read(&mut self.partial)?;
        }
    }

    fn log_in(&mut self, endpoint: &Endpoint, role: &Role) -> anyhow::Result<()> {
        let exporter = self.stream.exporter();
        let hello = role.hello(&endpoint.address.to_string(), exporter.is_some());
        self.send_frames(&[ClientFrame::Hello(hello.clone())])?;
        let ServerFrame::Challenge { nonce: challenge } = self.expect(|frame| matches!(frame, ServerFrame::Challenge { .. }))?
        else {
            bail!("no challenge")
        };
        let transcript = Transcript { hello: &hello, challenge, exporter: exporter.as_ref() };
        self.send_frames(&[ClientFrame::Authenticate { signature: sign(&role.key(), &transcript.message()) }])?;
        self.expect(|frame| matches!(frame, ServerFrame::Welcome { .. }))?;
        if role.makes_room {
            self.send_frames(&[role.create()])?;
            self.expect(|frame| matches!(frame, ServerFrame::Created { .. }))?;
        }
        let enter = role.enter(transcript.binding());
        if role.subscribes {
            self.send_frames(&[enter, role.subscribe()])?;
            self.expect(|frame| matches!(frame, ServerFrame::Subscribed { .. }))?;
        } else {
            self.send_frames(&[enter])?;
            self.expect(|frame| matches!(frame, ServerFrame::Entered { .. }))?;
        }
        self.partial.shrink_to_fit();
        Ok(())
    }

    /// Reads until such a frame comes; what else comes is of no interest.
    fn expect(&mut self, wanted: impl Fn(&ServerFrame) -> bool) -> anyhow::Result<ServerFrame> {
        loop {
            let mut message = Bytes::from(self.recv()?);
            let mut found = None;
            while let Some(frame) = take_delimited(&mut message, FRAME_MAX)? {
                match ServerFrame::decode(&frame)? {
                    ServerFrame::Failed { what, why, .. } => bail!("{what:?} was refused: {why}"),
                    ServerFrame::Closing { code, .. } => bail!("the server closed the connection: {code}"),
                    frame if found.is_none() && wanted(&frame) => found = Some(frame),
                    _ => {}
                }
            }
            if let Some(found) = found {
                return Ok(found);
            }
        }
    }

    fn enter_nats(&mut self, role: &Role) -> anyhow::Result<()> {
        let mut text = String::from("CONNECT {\"verbose\":false,\"pedantic\":false,\"lang\":\"bench\",\"version\":\"0\"}\r\n");
        if role.subscribes {
            text += &format!("SUB r.{} 1\r\n", role.room);
        }
        self.send((text + "PING\r\n").as_bytes())?;
        let mut seen = Vec::new();
        while !seen.windows(4).any(|part| part == b"PONG") {
            seen.extend(self.recv()?);
            if seen.windows(4).any(|part| part == b"-ERR") {
                bail!("NATS said {}", String::from_utf8_lossy(&seen));
            }
        }
        Ok(())
    }

    fn enter_pusher(&mut self, role: &Role) -> anyhow::Result<()> {
        let hello: serde_json::Value = serde_json::from_slice(&self.recv()?)?;
        let data: serde_json::Value = serde_json::from_str(hello["data"].as_str().unwrap_or_default())?;
        let socket = data["socket_id"].as_str().context("no socket id")?;
        let channel = format!("private-r{}", role.room);
        let mut code = Hmac::<Sha256>::new_from_slice(PUSHER_SECRET.as_bytes())?;
        code.update(format!("{socket}:{channel}").as_bytes());
        let code: String = code.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        let data = json!({ "channel": channel, "auth": format!("key:{code}") });
        self.send(json!({ "event": "pusher:subscribe", "data": data }).to_string().as_bytes())?;
        let answer = self.recv()?;
        let text = String::from_utf8_lossy(&answer);
        if text.contains("subscription_succeeded") { Ok(()) } else { bail!("not subscribed: {text}") }
    }

    /// Publishes one message that was due at `stamp`, in nanoseconds.
    pub fn publish(&mut self, stamp: u64) -> anyhow::Result<()> {
        self.sent_at = stamp;
        let sent = match self.dialect {
            Dialect::Waxwing => {
                let frame = self.outbox.as_mut().context("not logged in")?.publish(stamp);
                self.send_frames(&[frame])
            }
            Dialect::Pusher => {
                let (room, filling) = (self.room, PAYLOAD - 16);
                let line =
                    format!(r#"{{"event":"client-m","channel":"private-r{room}","data":"{stamp:016x}{:Z<filling$}"}}"#, "");
                self.send(line.as_bytes())
            }
            dialect => {
                let mut message = [0x5a; PAYLOAD];
                message[STAMP..STAMP + 8].copy_from_slice(&stamp.to_le_bytes());
                if dialect == Dialect::Raw {
                    self.send(&message)
                } else {
                    let mut line = format!("PUB r.{} {PAYLOAD}\r\n", self.room).into_bytes();
                    line.extend_from_slice(&message);
                    line.extend_from_slice(b"\r\n");
                    self.send(&line)
                }
            }
        };
        Ok(sent?)
    }

    /// Takes what has arrived, as far as one read brings it. `scratch` is any empty vector.
    ///
    /// # Errors
    /// When the connection is gone, or what came is not understood.
    pub fn receive(&mut self, scratch: &mut Vec<u8>, now: u64, tally: &mut Tally) -> anyhow::Result<()> {
        match self.stream.read(scratch) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            read => read?,
        }
        if self.partial.is_empty() {
            let used = self.take(scratch, now, tally)?;
            self.partial.extend_from_slice(&scratch[used..]);
        } else {
            let mut bytes = std::mem::take(&mut self.partial);
            bytes.extend_from_slice(scratch);
            let used = self.take(&bytes, now, tally)?;
            bytes.drain(..used);
            if bytes.is_empty() {
                bytes = Vec::new();
            }
            self.partial = bytes;
        }
        scratch.clear();
        Ok(())
    }

    /// Takes whole frames, and tells how many bytes they were.
    fn take(&mut self, bytes: &[u8], now: u64, tally: &mut Tally) -> anyhow::Result<usize> {
        let mut at = 0;
        while let Some(frame) = wire::peek(&bytes[at..]) {
            let payload = &bytes[at + frame.start..at + frame.end];
            match frame.opcode {
                wire::CLOSE => bail!("the server closed the connection"),
                wire::PING => {
                    let mut pong = Vec::new();
                    wire::put(&mut pong, wire::PONG, payload, Some([1, 2, 3, 4]));
                    self.stream.write(&pong)?;
                }
                wire::PONG => {}
                _ => match self.dialect {
                    Dialect::Raw => tally.delivered(payload, now),
                    Dialect::Waxwing => frames(payload, now, tally)?,
                    Dialect::Nats => self.lines(payload, now, tally)?,
                    Dialect::Pusher => event(payload, now, tally)?,
                },
            }
            at += frame.end;
        }
        Ok(at)
    }

    fn lines(&mut self, payload: &[u8], now: u64, tally: &mut Tally) -> anyhow::Result<()> {
        if self.lines.is_empty() {
            let used = self.take_lines(payload, now, tally)?;
            self.lines.extend_from_slice(&payload[used..]);
        } else {
            let mut bytes = std::mem::take(&mut self.lines);
            bytes.extend_from_slice(payload);
            let used = self.take_lines(&bytes, now, tally)?;
            bytes.drain(..used);
            self.lines = bytes;
        }
        Ok(())
    }

    fn take_lines(&mut self, bytes: &[u8], now: u64, tally: &mut Tally) -> anyhow::Result<usize> {
        let mut at = 0;
        while let Some(end) = bytes[at..].iter().position(|byte| *byte == b'\n') {
            let (line, body) = (&bytes[at..at + end], at + end + 1);
            if line.starts_with(b"MSG ") {
                let len = line.rsplit(|byte| *byte == b' ').next().unwrap_or_default();
                let len: usize = std::str::from_utf8(len)?.trim().parse()?;
                let Some(message) = bytes.get(body..body + len + 2) else { return Ok(at) };
                tally.delivered(&message[..len], now);
                at = body + len + 2;
                continue;
            }
            if line.starts_with(b"PING") {
                self.send(b"PONG\r\n")?;
            } else if line.starts_with(b"-ERR") {
                bail!("NATS said {}", String::from_utf8_lossy(line));
            }
            at = body;
        }
        Ok(at)
    }
}

/// A message of Pusher's protocol.
fn event(payload: &[u8], now: u64, tally: &mut Tally) -> anyhow::Result<()> {
    const DATA: &[u8] = br#""data":""#;
    if payload.starts_with(br#"{"event":"client-m""#) {
        let at = payload.windows(DATA.len()).position(|part| part == DATA).context("no data")? + DATA.len();
        let stamp = std::str::from_utf8(payload.get(at..at + 16).context("no stamp")?)?;
        tally.delivered_at(u64::from_str_radix(stamp, 16)?, now);
    } else if payload.starts_with(br#"{"event":"pusher:error""#) {
        bail!("Sockudo said {}", String::from_utf8_lossy(payload));
    }
    Ok(())
}

/// What a WebSocket message of Waxwing holds.
fn frames(mut rest: &[u8], now: u64, tally: &mut Tally) -> anyhow::Result<()> {
    while !rest.is_empty() {
        let len = usize::try_from(varint(&mut rest)?)?;
        let (frame, after) = rest.split_at_checked(len).context("a message that ends within a frame")?;
        take_frame(frame, now, tally)?;
        rest = after;
    }
    Ok(())
}

/// One frame of Waxwing's server. Read by hand: at a million deliveries a second, decoding would be most of the work here.
pub fn take_frame(frame: &[u8], now: u64, tally: &mut Tally) -> anyhow::Result<()> {
    let mut rest = frame.get(1..).context("an empty frame")?;
    match frame[0] {
        // Deliver: room, log, head, floor, first, chain, items.
        5 => {
            skip(&mut rest, 32)?;
            for _ in 0..3 {
                varint(&mut rest)?;
            }
            skip(&mut rest, 32)?;
            for _ in 0..varint(&mut rest)? {
                varint(&mut rest)?;
                let len = usize::try_from(varint(&mut rest)?)?;
                tally.delivered(skip(&mut rest, len)?, now);
            }
        }
        7 => tally.acks += 1,
        8 => {
            let why = ServerFrame::decode(frame)?;
            bail!("a publish was refused: {why:?}");
        }
        9 => bail!("refused: {:?}", ServerFrame::decode(frame)?),
        11 => {
            let len = usize::try_from(varint(&mut rest)?)?;
            tally.delivered(skip(&mut rest, len)?, now);
        }
        14 => bail!("the server closed the connection: {:?}", ServerFrame::decode(frame)?),
        _ => {}
    }
    Ok(())
}

fn skip<'a>(rest: &mut &'a [u8], len: usize) -> anyhow::Result<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(len).context("a frame that ends too early")?;
    *rest = after;
    Ok(taken)
}

fn varint(rest: &mut &[u8]) -> anyhow::Result<u64> {
    let mut value = 0;
    for (index, byte) in rest.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            *rest = &rest[index + 1..];
            return Ok(value);
        }
    }
    bail!("a frame that ends too early")
}
