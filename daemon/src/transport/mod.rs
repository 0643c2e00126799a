//! How nodes talk: requests and shards over QUIC, between keys.
//!
//! ```text
//! request ─ peers ─> lane to the peer ─ link ─> one stream ─ serve ─> PeerHandler::control ─> answer
//! shard   ─ shards ─> lane to the disk's node ─ link ─> one stream ─ serve ─> ShardPeers of that node
//! ```
//!
//! | file       | holds                                                                | touches |
//! |------------|----------------------------------------------------------------------|---------|
//! | [`frame`]  | the bytes of requests and answers                                    | nothing |
//! | [`tls`]    | which keys may be at the other end; protocol names and versions      | nothing |
//! | [`peers`]  | addresses, live connections, dials, pauses after failures            | network |
//! | [`link`]   | one connection: its streams, its silence, what it makes us hold      | network |
//! | [`serve`]  | accepting connections and requests                                   | network |
//! | [`shards`] | [`ShardPeers`] of the whole cluster, and serving this node's own      | network |
//!
//! A node listens on one UDP port. Control and bulk are different connections, told apart by their protocol name
//! (ALPN), and leave by different sockets, so that shards never delay heartbeats and votes. A connection serves
//! both directions: a node behind a NAT dials out, and is asked over the connection it opened. Two nodes of which neither can
//! dial the other meet at a third that both are connected to: it is asked for the other's disk as if it were its own.
//!
//! What always holds: a peer is a key that proved itself, and a dial reaches the one key it names or fails;
//! nothing that a peer sends is held beyond a bound, per stream, per connection and over all; a malformed request
//! harms its own stream only; a dead peer costs each caller at most its time limit, and later callers nothing.

mod frame;
mod link;
mod peers;
mod serve;
mod shards;
#[cfg(test)]
mod tests;
mod tls;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use makai_erasure::stripe::ShardPeers;
use makai_erasure::{DiskId, NodeId};
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, MtuDiscoveryConfig, VarInt};
use ring::hmac;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::clock;
use crate::identity::NodeIdentity;
use frame::Status;
use link::{ByteGate, Close, OpenFault, Patience, StreamFault, Waited};
use peers::Peers;
pub use shards::RemoteShards;
use tls::Tls;

/// Longest body of a control request, and of its answer.
pub const CONTROL_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Protocol versions that this release speaks, the preferred one first.
pub const PROTOCOL_VERSIONS: &[u16] = &[1];

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ConnectionKind {
    /// Small requests whose delay matters: agreement, heartbeats, joining.
    Control = 0,
    /// Shards.
    Bulk = 1,
}

impl ConnectionKind {
    pub const ALL: [Self; 2] = [Self::Control, Self::Bulk];

    /// The name in ALPN, before the version.
    #[must_use]
    pub fn protocol(self) -> &'static str {
        match self {
            Self::Control => "makai-control",
            Self::Bulk => "makai-bulk",
        }
    }
}

/// How a node listens and what it lets peers take.
#[derive(Debug, Clone)]
pub struct TransportConfig {
    /// UDP address for peers of both kinds. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Protocol versions to speak, the preferred one first: those of the release unless held back in an upgrade.
    pub versions: Vec<u16>,
    pub control: LaneLimits,
    pub bulk: LaneLimits,
    /// Bytes one stream may have in flight: 8 MiB fill 1 Gbit/s at 64 ms.
    pub stream_window_bytes: u32,
    /// Bytes of one connection that are written and not yet acknowledged.
    pub send_window_bytes: u64,
    /// Keeps NAT mappings open; home routers forget UDP flows after 30 s and more (RFC 4787 asks for 120 s).
    pub keep_alive: Duration,
    pub idle_timeout: Duration,
    /// From the first packet of an incoming connection to its proof of a key.
    pub handshake_timeout: Duration,
    /// For a dial over all addresses of a peer. A closed UDP port does not answer, so this is what a dead one costs.
    pub connect_timeout: Duration,
    /// A probe unanswered for this long ends the connection.
    pub silence_max: Duration,
    /// Nothing moved on a stream for this long: it is given up.
    pub stall_max: Duration,
    /// From a whole shard request to the first byte of its answer: a disk's flush at its worst.
    pub shard_answer_max: Duration,
    /// Longest pause between dials of a peer that does not answer.
    pub redial_pause_max: Duration,
    pub connections_max: usize,
    /// Of one kind; the oldest goes when there are more.
    pub connections_per_peer_max: usize,
    pub handshakes_max: usize,
    /// Buffers of each socket, as far as the system grants them (`net.core.rmem_max`, `wmem_max`).
    pub socket_buffer_bytes: usize,
}

