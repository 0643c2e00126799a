//! Who can be talked to, and over which connection.
//!
//! A peer has a lane for each kind of connection. A lane holds the live connections, whoever dialled them, and
//! at most one dial in flight, which all who need the lane share and which outlives each of them. A lane that
//! failed is redialled after a jittered, growing pause; within it, requests fail at once. Once a lane is known
//! to fail, requests wait only briefly for a dial that nevertheless goes on behind them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use makai_erasure::NodeId;
use quinn::ConnectionError;
use quinn::crypto::rustls::QuicClientConfig;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::link::{Close, Link};
use super::{ConnectionKind, Shared, TransportError, serve, tls};
use crate::clock;

/// How long a request waits for the dial of a lane that failed last time.
const DOUBTFUL_DIAL_WAIT: Duration = Duration::from_millis(300);
/// A connection that ends sooner than this did not help.
const SHORT_LIFE: Duration = Duration::from_secs(5);
/// Addresses tried in one dial, of all that the names resolve to.
const DIAL_ADDRESSES_MAX: usize = 8;
/// Head start of each address before the next is tried too (RFC 8305 recommends 250 ms).
const DIAL_STAGGER: Duration = Duration::from_millis(250);

/// The peers that this node knows how to reach or is connected to.
#[derive(Default)]
pub(super) struct Peers {
    table: RwLock<HashMap<NodeId, Arc<Peer>>>,
}

pub(super) struct Peer {
    pub(super) id: NodeId,
    addresses: Mutex<Vec<String>>,
    lanes: [Mutex<Lane>; 2],
}

/// The outcome of a dial, once there is one.
type Dial = watch::Receiver<Option<Result<Arc<Link>, TransportError>>>;

#[derive(Default)]
struct Lane {
    /// Oldest first.
    links: Vec<Arc<Link>>,
    dial: Option<Dial>,
    failure_count: u32,
    /// Until then, requests fail at once with this reason.
    pause: Option<(Instant, TransportError)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Peer {
    fn new(id: NodeId) -> Arc<Self> {
        Arc::new(Self { id, addresses: Mutex::default(), lanes: Default::default() })
    }

    fn lane(&self, kind: ConnectionKind) -> MutexGuard<'_, Lane> {
        lock(&self.lanes[kind as usize])
    }

    /// The newest live connection of a kind.
    pub(super) fn live(&self, kind: ConnectionKind) -> Option<Arc<Link>> {
        self.lane(kind).live()
    }

    /// The peer answered: what failed before is past.
    pub(super) fn answered(&self, kind: ConnectionKind) {
        let mut lane = self.lane(kind);
        lane.failure_count = 0;
        lane.pause = None;
    }

    /// Whether requests fail at once, for now.
    pub(super) fn is_paused(&self, kind: ConnectionKind) -> bool {
        let lane = self.lane(kind);
        lane.live().is_none() && lane.pause.as_ref().is_some_and(|(until, _)| clock::timer() < *until)
    }

    /// Whether a request would be tried now: over a connection that is open, or over one that may be dialled.
    pub(super) fn can_be_asked(&self, kind: ConnectionKind) -> bool {
        self.live(kind).is_some() || self.has_address() && !self.is_paused(kind)
    }

    pub(super) fn has_address(&self) -> bool {
        !lock(&self.addresses).is_empty()
    }

    fn is_idle(&self) -> bool {
        // One lock at a time: others take a lane's first.
        let has_addresses = !lock(&self.addresses).is_empty();
        !has_addresses
            && self.lanes.iter().all(|lane| {
                let lane = lock(lane);
                lane.links.is_empty() && lane.dial.is_none()
            })
    }
}

impl Lane {
    fn live(&self) -> Option<Arc<Link>> {
        self.links.iter().rev().find(|link| link.is_alive()).cloned()
    }
}

