//! Promise: a job, of a container or of a module's kernels, runs on a machine that holds no customer's key, reads from one
//! bucket and publishes to another; every task of an array has exactly one result, also when a machine dies in the middle;
//! stages go one after the other.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use makai_config::Role;
use makai_integration::cluster::{Cluster, ClusterOptions, makai};
use makai_integration::s3::{Ask, Content};
use makai_integration::wait;
use serde_json::{Value, json};

/// What NVIDIA's compiler made of the kernels of the runtime's tests.
const KERNELS: &str = include_str!("../../gpu-runtime/tests/module/ptx/kernels.ptx");
/// Where Debian's busybox-static puts the one program that the image holds.
const BUSYBOX: [&str; 2] = ["/usr/bin/busybox", "/bin/busybox"];
const TASKS: u64 = 50;
const EXAMPLE_ENDS_WITHIN: Duration = Duration::from_secs(300);
const RUNNING_WITHIN: Duration = Duration::from_secs(60);
/// Three voting gateways, and two machines that keep shards and run jobs.
const VOTERS: usize = 3;
const MINERS: [usize; 2] = [3, 4];

/// A root filesystem of one program.
fn image() -> anyhow::Result<Option<Vec<u8>>> {
    let Some(busybox) = BUSYBOX.into_iter().find(|path| Path::new(path).exists()) else {
        return Ok(None);
    };
    let mut tar = tar::Builder::new(Vec::new());
    let program = fs::read(busybox)?;
    let mut header = tar::Header::new_gnu();
    header.set_size(program.len() as u64);
    header.set_mode(0o755);
    tar.append_data(&mut header, "bin/busybox", program.as_slice())?;
    Ok(Some(tar.into_inner()?))
}

struct Customer {
    profile: PathBuf,
}

impl Customer {
    fn of(cluster: &Cluster) -> anyhow::Result<Self> {
        let endpoint = |at: usize| -> anyhow::Result<String> {
            let listen = cluster.nodes[at].config.grpc.listen.context("a gateway has a gRPC door")?;
            Ok(format!("http://{listen}"))
        };
        let credentials = &cluster.credentials;
        let profile = json!({
            "s3": { "access_key_id": credentials.access_key, "secret_access_key": credentials.secret_key },
            "grpc": { "endpoint": endpoint(0)? },
            "nodes": [{ "grpc": endpoint(1)? }, { "grpc": endpoint(2)? }],
        });
        let path = cluster.dir().join("customer.json");
        fs::write(&path, profile.to_string())?;
        Ok(Self { profile: path })
    }

    fn job(&self, words: &[&str]) -> anyhow::Result<Output> {
        let profile = self.profile.to_str().context("a UTF-8 path")?;
        let (options, command) =
            words.split_at(words.iter().position(|word| *word == "--").unwrap_or(words.len()));
        let all: Vec<&str> =
            ["job"].iter().chain(options).chain(&["--profile", profile]).chain(command).copied().collect();
        makai(&all)
    }

    fn json(&self, words: &[&str]) -> anyhow::Result<Value> {
        let (options, command) =
            words.split_at(words.iter().position(|word| *word == "--").unwrap_or(words.len()));
        let all: Vec<&str> = options.iter().chain(&["--json"]).chain(command).copied().collect();
        let out = self.job(&all)?;
        ensure!(out.status.success(), "{words:?}: {}", String::from_utf8_lossy(&out.stderr));
        Ok(serde_json::from_slice(&out.stdout)?)
    }
}

fn said(out: &Output) -> String {
    format!(
        "{}\nstdout: {}\nstderr: {}",
        out.status,
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    )
}

