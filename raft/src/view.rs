//! The cluster map as a node last saw it, indexed for the data path. Holds no I/O: a loop of the daemon renews it.
//!
//! It may be behind the facts: a group's change is noticed when a shard is not where the map says, and the map is
//! then read again.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, RwLock};

use makai_erasure::placement::default_scheme;
use makai_erasure::{DiskId, NodeId, PgId, Scheme};

use crate::facts::cluster::{ClusterMap, Condition, Group, Node, Standing};

/// One state of the map.
#[derive(Debug, Default)]
pub struct IndexedMap {
    pub map: ClusterMap,
    node_of_disk: HashMap<DiskId, NodeId>,
    standings: HashMap<DiskId, Standing>,
    conditions: HashMap<DiskId, Condition>,
    nodes: HashMap<NodeId, usize>,
    groups: HashMap<PgId, usize>,
    by_scheme: HashMap<Scheme, Vec<usize>>,
}

impl IndexedMap {
    #[must_use]
    pub fn new(map: ClusterMap) -> Self {
        let mut by_scheme: HashMap<Scheme, Vec<usize>> = HashMap::new();
        for (at, group) in map.groups.iter().enumerate() {
            by_scheme.entry(group.scheme).or_default().push(at);
        }
        let node_standings: HashMap<NodeId, Standing> =
            map.nodes.iter().map(|node| (node.id, node.standing)).collect();
        let standing_of = |disk: &crate::facts::cluster::Disk| {
            let of_node = node_standings.get(&disk.node).copied().unwrap_or(Standing::Lost);
            (disk.id, disk.standing.worse(of_node))
        };
        Self {
            standings: map.disks.iter().map(standing_of).collect(),
            conditions: map.disks.iter().map(|disk| (disk.id, disk.condition)).collect(),
            node_of_disk: map
                .disks
                .iter()
                .filter(|disk| disk.standing != Standing::Lost)
                .map(|disk| (disk.id, disk.node))
                .collect(),
            nodes: map.nodes.iter().enumerate().map(|(at, node)| (node.id, at)).collect(),
            groups: map.groups.iter().enumerate().map(|(at, group)| (group.id, at)).collect(),
            by_scheme,
            map,
        }
    }

    #[must_use]
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id).map(|at| &self.map.nodes[*at])
    }

    /// The node that holds a disk; `None` for one that is unknown or lost.
    #[must_use]
    pub fn node_of(&self, disk: DiskId) -> Option<NodeId> {
        self.node_of_disk.get(&disk).copied()
    }

    /// What was decided about a disk or its node, whichever is worse; `None` for one that is unknown.
    #[must_use]
    pub fn standing_of(&self, disk: DiskId) -> Option<Standing> {
        self.standings.get(&disk).copied()
    }

    /// How a disk is, as its node says; [`Condition::Missing`] for one that is unknown.
    #[must_use]
    pub fn condition_of(&self, disk: DiskId) -> Condition {
        self.conditions.get(&disk).copied().unwrap_or(Condition::Missing)
    }

    #[must_use]
    pub fn group(&self, id: PgId) -> Option<&Group> {
        self.groups.get(&id).map(|at| &self.map.groups[*at])
    }

    pub fn groups_of(&self, scheme: Scheme) -> impl Iterator<Item = &Group> {
        self.by_scheme.get(&scheme).into_iter().flatten().map(|at| &self.map.groups[*at])
    }

    /// What a bucket that names no scheme gets: chosen by the nodes that hold usable disks.
    #[must_use]
    pub fn default_scheme(&self) -> Scheme {
        let usable = |disk: &&crate::facts::cluster::Disk| {
            disk.standing == Standing::Active
                && self.node(disk.node).is_some_and(|node| node.standing == Standing::Active)
        };
        let disks: Vec<_> = self.map.disks.iter().filter(usable).collect();
        let nodes: BTreeSet<NodeId> = disks.iter().map(|disk| disk.node).collect();
        default_scheme(nodes.len(), disks.len())
    }
}

/// The newest map this node has; cheap to clone and to read.
#[derive(Debug, Clone, Default)]
pub struct MapView {
    current: Arc<RwLock<Arc<IndexedMap>>>,
}

impl MapView {
    #[must_use]
    pub fn get(&self) -> Arc<IndexedMap> {
        Arc::clone(&self.current.read().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Takes a map unless it is older than the one held.
    pub fn update(&self, map: ClusterMap) {
        let mut current = self.current.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        if map.epoch >= current.map.epoch {
            *current = Arc::new(IndexedMap::new(map));
        }
    }
}
