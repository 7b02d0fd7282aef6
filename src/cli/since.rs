//! Points in time as people type them: `90m`, `2h`, `3d`, or RFC 3339.

/// A point in time, or how long ago it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Since {
    /// Milliseconds before now.
    Ago(u64),
    /// Unix milliseconds.
    At(u64),
}

impl Since {
    /// Unix milliseconds.
    pub(super) const fn at_ms(self, now_ms: u64) -> u64 {
        match self {
            Self::Ago(ms) => now_ms.saturating_sub(ms),
            Self::At(ms) => ms,
        }
    }
}

/// Reads one.
pub(super) fn parse(text: &str) -> Result<Since, String> {
    ago(text).or_else(|| rfc3339(text)).ok_or_else(|| "such as 30s, 90m, 2h, 3d, or 2026-11-23T06:30:00Z".to_owned())
}

fn ago(text: &str) -> Option<Since> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let unit_ms = match unit {
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit_ms).map(Since::Ago)
}

/// RFC 3339, section 5.6, from 1970 on; a fraction of a second is allowed and ignored.
fn rfc3339(text: &str) -> Option<Since> {
    let (date, rest) = text.split_once(['T', 't', ' '])?;
    let number = |text: &str, len: usize| (text.len() == len).then(|| text.parse::<i64>().ok()).flatten();
    let mut parts = date.split('-');
    let (year, month, day) = (number(parts.next()?, 4)?, number(parts.next()?, 2)?, number(parts.next()?, 2)?);
    let zone = rest.find(['Z', 'z', '+', '-'])?;
    let (clock, zone) = rest.split_at_checked(zone)?;
    let mut fields = clock.split('.').next()?.split(':');
    let (hour, minute, second) = (number(fields.next()?, 2)?, number(fields.next()?, 2)?, number(fields.next()?, 2)?);
    let offset_minutes = match zone {
        "Z" | "z" => 0,
        _ => {
            let (sign, offset) = zone.split_at_checked(1)?;
            let (hours, minutes) = offset.split_once(':')?;
            let minutes = number(hours, 2)? * 60 + number(minutes, 2)?;
            if sign == "-" { -minutes } else { minutes }
        }
    };
    let fits = parts.next().is_none() && fields.next().is_none() && (1..=12).contains(&month) && (1..=31).contains(&day);
    if !fits || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Days of the civil calendar: years begin in March, so that the leap day comes last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    let seconds = ((days * 24 + hour) * 60 + minute - offset_minutes) * 60 + second;
    u64::try_from(seconds).ok()?.checked_mul(1000).map(Since::At)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_type_them() {
        for (text, since) in [
            ("90m", Since::Ago(5_400_000)),
            ("2h", Since::Ago(7_200_000)),
            ("3d", Since::Ago(259_200_000)),
            ("1970-01-01T00:00:00Z", Since::At(0)),
            ("2000-02-29T12:34:56Z", Since::At(951_827_696_000)),
            ("2026-11-23T06:30:00.5+02:00", Since::At(1_795_408_200_000)),
            ("2026-11-22 23:30:00-05:00", Since::At(1_795_408_200_000)),
        ] {
            assert_eq!(parse(text), Ok(since), "{text}");
        }
        for text in
            ["", "h", "2x", "-2h", "2026-11-23", "2026-13-01T00:00:00Z", "2026-11-23T24:00:00Z", "1969-12-31T00:00:00Z", "ü"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!((Since::Ago(5).at_ms(3), Since::Ago(5).at_ms(8), Since::At(9).at_ms(1)), (0, 3, 9));
    }
}
