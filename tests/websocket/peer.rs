//! A WebSocket client that sends what it is told to, right or wrong, and looks closely at what comes back.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};
use waxwing::transport::{self, Trust};

/// Nothing takes that long: it only ends a test that would hang.
const PATIENCE: Duration = Duration::from_secs(60);

pub const CONTINUE: u8 = 0;
pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

/// A frame of a client, masked.
#[derive(Debug, Clone)]
pub struct Frame {
    pub fin: bool,
    pub rsv: u8,
    pub opcode: u8,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn new(opcode: u8, payload: impl Into<Vec<u8>>) -> Self {
        Self { fin: true, rsv: 0, opcode, payload: payload.into() }
    }

    /// More of the message follows.
    pub fn begun(opcode: u8, payload: impl Into<Vec<u8>>) -> Self {
        Self { fin: false, ..Self::new(opcode, payload) }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.head(true);
        let mask = [0x37, 0xfa, 0x21, 0x3d];
        bytes.extend_from_slice(&mask);
        bytes.extend(self.payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        bytes
    }

    /// As a client must not send it.
    pub fn unmasked(&self) -> Vec<u8> {
        [self.head(false), self.payload.clone()].concat()
    }

    fn head(&self, masked: bool) -> Vec<u8> {
        let first = u8::from(self.fin) << 7 | self.rsv << 4 | self.opcode;
        let masked = u8::from(masked) << 7;
        match self.payload.len() {
            len @ 0..126 => vec![first, masked | u8::try_from(len).unwrap()],
            len @ 126..65_536 => [&[first, masked | 126][..], &u16::try_from(len).unwrap().to_be_bytes()].concat(),
            len => [&[first, masked | 127][..], &u64::try_from(len).unwrap().to_be_bytes()].concat(),
        }
    }
}

/// The payload of a close frame.
pub fn closing(code: u16, reason: &[u8]) -> Vec<u8> {
    [&code.to_be_bytes(), reason].concat()
}

/// What a server sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Text(Vec<u8>),
    Binary(Vec<u8>),
    Pong(Vec<u8>),
    /// A close frame; without a code, 1005.
    Close(u16),
    /// The end of the stream.
    End,
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A connection whose handshake is done.
pub struct Peer {
    /// What is tested: for messages.
    pub what: String,
    stream: Box<dyn Stream>,
    received: Vec<u8>,
}

/// A request of RFC 6455 over HTTP/1.1, with more headers.
pub fn request(authority: &SocketAddr, more: &str) -> String {
    format!(
        "GET /ws HTTP/1.1\r\nHost: {authority}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: waxwing.v1\r\n{more}\r\n"
    )
}

/// Sends a request and reads the head of the answer.
pub async fn ask(stream: &mut TcpStream, request: &str) -> String {
    stream.set_nodelay(true).unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("an answer"));
    }
    String::from_utf8(head).unwrap()
}

impl Peer {
    /// Over HTTP/1.1.
    pub async fn http1(address: SocketAddr) -> Self {
        Self::offering(address, "").await.0
    }

    /// Over HTTP/1.1 with more headers; and the head of the answer.
    pub async fn offering(address: SocketAddr, more: &str) -> (Self, String) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = ask(&mut stream, &request(&address, more)).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        // RFC 6455 §1.3 has the answer to this key.
        assert!(head.contains("sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
        (Self { stream: Box::new(stream), received: Vec::new(), what: String::new() }, head)
    }

    /// Over a stream of HTTP/2 over TLS (RFC 8441); and the headers of the answer.
    pub async fn http2(address: SocketAddr, trust: &Trust, extensions: Option<&str>) -> (Self, hyper::HeaderMap) {
        let config = transport::trust::config(trust, &[b"h2"]).unwrap();
        let stream = TcpStream::connect(address).await.unwrap();
        let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio_util::task::TaskTracker::new().spawn(connection);
        let mut request = hyper::Request::connect(format!("https://localhost:{}/ws", address.port()))
            .extension(hyper::ext::Protocol::from_static("websocket"))
            .header("sec-websocket-version", "13")
            .header("sec-websocket-protocol", "waxwing.v1");
        if let Some(extensions) = extensions {
            request = request.header("sec-websocket-extensions", extensions);
        }
        sender.ready().await.unwrap();
        let response = sender.send_request(request.body(http_body_util::Empty::<Bytes>::new()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 200);
        let headers = response.headers().clone();
        let stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        (Self { stream: Box::new(stream), received: Vec::new(), what: String::new() }, headers)
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        let stream = &mut self.stream;
        let sent = async {
            stream.write_all(bytes).await?;
            stream.flush().await
        };
        let sent = tokio::time::timeout(PATIENCE, sent).await;
        let sent = sent.unwrap_or_else(|_| panic!("{}: the server does not read", self.what));
        sent.unwrap_or_else(|error| panic!("{}: {error}", self.what));
    }

    /// The next thing that the server says.
    pub async fn event(&mut self) -> Event {
        let (mut message, mut kind) = (Vec::new(), CONTINUE);
        loop {
            let Some((fin, opcode, payload)) = self.frame().await else { return Event::End };
            match opcode {
                PONG => return Event::Pong(payload),
                CLOSE => {
                    let code = payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code));
                    return Event::Close(code);
                }
                CONTINUE | TEXT | BINARY => {
                    assert_eq!(opcode == CONTINUE, kind != CONTINUE, "only a message that was begun goes on");
                    kind = kind.max(opcode);
                    message.extend_from_slice(&payload);
                    match kind {
                        TEXT if fin => return Event::Text(message),
                        BINARY if fin => return Event::Binary(message),
                        _ => {}
                    }
                }
                other => panic!("a frame with opcode {other}"),
            }
        }
    }

    async fn frame(&mut self) -> Option<(bool, u8, Vec<u8>)> {
        let (Some([first, second]), mut at) = (self.peek::<2>(0).await, 2) else { return None };
        assert_eq!(first & 0x70, 0, "no reserved bit is set");
        assert_eq!(second & 0x80, 0, "a server does not mask");
        let len = match second {
            126 => {
                at += 2;
                u16::from_be_bytes(self.peek(2).await.expect("a whole frame")).into()
            }
            127 => {
                at += 8;
                u64::from_be_bytes(self.peek(2).await.expect("a whole frame"))
            }
            len => len.into(),
        };
        let end = at + usize::try_from(len).unwrap();
        assert!(self.has(end).await, "a whole frame");
        let rest = self.received.split_off(end);
        let payload = std::mem::replace(&mut self.received, rest).split_off(at);
        Some((first & 0x80 != 0, first & 0x0f, payload))
    }

    async fn peek<const N: usize>(&mut self, at: usize) -> Option<[u8; N]> {
        let there = self.has(at + N).await;
        there.then(|| self.received[at..at + N].try_into().unwrap())
    }

    /// Reads until so many bytes are there; false at the end of the stream.
    async fn has(&mut self, count: usize) -> bool {
        while self.received.len() < count {
            self.received.reserve(64 << 10);
            let read = tokio::time::timeout(PATIENCE, self.stream.read_buf(&mut self.received));
            let read = read.await.unwrap_or_else(|_| panic!("{}: the server does not answer", self.what));
            if read.unwrap_or_else(|error| panic!("{}: {error}", self.what)) == 0 {
                assert!(self.received.is_empty(), "a whole frame");
                return false;
            }
        }
        true
    }
}
