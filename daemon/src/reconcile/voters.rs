//! Grows the voter set to the configured size from nodes with that role, and retires voters that are lost.
//!
//! The leader alone changes membership, one node at a time.

use std::time::Duration;

use makai_raft::facts::cluster::{Node, Role, Standing};

use super::Shell;

const LOOK_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Add(u64),
    Remove(u64),
}

/// The next change, if one is due. Pure.
///
/// A lost voter goes first; then, while there is room, the longest-standing candidate that is up comes in.
fn next_change(nodes: &[Node], voters: &[u64], voters_max: usize) -> Option<Change> {
    let is_candidate = |node: &&Node| node.standing == Standing::Active && node.roles.contains(&Role::Voter);
    let is_gone =
        |number: &&u64| !nodes.iter().any(|node| node.number == **number && node.standing != Standing::Lost);
    if let Some(gone) = voters.iter().find(is_gone) {
        return Some(Change::Remove(*gone));
    }
    if voters.len() >= voters_max {
        return None;
    }
    let candidates =
        nodes.iter().filter(is_candidate).filter(|node| node.is_up && !voters.contains(&node.number));
    candidates.map(|node| node.number).min().map(Change::Add)
}

pub async fn run(shell: Shell) {
    while shell.pause(LOOK_EVERY).await {
        let Some(meta) = shell.members.meta().filter(|_| shell.is_leader()) else { continue };
        let map = shell.map.get();
        if map.map.nodes.is_empty() {
            continue;
        }
        let voters: Vec<u64> = meta.status().voters.into_iter().map(|(number, _)| number).collect();
        let change = next_change(&map.map.nodes, &voters, usize::from(shell.config.cluster.voters_max));
        let done = match change {
            None => continue,
            Some(Change::Add(number)) => match map.map.nodes.iter().find(|node| node.number == number) {
                Some(node) => meta.add_voter(number, node.id).await,
                None => continue,
            },
            Some(Change::Remove(number)) => meta.remove_voter(number).await,
        };
        match done {
            Ok(()) => tracing::info!(?change, "the voter set changed"),
            Err(error) => tracing::warn!(?change, %error, "the voter set was not changed; trying again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use makai_erasure::NodeId;
    use makai_raft::facts::Timestamp;

    fn node(number: u64, roles: &[Role], standing: Standing, is_up: bool) -> Node {
        Node {
            id: NodeId([number as u8; 32]),
            number,
            name: String::new(),
            owner: String::new(),
            site: String::new(),
            roles: roles.to_vec(),
            addresses: vec![],
            standing,
            joined_at: Timestamp(0),
            is_up,
            changed_at: Timestamp(0),
            version: String::new(),
        }
    }

    #[test]
    fn voters_come_from_the_role_and_the_lost_go() {
        let voter = |number, is_up| node(number, &[Role::Voter], Standing::Active, is_up);
        let nodes = [
            voter(1, true),
            voter(2, false),
            voter(3, true),
            node(4, &[Role::Storage], Standing::Active, true),
        ];
        assert_eq!(next_change(&nodes, &[1], 3), Some(Change::Add(3)));
        assert_eq!(next_change(&nodes, &[1, 3], 3), None, "2 is down and 4 is no voter");
        assert_eq!(next_change(&nodes, &[1], 1), None);
        let lost = [voter(1, true), node(2, &[Role::Voter], Standing::Lost, false), voter(3, true)];
        assert_eq!(next_change(&lost, &[1, 2], 3), Some(Change::Remove(2)));
    }
}
