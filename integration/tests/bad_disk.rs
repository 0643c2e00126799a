//! Promise: a disk that forgets, garbles or fills up costs no byte: what it holds is never served wrong, the damage is
//! reported, and the cluster mends it. Where more disks forget than a scheme bears, the cluster says what is lost.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use makai::console::lost::LostPage;
use makai_integration::cluster::{Cluster, ClusterOptions, makai};
use makai_integration::load::{Model, seed};
use makai_integration::s3::{Content, S3};
use makai_integration::wait;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const BUCKET: &str = "bad-disk";
/// The shortest period that a configuration may ask for.
const SCRUB_PERIOD_SECS: u64 = 10;
/// Each shard is read back within a period; what is found damaged is rebuilt seconds later.
const MENDED_WITHIN: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_disk_costs_no_byte() -> anyhow::Result<()> {
    let mut dice = StdRng::seed_from_u64(seed());
    let options = ClusterOptions {
        change: Box::new(|_, config| config.storage.scrub_period_secs = SCRUB_PERIOD_SECS),
        ..ClusterOptions::default()
    };
    let mut cluster = Cluster::start(options).await?;
    // Every group has every disk: with two nodes away, each shard of the others is needed.
    cluster.s3(0).create_bucket(BUCKET, Some("4+2")).await?;
    let mut model = Model::default();
    for number in 0..30 {
        let len = [5 * KIB, 200 * KIB, 3 * MIB][number % 3] + number as u64;
        let (key, content) = (format!("object{number}"), Content::new(format!("{BUCKET}/{number}"), len));
        cluster.s3(number % 6).put(BUCKET, &key, &content).await?;
        model.set(key, Some(content));
    }
    cluster.wait_healed().await?;

    bits_flip(&mut cluster, &mut model, &mut dice).await.context("bits flip while a node is away")?;
    a_file_is_lost(&mut cluster, &mut model).await.context("a segment file is lost")?;
    a_disk_is_full(&mut cluster, &mut model).await.context("a disk is full")?;
    what_is_lost_is_told(&mut cluster).await.context("more is lost than the scheme bears")?;
    cluster.finish().await
}

