//! `makai bench raft`: metadata writes per second, through the real transport and with real fsyncs.
//!
//! Voters run in this process, each with its own folder and its own QUIC endpoint on loopback, so that what is
//! measured is agreement without doors.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use makai_erasure::BlobId;
use makai_raft::facts::command::{Command, NewContent, Precondition, Reply};
use makai_raft::facts::object::{Content, ObjectHeaders};
use makai_raft::handle::{MetaClient, MetaClientConfig, MetaConfig, MetaNode, Metadata, RaftPeers};
use serde::Serialize;
use tokio::sync::watch;

use super::latency::Latencies;
use super::{progress, stopwatch};
use crate::cli::print_json;
use crate::clock;
use crate::disks::LocalDisks;
use crate::identity::NodeIdentity;
use crate::members::Members;
use crate::node::ControlPeers;
use crate::process;
use crate::state::KnownPeer;
use crate::transport::{PeerHandler, Transport, TransportConfig};

const FORM_WITHIN: Duration = Duration::from_secs(30);

/// Metadata writes: durable on a majority of voters, over QUIC
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Voters, all in this process
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=7))]
    voters: u64,
    /// Callers at once
    #[arg(long, value_delimiter = ',', default_value = "1,16,128,1024")]
    clients: Vec<usize>,
    /// Bytes of each value
    #[arg(long, default_value_t = 256)]
    value_bytes: usize,
    /// Seconds for each row
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Where the logs go; the disk under it is what is measured. Default: a new folder under the working directory
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Row {
    voters: u64,
    clients: usize,
    value_bytes: usize,
    writes_per_sec: f64,
    p50_micros: u128,
    p99_micros: u128,
    max_micros: u128,
    cpu_micros_per_write: f64,
    errors: u64,
}

struct Voter {
    meta: MetaNode,
    transport: Transport,
}

pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    // As daemons do.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    let dir =
        args.dir.clone().unwrap_or_else(|| PathBuf::from(format!("makai-bench-raft-{}", std::process::id())));
    std::fs::create_dir_all(&dir).with_context(|| format!("make {dir:?}"))?;
    let measured = measure(&args, &dir).await;
    std::fs::remove_dir_all(&dir).with_context(|| format!("delete {dir:?}"))?;
    measured
}

