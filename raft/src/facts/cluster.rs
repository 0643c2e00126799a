//! Nodes, their disks, the groups made of them, and how one joins.

use std::collections::BTreeSet;
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
    /// Millionths of its time for which it was down, as of `changed_at`: see [`Node::downtime_ppm`].
    #[serde(default)]
    pub down_ppm: u32,
}

/// What a node did longer ago counts less and less.
const DOWNTIME_WINDOW_MS: u64 = 30 * 24 * 60 * 60 * 1000;
const PPM: u64 = 1_000_000;
/// A node that was down for more is part-time: three hours of each day.
const PART_TIME_PPM: u32 = 125_000;
/// Before, too little is known of it.
const PART_TIME_KNOWN_MS: u64 = 36 * 60 * 60 * 1000;

impl Node {
    /// Notes that it is heard, or no longer. Returns whether that is new.
    pub fn note_up(&mut self, is_up: bool, now: Timestamp) -> bool {
        let is_new = self.is_up != is_up;
        if is_new {
            self.down_ppm = self.downtime_ppm(now);
            self.is_up = is_up;
            self.changed_at = now;
        }
        is_new
    }

    /// Millionths of its time for which it was down: of all of it, and from the thirtieth day on weighted so that what is
    /// longer ago counts less.
    #[must_use]
    pub fn downtime_ppm(&self, now: Timestamp) -> u32 {
        let window = now.millis_since(self.joined_at).clamp(1, DOWNTIME_WINDOW_MS);
        let since = now.millis_since(self.changed_at).min(window);
        let before = u64::from(self.down_ppm).min(PPM) * (window - since);
        let after = if self.is_up { 0 } else { PPM * since };
        // At most PPM x the window, which is less than 2^52.
        u32::try_from((before + after) / window).unwrap_or(u32::MAX)
    }

    /// Whether its machine is off for a good part of each day.
    #[must_use]
    pub fn is_part_time(&self, now: Timestamp) -> bool {
        now.millis_since(self.joined_at) >= PART_TIME_KNOWN_MS && self.downtime_ppm(now) > PART_TIME_PPM
    }
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
    /// How quickly it is written; 0: not measured.
    #[serde(default)]
    pub speed_bytes_per_sec: u64,
}

/// A disk takes no more than it can read back in so long, at the part of its speed that [`READ_BACK_PARTS`] says.
const READ_BACK_SECS: u64 = 14 * 24 * 60 * 60;
const READ_BACK_PARTS: u64 = 10;

impl Disk {
    /// What it counts as when slots are shared out: its size, or less where it is slow. At least 1.
    #[must_use]
    pub fn weight_bytes(&self) -> u64 {
        let bound = match self.speed_bytes_per_sec {
            0 => u64::MAX,
            speed => (speed / READ_BACK_PARTS).saturating_mul(READ_BACK_SECS),
        };
        self.capacity_bytes.min(bound).max(1)
    }
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

/// The version that a group begins with.
pub const FIRST_GROUP_VERSION: u32 = 1;

impl Group {
    /// Whether it may take the place of `known`, or be a new one, as far as can be said without knowing the disks.
    ///
    /// # Errors
    /// Why not.
    pub fn check_change(&self, known: Option<&Self>) -> Result<(), &'static str> {
        if Scheme::new(self.scheme.data, self.scheme.parity).is_err() {
            return Err("its scheme is none");
        }
        if self.disks.len() != self.scheme.shard_count() {
            return Err("it needs as many disks as its scheme has shards");
        }
        if self.disks.iter().collect::<BTreeSet<_>>().len() != self.disks.len() {
            return Err("it names a disk twice");
        }
        match known {
            None if self.version != FIRST_GROUP_VERSION => return Err("a new group has version 1"),
            Some(known) if known.scheme != self.scheme => return Err("the scheme of its blobs stays"),
            Some(known) if known.disks == self.disks && known.version != self.version => {
                return Err("its version changes with its disks alone");
            }
            Some(known)
                if known.disks != self.disks && known.version.checked_add(1) != Some(self.version) =>
            {
                return Err("its version grows by one with each change of its disks");
            }
            _ => {}
        }
        if !self.moves.is_sorted_by(|a, b| a.slot < b.slot) {
            return Err("its moves are in the order of their slots, one a slot");
        }
        if self.moves.iter().any(|moving| usize::from(moving.slot) >= self.disks.len()) {
            return Err("it moves a slot that it does not have");
        }
        if self.holding().collect::<BTreeSet<_>>().len() != self.disks.len() + self.moves.len() {
            return Err("it moves a slot to a disk that it has already");
        }
        Ok(())
    }

    /// The disks that hold its slots, and those that are being filled.
    pub fn holding(&self) -> impl Iterator<Item = &DiskId> {
        self.disks.iter().chain(self.moves.iter().map(|moving| &moving.to))
    }
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
    /// A person has stopped the evening out of shares.
    #[serde(default)]
    pub is_rebalance_paused: bool,
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
