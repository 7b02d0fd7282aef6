//! What the terminal client's subcommands share: whose profile, which edge, which transport; and waiting for events.

use std::{
    collections::BTreeSet,
    env,
    io::{self, IsTerminal as _},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Args;

use super::secret;
use crate::{
    client::{
        native::{
            Choice, Handle, Options,
            store::{Profile, is_locked},
        },
        view::{Command, ConnectionState, Event, Identity, Level, Room, RoomState},
    },
    seal::link::Link,
    transport::{Kind, Trust},
};

/// How long a script waits for the edge before it gives up.
const WAIT: Duration = Duration::from_secs(30);

/// What to do at an edge that does not know this device.
pub(super) fn refused(device: &str) -> String {
    format!(
        "the edge does not let this device in. Give its key to whoever runs the edge, who makes a token of it \
         (waxwing token --device {device}), and start again with --token TOKEN"
    )
}

/// Who, and how to connect.
#[derive(Debug, Clone, Args)]
pub(super) struct ClientArgs {
    /// Identity to use: each profile is a person of its own on each edge.
    #[arg(long, default_value = "default", env = "WAXWING_CLIENT_PROFILE")]
    profile: String,
    /// File with the profile's passphrase, if it has one [default: WAXWING_CLIENT_PROFILE_PASSPHRASE, else it is asked for].
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// What to be called, the first time that the profile is used [default: the login name].
    #[arg(long)]
    name: Option<String>,
    /// How to connect.
    #[arg(long, default_value = "auto", value_parser = ["auto", "ws", "wt", "quic"])]
    transport: String,
    #[command(flatten)]
    trust: TrustArgs,
    /// Login token, for edges that want one (see `waxwing token`). The profile keeps it.
    #[arg(long, env = "WAXWING_CLIENT_TOKEN", hide_env_values = true, default_value = "")]
    token: String,
}

/// Whom to trust.
#[derive(Debug, Clone, Args)]
pub(super) struct TrustArgs {
    /// Trust this PEM certificate (or authority) instead of the public ones.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
}

impl TrustArgs {
    pub(super) fn trust(&self) -> Trust {
        self.ca.clone().map_or(Trust::WebPki, Trust::File)
    }
}

/// A running client that has an identity.
pub(super) struct Client {
    pub(super) handle: Handle,
    /// What it was called when it was started, for prompts.
    pub(super) name: String,
    /// Who it is, as it was told last.
    pub(super) identity: Identity,
    keys: BTreeSet<String>,
}

/// Where profiles lie: `WAXWING_HOME`, else the platform's place for a person's data.
pub(super) fn home() -> anyhow::Result<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("WAXWING_HOME")
        .or_else(|| set("XDG_DATA_HOME").map(|data| data.join("waxwing")))
        .or_else(|| set("HOME").map(|home| home.join(".local/share/waxwing")))
        .context("no place for the profile: set WAXWING_HOME to a directory")
}

impl ClientArgs {
    /// The profile for an edge, with what opens it.
    pub(super) fn profile(&self, origin: &str) -> anyhow::Result<Profile> {
        let path = self.profile_path(origin)?;
        let given = match &self.passphrase_file {
            Some(file) => Some(secret::in_file(file)?),
            None => secret::in_environment("WAXWING_CLIENT_PROFILE_PASSPHRASE"),
        };
        let passphrase = match given {
            Some(given) if path.exists() => Some(given),
            // A new profile is made with it.
            Some(given) => Some(secret::strong(given)?),
            None if io::stdin().is_terminal() && is_locked(&path)? => Some(secret::asked("passphrase of this profile")?),
            None => None,
        };
        Ok(Profile { path, passphrase })
    }

    /// The profile's file for an edge.
    fn profile_path(&self, origin: &str) -> anyhow::Result<PathBuf> {
        let plain = |text: &str| -> String {
            text.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect()
        };
        let authority = origin.split_once("://").map_or(origin, |(_, authority)| authority);
        Ok(home()?.join(format!("{}@{}.redb", plain(&self.profile), plain(authority))))
    }

