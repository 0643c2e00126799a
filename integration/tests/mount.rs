//! Promise: a bucket is a filesystem. What one mount writes, S3 and other mounts read, and back; nodes may die under it
//! without an error; a mount that dies leaves nothing half-visible and its locks end; what was synced outlives the end of
//! every process at once.
//!
//! Other people's suites run on it too, where `./test` has installed them: `fsx`, and `pjdfstest` as far as time allows;
//! `MAKAI_TEST_SUITES=all` runs all of it, for minutes. Where the machine has no `/dev/fuse` or nobody may mount, the test
//! says so and passes.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use http::Method;
use makai_integration::cluster::{Cluster, ClusterOptions, makai};
use makai_integration::hooks::Hook;
use makai_integration::load::seed;
use makai_integration::mounts::{Mounted, may_mount, write_profile};
use makai_integration::s3::{Ask, Content};
use makai_integration::wait;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use rustix::fs::{FlockOperation, flock};

const BUCKET: &str = "files";
const SUITE_ENDS_WITHIN: Duration = Duration::from_secs(900);
/// Changes are pushed within milliseconds; the deadline only ends a test that fails.
const SEEN_WITHIN: Duration = Duration::from_secs(10);
/// Webhooks are told by a loop of a second.
const TOLD_WITHIN: Duration = Duration::from_secs(30);
/// A lease of 30 s, and time to notice.
const LOCK_FREE_WITHIN: Duration = Duration::from_secs(60);
/// Longest that one file may take while a node dies: a busy machine elects in seconds.
const STALL_MAX: Duration = Duration::from_secs(20);
/// Written while a node dies.
const FILES_PER_ROUND: u64 = 60;

/// Looks at a file of a mount until it holds this.
async fn eventually(path: &Path, expected: &[u8]) -> anyhow::Result<()> {
    wait::until(&format!("{} is seen", path.display()), SEEN_WITHIN, || async {
        let found = fs::read(path)?;
        ensure!(found == expected, "it has {} bytes, {} are expected", found.len(), expected.len());
        anyhow::Ok(())
    })
    .await
}

