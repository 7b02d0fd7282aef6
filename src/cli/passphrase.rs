//! `waxwing passphrase`: protects a profile, changes what protects it, or takes that away.

use std::path::PathBuf;

use super::{client::ClientArgs, secret};
use crate::client::native::store::{change_passphrase, is_locked};

/// Arguments of `waxwing passphrase`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// File with the new passphrase [default: it is asked for].
    #[arg(long, value_name = "FILE", conflicts_with = "remove")]
    new_file: Option<PathBuf>,
    /// Keeps the profile without one from now on.
    #[arg(long)]
    remove: bool,
    /// The edge whose identity it is.
    #[arg(long, default_value = "http://localhost:8433", env = "WAXWING_CLIENT_EDGE")]
    edge: String,
    #[command(flatten)]
    client: ClientArgs,
}

/// Changes it.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let mut profile = args.client.profile(&args.edge)?;
    if !is_locked(&profile.path)? {
        // What the environment has for others opens nothing here.
        profile.passphrase = None;
    }
    let new = match &args.new_file {
        _ if args.remove => None,
        Some(file) => Some(secret::strong(secret::in_file(file)?)?),
        None => Some(secret::chosen("new passphrase of this profile")?),
    };
    change_passphrase(&profile, new)?;
    let said = if args.remove {
        "The profile has no passphrase any more: who reads its file has your keys.\n"
    } else {
        "The profile opens with that passphrase only. Who loses it loses the profile, unless it was exported.\n"
    };
    Ok(super::print(said)?)
}
