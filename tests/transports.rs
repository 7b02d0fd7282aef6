//! Frames over every transport, between the real server's listeners and the real client's connectors.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test's helpers fail like its tests")]
#![expect(clippy::cast_possible_truncation, reason = "patterns of bytes")]

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
};
use waxwing::{
    config::Config,
    core::{close::CloseCode, frame::DecodeError},
    metrics::Metrics,
    server::{self, Handler, Running},
    transport::{
        self, ConnectError, Connection, Error, Info, Kind, Target, Trust,
        connect::Dial,
        discover::{self, discover},
        memory,
        websocket::{self, Role, Socket},
    },
};

/// What the echoing server found when a connection ended.
type Ended = (Info, Result<(), Error>);

struct Edge {
    running: Running,
    ended: mpsc::Receiver<Ended>,
    certs: tempfile::TempDir,
}

/// Echoes frames. A frame of two bytes is a close code to close with, in little-endian.
async fn echo(mut connection: Connection, frame_max: u32) -> Result<(), Error> {
    connection.reader.set_frame_max(frame_max);
    while let Some(frame) = connection.reader.recv().await? {
        if let Ok(number) = <[u8; 2]>::try_from(frame.as_ref()) {
            connection.writer.close(CloseCode::from_number(u16::from_le_bytes(number).into())).await;
            return Ok(());
        }
        connection.writer.send(&[frame]).await?;
    }
    connection.writer.close(CloseCode::Normal).await;
    Ok(())
}

const FRAME_MAX: u32 = 300_000;

fn config(certs: &tempfile::TempDir) -> Config {
    Config {
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        listen_plain: vec!["127.0.0.1:0".parse().unwrap()],
        listen_ops: vec!["127.0.0.1:0".parse().unwrap()],
        certs_dir: certs.path().into(),
        drain_timeout_ms: 2000,
        ..Config::default()
    }
}

impl Edge {
    async fn start() -> Self {
        Self::start_as(|_| {}).await
    }

    async fn start_as(change: impl FnOnce(&mut Config)) -> Self {
        let certs = tempfile::tempdir().unwrap();
        let mut config = config(&certs);
        change(&mut config);
        let (tell, ended) = mpsc::channel(64);
        let handler: Handler = Arc::new(move |connection, mut permit, _shared| {
            let tell = tell.clone();
            Box::pin(async move {
                permit.authenticated();
                let info = connection.info.clone();
                let result = echo(connection, FRAME_MAX).await;
                drop(permit);
                let _ = tell.send((info, result)).await;
            })
        });
        let running = server::start_with(config, Metrics::new(), handler).await.unwrap();
        Self { running, ended, certs }
    }

    fn plain(&self) -> SocketAddr {
        self.running.addresses().plain[0]
    }

    fn tls(&self) -> SocketAddr {
        self.running.addresses().tls[0]
    }

    async fn target(&self) -> Target {
        discover(&format!("http://{}", self.plain()), Trust::WebPki).await.unwrap()
    }

    /// With WebSocket over TLS.
    async fn tls_target(&self) -> Target {
        let trust = Trust::File(server::certificate::cert_path(self.certs.path()));
        discover(&format!("https://localhost:{}", self.tls().port()), trust).await.unwrap()
    }

    async fn metrics(&self) -> String {
        get(self.running.addresses().ops[0], "/metrics").await.1
    }
}

/// A plain HTTP/1.1 request; status and the rest of the answer.
async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    ask(address, &format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")).await
}

async fn ask(address: SocketAddr, request: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer)
}

async fn each_transport<F: Future<Output = ()>>(scenario: impl Fn(Connection) -> F) {
    let edge = Edge::start().await;
    let (plain, tls) = (edge.target().await, edge.tls_target().await);
    for (target, kind) in [(&plain, Kind::WebSocket), (&tls, Kind::WebSocket), (&plain, Kind::WebTransport), (&plain, Kind::Quic)]
    {
        scenario(transport::connect(target, kind).await.unwrap()).await;
    }
    let (client, server) = memory::pair(1000, FRAME_MAX);
    // How the scenario ends it is its own business.
    let (_, ()) = tokio::join!(echo(server, FRAME_MAX), scenario(client));
    edge.running.shutdown().await;
}

