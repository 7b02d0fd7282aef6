//! The one place where the server reads the wall clock.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the place")]
pub fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Seconds since the Unix epoch.
#[must_use]
pub fn unix_seconds() -> u64 {
    unix_millis() / 1000
}
