//! Promise: a container job runs on a machine that holds no customer's key, reads from one bucket and publishes to
//! another; every task of an array has exactly one result, also when a machine dies in the middle.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use makai_config::Role;
use makai_integration::cluster::{Cluster, ClusterOptions, makai};
use makai_integration::s3::{Ask, Content};
use makai_integration::wait;
use serde_json::{Value, json};

/// Where Debian's busybox-static puts the one program that the image holds.
const BUSYBOX: [&str; 2] = ["/usr/bin/busybox", "/bin/busybox"];
const TASKS: u64 = 50;
const RUNNING_WITHIN: Duration = Duration::from_secs(60);
/// Three voting gateways, and two machines that keep shards and run jobs.
const VOTERS: usize = 3;
const MINERS: [usize; 2] = [3, 4];

/// A root filesystem of one program.
fn image() -> anyhow::Result<Option<Vec<u8>>> {
    let Some(busybox) = BUSYBOX.into_iter().find(|path| Path::new(path).exists()) else {
        return Ok(None);
    };
    let mut tar = tar::Builder::new(Vec::new());
    let program = fs::read(busybox)?;
    let mut header = tar::Header::new_gnu();
    header.set_size(program.len() as u64);
    header.set_mode(0o755);
    tar.append_data(&mut header, "bin/busybox", program.as_slice())?;
    Ok(Some(tar.into_inner()?))
}

struct Customer {
    profile: PathBuf,
}

impl Customer {
    fn of(cluster: &Cluster) -> anyhow::Result<Self> {
        let endpoint = |at: usize| -> anyhow::Result<String> {
            let listen = cluster.nodes[at].config.grpc.listen.context("a gateway has a gRPC door")?;
            Ok(format!("http://{listen}"))
        };
        let credentials = &cluster.credentials;
        let profile = json!({
            "s3": { "access_key_id": credentials.access_key, "secret_access_key": credentials.secret_key },
            "grpc": { "endpoint": endpoint(0)? },
            "nodes": [{ "grpc": endpoint(1)? }, { "grpc": endpoint(2)? }],
        });
        let path = cluster.dir().join("customer.json");
        fs::write(&path, profile.to_string())?;
        Ok(Self { profile: path })
    }

    fn job(&self, words: &[&str]) -> anyhow::Result<Output> {
        let profile = self.profile.to_str().context("a UTF-8 path")?;
        let (options, command) =
            words.split_at(words.iter().position(|word| *word == "--").unwrap_or(words.len()));
        let all: Vec<&str> =
            ["job"].iter().chain(options).chain(&["--profile", profile]).chain(command).copied().collect();
        makai(&all)
    }

    fn json(&self, words: &[&str]) -> anyhow::Result<Value> {
        let (options, command) =
            words.split_at(words.iter().position(|word| *word == "--").unwrap_or(words.len()));
        let all: Vec<&str> = options.iter().chain(&["--json"]).chain(command).copied().collect();
        let out = self.job(&all)?;
        ensure!(out.status.success(), "{words:?}: {}", String::from_utf8_lossy(&out.stderr));
        Ok(serde_json::from_slice(&out.stdout)?)
    }
}

fn said(out: &Output) -> String {
    format!(
        "{}\nstdout: {}\nstderr: {}",
        out.status,
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    )
}

