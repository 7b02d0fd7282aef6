//! A Waxwing server in a process of its own: this program again, as `serve`.

use std::{
    env, fs,
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use clap::Args;
use waxwing::{config, server};

use crate::{count, meter};

/// Arguments of the server's process.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// Settings, as in `waxwing.toml`: `key=value`.
    settings: Vec<String>,
    /// Counts syncs in this file, for whoever measures.
    #[arg(long, value_name = "FILE")]
    count: Option<PathBuf>,
    /// Counts allocations there too.
    #[arg(long, requires = "count")]
    count_allocations: bool,
    /// Syncs return at once: shows what durability costs.
    #[arg(long)]
    no_sync: bool,
}

/// Serves until it is killed.
pub fn serve(args: &ServeArgs) -> anyhow::Result<()> {
    meter::raise_file_limit();
    let pair = |text: &String| text.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
    let flags = args.settings.iter().map(pair).collect::<Option<Vec<_>>>().context("settings are key=value")?;
    let config = config::load(&config::Sources { flags, ..config::Sources::default() })?.config;
    if let Some(path) = &args.count {
        count::share(path, args.count_allocations)?;
    }
    if args.no_sync {
        count::skip_syncs();
    }
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let running = server::start(config).await?;
        let addresses = running.addresses();
        let first = |list: &[SocketAddr]| list.first().copied().context("no listener");
        println!("TLS and QUIC {}", first(&addresses.tls)?);
        println!("Health, metrics {}", first(&addresses.ops)?);
        // Whoever starts it waits for this line: the last.
        println!("Without TLS {}", first(&addresses.plain)?);
        std::io::stdout().flush()?;
        loop {
            count::set_tasks(tokio::runtime::Handle::current().metrics().num_alive_tasks());
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    })
}

/// What starts a server with its files in `dir`, with limits that do not stop a measurement. `more` are settings and flags.
pub fn command(dir: &Path, more: &[&str]) -> anyhow::Result<Arc<dyn Fn() -> Command + Send + Sync>> {
    fs::create_dir_all(dir)?;
    let (program, dir) = (env::current_exe()?, fs::canonicalize(dir)?);
    let more: Vec<String> = more.iter().map(ToString::to_string).collect();
    Ok(Arc::new(move || {
        let mut command = Command::new(&program);
        command.arg("serve").current_dir(&dir).args([
            "listen=127.0.0.1:0",
            "listen_plain=127.0.0.1:0",
            "listen_ops=127.0.0.1:0",
            "data=data",
            "certs_dir=certs",
            "limits.publishes_per_second_max=1000000",
            "limits.publish_burst_max=1000000",
        ]);
        command.args(&more);
        command
    }))
}
