//! `makai dev`: a real cluster of daemon processes on loopback.
//!
//! ```text
//! configurations ─> node 1 begins the cluster ─> join tokens ─> nodes 2.. join ─> voters and groups are there
//!                ─> profile.json ─> ready ─> until Ctrl-C
//! ```
//!
//! Each node is `makai daemon --config DIR/nodeN/makai.toml`: the same daemon as anywhere, started by hand the same
//! way. What is in DIR survives; a node killed meanwhile is started again with the command that is printed.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use http::Method;
use indicatif::{ProgressBar, ProgressStyle};
use makai_config::{DiskConfig, NodeConfig, Role};
use serde::de::DeserializeOwned;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use super::profile::{ConsoleProfile, GrpcProfile, MetricsProfile, NodeProfile, Profile, S3Profile};
use super::remote::ask_console;
use crate::console::{JoinTokenAnswer, JoinTokenRequest, Status};
use crate::node::{FirstCredentials, credentials_path};
use crate::{clock, files, state};

/// Five voters: any two may die.
const VOTERS_MAX: usize = 5;
/// Someone who tries a rule out looks on.
const LIFECYCLE_INTERVAL_SECS: u64 = 10;
const LOG_INTERVAL_SECS: u64 = 10;
/// Names below `localhost` are this machine, for browsers and curl.
const WEBSITE_DOMAIN: &str = "s3-website.localhost";
/// Room that a node leaves free on the disk it shares with everything else.
const RESERVE_BYTES: u64 = 1 << 30;
const READY_WITHIN: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(100);
const STOP_WITHIN: Duration = Duration::from_secs(25);
/// Accounting period of such a cluster.
const DEV_EPOCH_SECS: u64 = 10;
/// Ports of a node: S3, gRPC, console; nodes lie this far apart.
const PORTS_PER_NODE: u16 = 3;

/// Bring up a real cluster of daemon processes on this machine, until Ctrl-C
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Daemon processes
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u16).range(1..=32))]
    nodes: u16,
    /// Where everything lies; survives a restart
    #[arg(long, default_value = ".makai", value_name = "DIR")]
    dir: PathBuf,
    /// Port of the first node's S3 door; the others' ports follow above it
    #[arg(long, default_value_t = 9000, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    s3_port: u16,
    /// Delete what DIR holds first
    #[arg(long)]
    reset: bool,
    /// Share of the processors' idle time, in hundredths, that each node drills in (`compute.drill_pct`)
    #[arg(long, default_value_t = 0, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    drill_pct: u8,
    /// Print the profile as JSON once ready, instead of text
    #[arg(long)]
    json: bool,
}

/// One daemon of the cluster.
struct Member {
    name: String,
    dir: PathBuf,
    config_path: PathBuf,
    s3: SocketAddr,
    grpc: SocketAddr,
    console: SocketAddr,
    roles: Vec<String>,
    child: Option<Child>,
}

impl Member {
    /// Whether it is of a cluster already.
    fn has_begun(&self) -> bool {
        self.dir.join("data").join("cluster.json").exists()
    }
}

pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    std::fs::create_dir_all(&args.dir).with_context(|| format!("make {:?}", args.dir))?;
    let dir = args.dir.canonicalize()?;
    if args.reset {
        check_ours(&dir)?;
    }
    let _lock = files::FolderLock::take(&dir)
        .with_context(|| format!("another `makai dev` runs on {dir:?}; stop it, or give --dir"))?;
    if args.reset {
        reset(&dir)?;
    }
    check_size(&args, &dir)?;
    let mut members = plan(&args, &dir)?;
    let bar = spinner();
    let started = tokio::select! {
        started = start_all(&mut members, &bar) => started,
        _ = terminate.recv() => Err(anyhow::anyhow!("stopped before it was ready")),
        _ = interrupt.recv() => Err(anyhow::anyhow!("stopped before it was ready")),
    };
    bar.finish_and_clear();
    let ready = match started {
        Ok(()) => announce(&args, &dir, &members),
        Err(error) => Err(error),
    };
    if let Err(error) = ready {
        stop_all(&mut members).await;
        return Err(error);
    }
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            (name, config) = first_to_end(&mut members) => {
                eprintln!(
                    "{name} has ended; start it again with: {} daemon --config {}",
                    this_program(),
                    config.display()
                );
            }
        }
    }
    eprintln!("stopping");
    stop_all(&mut members).await;
    Ok(ExitCode::SUCCESS)
}

