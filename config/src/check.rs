//! Ranges, and what one key asks of another. Each fault says the value, the bound and what to write.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::Path;

use crate::parse::{Faults, item_name};
use crate::sections::LABEL_BYTES_MAX;
use crate::{NodeConfig, Role};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;
const DAY_SECS: u64 = 24 * 60 * 60;
/// A thousand credits for a unit.
const PRICE_MAX: u64 = 1_000_000_000;
const YEAR_SECS: u64 = 365 * DAY_SECS;

/// A voter misses this many heartbeats before it may stand for election.
const HEARTBEATS_PER_ELECTION_MIN: u64 = 3;
/// Bytes in a DNS name.
const DOMAIN_BYTES_MAX: usize = 253;

pub(crate) fn check(config: &NodeConfig, faults: &mut Faults) {
    node(config, faults);
    cluster(config, faults);
    peers(config, faults);
    doors(config, faults);
    disks(config, faults);
    numbers(config, faults);
}

fn node(config: &NodeConfig, faults: &mut Faults) {
    let node = &config.node;
    if node.dir.as_os_str().is_empty() {
        faults.push("node.dir", "is not given; name the directory in which this node may keep its data");
    }
    for (key, text) in [("node.name", &node.name), ("node.owner", &node.owner), ("node.site", &node.site)] {
        if text.len() > LABEL_BYTES_MAX || text.chars().any(char::is_control) {
            faults.push(
                key,
                format!("has more than {LABEL_BYTES_MAX} bytes or a control character; shorten it"),
            );
        }
    }
    if node.roles.is_empty() {
        faults.push("node.roles", "is empty; give at least one of voter, storage, gateway, compute");
    }
    if node.log.trim().is_empty() {
        faults.push("node.log", "is empty; write a level: error, warn, info, debug or trace");
    }
}

fn cluster(config: &NodeConfig, faults: &mut Faults) {
    let cluster = &config.cluster;
    let joins = cluster.join_token.is_some() || cluster.join_token_file.is_some();
    if cluster.init && joins {
        faults.push_between(
            "cluster.init",
            &["cluster.join_token", "cluster.join_token_file"],
            "is true and a join token is given; a node founds a cluster or joins one: remove one of them",
        );
    }
    if cluster.join_token.is_some() && cluster.join_token_file.is_some() {
        faults.push("cluster.join_token", "and cluster.join_token_file are both given; remove one of them");
    }
    if cluster.init && !config.has_role(Role::Voter) {
        faults.push_between(
            "cluster.init",
            &["node.roles"],
            "is true; the node that founds a cluster needs role voter in node.roles",
        );
    }
    if cluster.voters_max.is_multiple_of(2) || cluster.voters_max > 7 {
        faults.push(
            "cluster.voters_max",
            format!(
                "is {}; write 1, 3, 5 or 7: an even number adds a copy but no safety",
                cluster.voters_max
            ),
        );
    }
}

fn peers(config: &NodeConfig, faults: &mut Faults) {
    for address in &config.peers.advertise {
        if !is_reachable_address(address) {
            faults.push(
                "peers.advertise",
                format!("holds {address:?}; write host:port as other nodes reach it, port 1 to 65535"),
            );
        }
    }
    if config.peers.advertise.is_empty() && config.has_role(Role::Voter) {
        faults.push_between(
            "peers.advertise",
            &["node.roles", "peers.listen"],
            "is empty and peers.listen is every interface; other nodes must reach a voter: give its host:port",
        );
    }
}

fn is_reachable_address(address: &str) -> bool {
    if let Ok(address) = address.parse::<SocketAddr>() {
        return !address.ip().is_unspecified();
    }
    let Some((host, port)) = address.rsplit_once(':') else { return false };
    is_domain(&host.to_ascii_lowercase()) && port.parse::<u16>().is_ok_and(|port| port != 0)
}

fn is_domain(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= DOMAIN_BYTES_MAX && name.split('.').all(is_label)
}

fn doors(config: &NodeConfig, faults: &mut Faults) {
    let s3 = &config.s3;
    if config.has_role(Role::Gateway) && s3.listen.is_none() {
        faults.push_between(
            "s3.listen",
            &["node.roles"],
            "is empty; a gateway needs a door: give an address, or drop role gateway",
        );
    }
    let region_is_right = (1..=64).contains(&s3.region.len())
        && s3.region.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if !region_is_right {
        let message = format!("is {:?}; write 1 to 64 of a-z, 0-9 and -, e.g. \"us-east-1\"", s3.region);
        faults.push("s3.region", message);
    }
    for domain in &s3.domains {
        if !is_domain(domain) {
            let message =
                format!("holds {domain:?}; write a name in lower case alone, e.g. \"s3.example.org\"");
            faults.push("s3.domains", message);
        }
    }
    match (&s3.tls_cert, &s3.tls_key) {
        (Some(_), None) => faults.push_between(
            "s3.tls_key",
            &["s3.tls_cert"],
            "is not given, but s3.tls_cert is; give both or neither",
        ),
        (None, Some(_)) => faults.push_between(
            "s3.tls_cert",
            &["s3.tls_key"],
            "is not given, but s3.tls_key is; give both or neither",
        ),
        _ => {}
    }
    let listens = [
        ("s3.listen", s3.listen),
        ("grpc.listen", config.grpc.listen),
        ("console.listen", config.console.listen),
    ];
    for (index, (key, address)) in listens.iter().enumerate() {
        for (other_key, other) in &listens[..index] {
            if let (Some(address), Some(other)) = (address, other)
                && overlap(*address, *other)
            {
                let message = format!("is {address}, which {other_key} = {other} takes; change a port");
                faults.push_between(*key, &[other_key], message);
            }
        }
    }
}

