//! Promise: customers' own clients work as they are: boto3, the AWS CLI, rclone, s3cmd, restic, s3fs,
//! aws-sdk-rust, and others.
//!
//! `MAKAI_TEST_CLIENTS=skip` leaves this out; `./test` installs what it needs.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use http::Method;
use makai::console::{KeyAnswer, TenantRequest};
use makai_integration::cluster::{Cluster, ClusterOptions};
use tokio::process::Command;

/// For all clients together; each call of one has its own deadline.
const ENDS_WITHIN: Duration = Duration::from_secs(900);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("integration lies in the workspace").to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_work_with_their_stock_settings() -> anyhow::Result<()> {
    if std::env::var("MAKAI_TEST_CLIENTS").is_ok_and(|wish| wish == "skip") {
        println!("skipped: MAKAI_TEST_CLIENTS=skip");
        return Ok(());
    }
    let tools = root().join("target/clients-venv/bin");
    let python = tools.join("python");
    ensure!(
        python.exists(),
        "{python:?} is missing: run ./test, which installs it, or set MAKAI_TEST_CLIENTS=skip"
    );

    let options = ClusterOptions {
        change: Box::new(|_, config| config.storage.lifecycle_interval_secs = 1),
        ..ClusterOptions::default()
    };
    let cluster = Cluster::start(options).await?;
    let request = TenantRequest { name: "other".into(), quota_bytes: None };
    let other: Option<KeyAnswer> =
        cluster.nodes[0].console(Method::POST, "/api/v1/tenants", Some(&request)).await?;
    let other = other.context("no key")?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(tools).chain(std::env::split_paths(&path)))?;
    let walk = Command::new(python)
        .arg(root().join("integration/conformance/clients.py"))
        .args(["--endpoint", &format!("http://{}", cluster.s3(2).host), "--require-clients"])
        .args([
            "--access-key",
            &cluster.credentials.access_key,
            "--secret-key",
            &cluster.credentials.secret_key,
        ])
        .args(["--other-access-key", &other.access_key_id, "--other-secret-key", &other.secret_access_key])
        .env("PATH", path)
        .env("WALK_AWS_SDK_RUST", root().join("target/aws-sdk-rust/debug/walk-aws-sdk-rust"))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let out = tokio::time::timeout(ENDS_WITHIN, walk).await.context("clients.py does not end")??;
    println!("{}", String::from_utf8_lossy(&out.stdout));
    ensure!(out.status.success(), "clients.py: {}\n{}", out.status, String::from_utf8_lossy(&out.stderr));
    cluster.finish().await
}
