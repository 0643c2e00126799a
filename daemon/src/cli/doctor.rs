//! `makai doctor`: what of this machine would make a node slow, unsafe or unable to start, and how to mend it.
//!
//! Every check ends in a line: ok, warn (works, but worse than it could) or fail (does not work). Nothing is
//! changed; a probe file is written into each directory that is there, and removed.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use makai_config::{DiskConfig, NodeConfig, Role};
use rustix::process::{Resource, getrlimit};
use serde::Serialize;

use crate::files::FolderLock;

/// Writes of the fsync probe: enough for a median, few enough for a slow disk.
const FSYNC_PROBES: usize = 32;
const FSYNC_PROBE_BYTES: usize = 4096;
/// A group commit waits for one fsync: above this, small uploads feel it.
const FSYNC_SLOW: Duration = Duration::from_millis(20);
/// No disk keeps a promise so quickly, a power-safe cache included.
const FSYNC_TOO_QUICK: Duration = Duration::from_micros(5);
/// QUIC over a gigabit and 20 ms needs this much in a socket; Linux gives 208 KiB unless told.
const UDP_BUFFER_BYTES: u64 = 2_500_000;
/// Files a node opens besides clients' connections: segments, log, metadata, peers.
const OPEN_FILES_OF_NODE: u64 = 4_096;
/// Below this share of a filesystem free, most allocate slowly.
const FREE_PERCENT_LOW: u64 = 10;
/// This software is younger than this moment, 1 January 2025.
/// What one upload may hold in memory: a few stripes.
const UPLOAD_BYTES: u64 = 8 * 1024 * 1024;
const CLOCK_EARLIEST_SECS: u64 = 1_735_689_600;
/// 1 January 2100.
const CLOCK_LATEST_SECS: u64 = 4_102_444_800;
/// Tells that time is synchronised, where systemd does it.
const TIMESYNC_MARK: &str = "/run/systemd/timesync/synchronized";
/// `statfs` says this of a filesystem in memory (`linux/magic.h`).
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// Check this machine and say what to mend.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The node's configuration. Without it: what every node needs
    #[arg(long)]
    config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    /// Works, but worse than it could.
    Warn,
    Fail,
}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub check: String,
    pub level: Level,
    /// What is so.
    pub says: String,
    /// What to do; empty where nothing is.
    pub mend: String,
}

impl Finding {
    pub fn ok(check: impl Into<String>, says: impl Into<String>) -> Self {
        Self { check: check.into(), level: Level::Ok, says: says.into(), mend: String::new() }
    }

    pub fn warn(check: impl Into<String>, says: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { check: check.into(), level: Level::Warn, says: says.into(), mend: mend.into() }
    }

    pub fn fail(check: impl Into<String>, says: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { check: check.into(), level: Level::Fail, says: says.into(), mend: mend.into() }
    }
}

/// A check of a part that knows itself best, e.g. the codec's self-test.
pub type Check = fn() -> Finding;

