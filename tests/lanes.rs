//! The lanes of QUIC and WebTransport: which frames travel where, and that paths that lose, delay and change lose nothing.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test's helpers fail like its tests, and some tell a figure"
)]

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use common::{
    client::{Client, Seen, hello},
    envelope, key, proof,
    relay::{Path, Relay},
    server::Edge,
    sign,
};
use tokio::time::Instant;
use waxwing::{
    core::{
        close::CloseCode,
        envelope::Kind as EnvelopeKind,
        frame::{ClientFrame, LogKind, ServerFrame, put_delimited},
        id::RoomId,
        lane,
        limits::Limits,
        login::Transcript,
        merge::{Merge, Origin},
    },
    server,
    transport::{
        self, Kind, connect,
        connect::{Dial, Target, connect_saying},
        discover::discover,
        quic, tls, trust,
    },
};

const ROOM: RoomId = RoomId([7; 16]);
const UDP: [Kind; 2] = [Kind::Quic, Kind::WebTransport];

async fn edge() -> Edge {
    let limits = Limits { publishes_per_second_max: 1_000_000, publish_burst_max: 1_000_000, ..Limits::default() };
    let edge = Edge::start(limits).await;
    Client::login(&edge, Kind::Memory, &key(1)).await.create(ROOM, LogKind::Room).await;
    edge
}

/// A client of raw QUIC that looks at every stream and datagram itself.
struct Raw {
    connection: quinn::Connection,
    _endpoint: quinn::Endpoint,
    send: quinn::SendStream,
    receive: quinn::RecvStream,
    unis: Vec<quinn::RecvStream>,
    merge: Merge,
    /// Unidirectional streams, and datagrams, that came.
    streams: u64,
    datagrams: u64,
}

impl Raw {
    async fn connect(addr: std::net::SocketAddr, edge: &Edge, streams_max: u32) -> Self {
        let trust = transport::Trust::Pinned(edge.running.shared().fingerprint.unwrap());
        let tls = trust::config(&trust, &[lane::ALPN]).unwrap();
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        let mut transport = quinn::TransportConfig::default();
        transport.max_concurrent_uni_streams(streams_max.into());
        config.transport_config(Arc::new(transport));
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let connection = endpoint.connect_with(config, addr, "localhost").unwrap().await.unwrap();
        let (send, receive) = connection.open_bi().await.unwrap();
        let merge = Merge::new(1 << 20);
        Self { connection, _endpoint: endpoint, send, receive, unis: Vec::new(), merge, streams: 0, datagrams: 0 }
    }

    async fn login(addr: std::net::SocketAddr, edge: &Edge, seed: u64, streams_max: u32) -> Self {
        let mut raw = Self::connect(addr, edge, streams_max).await;
        let (key, hello) = (key(seed), hello(&key(seed)));
        raw.send(&ClientFrame::Hello(hello.clone())).await;
        let ServerFrame::Challenge { nonce } = raw.recv().await else { panic!("no challenge") };
        let transcript = Transcript { hello: &hello, challenge: nonce, exporter: None };
        raw.send(&ClientFrame::Authenticate { signature: sign(&key, &transcript.message()) }).await;
        assert!(matches!(raw.recv().await, ServerFrame::Welcome { .. }));
        raw.send(&ClientFrame::Enter { room: ROOM, handshake: 0, proof: proof(ROOM, transcript.binding()) }).await;
        raw.send(&ClientFrame::Subscribe { room: ROOM, after: 0 }).await;
        while !matches!(raw.recv().await, ServerFrame::Subscribed { .. }) {}
        raw
    }

    async fn send(&mut self, frame: &ClientFrame) {
        self.send.write_all(&delimited(frame)).await.unwrap();
    }

