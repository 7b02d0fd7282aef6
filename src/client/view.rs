//! What a person sees, as data: events towards a user interface and commands from it. JSON in the browser and in
//! `waxwing tail --json`; ids are base64url.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::group;

pub use crate::group::DAYS_MAX;

/// From a user interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Command {
    /// Makes the identity.
    Start {
        /// What the person wants to be called.
        name: String,
    },
    /// Makes a room.
    CreateRoom {
        /// Its title.
        title: String,
    },
    /// Makes a room for more devices than post-quantum keys allow: with classical ones.
    CreateLargeRoom {
        /// Its title.
        title: String,
    },
    /// Joins by link.
    Join {
        /// As copied.
        link: String,
    },
    /// Sends text.
    Send {
        /// The room.
        room: String,
        /// The text.
        text: String,
    },
    /// Sends a failed message again.
    Retry {
        /// The room.
        room: String,
        /// The message's key.
        key: String,
    },
    /// Gives a failed message up.
    Discard {
        /// The room.
        room: String,
        /// The message's key.
        key: String,
    },
    /// The person is typing.
    Typing {
        /// The room.
        room: String,
    },
    /// Leaves the room with this device: the others see it, and it reads nothing that follows.
    Leave {
        /// The room.
        room: String,
    },
    /// Forgets the room on this device.
    Forget {
        /// The room.
        room: String,
    },
    /// Presents this token to the edge from now on, and keeps it; an empty one: none. For edges that let in only devices that they were told about
    /// ([`ConnectionState::Refused`]).
    Token {
        /// As the edge's operator or back end gave it.
        token: String,
    },
    /// Shows a code by which this fresh device can become one of a person's: [`Event::DeviceCode`], and another one every ten minutes.
    ShowCode,
    /// Takes another device of this person out of the list of their devices, and out of every room.
    RemoveDevice {
        /// Its key.
        device: String,
    },
    /// Makes the device that shows this code one of this person's. They have compared its words before.
    LinkDevice {
        /// The code.
        code: String,
    },
    /// Remembers that this person's words were compared, or that they are not to be relied on any more.
    Verify {
        /// Their key.
        user: String,
        /// Whether they are who they say.
        verified: bool,
    },
    /// Compares a text that somebody else's screen shows ([`Member::code`], [`Room::code`]) with what this device has. A notice tells
    /// whether it matches; a person whose text matches is verified.
    Compare {
        /// The text, as scanned or pasted.
        text: String,
    },
    /// Tells what this device can show others of the room: [`Event::Evidence`].
    Evidence {
        /// The room.
        room: String,
    },
    /// Makes a link into the room, in the place of the former one; for owners and moderators.
    MakeLink {
        /// The room.
        room: String,
    },
    /// Opens the room's drop-box, where somebody outside posts what only members read; for owners and moderators.
    OpenDropBox {
        /// The room.
        room: String,
    },
    /// Closes it; for owners and moderators.
    CloseDropBox {
        /// The room.
        room: String,
    },
    /// Removes a person with all of their devices; for owners and moderators.
    Remove {
        /// The room.
        room: String,
        /// Their key.
        user: String,
    },
    /// Gives or takes a role; for owners.
    SetRole {
        /// The room.
        room: String,
        /// Their key.
        user: String,
        /// What they are from now on.
        role: Role,
    },
    /// Gives this device new keys in the room, when somebody may have copied them.
    Refresh {
        /// The room.
        room: String,
    },
    /// Says what newcomers read of the time before they came in; for owners.
    SetHistory {
        /// The room.
        room: String,
        /// That.
        history: History,
    },
    /// Deletes the room for everyone; for who made it.
    DeleteRoom {
        /// The room.
        room: String,
    },
    /// Adds a person with all of their devices, while they are away if need be.
    Invite {
        /// The room.
        room: String,
        /// Their card, as copied, or the key of somebody met in a room.
        who: String,
    },
    /// Opens the room that this person shares with another one alone; makes it if there is none.
    Direct {
        /// Their card, as copied, or the key of somebody met in a room.
        who: String,
    },
    /// Goes into a room into which somebody unknown has invited this person.
    Accept {
        /// The room.
        room: String,
    },
    /// Forgets such an invitation; nobody is told.
    Decline {
        /// The room.
        room: String,
    },
}

