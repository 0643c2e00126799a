//! `makai backup`: the cluster's facts in a file or in another S3 store, and a cluster that goes on from them.
//!
//! A file is a snapshot of the facts: names, places and wrapped keys of everything stored, and no customer's byte. The cluster's
//! key, without which no object can be read, is kept beside it in `FILE.key`, so that the two can be kept apart.

mod place;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Subcommand;
use makai_config::NodeConfig;
use makai_raft::handle::anew;
use serde::Serialize;

use super::remote::Target;
use super::{human_bytes, print_json};
use crate::files::{self, FolderLock};
use crate::identity::NodeIdentity;
use crate::node::{self, advertised};
use crate::state::{self, ClusterState, KnownPeer};
use place::{EndpointArgs, Place};

/// Keep the cluster's facts in a file, and go on from one when voters are lost
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: BackupCommand,
}

#[derive(Debug, Subcommand)]
enum BackupCommand {
    /// Write the facts of the running cluster to FILE or to s3://BUCKET/KEY of another store, and the cluster's key to FILE.key
    /// where this machine has it. The key never goes to S3
    Create {
        #[arg(value_name = "FILE|s3://BUCKET/KEY")]
        place: Place,
        /// Where the cluster's key goes; FILE.key where the facts go to a file
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
        #[command(flatten)]
        endpoint: EndpointArgs,
        #[command(flatten)]
        target: Target,
    },
    /// Check a backup and say what it is of
    Show {
        #[arg(value_name = "FILE|s3://BUCKET/KEY")]
        place: Place,
        #[command(flatten)]
        endpoint: EndpointArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make this machine, whose node.dir has no facts yet, the only voter of the cluster that the backup is of
    Restore {
        #[arg(value_name = "FILE|s3://BUCKET/KEY")]
        place: Place,
        #[command(flatten)]
        endpoint: EndpointArgs,
        /// Configuration of this node
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// The cluster's key; FILE.key if it is there
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Most voters are lost: have this one, whose daemon is stopped, go on alone with the facts that it has
    Recover {
        /// Configuration of this node
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Confirms that the other voters' node.dir will never be started again
        #[arg(long)]
        others_are_lost: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// What a command came to.
#[derive(Debug, Serialize)]
struct Summary {
    place: String,
    bytes: u64,
    cluster_id: String,
    /// The last change in it.
    log_index: Option<u64>,
    /// When that was, in milliseconds of Unix time.
    stamp_ms: u64,
    /// Where the cluster's key is, if it was found.
    key: Option<PathBuf>,
}

pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.what {
        BackupCommand::Create { place, key, endpoint, target } => {
            create(&place, key, &endpoint, &target).await?;
        }
        BackupCommand::Show { place, endpoint, json } => {
            let held = Held::take(&place, &endpoint).await?;
            print_summary(&summary(&held.file, &place, default_key(&place).as_deref())?, json)?;
        }
        BackupCommand::Restore { place, endpoint, config, key, json } => {
            let config = NodeConfig::load(&config)?;
            let key = key.or_else(|| default_key(&place));
            let key =
                key.context("give the cluster's key with --key FILE: it does not lie beside an object")?;
            let held = Held::take(&place, &endpoint).await?;
            let file = &held.file;
            let key_file = key.clone();
            let key = state::read_key(&key)?.with_context(|| {
                format!("{key:?} is missing: without the cluster's key no object can be read; copy cluster.key from any voter or gateway")
            })?;
            let lock = lock_node(&config)?;
            restore(&config, file, Some(key))?;
            drop(lock);
            print_summary(&summary(file, &place, Some(&key_file))?, json)?;
            say_next(json);
        }
        BackupCommand::Recover { config, others_are_lost, json } => {
            if !others_are_lost {
                bail!(
                    "a voter that is started again beside this one with its old node.dir could take customers' writes that \
                     nobody else sees; make sure that none will be, then say --others-are-lost"
                );
            }
            let config = NodeConfig::load(&config)?;
            let file = recover(&config).await?;
            // The key stays where it was.
            let key = config.node.dir.join("cluster.key");
            print_summary(&summary(&file, &Place::File(file.clone()), Some(&key))?, json)?;
            say_next(json);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn say_next(json: bool) {
    if !json {
        println!(
            "start its daemon; it is the only voter now. Let others join as voters: the runbook is ops/runbooks/voters.md"
        );
    }
}

fn key_path(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".key");
    name.into()
}

/// Where the key is looked for and put unless it is said: beside a file.
fn default_key(place: &Place) -> Option<PathBuf> {
    match place {
        Place::File(file) => Some(key_path(file)),
        Place::Object { .. } => None,
    }
}

/// A backup as a file here; one that was fetched goes with it.
struct Held {
    file: PathBuf,
    is_fetched: bool,
}

impl Held {
    /// A name for a file that is here for a while.
    fn passing() -> Self {
        let name = format!("makai-backup-{}", hex::encode(rand::random::<[u8; 8]>()));
        Self { file: std::env::temp_dir().join(name), is_fetched: true }
    }

    async fn take(place: &Place, endpoint: &EndpointArgs) -> anyhow::Result<Self> {
        match place {
            Place::File(file) => Ok(Self { file: file.clone(), is_fetched: false }),
            Place::Object { bucket, key } => {
                let held = Self::passing();
                endpoint.endpoint()?.get(bucket, key, &held.file).await?;
                Ok(held)
            }
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.is_fetched {
            _ = std::fs::remove_file(&self.file);
        }
    }
}

async fn create(
    place: &Place,
    key: Option<PathBuf>,
    endpoint: &EndpointArgs,
    target: &Target,
) -> anyhow::Result<()> {
    let held = match place {
        Place::File(file) => {
            if file.exists() {
                bail!("{file:?} exists; give another name");
            }
            download(file, target).await?;
            Held { file: file.clone(), is_fetched: false }
        }
        Place::Object { bucket, key } => {
            let endpoint = endpoint.endpoint()?;
            let held = Held::passing();
            download(&held.file, target).await?;
            endpoint.put(bucket, key, &held.file).await.with_context(|| format!("put {place}"))?;
            held
        }
    };
    let key = key.or_else(|| default_key(place));
    if let Some(path) = &key {
        for dir in target.node_dirs() {
            if let Ok(Some(key)) = state::load_cluster_key(&dir) {
                files::replace(path, hex::encode(key).as_bytes())?;
                break;
            }
        }
    }
    print_summary(&summary(&held.file, place, key.as_deref())?, target.json)
}

/// Takes the facts from a voter; the file is whole or not there.
async fn download(file: &Path, target: &Target) -> anyhow::Result<()> {
    let mut part = file.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let taken = async {
        target.download("/api/v1/backup", &part).await?;
        anew::inspect(&part).context("the file did not arrive whole")?;
        std::fs::rename(&part, file).with_context(|| format!("rename {part:?}"))
    };
    let taken = taken.await;
    if taken.is_err() {
        _ = std::fs::remove_file(&part);
    }
    taken
}

fn summary(file: &Path, place: &Place, key: Option<&Path>) -> anyhow::Result<Summary> {
    let head = anew::inspect(file)?;
    Ok(Summary {
        place: place.to_string(),
        bytes: std::fs::metadata(file)?.len(),
        cluster_id: head.cluster_id,
        log_index: head.meta.last_log_id.map(|last| last.index),
        stamp_ms: head.stamp.0,
        key: key.filter(|key| key.exists()).map(Path::to_path_buf),
    })
}

fn print_summary(summary: &Summary, json: bool) -> anyhow::Result<()> {
    if json {
        return print_json(summary);
    }
    println!(
        "{}: {}, cluster {}, up to change {}",
        summary.place,
        human_bytes(summary.bytes),
        summary.cluster_id,
        summary.log_index.unwrap_or(0)
    );
    match &summary.key {
        Some(key) => println!("{}: opens all customers' data; keep it apart, and safe", key.display()),
        None => {
            println!("without the cluster's key (cluster.key of any voter or gateway) no object can be read")
        }
    }
    Ok(())
}

/// # Errors
/// A daemon runs on the node's folder.
fn lock_node(config: &NodeConfig) -> anyhow::Result<FolderLock> {
    let dir = &config.node.dir;
    std::fs::create_dir_all(dir).with_context(|| format!("make the node's folder {dir:?}"))?;
    FolderLock::take(dir).with_context(|| format!("a daemon runs on {dir:?}; stop it first"))
}

/// Puts a file's facts into this node's folder, with it as the only voter.
fn restore(config: &NodeConfig, file: &Path, key: Option<[u8; 32]>) -> anyhow::Result<()> {
    let dir = &config.node.dir;
    let head = anew::inspect(file)?;
    if let Some(known) = ClusterState::load(dir)?
        && known.cluster_id != head.cluster_id
    {
        bail!(
            "{dir:?} belongs to cluster {}, the file to {}; use an empty folder",
            known.cluster_id,
            head.cluster_id
        );
    }
    if !config.has_role(makai_config::Role::Voter) {
        bail!("node.roles has no voter: the restored cluster would have none");
    }
    let id = NodeIdentity::load_or_create(dir)?.id();
    let addresses = advertised(config, config.peers.listen);
    if addresses.is_empty() {
        bail!("a voter must be reachable: set peers.advertise to the host:port that others can dial");
    }
    let me = crate::members::describe(id, config, addresses);
    let meta = node::meta_config(config, &head.cluster_id, 0, id);
    let me = anew::restore(&meta, file, &me)?;
    if let Some(key) = key {
        state::save_cluster_key(dir, &key)?;
    }
    let known = KnownPeer { id, addresses: me.addresses.clone(), roles: me.roles.clone() };
    ClusterState::new(head.cluster_id, me.number, vec![known]).save(dir)?;
    Ok(())
}

/// Takes the facts out of a stopped voter and makes it begin anew with them; what was there is kept beside.
async fn recover(config: &NodeConfig) -> anyhow::Result<PathBuf> {
    let dir = &config.node.dir;
    let _lock = lock_node(config)?;
    let state = ClusterState::load(dir)?.with_context(|| format!("{dir:?} is of no cluster"))?;
    let id = NodeIdentity::load_or_create(dir)?.id();
    let meta = node::meta_config(config, &state.cluster_id, state.number, id);
    if !meta.dir.is_dir() {
        bail!("{:?} is missing: this node was no voter; restore a backup instead", meta.dir);
    }
    let free = |name: &str| (1u32..).map(|at| dir.join(format!("{name}-{at}"))).find(|path| !path.exists());
    let (file, aside) =
        (free("salvaged").context("no name left")?, free("meta-before").context("no name left")?);
    anew::salvage(&meta, &file).await?;
    std::fs::rename(&meta.dir, &aside).with_context(|| format!("move {:?} aside", meta.dir))?;
    if let Err(error) = restore(config, &file, None) {
        std::fs::rename(&aside, &meta.dir)
            .with_context(|| format!("move {aside:?} back to {:?}", meta.dir))?;
        return Err(error);
    }
    Ok(file)
}