/// Whether both cannot be bound at once. Port 0 takes any free port.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let every = |ip: IpAddr| ip.is_unspecified();
    a.port() == b.port() && a.port() != 0 && (a.ip() == b.ip() || every(a.ip()) || every(b.ip()))
}

fn disks(config: &NodeConfig, faults: &mut Faults) {
    if !config.disk.is_empty() && !config.has_role(Role::Storage) {
        faults.push_between(
            "disk",
            &["node.roles"],
            "is given, but node.roles has no storage; add the role or remove [[disk]]",
        );
    }
    let drill_pct = config.compute.drill_pct;
    if drill_pct > 100 {
        faults.push("compute.drill_pct", format!("is {drill_pct}; a share is 0 to 100"));
    }
    for (index, disk) in config.disk.iter().enumerate() {
        let name = item_name("disk", index);
        let key = format!("{name}.path");
        if disk.path.as_os_str().is_empty() {
            faults.push(key, "is not given; name the directory that this node offers");
        } else if disk.path == config.node.dir {
            faults.push(key, "is node.dir itself; give the disk a directory of its own, e.g. inside it");
        } else if let Some(other) = config.disk[..index].iter().find(|other| nest(&other.path, &disk.path)) {
            let message =
                format!("is {:?}, within or around {:?}; one directory each", disk.path, other.path);
            faults.push(key, message);
        }
        let capacity = disk.capacity_bytes_max;
        if capacity != 0 && capacity < config.storage.segment_bytes {
            faults.push_between(
                format!("{name}.capacity_bytes_max"),
                &["storage.segment_bytes"],
                format!(
                    "is {capacity}; write 0 for the whole disk or at least storage.segment_bytes = {}",
                    config.storage.segment_bytes
                ),
            );
        }
    }
}

/// Whether one is the other or holds it.
fn nest(a: &Path, b: &Path) -> bool {
    a.starts_with(b) || b.starts_with(a)
}

