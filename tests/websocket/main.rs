//! WebSocket conformance: Autobahn's catalogue, sections 1 to 10, by its numbers, with a raw client of our own. Autobahn itself is
//! Python 2 and does not start any more; its cases are the specification.
//!
//! The cases run against [`echo`], which is the server's listeners, handshake and codec, and sends messages back. Text is allowed
//! there only: the product takes binary messages and answers text with 1003, as RFC 6455 §7.4.1 has it; that, and what the
//! product does with a peer that breaks the rules, is tested here too. Where Autobahn takes "an error or a dropped connection",
//! these tests want the error's own code.
//!
//! Not applicable: sections 12 and 13 (compression) speak of what `permessage-deflate` does when it was negotiated. It never is:
//! envelopes are sealed, and what is sealed does not compress; that an offer is answered without it is tested. Section 8 and cases
//! 9.9 and 9.10 are empty in Autobahn.
#![cfg(all(feature = "server", feature = "client", feature = "test-utils"))]
#![allow(
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    clippy::indexing_slicing,
    clippy::big_endian_bytes,
    unreachable_pub,
    reason = "a test fails by panicking; lengths of RFC 6455 are big-endian"
)]

mod cases;
#[path = "../common/mod.rs"]
mod common;
mod peer;

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Duration};

use tokio::net::TcpStream;
use waxwing::{
    config::Config,
    core::{
        close::CloseCode,
        frame::{ClientFrame, ServerFrame, peek_delimited, put_delimited, put_length},
        limits::Limits,
        login::Transcript,
    },
    metrics::Metrics,
    server::{self, Handler, Running},
    transport::{Trust, websocket::echo},
};

use cases::{Case, Chop, Ending, Step};
use common::server::Edge;
use peer::{BINARY, CLOSE, CONTINUE, Event, Frame, PING, Peer, TEXT, ask, closing, request};

/// A server that sends back what comes.
struct Echo {
    running: Running,
    certs: tempfile::TempDir,
}

impl Echo {
    async fn start() -> Self {
        let certs = tempfile::tempdir().unwrap();
        let config = Config {
            listen: vec!["127.0.0.1:0".parse().unwrap()],
            listen_plain: vec!["127.0.0.1:0".parse().unwrap()],
            listen_ops: Vec::new(),
            certs_dir: certs.path().into(),
            ..Config::default()
        };
        let handler: Handler = Arc::new(|connection, mut permit, _shared| {
            Box::pin(async move {
                permit.authenticated();
                echo(connection).await;
                drop(permit);
            })
        });
        Self { running: server::start_with(config, Metrics::new(), handler).await.unwrap(), certs }
    }

    fn plain(&self) -> SocketAddr {
        self.running.addresses().plain[0]
    }

    fn trust(&self) -> Trust {
        Trust::File(server::certificate::cert_path(self.certs.path()))
    }

    async fn http2(&self) -> Peer {
        Peer::http2(self.running.addresses().tls[0], &self.trust(), None).await.0
    }
}

/// Sends what a case says, and checks what comes back.
async fn run(case: &Case, mut peer: Peer) {
    peer.what.clone_from(&case.number);
    let mut waiting = Vec::new();
    for step in &case.steps {
        let bytes = match step {
            Step::Send(frame) => frame.bytes(),
            Step::Raw(bytes) => bytes.clone(),
            Step::Expect(event) => {
                send(&mut peer, case.chop, &mut waiting).await;
                let answer = peer.event().await;
                assert!(answer == *event, "{}: {}", case.number, brief(&answer));
                continue;
            }
        };
        waiting.extend_from_slice(&bytes);
        if matches!(case.chop, Chop::Frames) {
            send(&mut peer, case.chop, &mut waiting).await;
        }
    }
    send(&mut peer, case.chop, &mut waiting).await;
    let code = match case.ending {
        Ending::Clean => {
            peer.send(&Frame::new(CLOSE, closing(1000, b"")).bytes()).await;
            1000
        }
        Ending::Closed(code) => code,
    };
    for expected in [Event::Close(code), Event::End] {
        let answer = peer.event().await;
        assert!(answer == expected, "{}: {} instead of {expected:?}", case.number, brief(&answer));
    }
}

async fn send(peer: &mut Peer, chop: Chop, waiting: &mut Vec<u8>) {
    let size = if let Chop::Bytes(size) = chop { size } else { usize::MAX };
    for part in waiting.chunks(size) {
        peer.send(part).await;
    }
    waiting.clear();
}

fn brief(event: &Event) -> String {
    let mut text = format!("{event:?}");
    text.truncate(200);
    text
}

