//! `waxwing link`: this fresh profile becomes a device of a person, by a code.

use anyhow::{Context as _, bail};
use clap::Args;

use super::client::{ClientArgs, refused};
use crate::client::view::{Command, ConnectionState, Event, Level};

/// Arguments of `waxwing link`.
#[derive(Debug, Args)]
pub(super) struct LinkArgs {
    /// The edge.
    #[arg(long, default_value = "http://localhost:8433", env = "WAXWING_CLIENT_EDGE")]
    edge: String,
    #[command(flatten)]
    client: ClientArgs,
}

/// Shows codes until one is taken.
pub(super) async fn run(args: &LinkArgs) -> anyhow::Result<()> {
    let mut handle = args.client.start_anonymous(args.edge.trim_end_matches('/'))?;
    let mut device = String::new();
    loop {
        let event = tokio::select! {
            event = handle.events.recv() => event.context("the client stopped")?,
            _ = tokio::signal::ctrl_c() => break,
        };
        match event {
            Event::Identity { identity: None } => handle.commands.send(Command::ShowCode).await.context("the client stopped")?,
            Event::Identity { identity: Some(identity) } => {
                super::print(format_args!(
                    "This profile is a device of {}. Open a room with its link, or wait there: your rooms come by themselves.\n",
                    identity.name
                ))?;
                break;
            }
            Event::DeviceCode { code, words, device: own, .. } => {
                device = own;
                super::print(format_args!(
                    "Give this code to a device of yours, within ten minutes: /adddevice in a chat, or \"Add a device\" in the page.\n\n{code}\n\n\
                 Before you agree there, compare these words: {}\n",
                    words.join(" ")
                ))?;
            }
            Event::Connection { state: ConnectionState::Refused, .. } => bail!(refused(&device)),
            Event::Connection { state: ConnectionState::Offline, detail: Some(detail), .. } => {
                super::complain(&format!("waiting for the edge: {detail}"));
            }
            Event::Notice { level: Level::Alarm, text, .. } => bail!(text),
            Event::Notice { level: Level::Warn, text, .. } => super::complain(&text),
            _ => {}
        }
    }
    Ok(handle.stop().await?)
}
