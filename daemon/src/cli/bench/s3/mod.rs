//! `makai bench s3`: loads an S3 endpoint and says what it gave and what it cost.
//!
//! ```text
//! for each size, for each number of clients:
//!   prepare objects (get, mixed, list, delete) ─> warm up ─> count for --seconds ─> a row
//! last: remove what was made, unless --keep
//! ```
//!
//! Each client is one connection with one request at a time. Given the servers' process ids, a row says what an
//! operation cost in processor time on all of them: the figure that a busy machine changes least.

mod client;
pub mod content;
mod report;
pub mod sigv4;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use hyper::Method;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use serde::Deserialize;
use tokio::task::JoinSet;

use self::client::{Client, Outcome, Payload, Target};
use self::content::{Content, Pattern};
use self::report::{Report, Row};
use self::sigv4::Credentials;
use super::latency::Latencies;
use super::{progress, stopwatch};
use crate::process::{self, Cost, Watch};

/// A failed operation is followed by this pause, so that a server that refuses is not flooded.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(20);
/// A mark on a terminal moves this often.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// Keys of a listing's page, S3's maximum.
const LIST_PAGE_KEYS: &str = "1000";
/// Clients that prepare and remove.
const HOUSEKEEPING_CLIENTS: usize = 16;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// http://HOST:PORT of any S3 server. Default: the profile's
    #[arg(long)]
    endpoint: Option<String>,
    #[arg(long, env = "AWS_ACCESS_KEY_ID")]
    access_key: Option<String>,
    #[arg(long, env = "AWS_SECRET_ACCESS_KEY", hide_env_values = true)]
    secret_key: Option<String>,
    /// The region to sign for. Default: the profile's, else us-east-1
    #[arg(long)]
    region: Option<String>,
    /// A cluster's profile.json: endpoint, key and process ids, as far as they are not given
    #[arg(long, env = "MAKAI_PROFILE")]
    profile: Option<PathBuf>,
    /// Made where it does not exist
    #[arg(long, default_value = "makai-bench")]
    bucket: String,
    #[arg(long, value_enum, default_value = "put")]
    op: Op,
    /// Object sizes, e.g. 4KiB,1MiB
    #[arg(long = "size", value_delimiter = ',', default_value = "4KiB", value_parser = parse_size)]
    sizes: Vec<u64>,
    /// Connections at once, each with one request at a time
    #[arg(long, value_delimiter = ',', default_value = "1,8,32")]
    clients: Vec<usize>,
    /// Time of one row; what is under way at its end is waited for and counted
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Time before a row that is not counted
    #[arg(long, default_value_t = 1)]
    warmup_seconds: u64,
    /// Objects to prepare for get, head, mixed, list and delete
    #[arg(long, default_value_t = 256)]
    objects: u64,
    /// Of 100 operations of `mixed`, how many are gets; the rest are puts
    #[arg(long, default_value_t = 75, value_parser = clap::value_parser!(u8).range(0..=100))]
    get_percent: u8,
    /// Whether bodies are hashed into the signature
    #[arg(long, value_enum, default_value = "unsigned")]
    payload: Payload,
    /// Check every byte of every get
    #[arg(long)]
    verify: bool,
    /// Leave the objects in place
    #[arg(long)]
    keep: bool,
    /// Processes whose time and memory are counted: the servers'. Default: the profile's
    #[arg(long, value_delimiter = ',')]
    pids: Vec<u32>,
    /// Print one JSON document instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Op {
    Put,
    Get,
    Head,
    Mixed,
    List,
    Delete,
}

impl Op {
    fn as_str(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Head => "head",
            Self::Mixed => "mixed",
            Self::List => "list",
            Self::Delete => "delete",
        }
    }

    fn needs_objects(self) -> bool {
        self != Self::Put
    }
}

/// What of a cluster's profile this command reads.
#[derive(Debug, Deserialize)]
struct Profile {
    s3: ProfileS3,
    #[serde(default)]
    nodes: Vec<ProfileNode>,
}

#[derive(Debug, Deserialize)]
struct ProfileS3 {
    endpoint: String,
    region: String,
    access_key_id: String,
    secret_access_key: String,
}

#[derive(Debug, Deserialize)]
struct ProfileNode {
    pid: u32,
}

