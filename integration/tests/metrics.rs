//! Promise: every node says whether it is well, and what it counts is what is documented.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use http::Method;
use makai_integration::cluster::{Cluster, ClusterOptions, Node};
use makai_integration::s3::Content;
use makai_integration::wait::until;
use makai_ops::metrics::{self as names, Kind, METRICS};

/// Counted only when something goes wrong, or goes.
const OF_BAD_DAYS: [&str; 2] = [names::GATEWAY_SLOWDOWNS, names::DAEMON_COLLECTED_SHARDS];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_and_metrics_answer_with_what_is_documented() -> anyhow::Result<()> {
    let cluster = Cluster::start(ClusterOptions { nodes: 4, voters: 3, ..ClusterOptions::default() }).await?;
    cluster.s3(0).create_bucket("counted", None).await?;
    for (at, len) in [10, 100_000, 3 << 20].into_iter().enumerate() {
        let content = Content::new(format!("{len}"), len);
        cluster.s3(at).put("counted", &format!("{len}"), &content).await?;
        cluster.s3(at + 1).check("counted", &format!("{len}"), &content).await?;
    }

    let mut leaders = 0.0;
    for node in &cluster.nodes {
        let health = node.console_bytes::<()>(Method::GET, "/healthz", None).await?;
        ensure!(&health[..] == b"ok\n", "{health:?}");
        let samples = samples(node).await?;
        leaders += samples
            .iter()
            .filter(|(name, _)| *name == names::RAFT_LEADER)
            .map(|(_, value)| value)
            .sum::<f64>();
        for must in [names::DAEMON_PEERS, names::ERASURE_DISK_FREE_BYTES, names::DAEMON_RESIDENT_BYTES] {
            let value = samples.iter().find(|(name, _)| *name == must).map(|(_, value)| *value);
            ensure!(value.is_some_and(|value| value > 0.0), "{}: {must} is {value:?}", node.name);
        }
        let refused = without_token(node).await;
        ensure!(refused.contains("401"), "the console answers without its token: {refused}");
        ensure!(refused.contains("not the token of this node"), "a wrong token is told: {refused}");
    }
    ensure!(leaders == 1.0, "{leaders} nodes say that they lead");
    let all: BTreeSet<&str> = METRICS.iter().map(|metric| metric.name).collect();
    until("all that is documented is published", Duration::from_secs(60), || async {
        let mut published: BTreeSet<&str> = BTreeSet::from(OF_BAD_DAYS);
        for node in &cluster.nodes {
            published.extend(samples(node).await?.into_iter().map(|(name, _)| name));
        }
        let missing: Vec<_> = all.difference(&published).collect();
        ensure!(missing.is_empty(), "nobody publishes {missing:?}");
        Ok(())
    })
    .await?;
    cluster.finish().await
}

/// What a node publishes: the documented metric that each sample belongs to, and its value.
async fn samples(node: &Node) -> anyhow::Result<Vec<(&'static str, f64)>> {
    let page = node.console_bytes::<()>(Method::GET, "/metrics", None).await?;
    let lines = std::str::from_utf8(&page)?.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let sample = |line: &str| {
        let (sample, value) = line.rsplit_once(' ').with_context(|| format!("{line:?}"))?;
        let name = sample.split('{').next().unwrap_or_default();
        let name = documented(name).with_context(|| format!("{name} is published, but not documented"))?;
        anyhow::Ok((name, value.parse().with_context(|| format!("{line:?}"))?))
    };
    lines.map(sample).collect()
}

/// The documented metric that a sample belongs to.
fn documented(sample: &str) -> Option<&'static str> {
    let is_part = |metric: &&makai_ops::metrics::Metric| {
        metric.name == sample
            || metric.kind == Kind::Histogram
                && ["_bucket", "_sum", "_count"]
                    .iter()
                    .any(|end| sample.strip_suffix(end) == Some(metric.name))
    };
    METRICS.iter().find(is_part).map(|metric| metric.name)
}

/// What the console says to someone without its token.
async fn without_token(node: &Node) -> String {
    let token = node.config.node.dir.join("admin.token");
    let hidden = token.with_extension("hidden");
    if std::fs::rename(&token, &hidden).is_err() {
        return "there is no token".into();
    }
    let answer = node.console_bytes::<()>(Method::GET, "/api/v1/status", None).await;
    let _ = std::fs::rename(&hidden, &token);
    answer.map_or_else(|error| format!("{error:#}"), |_| "it answers".into())
}
