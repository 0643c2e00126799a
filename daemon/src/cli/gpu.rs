//! `makai gpu`: what the cluster's machines offer to jobs, processors too, and how fast each was measured to be; and how a machine's
//! owner takes its cards back.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use http::Method;
use makai_gpu_runtime::card::trial;
use makai_gpu_runtime::inventory::Inventory;
use serde_json::json;

use super::cluster::fetch;
use super::node::label;
use super::remote::Target;
use super::{human_bytes, print_json};
use crate::console::{CardAnswer, CardRequest, NodeCompute, Status};

/// List what runs jobs: cards and processors, and how fast they are
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: GpuCommand,
}

#[derive(Debug, Subcommand)]
enum GpuCommand {
    /// All machines that run jobs, each with its processor and its cards
    Ls {
        #[command(flatten)]
        target: Target,
    },
    /// Take cards of a machine back from jobs: what runs on them begins again elsewhere
    Pause {
        #[command(flatten)]
        card: CardArgs,
    },
    /// One check of this machine's card, in a process of its own: `gpu-runtime/gpu-check` runs them all
    #[command(hide = true)]
    Trial(TrialArgs),
    /// Give cards of a machine to jobs again
    Resume {
        #[command(flatten)]
        card: CardArgs,
    },
}

/// Which check, and on what.
#[derive(Debug, clap::Args)]
struct TrialArgs {
    part: String,
    #[arg(long, default_value = "")]
    gpu: String,
    #[arg(long)]
    cuda: Option<PathBuf>,
    #[arg(long)]
    nvml: Option<PathBuf>,
    #[arg(long, default_value_t = 20.0)]
    secs: f64,
    #[arg(hide = true)]
    more: Vec<String>,
}

/// Runs a check where one is asked for. Must be called before this process starts a second thread.
pub fn trial(args: &Args) -> Option<ExitCode> {
    let GpuCommand::Trial(TrialArgs { part, gpu, cuda, nvml, secs, more }) = &args.what else { return None };
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => {
            println!("this program does not find itself: {error}");
            return Some(ExitCode::FAILURE);
        }
    };
    let measured_for = Duration::try_from_secs_f64(*secs).unwrap_or(Duration::from_secs(20));
    let (uuid, cuda, nvml) = (gpu.clone(), cuda.clone(), nvml.clone());
    let done = trial::run(part, &trial::Options { cuda, nvml, uuid, measured_for, program }, more);
    let (Ok(said) | Err(said)) = &done;
    println!("{said}");
    Some(if done.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Which cards.
#[derive(Debug, clap::Args)]
struct CardArgs {
    /// One card, as `makai gpu ls` shows it; without, all of the machine
    gpu: Option<String>,
    /// The machine: its id, or the beginning of it. With --config it is this one
    #[arg(long)]
    node: Option<String>,
    #[command(flatten)]
    target: Target,
}

pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let target = match args.what {
        GpuCommand::Ls { target } => target,
        GpuCommand::Trial(_) => anyhow::bail!("a check runs before this program has a second thread"),
        GpuCommand::Pause { card } => return pause(card, true).await,
        GpuCommand::Resume { card } => return pause(card, false).await,
    };
    let status = fetch(&target).await?;
    if target.json {
        print_json(&status.compute.iter().map(|node| node_json(&status, node)).collect::<Vec<_>>())?;
        return Ok(ExitCode::SUCCESS);
    }
    if status.compute.is_empty() {
        eprintln!(
            "no machine offers anything to jobs now: give nodes the role \"compute\" (roles in [node])"
        );
    }
    for node in &status.compute {
        let Inventory { cpu_millis, memory_bytes, scratch_bytes, gpus, cpu, held } = &node.offer;
        println!("{}", name_of(&status, node));
        println!(
            "  cpu  {}, {} cores, {} and {} of scratch for jobs; measured {} million PTX instructions/s per core",
            if cpu.model.is_empty() { "unknown model" } else { &cpu.model },
            *cpu_millis as f64 / 1000.0,
            human_bytes(*memory_bytes),
            human_bytes(*scratch_bytes),
            cpu.ptx_mips,
        );
        if !held.is_empty() {
            let bytes = held.iter().map(|held| held.bytes).sum();
            println!("  has  {} images and inputs of jobs, {}", held.len(), human_bytes(bytes));
        }
        for gpu in gpus {
            let (major, minor) = gpu.capability;
            println!(
                "  gpu  {}, {}, {}, compute {major}.{minor}, driver {}{}{}",
                gpu.model,
                human_bytes(gpu.memory_mib << 20),
                gpu.uuid,
                gpu.driver,
                if gpu.has_shadow { ", shares for containers too" } else { "" },
                if gpu.closed.is_empty() {
                    String::new()
                } else {
                    format!("; takes no tasks: {}", gpu.closed)
                },
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn pause(card: CardArgs, is_paused: bool) -> anyhow::Result<ExitCode> {
    let CardArgs { gpu, node, target } = card;
    let request = CardRequest { gpu, is_paused };
    let answer: CardAnswer =
        target.call_node(node.as_deref(), Method::POST, "/api/v1/gpu", Some(&request)).await?;
    if target.json {
        print_json(&answer)?;
        return Ok(ExitCode::SUCCESS);
    }
    let gpus = answer.gpus.join(", ");
    if is_paused {
        println!(
            "{gpus}: yours again after {} ms; {} attempts begin again elsewhere",
            answer.took_ms, answer.ended
        );
    } else {
        println!("{gpus}: given to jobs again");
    }
    Ok(ExitCode::SUCCESS)
}

fn name_of(status: &Status, node: &NodeCompute) -> String {
    let known = status.map.nodes.iter().find(|known| known.id == node.node);
    known.map_or_else(|| node.node.to_string(), label)
}

fn node_json(status: &Status, node: &NodeCompute) -> serde_json::Value {
    let Inventory { cpu_millis, memory_bytes, scratch_bytes, gpus, cpu, held } = &node.offer;
    let gpu = |gpu: &makai_gpu_runtime::inventory::Gpu| {
        json!({
            "model": gpu.model, "uuid": gpu.uuid, "memory_mib": gpu.memory_mib, "capability": gpu.capability,
            "driver": gpu.driver, "container_shares": gpu.has_shadow, "instance_of": gpu.parent, "closed": gpu.closed,
        })
    };
    json!({
        "node": node.node, "name": name_of(status, node),
        "cpu": { "model": cpu.model, "millis": cpu_millis, "ptx_mips_per_core": cpu.ptx_mips },
        "memory_bytes": memory_bytes, "scratch_bytes": scratch_bytes,
        "gpus": gpus.iter().map(gpu).collect::<Vec<_>>(),
        "held": held.iter().map(|held| json!({ "what": held.what, "bytes": held.bytes })).collect::<Vec<_>>(),
    })
}
