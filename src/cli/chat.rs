//! `waxwing chat`: a conversation in the terminal, line by line.

use std::{
    collections::BTreeMap,
    io::{self, BufRead as _, IsTerminal as _},
    path::PathBuf,
};

use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use clap::Args;
use tokio::sync::mpsc;

use super::client::{Client, ClientArgs, refused};
use super::people::{People, Target, Typed};
use crate::{
    client::qr,
    client::view::{
        Check, Command, ConnectionState, DAYS_MAX, Event, History, Level, Message, MessageKind, MessageState, Role, Room,
        RoomState,
    },
    core::chain,
    seal::linking::DeviceCode,
};

/// Arguments of `waxwing chat`.
#[derive(Debug, Args)]
pub(super) struct ChatArgs {
    /// The room's link, as copied from a browser or printed by `waxwing create`; or a person's card, to write to them; or the
    /// edge's address, for rooms that this profile is in already.
    #[arg(value_parser = Target::parse)]
    target: Target,
    #[command(flatten)]
    client: ClientArgs,
}

const HELP: &str =
    "Enter sends; /who  /link  /invite  /dm  /card  /words  /verify  /evidence  /remove  /dropbox  /leave  /help  /quit";

/// One line for a message, without colour.
pub(super) fn plain(message: &Message) -> String {
    let time = clock(message.time_ms);
    match message.kind {
        MessageKind::Join => format!("{time}  * {} joined", message.author.name),
        MessageKind::Device => format!("{time}  * {} joined with another device", message.author.name),
        MessageKind::Namesake => {
            format!("{time}  * ANOTHER {} joined: not the one of that name who was here", message.author.name)
        }
        MessageKind::Added => format!("{time}  * {} brought in {}", message.author.name, message.text),
        MessageKind::Left => format!("{time}  * {} left", message.author.name),
        MessageKind::Removed => format!("{time}  * {} removed {}", message.author.name, message.text),
        MessageKind::History => format!("{time}  * {}: {}", message.author.name, message.text),
        // It can be compared with nothing, and its name says that it is nobody's here.
        MessageKind::Post => format!("{time}  {}: {}", message.author.name, printable(&message.text)),
        MessageKind::Text | MessageKind::Unknown => {
            format!("{time}  {}: {}{}", message.author.name, printable(&message.text), remark(message.check))
        }
    }
}

const fn remark(check: Check) -> &'static str {
    match check {
        Check::Contradicts => "   [! contradicts this device's history]",
        Check::Unchecked => "   [cannot be checked here]",
        Check::Matches => "",
    }
}

/// Text of others must not steer the terminal.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c })
        .collect::<String>()
        .replace('\n', "\n         ")
}

/// Hours and minutes, UTC: the time zone of a terminal is not known without a library for it.
fn clock(time_ms: u64) -> String {
    let minutes = time_ms / 60_000;
    format!("{:02}:{:02}", minutes / 60 % 24, minutes % 60)
}

/// What is on the screen.
pub(super) struct Screen {
    colour: bool,
    /// Which messages were printed, and whether as stored.
    printed: BTreeMap<String, bool>,
    /// The people whose names were printed: equal names with other keys must look different.
    people: BTreeMap<String, String>,
}

impl Screen {
    pub(super) fn line(&self, text: &str) -> anyhow::Result<()> {
        // On a terminal the prompt is taken away, and put back below the line.
        let text = if self.colour { format!("\r\x1b[K{text}\n> ") } else { format!("{text}\n") };
        super::print(text).context("cannot print")
    }

    fn author(&mut self, message: &Message) -> String {
        let (name, user) = (&message.author.name, &message.author.user);
        let first = self.people.entry(name.clone()).or_insert_with(|| user.clone());
        let hash = chain::digest(user.as_bytes());
        let label =
            if first == user { name.clone() } else { format!("{name} ({})", crate::seal::words::words(&hash.0).join("-")) };
        if self.colour { format!("\x1b[1;3{}m{label}\x1b[0m", 1 + hash.0[0] % 6) } else { label }
    }

    fn message(&mut self, message: &Message) -> anyhow::Result<()> {
        let stored = message.seq.is_some();
        match self.printed.insert(message.key.clone(), stored) {
            Some(true) => return Ok(()),
            // A person's own line stands there already, as typed.
            Some(false) if message.state != MessageState::Failed => return Ok(()),
            _ if !stored && message.state == MessageState::Pending && self.colour => return Ok(()),
            _ => {}
        }
        let author = self.author(message);
        let text = match (message.kind, message.state) {
            (_, MessageState::Failed) => format!("not sent: {}   ({})", message.text, message.reason.as_deref().unwrap_or("")),
            _ => plain(&Message {
                author: crate::client::view::Author { name: author, ..message.author.clone() },
                ..message.clone()
            }),
        };
        self.line(&text)
    }
}

