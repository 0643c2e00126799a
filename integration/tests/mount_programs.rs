//! Promise: ordinary programs work on a mounted bucket of a real cluster, over TLS too, and a database outlives the death
//! of the mount under it. What a mount decides alone about names is what a pool would have decided, whoever dies and whoever
//! else comes. Where the machine does not mount, the test says so and passes; programs that it lacks are left out.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use makai_integration::cluster::{Cluster, ClusterOptions};
use makai_integration::load::seed;
use makai_integration::mounts::{Mounted, may_mount, write_profile_of};
use makai_integration::s3::Content;
use makai_integration::wait;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

const BUCKET: &str = "programs";
/// The gateway that speaks TLS; the others do not.
const SECURE: usize = 0;
const SEEN_WITHIN: Duration = Duration::from_secs(10);
/// Times that the mount is killed under the database.
const KILLS: usize = 3;
/// Steps of mounts and S3, compared after each.
const STEPS: usize = 400;
/// Files that a mount makes until it dies, or a gateway does.
const FILES: usize = 400;
/// The one that is synced.
const SYNCED: usize = 250;
/// Names that two mounts want at once.
const CONTESTED: usize = 120;
/// A directory that a dead mount had alone is another's after 5 s, a gateway that died is left within seconds.
const STALL_MAX: Duration = Duration::from_secs(20);

/// Runs a program to its end; `false`: this machine has none.
fn run(program: &str, arguments: &[&str], folder: &Path) -> anyhow::Result<bool> {
    let output = match Command::new(program).args(arguments).current_dir(folder).output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            println!("skipped: no {program} on this machine");
            return Ok(false);
        }
        output => output?,
    };
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {arguments:?}: {said}");
    Ok(true)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_work_and_a_database_outlives_its_mount() -> anyhow::Result<()> {
    if !may_mount() {
        println!("skipped: this machine does not mount: no root, or no /dev/fuse");
        return Ok(());
    }
    let keys = tempfile::tempdir()?;
    let (certificate, key) = (keys.path().join("certificate.pem"), keys.path().join("key.pem"));
    let request = [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=DNS:localhost",
        "-addext",
        "basicConstraints=critical,CA:FALSE",
        "-keyout",
        "key.pem",
        "-out",
        "certificate.pem",
    ];
    let has_tls = run("openssl", &request, keys.path())?;
    let (tls_certificate, tls_key) = (certificate.clone(), key.clone());
    let options = ClusterOptions {
        change: Box::new(move |at, config| {
            if at == SECURE && has_tls {
                config.s3.tls_cert = Some(tls_certificate.clone());
                config.s3.tls_key = Some(tls_key.clone());
            }
        }),
        ..ClusterOptions::default()
    };
    let mut cluster = Cluster::start(options).await?;
    cluster.s3(1).create_bucket(BUCKET, None).await?;
    let doors: Vec<_> = cluster.nodes.iter().map(|node| node.config.grpc.listen).collect();
    let address = |at: usize| doors[at].context("no gRPC door");
    let plain = format!("http://{}", address(1)?);
    let secure = match has_tls {
        true => format!("https://localhost:{}", address(SECURE)?.port()),
        false => plain.clone(),
    };
    let mounts = cluster.dir().join("mounts");
    let authority = certificate.to_string_lossy().into_owned();
    let trusting = ["--ca", authority.as_str()];
    let options: &[&str] = if has_tls { &trusting } else { &[] };
    let profile = write_profile_of(&cluster, &[secure])?;
    if has_tls {
        let stranger = Mounted::start(&profile, BUCKET, mounts.join("stranger"), &[]);
        ensure!(stranger.is_err(), "a gateway that nobody vouches for is not spoken to");
        let _ = Command::new("umount").arg("-l").arg(mounts.join("stranger")).output();
    }
    let mounted = Mounted::start(&profile, BUCKET, mounts.join("one"), options)?.context("mounted")?;
    programs(&mounted).context("programs")?;
    let mounted = databases(mounted, || Mounted::start(&profile, BUCKET, mounts.join("one"), options))
        .context("databases")?;
    let profile = write_profile_of(&cluster, std::slice::from_ref(&plain))?;
    let other = Mounted::start(&profile, BUCKET, mounts.join("other"), &[])?.context("mounted")?;
    one_mount_has_a_log(&mounted, &other).await.context("a log on two mounts")?;
    mounted.unmount().await?;
    let mut one = Mounted::start(&profile, BUCKET, mounts.join("one"), &[])?.context("mounted")?;
    everyone(&cluster, &one, &other).await.context("mounts and S3 at once")?;
    let synced = make_files(&one, "left").context("files")?;
    one.kill()?;
    a_beginning_is_left(&cluster, &other, synced).await.context("a mount that died")?;
    let profile = write_profile_of(&cluster, &[plain, format!("http://{}", address(2)?)])?;
    let one = Mounted::start(&profile, BUCKET, mounts.join("one"), &[])?.context("mounted")?;
    one_wins(&cluster, &one, &other).await.context("names that two want")?;
    a_gateway_dies(&mut cluster, &one).await.context("a gateway dies")?;
    other.unmount().await?;
    one.unmount().await?;
    cluster.finish().await
}