#[test]
fn the_catalogue_is_complete() {
    let all: Vec<String> = cases::rules().into_iter().chain(cases::limits()).map(|case| case.number).collect();
    // Autobahn has 517 cases, of which 216 are about compression.
    assert_eq!(all.len(), 517 - 216);
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "each number once");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_rule_holds_on_tcp() {
    let echo = Echo::start().await;
    for case in cases::rules() {
        run(&case, Peer::http1(echo.plain()).await).await;
    }
    echo.running.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_rule_holds_on_a_stream_of_http2() {
    let echo = Echo::start().await;
    for case in cases::rules() {
        run(&case, echo.http2().await).await;
    }
    echo.running.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_any_size_and_shape_come_back() {
    let echo = Echo::start().await;
    for case in cases::limits() {
        run(&case, Peer::http1(echo.plain()).await).await;
    }
    echo.running.shutdown().await;
}

/// Lengths that Autobahn's own peer cannot write.
#[tokio::test(flavor = "multi_thread")]
async fn a_length_is_written_as_it_must_be() {
    let echo = Echo::start().await;
    let mask = [0; 4];
    for (head, what) in [
        (&[0x82, 0xfe, 0, 125][..], "125 in two bytes"),
        (&[0x82, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff], "65,535 in eight bytes"),
        (&[0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0], "the highest bit"),
        (&[0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], "all bits"),
        (&[0x89, 0xff, 0, 0, 0, 0, 0, 1, 0, 0], "a large ping"),
    ] {
        let mut peer = Peer::http1(echo.plain()).await;
        peer.send(&[head, &mask].concat()).await;
        assert_eq!(peer.event().await, Event::Close(1002), "{what}");
        assert_eq!(peer.event().await, Event::End, "{what}");
    }
    echo.running.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn compression_is_declined() {
    let echo = Echo::start().await;
    let offer = "permessage-deflate; client_max_window_bits, x-webkit-deflate-frame";
    let (mut on_http1, head) = Peer::offering(echo.plain(), &format!("Sec-WebSocket-Extensions: {offer}\r\n")).await;
    assert!(!head.to_ascii_lowercase().contains("sec-websocket-extensions"), "{head}");
    let (mut on_http2, headers) = Peer::http2(echo.running.addresses().tls[0], &echo.trust(), Some(offer)).await;
    assert_eq!(headers.get("sec-websocket-extensions"), None);
    for peer in [&mut on_http1, &mut on_http2] {
        peer.send(&Frame::new(BINARY, "as it is").bytes()).await;
        assert_eq!(peer.event().await, Event::Binary("as it is".into()));
        // A peer that compresses all the same: RFC 7692 marks its messages with RSV1.
        peer.send(&Frame { rsv: 4, ..Frame::new(BINARY, "deflated") }.bytes()).await;
        assert_eq!(peer.event().await, Event::Close(1002));
    }
    echo.running.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_is_none_is_told_what_would_be_one() {
    let echo = Echo::start().await;
    let good = request(&echo.plain(), "");
    for (from, to, status) in [
        ("HTTP/1.1", "HTTP/1.0", 426),
        ("Version: 13", "Version: 8", 426),
        ("Upgrade: websocket", "Upgrade: h2c", 426),
        ("Connection: Upgrade", "Connection: keep-alive", 426),
        ("GET /ws", "POST /ws", 426),
        ("dGhlIHNhbXBsZSBub25jZQ==", "dG9vIHNob3J0", 426),
        ("dGhlIHNhbXBsZSBub25jZQ==", "!", 426),
        ("waxwing.v1", "chat", 400),
    ] {
        assert!(good.contains(from), "{from}");
        let mut stream = TcpStream::connect(echo.plain()).await.unwrap();
        let head = ask(&mut stream, &good.replacen(from, to, 1)).await;
        assert_eq!(head.split(' ').nth(1), Some(status.to_string().as_str()), "{to}: {head}");
        assert!(head.contains("sec-websocket-version: 13\r\n") && head.contains("upgrade: websocket\r\n"), "{head}");
    }
    echo.running.shutdown().await;
}

/// The product's own sessions, not the echo.
#[tokio::test(flavor = "multi_thread")]
async fn the_product_takes_binary_messages_and_says_what_was_wrong() {
    let edge = Edge::start(Limits::default()).await;
    let address = edge.running.addresses().plain[0];
    let broken = |frame: Frame| (frame.bytes(), 1002);
    let cases = [
        (Frame::new(TEXT, "hello").bytes(), 1003),
        (Frame::begun(TEXT, "").bytes(), 1003),
        ([Frame::begun(BINARY, "").bytes(), Frame::new(TEXT, "").bytes()].concat(), 1002),
        broken(Frame { rsv: 4, ..Frame::new(BINARY, "x") }),
        broken(Frame::new(CONTINUE, "x")),
        broken(Frame::new(3, "x")),
        broken(Frame::new(11, "x")),
        broken(Frame::new(PING, [0; 126])),
        broken(Frame::begun(PING, "x")),
        broken(Frame::new(CLOSE, "x")),
        broken(Frame::new(CLOSE, closing(1005, b""))),
        broken(Frame::new(CLOSE, closing(1000, b"\xff"))),
        (Frame::new(BINARY, "x").unmasked(), 1002),
        // A frame of ours that ends within its length, and one that ends within a message.
        broken(Frame::new(BINARY, b"\xff")),
        broken(Frame::new(BINARY, b"\x02\x0b")),
    ];
    for (bytes, code) in cases {
        let mut peer = Peer::http1(address).await;
        peer.send(&bytes).await;
        let Event::Binary(told) = peer.event().await else { panic!("{bytes:x?}: nothing was told") };
        let (start, end) = peek_delimited(&told, 1024).unwrap().unwrap();
        let told = ServerFrame::decode(&told[start..end]).unwrap();
        assert!(matches!(told, ServerFrame::Closing { code: CloseCode::Protocol, .. }), "{bytes:x?}: {told:?}");
        assert_eq!(peer.event().await, Event::Close(code), "{bytes:x?}");
        assert_eq!(peer.event().await, Event::End, "{bytes:x?}");
    }
    for code in [1000, 1001, 3000, 4999] {
        let mut peer = Peer::http1(address).await;
        peer.send(&[Frame::new(PING, "there?").bytes(), Frame::new(CLOSE, closing(code, b"bye")).bytes()].concat()).await;
        assert_eq!(peer.event().await, Event::Pong("there?".into()));
        assert_eq!(peer.event().await, Event::Close(code), "echoed");
        assert_eq!(peer.event().await, Event::End);
    }
    edge.stop().await;
}

/// The next frame of a server's session.
async fn heard(peer: &mut Peer) -> ServerFrame {
    let Event::Binary(message) = peer.event().await else { panic!("{}: no frame", peer.what) };
    let (start, end) = peek_delimited(&message, 1 << 20).unwrap().unwrap();
    assert_eq!(end, message.len(), "one frame in each message, as long as nothing else waits");
    ServerFrame::decode(&message[start..]).unwrap()
}

async fn say(peer: &mut Peer, frame: &ClientFrame) {
    let mut message = Vec::new();
    put_delimited(&mut message, &frame.encode());
    peer.send(&Frame::new(BINARY, message).bytes()).await;
}

/// A session on a raw connection.
async fn logged_in(edge: &Edge) -> Peer {
    let mut peer = Peer::http1(edge.running.addresses().plain[0]).await;
    let hello = common::client::hello(&common::key(1));
    say(&mut peer, &ClientFrame::Hello(hello.clone())).await;
    let ServerFrame::Challenge { nonce } = heard(&mut peer).await else { panic!("no challenge") };
    let transcript = Transcript { hello: &hello, challenge: nonce, exporter: None };
    say(&mut peer, &ClientFrame::Authenticate { signature: common::sign(&common::key(1), &transcript.message()) }).await;
    assert!(matches!(heard(&mut peer).await, ServerFrame::Welcome { .. }));
    peer
}

/// Begins a frame of `len` bytes, and sends 25 parts of it, a tenth of a second apart: what ended that before.
async fn drip(peer: &mut Peer, len: usize) -> Option<Event> {
    let mut begin = Vec::new();
    put_length(&mut begin, len);
    peer.send(&Frame::begun(BINARY, begin).bytes()).await;
    for _ in 0..25 {
        if let Ok(event) = tokio::time::timeout(Duration::from_millis(100), peer.event()).await {
            return Some(event);
        }
        peer.send(&Frame::begun(CONTINUE, [0; 100]).bytes()).await;
    }
    None
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_frame_must_be_there_in_time_and_others_may_come_slowly() {
    let edge = Edge::start(Limits { idle_timeout_ms: 1_000, ..Limits::default() }).await;
    let (mut usual, mut large) = (logged_in(&edge).await, logged_in(&edge).await);
    let (usual, large) = tokio::join!(drip(&mut usual, 60_000), drip(&mut large, 1 << 20));
    assert_eq!(usual, None);
    let Some(Event::Binary(message)) = large else { panic!("{large:?}") };
    assert_eq!(message[1..], ServerFrame::Closing { code: CloseCode::Idle, retry_after_ms: 0 }.encode());
}
