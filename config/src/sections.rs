//! Every key: its type, its default, its unit and the reason for both.
//!
//! An address, a path or a secret that is not given is `""` in the file and `None` here.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Bytes in a name of a node, an owner or a site: they stand in every node's map of the cluster.
pub const LABEL_BYTES_MAX: usize = 64;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;
const DAY_SECS: u64 = 24 * 60 * 60;

/// What a node does for the cluster.
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

impl Role {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Voter => "voter",
            Self::Storage => "storage",
            Self::Gateway => "gateway",
            Self::Compute => "compute",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself: for the one who must show it to a peer, never for a log.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// `[node]`: this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeSection {
    /// Where the node keeps its key, its facts and its log. The only key without a default: two nodes that
    /// shared one directory by mistake would destroy each other.
    pub dir: PathBuf,
    /// What people call it. Empty: the host name. Its identity is its key, so two nodes may share a name.
    pub name: String,
    /// Who owns the machine. Placement spreads a group over owners; empty: the node stands for itself.
    pub owner: String,
    /// Where the machine stands: what loses power or network together. Empty: the node stands for itself.
    pub site: String,
    /// Storage alone is the least that must be trusted, so it is what a node is when nothing is said.
    pub roles: BTreeSet<Role>,
    /// A filter of the log as `tracing` reads it: a level, or `info,makai_raft=debug`.
    pub log: String,
    /// Threads that serve requests; 0: one per core of the machine. Where several nodes share a machine, fewer for
    /// each: threads that wake each other for cores they do not have cost a quarter of the work.
    pub worker_threads: u16,
}

impl Default for NodeSection {
    fn default() -> Self {
        Self {
            dir: PathBuf::new(),
            name: String::new(),
            owner: String::new(),
            site: String::new(),
            roles: BTreeSet::from([Role::Storage]),
            log: "info".to_owned(),
            worker_threads: 0,
        }
    }
}

/// `[cluster]`: whom it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterConfig {
    /// True on exactly one node: it founds the cluster at its first start. Later starts ignore it.
    pub init: bool,
    /// The token with which the node joins at its first start. Later starts ignore it.
    #[serde(with = "empty_is_none")]
    pub join_token: Option<Secret>,
    /// A file that holds the token, so that the secret need not stand here.
    #[serde(with = "empty_is_none")]
    pub join_token_file: Option<PathBuf>,
    /// Nodes with role voter beyond this many wait as learners. Five keep the facts through two losses;
    /// each further pair costs every write another copy.
    pub voters_max: u8,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self { init: false, join_token: None, join_token_file: None, voters_max: 5 }
    }
}

/// `[peers]`: the way between nodes: QUIC over one UDP port, both sides known by their keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PeersConfig {
    /// UDP. All interfaces, because peers are elsewhere; port 0 takes any free one.
    #[serde(with = "text")]
    pub listen: SocketAddr,
    /// How others reach this node, `host:port` each. Empty: the address it listens on, or, where that is
    /// all interfaces, none: then it only dials out, as a machine behind a home router does.
    pub advertise: Vec<String>,
    /// What a dead peer costs: a closed UDP port does not answer. Several round trips of the longest path.
    pub connect_timeout_ms: u64,
    /// A connection that says nothing for so long is dead. Home routers forget a UDP flow after 30 s or
    /// more, so keep-alives go out at a third of this.
    pub idle_timeout_ms: u64,
}

impl Default for PeersConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 7400)),
            advertise: Vec::new(),
            connect_timeout_ms: 1_500,
            idle_timeout_ms: 15_000,
        }
    }
}