/// Lines of standard input. A thread of its own reads them: reading a terminal cannot be interrupted, and the process ends
/// without waiting for it.
fn lines() -> mpsc::Receiver<String> {
    let (lines, read) = mpsc::channel(64);
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines() {
            if line.map_or(true, |line| lines.blocking_send(line).is_err()) {
                break;
            }
        }
    });
    read
}

/// Chats until Ctrl-C, Ctrl-D or `/quit`.
pub(super) async fn run(args: &ChatArgs) -> anyhow::Result<()> {
    let mut client = args.client.start(args.target.origin()).await?;
    let mut people = People::default();
    let mut id = people.begin(&client, &args.target).await?;
    let mut screen = Screen { colour: io::stdout().is_terminal(), printed: BTreeMap::new(), people: BTreeMap::new() };
    screen.line(&format!("{}, {HELP}", client.name))?;
    let mut input = lines();
    let mut last: Option<Room> = None;
    let mut wanted: Option<PathBuf> = None;
    loop {
        tokio::select! {
            event = client.event() => match event? {
                Event::Evidence { file, .. } => {
                    let file = BASE64.decode(file)?;
                    let saved = wanted.take().map(|path| super::verify::save(&path, &file));
                    saved.map_or(Ok(()), |saved| screen.line(&saved.map_or_else(|error| format!("! {error:#}"), |said| format!("   {said}"))))?;
                }
                event => {
                    let next = people.take(&screen, &event)?;
                    if show(&mut screen, (&id, &client.identity.device), &mut last, event)? { break }
                    if let Some(next) = next {
                        last = go(&mut screen, &people, &next)?;
                        id = next;
                    }
                }
            },
            line = input.recv() => match line {
                None => { finish(&mut client, last.as_ref()).await?; break }
                Some(line) if line.starts_with("/evidence") => {
                    wanted = Some(line.trim_start_matches("/evidence").trim()).filter(|path| !path.is_empty()).map(PathBuf::from);
                    match &wanted {
                        Some(_) => client.command(Command::Evidence { room: id.clone() }).await?,
                        None => screen.line("   /evidence FILE, with a file that is not there yet")?,
                    }
                }
                Some(line) => match people.act(&client, &screen, last.as_ref(), line.trim_end()).await? {
                    Typed::Go(next) => {
                        last = go(&mut screen, &people, &next)?;
                        id = next;
                    }
                    Typed::Done => {}
                    Typed::Other => if !act(&client, &screen, &id, last.as_ref(), line.trim_end()).await? { break },
                },
            },
            _ = tokio::signal::ctrl_c() => break,
        }
    }
    if screen.colour {
        super::print("\r\x1b[K")?;
    }
    if last.is_some_and(|room| room.state == RoomState::Open && !room.settled) {
        super::complain(
            "some of your messages are not on the server yet: they are kept, and sent the next time you are in this room",
        );
    }
    client.stop().await
}

/// When input ends (a pipe, Ctrl-D), what was typed is sent before the end.
async fn finish(client: &mut Client, room: Option<&Room>) -> anyhow::Result<()> {
    let Some(room) = room else { return Ok(()) };
    // Joining again, or opening it again, changes nothing, and tells how the room stands after everything that was typed.
    match &room.direct {
        Some(who) => client.command(Command::Direct { who: who.clone() }).await?,
        None if room.link.is_empty() => return Ok(()),
        None => client.command(Command::Join { link: room.link.clone() }).await?,
    }
    let id = room.id.clone();
    client.wait_for_room(|room| room.id == id && room.settled).await.map(|_| ())
}

/// Shows another room: what was said there last.
fn go(screen: &mut Screen, people: &People, id: &str) -> anyhow::Result<Option<Room>> {
    let Some(room) = people.room(id) else { return Ok(None) };
    screen.line(&format!("-- {}", if room.title.is_empty() { "a room without a name" } else { &room.title }))?;
    for message in people.recent(id) {
        screen.message(message)?;
    }
    Ok(Some(room.clone()))
}

