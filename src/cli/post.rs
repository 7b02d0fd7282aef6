//! `waxwing post`: somebody who is no member says something in a room, through its drop-box.

use std::{
    fs,
    io::{self, IsTerminal as _, Read as _, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Args;

use super::client::{TrustArgs, home};
use crate::{
    client::native,
    core::{
        chain,
        dropbox::{ANNOUNCEMENT_LEN_MAX, PATH},
    },
    seal::{
        body::{Content, Message, TEXT_LEN_MAX, tidy},
        dropbox::{Address, Announcement, AnnouncementError, PostBody, post},
    },
    transport::{
        ConnectError,
        http::{Answer, request},
    },
};

/// Bytes of an answer to a post at most.
const ANSWER_MAX: usize = 4096;
/// How often a post is tried.
const ATTEMPTS: u32 = 6;
/// The longest that is waited before the next time.
const WAIT_MAX: u32 = 30;

/// Arguments of `waxwing post`.
#[derive(Debug, Args)]
pub(super) struct PostArgs {
    /// The drop-box's address, as `/dropbox` prints it; or @FILE, a file that holds it: others on the machine may see arguments.
    address: String,
    /// What to say [default: all of standard input is one post].
    text: Vec<String>,
    /// What to be called. The room shows it as somebody who is not a member.
    #[arg(long, default_value = "")]
    name: String,
    #[command(flatten)]
    trust: TrustArgs,
}

/// Posts, and ends when the post is on the server's disk.
pub(super) async fn run(args: &PostArgs) -> anyhow::Result<()> {
    let address: Address = match args.address.strip_prefix('@') {
        Some(file) => fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?.parse()?,
        None => args.address.parse()?,
    };
    let text = text(&args.text)?;
    let body = PostBody { name: tidy(&args.name), content: Content::new(&Message::Text(text)) };
    let pin = Pin::of(&address)?;
    let mut rng = native::random();
    let mut sealed = None;
    let mut trouble = None;
    for attempt in 1..=ATTEMPTS {
        // What was not refused may be stored: only the same bytes may be sent again.
        let bytes = match &sealed {
            Some(bytes) => bytes,
            None => {
                let announcement = fetch(&address, args, &pin).await?;
                let (proof, envelope) = post(&address, &announcement, &body, &mut rng)?;
                sealed.insert([&proof.to_bytes()[..], &envelope].concat())
            }
        };
        let path = format!("{PATH}{}", address.room);
        let answer = request(&address.origin, &args.trust.trust(), &path, Some(bytes.clone().into()), ANSWER_MAX).await;
        let wait = match answer {
            Ok(Answer { status: 200, body, .. }) => {
                return Ok(super::print(format_args!("{}\n", seq(&body).context("the server's answer is not understood")?))?);
            }
            Ok(Answer { status, retry_after, body }) => {
                let why = said(&body).unwrap_or_else(|| format!("HTTP status {status}"));
                if !matches!(status, 409 | 429 | 503) {
                    bail!("not posted: {why}");
                }
                if status == 409 {
                    sealed = None;
                }
                trouble = Some(why);
                retry_after.unwrap_or(1).min(WAIT_MAX)
            }
            Err(error @ (ConnectError::Insecure(_) | ConnectError::Origin(_))) => return Err(error.into()),
            Err(error) => {
                trouble = Some(error.to_string());
                1 << attempt.min(4)
            }
        };
        if attempt < ATTEMPTS {
            super::complain(&format!("{}; trying again in {wait} s", trouble.as_deref().unwrap_or_default()));
            tokio::time::sleep(Duration::from_secs(wait.into())).await;
        }
    }
    bail!("not known to be posted: {}", trouble.unwrap_or_default())
}

fn text(given: &[String]) -> anyhow::Result<String> {
    let text = match given {
        [] => read_all()?,
        [dash] if dash == "-" => read_all()?,
        words => words.join(" "),
    };
    let text = text.trim_end();
    if text.is_empty() {
        bail!("there is nothing to post");
    }
    if text.len() > TEXT_LEN_MAX {
        bail!("a post of {} bytes is too long: {TEXT_LEN_MAX} fit", text.len());
    }
    Ok(text.to_owned())
}

fn read_all() -> anyhow::Result<String> {
    if io::stdin().is_terminal() {
        super::complain("what you type is one post; Ctrl-D ends it");
    }
    let mut text = String::new();
    io::stdin().lock().take(TEXT_LEN_MAX as u64 + 2).read_to_string(&mut text).context("standard input is no text")?;
    Ok(text)
}

/// The newest announcement, if it is to be used.
async fn fetch(address: &Address, args: &PostArgs, pin: &Pin) -> anyhow::Result<Announcement> {
    let path = format!("{PATH}{}", address.room);
    let answer = request(&address.origin, &args.trust.trust(), &path, None, ANNOUNCEMENT_LEN_MAX).await?;
    if answer.status != 200 {
        bail!("not posted: {}", said(&answer.body).unwrap_or_else(|| format!("HTTP status {}", answer.status)));
    }
    let announcement = Announcement::verify(&answer.body, address, pin.known, native::now_ms());
    let announcement = announcement.map_err(|error: AnnouncementError| anyhow::anyhow!("not posted: {error}"))?;
    pin.keep(announcement.counter)?;
    Ok(announcement)
}

/// A field of the server's answer, which must not steer a terminal.
fn field(body: &[u8], name: &str) -> Option<serde_json::Value> {
    serde_json::from_slice::<serde_json::Value>(body).ok()?.get(name).cloned()
}

fn said(body: &[u8]) -> Option<String> {
    Some(tidy(field(body, "message")?.as_str()?)).filter(|said| !said.is_empty())
}

fn seq(body: &[u8]) -> Option<u64> {
    field(body, "seq")?.as_u64()
}

/// The highest counter that was seen for an address: a server that gives an older announcement is found out.
struct Pin {
    file: PathBuf,
    known: u64,
}

impl Pin {
    fn of(address: &Address) -> anyhow::Result<Self> {
        let hash = chain::digest(&[&address.room.0[..], &address.host.0, &chain::digest(&address.secret).0].concat());
        Self::at(&home()?.join("posting"), &hash.to_string())
    }

    fn at(dir: &Path, name: &str) -> anyhow::Result<Self> {
        let file = dir.join(name);
        let known = match fs::read_to_string(&file) {
            Ok(text) => text.trim().parse().with_context(|| format!("{} is damaged", file.display()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
        };
        Ok(Self { file, known })
    }

    /// Remembers a counter.
    fn keep(&self, counter: u64) -> anyhow::Result<()> {
        if counter <= self.known {
            return Ok(());
        }
        let write = || -> io::Result<()> {
            let dir = self.file.parent().unwrap_or_else(|| Path::new("."));
            fs::create_dir_all(dir)?;
            let mut next = tempfile(dir, &self.file)?;
            writeln!(next.1, "{counter}")?;
            next.1.sync_all()?;
            fs::rename(next.0, &self.file)
        };
        write().with_context(|| format!("cannot write {}", self.file.display()))
    }
}

/// A new file beside another one, of this process's own.
fn tempfile(dir: &Path, beside: &Path) -> io::Result<(PathBuf, fs::File)> {
    let name = beside.file_name().unwrap_or_default().to_string_lossy();
    let path = dir.join(format!("{name}.{}", std::process::id()));
    Ok((path.clone(), fs::File::create(path)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_kept_and_only_grows() {
        let dir = ::tempfile::tempdir().unwrap();
        let pin = || Pin::at(&dir.path().join("posting"), "address").unwrap();
        assert_eq!(pin().known, 0);
        pin().keep(7).unwrap();
        assert_eq!(pin().known, 7);
        pin().keep(3).unwrap();
        assert_eq!(pin().known, 7);
        fs::write(dir.path().join("posting/address"), "seven").unwrap();
        assert!(Pin::at(&dir.path().join("posting"), "address").is_err(), "what cannot be read is not taken for nothing");
    }
}