/// `[s3]`: the S3 door, opened by nodes with role gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct S3Config {
    /// TCP. Loopback until an operator decides otherwise; empty: no S3 here.
    #[serde(with = "empty_is_none")]
    pub listen: Option<SocketAddr>,
    /// The region that clients sign for. The default of most clients.
    pub region: String,
    /// Names under which `BUCKET.name` reaches a bucket. Empty: buckets are in the path.
    pub domains: Vec<String>,
    /// PEM certificate chain. Given with `tls_key`: this port speaks HTTPS only.
    #[serde(with = "empty_is_none")]
    pub tls_cert: Option<PathBuf>,
    /// PEM private key.
    #[serde(with = "empty_is_none")]
    pub tls_key: Option<PathBuf>,
    /// Connections beyond this many wait unaccepted: each may hold an upload's stripes in memory.
    pub connections_max: u32,
    /// Names under which `BUCKET.name` serves the bucket's website. Empty: none is served.
    pub website_domains: Vec<String>,
    /// How long lines of access logs wait before they are delivered to the bucket that they are for.
    pub log_interval_secs: u64,
    /// Whether webhooks and issuers of identities that tenants name may be on this machine or its network. A tenant of
    /// whom one knows nothing could reach what only insiders should.
    pub allow_private_endpoints: bool,
}

impl Default for S3Config {
    fn default() -> Self {
        Self {
            listen: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 9000))),
            region: "us-east-1".to_owned(),
            domains: Vec::new(),
            tls_cert: None,
            tls_key: None,
            connections_max: 1024,
            website_domains: Vec::new(),
            log_interval_secs: 300,
            allow_private_endpoints: false,
        }
    }
}

/// `[grpc]`: the gRPC door, opened by nodes with role gateway. It speaks TLS with the certificates of `[s3]`, plain
/// HTTP/2 where there are none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GrpcConfig {
    /// TCP. Loopback until an operator decides otherwise; empty: no gRPC here.
    #[serde(with = "empty_is_none")]
    pub listen: Option<SocketAddr>,
    /// Connections beyond this many wait unaccepted.
    pub connections_max: u32,
    /// Whether tokens are taken in plain text from other machines too: only where another wall is around the door, as a proxy that
    /// speaks TLS, or a private network. Secrets themselves never are.
    pub allow_plain: bool,
}

impl Default for GrpcConfig {
    fn default() -> Self {
        Self {
            listen: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 9001))),
            connections_max: 1024,
            allow_plain: false,
        }
    }
}

/// `[console]`: health and Prometheus metrics.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConsoleConfig {
    /// TCP. Loopback, because metrics tell much about a business; empty: none here.
    #[serde(with = "empty_is_none")]
    pub listen: Option<SocketAddr>,
}

impl Default for ConsoleConfig {
    fn default() -> Self {
        Self { listen: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 9002))) }
    }
}

/// `[[disk]]`: one directory that the node offers. Give one for each physical disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DiskConfig {
    /// Required where a `[[disk]]` is given.
    pub path: PathBuf,
    /// Left free for the system and for repair: filesystems grow slow when full.
    pub reserve_bytes: u64,
    /// Never hold more than this; 0: the whole disk, less the reserve.
    pub capacity_bytes_max: u64,
    /// How quickly it is written, as `makai init` measured: a slow disk takes no more than a tenth of its speed reads back
    /// in two weeks. 0: not measured, its size alone counts.
    pub speed_bytes_per_sec: u64,
}

impl Default for DiskConfig {
    fn default() -> Self {
        Self { path: PathBuf::new(), reserve_bytes: GIB, capacity_bytes_max: 0, speed_bytes_per_sec: 0 }
    }
}

/// `[storage]`: how shards are kept, checked and repaired.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StorageConfig {
    /// Size of a segment file. Large enough that the filesystem lays it out in few pieces, small enough
    /// that compaction can rewrite one while it serves; the largest shard must fit.
    pub segment_bytes: u64,
    /// Ceiling on the shards that this node makes again or takes over, as they are written, so that a lost disk does not
    /// starve clients. Making one reads as many as the scheme has data shards.
    pub repair_bytes_per_sec_max: u64,
    /// What a silent node holds is made again elsewhere after this, if its group is short of shards by then. A machine that
    /// is switched off for the night costs nothing. The leader's counts: keep it alike on all voters.
    pub repair_grace_secs: u64,
    /// As above, where few or no shards are left to spare: longer than a reboot takes.
    pub repair_urgent_secs: u64,
    /// Time to read every shard back once. Two weeks: scrubs of that period found most latent sector errors
    /// in a field study (Bairavasundaram et al., SIGMETRICS 2007).
    pub scrub_period_secs: u64,
    /// A shard that no fact names is collected once it is older than this. Longer than any upload takes
    /// from its first shard to its commit.
    pub orphan_age_secs: u64,
    /// Pause between two looks at what the facts ask of this node.
    pub reconcile_interval_ms: u64,
    /// Pause between two rounds of the leader through the buckets that have a lifecycle.
    pub lifecycle_interval_secs: u64,
    /// How long the days are by which lifecycles count: shorter than a real one only to try rules out.
    pub lifecycle_day_secs: u64,
}