/// Whether a folder is an earlier `makai dev`'s, or empty: nothing else is ever deleted.
fn check_ours(dir: &Path) -> anyhow::Result<()> {
    let is_ours = dir.join("node1").join("makai.toml").exists();
    let holds_others = || -> std::io::Result<bool> {
        Ok(std::fs::read_dir(dir)?
            .collect::<Result<Vec<_>, _>>()?
            .iter()
            .any(|entry| entry.file_name() != "lock"))
    };
    if !is_ours && holds_others()? {
        bail!("{dir:?} holds no cluster of `makai dev`; --reset deletes nothing else");
    }
    Ok(())
}

/// Nodes are not left out: the cluster would wait for them.
fn check_size(args: &Args, dir: &Path) -> anyhow::Result<()> {
    let is_there = |number: &u16| dir.join(format!("node{number}")).join("makai.toml").exists();
    let count = (1..=u16::MAX).take_while(is_there).count();
    if count > usize::from(args.nodes) {
        bail!(
            "{dir:?} holds a cluster of {count} nodes, not {}: give --nodes {count}, or --reset to begin anew; nodes leave a \
             running cluster by `makai node drain` and `makai node remove`",
            args.nodes
        );
    }
    Ok(())
}

/// Empties the folder, whose lock is held, unless a daemon still runs in it.
fn reset(dir: &Path) -> anyhow::Result<()> {
    let entries = std::fs::read_dir(dir)?.collect::<Result<Vec<_>, _>>()?;
    for entry in &entries {
        let data = entry.path().join("data");
        if data.is_dir() {
            files::FolderLock::take(&data)
                .with_context(|| format!("a daemon still runs on {data:?}; stop it, then --reset"))?;
        }
    }
    for path in entries.into_iter().filter(|entry| entry.file_name() != "lock").map(|entry| entry.path()) {
        let deleted =
            if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        deleted.with_context(|| format!("delete {path:?}"))?;
    }
    Ok(())
}

/// The members, each with its configuration written unless it is there from an earlier run.
fn plan(args: &Args, dir: &Path) -> anyhow::Result<Vec<Member>> {
    let mut members = Vec::new();
    for number in 1..=args.nodes {
        let name = format!("node{number}");
        let node_dir = dir.join(&name);
        let config_path = node_dir.join("makai.toml");
        if !config_path.exists() {
            std::fs::create_dir_all(&node_dir)?;
            let config = node_config(args, number, &name, &node_dir)?;
            files::replace(&config_path, config.to_toml()?.as_bytes())?;
        }
        let config = NodeConfig::load(&config_path)?;
        members.push(Member {
            name,
            s3: config.s3.listen.context("s3.listen is off")?,
            grpc: config.grpc.listen.context("grpc.listen is off")?,
            console: config.console.listen.context("console.listen is off")?,
            roles: config.node.roles.iter().map(|role| role.as_str().to_owned()).collect(),
            dir: node_dir,
            config_path,
            child: None,
        });
    }
    Ok(members)
}

