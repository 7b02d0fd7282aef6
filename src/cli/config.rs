//! `waxwing config`.

use super::Settings;

/// Prints the configuration in effect.
pub(super) fn run(settings: &Settings) -> anyhow::Result<()> {
    Ok(super::print(settings.load()?)?)
}
