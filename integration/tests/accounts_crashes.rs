//! Promise: a leader killed at any step from the sealing of an epoch to the payment of a claim on a chain loses nobody
//! anything and pays nothing twice: epochs go on, every root is posted in order, no transaction is stuck.
//!
//! The steps are those of an epoch's life: sealed, computed, signed by one, signed; and of its root's way to the chain:
//! written and not sent, sent, seen in a block that is then taken back, final. At each the leading voter's process is killed
//! as soon as that step is observed, another one leads, and the killed one starts again with what it wrote.
//!
//! Without an EVM the steps to the chain are left out, and claims are paid by the embedded ledger.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use http::Method;
use makai::accounts::api::Overview;
use makai::accounts::chain::Chain;
use makai_config::{LedgerConfig, LedgerKind};
use makai_integration::chain::{self, Anvil, CHAIN_ID, Endpoint, Manners};
use makai_integration::cluster::{Cluster, ClusterOptions, makai};
use makai_integration::s3::Content;
use makai_integration::wait;
use makai_ops::claims::statement::ClaimKey;
use makai_ops::rewards::tokenomics::Tokenomics;
use makai_raft::facts::accounts::{Address, Amount, EpochState};
use serde_json::{Value, json};

const BUCKET: &str = "earn";
const EPOCH_SECS: u64 = 2;
const NODES: usize = 3;
const WITHIN: Duration = Duration::from_secs(90);
const FINALITY: u64 = 3;
const SUBMITTERS_FROM: usize = 50;

fn key(seed: usize) -> [u8; 32] {
    [u8::try_from(seed + 1).unwrap_or(1); 32]
}

fn address(seed: usize) -> anyhow::Result<Address> {
    Ok(ClaimKey::from_bytes(&key(seed)).context("a key")?.address())
}

fn addresses(from: usize) -> anyhow::Result<String> {
    let all = (from..from + NODES).map(|seed| Ok(address(seed)?.to_string()));
    Ok(all.collect::<anyhow::Result<Vec<_>>>()?.join(","))
}

fn give_key(dir: &Path, name: &str, seed: usize) {
    std::fs::create_dir_all(dir).expect("the node's folder");
    let digits: String = key(seed).iter().map(|byte| format!("{byte:02x}")).collect();
    std::fs::write(dir.join(name), digits).expect("a key");
}

/// A chain that makes blocks when it is told to, an endpoint before it, and what lies on it.
struct Evm {
    anvil: Anvil,
    endpoint: Endpoint,
    token: String,
    ledger: LedgerConfig,
}

impl Evm {
    async fn start() -> anyhow::Result<Self> {
        let anvil = Anvil::start(&[]).await?;
        let endpoint = Endpoint::start(&anvil).await?;
        let emission = Tokenomics::profile("makai", EPOCH_SECS * 1000)?.emission();
        let (pool, halving) = (emission.pool.to_string(), emission.halving_epochs.to_string());
        let (signers, submitters) = (addresses(0)?, addresses(SUBMITTERS_FROM)?);
        let (token, distributor) = anvil.deploy(&[&pool, &halving, "0", "2", &signers, &submitters])?;
        anvil.ask("evm_setAutomine", json!([false])).await?;
        let ledger = LedgerConfig {
            kind: LedgerKind::Evm,
            rpc: vec![endpoint.url.clone()],
            chain_id: CHAIN_ID,
            distributor,
            finality_depth: FINALITY,
            fee_cap_gwei: 1000,
            post_every_epochs: 1,
            ..LedgerConfig::default()
        };
        Ok(Self { anvil, endpoint, token, ledger })
    }
}

async fn start(ledger: Option<LedgerConfig>) -> anyhow::Result<Cluster> {
    let change = move |at: usize, config: &mut makai_config::NodeConfig| {
        config.accounts.epoch_secs = EPOCH_SECS;
        config.accounts.challenge_secs = 0;
        if let Some(ledger) = &ledger {
            config.ledger = ledger.clone();
            give_key(&config.node.dir, "claim.key", at);
            give_key(&config.node.dir, "submitter.key", SUBMITTERS_FROM + at);
        }
    };
    let cluster =
        Cluster::start(ClusterOptions { nodes: NODES, voters: NODES, change: Box::new(change) }).await?;
    cluster.s3(0).create_bucket(BUCKET, None).await?;
    for at in 0..4 {
        cluster.s3(0).put(BUCKET, &format!("k{at}"), &Content::new(format!("object-{at}"), 400_000)).await?;
    }
    Ok(cluster)
}

async fn overview(cluster: &Cluster, at: usize) -> anyhow::Result<Overview> {
    let node = &cluster.nodes[at];
    let found = node.console::<(), Overview>(Method::GET, "/api/v1/accounts", None).await?;
    found.context("the accounts stand nowhere")
}

