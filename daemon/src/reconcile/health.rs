//! Makes it a fact who is up: the leader proposes only transitions, from heartbeats it heard.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use makai_erasure::NodeId;
use makai_raft::facts::cluster::{Node, Standing};
use makai_raft::facts::command::Command;

use super::Shell;
use crate::clock;

const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A node silent for this long is down. Six heartbeats: one lost datagram or a busy second is no outage.
const SILENCE_MAX: Duration = Duration::from_secs(3);

/// Nodes whose fact differs from what was heard. Pure.
///
/// `heard`: when each was last heard; `leading_since`: nobody is down for silence towards an earlier leader.
fn transitions(
    nodes: &[Node],
    heard: &HashMap<NodeId, Instant>,
    leading_since: Instant,
    now: Instant,
) -> Vec<(NodeId, bool)> {
    let of = |node: &Node| {
        let last = heard.get(&node.id).copied().unwrap_or(leading_since).max(leading_since);
        let is_silent = now.duration_since(last) > SILENCE_MAX;
        let was_heard = heard.get(&node.id).is_some_and(|at| now.duration_since(*at) <= SILENCE_MAX);
        match (node.is_up, is_silent, was_heard) {
            (true, true, _) => Some((node.id, false)),
            (false, _, true) => Some((node.id, true)),
            _ => None,
        }
    };
    nodes.iter().filter(|node| node.standing != Standing::Lost).filter_map(of).collect()
}

pub async fn run(shell: Shell) {
    let mut leading_since = None;
    while shell.pause(LOOK_EVERY).await {
        if !shell.is_leader() {
            leading_since = None;
            continue;
        }
        let since = *leading_since.get_or_insert_with(clock::instant);
        let heard = shell.members.heard().into_iter().map(|(id, heard)| (id, heard.at)).collect();
        for (node, is_up) in transitions(&shell.map.get().map.nodes, &heard, since, clock::instant()) {
            tracing::info!(%node, is_up, "a node's reachability changed");
            if let Err(error) = shell.facts.propose(Command::SetNodeUp { node, is_up }).await {
                tracing::debug!(%node, %error, "its reachability was not noted");
            }
            shell.map_changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use makai_raft::facts::Timestamp;

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
        assert_eq!(transitions(&nodes, &heard, at(0), at(10)), [down, up]);
        assert_eq!(transitions(&nodes, &heard, at(9), at(10)), [up]);
        assert_eq!(transitions(&nodes, &HashMap::new(), at(9), at(11)), []);
    }
}
