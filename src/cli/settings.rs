//! The flags that every subcommand of the server takes, and how they become a configuration.

use std::{env, fs, io, path::PathBuf};

use anyhow::{Context, bail};

use crate::config::{Effective, Sources, load};

/// Configuration. Flags win over environment variables (WAXWING_…, .env), which win over the file.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct Settings {
    /// Configuration file [default: waxwing.toml, if there is one].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Addresses of TLS and QUIC.
    #[arg(long, value_name = "ADDRESS,…")]
    listen: Option<String>,
    /// Addresses without TLS: loopback, for a browser here or a proxy.
    #[arg(long, value_name = "ADDRESS,…")]
    listen_plain: Option<String>,
    /// Allows --listen-plain on addresses that other machines reach.
    #[arg(long)]
    listen_plain_anywhere: bool,
    /// Addresses of health and metrics.
    #[arg(long, value_name = "ADDRESS,…")]
    listen_ops: Option<String>,
    /// Directory of the store.
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// Directory of the development certificate.
    #[arg(long, value_name = "DIR")]
    certs_dir: Option<String>,
    /// PEM file of the certificate chain.
    #[arg(long, value_name = "FILE")]
    cert: Option<String>,
    /// PEM file of its key.
    #[arg(long, value_name = "FILE")]
    key: Option<String>,
    /// Names that clients dial.
    #[arg(long, value_name = "NAME,…")]
    public_names: Option<String>,
    /// Other pages that may connect.
    #[arg(long, value_name = "ORIGIN,…")]
    allowed_origins: Option<String>,
    /// Proxies whose X-Forwarded-For is believed.
    #[arg(long, value_name = "ADDRESS,…")]
    trusted_proxies: Option<String>,
    /// Who may log in: open or token.
    #[arg(long, value_name = "MODE")]
    auth: Option<String>,
    /// human or json.
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// What is logged.
    #[arg(long, value_name = "FILTER")]
    log_level: Option<String>,
    /// Any other key, such as --set limits.room_bytes_max=1000000. May be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl Settings {
    /// The configuration from all layers.
    pub(super) fn load(&self) -> anyhow::Result<Effective> {
        let sources = Sources {
            file: self.file()?,
            dot_env: dot_env()?,
            environment: env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect(),
            flags: self.flags()?,
        };
        load(&sources).map_err(|errors| anyhow::anyhow!("the configuration is not accepted:\n  {errors}"))
    }

    fn file(&self) -> anyhow::Result<Option<(PathBuf, String)>> {
        let named = self.config.clone().or_else(|| env::var_os("WAXWING_CONFIG").map(PathBuf::from));
        let path = named.clone().unwrap_or_else(|| "waxwing.toml".into());
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some((path, text))),
            Err(error) if error.kind() == io::ErrorKind::NotFound && named.is_none() => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    fn flags(&self) -> anyhow::Result<Vec<(String, String)>> {
        let given = [
            ("listen", &self.listen),
            ("listen_plain", &self.listen_plain),
            ("listen_ops", &self.listen_ops),
            ("data", &self.data),
            ("certs_dir", &self.certs_dir),
            ("cert", &self.cert),
            ("key", &self.key),
            ("public_names", &self.public_names),
            ("allowed_origins", &self.allowed_origins),
            ("trusted_proxies", &self.trusted_proxies),
            ("auth", &self.auth),
            ("log_format", &self.log_format),
            ("log_level", &self.log_level),
        ];
        let given = given.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value.clone()?)));
        let mut flags: Vec<_> = given.collect();
        if self.listen_plain_anywhere {
            flags.push(("listen_plain_anywhere".into(), "true".into()));
        }
        for pair in &self.set {
            match pair.split_once('=') {
                Some((key, value)) => flags.push((key.trim().to_owned(), value.to_owned())),
                None => bail!("--set {pair}: must look like KEY=VALUE"),
            }
        }
        Ok(flags)
    }
}

/// The variables of `./.env`.
fn dot_env() -> anyhow::Result<Vec<(String, String)>> {
    match dotenvy::from_path_iter(".env") {
        Ok(variables) => variables.collect::<Result<_, _>>().context("cannot read .env"),
        Err(dotenvy::Error::Io(error)) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).context("cannot read .env"),
    }
}
