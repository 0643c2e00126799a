//! Who is up, judged by when each node was last heard by anybody. No clock.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use makai_erasure::NodeId;
use makai_raft::facts::cluster::{Node, Standing};

/// A node silent for this long is down. Six heartbeats: one lost datagram or a busy second is no outage.
pub const SILENCE_MAX: Duration = Duration::from_secs(3);
/// Downs within this time make a node wait before it counts as up again.
const FLAPS_WITHIN: Duration = Duration::from_secs(600);
/// So many cost nothing: a machine that is updated starts more than once.
const FLAPS_FREE: usize = 2;
/// How long one that goes once more must be heard without a break; doubles with each.
const STEADY_MIN: Duration = Duration::from_secs(5);
const STEADY_MAX: Duration = Duration::from_secs(60);

/// Judges who is up from what was heard. Soft state of the leader; a new one begins without.
#[derive(Debug, Default)]
pub struct Judge {
    records: HashMap<NodeId, Record>,
}

/// What is remembered of one node.
#[derive(Debug, Default)]
struct Record {
    /// When it was first looked at: one that has just joined has not been silent since this node leads.
    known_since: Option<Instant>,
    /// Since when it is heard without a break.
    heard_since: Option<Instant>,
    /// When it went down, of late.
    downs: VecDeque<Instant>,
    is_told_down: bool,
}

impl Record {
    /// How long it must be heard before it counts as up.
    fn steady_for(&mut self, now: Instant) -> Duration {
        while self.downs.front().is_some_and(|at| now.duration_since(*at) > FLAPS_WITHIN) {
            self.downs.pop_front();
        }
        let doublings = self.downs.len().checked_sub(FLAPS_FREE + 1);
        doublings.map_or(Duration::ZERO, |doublings| {
            let factor = 1u32 << doublings.min(8);
            (STEADY_MIN * factor).min(STEADY_MAX)
        })
    }
}

impl Judge {
    /// Nodes whose fact differs from what was heard. Pure but for what it remembers.
    ///
    /// `heard`: when each was last heard, by the leader or by a voter that passed it on: one that anybody hears is up.
    /// `leading_since`: nobody is down for silence towards an earlier leader.
    pub fn transitions(
        &mut self,
        nodes: &[Node],
        heard: &HashMap<NodeId, Instant>,
        leading_since: Instant,
        now: Instant,
    ) -> Vec<(NodeId, bool)> {
        if self.records.len() > nodes.len() {
            let known: BTreeSet<NodeId> = nodes.iter().map(|node| node.id).collect();
            self.records.retain(|id, _| known.contains(id));
        }
        let of = |node: &Node| {
            let last = heard.get(&node.id).copied();
            let is_heard = last.is_some_and(|at| now.duration_since(at) <= SILENCE_MAX);
            let record = self.records.entry(node.id).or_default();
            let known_since = *record.known_since.get_or_insert(now);
            let since = last.unwrap_or(known_since).max(leading_since);
            let is_silent = now.duration_since(since) > SILENCE_MAX;
            if is_heard {
                record.heard_since.get_or_insert(now);
            } else {
                record.heard_since = None;
            }
            match (node.is_up, record.heard_since) {
                (true, _) if is_silent => {
                    // Told again until it is a fact.
                    if !record.is_told_down {
                        record.is_told_down = true;
                        record.downs.push_back(now);
                    }
                    Some((node.id, false))
                }
                (false, Some(since)) if now.duration_since(since) >= record.steady_for(now) => {
                    record.is_told_down = false;
                    Some((node.id, true))
                }
                _ => None,
            }
        };
        nodes.iter().filter(|node| node.standing != Standing::Lost).filter_map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use makai_raft::facts::Timestamp;

    use super::*;
    use crate::clock;

    fn node(id: u8, is_up: bool) -> Node {
        Node {
            id: NodeId([id; 32]),
            number: u64::from(id),
            name: String::new(),
            owner: String::new(),
            site: String::new(),
            roles: vec![],
            addresses: vec![],
            standing: Standing::Active,
            joined_at: Timestamp(0),
            is_up,
            changed_at: Timestamp(0),
            version: String::new(),
            down_ppm: 0,
        }
    }

    #[test]
    fn only_changes_are_told_and_a_new_leader_waits() {
        let start = clock::instant();
        let at = |secs: u64| start + Duration::from_secs(secs);
        let nodes = [node(1, true), node(2, true), node(3, false), node(4, false)];
        let heard =
            HashMap::from([(NodeId([1; 32]), at(10)), (NodeId([2; 32]), at(4)), (NodeId([3; 32]), at(9))]);
        let down = (NodeId([2; 32]), false);
        let up = (NodeId([3; 32]), true);
        let transitions =
            |heard: &HashMap<_, _>, since, now| Judge::default().transitions(&nodes, heard, since, now);
        assert_eq!(transitions(&heard, at(0), at(10)), [down, up]);
        assert_eq!(transitions(&heard, at(9), at(10)), [up]);
        assert_eq!(transitions(&HashMap::new(), at(9), at(11)), []);
    }

    /// One that joins is waited for as one that went, however long the leader has led.
    #[test]
    fn a_newcomer_has_time_for_its_first_heartbeat() {
        let start = clock::instant();
        let at = |secs: u64| start + Duration::from_secs(secs);
        let (mut judge, nodes, heard) = (Judge::default(), [node(1, true)], HashMap::new());
        assert_eq!(judge.transitions(&nodes, &heard, start, at(100)), []);
        assert_eq!(judge.transitions(&nodes, &heard, start, at(103)), []);
        assert_eq!(judge.transitions(&nodes, &heard, start, at(104)), [(NodeId([1; 32]), false)]);
    }

    /// Seconds from its return until a node counts as up, when it goes for the nth time: a few restarts cost nothing, a
    /// line that breaks every minute makes it wait, and an hour of steadiness forgives all.
    #[test]
    fn who_goes_and_comes_often_waits() {
        let start = clock::instant();
        let at = |secs: u64| start + Duration::from_secs(secs);
        let mut judge = Judge::default();
        let mut one = [node(1, true)];
        let id = one[0].id;
        let mut heard = HashMap::from([(id, at(0))]);
        let mut now = 0;
        let mut waited = Vec::new();
        for time in 0..7 {
            if time == 6 {
                // Heard for an hour.
                for _ in 0..3600 {
                    now += 1;
                    heard.insert(id, at(now));
                    assert_eq!(judge.transitions(&one, &heard, start, at(now)), []);
                }
            }
            now += 4;
            assert_eq!(judge.transitions(&one, &heard, start, at(now)), [(id, false)]);
            assert_eq!(judge.transitions(&one, &heard, start, at(now)), [(id, false)], "not a fact yet");
            one[0].is_up = false;
            let back = now;
            loop {
                heard.insert(id, at(now));
                if judge.transitions(&one, &heard, start, at(now)) == [(id, true)] {
                    break;
                }
                now += 1;
            }
            one[0].is_up = true;
            waited.push(now - back);
        }
        assert_eq!(waited, [0, 0, 5, 10, 20, 40, 0]);
    }
}
