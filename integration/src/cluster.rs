//! A cluster of real daemons on loopback: each `makai daemon` with a configuration file, as an operator would start it.
//!
//! ```text
//! node 0 begins ─> join tokens from its console ─> the others join ─> voters, members, groups as wanted ─> ready
//! ```
//!
//! Always: a daemon is its own process group and dies with the test, whatever ends it; its log goes to
//! `daemon.log` in its folder; a cluster that was not [`finish`](Cluster::finish)ed prints the end of the logs and
//! keeps its folder.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail, ensure};
use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use makai::cli::bench::s3::sigv4::Credentials;
use makai::console::{JoinTokenAnswer, JoinTokenRequest, Status};
use makai::identity::NodeIdentity;
use makai::node::{FirstCredentials, credentials_path};
use makai_config::{DiskConfig, NodeConfig, Role};
use makai_erasure::NodeId;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::ports::{self, Port};
use crate::s3::S3;
use crate::wait;

/// A busy machine with two cores starts six daemons within this.
const READY_WITHIN: Duration = Duration::from_secs(90);
const HEALED_WITHIN: Duration = Duration::from_secs(90);
const STOPPED_WITHIN: Duration = Duration::from_secs(30);
const CONSOLE_WITHIN: Duration = Duration::from_secs(20);
const ENDS_WITHIN: Duration = Duration::from_secs(300);
/// Of each log, so much is printed after a failure.
const LOG_TAIL_LINES: usize = 40;

/// What a cluster is made of.
pub struct ClusterOptions {
    pub nodes: usize,
    /// The first so many nodes have role voter.
    pub voters: usize,
    /// Changes a node's configuration before it is written.
    pub change: Box<dyn Fn(usize, &mut NodeConfig)>,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self { nodes: 6, voters: 5, change: Box::new(|_, _| {}) }
    }
}

/// One daemon: where it lies, and its process while it has one.
pub struct Node {
    pub name: String,
    /// Holds `makai.toml`, `daemon.log`, `data/` and `disk0/`.
    pub dir: PathBuf,
    pub config_path: PathBuf,
    pub config: NodeConfig,
    pub s3: Option<S3>,
    child: Option<Child>,
    _ports: Vec<Port>,
}

/// A running cluster. End it with [`finish`](Self::finish).
pub struct Cluster {
    pub nodes: Vec<Node>,
    pub credentials: Credentials,
    dir: Option<tempfile::TempDir>,
    is_finished: bool,
}

/// The program under test, beside the test's own executable.
///
/// # Errors
/// It is not built.
pub fn program() -> anyhow::Result<PathBuf> {
    let test = std::env::current_exe()?;
    let folder = test.parent().and_then(Path::parent).context("a test lies in target/PROFILE/deps")?;
    let program = folder.join("makai");
    ensure!(program.exists(), "{program:?} is missing: run `cargo build --release` first (./test does)");
    Ok(program)
}

/// Runs `makai` to its end.
///
/// # Errors
/// It cannot be started, or takes longer than any command of a test.
pub fn makai(args: &[&str]) -> anyhow::Result<Output> {
    let mut command = Command::new(program()?);
    command.args(args);
    wait::output(command, ENDS_WITHIN)
}

fn spawn(config: &Path, log: &Path) -> anyhow::Result<Child> {
    let log = OpenOptions::new().create(true).append(true).open(log)?;
    // Where the system has it, the kernel ends the daemon with the test, even if that is killed.
    let mut command = match Path::new("/usr/bin/setpriv") {
        setpriv if setpriv.exists() => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "KILL", "--"]).arg(program()?);
            command
        }
        _ => Command::new(program()?),
    };
    command.arg("daemon").arg("--config").arg(config);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
    Ok(command.spawn()?)
}

