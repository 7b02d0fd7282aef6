//! A room's link: `https://host/#r1…`. What follows `#` never reaches the server: it is the key to the room.
//!
//! `r` is for room, then base64url of `format (2) ‖ room (16) ‖ link seed (32) ‖ access seed (32) ‖ host (32)`.

use core::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};

use super::identity::UserKey;
use crate::core::id::RoomId;

const FORMAT: u8 = 2;
const LEN: usize = 1 + 16 + 32 + 32 + 32;

/// What a link carries.
#[derive(Clone, PartialEq, Eq)]
pub struct Link {
    /// Scheme and authority of the edge: `https://chat.example.com`.
    pub origin: String,
    /// The room.
    pub room: RoomId,
    /// From it the link's keys are derived (`group::LinkKeys`).
    pub seed: [u8; 32],
    /// What opens the room at the server.
    pub access: [u8; 32],
    /// Who made the link: whoever follows it looks for this person in the group.
    pub host: UserKey,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("origin", &self.origin).field("room", &self.room).finish_non_exhaustive()
    }
}

/// Text that is no room link.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// No `#r…` in it: cut off, or another kind of link.
    #[error("not a room link: it must end in #r and about 151 letters, copied whole")]
    NoFragment,
    /// The letters are damaged or cut short.
    #[error("the room link is damaged or cut short: copy it whole")]
    Damaged,
    /// Made by a newer Waxwing.
    #[error("the room link has format {0}, which this version does not know: update waxwing")]
    Format(u8),
    /// The part before `#` is no http(s) address.
    #[error("the room link must begin with http:// or https://")]
    Origin,
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::with_capacity(LEN);
        bytes.push(FORMAT);
        bytes.extend_from_slice(&self.room.0);
        bytes.extend_from_slice(&self.seed);
        bytes.extend_from_slice(&self.access);
        bytes.extend_from_slice(&self.host.0);
        write!(f, "{}/#r{}", self.origin, BASE64.encode(bytes))
    }
}

impl core::str::FromStr for Link {
    type Err = LinkError;

    fn from_str(text: &str) -> Result<Self, LinkError> {
        let (before, fragment) = text.trim().split_once('#').ok_or(LinkError::NoFragment)?;
        let fragment = fragment.strip_prefix('r').ok_or(LinkError::NoFragment)?;
        let bytes = BASE64.decode(fragment).map_err(|_| LinkError::Damaged)?;
        let format = *bytes.first().ok_or(LinkError::Damaged)?;
        if format != FORMAT {
            return Err(LinkError::Format(format));
        }
        let bytes: [u8; LEN] = bytes.try_into().map_err(|_| LinkError::Damaged)?;
        let origin = origin(before).ok_or(LinkError::Origin)?;
        let part = |from: usize, to: usize| bytes.get(from..to).unwrap_or_default();
        Ok(Self {
            origin,
            room: RoomId(part(1, 17).try_into().map_err(|_| LinkError::Damaged)?),
            seed: part(17, 49).try_into().map_err(|_| LinkError::Damaged)?,
            access: part(49, 81).try_into().map_err(|_| LinkError::Damaged)?,
            host: UserKey(part(81, 113).try_into().map_err(|_| LinkError::Damaged)?),
        })
    }
}

/// Scheme and authority of what stands before `#`, if it is an http(s) address.
pub(super) fn origin(before: &str) -> Option<String> {
    let (scheme, rest) = before.split_once("://")?;
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    (matches!(scheme, "http" | "https") && !authority.is_empty()).then(|| format!("{scheme}://{authority}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_survives_copying_and_says_what_is_wrong_with_it() {
        let link = Link {
            origin: "http://localhost:8433".into(),
            room: RoomId([1; 16]),
            seed: [2; 32],
            access: [4; 32],
            host: UserKey([3; 32]),
        };
        let text = link.to_string();
        assert_eq!(text.parse(), Ok(link.clone()));
        assert_eq!(format!(" {text}\n").parse(), Ok(link.clone()));
        assert_eq!(text.replace("/#", "/r?transport=ws#").parse(), Ok(link));
        assert_eq!("http://localhost:8433/".parse::<Link>(), Err(LinkError::NoFragment));
        assert_eq!(text[..text.len() - 2].parse::<Link>(), Err(LinkError::Damaged));
        assert_eq!(text.replace("#rA", "#rB").parse::<Link>(), Err(LinkError::Format(6)));
        assert_eq!(text.replace("http://", "ftp://").parse::<Link>(), Err(LinkError::Origin));
        assert!(!format!("{:?}", text.parse::<Link>()).contains("AgIC"), "the seed is not in debug output");
    }
}
