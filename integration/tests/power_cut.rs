//! Promise: when every process ends at once, whatever was acknowledged is there afterwards; what was not is there whole
//! or not at all.

use anyhow::{Context as _, ensure};
use makai_integration::cluster::{Cluster, ClusterOptions};
use makai_integration::load::{Load, LoadOptions, Model, seed};

const BUCKET: &str = "power";
const ROUNDS: u64 = 3;
const ALL: [usize; 6] = [0, 1, 2, 3, 4, 5];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_the_end_of_every_process_at_once() -> anyhow::Result<()> {
    let seed = seed();
    let mut cluster = Cluster::start(ClusterOptions::default()).await?;
    cluster.s3(0).create_bucket(BUCKET, None).await?;
    let mut model = Model::default();
    for round in 0..ROUNDS {
        let options = LoadOptions {
            bucket: BUCKET.into(),
            prefix: format!("round{round}/"),
            clients: 12,
            sizes: vec![0, 700, 5_000, 150_000, 1 << 20],
            seed: seed.wrapping_add(round * 1000),
            goes_on: false,
            rest: std::time::Duration::ZERO,
        };
        let load = Load::start(&cluster.doors(), &options);
        load.goes_on(200).await?;
        cluster.kill(&ALL);
        let outcome = load.stop().await?;
        ensure!(outcome.wrong.is_empty(), "{:?}", outcome.wrong);
        let answered = outcome.requests.iter().filter(|done| done.failed.is_none()).count();
        model.extend(outcome.model);
        println!("round {round}: {answered} answered, {} of {} keys certain", model.certain(), model.len());

        cluster.restart(&ALL).await?;
        cluster.wait_formed().await?;
        model.check(&cluster.doors(), BUCKET).await.with_context(|| format!("after power cut {round}"))?;
        // What was found of unanswered requests stays so.
        model
            .check(&cluster.doors(), BUCKET)
            .await
            .with_context(|| format!("again after power cut {round}"))?;
    }
    cluster.finish().await
}
