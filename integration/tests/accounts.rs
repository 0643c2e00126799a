//! Promise: what nodes serve becomes claims that grow, that anyone can check, and that are paid once; a leader that dies
//! delays them and loses nothing; a ledger of which any bit was changed is refused.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use makai_integration::cluster::{Cluster, ClusterOptions, makai};
use makai_integration::s3::Content;
use makai_integration::wait;
use makai_ops::claims::file::LedgerFile;
use serde_json::Value;

const BUCKET: &str = "earn";
const EPOCH_SECS: u64 = 2;
/// Epochs pass while two cores do much else.
const WITHIN: Duration = Duration::from_secs(90);

/// A command against the cluster, through the first node that answers of those that run.
fn run(cluster: &Cluster, args: &[&str]) -> anyhow::Result<std::process::Output> {
    let node = cluster.nodes.iter().find(|node| node.is_running()).context("no node runs")?;
    let config = node.config_path.to_str().context("a UTF-8 path")?;
    makai(&[args, &["--config", config]].concat())
}

fn run_json(cluster: &Cluster, args: &[&str]) -> anyhow::Result<Value> {
    let out = run(cluster, &[args, &["--json"]].concat())?;
    ensure!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    Ok(serde_json::from_slice(&out.stdout)?)
}

/// Epoch, and what each node may claim.
fn claims(cluster: &Cluster) -> anyhow::Result<(u64, BTreeMap<String, u128>)> {
    let answer = run_json(cluster, &["claim", "ls"])?;
    let epoch = answer["epoch"].as_u64().context("an epoch")?;
    let mut claims = BTreeMap::new();
    for row in answer["claims"].as_array().context("claims")? {
        let text = |name: &str| row[name].as_str().map(str::to_owned).context("a text");
        ensure!(text("payout")?.starts_with("0x"));
        claims.insert(text("node")?, text("cumulative")?.parse()?);
    }
    Ok((epoch, claims))
}

/// Waits until every one of `count` nodes may claim more than before.
async fn grown(
    cluster: &Cluster,
    count: usize,
    before: &(u64, BTreeMap<String, u128>),
) -> anyhow::Result<(u64, BTreeMap<String, u128>)> {
    wait::until("claims grow", WITHIN, || async {
        let now = claims(cluster)?;
        let more = |(node, claim): &(&String, &u128)| **claim > before.1.get(*node).copied().unwrap_or(0);
        let grown = now.1.iter().filter(more).count();
        ensure!(
            now.0 > before.0 && grown >= count,
            "epoch {}: {grown} of {count} have grown: {:?}",
            now.0,
            now.1
        );
        Ok::<_, anyhow::Error>(now)
    })
    .await
}

fn verify(path: &Path) -> anyhow::Result<std::process::Output> {
    makai(&["ledger", "verify", path.to_str().context("a UTF-8 path")?])
}

/// Entries of the log that a node may cost in an epoch of the usual hour: one a minute.
const ENTRIES_MAX: u64 = 60;

/// While nobody does anything, epochs close by few entries of the log: so few that a node adds less than one a minute, where
/// epochs take the hour that they usually do.
async fn epochs_cost_little(cluster: &Cluster) -> anyhow::Result<()> {
    let now = || async {
        let applied = cluster.nodes[0].status().await?.applied.context("a voter")?;
        Ok::<_, anyhow::Error>((claims(cluster)?.0, applied))
    };
    let begun = now().await?;
    let ended = wait::until("epochs close", WITHIN, || async {
        let (epoch, applied) = now().await?;
        ensure!(epoch >= begun.0 + 2, "epoch {epoch}");
        Ok::<_, anyhow::Error>((epoch, applied))
    })
    .await?;
    let entries = (ended.1 - begun.1) / (ended.0 - begun.0);
    println!("{entries} entries of the log an epoch, of {} nodes", cluster.nodes.len());
    // An epoch that had begun before, and what else a cluster agrees on meanwhile, count too.
    ensure!(entries < ENTRIES_MAX * cluster.nodes.len() as u64, "{entries} entries an epoch");
    Ok(())
}