fn create(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let mut file = File::create_new(path).with_context(|| format!("make {path:?}"))?;
    file.write_all(bytes)?;
    file.sync_all().with_context(|| format!("sync {path:?}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_is_a_filesystem_whatever_dies() -> anyhow::Result<()> {
    if !may_mount() {
        println!("skipped: this machine does not mount: no root, or no /dev/fuse");
        return Ok(());
    }
    let mut cluster = Cluster::start(ClusterOptions::default()).await?;
    cluster.s3(0).create_bucket(BUCKET, None).await?;
    let profile = write_profile(&cluster)?;
    let mounts = cluster.dir().join("mounts");
    let (one, other) = (
        Mounted::start(&profile, BUCKET, mounts.join("one"), &[])?,
        Mounted::start(&profile, BUCKET, mounts.join("other"), &["-o", "durable-close,dirsync"])?,
    );
    let (Some(mut one), Some(other)) = (one, other) else {
        println!("skipped: this machine does not mount");
        return cluster.finish().await;
    };

    s3_and_back(&cluster, &one, &other).await.context("S3 and back")?;
    two_mounts(&one, &other).await.context("two mounts")?;
    webhooks_hear_of_files(&cluster, &one, &other).await.context("webhooks")?;
    let trusted =
        Mounted::start(&profile, BUCKET, mounts.join("trusted"), &["--trusted"])?.context("mounted")?;
    suites(&trusted).context("other people's suites")?;
    trusted.unmount().await?;
    one_over_another(&profile, mounts.join("stack")).await.context("one mount over another")?;

    // The first mount dies with a lock, with synced bytes, and with bytes that are not.
    let locked = File::create(one.at("locked"))?;
    flock(&locked, FlockOperation::LockExclusive)?;
    create(&one.at("synced"), &Content::new("synced", 300_000).bytes())?;
    let mut torn = File::create_new(one.at("torn"))?;
    torn.write_all(&[1; 100_000])?;
    let contender = OpenOptions::new().read(true).write(true).open(other.at("locked"))?;
    let refused = flock(&contender, FlockOperation::NonBlockingLockExclusive);
    ensure!(refused == Err(rustix::io::Errno::WOULDBLOCK), "a lock of another mount is seen: {refused:?}");
    one.kill()?;
    drop((locked, torn));
    let size = fs::metadata(other.at("torn"))?.len();
    ensure!(size == 0 || size == 100_000, "{size} bytes of 100000 are half a write");
    ensure!(
        fs::read(other.at("synced"))? == Content::new("synced", 300_000).bytes(),
        "synced bytes are lost"
    );
    let one =
        Mounted::start(&profile, BUCKET, mounts.join("one"), &[])?.context("a dead mount is taken off")?;
    eventually(&one.at("synced"), &Content::new("synced", 300_000).bytes()).await?;

    let mut written = nodes_die(&mut cluster, &other).await.context("nodes die")?;
    wait::until("the lock of the dead mount ends", LOCK_FREE_WITHIN, || async {
        flock(&contender, FlockOperation::NonBlockingLockExclusive)
    })
    .await?;
    drop(contender);

    // Everything dies at once.
    let dice = &mut StdRng::seed_from_u64(seed());
    for at in 0..20 {
        let content = Content::new(format!("last/{at}"), dice.random_range(1..200_000));
        create(&other.at(&format!("last-{at}")), &content.bytes())?;
        written.insert(format!("last-{at}"), content);
    }
    let all: Vec<usize> = (0..cluster.nodes.len()).collect();
    cluster.kill(&all);
    drop((one, other));
    cluster.restart(&all).await?;
    cluster.wait_formed().await?;
    let again =
        Mounted::start(&profile, BUCKET, mounts.join("again"), &["--read-only"])?.context("mounted again")?;
    for (name, content) in &written {
        let found = fs::read(again.at(name)).with_context(|| format!("read {name}"))?;
        ensure!(found == content.bytes(), "{name} was synced, and is another after the end of all processes");
        cluster.s3(3).check(BUCKET, name, content).await?;
    }
    let refused = File::create(again.at("new")).map_err(|error| error.raw_os_error());
    ensure!(refused.is_err_and(|errno| errno == Some(30)), "a read-only mount refuses");
    again.unmount().await?;
    cluster.finish().await
}

/// A second mount on a directory has to be asked for, and only it goes when it is taken off.
async fn one_over_another(profile: &Path, path: PathBuf) -> anyhow::Result<()> {
    let lower = Mounted::start(profile, BUCKET, path.clone(), &["--read-only"])?.context("mounted")?;
    let text = |path: &Path| path.to_str().map(str::to_owned).context("a UTF-8 path");
    let twice = makai(&["mount", "--profile", &text(profile)?, BUCKET, &text(&path)?])?;
    let said = String::from_utf8_lossy(&twice.stderr).into_owned();
    ensure!(!twice.status.success() && said.contains("--over"), "a second mount was not refused: {said}");
    let upper = Mounted::start(profile, BUCKET, path, &["--over"])?.context("mounted over it")?;
    File::create(upper.at("of-the-upper"))?;
    upper.unmount().await?;
    let refused = File::create(lower.at("new")).map_err(|error| error.raw_os_error());
    ensure!(
        refused.is_err_and(|errno| errno == Some(30)),
        "the lower one, which is read-only, is still there"
    );
    lower.unmount().await
}

async fn s3_and_back(cluster: &Cluster, one: &Mounted, other: &Mounted) -> anyhow::Result<()> {
    for (at, length) in [0, 1, 4096, 70_000, 3_000_000].into_iter().enumerate() {
        let put = Content::new(format!("put/{length}"), length);
        cluster.s3(at).put(BUCKET, &format!("from-s3/{length}"), &put).await?;
        for mount in [one, other] {
            eventually(&mount.at(&format!("from-s3/{length}")), &put.bytes()).await?;
        }
        let made = Content::new(format!("made/{length}"), length);
        fs::create_dir_all(one.at("from-mount"))?;
        create(&one.at(&format!("from-mount/{length}")), &made.bytes())?;
        cluster.s3(at + 1).check(BUCKET, &format!("from-mount/{length}"), &made).await?;
        eventually(&other.at(&format!("from-mount/{length}")), &made.bytes()).await?;
    }
    // What a program does not say, its file's name does; who puts says it itself, or nobody knows.
    create(&one.at("from-mount/picture.png"), b"as good as one")?;
    cluster.s3(1).put(BUCKET, "from-s3/picture.png", &Content::new("untold", 10)).await?;
    for (key, expected) in
        [("from-mount/picture.png", "image/png"), ("from-s3/picture.png", "binary/octet-stream")]
    {
        let found = cluster.s3(2).get(BUCKET, key).await?;
        ensure!(found.header("content-type") == expected, "{key} is {}", found.header("content-type"));
    }
    // Content that lies in the metadata is edited, and what comes next is not taken for the same request.
    for at in 0..8 {
        let name = format!("from-s3/small-{at}");
        cluster.s3(0).put(BUCKET, &name, &Content::new("small", 100)).await?;
        let mut expected = Content::new("small", 100).bytes().to_vec();
        wait::until("it is there", SEEN_WITHIN, || async { fs::metadata(one.at(&name)) }).await?;
        let mut file = OpenOptions::new().append(true).open(one.at(&name))?;
        file.write_all(b"and more")?;
        file.sync_all()?;
        create(&one.at(&format!("beside-{at}")), b"beside")?;
        expected.extend_from_slice(b"and more");
        ensure!(fs::read(one.at(&name))? == expected, "{name} is another than was written");
        let found = cluster.s3(2).get(BUCKET, &name).await?;
        ensure!(found.body[..] == expected[..], "S3 has {} bytes of {name}", found.body.len());
        cluster.s3(2).get(BUCKET, &format!("beside-{at}")).await?;
    }
    cluster.s3(0).delete(BUCKET, "from-s3/70000").await?;
    for mount in [one, other] {
        wait::until("a deleted object is gone", SEEN_WITHIN, || async {
            ensure!(!mount.at("from-s3/70000").exists(), "it is there");
            anyhow::Ok(())
        })
        .await?;
    }
    fs::rename(one.at("from-mount"), one.at("renamed"))?;
    let keys = cluster.s3(4).list(BUCKET, "renamed/").await?;
    ensure!(keys.iter().any(|(key, size)| key == "renamed/3000000" && *size == 3_000_000), "{keys:?}");
    Ok(())
}

async fn two_mounts(one: &Mounted, other: &Mounted) -> anyhow::Result<()> {
    // Appended by both at once: every line is there once, whole.
    const LINES: usize = 60;
    File::create_new(one.at("log"))?;
    wait::until("the file is seen", SEEN_WITHIN, || async { fs::metadata(other.at("log")) }).await?;
    let writers = [one, other].map(|mount| {
        let path = mount.at("log");
        let name = path.parent().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
        tokio::task::spawn_blocking(move || -> anyhow::Result<()> {
            let mut file = OpenOptions::new().append(true).open(&path)?;
            for at in 0..LINES {
                file.write_all(format!("{} {at}\n", name.as_deref().unwrap_or_default()).as_bytes())?;
                if at % 7 == 0 {
                    file.sync_all()?;
                }
            }
            Ok(file.sync_all()?)
        })
    });
    for writer in writers {
        writer.await??;
    }
    wait::until("both mounts see all lines", SEEN_WITHIN, || async {
        for mount in [one, other] {
            let text = fs::read_to_string(mount.at("log"))?;
            let mut lines: Vec<&str> = text.lines().collect();
            lines.sort_unstable();
            lines.dedup();
            ensure!(lines.len() == 2 * LINES, "{} of {} lines", lines.len(), 2 * LINES);
            ensure!(text.lines().count() == 2 * LINES, "lines are there twice");
        }
        Ok(())
    })
    .await?;

    // One of two wins, always.
    for at in 0..10 {
        let makers = [one, other].map(|mount| {
            let path = mount.at(&format!("exclusive-{at}"));
            tokio::task::spawn_blocking(move || File::create_new(path).is_ok())
        });
        let mut winners = 0;
        for maker in makers {
            winners += usize::from(maker.await?);
        }
        ensure!(winners == 1, "{winners} made exclusive-{at}");
    }

    // A file that is removed elsewhere can be read by who has it open.
    create(&one.at("removed"), &[7; 50_000])?;
    wait::until("the file is seen", SEEN_WITHIN, || async { fs::metadata(other.at("removed")) }).await?;
    let mut open = File::open(other.at("removed"))?;
    fs::remove_file(one.at("removed"))?;
    let mut bytes = Vec::new();
    open.read_to_end(&mut bytes)?;
    ensure!(bytes == [7; 50_000], "an open file outlives its name on every mount");
    Ok(())
}

/// What programs make, write, rename and remove through mounts is told: who replays it has what is there.
async fn webhooks_hear_of_files(cluster: &Cluster, one: &Mounted, other: &Mounted) -> anyhow::Result<()> {
    let hook = Hook::start().await?;
    let rule = format!(
        "<QueueConfiguration><Queue>arn:makai:webhook:::{}</Queue><Event>s3:ObjectCreated:*</Event>\
         <Event>s3:ObjectRemoved:*</Event><Filter><S3Key><FilterRule><Name>prefix</Name><Value>told/</Value>\
         </FilterRule></S3Key></Filter></QueueConfiguration>",
        hook.url
    );
    let configure = |rule: &str| {
        let xml = format!("<NotificationConfiguration>{rule}</NotificationConfiguration>");
        Ask::new(Method::PUT, format!("/{BUCKET}")).query("notification", "").body(xml)
    };
    cluster.s3(1).send(configure(&rule)).await?;
    let heard = |step: &'static str| {
        let hook = &hook;
        wait::until(step, TOLD_WITHIN, move || async move {
            let there: BTreeMap<_, _> = cluster.s3(2).list(BUCKET, "told/").await?.into_iter().collect();
            let replayed = hook.replayed();
            ensure!(there == replayed, "there is {there:?}, told was {replayed:?}");
            anyhow::Ok(there)
        })
    };
    fs::create_dir(one.at("told"))?;
    for (name, len) in [("a", 5), ("b", 70_000), ("c", 0)] {
        create(&one.at(&format!("told/{name}")), &Content::new(name, len).bytes())?;
    }
    create(&one.at("untold"), b"by no rule")?;
    // The directory is a key, too.
    ensure!(heard("files that are made").await?.len() == 4, "a file is not there");
    wait::until("the file is seen", SEEN_WITHIN, || async { fs::metadata(other.at("told/a")) }).await?;
    let mut file = OpenOptions::new().append(true).open(other.at("told/a"))?;
    file.write_all(b"and more")?;
    file.sync_all()?;
    ensure!(heard("a file that is written").await?.get("told/a") == Some(&13), "it is not longer");
    fs::rename(one.at("told/b"), one.at("told/d"))?;
    fs::remove_file(one.at("told/c"))?;
    File::open(one.at("told"))?.sync_all()?;
    let left = heard("a file that is renamed, and one that is removed").await?;
    ensure!(left.keys().eq(["told/", "told/a", "told/d"]), "there are {left:?}");
    fs::remove_dir_all(other.at("told"))?;
    File::open(other.at(""))?.sync_all()?;
    ensure!(heard("files that are removed").await?.is_empty(), "a file is there");
    let events = hook.events();
    for key in ["a", "b", "c", "d"].map(|name| format!("told/{name}")) {
        let told = |event: &str| events.contains(&(event.to_owned(), key.clone()));
        ensure!(told("ObjectCreated:Put") && told("ObjectRemoved:Delete"), "of {key}: {events:?}");
    }
    ensure!(events.iter().all(|(_, key)| key.starts_with("told/")), "told beyond the rule: {events:?}");
    cluster.s3(1).send(configure("")).await?;
    Ok(())
}

/// Runs what `./test` has installed into `target/suites`.
fn suites(mount: &Mounted) -> anyhow::Result<()> {
    let bin = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/suites/bin");
    let conformance = Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance");
    let is_all = std::env::var("MAKAI_TEST_SUITES").is_ok_and(|wish| wish == "all");
    if !bin.join("fsx").exists() || !bin.join("pjdfstest").exists() {
        println!("skipped: no fsx and pjdfstest in {}: ./test installs them", bin.display());
        return Ok(());
    }
    for seed in if is_all { 1..=5 } else { 1..=1 } {
        let operations = if is_all { "20000" } else { "1500" };
        let mut fsx = Command::new(bin.join("fsx"));
        fsx.arg("-f")
            .arg(conformance.join("fsx.toml"))
            .args(["-N", operations, "-S", &seed.to_string()])
            .arg(mount.at(&format!("fsx-{seed}")));
        let fsx = wait::output(fsx, SUITE_ENDS_WITHIN)?;
        ensure!(fsx.status.success(), "fsx, seed {seed}: {}", String::from_utf8_lossy(&fsx.stderr));
    }
    let folder = mount.at("pjdfstest");
    fs::create_dir(&folder)?;
    let parts: &[&str] = if is_all { &[""] } else { &["rename::", "truncate::", "link::"] };
    for part in parts {
        let mut suite = Command::new(bin.join("pjdfstest"));
        suite
            .arg("-c")
            .arg(conformance.join("pjdfstest.toml"))
            .arg("-p")
            .arg(&folder)
            .args(["-s", "/dev/shm"]);
        suite.args(Some(part).filter(|part| !part.is_empty()));
        let done = wait::output(suite, SUITE_ENDS_WITHIN)?;
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        let summary = said.lines().find(|line| line.starts_with("Summary")).unwrap_or("it said nothing");
        println!("pjdfstest {part}: {summary}");
        ensure!(done.status.success() && summary.contains(" 0 failed"), "pjdfstest {part}: {said}");
    }
    Ok(())
}

/// Nodes die while files are written and read: first the one whose gateway is asked, then the leader.
async fn nodes_die(cluster: &mut Cluster, mount: &Mounted) -> anyhow::Result<BTreeMap<String, Content>> {
    let mut written = BTreeMap::new();
    for round in 0..2 {
        let leader = cluster.leader().await?;
        let victim = if round == 0 { usize::from(leader == 0) } else { leader };
        let path = mount.path.clone();
        // Room for every file: the writer never waits for who counts.
        let (tell, mut told) = tokio::sync::mpsc::channel(FILES_PER_ROUND as usize);
        let worker =
            tokio::task::spawn_blocking(move || -> anyhow::Result<(BTreeMap<String, Content>, Duration)> {
                let (mut written, mut longest) = (BTreeMap::new(), Duration::ZERO);
                for at in 0..FILES_PER_ROUND {
                    let name = format!("round-{round}-{at}");
                    let length = if at % 10 == 0 { 2_000_000 } else { 3_000 * at };
                    let content = Content::new(&name, length);
                    let begun = makai::clock::instant();
                    create(&path.join(&name), &content.bytes())?;
                    let back = fs::read(path.join(&name)).with_context(|| format!("read {name}"))?;
                    ensure!(back == content.bytes(), "{name} is read as another");
                    longest = longest.max(begun.elapsed());
                    written.insert(name, content);
                    let _ = tell.try_send(at);
                }
                Ok((written, longest))
            });
        while told.recv().await.is_some_and(|at| at < 10) {}
        cluster.kill(&[victim]);
        let (files, longest) = worker.await??;
        println!("round {round}: node {victim} killed (leader {leader}); longest stall {longest:.2?}");
        ensure!(longest < STALL_MAX, "a file took {longest:.2?}");
        written.extend(files);
        cluster.restart(&[victim]).await?;
        cluster.wait_formed().await?;
    }
    Ok(written)
}
