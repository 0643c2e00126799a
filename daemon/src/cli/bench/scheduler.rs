//! `makai bench scheduler`: how much of a cluster's GPUs a recorded load fills, and what a decision costs.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use makai_gpu_runtime::scheduler::completion::{self, Knows};
use makai_gpu_runtime::scheduler::replay::{self, Load, Outcome};
use makai_gpu_runtime::scheduler::{Demand, Node};
use serde::Serialize;

use super::{progress, stopwatch};
use crate::cli::print_json;

/// The first seed; further ones count up from it.
const SEED: u64 = 42;

/// Packing: GPU allocation when a recorded load has filled a cluster
///
/// Reads lists of nodes (columns cpu_milli, memory_mib, gpu, model) and tasks (cpu_milli, memory_mib, num_gpu, gpu_milli and perhaps
/// gpu_spec), as those of Alibaba's cluster-trace-gpu-v2023.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Nodes, as CSV
    #[arg(long)]
    nodes: PathBuf,
    /// Tasks, as CSV
    #[arg(long)]
    tasks: PathBuf,
    /// Random orders of the tasks to replay
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1000))]
    seeds: u64,
    /// GPU demand that arrives, as a percentage of all GPUs
    #[arg(long, default_value_t = 130, value_parser = clap::value_parser!(u32).range(1..=1000))]
    arrivals_percent: u32,
    /// Moves of running tasks that are allowed, as a percentage of the tasks that arrived
    #[arg(long, default_value_t = 0.0)]
    moves_percent: f64,
    /// Measure instead how long jobs take from their arrival to their end, on one node in so many: the list needs their times
    /// (creation_time, deletion_time, scheduled_time)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    completion: Option<u64>,
    /// For --completion, one task in so many
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    every_task: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Completion {
    known_by: &'static str,
    tasks: u64,
    mean_completion_s: f64,
    mean_wait_s: f64,
    below_p90_percent: f64,
}

fn completion(args: &Args, one_node_in: u64) -> anyhow::Result<Vec<Completion>> {
    let read =
        |path: &PathBuf| std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
    let nodes: Vec<Node> = replay::read_nodes(&read(&args.nodes)?)
        .with_context(|| format!("list of nodes {}", args.nodes.display()))?;
    let nodes: Vec<Node> = nodes.into_iter().step_by(one_node_in as usize).collect();
    let list = read(&args.tasks)?;
    let (head, rest) = list.split_once('\n').unwrap_or((&list, ""));
    let some = rest.lines().step_by(args.every_task as usize);
    let list: Vec<&str> = std::iter::once(head).chain(some).collect();
    let tasks = completion::read(&list.join("\n"), &nodes, args.arrivals_percent)
        .with_context(|| format!("list of tasks {}", args.tasks.display()))?;
    let knowing = [
        ("nobody", Knows::Nobody),
        ("history", Knows::History),
        ("oracle", Knows::Oracle),
        ("oracle, shortest first", Knows::OracleShortest),
    ];
    let measured = knowing.into_iter().map(|(known_by, knows)| {
        let done = completion::replay(&nodes, &tasks, knows);
        let seen = done.calibration.count.max(1) as f64;
        Completion {
            known_by,
            tasks: done.tasks,
            mean_completion_s: done.mean_ms / 1e3,
            mean_wait_s: done.mean_wait_ms / 1e3,
            below_p90_percent: 100.0 * done.calibration.below_p90 as f64 / seen,
        }
    });
    Ok(measured.collect())
}

#[derive(Debug, Serialize)]
struct Report {
    nodes: usize,
    gpus: u64,
    tasks_listed: usize,
    seeds: u64,
    arrivals_percent: u32,
    moves_percent: f64,
    /// Of all GPU-milli, in the end; mean of the seeds.
    gpu_allocation_percent: f64,
    gpu_allocation_percent_min: f64,
    gpu_allocation_percent_max: f64,
    /// What a packer that knew all tasks beforehand could allocate, CPU and memory ignored; mean of the seeds.
    gpu_allocation_bound_percent: f64,
    /// Tasks moved, as a percentage of those that arrived.
    moved_percent: f64,
    turned_away_percent: f64,
    decision_us_p50: f64,
    decision_us_p99: f64,
    decision_us_mean: f64,
    decisions: usize,
}

