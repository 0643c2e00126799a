//! Promise: whatever happens to one machine or its disk, in any order, while customers read and write: no answer is ever wrong,
//! the pool is well again by itself, and every object is then what its customer was told.
//!
//! A seed draws the order and the victims. `MAKAI_CHAOS_ROUNDS=N` plays all of it N times over.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use makai_erasure::DiskId;
use makai_integration::cluster::{Cluster, ClusterOptions};
use makai_integration::load::{Load, LoadOptions, Model, seed};
use makai_integration::wait;
use makai_raft::facts::cluster::{ClusterMap, Condition};
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};

const BUCKET: &str = "chaos";
const NODES: usize = 6;
/// Longer than a restart takes, much shorter than a day.
const GRACE_SECS: u64 = 8;
/// The shortest that a configuration may ask for.
const SCRUB_PERIOD_SECS: u64 = 10;
const WELL_WITHIN: Duration = Duration::from_secs(120);
/// Requests of customers between one thing that happens and the next.
const REQUESTS: usize = 25;
/// Of a customer after each of them: a scrub ends only where it reads faster than they write.
const REST: Duration = Duration::from_millis(100);
const BLOCK_BYTES: usize = 4096;

#[derive(Debug, Clone, Copy)]
enum Mishap {
    /// kill -9, and started again.
    Killed,
    /// One bit in some blocks of its segment files flips under the running daemon.
    BitsFlip,
    /// Its disk has no room left, then has again.
    Full,
    /// The disk's folder goes from under the running daemon; then it begins with an empty one.
    FolderGone,
    /// An old copy of its disk is put in its place.
    StaleCopy,
}

