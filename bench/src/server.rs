//! A Waxwing server in a process of its own: this program again, as `serve`.

use std::{env, fs, io::Write as _, path::Path, process::Command, sync::Arc};

use anyhow::Context as _;
use clap::Args;
use waxwing::{config, server};

/// Arguments of the server's process.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// Settings, as in `waxwing.toml`: `key=value`.
    settings: Vec<String>,
}

/// Serves until it is killed.
pub fn serve(args: &ServeArgs) -> anyhow::Result<()> {
    let pair = |text: &String| text.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
    let flags = args.settings.iter().map(pair).collect::<Option<Vec<_>>>().context("settings are key=value")?;
    let config = config::load(&config::Sources { flags, ..config::Sources::default() })?.config;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let running = server::start(config).await?;
        println!("Without TLS {}", running.addresses().plain.first().context("no listener")?);
        std::io::stdout().flush()?;
        std::future::pending::<()>().await;
        Ok(())
    })
}

/// What starts a server with its files in `dir`, with limits that do not stop a measurement.
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
