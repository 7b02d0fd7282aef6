//! Frames over every transport, between the real server's listeners and the real client's connectors.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test's helpers fail like its tests, and its modules are its own"
)]
#![expect(clippy::cast_possible_truncation, reason = "patterns of bytes")]

mod edge;
mod http;
mod http3;
mod lifetime;

use bytes::Bytes;
use edge::{Edge, FRAME_MAX, each_transport, get, pattern};
use waxwing::{
    core::{close::CloseCode, frame::DecodeError},
    transport::{
        self, ConnectError, Error, Kind, Trust,
        connect::Dial,
        discover::{self, discover},
    },
};

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
