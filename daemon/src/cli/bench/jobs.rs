//! `makai bench jobs`: how soon a job begins, how many short tasks go through, and how fast this machine runs modules.
//!
//! ```text
//! here      kernels of three kinds, one thread: PTX instructions per second, interpreted and compiled, against plain C
//! cluster   one small job after another: submit ─> first line of its output, by the machines' clocks
//!           one array of short tasks: submit ─> the last has ended
//! ```

use std::collections::HashMap;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use makai_gateway::grpc::proto::jobs::v1::argument::Value;
use makai_gateway::grpc::proto::jobs::v1::job_spec::Work;
use makai_gateway::grpc::proto::jobs::v1::module::Code;
use makai_gateway::grpc::proto::jobs::v1::{
    Argument, Container, Extent, Job, JobSpec, LogsRequest, Module, ModuleBuffer, ModuleStep, ObjectPath,
    Phase, Resources, SubmitRequest, WaitRequest,
};
use makai_gpu_runtime::module::{Engine, bench};
use serde::Serialize;

use super::latency::Latencies;
use super::stopwatch;
use crate::cli::job::client::Client;
use crate::cli::print_json;
use crate::cli::remote::Target;
use crate::clock;

/// How soon jobs begin, how many go through, how fast modules run here
///
/// Without --image only modules are measured on the cluster, without --profile only this machine.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Image in the pool with a shell: s3://BUCKET/KEY, such as a root filesystem of busybox
    #[arg(long)]
    image: Option<String>,
    /// Jobs submitted one after the other, of each kind
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    jobs: u32,
    /// Tasks of the array
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    tasks: u32,
    /// Measure this machine alone
    #[arg(long)]
    local: bool,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Serialize)]
