//! `waxwing backup`, `restore`, `store check` and `store compact`: looking after what the server keeps.
//!
//! What was done goes to stdout, one `name  value` a line; how far it is goes to stderr.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _, Write as _},
    ops::ControlFlow,
    path::{Path, PathBuf, absolute},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use super::Settings;
use crate::{
    config::Config,
    engine::embedded::{
        self, EmbeddedEngine, OpenError,
        ops::{self, Error, Manifest, Progress},
    },
    server::{
        clock,
        service::{STORE, store_settings},
    },
};

/// Arguments of `waxwing backup`.
#[derive(Debug, clap::Args)]
pub(super) struct BackupArgs {
    /// The directory to write: new, or empty.
    directory: PathBuf,
    #[command(flatten)]
    settings: Settings,
}

/// Arguments of `waxwing restore`.
#[derive(Debug, clap::Args)]
pub(super) struct RestoreArgs {
    /// The backup.
    directory: PathBuf,
    /// Only check it; nothing is written.
    #[arg(long)]
    verify: bool,
    #[command(flatten)]
    settings: Settings,
}

/// What can be done with a store that no server has open.
#[derive(Debug, clap::Subcommand)]
pub(super) enum StoreCommand {
    /// Checks everything in it: structure, checksums, hash chains, write-ahead log. Changes nothing.
    Check(Settings),
    /// Gives disk back that it does not need any more.
    Compact(Settings),
}

/// Runs one of them.
pub(super) fn run(command: &StoreCommand) -> anyhow::Result<()> {
    match command {
        StoreCommand::Check(settings) => check(&settings.load()?.config),
        StoreCommand::Compact(settings) => compact(&settings.load()?.config),
    }
}

/// Asks the server that runs for a backup, or makes it itself when none does.
#[cfg(unix)]
pub(super) async fn backup(args: &BackupArgs) -> anyhow::Result<()> {
    let config = args.settings.load()?.config;
    let directory = absolute(&args.directory).context("the backup's directory")?;
    let mut bar = Bar::new();
    let (manifest, left_out) = match crate::server::control::connect(&config.data).await {
        Ok(stream) => ask(stream, &directory, &mut bar).await?,
        // Where a path is too long for a socket, no server could bind it; if one runs, the store is locked.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::InvalidInput
            ) =>
        {
            tokio::task::block_in_place(|| backup_here(&config, &directory, &mut bar))?
        }
        Err(error) => {
            let socket = config.data.join(crate::server::control::SOCKET);
            return Err(error).with_context(|| format!("cannot reach the server at {}", socket.display()));
        }
    };
    bar.end();
    let mut text = format!("backup    {}\n", directory.display());
    describe(&manifest, &mut text);
    super::print(text)?;
    if left_out.is_empty() {
        return Ok(());
    }
    for (room, why) in &left_out {
        super::complain(&format!("room {room} is damaged and not in the backup: {why}"));
    }
    bail!("{} damaged rooms are not in the backup; the others are", left_out.len())
}

/// A backup's manifest, and the rooms that are not in it.
type BackedUp = (Manifest, Vec<(String, String)>);

#[cfg(unix)]
async fn ask(mut stream: tokio::net::UnixStream, directory: &Path, bar: &mut Bar) -> anyhow::Result<BackedUp> {
    use crate::server::control::{self, Reply, Request, VERSION};
    let request = Request::Backup { version: VERSION, directory: directory.to_owned() };
    control::send(&mut stream, &request).await?;
    loop {
        match control::receive(&mut stream).await.context("the server did not finish the backup")? {
            Reply::Progress(progress) => bar.show(progress),
            Reply::Done { manifest, left_out } => return Ok((manifest, left_out)),
            Reply::Failed { why, .. } => bail!("{why}"),
        }
    }
}

/// Files made here belong to whoever runs this; the server must be able to open them.
#[cfg(target_os = "linux")]
fn refuse_other_user(config: &Config) -> anyhow::Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    let owner = |path: &Path| std::fs::metadata(path).ok().map(|meta| meta.uid());
    match (owner(&config.data), owner(Path::new("/proc/self"))) {
        (Some(server), Some(me)) if server != me => {
            bail!(
                "{} belongs to user {server}, and this runs as user {me}: the server could not open what it makes there. Run it as that user: sudo -u '#{server}' waxwing …",
                config.data.display()
            )
        }
        _ => Ok(()),
    }
}

#[cfg(not(target_os = "linux"))]
const fn refuse_other_user(_: &Config) -> anyhow::Result<()> {
    Ok(())
}

