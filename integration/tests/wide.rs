//! Promise: wide schemes work as narrow ones do. Under 29+11 eleven of forty disks are lost at once, every byte is read without
//! them and made again on what takes their place; and thin home PCs in plenty carry it.

use std::fs;

use anyhow::{Context as _, ensure};
use makai::node::{FirstCredentials, credentials_path};
use makai_config::{DiskConfig, Role};
use makai_erasure::Scheme;
use makai_integration::churn::{Options, play};
use makai_integration::cluster::Node;
use makai_integration::load::Model;
use makai_integration::s3::{Content, S3};
use makai_integration::wait;

const BUCKET: &str = "wide";
const SCHEME: &str = "29+11";
const DISKS: usize = 41;
const LOST: usize = 11;
const WITHIN: std::time::Duration = std::time::Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eleven_of_forty_disks_are_lost_at_once() -> anyhow::Result<()> {
    let scratch = tempfile::Builder::new().prefix("makai-wide-").tempdir()?;
    let mut node =
        Node::new(scratch.path(), "node", &[Role::Voter, Role::Storage, Role::Gateway], |config| {
            config.cluster.init = true;
            let folder = config.disk[0].path.parent().map(std::path::Path::to_path_buf).unwrap_or_default();
            let disk = |at: usize| DiskConfig {
                path: folder.join(format!("disk{at}")),
                reserve_bytes: 1 << 20,
                // One segment each: forty disks share one filesystem here.
                capacity_bytes_max: config.storage.segment_bytes,
                ..DiskConfig::default()
            };
            config.disk = (0..DISKS).map(disk).collect();
        })?;
    node.spawn()?;
    node.wait_healthy().await?;
    let first: FirstCredentials =
        serde_json::from_slice(&fs::read(credentials_path(&node.config.node.dir))?)?;
    let credentials = makai::cli::bench::s3::sigv4::Credentials {
        access_key: first.access_key_id,
        secret_key: first.secret_access_key,
        region: "us-east-1".into(),
    };
    let door = S3::new(node.config.s3.listen.context("a gateway")?.to_string(), credentials);
    wait::until("a bucket of a wide scheme", WITHIN, || door.create_bucket(BUCKET, Some(SCHEME))).await?;
    wait::until("its groups", WITHIN, || async {
        let map = node.status().await?.map;
        let has = map.groups.iter().any(|group| group.scheme.to_string() == SCHEME);
        ensure!(has, "{} groups, none of them wide", map.groups.len());
        anyhow::Ok(())
    })
    .await?;
    let mut model = Model::default();
    for (at, len) in [5_000, 70_000, 1_900_000, 6_000_000].into_iter().enumerate() {
        let (key, content) = (format!("object{at}"), Content::new(format!("wide/{at}"), len));
        door.put(BUCKET, &key, &content).await?;
        model.set(key, Some(content));
    }
    node.stop().await?;
    for disk in &node.config.disk[..LOST] {
        for entry in fs::read_dir(disk.path.join("segments"))? {
            fs::remove_file(entry?.path())?;
        }
    }
    node.spawn()?;
    node.wait_healthy().await?;
    model.check(std::slice::from_ref(&door), BUCKET).await.context("eleven disks are empty")?;
    wait::until("what was lost is made again", WITHIN, || async {
        let repair = node.status().await?.repair;
        ensure!(repair.looks > 1 && repair.pending == 0 && repair.rebuilt_shards > 0, "{repair:?}");
        anyhow::Ok(())
    })
    .await?;
    // Eleven others: now the ones made again are needed.
    node.stop().await?;
    for disk in &node.config.disk[LOST..2 * LOST] {
        for entry in fs::read_dir(disk.path.join("segments"))? {
            fs::remove_file(entry?.path())?;
        }
    }
    node.spawn()?;
    node.wait_healthy().await?;
    model.check(&[door], BUCKET).await.context("eleven others are empty")?;
    node.stop().await
}

#[test]
fn thin_home_pcs_carry_a_wide_scheme() -> anyhow::Result<()> {
    let scheme: Scheme = SCHEME.parse()?;
    let options =
        Options { scheme, round_ms: 3_600_000, slot_bytes: 1_000_000_000, ..Options::home(120, 30, 1) };
    let report = play(&options)?;
    println!("{}", serde_json::to_string(&report)?);
    ensure!(report.groups_lost == 0 && report.nodes_lost > 0, "{report:?}");
    Ok(())
}