/// Runs all checks, `further` ones last.
pub async fn run(args: Args, further: Vec<Check>) -> anyhow::Result<ExitCode> {
    let config = args.config.clone();
    let examined = tokio::task::spawn_blocking(move || {
        let mut findings = examine(config.as_deref());
        findings.extend(further.into_iter().map(|check| check()));
        findings
    });
    let findings = examined.await.context("a check stopped")?;
    print(&findings, args.json)?;
    let worst = findings.iter().map(|finding| finding.level).max();
    Ok(if worst == Some(Level::Fail) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn print(findings: &[Finding], is_json: bool) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    if is_json {
        serde_json::to_writer_pretty(&mut out, &serde_json::json!({ "checks": findings }))?;
        writeln!(out)?;
        return Ok(());
    }
    for Finding { check, level, says, mend } in findings {
        let level = match level {
            Level::Ok => "ok",
            Level::Warn => "warn",
            Level::Fail => "FAIL",
        };
        writeln!(out, "{level:<5} {check}: {says}")?;
        if !mend.is_empty() {
            writeln!(out, "      -> {mend}")?;
        }
    }
    Ok(())
}

fn examine(path: Option<&Path>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let config = match path.map(NodeConfig::load) {
        None => None,
        Some(Ok(config)) => {
            findings.push(Finding::ok("config", "loads"));
            Some(config)
        }
        Some(Err(error)) => {
            findings.push(Finding::fail("config", error.to_string(), "change the keys named above"));
            None
        }
    };
    let defaults = NodeConfig::default();
    if let Some(config) = &config {
        findings.extend(directories(config));
        findings.extend(ports(config));
    }
    let config = config.as_ref().unwrap_or(&defaults);
    findings.push(open_files(config));
    findings.push(memory(config));
    findings.extend(udp_buffers());
    findings.push(clock());
    findings
}

fn directories(config: &NodeConfig) -> Vec<Finding> {
    let mut findings = vec![directory("node.dir", &config.node.dir)];
    let mut devices: Vec<(u64, &Path)> = Vec::new();
    for (index, disk) in config.disk.iter().enumerate() {
        let check = format!("disk[{index}]");
        findings.push(directory(&check, &disk.path));
        let Some(existing) = nearest_existing(&disk.path) else { continue };
        findings.push(free_space(&check, existing, disk, config.storage.segment_bytes));
        let Ok(device) = fs::metadata(existing).map(|metadata| metadata.dev()) else { continue };
        if let Some((_, other)) = devices.iter().find(|(known, _)| *known == device) {
            findings.push(Finding::warn(
                check,
                format!("{:?} and {other:?} lie on one filesystem, so they fail together", disk.path),
                "give each disk its own filesystem, or offer one directory",
            ));
        }
        devices.push((device, &disk.path));
    }
    findings
}

/// Itself, or the closest folder above it that is there.
fn nearest_existing(path: &Path) -> Option<&Path> {
    path.ancestors().find(|ancestor| ancestor.is_dir())
}

/// Whether the node can keep data in it, and how long a promise takes.
fn directory(check: &str, path: &Path) -> Finding {
    if !path.exists() {
        return match nearest_existing(path).map(|above| (above, may_write(above))) {
            Some((above, false)) => Finding::fail(
                check,
                format!("{path:?} does not exist, and this user may not make it in {above:?}"),
                format!("sudo install -d -o $USER -m 700 {}", path.display()),
            ),
            _ => Finding::ok(check, format!("{path:?} does not exist yet; the node makes it")),
        };
    }
    let probe = path.join(format!(".makai-doctor-{}", std::process::id()));
    let times = probe_fsync(&probe);
    let _ = fs::remove_file(&probe); // Where it could not be made there is none.
    match times {
        Err(error) => Finding::fail(
            check,
            format!("{path:?} cannot be written and fsynced: {error}"),
            format!("make it a writable directory of this user: sudo chown $USER {}", path.display()),
        ),
        Ok(times) => judge_fsync(check, path, times, is_in_memory(path)),
    }
}

fn may_write(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK).is_ok()
}

fn is_in_memory(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|filesystem| filesystem.f_type == TMPFS_MAGIC)
}

/// Times of appends that are each on disk before the next, sorted.
fn probe_fsync(probe: &Path) -> io::Result<Vec<Duration>> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(probe)?;
    let page = [0xA5; FSYNC_PROBE_BYTES];
    let mut times = Vec::with_capacity(FSYNC_PROBES);
    for _ in 0..FSYNC_PROBES {
        let started_at = stopwatch();
        file.write_all(&page)?;
        file.sync_data()?;
        times.push(started_at.elapsed());
    }
    times.sort();
    Ok(times)
}

fn judge_fsync(check: &str, path: &Path, times: Vec<Duration>, is_in_memory: bool) -> Finding {
    let (median, worst) = match (times.get(times.len() / 2), times.last()) {
        (Some(median), Some(worst)) => (*median, *worst),
        _ => return Finding::fail(check, format!("{path:?} was not probed"), "run it again"),
    };
    let says = format!("{path:?} takes an fsync in {median:.1?}, at worst {worst:.1?}");
    if is_in_memory {
        let mend = "data here is lost with power: choose a directory on a disk";
        Finding::warn(check, format!("{path:?} lies in memory"), mend)
    } else if median > FSYNC_SLOW {
        let mend = "uploads wait for it: prefer an SSD, and for voters one that nothing else uses";
        Finding::warn(check, says, mend)
    } else if median < FSYNC_TOO_QUICK {
        let mend = "no disk is so quick: make sure that neither mount options nor a hypervisor swallow fsync";
        Finding::warn(check, says, mend)
    } else {
        Finding::ok(check, says)
    }
}