pub async fn run(mut args: Args) -> anyhow::Result<ExitCode> {
    let target = Arc::new(target(&mut args)?);
    if args.clients.iter().any(|clients| !(1..=10_000).contains(clients)) {
        bail!("--clients takes numbers from 1 to 10000");
    }
    if args.op.needs_objects() && args.objects == 0 {
        bail!("--objects is 0; {} needs at least 1", args.op.as_str());
    }
    make_bucket(&target, &args.bucket).await?;

    let mut report = Report::new(&target.address, args.op.as_str(), args.json);
    for size in args.sizes.clone() {
        for clients in args.clients.clone() {
            let run = Arc::new(Run {
                target: Arc::clone(&target),
                bucket: args.bucket.clone(),
                // The process id keeps runs apart that share a bucket.
                prefix: format!("{}/{size}-{clients}", std::process::id()),
                size,
                get_percent: args.get_percent,
                is_verified: args.verify,
                op: args.op,
                prepared: if args.op.needs_objects() { args.objects } else { 0 },
                next_put: AtomicU64::new(0),
                next_delete: AtomicU64::new(0),
                done: AtomicU64::new(0),
            });
            let row = measure(&run, clients, &args).await;
            if !args.keep {
                run.remove_all().await;
            }
            report.add(row?);
        }
    }
    let is_good = report.is_good();
    report.finish()?;
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Fills what `args` leave open from the profile.
fn target(args: &mut Args) -> anyhow::Result<Target> {
    let profile = match &args.profile {
        None => None,
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("read profile {path:?}; start `makai dev`, or give --endpoint"))?;
            let profile: Profile = serde_json::from_str(&text)
                .with_context(|| format!("profile {path:?} is not as `makai dev` writes it"))?;
            Some(profile)
        }
    };
    let is_profiles_endpoint = args.endpoint.is_none();
    if let Some(profile) = profile {
        // Of another endpoint the profile knows neither keys nor processes.
        if is_profiles_endpoint {
            args.endpoint = Some(profile.s3.endpoint);
            args.region = args.region.take().or(Some(profile.s3.region));
            args.access_key = Some(profile.s3.access_key_id);
            args.secret_key = Some(profile.s3.secret_access_key);
            if args.pids.is_empty() {
                let (alive, gone): (Vec<u32>, Vec<u32>) = profile
                    .nodes
                    .into_iter()
                    .map(|node| node.pid)
                    .partition(|pid| process::usage(*pid).is_ok());
                if !gone.is_empty() {
                    eprintln!(
                        "{} of the profile's processes are not on this machine or have ended ({}): their cost is not measured",
                        gone.len(),
                        gone.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
                    );
                }
                args.pids = alive;
            }
        }
    }
    let endpoint = args.endpoint.take().context("give --endpoint or --profile")?;
    let credentials = Credentials {
        access_key: args.access_key.take().context("give --access-key or AWS_ACCESS_KEY_ID")?,
        secret_key: args.secret_key.take().context("give --secret-key or AWS_SECRET_ACCESS_KEY")?,
        region: args.region.take().unwrap_or_else(|| "us-east-1".to_owned()),
    };
    Target::new(&endpoint, credentials, args.payload)
}

async fn make_bucket(target: &Arc<Target>, bucket: &str) -> anyhow::Result<()> {
    let path = format!("/{bucket}");
    let mut client = Client::new(Arc::clone(target));
    match client.call(Method::PUT, &path, &[], Content::empty(), |_, _| ()).await {
        Outcome::Done(_) => Ok(()),
        Outcome::Failed(code) if code == "BucketAlreadyOwnedByYou" || code == "BucketAlreadyExists" => Ok(()),
        Outcome::Failed(code) if code == "connection" => {
            bail!("nothing answers at {}; is the server up, and is this its S3 port?", target.address)
        }
        Outcome::Failed(code) => {
            bail!("bucket {bucket:?} cannot be made: {code}; check the key and --region")
        }
    }
}

/// One row: what its clients share.
struct Run {
    target: Arc<Target>,
    bucket: String,
    prefix: String,
    size: u64,
    get_percent: u8,
    is_verified: bool,
    op: Op,
    /// Objects `0..prepared` were there before the clock ran.
    prepared: u64,
    /// Objects that puts have made, counted behind the prepared ones.
    next_put: AtomicU64,
    next_delete: AtomicU64,
    done: AtomicU64,
}

