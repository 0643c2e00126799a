//! `makai job`: submit work, watch it, read what it printed, end it.

pub mod client;
mod spec;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use makai_gateway::grpc::proto::jobs::v1::logs_response::Stream;
use makai_gateway::grpc::proto::jobs::v1::{
    CancelRequest, Counts, Enforcement, GetRequest, Job, ListRequest, ListTasksRequest, LogsRequest, Phase,
    SubmitRequest, SubmitResponse, Task, TaskPhase, WatchRequest, WhyRequest,
};
use serde_json::json;

use self::client::Client;
use self::spec::{SpecArgs, Stage};
use super::print_json;
use super::remote::Target;
use crate::clock;

/// Tasks shown by `job show`.
const TASKS_SHOWN_MAX: u32 = 1000;
/// Pause before a stream that broke is opened again.
const REOPEN_PAUSE: Duration = Duration::from_millis(300);
/// Times in a row that a stream is opened again without anything coming of it.
const REOPENED_MAX: u32 = 20;
/// What `job wait` ends with when its time is over, as `timeout` does.
const TIMED_OUT: u8 = 124;

/// Submit work to the cluster's machines and follow it
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: JobCommand,
}

#[derive(Debug, Subcommand)]
enum JobCommand {
    /// Submit a job: from FILE (TOML or JSON), or --image and a command
    Submit {
        #[command(flatten)]
        spec: Box<SpecArgs>,
        /// A name for this submission: with the same one again, nothing new is submitted
        #[arg(long, default_value = "", value_name = "TOKEN")]
        token: String,
        /// Say where it could run, and submit nothing
        #[arg(long)]
        dry_run: bool,
        /// Queue it even if no machine of the cluster could ever run it: one that can may join
        #[arg(long)]
        queue_anyway: bool,
        /// Print what task 0 prints, and end with its exit code; of an array, wait for all of it
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        target: Target,
    },
    /// Jobs, newest first
    Ls {
        /// Only those queued, running, succeeded, failed or cancelled
        #[arg(long, value_parser = parse_phase)]
        phase: Vec<Phase>,
        #[arg(long, default_value_t = 50)]
        limit: u32,
        #[command(flatten)]
        target: Target,
    },
    /// A job and its tasks
    Show {
        id: u64,
        /// Say why its tasks wait, and why those that run are where they are
        #[arg(long)]
        why: bool,
        #[command(flatten)]
        target: Target,
    },
    /// What a task printed
    Logs {
        id: u64,
        #[arg(long, default_value_t = 0)]
        index: u32,
        /// Which try; 0: the newest
        #[arg(long, default_value_t = 0)]
        attempt: u32,
        /// Go on until the attempt is over
        #[arg(long, short)]
        follow: bool,
        #[command(flatten)]
        target: Target,
    },
    /// Wait until a job is over; ends with its exit code, or of an array with 0 only if all of it succeeded
    Wait {
        id: u64,
        /// End with code 124 if the job is not over by then; 0: wait for ever
        #[arg(long, default_value_t = 0, value_name = "SECS")]
        timeout_secs: u64,
        #[command(flatten)]
        target: Target,
    },
    /// End what has not ended
    Cancel {
        id: u64,
        #[arg(long, default_value = "")]
        reason: String,
        #[command(flatten)]
        target: Target,
    },
}

fn parse_phase(text: &str) -> Result<Phase, String> {
    Phase::from_str_name(&format!("PHASE_{}", text.to_ascii_uppercase()))
        .filter(|phase| *phase != Phase::Unspecified)
        .ok_or_else(|| format!("{text:?} is none of queued, running, succeeded, failed, cancelled"))
}

pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.what {
        JobCommand::Submit { spec, token, dry_run, queue_anyway, wait, target } => {
            submit(*spec, token, How { dry_run, queue_anyway, wait }, &target).await
        }
        JobCommand::Ls { phase, limit, target } => list(phase, limit, &target).await,
        JobCommand::Show { id, why, target } => show(id, why, &target).await,
        JobCommand::Logs { id, index, attempt, follow, target } => {
            let mut client = Client::open(&target)?;
            let request = LogsRequest { job_id: id, index, attempt, offset: 0, follow };
            print_logs(&mut client, request).await?;
            Ok(ExitCode::SUCCESS)
        }
        JobCommand::Wait { id, timeout_secs, target } => {
            let mut client = Client::open(&target)?;
            let waited = wait_for(&mut client, id, !target.json);
            let job = match timeout_secs {
                0 => waited.await?,
                secs => match tokio::time::timeout(Duration::from_secs(secs), waited).await {
                    Ok(job) => job?,
                    Err(_) => return timed_out(&mut client, id, secs, &target).await,
                },
            };
            let code = finish(&job, target.json)?;
            Ok(exit_of(&mut client, &job).await?.unwrap_or(code))
        }
        JobCommand::Cancel { id, reason, target } => {
            let mut client = Client::open(&target)?;
            let request = CancelRequest { job_id: id, reason };
            let job = client.ask(async |jobs| jobs.cancel(request.clone()).await).await?;
            if target.json {
                print_json(&job_json(&job))?
            } else {
                println!("{}", line(&job))
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// What becomes of what is submitted.
#[derive(Clone, Copy)]
struct How {
    dry_run: bool,
    queue_anyway: bool,
    wait: bool,
}

async fn submit(spec: SpecArgs, client_token: String, how: How, target: &Target) -> anyhow::Result<ExitCode> {
    let How { dry_run, queue_anyway, wait } = how;
    let mut stages = spec.read()?;
    let mut client = Client::open(target)?;
    // A name of its own makes it safe to send again after a lost answer.
    let client_token = match client_token {
        token if token.is_empty() => hex::encode(rand::random::<[u8; 16]>()),
        token => token,
    };
    if stages.len() > 1 {
        return submit_stages(client, stages, &client_token, how, target).await;
    }
    let spec = stages.remove(0).spec;
    let is_array = spec.tasks > 1 || spec.each.is_some();
    let request = SubmitRequest { spec: Some(spec), client_token, dry_run, queue_anyway };
    let answer = client.ask(async |jobs| jobs.submit(request.clone()).await).await?;
    if dry_run {
        print_room(&answer, target)?;
        return Ok(ExitCode::SUCCESS);
    }
    let id = answer.job_id;
    if !answer.note.is_empty() && !target.json {
        eprintln!("queued, but {}", answer.note);
    }
    if !wait {
        let submitted = json!({ "id": id, "existed": answer.existed, "note": answer.note });
        if target.json {
            print_json(&submitted)?
        } else {
            println!("{id}")
        }
        return Ok(ExitCode::SUCCESS);
    }
    if !is_array && !target.json {
        let request = LogsRequest { job_id: id, index: 0, attempt: 0, offset: 0, follow: true };
        print_logs(&mut client, request).await?;
    }
    let job = wait_for(&mut client, id, is_array && !target.json).await?;
    if !is_array
        && !target.json
        && let Some(code) = exit_of(&mut client, &job).await?
    {
        return Ok(code);
    }
    finish(&job, target.json)
}

/// How the process of a job of one task ended by itself.
async fn exit_of(client: &mut Client, job: &Job) -> anyhow::Result<Option<ExitCode>> {
    if job.ended_unix_ms == 0 || job.spec.as_ref().is_none_or(|spec| spec.tasks != 1) {
        return Ok(None);
    }
    let tasks = ListTasksRequest { job_id: job.id, from_index: 0, page_size: 1 };
    let tasks = client.ask(async |jobs| jobs.list_tasks(tasks).await).await?.tasks;
    let code = tasks.first().and_then(|task| task.attempts.last()?.exit_code);
    Ok(code.map(|code| ExitCode::from(u8::try_from(code & 0xff).unwrap_or(1))))
}

fn print_room(answer: &SubmitResponse, target: &Target) -> anyhow::Result<()> {
    let SubmitResponse { nodes, tasks_at_once, tasks_now, runtime_median_ms, runtime_p90_ms, .. } = *answer;
    let SubmitResponse { task_hour_micros, cost_expected_micros, cost_max_micros, .. } = *answer;
    let enforcement = enforcement_name(answer.enforcement);
    if target.json {
        return print_json(&json!({
            "nodes": nodes, "tasks_at_once": tasks_at_once, "tasks_now": tasks_now, "enforcement": enforcement,
            "runtime_median_ms": runtime_median_ms, "runtime_p90_ms": runtime_p90_ms, "task_hour_micros": task_hour_micros,
            "cost_expected_micros": cost_expected_micros, "cost_max_micros": cost_max_micros,
            "tasks": answer.tasks, "objects": answer.objects, "objects_per_task": answer.objects_per_task,
        }));
    }
    let SubmitResponse { tasks, objects, objects_per_task, .. } = *answer;
    if objects > 0 {
        println!("{objects} objects, {objects_per_task} a task: {tasks} tasks");
    }
    println!("{tasks_at_once} tasks at once, on {nodes} nodes; {tasks_now} of them now");
    if let Some(level) = enforcement {
        println!("card  kept to its share by: {level}");
    }
    match runtime_p90_ms {
        0 => println!("time  not known yet: none like it has ended"),
        _ => println!(
            "time  {runtime_median_ms} ms a task at the median, nine in ten within {runtime_p90_ms} ms"
        ),
    }
    let expected = match runtime_p90_ms {
        0 => String::new(),
        _ => format!("{} expected, ", credits(cost_expected_micros)),
    };
    println!(
        "cost  {} an hour and task; {expected}{} at most",
        credits(task_hour_micros),
        credits(cost_max_micros)
    );
    Ok(())
}

/// Millionths of a credit, for people.
fn credits(micros: u64) -> String {
    format!("{}.{:06} credits", micros / 1_000_000, micros % 1_000_000)
}

/// A level's name; `None`: no card is in play.
fn enforcement_name(number: i32) -> Option<String> {
    let known = Enforcement::try_from(number).ok().filter(|known| *known != Enforcement::Unspecified)?;
    Some(known.as_str_name().trim_start_matches("ENFORCEMENT_").to_ascii_lowercase().replace('_', "-"))
}

/// Submits the stages of a file, each told what it waits for; with `wait`, until all are over.
async fn submit_stages(
    mut client: Client,
    stages: Vec<Stage>,
    client_token: &str,
    how: How,
    target: &Target,
) -> anyhow::Result<ExitCode> {
    let How { dry_run, queue_anyway, wait } = how;
    let mut ids: Vec<u64> = Vec::new();
    let mut submitted = Vec::new();
    for Stage { mut spec, after } in stages {
        let name = spec.name.clone();
        // In a dry run they are 0, which stands for jobs to come.
        spec.after.extend(after.iter().filter_map(|at| ids.get(*at).copied()));
        let client_token = format!("{client_token}/{name}");
        let request = SubmitRequest { spec: Some(spec), client_token, dry_run, queue_anyway };
        let answered = client.ask(async |jobs| jobs.submit(request.clone()).await).await;
        let answer = answered.with_context(|| format!("stage {name:?}"))?;
        if dry_run {
            if !target.json {
                print!("{name}: ");
            }
            print_room(&answer, target)?;
        }
        ids.push(answer.job_id);
        submitted.push(json!({ "id": answer.job_id, "name": name, "existed": answer.existed }));
        if !dry_run && !target.json {
            println!("{}  {name}", answer.job_id);
            if !answer.note.is_empty() {
                eprintln!("{name}: queued, but {}", answer.note);
            }
        }
    }
    if dry_run {
        return Ok(ExitCode::SUCCESS);
    }
    if !wait {
        if target.json {
            print_json(&submitted)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut code = ExitCode::SUCCESS;
    for id in ids {
        let job = wait_for(&mut client, id, !target.json).await?;
        if job.phase() != Phase::Succeeded {
            code = ExitCode::FAILURE;
        }
        finish(&job, target.json)?;
    }
    Ok(code)
}

fn finish(job: &Job, is_json: bool) -> anyhow::Result<ExitCode> {
    if is_json {
        print_json(&job_json(job))?
    } else {
        eprintln!("{}", line(job));
        if !job.reason.is_empty() {
            eprintln!("{}", job.reason);
        }
        if let Some(others) = others_failed(job) {
            eprintln!("{others}");
        }
    }
    Ok(if job.phase() == Phase::Succeeded { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Of an array, how many failed beside the one whose reason is given, and where to read of them.
fn others_failed(job: &Job) -> Option<String> {
    let counts = job.counts.unwrap_or_default();
    let tasks = job.spec.as_ref().map_or(0, |spec| spec.tasks);
    (tasks > 1 && counts.failed > 0).then(|| {
        let Counts { failed, cancelled, .. } = counts;
        let cancelled = if cancelled > 0 { format!(", {cancelled} cancelled") } else { String::new() };
        let id = job.id;
        format!(
            "{failed} of {tasks} tasks failed{cancelled}: `makai job show {id}` lists them, `makai job logs {id} --index N` shows what one printed"
        )
    })
}

async fn list(phases: Vec<Phase>, limit: u32, target: &Target) -> anyhow::Result<ExitCode> {
    let mut client = Client::open(target)?;
    let request = ListRequest {
        page_size: limit.clamp(1, 1000),
        page_token: String::new(),
        phases: phases.into_iter().map(Into::into).collect(),
    };
    let jobs = client.ask(async |jobs| jobs.list(request.clone()).await).await?.jobs;
    if target.json {
        print_json(&jobs.iter().map(job_json).collect::<Vec<_>>())?;
    } else {
        jobs.iter().for_each(|job| println!("{}", line(job)));
    }
    Ok(ExitCode::SUCCESS)
}

async fn show(id: u64, why: bool, target: &Target) -> anyhow::Result<ExitCode> {
    let mut client = Client::open(target)?;
    let job = client.ask(async |jobs| jobs.get(GetRequest { job_id: id }).await).await?;
    let request = ListTasksRequest { job_id: id, from_index: 0, page_size: TASKS_SHOWN_MAX };
    let tasks = client.ask(async |jobs| jobs.list_tasks(request).await).await?.tasks;
    let why = match why {
        true => Some(client.ask(async |jobs| jobs.why(WhyRequest { job_id: id }).await).await?.lines),
        false => None,
    };
    if target.json {
        let mut shown = job_json(&job);
        if let Some(why) = why {
            shown["why"] = why.into();
        }
        shown["tasks_tried"] = tasks.iter().map(task_json).collect();
        print_json(&shown)?;
        return Ok(ExitCode::SUCCESS);
    }
    println!("{}", line(&job));
    if job.cost_micros > 0 {
        println!("  {} so far", credits(job.cost_micros));
    }
    if !job.reason.is_empty() {
        println!("  {}", job.reason);
    }
    if let Some(others) = others_failed(&job) {
        println!("  {others}");
    }
    for task in tasks {
        let last = task.attempts.last().map_or("", |past| past.end.as_str());
        let node: String = task.node.chars().take(12).collect();
        let phase = task_phase(&task);
        let card = task.attempts.last().and_then(|past| {
            let level = enforcement_name(past.enforcement)?;
            Some(format!("  card: {level}, {} ms", past.gpu_busy_ns / 1_000_000))
        });
        let card = card.unwrap_or_default();
        println!("  {:>6}  {phase:<10} attempt {}  {node:<12}  {last}{card}", task.index, task.attempt);
    }
    if let Some(why) = why {
        println!("why:");
        if why.is_empty() {
            println!("  nothing waits, and what was placed was placed by an earlier leader");
        }
        why.iter().for_each(|line| println!("  {line}"));
    }
    Ok(ExitCode::SUCCESS)
}

/// The job goes on, and who waited does not.
async fn timed_out(client: &mut Client, id: u64, secs: u64, target: &Target) -> anyhow::Result<ExitCode> {
    let job = client.ask(async |jobs| jobs.get(GetRequest { job_id: id }).await).await?;
    if target.json {
        print_json(&job_json(&job))?
    } else {
        eprintln!("{}", line(&job));
        eprintln!(
            "it is not over after {secs} s, and goes on; `makai job show {id} --why` says where it stands"
        );
    }
    Ok(ExitCode::from(TIMED_OUT))
}

/// Watches a job to its end, with a progress line where a person looks on.
async fn wait_for(client: &mut Client, id: u64, has_bar: bool) -> anyhow::Result<Job> {
    let bar = if has_bar { ProgressBar::new(0) } else { ProgressBar::hidden() };
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}") {
        bar.set_style(style);
    }
    let mut failures = 0;
    loop {
        match follow(client, id, &bar).await {
            Ok(Some(job)) => {
                bar.finish_and_clear();
                return Ok(job);
            }
            Ok(None) => {}
            Err(status) if !client::is_worth_retrying(&status) || failures == REOPENED_MAX => {
                return Err(client.told(&status));
            }
            Err(_) => failures += 1,
        }
        tokio::time::sleep(REOPEN_PAUSE).await;
        client.next_gateway()?;
    }
}

async fn follow(client: &mut Client, id: u64, bar: &ProgressBar) -> Result<Option<Job>, tonic::Status> {
    let mut seen = client.jobs.watch(WatchRequest { job_id: id }).await?.into_inner();
    while let Some(job) = seen.message().await? {
        let counts = job.counts.unwrap_or_default();
        let Counts { succeeded, failed, cancelled, active, .. } = counts;
        bar.set_length(job.spec.as_ref().map_or(0, |spec| spec.tasks).into());
        bar.set_position((succeeded + failed + cancelled).into());
        bar.set_message(format!("{active} running, {failed} failed"));
        if job.ended_unix_ms > 0 {
            return Ok(Some(job));
        }
    }
    Ok(None)
}

/// Prints what a task prints, going on from where a broken stream ended.
async fn print_logs(client: &mut Client, mut request: LogsRequest) -> anyhow::Result<()> {
    let mut failures = 0;
    let goes_on = request.follow && request.attempt == 0;
    loop {
        match stream_logs(client, &mut request, &mut failures).await {
            Ok(()) if goes_on => match next_attempt(client, &request).await? {
                Some(attempt) => {
                    (request.attempt, request.offset) = (attempt, 0);
                    continue;
                }
                None => return Ok(()),
            },
            Ok(()) => return Ok(()),
            Err(status) if !client::is_worth_retrying(&status) || failures >= REOPENED_MAX => {
                return Err(client.told(&status));
            }
            Err(_) => failures += 1,
        }
        tokio::time::sleep(REOPEN_PAUSE).await;
        client.next_gateway()?;
    }
}

/// The attempt that follows the one whose log has ended; `None`: the task is over.
async fn next_attempt(client: &mut Client, request: &LogsRequest) -> anyhow::Result<Option<u32>> {
    loop {
        let asked = ListTasksRequest { job_id: request.job_id, from_index: request.index, page_size: 1 };
        let tasks = client.ask(async |jobs| jobs.list_tasks(asked).await).await?.tasks;
        let Some(task) = tasks.into_iter().find(|task| task.index == request.index) else { return Ok(None) };
        let seen = task.attempts.last().map_or(0, |past| past.number).max(request.attempt);
        if task.attempt > seen {
            return Ok(Some(task.attempt));
        }
        if !matches!(task.phase(), TaskPhase::Pending | TaskPhase::Assigned | TaskPhase::Running) {
            return Ok(None);
        }
        tokio::time::sleep(REOPEN_PAUSE).await;
    }
}

async fn stream_logs(
    client: &mut Client,
    request: &mut LogsRequest,
    failures: &mut u32,
) -> Result<(), tonic::Status> {
    let mut parts = client.jobs.logs(*request).await?.into_inner();
    while let Some(part) = parts.message().await? {
        let printed = if part.stream() == Stream::Stdout {
            std::io::stdout().write_all(&part.data).and_then(|()| std::io::stdout().flush())
        } else {
            std::io::stderr().write_all(&part.data)
        };
        // Whoever read this has gone.
        if printed.is_err() {
            return Ok(());
        }
        (request.offset, request.attempt) = (part.next_offset, part.attempt);
        *failures = 0;
    }
    Ok(())
}

fn phase_name(phase: Phase) -> String {
    phase.as_str_name().trim_start_matches("PHASE_").to_ascii_lowercase()
}

fn task_phase(task: &Task) -> String {
    let phase = TaskPhase::try_from(task.phase).unwrap_or_default();
    phase.as_str_name().trim_start_matches("TASK_PHASE_").to_ascii_lowercase()
}

fn line(job: &Job) -> String {
    let counts = job.counts.unwrap_or_default();
    let spec = job.spec.clone().unwrap_or_default();
    let ended = if job.ended_unix_ms > 0 { job.ended_unix_ms } else { clock::now().0 };
    let secs = ended.saturating_sub(job.submitted_unix_ms) / 1000;
    let phase = phase_name(job.phase());
    format!(
        "{:>6}  {phase:<10} {:>6}/{} tasks  {secs:>5} s  {}",
        job.id, counts.succeeded, spec.tasks, spec.name
    )
}

fn job_json(job: &Job) -> serde_json::Value {
    let counts = job.counts.unwrap_or_default();
    let spec = job.spec.clone().unwrap_or_default();
    json!({
        "id": job.id,
        "name": spec.name,
        "phase": phase_name(job.phase()),
        "tasks": spec.tasks,
        "counts": {
            "pending": counts.pending, "active": counts.active, "succeeded": counts.succeeded,
            "failed": counts.failed, "cancelled": counts.cancelled,
        },
        "reason": job.reason,
        "cost_micros": job.cost_micros,
        "submitted_unix_ms": job.submitted_unix_ms,
        "started_unix_ms": job.started_unix_ms,
        "ended_unix_ms": job.ended_unix_ms,
    })
}

fn task_json(task: &Task) -> serde_json::Value {
    let attempt = |past: &makai_gateway::grpc::proto::jobs::v1::Attempt| {
        json!({
            "number": past.number, "node": past.node, "end": past.end, "exit_code": past.exit_code,
            "assigned_unix_ms": past.assigned_unix_ms, "ended_unix_ms": past.ended_unix_ms,
            "wall_ms": past.wall_ms, "cpu_ms": past.cpu_ms, "memory_peak_bytes": past.memory_peak_bytes,
            "gpu_busy_ns": past.gpu_busy_ns, "enforcement": enforcement_name(past.enforcement),
        })
    };
    json!({
        "index": task.index, "phase": task_phase(task), "attempt": task.attempt, "node": task.node,
        "attempts": task.attempts.iter().map(attempt).collect::<Vec<_>>(),
    })
}

/// Reads a file that names a job.
fn read_file(path: &PathBuf) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("read {path:?}"))
}
