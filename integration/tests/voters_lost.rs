//! Promise: the facts survive their voters. With most voters lost, one that is left goes on alone; with all lost, a backup makes
//! a new machine the voter of the same cluster, and the storage nodes follow it. As `ops/runbooks/voters.md` has it.

use std::fs;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use makai_config::{Role, Secret};
use makai_integration::cluster::{Cluster, ClusterOptions, Node, makai};
use makai_integration::load::Model;
use makai_integration::s3::{Content, S3};
use makai_integration::wait;

const BUCKET: &str = "facts";
const WITHIN: Duration = Duration::from_secs(90);

fn run(args: &[&str]) -> anyhow::Result<Output> {
    let out = makai(args)?;
    ensure!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    Ok(out)
}

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("a UTF-8 path")
}

async fn put(door: &S3, model: &mut Model, name: &str) -> anyhow::Result<()> {
    for len in [1_000, 150_000, 2_000_000] {
        let (key, content) = (format!("{name}/{len}"), Content::new(format!("{name}/{len}"), len));
        door.put(BUCKET, &key, &content).await?;
        model.set(key, Some(content));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_facts_survive_their_voters() -> anyhow::Result<()> {
    let mut cluster =
        Cluster::start(ClusterOptions { nodes: 4, voters: 3, ..ClusterOptions::default() }).await?;
    cluster.s3(0).create_bucket(BUCKET, None).await?;
    let mut early = Model::default();
    put(cluster.s3(0), &mut early, "early").await?;
    cluster.wait_healed().await?;
    let backup = cluster.dir().join("facts.backup");
    // A node that is no voter says whom to ask; a voter gives it.
    let refused =
        makai(&["backup", "create", text(&backup)?, "--config", text(&cluster.nodes[3].config_path)?])?;
    ensure!(String::from_utf8_lossy(&refused.stderr).contains("ask a voter") && !backup.exists());
    run(&["backup", "create", text(&backup)?, "--config", text(&cluster.nodes[1].config_path)?])?;
    let shown = run(&["backup", "show", text(&backup)?])?;
    ensure!(String::from_utf8_lossy(&shown.stdout).contains("up to change"), "{shown:?}");
    a_damaged_file_is_refused(&backup)?;
    a_backup_lies_in_another_store(&cluster, &backup).await.context("a backup in S3")?;
    let mut all = Model::default();
    put(cluster.s3(0), &mut all, "early").await?;
    put(cluster.s3(0), &mut all, "late").await?;
    cluster.wait_healed().await?;

    one_goes_on_alone(&mut cluster, &mut all).await.context("most voters are lost")?;
    a_new_machine_takes_over(&mut cluster, &backup, &mut early).await.context("all voters are lost")?;
    cluster.finish().await
}

fn a_damaged_file_is_refused(backup: &Path) -> anyhow::Result<()> {
    let damaged = backup.with_extension("damaged");
    let mut bytes = fs::read(backup)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&damaged, bytes)?;
    let out = makai(&["backup", "show", text(&damaged)?])?;
    ensure!(out.status.code() == Some(1), "{out:?}");
    Ok(())
}

/// Straight to an S3 endpoint, and back from it into a machine of its own; the cluster's own door stands for another store.
async fn a_backup_lies_in_another_store(cluster: &Cluster, backup: &Path) -> anyhow::Result<()> {
    let door = cluster.nodes[0].config.s3.listen.context("a gateway")?;
    let profile = cluster.dir().join("store.json");
    let s3 = serde_json::json!({
        "endpoint": format!("http://{door}"),
        "region": cluster.credentials.region,
        "access_key_id": cluster.credentials.access_key,
        "secret_access_key": cluster.credentials.secret_key,
    });
    fs::write(&profile, serde_json::json!({ "s3": s3 }).to_string())?;
    cluster.s3(0).create_bucket("backups", None).await?;
    let place = "s3://backups/daily/facts 1".to_owned();
    let at = ["--s3-profile", text(&profile)?];
    let voter = text(&cluster.nodes[1].config_path)?;
    let nowhere = makai(&["backup", "create", &place, "--config", voter])?;
    ensure!(String::from_utf8_lossy(&nowhere.stderr).contains("which S3 endpoint"), "{nowhere:?}");
    let told = run(&["backup", "create", &place, at[0], at[1], "--config", voter])?;
    ensure!(String::from_utf8_lossy(&told.stdout).contains(&place), "{told:?}");
    let shown = run(&["backup", "show", &place, at[0], at[1], "--json"])?;
    let of_file = run(&["backup", "show", text(backup)?, "--json"])?;
    let id = |out: &Output| {
        serde_json::from_slice(&out.stdout).map(|told: serde_json::Value| told["cluster_id"].clone())
    };
    ensure!(id(&shown)? == id(&of_file)? && id(&shown)?.is_string(), "{shown:?}, {of_file:?}");
    let second = Node::new(cluster.dir(), "second", &[Role::Voter], |_| {})?;
    let config = text(&second.config_path)?;
    let keyless = makai(&["backup", "restore", &place, at[0], at[1], "--config", config])?;
    ensure!(String::from_utf8_lossy(&keyless.stderr).contains("--key"), "{keyless:?}");
    let key = backup.with_extension("backup.key");
    run(&["backup", "restore", &place, at[0], at[1], "--key", text(&key)?, "--config", config])?;
    let file = second.dir.join("data/meta");
    ensure!(file.is_dir(), "no facts in {file:?}");
    let missing = makai(&["backup", "show", &format!("{place}-none"), at[0], at[1]])?;
    ensure!(missing.status.code() == Some(1), "{missing:?}");
    Ok(())
}

async fn one_goes_on_alone(cluster: &mut Cluster, all: &mut Model) -> anyhow::Result<()> {
    cluster.kill(&[0, 1]);
    let config = cluster.nodes[2].config_path.clone();
    let running = makai(&["backup", "recover", "--others-are-lost", "--config", text(&config)?])?;
    ensure!(String::from_utf8_lossy(&running.stderr).contains("stop it first"), "{running:?}");
    cluster.nodes[2].kill();
    let unsure = makai(&["backup", "recover", "--config", text(&config)?])?;
    ensure!(String::from_utf8_lossy(&unsure.stderr).contains("--others-are-lost"), "{unsure:?}");
    run(&["backup", "recover", "--others-are-lost", "--config", text(&config)?])?;
    cluster.restart(&[2]).await?;
    wait::until("it leads alone", WITHIN, || async {
        let status = cluster.nodes[2].status().await?;
        ensure!(status.is_leader && status.voters.len() == 1, "{:?} of {:?}", status.leader, status.voters);
        anyhow::Ok(())
    })
    .await?;
    // Two of four shards are left of everything: what was acknowledged is read, through both doors that are left.
    let doors = [cluster.s3(2).clone(), cluster.s3(3).clone()];
    wait::until("both doors serve", WITHIN, || async {
        for door in &doors {
            door.list(BUCKET, "").await?;
        }
        anyhow::Ok(())
    })
    .await?;
    all.check(&doors, BUCKET).await.context("before and after the backup")?;

    // A former voter comes back as a new one: with its shards, without its facts.
    let token = cluster.nodes[2].join_token(&[Role::Voter, Role::Storage, Role::Gateway]).await?;
    let dir = cluster.nodes[1].config.node.dir.clone();
    fs::rename(dir.join("meta"), cluster.nodes[1].dir.join("meta-before"))?;
    // As it was it must not vote again: that it is another now, a person says.
    let refused = cluster.restart(&[1]).await.expect_err("a voter without its facts started");
    ensure!(format!("{refused:#}").contains("voter.number"), "{refused:#}");
    fs::remove_file(dir.join("voter.number"))?;
    fs::write(cluster.nodes[1].dir.join("join-token"), token)?;
    cluster.restart(&[1]).await?;
    wait::until("two vote", WITHIN, || async {
        let voters = cluster.nodes[2].status().await?.voters;
        ensure!(voters.len() == 2, "{voters:?}");
        anyhow::Ok(())
    })
    .await?;
    put(cluster.s3(1), all, "after").await.context("a write with three of four nodes")?;
    all.check(&[cluster.s3(1).clone(), cluster.s3(2).clone()], BUCKET).await
}

async fn a_new_machine_takes_over(
    cluster: &mut Cluster,
    backup: &Path,
    early: &mut Model,
) -> anyhow::Result<()> {
    cluster.kill(&[1, 2, 3]);
    let mut fresh = Node::new(cluster.dir(), "fresh", &[Role::Voter, Role::Gateway], |config| {
        config.cluster.voters_max = 3
    })?;
    let config = fresh.config_path.clone();
    let without =
        makai(&["backup", "restore", text(backup)?, "--key", "/nowhere", "--config", text(&config)?])?;
    ensure!(String::from_utf8_lossy(&without.stderr).contains("cluster's key"), "{without:?}");
    run(&["backup", "restore", text(backup)?, "--config", text(&config)?])?;
    let again = makai(&["backup", "restore", text(backup)?, "--config", text(&config)?])?;
    ensure!(String::from_utf8_lossy(&again.stderr).contains("holds facts already"), "{again:?}");
    fresh.spawn()?;
    fresh.wait_healthy().await?;
    // Storage nodes learn of it by a token of the restored cluster.
    for at in [2, 3] {
        let token = fresh.join_token(&[Role::Storage, Role::Gateway]).await?;
        let node = &mut cluster.nodes[at];
        node.config.node.roles = [Role::Storage, Role::Gateway].into();
        node.config.cluster.join_token_file = None;
        node.config.cluster.join_token = Some(Secret::new(token));
        node.config.cluster.init = false;
        node.write_config()?;
    }
    cluster.restart(&[2, 3]).await?;
    let listen = fresh.config.s3.listen.context("a gateway")?;
    let door = S3::new(listen.to_string(), cluster.credentials.clone());
    wait::until("two storage nodes are there", WITHIN, || async {
        let up = fresh.status().await?.map.nodes.iter().filter(|node| node.is_up).count();
        ensure!(up == 3, "{up} of 3 nodes are up");
        anyhow::Ok(())
    })
    .await?;
    early.check(&[door, cluster.s3(3).clone()], BUCKET).await.context("what the backup knows of")?;
    fresh.stop().await
}
