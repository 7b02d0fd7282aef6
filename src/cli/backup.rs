//! `waxwing export`, `import` and `whoami`: the person at this profile.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    path::PathBuf,
};

use anyhow::Context as _;

use super::{
    client::ClientArgs,
    secret::{self, Passphrase},
};
use crate::client::native;

/// Arguments of both.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The file. The passphrase is read from WAXWING_CLIENT_PASSPHRASE, or else from standard input.
    file: PathBuf,
    /// The edge whose identity it is.
    #[arg(long, default_value = "http://localhost:8433", env = "WAXWING_CLIENT_EDGE")]
    edge: String,
    #[command(flatten)]
    client: ClientArgs,
}

/// The file's passphrase, if the environment has it.
fn given() -> Option<Passphrase> {
    secret::in_environment("WAXWING_CLIENT_PASSPHRASE")
}

/// Writes the file; never over another one.
pub(super) fn export(args: &Args) -> anyhow::Result<()> {
    let profile = args.client.profile(&args.edge)?;
    let passphrase = given().map_or_else(|| secret::chosen("new passphrase of the file"), secret::strong)?;
    let bytes = native::export(&profile, &passphrase)?;
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&args.file).with_context(|| format!("cannot make {}", args.file.display()))?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    super::print(format_args!(
        "{} holds your identity and your rooms. Keep the passphrase apart from it.\n",
        args.file.display()
    ))?;
    Ok(())
}

/// Reads the file into a fresh profile.
pub(super) fn import(args: &Args) -> anyhow::Result<()> {
    let bytes = fs::read(&args.file).with_context(|| format!("cannot read {}", args.file.display()))?;
    let profile = args.client.profile(&args.edge)?;
    let passphrase = given().map_or_else(|| secret::asked("passphrase of the file"), Ok)?;
    native::import(&profile, &args.edge, &bytes, &passphrase)?;
    super::print(
        "This profile is now a device of that person. Open a room with its link, or wait: your rooms come by themselves.\n",
    )?;
    Ok(())
}

/// Arguments of `waxwing whoami`.
#[derive(Debug, clap::Args)]
pub(super) struct WhoamiArgs {
    /// The edge whose identity it is.
    #[arg(long, default_value = "http://localhost:8433", env = "WAXWING_CLIENT_EDGE")]
    edge: String,
    #[command(flatten)]
    client: ClientArgs,
}

/// Prints the identity.
pub(super) fn whoami(args: &WhoamiArgs) -> anyhow::Result<()> {
    let identity =
        native::identity(&args.client.profile(&args.edge)?, args.edge.trim_end_matches('/'), &args.client.first_name())?;
    super::print(format_args!(
        "name    {}\nwords   {}\nperson  {}\ndevice  {}\ncard    {}\n",
        identity.name,
        identity.words.join(" "),
        identity.user,
        identity.device,
        identity.card
    ))?;
    for other in identity.devices.iter().filter(|device| !device.this) {
        super::print(format_args!("and     {}\n", other.device))?;
    }
    Ok(())
}
