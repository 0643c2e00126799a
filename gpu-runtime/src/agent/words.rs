//! What the facts ask for, in the words of the runner.

use std::collections::BTreeMap;
use std::path::Path;

use makai_raft::facts::jobs::{self, AssignedTask, AttemptId, GpuShare, ModuleFill, Work, of_task};

use super::name_of;
use super::stage::{Code, Given, IN, list_name};
use crate::runner::{
    self, Argument, ContainerWork, Fill, Limits, ModuleBuffer, ModuleStep, ModuleWork, Network, RunError,
    TaskSpec,
};
use crate::slice::{Kind, Level, SM_MILLIS_WHOLE, Slice};

/// An attempt's task, with its folders.
pub fn spec_of(
    task: &AssignedTask,
    code: Code,
    given: &Given,
    input: &Path,
    output: &Path,
) -> Result<TaskSpec, RunError> {
    // Without a card, what another node's card ran is run again here.
    let rerun = task.spec.on_processor().filter(|_| task.gpus.is_empty());
    let time_ms = if rerun.is_some() { task.spec.time_on_processor_ms() } else { task.spec.time_limit_ms };
    let resources = rerun.as_ref().unwrap_or(&task.spec.resources);
    let gpus = task.gpus.iter().zip(resources.gpu.iter().cycle());
    let gpus = gpus.map(|(uuid, share)| slice_of(uuid, share, &task.spec.work));
    Ok(TaskSpec {
        attempt: runner::AttemptId::new(name_of(task.attempt))?,
        work: work_of(task, code, given)?,
        limits: Limits {
            cpu_milli: resources.cpu_millis,
            memory_bytes: resources.memory_bytes,
            disk_bytes: resources.scratch_bytes,
            time_ms,
            ..Limits::default()
        },
        input: Some(input.to_owned()),
        output: Some(output.to_owned()),
        gpus: gpus.collect(),
    })
}

/// A share of a card as this machine's runner takes it; what keeps it there is the runner's to choose.
fn slice_of(uuid: &str, share: &GpuShare, work: &Work) -> Slice {
    let is_whole = share.cards > 0;
    // A share is kept by what keeps shares, or by something stricter.
    let least = if is_whole { share.level_min } else { share.level_min.max(work.share_level()) };
    Slice {
        gpu_uuid: uuid.to_owned(),
        memory_mib: share.memory_mib,
        sm_millis: if is_whole { SM_MILLIS_WHOLE } else { share.sm_millis },
        is_hard_cap: false,
        kind: if is_whole { Kind::Whole } else { Kind::Shared },
        enforcement: Level::of_number(least).unwrap_or(Level::Exclusive),
    }
}

fn work_of(task: &AssignedTask, code: Code, given: &Given) -> Result<runner::Work, RunError> {
    let AttemptId { job, index, attempt } = task.attempt;
    let (image, (command, env, working_dir, user)) = match (&task.spec.work, code) {
        (Work::Module(work), Code::Module(ptx)) => {
            let mut work = module_of(work, ptx, index);
            // Of each object, what was staged is what its buffer wants.
            for buffer in &mut work.buffers {
                let is_staged = task.spec.inputs.iter().any(|input| input.path == buffer.name);
                if let Fill::Input { offset, .. } = &mut buffer.fill
                    && is_staged
                {
                    *offset = 0;
                }
            }
            return Ok(runner::Work::Module(work));
        }
        (Work::Container { command, env, working_dir, user, .. }, Code::Image(image)) => {
            (image, (command, env, working_dir, user))
        }
        _ => return Err(RunError::Invalid("what was staged is not what the task runs".into())),
    };
    let mut env: BTreeMap<String, String> = env.iter().cloned().collect();
    env.extend([
        ("MAKAI_JOB_ID".to_owned(), job.0.to_string()),
        ("MAKAI_TASK_INDEX".to_owned(), index.to_string()),
        ("MAKAI_TASK_COUNT".to_owned(), task.spec.tasks.to_string()),
        ("MAKAI_ATTEMPT".to_owned(), attempt.to_string()),
    ]);
    if let Some(each) = &task.spec.each {
        env.insert("MAKAI_OBJECT_COUNT".into(), given.count.to_string());
        env.insert("MAKAI_OBJECT_LIST".into(), format!("{IN}/{}", list_name(each)));
        // Whoever asked for one at a time need not read the list. Others must: it may be one today and ten tomorrow.
        if let Some((path, from)) = given.first.as_ref().filter(|_| each.per_task == 1 && !each.is_predicted)
        {
            env.insert("MAKAI_OBJECT".into(), format!("{IN}/{path}"));
            env.insert("MAKAI_OBJECT_KEY".into(), from.key.clone());
        }
    }
    Ok(runner::Work::Container(ContainerWork {
        image,
        command: command.iter().map(|word| of_task(word, index)).collect(),
        env,
        working_dir: working_dir.clone(),
        user: user.clone(),
        network: Network::None,
    }))
}

/// A module as the task of this index runs it.
#[must_use]
pub fn module_of(work: &jobs::ModuleWork, ptx: String, index: u32) -> ModuleWork {
    let buffers = work.buffers.iter().map(|buffer| ModuleBuffer {
        name: buffer.name.clone(),
        bytes: buffer.bytes,
        fill: match &buffer.fill {
            ModuleFill::Zero => Fill::Zero,
            ModuleFill::Inline(bytes) => Fill::Inline { bytes: bytes.to_vec() },
            ModuleFill::Input { offset, offset_per_task } => Fill::Input {
                file: buffer.name.clone(),
                offset: offset.saturating_add(offset_per_task.saturating_mul(index.into())),
            },
        },
        output: buffer.is_output.then(|| buffer.name.clone()),
    });
    let steps = work.steps.iter().map(|step| ModuleStep {
        kernel: step.kernel.clone(),
        grid: step.grid,
        block: step.block,
        shared_bytes: step.shared_bytes,
        arguments: step.arguments.iter().map(|argument| argument_of(argument, index)).collect(),
        repeat: step.repeat,
    });
    ModuleWork { ptx, buffers: buffers.collect(), steps: steps.collect() }
}

fn argument_of(argument: &jobs::ModuleArgument, index: u32) -> Argument {
    match argument {
        jobs::ModuleArgument::Buffer(name) => Argument::Buffer { name: name.clone() },
        jobs::ModuleArgument::Integer(value) => Argument::Integer { value: *value },
        jobs::ModuleArgument::Unsigned(value) => Argument::Unsigned { value: *value },
        jobs::ModuleArgument::Real(bits) => Argument::Real { value: f64::from_bits(*bits) },
        jobs::ModuleArgument::Bytes(bytes) => Argument::Bytes { bytes: bytes.to_vec() },
        jobs::ModuleArgument::TaskIndex => Argument::Integer { value: index.into() },
    }
}
