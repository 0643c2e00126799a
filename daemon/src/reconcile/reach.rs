//! Keeps a node that nobody can dial connected to every voter and gateway, so that they can ask it and relay to it; and
//! measures what goes through this node's line: what was seen to, and what a short test after its start got through.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use makai_erasure::NodeId;
use makai_raft::facts::cluster::{Role, Standing};
use makai_raft::view::IndexedMap;
use serde::{Deserialize, Serialize};

use super::Shell;
use crate::clock;
use crate::members::{SPEED, SPEED_BYTES_MAX};
use crate::transport::ConnectionKind;

const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Looks before the line is tested, and between two tries: a node that has just started has other things to do.
const TEST_AFTER_LOOKS: u64 = 5;
/// A test in each direction; long enough for QUIC to open its window, short enough to harm nobody.
const TEST_FOR: Duration = Duration::from_secs(2);
const TEST_BYTES_MAX: u64 = 16 << 20;
const TEST_AT_ONCE: usize = 4;
const TEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The most that went through this node's line in any two seconds since its start.
#[derive(Debug, Default)]
pub struct Line {
    up: AtomicU64,
    down: AtomicU64,
    relays: AtomicU64,
    tested_up: AtomicU64,
    tested_down: AtomicU64,
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
    /// What the test after its start got through to a voter or gateway; 0: none could be asked yet.
    #[serde(default)]
    pub tested_up_bytes_per_sec: u64,
    #[serde(default)]
    pub tested_down_bytes_per_sec: u64,
}

impl Line {
    #[must_use]
    pub fn now(&self, rtt: Option<Duration>) -> LineNow {
        LineNow {
            up_bytes_per_sec: self.up.load(Ordering::Relaxed),
            down_bytes_per_sec: self.down.load(Ordering::Relaxed),
            relays: self.relays.load(Ordering::Relaxed),
            tested_up_bytes_per_sec: self.tested_up.load(Ordering::Relaxed),
            tested_down_bytes_per_sec: self.tested_down.load(Ordering::Relaxed),
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

/// Sends or fetches pieces, a few at a time, until [`TEST_FOR`] or [`TEST_BYTES_MAX`] is over: bytes a second.
async fn measure(shell: &Shell, to: NodeId, is_up: bool) -> Result<u64, String> {
    let piece = SPEED_BYTES_MAX / 2;
    let body = if is_up {
        [&0_u32.to_be_bytes(), vec![0; piece as usize].as_slice()].concat()
    } else {
        piece.to_be_bytes().to_vec()
    };
    let body = Bytes::from(body);
    let begun = clock::instant();
    let ask = || shell.transport.request(to, SPEED, body.clone(), TEST_TIMEOUT);
    let mut under_way: FuturesUnordered<_> = (0..TEST_AT_ONCE).map(|_| ask()).collect();
    let (mut bytes, mut sent) = (0_u64, TEST_AT_ONCE as u64 * u64::from(piece));
    while let Some(answer) = under_way.next().await {
        answer.map_err(|error| error.to_string())?;
        bytes += u64::from(piece);
        if begun.elapsed() < TEST_FOR && sent < TEST_BYTES_MAX {
            sent += u64::from(piece);
            under_way.push(ask());
        }
    }
    let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX).max(1);
    Ok(bytes.saturating_mul(1_000_000) / micros)
}

/// Tests the line once, by whoever of the voters and gateways answers first.
async fn test_line(shell: &Shell) {
    let map = shell.map.get();
    for to in relays(&map).into_iter().filter(|to| *to != shell.id) {
        let up = measure(shell, to, true).await;
        let tested = match up {
            Ok(up) => measure(shell, to, false).await.map(|down| (up, down)),
            Err(error) => Err(error),
        };
        match tested {
            Ok((up, down)) => {
                shell.line.tested_up.store(up, Ordering::Relaxed);
                shell.line.tested_down.store(down, Ordering::Relaxed);
                return;
            }
            Err(error) => tracing::debug!(node = %to, %error, "the line to it was not tested"),
        }
    }
}

pub async fn run(shell: Shell) {
    let mut before = shell.transport.traffic();
    let mut looks = 0;
    while shell.pause(LOOK_EVERY).await {
        looks += 1;
        if looks % TEST_AFTER_LOOKS == 0 && shell.line.tested_up.load(Ordering::Relaxed) == 0 {
            test_line(&shell).await;
        }
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