/// To a user interface. Each replaces the earlier one about the same thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// Who this device is; nobody yet: ask for a name.
    Identity {
        /// The person.
        identity: Option<Identity>,
    },
    /// A room.
    Room {
        /// As it stands.
        room: Room,
    },
    /// A room is gone from this device.
    RoomRemoved {
        /// The room.
        room: String,
    },
    /// A message.
    Message {
        /// The room.
        room: String,
        /// As it stands.
        message: Message,
    },
    /// A message is gone: given up, or shown under another key.
    MessageRemoved {
        /// The room.
        room: String,
        /// Its key.
        key: String,
    },
    /// A code by which this device can become one of a person's, in the place of the former one.
    DeviceCode {
        /// The code, for a device of the person to scan, or to be pasted there.
        code: String,
        /// This device's key.
        device: String,
        /// Six words of it, which that device shows too.
        words: Vec<String>,
        /// Until when it is good.
        expires_ms: u64,
    },
    /// What this device can show others of a room, as it was asked for.
    Evidence {
        /// The room.
        room: String,
        /// The file ([`super::evidence`]), in base64url.
        file: String,
    },
    /// Somebody whom this person shares no room with, and has not written to, invites them: accept or decline.
    Invitation {
        /// As it stands.
        invitation: Invitation,
    },
    /// An invitation was answered.
    InvitationRemoved {
        /// The room.
        room: String,
    },
    /// Someone types.
    Typing {
        /// The room.
        room: String,
        /// Who.
        name: String,
    },
    /// The connection.
    Connection {
        /// As it stands.
        state: ConnectionState,
        /// `ws`, `wt` or `quic`.
        transport: Option<String>,
        /// Why not, in words.
        detail: Option<String>,
    },
    /// Something to tell.
    Notice {
        /// How bad.
        level: Level,
        /// In words.
        text: String,
        /// About this room.
        room: Option<String>,
    },
}

/// The person at this device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// As they want to be called.
    pub name: String,
    /// Their key.
    pub user: String,
    /// This device's key.
    pub device: String,
    /// Six words for others to compare.
    pub words: Vec<String>,
    /// Their devices, this one among them.
    pub devices: Vec<Device>,
    /// What to give to others so that they can write to this person: a link with nothing secret in it. Empty where the edge is not known.
    pub card: String,
    /// Whether this device has left key packages at the edge, so that others can.
    pub reachable: bool,
}

/// A device of this person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its key.
    pub device: String,
    /// Whether it is this one.
    pub this: bool,
}

/// An invitation that waits for an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invitation {
    /// The room.
    pub room: String,
    /// What it is called, by who invites.
    pub title: String,
    /// Whether it is to be between the two of them.
    pub direct: bool,
    /// Who invites, by the name that they give themselves.
    pub from: Author,
    /// Six words of theirs to compare.
    pub words: Vec<String>,
}

/// A room.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    /// Its id.
    pub id: String,
    /// Its title; empty while unknown. Of a room between two people, the other one's name.
    pub title: String,
    /// The other person's key, if it is a room between two people.
    pub direct: Option<String>,
    /// Its link, if this device knows one that leads in; else empty.
    pub link: String,
    /// Its drop-box, if it is open.
    pub drop_box: Option<Box<DropBox>>,
    /// Whether this person owns it.
    pub owner: bool,
    /// Whether it can be used.
    pub state: RoomState,
    /// Why not, in words.
    pub reason: Option<String>,
    /// Who is in it.
    pub members: Vec<Member>,
    /// The newest seq that this device has.
    pub head: u64,
    /// Whether everything is read that was there when the connection was made.
    pub up_to_date: bool,
    /// Whether nothing waits to be sent.
    pub settled: bool,
    /// What checking found.
    pub integrity: Integrity,
    /// Six words that everyone in the room sees alike.
    pub words: Vec<String>,
    /// At which seq they were taken.
    pub words_at: u64,
    /// What of it this device cannot read, and why, in words.
    pub closed: Option<Box<str>>,
    /// Whether a later quantum computer does not open it; also said while that is not known.
    pub post_quantum: bool,
    /// What newcomers read of the time before they came in.
    pub history: History,
    /// The same for a machine to compare: [`Command::Compare`].
    pub code: String,
}

/// Where somebody who is no member posts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropBox {
    /// Its address, if this person hosts it; else empty.
    pub address: String,
    /// What its host is called.
    pub host: String,
}

/// Whether a room can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RoomState {
    /// Being made or joined; messages wait.
    Joining,
    /// In use.
    Open,
    /// Deleted by who made it.
    Deleted,
    /// It cannot be used; the reason says why.
    Refused,
}

/// A person in a room.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Their key.
    pub user: String,
    /// As they called themselves last.
    pub name: String,
    /// This device's person.
    pub you: bool,
    /// What they may do.
    pub role: Role,
    /// Whether a device of theirs is connected.
    pub online: bool,
    /// Whether another member has written since the last of their devices came in, having seen it.
    pub confirmed: bool,
    /// How many devices joined.
    pub devices: u32,
    /// How many of these devices the person's newest list of devices does not have; none while no list was told here.
    pub unlisted: u32,
    /// This person has compared words with them, and found them equal.
    pub verified: bool,
    /// Six words that both see alike, and nobody else; none for this person themselves.
    pub safety: Vec<String>,
    /// The same for a machine to compare: [`Command::Compare`].
    pub code: String,
}

