//! What is served over HTTP: `/ws`, the description of the server, the page.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Extension, Router,
    body::Body,
    extract::{Request, State},
    http::{
        HeaderMap, HeaderValue, Response, StatusCode,
        header::{
            ACCESS_CONTROL_ALLOW_ORIGIN, CACHE_CONTROL, CONTENT_TYPE, HOST, ORIGIN, RETRY_AFTER, SEC_WEBSOCKET_VERSION, UPGRADE,
            VARY,
        },
    },
    response::IntoResponse,
    routing::{any, get},
};

use super::{Shared, page, tcp::Peer};
use crate::transport::{Info, Kind, websocket, webtransport};

/// The routes of the public listeners.
pub(super) fn router(shared: &Arc<Shared>) -> Router {
    Router::new()
        // GET on HTTP/1.1, CONNECT on HTTP/2.
        .route(websocket::PATH, any(upgrade))
        .route("/.well-known/waxwing", get(describe))
        .fallback(files)
        .with_state(Arc::clone(shared))
}

async fn files(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    let development = shared.config.is_development();
    page::respond(request.method(), request.uri().path(), request.headers(), development)
}

/// The authority that the client dialled.
fn authority(request: &Request) -> Option<&str> {
    let from_uri = request.uri().authority().map(axum::http::uri::Authority::as_str);
    from_uri.or_else(|| request.headers().get(HOST)?.to_str().ok())
}

fn origin(headers: &HeaderMap) -> Option<&str> {
    // An origin that is no text is none that is allowed.
    headers.get(ORIGIN).map(|origin| origin.to_str().unwrap_or("invalid"))
}

/// The client's address: the connection's, or what a trusted proxy says. A list grows to the right, so the last address
/// that is not a trusted proxy's is the first that can be believed.
pub(super) fn client_address(shared: &Shared, peer: &Peer, headers: &HeaderMap) -> SocketAddr {
    let trusted = |address| shared.config.trusted_proxies.iter().any(|network| network.contains(address));
    let mut remote = peer.remote;
    let values: Vec<_> = headers.get_all("x-forwarded-for").into_iter().filter_map(|value| value.to_str().ok()).collect();
    for hop in values.iter().flat_map(|value| value.split(',')).rev() {
        if !trusted(remote.ip()) {
            break;
        }
        let hop = hop.trim();
        let parsed = hop.parse::<SocketAddr>().or_else(|_| hop.trim_matches(['[', ']']).parse().map(|ip| SocketAddr::new(ip, 0)));
        let Ok(address) = parsed else { break };
        remote = crate::transport::quic::canonical(address);
    }
    remote
}

async fn upgrade(State(shared): State<Arc<Shared>>, Extension(peer): Extension<Peer>, mut request: Request) -> Response<Body> {
    let refuse = |reason: &'static str, status: StatusCode, why: String| {
        shared.metrics.handshake_failed(reason);
        (status, [(RETRY_AFTER, "5")], format!("{why}\n")).into_response()
    };
    if !shared.origins.allows(origin(request.headers())) {
        return refuse("origin", StatusCode::FORBIDDEN, "this page may not connect here".into());
    }
    // A store that cannot write any more still serves its readers: only a stop turns people away.
    if shared.stopping.is_cancelled() {
        return refuse("stopping", StatusCode::SERVICE_UNAVAILABLE, "the server is stopping".into());
    }
    let remote = client_address(&shared, &peer, request.headers());
    let info = Info { kind: Kind::WebSocket, remote, exporter: peer.exporter, authority: authority(&request).map(str::to_owned) };
    let (response, upgrade) = match websocket::upgrade(&mut request) {
        Ok(accepted) => accepted,
        Err(error) => {
            // What would be accepted: RFC 9110 §15.5.22, RFC 6455 §4.4.
            let accepted = [(UPGRADE, "websocket"), (SEC_WEBSOCKET_VERSION, "13")];
            return (accepted, refuse(error.name(), error.status(), error.to_string())).into_response();
        }
    };
    tracing::debug!(%remote, http = ?request.version(), "a WebSocket");
    let permit = match shared.admission.admit(remote.ip()) {
        Ok(permit) => permit,
        Err(full) => return refuse(full.name(), StatusCode::SERVICE_UNAVAILABLE, full.to_string()),
    };
    let task = Arc::clone(&shared);
    shared.spawn_here(Box::pin(async move {
        let connection = upgrade.connection(info, task.config.limits.unauthenticated_bytes_max);
        match tokio::time::timeout(task.handshake_timeout(), connection).await {
            Ok(Ok(connection)) => task.serve(connection, permit),
            _ => task.metrics.handshake_failed("upgrade"),
        }
    }));
    response
}

