//! Promise: ordinary programs work on a mounted bucket of a real cluster, over TLS too, and a database outlives the death
//! of the mount under it. Where the machine does not mount, the test says so and passes; programs that it lacks are left out.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
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
    let cluster = Cluster::start(options).await?;
    cluster.s3(1).create_bucket(BUCKET, None).await?;
    let address = |at: usize| cluster.nodes[at].config.grpc.listen.context("no gRPC door");
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
        .await
        .context("databases")?;
    let profile = write_profile_of(&cluster, &[plain])?;
    let other = Mounted::start(&profile, BUCKET, mounts.join("other"), &[])?.context("mounted")?;
    everyone(&cluster, &mounted, &other).await.context("mounts and S3 at once")?;
    other.unmount().await?;
    mounted.unmount().await?;
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
c=sqlite3.connect(sys.argv[1]+'.db',timeout=60)
c.execute('pragma journal_mode='+sys.argv[1])
c.execute('pragma synchronous=full')
c.execute('create table if not exists t(a integer primary key,b)')
i=c.execute('select coalesce(max(a),0) from t').fetchone()[0]
while True:
 i+=1
 c.execute('insert into t values(?,?)',(i,'x'*(i%3000)))
 c.commit()
 print(i,flush=True)";
const READER: &str = "import sqlite3,sys
c=sqlite3.connect(sys.argv[1]+'.db',timeout=60)
assert c.execute('pragma integrity_check').fetchone()[0]=='ok'
n,m=c.execute('select count(*),coalesce(max(a),0) from t').fetchone()
assert n==m,(n,m)
print(n)";

/// A database is written to while the mount under it is killed: what was committed is there, whole.
async fn databases(
    mut mounted: Mounted,
    again: impl Fn() -> anyhow::Result<Option<Mounted>>,
) -> anyhow::Result<Mounted> {
    if !run("python3", &["-c", "import sqlite3"], Path::new("/"))? {
        return Ok(mounted);
    }
    for round in 0..KILLS {
        // Not `wal`: its index is shared memory, which outlives no mount, and SQLite keeps it off network filesystems for that.
        for mode in ["delete"] {
            let mut writer = Command::new("python3")
                .args(["-c", WRITER, mode])
                .current_dir(&mounted.path)
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()?;
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
            // Locks of the dead mount end with its lease.
            let found = wait::until("the database opens with all of it", Duration::from_secs(90), || async {
                let output =
                    Command::new("python3").args(["-c", READER, mode]).current_dir(&mounted.path).output()?;
                ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                let found: u64 = String::from_utf8_lossy(&output.stdout).trim().parse()?;
                ensure!(found >= committed, "{mode}: {found} rows, {committed} were committed");
                Ok::<u64, anyhow::Error>(found)
            })
            .await?;
            ensure!(
                found == committed || found == committed + 1,
                "{mode}: {found} rows, {committed} were committed"
            );
        }
    }
    Ok(mounted)
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
                fs::File::open(mount(who).at(&format!("everyone/{folder}")))?.sync_all()?;
                model.remove(&name);
            }
            (who, _, is_there) => {
                let to = format!("everyone/{folder}/g{}", dice.random_range(0..3));
                let done = fs::rename(mount(who).at(&name), mount(who).at(&to));
                ensure!(
                    done.is_ok() == is_there,
                    "step {step}: {who:?} moved {name}: {done:?}; there: {is_there}"
                );
                fs::File::open(mount(who).at(&format!("everyone/{folder}")))?.sync_all()?;
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
