//! Promise: idle machines that drill earn for what they computed and can be asked for; a job that wants a quorum is run by
//! nodes of different owners and published once they agree; a node's earnings go to another wallet when both keys say so and
//! the cool-down is over.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use makai_config::Role;
use makai_integration::cluster::{Cluster, ClusterOptions, makai};
use makai_integration::wait;
use makai_ops::claims::statement::ClaimKey;
use serde_json::{Value, json};

/// Long enough that a machine busy with other things computes a task within it.
const EPOCH_SECS: u64 = 20;
const COOLDOWN_SECS: u64 = 3;
const WITHIN: Duration = Duration::from_secs(240);
const VOTERS: usize = 3;
const MINERS: [usize; 2] = [3, 4];
const WALLET: [u8; 32] = [0x66; 32];

async fn start() -> anyhow::Result<Cluster> {
    Cluster::start(ClusterOptions {
        nodes: VOTERS + MINERS.len(),
        voters: VOTERS,
        change: Box::new(|at, config| {
            config.accounts.epoch_secs = EPOCH_SECS;
            config.accounts.challenge_secs = 0;
            config.accounts.payout_cooldown_secs = COOLDOWN_SECS;
            if MINERS.contains(&at) {
                config.node.roles = [Role::Storage, Role::Compute].into_iter().collect();
                config.node.owner = format!("owner {at}");
                config.s3.listen = None;
                config.grpc.listen = None;
                config.compute.cpu_millis_max = 2000;
                config.compute.drill_pct = 1;
            }
        }),
    })
    .await
}

fn run_json(cluster: &Cluster, at: usize, args: &[&str]) -> anyhow::Result<Value> {
    let config = cluster.nodes[at].config_path.to_str().context("a UTF-8 path")?;
    let out = makai(&[args, &["--json", "--config", config]].concat())?;
    ensure!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    Ok(serde_json::from_slice(&out.stdout)?)
}

fn customer(cluster: &Cluster) -> anyhow::Result<PathBuf> {
    let listen = cluster.nodes[0].config.grpc.listen.context("a gateway has a gRPC door")?;
    let credentials = &cluster.credentials;
    let profile = json!({
        "s3": { "access_key_id": credentials.access_key, "secret_access_key": credentials.secret_key },
        "grpc": { "endpoint": format!("http://{listen}") },
    });
    let path = cluster.dir().join("customer.json");
    std::fs::write(&path, profile.to_string())?;
    Ok(path)
}

/// An example's kernel, by as many nodes as must agree.
async fn a_quorum_of_two(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.s3(0).create_bucket("demo", None).await?;
    let profile = customer(cluster)?;
    let profile = profile.to_str().context("a UTF-8 path")?;
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../gateway/examples/jobs/saxpy.toml");
    let file = file.to_str().context("a UTF-8 path")?;
    let out = makai(&["job", "submit", file, "--quorum", "2", "--wait", "--json", "--profile", profile])?;
    ensure!(
        out.status.success(),
        "{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    let job: Value = serde_json::from_slice(&out.stdout)?;
    let id = job["job_id"].as_u64().or_else(|| job["id"].as_u64()).context(job.to_string())?.to_string();
    let out = makai(&["job", "show", &id, "--json", "--profile", profile])?;
    let shown = String::from_utf8_lossy(&out.stdout).into_owned();
    for at in MINERS {
        let node = cluster.nodes[at].id()?.to_string();
        ensure!(shown.contains(&node), "node {at} did not run it: {shown}");
    }
    let answer = cluster.s3(0).get("demo", "y.bin").await?;
    let expected: Vec<u8> = [12.0f32, 24.0, 36.0, 48.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    ensure!(answer.body == expected, "{:?}", answer.body);
    Ok(())
}

/// Earnings go to another wallet.
async fn another_wallet(cluster: &Cluster, at: usize) -> anyhow::Result<()> {
    let node = cluster.nodes[at].id()?.to_string();
    let wallet = ClaimKey::from_bytes(&WALLET).context("a key")?.address().to_string();
    let key_file = cluster.dir().join("wallet.key");
    std::fs::write(&key_file, WALLET.map(|byte| format!("{byte:02x}")).concat())?;
    let key_file = key_file.to_str().context("a UTF-8 path")?;
    let row = |rows: &Value| {
        let rows = rows.as_array().cloned().unwrap_or_default();
        rows.into_iter().find(|row| row["node"] == node.as_str()).context("no row of the node")
    };
    let before = wait::until("a first address is bound", WITHIN, || async {
        let before = row(&run_json(cluster, 0, &["payout", "ls"])?)?;
        ensure!(before["payout"].is_string(), "{before}");
        Ok::<_, anyhow::Error>(before)
    })
    .await?;
    // Another node's console does not sign for it; a wrong key is told.
    let set = |console: usize, to: &str| {
        run_json(cluster, console, &["payout", "set", &node, "--to", to, "--key-file", key_file])
    };
    ensure!(set(0, &wallet).is_err_and(|why| why.to_string().contains("a node signs for itself alone")));
    ensure!(set(at, "0x00000000000000000000000000000000000000aa").is_err());
    let after = set(at, &wallet)?;
    ensure!(after["payout"] == before["payout"] && after["next"][0] == wallet.as_str(), "{after}");
    wait::until("the cool-down is over", WITHIN, || async {
        let now = row(&run_json(cluster, 0, &["payout", "ls"])?)?;
        ensure!(now["payout"] == wallet.as_str() && now["next"].is_null(), "{now}");
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    wait::until("what it earns goes there", WITHIN, || async {
        let claims = run_json(cluster, 0, &["claim", "ls"])?;
        let row = row(&claims["claims"])?;
        ensure!(row["payout"] == wallet.as_str() && row["cumulative"] != "0", "{row}");
        Ok::<_, anyhow::Error>(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_computed_is_checked_and_earns() -> anyhow::Result<()> {
    let cluster = start().await?;
    a_quorum_of_two(&cluster).await?;
    let miner = cluster.nodes[MINERS[0]].id()?.to_string();
    let earned = |what: &str, field: &'static str| {
        let (what, miner) = (what.to_owned(), miner.clone());
        let cluster = &cluster;
        async move {
            wait::until(&what, WITHIN, || async {
                let why = run_json(cluster, 0, &["why", &miner])?;
                let usage = &why["usage"];
                ensure!(usage[field].as_u64().is_some_and(|count| count > 0), "{usage}");
                Ok::<_, anyhow::Error>(why)
            })
            .await
        }
    };
    let why = earned("a drill is verified", "work_mut").await?;
    let components = why["components"].as_array().context("components")?;
    let compute = components.iter().find(|one| one["component"] == "compute").context("compute")?;
    ensure!(compute["amount"].as_str().is_some_and(|amount| amount != "0"), "{compute}");
    ensure!(why["usage"]["computed"]["pass"].as_u64().is_some_and(|pass| pass > 0), "{}", why["usage"]);
    ensure!(why["usage"]["computed"]["fail"] == 0 && why["account"]["extra"]["computing_beta_ppm"] == 0);
    another_wallet(&cluster, MINERS[0]).await?;
    cluster.finish().await
}