fn segments(disk: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(disk.join("segments"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "seg") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Flips one bit in some of the blocks that hold anything; returns how many.
fn flip_bits(file: &Path, dice: &mut StdRng) -> anyhow::Result<usize> {
    const BLOCK: usize = 4096;
    let (file, bytes) = (File::options().write(true).open(file)?, fs::read(file)?);
    let mut flipped = 0;
    for (number, block) in bytes.chunks(BLOCK).enumerate() {
        if block.iter().any(|byte| *byte != 0) && dice.random_ratio(1, 20) {
            let at = dice.random_range(0..block.len());
            file.write_all_at(&[block[at] ^ (1 << dice.random_range(0..8))], (number * BLOCK + at) as u64)?;
            flipped += 1;
        }
    }
    file.sync_all()?;
    Ok(flipped)
}

/// Each shard of `victim` is needed while these are away: whole or not, the bytes tell.
async fn check_without(cluster: &mut Cluster, away: [usize; 2], model: &mut Model) -> anyhow::Result<()> {
    cluster.kill(&away);
    model.check(&cluster.doors(), BUCKET).await.with_context(|| format!("with {away:?} away"))?;
    cluster.restart(&away).await?;
    cluster.wait_formed().await
}

/// Shards that a node has rebuilt since its start, once it has none left to rebuild and has read all back.
async fn wait_mended(cluster: &Cluster, victim: usize, least: u64) -> anyhow::Result<u64> {
    let node = &cluster.nodes[victim];
    let begun = node.status().await?.repair;
    wait::until("the damage is mended", MENDED_WITHIN, || async {
        let repair = node.status().await?.repair;
        ensure!(repair.scrubs > begun.scrubs, "not every shard was read back: {repair:?}");
        ensure!(repair.pending == 0 && repair.rebuilt_shards >= least, "{repair:?}");
        anyhow::Ok(repair.rebuilt_shards)
    })
    .await
}

async fn bits_flip(cluster: &mut Cluster, model: &mut Model, dice: &mut StdRng) -> anyhow::Result<()> {
    let victim = 5;
    cluster.nodes[victim].stop().await?;
    let mut flipped = 0;
    for file in segments(&cluster.nodes[victim].disk())? {
        flipped += flip_bits(&file, dice)?;
    }
    ensure!(flipped >= 10, "only {flipped} bits were flipped: the disk holds too little");
    let log_before = cluster.nodes[victim].log().len();
    cluster.restart(&[victim]).await.context("a damaged disk must not stop a start")?;
    cluster.wait_formed().await?;
    // Its own door first: it has the damaged shards nearest.
    let doors: Vec<S3> = vec![cluster.s3(victim).clone(), cluster.s3(0).clone()];
    model.check(&doors, BUCKET).await.context("with the damage there")?;
    let rebuilt = wait_mended(cluster, victim, 1).await?;
    println!("{flipped} bits flipped, {rebuilt} shards rebuilt");
    let log = cluster.nodes[victim].log();
    ensure!(
        log[log_before..].contains("damaged"),
        "nothing about the damage in its log:\n{}",
        &log[log_before..]
    );
    cluster.wait_healed().await?;
    check_without(cluster, [1, 2], model).await
}

async fn a_file_is_lost(cluster: &mut Cluster, model: &mut Model) -> anyhow::Result<()> {
    let victim = 4;
    cluster.nodes[victim].stop().await?;
    let files = segments(&cluster.nodes[victim].disk())?;
    ensure!(!files.is_empty(), "no segment file");
    for file in &files {
        fs::remove_file(file)?;
    }
    cluster.restart(&[victim]).await.context("a lost file must not stop a start")?;
    cluster.wait_formed().await?;
    model
        .check(&[cluster.s3(victim).clone(), cluster.s3(1).clone()], BUCKET)
        .await
        .context("with the file lost")?;
    cluster.wait_healed().await?;
    let rebuilt = cluster.nodes[victim].status().await?.repair.rebuilt_shards;
    println!("{} files lost, {rebuilt} shards rebuilt", files.len());
    ensure!(rebuilt >= 30, "{rebuilt} shards were rebuilt, 30 were lost");
    check_without(cluster, [0, 3], model).await
}

/// A reserve larger than what is free: the disk takes nothing more.
async fn a_disk_is_full(cluster: &mut Cluster, model: &mut Model) -> anyhow::Result<()> {
    let fill = async |cluster: &mut Cluster, which: &[usize], reserve: u64| {
        for at in which {
            let node = &mut cluster.nodes[*at];
            node.stop().await?;
            node.config.disk[0].reserve_bytes = reserve;
            node.write_config()?;
        }
        cluster.restart(which).await?;
        cluster.wait_formed().await
    };
    fill(cluster, &[2], u64::MAX / 4).await?;
    for number in 0..6 {
        let (key, content) =
            (format!("one-full/{number}"), Content::new(format!("one-full/{number}"), 300 * KIB));
        cluster.s3(number).put(BUCKET, &key, &content).await.context("one of six disks is full")?;
        model.set(key, Some(content));
    }
    fill(cluster, &[0, 1, 3], u64::MAX / 4).await?;
    model.check(&cluster.doors(), BUCKET).await.context("four of six disks are full")?;
    let refused = cluster.s3(5).put(BUCKET, "too-much", &Content::new("too-much", 8 * MIB)).await;
    let refused = refused.err().context("four of six disks are full, and a write under 4+2 succeeds")?;
    ensure!(refused.code() == "InsufficientStorage", "{refused}");
    model.set("too-much", None);
    for number in 0..3 {
        cluster
            .s3(number)
            .delete(BUCKET, &format!("object{number}"))
            .await
            .context("a delete on full disks")?;
        model.set(format!("object{number}"), None);
    }
    model.check(&cluster.doors(), BUCKET).await?;
    fill(cluster, &[0, 1, 2, 3], MIB).await?;
    let content = Content::new("room again", MIB);
    cluster.s3(0).put(BUCKET, "room-again", &content).await.context("there is room again")?;
    model.set("room-again", Some(content));
    model.check(&cluster.doors(), BUCKET).await
}

/// What the leader's command line says.
async fn said(cluster: &Cluster, args: &[&str]) -> anyhow::Result<String> {
    let leader = &cluster.nodes[cluster.leader().await?];
    let config = leader.config_path.to_str().context("a UTF-8 path")?;
    let said = makai(&[args, &["--config", config]].concat())?;
    let (out, err) = (String::from_utf8(said.stdout)?, String::from_utf8_lossy(&said.stderr).into_owned());
    ensure!(said.status.success(), "{args:?}: {out} {err}");
    Ok(out)
}

/// Three of the six disks forget everything that 4+2 needs: each blob is counted once, and every object is named.
async fn what_is_lost_is_told(cluster: &mut Cluster) -> anyhow::Result<()> {
    cluster.wait_healed().await?;
    ensure!(said(cluster, &["repair", "lost"]).await?.contains("can be read"), "nothing is lost yet");
    // Smaller ones stand in the facts.
    let listed: Vec<(String, u64)> = cluster.s3(0).list(BUCKET, "").await?;
    let mut stored: Vec<String> =
        listed.into_iter().filter(|(_, size)| *size > 4 * KIB).map(|(key, _)| key).collect();
    stored.sort();
    let forget = [3, 4, 5];
    for at in forget {
        cluster.nodes[at].stop().await?;
        for file in segments(&cluster.nodes[at].disk())? {
            fs::remove_file(file)?;
        }
    }
    cluster.restart(&forget).await?;
    cluster.wait_formed().await?;
    let cluster = &*cluster;
    let named = wait::until("all that is lost is named", MENDED_WITHIN, || async {
        let page: LostPage = serde_json::from_str(&said(cluster, &["repair", "lost", "--json"]).await?)?;
        let mut keys: Vec<String> = page.objects.iter().map(|object| object.key.clone()).collect();
        keys.sort();
        ensure!(keys == stored, "{} of {} objects are named: {page:?}", keys.len(), stored.len());
        anyhow::Ok(page)
    })
    .await?;
    ensure!(named.away_blobs == 0 && named.silent.is_empty(), "{named:?}");
    wait::until("the status counts each once", MENDED_WITHIN, || async {
        let status: serde_json::Value = serde_json::from_str(&said(cluster, &["status", "--json"]).await?)?;
        ensure!(status["blobs_gone"] == named.gone_blobs, "{} pieces are lost: {status}", named.gone_blobs);
        anyhow::Ok(())
    })
    .await?;
    let status = said(cluster, &["status"]).await?;
    ensure!(status.contains("data is lost") && status.contains("makai repair lost"), "{status}");
    let repair = said(cluster, &["repair", "status"]).await?;
    ensure!(repair.contains("pieces of objects for good"), "{repair}");
    Ok(())
}