impl Peers {
    fn read(&self) -> RwLockReadGuard<'_, HashMap<NodeId, Arc<Peer>>> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<NodeId, Arc<Peer>>> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, id: NodeId) -> Option<Arc<Peer>> {
        self.read().get(&id).cloned()
    }

    pub(super) fn links(&self) -> Vec<Arc<Link>> {
        let table = self.read();
        table
            .values()
            .flat_map(|peer| ConnectionKind::ALL.map(|kind| peer.lane(kind).links.clone()))
            .flatten()
            .collect()
    }

    pub(super) fn set_addresses(&self, id: NodeId, addresses: Vec<String>) {
        let mut table = self.write();
        let peer = table.entry(id).or_insert_with(|| Peer::new(id)).clone();
        let has_changed = {
            let mut known = lock(&peer.addresses);
            let has_changed = *known != addresses;
            *known = addresses;
            has_changed
        };
        if has_changed {
            ConnectionKind::ALL.iter().for_each(|kind| peer.lane(*kind).pause = None);
        }
        if peer.is_idle() {
            table.remove(&id);
        }
    }

    /// Adds a live connection; closes the oldest where there are more than `links_max` of its kind.
    pub(super) fn attach(&self, link: &Arc<Link>, links_max: usize) {
        let mut table = self.write();
        let peer = table.entry(link.peer).or_insert_with(|| Peer::new(link.peer)).clone();
        let mut lane = peer.lane(link.kind);
        lane.links.push(link.clone());
        let excess = lane.links.len().saturating_sub(links_max);
        lane.links[..excess]
            .iter()
            .for_each(|old| old.close(Close::Replaced, "a newer connection took its place"));
    }

    /// Takes a dead connection out and learns from its end.
    pub(super) fn detach(&self, link: &Arc<Link>, end: &ConnectionError, pause_max: Duration) {
        let mut table = self.write();
        let Some(peer) = table.get(&link.peer).cloned() else { return };
        {
            let mut lane = peer.lane(link.kind);
            lane.links.retain(|other| !Arc::ptr_eq(other, link));
            if lane.links.is_empty() {
                let has_helped = link.requests_answered.load(Ordering::Relaxed) > 0
                    || link.opened_at.elapsed() >= SHORT_LIFE
                    || !link.is_dialled;
                if has_helped {
                    lane.failure_count = lane.failure_count.max(1);
                } else {
                    lane.failed(connection_fault(link.peer, end), pause_max);
                }
            }
        }
        if peer.is_idle() {
            table.remove(&link.peer);
        }
    }
}

impl Lane {
    fn failed(&mut self, error: TransportError, pause_max: Duration) {
        self.failure_count = self.failure_count.saturating_add(1);
        let pause = redial_pause(self.failure_count, rand::random(), pause_max);
        self.pause = Some((clock::timer() + pause, error));
    }
}

/// Pause before the next dial: doubles with each failure up to `pause_max`, and is spread by half around that so
/// that nodes which lost the same peer do not return together. `jitter` is uniform in 0..1.
fn redial_pause(failure_count: u32, jitter: f64, pause_max: Duration) -> Duration {
    const FIRST: Duration = Duration::from_millis(250);
    let doublings = failure_count.saturating_sub(1).min(16);
    (FIRST * 2u32.pow(doublings)).min(pause_max).mul_f64(0.5 + jitter.clamp(0.0, 1.0))
}

/// What the end of a connection means to whoever wanted to use it, when nothing was sent on it.
pub(super) fn connection_fault(peer: NodeId, end: &ConnectionError) -> TransportError {
    if let ConnectionError::ApplicationClosed(close) = end
        && close.error_code == Close::NotAdmitted.code()
    {
        return TransportError::NotAdmitted { peer };
    }
    TransportError::Unreachable { peer, reason: end.to_string() }
}

impl Shared {
    /// A live connection to `to`, dialled if need be.
    pub(super) async fn link(
        self: &Arc<Self>,
        to: NodeId,
        kind: ConnectionKind,
        deadline: Instant,
    ) -> Result<Arc<Link>, TransportError> {
        if self.is_closing() {
            return Err(TransportError::Closed);
        }
        let unreachable = |reason: &str| TransportError::Unreachable { peer: to, reason: reason.to_owned() };
        let unknown = || unreachable("no connection, and no address is known");
        let peer = self.peers.get(to).ok_or_else(unknown)?;
        let (mut dial, patience) = {
            let mut lane = peer.lane(kind);
            if let Some(link) = lane.live() {
                return Ok(link);
            }
            if let Some((until, error)) = &lane.pause
                && clock::timer() < *until
            {
                return Err(error.clone());
            }
            let under_way =
                lane.dial.take().filter(|dial| dial.has_changed().is_ok() && dial.borrow().is_none());
            let dial = match under_way {
                Some(dial) => dial,
                None => {
                    let addresses = lock(&peer.addresses).clone();
                    if addresses.is_empty() {
                        return Err(unknown());
                    }
                    self.spawn_dial(&peer, kind, addresses)
                }
            };
            lane.dial = Some(dial.clone());
            let patience =
                if lane.failure_count > 0 { DOUBTFUL_DIAL_WAIT } else { self.config.connect_timeout * 2 };
            (dial, patience)
        };
        let wait_end = deadline.min(clock::timer() + patience);
        let outcome = match timeout_at(wait_end, dial.wait_for(Option::is_some)).await {
            Ok(Ok(outcome)) => outcome.clone(),
            Ok(Err(_)) => return Err(unreachable("the dial was given up")),
            Err(_) => return Err(unreachable("it does not answer the dial so far")),
        };
        match outcome {
            Some(Ok(link)) => match link.connection.close_reason() {
                None => Ok(link),
                // The peer took its handshake and then thought better of it.
                Some(end) => peer.live(kind).ok_or_else(|| connection_fault(to, &end)),
            },
            Some(Err(error)) => Err(error),
            None => Err(unreachable("the dial was given up")),
        }
    }