fn programs(mounted: &Mounted) -> anyhow::Result<()> {
    let origin = mounted.at("origin");
    fs::create_dir(&origin)?;
    if run("git", &["init", "-q", "."], &origin)? {
        for number in 0..120 {
            let folder = origin.join(format!("folder{}", number % 7));
            fs::create_dir_all(&folder)?;
            fs::write(
                folder.join(format!("file{number}")),
                Content::new(number.to_string(), number * 311).bytes(),
            )?;
        }
        run("git", &["add", "."], &origin)?;
        run("git", &["-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "All"], &origin)?;
        run("git", &["clone", "-q", "origin", "clone"], &mounted.path)?;
        run("git", &["fsck", "--strict"], &mounted.at("clone"))?;
        run("git", &["gc", "-q"], &mounted.at("clone"))?;
        run("git", &["fsck", "--strict"], &mounted.at("clone"))?;
        run("diff", &["-r", "-x", ".git", "origin", "clone"], &mounted.path)?;
    }
    if run("tar", &["cf", "all.tar", "origin"], &mounted.path)? {
        fs::create_dir(mounted.at("unpacked"))?;
        run("tar", &["xf", "../all.tar"], &mounted.at("unpacked"))?;
        run("diff", &["-r", "origin", "unpacked/origin"], &mounted.path)?;
        run("tar", &["df", "../all.tar"], &mounted.at("unpacked"))?;
    }
    if run("rsync", &["-a", "--delete", "origin/", "synced/"], &mounted.path)? {
        fs::remove_file(origin.join("folder0/file0"))?;
        run("rsync", &["-a", "--delete", "origin/", "synced/"], &mounted.path)?;
        run("diff", &["-r", "origin", "synced"], &mounted.path)?;
    }
    let package = mounted.at("package");
    fs::create_dir_all(package.join("src"))?;
    fs::write(package.join("Cargo.toml"), "[package]\nname = \"tiny\"\nedition = \"2021\"\n[workspace]\n")?;
    fs::write(package.join("src/main.rs"), "fn main() { println!(\"built on a mount\"); }\n")?;
    if run("cargo", &["build", "-q", "--offline", "--target-dir", "target"], &package)? {
        let output = Command::new(package.join("target/debug/tiny")).output()?;
        ensure!(output.stdout == b"built on a mount\n", "{output:?}");
        run("cargo", &["build", "-q", "--offline", "--target-dir", "target"], &package)?;
    }
    Ok(())
}

/// Counts its commits aloud; each is durable when it is counted.
const WRITER: &str = "import sqlite3,sys
name,journal,synchronous=sys.argv[1:]
c=sqlite3.connect(name+'.db',timeout=60)
c.execute('pragma journal_mode='+journal)
c.execute('pragma synchronous='+synchronous)
c.execute('create table if not exists t(a integer primary key,b)')
i=c.execute('select coalesce(max(a),0) from t').fetchone()[0]
while True:
 i+=1
 c.execute('insert into t values(?,?)',(i,'x'*(i%3000)))
 c.commit()
 print(i,flush=True)";
/// All that is in it, and whole.
const READER: &str = "import sqlite3,sys
c=sqlite3.connect(sys.argv[1]+'.db',timeout=60)
assert c.execute('pragma integrity_check').fetchone()[0]=='ok'
c.execute('create table if not exists t(a integer primary key,b)')
n,m=c.execute('select count(*),coalesce(max(a),0) from t').fetchone()
assert n==m,(n,m)
print(n)";

/// A database as a program may have it.
struct Database {
    name: &'static str,
    journal: &'static str,
    synchronous: &'static str,
    /// Each commit is synced. Otherwise the last may be missing, and nothing more.
    is_each_synced: bool,
}

const DATABASES: [Database; 3] = [
    Database { name: "rollback", journal: "delete", synchronous: "full", is_each_synced: true },
    Database { name: "wal", journal: "wal", synchronous: "full", is_each_synced: true },
    Database { name: "relaxed", journal: "wal", synchronous: "normal", is_each_synced: false },
];

fn writer(mounted: &Mounted, database: &Database) -> anyhow::Result<Child> {
    let Database { name, journal, synchronous, .. } = database;
    let mut python = Command::new("python3");
    let writer = python.args(["-c", WRITER, name, journal, synchronous]).current_dir(&mounted.path);
    Ok(writer.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?)
}

/// How many rows a database has.
fn rows(mounted: &Mounted, database: &Database) -> anyhow::Result<u64> {
    let mut python = Command::new("python3");
    let output = python.args(["-c", READER, database.name]).current_dir(&mounted.path).output()?;
    ensure!(output.status.success(), "{}: {}", database.name, String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).trim().parse()?)
}

/// A database is written to while the mount under it is killed: what was committed is there, whole, as soon as the next
/// mount is: nothing of the dead one stands in the way.
fn databases(
    mut mounted: Mounted,
    again: impl Fn() -> anyhow::Result<Option<Mounted>>,
) -> anyhow::Result<Mounted> {
    if !has_sqlite()? {
        return Ok(mounted);
    }
    for round in 0..KILLS {
        for database in &DATABASES {
            let mut writer = writer(&mounted, database)?;
            let mut lines = BufReader::new(writer.stdout.take().context("no output")?).lines();
            let mut committed = 0u64;
            for _ in 0..5 + 3 * round {
                committed = lines.next().context("the writer ended")??.parse()?;
            }
            mounted.kill()?;
            // What it committed before it noticed counts, too.
            for line in lines.map_while(Result::ok) {
                committed = line.parse()?;
            }
            let _ = writer.kill();
            writer.wait()?;
            mounted = again()?.context("mounted again")?;
            let found = rows(&mounted, database)?;
            let is_all = found >= committed || !database.is_each_synced;
            ensure!(
                is_all && found <= committed + 1,
                "{}: {found} rows, {committed} were committed",
                database.name
            );
        }
    }
    Ok(mounted)
}

/// SQLite's write-ahead log needs memory that its programs share: those of another mount are refused, and miss nothing
/// once they are not.
async fn one_mount_has_a_log(mounted: &Mounted, other: &Mounted) -> anyhow::Result<()> {
    if !has_sqlite()? {
        return Ok(());
    }
    let database = &DATABASES[1];
    let mut writer = writer(mounted, database)?;
    let mut lines = BufReader::new(writer.stdout.take().context("no output")?).lines();
    lines.next().context("the writer ended")??;
    let refused = rows(other, database);
    ensure!(refused.is_err(), "it is open on another mount: {refused:?}");
    writer.kill()?;
    let mut committed = 0u64;
    for line in lines.map_while(Result::ok) {
        committed = line.parse()?;
    }
    writer.wait()?;
    // The kernel gives a dead program's locks back after it.
    let found = wait::until("it opens", SEEN_WITHIN, || async { rows(other, database) }).await?;
    ensure!(found == committed || found == committed + 1, "{found} rows, {committed} were committed");
    Ok(())
}

fn has_sqlite() -> anyhow::Result<bool> {
    run("python3", &["-c", "import sqlite3"], Path::new("/"))
}

/// Who does something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    One,
    Other,
    S3,
}