/// A step after which the leader is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arrow {
    Sealed,
    Computed,
    SignedByOne,
    Signed,
    /// The transaction is on this node's disk, and no endpoint has it.
    Written,
    /// The chain has it, in no block.
    Sent,
    /// It is in a block, which is taken back while the node is away.
    Seen,
    /// It is deep enough.
    Final,
}

const EPOCH_ARROWS: [Arrow; 4] = [Arrow::Sealed, Arrow::Computed, Arrow::SignedByOne, Arrow::Signed];
const CHAIN_ARROWS: [Arrow; 4] = [Arrow::Written, Arrow::Sent, Arrow::Seen, Arrow::Final];

fn outbox(cluster: &Cluster, at: usize) -> Vec<Value> {
    let path = cluster.nodes[at].config.node.dir.join("outbox.json");
    let text = std::fs::read(path).unwrap_or_default();
    let outbox: Value = serde_json::from_slice(&text).unwrap_or_default();
    outbox["attempts"].as_array().cloned().unwrap_or_default()
}

/// Waits for a step of an epoch that comes after `signed`; the leader then.
async fn at_epoch(cluster: &Cluster, arrow: Arrow, signed: u64) -> anyhow::Result<usize> {
    let leader = cluster.leader().await?;
    let begun = makai::clock::instant();
    loop {
        ensure!(begun.elapsed() < WITHIN, "no epoch was seen {arrow:?} in time");
        // Without a pause: some steps are short.
        let Ok(now) = overview(cluster, leader).await else { continue };
        let count = now.settling.as_ref().map_or(0, |epoch| epoch.signatures.len());
        let state = now.settling.as_ref().map(|epoch| epoch.state);
        let is_there = match arrow {
            Arrow::Sealed => state == Some(EpochState::Sealed),
            Arrow::Computed => state == Some(EpochState::Computed) && count == 0,
            Arrow::SignedByOne => state == Some(EpochState::Computed) && count == 1,
            _ => now.state.signed > signed,
        };
        if is_there {
            return Ok(leader);
        }
    }
}

/// Waits for a step of a root's way to the chain; who is on it.
async fn at_chain(cluster: &Cluster, evm: &Evm, arrow: Arrow) -> anyhow::Result<usize> {
    let came_before = {
        let mut manners = evm.endpoint.manners();
        manners.holds = arrow == Arrow::Written;
        manners.seen.len()
    };
    // Whose was seen under way: when it is over, nothing of it is left to see.
    let under_way = std::cell::Cell::new(None);
    wait::until("a transaction is under way", WITHIN, || async {
        if let Some(at) = (0..NODES).find(|at| !outbox(cluster, *at).is_empty()) {
            under_way.set(Some(at));
        }
        let at = under_way.get().context("nothing is written")?;
        let has_come = evm.endpoint.manners().seen.len() > came_before;
        let is_there = match arrow {
            Arrow::Written => has_come,
            Arrow::Sent => {
                evm.anvil.transactions(&address(SUBMITTERS_FROM + at)?, "pending").await?
                    > evm.anvil.transactions(&address(SUBMITTERS_FROM + at)?, "latest").await?
            }
            Arrow::Seen => {
                let is_seen = outbox(cluster, at).first().is_some_and(|attempt| !attempt["seen"].is_null());
                let submitter = address(SUBMITTERS_FROM + at)?;
                let is_waiting = evm.anvil.transactions(&submitter, "pending").await?
                    > evm.anvil.transactions(&submitter, "latest").await?;
                // One block and no more: with several on top it would be final at the first look.
                if !is_seen && is_waiting {
                    evm.anvil.mine(1).await?;
                }
                is_seen
            }
            _ => {
                evm.anvil.mine(1).await?;
                outbox(cluster, at).is_empty()
            }
        };
        ensure!(is_there, "it is not yet {arrow:?}");
        Ok(at)
    })
    .await
}