fn node_config(args: &Args, number: u16, name: &str, dir: &Path) -> anyhow::Result<NodeConfig> {
    let loopback = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let offset = (number - 1).checked_mul(PORTS_PER_NODE);
    let first = offset
        .and_then(|offset| args.s3_port.checked_add(offset))
        .filter(|first| *first <= u16::MAX - PORTS_PER_NODE + 1);
    let first = first
        .with_context(|| format!("--s3-port {} leaves no ports for {} nodes", args.s3_port, args.nodes))?;
    let mut config = NodeConfig::parse(&format!("[node]\ndir = {:?}\n", dir.join("data")), dir)
        .map_err(|faults| anyhow::anyhow!("the defaults of a node do not hold: {faults:?}"))?;
    let is_voter = usize::from(number) <= VOTERS_MAX.min(usize::from(args.nodes) | 1);
    config.node.name = name.into();
    config.node.worker_threads = worker_threads(args.nodes);
    config.node.roles = [Role::Storage, Role::Gateway, Role::Compute]
        .into_iter()
        .chain(is_voter.then_some(Role::Voter))
        .collect();
    config.cluster.init = number == 1;
    config.cluster.join_token_file = (number > 1).then(|| dir.join("join-token"));
    config.storage.lifecycle_interval_secs = LIFECYCLE_INTERVAL_SECS;
    config.cluster.voters_max = VOTERS_MAX as u8;
    config.peers.listen = loopback(free_udp_port()?);
    config.s3.listen = Some(loopback(first));
    config.s3.website_domains = vec![WEBSITE_DOMAIN.to_owned()];
    config.s3.log_interval_secs = LOG_INTERVAL_SECS;
    config.s3.allow_private_endpoints = true;
    config.grpc.listen = Some(loopback(first + 1));
    config.console.listen = Some(loopback(first + 2));
    // Short, so that one sees epochs close and claims grow.
    config.accounts.epoch_secs = DEV_EPOCH_SECS;
    config.accounts.challenge_secs = 0;
    config.compute.drill_pct = args.drill_pct;
    config.disk =
        vec![DiskConfig { path: dir.join("disk0"), reserve_bytes: RESERVE_BYTES, ..DiskConfig::default() }];
    Ok(config)
}

/// Each node's part of the cores that all share.
fn worker_threads(nodes: u16) -> u16 {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    u16::try_from(cores).unwrap_or(u16::MAX).div_ceil(nodes).max(1)
}