async fn describe(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    let quoted = |text: Option<String>| text.map_or_else(|| "null".into(), |text| format!("\"{text}\""));
    let hash = shared.fingerprint.map(|hash| hash.iter().map(|byte| format!("{byte:02x}")).collect());
    let body = format!(
        "{{\"version\":1,\"quic\":{},\"certificate_sha256\":{},\"ws\":\"{}\",\"wt\":\"{}\"}}\n",
        quoted(quic(&shared, authority(&request))),
        quoted(hash),
        websocket::PATH,
        webtransport::PATH
    );
    let mut response = Response::new(Body::from(body));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(VARY, HeaderValue::from_static("origin"));
    if let Some(asking) = request.headers().get(ORIGIN)
        && shared.origins.allows(origin(request.headers()))
    {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, asking.clone());
    }
    response
}

/// `host:port` of QUIC for a client that dialled `authority`.
fn quic(shared: &Shared, authority: Option<&str>) -> Option<String> {
    if let Some(configured) = &shared.config.public_quic {
        return Some(configured.clone());
    }
    let authority: axum::http::uri::Authority = authority?.parse().ok()?;
    // The listener of the family that was dialled: in development there is one of each, with ports of their own if 0 was asked.
    let wants_v6 = authority.host().starts_with('[');
    let tls = &shared.addresses.tls;
    let port = tls.iter().find(|address| address.is_ipv6() == wants_v6).or_else(|| tls.first())?.port();
    Some(format!("{}:{port}", authority.host()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_trusted_proxies_say_whose_connection_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = crate::config::Config {
            listen: Vec::new(),
            listen_plain: vec!["127.0.0.1:0".parse().unwrap()],
            listen_ops: Vec::new(),
            certs_dir: dir.path().into(),
            ..crate::config::Config::default()
        };
        config.trusted_proxies = vec!["10.0.0.0/8".parse().unwrap()];
        let handler: super::super::Handler = Arc::new(|_, _, _| Box::pin(async {}));
        let running = super::super::start_with(config, crate::metrics::Metrics::new(), handler).await.unwrap();
        for (peer, forwarded, expected) in [
            ("192.0.2.1:5", "198.51.100.1", "192.0.2.1:5"),
            ("10.0.0.1:5", "198.51.100.1", "198.51.100.1:0"),
            ("10.0.0.1:5", "6.6.6.6, 198.51.100.1, 10.1.1.1", "198.51.100.1:0"),
            ("10.0.0.1:5", "198.51.100.1:77", "198.51.100.1:77"),
            ("10.0.0.1:5", "[2001:db8::1]", "[2001:db8::1]:0"),
            ("10.0.0.1:5", "nonsense", "10.0.0.1:5"),
        ] {
            let peer = Peer { remote: peer.parse().unwrap(), exporter: None };
            let mut headers = HeaderMap::new();
            headers.insert("x-forwarded-for", HeaderValue::from_str(forwarded).unwrap());
            let address = client_address(running.shared(), &peer, &headers);
            assert_eq!(address, expected.parse().unwrap(), "{forwarded}");
        }
        running.shutdown().await;
    }
}
