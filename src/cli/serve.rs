//! `waxwing serve`: start, say where, stop in order.

use std::{
    env, fmt,
    io::{self, IsTerminal},
    path::{Path, absolute},
};

use anyhow::Context;
use tracing_subscriber::EnvFilter;

use super::Settings;
use crate::{
    config::{Config, LogFormat},
    server::{self, Addresses, Running, StartError, certificate},
};

/// Serves until the process is told to stop.
pub(super) fn run(settings: &Settings) -> anyhow::Result<()> {
    let config = settings.load()?.config;
    log(&config)?;
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    runtime.block_on(serve(config))
}

fn log(config: &Config) -> anyhow::Result<()> {
    let filter = EnvFilter::builder().parse(&config.log_level).context("log_level")?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let set = match config.log_format {
        LogFormat::Human => builder.with_ansi(io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    set.map_err(|error| anyhow::anyhow!("cannot log: {error}"))
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let running = server::start(config).await.map_err(explain)?;
    super::print(banner(&running))?;
    signals.next().await;
    super::print("\n  Stopping. Ctrl-C again ends at once.\n")?;
    tokio::select! {
        () = running.shutdown() => Ok(()),
        () = signals.next() => {
            tracing::warn!("stopped without waiting");
            std::process::exit(130);
        }
    }
}

fn explain(error: StartError) -> anyhow::Error {
    let in_use = matches!(&error, StartError::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse);
    let error = anyhow::Error::from(error);
    if in_use { error.context("is another Waxwing running? Stop it, or choose other addresses") } else { error }
}

/// Ctrl-C, and on Unix SIGTERM.
struct Signals {
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    #[cfg(unix)]
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    #[cfg(not(unix))]
    fn new() -> io::Result<Self> {
        Ok(Self {})
    }

    #[cfg(unix)]
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    #[cfg(not(unix))]
    async fn next(&mut self) {
        // Without a way to hear Ctrl-C the process is ended from outside.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// What a person who has just started the server needs to know.
struct Banner {
    development: bool,
    open: Option<String>,
    chat: &'static str,
    data: String,
    certificate: String,
    addresses: Addresses,
}

fn show(path: &Path) -> String {
    absolute(path).unwrap_or_else(|_| path.into()).display().to_string()
}

fn banner(running: &Running) -> Banner {
    let shared = running.shared();
    let (config, addresses) = (&shared.config, running.addresses());
    let development = config.is_development();
    let tls_port = addresses.tls.first().map(std::net::SocketAddr::port);
    let open = match (config.public_names.first(), addresses.plain.first()) {
        (Some(name), _) if name.contains(':') => Some(format!("https://{name}/")),
        (Some(name), _) => Some(
            tls_port
                .filter(|port| *port != 443)
                .map_or_else(|| format!("https://{name}/"), |port| format!("https://{name}:{port}/")),
        ),
        (None, Some(plain)) => Some(format!("http://localhost:{}/", plain.port())),
        (None, None) => tls_port.map(|port| format!("https://localhost:{port}/")),
    };
    let by_cargo = development && env::var_os("CARGO").is_some();
    Banner {
        development,
        open,
        chat: if by_cargo { "cargo run --release -- chat '<room link>'" } else { "waxwing chat '<room link>'" },
        data: show(&config.data),
        certificate: show(&config.cert.clone().unwrap_or_else(|| certificate::cert_path(&config.certs_dir))),
        addresses: addresses.clone(),
    }
}

impl fmt::Display for Banner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |addresses: &[std::net::SocketAddr]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        writeln!(f, "\n  Waxwing {}\n", env!("CARGO_PKG_VERSION"))?;
        if self.development {
            writeln!(f, "  Development mode: only this machine can connect, and anybody on it may log in.\n")?;
        }
        if let Some(open) = &self.open {
            writeln!(f, "  Open in a browser   {open}")?;
        }
        writeln!(f, "  From a terminal     {}", self.chat)?;
        writeln!(f, "  Data                {}", self.data)?;
        writeln!(f, "  Certificate         {}", self.certificate)?;
        for (name, addresses) in [
            ("TLS and QUIC", &self.addresses.tls),
            ("Without TLS", &self.addresses.plain),
            ("Health, metrics", &self.addresses.ops),
        ] {
            if !addresses.is_empty() {
                writeln!(f, "  {name:<18}  {}", list(addresses))?;
            }
        }
        writeln!(f, "\n  Ctrl-C stops.\n")
    }
}