fn backup_here(config: &Config, directory: &Path, bar: &mut Bar) -> anyhow::Result<BackedUp> {
    refuse_other_user(config)?;
    let store = open(config, bar)?;
    let (manifest, damaged) = store.backup(directory, clock::unix_millis(), &mut bar.report())?;
    Ok((manifest, damaged.into_iter().map(|room| (room.room.to_string(), room.why)).collect()))
}

/// Opens a store that must be there.
fn open(config: &Config, bar: &mut Bar) -> anyhow::Result<EmbeddedEngine> {
    bring_over(config, bar)?;
    let store = config.data.join(STORE);
    // Opening makes what is not there.
    if !store.join(ops::HISTORY).is_file() {
        return Err(Error::NoStore { path: config.data.clone() }.into());
    }
    EmbeddedEngine::open(&store, settings(config), Arc::new(())).map_err(explain)
}

/// The engine's settings, but nothing is dropped: that is left to the server.
fn settings(config: &Config) -> embedded::Config {
    embedded::Config { retention: embedded::Retention::default(), ..store_settings(config) }
}

/// A store of the first format becomes one of this.
fn bring_over(config: &Config, bar: &mut Bar) -> anyhow::Result<()> {
    let done = ops::migrate(&config.data, STORE, &mut bar.report()).map_err(explain)?;
    if let Some(done) = done {
        bar.end();
        super::print(format_args!(
            "The store of the first format was brought over: {} rooms and inboxes with {} messages. The old file is kept as {}.\n",
            done.logs,
            done.records,
            config.data.join(ops::KEPT).display()
        ))?;
    }
    Ok(())
}

fn explain(error: impl Into<Error>) -> anyhow::Error {
    let error = error.into();
    let locked = matches!(&error, Error::Open(OpenError::History(crate::engine::redb::OpenError::Locked { .. })));
    let error = anyhow::Error::from(error);
    if locked { error.context("a server has the store open: stop it first") } else { error }
}

/// Makes a store from a backup, or checks the backup.
pub(super) fn restore(args: &RestoreArgs) -> anyhow::Result<()> {
    let config = args.settings.load()?.config;
    let mut bar = Bar::new();
    let mut text = String::new();
    if args.verify {
        let manifest = ops::verify(&args.directory, &mut bar.report())?;
        bar.end();
        let _ = writeln!(text, "whole     {}", args.directory.display());
        describe(&manifest, &mut text);
    } else {
        refuse_other_user(&config)?;
        let restored = ops::restore(&args.directory, &config.data, STORE, &mut bar.report())?;
        bar.end();
        let _ = writeln!(text, "restored  {}", restored.store.display());
        describe(&restored.manifest, &mut text);
        text.push_str(
            "\nNow start the server. Every client that knew these rooms says that they were replaced, keeps its own copy beside what\n\
             the server has, and goes on. What was said after the backup is only in those copies.\n",
        );
    }
    super::print(text)?;
    Ok(())
}

fn check(config: &Config) -> anyhow::Result<()> {
    let mut bar = Bar::new();
    if config.data.join(ops::OLD).is_file() {
        bail!("{} is of the first format; a server that starts brings it over", config.data.join(ops::OLD).display());
    }
    let checked = ops::check(&config.data.join(STORE), &mut bar.report()).map_err(explain)?;
    bar.end();
    let mut text = format!("checked   {}\n", config.data.join(STORE).display());
    counts(checked.logs, checked.records, checked.bytes, &mut text);
    let _ = writeln!(text, "log       {} messages that are not in the history file yet", checked.unapplied);
    for problem in &checked.problems {
        let _ = writeln!(text, "damaged   {problem}");
    }
    for stranded in &checked.stranded {
        let room = stranded.room.map_or_else(|| format!("of log {}", stranded.log), |room| format!("room {room}"));
        let last = stranded.first + stranded.records.saturating_sub(1);
        let _ = writeln!(
            text,
            "stranded  {room}: messages {} to {last}, which were acknowledged, are put aside: {}",
            stranded.first, stranded.why
        );
    }
    if checked.is_whole() {
        text.push_str("whole     nothing is wrong\n");
    }
    super::print(text)?;
    match checked.problems.len() + checked.stranded.len() {
        0 => Ok(()),
        1 => bail!("1 thing is wrong with the store"),
        count => bail!("{count} things are wrong with the store"),
    }
}