fn free_space(check: &str, existing: &Path, disk: &DiskConfig, segment_bytes: u64) -> Finding {
    let filesystem = match rustix::fs::statvfs(existing) {
        Ok(filesystem) => filesystem,
        Err(error) => {
            return Finding::fail(
                check,
                format!("{existing:?} cannot be measured: {error}"),
                "is it mounted?",
            );
        }
    };
    let free = filesystem.f_bavail.saturating_mul(filesystem.f_frsize);
    let whole = filesystem.f_blocks.saturating_mul(filesystem.f_frsize);
    judge_space(check, free, whole, disk.reserve_bytes, segment_bytes)
}

fn judge_space(check: &str, free: u64, whole: u64, reserve: u64, segment: u64) -> Finding {
    let says = format!("{} of {} free", gib(free), gib(whole));
    if free < reserve.saturating_add(segment) {
        let least = gib(reserve.saturating_add(segment));
        let mend =
            format!("the reserve and one segment take {least}: free space, or lower disk.reserve_bytes");
        Finding::fail(check, says, mend)
    } else if free < whole / 100 * FREE_PERCENT_LOW {
        Finding::warn(check, says, "filesystems grow slow when full: free space or add a disk")
    } else {
        Finding::ok(check, says)
    }
}

fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

fn ports(config: &NodeConfig) -> Vec<Finding> {
    let is_gateway = config.has_role(Role::Gateway);
    let tcp = [
        ("s3.listen", config.s3.listen.filter(|_| is_gateway)),
        ("grpc.listen", config.grpc.listen.filter(|_| is_gateway)),
        ("console.listen", config.console.listen),
    ];
    let own = own_daemon(&config.node.dir);
    let peers = config.peers.listen;
    let mut findings = vec![port("peers.listen", peers, UdpSocket::bind(peers).map(drop), own.as_ref())];
    for (key, address) in tcp {
        if let Some(address) = address {
            findings.push(port(key, address, TcpListener::bind(address).map(drop), own.as_ref()));
        }
    }
    findings
}

/// The daemon of this node, which runs now.
struct OwnDaemon {
    pid: u32,
    /// Local ports of its sockets; `None`: this user may not see them.
    ports: Option<BTreeSet<u16>>,
}

/// Who holds this node's folder: a daemon does so while it runs.
fn own_daemon(dir: &Path) -> Option<OwnDaemon> {
    let pid = FolderLock::holder(dir)?;
    Some(OwnDaemon { pid, ports: ports_of(pid) })
}

/// Ports of the sockets that a process has open, as `/proc` tells of them.
fn ports_of(pid: u32) -> Option<BTreeSet<u16>> {
    let of_fd = |entry: io::Result<fs::DirEntry>| {
        let link = fs::read_link(entry.ok()?.path()).ok()?;
        let link = link.to_str()?;
        link.strip_prefix("socket:[")?.strip_suffix(']')?.parse::<u64>().ok()
    };
    let sockets: BTreeSet<u64> = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.filter_map(of_fd).collect();
    let mut ports = BTreeSet::new();
    for table in ["tcp", "tcp6", "udp", "udp6"] {
        let Ok(text) = fs::read_to_string(format!("/proc/{pid}/net/{table}")) else { continue };
        ports.extend(
            text.lines()
                .filter_map(socket_line)
                .filter(|(_, inode)| sockets.contains(inode))
                .map(|(port, _)| port),
        );
    }
    Some(ports)
}

/// Local port and inode of a line in `/proc/net/tcp` or `udp` (proc_net_tcp.rst of Linux).
fn socket_line(line: &str) -> Option<(u16, u64)> {
    let mut fields = line.split_ascii_whitespace();
    let port = fields.nth(1)?.rsplit_once(':')?.1;
    Some((u16::from_str_radix(port, 16).ok()?, fields.nth(7)?.parse().ok()?))
}

fn port(key: &str, address: SocketAddr, bound: io::Result<()>, own: Option<&OwnDaemon>) -> Finding {
    let Err(error) = bound else { return Finding::ok(key, format!("{address} is free")) };
    if error.kind() == ErrorKind::AddrInUse
        && let Some(OwnDaemon { pid, ports }) = own
        && ports.as_ref().is_none_or(|ports| ports.contains(&address.port()))
    {
        return Finding::ok(key, format!("{address} is held by this node's own daemon, process {pid}"));
    }
    let mend = match error.kind() {
        ErrorKind::AddrInUse => format!(
            "another program has it: ss -lntup 'sport = :{}'; stop it or change {key}",
            address.port()
        ),
        ErrorKind::PermissionDenied => {
            format!(
                "ports below 1024 need a right: sudo setcap cap_net_bind_service=+ep $(which makai), or change {key}"
            )
        }
        ErrorKind::AddrNotAvailable => format!("this machine has no such address: change {key}"),
        _ => format!("change {key}"),
    };
    Finding::fail(key, format!("{address} cannot be opened: {error}"), mend)
}

