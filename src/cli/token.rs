//! `waxwing token`.

use anyhow::{Context, bail};

use super::Settings;
use crate::{
    core::id::DeviceKey,
    server::{auth, clock},
};

/// What `waxwing token` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The device's key, as the client shows it.
    #[arg(long, value_name = "KEY", allow_hyphen_values = true)]
    device: DeviceKey,
    /// How long the token opens: a number and s, m, h or d.
    #[arg(long, value_name = "TIME", default_value = "1h")]
    ttl: String,
    #[command(flatten)]
    settings: Settings,
}

/// Prints a token.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let secret = auth::secret(&args.settings.load()?.config)?;
    let expiry = clock::unix_seconds().saturating_add(seconds(&args.ttl)?);
    Ok(super::print(format_args!("{}\n", auth::mint(&secret, &args.device, expiry)))?)
}

fn seconds(text: &str) -> anyhow::Result<u64> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        _ => bail!("--ttl {text}: must be a number and s, m, h or d, such as 90m"),
    };
    let number: u64 = number.parse().with_context(|| format!("--ttl {text}: must begin with a number"))?;
    number.checked_mul(factor).with_context(|| format!("--ttl {text}: too long"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_may_begin_with_a_dash() {
        #[derive(Debug, clap::Parser)]
        struct Command {
            #[command(flatten)]
            args: Args,
        }
        let key = DeviceKey([0xfb; 32]).to_string();
        assert!(key.starts_with('-'));
        let parsed = <Command as clap::Parser>::try_parse_from(["token", "--device", &key]).unwrap();
        assert_eq!(parsed.args.device, DeviceKey([0xfb; 32]));
    }

    #[test]
    fn durations_have_a_number_and_a_unit() {
        assert_eq!(seconds("90s").unwrap(), 90);
        assert_eq!(seconds("2d").unwrap(), 172_800);
        for bad in ["", "h", "1", "1w", "-1h", "1.5h", "99999999999999999999d", "9999999999999999999d"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
