//! `makai daemon`: runs one node until it is told to stop.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use makai_config::NodeConfig;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::node::Node;

/// Run one node. SIGTERM and Ctrl-C stop it: requests end, then disks are synced.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The node's configuration; see the commented examples
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Log as JSON lines
    #[arg(long)]
    json: bool,
}

/// How long a thread that may block waits for work.
const BLOCKING_IDLE_MAX: Duration = Duration::from_secs(2);

/// Sets up the process, before it has a second thread.
pub fn prepare(args: &Args, runtime: &mut tokio::runtime::Builder) {
    // The allocator's heaps are many and mostly sparse: huge pages would double the memory of a node at rest. A kernel
    // without them refuses, and has what is wanted.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    // Each thread keeps memory of its own, and those that may block take turns: few loops would keep as many of them as once
    // had work at the same time.
    runtime.thread_keep_alive(BLOCKING_IDLE_MAX);
    // A configuration that does not hold is told by `run`.
    if let Ok(config) = NodeConfig::load(&args.config)
        && config.node.worker_threads > 0
    {
        runtime.worker_threads(config.node.worker_threads.into());
    }
}

pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = NodeConfig::load(&args.config)?;
    start_log(&config.node.log, args.json);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let node = tokio::select! {
        node = Node::start(config) => node?,
        _ = terminate.recv() => return Ok(ExitCode::SUCCESS),
        _ = interrupt.recv() => return Ok(ExitCode::SUCCESS),
    };
    let failed = tokio::select! {
        error = node.failed() => Some(error),
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
    };
    match failed {
        // What this process holds in memory is not to be trusted any more: it ends as a crash would.
        Some(error) => Err(error),
        None => {
            node.stop().await;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn start_log(filter: &str, json: bool) {
    // Agreement tells its every step at the level where a node tells what an operator wants to know; the S3 parser
    // tells each client's mistake as an error, which the door tells again, once and with its request id. What agreement's inner side
    // calls an error is that it has ended: at a stop that is as it should be, and at any other time the node says why. It warns
    // of every heartbeat that a voter does not answer, ten times a second while one is off: `health` tells that once.
    let quiet = "openraft=warn,openraft::core::heartbeat=error,openraft::raft::raft_inner=off,s3s=off";
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(format!("{quiet},{filter}")));
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(true);
    if json {
        log.json().init();
    } else {
        log.with_ansi(false).init();
    }
}