async fn start() -> anyhow::Result<Cluster> {
    Cluster::start(ClusterOptions {
        nodes: VOTERS + MINERS.len(),
        voters: VOTERS,
        change: Box::new(|at, config| {
            if MINERS.contains(&at) {
                config.node.roles = [Role::Storage, Role::Compute].into_iter().collect();
                config.s3.listen = None;
                config.grpc.listen = None;
                config.compute.cpu_millis_max = 2000;
            }
        }),
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_task_has_one_result_though_a_machine_dies() -> anyhow::Result<()> {
    let Some(image) = image()? else {
        let is_required = std::env::var("MAKAI_TEST_CONTAINERS").is_ok_and(|wish| wish == "require");
        ensure!(!is_required, "no busybox at {BUSYBOX:?}: run ./test, or install Debian's busybox-static");
        println!("SKIPPED: no busybox at {BUSYBOX:?}; install Debian's busybox-static");
        return Ok(());
    };
    let mut cluster = start().await?;
    let customer = Customer::of(&cluster)?;
    let s3 = cluster.s3(0).clone();
    for bucket in ["images", "inputs", "results"] {
        s3.create_bucket(bucket, None).await?;
    }
    s3.send(Ask::new(http::Method::PUT, "/images/busybox.tar").body(image)).await?;
    let data = Content::new("data", 300_000);
    s3.put("inputs", "data/one", &data).await?;
    wait::until("machines that run jobs", RUNNING_WITHIN, || async {
        let found = customer.json(&["submit", "--dry-run", "--image", "s3://images/busybox.tar"]);
        match found {
            Ok(found) if found["nodes"] == MINERS.len() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await?;

    one_job(&cluster, &customer, &data).await?;
    modules(&cluster, &customer).await?;
    stages(&cluster, &customer).await?;
    objects(&cluster, &customer).await?;
    python(&customer)?;
    what_a_customer_is_told(&customer)?;
    an_array(&mut cluster, &customer).await?;
    cluster.finish().await
}

/// Input from one bucket, output to another, what it printed, and its exit code.
async fn one_job(cluster: &Cluster, customer: &Customer, data: &Content) -> anyhow::Result<()> {
    let s3 = cluster.s3(0);
    let script = "echo hello; echo oops >&2; /bin/busybox cp /in/d/one /out/copy";
    let shell = ["--image", "s3://images/busybox.tar", "--cpu", "0.5", "--memory", "64M"];
    let submit = |more: &[&'static str], script: &'static str| {
        let words = ["submit", "--wait"].iter().chain(&shell).chain(more);
        words.chain(&["--", "/bin/busybox", "sh", "-c", script]).copied().collect::<Vec<&str>>()
    };
    let copy = submit(&["--input", "s3://inputs/data/=d", "--output", "s3://results/copied/"], script);
    let out = customer.job(&copy)?;
    ensure!(out.status.success() && out.stdout == b"hello\n", "{}", said(&out));
    ensure!(String::from_utf8_lossy(&out.stderr).contains("oops"), "{}", said(&out));
    s3.check("results", "copied/copy", data).await?;

    let fails = customer.job(&submit(&["--output", "s3://results/failed/"], "echo x > /out/x; exit 7"))?;
    ensure!(fails.status.code() == Some(7), "{}", said(&fails));
    let published = s3.list("results", "failed/").await?;
    ensure!(published.is_empty(), "a task that failed publishes nothing: {published:?}");

    let missing = customer.job(&submit(&["--input", "s3://inputs/nothing=n"], "true"))?;
    ensure!(!missing.status.success(), "{}", said(&missing));
    let nowhere = customer.job(&submit(&["--output", "s3://no-such-bucket/x/"], "true"))?;
    let stderr = String::from_utf8_lossy(&nowhere.stderr);
    ensure!(nowhere.status.code() == Some(1) && stderr.contains("s3://no-such-bucket"), "{}", said(&nowhere));
    let jobs = customer.json(&["ls"])?;
    let newest = &jobs[0];
    let reason = newest["reason"].as_str().unwrap_or_default();
    ensure!(newest["phase"] == "failed" && reason.contains("s3://inputs/nothing"), "{newest}");
    // The log stays when the machine is done with the job.
    let first = jobs[2]["id"].to_string();
    let logs = customer.job(&["logs", &first])?;
    ensure!(logs.stdout == b"hello\n", "{}", said(&logs));
    Ok(())
}

impl Customer {
    /// Submits what a file says, and waits for it.
    fn file(&self, name: &str, text: &str) -> anyhow::Result<Output> {
        let path = self.profile.with_file_name(name);
        fs::write(&path, text)?;
        self.job(&["submit", path.to_str().context("a UTF-8 path")?, "--wait"])
    }
}

fn floats(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

/// Kernels on the machines' processors: buffers out of one bucket and into another, an array that shares them out, and
/// what is wrong said before anything runs.
async fn modules(cluster: &Cluster, customer: &Customer) -> anyhow::Result<()> {
    let s3 = cluster.s3(0);
    let put = |path: &'static str, bytes: Vec<u8>| s3.send(Ask::new(http::Method::PUT, path).body(bytes));
    put("/inputs/kernels.ptx", KERNELS.as_bytes().to_vec()).await?;
    put("/inputs/x", floats((0..1000).map(|at| at as f32))).await?;
    put("/inputs/y", floats((0..1000).map(|at| at as f32 * 0.25))).await?;
    let saxpy = r#"
        name = "saxpy"
        module = "s3://inputs/kernels.ptx"
        tasks = 4
        cpu_millis = 200
        memory_bytes = 67108864
        buffers = [
            { name = "x", bytes = 1000, from = "s3://inputs/x", offset_per_task = 1000 },
            { name = "y", bytes = 1000, from = "s3://inputs/y", offset_per_task = 1000, to = "s3://results/saxpy/{index}" },
        ]
        [[steps]]
        kernel = "saxpy"
        grid = 2
        block = [128, 1, 1]
        arguments = [250, 0.5, "x", "y"]
        "#;
    let out = customer.file("saxpy.toml", saxpy)?;
    ensure!(out.status.success(), "{}", said(&out));
    for index in 0..4 {
        let answer = s3.get("results", &format!("saxpy/{index}")).await?;
        let expected = floats((0..250).map(|at| (index * 250 + at) as f32 * 0.75));
        ensure!(answer.body == expected, "task {index}");
    }

    let n = 32u32;
    let (a, b) = (|row: u32, k: u32| row * 7 + k, |k: u32, column: u32| k ^ column);
    let ints = |of: &dyn Fn(u32, u32) -> u32| {
        let cells = (0..n * n).map(|at| of(at / n, at % n).to_string());
        cells.collect::<Vec<_>>().join(", ")
    };
    let gemm = format!(
        r#"
        module = "s3://inputs/kernels.ptx"
        memory_bytes = 67108864
        buffers = [
            {{ name = "a", ints = [{}] }},
            {{ name = "b", ints = [{}] }},
            {{ name = "c", bytes = {}, to = "s3://results/gemm" }},
        ]
        [[steps]]
        kernel = "gemm_i32"
        grid = [2, 2]
        block = [16, 16]
        arguments = ["a", "b", "c", {n}]
        "#,
        ints(&a),
        ints(&b),
        n * n * 4
    );
    let out = customer.file("gemm.toml", &gemm)?;
    ensure!(out.status.success() && out.stdout.starts_with(b"1 launches"), "{}", said(&out));
    let product = |row: u32, column: u32| (0..n).map(|k| a(row, k) * b(k, column)).sum::<u32>();
    let expected = (0..n * n).flat_map(|at| product(at / n, at % n).to_le_bytes()).collect::<Vec<u8>>();
    ensure!(s3.get("results", "gemm").await?.body == expected, "the product is another");

    let wrong = [
        ("kernel = \"saxpy\"", "kernel = \"saxpi\"", "no kernel \"saxpi\"; it has"),
        ("[250, 0.5, \"x\"", "[0.5, \"x\"", "3 arguments; it takes 4"),
        ("[250, 0.5", "[2.5, 0.5", "argument 0 is"),
        ("tasks = 4", "tasks = 5", "of task 4 wants bytes 4000 to 5000 of s3://inputs/x, which has 4000"),
        ("s3://inputs/kernels.ptx", "s3://inputs/none.ptx", "s3://inputs/none.ptx"),
        ("s3://inputs/kernels.ptx", "s3://inputs/x", "no text"),
        (
            "bytes = 1000, from = \"s3://inputs/x\", offset_per_task = 1000",
            "bytes = 99999999",
            "limits.memory_bytes",
        ),
        ("from = \"s3://inputs/x\", ", "", "has an offset and no object"),
    ];
    for (good, bad, why) in wrong {
        let bad = saxpy.replace(good, bad);
        let out = customer.file("wrong.toml", &bad)?;
        let stderr = String::from_utf8_lossy(&out.stderr);
        ensure!(out.status.code() == Some(1) && stderr.contains(why), "{why}: {}", said(&out));
    }
    Ok(())
}

/// What one stage publishes the next takes; where one fails, what comes after it does not begin.
async fn stages(cluster: &Cluster, customer: &Customer) -> anyhow::Result<()> {
    let stage = |name: &str, more: &str, script: &str| {
        format!(
            "[[stages]]\nname = '{name}'\nimage = 's3://images/busybox.tar'\ncpu_millis = 200\n\
             memory_bytes = 33554432\ncommand = ['/bin/busybox', 'sh', '-c', '{script}']\n{more}\n"
        )
    };
    let join = "after = ['left', 'right']\ninputs = [{ from = 's3://results/parts/', path = 'parts' }]\n\
        outputs = [{ path = 'all', to = 's3://results/joined' }]";
    let part = |name: &str| format!("outputs = [{{ path = 'part', to = 's3://results/parts/{name}' }}]");
    let flow = [
        stage("join", join, "/bin/busybox cat /in/parts/* > /out/all"),
        stage("left", &part("1"), "echo left > /out/part"),
        stage("right", &part("2"), "echo right > /out/part"),
    ];
    let out = customer.file("flow.toml", &flow.concat())?;
    ensure!(out.status.success(), "{}", said(&out));
    ensure!(cluster.s3(0).get("results", "joined").await?.text() == "left\nright\n");

    let flow = [stage("first", "", "exit 3"), stage("second", "after = [\"first\"]", "echo never")];
    let out = customer.file("fails.toml", &flow.concat())?;
    let stderr = String::from_utf8_lossy(&out.stderr);
    ensure!(
        out.status.code() == Some(1) && stderr.contains("which it waits for, did not succeed"),
        "{}",
        said(&out)
    );
    Ok(())
}

/// Tasks for objects: of a prefix some at a time, of a manifest one at a time; each object has its result, and what came later none.
async fn objects(cluster: &Cluster, customer: &Customer) -> anyhow::Result<()> {
    let s3 = cluster.s3(0);
    let put =
        |path: String, text: &str| s3.send(Ask::new(http::Method::PUT, path).body(text.as_bytes().to_vec()));
    for name in ["a", "b", "c", "d", "e", "deep/f", "deep/g"] {
        put(format!("/inputs/words/{name}"), name).await?;
    }
    let script = "while read -r path key; do name=${path#/in/each/}; /bin/busybox mkdir -p $(/bin/busybox dirname /out/$name); \
        /bin/busybox tr a-z A-Z < $path > /out/$name; echo $key; done < $MAKAI_OBJECT_LIST";
    let shell = ["--image", "s3://images/busybox.tar", "--cpu", "0.2", "--memory", "32M"];
    let command = ["--", "/bin/busybox", "sh", "-c", script];
    let of_words = |more: &[&'static str]| {
        let words = ["submit"].iter().chain(&shell).chain(&["--each", "s3://inputs/words/"]).chain(more);
        words.chain(&command).copied().collect::<Vec<&str>>()
    };
    let room = customer.json(&of_words(&["--dry-run"]))?;
    ensure!(room["objects"] == 7 && room["objects_per_task"] == 1 && room["tasks"] == 7, "{room}");
    let submitted = customer.json(&of_words(&["--per-task", "3", "--output", "s3://results/upper/"]))?;
    put("/inputs/words/later".into(), "later").await?;
    let id = submitted["id"].to_string();
    let waited = customer.json(&["wait", &id])?;
    ensure!(waited["counts"]["succeeded"] == 3, "{waited}");
    let published = s3.list("results", "upper/").await?;
    ensure!(published.len() == 7, "{published:?}");
    ensure!(s3.get("results", "upper/deep/g").await?.text() == "DEEP/G");
    let logs = customer.job(&["logs", &id, "--index", "1"])?;
    let keys = "s3://inputs/words/d\ns3://inputs/words/deep/f\ns3://inputs/words/deep/g\n";
    ensure!(logs.stdout == keys.as_bytes(), "{}", said(&logs));

    let manifest = "words/a\ns3://results/upper/deep/g\n";
    put("/inputs/manifest.txt".into(), manifest).await?;
    let file = "image = 's3://images/busybox.tar'\ncpu_millis = 200\nmemory_bytes = 33554432\n\
        command = ['/bin/busybox', 'sh', '-c', '/bin/busybox cp $MAKAI_OBJECT /out/$MAKAI_TASK_INDEX']\n\
        outputs = [{ to = 's3://results/picked/' }]\n[each]\nmanifest = 's3://inputs/manifest.txt'\nper_task = 1\n";
    let out = customer.file("each.toml", file)?;
    ensure!(out.status.success(), "{}", said(&out));
    ensure!(s3.get("results", "picked/0").await?.text() == "a");
    ensure!(s3.get("results", "picked/1").await?.text() == "DEEP/G");

    for (good, bad, why) in [
        ("manifest = 's3://inputs/manifest.txt'", "from = 's3://inputs/nothing/'", "names no object"),
        ("manifest = 's3://inputs/manifest.txt'", "from = 's3://inputs/words'", "is no prefix"),
        ("inputs/manifest.txt", "inputs/x", "no text"),
        ("per_task = 1", "per_task = 10001", "10000 a task"),
        ("[each]", "tasks = 2\n[each]", "leave it out"),
    ] {
        let out = customer.file("wrong.toml", &file.replace(good, bad))?;
        let stderr = String::from_utf8_lossy(&out.stderr);
        ensure!(out.status.code() == Some(1) && stderr.contains(why), "{why}: {}", said(&out));
    }
    // What the first jobs took is known by now: a task gets more than one.
    let room = customer.json(&of_words(&["--dry-run"]))?;
    ensure!(room["objects"] == 8, "{room}");
    Ok(())
}

/// The example for Python, with what is generated from the definitions by the package that customers use.
fn python(customer: &Customer) -> anyhow::Result<()> {
    if std::env::var("MAKAI_TEST_CLIENTS").is_ok_and(|wish| wish == "skip") {
        println!("skipped: the client in Python, by MAKAI_TEST_CLIENTS=skip");
        return Ok(());
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("a workspace")?;
    let program = root.join("target/clients-venv/bin/python");
    let has_grpc = Command::new(&program)
        .args(["-c", "import grpc, grpc_tools"])
        .output()
        .is_ok_and(|out| out.status.success());
    if !has_grpc {
        let is_required = std::env::var("MAKAI_TEST_CLIENTS").is_ok_and(|wish| wish == "run");
        ensure!(!is_required, "{program:?} has no grpcio and grpcio-tools: run ./test, which installs them");
        println!("SKIPPED: the client in Python; ./test installs grpcio and grpcio-tools for it");
        return Ok(());
    }
    let (proto, example) = (root.join("gateway/proto"), customer.profile.with_file_name("example"));
    fs::create_dir_all(&example)?;
    for file in ["submit_job.py", "each_object.py", "makai_token.py"] {
        fs::copy(root.join("gateway/examples/python").join(file), example.join(file))?;
    }
    let run = |script: &str| {
        let mut python = Command::new(&program);
        python
            .arg(example.join("submit_job.py"))
            .arg(&customer.profile)
            .args(["s3://images/busybox.tar", "--", "/bin/busybox", "sh", "-c", script])
            .env_remove("PYTHONPATH");
        wait::output(python, EXAMPLE_ENDS_WITHIN)
    };
    let early = run("true")?;
    let told = String::from_utf8_lossy(&early.stderr).into_owned();
    ensure!(
        !early.status.success() && told.contains("grpc_tools.protoc"),
        "it says what to do first: {told}"
    );
    let made = Command::new(&program)
        .args(["-m", "grpc_tools.protoc", "-I"])
        .arg(&proto)
        .arg("--python_out")
        .arg(&example)
        .arg("--grpc_python_out")
        .arg(&example)
        .arg(proto.join("makai/jobs/v1/jobs.proto"))
        .output()?;
    ensure!(made.status.success(), "{}", said(&made));
    let out = run("echo hello from python")?;
    ensure!(out.status.success() && out.stdout == b"hello from python\n", "{}", said(&out));
    let fails = run("exit 3")?;
    ensure!(fails.status.code() == Some(1), "{}", said(&fails));
    let mut each = Command::new(&program);
    each.arg(example.join("each_object.py"))
        .arg(&customer.profile)
        .args(["s3://images/busybox.tar", "s3://inputs/words/deep/", "s3://results/python/", "--"])
        .args(["/bin/busybox", "sh", "-c", "/bin/busybox cp $MAKAI_OBJECT /out/"])
        .env_remove("PYTHONPATH");
    let each = wait::output(each, EXAMPLE_ENDS_WITHIN)?;
    ensure!(each.status.success(), "{}", said(&each));
    let told = String::from_utf8_lossy(&each.stdout).into_owned();
    ensure!(told.contains("2 objects, 1 a task: 2 tasks") && told.contains("2 of 2"), "{told}");
    Ok(())
}

/// What no machine here could ever run is refused with the reason, or queued by wish; whoever waits may stop waiting; a gateway that
/// is gone is no reason not to answer.
fn what_a_customer_is_told(customer: &Customer) -> anyhow::Result<()> {
    let fat = ["--image", "s3://images/busybox.tar", "--memory", "900G", "--", "/bin/busybox", "true"];
    let submit = |more: &[&'static str]| {
        let words: Vec<&str> = ["submit"].iter().chain(more).chain(&fat).copied().collect();
        customer.job(&words)
    };
    let refused = submit(&[])?;
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.status.code() == Some(1), "{}", said(&refused));
    ensure!(told.contains("of memory, the largest machine offers") && !told.contains("cores"), "{told}");
    ensure!(told.contains("--queue-anyway") && !told.contains("status:"), "{told}");
    let none = submit(&["--array", "0"])?;
    ensure!(none.status.code() == Some(2), "{}", said(&none));

    let queued = submit(&["--queue-anyway"])?;
    ensure!(queued.status.success(), "{}", said(&queued));
    let id = String::from_utf8(queued.stdout)?.trim().to_owned();
    // The first gateway that this profile names is not there, and neither is any of the other's.
    let profile: Value = serde_json::from_slice(&fs::read(&customer.profile)?)?;
    let with = |name: &str, grpc: Value, nodes: Value| -> anyhow::Result<Customer> {
        let path = customer.profile.with_file_name(name);
        let text = json!({ "s3": profile["s3"], "grpc": { "endpoint": grpc }, "nodes": nodes }).to_string();
        fs::write(&path, text)?;
        Ok(Customer { profile: path })
    };
    let gone = json!("http://127.0.0.1:1");
    let half = with("half.json", gone.clone(), profile["nodes"].clone())?;
    for words in
        [&["ls"][..], &["show", &id, "--why"], &["wait", &id, "--timeout-secs", "1"], &["cancel", &id]]
    {
        let out = half.job(words)?;
        let code = if words[0] == "wait" { 124 } else { 0 };
        ensure!(out.status.code() == Some(code), "{words:?}: {}", said(&out));
    }
    let none = with("none.json", gone, json!([]))?.job(&["ls"])?;
    let told = String::from_utf8_lossy(&none.stderr).into_owned();
    ensure!(none.status.code() == Some(1) && told.contains("http://127.0.0.1:1 cannot be reached"), "{told}");
    ensure!(!told.contains("status:"), "{told}");
    Ok(())
}

/// An array, one of whose machines dies by SIGKILL while tasks run on it.
async fn an_array(cluster: &mut Cluster, customer: &Customer) -> anyhow::Result<()> {
    let script = "/bin/busybox sleep 0.5; echo $MAKAI_TASK_INDEX > /out/n; echo $MAKAI_ATTEMPT >> /out/n";
    let tasks = TASKS.to_string();
    let submitted = customer.json(&[
        "submit",
        "--image",
        "s3://images/busybox.tar",
        "--cpu",
        "0.4",
        "--memory",
        "32M",
        "--array",
        &tasks,
        "--output",
        "s3://results/array/{index}/",
        "--",
        "/bin/busybox",
        "sh",
        "-c",
        script,
    ])?;
    let id = submitted["id"].to_string();
    wait::until("some of the array done", RUNNING_WITHIN, || async {
        let job = customer.json(&["show", &id]).map_err(|error| error.to_string())?;
        if job["counts"]["succeeded"].as_u64() >= Some(5) { Ok(()) } else { Err(job.to_string()) }
    })
    .await?;
    cluster.kill(&MINERS[..1]);
    let waited = customer.json(&["wait", &id])?;
    ensure!(waited["counts"]["succeeded"] == TASKS, "{waited}");

    let shown = customer.json(&["show", &id])?;
    let tried = shown["tasks_tried"].as_array().context("tasks")?;
    let lost = tried.iter().filter(|task| task["attempt"] != 1).count();
    println!("{lost} of {TASKS} tasks were tried again on the other machine");
    ensure!(lost > 0, "the dead machine had none: kill it earlier");
    let mut seen = BTreeSet::new();
    for task in tried {
        let index = task["index"].as_u64().context("an index")?;
        ensure!(seen.insert(index) && task["phase"] == "succeeded", "{task}");
        let answer = cluster.s3(0).get("results", &format!("array/{index}/n")).await?;
        ensure!(answer.text() == format!("{index}\n{}\n", task["attempt"]), "{task}: {:?}", answer.text());
    }
    ensure!(seen.len() as u64 == TASKS);
    let published = cluster.s3(0).list("results", "array/").await?;
    ensure!(published.len() as u64 == TASKS, "{published:?}");
    cluster.restart(&MINERS[..1]).await
}