fn open_files(config: &NodeConfig) -> Finding {
    let limit = getrlimit(Resource::Nofile);
    judge_open_files(limit.current, u64::from(config.s3.connections_max) + OPEN_FILES_OF_NODE)
}

/// `limit`: `None` where there is none.
fn judge_open_files(limit: Option<u64>, needed: u64) -> Finding {
    const CHECK: &str = "open files";
    match limit {
        None => Finding::ok(CHECK, "no limit"),
        Some(limit) if limit >= needed => Finding::ok(CHECK, format!("limit {limit}")),
        Some(limit) => Finding::warn(
            CHECK,
            format!("limit {limit}; this node may need {needed}"),
            format!("LimitNOFILE={needed} in its systemd unit, or ulimit -n {needed}"),
        ),
    }
}

fn memory(config: &NodeConfig) -> Finding {
    let limits = &config.limits;
    let uploads = u64::from(limits.uploads_in_flight_max).saturating_mul(UPLOAD_BYTES);
    let windows =
        uploads.saturating_add(limits.read_bytes_in_flight_max).saturating_add(limits.read_cache_bytes);
    let is_gateway = config.has_role(Role::Gateway);
    let needed = if is_gateway { windows } else { 0 };
    let available = fs::read_to_string("/proc/meminfo").ok().as_deref().and_then(available_bytes);
    judge_memory(available, needed)
}

fn judge_memory(available: Option<u64>, needed: u64) -> Finding {
    const CHECK: &str = "memory";
    match available {
        None => Finding::warn(CHECK, "/proc/meminfo does not tell", "check it by hand"),
        Some(available) if available >= needed => Finding::ok(CHECK, format!("{} available", gib(available))),
        Some(available) => Finding::warn(
            CHECK,
            format!("{} available; a full gateway may take {}", gib(available), gib(needed)),
            "lower limits.uploads_in_flight_max or limits.read_bytes_in_flight_max",
        ),
    }
}

fn available_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn udp_buffers() -> Vec<Finding> {
    let judge = |name: &str| {
        let path = format!("/proc/sys/net/core/{name}");
        let bytes = fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
        judge_udp_buffer(name, bytes)
    };
    ["rmem_max", "wmem_max"].map(judge).into()
}

fn judge_udp_buffer(name: &str, bytes: Option<u64>) -> Finding {
    let check = format!("udp {name}");
    match bytes {
        // A container may not see it.
        None => Finding::ok(check, "not told by this system"),
        Some(bytes) if bytes >= UDP_BUFFER_BYTES => Finding::ok(check, format!("{bytes} bytes")),
        Some(bytes) => Finding::warn(
            check,
            format!("{bytes} bytes: bursts between nodes are dropped"),
            format!("sudo sysctl -w net.core.{name}={UDP_BUFFER_BYTES}, and the same in /etc/sysctl.d/"),
        ),
    }
}

fn clock() -> Finding {
    judge_clock(wall_clock_secs(), Path::new(TIMESYNC_MARK).exists())
}

fn judge_clock(unix_secs: u64, is_synchronised: bool) -> Finding {
    const CHECK: &str = "clock";
    if !(CLOCK_EARLIEST_SECS..CLOCK_LATEST_SECS).contains(&unix_secs) {
        let mend = "S3 clients and certificates are refused: sudo timedatectl set-ntp true";
        return Finding::fail(CHECK, format!("says {unix_secs} seconds since 1970, which cannot be"), mend);
    }
    if is_synchronised {
        Finding::ok(CHECK, "set, and synchronised by systemd-timesyncd")
    } else {
        Finding::ok(CHECK, "set; whether it is synchronised is not told (chronyc tracking, timedatectl)")
    }
}

