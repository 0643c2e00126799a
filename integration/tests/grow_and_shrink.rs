//! Promise: a cluster grows and shrinks while customers read and write, and none of them sees an error: newcomers get their
//! share of what there is, those that leave are emptied first, a leader hands over; and hardly more moves than must.
//!
//! From five to six and back to five in each run, from six to nine and back to seven on demand.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use makai_config::{Role, Secret};
use makai_erasure::NodeId;
use makai_integration::cluster::{Cluster, ClusterOptions, Node, makai};
use makai_integration::load::{Load, LoadOptions, Model, seed};
use makai_integration::s3::{Content, S3};
use makai_integration::wait;
use makai_raft::facts::cluster::ClusterMap;

const BUCKET: &str = "moving";
const SETTLED_WITHIN: Duration = Duration::from_secs(180);
const REQUESTS: usize = 30;

/// Slots of each node, those on their way counted where they are.
fn slots(map: &ClusterMap) -> BTreeMap<NodeId, usize> {
    let mut slots: BTreeMap<NodeId, usize> = map.nodes.iter().map(|node| (node.id, 0)).collect();
    for disk in map.groups.iter().flat_map(|group| &group.disks) {
        if let Some(known) = map.disks.iter().find(|known| known.id == *disk) {
            *slots.entry(known.node).or_default() += 1;
        }
    }
    slots
}

async fn map_of(cluster: &Cluster) -> anyhow::Result<ClusterMap> {
    Ok(cluster.nodes[cluster.leader().await?].status().await?.map)
}

/// Waits until no slot is on its way and `is_so` of the slots of each node.
async fn settled(
    cluster: &Cluster,
    what: &str,
    is_so: impl Fn(&BTreeMap<NodeId, usize>) -> bool,
) -> anyhow::Result<BTreeMap<NodeId, usize>> {
    wait::until(what, SETTLED_WITHIN, || async {
        let map = map_of(cluster).await?;
        let moving: usize = map.groups.iter().map(|group| group.moves.len()).sum();
        let slots = slots(&map);
        ensure!(moving == 0 && is_so(&slots), "{moving} slots move; {slots:?}");
        anyhow::Ok(slots)
    })
    .await
}

