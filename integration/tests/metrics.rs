//! Promise: every node says whether it is well, and what it counts is what is documented.

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use http::Method;
use makai_integration::cluster::{Cluster, ClusterOptions};
use makai_integration::s3::Content;
use makai_ops::metrics::{Kind, METRICS};

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
        let page = node.console_bytes::<()>(Method::GET, "/metrics", None).await?;
        let page = std::str::from_utf8(&page)?;
        let mut exported = BTreeSet::new();
        for line in page.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (sample, value) = line.rsplit_once(' ').with_context(|| format!("{line:?}"))?;
            let value: f64 = value.parse().with_context(|| format!("{line:?}"))?;
            let name = sample.split('{').next().unwrap_or_default();
            exported
                .insert(documented(name).with_context(|| format!("{name} is exported, but not documented"))?);
            if name == makai_ops::metrics::RAFT_LEADER {
                leaders += value;
            }
            if name == makai_ops::metrics::ERASURE_DISK_FREE_BYTES {
                ensure!(value > 0.0, "{line}");
            }
        }
        for must in [
            makai_ops::metrics::DAEMON_PEERS,
            makai_ops::metrics::ERASURE_SHARDS,
            makai_ops::metrics::RAFT_TERM,
        ] {
            ensure!(exported.contains(must), "{} does not export {must}", node.name);
        }
        println!("{}: {} of {} metrics exported", node.name, exported.len(), METRICS.len());

        let refused = without_token(node).await;
        ensure!(refused.contains("401"), "the console answers without its token: {refused}");
        ensure!(refused.contains("not the token of this node"), "a wrong token is told: {refused}");
    }
    ensure!(leaders == 1.0, "{leaders} nodes say that they lead");
    cluster.finish().await
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
async fn without_token(node: &makai_integration::cluster::Node) -> String {
    let token = node.config.node.dir.join("admin.token");
    let hidden = token.with_extension("hidden");
    if std::fs::rename(&token, &hidden).is_err() {
        return "there is no token".into();
    }
    let answer = node.console_bytes::<()>(Method::GET, "/api/v1/status", None).await;
    let _ = std::fs::rename(&hidden, &token);
    answer.map_or_else(|error| format!("{error:#}"), |_| "it answers".into())
}