/// Random steps of two mounts and S3 in the same folders, checked against a map of what must be there: everyone sees the
/// last step of everyone else.
async fn everyone(cluster: &Cluster, one: &Mounted, other: &Mounted) -> anyhow::Result<()> {
    let dice = &mut StdRng::seed_from_u64(seed());
    let mut model: BTreeMap<String, Content> = BTreeMap::new();
    let folders = ["a", "b", "b/c"];
    fs::create_dir_all(one.at("everyone/b/c"))?;
    fs::create_dir_all(one.at("everyone/a"))?;
    wait::until("the folders are seen", SEEN_WITHIN, || async { fs::metadata(other.at("everyone/a")) })
        .await?;
    let mount = |who: Who| if who == Who::One { one } else { other };
    for step in 0..STEPS {
        let who = *[Who::One, Who::One, Who::Other, Who::S3].choose(dice).context("someone")?;
        let folder = folders.choose(dice).context("somewhere")?;
        let name = format!("everyone/{folder}/f{}", dice.random_range(0..8));
        let content = Content::new(format!("{step}"), dice.random_range(0..20_000));
        match (who, dice.random_range(0..10), model.contains_key(&name)) {
            (Who::S3, 0..7, _) => {
                cluster.s3(1 + step % 4).put(BUCKET, &name, &content).await?;
                model.insert(name.clone(), content);
            }
            (Who::S3, _, _) => {
                cluster.s3(1 + step % 4).delete(BUCKET, &name).await?;
                model.remove(&name);
            }
            (who, 0..7, is_there) => {
                let path = mount(who).at(&name);
                let made = fs::OpenOptions::new().write(true).create_new(true).open(&path);
                ensure!(
                    made.is_err() == is_there,
                    "step {step}: {who:?} made {name}: {made:?}; there: {is_there}"
                );
                if let Ok(mut file) = made {
                    file.write_all(&content.bytes())?;
                    file.sync_all()?;
                    model.insert(name.clone(), content);
                }
            }
            (who, 7..9, is_there) => {
                let done = fs::remove_file(mount(who).at(&name));
                ensure!(
                    done.is_ok() == is_there,
                    "step {step}: {who:?} removed {name}: {done:?}; there: {is_there}"
                );
                // A name is gone for everyone once its directory was synced.
                File::open(mount(who).at(&format!("everyone/{folder}")))?.sync_all()?;
                model.remove(&name);
            }
            (who, _, is_there) => {
                let to = format!("everyone/{folder}/g{}", dice.random_range(0..3));
                let done = fs::rename(mount(who).at(&name), mount(who).at(&to));
                ensure!(
                    done.is_ok() == is_there,
                    "step {step}: {who:?} moved {name}: {done:?}; there: {is_there}"
                );
                File::open(mount(who).at(&format!("everyone/{folder}")))?.sync_all()?;
                if let Some(content) = model.remove(&name) {
                    model.insert(to, content);
                }
            }
        }
        let expected: Vec<(String, u64)> =
            model.iter().map(|(name, content)| (name.clone(), content.bytes().len() as u64)).collect();
        let listed = cluster.s3(1 + step % 4).list(BUCKET, "everyone/").await?;
        let listed: Vec<_> = listed.into_iter().filter(|(key, _)| !key.ends_with('/')).collect();
        ensure!(listed == expected, "step {step} of {who:?}: S3 lists {listed:?}, {expected:?} are there");
        for mounted in [one, other] {
            wait::until("mounts see the step", SEEN_WITHIN, || async {
                for folder in folders {
                    let folder = format!("everyone/{folder}");
                    let mut names: Vec<String> = Vec::new();
                    for entry in fs::read_dir(mounted.at(&folder))? {
                        let entry = entry?;
                        if entry.file_type()?.is_file() {
                            names.push(format!("{folder}/{}", entry.file_name().to_string_lossy()));
                        }
                    }
                    names.sort();
                    let expected = model.keys().filter(|name| {
                        name.strip_prefix(&folder)
                            .and_then(|rest| rest.strip_prefix('/'))
                            .is_some_and(|rest| !rest.contains('/'))
                    });
                    let expected: Vec<&String> = expected.collect();
                    ensure!(
                        names.iter().eq(expected.iter().copied()),
                        "step {step}: {names:?}, not {expected:?}"
                    );
                }
                match model.get(&name) {
                    Some(content) => {
                        ensure!(fs::read(mounted.at(&name))? == content.bytes(), "{name} has other bytes");
                    }
                    None => ensure!(!mounted.at(&name).exists(), "{name} is gone"),
                }
                anyhow::Ok(())
            })
            .await?;
        }
    }
    for (name, content) in &model {
        cluster.s3(2).check(BUCKET, name, content).await?;
    }
    Ok(())
}

