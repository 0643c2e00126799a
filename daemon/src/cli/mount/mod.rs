//! `makai mount`: a bucket as a filesystem, until it is unmounted, Ctrl-C or a signal to end.

mod background;
pub mod options;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail, ensure};
use makai_gateway::fuse::client::{FileClient, Target};
use makai_gateway::fuse::disk_cache::DiskCache;
use makai_gateway::fuse::kernel::{Attach, SUBTYPE, attach, detach, detach_dead};
use makai_gateway::fuse::mount::{Mount, Options};
use makai_gateway::fuse::service::FileService as _;
use tokio::signal::unix::{SignalKind, signal};

use super::profile::Profile;

/// Where systems keep whom they trust, if `SSL_CERT_FILE` names nothing else.
const AUTHORITIES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];
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
    /// Who vouches for gateways at https://, PEM; without it, whom this system trusts
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Mount options as in /etc/fstab: ro, durable-close, uid=..., profile=..., and the others below
    #[arg(short, long = "options", value_name = "OPTIONS", value_delimiter = ',')]
    options: Vec<String>,
    /// Go on in the background once mounted
    #[arg(long)]
    daemon: bool,
    /// Where a mount in the background says what goes wrong
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
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
    /// Directory on this machine's disk for bytes that were read, shared by its mounts; sealed under the customer's key
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// What that directory may hold
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    cache_size: u64,
    /// Memory for bytes that were written and not sent
    #[arg(long, value_name = "MIB", default_value_t = 64)]
    unsent_mib: usize,
    /// Keep `flock` locks within this machine; otherwise all mounts see them, as locks on the whole file
    #[arg(long)]
    local_flock: bool,
    /// Each name that is made, renamed or removed is durable when the call returns. Otherwise names in directories that nobody
    /// else looks at are decided here, and the pool is told within milliseconds, many of them at once
    #[arg(long)]
    dirsync: bool,
    /// Gateways that do not answer for so long are an I/O error
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
    /// Mount although something of ours is mounted there already: it is hidden until this is unmounted
    #[arg(long)]
    over: bool,
    #[arg(long, hide = true)]
    detached: bool,
    #[arg(long, hide = true)]
    fake: bool,
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

pub async fn run(mut args: Args) -> anyhow::Result<ExitCode> {
    options::take(&mut args)?;
    if args.fake {
        return Ok(ExitCode::SUCCESS);
    }
    if args.daemon && !args.detached {
        return background::start(&args);
    }
    if args.detached {
        background::leave_terminal();
    }
    let log = tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_writer(std::io::stderr);
    // A second subscriber is refused, and needed by nobody.
    let _ = log.with_ansi(false).try_init();
    let path = args.profile.clone().or_else(Profile::default_path);
    let profile = Profile::load(&path.context("which cluster? give --profile FILE, or set MAKAI_PROFILE")?)?;
    let (bucket, prefix) = args.source.split_once('/').unwrap_or((&args.source, ""));
    if detach_dead(&args.directory)? {
        eprintln!("{} was left by a mount that died: taken off", args.directory.display());
    }
    ensure!(args.directory.is_dir(), "{} is no directory: make it first", args.directory.display());
    if let Some(source) = mounted_on(&args.directory).filter(|_| !args.over) {
        bail!(
            "{} has {source} mounted on it already: `umount {}` takes it off, and --over mounts on top of it",
            args.directory.display(),
            args.directory.display()
        );
    }
    let endpoints = endpoints(&profile);
    ensure!(!endpoints.is_empty(), "the profile names no gRPC endpoint: a mount needs one");
    let is_secure = endpoints.iter().any(|endpoint| endpoint.starts_with("https://"));
    let target = Target {
        authorities: if is_secure { authorities(args.ca.as_deref())? } else { Vec::new() },
        endpoints,
        access_key_id: profile.s3.access_key_id.clone(),
        secret_access_key: profile.s3.secret_access_key.clone(),
        bucket: bucket.into(),
        prefix: prefix.trim_matches('/').into(),
        client: format!("{} pid {}", args.directory.display(), std::process::id()),
        timeout: Duration::from_secs(args.timeout.max(1)),
        register: register(),
    };
    let secret = target.secret_access_key.clone();
    let service = FileClient::connect(target).await?;
    let disk_cache = match &args.cache_dir {
        None => None,
        Some(folder) => {
            let root = service.root().await.context("read the bucket's root")?;
            // A bucket or cluster made anew may give the same numbers again, but not at the same time.
            let made_at = root.btime.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
            let scope = format!("{bucket}\n{}\n{made_at}", root.ino.0);
            let bytes_max = args.cache_size.saturating_mul(MIB as u64);
            let opened = DiskCache::open(folder, secret.as_bytes(), &scope, bytes_max, now);
            Some(Arc::new(opened.with_context(|| format!("open the cache {}", folder.display()))?))
        }
    };
    let options = Options {
        durable_close: args.durable_close,
        unsent_bytes_max: args.unsent_mib.max(1) * MIB,
        cache_bytes_max: args.cache_mib * MIB,
        disk_cache,
        decides_alone: !args.dirsync && !args.read_only,
        now,
    };
    let (forgets, forgotten) = tokio::sync::mpsc::channel(FORGETS_MAX);
    let mount = Mount::begin(service, options, forgets).await.context("read the bucket's root")?;
    serve(args, mount, forgotten).await
}