/// What a person may do beyond writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Nothing more.
    Member,
    /// Removes members and makes links.
    Moderator,
    /// Everything, and says who is what.
    Owner,
}

/// What newcomers read of the time before they came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum History {
    /// Nothing.
    FromJoin,
    /// Everything since this was chosen.
    Everything,
    /// The last so many days, since this was chosen.
    Days(u16),
}

impl From<group::History> for History {
    fn from(history: group::History) -> Self {
        match history {
            group::History::FromJoin => Self::FromJoin,
            group::History::Everything => Self::Everything,
            group::History::Days(days) => Self::Days(days),
        }
    }
}

impl History {
    /// As it is told where it was chosen.
    #[must_use]
    pub fn told(self) -> Cow<'static, str> {
        match self {
            Self::FromJoin => "newcomers read from their join".into(),
            Self::Everything => "newcomers read everything from here on".into(),
            Self::Days(1) => "newcomers read the last day, and older keys are deleted".into(),
            Self::Days(days) => format!("newcomers read the last {days} days, and older keys are deleted").into(),
        }
    }

    /// What it gives and what it costs.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::FromJoin => "Whoever comes in reads what is written from then on.",
            Self::Everything => {
                "Whoever comes in reads everything since this was chosen, with nobody there. So whoever has a link that leads in, and \
                 a copy of what the server keeps, reads all of it, for ever; and a key that is stolen today opens what was written \
                 before."
            }
            Self::Days(_) => {
                "Whoever comes in reads what was written in these days, since this was chosen, with nobody there; so does whoever has a link that \
                 leads in and a copy of what the server keeps. Every device deletes the keys of what is older, which opens nowhere then but where it \
                 was read already: your next device does not read it either."
            }
        }
    }
}

/// What checking the room's history found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Integrity {
    /// Messages that agree with this device's copy of the log.
    pub matches: u64,
    /// Messages that cannot be compared: older than what this device has.
    pub unchecked: u64,
    /// Messages, or answers of the server, that contradict it.
    pub contradicts: u64,
    /// Records that do not open or verify: nobody in the room wrote them.
    pub injected: u64,
    /// Devices that said that they could not follow a change of the group.
    pub complaints: u64,
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Names it within the room.
    pub key: String,
    /// Its place; none while it is not stored.
    pub seq: Option<u64>,
    /// Who wrote it.
    pub author: Author,
    /// Whether this person did.
    pub mine: bool,
    /// What it is.
    pub kind: MessageKind,
    /// What it says.
    pub text: String,
    /// When the server stored it, or when it was written.
    pub time_ms: u64,
    /// How far it is.
    pub state: MessageState,
    /// Why it failed, in words.
    pub reason: Option<String>,
    /// What comparing it found.
    pub check: Check,
}

/// Who wrote a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Author {
    /// Their key: equal names with different keys are different people.
    pub user: String,
    /// Their name.
    pub name: String,
}

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MessageKind {
    /// Text.
    Text,
    /// A device came in, and says what its person is called.
    Join,
    /// A person who was known in the room came in with another device.
    Device,
    /// Somebody came in under a name that another person in the room has, or had.
    Namesake,
    /// Somebody was removed; the text is their names.
    Removed,
    /// A device left.
    Left,
    /// Newcomers read something else from here on; the text says what.
    History,
    /// Text of somebody who is no member, through the drop-box: who they are is only what they say.
    Post,
    /// Of a type that this version does not know; the text is its fallback.
    Unknown,
    /// A member brought somebody in; the text names them.
    Added,
}

/// How far a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MessageState {
    /// Kept here, not yet on the server's disk.
    Pending,
    /// On the server's disk.
    Sent,
    /// It will not be sent unless asked again.
    Failed,
    /// Another's.
    Received,
}

/// The three results of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// What the sender had seen is what this device has.
    Matches,
    /// This device does not have that part.
    Unchecked,
    /// It is not what this device has.
    Contradicts,
}

/// The connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConnectionState {
    /// Waiting for the next attempt.
    Offline,
    /// Trying.
    Connecting,
    /// Logged in.
    Online,
    /// The edge does not let this device in: it wants a token ([`Command::Token`]), or another one. It is asked again now and then.
    Refused,
}

/// How bad a notice is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// For information.
    Info,
    /// Something did not go well.
    Warn,
    /// The server or a member contradicts what this device knows.
    Alarm,
}