fn content(folder: &str, at: usize) -> Content {
    Content::new(format!("{folder}/{at}"), 1 + 37 * (at as u64 % 90))
}

fn name(folder: &str, at: usize) -> String {
    format!("{folder}/{at:04}")
}

/// Makes files one after another, and syncs one of them: its number.
fn make_files(mounted: &Mounted, folder: &str) -> anyhow::Result<usize> {
    fs::create_dir(mounted.at(folder))?;
    for at in 0..FILES {
        let mut file = File::create_new(mounted.at(&name(folder, at)))?;
        file.write_all(&content(folder, at).bytes())?;
        if at == SYNCED {
            file.sync_all()?;
        }
    }
    Ok(SYNCED)
}

/// Of what a dead mount decided alone all up to some name is there, and the file that was synced, with all names before it; a
/// file that was not may lack what was written to it. The directory is another's soon.
async fn a_beginning_is_left(cluster: &Cluster, other: &Mounted, synced: usize) -> anyhow::Result<()> {
    let asked_at = makai::clock::instant();
    fs::write(other.at("left/theirs"), b"theirs")?;
    ensure!(asked_at.elapsed() < STALL_MAX, "a dead mount was waited for: {:?}", asked_at.elapsed());
    File::open(other.at("left/theirs"))?.sync_all()?;
    let listed = cluster.s3(3).list(BUCKET, "left/0").await?;
    let expected: Vec<String> = (0..listed.len()).map(|at| name("left", at)).collect();
    ensure!(listed.iter().map(|(key, _)| key).eq(&expected), "names are missing in between: {listed:?}");
    ensure!(listed.len() > synced, "{} names, {synced} was synced", listed.len());
    for (at, (key, size)) in listed.iter().enumerate() {
        let whole = content("left", at).bytes();
        ensure!(
            *size == whole.len() as u64 || (*size == 0 && at != synced),
            "{key} has {size} bytes of {}",
            whole.len()
        );
        ensure!(fs::read(other.at(key))?[..] == whole[..*size as usize], "{key} has other bytes");
    }
    Ok(())
}

