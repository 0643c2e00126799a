//! Keeps a node that nobody can dial connected to every voter and gateway, so that they can ask it and relay to it; and
//! measures what goes through this node's line.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use makai_erasure::NodeId;
use makai_raft::facts::cluster::{Role, Standing};
use makai_raft::view::IndexedMap;
use serde::{Deserialize, Serialize};

use super::Shell;
use crate::transport::ConnectionKind;

const LOOK_EVERY: Duration = Duration::from_secs(2);

/// The most that went through this node's line in any two seconds since its start.
#[derive(Debug, Default)]
pub struct Line {
    up: AtomicU64,
    down: AtomicU64,
    relays: AtomicU64,
}

/// [`Line`] at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineNow {
    pub up_bytes_per_sec: u64,
    pub down_bytes_per_sec: u64,
    /// Voters and gateways that this node keeps connections open to, because nobody can dial it.
    pub relays: u64,
    /// Round trip to whom the heartbeats go; 0: unknown, or to itself.
    pub rtt_micros: u64,
}

impl Line {
    #[must_use]
    pub fn now(&self, rtt: Option<Duration>) -> LineNow {
        LineNow {
            up_bytes_per_sec: self.up.load(Ordering::Relaxed),
            down_bytes_per_sec: self.down.load(Ordering::Relaxed),
            relays: self.relays.load(Ordering::Relaxed),
            rtt_micros: rtt.map_or(0, |rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)),
        }
    }
}

/// Nodes through which others can be reached: voters and gateways that can be dialled. Pure.
#[must_use]
pub fn relays(map: &IndexedMap) -> Vec<NodeId> {
    let is_trusted = |roles: &[Role]| roles.contains(&Role::Voter) || roles.contains(&Role::Gateway);
    map.map
        .nodes
        .iter()
        .filter(|node| node.is_up && node.standing != Standing::Lost)
        .filter(|node| is_trusted(&node.roles) && !node.addresses.is_empty())
        .map(|node| node.id)
        .collect()
}

pub async fn run(shell: Shell) {
    let mut before = shell.transport.traffic();
    while shell.pause(LOOK_EVERY).await {
        let now = shell.transport.traffic();
        // Connections that closed meanwhile take their count with them.
        let rate = |now: u64, before: u64| now.saturating_sub(before) / LOOK_EVERY.as_secs();
        shell.line.up.fetch_max(rate(now.0, before.0), Ordering::Relaxed);
        shell.line.down.fetch_max(rate(now.1, before.1), Ordering::Relaxed);
        before = now;
        let map = shell.map.get();
        if map.node(shell.id).is_none_or(|own| !own.addresses.is_empty()) {
            continue;
        }
        let connects = relays(&map).into_iter().filter(|relay| *relay != shell.id).map(|relay| {
            let transport = shell.transport.clone();
            async move {
                let mut is_connected = true;
                for kind in ConnectionKind::ALL {
                    if let Err(error) = transport.connect(relay, kind).await {
                        tracing::debug!(node = %relay, %error, "not connected; nobody there can ask this node");
                        is_connected = false;
                    }
                }
                u64::from(is_connected)
            }
        });
        let connected: u64 = futures::future::join_all(connects).await.into_iter().sum();
        shell.line.relays.store(connected, Ordering::Relaxed);
    }
}