/// What one client saw.
#[derive(Default)]
struct Tally {
    latencies: Latencies,
    bytes: u64,
    errors: BTreeMap<String, u64>,
}

impl Tally {
    fn merge(&mut self, other: Self) {
        self.latencies.merge(&other.latencies);
        self.bytes += other.bytes;
        other.errors.into_iter().for_each(|(code, count)| *self.errors.entry(code).or_default() += count);
    }

    fn fail(&mut self, code: String) {
        *self.errors.entry(code).or_default() += 1;
    }
}

async fn measure(run: &Arc<Run>, clients: usize, args: &Args) -> anyhow::Result<Row> {
    run.prepare().await?;
    if args.warmup_seconds > 0 && run.op != Op::Delete {
        run.load(clients, Duration::from_secs(args.warmup_seconds)).await?;
    }
    let servers = Watch::start(&args.pids)?;
    let this_client = Watch::start(&[std::process::id()])?;
    let whole = Duration::from_secs(args.seconds);
    let title = format!("{} {} {clients} clients", run.op.as_str(), report::size_text(run.size));
    let bar = progress(&title, whole);
    run.done.store(0, Ordering::Relaxed);

    let started_at = stopwatch();
    let ticking = {
        let (run, bar) = (Arc::clone(run), bar.clone());
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(PROGRESS_INTERVAL).await;
                let elapsed = started_at.elapsed();
                bar.set_position(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
                let per_second = run.done.load(Ordering::Relaxed) as f64 / elapsed.as_secs_f64();
                bar.set_message(format!("{per_second:.0}/s"));
            }
        })
    };
    let tally = run.load(clients, whole).await;
    let elapsed = started_at.elapsed();
    ticking.abort();
    bar.finish_and_clear();

    let tally = tally?;
    let server_cost = if args.pids.is_empty() { None } else { Some(servers.stop()?) };
    let Cost { cpu: client_cpu, .. } = this_client.stop()?;
    Ok(Row {
        size_bytes: run.size,
        clients,
        elapsed,
        bytes: tally.bytes,
        latencies: tally.latencies,
        errors: tally.errors,
        server_cost,
        client_cpu,
    })
}

impl Run {
    fn key(&self, number: u64) -> String {
        format!("/{}/{}/{number:08}", self.bucket, self.prefix)
    }

    /// Loads with `clients` for `time`.
    async fn load(self: &Arc<Self>, clients: usize, time: Duration) -> anyhow::Result<Tally> {
        let until = stopwatch() + time;
        let mut tasks = JoinSet::new();
        for seed in 0..clients {
            tasks.spawn(Arc::clone(self).one_client(until, seed as u64));
        }
        let mut whole = Tally::default();
        while let Some(tally) = tasks.join_next().await {
            whole.merge(tally.context("a client of the load stopped")?);
        }
        Ok(whole)
    }

    async fn one_client(self: Arc<Self>, until: Instant, seed: u64) -> Tally {
        let mut client = Client::new(Arc::clone(&self.target));
        let mut random = SmallRng::seed_from_u64(seed);
        let mut tally = Tally::default();
        while stopwatch() < until {
            let is_get = match self.op {
                Op::Mixed => random.random_range(0..100) < self.get_percent,
                op => op == Op::Get,
            };
            let started_at = stopwatch();
            let outcome = match self.op {
                Op::List => self.list(&mut client).await,
                Op::Head => self.call(&mut client, Method::HEAD, random.random_range(0..self.prepared)).await,
                Op::Delete => {
                    let number = self.next_delete.fetch_add(1, Ordering::Relaxed);
                    if number >= self.prepared {
                        break;
                    }
                    self.call(&mut client, Method::DELETE, number).await
                }
                _ if is_get => self.get(&mut client, random.random_range(0..self.prepared)).await,
                _ => {
                    let number = self.prepared + self.next_put.fetch_add(1, Ordering::Relaxed);
                    self.put(&mut client, number).await
                }
            };
            match outcome {
                Outcome::Done(bytes) => {
                    tally.latencies.add(started_at.elapsed());
                    tally.bytes += bytes;
                    self.done.fetch_add(1, Ordering::Relaxed);
                }
                Outcome::Failed(code) => {
                    tally.fail(code);
                    tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
                }
            }
        }
        tally
    }