/// Two mounts make, and S3 puts, in one directory at once: each name has one maker, and all see all.
async fn one_wins(cluster: &Cluster, one: &Mounted, other: &Mounted) -> anyhow::Result<()> {
    fs::create_dir(one.at("both"))?;
    wait::until("the directory is seen", SEEN_WITHIN, || async { fs::metadata(other.at("both")) }).await?;
    let makers = [one, other].map(|mounted| {
        let path = mounted.path.clone();
        tokio::task::spawn_blocking(move || -> anyhow::Result<Vec<bool>> {
            let mut made = Vec::new();
            for at in 0..CONTESTED {
                made.push(match File::create_new(path.join(name("both", at))) {
                    Ok(mut file) => {
                        file.write_all(&content("both", at).bytes())?;
                        true
                    }
                    Err(error) if error.kind() == ErrorKind::AlreadyExists => false,
                    Err(error) => return Err(error).context(name("both", at)),
                });
            }
            File::open(path.join("both"))?.sync_all()?;
            Ok(made)
        })
    });
    let mut expected: BTreeMap<String, u64> = BTreeMap::new();
    for at in 0..CONTESTED / 6 {
        let put = Content::new(format!("put/{at}"), 100);
        cluster.s3(2 + at % 3).put(BUCKET, &format!("both/put-{at}"), &put).await?;
        cluster.s3(2 + at % 2).check(BUCKET, &format!("both/put-{at}"), &put).await?;
        expected.insert(format!("both/put-{at}"), 100);
    }
    let mut made = Vec::new();
    for maker in makers {
        made.push(maker.await??);
    }
    for (at, (here, there)) in made[0].iter().zip(&made[1]).enumerate() {
        ensure!(here != there, "{} was made by {}", name("both", at), if *here { "both" } else { "nobody" });
        expected.insert(name("both", at), content("both", at).bytes().len() as u64);
    }
    wait::until("all is there", SEEN_WITHIN, || async {
        let listed = cluster.s3(2).list(BUCKET, "both/").await?;
        let listed: BTreeMap<_, _> = listed.into_iter().filter(|(key, _)| key != "both/").collect();
        ensure!(listed == expected, "{listed:?}, not {expected:?}");
        for (key, size) in &expected {
            for mounted in [one, other] {
                ensure!(fs::metadata(mounted.at(key))?.len() == *size, "{key} has another size");
            }
        }
        anyhow::Ok(())
    })
    .await
}

