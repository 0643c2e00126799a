//! Promise: idle machines that drill earn for what they computed and can be asked for; a job that wants a quorum is run by
//! nodes of different owners and published once they agree; a node's earnings go to another wallet when both keys say so and
//! the cool-down is over; training that a node committed to is paid once voters have trained parts of it again; whoever has
//! computing power takes part in the lottery.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use makai_config::Role;
use makai_integration::cluster::{Cluster, ClusterOptions, makai};
use makai_integration::wait;
use makai_ops::claims::statement::ClaimKey;
use makai_ops::computing::training::Checkpoint;
use makai_raft::facts::accounts::Hash;
use serde_json::{Value, json};

/// What is awaited comes after the third and fourth epoch. A machine that is too busy to compute a task within one computes
/// it in another.
const EPOCH_SECS: u64 = 8;
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

/// What is trained here: weights that grow by a tenth in each segment.
const SPEC: &str = "format = 1\ncheckpoints = 3\nsamples_per_segment = 10000000\ninitial_deviations = [1.0]\n\
                    step_max = [0.9]\naccuracy_gain_min = 0.1\ndistance_ratio_max = 0.9\nsignificance = 1e-9\n";
const WEIGHTS: usize = 64;
const CHECKPOINTS: usize = 3;

fn digits(hash: &Hash) -> String {
    hash.to_string().trim_start_matches("0x").to_owned()
}