    async fn recv(&mut self) -> ServerFrame {
        loop {
            if let Some(frame) = self.merge.poll() {
                return ServerFrame::decode(&frame).unwrap();
            }
            let Self { connection, receive, unis, .. } = self;
            let mut buffer = vec![0; 4096];
            let mut on_streams = vec![0; 4096];
            let any = std::future::poll_fn(|cx| {
                for (index, stream) in unis.iter_mut().enumerate() {
                    if let std::task::Poll::Ready(read) = stream.poll_read(cx, &mut on_streams) {
                        return std::task::Poll::Ready((index, read.unwrap()));
                    }
                }
                std::task::Poll::Pending
            });
            tokio::select! {
                biased;
                read = receive.read(&mut buffer) => {
                    let len = read.unwrap().expect("the control stream stays");
                    self.merge.take(Origin::Control, &buffer[..len]).unwrap();
                }
                (index, len) = any => {
                    let number = unis[index].id().index();
                    if len == 0 {
                        unis.swap_remove(index);
                        self.merge.end(number).unwrap();
                    } else {
                        self.merge.take(Origin::Stream(number), &on_streams[..len]).unwrap();
                    }
                }
                stream = connection.accept_uni() => {
                    self.streams += 1;
                    self.unis.push(stream.unwrap());
                }
                datagram = connection.read_datagram() => {
                    self.datagrams += 1;
                    self.merge.take(Origin::Datagram, &datagram.unwrap()).unwrap();
                }
            }
        }
    }

    /// Reads the room's log on, up to `head`.
    async fn read(&mut self, seen: &mut Seen, head: u64) {
        while seen.head() < head {
            if let ServerFrame::Deliver(page) = self.recv().await {
                seen.take(&page);
            }
        }
    }
}

/// An endpoint as a server has it, and whom to trust.
fn listening(dir: &std::path::Path, alpn: &[u8]) -> (quinn::Endpoint, transport::Trust) {
    let identity = server::certificate::development(dir, server::clock::unix_seconds()).unwrap();
    let pin = transport::Trust::Pinned(identity.fingerprint());
    let tls = tls::server_config(tls::provider(), identity, &[alpn]).unwrap();
    let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(tls).unwrap();
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(Arc::new(quic::server_transport(&Limits::default())));
    (quinn::Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap(), pin)
}

fn delimited(frame: &ClientFrame) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_delimited(&mut bytes, &frame.encode());
    bytes
}