/// Whatever bit of the file is flipped, it is refused: by the code for each of many, by the command for a few.
fn every_bit_counts(path: &Path) -> anyhow::Result<()> {
    let good = fs::read(path)?;
    let stride = good.len() / 400 + 1;
    for at in (0..good.len()).step_by(stride).chain([0, good.len() - 2, good.len() - 1]) {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        let is_refused = LedgerFile::parse(&bad).is_err();
        ensure!(is_refused, "bit {} of byte {at} may be flipped", at % 8);
    }
    for at in [20, good.len() / 2, good.len() - 3] {
        let mut bad = good.clone();
        bad[at] ^= 4;
        let bad_path = path.with_extension("bad");
        fs::write(&bad_path, &bad)?;
        ensure!(verify(&bad_path)?.status.code() == Some(1), "byte {at}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn work_becomes_claims_that_are_checked_and_paid_once() -> anyhow::Result<()> {
    let change = |_, config: &mut makai_config::NodeConfig| {
        config.accounts.epoch_secs = EPOCH_SECS;
        config.accounts.challenge_secs = 0;
    };
    let mut cluster =
        Cluster::start(ClusterOptions { nodes: 4, voters: 3, change: Box::new(change) }).await?;
    let s3 = cluster.s3(0);
    s3.create_bucket(BUCKET, None).await?;
    for at in 0..6 {
        let content = Content::new(format!("object-{at}"), 300_000 + at * 70_001);
        s3.put(BUCKET, &format!("k{at}"), &content).await?;
        s3.check(BUCKET, &format!("k{at}"), &content).await?;
    }

    let first = grown(&cluster, 4, &(0, BTreeMap::new())).await?;
    let usage = run_json(&cluster, &["usage"])?;
    let stored: u64 = usage["nodes"]
        .as_array()
        .context("nodes")?
        .iter()
        .filter_map(|node| node["stored_bytes"].as_u64())
        .sum();
    let plain: u64 = (0..6).map(|at| 300_000 + at * 70_001).sum();
    ensure!(stored >= plain && stored <= plain * 5, "{stored} bytes are stored for {plain}");
    let why = run_json(&cluster, &["why", first.1.keys().next().context("a node")?])?;
    for component in why["components"].as_array().context("components")? {
        let is_zero = component["amount"] == "0";
        let reasons = component["reasons"].as_array().context("reasons")?;
        ensure!(!is_zero || !reasons.is_empty(), "a zero without a reason: {component}");
    }

    epochs_cost_little(&cluster).await?;

    // A proof holds by itself; with one digit changed it does not.
    let node = first.1.keys().next().context("a node")?.clone();
    let out = run(&cluster, &["claim", "proof", &node])?;
    ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let proof_path = cluster.dir().join("proof.json");
    fs::write(&proof_path, &out.stdout)?;
    let check = |path: &Path| makai(&["claim", "verify", path.to_str().unwrap_or_default()]);
    ensure!(check(&proof_path)?.status.success());
    let mut proof: Value = serde_json::from_slice(&out.stdout)?;
    let cumulative = proof["cumulative"].as_str().context("cumulative")?.to_owned();
    let last = if cumulative.ends_with('9') { "8" } else { "9" };
    proof["cumulative"] = Value::from(format!("{}{last}", &cumulative[..cumulative.len() - 1]));
    fs::write(&proof_path, proof.to_string())?;
    ensure!(check(&proof_path)?.status.code() == Some(1), "a changed digit was accepted");

    // Paid once.
    let paid = run_json(&cluster, &["claim", "submit", &node])?;
    let amount: u128 = paid["amount"].as_str().context("amount")?.parse()?;
    ensure!(amount >= first.1[&node], "{amount} was paid of {}", first.1[&node]);

    // The leader dies: epochs and claims go on.
    let leader = cluster.leader().await?;
    let before = claims(&cluster)?;
    cluster.kill(&[leader]);
    let after = grown(&cluster, 3, &before).await?;
    for (node, claim) in &before.1 {
        ensure!(after.1.get(node).is_some_and(|now| now >= claim), "the claim of {node} fell");
    }
    cluster.restart(&[leader]).await?;

    let out = run(&cluster, &["claim", "verify"])?;
    if !out.status.success() {
        bail!("{}", String::from_utf8_lossy(&out.stderr));
    }
    let ledger = cluster.dir().join("ledger");
    run_json(&cluster, &["ledger", "export", "--out", ledger.to_str().context("a UTF-8 path")?])?;
    let out = verify(&ledger)?;
    ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    every_bit_counts(&ledger)?;
    cluster.finish().await
}