async fn start() -> anyhow::Result<Cluster> {
    Cluster::start(ClusterOptions {
        nodes: VOTERS + MINERS.len(),
        voters: VOTERS,
        change: Box::new(|at, config| {
            if MINERS.contains(&at) {
                config.node.roles = [Role::Storage, Role::Compute].into_iter().collect();
                config.s3.listen = None;
                config.grpc.listen = None;
                config.compute.cpu_millis_max = 2000;
            }
        }),
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_task_has_one_result_though_a_machine_dies() -> anyhow::Result<()> {
    let Some(image) = image()? else {
        println!("SKIPPED: no busybox at {BUSYBOX:?}; install Debian's busybox-static");
        return Ok(());
    };
    let mut cluster = start().await?;
    let customer = Customer::of(&cluster)?;
    let s3 = cluster.s3(0).clone();
    for bucket in ["images", "inputs", "results"] {
        s3.create_bucket(bucket, None).await?;
    }
    s3.send(Ask::new(http::Method::PUT, "/images/busybox.tar").body(image)).await?;
    let data = Content::new("data", 300_000);
    s3.put("inputs", "data/one", &data).await?;
    wait::until("machines that run jobs", RUNNING_WITHIN, || async {
        let found = customer.json(&["submit", "--dry-run", "--image", "s3://images/busybox.tar"]);
        match found {
            Ok(found) if found["nodes"] == MINERS.len() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await?;

    one_job(&cluster, &customer, &data).await?;
    an_array(&mut cluster, &customer).await?;
    cluster.finish().await
}

/// Input from one bucket, output to another, what it printed, and its exit code.
async fn one_job(cluster: &Cluster, customer: &Customer, data: &Content) -> anyhow::Result<()> {
    let s3 = cluster.s3(0);
    let script = "echo hello; echo oops >&2; /bin/busybox cp /in/d/one /out/copy";
    let shell = ["--image", "s3://images/busybox.tar", "--cpu", "0.5", "--memory", "64M"];
    let submit = |more: &[&'static str], script: &'static str| {
        let words = ["submit", "--wait"].iter().chain(&shell).chain(more);
        words.chain(&["--", "/bin/busybox", "sh", "-c", script]).copied().collect::<Vec<&str>>()
    };
    let copy = submit(&["--input", "s3://inputs/data/=d", "--output", "s3://results/copied/"], script);
    let out = customer.job(&copy)?;
    ensure!(out.status.success() && out.stdout == b"hello\n", "{}", said(&out));
    ensure!(String::from_utf8_lossy(&out.stderr).contains("oops"), "{}", said(&out));
    s3.check("results", "copied/copy", data).await?;

    let fails = customer.job(&submit(&["--output", "s3://results/failed/"], "echo x > /out/x; exit 7"))?;
    ensure!(fails.status.code() == Some(7), "{}", said(&fails));
    let published = s3.list("results", "failed/").await?;
    ensure!(published.is_empty(), "a task that failed publishes nothing: {published:?}");

    let missing = customer.job(&submit(&["--input", "s3://inputs/nothing=n"], "true"))?;
    ensure!(!missing.status.success(), "{}", said(&missing));
    let jobs = customer.json(&["ls"])?;
    let newest = &jobs[0];
    let reason = newest["reason"].as_str().unwrap_or_default();
    ensure!(newest["phase"] == "failed" && reason.contains("s3://inputs/nothing"), "{newest}");
    // The log stays when the machine is done with the job.
    let first = jobs[2]["id"].to_string();
    let logs = customer.job(&["logs", &first])?;
    ensure!(logs.stdout == b"hello\n", "{}", said(&logs));
    Ok(())
}

/// An array, one of whose machines dies by SIGKILL while tasks run on it.
async fn an_array(cluster: &mut Cluster, customer: &Customer) -> anyhow::Result<()> {
    let script = "/bin/busybox sleep 0.5; echo $MAKAI_TASK_INDEX > /out/n; echo $MAKAI_ATTEMPT >> /out/n";
    let tasks = TASKS.to_string();
    let submitted = customer.json(&[
        "submit",
        "--image",
        "s3://images/busybox.tar",
        "--cpu",
        "0.4",
        "--memory",
        "32M",
        "--array",
        &tasks,
        "--output",
        "s3://results/array/{index}/",
        "--",
        "/bin/busybox",
        "sh",
        "-c",
        script,
    ])?;
    let id = submitted["id"].to_string();
    wait::until("some of the array done", RUNNING_WITHIN, || async {
        let job = customer.json(&["show", &id]).map_err(|error| error.to_string())?;
        if job["counts"]["succeeded"].as_u64() >= Some(5) { Ok(()) } else { Err(job.to_string()) }
    })
    .await?;
    cluster.kill(&MINERS[..1]);
    let waited = customer.json(&["wait", &id])?;
    ensure!(waited["counts"]["succeeded"] == TASKS, "{waited}");

    let shown = customer.json(&["show", &id])?;
    let tried = shown["tasks_tried"].as_array().context("tasks")?;
    let lost = tried.iter().filter(|task| task["attempt"] != 1).count();
    println!("{lost} of {TASKS} tasks were tried again on the other machine");
    ensure!(lost > 0, "the dead machine had none: kill it earlier");
    let mut seen = BTreeSet::new();
    for task in tried {
        let index = task["index"].as_u64().context("an index")?;
        ensure!(seen.insert(index) && task["phase"] == "succeeded", "{task}");
        let answer = cluster.s3(0).get("results", &format!("array/{index}/n")).await?;
        ensure!(answer.text() == format!("{index}\n{}\n", task["attempt"]), "{task}: {:?}", answer.text());
    }
    ensure!(seen.len() as u64 == TASKS);
    let published = cluster.s3(0).list("results", "array/").await?;
    ensure!(published.len() as u64 == TASKS, "{published:?}");
    cluster.restart(&MINERS[..1]).await
}