fn numbers(config: &NodeConfig, faults: &mut Faults) {
    let NodeConfig { node, peers, s3, grpc, storage, raft, limits, accounts, .. } = config;
    let mut within = |key: &str, value: u64, range: RangeInclusive<u64>| {
        if !range.contains(&value) {
            faults.push(key, format!("is {value}; write {} to {}", range.start(), range.end()));
        }
    };
    within("peers.connect_timeout_ms", peers.connect_timeout_ms, 100..=60_000);
    within("peers.idle_timeout_ms", peers.idle_timeout_ms, 1_000..=600_000);
    within("s3.connections_max", s3.connections_max.into(), 1..=1_000_000);
    within("s3.log_interval_secs", s3.log_interval_secs, 1..=DAY_SECS);
    within("grpc.connections_max", grpc.connections_max.into(), 1..=1_000_000);
    within("storage.segment_bytes", storage.segment_bytes, 128 * MIB..=4 * GIB);
    within("storage.repair_bytes_per_sec_max", storage.repair_bytes_per_sec_max, 64 * KIB..=1024 * GIB);
    within("storage.repair_grace_secs", storage.repair_grace_secs, 0..=30 * DAY_SECS);
    within("storage.repair_urgent_secs", storage.repair_urgent_secs, 0..=30 * DAY_SECS);
    within("storage.scrub_period_secs", storage.scrub_period_secs, 10..=YEAR_SECS);
    within("storage.orphan_age_secs", storage.orphan_age_secs, 60..=YEAR_SECS);
    within("storage.reconcile_interval_ms", storage.reconcile_interval_ms, 10..=3_600_000);
    within("storage.lifecycle_interval_secs", storage.lifecycle_interval_secs, 1..=7 * DAY_SECS);
    within("storage.lifecycle_day_secs", storage.lifecycle_day_secs, 1..=DAY_SECS);
    within("node.worker_threads", node.worker_threads.into(), 0..=1024);
    within("raft.heartbeat_interval_ms", raft.heartbeat_interval_ms, 10..=10_000);
    within("raft.election_timeout_min_ms", raft.election_timeout_min_ms, 30..=60_000);
    within("raft.election_timeout_max_ms", raft.election_timeout_max_ms, 60..=120_000);
    within("raft.request_timeout_ms", raft.request_timeout_ms, 100..=60_000);
    within("raft.deadline_ms", raft.deadline_ms, 100..=300_000);
    within("raft.snapshot_log_bytes", raft.snapshot_log_bytes, MIB..=64 * GIB);
    within("raft.snapshot_interval_ms", raft.snapshot_interval_ms, 1_000..=DAY_SECS * 1_000);
    within("raft.log_keep_bytes", raft.log_keep_bytes, MIB..=64 * GIB);
    within("raft.log_segment_bytes", raft.log_segment_bytes, MIB..=GIB);
    within("raft.log_cache_bytes", raft.log_cache_bytes, MIB..=16 * GIB);
    within("raft.store_cache_bytes", raft.store_cache_bytes, MIB..=1024 * GIB);
    within("limits.requests_in_flight_max", limits.requests_in_flight_max.into(), 1..=1_000_000);
    within("limits.uploads_in_flight_max", limits.uploads_in_flight_max.into(), 1..=100_000);
    within("limits.read_bytes_in_flight_max", limits.read_bytes_in_flight_max, 16 * MIB..=1024 * GIB);
    within("limits.read_cache_bytes", limits.read_cache_bytes, 0..=1024 * GIB);
    within("accounts.epoch_secs", accounts.epoch_secs, 2..=30 * DAY_SECS);
    within("accounts.challenge_secs", accounts.challenge_secs, 0..=30 * DAY_SECS);
    within("accounts.payout_cooldown_secs", accounts.payout_cooldown_secs, 0..=YEAR_SECS);
    within("accounts.audit_leaves_per_day", accounts.audit_leaves_per_day.into(), 1..=1_000_000);
    let prices = &config.prices;
    for (key, price) in [
        ("prices.storage_gib_month", prices.storage_gib_month),
        ("prices.ingress_gib", prices.ingress_gib),
        ("prices.egress_gib", prices.egress_gib),
        ("prices.requests_thousand", prices.requests_thousand),
        ("prices.cpu_core_hour", prices.cpu_core_hour),
        ("prices.memory_gib_hour", prices.memory_gib_hour),
        ("prices.gpu_card_hour", prices.gpu_card_hour),
    ] {
        within(key, price, 0..=PRICE_MAX);
    }
    within("ledger.finality_depth", config.ledger.finality_depth, 0..=100_000);
    within("ledger.fee_cap_gwei", config.ledger.fee_cap_gwei, 1..=1_000_000);
    within("ledger.post_every_epochs", config.ledger.post_every_epochs, 1..=8);
    within("accounts.audit_deadline_ms", accounts.audit_deadline_ms, 100..=600_000);

    let (heartbeat, min, max) =
        (raft.heartbeat_interval_ms, raft.election_timeout_min_ms, raft.election_timeout_max_ms);
    if min < heartbeat.saturating_mul(HEARTBEATS_PER_ELECTION_MIN) {
        faults.push_between(
            "raft.election_timeout_min_ms",
            &["raft.heartbeat_interval_ms"],
            format!(
                "is {min}; write at least {HEARTBEATS_PER_ELECTION_MIN} times raft.heartbeat_interval_ms = \
                 {heartbeat}, or a late heartbeat starts an election"
            ),
        );
    }
    let ledger = &config.ledger;
    if ledger.kind == crate::LedgerKind::Evm {
        let is_address = |text: &str| {
            let digits = text.strip_prefix("0x");
            digits.is_some_and(|digits| {
                digits.len() == 40 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
            })
        };
        if !ledger.staking.is_empty() && !is_address(&ledger.staking) {
            faults.push("ledger.staking", "is no address; write 0x and 40 hex digits, or nothing");
        }
        if !is_address(&ledger.distributor) {
            faults.push("ledger.distributor", "is no address; write 0x and 40 hex digits: the contract's");
        }
        if ledger.rpc.is_empty() || ledger.rpc.iter().any(|url| !url.starts_with("http://")) {
            faults
                .push("ledger.rpc", "must name endpoints as http://HOST:PORT; put a TLS proxy before others");
        }
        if ledger.chain_id == 0 {
            faults.push("ledger.chain_id", "is 0, which is no chain; write the id that the endpoint answers");
        }
    }
    if !["makai", "mai"].contains(&accounts.tokenomics.as_str()) {
        let message = format!("is {:?}; write \"makai\" or \"mai\"", accounts.tokenomics);
        faults.push("accounts.tokenomics", message);
    }
    if max <= min {
        faults.push_between(
            "raft.election_timeout_max_ms",
            &["raft.election_timeout_min_ms"],
            format!("is {max}; write more than raft.election_timeout_min_ms = {min}"),
        );
    }
    if raft.deadline_ms < raft.request_timeout_ms {
        faults.push_between(
            "raft.deadline_ms",
            &["raft.request_timeout_ms"],
            format!(
                "is {}; write at least raft.request_timeout_ms = {}, so that one attempt fits",
                raft.deadline_ms, raft.request_timeout_ms
            ),
        );
    }
    if limits.requests_in_flight_max < limits.uploads_in_flight_max {
        faults.push_between(
            "limits.uploads_in_flight_max",
            &["limits.requests_in_flight_max"],
            format!(
                "is {}; write at most limits.requests_in_flight_max = {}: an upload is a request",
                limits.uploads_in_flight_max, limits.requests_in_flight_max
            ),
        );
    }
}
