//! What the store keeps: `[retention]`, and `[retention.rooms."…"]` for single rooms.

use std::collections::BTreeMap;

use toml::Value;

use super::{
    Config,
    keys::{Key, Shape, key},
};
use crate::core::id::RoomId;

/// What comes before a room's id in a key.
pub(super) const ROOMS: &str = "retention.rooms.";
/// What a room's id may look like.
pub(super) const ROOM_ALLOWED: &str = "a room's id: its 22 letters, or 32 hexadecimal digits";

/// What a log keeps. Whatever one of the limits lets go goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Keep {
    /// Messages older than so many days may go. Absent: none do.
    pub max_age_days: Option<u64>,
    /// Messages beyond the newest so many may go. Absent: none do.
    pub max_count: Option<u64>,
    /// Messages beyond the newest so many bytes may go. Absent: none do.
    pub max_bytes: Option<u64>,
}

/// What the store keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retention {
    /// In rooms that are not named. It does not hold for inboxes, whose keys are needed as long as somebody may come for them.
    pub default: Keep,
    /// In rooms (and inboxes) that are named: the default does not fill in what is absent there.
    pub rooms: BTreeMap<RoomId, Keep>,
    /// Minutes between two looks at all rooms. Default 60.
    pub sweep_minutes: u32,
}

impl Default for Retention {
    fn default() -> Self {
        Self { default: Keep::default(), rooms: BTreeMap::new(), sweep_minutes: 60 }
    }
}

/// The limits by name, and where they are.
type Limit = (&'static str, &'static str, fn(&mut Keep) -> &mut Option<u64>);

const LIMITS: [Limit; 3] = [
    ("max_age_days", "a whole number of days, 1 or more", |keep| &mut keep.max_age_days),
    ("max_count", "a whole number, 1 or more", |keep| &mut keep.max_count),
    ("max_bytes", "a whole number of bytes, 1 or more", |keep| &mut keep.max_bytes),
];

fn shown(value: Option<u64>) -> Option<Value> {
    value.and_then(|value| i64::try_from(value).ok()).map(Value::Integer)
}

fn taken(value: &Value) -> Option<u64> {
    value.as_integer().filter(|value| *value >= 1).and_then(|value| u64::try_from(value).ok())
}

/// The keys of the default.
pub(super) fn keys() -> impl Iterator<Item = Key> {
    LIMITS.into_iter().map(|(name, allowed, field)| {
        let show = move |config: &Config| shown(*field(&mut config.retention.default.clone()));
        let set = move |config: &mut Config, value: &Value| {
            *field(&mut config.retention.default) = Some(taken(value)?);
            Some(())
        };
        key(&format!("retention.{name}"), Shape::Integer, allowed, show, set)
    })
}

/// The keys of one room, which is spelled `text`.
fn keys_of(text: &str, room: RoomId) -> impl Iterator<Item = Key> + use<'_> {
    LIMITS.into_iter().map(move |(name, allowed, field)| {
        let show = move |config: &Config| shown(*field(&mut config.retention.rooms.get(&room).copied().unwrap_or_default()));
        let set = move |config: &mut Config, value: &Value| {
            *field(config.retention.rooms.entry(room).or_default()) = Some(taken(value)?);
            Some(())
        };
        key(&format!("{ROOMS}{text}.{name}"), Shape::Integer, allowed, show, set)
    })
}

/// The keys of the rooms that are named.
pub(super) fn keys_of_rooms(config: &Config) -> Vec<Key> {
    config.retention.rooms.keys().flat_map(|room| keys_of(&room.to_string(), *room).collect::<Vec<_>>()).collect()
}

/// A key of a room, if `name` is one: as it is always spelled. The room's id alone may be wrong.
pub(super) fn room_key(name: &str) -> Option<Result<String, String>> {
    let (text, limit) = name.strip_prefix(ROOMS)?.rsplit_once('.')?;
    LIMITS.iter().find(|(name, ..)| *name == limit)?;
    Some(room(text).map(|room| format!("{ROOMS}{room}.{limit}")).ok_or_else(|| text.to_owned()))
}

/// The key of that name, as [`room_key`] spells it.
pub(super) fn find(name: &str) -> Option<Key> {
    let (text, _) = name.strip_prefix(ROOMS)?.rsplit_once('.')?;
    keys_of(text, room(text)?).find(|key| key.name == name)
}

fn room(text: &str) -> Option<RoomId> {
    if text.len() != 32 {
        return text.parse().ok();
    }
    let mut id = RoomId([0; 16]);
    for (byte, digits) in id.0.iter_mut().zip(text.as_bytes().chunks(2)) {
        let digits = std::str::from_utf8(digits).ok().filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(digits, 16).ok()?;
    }
    Some(id)
}
