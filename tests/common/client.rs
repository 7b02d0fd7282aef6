//! A client that knows frames and nothing of sealing.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use waxwing::{
    core::{
        chain,
        close::CloseCode,
        envelope::Kind as EnvelopeKind,
        frame::{ClientFrame, Hello, LogKind, PROTOCOL_VERSION, Page, Publish, ServerFrame},
        id::{Digest, Nonce, ProducerId, RoomId, Seq},
        login::Transcript,
    },
    transport::{Connection, Error, FrameReader, FrameWriter, Kind},
};

use super::{access_of, device_of, envelope, proof, room_key, server::Edge, sign};

/// Nothing in these tests takes that long: it only ends a test that would hang.
const PATIENCE: Duration = Duration::from_secs(120);

/// One end of a connection.
pub struct Client {
    pub key: SigningKey,
    pub reader: FrameReader,
    pub writer: FrameWriter,
    /// Names the login; zero before it.
    pub binding: Digest,
    exporter: Option<[u8; 32]>,
    set_aside: VecDeque<ServerFrame>,
}

pub fn hello(key: &SigningKey) -> Hello {
    Hello {
        version: PROTOCOL_VERSION,
        nonce: Nonce([3; 32]),
        device: device_of(key),
        authority: "localhost:4433".into(),
        exporter: false,
        token: Bytes::new(),
        agent: "test".into(),
    }
}

impl Client {
    /// A connection on which nothing was said.
    pub fn new(connection: Connection, key: SigningKey) -> Self {
        let Connection { info, reader, writer } = connection;
        Self { key, reader, writer, binding: Digest([0; 32]), exporter: info.exporter, set_aside: VecDeque::new() }
    }

    /// A logged-in one.
    pub async fn login(edge: &Edge, kind: Kind, key: &SigningKey) -> Self {
        let mut client = Self::new(edge.connect(kind).await, key.clone());
        client.log_in().await;
        client
    }

    /// A logged-in one that has entered `room`.
    pub async fn enter(edge: &Edge, kind: Kind, key: &SigningKey, room: RoomId) -> Self {
        let mut client = Self::login(edge, kind, key).await;
        client.enter_room(room).await;
        client
    }

    pub async fn log_in(&mut self) {
        let hello = Hello { exporter: self.exporter.is_some(), ..hello(&self.key) };
        self.send(&ClientFrame::Hello(hello.clone())).await;
        let ServerFrame::Challenge { nonce } = self.recv().await else { panic!("no challenge") };
        let transcript = Transcript { hello: &hello, challenge: nonce, exporter: self.exporter.as_ref() };
        self.binding = transcript.binding();
        self.send(&ClientFrame::Authenticate { signature: sign(&self.key, &transcript.message()) }).await;
        let frame = self.recv().await;
        let ServerFrame::Welcome { limits, .. } = frame else { panic!("{frame:?}") };
        // A handshake record, and what a page has around it.
        self.reader.set_frame_max(limits.frame_bytes_max.max(256 << 10));
    }

    pub async fn create(&mut self, room: RoomId, kind: LogKind) {
        self.send(&ClientFrame::Create { room, access: access_of(&room_key(room)), kind }).await;
        self.until(|frame| matches!(frame, ServerFrame::Created { .. })).await;
    }

    pub async fn enter_room(&mut self, room: RoomId) {
        let proof = proof(room, self.binding);
        self.send(&ClientFrame::Enter { room, handshake: 0, proof }).await;
        self.until(|frame| matches!(frame, ServerFrame::Entered { .. })).await;
    }

    pub async fn subscribe(&mut self, room: RoomId, after: Seq) {
        self.send(&ClientFrame::Subscribe { room, after }).await;
    }

    pub async fn publish(&mut self, room: RoomId, client_seq: u64, payload: &[u8]) {
        self.try_publish(room, client_seq, payload).await.unwrap();
    }

    pub async fn try_publish(&mut self, room: RoomId, client_seq: u64, payload: &[u8]) -> Result<(), Error> {
        let producer = ProducerId(*device_of(&self.key).0.first_chunk().expect("a key is longer"));
        let envelope = envelope(EnvelopeKind::Room, room, payload);
        self.try_send(&ClientFrame::Publish(Publish { room, producer, client_seq, handshake: 0, envelope })).await
    }

    pub async fn send(&mut self, frame: &ClientFrame) {
        self.try_send(frame).await.unwrap();
    }

    pub async fn try_send(&mut self, frame: &ClientFrame) -> Result<(), Error> {
        tokio::time::timeout(PATIENCE, self.writer.send_requests(&[frame.encode()])).await.expect("the server reads")
    }

    /// The next frame; those set aside by [`Client::until`] come first.
    pub async fn recv(&mut self) -> ServerFrame {
        match self.set_aside.pop_front() {
            Some(frame) => frame,
            None => self.try_recv().await.expect("the connection stays").expect("the connection stays"),
        }
    }

    /// The next frame, if the connection stays.
    pub async fn try_recv(&mut self) -> Result<Option<ServerFrame>, Error> {
        let bytes = tokio::time::timeout(PATIENCE, self.reader.recv()).await.expect("the server sends")?;
        Ok(bytes.map(|bytes| ServerFrame::decode(&bytes).expect("the server sends frames")))
    }

    /// The first frame of that sort. Others are set aside.
    pub async fn until(&mut self, wanted: impl Fn(&ServerFrame) -> bool) -> ServerFrame {
        if let Some(at) = self.set_aside.iter().position(&wanted) {
            return self.set_aside.remove(at).unwrap();
        }
        loop {
            let frame = self.try_recv().await.expect("the connection stays").expect("the connection stays");
            if wanted(&frame) {
                return frame;
            }
            self.set_aside.push_back(frame);
        }
    }

    /// Whatever else comes, then how the server ends the connection: in band, and by the transport's own code.
    pub async fn closing(mut self) -> (Option<CloseCode>, CloseCode) {
        loop {
            match self.try_recv().await {
                Ok(Some(ServerFrame::Closing { code, .. })) => {
                    return (Some(code), tokio::time::timeout(PATIENCE, self.reader.closed()).await.expect("it closes"));
                }
                Ok(Some(_)) => {}
                Ok(None) => return (None, CloseCode::Normal),
                Err(error) => return (None, error.close_code()),
            }
        }
    }
}

/// What a subscriber has seen of a room, checked as it comes.
#[derive(Debug, Clone)]
pub struct Seen {
    pub room: RoomId,
    pub chain: Digest,
    pub payloads: Vec<Bytes>,
}

impl Seen {
    pub fn new(room: RoomId) -> Self {
        Self { room, chain: chain::start(room), payloads: Vec::new() }
    }

    pub fn head(&self) -> Seq {
        self.payloads.len() as u64
    }

    pub fn take(&mut self, page: &Page) {
        assert_eq!(page.first, self.head() + 1, "no gap and no repetition");
        assert_eq!(page.chain, self.chain, "the chain goes on");
        for item in &page.items {
            self.chain = chain::next(self.room, self.chain, self.head() + 1, &item.envelope);
            self.payloads.push(super::payload(&item.envelope));
        }
    }

    /// Reads until the room's log is known up to `head`.
    pub async fn read(&mut self, client: &mut Client, head: Seq) {
        while self.head() < head {
            let room = self.room;
            let deliver = |frame: &ServerFrame| matches!(frame, ServerFrame::Deliver(page) if page.room == room);
            let ServerFrame::Deliver(page) = client.until(deliver).await else { continue };
            self.take(&page);
        }
    }
}