impl Default for StorageConfig {
    fn default() -> Self {
        Self {
            segment_bytes: 256 * MIB,
            repair_bytes_per_sec_max: 32 * MIB,
            repair_grace_secs: DAY_SECS,
            repair_urgent_secs: 600,
            scrub_period_secs: 14 * DAY_SECS,
            orphan_age_secs: DAY_SECS,
            reconcile_interval_ms: 1_000,
            lifecycle_interval_secs: 60 * 60,
            lifecycle_day_secs: DAY_SECS,
        }
    }
}

/// `[compute]`: what a node with role compute gives to jobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ComputeConfig {
    /// Thousandths of a core that jobs may hold together; 0: all cores.
    pub cpu_millis_max: u64,
    /// Memory that jobs may hold together; 0: three quarters of the machine's.
    pub memory_bytes_max: u64,
    /// Room for inputs and outputs under way; 0: half of what is free where `node.dir` lies.
    pub scratch_bytes_max: u64,
    /// Images and inputs kept for the next job that wants them.
    pub cache_bytes_max: u64,
    /// Whether jobs may have shares of this machine's cards, where it has any.
    pub gpus: bool,
    /// Memory of each card that stays with the machine's desktop.
    pub gpu_reserve_mib: u64,
    /// Whether containers may have shares of cards, kept within them by a library in front of the driver's. It keeps honest programs to
    /// their share; a hostile one gets around it. Without, containers get whole cards, and modules shares as before.
    pub gpu_container_shares: bool,
    /// Whether a card is taken back from jobs when a program of the machine's own uses it: a game, an editor.
    pub gpu_yield: bool,
    /// Programs that may use cards beside jobs all the same, by the names that the kernel has for them: the desktop's.
    pub gpu_yield_ignored: Vec<String>,
    /// The driver's libraries, where the system does not find them by itself; empty: it does.
    pub cuda_library: String,
    pub nvml_library: String,
    /// Share of the processors' time that is spent, while no attempt runs here, on work that measures this machine and earns
    /// for it, in hundredths; 0: none. At the lowest priority. Power costs money, so that an owner asks for it.
    pub drill_pct: u8,
}

impl Default for ComputeConfig {
    fn default() -> Self {
        Self {
            cpu_millis_max: 0,
            memory_bytes_max: 0,
            scratch_bytes_max: 0,
            cache_bytes_max: 10 * GIB,
            gpus: true,
            gpu_reserve_mib: 0,
            gpu_container_shares: true,
            gpu_yield: false,
            gpu_yield_ignored: [
                "Xorg",
                "Xwayland",
                "gnome-shell",
                "kwin_wayland",
                "kwin_x11",
                "plasmashell",
                "sway",
            ]
            .map(str::to_owned)
            .into(),
            cuda_library: String::new(),
            nvml_library: String::new(),
            drill_pct: 0,
        }
    }
}

