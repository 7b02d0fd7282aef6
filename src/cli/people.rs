//! People and rooms in `waxwing chat`: cards, invitations, conversations of two, and which room is on the screen.

use std::collections::{BTreeMap, VecDeque};

use super::{chat::Screen, client::Client};
use crate::{
    client::view::{Command, Event, Identity, Invitation, Message, Room},
    seal::{card::Card, link::Link},
};

/// So many messages of each room are kept for when it is gone to.
const RECENT_MAX: usize = 50;

/// With what `waxwing chat` begins.
#[derive(Debug, Clone)]
pub(super) enum Target {
    /// A room.
    Room(Link),
    /// Somebody to write to.
    Person(Card),
    /// The edge alone.
    Edge(String),
}

impl Target {
    /// Reads a link, a card or an address.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match text.split_once('#') {
            Some((_, fragment)) if fragment.starts_with('u') => {
                text.parse().map(Self::Person).map_err(|error: crate::seal::card::CardError| error.to_string())
            }
            None if text.starts_with("https://") || text.starts_with("http://") => {
                Ok(Self::Edge(text.trim_end_matches('/').to_owned()))
            }
            _ => super::client::parse_link(text).map(Self::Room),
        }
    }

    /// The edge.
    pub(super) fn origin(&self) -> &str {
        match self {
            Self::Room(Link { origin, .. }) | Self::Person(Card { origin, .. }) | Self::Edge(origin) => origin,
        }
    }
}

/// What became of a typed line.
pub(super) enum Typed {
    /// It is none of those here.
    Other,
    /// It is done.
    Done,
    /// Show this room.
    Go(String),
}

/// Whom and what this profile knows.
#[derive(Debug, Default)]
pub(super) struct People {
    card: String,
    rooms: BTreeMap<String, Room>,
    recent: BTreeMap<String, VecDeque<Message>>,
    requests: Vec<Invitation>,
    awaited: Option<Awaited>,
}

/// A room that is shown as soon as it is there.
#[derive(Debug)]
enum Awaited {
    /// This one.
    Room(String),
    /// The one with this person.
    With(String),
}

impl People {
    /// Asks for what the chat begins with. Returns the room, if it is known already which.
    pub(super) async fn begin(&mut self, client: &Client, target: &Target) -> anyhow::Result<String> {
        match target {
            Target::Room(link) => {
                client.join(link).await?;
                return Ok(link.room.to_string());
            }
            Target::Person(card) => self.write_to(client, card.to_string(), card.user.to_string()).await?,
            Target::Edge(_) => {}
        }
        Ok(String::new())
    }

    async fn write_to(&mut self, client: &Client, who: String, user: String) -> anyhow::Result<()> {
        self.awaited = Some(Awaited::With(user));
        client.command(Command::Direct { who }).await
    }

    /// A room, as it stands.
    pub(super) fn room(&self, id: &str) -> Option<&Room> {
        self.rooms.get(id)
    }

    /// What was said there last.
    pub(super) fn recent(&self, id: &str) -> impl Iterator<Item = &Message> {
        self.recent.get(id).into_iter().flatten()
    }

    /// Takes an event; returns the room to show from now on, if it is another one.
    pub(super) fn take(&mut self, screen: &Screen, event: &Event) -> anyhow::Result<Option<String>> {
        match event {
            Event::Identity { identity: Some(Identity { card, .. }) } => card.clone_into(&mut self.card),
            Event::Room { room } => {
                self.rooms.insert(room.id.clone(), room.clone());
                let awaited = match &self.awaited {
                    Some(Awaited::Room(id)) => *id == room.id,
                    Some(Awaited::With(user)) => room.direct.as_ref() == Some(user),
                    None => false,
                };
                if awaited {
                    self.awaited = None;
                    return Ok(Some(room.id.clone()));
                }
            }
            Event::RoomRemoved { room } => {
                self.rooms.remove(room);
                self.recent.remove(room);
            }
            Event::Message { room, message } => {
                let recent = self.recent.entry(room.clone()).or_default();
                match recent.iter_mut().find(|other| other.key == message.key) {
                    Some(other) => message.clone_into(other),
                    None => recent.push_back(message.clone()),
                }
                if recent.len() > RECENT_MAX {
                    recent.pop_front();
                }
            }
            Event::Invitation { invitation } if !self.requests.iter().any(|request| request.room == invitation.room) => {
                self.requests.push(invitation.clone());
                let Invitation { title, direct, from, words, .. } = invitation;
                let where_to = if *direct { "wants to write to you".to_owned() } else { format!("invites you to {title}") };
                let words = words.join(" ");
                screen.line(&format!(
                    "-- {}, whom you share no room with, {where_to}: /accept or /decline   ({words})",
                    from.name
                ))?;
            }
            Event::InvitationRemoved { room } => self.requests.retain(|request| request.room != *room),
            _ => {}
        }
        Ok(None)
    }