fn pattern(len: usize) -> Bytes {
    (0..len).map(|i| (i % 251) as u8).collect()
}

#[tokio::test]
async fn frames_of_every_size_come_back_in_order() {
    each_transport(|mut connection| async move {
        let sizes = [0, 1, 3, 126, 127, 128, 2047, 16_384, 65_535, 65_536, 65_537, 250_000];
        for size in sizes {
            connection.writer.send(&[pattern(size)]).await.unwrap();
            assert_eq!(connection.reader.recv().await.unwrap().unwrap(), pattern(size), "{size}");
        }
        // Many in one write; the answers come one by one.
        let many: Vec<Bytes> = (3..60).map(pattern).collect();
        connection.writer.send(&many).await.unwrap();
        for frame in &many {
            assert_eq!(connection.reader.recv().await.unwrap().unwrap(), frame);
        }
        connection.writer.close(CloseCode::Normal).await;
        assert!(matches!(connection.reader.recv().await, Ok(None)));
    })
    .await;
}

#[tokio::test]
async fn sending_and_receiving_do_not_wait_for_each_other() {
    each_transport(|mut connection| async move {
        let count = 40;
        let frame = pattern(20_000);
        let send = async {
            for _ in 0..count {
                connection.writer.send(std::slice::from_ref(&frame)).await.unwrap();
            }
        };
        let receive = async {
            for _ in 0..count {
                assert_eq!(connection.reader.recv().await.unwrap().unwrap(), frame);
            }
        };
        tokio::join!(send, receive);
    })
    .await;
}

#[tokio::test]
async fn a_dropped_receive_loses_nothing() {
    each_transport(|mut connection| async move {
        let frame = pattern(100_000);
        connection.writer.send(std::slice::from_ref(&frame)).await.unwrap();
        loop {
            // Polls once and drops, again and again, while the frame comes in pieces.
            tokio::select! {
                biased;
                received = connection.reader.recv() => {
                    assert_eq!(received.unwrap().unwrap(), frame);
                    break;
                }
                () = tokio::task::yield_now() => {}
            }
        }
    })
    .await;
}

#[tokio::test]
async fn close_codes_arrive() {
    each_transport(|mut connection| async move {
        let code = CloseCode::Unauthenticated;
        connection.writer.send(&[pattern(3), Bytes::copy_from_slice(&code.websocket().to_le_bytes())]).await.unwrap();
        assert_eq!(connection.reader.recv().await.unwrap().unwrap(), pattern(3), "what was sent before arrives before");
        match connection.reader.recv().await {
            // A stream may end before its connection does.
            Ok(None) => assert_eq!(connection.reader.closed().await, code),
            Err(Error::Closed(told)) => assert_eq!(told, code),
            other => panic!("{other:?}"),
        }
    })
    .await;
}

#[tokio::test]
async fn an_oversized_frame_is_refused_by_its_length() {
    let mut edge = Edge::start().await;
    let (plain, tls) = (edge.target().await, edge.tls_target().await);
    for (target, kind) in [(&plain, Kind::WebSocket), (&tls, Kind::WebSocket), (&plain, Kind::WebTransport), (&plain, Kind::Quic)]
    {
        let mut connection = transport::connect(target, kind).await.unwrap();
        // The server may hang up while the rest is on its way.
        let _ = connection.writer.send(&[pattern(FRAME_MAX as usize + 1)]).await;
        let (info, result) = edge.ended.recv().await.unwrap();
        assert_eq!(info.kind, kind);
        let Err(error) = result else { panic!("{kind}: accepted") };
        assert!(
            matches!(error, Error::Frame(DecodeError::TooLarge { len, max: FRAME_MAX }) if len == FRAME_MAX + 1),
            "{kind}: {error}"
        );
        assert_eq!(error.close_code(), CloseCode::TooLarge);
    }
    edge.running.shutdown().await;
}

