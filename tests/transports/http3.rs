//! WebTransport by hand, on bare streams of QUIC: in any order, in pieces, with what nobody knows among it; and what breaks HTTP/3.

use std::{sync::Arc, time::Duration};

use quinn::{Connection, Endpoint, RecvStream, SendStream};
use waxwing::transport::{Trust, trust};
use wtransport::proto::session::SessionRequest;

use super::edge::Edge;

const SETTINGS: &[u8] = &[4, 0];
/// A frame of a type that means nothing (RFC 9114 §7.2.8), with a byte in it.
const GREASE: &[u8] = &[0x21, 1, 7];

struct Client {
    connection: Connection,
    endpoint: Endpoint,
    /// What is sent and not read on: dropped, it would be reset.
    open: Vec<(SendStream, Option<RecvStream>)>,
}

impl Client {
    async fn connect(edge: &Edge) -> Self {
        let target = edge.target().await;
        let tls = trust::config(&target.quic_trust, &[b"h3"]).unwrap();
        assert!(matches!(target.quic_trust, Trust::Pinned(_)));
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
        let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let config = quinn::ClientConfig::new(Arc::new(crypto));
        let connection = endpoint.connect_with(config, edge.tls(), "localhost").unwrap().await.unwrap();
        Self { connection, endpoint, open: Vec::new() }
    }

    async fn uni(&mut self, bytes: &[u8]) -> &mut SendStream {
        let mut stream = self.connection.open_uni().await.unwrap();
        stream.write_all(bytes).await.unwrap();
        self.open.push((stream, None));
        &mut self.open.last_mut().unwrap().0
    }

    async fn bi(&mut self, bytes: &[u8]) {
        let (mut send, receive) = self.connection.open_bi().await.unwrap();
        send.write_all(bytes).await.unwrap();
        self.open.push((send, Some(receive)));
    }
}

fn request(edge: &Edge) -> Vec<u8> {
    let request = SessionRequest::new(format!("https://localhost:{}/wt", edge.tls().port())).unwrap();
    let mut bytes = Vec::new();
    request.headers().generate_frame().write(&mut bytes).unwrap();
    bytes
}

#[tokio::test]
async fn streams_come_in_any_order_and_in_pieces() {
    let mut edge = Edge::start().await;
    let mut client = Client::connect(&edge).await;
    // The request's stream is the first, and what is said on it the last.
    let (mut asking, mut asked) = client.connection.open_bi().await.unwrap();
    asking.write_all(&GREASE[..1]).await.unwrap();
    // A stream of ours, of session 0, and the beginning of a frame on it: its length and one byte of three.
    let (mut send, mut receive) = client.connection.open_bi().await.unwrap();
    send.write_all(&[0x40, 0x41, 0, 3, b'a']).await.unwrap();
    // Nothing, a type that nobody knows, QPACK's, and half of settings.
    client.uni(&[]).await;
    client.uni(&[0x21, 1, 2, 3]).await.finish().unwrap();
    client.uni(&[2]).await;
    client.uni(&[0, 4]).await.write_all(&[0]).await.unwrap();
    let whole = [&GREASE[1..], &request(&edge)].concat();
    for byte in whole {
        asking.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut answer = [0; 2];
    asked.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer[0], 1, "headers");
    // The server sends our frame back as it is.
    send.write_all(b"bc").await.unwrap();
    let mut back = [0; 4];
    receive.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, &[3, b'a', b'b', b'c']);
    // What is not known means nothing; the end of the request's stream is that of the session.
    asking.write_all(GREASE).await.unwrap();
    asking.finish().unwrap();
    let (_, ended) = edge.ended.recv().await.unwrap();
    assert!(ended.is_ok(), "{ended:?}");
    edge.running.shutdown().await;
}

#[tokio::test]
async fn a_capsule_ends_the_session() {
    let mut edge = Edge::start().await;
    let mut client = Client::connect(&edge).await;
    client.uni(&[&[0], SETTINGS].concat()).await;
    client.bi(&request(&edge)).await;
    client.bi(&[0x40, 0x41, 0, 1, b'x']).await;
    let mut back = [0; 2];
    client.open[2].1.as_mut().unwrap().read_exact(&mut back).await.unwrap();
    assert_eq!(&back, &[1, b'x']);
    // DATA with CLOSE_WEBTRANSPORT_SESSION, code 0, no reason.
    client.open[1].0.write_all(&[0, 7, 0x68, 0x43, 4, 0, 0, 0, 0]).await.unwrap();
    let (_, ended) = edge.ended.recv().await.unwrap();
    assert!(ended.is_ok(), "{ended:?}");
    edge.running.shutdown().await;
}

/// What is wrong, what the unidirectional streams say, and what the bidirectional one says.
type Case<'a> = (&'a str, &'a [&'a [u8]], &'a [u8]);

#[tokio::test]
async fn whoever_breaks_http3_is_hung_up_on() {
    let edge = Edge::start().await;
    let control = |more: &[u8]| [&[0][..], more].concat();
    let settings = control(SETTINGS);
    let cases: &[Case<'_>] = &[
        ("no settings first", &[&control(GREASE)], &[]),
        ("settings twice", &[&control(&[4, 0, 4, 0])], &[]),
        ("settings of HTTP/2", &[&control(&[4, 2, 2, 1])], &[]),
        ("a request on the control stream", &[&control(&[4, 0, 1, 0])], &[]),
        ("two control streams", &[&settings, &settings], &[]),
        ("a frame that is too large", &[&settings], &[1, 0x60, 0]),
        ("data without a request", &[&settings], &[0, 1, 7]),
    ];
    for (case, unis, bi) in cases {
        let mut client = Client::connect(&edge).await;
        for bytes in *unis {
            client.uni(bytes).await;
        }
        if !bi.is_empty() {
            client.bi(bi).await;
        }
        let closed = tokio::time::timeout(Duration::from_secs(5), client.connection.closed()).await;
        assert!(closed.is_ok(), "{case}");
        client.endpoint.wait_idle().await;
    }
    let metrics = edge.metrics().await;
    let failures = format!(r#"waxwing_handshake_failures_total{{reason="webtransport"}} {}"#, cases.len());
    assert!(metrics.contains(&failures), "{metrics}");
    edge.running.shutdown().await;
}

#[tokio::test]
async fn a_request_for_something_else_is_refused_and_the_next_one_heard() {
    let mut edge = Edge::start().await;
    let mut client = Client::connect(&edge).await;
    client.uni(&[&[0], SETTINGS].concat()).await;
    // Headers that are no request at all.
    client.bi(&[1, 2, 0, 0]).await;
    let mut nothing = [0];
    let refused = client.open[1].1.as_mut().unwrap().read(&mut nothing).await;
    assert!(matches!(refused, Err(quinn::ReadError::Reset(code)) if code == quinn::VarInt::from_u32(0x10b)), "{refused:?}");
    client.bi(&request(&edge)).await;
    // The session is the second bidirectional stream: number 4.
    client.bi(&[0x40, 0x41, 4, 1, b'x']).await;
    let mut back = [0; 2];
    client.open[3].1.as_mut().unwrap().read_exact(&mut back).await.unwrap();
    client.connection.close(0_u32.into(), b"");
    let (_, ended) = edge.ended.recv().await.unwrap();
    assert!(ended.is_ok(), "{ended:?}");
    edge.running.shutdown().await;
}