fn compact(config: &Config) -> anyhow::Result<()> {
    refuse_other_user(config)?;
    let mut bar = Bar::new();
    bring_over(config, &mut bar)?;
    let store = config.data.join(STORE);
    let done = ops::compact(&store, &settings(config), &mut bar.report()).map_err(explain)?;
    bar.end();
    let saved = done.before.saturating_sub(done.after);
    super::print(format_args!(
        "compacted  {}\nbefore     {}\nafter      {}\ngiven back {}\n",
        store.display(),
        size(done.before),
        size(done.after),
        size(saved)
    ))?;
    if done.in_place {
        super::complain("the disk had no room for a copy: the file was compacted in place, and not checked");
    }
    for damaged in &done.damaged {
        super::complain(&format!("room {} is damaged, and is as it was: {}", damaged.room, damaged.why));
    }
    Ok(())
}

fn describe(manifest: &Manifest, text: &mut String) {
    let _ = writeln!(text, "made      {}", time(manifest.made_ms));
    counts(manifest.logs, manifest.records, manifest.bytes, text);
    let _ = writeln!(text, "file      {}, SHA-256 {}", size(manifest.file_bytes), manifest.sha256);
    for room in &manifest.left_out {
        let _ = writeln!(text, "left out  room {room}, which was damaged");
    }
}

fn counts(logs: u64, records: u64, bytes: u64, text: &mut String) {
    let _ = writeln!(text, "rooms     {logs} (inboxes included)\nmessages  {records}, {}", size(bytes));
}

/// A number of bytes for people.
fn size(bytes: u64) -> String {
    let mut unit = 1_u64;
    for name in ["bytes", "KiB", "MiB", "GiB"] {
        if bytes / unit < 1024 {
            return if unit == 1 {
                format!("{bytes} {name}")
            } else {
                format!("{}.{} {name}", bytes / unit, bytes % unit * 10 / unit)
            };
        }
        unit <<= 10;
    }
    format!("{}.{} TiB", bytes / unit, bytes % unit * 10 / unit)
}

/// A time for people, in UTC.
fn time(unix_ms: u64) -> String {
    let seconds = i64::try_from(unix_ms / 1000).unwrap_or(i64::MAX);
    ::time::OffsetDateTime::from_unix_timestamp(seconds).map_or_else(
        |_| format!("{unix_ms} ms after 1970"),
        |at| {
            let (hour, minute, second) = at.to_hms();
            format!("{}-{:02}-{:02} {hour:02}:{minute:02}:{second:02} UTC", at.year(), u8::from(at.month()), at.day())
        },
    )
}

/// How far it is, on stderr: a line that changes on a terminal; elsewhere a line now and then.
struct Bar {
    began: Instant,
    shown: Option<Instant>,
    terminal: bool,
    /// Whether the end was shown: what follows it is no further.
    ended: bool,
    /// Whether the last line is still open.
    open: bool,
}

impl Bar {
    fn new() -> Self {
        Self { began: now(), shown: None, terminal: io::stderr().is_terminal(), ended: false, open: false }
    }

    fn report(&mut self) -> impl FnMut(Progress) -> ControlFlow<()> + '_ {
        |progress| {
            self.show(progress);
            ControlFlow::Continue(())
        }
    }

    fn show(&mut self, progress: Progress) {
        let every = Duration::from_millis(if self.terminal { 100 } else { 5_000 });
        let last = progress.logs == progress.logs_total;
        if last && self.ended {
            return;
        }
        self.ended = last;
        let recent = self.shown.is_some_and(|shown| shown.elapsed() < every);
        if recent && !last {
            return;
        }
        self.shown = Some(now());
        let line = line(progress, self.began.elapsed());
        // If stderr is gone there is nobody to tell.
        let _ = if self.terminal { write!(io::stderr(), "\r{line}\x1b[K") } else { writeln!(io::stderr(), "{line}") };
        self.open = self.terminal;
    }

    fn end(&mut self) {
        if std::mem::take(&mut self.open) {
            let _ = writeln!(io::stderr());
        }
    }
}

fn line(progress: Progress, took: Duration) -> String {
    let percent = progress.bytes.saturating_mul(100).checked_div(progress.bytes_total).unwrap_or(100);
    let filled = usize::try_from(percent / 5).unwrap_or(20).min(20);
    let rate = u64::try_from(u128::from(progress.bytes) * 1000 / took.as_millis().max(1)).unwrap_or(u64::MAX);
    format!(
        "[{}{}] {percent:>3} %  {} messages  {} of {}  {}/s",
        "#".repeat(filled),
        ".".repeat(20 - filled),
        progress.records,
        size(progress.bytes),
        size(progress.bytes_total),
        size(rate)
    )
}

#[expect(clippy::disallowed_methods, reason = "how fast it goes; nothing else depends on it")]
fn now() -> Instant {
    Instant::now()
}
