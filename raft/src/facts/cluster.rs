//! Nodes, their disks, the groups made of them, and how one joins.

use std::fmt;
use std::str::FromStr;

use makai_erasure::{DiskId, NodeId, PgId, Scheme};
use serde::{Deserialize, Serialize};

use super::Timestamp;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Keeps the facts; trusted.
    Voter,
    /// Keeps shards.
    Storage,
    /// Serves customers; trusted with their keys.
    Gateway,
    /// Runs jobs.
    Compute,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Voter => "voter",
            Self::Storage => "storage",
            Self::Gateway => "gateway",
            Self::Compute => "compute",
        })
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "voter" => Ok(Self::Voter),
            "storage" => Ok(Self::Storage),
            "gateway" => Ok(Self::Gateway),
            "compute" => Ok(Self::Compute),
            _ => Err(format!("role {text:?} is none of voter, storage, gateway, compute")),
        }
    }
}

/// What a person has decided about a node or a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    Active,
    /// Takes nothing new; what it holds moves away.
    Draining,
    /// Gone for good: its shards count as lost.
    Lost,
}

impl Standing {
    /// Of what is decided about a disk and about its node, the one that holds for the disk.
    #[must_use]
    pub fn worse(self, other: Self) -> Self {
        match (self, other) {
            (Self::Lost, _) | (_, Self::Lost) => Self::Lost,
            (Self::Draining, _) | (_, Self::Draining) => Self::Draining,
            (Self::Active, Self::Active) => Self::Active,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub id: NodeId,
    /// Its number in the voter set; given at its joining, never reused.
    pub number: u64,
    pub name: String,
    /// Failure domains above the node; empty: unknown, then the node stands for itself.
    pub owner: String,
    pub site: String,
    pub roles: Vec<Role>,
    /// Where peers reach it (`host:port`, UDP); empty: it only dials out.
    pub addresses: Vec<String>,
    pub standing: Standing,
    pub joined_at: Timestamp,
    /// Whether the leader hears from it, and since when that is so.
    pub is_up: bool,
    pub changed_at: Timestamp,
    /// Release of its daemon.
    pub version: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    pub id: DiskId,
    pub node: NodeId,
    pub capacity_bytes: u64,
    pub standing: Standing,
    pub added_at: Timestamp,
    /// As the leader hears from its node.
    #[serde(default)]
    pub condition: Condition,
}

/// How a disk is, whatever a person has decided about it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Condition {
    #[default]
    Well,
    /// Nearly full: it takes no new slots, and some of those it has go to others.
    Full,
    /// Its node answers and has it no longer, or it failed: what it held is made again elsewhere, until it is back.
    Missing,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    pub id: PgId,
    pub scheme: Scheme,
    /// Grows by one with every change of `disks`.
    pub version: u32,
    /// `disks[i]` holds shard i.
    pub disks: Vec<DiskId>,
    /// Slots on their way to another disk, ascending; at most one move a slot.
    #[serde(default)]
    pub moves: Vec<SlotMove>,
}

/// A slot that another disk is being filled for. Until that one holds every shard of the slot, the slot's own disk is
/// read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SlotMove {
    pub slot: u8,
    pub to: DiskId,
    /// The slot's own disk is away: the move is given up if that one comes back first.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_remake: bool,
}

/// Everything a door needs to reach blobs. Small: O(nodes + groups).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterMap {
    /// Grows with every change of what follows.
    pub epoch: u64,
    pub cluster_id: String,
    pub nodes: Vec<Node>,
    pub disks: Vec<Disk>,
    pub groups: Vec<Group>,
}

/// A right to join, once its secret is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    pub id: String,
    /// BLAKE3 of the secret.
    pub secret_hash: [u8; 32],
    /// Roles that a joining node may take.
    pub roles: Vec<Role>,
    pub expires_at: Timestamp,
    /// Nodes that may still join with it.
    pub uses_left: u32,
}