    fn spawn_dial(self: &Arc<Self>, peer: &Arc<Peer>, kind: ConnectionKind, addresses: Vec<String>) -> Dial {
        let (done, outcome) = watch::channel(None);
        let (shared, peer) = (self.clone(), peer.clone());
        self.tasks.spawn(async move {
            let limit = shared.config.connect_timeout;
            let dialled = match timeout(limit, shared.dial(peer.id, kind, &addresses)).await {
                Ok(dialled) => dialled,
                Err(_) => Err(TransportError::Unreachable {
                    peer: peer.id,
                    reason: format!(
                        "no answer from {} within {} ms",
                        addresses.join(", "),
                        limit.as_millis()
                    ),
                }),
            };
            let outcome = match dialled {
                Ok(connection) => {
                    shared.counters.dials.fetch_add(1, Ordering::Relaxed);
                    Ok(serve::start_link(&shared, peer.id, kind, connection, true))
                }
                Err(error) => {
                    shared.counters.dials_failed.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(peer = ?peer.id, kind = kind.protocol(), %error, "dial failed");
                    Err(error)
                }
            };
            let mut lane = peer.lane(kind);
            lane.dial = None;
            if let Err(error) = &outcome {
                lane.failed(error.clone(), shared.config.redial_pause_max);
            }
            drop(lane);
            done.send_replace(Some(outcome));
        });
        outcome
    }

    /// Tries the peer's addresses, each with a head start before the next; the first that proves the peer's key
    /// is kept.
    async fn dial(
        &self,
        peer: NodeId,
        kind: ConnectionKind,
        addresses: &[String],
    ) -> Result<quinn::Connection, TransportError> {
        let unreachable = |reason: String| TransportError::Unreachable { peer, reason };
        let mut targets: Vec<SocketAddr> = Vec::new();
        let mut failure = None;
        for address in addresses {
            match tokio::net::lookup_host(address.as_str()).await {
                Ok(found) => targets.extend(found.filter(|target| self.listen.is_ipv6() || target.is_ipv4())),
                Err(error) => failure = Some(unreachable(format!("{address:?} does not resolve: {error}"))),
            }
        }
        let mut seen = std::collections::HashSet::new();
        targets.retain(|target| seen.insert(*target));
        targets.truncate(DIAL_ADDRESSES_MAX);
        let mut attempts: FuturesUnordered<_> = targets
            .iter()
            .zip(0u32..)
            .map(|(target, nth)| async move {
                sleep(DIAL_STAGGER * nth).await;
                self.handshake(peer, kind, *target).await
            })
            .collect();
        while let Some(attempt) = attempts.next().await {
            match attempt {
                Ok(connection) => return Ok(connection),
                // What a peer said outweighs the silence of its other addresses.
                Err(error) if failure.is_none() || !matches!(error, TransportError::Unreachable { .. }) => {
                    failure = Some(error);
                }
                Err(_) => {}
            }
        }
        Err(failure.unwrap_or_else(|| unreachable(format!("{} resolve to no address", addresses.join(", ")))))
    }

    async fn handshake(
        &self,
        peer: NodeId,
        kind: ConnectionKind,
        target: SocketAddr,
    ) -> Result<quinn::Connection, TransportError> {
        let unreachable =
            |reason: String| TransportError::Unreachable { peer, reason: format!("{target}: {reason}") };
        let (config, verifier) =
            self.tls.client(peer, kind).map_err(|error| unreachable(error.to_string()))?;
        let crypto = QuicClientConfig::try_from(config).map_err(|error| unreachable(error.to_string()))?;
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(self.quic[kind as usize].clone());
        let connecting = self.dialler(kind).connect_with(config, target, tls::SERVER_NAME);
        let connection = match connecting.map_err(|error| unreachable(error.to_string()))?.await {
            Ok(connection) => connection,
            Err(error) => {
                return Err(match verifier.shown_instead() {
                    Some(shown) => {
                        TransportError::WrongPeer { expected: peer, shown, address: target.to_string() }
                    }
                    None => unreachable(error.to_string()),
                });
            }
        };
        match serve::agreement(&connection) {
            Some((agreed, Some(_))) if agreed == kind => Ok(connection),
            _ => {
                // No common version: the peer closes with those it speaks.
                let theirs = match connection.closed().await {
                    ConnectionError::ApplicationClosed(close)
                        if close.error_code == Close::Version.code() =>
                    {
                        String::from_utf8_lossy(&close.reason).chars().take(200).collect()
                    }
                    other => other.to_string(),
                };
                Err(TransportError::Version { peer, ours: self.tls.spoken(kind), theirs })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The pause grows with the failures, never passes one and a half of its bound, and is never nothing.
        #[test]
        fn pauses_grow_to_their_bound(failures in 1u32.., jitter in 0.0..1.0, max_ms in 250u64..60_000) {
            let max = Duration::from_millis(max_ms);
            let pause = redial_pause(failures, jitter, max);
            prop_assert!(pause >= Duration::from_millis(125) && pause <= max.mul_f64(1.5));
            prop_assert!(redial_pause(failures.saturating_add(1), jitter, max) >= pause);
        }
    }
}