async fn measure(args: &Args, dir: &std::path::Path) -> anyhow::Result<ExitCode> {
    let voters = start(args.voters, dir).await?;
    let ids: Vec<_> = voters.iter().map(|voter| voter.transport.id()).collect();
    let (_ids, ids) = watch::channel(ids);
    let peers: Arc<dyn RaftPeers> = Arc::new(ControlPeers::new(voters[0].transport.clone()));
    let facts: Arc<dyn Metadata> = Arc::new(MetaClient::new(
        Some(voters[0].meta.clone()),
        ids,
        peers,
        MetaClientConfig::new(rand::random()),
    ));
    form(&voters, &*facts).await?;
    if !args.json {
        println!(
            "{:>7} {:>8} {:>12} {:>10} {:>10} {:>10} {:>12}",
            "voters", "clients", "writes/s", "p50 us", "p99 us", "max us", "CPU us/write"
        );
    }
    let mut failed = false;
    for clients in args.clients.iter().copied() {
        let row = load(args, &facts, clients).await?;
        failed |= row.errors > 0;
        if args.json {
            print_json(&row)?;
        } else {
            println!(
                "{:>7} {:>8} {:>12.0} {:>10} {:>10} {:>10} {:>12.1}{}",
                row.voters,
                row.clients,
                row.writes_per_sec,
                row.p50_micros,
                row.p99_micros,
                row.max_micros,
                row.cpu_micros_per_write,
                if row.errors > 0 { format!("  {} errors", row.errors) } else { String::new() }
            );
        }
    }
    for voter in &voters {
        voter.meta.shutdown().await;
        voter.transport.close(Duration::ZERO).await;
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn start(count: u64, dir: &std::path::Path) -> anyhow::Result<Vec<Voter>> {
    let mut parts = Vec::new();
    for number in 1..=count {
        let dir = dir.join(format!("voter{number}"));
        std::fs::create_dir_all(&dir)?;
        let identity = NodeIdentity::load_or_create(&dir)?;
        let members = Members::new(identity.id(), LocalDisks::default());
        let handler: Arc<dyn PeerHandler> = Arc::<Members>::clone(&members);
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let transport =
            Transport::start(TransportConfig { listen, ..TransportConfig::default() }, &identity, handler)
                .await?;
        parts.push((dir, members, transport));
    }
    let known: Vec<KnownPeer> = parts
        .iter()
        .map(|(_, _, transport)| KnownPeer {
            id: transport.id(),
            addresses: vec![transport.local_addr().to_string()],
            roles: vec![makai_raft::facts::cluster::Role::Voter],
        })
        .collect();
    let mut voters = Vec::new();
    for (number, (dir, members, transport)) in (1..).zip(parts) {
        members.remember("bench", &known);
        for peer in known.iter().filter(|peer| peer.id != transport.id()) {
            transport.set_addresses(peer.id, peer.addresses.clone());
        }
        let peers: Arc<dyn RaftPeers> = Arc::new(ControlPeers::new(transport.clone()));
        let config = MetaConfig::new(dir.join("meta"), "bench".into(), number, transport.id());
        let meta = MetaNode::start(config, peers, Arc::new(|| clock::now().0)).await?;
        members.set_meta(meta.clone());
        voters.push(Voter { meta, transport });
    }
    Ok(voters)
}

/// Makes the voters one cluster with a bucket to write to.
async fn form(voters: &[Voter], facts: &dyn Metadata) -> anyhow::Result<()> {
    voters[0].meta.bootstrap().await?;
    let begun = stopwatch();
    while !voters[0].meta.is_leader() {
        if begun.elapsed() > FORM_WITHIN {
            bail!("no leader after {} s", FORM_WITHIN.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for (number, voter) in (2..).zip(&voters[1..]) {
        voters[0].meta.add_voter(number, voter.transport.id()).await?;
    }
    facts.propose(Command::InitCluster { cluster_id: "bench".into() }).await?;
    let tenant = Command::CreateTenant {
        name: "bench".into(),
        wrapped_key: Bytes::from(vec![0; 60]),
        quota_bytes: None,
    };
    let Reply::Tenant(tenant) = facts.propose(tenant).await? else { bail!("no tenant was made") };
    facts.propose(Command::CreateBucket { name: "bench".into(), tenant: tenant.id, scheme: None }).await?;
    Ok(())
}

async fn load(args: &Args, facts: &Arc<dyn Metadata>, clients: usize) -> anyhow::Result<Row> {
    let whole = Duration::from_secs(args.seconds);
    let bar = progress(&format!("raft, {clients} clients"), whole);
    let before = process::usage(std::process::id())?;
    let begun = stopwatch();
    let mut tasks = tokio::task::JoinSet::new();
    for client in 0..clients {
        let (facts, size) = (Arc::clone(facts), args.value_bytes);
        tasks.spawn(async move {
            let mut latencies = Latencies::default();
            let mut errors = 0u64;
            let mut count = 0u64;
            while begun.elapsed() < whole {
                let sent = stopwatch();
                let command = put(client, count, size);
                count += 1;
                match facts.propose(command).await {
                    Ok(_) => latencies.add(sent.elapsed()),
                    Err(_) => errors += 1,
                }
            }
            (latencies, errors)
        });
    }
    let mut latencies = Latencies::default();
    let mut errors = 0;
    while let Some(done) = tasks.join_next().await {
        let (of_client, failed) = done?;
        latencies.merge(&of_client);
        errors += failed;
    }
    bar.finish_and_clear();
    let took = begun.elapsed().as_secs_f64();
    let cpu = process::usage(std::process::id())?.cpu.saturating_sub(before.cpu);
    let writes = latencies.count().max(1) as f64;
    Ok(Row {
        voters: args.voters,
        clients,
        value_bytes: args.value_bytes,
        writes_per_sec: latencies.count() as f64 / took,
        p50_micros: latencies.percentile(500).as_micros(),
        p99_micros: latencies.percentile(990).as_micros(),
        max_micros: latencies.max().as_micros(),
        cpu_micros_per_write: cpu.as_secs_f64() * 1e6 / writes,
        errors,
    })
}

/// A small object, as a door would put it.
fn put(client: usize, count: u64, size: usize) -> Command {
    let content = Content::Inline {
        blob: BlobId([0; 16]),
        wrapped_key: Bytes::from(vec![0; 60]),
        sealed: Bytes::from(vec![0; size + 16]),
    };
    Command::PutObject {
        bucket: "bench".into(),
        key: format!("{client}/{}", count % 4096),
        headers: ObjectHeaders::default(),
        new: NewContent {
            size: size as u64,
            etag: "d41d8cd98f00b204e9800998ecf8427e".into(),
            checksum: None,
            content,
            blobs: Vec::new(),
            bucket_id: 0,
        },
        precondition: Precondition::default(),
        by_form: false,
    }
}
