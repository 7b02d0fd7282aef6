//! `waxwing evidence` and `verify`: what a device can show others of a room, and what that proves.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use clap::Args;

use super::client::{ClientArgs, parse_link};
use crate::{
    client::{
        evidence::{self, Compared, Contradicted, Evidence, FILE_LEN_MAX, Finding, Quoted, Said, Strength},
        native,
        records::Who,
    },
    seal::link::Link,
};

/// Arguments of `waxwing evidence`.
#[derive(Debug, Args)]
pub(super) struct EvidenceArgs {
    /// A link of the room, of any time.
    #[arg(value_parser = parse_link)]
    link: Link,
    /// The file to make.
    file: PathBuf,
    #[command(flatten)]
    client: ClientArgs,
}

/// Arguments of `waxwing verify`. The exit code is 0 if everything that is in the files holds and, of two, the histories agree.
#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// A file that `waxwing evidence`, `/evidence` or the page has made.
    file: PathBuf,
    /// Another device's of the same room, to be compared with it.
    other: Option<PathBuf>,
}

/// Makes the file.
pub(super) fn evidence(args: &EvidenceArgs) -> anyhow::Result<()> {
    let profile = args.client.profile(&args.link.origin)?;
    let file = native::evidence(&profile, args.link.room)?.context("this profile has nothing of that room")?;
    super::print(format_args!("{}\n", save(&args.file, &file)?))?;
    Ok(())
}

/// Writes a file of evidence, never over another one, and says what is in it.
pub(super) fn save(path: &Path, file: &[u8]) -> anyhow::Result<String> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut out = options.open(path).with_context(|| format!("cannot make {}", path.display()))?;
    out.write_all(file)?;
    out.sync_all()?;
    let quoted = Evidence::decode(file)?.findings.iter().filter(|finding| finding.message().is_some()).count();
    let quotes = match quoted {
        0 => "it quotes no message".to_owned(),
        1 => "it quotes one message that contradicts, with what it says".to_owned(),
        more => format!("it quotes {more} messages that contradict, with what they say"),
    };
    Ok(format!("{} holds this device's hash chain of the room; {quotes}. Check it with: waxwing verify", path.display()))
}

fn read(path: &Path) -> anyhow::Result<Evidence> {
    let len = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len();
    if len > FILE_LEN_MAX as u64 {
        bail!("{} has {len} bytes: evidence has at most {FILE_LEN_MAX}", path.display());
    }
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Evidence::decode(&bytes).with_context(|| path.display().to_string())
}

/// Checks one file, or two.
pub(super) fn verify(args: &VerifyArgs) -> anyhow::Result<()> {
    let one = read(&args.file)?;
    let mut text = said(&args.file, &one);
    let mut holds = is_sound(&one);
    if let Some(path) = &args.other {
        let other = read(path)?;
        text.push_str(&said(path, &other));
        let (line, agrees) = compared(&one, &other);
        text.push_str(&line);
        holds &= is_sound(&other) && agrees;
    }
    super::print(&text)?;
    if holds { Ok(()) } else { bail!("not everything holds, or the histories differ: see above") }
}

fn is_sound(evidence: &Evidence) -> bool {
    evidence.findings.iter().all(|finding| evidence.strength(finding) != Strength::Unfounded)
}

fn person(evidence: &Evidence, who: Who) -> String {
    let words = who.user.words().join(" ");
    if evidence.is_of(who) {
        format!("{words} (person {}, device {})", who.user, who.device)
    } else {
        format!(
            "{words} (person {}, device {}; the file has no statement of that person that the device is theirs)",
            who.user, who.device
        )
    }
}

