//! Promise: a person with a binary and a file brings a node in; whatever is wrong with the token, the folder, the disk
//! or the file is told plainly, by the right exit code, and leaves what is on disk as it was.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, ensure};
use http::Method;
use makai::console::{JoinTokenAnswer, JoinTokenRequest};
use makai::ticket::Ticket;
use makai_config::{NodeConfig, Role, Secret};
use makai_integration::cluster::{Cluster, ClusterOptions, Node, makai};
use makai_integration::load::Model;
use makai_integration::s3::Content;
use makai_integration::wait;
use makai_raft::facts::cluster::Role as FactRole;

/// A refused start ends within this: no person waits for minutes to learn of a wrong token.
const REFUSED_WITHIN: Duration = Duration::from_secs(20);
const BUCKET: &str = "by-hand";

/// A token from the command line, as an operator gets one.
fn token(cluster: &Cluster, roles: &str, uses: u32) -> anyhow::Result<String> {
    let config = cluster.nodes[0].config_path.to_str().context("a UTF-8 path")?;
    let out =
        makai(&["node", "join-token", "--roles", roles, "--uses", &uses.to_string(), "--config", config])?;
    ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    Ok(String::from_utf8(out.stdout)?.trim().to_owned())
}

fn with_token(token: &str) -> impl FnOnce(&mut NodeConfig) {
    let token = Secret::new(token);
    move |config| config.cluster.join_token = Some(token)
}

/// Every file below a folder, with what would change if it were written to. A lock may be touched.
fn files(folder: &Path) -> BTreeMap<PathBuf, (u64, SystemTime)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            match entry.metadata() {
                Ok(about) if about.is_dir() => folders.push(path),
                Ok(about) if !path.ends_with("lock") => {
                    found.insert(path, (about.len(), about.modified().unwrap_or(SystemTime::UNIX_EPOCH)));
                }
                _ => {}
            }
        }
    }
    found
}

