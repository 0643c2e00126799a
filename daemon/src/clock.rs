//! The only reader of this machine's clock. Everything below takes time as an argument.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use makai_raft::facts::Timestamp;

/// Unix time, as far as this machine knows it.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
pub fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}

/// A point in time that never goes back.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the one place that reads the monotonic clock")]
pub fn instant() -> Instant {
    Instant::now()
}

/// The runtime's time, for deadlines: a test that pauses the runtime's clock pauses these.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the one place that reads the runtime's clock")]
pub fn timer() -> tokio::time::Instant {
    tokio::time::Instant::now()
}