    /// Acts on a typed line, if it is about people or rooms.
    pub(super) async fn act(
        &mut self,
        client: &Client,
        screen: &Screen,
        room: Option<&Room>,
        line: &str,
    ) -> anyhow::Result<Typed> {
        let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
        let rest = rest.trim();
        match command {
            "/card" => screen.line(&format!("   {}", self.card))?,
            "/rooms" => self.list(screen)?,
            "/room" => match rest.parse::<usize>().ok().and_then(|number| self.rooms.keys().nth(number.checked_sub(1)?)) {
                Some(id) => return Ok(Typed::Go(id.clone())),
                None => screen.line("   /room N, with a number that /rooms shows")?,
            },
            "/dm" => {
                if let Some((who, user)) = self.named(screen, "/dm", rest)? {
                    self.write_to(client, who, user).await?;
                }
            }
            "/invite" => match (room, self.named(screen, "/invite", rest)?) {
                (Some(room), Some((who, _))) => client.command(Command::Invite { room: room.id.clone(), who }).await?,
                (None, Some(_)) => screen.line("   no room is open")?,
                (_, None) => {}
            },
            "/accept" | "/decline" => match self.requests.first().map(|request| request.room.clone()) {
                Some(room) if command == "/accept" => {
                    self.awaited = Some(Awaited::Room(room.clone()));
                    client.command(Command::Accept { room }).await?;
                }
                Some(room) => client.command(Command::Decline { room }).await?,
                None => screen.line("   nobody waits for an answer")?,
            },
            _ => return Ok(Typed::Other),
        }
        Ok(Typed::Done)
    }

    fn list(&self, screen: &Screen) -> anyhow::Result<()> {
        for (number, room) in (1..).zip(self.rooms.values()) {
            let title = if room.title.is_empty() { "(no name yet)" } else { &room.title };
            let what =
                if room.direct.is_some() { "the two of you".to_owned() } else { format!("{} member(s)", room.members.len()) };
            screen.line(&format!("   {number}  {title}: {what}"))?;
        }
        Ok(())
    }

    /// Who is meant: what to ask the client for, and their key. A card, or the name of the one person of that name in any room.
    fn named(&self, screen: &Screen, command: &str, text: &str) -> anyhow::Result<Option<(String, String)>> {
        if text.contains('#') {
            return Ok(match text.parse::<Card>() {
                Ok(card) => Some((text.to_owned(), card.user.to_string())),
                Err(error) => {
                    screen.line(&format!("   {error}"))?;
                    None
                }
            });
        }
        let members = self.rooms.values().flat_map(|room| &room.members);
        let mut users: Vec<&String> =
            members.filter(|member| member.name == text && !member.you).map(|member| &member.user).collect();
        users.sort_unstable();
        users.dedup();
        match users.as_slice() {
            [user] => return Ok(Some(((*user).clone(), (*user).clone()))),
            [] => screen.line(&format!("   {command} NAME or CARD, with a name that /who shows in one of your rooms"))?,
            _ => screen.line(&format!("   there are several {text}s in your rooms: use the card of the one you mean"))?,
        }
        Ok(None)
    }
}