/// What one kind of connection may take.
#[derive(Debug, Clone)]
pub struct LaneLimits {
    /// Requests of one connection at one time.
    pub streams: u32,
    /// Bytes of one connection received and not yet read by a request.
    pub connection_window_bytes: u32,
    /// Bytes of requests and answers that one connection makes this node hold.
    pub held_bytes_per_connection: u64,
    /// The same over all connections of the kind; for control requests of at most 64 KiB it is a bound of its own.
    pub held_bytes: u64,
}

/// Longest datagram that is searched for: where a path carries more than Ethernet's 1,500 bytes (loopback, jumbo
/// frames), fewer and longer packets save most of the CPU that bulk costs. Ten of them are what is given to the
/// system in one call, which fails silently beyond 65,507 bytes.
const DATAGRAM_BYTES_MAX: u16 = 6500;

const MIB: u32 = 1024 * 1024;

impl Default for TransportConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 7420)),
            versions: PROTOCOL_VERSIONS.to_vec(),
            control: LaneLimits {
                streams: 1024,
                connection_window_bytes: 8 * MIB,
                held_bytes_per_connection: 32 * u64::from(MIB),
                held_bytes: 128 * u64::from(MIB),
            },
            bulk: LaneLimits {
                streams: 256,
                connection_window_bytes: 16 * MIB,
                held_bytes_per_connection: 64 * u64::from(MIB),
                held_bytes: 256 * u64::from(MIB),
            },
            stream_window_bytes: 8 * MIB,
            send_window_bytes: 16 * u64::from(MIB),
            keep_alive: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(15),
            handshake_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_millis(1500),
            silence_max: Duration::from_millis(1500),
            stall_max: Duration::from_secs(10),
            shard_answer_max: Duration::from_secs(15),
            redial_pause_max: Duration::from_secs(5),
            connections_max: 8192,
            connections_per_peer_max: 4,
            handshakes_max: 256,
            socket_buffer_bytes: 8 * MIB as usize,
        }
    }
}

struct QuicLimits {
    streams: u32,
    connection_window: VarInt,
    held_bytes_per_connection: u64,
}

impl TransportConfig {
    fn lane(&self, kind: ConnectionKind) -> &LaneLimits {
        match kind {
            ConnectionKind::Control => &self.control,
            ConnectionKind::Bulk => &self.bulk,
        }
    }

    fn limits(&self, kind: ConnectionKind) -> QuicLimits {
        let lane = self.lane(kind);
        QuicLimits {
            streams: lane.streams,
            connection_window: lane.connection_window_bytes.into(),
            held_bytes_per_connection: lane.held_bytes_per_connection,
        }
    }

    fn quic(&self, kind: ConnectionKind) -> Result<quinn::TransportConfig, TransportError> {
        let lane = self.lane(kind);
        let mut quic = quinn::TransportConfig::default();
        let mut mtu = MtuDiscoveryConfig::default();
        mtu.upper_bound(DATAGRAM_BYTES_MAX);
        let idle = self.idle_timeout.try_into().map_err(|_| start_error("the idle timeout is too long"))?;
        quic.max_idle_timeout(Some(idle))
            .keep_alive_interval(Some(self.keep_alive))
            .max_concurrent_bidi_streams(lane.streams.into())
            .max_concurrent_uni_streams(0u32.into())
            .stream_receive_window(self.stream_window_bytes.into())
            .receive_window(lane.connection_window_bytes.into())
            .send_window(self.send_window_bytes)
            // The default of 333 ms would leave time for a single retry within the connect timeout.
            .initial_rtt(Duration::from_millis(100))
            .mtu_discovery_config(Some(mtu))
            // Probes only; read and dropped at once.
            .datagram_receive_buffer_size(Some(1024))
            .datagram_send_buffer_size(1024);
        Ok(quic)
    }
}

