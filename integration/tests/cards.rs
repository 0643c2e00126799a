//! Promise: a machine's owner has its card back within two seconds, and what ran there ends well on another machine; what keeps a
//! task to its share of a card is told before and afterwards. On cards made of software.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use makai_config::Role;
use makai_integration::cluster::{Cluster, ClusterOptions, makai, program};
use makai_integration::wait;
use serde_json::{Value, json};

const VOTERS: usize = 1;
const MINERS: [usize; 2] = [1, 2];
const WITHIN: Duration = Duration::from_secs(60);
/// Three seconds of a card, in launches of a hundredth.
const JOB: &str = r#"
module = "spin.ptx"
gpu = { sm_millis = 500, memory_mib = 8 }
buffers = [{ name = "x", bytes = 16 }]
steps = [{ kernel = "spin_10000us", grid = 1, block = 32, arguments = [], repeat = 300 }]
"#;
const SPIN: &str =
    ".version 7.0\n.target sm_70\n.address_size 64\n.visible .entry spin_10000us()\n{\n\tret;\n}\n";

/// The libraries of a driver with one card made of software.
fn driver(folder: &Path, uuid: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let profile = own.parent().and_then(Path::parent).context("a test lies in target/PROFILE/deps")?;
    let built = profile.join("examples/libfake_driver.so");
    if !built.exists() {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "-p", "makai-gpu-runtime", "--example", "fake_driver"]);
        if profile.ends_with("release") {
            cargo.arg("--release");
        }
        ensure!(cargo.status()?.success(), "the fake driver builds");
    }
    std::fs::create_dir_all(folder)?;
    for name in ["libcuda.so.1", "libnvidia-ml.so.1"] {
        std::fs::copy(&built, folder.join(name))?;
    }
    let card = json!([{ "uuid": uuid, "model": "NVIDIA Test Card", "memory_mib": 64, "capability": [8, 9] }]);
    std::fs::write(folder.join("cards.json"), card.to_string())?;
    Ok(folder.to_owned())
}

