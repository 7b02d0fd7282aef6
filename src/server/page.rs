//! The page: the browser's client, embedded by the build script.

use axum::{
    body::Body,
    http::{
        HeaderMap, HeaderValue, Method, Response, StatusCode,
        header::{
            ACCEPT_ENCODING, ALLOW, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HeaderName,
            IF_NONE_MATCH, REFERRER_POLICY, VARY, X_CONTENT_TYPE_OPTIONS,
        },
    },
};

/// One file of the page.
#[derive(Debug, Clone, Copy)]
pub struct Asset {
    /// Its path below the root, such as `index.html`.
    pub path: &'static str,
    /// Its media type.
    pub content_type: &'static str,
    /// Its entity tag, with quotes.
    pub etag: &'static str,
    /// Compressed with brotli.
    pub brotli: Option<&'static [u8]>,
    /// As it is.
    pub raw: Option<&'static [u8]>,
}

#[cfg(waxwing_page)]
include!(concat!(env!("OUT_DIR"), "/page.rs"));
/// Every file of the page: none, because the page was not built in.
#[cfg(not(waxwing_page))]
pub static ASSETS: &[Asset] = &[];

const NOT_BUILT: &str = "This build of Waxwing has no page: debug builds leave it out.\n\
    Build with `cargo run --release` to have it, or use the terminal: `waxwing chat '<room link>'`.\n";

/// What a page may ask its person for: the camera, which reads codes.
const PERMISSIONS: &str = "camera=(self), display-capture=(), geolocation=(), microphone=()";
/// What a page may do. WebAssembly needs its own keyword; WebTransport is a connection to https.
const POLICY: &str = "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; connect-src 'self' https: wss:; \
    img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// In development also WebSocket without TLS, to this machine.
const POLICY_DEVELOPMENT: &str = "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; \
    connect-src 'self' https: wss: ws://localhost:* ws://127.0.0.1:*; \
    img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Answers a request for a file of the page.
#[must_use]
pub fn respond(method: &Method, path: &str, headers: &HeaderMap, development: bool) -> Response<Body> {
    serve(ASSETS, method, path, headers, development)
}

fn serve(assets: &[Asset], method: &Method, path: &str, headers: &HeaderMap, development: bool) -> Response<Body> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let name = match path {
        // A link's room is in the fragment, which never comes here.
        "/" | "/r" => "index.html",
        other => other.trim_start_matches('/'),
    };
    let Some(asset) = assets.iter().find(|asset| asset.path.trim_start_matches('/') == name) else {
        return match name {
            "index.html" => text(StatusCode::OK, NOT_BUILT),
            _ => text(StatusCode::NOT_FOUND, "not found\n"),
        };
    };
    let mut response = file(asset, headers);
    if *method == Method::HEAD {
        *response.body_mut() = Body::empty();
    }
    let policy = if development { POLICY_DEVELOPMENT } else { POLICY };
    protect(&mut response, policy);
    response
}

fn file(asset: &Asset, headers: &HeaderMap) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    let set = response.headers_mut();
    set.insert(ETAG, HeaderValue::from_static(asset.etag));
    // Asked for every time, transferred once.
    set.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    set.insert(VARY, HeaderValue::from_static("accept-encoding"));
    set.insert(CONTENT_TYPE, HeaderValue::from_static(asset.content_type));
    if lists(headers, &IF_NONE_MATCH, asset.etag) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return response;
    }
    match (asset.brotli, asset.raw) {
        (Some(brotli), _) if lists(headers, &ACCEPT_ENCODING, "br") => {
            set.insert(CONTENT_ENCODING, HeaderValue::from_static("br"));
            *response.body_mut() = Body::from(brotli);
        }
        (_, Some(raw)) => *response.body_mut() = Body::from(raw),
        _ => return text(StatusCode::NOT_ACCEPTABLE, "this file is kept compressed with brotli only: accept br\n"),
    }
    response
}

/// Whether a header lists `wanted`; parameters such as `;q=1` do not matter, except that `q=0` excludes.
fn lists(headers: &HeaderMap, name: &HeaderName, wanted: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|item| {
        let mut parts = item.split(';').map(str::trim);
        let token = parts.next().unwrap_or_default();
        token.strip_prefix("W/").unwrap_or(token) == wanted && !parts.any(|part| matches!(part, "q=0" | "q=0.0" | "q=0.00"))
    })
}

fn text(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    protect(&mut response, "default-src 'none'; frame-ancestors 'none'");
    response
}

fn protect(response: &mut Response<Body>, policy: &'static str) {
    let headers = response.headers_mut();
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, policy),
        (HeaderName::from_static("permissions-policy"), PERMISSIONS),
        (REFERRER_POLICY, "no-referrer"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: &[Asset] = &[
        Asset { path: "index.html", content_type: "text/html", etag: "\"1\"", brotli: Some(b"br"), raw: Some(b"raw") },
        Asset { path: "core.wasm", content_type: "application/wasm", etag: "\"2\"", brotli: Some(b"br"), raw: None },
    ];

    fn ask(path: &str, pairs: &[(HeaderName, &'static str)]) -> Response<Body> {
        let headers = pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect();
        serve(FILES, &Method::GET, path, &headers, false)
    }

    #[test]
    fn what_is_sent_depends_on_what_the_browser_takes_and_has() {
        let br = (ACCEPT_ENCODING, "gzip, br;q=0.9");
        for path in ["/", "/r", "/index.html"] {
            let response = ask(path, std::slice::from_ref(&br));
            assert_eq!(response.headers()[CONTENT_ENCODING], "br", "{path}");
            assert!(response.headers()[CONTENT_SECURITY_POLICY].to_str().unwrap().contains("'wasm-unsafe-eval'"));
            assert!(
                response.headers()["permissions-policy"].to_str().unwrap().starts_with("camera=(self),"),
                "nobody else's frames"
            );
        }
        assert!(!ask("/", &[]).headers().contains_key(CONTENT_ENCODING));
        assert!(!ask("/", &[(ACCEPT_ENCODING, "br;q=0")]).headers().contains_key(CONTENT_ENCODING));
        assert_eq!(ask("/", &[br.clone(), (IF_NONE_MATCH, "\"0\", W/\"1\"")]).status(), StatusCode::NOT_MODIFIED);
        assert_eq!(ask("/core.wasm", &[br]).status(), StatusCode::OK);
        assert_eq!(ask("/core.wasm", &[]).status(), StatusCode::NOT_ACCEPTABLE);
        assert_eq!(ask("/../Cargo.toml", &[]).status(), StatusCode::NOT_FOUND);
        assert_eq!(serve(FILES, &Method::POST, "/", &HeaderMap::new(), false).status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(serve(&[], &Method::GET, "/", &HeaderMap::new(), false).status(), StatusCode::OK);
    }
}