/// Why a peer was not asked, or did not answer. Variants by what the caller does next.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// Nothing was sent: ask another peer, or this one later.
    #[error("node {peer} cannot be reached: {reason}")]
    Unreachable { peer: NodeId, reason: String },
    /// It was sent and no answer came: it may have been carried out.
    #[error("the connection to node {peer} broke before its answer: {reason}")]
    Lost { peer: NodeId, reason: String },
    /// It was sent and the answer is late: it may be carried out yet.
    #[error("node {peer} did not answer within {} ms", .after.as_millis())]
    TimedOut { peer: NodeId, after: Duration },
    /// The peer considered it and says no.
    #[error("node {peer} refused: {reason}")]
    Refused { peer: NodeId, reason: String },
    /// The peer does not let this node in: it must join the cluster, or the peer has yet to hear that it did.
    #[error("node {peer} does not admit this node; is it a member of the cluster?")]
    NotAdmitted { peer: NodeId },
    /// Another node lives at the address: correct the address.
    #[error("{address} is node {shown}, not node {expected} as expected; correct the address")]
    WrongPeer { expected: NodeId, shown: NodeId, address: String },
    /// Upgrade the older of the two.
    #[error(
        "no protocol version in common with node {peer}: this node speaks {ours}, the other one {theirs}"
    )]
    Version { peer: NodeId, ours: String, theirs: String },
    #[error("the message has {bytes} bytes; at most {max} can be sent")]
    TooLarge { bytes: usize, max: usize },
    /// The peer breaks the protocol.
    #[error("node {peer} sent an answer that cannot be read: {reason}")]
    Malformed { peer: NodeId, reason: String },
    #[error("this node's transport is closed")]
    Closed,
    #[error("the transport does not start: {0}")]
    Start(String),
}

impl TransportError {
    /// Whether the peer has certainly seen nothing of the request.
    #[must_use]
    pub fn is_unsent(&self) -> bool {
        !matches!(
            self,
            Self::Lost { .. } | Self::TimedOut { .. } | Self::Refused { .. } | Self::Malformed { .. }
        )
    }
}

fn start_error(reason: impl ToString) -> TransportError {
    TransportError::Start(reason.to_string())
}

/// What a node does for its peers.
#[async_trait]
pub trait PeerHandler: Send + Sync + 'static {
    /// Whether `peer` may hold such a connection and be served over it. Asked again for each request, so that a
    /// removed member is shut out at once; must be cheap.
    fn admit(&self, peer: NodeId, kind: ConnectionKind) -> bool;
    /// Answers a request; `Err` is told to the peer as a refusal. Runs to its end even if the peer stops waiting.
    async fn control(&self, from: NodeId, kind: u16, body: Bytes) -> Result<Bytes, String>;
    /// This node's own disks, for bulk requests.
    fn local_shards(&self) -> Arc<dyn ShardPeers>;
    /// What bulk requests of `peer` are answered from: the own disks, and those that this node relays to, as far as it is
    /// trusted with them.
    fn served_shards(&self, peer: NodeId) -> Arc<dyn ShardPeers> {
        let _ = peer;
        self.local_shards()
    }
    /// Whether `peer` is believed where it says that a customer waits: repair makes way for customers.
    fn serves_customers(&self, peer: NodeId) -> bool {
        let _ = peer;
        true
    }
}

/// How a peer's connections are doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerStats {
    /// Of the newest control connection, else of the newest bulk one.
    pub rtt: Duration,
    pub connections: usize,
    pub sent_bytes: u64,
    pub received_bytes: u64,
    pub sent_packets: u64,
    pub lost_packets: u64,
}

/// What happened in this transport since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TransportStats {
    pub connections: usize,
    pub dials: u64,
    pub dials_failed: u64,
    pub handshakes_failed: u64,
    pub connections_refused: u64,
    pub requests_served: u64,
    pub streams_malformed: u64,
    pub streams_stalled: u64,
    /// Bytes held for peers now, and at most so far.
    pub control_held_bytes: u64,
    pub control_held_bytes_peak: u64,
    pub bulk_held_bytes: u64,
    pub bulk_held_bytes_peak: u64,
}

