//! Reads that ask a majority how far its logs go, instead of the leader, and it a majority.
//!
//! ```text
//! reader ─ Tail ─> those voters that answer soonest, with itself a majority ─ where their logs end ─> reader
//!   ├ all that any of them has is applied here, and the same vote as before ─> the facts here hold all that was answered
//!   └ otherwise, or too few of them answer soon ───────────────────────────> the leader is asked
//! ```
//!
//! At rest this is one round instead of two, and two processes of five wake up instead of all. While changes are under way the
//! leader is asked: it alone knows which of them are agreed.
//!
//! Always: an index that is returned is no earlier than the last change that was answered before the question. Such a change is on
//! the disks of a majority, which shares a voter with the one that is asked, and what is agreed is never cut from a log. Who votes
//! may have changed unknown to the reader: but the entry that first changes it needs a majority of the voters before it, and so is
//! in a log that is asked, and is not applied here. (Charapko, Ailijiang, Demirbas: Linearizable Quorum Reads in Paxos, HotStorage
//! 2019.) A voter that may have forgotten what it acknowledged does not answer, as it does not vote: see `witness`.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use makai_erasure::NodeId;
use serde::{Deserialize, Serialize};

use super::MetaNode;
use crate::handle::wire::{self, Kind, Trouble};
use crate::store::Position;

/// For all of a read by majority; then the leader is asked.
const QUORUM_TIMEOUT: Duration = Duration::from_millis(500);
/// Others are asked as well once one is so many times as late as it uses to be, within these limits.
const LATE_TIMES: u32 = 8;
const LATE_MIN: Duration = Duration::from_millis(5);
const LATE_MAX: Duration = Duration::from_secs(1);
/// Each so many reads one more voter is asked than is needed: it comes among the first where it answers sooner than they do.
const LOOK_ROUND_EVERY: u64 = 64;
/// What a voter that did not answer is taken to need.
const MISSED: Duration = Duration::from_secs(1);
/// After changes were found under way, the leader is asked at once for so long: there are more, as it seems.
const RESTLESS_FOR: Duration = Duration::from_millis(20);

/// Where a voter's log ends, agreed or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tail {
    /// A node that left and came again empty has another number.
    pub number: u64,
    /// Index after the last entry.
    pub next: u64,
}

/// Which voters answer soonest. Pure.
#[derive(Debug, Default)]
pub(super) struct Soonest {
    reads: u64,
    /// One that was never asked is tried first.
    took: BTreeMap<NodeId, Duration>,
    /// When changes were last found under way.
    restless_at: Option<Instant>,
}

impl Soonest {
    /// Puts voters in the order in which to ask them; says how many to ask at once, and when the others.
    fn plan(&mut self, voters: &mut [(u64, NodeId)], need: usize) -> (usize, Duration) {
        self.took.retain(|node, _| voters.iter().any(|(_, voter)| voter == node));
        self.reads += 1;
        let took = |node: &NodeId| self.took.get(node).copied().unwrap_or_default();
        voters.sort_by_key(|(_, node)| took(node));
        let slowest = need.checked_sub(1).and_then(|last| voters.get(last)).map(|(_, node)| took(node));
        let late = (slowest.unwrap_or_default() * LATE_TIMES).clamp(LATE_MIN, LATE_MAX);
        let spare = voters.len().saturating_sub(need);
        if spare == 0 || !self.reads.is_multiple_of(LOOK_ROUND_EVERY) {
            return (need, late);
        }
        let turn = (self.reads / LOOK_ROUND_EVERY) as usize % spare;
        voters.swap(need, need + turn);
        (need + 1, late)
    }

    /// Sooner counts at once, later bit by bit.
    fn note(&mut self, voter: NodeId, took: Duration) {
        let known = self.took.entry(voter).or_insert(took);
        *known = if took < *known / 2 { took } else { (*known * 7 + took) / 8 };
    }

    fn miss(&mut self, voter: NodeId) {
        self.took.insert(voter, MISSED);
    }

    fn is_restless(&self, now: Instant) -> bool {
        self.restless_at.is_some_and(|at| now.saturating_duration_since(at) < RESTLESS_FOR)
    }
}

fn next_of(position: &Position) -> u64 {
    position.applied.as_ref().map_or(0, |applied| applied.index + 1)
}

impl MetaNode {
    /// Where this voter's log ends.
    pub(super) fn tail(&self) -> Tail {
        let (purged, last) = self.0.log.bounds(self.0.config.group);
        let in_log = purged.max(last).map_or(0, |last| last.index + 1);
        // Facts that came whole may be ahead of the log.
        Tail { number: self.0.config.node_number, next: in_log.max(self.version()) }
    }