struct Kernel {
    kernel: &'static str,
    instructions_per_run: u64,
    interpreted_mips: f64,
    compiled_mips: f64,
    /// Compiled, against one thread of an unoptimised C program; `None`: no C compiler is here.
    of_plain_c: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Start {
    kind: &'static str,
    jobs: u32,
    begins_ms_p50: f64,
    begins_ms_p99: f64,
    ends_ms_p50: f64,
}

#[derive(Debug, Serialize)]
struct Array {
    kind: &'static str,
    tasks: u32,
    tasks_per_sec: f64,
}

#[derive(Debug, Default, Serialize)]
struct Report {
    kernels: Vec<Kernel>,
    starts: Vec<Start>,
    arrays: Vec<Array>,
}

pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut report = Report { kernels: tokio::task::spawn_blocking(kernels).await??, ..Report::default() };
    if !args.target.json {
        for kernel in &report.kernels {
            let plain = kernel.of_plain_c.map_or("no C compiler to compare with".into(), |times| {
                format!("{times:.2} times the speed of plain C")
            });
            println!(
                "ptx {:<8} {:>6.0} million instructions/s interpreted, {:>6.0} compiled; {plain}",
                kernel.kernel, kernel.interpreted_mips, kernel.compiled_mips
            );
        }
    }
    if args.local {
        if args.target.json {
            print_json(&report)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut client = Client::open(&args.target)?;
    let mut kinds = vec![("module", module())];
    if let Some(image) = &args.image {
        kinds.push(("container", container(image)?));
    }
    for (kind, work) in &kinds {
        let start =
            starts(&mut client, kind, work, args.jobs).await.with_context(|| format!("jobs of a {kind}"))?;
        if !args.target.json {
            println!(
                "{kind:<12} begins after {:.0} ms (p50), {:.0} ms (p99); has ended after {:.0} ms (p50)",
                start.begins_ms_p50, start.begins_ms_p99, start.ends_ms_p50
            );
        }
        report.starts.push(start);
    }
    for (kind, work) in kinds {
        let array =
            array(&mut client, kind, work, args.tasks).await.with_context(|| format!("array of a {kind}"))?;
        if !args.target.json {
            println!("{kind:<12} {:.1} short tasks/s ({} tasks)", array.tasks_per_sec, array.tasks);
        }
        report.arrays.push(array);
    }
    if args.target.json {
        print_json(&report)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn kernels() -> anyhow::Result<Vec<Kernel>> {
    let plain = plain_c()?;
    let mut measured = Vec::new();
    for kind in bench::Kind::ALL {
        let interpreted = bench::measure(kind, Engine::Interpreter)?;
        let compiled = bench::measure(kind, Engine::Compiler)?;
        measured.push(Kernel {
            kernel: kind.name(),
            instructions_per_run: compiled.instructions,
            interpreted_mips: interpreted.mips(),
            compiled_mips: compiled.mips(),
            of_plain_c: plain.get(kind.name()).map(|ns| *ns as f64 / compiled.least_ns as f64),
        });
    }
    Ok(measured)
}

/// Nanoseconds of the same work in C without optimisation; empty where there is no compiler.
fn plain_c() -> anyhow::Result<HashMap<String, u64>> {
    let folder = tempfile::tempdir().context("a folder to compile in")?;
    let (source, program) = (folder.path().join("bench.c"), folder.path().join("bench"));
    std::fs::write(&source, bench::PLAIN_C)?;
    let built = Command::new("cc").arg("-O0").arg("-o").args([&program, &source]).arg("-lm").output();
    if !built.is_ok_and(|built| built.status.success()) {
        return Ok(HashMap::new());
    }
    let printed = Command::new(&program).output().context("run the plain program")?;
    let lines = String::from_utf8_lossy(&printed.stdout).into_owned();
    let numbers = lines.lines().filter_map(|line| {
        let (name, ns) = line.split_once(' ')?;
        Some((name.to_owned(), ns.parse().ok()?))
    });
    Ok(numbers.collect())
}

/// One thread that writes one number.
fn module() -> Work {
    let ptx = ".version 7.0\n.target sm_75\n.address_size 64\n.visible .entry one(.param .u64 out)\n{\n.reg .b64 %rd<2>;\n\
        .reg .b32 %r<2>;\nld.param.u64 %rd1, [out];\nmov.u32 %r1, 1;\nst.global.u32 [%rd1], %r1;\nret;\n}\n";
    let one = Some(Extent { x: 1, y: 1, z: 1 });
    let buffer = ModuleBuffer { name: "out".into(), bytes: 4, ..ModuleBuffer::default() };
    let step = ModuleStep {
        kernel: "one".into(),
        grid: one,
        block: one,
        arguments: vec![Argument { value: Some(Value::Buffer("out".into())) }],
        ..ModuleStep::default()
    };
    Work::Module(Module { code: Some(Code::Ptx(ptx.into())), buffers: vec![buffer], steps: vec![step] })
}

fn container(image: &str) -> anyhow::Result<Work> {
    let path = image.strip_prefix("s3://").and_then(|path| path.split_once('/'));
    let (bucket, key) = path.context("--image is s3://BUCKET/KEY")?;
    Ok(Work::Container(Container {
        image: Some(ObjectPath { bucket: bucket.into(), key: key.into() }),
        command: ["/bin/busybox", "echo", "begun"].map(str::to_owned).into(),
        env: HashMap::new(),
        working_dir: String::new(),
        user: String::new(),
    }))
}

fn spec(kind: &str, work: &Work, tasks: u32) -> JobSpec {
    JobSpec {
        name: format!("bench {kind}"),
        work: Some(work.clone()),
        resources: Some(Resources {
            cpu_millis: 100,
            memory_bytes: 64 << 20,
            scratch_bytes: 1 << 20,
            gpu: None,
        }),
        tasks,
        ..JobSpec::default()
    }
}

async fn submitted(client: &mut Client, spec: JobSpec) -> anyhow::Result<u64> {
    let client_token = hex::encode(rand::random::<[u8; 16]>());
    let request = SubmitRequest { spec: Some(spec), client_token, dry_run: false, queue_anyway: false };
    Ok(client.ask(async |jobs| jobs.submit(request.clone()).await).await?.job_id)
}

async fn ended(client: &mut Client, id: u64) -> anyhow::Result<Job> {
    let job = client.jobs.wait(WaitRequest { job_id: id, timeout_ms: 0 }).await?.into_inner();
    ensure!(job.phase() == Phase::Succeeded, "job {id} did not succeed: {}", job.reason);
    Ok(job)
}

/// The first is not counted: it brings the image to the machines.
async fn starts(client: &mut Client, kind: &'static str, work: &Work, jobs: u32) -> anyhow::Result<Start> {
    let (mut begins, mut ends) = (Latencies::default(), Latencies::default());
    for number in 0..=jobs {
        let (at, begun) = (clock::now().0, stopwatch());
        let id = submitted(client, spec(kind, work, 1)).await?;
        ended(client, id).await?;
        let took = begun.elapsed();
        let request = LogsRequest { job_id: id, ..LogsRequest::default() };
        let mut parts = client.jobs.logs(request).await?.into_inner();
        let first = parts.message().await?.context("it printed nothing")?;
        if number > 0 {
            begins.add(Duration::from_millis(first.at_unix_ms.saturating_sub(at)));
            ends.add(took);
        }
    }
    let ms = |latencies: &Latencies, per_mille| latencies.percentile(per_mille).as_secs_f64() * 1e3;
    Ok(Start {
        kind,
        jobs,
        begins_ms_p50: ms(&begins, 500),
        begins_ms_p99: ms(&begins, 990),
        ends_ms_p50: ms(&ends, 500),
    })
}

async fn array(client: &mut Client, kind: &'static str, work: Work, tasks: u32) -> anyhow::Result<Array> {
    let begun = stopwatch();
    let id = submitted(client, spec(kind, &work, tasks)).await?;
    ended(client, id).await?;
    Ok(Array { kind, tasks, tasks_per_sec: f64::from(tasks) / begun.elapsed().as_secs_f64() })
}