#[derive(Default)]
struct Counters {
    dials: AtomicU64,
    dials_failed: AtomicU64,
    handshakes_failed: AtomicU64,
    connections_refused: AtomicU64,
    requests_served: AtomicU64,
    streams_malformed: AtomicU64,
    streams_stalled: AtomicU64,
}

/// A node's way to all others. Clones share it; when the last is dropped, it closes.
#[derive(Clone)]
pub struct Transport {
    owner: Arc<Owner>,
}

/// Closes the endpoints, which ends the tasks that hold the rest.
struct Owner {
    shared: Arc<Shared>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.shut();
    }
}

struct Shared {
    id: NodeId,
    config: TransportConfig,
    tls: Tls,
    quic: [Arc<quinn::TransportConfig>; 2],
    handler: Arc<dyn PeerHandler>,
    listen: SocketAddr,
    listener: Endpoint,
    diallers: [Endpoint; 2],
    peers: Peers,
    handshakes: Arc<Semaphore>,
    control_gate: ByteGate,
    control_small_gate: ByteGate,
    bulk_gate: ByteGate,
    counters: Counters,
    /// Dials and connections.
    tasks: TaskTracker,
    /// Requests that peers wait for.
    requests: TaskTracker,
    is_closing: AtomicBool,
    started: Instant,
    /// When a shard was last asked for, or sent, for a customer: milliseconds after `started`, and one.
    served_customer_at: AtomicU64,
}

impl Shared {
    /// A shard is asked for, or sent, for a customer, by this node or of it.
    fn note_customer(&self) {
        let now = clock::instant().duration_since(self.started).as_millis() as u64;
        self.served_customer_at.store(now + 1, Ordering::Relaxed);
    }

    fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::Acquire)
    }

    fn dialler(&self, kind: ConnectionKind) -> &Endpoint {
        &self.diallers[kind as usize]
    }

    fn patience(&self) -> Patience {
        Patience { stall: self.config.stall_max, silence: self.config.silence_max }
    }

    fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        self.diallers.iter().chain([&self.listener])
    }

    fn shut(&self) {
        self.is_closing.store(true, Ordering::Release);
        self.endpoints().for_each(|endpoint| endpoint.close(Close::Stopping.code(), b"the node stops"));
    }
}

impl Transport {
    /// Binds the port and serves peers until [`Transport::close`] or the last clone is dropped. Needs a tokio
    /// runtime.
    ///
    /// # Errors
    /// [`TransportError::Start`]: the address cannot be bound, or a limit makes no sense.
    pub async fn start(
        config: TransportConfig,
        identity: &NodeIdentity,
        handler: Arc<dyn PeerHandler>,
    ) -> Result<Self, TransportError> {
        let tls = Tls::new(identity, &config.versions).map_err(start_error)?;
        let quic =
            [Arc::new(config.quic(ConnectionKind::Control)?), Arc::new(config.quic(ConnectionKind::Bulk)?)];
        let crypto = QuicServerConfig::try_from(tls.server().map_err(start_error)?).map_err(start_error)?;
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        // Until a connection has said what it is, the smaller bounds hold.
        server.transport_config(quic[ConnectionKind::Control as usize].clone());
        server.max_incoming(config.handshakes_max * 2);
        let listener = bind(config.listen, &config, Some(server), identity)?;
        let listen = listener.local_addr().map_err(start_error)?;
        let outgoing = SocketAddr::new(config.listen.ip(), 0);
        let diallers = [bind(outgoing, &config, None, identity)?, bind(outgoing, &config, None, identity)?];
        let shared = Arc::new(Shared {
            id: identity.id(),
            tls,
            quic,
            handler,
            listen,
            listener: listener.clone(),
            diallers,
            peers: Peers::default(),
            handshakes: Arc::new(Semaphore::new(config.handshakes_max)),
            control_gate: ByteGate::new(config.control.held_bytes),
            control_small_gate: ByteGate::new(config.control.held_bytes),
            bulk_gate: ByteGate::new(config.bulk.held_bytes),
            counters: Counters::default(),
            tasks: TaskTracker::new(),
            requests: TaskTracker::new(),
            is_closing: AtomicBool::new(false),
            started: clock::instant(),
            served_customer_at: AtomicU64::new(0),
            config,
        });
        tokio::spawn(serve::accept_connections(shared.clone(), listener));
        Ok(Self { owner: Arc::new(Owner { shared }) })
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.owner.shared
    }