/// Kills a node, and starts it again once another one has led the accounts on.
async fn kill(cluster: &mut Cluster, at: usize) -> anyhow::Result<()> {
    cluster.kill(&[at]);
    let leader = cluster.leader().await?;
    let before = wait::until("the accounts answer", WITHIN, || overview(cluster, leader)).await?.state;
    wait::until("epochs go on", WITHIN, || async {
        let leader = cluster.leader().await?;
        let now = overview(cluster, leader).await?.state;
        ensure!(now.signed > before.signed, "epoch {} is the last that is signed", now.signed);
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    cluster.restart(&[at]).await
}

fn run(cluster: &Cluster, args: &[&str]) -> anyhow::Result<Vec<u8>> {
    let config = cluster.nodes[0].config_path.to_str().context("a UTF-8 path")?;
    let out = makai(&[args, &["--config", config]].concat())?;
    ensure!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    Ok(out.stdout)
}

/// What a node's address was paid by this call.
fn submit(cluster: &Cluster, at: usize) -> anyhow::Result<(String, u128)> {
    let node = cluster.nodes[at].id()?.to_string();
    let paid: Value = serde_json::from_slice(&run(cluster, &["claim", "submit", &node, "--json"])?)?;
    let payout = paid["payout"].as_str().context("payout")?.to_owned();
    Ok((payout, paid["amount"].as_str().context("amount")?.parse()?))
}

/// The ledger is whole, and what may be claimed is proved.
fn verify(cluster: &Cluster) -> anyhow::Result<()> {
    run(cluster, &["claim", "verify"])?;
    let path = cluster.dir().join("ledger");
    let path = path.to_str().context("a UTF-8 path")?;
    run(cluster, &["ledger", "export", "--out", path])?;
    let out = makai(&["ledger", "verify", path])?;
    ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    Ok(())
}

/// Nothing is under way any more; roots lie in order; every account has what it may claim, once.
async fn settle_on_chain(cluster: &Cluster, evm: &Evm) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let onlooker = Chain::open(dir.path(), &evm.ledger)?;
    let roots = onlooker.roots().await?;
    let is_in_order =
        roots.windows(2).all(|pair| pair[0].1.epoch < pair[1].1.epoch && pair[0].1.total <= pair[1].1.total);
    ensure!(is_in_order && roots.len() >= CHAIN_ARROWS.len() - 1, "{roots:?}");
    for at in 0..NODES {
        let (payout, first) =
            wait::until("a claim is paid on the chain", WITHIN, || async { submit(cluster, at) }).await?;
        ensure!(evm.anvil.balance(&evm.token, &payout)? == first, "{payout} has not {first}, once");
    }
    wait::until("nothing is under way", WITHIN, || async {
        for at in 0..NODES {
            let left = outbox(cluster, at);
            let submitter = address(SUBMITTERS_FROM + at)?;
            let waiting = evm.anvil.transactions(&submitter, "pending").await?
                - evm.anvil.transactions(&submitter, "latest").await?;
            ensure!(waiting == 0, "{waiting} transactions of {submitter} wait");
            // A new root may be on its way: whatever waits is young.
            ensure!(
                left.iter().all(|attempt| attempt["tries"].as_array().is_some_and(|tries| tries.len() == 1))
            );
        }
        Ok::<_, anyhow::Error>(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_killed_at_any_step_loses_and_doubles_nothing() -> anyhow::Result<()> {
    let evm = if chain::can_run()? { Some(Evm::start().await?) } else { None };
    let mut cluster = start(evm.as_ref().map(|evm| evm.ledger.clone())).await?;
    wait::until("a first epoch is signed", WITHIN, || async {
        let now = overview(&cluster, 0).await?.state;
        ensure!(now.signed > 0 && now.signed_total > Amount(0), "none is");
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    // With an EVM, roots are on their way meanwhile: whoever leads writes and sends them, and blocks come as they do.
    for arrow in EPOCH_ARROWS {
        let leader = cluster.leader().await?;
        let signed = overview(&cluster, leader).await?.state.signed;
        let leader = at_epoch(&cluster, arrow, signed).await?;
        kill(&mut cluster, leader).await.with_context(|| format!("killed when {arrow:?}"))?;
        if let Some(evm) = &evm {
            evm.anvil.mine(FINALITY).await?;
        }
    }
    let Some(evm) = &evm else {
        let (_, paid) = submit(&cluster, 1)?;
        ensure!(paid > 0);
        verify(&cluster)?;
        return cluster.finish().await;
    };
    for arrow in CHAIN_ARROWS {
        // What was under way before this step is over.
        wait::until("the outboxes are empty", WITHIN, || async {
            evm.anvil.mine(1).await?;
            let left: Vec<Value> = (0..NODES).flat_map(|at| outbox(&cluster, at)).collect();
            ensure!(left.is_empty(), "{left:?}");
            Ok::<_, anyhow::Error>(())
        })
        .await?;
        let at = at_chain(&cluster, evm, arrow).await?;
        cluster.kill(&[at]);
        *evm.endpoint.manners() = Manners::default();
        if arrow == Arrow::Seen {
            evm.anvil.ask("anvil_reorg", json!([1, []])).await?;
        }
        cluster.restart(&[at]).await?;
    }
    // From here on blocks come by themselves.
    evm.anvil.ask("evm_setIntervalMining", json!([1])).await?;
    wait::until("roots are on the chain", WITHIN, || async {
        let left: Vec<Value> = (0..NODES).flat_map(|at| outbox(&cluster, at)).collect();
        let oldest = left.iter().filter_map(|attempt| attempt["looks"].as_u64()).max().unwrap_or(0);
        ensure!(oldest < 20, "{left:?}");
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    settle_on_chain(&cluster, evm).await?;
    verify(&cluster)?;
    cluster.finish().await
}