#[expect(clippy::disallowed_methods, reason = "the machine's own clock is what is checked")]
fn wall_clock_secs() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[expect(clippy::disallowed_methods, reason = "a disk's real time is what is checked")]
fn stopwatch() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(finding: &Finding) -> Level {
        assert_eq!(finding.mend.is_empty(), finding.level == Level::Ok, "{finding:?}");
        finding.level
    }

    /// A port that this node's own daemon has open is no fault; one that another process has is.
    #[test]
    fn a_nodes_own_daemon_may_hold_its_ports() {
        let dir = tempfile::tempdir().unwrap();
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = held.local_addr().unwrap();
        let look = || {
            let own = own_daemon(dir.path());
            port("s3.listen", address, TcpListener::bind(address).map(drop), own.as_ref())
        };
        assert_eq!(level(&look()), Level::Fail, "no daemon of this node runs");
        let _lock = FolderLock::take(dir.path()).unwrap();
        assert_eq!(level(&look()), Level::Ok, "this process is the daemon, and has it open");
        let other = OwnDaemon { pid: 1, ports: Some(BTreeSet::new()) };
        let bound = TcpListener::bind(address).map(drop);
        assert_eq!(level(&port("s3.listen", address, bound, Some(&other))), Level::Fail);
        let line = " 0: 0100007F:2328 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 4711 1";
        assert_eq!(socket_line(line), Some((9000, 4711)));
    }

    #[test]
    fn bounds_decide_and_every_finding_that_is_not_ok_says_what_to_do() {
        let path = Path::new("/x");
        let fsync = |time: Duration, in_memory| level(&judge_fsync("d", path, vec![time; 3], in_memory));
        assert_eq!(fsync(Duration::from_millis(1), false), Level::Ok);
        assert_eq!(fsync(Duration::from_millis(1), true), Level::Warn);
        assert_eq!(fsync(Duration::from_millis(21), false), Level::Warn);
        assert_eq!(fsync(Duration::from_nanos(900), false), Level::Warn);

        let space = |free, whole| level(&judge_space("d", free, whole, 100, 28));
        assert_eq!(space(127, 1000), Level::Fail);
        assert_eq!(space(128, 1000), Level::Ok);
        assert_eq!(space(128, 2000), Level::Warn);

        let files = |limit| level(&judge_open_files(limit, 5000));
        assert_eq!([files(None), files(Some(5000)), files(Some(4999))], [Level::Ok, Level::Ok, Level::Warn]);
        let memory = |available| level(&judge_memory(available, 10));
        assert_eq!([memory(None), memory(Some(10)), memory(Some(9))], [Level::Warn, Level::Ok, Level::Warn]);
        let udp = |bytes| level(&judge_udp_buffer("rmem_max", bytes));
        assert_eq!(
            [udp(None), udp(Some(2_500_000)), udp(Some(212_992))],
            [Level::Ok, Level::Ok, Level::Warn]
        );
        let clock = |secs| level(&judge_clock(secs, false));
        assert_eq!([clock(0), clock(1_800_000_000), clock(u64::MAX)], [Level::Fail, Level::Ok, Level::Fail]);
        assert_eq!(available_bytes("MemTotal: 9 kB\nMemAvailable:   3 kB\n"), Some(3072));
    }

    #[test]
    fn a_good_directory_is_probed_and_left_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        assert_ne!(level(&directory("d", folder.path())), Level::Fail);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        assert_eq!(level(&directory("d", &folder.path().join("a/b"))), Level::Ok);
        assert!(!folder.path().join("a").exists());
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        assert_eq!(level(&directory("d", &file)), Level::Fail);
    }

    #[test]
    fn a_taken_port_fails_with_its_key() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let text = format!(
            "[node]\ndir = {:?}\n[peers]\nlisten = \"127.0.0.1:0\"\n[console]\nlisten = \"{}\"\n",
            folder.path(),
            taken.local_addr().unwrap()
        );
        let path = folder.path().join("node.toml");
        fs::write(&path, text).unwrap();
        let findings = examine(Some(&path));
        let failed: Vec<_> = findings.iter().filter(|finding| finding.level == Level::Fail).collect();
        assert_eq!(
            failed.iter().map(|finding| finding.check.as_str()).collect::<Vec<_>>(),
            ["console.listen"]
        );
        assert!(findings.iter().any(|finding| finding.check == "config" && finding.level == Level::Ok));
    }

    #[test]
    fn a_configuration_that_does_not_load_is_a_failure_and_the_machine_is_still_checked() {
        let findings = examine(Some(Path::new("/nowhere/node.toml")));
        assert_eq!(findings[0].level, Level::Fail);
        assert!(findings.iter().any(|finding| finding.check == "clock"));
    }
}