/// Shows an event to the person at this device, who is in a room. Returns true when the room cannot be used.
fn show(screen: &mut Screen, (id, device): (&str, &str), last: &mut Option<Room>, event: Event) -> anyhow::Result<bool> {
    match event {
        Event::Message { room, message } if room == id => screen.message(&message)?,
        Event::Room { room } if room.id == id => {
            let opened = last.as_ref().is_none_or(|last| last.state != room.state);
            match room.state {
                RoomState::Open if opened => {
                    let others = room.members.iter().filter(|member| !member.you).count();
                    let classical = if room.post_quantum { "" } else { ", not against quantum computers" };
                    let who = if room.link.is_empty() { "members bring others in" } else { "whoever has the link can come in" };
                    screen.line(&format!("-- {}: you and {others} other(s); sealed{classical}, {who}", room.title))?;
                }
                RoomState::Refused if opened => {
                    screen.line(&format!("-- {}", room.reason.as_deref().unwrap_or("the room cannot be used")))?;
                    return Ok(true);
                }
                _ => {}
            }
            if last.as_ref().is_some_and(|last| address(last).is_none())
                && let Some(address) = address(&room)
            {
                screen.line(&drop_box(address))?;
            }
            *last = Some(room);
        }
        Event::Connection { state, transport, detail } => match state {
            ConnectionState::Online => screen.line(&format!("-- connected by {}", transport.as_deref().unwrap_or("?")))?,
            ConnectionState::Offline => {
                let detail = detail.map_or_else(String::new, |detail| format!(": {detail}"));
                screen.line(&format!("-- offline{detail}; messages wait here and are sent later"))?;
            }
            ConnectionState::Refused => screen.line(&format!("-- {}, or say /token TOKEN here", refused(device)))?,
            ConnectionState::Connecting => {}
        },
        Event::Notice { level, text, .. } => {
            let mark = match level {
                Level::Info => "--",
                Level::Warn => "!",
                Level::Alarm => "!!!",
            };
            screen.line(&format!("{mark} {text}"))?;
        }
        _ => {}
    }
    Ok(false)
}

/// Acts on a typed line. Returns false to end.
async fn act(client: &Client, screen: &Screen, id: &str, room: Option<&Room>, line: &str) -> anyhow::Result<bool> {
    match (line, room) {
        ("/quit", _) => return Ok(false),
        ("/help", _) => screen.line(
            "   Enter sends what you typed\n   /who    who is in the room\n   /link   the room's link\n   \
             /newlink  make another link, and end the former one (owners and moderators)\n   \
             /history join | days N | all   what newcomers read of the time before they came in (owners choose)\n   \
             /card   what to give to others so that they can write to you\n   \
             /invite NAME or CARD  bring a person into this room, while they are away if need be\n   \
             /dm NAME or CARD  write to a person alone\n   \
             /accept, /decline  answer an invitation of somebody you do not know\n   \
             /rooms  your rooms   /room N  go to one\n   \
             /remove NAME  remove a person; nobody removed reads what follows (owners and moderators)\n   \
             /refresh  new keys for this device, when somebody may have copied them\n   \
             /dropbox  open the room's drop-box, where scripts post what only members read; /dropbox close closes it (owners and moderators)\n   \
             /words  words to compare with the others, and a code that /verify compares\n   \
             /verify NAME  words to compare with a person; /verify tells more\n   /evidence FILE  write what this device can show others of the room's history\n   /adddevice CODE  make another device yours\n   /devices  your devices\n   \
             /removedevice KEY  take one of them out of every room\n   /token TOKEN  what the edge wants of this device, if it lets in only those that it knows\n   /leave  leave the room with this device\n   /quit   close; the room stays yours",
        )?,
        ("/who", Some(room)) => {
            for member in &room.members {
                let presence = if member.online { "here" } else { "away" };
                let you = if member.you { " (you)" } else { "" };
                let role = match member.role {
                    Role::Owner => ", owner",
                    Role::Moderator => ", moderator",
                    Role::Member => "",
                };
                let new = if member.confirmed { "" } else { ", not yet confirmed" };
                let unlisted = match member.unlisted {
                    0 => String::new(),
                    some => format!(", {some} NOT IN THEIR LIST OF DEVICES"),
                };
                let verified = if member.verified { ", verified" } else { "" };
                let name = printable(&member.name);
                screen.line(&format!("   {name}{you}{role}: {presence}, {} device(s){unlisted}{new}{verified}", member.devices))?;
            }
        }
        ("/link", Some(room)) if room.link.is_empty() => {
            screen.line("   no link is known here that leads in: /newlink makes one")?
        }
        ("/link", Some(room)) => screen.line(&room.link)?,
        ("/refresh", Some(room)) => client.command(Command::Refresh { room: room.id.clone() }).await?,
        ("/leave", Some(room)) => client.command(Command::Leave { room: room.id.clone() }).await?,
        ("/newlink", Some(room)) => client.command(Command::MakeLink { room: room.id.clone() }).await?,
        (line, Some(room)) if line.starts_with("/history") => {
            history(client, screen, room, line.trim_start_matches("/history").trim()).await?
        }
        (line, _) if line.starts_with("/token") => {
            let token = line.trim_start_matches("/token").trim().to_owned();
            client.command(Command::Token { token }).await?;
        }
        ("/devices", _) => {
            for device in &client.identity.devices {
                let this = if device.this { "   (this one)" } else { "" };
                screen.line(&format!("   {}{this}", device.device))?;
            }
        }
        (line, _) if line.starts_with("/removedevice") => {
            remove_device(client, screen, line.trim_start_matches("/removedevice").trim()).await?
        }
        (line, _) if line.starts_with("/adddevice") => {
            add_device(client, screen, line.trim_start_matches("/adddevice").trim()).await?
        }
        (line, Some(room)) if line.starts_with("/verify") => {
            verify(client, screen, room, line.trim_start_matches("/verify").trim()).await?
        }
        (line, Some(room)) if line.starts_with("/remove") => {
            remove(client, screen, room, line.trim_start_matches("/remove").trim()).await?
        }
        ("/dropbox close", Some(room)) => client.command(Command::CloseDropBox { room: room.id.clone() }).await?,
        ("/dropbox", Some(room)) => {
            if let Some(address) = address(room) {
                return screen.line(&drop_box(address)).map(|()| true);
            }
            if let Some(open) = &room.drop_box {
                screen.line(&format!("   {} hosts the present drop-box; yours takes its place", open.host))?;
            }
            client.command(Command::OpenDropBox { room: room.id.clone() }).await?;
        }
        ("/words", Some(room)) => words(screen, room)?,
        ("", _) => screen.line("")?,
        (_, None) if id.is_empty() => screen.line("   no room is open: /rooms, /dm CARD, or start with a room's link")?,
        (text, _) => client.command(Command::Send { room: id.to_owned(), text: text.to_owned() }).await?,
    }
    Ok(true)
}

