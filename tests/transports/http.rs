//! WebSocket by hand, over HTTP/1.1 and HTTP/2: who is let in, what is answered, and what breaks the protocol.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use waxwing::{
    core::{close::CloseCode, frame::DecodeError},
    server,
    transport::{
        self, Connection, Error, Info, Kind, Trust,
        websocket::{self, Role, Socket},
    },
};

use super::edge::{Edge, FRAME_MAX, ask, get, pattern};

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
