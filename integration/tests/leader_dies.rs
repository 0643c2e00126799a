//! Promise: when the node dies that leads, no request fails, nothing acknowledged is lost, nothing happens twice, and
//! clients notice a pause of seconds at most.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use makai::clock;
use makai_integration::cluster::{Cluster, ClusterOptions};
use makai_integration::load::{Load, LoadOptions, Model, seed};

const BUCKET: &str = "leaders";
const ROUNDS: u64 = 2;
/// From the kill until requests end at half the rate of before: 2 s is the goal on a machine of its own.
const BACK_WITHIN: Duration = Duration::from_secs(5);
const WINDOW: Duration = Duration::from_millis(500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_may_die_under_load() -> anyhow::Result<()> {
    let seed = seed();
    let mut cluster = Cluster::start(ClusterOptions::default()).await?;
    cluster.s3(0).create_bucket(BUCKET, None).await?;
    let mut model = Model::default();
    for round in 0..ROUNDS {
        let leader = cluster.leader().await?;
        let doors: Vec<_> =
            (0..6).filter(|node| *node != leader).map(|node| cluster.s3(node).clone()).collect();
        let options = LoadOptions {
            bucket: BUCKET.into(),
            prefix: format!("round{round}/"),
            clients: 8,
            sizes: vec![100, 4096, 16 * 1024, 64 * 1024],
            seed: seed.wrapping_add(round * 1000),
            goes_on: true,
            rest: std::time::Duration::ZERO,
        };
        let load = Load::start(&doors, &options);
        load.goes_on(100).await?;
        let counted = clock::instant();
        load.goes_on(400).await?;
        let killed = clock::instant();
        cluster.kill(&[leader]);
        load.goes_on(400).await.context("after the leader died")?;
        let outcome = load.stop().await?;

        let before = outcome.rate(counted, killed);
        let back =
            outcome.back_after(killed, WINDOW, before).context("the rate of before was not reached again")?;
        let longest = outcome.requests.iter().map(|done| done.ended - done.began).max().unwrap_or_default();
        println!(
            "round {round}: {before:.0} requests/s, leader {leader} killed, back after {back:.2?}; longest request {longest:.2?}"
        );
        outcome.is_flawless().context("while the leader died")?;
        ensure!(back <= BACK_WITHIN, "back after {back:.2?}, promised are {BACK_WITHIN:?}");
        model.extend(outcome.model);
        model.check(&doors, BUCKET).await.context("after the leader died")?;
        cluster.restart(&[leader]).await?;
        cluster.wait_formed().await?;
        model.check(&[cluster.s3(leader).clone()], BUCKET).await.context("through the node that was dead")?;
    }
    cluster.finish().await
}