fn measure(args: &Args) -> anyhow::Result<Report> {
    let read =
        |path: &PathBuf| std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
    let nodes: Vec<Node> = replay::read_nodes(&read(&args.nodes)?)
        .with_context(|| format!("list of nodes {}", args.nodes.display()))?;
    let tasks: Vec<Demand> = replay::read_tasks(&read(&args.tasks)?)
        .with_context(|| format!("list of tasks {}", args.tasks.display()))?;
    anyhow::ensure!(
        args.moves_percent.is_finite() && (0.0..=100.0).contains(&args.moves_percent),
        "--moves-percent is {}; give 0 to 100",
        args.moves_percent
    );
    let begun = stopwatch();
    let mut clock_ns = || u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let bar = progress("scheduler", Duration::from_millis(args.seeds));
    let mut outcomes: Vec<(Outcome, f64)> = Vec::new();
    for seed in SEED..SEED + args.seeds {
        let load = Load { seed, arrivals_percent: args.arrivals_percent, moves_percent: args.moves_percent };
        let outcome = replay::replay(&nodes, &tasks, &load, &mut clock_ns);
        outcomes.push((outcome, replay::bound_percent(&nodes, &tasks, &load)));
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(report(args, &nodes, &tasks, &outcomes))
}

fn report(args: &Args, nodes: &[Node], tasks: &[Demand], outcomes: &[(Outcome, f64)]) -> Report {
    let mean = |value: &dyn Fn(&(Outcome, f64)) -> f64| {
        outcomes.iter().map(value).sum::<f64>() / outcomes.len() as f64
    };
    let allocations = || outcomes.iter().map(|(outcome, _)| outcome.allocation_percent());
    let mut decisions: Vec<u64> =
        outcomes.iter().flat_map(|(outcome, _)| outcome.decisions_ns.iter().copied()).collect();
    decisions.sort_unstable();
    let at = |part: f64| {
        let place = (part * decisions.len().saturating_sub(1) as f64) as usize;
        decisions.get(place).copied().unwrap_or(0) as f64 / 1000.0
    };
    Report {
        nodes: nodes.len(),
        gpus: nodes.iter().map(|node| node.gpus.len() as u64).sum(),
        tasks_listed: tasks.len(),
        seeds: args.seeds,
        arrivals_percent: args.arrivals_percent,
        moves_percent: args.moves_percent,
        gpu_allocation_percent: mean(&|(outcome, _)| outcome.allocation_percent()),
        gpu_allocation_percent_min: allocations().fold(f64::INFINITY, f64::min),
        gpu_allocation_percent_max: allocations().fold(0.0, f64::max),
        gpu_allocation_bound_percent: mean(&|(_, bound)| *bound),
        moved_percent: mean(&|(outcome, _)| 100.0 * outcome.moved as f64 / outcome.tasks.max(1) as f64),
        turned_away_percent: mean(&|(outcome, _)| {
            100.0 * (outcome.tasks - outcome.placed) as f64 / outcome.tasks.max(1) as f64
        }),
        decision_us_p50: at(0.5),
        decision_us_p99: at(0.99),
        decision_us_mean: decisions.iter().sum::<u64>() as f64 / 1000.0 / decisions.len().max(1) as f64,
        decisions: decisions.len(),
    }
}

pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let json = args.json;
    if let Some(one_node_in) = args.completion {
        let measured = tokio::task::spawn_blocking(move || completion(&args, one_node_in)).await??;
        if json {
            print_json(&measured)?;
            return Ok(ExitCode::SUCCESS);
        }
        for Completion { known_by, tasks, mean_completion_s, mean_wait_s, .. } in measured {
            println!(
                "run times known by {known_by:<22} {tasks} tasks end {mean_completion_s:.0} s after they came, wait {mean_wait_s:.0} s"
            );
        }
        return Ok(ExitCode::SUCCESS);
    }
    let report = tokio::task::spawn_blocking(move || measure(&args)).await??;
    if json {
        print_json(&report)?;
    } else {
        println!(
            "{} nodes, {} GPUs; {} listed tasks, drawn until they ask for {} % of the GPUs; {} seeds",
            report.nodes, report.gpus, report.tasks_listed, report.arrivals_percent, report.seeds
        );
        println!(
            "GPU allocation    {:.2} % (least {:.2}, most {:.2}; GPU-only bound {:.2})",
            report.gpu_allocation_percent,
            report.gpu_allocation_percent_min,
            report.gpu_allocation_percent_max,
            report.gpu_allocation_bound_percent
        );
        println!(
            "tasks             {:.1} % turned away, {:.2} % moved",
            report.turned_away_percent, report.moved_percent
        );
        println!(
            "a decision        p50 {:.1} us, p99 {:.1} us, mean {:.1} us",
            report.decision_us_p50, report.decision_us_p99, report.decision_us_mean
        );
    }
    Ok(ExitCode::SUCCESS)
}
