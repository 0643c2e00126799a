//! Promise: with a chain as the ledger, what a node earned ends as tokens in its account; what is claimed is paid once, and a
//! chain that takes blocks back loses nobody anything; a cluster that goes from its own ledger to a chain loses nothing either.
//!
//! Needs Node and `ops/contracts/node_modules` (`npm ci`), which bring a real EVM; else it says that it was skipped.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use makai_config::LedgerKind;
use makai_integration::chain::{Anvil, CHAIN_ID, can_run, contracts};
use makai_integration::cluster::{Cluster, ClusterOptions, makai};
use makai_integration::s3::Content;
use makai_integration::wait;
use makai_ops::claims::statement::ClaimKey;
use makai_ops::rewards::tokenomics::Tokenomics;
use serde_json::Value;

const BUCKET: &str = "earn";
const EPOCH_SECS: u64 = 2;
const NODES: usize = 3;
const WITHIN: Duration = Duration::from_secs(120);
/// A block a second.
const BLOCKS: [&str; 2] = ["--block-time", "1"];

fn key(seed: usize) -> [u8; 32] {
    [u8::try_from(seed + 1).unwrap_or(1); 32]
}

fn addresses(from: usize) -> anyhow::Result<String> {
    let address =
        |at| ClaimKey::from_bytes(&key(from + at)).map(|key| key.address().to_string()).context("a key");
    Ok((0..NODES).map(address).collect::<anyhow::Result<Vec<_>>>()?.join(","))
}

const SUBMITTERS_FROM: usize = 50;

fn submit(cluster: &Cluster, node: &str) -> anyhow::Result<(String, u128)> {
    let config = cluster.nodes[0].config_path.to_str().context("a UTF-8 path")?;
    let out = makai(&["claim", "submit", node, "--json", "--config", config])?;
    ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let paid: Value = serde_json::from_slice(&out.stdout)?;
    let payout = paid["payout"].as_str().context("payout")?.to_owned();
    Ok((payout, paid["amount"].as_str().context("amount")?.parse()?))
}