async fn publish(client: &mut Client, n: u64) {
    client.publish(ROOM, n, &n.to_le_bytes()).await;
    client.until(|frame| matches!(frame, ServerFrame::Ack { .. })).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn live_pages_travel_on_one_long_stream_and_history_on_another() {
    let edge = edge().await;
    let mut publisher = Client::enter(&edge, Kind::Memory, &key(1), ROOM).await;
    for n in 1..=40 {
        publish(&mut publisher, n).await;
    }
    let mut raw = Raw::login(edge.udp(), &edge, 2, 16).await;
    let mut seen = Seen::new(ROOM);
    raw.read(&mut seen, 40).await;
    assert_eq!(raw.streams, 1, "what was there before");
    for n in 41..=80 {
        publish(&mut publisher, n).await;
        raw.read(&mut seen, n).await;
    }
    assert_eq!((raw.streams, raw.datagrams), (2, 0), "and what is new; nothing follows where nothing is lost");
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_path_that_loses_packets_each_page_has_a_stream_of_its_own() {
    let edge = edge().await;
    let mut publisher = Client::enter(&edge, Kind::Memory, &key(1), ROOM).await;
    let path = Path { loss_permille: 100, delay: Duration::from_millis(6), seed: 3 };
    let relay = Relay::start(edge.udp(), path).await;
    let mut raw = Raw::login(relay.addr, &edge, 2, 32).await;
    let (mut seen, mut n) = (Seen::new(ROOM), 0);
    // What is alone is followed by a datagram without a frame: nobody sends others here.
    while raw.streams < 20 || raw.datagrams < 3 {
        n += 1;
        publish(&mut publisher, n).await;
        raw.read(&mut seen, n).await;
        assert!(n < 2000, "{:?} of {:?}", raw.streams, raw.connection.stats());
    }
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_allows_no_streams_gets_pages_on_the_control_stream() {
    let edge = edge().await;
    let mut publisher = Client::enter(&edge, Kind::Memory, &key(1), ROOM).await;
    publish(&mut publisher, 1).await;
    let mut raw = Raw::login(edge.udp(), &edge, 2, 0).await;
    let mut seen = Seen::new(ROOM);
    for n in 2..=20 {
        publish(&mut publisher, n).await;
    }
    raw.read(&mut seen, 20).await;
    assert_eq!(raw.streams, 0);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ephemerals_travel_as_datagrams_both_ways_and_nothing_else_may() {
    let edge = edge().await;
    let (mut one, mut two) = (Raw::login(edge.udp(), &edge, 1, 8).await, Raw::login(edge.udp(), &edge, 2, 8).await);
    // A subscriber is live once it was given everything.
    let mut publisher = Client::enter(&edge, Kind::Memory, &key(3), ROOM).await;
    publish(&mut publisher, 1).await;
    for raw in [&mut one, &mut two] {
        raw.read(&mut Seen::new(ROOM), 1).await;
    }
    let typing = |n: u8| ClientFrame::Ephemeral { envelope: envelope(EnvelopeKind::Ephemeral, ROOM, &[n; 900]) };
    for n in 0..5 {
        one.connection.send_datagram(delimited(&typing(n)).into()).unwrap();
        let ServerFrame::Ephemeral { envelope } = (loop {
            match two.recv().await {
                ServerFrame::Presence { .. } => {}
                frame => break frame,
            }
        }) else {
            panic!("not an ephemeral")
        };
        assert_eq!(ClientFrame::Ephemeral { envelope }, typing(n));
    }
    assert_eq!(two.datagrams, 5);
    one.connection.send_datagram(delimited(&ClientFrame::Ping { token: 1 }).into()).unwrap();
    let closed = one.connection.closed().await;
    let quinn::ConnectionError::ApplicationClosed(close) = closed else { panic!("{closed:?}") };
    assert_eq!(close.error_code, quinn::VarInt::from_u32(CloseCode::Protocol.quic()), "a datagram may be lost and overtake");
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ephemerals_arrive_on_every_transport_with_and_without_lanes() {
    let edge = edge().await;
    let mut clients = Vec::new();
    for (seed, kind) in (1..).zip(Kind::ALL.into_iter().chain(UDP)) {
        let connection = if seed <= 4 { edge.connect(kind).await } else { edge.connect_single(kind).await };
        let mut client = Client::new(connection, key(seed));
        client.log_in().await;
        client.enter_room(ROOM).await;
        client.subscribe(ROOM, 0).await;
        clients.push(client);
    }
    publish(&mut clients[0], 1).await;
    for client in &mut clients {
        Seen::new(ROOM).read(client, 1).await;
    }
    for sender in 0..clients.len() {
        let envelope = envelope(EnvelopeKind::Ephemeral, ROOM, &[u8::try_from(sender).unwrap(); 30]);
        clients[sender].send(&ClientFrame::Ephemeral { envelope: envelope.clone() }).await;
        for (at, client) in clients.iter_mut().enumerate().filter(|(at, _)| *at != sender) {
            let wanted = ServerFrame::Ephemeral { envelope: envelope.clone() };
            client.until(|frame| *frame == wanted).await;
            assert!(at < 6);
        }
    }
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_changes_its_address_loses_nothing() {
    let edge = edge().await;
    for (seed, kind) in (10..).zip(UDP) {
        let relay = Relay::start(edge.udp(), Path::default()).await;
        let mut moving = Client::new(edge.connect_through(&relay, kind).await, key(seed));
        moving.log_in().await;
        moving.enter_room(ROOM).await;
        moving.subscribe(ROOM, 0).await;
        let mut publisher = Client::enter(&edge, Kind::Memory, &key(seed + 5), ROOM).await;
        let ServerFrame::Subscribed { position, .. } =
            moving.until(|frame| matches!(frame, ServerFrame::Subscribed { .. })).await
        else {
            panic!()
        };
        let (before, mut seen, mut longest) = (position.head, Seen::new(ROOM), Duration::ZERO);
        for n in 1..=60_u64 {
            if n % 10 == 0 {
                relay.change_address().await;
            }
            publish(&mut publisher, n).await;
            let since = Instant::now();
            // It publishes too, so that the server hears of the new address as it would from a person who writes.
            moving.publish(ROOM, n, &[&b"moving"[..], &n.to_le_bytes()].concat()).await;
            seen.read(&mut moving, before + 2 * n).await;
            longest = longest.max(since.elapsed());
        }
        let acks = 60;
        for _ in 0..acks {
            moving.until(|frame| matches!(frame, ServerFrame::Ack { .. })).await;
        }
        // What the client saw is what anybody sees.
        let mut other = Client::enter(&edge, Kind::WebSocket, &key(seed + 5), ROOM).await;
        other.subscribe(ROOM, 0).await;
        let mut all = Seen::new(ROOM);
        all.read(&mut other, before + 120).await;
        assert_eq!((all.chain, all.payloads), (seen.chain, seen.payloads), "{kind}");
        println!("{kind}: the longest gap over six changes of address: {longest:?}");
    }
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lossy_path_loses_nothing_whichever_way_pages_travel() {
    let edge = edge().await;
    let mut seen_by_all = None;
    for (seed, kind) in (20..).zip(UDP) {
        let path = Path { loss_permille: 50, delay: Duration::from_millis(2), seed };
        let relay = Relay::start(edge.udp(), path).await;
        let mut far = Client::new(edge.connect_through(&relay, kind).await, key(seed));
        far.log_in().await;
        far.enter_room(ROOM).await;
        far.subscribe(ROOM, 0).await;
        let mut publisher = Client::enter(&edge, Kind::Memory, &key(1), ROOM).await;
        let base = (seed - 20) * 300;
        let mut seen = Seen::new(ROOM);
        for n in base + 1..=base + 300 {
            publisher.publish(ROOM, n, &n.to_le_bytes()).await;
            if n % 10 == 0 {
                publisher.until(|f| matches!(f, ServerFrame::Ack { client_seq, .. } if *client_seq == n)).await;
            }
        }
        seen.read(&mut far, base + 300).await;
        let expected: Vec<Bytes> = (1..=base + 300).map(|n| Bytes::copy_from_slice(&n.to_le_bytes())).collect();
        assert_eq!(seen.payloads, expected, "{kind}");
        seen_by_all = Some(seen);
    }
    assert!(seen_by_all.is_some());
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_back_says_hello_in_the_first_packets() {
    let edge = edge().await;
    let path = Path { delay: Duration::from_millis(20), ..Path::default() };
    let relay = Relay::start(edge.udp(), path).await;
    let known = hello(&key(2));
    let first = [ClientFrame::Hello(known.clone()).encode()];
    for early in [false, true] {
        if early {
            relay.hold().await;
        }
        let (connection, said) = connect_saying(&common::server::through(&relay, &edge.target), &first).await.unwrap();
        assert_eq!(said, early);
        let mut client = Client::new(connection, key(2));
        if !said {
            client.writer.send(&first).await.unwrap();
        }
        // When it comes back, the challenge arrives although the server has heard nothing of the client since its first packets.
        let ServerFrame::Challenge { nonce } = client.recv().await else { panic!("no challenge") };
        relay.release().await;
        let transcript = Transcript { hello: &known, challenge: nonce, exporter: None };
        client.send(&ClientFrame::Authenticate { signature: sign(&key(2), &transcript.message()) }).await;
        client.until(|frame| matches!(frame, ServerFrame::Welcome { .. })).await;
        client.writer.close(CloseCode::Normal).await;
    }
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_early_data_only_the_first_frame_is_looked_at_before_the_handshake_is_complete() {
    let dir = tempfile::tempdir().unwrap();
    let released = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&released);
    // Tells with each frame whether the relay had let the handshake go on, and whether the handshake was complete at the start.
    let handler: server::Handler = Arc::new(move |mut connection, permit, _| {
        let seen = Arc::clone(&seen);
        Box::pin(async move {
            let early = u8::from(connection.info.exporter.is_none());
            while let Ok(Some(frame)) = connection.reader.recv().await {
                let answer = [&frame[..], &[early, u8::from(seen.load(Ordering::SeqCst))]].concat();
                connection.writer.send(&[answer.into()]).await.unwrap();
            }
            drop(permit);
        })
    });
    let config = waxwing::config::Config {
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        listen_plain: vec!["127.0.0.1:0".parse().unwrap()],
        listen_ops: vec!["127.0.0.1:0".parse().unwrap()],
        certs_dir: dir.path().into(),
        ..Default::default()
    };
    let running = server::start_with(config, waxwing::metrics::Metrics::new(), handler).await.unwrap();
    let origin = format!("http://{}", running.addresses().plain[0]);
    let target = discover(&origin, transport::Trust::WebPki).await.unwrap();
    let path = Path { delay: Duration::from_millis(20), ..Path::default() };
    let relay = Relay::start(running.addresses().tls[0], path).await;
    let target = common::server::through(&relay, &target);
    let frames = [Bytes::from_static(b"login"), Bytes::from_static(b"publish")];

    let (mut connection, said) = connect_saying(&target, &frames).await.unwrap();
    assert!(!said, "the server is not known yet");
    connection.writer.send(&frames).await.unwrap();
    assert_eq!(connection.reader.recv().await.unwrap().unwrap(), b"login\0\0"[..]);
    assert_eq!(connection.reader.recv().await.unwrap().unwrap(), b"publish\0\0"[..]);
    connection.writer.close(CloseCode::Normal).await;

    relay.hold().await;
    let (mut connection, said) = connect_saying(&target, &frames).await.unwrap();
    assert!(said);
    assert_eq!(connection.reader.recv().await.unwrap().unwrap(), b"login\x01\0"[..], "early, and answered at once");
    released.store(true, Ordering::SeqCst);
    relay.release().await;
    assert_eq!(connection.reader.recv().await.unwrap().unwrap(), b"publish\x01\x01"[..], "only then");
    running.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_newcomers_prove_their_address_first() {
    let dir = tempfile::tempdir().unwrap();
    let handler: server::Handler = Arc::new(move |mut connection, permit, _| {
        Box::pin(async move {
            while let Ok(Some(frame)) = connection.reader.recv().await {
                connection.writer.send(&[frame]).await.unwrap();
            }
            drop(permit);
        })
    });
    let config = waxwing::config::Config {
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        listen_plain: vec!["127.0.0.1:0".parse().unwrap()],
        listen_ops: vec!["127.0.0.1:0".parse().unwrap()],
        certs_dir: dir.path().into(),
        connections_per_address_max: 8,
        ..Default::default()
    };
    let running = server::start_with(config, waxwing::metrics::Metrics::new(), handler).await.unwrap();
    let origin = format!("http://{}", running.addresses().plain[0]);
    let target = discover(&origin, transport::Trust::WebPki).await.unwrap();
    let relay = Relay::start(running.addresses().tls[0], Path::default()).await;
    let behind = common::server::through(&relay, &target);
    let say = [Bytes::from_static(b"hello")];
    let mut strangers = Vec::new();
    // Up to a quarter of what one address may have, none has to prove anything.
    for target in [&behind, &target, &target] {
        let mut stranger = connect(target, Kind::Quic).await.unwrap();
        stranger.writer.send(&say).await.unwrap();
        stranger.reader.recv().await.unwrap().unwrap();
        strangers.push(stranger);
    }
    assert_eq!(relay.retries(), 0);
    let relay = Relay::start(running.addresses().tls[0], Path::default()).await;
    let mut late = connect(&common::server::through(&relay, &target), Kind::Quic).await.unwrap();
    late.writer.send(&say).await.unwrap();
    late.reader.recv().await.unwrap().unwrap();
    // More than once where the machine is slow and the first packet is sent again.
    assert!(relay.retries() > 0, "the fourth had to");
    running.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_sends_alone_over_a_long_path_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let (accepting, pin) = listening(dir.path(), lane::ALPN);
    let path = Path { delay: Duration::from_millis(10), ..Path::default() };
    let relay = Relay::start(accepting.local_addr().unwrap(), path).await;
    let dial = Dial { host: relay.addr.ip().to_string(), port: relay.addr.port() };
    let (tcp, quic, [ws_path, wt_path]) = (dial.clone(), Some(dial.clone()), [const { String::new() }; 2]);
    let target =
        Target { authority: dial.authority(), tls: true, tcp, quic, ws_path, wt_path, trust: pin.clone(), quic_trust: pin };
    let accept = async { accepting.accept().await.unwrap().await.unwrap() };
    let (connection, client) = tokio::join!(accept, connect(&target, Kind::Quic));
    let mut client = client.unwrap();
    for n in 1..=3 {
        client.writer.send(&[ClientFrame::Ping { token: n }.encode()]).await.unwrap();
        let follows = tokio::time::timeout(Duration::from_secs(20), connection.read_datagram()).await;
        assert!(follows.expect("it is followed").unwrap().is_empty());
    }
    assert_eq!(connection.stats().frame_rx.datagram, 3, "one follows each");
}

#[tokio::test(flavor = "multi_thread")]
async fn several_packets_leave_in_one_call() {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let segments = quinn::udp::UdpSocketState::new((&socket).into()).unwrap().max_gso_segments();
    if segments == 1 {
        println!("skipped: this kernel has no UDP segmentation offload");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (accepting, pin) = listening(dir.path(), b"test");
    let tls = trust::config(&pin, &[b"test"]).unwrap();
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(quic::client_transport(&Limits::default())));
    let calling = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let accept = async { accepting.accept().await.unwrap().await.unwrap() };
    let at = accepting.local_addr().unwrap();
    let call = async { calling.connect_with(config, at, "localhost").unwrap().await.unwrap() };
    let (sender, receiver) = tokio::join!(accept, call);
    let send = async {
        let mut stream = sender.open_uni().await.unwrap();
        stream.write_all(&vec![7; 1 << 20]).await.unwrap();
        stream.finish().unwrap();
        stream.stopped().await.unwrap();
    };
    let receive = async {
        let mut stream = receiver.accept_uni().await.unwrap();
        stream.read_to_end(1 << 20).await.unwrap()
    };
    let ((), bytes) = tokio::join!(send, receive);
    assert_eq!(bytes.len(), 1 << 20);
    let sent = sender.stats().udp_tx;
    println!("{} datagrams in {} calls", sent.datagrams, sent.ios);
    assert!(sent.ios * 2 < sent.datagrams, "{sent:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_transport_tells_why_it_ends_and_when_to_come_back() {
    let edge = edge().await;
    let mut clients = Vec::new();
    for kind in Kind::ALL {
        clients.push((kind, edge.connect(kind).await));
    }
    for kind in UDP {
        clients.push((kind, edge.connect_single(kind).await));
    }
    let mut ends = tokio::task::JoinSet::new();
    for (seed, (kind, connection)) in (1..).zip(clients) {
        let mut client = Client::new(connection, key(seed));
        client.log_in().await;
        ends.spawn(async move {
            let closing = client.until(|frame| matches!(frame, ServerFrame::Closing { .. })).await;
            assert_eq!(closing, ServerFrame::Closing { code: CloseCode::GoingAway, retry_after_ms: 1000 }, "{kind}");
        });
    }
    edge.stop().await;
    while let Some(end) = ends.join_next().await {
        end.unwrap();
    }
}
