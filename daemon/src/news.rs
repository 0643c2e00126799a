//! How this node knows, without asking, that the facts have not changed: the leader tells how far they had come with its answer to
//! each heartbeat, and what the node itself changes or is told of counts besides.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use makai_raft::handle::Version;

/// How long it counts what the leader told: several heartbeats.
const TOLD_AGE_MAX: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
pub struct News {
    /// How far the facts had come when the leader last told, and when it was asked.
    told: Mutex<Option<(u64, Instant)>>,
    /// What has changed, or will have, before the leader tells.
    own: AtomicU64,
}

impl News {
    /// The leader, asked at `asked_at`, told how far the facts had come.
    pub fn told(&self, facts_at: u64, asked_at: Instant) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        // Answers may overtake each other, and a new leader may have applied less.
        *told = Some((told.map_or(facts_at, |(before, _)| before.max(facts_at)), asked_at));
    }

    /// This node has changed something, or was told that somebody has.
    pub fn note(&self) {
        self.own.fetch_add(1, Ordering::Relaxed);
    }

    /// What changes with the facts, late by a heartbeat at most; `None`: nobody has told lately. `leading`: how far they have come,
    /// where this node leads.
    pub fn version(&self, leading: Option<u64>, now: Instant) -> Option<Version> {
        let told = *self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let told = told.filter(|(_, at)| now.saturating_duration_since(*at) <= TOLD_AGE_MAX);
        // Apart, not as a sum: who has just led may know more than the next leader tells, and what this node notes must not make up
        // for that.
        Some(Version { facts: leading.or(told.map(|(at, _)| at))?, own: self.own.load(Ordering::Relaxed) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn what_the_leader_told_counts_until_it_is_old() {
        let (news, start) = (News::default(), clock::instant());
        assert_eq!(news.version(None, start), None);
        news.told(7, start);
        assert_eq!(news.version(None, start + TOLD_AGE_MAX), Some(Version { facts: 7, own: 0 }));
        assert_eq!(news.version(None, start + TOLD_AGE_MAX + Duration::from_millis(1)), None);
        assert_eq!(news.version(Some(9), start + 2 * TOLD_AGE_MAX), Some(Version { facts: 9, own: 0 }));
    }

    #[test]
    fn a_version_never_comes_again_once_something_has_changed() {
        let (news, start) = (News::default(), clock::instant());
        news.told(7, start);
        let before = news.version(None, start);
        news.note();
        assert_ne!(news.version(None, start), before);
        // An answer that was overtaken, or a leader that has yet to apply the last.
        news.told(6, start);
        assert_ne!(news.version(None, start), before);
        news.told(8, start);
        assert_eq!(news.version(None, start), Some(Version { facts: 8, own: 1 }));
        // It led and knew of a change more than the next leader tells so far.
        let led = news.version(Some(9), start);
        news.note();
        assert_ne!(news.version(None, start), led);
    }
}