    /// This node.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.shared().id
    }

    /// Where peers reach this node, as the socket is bound.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.shared().listen
    }

    /// Where to dial `peer`: each `host:port`, resolved at each dial. Replaces what was known; none forgets it.
    pub fn set_addresses(&self, peer: NodeId, addresses: Vec<String>) {
        self.shared().peers.set_addresses(peer, addresses);
    }

    /// Asks `to` and waits at most `timeout` for the whole answer. A request to this node itself is answered by
    /// its own handler. Body and answer have at most [`CONTROL_BYTES_MAX`] bytes.
    ///
    /// # Errors
    /// [`TransportError::is_unsent`] tells whether the peer may have seen the request.
    pub async fn request(
        &self,
        to: NodeId,
        kind: u16,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, TransportError> {
        if body.len() > CONTROL_BYTES_MAX {
            return Err(TransportError::TooLarge { bytes: body.len(), max: CONTROL_BYTES_MAX });
        }
        let shared = self.shared();
        if to == shared.id {
            return shared.ask_self(kind, body, timeout).await;
        }
        shared.ask(to, ConnectionKind::Control, kind, body, CONTROL_BYTES_MAX as u32, timeout).await.and_then(
            |(status, body)| match status {
                Status::Done => Ok(body),
                Status::Refused => Err(refusal(to, &body)),
                Status::Failed => {
                    Err(TransportError::Malformed { peer: to, reason: "a shard's failure".to_owned() })
                }
            },
        )
    }

    /// The disks of the whole cluster as one port: `locate` names the node of a disk, `is_up` says whether a node
    /// is believed to answer. This node's own disks are reached without the network.
    pub fn shards(
        &self,
        locate: Arc<dyn Fn(DiskId) -> Option<NodeId> + Send + Sync>,
        is_up: Arc<dyn Fn(NodeId) -> bool + Send + Sync>,
    ) -> RemoteShards {
        RemoteShards::new(self.clone(), locate, self.id(), self.shared().handler.local_shards(), is_up)
    }

    /// Whether this node had to do with customers' shards within that time.
    #[must_use]
    pub fn serves_customers(&self, within: Duration) -> bool {
        let shared = self.shared();
        let now = clock::instant().duration_since(shared.started).as_millis() as u64;
        let last = shared.served_customer_at.load(Ordering::Relaxed);
        last > 0 && now + 1 - last.min(now + 1) <= within.as_millis() as u64
    }

    /// Whether any connection to `peer` is open. One to a peer that just died stays open until it is missed.
    #[must_use]
    pub fn is_connected(&self, peer: NodeId) -> bool {
        self.shared()
            .peers
            .get(peer)
            .is_some_and(|peer| ConnectionKind::ALL.iter().any(|kind| peer.live(*kind).is_some()))
    }

    /// Whether a bulk request to `peer` would be tried now: false within the pause after a failure, and for a peer that is
    /// neither connected nor has an address, when it would fail at once.
    #[must_use]
    pub fn is_reachable(&self, peer: NodeId) -> bool {
        self.id() == peer
            || self.shared().peers.get(peer).is_some_and(|peer| peer.can_be_asked(ConnectionKind::Bulk))
    }

    /// Whether `peer` can be dialled as far as is known.
    #[must_use]
    pub fn has_address(&self, peer: NodeId) -> bool {
        self.shared().peers.get(peer).is_some_and(|peer| peer.has_address())
    }

    /// Opens a connection of a kind to `peer` unless there is one, for the peer to ask this node over it.
    ///
    /// # Errors
    /// It cannot be reached.
    pub async fn connect(&self, peer: NodeId, kind: ConnectionKind) -> Result<(), TransportError> {
        let deadline = clock::timer() + self.shared().config.connect_timeout * 2;
        self.shared().link(peer, kind, deadline).await.map(|_| ())
    }

    /// Bytes that went out and came in over the connections that are open now.
    #[must_use]
    pub fn traffic(&self) -> (u64, u64) {
        let links = self.shared().peers.links();
        let stats = links.iter().map(|link| link.connection.stats());
        stats.fold((0, 0), |(sent, received), quic| (sent + quic.udp_tx.bytes, received + quic.udp_rx.bytes))
    }

    /// Figures of the open connections to `peer`, or `None` where there is none.
    #[must_use]
    pub fn peer_stats(&self, peer: NodeId) -> Option<PeerStats> {
        let links: Vec<_> = self
            .shared()
            .peers
            .links()
            .into_iter()
            .filter(|link| link.peer == peer && link.is_alive())
            .collect();
        let main = links.iter().rev().find(|link| link.kind == ConnectionKind::Control).or(links.last())?;
        let mut stats = PeerStats {
            rtt: main.connection.rtt(),
            connections: links.len(),
            sent_bytes: 0,
            received_bytes: 0,
            sent_packets: 0,
            lost_packets: 0,
        };
        for link in &links {
            let quic = link.connection.stats();
            stats.sent_bytes += quic.udp_tx.bytes;
            stats.received_bytes += quic.udp_rx.bytes;
            stats.sent_packets += quic.path.sent_packets;
            stats.lost_packets += quic.path.lost_packets;
        }
        Some(stats)
    }

    #[must_use]
    pub fn stats(&self) -> TransportStats {
        let shared = self.shared();
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &shared.counters;
        TransportStats {
            connections: shared.peers.links().iter().filter(|link| link.is_alive()).count(),
            dials: count(&counters.dials),
            dials_failed: count(&counters.dials_failed),
            handshakes_failed: count(&counters.handshakes_failed),
            connections_refused: count(&counters.connections_refused),
            requests_served: count(&counters.requests_served),
            streams_malformed: count(&counters.streams_malformed),
            streams_stalled: count(&counters.streams_stalled),
            control_held_bytes: shared.control_gate.used_bytes() + shared.control_small_gate.used_bytes(),
            control_held_bytes_peak: shared.control_gate.used_bytes_peak()
                + shared.control_small_gate.used_bytes_peak(),
            bulk_held_bytes: shared.bulk_gate.used_bytes(),
            bulk_held_bytes_peak: shared.bulk_gate.used_bytes_peak(),
        }
    }

    /// Ends all connections with `peer`: it was removed, or lost a right that it held when they opened.
    pub fn disconnect(&self, peer: NodeId) {
        let links = self.shared().peers.links();
        links
            .iter()
            .filter(|link| link.peer == peer)
            .for_each(|link| link.close(Close::NotAdmitted, "disconnected"));
    }

    /// Takes no more connections, lets requests under way end for at most `grace`, then tells all peers that the
    /// node stops. Afterwards the port is free.
    pub async fn close(&self, grace: Duration) {
        /// For the peers to hear of it; they notice the silence otherwise.
        const FAREWELL: Duration = Duration::from_millis(500);
        let shared = self.shared();
        shared.listener.set_server_config(None);
        shared.is_closing.store(true, Ordering::Release);
        shared.requests.close();
        let _ = timeout(grace, shared.requests.wait()).await;
        // Answers given in the instant before the close may still be on their way.
        let round_trip =
            shared.peers.links().iter().map(|link| link.connection.rtt()).max().unwrap_or_default();
        tokio::time::sleep((round_trip * 2).min(FAREWELL)).await;
        shared.shut();
        shared.tasks.close();
        let _ = timeout(FAREWELL, async {
            for endpoint in shared.endpoints() {
                endpoint.wait_idle().await;
            }
            shared.tasks.wait().await;
        })
        .await;
    }
}