#[tokio::test]
async fn both_ends_export_the_same_key_and_know_what_was_dialled() {
    let mut edge = Edge::start().await;
    let (plain, tls) = (edge.target().await, edge.tls_target().await);
    let mut seen = Vec::new();
    for (target, kind, exports) in [
        (&plain, Kind::WebSocket, false),
        (&tls, Kind::WebSocket, true),
        (&plain, Kind::WebTransport, true),
        (&tls, Kind::WebTransport, true),
        (&plain, Kind::Quic, true),
        (&tls, Kind::Quic, true),
    ] {
        let connection = transport::connect(target, kind).await.unwrap();
        let ours = connection.info.clone();
        // The server hears of a stream when something is sent on it.
        let mut connection = connection;
        connection.writer.send(&[pattern(3)]).await.unwrap();
        connection.reader.recv().await.unwrap().unwrap();
        connection.writer.close(CloseCode::Normal).await;
        let (theirs, _) = edge.ended.recv().await.unwrap();
        assert_eq!(theirs.kind, kind);
        assert_eq!(theirs.exporter, ours.exporter, "{kind}");
        assert_eq!(ours.exporter.is_some(), exports, "{kind}");
        assert!(theirs.remote.ip().is_loopback() && theirs.remote.port() != 0);
        seen.extend(ours.exporter);
        match kind {
            // TLS names no port, and no address.
            Kind::Quic => {
                let name = ours.authority.as_deref().and_then(|authority| authority.split_once(':')).unwrap().0;
                let expected = (name == "localhost").then_some(name);
                assert_eq!(theirs.authority.as_deref(), expected);
            }
            _ => assert_eq!(theirs.authority, ours.authority, "{kind}"),
        }
    }
    assert_eq!(seen.len(), 5);
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 5, "every connection has a key of its own");
    let metrics = edge.metrics().await;
    for listener in ["tcp", "udp"] {
        let line = format!(r#"waxwing_key_exchanges_total{{listener="{listener}",group="X25519MLKEM768"}}"#);
        assert!(metrics.contains(&line), "post-quantum key exchange is the first choice: {metrics}");
    }
    assert!(!metrics.contains(r#"group="other""#), "{metrics}");
    edge.running.shutdown().await;
}

#[tokio::test]
async fn a_wrong_certificate_is_not_trusted() {
    let edge = Edge::start().await;
    let mut target = edge.target().await;
    target.quic_trust = Trust::Pinned([7; 32]);
    for kind in [Kind::Quic, Kind::WebTransport] {
        assert!(transport::connect(&target, kind).await.is_err(), "{kind}");
    }
    let mut target = edge.tls_target().await;
    target.trust = Trust::WebPki;
    assert!(matches!(transport::connect(&target, Kind::WebSocket).await, Err(ConnectError::Io(_))));
    let elsewhere = discover(&format!("https://localhost:{}", edge.tls().port()), Trust::WebPki).await;
    assert!(elsewhere.is_err(), "a hash is not taken from a server that is not verified");
    edge.running.shutdown().await;
}

#[tokio::test]
async fn the_description_says_how_to_connect() {
    let edge = Edge::start().await;
    let target = edge.target().await;
    assert_eq!(target.authority, edge.plain().to_string());
    assert_eq!(target.quic, Some(Dial { host: "127.0.0.1".into(), port: edge.tls().port() }));
    assert!(matches!(target.quic_trust, Trust::Pinned(_)));
    let (status, answer) = get(edge.plain(), discover::WELL_KNOWN).await;
    assert_eq!(status, 200);
    let body = answer.split_once("\r\n\r\n").unwrap().1;
    let document: discover::Document = serde_json::from_str(body).unwrap();
    assert_eq!((document.version, document.ws.as_str(), document.wt.as_str()), (1, "/ws", "/wt"));
    edge.running.shutdown().await;
}

fn upgrade(address: SocketAddr, extra: &str) -> String {
    format!(
        "GET /ws HTTP/1.1\r\nhost: {address}\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
         sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-protocol: waxwing.v1\r\n{extra}\r\n"
    )
}

/// Opens a WebSocket by hand: the socket behind the server's 101.
async fn raw_websocket(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(upgrade(address, "").as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 101"), "{head}");
    assert!(head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "the RFC's example: {head}");
    assert!(!head.contains("sec-websocket-extensions"), "{head}");
    stream
}

#[tokio::test]
async fn foreign_pages_are_refused() {
    let edge = Edge::start().await;
    let plain = edge.plain();
    let own = format!("origin: http://localhost:{}\r\n", plain.port());
    for (extra, status) in [
        ("origin: https://evil.example\r\nconnection: close\r\n", 403),
        ("origin: null\r\nconnection: close\r\n", 403),
        ("origin: http://localhost:1\r\nconnection: close\r\n", 403),
    ] {
        assert_eq!(ask(plain, &upgrade(plain, extra)).await.0, status, "{extra}");
    }
    let mut stream = TcpStream::connect(plain).await.unwrap();
    stream.write_all(upgrade(plain, &own).as_bytes()).await.unwrap();
    let mut status = [0; 12];
    stream.read_exact(&mut status).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 101");
    drop(stream);

    let target = edge.target().await;
    let dial = target.quic.clone().unwrap();
    let Trust::Pinned(hash) = target.quic_trust else { panic!("not pinned") };
    for (origin, path, accepted) in [
        (Some("https://evil.example".to_owned()), "/wt", false),
        (Some(format!("https://localhost:{}", dial.port)), "/wt", true),
        (None, "/wt", true),
        (None, "/elsewhere", false),
    ] {
        let config = wtransport::ClientConfig::builder()
            .with_bind_default()
            .with_server_certificate_hashes([wtransport::tls::Sha256Digest::new(hash)])
            .build();
        let endpoint = wtransport::Endpoint::client(config).unwrap();
        let mut options = wtransport::endpoint::ConnectOptions::builder(format!("https://{}{path}", dial.authority()));
        if let Some(origin) = &origin {
            options = options.add_header("origin", origin);
        }
        let connected = endpoint.connect(options.build()).await;
        assert_eq!(connected.is_ok(), accepted, "{origin:?} {path}: {connected:?}");
    }
    let metrics = edge.metrics().await;
    assert!(metrics.contains(r#"waxwing_handshake_failures_total{reason="origin"} 4"#), "{metrics}");
    edge.running.shutdown().await;
}

#[tokio::test]
async fn requests_that_are_no_websocket_of_ours_get_an_answer() {
    let edge = Edge::start().await;
    let plain = edge.plain();
    let whole = upgrade(plain, "connection: close\r\n");
    for (change, with, status) in [
        ("upgrade: websocket\r\n", "", 426),
        ("version: 13", "version: 8", 426),
        ("sec-websocket-protocol: waxwing.v1\r\n", "", 400),
        ("waxwing.v1", "chat.v9", 400),
        ("GET /ws", "POST /ws", 426),
        ("GET /ws", "GET /nowhere", 404),
    ] {
        let request = whole.replace(change, with);
        assert_ne!(request, whole);
        assert_eq!(ask(plain, &request).await.0, status, "{change} -> {with}");
    }
    let (status, page) = get(plain, "/").await;
    assert_eq!(status, 200);
    assert!(page.contains("content-security-policy"), "{page}");
    let ops = edge.running.addresses().ops[0];
    assert_eq!(get(ops, "/healthz").await.0, 200);
    assert_eq!(get(ops, "/readyz").await.0, 200);
    edge.running.shutdown().await;
}

/// A masked frame, with a mask that changes nothing.
fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        len @ 0..126 => frame.push(0x80 | len as u8),
        len => frame.extend([0x80 | 126, (len >> 8) as u8, len as u8]),
    }
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}

#[tokio::test]
async fn websocket_messages_may_come_in_pieces_with_pings_between() {
    let edge = Edge::start().await;
    let mut stream = raw_websocket(edge.plain()).await;
    // Two of our frames, "abc" and "defg", in one message of three parts, written byte by byte, with a ping inside.
    let bytes = [masked(0x02, b"\x03ab"), masked(0x89, b"hi"), masked(0x00, b"c\x04"), masked(0x80, b"defg")].concat();
    for byte in bytes {
        stream.write_all(&[byte]).await.unwrap();
        stream.flush().await.unwrap();
    }
    let mut answers = [0; 4 + 6 + 7];
    stream.read_exact(&mut answers).await.unwrap();
    let pong = b"\x8a\x02hi";
    assert!(answers.windows(4).any(|window| window == pong), "{answers:?}");
    assert!(answers.windows(6).any(|window| window == b"\x82\x04\x03abc"), "{answers:?}");
    assert!(answers.ends_with(b"\x82\x05\x04defg") || answers.ends_with(pong), "{answers:?}");
    // A close is answered with the same code.
    stream.write_all(&masked(0x88, &[0x03, 0xe8])).await.unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, [0x88, 2, 0x03, 0xe8]);
    edge.running.shutdown().await;
}

#[tokio::test]
async fn what_breaks_the_websocket_protocol_is_a_typed_error() {
    let mut edge = Edge::start().await;
    for (bytes, told) in [
        (vec![0x82, 0x01, 0x00], "masked by the wrong side"),
        (masked(0x81, b"text"), "not a binary message"),
        (masked(0x80, b"x"), "a continuation of nothing"),
        ([masked(0x02, b"\x05a"), masked(0x82, b"b")].concat(), "a message within a message"),
        (masked(0xc2, b"x"), "an extension that was not negotiated"),
        (masked(0x09, b"x"), "a control frame in parts, or too large"),
        (masked(0x89, &[0; 126]), "a control frame in parts, or too large"),
        (masked(0x88, b"x"), "half a close code"),
    ] {
        let mut stream = raw_websocket(edge.plain()).await;
        stream.write_all(&bytes).await.unwrap();
        let (_, result) = edge.ended.recv().await.unwrap();
        assert!(matches!(result, Err(Error::WebSocket(why)) if why == told), "{told}: {result:?}");
    }
    for (bytes, told) in [
        (masked(0x82, b"\x05ab"), DecodeError::Truncated),
        (masked(0x82, b"\xff\xff\xff\xff\xff"), DecodeError::Prefix),
        // The length says it all: the frame need not come.
        (masked(0x82, b"\xff\xff\xff\x7f"), DecodeError::TooLarge { len: 0x0fff_ffff, max: FRAME_MAX }),
    ] {
        let mut stream = raw_websocket(edge.plain()).await;
        stream.write_all(&bytes).await.unwrap();
        let (_, result) = edge.ended.recv().await.unwrap();
        assert!(matches!(&result, Err(Error::Frame(error)) if *error == told), "{told}: {result:?}");
    }
    let stream = raw_websocket(edge.plain()).await;
    drop(stream);
    let (_, result) = edge.ended.recv().await.unwrap();
    assert!(matches!(result, Err(Error::Lost(_))), "a cut connection is not a clean end: {result:?}");
    edge.running.shutdown().await;
}

#[tokio::test]
async fn connections_beyond_the_limit_are_refused_and_places_are_given_back() {
    let mut edge = Edge::start_as(|config| config.connections_max = 3).await;
    let target = edge.target().await;
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut connection = transport::connect(&target, Kind::Quic).await.unwrap();
        connection.writer.send(&[pattern(3)]).await.unwrap();
        connection.reader.recv().await.unwrap().unwrap();
        open.push(connection);
    }
    assert!(matches!(transport::connect(&target, Kind::Quic).await, Err(ConnectError::Quic(_))));
    assert!(transport::connect(&target, Kind::WebSocket).await.is_err());
    let metrics = edge.metrics().await;
    assert!(metrics.contains(r#"waxwing_handshake_failures_total{reason="connections_max"} 2"#), "{metrics}");
    assert!(metrics.contains(r#"waxwing_connections{transport="quic"} 3"#), "{metrics}");
    for connection in open {
        connection.writer.close(CloseCode::Normal).await;
        assert!(edge.ended.recv().await.unwrap().1.is_ok());
    }
    transport::connect(&target, Kind::WebSocket).await.unwrap();
    edge.running.shutdown().await;
}

#[tokio::test]
async fn silence_in_the_handshake_is_ended() {
    let edge = Edge::start_as(|config| config.limits.handshake_timeout_ms = 200).await;
    let mut stream = TcpStream::connect(edge.tls()).await.unwrap();
    let mut nothing = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut nothing)).await;
    assert!(ended.is_ok(), "the server hangs up");
    let mut stream = TcpStream::connect(edge.plain()).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut nothing)).await;
    assert!(ended.is_ok(), "the server hangs up without TLS too");
    // A QUIC client that opens no stream.
    let target = edge.target().await;
    let connection = transport::connect(&target, Kind::Quic).await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), connection.reader.closed()).await.unwrap();
    let metrics = edge.metrics().await;
    assert!(metrics.contains("tls_timeout"), "{metrics}");
    assert!(metrics.contains("quic_timeout"), "{metrics}");
    assert!(metrics.contains("http_timeout"), "{metrics}");
    edge.running.shutdown().await;
}