/// What a file says, and how far it holds.
fn said(path: &Path, evidence: &Evidence) -> String {
    let mut lines = vec![
        format!("{}: signed by its maker, unchanged", path.display()),
        format!("  maker   {}", person(evidence, evidence.by)),
        format!("  room    {}, life {} of its log", evidence.room, evidence.log),
        format!(
            "  chain   {} to {}, there {}",
            evidence.first,
            evidence.head(),
            evidence.chains.last().map_or_else(String::new, ToString::to_string)
        ),
    ];
    if let Some((number, authenticator)) = evidence.epoch {
        lines.push(format!("  epoch   {number}, authenticator {authenticator}"));
    }
    if evidence.findings.is_empty() {
        lines.push(
            "  Nothing contradicted what this device had. That proves nothing by itself: compare it with another device's file."
                .to_owned(),
        );
    }
    for finding in &evidence.findings {
        lines.push(format!("  * {}", words(evidence, finding)));
        lines.push(format!("    {}", meaning(evidence.strength(finding))));
    }
    lines.push(String::new());
    lines.join("\n")
}

fn words(evidence: &Evidence, finding: &Finding) -> String {
    let by = |quoted: &Quoted| person(evidence, quoted.message.sender);
    match finding {
        Finding::Seen(quoted) => {
            let seen = quoted.message.seen;
            let chain = evidence.chain_at(seen.seq).map_or_else(String::new, |chain| chain.to_string());
            format!(
                "message {}, signed by {}: it had seen chain value {} at {}, where this device has {chain}",
                quoted.at,
                by(quoted),
                seen.chain,
                seen.seq
            )
        }
        Finding::Ahead(quoted) => {
            format!(
                "message {}, signed by {}: it had seen the log up to {}, which comes behind it here",
                quoted.at,
                by(quoted),
                quoted.message.seen.seq
            )
        }
        Finding::Gap { before: Some(before), message } => format!(
            "messages {} and {}, signed by {}: they have the numbers {} and {} of one session, and the later one does not follow the earlier one",
            before.at,
            message.at,
            by(message),
            before.message.counter,
            message.message.counter
        ),
        Finding::Gap { before: None, message } => {
            format!(
                "message {}, signed by {}: it is number {} of its session, and this device has none before it",
                message.at,
                by(message),
                message.message.counter
            )
        }
        Finding::Foreign { at, digest } => {
            format!("record {at} (SHA-256 {digest}) was written there by no member, says this device")
        }
        Finding::Server(Contradicted { head, chain, said, .. }) => {
            let said = match said {
                Said::Chain { at, chain } => format!("that the chain value at {at} is {chain}"),
                Said::Next(next) => format!("that the next record that it has is {next}"),
                Said::Head(newest) => format!("that its newest record is {newest}"),
            };
            format!("the server said {said}, when this device had the log up to {head}, chain value {chain}")
        }
    }
}

const fn meaning(strength: Strength) -> &'static str {
    match strength {
        Strength::Signed => {
            "holds: that member's signed words contradict this device's copy. The server showed the two different histories, or one of them lies"
        }
        Strength::Told => "holds as this device's word: nobody else has signed it, a server signs nothing of what it shows",
        Strength::Unfounded => "DOES NOT HOLD: the file itself does not bear it out",
    }
}

/// The two files side by side, and whether they agree.
fn compared(one: &Evidence, other: &Evidence) -> (String, bool) {
    let (text, agrees) = match evidence::compare(one, other) {
        Compared::OtherRoom => ("The files are of different rooms.".to_owned(), false),
        Compared::OtherLife => (
            "The files are of different lives of the room's log: one of them was read before the log was replaced.".to_owned(),
            false,
        ),
        Compared::Apart => ("The files have no part of the history in common: nothing can be compared.".to_owned(), false),
        Compared::Same(to) => (format!("Both devices have the same history up to {to}."), true),
        Compared::Differ { first, since } => {
            let before = if since {
                format!("the same up to {}, and differ from {first} on", first - 1)
            } else {
                format!("different at {first}, where they begin to overlap")
            };
            let text = format!(
                "THE HISTORIES ARE {before}. Each device signed its own: whoever trusts both knows that the server showed them different histories."
            );
            (text, false)
        }
    };
    match evidence::is_split(one, other) {
        Some(true) => (
            format!("{text}\nTHE GROUP HAS SPLIT: both are in an epoch of the same number, with different authenticators.\n"),
            false,
        ),
        Some(false) => (format!("{text}\nBoth are in the same epoch of the same group.\n"), agrees),
        None => (format!("{text}\n"), agrees),
    }
}