impl Node {
    /// A node's folder and configuration below `dir`, with ports of its own; not started.
    ///
    /// # Errors
    /// The folder cannot be written, no port is free, or the configuration is refused.
    pub fn new(
        dir: &Path,
        name: &str,
        roles: &[Role],
        change: impl FnOnce(&mut NodeConfig),
    ) -> anyhow::Result<Self> {
        let dir = dir.join(name);
        fs::create_dir_all(&dir)?;
        let held = [ports::take()?, ports::take()?, ports::take()?, ports::take()?];
        let [peers, s3, grpc, console] =
            [0, 1, 2, 3].map(|at| SocketAddr::from((Ipv4Addr::LOCALHOST, held[at].number)));
        let text = format!("[node]\ndir = {:?}\n", dir.join("data"));
        let mut config = NodeConfig::parse(&text, &dir).map_err(|faults| anyhow!("{faults:?}"))?;
        config.node.name = name.into();
        config.node.log = "info,openraft=warn".into();
        config.node.roles = BTreeSet::from_iter(roles.iter().copied());
        config.peers.listen = peers;
        config.peers.advertise = vec![peers.to_string()];
        config.s3.listen = roles.contains(&Role::Gateway).then_some(s3);
        config.s3.website_domains = vec!["s3-website.localhost".into()];
        config.s3.log_interval_secs = 1;
        config.s3.allow_private_endpoints = true;
        config.grpc.listen = roles.contains(&Role::Gateway).then_some(grpc);
        config.console.listen = Some(console);
        config.disk = Vec::new();
        if roles.contains(&Role::Storage) {
            config.disk.push(DiskConfig {
                path: dir.join("disk0"),
                reserve_bytes: 1 << 20,
                ..DiskConfig::default()
            });
        }
        config.storage.segment_bytes = 128 << 20;
        config.storage.reconcile_interval_ms = 500;
        // Six nodes share the cores of one machine.
        config.node.worker_threads = 1;
        // What is read must come from the disks: they are what is tested.
        config.limits.read_cache_bytes = 0;
        change(&mut config);
        let config_path = dir.join("makai.toml");
        let node =
            Self { name: name.into(), dir, config_path, config, s3: None, child: None, _ports: held.into() };
        node.write_config()?;
        Ok(node)
    }