/// The gateway that a mount asks dies while names are decided on the mount: each is made, moved and removed once.
async fn a_gateway_dies(cluster: &mut Cluster, one: &Mounted) -> anyhow::Result<()> {
    let path = one.path.clone();
    let (tell, mut told) = tokio::sync::mpsc::channel(FILES);
    let worker = tokio::task::spawn_blocking(move || -> anyhow::Result<BTreeMap<String, u64>> {
        let mut model = BTreeMap::new();
        fs::create_dir(path.join("dying"))?;
        for at in 0..FILES {
            let (made, moved) = (name("dying", at), format!("dying/moved-{at}"));
            fs::write(path.join(&made), content("dying", at).bytes())?;
            model.insert(made.clone(), content("dying", at).bytes().len() as u64);
            if at % 3 == 1 {
                fs::rename(path.join(&made), path.join(&moved))?;
                let size = model.remove(&made).context("it was made")?;
                model.insert(moved, size);
            }
            if at % 5 == 4 {
                let gone = name("dying", at - 1);
                if model.remove(&gone).is_some() {
                    fs::remove_file(path.join(&gone))?;
                }
            }
            let _ = tell.try_send(at);
        }
        File::open(path.join("dying"))?.sync_all()?;
        Ok(model)
    });
    while told.recv().await.is_some_and(|at| at < FILES / 4) {}
    let asked_at = makai::clock::instant();
    cluster.kill(&[1]);
    let model = worker.await??;
    ensure!(asked_at.elapsed() < STALL_MAX, "{:?} without a gateway", asked_at.elapsed());
    wait::until("S3 has what was decided", SEEN_WITHIN, || async {
        let listed = cluster.s3(3).list(BUCKET, "dying/").await?;
        let listed: BTreeMap<_, _> = listed.into_iter().filter(|(key, _)| key != "dying/").collect();
        ensure!(listed == model, "{listed:?}, not {model:?}");
        anyhow::Ok(())
    })
    .await?;
    cluster.restart(&[1]).await?;
    cluster.wait_formed().await
}