    async fn put(&self, client: &mut Client, number: u64) -> Outcome {
        let key = self.key(number);
        let content = Content::new(Pattern::of_key(&key), self.size);
        match client.call(Method::PUT, &key, &[], content, |_, _| ()).await {
            Outcome::Done(_) => Outcome::Done(self.size),
            failed => failed,
        }
    }

    async fn get(&self, client: &mut Client, number: u64) -> Outcome {
        let key = self.key(number);
        let pattern = Pattern::of_key(&key);
        let mut is_right = true;
        let check = |offset: u64, bytes: &[u8]| {
            if self.is_verified {
                is_right &= pattern.holds(offset, bytes);
            }
        };
        match client.call(Method::GET, &key, &[], Content::empty(), check).await {
            Outcome::Done(bytes) if bytes != self.size => Outcome::Failed(report::WRONG_LENGTH.to_owned()),
            Outcome::Done(_) if !is_right => Outcome::Failed(report::WRONG_BYTES.to_owned()),
            outcome => outcome,
        }
    }

    async fn list(&self, client: &mut Client) -> Outcome {
        let (path, prefix) = (format!("/{}", self.bucket), format!("{}/", self.prefix));
        let query = [("list-type", "2"), ("max-keys", LIST_PAGE_KEYS), ("prefix", prefix.as_str())];
        client.call(Method::GET, &path, &query, Content::empty(), |_, _| ()).await
    }

    async fn call(&self, client: &mut Client, method: Method, number: u64) -> Outcome {
        client.call(method, &self.key(number), &[], Content::empty(), |_, _| ()).await
    }

    async fn prepare(self: &Arc<Self>) -> anyhow::Result<()> {
        let failures = self.for_each_object(self.prepared, true).await;
        if let Some((code, count)) = failures.first_key_value() {
            bail!("{count} of {} objects could not be prepared: {code}", self.prepared);
        }
        Ok(())
    }

    async fn remove_all(self: &Arc<Self>) {
        let made = self.prepared + self.next_put.load(Ordering::Relaxed);
        let failures = self.for_each_object(made, false).await;
        for (code, count) in failures.iter().filter(|(code, _)| *code != "NoSuchKey") {
            tracing::warn!(
                "{count} objects below {}/{} could not be removed: {code}",
                self.bucket,
                self.prefix
            );
        }
    }

    /// Puts or deletes objects `0..count`; returns the failures by code.
    async fn for_each_object(self: &Arc<Self>, count: u64, is_put: bool) -> BTreeMap<String, u64> {
        let next = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        for _ in 0..HOUSEKEEPING_CLIENTS {
            let (run, next) = (Arc::clone(self), Arc::clone(&next));
            tasks.spawn(async move {
                let (mut client, mut failures) = (Client::new(Arc::clone(&run.target)), Tally::default());
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return failures.errors;
                    }
                    let outcome = if is_put {
                        run.put(&mut client, number).await
                    } else {
                        run.call(&mut client, Method::DELETE, number).await
                    };
                    if let Outcome::Failed(code) = outcome {
                        failures.fail(code);
                    }
                }
            });
        }
        let mut whole = Tally::default();
        while let Some(Ok(errors)) = tasks.join_next().await {
            whole.merge(Tally { errors, ..Tally::default() });
        }
        whole.errors
    }
}

/// `4KiB`, `1MiB`, `64MB`, `1GiB` or plain bytes.
fn parse_size(text: &str) -> Result<u64, String> {
    const OBJECT_BYTES_MAX: u64 = 5 * (1 << 30); // S3's bound on one PUT.
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let factor = match &text[digits.len()..] {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "KB" | "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        unit => return Err(format!("unit {unit:?} is none of B, KiB, MiB, GiB, KB, MB, GB")),
    };
    let size = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    size.filter(|size| *size <= OBJECT_BYTES_MAX)
        .ok_or_else(|| format!("{text:?} is no size of an object; write e.g. 4KiB, at most 5GiB"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        let good =
            [("0", 0), ("7B", 7), ("4KiB", 4096), ("1MB", 1_000_000), ("64MiB", 64 << 20), ("5GiB", 5 << 30)];
        for (text, size) in good {
            assert_eq!(parse_size(text), Ok(size));
        }
        for wrong in ["", "KiB", "4K", "-1", "1.5MiB", "6GiB", "99999999999999999999", "4 KiB"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }
}