    /// An index such that facts applied up to it hold every change answered before; they are applied here already. `None`: ask the
    /// leader. Asks a majority, this voter included.
    pub(super) async fn quorum_index(&self) -> Option<u64> {
        let takes_part = self.0.takes_part.load(Ordering::Acquire);
        let own = self.tail();
        let before = self.0.store.frozen().ok()?;
        let is_restless = || self.lock(&self.0.soonest).is_restless(crate::handle::stopwatch());
        if !takes_part || own.next > next_of(before.as_of()) || is_restless() {
            return None;
        }
        let votes = before.as_of().membership.clone();
        drop(before);
        let membership = votes.membership();
        let [voters] = membership.get_joint_config().as_slice() else { return None };
        if !voters.contains(&own.number) {
            return None;
        }
        let others = voters.iter().filter(|number| **number != own.number);
        let others: Option<Vec<(u64, NodeId)>> =
            others.map(|number| Some((*number, membership.get_node(number)?.key))).collect();
        let furthest = tokio::time::timeout(QUORUM_TIMEOUT, self.furthest(others?, voters.len() / 2));
        let furthest = furthest.await.ok()??.max(own.next);
        let after = self.0.store.frozen().ok()?;
        if furthest > next_of(after.as_of()) {
            self.lock(&self.0.soonest).restless_at = Some(crate::handle::stopwatch());
            return None;
        }
        let is_same_vote = after.as_of().membership.log_id() == votes.log_id();
        if is_same_vote { furthest.checked_sub(1) } else { None }
    }

    /// The furthest end of the logs of any `need` of these voters; `None`: fewer answered.
    async fn furthest(&self, mut voters: Vec<(u64, NodeId)>, need: usize) -> Option<u64> {
        let (first, late) = self.lock(&self.0.soonest).plan(&mut voters, need);
        let mut waiting = voters.into_iter();
        let mut asked: FuturesUnordered<_> =
            waiting.by_ref().take(first).map(|to| self.ask_tail(to)).collect();
        let late = tokio::time::sleep(late);
        tokio::pin!(late);
        let (mut answers, mut furthest) = (0, 0);
        while answers < need {
            let answer = tokio::select! {
                answer = asked.next() => answer?,
                () = &mut late, if waiting.len() > 0 => {
                    asked.extend(waiting.by_ref().map(|to| self.ask_tail(to)));
                    continue;
                }
            };
            match answer {
                Some(next) => (answers, furthest) = (answers + 1, furthest.max(next)),
                None => asked.extend(waiting.next().map(|to| self.ask_tail(to))),
            }
        }
        Some(furthest)
    }

    async fn ask_tail(&self, (number, to): (u64, NodeId)) -> Option<u64> {
        let message = wire::encode(Kind::Tail as u8, self.0.config.group, &()).ok()?;
        let asked_at = crate::handle::stopwatch();
        let answer = self.0.peers.request(to, message, QUORUM_TIMEOUT).await;
        let tail = match answer {
            Ok(answer) => wire::decode_answer::<Tail>(Kind::Tail, &answer),
            Err(error) => Err(Trouble::Unavailable(error.to_string())),
        };
        match tail {
            Ok(tail) if tail.number == number => {
                self.lock(&self.0.soonest).note(to, asked_at.elapsed());
                Some(tail.next)
            }
            // A release that does not know the question, one that is gone, one that takes no part.
            _ => {
                self.lock(&self.0.soonest).miss(to);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn voters(count: u8) -> Vec<(u64, NodeId)> {
        (0..count).map(|number| (number.into(), NodeId([number; 32]))).collect()
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn the_soonest_are_asked_and_who_was_silent_last() {
        let mut soonest = Soonest::default();
        let mut all = voters(4);
        for (number, took) in [(0, 4), (1, 1), (2, 90), (3, 2)] {
            soonest.note(NodeId([number; 32]), ms(took));
        }
        assert_eq!(soonest.plan(&mut all, 2), (2, ms(16)));
        assert_eq!(all.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [1, 3, 0, 2]);
        soonest.miss(NodeId([1; 32]));
        assert_eq!(soonest.plan(&mut all, 2), (2, ms(32)));
        assert_eq!(all.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [3, 0, 2, 1]);
        soonest.note(NodeId([1; 32]), ms(1));
        soonest.plan(&mut all, 2);
        assert_eq!(all[0].0, 1, "one that is back counts at once");
    }

    #[test]
    fn each_of_the_others_is_tried_in_turn() {
        let mut soonest = Soonest::default();
        for number in 0..5 {
            soonest.note(NodeId([number; 32]), ms(u64::from(number) + 1));
        }
        let mut tried = Vec::new();
        for _ in 0..3 * LOOK_ROUND_EVERY {
            let mut all = voters(5);
            if soonest.plan(&mut all, 2).0 == 3 {
                tried.push(all[2].0);
            }
        }
        tried.sort_unstable();
        assert_eq!(tried, [2, 3, 4]);
        assert_eq!(soonest.plan(&mut voters(1), 1).0, 1, "nobody else is there");
        assert_eq!(soonest.plan(&mut [], 0).0, 0, "a lone voter asks nobody");
    }
}
