//! WebTransport over HTTP/3, draft-02 as browsers speak it, on the endpoint that raw QUIC uses too. Clients have wtransport for it,
//! servers [`http3`]: wtransport keeps a task and eight channels for each connection, 30 KiB.

use wtransport::proto::session::SessionResponse;

use super::{
    Connection, Info, Kind, http3,
    quic::{self, AcceptError, Lanes},
};
use crate::core::lane;

/// The ALPN of HTTP/3.
pub const ALPN: &[u8] = b"h3";
/// The path of the session.
pub const PATH: &str = "/wt";

#[cfg(feature = "client")]
pub(super) type ClientEndpoint = wtransport::Endpoint<wtransport::endpoint::endpoint_side::Client>;

/// A client's request for a session, to be answered.
pub struct Request(http3::Request);

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request").field("path", &self.path()).field("origin", &self.origin()).finish()
    }
}

/// Completes the HTTP/3 handshake and reads the session request.
pub(super) async fn accept(connecting: quinn::Connecting) -> Result<Request, AcceptError> {
    http3::Request::accept(connecting.await?).await.map(Request)
}

impl Request {
    /// The page's origin; absent when the client is no browser.
    #[must_use]
    pub fn origin(&self) -> Option<&str> {
        self.0.request().origin()
    }

    /// The path that was asked for, without a query.
    #[must_use]
    pub fn path(&self) -> &str {
        let path = self.0.request().path();
        path.split_once('?').map_or(path, |(path, _)| path)
    }

    fn lanes(&self) -> Lanes {
        let query = self.0.request().path().split_once('?').map_or("", |(_, query)| query);
        if query.split('&').any(|part| part == lane::QUERY) { Lanes::Server } else { Lanes::None }
    }

    /// Answers 403.
    pub async fn forbid(self) {
        self.0.refuse(SessionResponse::forbidden()).await;
    }

    /// Answers 404.
    pub async fn not_found(self) {
        self.0.refuse(SessionResponse::not_found()).await;
    }

    /// Opens the session and waits for the client's stream.
    ///
    /// # Errors
    /// [`AcceptError::WebTransport`], [`AcceptError::Quic`]
    pub async fn open(self, frame_max: u32) -> Result<Connection, AcceptError> {
        let (authority, lanes) = (self.0.request().authority().to_owned(), self.lanes());
        let (session, stream) = self.0.open().await?;
        let info = Info {
            kind: Kind::WebTransport,
            remote: quic::canonical(session.connection.remote_address()),
            exporter: quic::exporter(&session.connection),
            authority: Some(authority),
        };
        Ok(quic::session(session, stream, lanes, info, frame_max))
    }
}
