//! What single values cannot show: unsafe or contradictory combinations.

use super::{Auth, Config, ConfigError, Effective};

/// Everything that is wrong.
pub(super) fn check(effective: &Effective) -> Vec<ConfigError> {
    let mut check = Check { effective, errors: Vec::new() };
    check.exposure();
    check.tls();
    check.names();
    check.auth();
    check.limits();
    check.store();
    check.errors
}

struct Check<'a> {
    effective: &'a Effective,
    errors: Vec<ConfigError>,
}

impl Check<'_> {
    const fn config(&self) -> &Config {
        &self.effective.config
    }

    fn refuse(&mut self, key: &str, value: &(impl ToString + ?Sized), allowed: impl Into<String>) {
        let origin = self.effective.origin(key);
        self.errors.push(ConfigError::Invalid { key: key.into(), value: value.to_string(), origin, allowed: allowed.into() });
    }

    /// What makes this server reachable from other machines, in words.
    fn exposed(&self) -> Option<String> {
        let config = self.config();
        let open = config.listeners().find(|(_, address)| !address.ip().to_canonical().is_loopback());
        open.map(|(key, address)| format!("{key} = {address}"))
            .or_else(|| config.public_names.first().map(|name| format!("public_names = {name}")))
    }

    fn exposure(&mut self) {
        if self.config().listen.is_empty() && self.config().listen_plain.is_empty() {
            self.refuse("listen", "[]", "at least one address in listen or listen_plain");
        }
        if !self.config().listen_plain_anywhere {
            for address in self.config().listen_plain.clone() {
                if !address.ip().to_canonical().is_loopback() {
                    self.refuse(
                        "listen_plain",
                        &address,
                        "without TLS only loopback addresses are served; set listen_plain_anywhere = true if a proxy in front adds TLS",
                    );
                }
            }
        }
        let Some(exposed) = self.exposed() else { return };
        if self.config().auth.is_none() {
            self.refuse(
                "auth",
                "(not set)",
                format!("{exposed} lets other machines in: set auth = \"open\" (any device may log in) or auth = \"token\""),
            );
        }
        if self.config().public_names.is_empty() {
            self.refuse(
                "public_names",
                "[]",
                format!("{exposed} lets other machines in: set the names that clients dial, such as [\"chat.example\"]"),
            );
        }
    }

    fn tls(&mut self) {
        let config = self.config();
        let reachable = config.listen.iter().copied().find(|address| !address.ip().to_canonical().is_loopback());
        match (&config.cert, &config.key, reachable) {
            (Some(_), None, _) => self.refuse("key", "(not set)", "cert is set: set key to the PEM file of its private key"),
            (None, Some(_), _) => self.refuse("cert", "(not set)", "key is set: set cert to the PEM file of the certificate"),
            (None, None, Some(address)) => self.refuse(
                "cert",
                "(not set)",
                format!("listen = {address} is reachable from other machines: set cert and key to PEM files"),
            ),
            _ => {}
        }
    }

    fn names(&mut self) {
        for name in self.config().public_names.clone() {
            if !is_authority(&name) {
                self.refuse("public_names", &name, "names such as \"chat.example\" or \"chat.example:8443\", without a scheme");
            }
        }
        if let Some(name) = self.config().public_quic.clone()
            && !(is_authority(&name) && name.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()))
        {
            self.refuse("public_quic", &name, "a name and a port, such as \"chat.example:4433\"");
        }
        for origin in self.config().allowed_origins.clone() {
            let authority = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
            if !authority.is_some_and(is_authority) {
                self.refuse("allowed_origins", &origin, "origins such as \"https://app.example\", without a path");
            }
        }
    }

    fn auth(&mut self) {
        const LEAST: usize = 32;
        let config = self.config();
        if config.auth != Some(Auth::Token) {
            return;
        }
        match (&config.token_secret, &config.token_secret_file) {
            (None, None) => {
                self.refuse("token_secret", "(not set)", "auth = \"token\" needs token_secret or token_secret_file");
            }
            (Some(_), Some(_)) => self.refuse("token_secret_file", "(set)", "only one of token_secret and token_secret_file"),
            (Some(secret), None) if secret.0.len() < LEAST => {
                self.refuse("token_secret", "(not shown)", "text of at least 32 bytes, random");
            }
            _ => {}
        }
    }

    fn store(&mut self) {
        let store = self.config().store;
        if store.commit_wait_us > 2000 {
            self.refuse("store.commit_wait_us", &store.commit_wait_us, "a whole number of microseconds from 0 to 2000");
        }
        for (key, value, least) in [
            ("store.cache_bytes", store.cache_bytes, 1 << 20),
            ("store.wal_bytes_max", store.wal_bytes_max, 32 << 20),
            ("store.apply_bytes", store.apply_bytes, 1 << 20),
        ] {
            if value < least {
                self.refuse(key, &value, format!("at least {least}"));
            }
        }
        if store.apply_bytes > store.wal_bytes_max / 2 {
            let most = store.wal_bytes_max / 2;
            self.refuse("store.apply_bytes", &store.apply_bytes, format!("at most half of store.wal_bytes_max, which is {most}"));
        }
    }

    fn limits(&mut self) {
        let config = self.config();
        let limits = config.limits.clone();
        let shards = config.shards;
        if shards > 64 {
            self.refuse("shards", &shards, "a whole number from 0 (one for each core) to 64");
        }
        for (key, bytes) in
            [("limits.envelope_bytes_max", limits.envelope_bytes_max), ("limits.handshake_bytes_max", limits.handshake_bytes_max)]
        {
            let least = bytes.saturating_add(1024);
            if limits.frame_bytes_max < least {
                self.refuse("limits.frame_bytes_max", &limits.frame_bytes_max, format!("at least {key} + 1024 = {least}"));
            }
        }
        for (key, value, most) in [
            ("limits.envelope_bytes_max", limits.envelope_bytes_max, 3 << 20),
            ("limits.handshake_bytes_max", limits.handshake_bytes_max, 3 << 20),
            ("limits.key_package_bytes_max", limits.key_package_bytes_max, 2 << 20),
            ("limits.page_bytes_max", limits.page_bytes_max, 3 << 20),
            ("limits.frame_bytes_max", limits.frame_bytes_max, 4 << 20),
            ("limits.unauthenticated_bytes_max", limits.unauthenticated_bytes_max, 64 << 10),
        ] {
            if value > most {
                self.refuse(key, &value, format!("at most {most}"));
            }
        }
        for (key, value, least) in [
            ("limits.unauthenticated_bytes_max", limits.unauthenticated_bytes_max, 1024),
            ("limits.envelope_bytes_max", limits.envelope_bytes_max, 2048),
            ("limits.handshake_bytes_max", limits.handshake_bytes_max, 2048),
            ("limits.handshake_timeout_ms", limits.handshake_timeout_ms, 100),
            ("limits.idle_timeout_ms", limits.idle_timeout_ms, 1000),
        ] {
            if value < least {
                self.refuse(key, &value, format!("at least {least}"));
            }
        }
    }
}

/// Whether text is a host, or a host and a port, and nothing else.
fn is_authority(text: &str) -> bool {
    text.parse::<hyper::http::uri::Authority>()
        .is_ok_and(|authority| !authority.as_str().contains('@') && !authority.host().is_empty())
}