/// `[raft]`: agreement between voters. Heartbeats and timeouts must be alike on all of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RaftConfig {
    /// How often a leader says that it lives.
    pub heartbeat_interval_ms: u64,
    /// A voter that hears nothing of its leader for the maximum, and then for a time between these two, stands for election: with
    /// the defaults a dead leader is replaced in 0.8 to 0.95 s. More than the slowest path between voters; where voters
    /// share busy cores with much else, and lead in turn, write more.
    pub election_timeout_min_ms: u64,
    /// Apart from the minimum, so that two voters seldom stand at once.
    pub election_timeout_max_ms: u64,
    /// For one attempt to reach the leader or a majority; then another voter is asked.
    pub request_timeout_ms: u64,
    /// A request for the facts is retried through leader changes for so long, then answered unavailable.
    pub deadline_ms: u64,
    /// Log written since the facts were last made durable, before they are again. Bounds what a restart
    /// applies anew.
    pub snapshot_log_bytes: u64,
    /// Longest time between two such moments, for a cluster with little to write.
    pub snapshot_interval_ms: u64,
    /// Log kept behind a snapshot, so that a voter that was away for a while catches up from the log instead
    /// of from a snapshot.
    pub log_keep_bytes: u64,
    /// Size of a log segment, zeroed before use so that an append's fsync writes data only.
    pub log_segment_bytes: u64,
    /// Newest log entries kept in memory for followers; older ones are read from disk.
    pub log_cache_bytes: u64,
    /// Memory for pages of the facts.
    pub store_cache_bytes: u64,
}

impl Default for RaftConfig {
    fn default() -> Self {
        Self {
            heartbeat_interval_ms: 100,
            election_timeout_min_ms: 300,
            election_timeout_max_ms: 450,
            request_timeout_ms: 2_000,
            deadline_ms: 10_000,
            snapshot_log_bytes: 64 * MIB,
            snapshot_interval_ms: 60_000,
            log_keep_bytes: 64 * MIB,
            log_segment_bytes: 16 * MIB,
            log_cache_bytes: 32 * MIB,
            store_cache_bytes: 64 * MIB,
        }
    }
}

/// `[limits]`: what one gateway takes on before it answers `SlowDown`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Requests of all kinds under way at once.
    pub requests_in_flight_max: u32,
    /// Uploads at once. Each holds a few stripes in memory, whatever the object's size.
    pub uploads_in_flight_max: u32,
    /// Memory for what downloads have read and clients have not taken yet: however many clients are slow, it is no more. Half of
    /// it is one tenant's at most.
    pub read_bytes_in_flight_max: u64,
    /// Memory for what was read lately, so that a gateway need not fetch it from the disks again. Of objects of up to an
    /// eighth of it; 0 turns it off.
    pub read_cache_bytes: u64,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            requests_in_flight_max: 1_024,
            uploads_in_flight_max: 256,
            read_bytes_in_flight_max: 1_024 * MIB,
            read_cache_bytes: 64 * MIB,
        }
    }
}

/// A value that stands in the file as a string.
trait Text: Sized {
    fn to_text(&self) -> String;
    fn from_text(text: String) -> Result<Self, String>;
}

impl Text for SocketAddr {
    fn to_text(&self) -> String {
        self.to_string()
    }

    fn from_text(text: String) -> Result<Self, String> {
        text.parse().map_err(|_| {
            format!(
                "{text:?} is not an IP address with a port; write e.g. \"127.0.0.1:9000\" or \"[::1]:9000\""
            )
        })
    }
}

impl Text for PathBuf {
    fn to_text(&self) -> String {
        self.to_string_lossy().into_owned()
    }

    fn from_text(text: String) -> Result<Self, String> {
        Ok(Self::from(text))
    }
}

impl Text for Secret {
    fn to_text(&self) -> String {
        self.0.clone()
    }

    fn from_text(text: String) -> Result<Self, String> {
        Ok(Self(text.trim().to_owned()))
    }
}

mod text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<T: super::Text, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&value.to_text())
    }

    pub(super) fn deserialize<'de, T: super::Text, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
        T::from_text(String::deserialize(from)?).map_err(D::Error::custom)
    }
}

mod empty_is_none {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<T: super::Text, S: Serializer>(
        value: &Option<T>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.serialize_str(&value.as_ref().map(super::Text::to_text).unwrap_or_default())
    }

    pub(super) fn deserialize<'de, T: super::Text, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<T>, D::Error> {
        let text = String::deserialize(from)?;
        if text.is_empty() { Ok(None) } else { T::from_text(text).map(Some).map_err(D::Error::custom) }
    }
}