/// The source of the topmost mount of ours on a directory.
fn mounted_on(directory: &Path) -> Option<String> {
    let directory = directory.canonicalize().ok()?;
    ours_on(&std::fs::read_to_string("/proc/self/mountinfo").ok()?, &directory)
}

/// The same by what `/proc/self/mountinfo` says (proc_pid_mountinfo(5)): later lines lie on top. What root mounts has the type `fuse`
/// alone; so do others that mount without a helper, over which nobody mounts by mistake either.
fn ours_on(mounts: &str, directory: &Path) -> Option<String> {
    let of_line = |line: &str| {
        let (place, what) = line.split_once(" - ")?;
        let mut what = what.split(' ');
        let kind = what.next()?;
        let is_ours = kind == "fuse" || kind == format!("fuse.{SUBTYPE}");
        let point = unescaped(place.split(' ').nth(4)?);
        (is_ours && Path::new(OsStr::from_bytes(&point)) == directory)
            .then(|| String::from_utf8_lossy(&unescaped(what.next().unwrap_or_default())).into_owned())
    };
    mounts.lines().filter_map(of_line).next_back()
}

/// Blanks, tabs, line ends and backslashes stand there as a backslash and three octal digits.
fn unescaped(text: &str) -> Vec<u8> {
    let (mut plain, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((&first, behind)) = rest.split_first() {
        let code = behind.get(..3).filter(|_| first == b'\\').and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 8).ok()) {
            Some(byte) => {
                plain.push(byte);
                rest = &behind[3..];
            }
            None => {
                plain.push(first);
                rest = behind;
            }
        }
    }
    plain
}

/// The gateways of a cluster, the one that the profile prefers first.
fn endpoints(profile: &Profile) -> Vec<String> {
    let others = profile.nodes.iter().map(|node| &node.grpc);
    let mut endpoints: Vec<String> = Vec::new();
    for endpoint in std::iter::once(&profile.grpc.endpoint).chain(others) {
        if !endpoint.is_empty() && !endpoints.contains(endpoint) {
            endpoints.push(endpoint.clone());
        }
    }
    endpoints
}

/// Where this user's mounts write down their sessions: gone after a start of the machine, as they are.
fn register() -> Option<PathBuf> {
    let folder = match rustix::process::geteuid().is_root() {
        true => PathBuf::from("/run"),
        false => std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from)?,
    };
    Some(folder.join("makai/mounts"))
}

fn authorities(given: Option<&Path>) -> anyhow::Result<Vec<u8>> {
    let named = given.map(Path::to_owned).or_else(|| std::env::var_os("SSL_CERT_FILE").map(PathBuf::from));
    if let Some(path) = named {
        return std::fs::read(&path).with_context(|| format!("read the authorities in {path:?}"));
    }
    match AUTHORITIES.iter().find_map(|path| std::fs::read(path).ok()) {
        Some(authorities) => Ok(authorities),
        None => bail!("this system names nobody who vouches for certificates: give --ca FILE"),
    }
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
        is_flock_local: args.local_flock,
    };
    let (mut interrupted, mut ended) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let attached = attach(mount.clone(), &how, forgotten, tokio::runtime::Handle::current())
        .with_context(|| format!("mount on {}", args.directory.display()))?;
    tokio::spawn(mount.clone().follow_changes());
    tokio::spawn(mount.clone().send_by_age());
    background::tell_service_manager();
    let how_to_end = if args.detached { "`umount` ends it" } else { "Ctrl-C unmounts" };
    println!("{} is mounted on {}; {how_to_end}", args.source, args.directory.display());
    let over = tokio::task::spawn_blocking(move || attached.join());
    let end = tokio::select! {
        over = over => over?.map_err(anyhow::Error::from),
        _ = interrupted.recv() => detach(&args.directory).map_err(Into::into),
        _ = ended.recv() => detach(&args.directory).map_err(Into::into),
    };
    let sent = mount.end().await.context("bytes that were written are not stored, and are lost");
    // Programs may have files open on a mount that was taken off: this process does not wait for them.
    let failed = end.err().or(sent.err());
    if let Some(error) = &failed {
        eprintln!("makai: {error:#}");
    }
    std::process::exit(failed.is_some().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_of_ours_is_seen_and_others_are_not() {
        let mounts = "22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n\
                      90 22 0:50 / /mnt/a\\040b rw,nosuid shared:7 - fuse.makai photos/2024 rw,user_id=0\n\
                      91 22 0:51 / /mnt/other rw - fuse.sshfs host:/ rw\n\
                      92 22 0:52 / /mnt/a\\040b rw,nosuid - fuse.makai films rw\n\
                      93 22 0:53 / /mnt/root rw,nosuid - fuse demo rw,user_id=0\n";
        assert_eq!(ours_on(mounts, Path::new("/mnt/a b")).as_deref(), Some("films"), "the topmost");
        assert_eq!(
            ours_on(mounts, Path::new("/mnt/root")).as_deref(),
            Some("demo"),
            "root mounts without a helper"
        );
        for none in ["/mnt/other", "/mnt", "/mnt/a\\040b", "/"] {
            assert_eq!(ours_on(mounts, Path::new(none)), None, "{none}");
        }
        assert_eq!(unescaped("a\\134b\\09"), b"a\\b\\09");
    }
}