/// What can be compared with the others, and what this device found.
fn words(screen: &Screen, room: &Room) -> anyhow::Result<()> {
    screen.line(&format!(
        "   at message {}: {}   (equal for everyone, or you see different histories)",
        room.words_at,
        room.words.join(" ")
    ))?;
    if let Some(closed) = &room.closed {
        screen.line(&format!("   not readable here: {closed}"))?;
    }
    screen.line(&format!("{}   {}", code(&room.code), room.code))?;
    let found = room.integrity;
    screen.line(&format!(
        "   {} messages match this device's history, {} cannot be checked, {} contradict it; {} were written by nobody here",
        found.matches, found.unchecked, found.contradicts, found.injected
    ))?;
    if found.complaints > 0 {
        screen.line(&format!("   {} complaints that a change of the group could not be followed", found.complaints))?;
    }
    Ok(())
}

/// Says what newcomers read, or chooses it.
async fn history(client: &Client, screen: &Screen, room: &Room, chosen: &str) -> anyhow::Result<()> {
    let Some(history) = named(chosen) else {
        return match chosen {
            "" => screen.line(&format!("   {}. {}", room.history.told(), room.history.meaning())),
            _ => screen
                .line("   /history join, /history days 30 (1 to 365), or /history all; alone it says what newcomers read now"),
        };
    };
    client.command(Command::SetHistory { room: room.id.clone(), history }).await?;
    screen.line(&format!("   {}. {}", history.told(), history.meaning()))
}

/// What newcomers are to read, as it is typed.
fn named(chosen: &str) -> Option<History> {
    match chosen {
        "join" => Some(History::FromJoin),
        "all" => Some(History::Everything),
        _ => {
            let days = chosen.strip_prefix("days ")?.trim().parse().ok()?;
            (1..=DAYS_MAX).contains(&days).then_some(History::Days(days))
        }
    }
}

/// Takes the one other device of this person whose key begins so out of everything.
async fn remove_device(client: &Client, screen: &Screen, beginning: &str) -> anyhow::Result<()> {
    let others = client.identity.devices.iter().filter(|device| !device.this && !beginning.is_empty());
    let mut meant = others.filter(|device| device.device.starts_with(beginning));
    match (meant.next(), meant.next()) {
        (Some(device), None) => {
            client.command(Command::RemoveDevice { device: device.device.clone() }).await?;
            screen.line("   it is taken out of your list of devices and of every room; it keeps what it has read, and your key: see docs/security.md")
        }
        _ => screen.line("   /removedevice KEY, with the beginning of the key of another device that /devices shows"),
    }
}

