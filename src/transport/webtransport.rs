//! WebTransport over HTTP/3 (wtransport, which speaks draft-02 as browsers do), on the endpoint that raw QUIC uses too.

use super::{
    Connection, Info, Kind,
    quic::{self, AcceptError, Lanes, Streams},
};
use crate::core::lane;

/// The ALPN of HTTP/3.
pub const ALPN: &[u8] = b"h3";
/// The path of the session.
pub const PATH: &str = "/wt";

pub(super) type ClientEndpoint = wtransport::Endpoint<wtransport::endpoint::endpoint_side::Client>;

/// A client's request for a session, to be answered.
pub struct Request(wtransport::endpoint::SessionRequest);

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request").field("path", &self.path()).field("origin", &self.origin()).finish()
    }
}

/// Completes the HTTP/3 handshake and reads the session request.
pub(super) async fn accept(connecting: quinn::Connecting) -> Result<Request, wtransport::error::ConnectionError> {
    wtransport::endpoint::IncomingSessionFuture::with_quic_connecting(connecting).await.map(Request)
}

impl Request {
    /// The page's origin; absent when the client is no browser.
    #[must_use]
    pub fn origin(&self) -> Option<&str> {
        self.0.origin()
    }

    /// The path that was asked for, without a query.
    #[must_use]
    pub fn path(&self) -> &str {
        self.0.path().split_once('?').map_or_else(|| self.0.path(), |(path, _)| path)
    }

    fn lanes(&self) -> Lanes {
        let query = self.0.path().split_once('?').map_or("", |(_, query)| query);
        if query.split('&').any(|part| part == lane::QUERY) { Lanes::Server } else { Lanes::None }
    }

    /// Answers 403.
    pub async fn forbid(self) {
        self.0.forbidden().await;
    }

    /// Answers 404.
    pub async fn not_found(self) {
        self.0.not_found().await;
    }

    /// Opens the session and waits for the client's stream.
    ///
    /// # Errors
    /// [`AcceptError::WebTransport`]
    pub async fn open(self, frame_max: u32) -> Result<Connection, AcceptError> {
        let (authority, lanes) = (self.0.authority().to_owned(), self.lanes());
        let connection = self.0.accept().await?;
        let stream = connection.accept_bi().await?;
        let info = Info {
            kind: Kind::WebTransport,
            remote: quic::canonical(connection.remote_address()),
            exporter: quic::exporter(connection.quic_connection()),
            authority: Some(authority),
        };
        let streams = Streams::WebTransport { connection, _endpoint: None };
        Ok(quic::webtransport_connection(streams, stream, lanes, info, frame_max))
    }
}