#[tokio::test]
async fn the_certificate_survives_a_restart() {
    let certs = tempfile::tempdir().unwrap();
    let handler: Handler = Arc::new(|_, _, _| Box::pin(async {}));
    let mut prints = Vec::new();
    for _ in 0..2 {
        let running = server::start_with(config(&certs), Metrics::new(), Arc::clone(&handler)).await.unwrap();
        prints.push(running.shared().fingerprint);
        running.shutdown().await;
    }
    assert!(prints[0].is_some());
    assert_eq!(prints[0], prints[1]);
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let edge = Edge::start().await;
    let certs = tempfile::tempdir().unwrap();
    let taken = Config { listen_plain: vec![edge.plain()], ..config(&certs) };
    let handler: Handler = Arc::new(|_, _, _| Box::pin(async {}));
    let error = server::start_with(taken, Metrics::new(), handler).await.unwrap_err().to_string();
    assert!(error.contains("listen_plain") && error.contains(&edge.plain().to_string()), "{error}");
    let missing = Config { cert: Some(PathBuf::from("no.pem")), key: Some(PathBuf::from("no.key")), ..config(&certs) };
    let handler: Handler = Arc::new(|_, _, _| Box::pin(async {}));
    assert!(server::start_with(missing, Metrics::new(), handler).await.unwrap_err().to_string().contains("no.key"));
    edge.running.shutdown().await;
}