impl Shared {
    async fn ask_self(&self, kind: u16, body: Bytes, limit: Duration) -> Result<Bytes, TransportError> {
        if self.is_closing() {
            return Err(TransportError::Closed);
        }
        match timeout(limit, self.handler.control(self.id, kind, body)).await {
            Ok(Ok(body)) => Ok(body),
            Ok(Err(reason)) => Err(TransportError::Refused { peer: self.id, reason }),
            Err(_) => Err(TransportError::TimedOut { peer: self.id, after: limit }),
        }
    }

    /// One request and its answer over a connection of the given kind.
    async fn ask(
        self: &Arc<Self>,
        to: NodeId,
        lane: ConnectionKind,
        kind: u16,
        body: Bytes,
        answer_bytes_max: u32,
        limit: Duration,
    ) -> Result<(Status, Bytes), TransportError> {
        let deadline = clock::timer() + limit;
        let mut is_second_try = false;
        loop {
            let link = self.link(to, lane, deadline).await?;
            // Shards come as long as they were asked for; answers of the other kind are mostly short.
            let trusted = if lane == ConnectionKind::Bulk { answer_bytes_max } else { 4096 };
            let exchange = async {
                let (mut sending, mut recv) = link.open(kind, body.clone()).await?;
                sending.finish();
                link.read_answer(&mut recv, answer_bytes_max, trusted).await.map_err(OpenFault::Broken)
            };
            let left = deadline.saturating_duration_since(clock::timer());
            return match link.wait(left, exchange).await {
                Ok(Ok(answer)) => {
                    self.peers.get(to).inspect(|peer| peer.answered(lane));
                    Ok(answer)
                }
                // A connection that was found dead before anything was sent is replaced, once.
                Ok(Err(OpenFault::NotSent(_))) if !is_second_try => {
                    is_second_try = true;
                    continue;
                }
                Ok(Err(OpenFault::NotSent(end))) => Err(peers::connection_fault(to, &end)),
                Ok(Err(OpenFault::Broken(fault))) => Err(broken(to, &fault)),
                Err(Waited::TooLong) => Err(TransportError::TimedOut { peer: to, after: limit }),
                Err(Waited::Silent) => Err(broken(to, &StreamFault::Silent)),
            };
        }
    }
}