    /// Writes [`config`](Self::config) to the file from which the daemon starts.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_config(&self) -> anyhow::Result<()> {
        Ok(fs::write(&self.config_path, self.config.to_toml()?)?)
    }

    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.dir.join("daemon.log")
    }

    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    #[must_use]
    pub fn disk(&self) -> PathBuf {
        self.dir.join("disk0")
    }

    /// # Errors
    /// Its key cannot be read.
    pub fn id(&self) -> anyhow::Result<NodeId> {
        Ok(NodeIdentity::load_or_create(&self.config.node.dir)?.id())
    }

    #[must_use]
    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Starts the daemon; [`wait_healthy`](Self::wait_healthy) says when it serves.
    ///
    /// # Errors
    /// It runs already, or cannot be started.
    pub fn spawn(&mut self) -> anyhow::Result<()> {
        ensure!(self.child.is_none(), "{} runs already", self.name);
        self.child = Some(spawn(&self.config_path, &self.log_path())?);
        Ok(())
    }

    /// Waits until the daemon serves.
    ///
    /// # Errors
    /// It ended, or does not serve in time.
    pub async fn wait_healthy(&mut self) -> anyhow::Result<()> {
        let begun = makai::clock::instant();
        loop {
            if let Some(status) = self.ended()? {
                bail!("{} ended ({status}):\n{}", self.name, tail(&self.log()));
            }
            let last = match self.console::<(), ()>(Method::GET, "/healthz", None).await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            if begun.elapsed() > READY_WITHIN {
                bail!("{} does not serve after {READY_WITHIN:?}: {last:#}\n{}", self.name, tail(&self.log()));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Starts the daemon and waits until it ends by itself: its exit code and what it logged in this run.
    ///
    /// # Errors
    /// It still runs after `within`; it is killed then.
    pub async fn run_to_end(&mut self, within: Duration) -> anyhow::Result<(ExitStatus, String)> {
        let before = self.log().len();
        self.spawn()?;
        let begun = makai::clock::instant();
        loop {
            if let Some(status) = self.ended()? {
                return Ok((status, self.log()[before..].to_owned()));
            }
            if begun.elapsed() > within {
                self.kill();
                bail!(
                    "{} runs on after {within:?}; it was to end by itself:\n{}",
                    self.name,
                    tail(&self.log())
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// How the daemon ended, if it did.
    fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        let Some(child) = &mut self.child else { bail!("{} was not started", self.name) };
        let status = child.try_wait()?;
        if status.is_some() {
            self.child = None;
        }
        Ok(status)
    }

    fn signal(&self, signal: Signal) {
        let pid = self.pid().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            let _ = match signal {
                Signal::KILL => kill_process_group(pid, signal),
                _ => kill_process(pid, signal),
            };
        }
    }

    /// kill -9, and waits until the process is gone.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Errors
    /// It does not end in time, or not with success.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::TERM);
        let begun = makai::clock::instant();
        loop {
            match self.ended()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("{} ended with {status} on SIGTERM:\n{}", self.name, tail(&self.log())),
                None if begun.elapsed() > STOPPED_WITHIN => {
                    bail!("{} runs on {STOPPED_WITHIN:?} after SIGTERM:\n{}", self.name, tail(&self.log()))
                }
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Asks the node's console; the body is JSON where there is one.
    ///
    /// # Errors
    /// It does not answer, or refuses.
    pub async fn console<B: Serialize, A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> anyhow::Result<Option<A>> {
        let bytes = self.console_bytes(method, path, body).await?;
        if path.starts_with("/api/") { Ok(Some(serde_json::from_slice(&bytes)?)) } else { Ok(None) }
    }

    /// As [`console`](Self::console), with the answer as it came.
    ///
    /// # Errors
    /// As there.
    pub async fn console_bytes<B: Serialize>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> anyhow::Result<Bytes> {
        let listen = self.config.console.listen.context("no console")?;
        let token = fs::read_to_string(self.config.node.dir.join("admin.token")).unwrap_or_default();
        let body = body.map(serde_json::to_vec).transpose()?.unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{listen}{path}"))
            .header(header::AUTHORIZATION, format!("Bearer {}", token.trim()))
            .body(Full::new(Bytes::from(body)))?;
        let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
        let answer = async {
            let response = client.request(request).await?;
            let status = response.status();
            let bytes = response.into_body().collect().await?.to_bytes();
            ensure!(status.is_success(), "{status}: {}", String::from_utf8_lossy(&bytes));
            Ok(bytes)
        };
        let answer = tokio::time::timeout(CONSOLE_WITHIN, answer).await;
        answer.with_context(|| format!("{} does not answer {path}", self.name))?
    }

    /// # Errors
    /// It does not answer.
    pub async fn status(&self) -> anyhow::Result<Status> {
        let status = self.console::<(), Status>(Method::GET, "/api/v1/status", None).await?;
        status.context("no status")
    }

    /// A join token from this node's console.
    ///
    /// # Errors
    /// The cluster does not give it.
    pub async fn join_token(&self, roles: &[Role]) -> anyhow::Result<String> {
        let roles = roles.iter().filter_map(|role| role.as_str().parse().ok()).collect();
        let request = JoinTokenRequest { roles, valid_secs: 3600, uses: 1 };
        let answer: Option<JoinTokenAnswer> =
            self.console(Method::POST, "/api/v1/join-token", Some(&request)).await?;
        Ok(answer.context("no token")?.token)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The last lines of a log.
fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
}

impl Cluster {
    /// Starts a cluster and returns once all voters vote, all nodes are up and groups exist.
    ///
    /// # Errors
    /// It does not form; the logs are printed.
    pub async fn start(options: ClusterOptions) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("makai-test-").tempdir()?;
        let mut nodes = Vec::new();
        for at in 0..options.nodes {
            let mut roles = vec![Role::Storage, Role::Gateway];
            if at < options.voters {
                roles.push(Role::Voter);
            }
            nodes.push(Node::new(dir.path(), &format!("node{at}"), &roles, |config| {
                config.cluster.init = at == 0;
                config.cluster.join_token_file =
                    (at > 0).then(|| dir.path().join(format!("node{at}/join-token")));
                config.cluster.voters_max = if options.voters > 4 { 5 } else { options.voters.max(1) as u8 };
                (options.change)(at, config);
            })?);
        }
        let credentials =
            Credentials { access_key: String::new(), secret_key: String::new(), region: "us-east-1".into() };
        let mut cluster = Self { nodes, credentials, dir: Some(dir), is_finished: false };
        cluster.begin().await?;
        Ok(cluster)
    }

    async fn begin(&mut self) -> anyhow::Result<()> {
        let begun = makai::clock::instant();
        let (first, others) = self.nodes.split_first_mut().context("a cluster has nodes")?;
        first.spawn()?;
        first.wait_healthy().await?;
        let credentials = fs::read(credentials_path(&first.config.node.dir))?;
        let FirstCredentials { access_key_id, secret_access_key, .. } = serde_json::from_slice(&credentials)?;
        self.credentials.access_key = access_key_id;
        self.credentials.secret_key = secret_access_key;
        for node in &mut *others {
            let roles: Vec<Role> = node.config.node.roles.iter().copied().collect();
            fs::write(node.dir.join("join-token"), first.join_token(&roles).await?)?;
            node.spawn()?;
        }
        for node in others {
            node.wait_healthy().await?;
        }
        for node in &mut self.nodes {
            node.s3 =
                node.config.s3.listen.map(|listen| S3::new(listen.to_string(), self.credentials.clone()));
        }
        self.wait_formed().await?;
        println!("a cluster of {} formed in {:.1?}", self.nodes.len(), begun.elapsed());
        Ok(())
    }

    /// Waits until as many vote as should, every running node is up, no other is, and groups of the scheme exist.
    ///
    /// # Errors
    /// Not in time.
    pub async fn wait_formed(&self) -> anyhow::Result<()> {
        let voters = self.nodes.iter().filter(|node| node.config.has_role(Role::Voter)).count().min(5);
        let running: Vec<&Node> = self.nodes.iter().filter(|node| node.is_running()).collect();
        wait::until("the cluster is formed", READY_WITHIN, || async {
            for node in &running {
                let status = node.status().await?;
                let up = status.map.nodes.iter().filter(|node| node.is_up).count();
                ensure!(up == running.len(), "{} sees {up} of {} nodes up", node.name, running.len());
                let scheme = &status.default_scheme;
                let has_groups = status.map.groups.iter().any(|group| group.scheme.to_string() == *scheme);
                ensure!(has_groups, "{} sees no groups of {scheme}", node.name);
                if node.config.has_role(Role::Voter) {
                    let now = status.voters.len();
                    ensure!(now == voters, "{} sees {now} of {voters} voters", node.name);
                    ensure!(status.leader.is_some(), "{} sees no leader", node.name);
                }
            }
            anyhow::Ok(())
        })
        .await
    }

    /// The folder that holds all nodes' folders.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.as_ref().map_or(Path::new(""), tempfile::TempDir::path)
    }

    /// The S3 door of a node.
    ///
    /// # Panics
    /// The node is no gateway.
    #[must_use]
    pub fn s3(&self, at: usize) -> &S3 {
        self.nodes[at].s3.as_ref().expect("a gateway")
    }

    /// The doors of all running gateways.
    #[must_use]
    pub fn doors(&self) -> Vec<S3> {
        self.nodes.iter().filter(|node| node.is_running()).filter_map(|node| node.s3.clone()).collect()
    }

    /// The place of the Raft leader among the nodes.
    ///
    /// # Errors
    /// There is none in time.
    pub async fn leader(&self) -> anyhow::Result<usize> {
        wait::until("a leader", READY_WITHIN, || async {
            for (at, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.is_running()) {
                if node.status().await?.is_leader {
                    return Ok(at);
                }
            }
            Err(anyhow!("no node leads"))
        })
        .await
    }

    /// Starts nodes that were killed or stopped, all at once, and waits until they serve.
    ///
    /// # Errors
    /// One does not.
    pub async fn restart(&mut self, which: &[usize]) -> anyhow::Result<()> {
        for at in which {
            self.nodes[*at].spawn()?;
        }
        for at in which {
            self.nodes[*at].wait_healthy().await?;
        }
        Ok(())
    }

    /// kill -9 of all at once.
    pub fn kill(&mut self, which: &[usize]) {
        for at in which {
            self.nodes[*at].signal(Signal::KILL);
        }
        for at in which {
            self.nodes[*at].kill();
        }
    }

    /// Waits until every running node has looked through all its blobs anew and misses no shard.
    ///
    /// # Errors
    /// Not in time.
    pub async fn wait_healed(&self) -> anyhow::Result<()> {
        let running = || self.nodes.iter().filter(|node| node.is_running() && !node.config.disk.is_empty());
        let mut before = Vec::new();
        for node in running() {
            before.push(node.status().await?.repair.looks);
        }
        for (node, before) in running().zip(before) {
            wait::until("the cluster is healed", HEALED_WITHIN, || async {
                let repair = node.status().await?.repair;
                // The look under way may have begun before; the one after it began later.
                ensure!(repair.looks >= before + 2, "{} has not looked: {repair:?}", node.name);
                ensure!(repair.pending == 0, "{}: {repair:?}", node.name);
                anyhow::Ok(())
            })
            .await?;
        }
        Ok(())
    }

    /// Stops the daemons in order and checks how they end.
    ///
    /// # Errors
    /// One ends otherwise than it should, or a task of one has panicked.
    pub async fn finish(mut self) -> anyhow::Result<()> {
        let mut told = Vec::new();
        for node in self.nodes.iter_mut().filter(|node| node.is_running()) {
            told.push((node.name.clone(), node.log().len()));
            node.signal(Signal::TERM);
        }
        for node in self.nodes.iter_mut().filter(|node| node.child.is_some()) {
            node.stop().await?;
        }
        for node in &self.nodes {
            let log = node.log();
            let panic = log.lines().find(|line| line.contains("panicked at"));
            ensure!(panic.is_none(), "{}: {}", node.name, panic.unwrap_or_default());
            let told = told.iter().find(|(name, _)| *name == node.name).map_or(log.len(), |(_, told)| *told);
            let at_end = log.get(told..).unwrap_or_default();
            let error = at_end.lines().find(|line| line.contains("ERROR openraft"));
            ensure!(error.is_none(), "{} stops as it should: {}", node.name, error.unwrap_or_default());
        }
        self.is_finished = true;
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            node.kill();
        }
        if self.is_finished {
            return;
        }
        for node in &self.nodes {
            println!("---- {} ({})\n{}", node.name, node.log_path().display(), tail(&node.log()));
        }
        if let Some(dir) = self.dir.take() {
            println!("---- all of it is kept in {}", dir.keep().display());
        }
    }
}

/// What `makai bench s3` has told of one row.
#[derive(Debug, Clone, Copy)]
pub struct Measured {
    pub per_sec: f64,
    pub megabytes_per_sec: f64,
    pub p99_ms: f64,
}

impl std::fmt::Display for Measured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { per_sec, megabytes_per_sec, p99_ms } = self;
        write!(f, "{per_sec:.0}/s, {megabytes_per_sec:.0} MB/s, p99 {p99_ms:.1} ms")
    }
}

impl Cluster {
    /// Loads one gateway by `makai bench s3` with one row; it goes on by itself.
    ///
    /// # Panics
    /// The node is no gateway.
    #[must_use]
    pub fn bench(&self, at: usize, args: &[&str]) -> tokio::task::JoinHandle<anyhow::Result<Measured>> {
        let listen = self.nodes[at].config.s3.listen.expect("a gateway");
        let key = &self.credentials;
        let mut all: Vec<String> = ["bench", "s3", "--json", "--endpoint"].map(String::from).into();
        all.push(format!("http://{listen}"));
        for (flag, value) in
            [("--access-key", &key.access_key), ("--secret-key", &key.secret_key), ("--region", &key.region)]
        {
            all.extend([flag.to_owned(), value.clone()]);
        }
        all.extend(args.iter().map(|arg| (*arg).to_owned()));
        tokio::task::spawn_blocking(move || {
            let told = makai(&all.iter().map(String::as_str).collect::<Vec<_>>())?;
            ensure!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
            let told: serde_json::Value = serde_json::from_slice(&told.stdout)?;
            let row = &told["rows"][0];
            let number = |value: &serde_json::Value| value.as_f64().context("a figure of the row");
            Ok(Measured {
                per_sec: number(&row["operations_per_second"])?,
                megabytes_per_sec: number(&row["megabytes_per_second"])?,
                p99_ms: number(&row["latency_ms"]["p99"])?,
            })
        })
    }
}

/// Whether a process ended by kill -9.
#[must_use]
pub fn was_killed(status: ExitStatus) -> bool {
    status.signal() == Some(Signal::KILL.as_raw())
}
