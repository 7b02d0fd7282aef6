//! A person's card: `https://host/#u…`, what one gives to others so that they can write to one. Nothing in it is secret, and it lets
//! nobody in anywhere: it names the person and their devices, and whoever has it takes the devices' key packages from the server.
//!
//! `u` is for user, then base64url of `format (1) ‖ person (32) ‖ device (32)`, as many devices as there are.

use core::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};

use super::{identity::UserKey, link::origin};
use crate::core::id::DeviceKey;

const FORMAT: u8 = 1;
/// Most devices that a card names.
pub const CARD_DEVICES_MAX: usize = 16;

/// What a card says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// Scheme and authority of the edge where the person is.
    pub origin: String,
    /// The person.
    pub user: UserKey,
    /// Their devices.
    pub devices: Vec<DeviceKey>,
}

/// Text that is no card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CardError {
    /// No `#u…` in it: cut off, or a room's link.
    #[error("not a person's card: it must end in #u and about 90 letters, copied whole")]
    NoFragment,
    /// The letters are damaged or cut short.
    #[error("the card is damaged or cut short: copy it whole")]
    Damaged,
    /// Made by a newer Waxwing.
    #[error("the card has format {0}, which this version does not know: update waxwing")]
    Format(u8),
    /// The part before `#` is no http(s) address.
    #[error("the card must begin with http:// or https://")]
    Origin,
}

impl fmt::Display for Card {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = vec![FORMAT];
        bytes.extend_from_slice(&self.user.0);
        for device in self.devices.iter().take(CARD_DEVICES_MAX) {
            bytes.extend_from_slice(&device.0);
        }
        write!(f, "{}/#u{}", self.origin, BASE64.encode(bytes))
    }
}

impl core::str::FromStr for Card {
    type Err = CardError;

    fn from_str(text: &str) -> Result<Self, CardError> {
        let (before, fragment) = text.trim().split_once('#').ok_or(CardError::NoFragment)?;
        let fragment = fragment.strip_prefix('u').ok_or(CardError::NoFragment)?;
        let bytes = BASE64.decode(fragment).map_err(|_| CardError::Damaged)?;
        let (format, keys) = bytes.split_first().ok_or(CardError::Damaged)?;
        if *format != FORMAT {
            return Err(CardError::Format(*format));
        }
        let (keys, rest) = keys.as_chunks::<32>();
        let (user, devices) = keys.split_first().ok_or(CardError::Damaged)?;
        if !rest.is_empty() || devices.is_empty() || devices.len() > CARD_DEVICES_MAX {
            return Err(CardError::Damaged);
        }
        let origin = origin(before).ok_or(CardError::Origin)?;
        Ok(Self { origin, user: UserKey(*user), devices: devices.iter().copied().map(DeviceKey).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_survives_copying_and_says_what_is_wrong_with_it() {
        let card = Card {
            origin: "https://chat.example.com".into(),
            user: UserKey([1; 32]),
            devices: vec![DeviceKey([2; 32]), DeviceKey([3; 32])],
        };
        let text = card.to_string();
        assert_eq!(text.parse(), Ok(card.clone()));
        assert_eq!(format!(" {}\n", text.replace("/#", "/?transport=ws#")).parse(), Ok(card.clone()));
        assert_eq!("https://chat.example.com/#rAg".parse::<Card>(), Err(CardError::NoFragment));
        assert_eq!(text[..text.len() - 3].parse::<Card>(), Err(CardError::Damaged));
        assert_eq!(Card { devices: vec![], ..card }.to_string().parse::<Card>(), Err(CardError::Damaged), "nobody to seal to");
        assert_eq!(text.replace("#uA", "#uB").parse::<Card>(), Err(CardError::Format(5)));
        assert_eq!(text.replace("https", "ftp").parse::<Card>(), Err(CardError::Origin));
    }
}