/// The start is refused with this exit code, and the words say why.
async fn is_refused(node: &mut Node, code: i32, words: &[&str]) -> anyhow::Result<()> {
    let (status, log) = node.run_to_end(REFUSED_WITHIN).await?;
    ensure!(status.code() == Some(code), "{}: {status}, expected {code}:\n{log}", node.name);
    for word in words {
        ensure!(log.contains(word), "{}: {word:?} is not in:\n{log}", node.name);
    }
    ensure!(!log.contains("panicked"), "{log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_brought_in_by_hand_or_told_why_not() -> anyhow::Result<()> {
    let mut cluster =
        Cluster::start(ClusterOptions { nodes: 4, voters: 3, ..ClusterOptions::default() }).await?;
    cluster.s3(0).create_bucket(BUCKET, None).await?;
    a_miner_joins(&mut cluster).await.context("a storage node joins")?;
    tokens_are_refused(&cluster).await.context("tokens")?;
    folders_are_refused(&mut cluster).await.context("folders")?;
    files_are_refused(&cluster).await.context("configuration files")?;
    cluster.finish().await
}

/// A node without voter and gateway: no keys, no door, no vote, but shards that count.
async fn a_miner_joins(cluster: &mut Cluster) -> anyhow::Result<()> {
    let secret = token(cluster, "storage", 1)?;
    let mut miner = Node::new(cluster.dir(), "miner", &[Role::Storage], with_token(&secret))?;
    // Behind a home router: nobody can dial it.
    miner.config.peers.advertise.clear();
    miner.write_config()?;
    miner.spawn()?;
    miner.wait_healthy().await?;
    let id = miner.id()?;
    ensure!(
        !miner.config.node.dir.join("cluster.key").exists(),
        "a storage node was given the cluster's key"
    );

    let status = miner.status().await?;
    ensure!(status.map.nodes.len() == 5 && status.voters.is_empty() && !status.is_leader);
    let groups = wait::until("groups on the new disk", Duration::from_secs(30), || async {
        let map = cluster.nodes[1].status().await?.map;
        let disk = map.disks.iter().find(|disk| disk.node == id).map(|disk| disk.id).context("its disk")?;
        let scheme = cluster.nodes[1].status().await?.default_scheme;
        let with_it = map
            .groups
            .iter()
            .filter(|group| group.scheme.to_string() == scheme && group.disks.contains(&disk));
        let count = with_it.count();
        ensure!(count > 0, "none of {} groups has it", map.groups.len());
        anyhow::Ok(count)
    })
    .await?;
    println!("{groups} groups use the new disk");

    let mut model = Model::default();
    wait::until("shards on the new disk", Duration::from_secs(60), || {
        let key = format!("object{}", model.len());
        let content = Content::new(key.clone(), 100_000);
        model.set(key.clone(), Some(content.clone()));
        let (cluster, miner) = (&*cluster, &miner);
        async move {
            cluster.s3(2).put(BUCKET, &key, &content).await?;
            let held: u64 = miner.status().await?.disks.iter().map(|disk| disk.shard_count).sum();
            ensure!(held >= 8, "{held} shards");
            anyhow::Ok(())
        }
    })
    .await?;

    // Two of the others die that are no majority of voters: what is left reads, with the miner's shards where needed.
    cluster.kill(&[2, 3]);
    model
        .check(&[cluster.s3(0).clone(), cluster.s3(1).clone()], BUCKET)
        .await
        .context("with the miner's shards")?;
    cluster.restart(&[2, 3]).await?;

    // It starts again without its token.
    miner.stop().await?;
    miner.config.cluster.join_token = None;
    miner.write_config()?;
    miner.spawn()?;
    miner.wait_healthy().await?;
    ensure!(miner.id()? == id, "the node has another key after a restart");
    let config = miner.config_path.to_str().context("a UTF-8 path")?;
    let out = makai(&["node", "ls", "--json", "--config", config])?;
    let listed = String::from_utf8_lossy(&out.stdout).into_owned();
    ensure!(out.status.success() && listed.contains(&id.to_string()), "{listed}");

    // It asks for more than it was let in for.
    miner.stop().await?;
    let mut greedy = miner;
    greedy.config.node.roles.insert(Role::Gateway);
    greedy.config.s3.listen = Some("127.0.0.1:0".parse()?);
    greedy.write_config()?;
    is_refused(&mut greedy, 1, &["gateway"]).await.context("a storage node that makes itself a gateway")?;
    ensure!(!greedy.config.node.dir.join("cluster.key").exists());
    greedy.config.node.roles.remove(&Role::Gateway);
    greedy.config.s3.listen = None;
    greedy.write_config()?;
    greedy.spawn()?;
    greedy.wait_healthy().await?;
    // The cluster's end is that of all its nodes.
    cluster.nodes.push(greedy);
    Ok(())
}

async fn tokens_are_refused(cluster: &Cluster) -> anyhow::Result<()> {
    let storage = [Role::Storage];
    let node =
        |name: &str, roles: &[Role], token: &str| Node::new(cluster.dir(), name, roles, with_token(token));

    let text = token(cluster, "storage", 1)?;
    let cut = &text[..text.len() - 20];
    is_refused(&mut node("cut", &storage, cut)?, 1, &["not a join token"]).await?;

    let mut forged = Ticket::parse(&text)?;
    forged.secret = "0".repeat(64);
    is_refused(
        &mut node("forged", &storage, &forged.to_text())?,
        1,
        &["token is unknown, expired or used up"],
    )
    .await?;

    // The real one still works, once.
    let mut first = node("first", &storage, &text)?;
    first.spawn()?;
    first.wait_healthy().await?;
    is_refused(&mut node("second", &storage, &text)?, 1, &["token is unknown, expired or used up"]).await?;
    first.stop().await?;

    let request = JoinTokenRequest { roles: vec![FactRole::Storage], valid_secs: 1, uses: 1 };
    let answer: Option<JoinTokenAnswer> =
        cluster.nodes[0].console(Method::POST, "/api/v1/join-token", Some(&request)).await?;
    let short = answer.context("no token")?.token;
    let expires = makai::clock::now().0 + 1_500;
    wait::until("the token expires", Duration::from_secs(10), || async {
        ensure!(makai::clock::now().0 > expires, "it is still good");
        anyhow::Ok(())
    })
    .await?;
    let mut late = node("late", &storage, &short)?;
    is_refused(&mut late, 1, &["token is unknown, expired or used up"]).await?;
    // The same folder, a good token: nothing of the failure is in the way.
    late.config.cluster.join_token = Some(Secret::new(token(cluster, "storage", 1)?));
    late.write_config()?;
    late.spawn()?;
    late.wait_healthy().await?;
    late.stop().await?;

    let trusted = [Role::Storage, Role::Gateway, Role::Voter];
    let only_storage = token(cluster, "storage", 1)?;
    let mut usurper = node("usurper", &trusted, &only_storage)?;
    is_refused(&mut usurper, 1, &["voter", "gateway", "needs a join token that allows it"]).await?;
    ensure!(
        !usurper.config.node.dir.join("cluster.key").exists(),
        "an untrusted node was given the cluster's key"
    );

    let nothing = Node::new(cluster.dir(), "nothing", &storage, |_| {});
    is_refused(&mut nothing?, 1, &["cluster.join_token", "cluster.init"]).await
}

async fn folders_are_refused(cluster: &mut Cluster) -> anyhow::Result<()> {
    // Two daemons on one folder.
    let mut twin = Node::new(cluster.dir(), "twin", &[Role::Storage], |_| {})?;
    twin.config.node.dir = cluster.nodes[3].config.node.dir.clone();
    twin.write_config()?;
    is_refused(&mut twin, 1, &["another daemon runs on"]).await?;

    // Another cluster's token, disk, and folder.
    let mut other =
        Node::new(cluster.dir(), "other", &[Role::Voter, Role::Storage, Role::Gateway], |config| {
            config.cluster.init = true;
        })?;
    other.spawn()?;
    other.wait_healthy().await?;
    let foreign = other.join_token(&[Role::Storage]).await?;
    other.stop().await?;

    let (at, before) = (3, cluster.nodes[3].config.clone());
    cluster.nodes[at].stop().await?;
    let unchanged = files(&cluster.nodes[at].dir);
    let node = &mut cluster.nodes[at];
    node.config.cluster.join_token_file = None;
    node.config.cluster.join_token = Some(Secret::new(foreign.clone()));
    fs::write(&node.config_path, node.config.to_toml()?)?;
    is_refused(node, 1, &["belongs to cluster", "the join token to cluster"]).await?;

    node.config = before.clone();
    node.config.disk = other.config.disk.clone();
    node.write_config()?;
    let theirs = files(&other.disk());
    is_refused(node, 1, &["disk0", "belongs to cluster"]).await?;
    ensure!(files(&other.disk()) == theirs, "another cluster's disk was written to");

    // A newer release has run here.
    node.config = before;
    node.write_config()?;
    let path = node.config.node.dir.join("cluster.json");
    let text = fs::read_to_string(&path)?;
    ensure!(text.contains("\"format\": 1"), "{text}");
    fs::write(&path, text.replace("\"format\": 1", "\"format\": 1000"))?;
    is_refused(node, 1, &["cluster.json", "format 1000", "newer release"]).await?;
    fs::write(&path, text)?;
    let changed: Vec<_> =
        files(&node.dir).into_iter().filter(|(path, at)| unchanged.get(path) != Some(at)).collect();
    let by_us = ["cluster.json", "makai.toml", "daemon.log"];
    let others: Vec<_> =
        changed.iter().filter(|(path, _)| !by_us.iter().any(|name| path.ends_with(name))).collect();
    ensure!(others.is_empty(), "starts that were refused wrote to {others:?}");

    // Nothing of all this is in the way.
    node.spawn()?;
    node.wait_healthy().await?;

    // A join that another cluster's expired token spoiled leaves a folder that the right token can use.
    let mut stray = Node::new(cluster.dir(), "stray", &[Role::Storage], with_token(&foreign))?;
    other.spawn()?;
    other.wait_healthy().await?;
    let mut spoiled = Ticket::parse(&foreign)?;
    spoiled.secret = "0".repeat(64);
    stray.config.cluster.join_token = Some(Secret::new(spoiled.to_text()));
    stray.write_config()?;
    is_refused(&mut stray, 1, &["token is unknown, expired or used up"]).await?;
    other.stop().await?;
    stray.config.cluster.join_token = Some(Secret::new(token(cluster, "storage", 1)?));
    stray.write_config()?;
    stray.spawn()?;
    stray.wait_healthy().await.context("a folder that was refused by one cluster, in another")?;
    stray.stop().await
}

async fn files_are_refused(cluster: &Cluster) -> anyhow::Result<()> {
    let mut node = Node::new(cluster.dir(), "mistyped", &[Role::Storage], |_| {})?;
    let text = fs::read_to_string(&node.config_path)?;
    // Every fault at once, each with its key.
    let wrong = text
        .replace("voters_max = 5", "voters_max = 4\nvoter_count = 3")
        .replace("init = false", "init = true");
    fs::write(&node.config_path, wrong)?;
    is_refused(&mut node, 2, &["cluster.voters_max", "cluster.voter_count", "cluster.init"]).await?;
    fs::write(&node.config_path, "node = [")?;
    is_refused(&mut node, 2, &["makai.toml"]).await?;
    fs::remove_file(&node.config_path)?;
    is_refused(&mut node, 2, &["makai.toml"]).await?;
    node.config.cluster.join_token_file = Some(node.dir.join("no-such-file"));
    node.write_config()?;
    is_refused(&mut node, 2, &["no-such-file"]).await?;
    ensure!(!node.disk().exists(), "a refused configuration made a disk");

    // A port that is taken names its key.
    let mut node =
        Node::new(cluster.dir(), "crowded", &[Role::Storage], with_token(&token(cluster, "storage", 1)?))?;
    node.config.console.listen = cluster.nodes[0].config.console.listen;
    node.write_config()?;
    is_refused(&mut node, 1, &["console.listen", "in use"]).await?;

    for (args, code) in
        [(&["node", "frobnicate"][..], 2), (&["daemon"], 2), (&["status", "--profile", "/no/such"], 1)]
    {
        let out = makai(args)?;
        ensure!(
            out.status.code() == Some(code),
            "{args:?}: {} {}",
            out.status,
            String::from_utf8_lossy(&out.stderr)
        );
    }
    Ok(())
}