/// Writes a key into a node's folder before the node starts.
fn give_key(config: &makai_config::NodeConfig, name: &str, seed: usize) {
    std::fs::create_dir_all(&config.node.dir).expect("the node's folder");
    let digits: String = key(seed).iter().map(|byte| format!("{byte:02x}")).collect();
    std::fs::write(config.node.dir.join(name), digits).expect("a key");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_earned_ends_as_tokens() -> anyhow::Result<()> {
    if !can_run()? {
        return Ok(());
    }
    let anvil = Anvil::start(&BLOCKS).await?;
    let emission = Tokenomics::profile("makai", EPOCH_SECS * 1000)?.emission();
    let (pool, halving) = (emission.pool.to_string(), emission.halving_epochs.to_string());
    let (signers, submitters) = (addresses(0)?, addresses(SUBMITTERS_FROM)?);
    let (token, distributor) = anvil.deploy(&[&pool, &halving, "0", "2", &signers, &submitters])?;
    let url = anvil.url.clone();
    let change = move |at: usize, config: &mut makai_config::NodeConfig| {
        config.accounts.epoch_secs = EPOCH_SECS;
        config.accounts.challenge_secs = 0;
        config.ledger.kind = LedgerKind::Evm;
        config.ledger.rpc = vec![url.clone()];
        config.ledger.chain_id = CHAIN_ID;
        config.ledger.distributor = distributor.clone();
        config.ledger.finality_depth = 5;
        config.ledger.fee_cap_gwei = 1000;
        config.ledger.post_every_epochs = 2;
        // Keys that the contract knows, and that have gas.
        give_key(config, "claim.key", at);
        give_key(config, "submitter.key", SUBMITTERS_FROM + at);
    };
    let cluster =
        Cluster::start(ClusterOptions { nodes: NODES, voters: NODES, change: Box::new(change) }).await?;
    cluster.s3(0).create_bucket(BUCKET, None).await?;
    for at in 0..4 {
        cluster.s3(0).put(BUCKET, &format!("k{at}"), &Content::new(format!("object-{at}"), 400_000)).await?;
    }
    let node = cluster.nodes[1].id()?.to_string();
    let (payout, amount) =
        wait::until("a claim is paid on the chain", WITHIN, || async { submit(&cluster, &node) }).await?;
    ensure!(amount > 0);
    let balance = anvil.balance(&token, &payout)?;
    ensure!(balance == amount, "{balance} tokens for a claim of {amount}");

    // The block with the claim is taken back before it is final: the outbox sends the same bytes again.
    anvil.script("reorg", &["3"])?;
    wait::until("the claim is in a block again", WITHIN, || async {
        let balance = anvil.balance(&token, &payout)?;
        ensure!(balance == amount, "{balance} tokens for a claim of {amount}");
        Ok::<_, anyhow::Error>(())
    })
    .await?;

    // Claims go on, and what is paid is what came on top: never the same twice.
    let (_, more) =
        wait::until("a later claim is paid", WITHIN, || async { submit(&cluster, &node) }).await?;
    ensure!(anvil.balance(&token, &payout)? == amount + more, "paid twice, or not at all");
    cluster.finish().await
}

/// The key of the first account that every such chain begins with, and its purse.
const DEPLOYER_KEY: &str = "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";

#[tokio::test(flavor = "multi_thread")]
async fn claims_move_from_the_embedded_ledger_to_a_contract() -> anyhow::Result<()> {
    if !can_run()? {
        return Ok(());
    }
    let anvil = Anvil::start(&BLOCKS).await?;
    let change = |at: usize, config: &mut makai_config::NodeConfig| {
        config.accounts.epoch_secs = EPOCH_SECS;
        config.accounts.challenge_secs = 0;
        give_key(config, "submitter.key", SUBMITTERS_FROM + at);
    };
    let mut cluster =
        Cluster::start(ClusterOptions { nodes: NODES, voters: NODES, change: Box::new(change) }).await?;
    cluster.s3(0).create_bucket(BUCKET, None).await?;
    for at in 0..4 {
        cluster.s3(0).put(BUCKET, &format!("k{at}"), &Content::new(format!("object-{at}"), 400_000)).await?;
    }
    let node = cluster.nodes[1].id()?.to_string();
    let (payout, before) =
        wait::until("a claim is paid here", WITHIN, || async { submit(&cluster, &node) }).await?;
    ensure!(before > 0);

    // What an operator does: deploy with what the cluster says, name the contract to every voter, start them again.
    let opening = cluster.dir().join("opening.json");
    let key_file = cluster.dir().join("deployer.key");
    let config = cluster.nodes[0].config_path.to_str().context("a UTF-8 path")?.to_owned();
    let out = makai(&["ledger", "opening", "--json", "--config", &config])?;
    ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    std::fs::write(&opening, &out.stdout)?;
    std::fs::write(&key_file, DEPLOYER_KEY)?;
    anvil.script("fund", &[&addresses(SUBMITTERS_FROM)?])?;
    let mut deploying = Command::new("node");
    deploying
        .arg(contracts().join("deploy.mjs"))
        .args(["--rpc", &anvil.url, "--key"])
        .arg(&key_file)
        .arg("--opening")
        .arg(&opening);
    let out = wait::output(deploying, Duration::from_secs(300))?;
    ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let said = String::from_utf8(out.stdout)?;
    let word = |before: &str| {
        let rest = said.split_once(before).map(|(_, rest)| rest);
        rest.and_then(|rest| rest.split([',', '"']).next()).map(str::to_owned).context(said.clone())
    };
    let (token, distributor) = (word("# token ")?, word("distributor = \"")?);
    let all: Vec<usize> = (0..NODES).collect();
    cluster.kill(&all);
    for node in &mut cluster.nodes {
        let ledger = &mut node.config.ledger;
        ledger.kind = LedgerKind::Evm;
        ledger.rpc = vec![anvil.url.clone()];
        ledger.chain_id = CHAIN_ID;
        ledger.distributor = distributor.clone();
        ledger.finality_depth = 2;
        ledger.fee_cap_gwei = 1000;
        ledger.post_every_epochs = 2;
        node.write_config()?;
    }
    cluster.restart(&all).await?;

    // All that was ever earned is paid there, what the embedded ledger noted as claimed included.
    let (again, amount) =
        wait::until("a claim is paid on the chain", WITHIN, || async { submit(&cluster, &node) }).await?;
    ensure!(again == payout && amount >= before, "{amount} was paid on the chain of {before} and more");
    ensure!(anvil.balance(&token, &payout)? == amount);
    let ledger = cluster.dir().join("ledger");
    let ledger = ledger.to_str().context("a UTF-8 path")?;
    let out = makai(&["ledger", "export", "--out", ledger, "--config", &config])?;
    ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let out = makai(&["claim", "verify", "--config", &config])?;
    ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    cluster.finish().await
}