const ALL: [Mishap; 5] =
    [Mishap::Killed, Mishap::BitsFlip, Mishap::Full, Mishap::FolderGone, Mishap::StaleCopy];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_to_one_machine_costs_no_byte() -> anyhow::Result<()> {
    let mut dice = StdRng::seed_from_u64(seed());
    let rounds = std::env::var("MAKAI_CHAOS_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(1);
    let options = ClusterOptions {
        nodes: NODES,
        voters: 3,
        change: Box::new(|_, config| {
            config.storage.repair_grace_secs = GRACE_SECS;
            config.storage.repair_urgent_secs = GRACE_SECS;
            config.storage.scrub_period_secs = SCRUB_PERIOD_SECS;
        }),
    };
    let mut cluster = Cluster::start(options).await?;
    cluster.s3(0).create_bucket(BUCKET, None).await?;
    let mut gone = BTreeSet::new();
    let mut model = Model::default();
    for round in 0..rounds {
        let mut mishaps = ALL;
        mishaps.shuffle(&mut dice);
        for (at, mishap) in mishaps.into_iter().enumerate() {
            let victim = dice.random_range(0..NODES);
            let options = LoadOptions {
                bucket: BUCKET.into(),
                prefix: format!("{round}-{at}/"),
                clients: 2,
                sizes: vec![600, 30_000, 400_000, 1_500_000],
                seed: dice.random(),
                goes_on: true,
                rest: REST,
            };
            let begun = makai::clock::instant();
            let load = Load::start(&cluster.doors(), &options);
            load.goes_on(REQUESTS).await?;
            let what = happen(&mut cluster, victim, mishap, &load, &mut dice, &mut gone).await;
            let what = what.with_context(|| format!("{mishap:?} at node {victim}"))?;
            load.goes_on(REQUESTS).await?;
            let outcome = load.stop().await?;
            ensure!(outcome.wrong.is_empty(), "{mishap:?} at node {victim}: {:#?}", outcome.wrong);
            let (requests, failed) = (outcome.requests.len(), outcome.failures().len());
            model.extend(outcome.model);
            wait_well(&cluster, &gone).await.with_context(|| format!("after {mishap:?} at node {victim}"))?;
            println!(
                "{mishap:?} at node {victim}: {what}; {failed} of {requests} requests failed; well after {:.1?}",
                begun.elapsed()
            );
        }
        model.check(&cluster.doors(), BUCKET).await.context("what customers were told")?;
    }
    println!("{} objects compared", model.len());
    // Two disks may be away now: what was mended is there. Of three voters one stays beside another.
    let away = [dice.random_range(0..3), dice.random_range(3..NODES)];
    cluster.kill(&away);
    model.check(&cluster.doors(), BUCKET).await.with_context(|| format!("nodes {away:?} are away"))?;
    cluster.restart(&away).await?;
    cluster.finish().await
}

async fn map_of(cluster: &Cluster) -> anyhow::Result<ClusterMap> {
    Ok(cluster.nodes[cluster.leader().await?].status().await?.map)
}

async fn disk_of(cluster: &Cluster, at: usize) -> anyhow::Result<DiskId> {
    let status = cluster.nodes[at].status().await?;
    Ok(status.disks.first().context("it has no disk")?.disk)
}

/// Waits until all nodes are up, all disks but those that are gone are well and hold all they should, and nothing is on those.
async fn wait_well(cluster: &Cluster, gone: &BTreeSet<DiskId>) -> anyhow::Result<()> {
    wait::until("the pool is well", WELL_WITHIN, || async {
        let map = map_of(cluster).await?;
        for node in &map.nodes {
            ensure!(node.is_up, "{} is down", node.name);
        }
        for disk in map.disks.iter().filter(|disk| !gone.contains(&disk.id)) {
            ensure!(disk.condition == Condition::Well, "disk {} is {:?}", disk.id, disk.condition);
        }
        let slots =
            map.groups.iter().flat_map(|group| &group.disks).filter(|disk| gone.contains(disk)).count();
        let remade =
            map.groups.iter().flat_map(|group| &group.moves).filter(|moving| moving.is_remake).count();
        ensure!(slots == 0 && remade == 0, "{slots} slots on what is gone, {remade} are made again");
        anyhow::Ok(())
    })
    .await?;
    cluster.wait_healed().await
}

/// Waits for a fact about the condition of a disk.
async fn wait_condition(cluster: &Cluster, disk: DiskId, condition: Condition) -> anyhow::Result<()> {
    wait::until("it is noticed", WELL_WITHIN, || async {
        let map = map_of(cluster).await?;
        let known = map.disks.iter().find(|known| known.id == disk).map(|known| known.condition);
        ensure!(known == Some(condition), "it counts as {known:?}");
        anyhow::Ok(())
    })
    .await
}

async fn happen(
    cluster: &mut Cluster,
    victim: usize,
    mishap: Mishap,
    load: &Load,
    dice: &mut StdRng,
    gone: &mut BTreeSet<DiskId>,
) -> anyhow::Result<String> {
    match mishap {
        Mishap::Killed => {
            cluster.kill(&[victim]);
            load.goes_on(REQUESTS).await?;
            cluster.restart(&[victim]).await?;
            Ok("killed".into())
        }
        Mishap::BitsFlip => {
            let flipped = flip_bits(&cluster.nodes[victim].disk(), dice)?;
            let before = cluster.nodes[victim].status().await?.repair;
            wait::until("all is read back", WELL_WITHIN, || async {
                let repair = cluster.nodes[victim].status().await?.repair;
                // The scrub under way may have been past the damage.
                ensure!(repair.scrubs >= before.scrubs + 2, "{repair:?}");
                anyhow::Ok(())
            })
            .await?;
            let found = cluster.nodes[victim].status().await?.repair.damaged - before.damaged;
            Ok(format!("{flipped} bits flipped, {found} damaged shards found"))
        }
        Mishap::Full => {
            let disk = disk_of(cluster, victim).await?;
            set_reserve(cluster, victim, u64::MAX / 4).await?;
            wait_condition(cluster, disk, Condition::Full).await?;
            load.goes_on(REQUESTS).await?;
            set_reserve(cluster, victim, 1 << 20).await?;
            wait_condition(cluster, disk, Condition::Well).await?;
            Ok("full, and no longer".into())
        }
        Mishap::FolderGone => {
            let disk = disk_of(cluster, victim).await?;
            fs::remove_dir_all(cluster.nodes[victim].disk())?;
            wait_condition(cluster, disk, Condition::Missing).await?;
            gone.insert(disk);
            load.goes_on(REQUESTS).await?;
            cluster.nodes[victim].stop().await?;
            cluster.restart(&[victim]).await?;
            Ok("its folder went".into())
        }
        Mishap::StaleCopy => {
            let disk = cluster.nodes[victim].disk();
            let aside = cluster.nodes[victim].dir.join("stale");
            cluster.kill(&[victim]);
            let files = copy_dir(&disk, &aside)?;
            cluster.restart(&[victim]).await?;
            load.goes_on(2 * REQUESTS).await?;
            // Of what came since, no other disk may miss its part when this one forgets its own.
            wait_well(cluster, gone).await?;
            cluster.kill(&[victim]);
            fs::remove_dir_all(&disk)?;
            fs::rename(&aside, &disk)?;
            cluster.restart(&[victim]).await?;
            Ok(format!("a copy of {files} files, of some time ago, put in place"))
        }
    }
}

async fn set_reserve(cluster: &mut Cluster, victim: usize, reserve_bytes: u64) -> anyhow::Result<()> {
    let node = &mut cluster.nodes[victim];
    node.stop().await?;
    node.config.disk[0].reserve_bytes = reserve_bytes;
    node.write_config()?;
    cluster.restart(&[victim]).await
}

/// Flips one bit in one of ten blocks that hold anything; returns how many.
fn flip_bits(disk: &Path, dice: &mut StdRng) -> anyhow::Result<usize> {
    let mut flipped = 0;
    for entry in fs::read_dir(disk.join("segments"))? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "seg") {
            continue;
        }
        let (file, bytes) = (File::options().write(true).open(&path)?, fs::read(&path)?);
        for (number, block) in bytes.chunks(BLOCK_BYTES).enumerate() {
            if block.iter().any(|byte| *byte != 0) && dice.random_ratio(1, 10) {
                let at = dice.random_range(0..block.len());
                let bit = 1 << dice.random_range(0..8);
                file.write_all_at(&[block[at] ^ bit], (number * BLOCK_BYTES + at) as u64)?;
                flipped += 1;
            }
        }
        file.sync_all()?;
    }
    Ok(flipped)
}

/// Copies a folder; returns how many files it has.
fn copy_dir(from: &Path, to: &Path) -> anyhow::Result<usize> {
    fs::create_dir_all(to)?;
    let mut files = 0;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            files += copy_dir(&from, &to)?;
        } else {
            fs::copy(&from, &to)?;
            files += 1;
        }
    }
    Ok(files)
}
