//! `makai mount`: a bucket as a filesystem, until it is unmounted, Ctrl-C or a signal to end.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, ensure};
use makai_gateway::fuse::client::{FileClient, Target};
use makai_gateway::fuse::kernel::{Attach, attach, detach, detach_dead};
use makai_gateway::fuse::mount::{Mount, Options};
use tokio::signal::unix::{SignalKind, signal};

use super::profile::Profile;

/// What the kernel has still to be told to forget.
const FORGETS_MAX: usize = 4096;
const MIB: usize = 1 << 20;

/// Attach a bucket to a directory as a filesystem
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Bucket, or a directory in it: BUCKET[/PREFIX]
    source: String,
    /// Directory to mount on
    directory: PathBuf,
    /// Profile of the cluster (`makai dev` writes DIR/profile.json)
    #[arg(long, env = "MAKAI_PROFILE", value_name = "FILE")]
    profile: Option<PathBuf>,
    /// Refuse every change
    #[arg(long)]
    read_only: bool,
    /// `close` returns when the bytes are durable, not up to a second earlier
    #[arg(long)]
    durable_close: bool,
    /// Show every file as this user's
    #[arg(long, value_name = "UID")]
    uid: Option<u32>,
    /// Show every file as this group's
    #[arg(long, value_name = "GID")]
    gid: Option<u32>,
    /// Permission bits that no file shows, octal
    #[arg(long, value_name = "BITS", default_value = "0", value_parser = octal)]
    umask: u32,
    /// Only the user who mounts may look
    #[arg(long)]
    private: bool,
    /// Devices and set-id programs in the bucket count
    #[arg(long)]
    trusted: bool,
    /// Memory for bytes that were read
    #[arg(long, value_name = "MIB", default_value_t = 64)]
    cache_mib: usize,
    /// Memory for bytes that were written and not sent
    #[arg(long, value_name = "MIB", default_value_t = 64)]
    unsent_mib: usize,
    /// A gateway that does not answer for so long is an I/O error
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
}

fn octal(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|bits| *bits <= 0o777)
        .ok_or_else(|| "octal digits up to 777, as in 022".into())
}

#[expect(clippy::disallowed_methods, reason = "a file's time of writing is this machine's wall clock")]
fn now() -> SystemTime {
    SystemTime::now()
}

pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let path = args.profile.clone().or_else(Profile::default_path);
    let profile = Profile::load(&path.context("which cluster? give --profile FILE, or set MAKAI_PROFILE")?)?;
    ensure!(!profile.grpc.endpoint.is_empty(), "the profile names no gRPC endpoint: a mount needs one");
    let (bucket, prefix) = args.source.split_once('/').unwrap_or((&args.source, ""));
    if detach_dead(&args.directory)? {
        eprintln!("{} was left by a mount that died: taken off", args.directory.display());
    }
    let target = Target {
        endpoint: profile.grpc.endpoint.clone(),
        access_key_id: profile.s3.access_key_id.clone(),
        secret_access_key: profile.s3.secret_access_key.clone(),
        bucket: bucket.into(),
        prefix: prefix.trim_matches('/').into(),
        client: format!("{} pid {}", args.directory.display(), std::process::id()),
        timeout: Duration::from_secs(args.timeout.max(1)),
    };
    let service = FileClient::connect(target).await?;
    let options = Options {
        durable_close: args.durable_close,
        unsent_bytes_max: args.unsent_mib.max(1) * MIB,
        cache_bytes_max: args.cache_mib * MIB,
        now,
    };
    let (forgets, forgotten) = tokio::sync::mpsc::channel(FORGETS_MAX);
    let mount = Mount::begin(service, options, forgets).await.context("read the bucket's root")?;
    serve(args, mount, forgotten).await
}

async fn serve(
    args: Args,
    mount: Arc<Mount>,
    forgotten: tokio::sync::mpsc::Receiver<makai_gateway::fuse::mount::Forget>,
) -> anyhow::Result<ExitCode> {
    let how = Attach {
        directory: args.directory.clone(),
        source: args.source.clone(),
        is_read_only: args.read_only,
        uid: args.uid,
        gid: args.gid,
        umask: args.umask,
        is_private: args.private,
        is_trusted: args.trusted,
    };
    let (mut interrupted, mut ended) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let attached = attach(mount.clone(), &how, forgotten, tokio::runtime::Handle::current())
        .with_context(|| format!("mount on {}", args.directory.display()))?;
    tokio::spawn(mount.clone().follow_changes());
    tokio::spawn(mount.clone().send_by_age());
    println!("{} is mounted on {}; Ctrl-C unmounts", args.source, args.directory.display());
    let over = tokio::task::spawn_blocking(move || attached.join());
    let end = tokio::select! {
        over = over => over?.map_err(anyhow::Error::from),
        _ = interrupted.recv() => detach(&args.directory).map_err(Into::into),
        _ = ended.recv() => detach(&args.directory).map_err(Into::into),
    };
    mount.end().await;
    end?;
    // Programs may have files open on a mount that was taken off: this process does not wait for them.
    std::process::exit(0)
}
