//! A real server that echoes, and ways to speak to it.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
};
use waxwing::{
    config::Config,
    core::close::CloseCode,
    metrics::Metrics,
    server::{self, Handler, Running},
    transport::{self, Connection, Error, Info, Kind, Target, Trust, discover::discover, memory},
};

/// What the echoing server found when a connection ended.
pub type Ended = (Info, Result<(), Error>);

pub struct Edge {
    pub running: Running,
    pub ended: mpsc::Receiver<Ended>,
    pub certs: tempfile::TempDir,
}

/// Echoes frames. A frame of two bytes is a close code to close with, in little-endian.
pub async fn echo(mut connection: Connection, frame_max: u32) -> Result<(), Error> {
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

pub const FRAME_MAX: u32 = 300_000;

pub fn config(certs: &tempfile::TempDir) -> Config {
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
    pub async fn start() -> Self {
        Self::start_as(|_| {}).await
    }

    pub async fn start_as(change: impl FnOnce(&mut Config)) -> Self {
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

    pub fn plain(&self) -> SocketAddr {
        self.running.addresses().plain[0]
    }

    pub fn tls(&self) -> SocketAddr {
        self.running.addresses().tls[0]
    }

    pub async fn target(&self) -> Target {
        discover(&format!("http://{}", self.plain()), Trust::WebPki).await.unwrap()
    }

    /// With WebSocket over TLS.
    pub async fn tls_target(&self) -> Target {
        let trust = Trust::File(server::certificate::cert_path(self.certs.path()));
        discover(&format!("https://localhost:{}", self.tls().port()), trust).await.unwrap()
    }

    pub async fn metrics(&self) -> String {
        get(self.running.addresses().ops[0], "/metrics").await.1
    }
}

/// A plain HTTP/1.1 request; status and the rest of the answer.
pub async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    ask(address, &format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")).await
}

pub async fn ask(address: SocketAddr, request: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer)
}

pub async fn each_transport<F: Future<Output = ()>>(scenario: impl Fn(Connection) -> F) {
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

pub fn pattern(len: usize) -> Bytes {
    (0..len).map(|i| (i % 251) as u8).collect()
}
