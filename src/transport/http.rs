//! A native client's plain requests: one connection, one request, one answer of a bounded size.

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, StatusCode, Uri,
    header::{CONTENT_TYPE, HOST, RETRY_AFTER},
};

use super::{
    ConnectError, Trust,
    connect::{self, Dial, TIMEOUT},
    discover::is_loopback,
};

/// A server's origin, as it is dialled.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    pub(super) dial: Dial,
    /// As the person typed it.
    pub(super) authority: String,
    pub(super) tls: bool,
}

impl Origin {
    /// Reads `https://chat.example`, `http://localhost:8433`.
    pub(super) fn parse(origin: &str) -> Result<Self, ConnectError> {
        let uri: Uri = origin.trim_end_matches('/').parse().map_err(|_| ConnectError::Origin(origin.into()))?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(ConnectError::Origin(origin.into()));
        };
        let tls = match scheme {
            "https" => true,
            "http" if is_loopback(authority.host()) => false,
            "http" => return Err(ConnectError::Insecure(authority.to_string())),
            _ => return Err(ConnectError::Origin(origin.into())),
        };
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let dial = Dial { host: authority.host().trim_matches(['[', ']']).to_owned(), port };
        Ok(Self { dial, authority: authority.to_string(), tls })
    }
}

/// What a server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// Seconds after which to ask again, where it says so.
    pub retry_after: Option<u32>,
    /// The body.
    pub body: Bytes,
}

/// Asks for `path` at `origin`, or, with a body, posts that there. The answer's body has at most `answer_max` bytes.
///
/// # Errors
/// [`ConnectError`], as [`super::discover::discover`]; not for a status.
pub async fn request(
    origin: &str,
    trust: &Trust,
    path: &str,
    body: Option<Bytes>,
    answer_max: usize,
) -> Result<Answer, ConnectError> {
    let origin = Origin::parse(origin)?;
    let exchange = exchange(&origin, origin.tls.then_some(trust), path, body, answer_max);
    // What is stored is synced to a disk first.
    tokio::time::timeout(4 * TIMEOUT, exchange).await.map_err(|_| ConnectError::TimedOut)?
}

pub(super) async fn exchange(
    origin: &Origin,
    trust: Option<&Trust>,
    path: &str,
    body: Option<Bytes>,
    answer_max: usize,
) -> Result<Answer, ConnectError> {
    let (socket, _) = connect::tcp(&origin.dial, trust).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(socket)).await?;
    let method = if body.is_some() { Method::POST } else { Method::GET };
    let request = Request::builder().method(method).uri(path).header(HOST, origin.authority.as_str());
    let request = match body {
        Some(body) => request.header(CONTENT_TYPE, "application/octet-stream").body(Full::new(body)),
        None => request.body(Full::default()),
    };
    let request = request.map_err(|_| ConnectError::Answer("authority"))?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|seconds| seconds.to_str().ok()?.parse().ok());
        let body = Limited::new(response.into_body(), answer_max).collect().await;
        Ok(Answer { status, retry_after, body: body.map_err(|_| ConnectError::Answer("body"))?.to_bytes() })
    };
    // The connection's future does the work; the answer ends it.
    tokio::select! {
        answer = answer => answer,
        Err(error) = connection => Err(error.into()),
    }
}

impl Answer {
    /// The body, of an answer that has one.
    ///
    /// # Errors
    /// [`ConnectError::Status`].
    pub fn ok(self) -> Result<Bytes, ConnectError> {
        if self.status == StatusCode::OK.as_u16() { Ok(self.body) } else { Err(ConnectError::Status(self.status)) }
    }
}