/// How large a walk is.
struct Walk {
    nodes: usize,
    voters: usize,
    newcomers: usize,
    /// The leader first, then the nodes after it.
    leavers: usize,
    objects: usize,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_nodes_become_six_and_five_under_load() -> anyhow::Result<()> {
    walk(Walk { nodes: 5, voters: 5, newcomers: 1, leavers: 1, objects: 8 }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: cargo test --release -p makai-integration --test grow_and_shrink -- --ignored"]
async fn six_nodes_become_nine_and_seven_under_load() -> anyhow::Result<()> {
    walk(Walk { nodes: 6, voters: 5, newcomers: 3, leavers: 2, objects: 24 }).await
}

async fn walk(walk: Walk) -> anyhow::Result<()> {
    let options = ClusterOptions { nodes: walk.nodes, voters: walk.voters, ..ClusterOptions::default() };
    let mut cluster = Cluster::start(options).await?;
    cluster.s3(0).create_bucket(BUCKET, None).await?;
    let mut model = Model::default();
    for (at, len) in [1_000, 90_000, 3_000_000, 9_000_000].into_iter().cycle().take(walk.objects).enumerate()
    {
        let (key, content) = (format!("before/{at}"), Content::new(format!("before/{at}"), len));
        cluster.s3(at % walk.nodes).put(BUCKET, &key, &content).await?;
        model.set(key, Some(content));
    }
    let leader = cluster.leader().await?;
    let leavers: Vec<usize> = (0..walk.leavers).map(|after| (leader + after) % walk.nodes).collect();
    let doors: Vec<S3> =
        (0..walk.nodes).filter(|at| !leavers.contains(at)).map(|at| cluster.s3(at).clone()).collect();
    let options = LoadOptions {
        bucket: BUCKET.into(),
        prefix: "during/".into(),
        clients: 2,
        sizes: vec![500, 20_000, 300_000, 2_000_000],
        seed: seed(),
        goes_on: true,
        rest: std::time::Duration::from_millis(20),
    };
    let load = Load::start(&doors, &options);
    load.goes_on(REQUESTS).await?;

    let before = map_of(&cluster).await?;
    let mut newcomers = join(&cluster, walk.newcomers).await.context("nodes join")?;
    let ids = newcomers.iter().map(Node::id).collect::<anyhow::Result<Vec<_>>>()?;
    let begun = makai::clock::instant();
    let shares = settled(&cluster, "the newcomers have their share", |slots| {
        let share = slots.values().sum::<usize>() / slots.len();
        ids.iter().all(|id| slots.get(id).is_some_and(|has| has + 3 + share / 5 >= share))
    })
    .await?;
    println!("slots of {} nodes after {:.1?}: {shares:?}", shares.len(), begun.elapsed());
    let gained: usize = ids.iter().filter_map(|id| shares.get(id)).sum();
    moved_little("the newcomers came", &before, &map_of(&cluster).await?, gained)?;
    load.goes_on(REQUESTS).await.context("with the newcomers")?;

    for at in leavers {
        let (id, begun) = (cluster.nodes[at].id()?, makai::clock::instant());
        let before = leave(&mut cluster, at).await.with_context(|| format!("node {at} leaves"))?;
        println!("node {at} had left after {:.1?}", begun.elapsed());
        let held = slots(&before).get(&id).copied().unwrap_or(0);
        moved_little("one left", &before, &map_of(&cluster).await?, held)?;
        load.goes_on(REQUESTS).await.with_context(|| format!("without node {at}"))?;
    }
    let outcome = load.stop().await?;
    outcome.is_flawless().context("while nodes came and went")?;
    model.extend(outcome.model);
    model.check(&doors, BUCKET).await.context("those that stayed hold it all")?;
    cluster.wait_healed().await?;
    for newcomer in &mut newcomers {
        newcomer.stop().await?;
    }
    cluster.finish().await
}

/// Slots of groups that were there `before` are elsewhere by `needed` at least; a tenth more, and two, may be.
fn moved_little(what: &str, before: &ClusterMap, after: &ClusterMap, needed: usize) -> anyhow::Result<()> {
    let of = |map: &ClusterMap, id| {
        map.groups.iter().find(|group| group.id == id).map(|group| group.disks.clone())
    };
    let moved: usize = before
        .groups
        .iter()
        .filter_map(|group| {
            Some(group.disks.iter().zip(&of(after, group.id)?).filter(|(was, is)| was != is).count())
        })
        .sum();
    println!("{what}: {moved} slots moved, {needed} had to");
    ensure!(moved <= needed + needed / 10 + 2, "{what}: {moved} slots moved, {needed} had to");
    Ok(())
}

async fn join(cluster: &Cluster, count: usize) -> anyhow::Result<Vec<Node>> {
    let mut joined = Vec::new();
    for at in 0..count {
        let token = Secret::new(cluster.nodes[0].join_token(&[Role::Storage]).await?);
        let with_token = move |config: &mut makai_config::NodeConfig| config.cluster.join_token = Some(token);
        let mut node = Node::new(cluster.dir(), &format!("newcomer{at}"), &[Role::Storage], with_token)?;
        node.spawn()?;
        node.wait_healthy().await?;
        joined.push(node);
    }
    Ok(joined)
}

/// Drains, stops and removes a node by the commands that an operator has. Answers what was there once the drain was asked for:
/// what moved until then evened shares out after the last change, and is that one's cost; so is what was on its way.
async fn leave(cluster: &mut Cluster, at: usize) -> anyhow::Result<ClusterMap> {
    let staying = (0..cluster.nodes.len()).find(|other| *other != at && cluster.nodes[*other].is_running());
    let asked = cluster.nodes[staying.context("another node")?].config_path.clone();
    let config = asked.to_str().context("a UTF-8 path")?;
    let id = cluster.nodes[at].id()?;
    let name = id.to_string();
    let refused = makai(&["node", "remove", &name, "--config", config])?;
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.status.code() == Some(1) && why.contains("node drain"), "{why}");

    let drained = makai(&["node", "drain", &name, "--no-wait", "--json", "--config", config])?;
    ensure!(drained.status.success(), "{}", String::from_utf8_lossy(&drained.stderr));
    let mut before = map_of(cluster).await?;
    for group in &mut before.groups {
        for moving in std::mem::take(&mut group.moves) {
            group.disks[usize::from(moving.slot)] = moving.to;
        }
    }
    settled_without(cluster, at, id).await?;
    wait::until("it votes no more", SETTLED_WITHIN, || async {
        let leader = cluster.leader().await?;
        let voters = cluster.nodes[leader].status().await?.voters;
        ensure!(leader != at && !voters.contains(&id), "{leader} leads {} voters", voters.len());
        anyhow::Ok(())
    })
    .await?;
    let waited = makai(&["node", "drain", &name, "--json", "--config", config])?;
    let told = String::from_utf8_lossy(&waited.stdout).into_owned();
    ensure!(waited.status.success() && told.contains("\"is_empty\":true"), "{told}");
    cluster.nodes[at].stop().await?;
    wait::until("it can be removed", SETTLED_WITHIN, || async {
        let removed = makai(&["node", "remove", &name, "--config", config])?;
        ensure!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
        anyhow::Ok(())
    })
    .await?;
    Ok(before)
}

async fn settled_without(cluster: &Cluster, at: usize, id: NodeId) -> anyhow::Result<()> {
    wait::until("the leaving node is empty", SETTLED_WITHIN, || async {
        ensure!(cluster.nodes[at].is_running(), "it went before it was empty");
        let left = slots(&map_of(cluster).await?).get(&id).copied().unwrap_or(0);
        ensure!(left == 0, "{left} slots are left");
        anyhow::Ok(())
    })
    .await
}
