//! How many requests keys may send: a bucket of tokens for each that has a limit, on each gateway for itself.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use makai_ops::metrics as names;
use makai_raft::facts::tenant::TenantId;
use tokio::time::Instant;

use super::directory::Limit;
use super::{CACHE_ENTRIES_MAX, Identity};

/// What is left to a key.
#[derive(Debug, Clone, Copy)]
struct Tokens {
    /// In thousandths.
    left_milli: u64,
    at: Instant,
}

impl Tokens {
    /// Takes one, after what has come in since.
    fn take(&mut self, limit: Limit, now: Instant) -> bool {
        let full_milli = u64::from(limit.burst.max(1)) * 1000;
        let since: Duration = now.duration_since(self.at);
        let since_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        let new_milli = since_ms.saturating_mul(u64::from(limit.requests_per_second));
        if new_milli > 0 {
            self.left_milli = self.left_milli.saturating_add(new_milli).min(full_milli);
            self.at = now;
        }
        let is_left = self.left_milli >= 1000;
        if is_left {
            self.left_milli -= 1000;
        }
        is_left
    }
}

#[derive(Debug, Default)]
pub(super) struct Limits {
    keys: Mutex<HashMap<String, Tokens>>,
}

impl Limits {
    fn take(&self, key: &str, limit: Limit, now: Instant) -> bool {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if keys.len() >= CACHE_ENTRIES_MAX && !keys.contains_key(key) {
            // Whoever rested for long has its bucket full again: forgetting it changes nothing.
            keys.retain(|_, tokens| now.duration_since(tokens.at) < Duration::from_secs(60));
            if keys.len() >= CACHE_ENTRIES_MAX {
                return false;
            }
        }
        let full = Tokens { left_milli: u64::from(limit.burst.max(1)) * 1000, at: now };
        keys.entry(key.to_owned()).or_insert(full).take(limit, now)
    }
}

impl Identity {
    /// Whether a key may send one more request now. Where its limit cannot be read, it may.
    #[expect(
        clippy::disallowed_methods,
        reason = "counts requests in a shell; decides nothing that is agreed"
    )]
    pub async fn admit(&self, tenant: TenantId, access_key_id: &str) -> bool {
        let Ok(directory) = self.directory(tenant).await else { return true };
        let Some(limit) = directory.limits.get(access_key_id) else { return true };
        let may = self.inner.limits.take(access_key_id, *limit, Instant::now());
        if !may {
            metrics::counter!(names::GATEWAY_SLOWDOWNS, "bound" => "rate").increment(1);
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    #[expect(clippy::disallowed_methods, reason = "the paused clock of the test")]
    async fn a_key_has_its_burst_and_then_its_rate() {
        let limits = Limits::default();
        let limit = Limit { requests_per_second: 10, burst: 3 };
        let take = |key: &str| limits.take(key, limit, Instant::now());
        assert_eq!([take("A"), take("A"), take("A"), take("A")], [true, true, true, false]);
        assert!(take("B"), "each has its own");
        tokio::time::advance(Duration::from_millis(99)).await;
        assert!(!take("A"));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!([take("A"), take("A")], [true, false]);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(
            [take("A"), take("A"), take("A"), take("A")],
            [true, true, true, false],
            "no more than the burst"
        );
    }
}
