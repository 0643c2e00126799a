//! Promise: any two of six nodes may die. Reads and writes go on without an error, and once the dead are back and the
//! cluster has healed, two others may die and every byte is still there.

use anyhow::Context as _;
use makai_integration::cluster::{Cluster, ClusterOptions};
use makai_integration::load::{Load, LoadOptions, Model, seed};
use makai_integration::s3::Content;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
/// The default scheme, whose groups have four disks, and one whose groups need all six.
const BUCKETS: [(&str, Option<&str>); 2] = [("two-and-two", None), ("four-and-two", Some("4+2"))];
const REQUESTS: usize = 60;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_two_nodes_may_die_and_two_others_after_the_cluster_has_healed() -> anyhow::Result<()> {
    let mut dice = StdRng::seed_from_u64(seed());
    let mut cluster = Cluster::start(ClusterOptions::default()).await?;
    let mut models = Vec::new();
    for (bucket, scheme) in BUCKETS {
        cluster.s3(0).create_bucket(bucket, scheme).await?;
        let mut model = Model::default();
        for (at, len) in [1000, 100 * KIB, 3 * MIB, 66 * MIB].into_iter().enumerate() {
            let (key, content) = (format!("before/{len}"), Content::new(format!("{bucket}/{len}"), len));
            cluster.s3(at).put(bucket, &key, &content).await?;
            model.set(key, Some(content));
        }
        models.push(model);
    }

    for round in 0..2 {
        let mut nodes: Vec<usize> = (0..6).collect();
        nodes.shuffle(&mut dice);
        let leader = cluster.leader().await?;
        if round == 0 {
            // The leader is among the dead.
            nodes.retain(|node| *node != leader);
            nodes.insert(dice.random_range(0..2), leader);
        }
        let (first, second, others) = ([nodes[0], nodes[1]], [nodes[2], nodes[3]], &nodes[2..]);
        println!("round {round}: leader {leader}, first {first:?}, then {second:?}");

        let doors: Vec<_> = others.iter().map(|node| cluster.s3(*node).clone()).collect();
        let loads: Vec<Load> = BUCKETS
            .iter()
            .map(|(bucket, _)| {
                let options = LoadOptions {
                    bucket: (*bucket).into(),
                    prefix: format!("round{round}/"),
                    clients: 2,
                    sizes: vec![500, 20 * KIB, 300 * KIB, 2 * MIB],
                    seed: dice.random(),
                    goes_on: true,
                    rest: std::time::Duration::ZERO,
                };
                Load::start(&doors, &options)
            })
            .collect();
        for load in &loads {
            load.goes_on(REQUESTS / 2).await?;
        }
        cluster.kill(&first);
        for load in &loads {
            load.goes_on(REQUESTS).await.context("with two nodes dead")?;
        }
        for ((load, model), (bucket, _)) in loads.into_iter().zip(&mut models).zip(BUCKETS) {
            let outcome = load.stop().await?;
            outcome.is_flawless().with_context(|| format!("{bucket}, while {first:?} died"))?;
            model.extend(outcome.model);
            model.check(&doors, bucket).await.with_context(|| format!("{first:?} are dead"))?;
        }

        cluster.restart(&first).await?;
        cluster.wait_formed().await?;
        cluster.wait_healed().await?;
        cluster.kill(&second);
        for (model, (bucket, _)) in models.iter_mut().zip(BUCKETS) {
            let checked = model.check(&cluster.doors(), bucket).await;
            checked.with_context(|| format!("{first:?} came back and healed, then {second:?} died"))?;
        }
        cluster.restart(&second).await?;
        cluster.wait_formed().await?;
        cluster.wait_healed().await?;
    }
    cluster.finish().await
}

/// For BENCHMARKS.md: what reads lose when every group has lost as many shards as it bears.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures: cargo test --release -p makai-integration --test two_nodes_die -- --ignored --nocapture"]
async fn how_fast_degraded_reads_are() -> anyhow::Result<()> {
    for size in ["1MiB", "16MiB"] {
        let mut cluster = Cluster::start(ClusterOptions::default()).await?;
        cluster.s3(0).create_bucket("degraded", Some("4+2")).await?;
        let args =
            ["--bucket", "degraded", "--op", "get", "--size", size, "--clients", "8", "--objects", "64"];
        let whole = cluster.bench(0, &[&args[..], &["--seconds", "10"]].concat()).await??;
        let under_way =
            cluster.bench(0, &[&args[..], &["--warmup-seconds", "15", "--seconds", "10"]].concat());
        let leader = cluster.leader().await?;
        let victims: Vec<usize> = (1..6).filter(|at| *at != leader).take(2).collect();
        // All objects are there by then, and it still warms up.
        tokio::time::sleep(std::time::Duration::from_secs(10)).await;
        cluster.kill(&victims);
        let degraded = under_way.await??;
        println!(
            "4+2, {size}: whole {whole}; two of six dead {degraded}: {:.0} %",
            100.0 * degraded.megabytes_per_sec / whole.megabytes_per_sec
        );
        cluster.restart(&victims).await?;
        cluster.finish().await?;
    }
    Ok(())
}