/// A WebSocket on a stream of an HTTP/2 connection over TLS, as browsers open it when they hold one already.
async fn http2_websocket(edge: &Edge) -> Connection {
    let trust = Trust::File(server::certificate::cert_path(edge.certs.path()));
    let config = transport::trust::config(&trust, &[b"h2"]).unwrap();
    let stream = TcpStream::connect(edge.tls()).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    let exporter = stream.get_ref().1.export_keying_material([0; 32], transport::tls::EXPORTER_LABEL, None).ok();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let tracker = tokio_util::task::TaskTracker::new();
    tracker.spawn(connection);
    let authority = format!("localhost:{}", edge.tls().port());
    let request = hyper::Request::connect(format!("https://{authority}/ws"))
        .extension(hyper::ext::Protocol::from_static("websocket"))
        .header("sec-websocket-version", "13")
        .header("sec-websocket-protocol", "waxwing.v1")
        .header("origin", format!("https://{authority}"))
        .body(http_body_util::Empty::<Bytes>::new())
        .unwrap();
    sender.ready().await.unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["sec-websocket-protocol"], "waxwing.v1");
    let socket = Socket::http2(hyper::upgrade::on(response).await.unwrap());
    let info = Info { kind: Kind::WebSocket, remote: edge.tls(), exporter, authority: Some(authority) };
    websocket::connection(socket, &[], Role::Client, info, FRAME_MAX)
}

