//! Grows the voter set to the configured size from nodes with that role, and retires voters that are lost or leave.
//!
//! The leader alone changes membership, one node at a time. A voter that drains is replaced first, where there is another
//! node with the role, and retires then; a leader that drains hands over before. A voter whose directory is an older copy is
//! taken out, and comes in again as any candidate: it learns all there is before it votes.

use std::time::Duration;

use makai_erasure::NodeId;
use makai_raft::facts::cluster::{Node, Role, Standing};
use makai_raft::handle::{MetaAdminError, MetaNode};

use super::Shell;

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// For giving a candidate up.
const REMOVE_WITHIN: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Add(u64),
    Remove(u64),
    /// The leader itself is to retire: another leads first.
    HandOver,
}

/// Voters that draining alone does not go below: three bear one loss.
const DRAINED_VOTERS_MIN: usize = 3;

/// The next change, if one is due. Pure.
///
/// A lost voter goes first, and one of those `rewound` while most voters are sound and up; then, while there is room, the longest-standing candidate that is up comes in; then a voter
/// goes that drains.
fn next_change(
    nodes: &[Node],
    voters: &[u64],
    rewound: &[u64],
    leader: u64,
    voters_max: usize,
) -> Option<Change> {
    let is_candidate = |node: &&Node| node.standing == Standing::Active && node.roles.contains(&Role::Voter);
    let is_gone =
        |number: &&u64| !nodes.iter().any(|node| node.number == **number && node.standing != Standing::Lost);
    if let Some(gone) = voters.iter().find(is_gone) {
        return Some(Change::Remove(*gone));
    }
    let is_sound = |number: &&u64| {
        !rewound.contains(number) && nodes.iter().any(|node| node.number == **number && node.is_up)
    };
    if let Some(old) = voters.iter().find(|number| rewound.contains(number))
        && voters.iter().filter(is_sound).count() > voters.len() / 2
    {
        return Some(Change::Remove(*old));
    }
    let is_leaving =
        |number: &u64| nodes.iter().any(|node| node.number == *number && node.standing == Standing::Draining);
    let leaving = voters.iter().find(|number| is_leaving(number));
    let staying = voters.iter().filter(|number| !is_leaving(number)).count();
    if staying < voters_max {
        let candidates =
            nodes.iter().filter(is_candidate).filter(|node| node.is_up && !voters.contains(&node.number));
        if let Some(number) = candidates.map(|node| node.number).min() {
            return Some(Change::Add(number));
        }
    }
    match leaving {
        Some(_) if staying < DRAINED_VOTERS_MIN => None,
        Some(number) if *number == leader => Some(Change::HandOver),
        Some(number) => Some(Change::Remove(*number)),
        None => None,
    }
}

pub async fn run(shell: Shell) {
    while shell.pause(LOOK_EVERY).await {
        let Some(meta) = shell.members.meta().filter(|_| shell.is_leader()) else { continue };
        let map = shell.map.get();
        if map.map.nodes.is_empty() {
            continue;
        }
        let status = meta.status();
        let voters: Vec<u64> = status.voters.into_iter().map(|(number, _)| number).collect();
        let own = map.node(shell.id).map_or(0, |node| node.number);
        let voters_max = usize::from(shell.config.cluster.voters_max);
        let change = next_change(&map.map.nodes, &voters, &status.rewound, own, voters_max);
        let done = match change {
            None => continue,
            Some(Change::Add(number)) => match map.map.nodes.iter().find(|node| node.number == number) {
                Some(node) => add(&shell, meta, node).await,
                None => continue,
            },
            Some(Change::Remove(number)) => meta.remove_voter(number).await,
            Some(Change::HandOver) => meta.transfer_leader(None).await,
        };
        match done {
            Ok(()) => tracing::info!(?change, "the voter set changed"),
            Err(error) => tracing::warn!(?change, %error, "the voter set was not changed; trying again"),
        }
    }
}

/// Lets a candidate catch up and vote; gives it up when it goes meanwhile, so that others can come in.
async fn add(shell: &Shell, meta: &MetaNode, candidate: &Node) -> Result<(), MetaAdminError> {
    let (number, id) = (candidate.number, candidate.id);
    tokio::select! {
        added = meta.add_voter(number, id) => added,
        () = is_wanted_no_longer(shell, id) => {
            // As a learner it would be sent all changes for ever.
            let removed = tokio::time::timeout(REMOVE_WITHIN, meta.remove_voter(number)).await;
            removed.unwrap_or_else(|_| Err(MetaAdminError::Unconfirmed("no answer in time".into())))?;
            Err(MetaAdminError::Invalid("the candidate went before it had caught up".into()))
        }
    }
}

async fn is_wanted_no_longer(shell: &Shell, id: NodeId) {
    while shell.pause(LOOK_EVERY).await && shell.is_leader() {
        let map = shell.map.get();
        if map.node(id).is_none_or(|node| !node.is_up || node.standing != Standing::Active) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
            down_ppm: 0,
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
        assert_eq!(next_change(&nodes, &[1], &[], 1, 3), Some(Change::Add(3)));
        assert_eq!(next_change(&nodes, &[1, 3], &[], 1, 3), None, "2 is down and 4 is no voter");
        assert_eq!(next_change(&nodes, &[1], &[], 1, 1), None);
        let lost = [voter(1, true), node(2, &[Role::Voter], Standing::Lost, false), voter(3, true)];
        assert_eq!(next_change(&lost, &[1, 2], &[], 1, 3), Some(Change::Remove(2)));
    }

    #[test]
    fn an_older_copy_goes_and_learns_again_while_the_others_agree() {
        let voter = |number, is_up| node(number, &[Role::Voter], Standing::Active, is_up);
        let nodes = [voter(1, true), voter(2, true), voter(3, true)];
        assert_eq!(next_change(&nodes, &[1, 2, 3], &[2], 1, 3), Some(Change::Remove(2)));
        assert_eq!(next_change(&nodes, &[1, 3], &[], 1, 3), Some(Change::Add(2)));
        let without = [voter(1, true), voter(2, true), voter(3, false)];
        assert_eq!(next_change(&without, &[1, 2, 3], &[2], 1, 3), None, "two of three have to agree");
        assert_eq!(next_change(&nodes, &[1, 2], &[2], 1, 2), None);
    }

    #[test]
    fn a_draining_voter_is_replaced_then_retires() {
        let voter = |number, standing| node(number, &[Role::Voter], standing, true);
        let active = |number| voter(number, Standing::Active);
        let leaving = |number| voter(number, Standing::Draining);
        let four = [active(1), leaving(2), active(3), active(4)];
        assert_eq!(next_change(&four, &[1, 2, 3], &[], 1, 3), Some(Change::Add(4)));
        assert_eq!(next_change(&four, &[1, 2, 3, 4], &[], 1, 3), Some(Change::Remove(2)));
        assert_eq!(next_change(&four, &[1, 2, 3, 4], &[], 2, 3), Some(Change::HandOver));
        assert_eq!(next_change(&four, &[1, 3, 4], &[], 1, 3), None);
        let three = [active(1), leaving(2), active(3)];
        assert_eq!(next_change(&three, &[1, 2, 3], &[], 1, 3), None, "two voters bear no loss");
    }
}