    /// What to be called, the first time.
    pub(super) fn first_name(&self) -> String {
        let login = || env::var("USER").or_else(|_| env::var("USERNAME")).unwrap_or_else(|_| "somebody".to_owned());
        self.name.clone().unwrap_or_else(login)
    }

    fn options(&self, origin: &str) -> Options {
        let choice = match self.transport.as_str() {
            "ws" => Choice::Only(Kind::WebSocket),
            "wt" => Choice::Only(Kind::WebTransport),
            "quic" => Choice::Only(Kind::Quic),
            _ => Choice::Auto,
        };
        Options { origin: origin.to_owned(), choice, trust: self.trust.trust(), token: self.token.clone().into_bytes().into() }
    }

    /// Starts the client of an edge; makes the identity if the profile is new.
    pub(super) async fn start(&self, origin: &str) -> anyhow::Result<Client> {
        let mut handle = self.start_anonymous(origin)?;
        loop {
            match handle.events.recv().await.context("the client stopped")? {
                Event::Identity { identity: Some(identity) } => {
                    return Ok(Client { handle, name: identity.name.clone(), identity, keys: BTreeSet::new() });
                }
                Event::Identity { identity: None } => {
                    let name = self.first_name();
                    handle.commands.send(Command::Start { name }).await.context("the client stopped")?;
                }
                Event::Notice { level: Level::Warn | Level::Alarm, text, .. } => super::complain(&text),
                _ => {}
            }
        }
    }

    /// Starts the client of an edge without an identity, if the profile has none.
    pub(super) fn start_anonymous(&self, origin: &str) -> anyhow::Result<Handle> {
        Ok(Handle::start(self.profile(origin)?, self.options(origin))?)
    }
}

/// Reads a room link.
pub(super) fn parse_link(text: &str) -> Result<Link, String> {
    text.parse().map_err(|error: crate::seal::link::LinkError| error.to_string())
}

impl Client {
    /// Sends a command.
    pub(super) async fn command(&self, command: Command) -> anyhow::Result<()> {
        self.handle.commands.send(command).await.context("the client stopped")
    }

    /// The next event.
    pub(super) async fn event(&mut self) -> anyhow::Result<Event> {
        let event = self.handle.events.recv().await.context("the client stopped")?;
        if let Event::Identity { identity: Some(identity) } = &event {
            self.identity = identity.clone();
        }
        Ok(event)
    }

    /// Whether a message of this key comes for the first time: every change of a message is an event.
    pub(super) fn first_time(&mut self, key: &str) -> bool {
        self.keys.insert(key.to_owned())
    }

    /// Joins by link.
    pub(super) async fn join(&self, link: &Link) -> anyhow::Result<()> {
        self.command(Command::Join { link: link.to_string() }).await
    }

    /// Waits until the first room for which `wanted` holds. Gives up after half a minute, and says what the last obstacle was.
    pub(super) async fn wait_for_room(&mut self, wanted: impl Fn(&Room) -> bool) -> anyhow::Result<Room> {
        let mut obstacle = "no answer from the edge".to_owned();
        let wait = async {
            loop {
                match self.event().await? {
                    Event::Room { room } if wanted(&room) => return Ok(room),
                    Event::Room { room } if room.state == RoomState::Refused => {
                        bail!(room.reason.unwrap_or_else(|| "the room cannot be used".to_owned()))
                    }
                    Event::Connection { state: ConnectionState::Refused, .. } => bail!(refused(&self.identity.device)),
                    Event::Connection { state: ConnectionState::Offline, detail: Some(detail), .. } => obstacle = detail,
                    Event::Notice { level: Level::Warn | Level::Alarm, text, .. } => super::complain(&text),
                    _ => {}
                }
            }
        };
        match tokio::time::timeout(WAIT, wait).await {
            Ok(result) => result,
            Err(_) => bail!("gave up after {} seconds: {obstacle}", WAIT.as_secs()),
        }
    }

    /// Ends in good order.
    pub(super) async fn stop(self) -> anyhow::Result<()> {
        Ok(self.handle.stop().await?)
    }
}