#[tokio::test]
async fn websocket_runs_on_http2() {
    let mut edge = Edge::start().await;
    let mut connection = http2_websocket(&edge).await;
    for size in [0, 1, 200, 70_000, 250_000] {
        connection.writer.send(&[pattern(size)]).await.unwrap();
        assert_eq!(connection.reader.recv().await.unwrap().unwrap(), pattern(size), "{size}");
    }
    connection.writer.send(&[Bytes::copy_from_slice(&CloseCode::Version.websocket().to_le_bytes())]).await.unwrap();
    assert!(matches!(connection.reader.recv().await, Err(Error::Closed(CloseCode::Version))));
    let (info, result) = edge.ended.recv().await.unwrap();
    assert!(result.is_ok());
    assert_eq!(info.authority, connection.info.authority);
    assert_eq!(info.exporter, connection.info.exporter);
    assert!(info.exporter.is_some());
    edge.running.shutdown().await;
}

#[tokio::test]
async fn a_stopping_server_lets_connections_say_goodbye_and_ends_those_that_do_not() {
    let certs = tempfile::tempdir().unwrap();
    let stubborn_ended = Arc::new(tokio::sync::Notify::new());
    let tell = Arc::clone(&stubborn_ended);
    let handler: Handler = Arc::new(move |mut connection, permit, shared| {
        let tell = Arc::clone(&tell);
        Box::pin(async move {
            // The first frame says how this one behaves.
            let polite = connection.reader.recv().await.unwrap().unwrap() == "polite";
            connection.writer.send(&[Bytes::from_static(b"ok")]).await.unwrap();
            if polite {
                shared.stopping.cancelled().await;
                connection.writer.close(CloseCode::GoingAway).await;
            } else {
                let _on_drop = OnDrop(tell);
                std::future::pending::<()>().await;
            }
            drop(permit);
        })
    });
    let config = Config { drain_timeout_ms: 300, ..config(&certs) };
    let running = server::start_with(config, Metrics::new(), handler).await.unwrap();
    let target = discover(&format!("http://{}", running.addresses().plain[0]), Trust::WebPki).await.unwrap();
    let mut connections = Vec::new();
    for (kind, manner) in
        [(Kind::WebSocket, "polite"), (Kind::WebTransport, "polite"), (Kind::Quic, "polite"), (Kind::WebSocket, "stubborn")]
    {
        let mut connection = transport::connect(&target, kind).await.unwrap();
        connection.writer.send(&[Bytes::from_static(manner.as_bytes())]).await.unwrap();
        assert_eq!(connection.reader.recv().await.unwrap().unwrap(), "ok");
        connections.push((connection, manner));
    }
    let mut clients = tokio::task::JoinSet::new();
    for (connection, manner) in connections {
        clients.spawn(async move {
            let code = connection.reader.closed().await;
            assert!(manner != "polite" || code == CloseCode::GoingAway, "{} {code}", connection.info.kind);
        });
    }
    running.shutdown().await;
    stubborn_ended.notified().await;
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    assert!(transport::connect(&target, Kind::WebSocket).await.is_err());
}

struct OnDrop(Arc<tokio::sync::Notify>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}
