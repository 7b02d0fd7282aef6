//! The opening handshake of a server, on HTTP/1.1 (RFC 6455 §4.2) and HTTP/2 (RFC 8441), and the client's request.

use base64::Engine as _;
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, Version,
    header::{
        CONNECTION, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
        SEC_WEBSOCKET_VERSION, UPGRADE,
    },
    upgrade::OnUpgrade,
};
use hyper_util::{rt::TokioIo, server::conn::auto};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::{Role, Socket};
use crate::{
    core::frame::SUBPROTOCOL,
    transport::{Connection, Error, Info},
};

/// Why a request does not become a WebSocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UpgradeError {
    /// It asks for none.
    #[error("this is a WebSocket endpoint: connect with a WebSocket client")]
    NotWebSocket,
    /// It speaks another version of WebSocket.
    #[error("WebSocket version 13 is required")]
    Version,
    /// It does not offer our subprotocol.
    #[error("the subprotocol waxwing.v1 must be offered")]
    Subprotocol,
}

impl UpgradeError {
    /// The HTTP status that answers it.
    #[must_use]
    pub const fn status(self) -> StatusCode {
        match self {
            Self::NotWebSocket | Self::Version => StatusCode::UPGRADE_REQUIRED,
            Self::Subprotocol => StatusCode::BAD_REQUEST,
        }
    }

    /// A short name for metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotWebSocket => "not_websocket",
            Self::Version => "websocket_version",
            Self::Subprotocol => "subprotocol",
        }
    }
}

/// A handshake that was accepted; [`Upgrade::connection`] resolves when the response has gone out.
#[derive(Debug)]
pub struct Upgrade(OnUpgrade);

impl Upgrade {
    /// The connection.
    ///
    /// # Errors
    /// [`Error::Lost`] when the client left before.
    pub async fn connection(self, info: Info, frame_max: u32) -> Result<Connection, Error> {
        let upgraded = self.0.await.map_err(std::io::Error::other)?;
        let (socket, leftover) = match auto::upgrade::downcast::<TokioIo<Socket>>(upgraded) {
            Ok(parts) => (parts.io.into_inner(), parts.read_buf),
            Err(upgraded) => (Socket::http2(upgraded), bytes::Bytes::new()),
        };
        Ok(super::connection(socket, &leftover, Role::Server, info, frame_max))
    }
}

fn lists(headers: &HeaderMap, name: &HeaderName, wanted: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|token| token.trim().eq_ignore_ascii_case(wanted))
}

/// RFC 6455 §4.1: 16 bytes in base64.
fn is_key(key: &HeaderValue) -> bool {
    base64::engine::general_purpose::STANDARD.decode(key).is_ok_and(|bytes| bytes.len() == 16)
}

/// Checks a request's handshake: what to answer, and the connection to come. No extension is negotiated, so nothing is
/// ever compressed.
///
/// # Errors
/// [`UpgradeError`]
pub fn upgrade<B, R: Default>(request: &mut Request<B>) -> Result<(Response<R>, Upgrade), UpgradeError> {
    let headers = request.headers();
    let http2 = request.version() == Version::HTTP_2;
    let asks = if http2 {
        let protocol = request.extensions().get::<hyper::ext::Protocol>();
        request.method() == Method::CONNECT && protocol.is_some_and(|protocol| protocol.as_str() == "websocket")
    } else {
        request.method() == Method::GET
            && request.version() >= Version::HTTP_11
            && lists(headers, &CONNECTION, "upgrade")
            && lists(headers, &UPGRADE, "websocket")
    };
    if !asks {
        return Err(UpgradeError::NotWebSocket);
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(UpgradeError::Version);
    }
    if !lists(headers, &SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL) {
        return Err(UpgradeError::Subprotocol);
    }
    let mut response = Response::new(R::default());
    if !http2 {
        let key = headers.get(SEC_WEBSOCKET_KEY).filter(|key| is_key(key)).ok_or(UpgradeError::NotWebSocket)?;
        let accept = HeaderValue::try_from(derive_accept_key(key.as_bytes())).map_err(|_| UpgradeError::NotWebSocket)?;
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
        response.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
        response.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    Ok((response, Upgrade(hyper::upgrade::on(request))))
}

/// The client's opening request.
#[cfg(feature = "client")]
pub(in crate::transport) fn request(authority: &str, path: &str) -> Result<Request<()>, hyper::http::Error> {
    use tokio_tungstenite::tungstenite::handshake::client::generate_key;
    Request::builder()
        .uri(path)
        .header(hyper::header::HOST, authority)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_VERSION, "13")
        .header(SEC_WEBSOCKET_KEY, generate_key())
        .header(SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL)
        .body(())
}