/// A UDP port that nobody has now.
fn free_udp_port() -> anyhow::Result<u16> {
    Ok(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn spinner() -> ProgressBar {
    let style =
        ProgressStyle::with_template("{spinner} {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner());
    let bar = ProgressBar::new_spinner().with_style(style);
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

fn spawn(member: &mut Member) -> anyhow::Result<()> {
    let log_path = member.dir.join("daemon.log");
    let log = std::fs::OpenOptions::new().create(true).append(true).open(&log_path)?;
    let child = Command::new(std::env::current_exe()?)
        .arg("daemon")
        .arg("--config")
        .arg(&member.config_path)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // Ctrl-C goes to this process alone, which stops the daemons in order.
        .process_group(0)
        .spawn()
        .with_context(|| format!("start {}", member.name))?;
    member.child = Some(child);
    Ok(())
}

/// Whether the members' ports are free: what answers there otherwise is another cluster's.
fn check_ports(members: &[Member]) -> anyhow::Result<()> {
    for member in members {
        for address in [member.s3, member.grpc, member.console] {
            std::net::TcpListener::bind(address).with_context(|| {
                format!(
                    "{address}, a port of {}, is taken; stop what listens there, or give --s3-port and --dir",
                    member.name
                )
            })?;
        }
    }
    Ok(())
}

async fn start_all(members: &mut [Member], bar: &ProgressBar) -> anyhow::Result<()> {
    check_ports(members)?;
    let count = members.len();
    // After a power cut no node has a majority alone: all that have begun start before any is waited for.
    members.iter_mut().filter(|member| member.has_begun()).try_for_each(spawn)?;
    if members.iter().any(|member| !member.has_begun()) {
        bar.set_message(if members[0].has_begun() {
            "letting new nodes join"
        } else {
            "beginning the cluster"
        });
        if !members[0].has_begun() {
            spawn(&mut members[0])?;
        }
        wait_healthy(&mut members[0]).await?;
        for member in &mut members[1..] {
            if member.child.is_some() {
                continue;
            }
            let request = JoinTokenRequest {
                roles: member.roles.iter().filter_map(|role| role.parse().ok()).collect(),
                valid_secs: 24 * 3600,
                uses: 1,
            };
            // Made by the first node, which every other one then asks to be let in.
            let token = join_token(&member.dir, &request).await?;
            files::replace(&member.dir.join("join-token"), token.as_bytes())?;
            spawn(member)?;
        }
    }
    for (at, member) in members.iter_mut().enumerate() {
        bar.set_message(format!("waiting for {} of {count}", at + 1));
        wait_healthy(member).await?;
    }
    bar.set_message("waiting for voters and placement groups");
    wait_formed(members).await
}

async fn join_token(dir: &Path, request: &JoinTokenRequest) -> anyhow::Result<String> {
    let first = dir.parent().context("a node's folder has a parent")?.join("node1");
    let config = NodeConfig::load(&first.join("makai.toml"))?;
    let console = console_of(&config)?;
    let answer: JoinTokenAnswer = call(&console, Method::POST, "/api/v1/join-token", Some(request))
        .await
        .context("make a join token")?;
    Ok(answer.token)
}

fn console_of(config: &NodeConfig) -> anyhow::Result<ConsoleProfile> {
    let listen = config.console.listen.context("console.listen is off")?;
    Ok(ConsoleProfile { url: format!("http://{listen}"), token: state::admin_token(&config.node.dir)? })
}

async fn call<B: serde::Serialize, A: DeserializeOwned>(
    console: &ConsoleProfile,
    method: Method,
    path: &str,
    body: Option<&B>,
) -> anyhow::Result<A> {
    let (is_success, answer) = ask_console(console, method, path, body).await?;
    if !is_success {
        bail!("{}", String::from_utf8_lossy(&answer));
    }
    Ok(serde_json::from_slice(&answer)?)
}

/// Waits until a daemon serves; its end is an error with the last lines of its log.
async fn wait_healthy(member: &mut Member) -> anyhow::Result<()> {
    let console = ConsoleProfile { url: format!("http://{}", member.console), token: String::new() };
    let begun = clock::instant();
    while begun.elapsed() < READY_WITHIN {
        if let Some(child) = &mut member.child
            && let Some(status) = child.try_wait()?
        {
            bail!("{} ended ({status}):\n{}", member.name, log_tail(&member.dir));
        }
        if let Ok((true, _)) = ask_console::<()>(&console, Method::GET, "/healthz", None).await {
            return Ok(());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    bail!("{} does not serve after {} s:\n{}", member.name, READY_WITHIN.as_secs(), log_tail(&member.dir))
}

fn log_tail(dir: &Path) -> String {
    let log = std::fs::read(dir.join("daemon.log")).unwrap_or_default();
    let text = String::from_utf8_lossy(&log[log.len().saturating_sub(4096)..]).into_owned();
    let lines: Vec<&str> = text.lines().rev().take(8).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

/// Waits until the voters are as many as can be, every node is up and groups exist.
async fn wait_formed(members: &[Member]) -> anyhow::Result<()> {
    let voters = members.iter().filter(|member| member.roles.iter().any(|role| role == "voter")).count();
    let console = console_of(&NodeConfig::load(&members[0].config_path)?)?;
    let begun = clock::instant();
    let mut last = String::from("no answer yet");
    while begun.elapsed() < READY_WITHIN {
        match call::<(), Status>(&console, Method::GET, "/api/v1/status", None).await {
            Ok(status) => {
                let up = status.map.nodes.iter().filter(|node| node.is_up).count();
                let has_groups =
                    status.map.groups.iter().any(|group| group.scheme.to_string() == status.default_scheme);
                if status.voters.len() == voters.min(VOTERS_MAX) && up == members.len() && has_groups {
                    return Ok(());
                }
                last =
                    format!("{} of {voters} voters, {up} of {} nodes up", status.voters.len(), members.len());
            }
            Err(error) => last = error.to_string(),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    bail!("the cluster did not form within {} s: {last}", READY_WITHIN.as_secs())
}

fn announce(args: &Args, dir: &Path, members: &[Member]) -> anyhow::Result<()> {
    let first = NodeConfig::load(&members[0].config_path)?;
    let credentials =
        std::fs::read(credentials_path(&first.node.dir)).context("read the first credentials")?;
    let FirstCredentials { access_key_id, secret_access_key, .. } = serde_json::from_slice(&credentials)?;
    let mut nodes = Vec::new();
    for member in members {
        let config = NodeConfig::load(&member.config_path)?;
        let id = crate::identity::NodeIdentity::load_or_create(&config.node.dir)?.id();
        nodes.push(NodeProfile {
            id: id.to_string(),
            pid: member.child.as_ref().and_then(Child::id).unwrap_or(0),
            dir: member.dir.clone(),
            config: member.config_path.clone(),
            s3: format!("http://{}", member.s3),
            grpc: format!("http://{}", member.grpc),
            console: console_of(&config)?,
            roles: member.roles.clone(),
        });
    }
    let profile = Profile {
        s3: S3Profile {
            endpoint: format!("http://{}", members[0].s3),
            region: first.s3.region.clone(),
            access_key_id,
            secret_access_key,
        },
        grpc: GrpcProfile { endpoint: format!("http://{}", members[0].grpc) },
        console: console_of(&first)?,
        metrics: MetricsProfile {
            urls: members.iter().map(|member| format!("http://{}/metrics", member.console)).collect(),
        },
        nodes,
    };
    let path = dir.join("profile.json");
    files::replace(&path, &serde_json::to_vec_pretty(&profile)?)?;
    if args.json {
        return super::print_json(&profile);
    }
    println!("ready: {} daemons, data in {}", members.len(), dir.display());
    println!();
    println!("  export AWS_ENDPOINT_URL={}", profile.s3.endpoint);
    println!(
        "  export AWS_ACCESS_KEY_ID={} AWS_SECRET_ACCESS_KEY={}",
        profile.s3.access_key_id, profile.s3.secret_access_key
    );
    println!("  export AWS_DEFAULT_REGION={} MAKAI_PROFILE={}", profile.s3.region, path.display());
    println!();
    println!("Try, in another terminal, after those exports:");
    println!("  aws s3 mb s3://demo && aws s3 cp README.md s3://demo/");
    println!("  aws s3 ls s3://demo");
    println!("  {} status", this_program());
    println!();
    println!("In a browser: {} (token: {})", profile.console.url, profile.console.token);
    println!();
    println!("Ctrl-C stops all daemons; what they store stays.");
    Ok(())
}

/// How this program is called from a shell.
fn this_program() -> String {
    std::env::current_exe().map_or_else(|_| "makai".into(), |path| path.display().to_string())
}

/// The first daemon that ends.
async fn first_to_end(members: &mut [Member]) -> (String, PathBuf) {
    loop {
        for member in members.iter_mut() {
            let has_ended =
                member.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(Some(_))));
            if has_ended {
                member.child = None;
                return (member.name.clone(), member.config_path.clone());
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn stop_all(members: &mut [Member]) {
    let started_by_hand: Vec<u32> = members
        .iter()
        .filter(|member| member.child.is_none())
        .flat_map(|member| daemons_of(&member.config_path))
        .collect();
    let children = members.iter().filter_map(|member| member.child.as_ref()).filter_map(Child::id);
    for pid in children.chain(started_by_hand.iter().copied()) {
        if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
            // It may have ended by itself meanwhile.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    }
    let begun = clock::instant();
    while begun.elapsed() < STOP_WITHIN
        && started_by_hand.iter().any(|pid| Path::new(&format!("/proc/{pid}")).exists())
    {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    for child in members.iter_mut().filter_map(|member| member.child.as_mut()) {
        let left = STOP_WITHIN.saturating_sub(begun.elapsed());
        if tokio::time::timeout(left, child.wait()).await.is_err() {
            // It would not stop: what it acknowledged is durable all the same.
            let _ = child.kill().await;
        }
    }
}

/// Processes that run a daemon with this configuration: started anew by the line that was printed.
fn daemons_of(config: &Path) -> Vec<u32> {
    let is_its = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0).skip(1);
        words.next() == Some(b"daemon".as_slice())
            && words.next() == Some(b"--config".as_slice())
            && words.next() == Some(config.as_os_str().as_encoded_bytes())
    };
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_its).collect()
}