/// Drawn from a normal distribution by a seed.
fn beginning(seed: &Hash) -> Checkpoint {
    let mut bytes = vec![0; WEIGHTS * 16];
    blake3::Hasher::new_keyed(&seed.0).finalize_xof().fill(&mut bytes);
    let uniform = |bytes: &[u8]| {
        let number = bytes.iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
        ((number >> 11) as f64 / (1u64 << 53) as f64).max(1e-12)
    };
    let normal = |bytes: &[u8]| {
        let (a, b) = (uniform(&bytes[..8]), uniform(&bytes[8..]));
        ((-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()) as f32
    };
    Checkpoint { layers: vec![bytes.chunks_exact(16).map(normal).collect()] }
}

/// A trainer that is a script: it knows by heart what it is going to be asked for.
fn write_trainer(dir: &Path) -> anyhow::Result<String> {
    use std::os::unix::fs::PermissionsExt as _;
    let trainer = dir.join("trainer");
    let script = format!(
        "#!/bin/sh\nk='{}'\ncase $1 in\ninit) cp \"$k/$2\" \"$3\" ;;\nsegment) cp \"$k/after-$(($3+1))\" \"$4\" ;;\n\
         accuracy) for at in 0 1 2; do cmp -s \"$2\" \"$k/is-$at\" && echo 0.$((at+5)); done; true ;;\nesac\n",
        dir.display()
    );
    std::fs::write(&trainer, script)?;
    std::fs::set_permissions(&trainer, std::fs::Permissions::from_mode(0o755))?;
    Ok(trainer.to_str().context("a UTF-8 path")?.to_owned())
}

/// A miner announces, commits as it goes, and is paid once two of three voters have verified; a chain that a voter's own
/// training does not come to is refused.
async fn a_training(cluster: &Cluster, at: usize) -> anyhow::Result<()> {
    let node = cluster.nodes[at].id()?.to_string();
    let dir = cluster.dir().join("training");
    std::fs::create_dir_all(&dir)?;
    let spec = dir.join("spec.toml");
    std::fs::write(&spec, SPEC)?;
    let (folder, spec) = (dir.to_str().context("a UTF-8 path")?, spec.to_str().context("a UTF-8 path")?);
    let trainer = write_trainer(&dir)?;
    let row = || -> anyhow::Result<Value> {
        let rows = run_json(cluster, 0, &["training", "ls"])?;
        rows.as_array().and_then(|rows| rows.first().cloned()).context("no training is known")
    };
    let hash = |of: &Value| -> anyhow::Result<Hash> { Ok(of.as_str().context(of.to_string())?.parse()?) };
    ensure!(
        run_json(cluster, 0, &["training", "announce", &node, spec])
            .is_err_and(|why| why.to_string().contains("a node speaks for itself alone"))
    );
    wait::until("the training is announced", WITHIN, || async {
        run_json(cluster, at, &["training", "announce", &node, spec])
    })
    .await?;
    let seed = wait::until("its seed is known", WITHIN, || async { hash(&row()?["seed"]) }).await?;
    let first = beginning(&seed);
    let chain: Vec<Checkpoint> = (0..CHECKPOINTS)
        .map(|at| Checkpoint {
            layers: vec![first.layers[0].iter().map(|weight| weight + 0.1 * at as f32).collect()],
        })
        .collect();
    std::fs::write(dir.join(digits(&seed)), first.to_bytes())?;
    for (number, checkpoint) in chain.iter().enumerate() {
        let file = dir.join(format!("{number:04}.ckpt"));
        std::fs::write(&file, checkpoint.to_bytes())?;
        for what in ["after", "is"] {
            std::fs::write(dir.join(format!("{what}-{number}")), checkpoint.to_bytes())?;
        }
        let file = file.to_str().context("a UTF-8 path")?;
        run_json(cluster, at, &["training", "commit", &node, spec, &number.to_string(), file])?;
    }
    let drawn_by =
        wait::until("its segments are drawn", WITHIN, || async { hash(&row()?["drawn_by"]) }).await?;
    for number in 0..20u32 {
        let random = Hash(*blake3::keyed_hash(&drawn_by.0, &number.to_be_bytes()).as_bytes());
        std::fs::write(dir.join(digits(&random)), beginning(&random).to_bytes())?;
    }
    let verify = ["training", "verify", &node, spec, "--checkpoints", folder, "--trainer", &trainer];
    // A stranger's program is not run unasked.
    ensure!(run_json(cluster, 0, &verify).is_err_and(|why| why.to_string().contains("--unconfined")));
    let verify = [&verify[..], &["--unconfined"]].concat();
    std::fs::write(dir.join("after-2"), first.to_bytes())?;
    // Exit 1 and the condition that fails, and nothing is reported.
    let config = cluster.nodes[0].config_path.to_str().context("a UTF-8 path")?;
    let out = makai(&[&verify[..], &["--config", config]].concat())?;
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    let error = String::from_utf8_lossy(&out.stderr).into_owned();
    ensure!(out.status.code() == Some(1) && said.contains("trained again ends elsewhere"), "{said}{error}");
    std::fs::write(dir.join("after-2"), chain[2].to_bytes())?;
    for voter in [0, 1] {
        ensure!(row()?["training"]["outcome"].is_null(), "one voter is not more than half");
        run_json(cluster, voter, &[&verify[..], &["--report"]].concat())?;
    }
    ensure!(row()?["training"]["outcome"] == true, "{}", row()?);
    wait::until("training counts", WITHIN, || async {
        let why = run_json(cluster, 0, &["why", &node])?;
        ensure!(why["account"]["extra"]["train_nut"].as_u64().is_some_and(|power| power > 0), "{why}");
        Ok::<_, anyhow::Error>(())
    })
    .await
}

/// A node with computing power has drawn a lot, and has won or is told that it has not.
async fn a_lot(cluster: &Cluster, at: usize) -> anyhow::Result<()> {
    let node = cluster.nodes[at].id()?.to_string();
    wait::until("a lot is drawn", WITHIN, || async {
        let why = run_json(cluster, 0, &["why", &node])?;
        let components = why["components"].as_array().context("components")?;
        let lottery = components.iter().find(|one| one["component"] == "lottery").context("the lottery")?;
        let has_won = lottery["amount"] != "0" && !why["usage"]["extra"]["lot"].is_null();
        let has_lost = lottery["reasons"].as_array().is_some_and(|all| all.contains(&"not-drawn".into()));
        ensure!(has_won != has_lost, "{lottery}");
        Ok::<_, anyhow::Error>(())
    })
    .await
}

/// What a miner computed while it was idle was asked for, was right, and is paid.
async fn a_drill(cluster: &Cluster, at: usize) -> anyhow::Result<()> {
    let node = cluster.nodes[at].id()?.to_string();
    let why = wait::until("a drill is verified", WITHIN, || async {
        let why = run_json(cluster, 0, &["why", &node])?;
        ensure!(why["usage"]["work_mut"].as_u64().is_some_and(|count| count > 0), "{}", why["usage"]);
        Ok::<_, anyhow::Error>(why)
    })
    .await?;
    let components = why["components"].as_array().context("components")?;
    let compute = components.iter().find(|one| one["component"] == "compute").context("compute")?;
    ensure!(compute["amount"].as_str().is_some_and(|amount| amount != "0"), "{compute}");
    ensure!(why["usage"]["computed"]["pass"].as_u64().is_some_and(|pass| pass > 0), "{}", why["usage"]);
    ensure!(why["usage"]["computed"]["fail"] == 0 && why["account"]["extra"]["computing_beta_ppm"] == 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_computed_is_checked_and_earns() -> anyhow::Result<()> {
    let cluster = start().await?;
    a_quorum_of_two(&cluster).await?;
    // Each waits for epochs to pass: the same ones.
    tokio::try_join!(
        a_drill(&cluster, MINERS[0]),
        another_wallet(&cluster, MINERS[0]),
        a_training(&cluster, MINERS[1]),
        a_lot(&cluster, MINERS[1]),
    )?;
    cluster.finish().await
}
