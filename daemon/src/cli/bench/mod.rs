//! Measures: one command for each thing worth a number.
//!
//! Rules of every measurement here: no operation starts after the time is over and all that started are counted,
//! so that operations and processor time belong together; a row without a success is a failure.

pub mod codec;
pub mod fuse;
mod jobs;
pub mod latency;
pub mod raft;
pub mod s3;
pub mod scheduler;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Measure this machine, or any S3 endpoint.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Load an S3 endpoint, ours or a peer's: operations per second, latencies, processor time.
    S3(s3::Args),
    Codec(codec::Args),
    Raft(raft::Args),
    Fuse(fuse::Args),
    Scheduler(scheduler::Args),
    Jobs(jobs::Args),
}

pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.what {
        What::S3(args) => s3::run(args).await,
        What::Codec(args) => codec::run(args).await,
        What::Raft(args) => raft::run(args).await,
        What::Fuse(args) => fuse::run(args).await,
        What::Scheduler(args) => scheduler::run(args).await,
        What::Jobs(args) => jobs::run(args).await,
    }
}

/// A measurement reads the real clock: it is what is measured.
#[expect(clippy::disallowed_methods, reason = "a stopwatch on real time is this command's purpose")]
pub(crate) fn stopwatch() -> Instant {
    Instant::now()
}

/// A bar on a terminal, nothing elsewhere.
pub(crate) fn progress(title: &str, whole: Duration) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{prefix:28} {wide_bar} {msg:>16}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(u64::try_from(whole.as_millis()).unwrap_or(u64::MAX)).with_style(style);
    bar.set_prefix(title.to_owned());
    bar
}
