//! A server's listeners from start to stop: what it starts with, whom it refuses, whom it gives up, and how it ends.

use std::{path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{io::AsyncReadExt, net::TcpStream};
use waxwing::{
    config::Config,
    core::close::CloseCode,
    metrics::Metrics,
    server::{self, Handler},
    transport::{self, ConnectError, Kind, Trust, discover::discover},
};

use super::edge::{Edge, config, pattern};

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
