//! `waxwing send`, `waxwing tail`, `waxwing create`: the terminal client for scripts.

use std::{
    collections::BTreeSet,
    io::{self, BufRead as _, IsTerminal as _},
};

use anyhow::bail;
use clap::Args;

use super::{
    client::{ClientArgs, parse_link, refused},
    since::{self, Since},
};
use crate::{
    client::native,
    client::view::{Command, ConnectionState, Event, Level, Message, MessageState, RoomState},
    seal::{body::TEXT_LEN_MAX, link::Link},
};

/// Messages handed over and not yet on the server's disk. Fewer than the client's queues hold: who fills the one for commands
/// without reading the one of events waits for ever.
const IN_FLIGHT_MAX: usize = 128;

/// Arguments of `waxwing send`.
#[derive(Debug, Args)]
pub(super) struct SendArgs {
    /// The room's link.
    #[arg(value_parser = parse_link)]
    link: Link,
    /// What to say [default: each line of standard input is a message].
    text: Vec<String>,
    #[command(flatten)]
    client: ClientArgs,
}

/// Arguments of `waxwing tail`.
#[derive(Debug, Args)]
pub(super) struct TailArgs {
    /// The room's link.
    #[arg(value_parser = parse_link)]
    link: Link,
    /// Print every event as a line of JSON.
    #[arg(long)]
    json: bool,
    /// End once everything is printed that is there now.
    #[arg(long)]
    once: bool,
    /// Only what the server stored since then: `90m`, `2h`, `3d` ago, or a time such as 2026-11-23T06:30:00Z.
    #[arg(long, value_parser = since::parse, value_name = "TIME")]
    since: Option<Since>,
    #[command(flatten)]
    client: ClientArgs,
}

/// Arguments of `waxwing create`.
#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    /// The room's title.
    title: String,
    /// For more than 256 devices, up to 1024: with classical keys, which a quantum computer may open one day.
    #[arg(long)]
    large: bool,
    /// The edge.
    #[arg(long, default_value = "http://localhost:8433", env = "WAXWING_CLIENT_EDGE")]
    edge: String,
    #[command(flatten)]
    client: ClientArgs,
}

/// Sends, and ends when everything is on the server's disk.
pub(super) async fn send(args: &SendArgs) -> anyhow::Result<()> {
    let mut texts: Vec<String> = Vec::new();
    if args.text.is_empty() {
        if io::stdin().is_terminal() {
            super::complain("each line is a message; Ctrl-D ends");
        }
        for line in io::stdin().lock().lines() {
            texts.push(line?);
        }
    } else {
        texts.push(args.text.join(" "));
    }
    texts.retain(|text| !text.trim().is_empty());
    if let Some(text) = texts.iter().find(|text| text.trim_end().len() > TEXT_LEN_MAX) {
        bail!("a message of {} bytes is too long: {TEXT_LEN_MAX} fit", text.len());
    }
    let mut client = args.client.start(&args.link.origin).await?;
    client.join(&args.link).await?;
    let id = args.link.room.to_string();
    client.wait_for_room(|room| room.id == id && room.state == RoomState::Open && room.up_to_date && room.settled).await?;
    let mut ours = BTreeSet::new();
    let mut texts = texts.into_iter();
    let mut waiting = 0_usize;
    loop {
        while waiting < IN_FLIGHT_MAX
            && let Some(text) = texts.next()
        {
            client.command(Command::Send { room: id.clone(), text }).await?;
            waiting += 1;
        }
        if waiting == 0 {
            break;
        }
        match client.event().await? {
            Event::Message { room, message: Message { state: MessageState::Pending, key, .. } } if room == id => {
                ours.insert(key);
            }
            Event::Message { room, message: Message { state: MessageState::Sent, key, .. } }
                if room == id && ours.remove(&key) =>
            {
                waiting -= 1;
            }
            Event::Message { message: Message { state: MessageState::Failed, reason, .. }, .. } => {
                bail!("not sent: {}", reason.unwrap_or_default());
            }
            Event::Connection { state: ConnectionState::Refused, .. } => bail!(refused(&client.identity.device)),
            Event::Connection { state: ConnectionState::Offline, detail: Some(detail), .. } => {
                super::complain(&format!("waiting for the edge: {detail}"));
            }
            Event::Notice { level: Level::Warn | Level::Alarm, text, .. } => super::complain(&text),
            _ => {}
        }
    }
    client.stop().await
}

/// Prints what is said in a room.
pub(super) async fn tail(args: &TailArgs) -> anyhow::Result<()> {
    let mut client = args.client.start(&args.link.origin).await?;
    client.join(&args.link).await?;
    let id = args.link.room.to_string();
    let since_ms = args.since.map_or(0, |since| since.at_ms(native::now_ms()));
    loop {
        let event = tokio::select! {
            event = client.event() => event?,
            _ = tokio::signal::ctrl_c() => break,
        };
        if matches!(&event, Event::Message { message, .. } if message.time_ms < since_ms) {
            continue;
        }
        if matches!(&event, Event::Connection { state: ConnectionState::Refused, .. }) {
            bail!(refused(&client.identity.device));
        }
        if args.json {
            super::print(format_args!("{}\n", serde_json::to_string(&event)?))?;
        } else {
            match &event {
                Event::Message { room, message } if *room == id && message.seq.is_some() && client.first_time(&message.key) => {
                    super::print(format_args!("{}\n", super::chat::plain(message)))?;
                }
                Event::Notice { level: Level::Warn | Level::Alarm, text, .. } => super::complain(text),
                _ => {}
            }
        }
        if let Event::Room { room } = &event
            && room.id == id
        {
            match room.state {
                RoomState::Open if args.once && room.up_to_date => break,
                RoomState::Refused => bail!(room.reason.clone().unwrap_or_default()),
                _ => {}
            }
        }
    }
    client.stop().await
}

/// Makes a room and prints its link.
pub(super) async fn create(args: &CreateArgs) -> anyhow::Result<()> {
    let mut client = args.client.start(args.edge.trim_end_matches('/')).await?;
    let title = args.title.clone();
    let create = if args.large { Command::CreateLargeRoom { title } } else { Command::CreateRoom { title } };
    client.command(create).await?;
    let title = crate::seal::body::tidy(&args.title);
    let room = client.wait_for_room(|room| room.title == title && room.state == RoomState::Open && room.settled).await?;
    super::print(format_args!("{}\n", room.link))?;
    client.stop().await
}