/// What a fault in the middle of an exchange means to whoever asked.
fn broken(peer: NodeId, fault: &StreamFault) -> TransportError {
    match fault {
        StreamFault::Ended(code) if *code == link::Reset::NotAdmitted.code() => {
            TransportError::NotAdmitted { peer }
        }
        StreamFault::Ended(code) if *code == link::Reset::Stopping.code() => {
            TransportError::Unreachable { peer, reason: "the node stops".to_owned() }
        }
        StreamFault::Connection(end) => match peers::connection_fault(peer, end) {
            TransportError::Unreachable { reason, .. } => TransportError::Lost { peer, reason },
            other => other,
        },
        fault if fault.is_malformed() => TransportError::Malformed { peer, reason: fault.to_string() },
        fault => TransportError::Lost { peer, reason: fault.to_string() },
    }
}

fn refusal(peer: NodeId, reason: &[u8]) -> TransportError {
    TransportError::Refused { peer, reason: String::from_utf8_lossy(reason).into_owned() }
}

/// A UDP endpoint. Its reset key comes from the node's key, so that a restarted node tells
/// the peers of its former connections at once that these are gone (RFC 9000, 10.3).
fn bind(
    address: SocketAddr,
    config: &TransportConfig,
    server: Option<quinn::ServerConfig>,
    identity: &NodeIdentity,
) -> Result<Endpoint, TransportError> {
    let socket = open_socket(address, config.socket_buffer_bytes)
        .map_err(|error| start_error(format!("UDP {address}: {error}")))?;
    let reset_key = hmac::Key::new(hmac::HMAC_SHA256, &identity.derived_secret("quic stateless reset"));
    let mut endpoint = EndpointConfig::new(Arc::new(reset_key));
    endpoint.cid_generator(|| Box::new(ConnectionIds));
    endpoint.max_udp_payload_size(DATAGRAM_BYTES_MAX).map_err(start_error)?;
    Endpoint::new(endpoint, server, socket, Arc::new(quinn::TokioRuntime))
        .map_err(|error| start_error(format!("UDP {address}: {error}")))
}

/// Random connection ids. Any might be one of before a restart, so that packets of lost connections are answered
/// by a reset: shorter than the packet, and at most one each 20 ms.
struct ConnectionIds;

impl ConnectionIdGenerator for ConnectionIds {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&rand::random::<[u8; 8]>())
    }

    fn cid_len(&self) -> usize {
        8
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

fn open_socket(address: SocketAddr, buffer_bytes: usize) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        // One socket for both families; where the system forbids it, IPv6 alone.
        let _ = socket.set_only_v6(false);
    }
    // The system may grant less; bursts are then lost sooner, and QUIC repeats them.
    let _ = socket.set_recv_buffer_size(buffer_bytes);
    let _ = socket.set_send_buffer_size(buffer_bytes);
    socket.bind(&address.into())?;
    Ok(socket.into())
}
