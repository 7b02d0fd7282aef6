//! Which pages may connect. Browsers tell the page's origin, and let any page try: without this check a foreign page could
//! use a person's browser to reach a server on their machine or network. Other clients send no origin, and need none.

use hyper::Uri;

use super::Addresses;
use crate::config::Config;

/// The origins that may connect.
#[derive(Debug, Clone)]
pub struct Origins {
    /// Host, and the ports at which it is ours.
    own: Vec<(String, Vec<u16>)>,
    /// Whole origins, lower case, with their port.
    allowed: Vec<(String, String, u16)>,
    development: bool,
}

/// Scheme, host and port.
fn parse(origin: &str) -> Option<(String, String, u16)> {
    let uri: Uri = origin.parse().ok()?;
    let scheme = uri.scheme_str()?.to_ascii_lowercase();
    let default = match scheme.as_str() {
        "https" => 443,
        "http" => 80,
        _ => return None,
    };
    if uri.query().is_some() || !matches!(uri.path(), "" | "/") || uri.authority()?.as_str().contains('@') {
        return None;
    }
    Some((scheme, uri.host()?.to_ascii_lowercase(), uri.port_u16().unwrap_or(default)))
}

impl Origins {
    /// The names of the configuration, or this machine's in development, at the ports that are listened on.
    #[must_use]
    pub fn new(config: &Config, addresses: &Addresses) -> Self {
        let ports: Vec<u16> = addresses.tls.iter().chain(&addresses.plain).map(std::net::SocketAddr::port).collect();
        let development = config.is_development();
        let own = if development {
            ["localhost", "127.0.0.1", "[::1]"].map(|host| (host.to_owned(), ports.clone())).to_vec()
        } else {
            let with_443: Vec<u16> = ports.into_iter().chain([443]).collect();
            let own = config.public_names.iter().filter_map(|name| {
                let authority: hyper::http::uri::Authority = name.parse().ok()?;
                let ports = authority.port_u16().map_or_else(|| with_443.clone(), |port| vec![port]);
                Some((authority.host().to_ascii_lowercase(), ports))
            });
            own.collect()
        };
        Self { own, allowed: config.allowed_origins.iter().filter_map(|origin| parse(origin)).collect(), development }
    }

    /// Whether a request with this `Origin` may connect.
    #[must_use]
    pub fn allows(&self, origin: Option<&str>) -> bool {
        let Some(origin) = origin else { return true };
        let Some(parsed) = parse(origin) else { return false };
        if self.allowed.contains(&parsed) {
            return true;
        }
        let (scheme, host, port) = parsed;
        // Plain HTTP is a trustworthy origin on this machine only.
        (scheme == "https" || self.development) && self.own.iter().any(|(own, ports)| *own == host && ports.contains(&port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses() -> Addresses {
        Addresses {
            tls: vec!["127.0.0.1:4433".parse().unwrap()],
            plain: vec!["127.0.0.1:8433".parse().unwrap()],
            ops: vec!["127.0.0.1:9433".parse().unwrap()],
        }
    }

    #[test]
    fn in_development_only_this_servers_pages_on_this_machine_connect() {
        let origins = Origins::new(&Config::default(), &addresses());
        for yes in [
            "http://localhost:8433",
            "https://localhost:4433",
            "http://127.0.0.1:8433",
            "http://[::1]:8433",
            "http://LOCALHOST:8433",
        ] {
            assert!(origins.allows(Some(yes)), "{yes}");
        }
        for no in [
            "http://localhost:9433",
            "http://localhost:3000",
            "http://localhost",
            "http://evil.example:8433",
            "http://localhost.evil.example:8433",
            "http://localhost:8433@evil.example",
            "http://evil@localhost:8433",
            "null",
            "file://",
            "",
            "localhost:8433",
        ] {
            assert!(!origins.allows(Some(no)), "{no}");
        }
        assert!(origins.allows(None), "clients that are no browsers send none");
    }

    #[test]
    fn a_deployment_accepts_its_names_and_those_that_it_lists() {
        let config = Config {
            public_names: vec!["chat.example".into(), "alt.example:8443".into()],
            allowed_origins: vec!["https://app.example".into(), "https://Staging.Example:444".into()],
            ..Config::default()
        };
        let origins = Origins::new(&config, &addresses());
        for yes in [
            "https://chat.example",
            "https://chat.example:4433",
            "https://alt.example:8443",
            "https://app.example",
            "https://app.example:443",
            "https://staging.example:444",
        ] {
            assert!(origins.allows(Some(yes)), "{yes}");
        }
        for no in [
            "http://chat.example",
            "https://chat.example:1",
            "https://alt.example",
            "http://app.example",
            "http://localhost:8433",
        ] {
            assert!(!origins.allows(Some(no)), "{no}");
        }
    }
}