/// Shows the words of a device's code, or makes that device one of this person's.
async fn add_device(client: &Client, screen: &Screen, what: &str) -> anyhow::Result<()> {
    let (code, agreed) = what.strip_suffix(" yes").map_or((what, false), |code| (code.trim(), true));
    match code.parse::<DeviceCode>() {
        Err(error) => screen.line(&format!("   /adddevice CODE, with the code that `waxwing link` or the page shows on the other device: {error}")),
        Ok(_) if agreed => client.command(Command::LinkDevice { code: code.to_owned() }).await,
        Ok(code) => screen.line(&format!(
            "   That device gets your keys and your rooms: it will be you. Does it show these words?   {}\n   If it does: the same line once more, with \" yes\" behind it",
            code.words().join(" ")
        )),
    }
}

/// Shows what to compare with a person, marks them, or compares what they showed.
async fn verify(client: &Client, screen: &Screen, room: &Room, what: &str) -> anyhow::Result<()> {
    if what.is_empty() {
        return screen.line(
            "   /verify NAME      the words and the code that you and they compare\n   /verify NAME yes  they were equal: remember that  (no: forget it)\n   \
             /verify TEXT      compare a text that begins with waxwing:verify:",
        );
    }
    if what.starts_with("waxwing:") {
        return client.command(Command::Compare { text: what.to_owned() }).await;
    }
    let (name, answer) = match what.rsplit_once(' ') {
        Some((name, "yes")) => (name, Some(true)),
        Some((name, "no")) => (name, Some(false)),
        _ => (what, None),
    };
    let mut named = room.members.iter().filter(|member| member.name == name && !member.you);
    match (named.next(), named.next(), answer) {
        (Some(member), None, Some(verified)) => {
            client.command(Command::Verify { user: member.user.clone(), verified }).await?;
            screen.line(&format!("   {name} is {}", if verified { "verified" } else { "not verified any more" }))
        }
        (Some(member), None, None) => screen.line(&format!(
            "   with {name}, equal on both sides or somebody sits between you: {}\n{}   {}",
            member.safety.join(" "),
            code(&member.code),
            member.code
        )),
        (Some(_), Some(_), _) => screen.line(&format!("   there are several {name}s here: compare the text that theirs shows")),
        (None, ..) => screen.line("   /verify NAME, with a name that /who shows"),
    }
}

/// A text as a code for cameras, in half blocks: dark modules are the terminal's background, whatever that is.
fn code(text: &str) -> String {
    qr::encode(text).map(|code| code.half_blocks().into_iter().map(|line| format!("   {line}\n")).collect()).unwrap_or_default()
}

/// The address of the drop-box, if it is this person's to give.
fn address(room: &Room) -> Option<&str> {
    room.drop_box.as_deref().map(|open| open.address.as_str()).filter(|address| !address.is_empty())
}

/// What to do with the drop-box.
fn drop_box(address: &str) -> String {
    format!(
        "   whoever has this address posts here, without being a member, until /dropbox close:\n{address}\n   \
         for example: waxwing post 'ADDRESS' --name monitoring 'the disk is full'"
    )
}

/// Removes the one person of that name.
async fn remove(client: &Client, screen: &Screen, room: &Room, name: &str) -> anyhow::Result<()> {
    let mut named = room.members.iter().filter(|member| member.name == name && !member.you);
    match (named.next(), named.next()) {
        (Some(member), None) => {
            client.command(Command::Remove { room: room.id.clone(), user: member.user.clone() }).await?;
            screen.line(&format!("   {name} is being removed; the room's link ends, and gets a successor: /link"))
        }
        (Some(_), Some(_)) => screen.line(&format!("   there are several {name}s here: a browser lets you choose")),
        (None, _) => screen.line("   /remove NAME, with a name that /who shows"),
    }
}

#[cfg(test)]
mod tests {
    use super::{History, named};

    #[test]
    fn what_newcomers_read_is_typed_in_three_ways() {
        let typed = [
            ("join", History::FromJoin),
            ("all", History::Everything),
            ("days 1", History::Days(1)),
            ("days  365", History::Days(365)),
        ];
        assert!(typed.iter().all(|(typed, history)| named(typed) == Some(*history)));
        assert!(
            ["", "days", "days 0", "days 366", "days -1", "days30", "30", "days 99999"]
                .iter()
                .all(|typed| named(typed).is_none())
        );
    }
}