fn answer(out: &Output) -> anyhow::Result<Value> {
    ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    Ok(serde_json::from_slice(&out.stdout)?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_takes_its_card_back_and_the_task_goes_on_elsewhere() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let drivers = [driver(&folder.path().join("a"), "GPU-a")?, driver(&folder.path().join("b"), "GPU-b")?];
    let cluster = Cluster::start(ClusterOptions {
        nodes: VOTERS + MINERS.len(),
        voters: VOTERS,
        change: Box::new(move |at, config| {
            if let Some(place) = MINERS.iter().position(|miner| *miner == at) {
                config.node.roles = [Role::Storage, Role::Compute].into_iter().collect();
                config.s3.listen = None;
                config.grpc.listen = None;
                config.compute.cuda_library = drivers[place].join("libcuda.so.1").display().to_string();
                config.compute.nvml_library = drivers[place].join("libnvidia-ml.so.1").display().to_string();
            }
        }),
    })
    .await?;
    let credentials = &cluster.credentials;
    let grpc = cluster.nodes[0].config.grpc.listen.context("a gateway has a gRPC door")?;
    let profile = cluster.dir().join("customer.json");
    let text = json!({
        "s3": { "access_key_id": credentials.access_key, "secret_access_key": credentials.secret_key },
        "grpc": { "endpoint": format!("http://{grpc}") },
    });
    std::fs::write(&profile, text.to_string())?;
    let profile = profile.to_str().context("a UTF-8 path")?;
    let file = folder.path().join("job.toml");
    std::fs::write(&file, JOB)?;
    std::fs::write(folder.path().join("spin.ptx"), SPIN)?;
    let file = file.to_str().context("a UTF-8 path")?;
    let submit = |more: &[&str]| {
        let words = ["job", "submit", file, "--profile", profile, "--json"];
        answer(&makai(&[&words[..], more].concat())?)
    };
    let offered = |nodes: u64| {
        let quote = submit(&["--dry-run"])?;
        ensure!(quote["nodes"] == nodes, "{quote}");
        anyhow::Ok(quote)
    };
    let quote = wait::until("both cards are offered", WITHIN, || async { offered(2) }).await?;
    ensure!(quote["tasks_now"] == 1 && quote["enforcement"] == "owned-host", "{quote}");
    let strict = submit(&["--dry-run", "--enforcement", "exclusive"])?;
    ensure!(strict["enforcement"] == "exclusive" && strict["tasks_at_once"] == 2, "{strict}");
    let id = submit(&[])?["id"].to_string();
    let show = || answer(&makai(&["job", "show", &id, "--profile", profile, "--json"])?);
    let running = || {
        let task = show()?["tasks_tried"][0].clone();
        ensure!(task["phase"] == "running", "{task}");
        task["node"].as_str().map(str::to_owned).context("a task that runs has a node")
    };
    let node = wait::until("the task runs", WITHIN, || async { running() }).await?;
    let mut owners = MINERS.iter().map(|at| &cluster.nodes[*at]);
    let at = owners
        .position(|owner| owner.id().is_ok_and(|id| id.to_string() == node))
        .context("a miner has it")?;
    let config = cluster.nodes[MINERS[at]].config_path.clone();
    let config = config.to_str().context("a UTF-8 path")?;
    let paused = answer(&makai(&["gpu", "pause", "--config", config, "--json"])?)?;
    ensure!(paused["ended"] == 1 && paused["took_ms"].as_u64().is_some_and(|took| took < 2000), "{paused}");
    let waited = makai(&["job", "wait", &id, "--profile", profile, "--json"])?;
    ensure!(waited.status.success(), "{waited:?}");
    let task = show()?["tasks_tried"][0].clone();
    let (first, last) = (&task["attempts"][0], &task["attempts"][1]);
    ensure!(first["end"].as_str().is_some_and(|end| end.contains("owner took it back")), "{task}");
    ensure!(last["node"] != first["node"] && last["enforcement"] == "owned-host", "{task}");
    ensure!(last["gpu_busy_ns"].as_u64().is_some_and(|busy| busy >= 2_990_000_000), "{task}");
    let learned = || {
        let quote = offered(1)?;
        ensure!(quote["runtime_p90_ms"].as_u64() > Some(0), "{quote}");
        anyhow::Ok(())
    };
    wait::until("one card is offered, and a task like it has ended", WITHIN, || async { learned() }).await?;
    answer(&makai(&["gpu", "resume", "--config", config, "--json"])?)?;
    wait::until("both are offered again", WITHIN, || async { offered(2) }).await?;
    cluster.finish().await
}

/// The checks for machines with a card, on a card made of software: all that is not a matter of speed passes there, and says that it
/// is no card; a machine without one is told what it lacks.
#[test]
fn the_checks_of_a_real_card_find_a_sound_one_sound() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let driver = driver(folder.path(), "GPU-a")?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../gpu-runtime/gpu-check");
    let run = |words: &[&Path]| {
        let mut check = Command::new(&script);
        check.args(words).env("MAKAI", program()?);
        check.env("FAKE_CARDS", std::fs::read_to_string(driver.join("cards.json"))?);
        anyhow::Ok(check.output()?)
    };
    let (cuda, nvml) = (driver.join("libcuda.so.1"), driver.join("libnvidia-ml.so.1"));
    let out =
        run(&[Path::new("--secs"), Path::new("2"), Path::new("--cuda"), &cuda, Path::new("--nvml"), &nvml])?;
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    ensure!(said.contains("NOT of a card"), "{said}");
    for part in ["driver", "results", "memory"] {
        let line = said.lines().find(|line| line.starts_with(part)).with_context(|| said.clone())?;
        ensure!(line.split_whitespace().nth(1) == Some("ok"), "{said}");
    }
    // How fast a busy machine's software is says nothing; that it was measured does.
    for (part, found) in
        [("speed", "by the worker"), ("shares", "70 % due"), ("launches", "ns a launch plainly")]
    {
        let line = said.lines().find(|line| line.starts_with(part)).with_context(|| said.clone())?;
        ensure!(line.contains(found), "{said}");
    }
    if !Path::new("/dev/nvidia0").exists() {
        let out = run(&[])?;
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        ensure!(out.status.code() == Some(2) && said.contains("missing: /dev/nvidia0"), "{said}");
        ensure!(said.contains("nothing was checked"), "{said}");
    }
    Ok(())
}
