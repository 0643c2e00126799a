//! Modules in the service's messages, and in facts: there, a buffer's objects are inputs and outputs of the job.

use bytes::Bytes;
use makai_raft::facts::jobs as facts;
use makai_raft::facts::jobs::{ModuleArgument, ModuleBuffer, ModuleCode, ModuleFill, ModuleStep, ModuleWork};
use tonic::Status;

use super::{or, path};
use crate::grpc::proto::jobs::v1 as words;
use words::argument::Value;

pub fn module(
    module: words::Module,
    inputs: &mut Vec<facts::Input>,
    outputs: &mut Vec<facts::Output>,
) -> Result<ModuleWork, Status> {
    let code = match module.code {
        Some(words::module::Code::Ptx(text)) => ModuleCode::Text(text),
        Some(words::module::Code::Object(object)) => {
            ModuleCode::Object(path(Some(object), "spec.module.object")?)
        }
        None => {
            return Err(Status::invalid_argument(
                "spec.module.code is missing; give PTX, or an object of it",
            ));
        }
    };
    let mut buffers = Vec::with_capacity(module.buffers.len());
    for buffer in module.buffers {
        let name = buffer.name;
        let bytes = or(buffer.bytes, buffer.initial.len() as u64);
        let fill = match buffer.from {
            Some(_) if !buffer.initial.is_empty() => {
                return Err(Status::invalid_argument(format!(
                    "the buffer {name:?} has both `initial` and `from`; give one"
                )));
            }
            Some(from) => {
                inputs.push(facts::Input {
                    from: path(Some(from), "spec.module.buffers.from")?,
                    path: name.clone(),
                    // The buffer's own fill says which bytes.
                    range: None,
                });
                ModuleFill::Input { offset: buffer.offset, offset_per_task: buffer.offset_per_task }
            }
            None if buffer.offset > 0 || buffer.offset_per_task > 0 => {
                return Err(Status::invalid_argument(format!(
                    "the buffer {name:?} has an offset and no object to take it from: give `from`"
                )));
            }
            None if buffer.initial.len() as u64 > bytes => {
                let given = buffer.initial.len();
                return Err(Status::invalid_argument(format!(
                    "the buffer {name:?} has {bytes} bytes and is given {given}"
                )));
            }
            None if buffer.initial.is_empty() => ModuleFill::Zero,
            None => ModuleFill::Inline(buffer.initial),
        };
        let is_output = buffer.to.is_some();
        if let Some(to) = buffer.to {
            outputs.push(facts::Output { path: name.clone(), to: path(Some(to), "spec.module.buffers.to")? });
        }
        buffers.push(ModuleBuffer { name, bytes, fill, is_output });
    }
    let mut steps = Vec::with_capacity(module.steps.len());
    for (at, step) in module.steps.into_iter().enumerate() {
        let arguments = step.arguments.into_iter().enumerate().map(|(number, argument)| {
            Ok(match argument.value {
                Some(Value::Buffer(name)) => ModuleArgument::Buffer(name),
                Some(Value::Integer(value)) => ModuleArgument::Integer(value),
                Some(Value::Unsigned(value)) => ModuleArgument::Unsigned(value),
                Some(Value::Real(value)) => ModuleArgument::Real(value.to_bits()),
                Some(Value::Bytes(bytes)) => ModuleArgument::Bytes(bytes),
                Some(Value::TaskIndex(_)) => ModuleArgument::TaskIndex,
                None => {
                    return Err(Status::invalid_argument(format!(
                        "step {at}: argument {number} has no value"
                    )));
                }
            })
        });
        steps.push(ModuleStep {
            kernel: step.kernel,
            grid: sides(step.grid),
            block: sides(step.block),
            shared_bytes: step.shared_bytes,
            arguments: arguments.collect::<Result<_, Status>>()?,
            repeat: or(step.repeat, 1),
        });
    }
    Ok(ModuleWork { code, buffers, steps })
}

fn sides(extent: Option<words::Extent>) -> [u32; 3] {
    let words::Extent { x, y, z } = extent.unwrap_or_default();
    [or(x, 1), or(y, 1), or(z, 1)]
}

pub fn module_back(work: ModuleWork, inputs: &[facts::Input], outputs: &[facts::Output]) -> words::Module {
    let object =
        |path: &facts::ObjectPath| words::ObjectPath { bucket: path.bucket.clone(), key: path.key.clone() };
    let extent = |[x, y, z]: [u32; 3]| Some(words::Extent { x, y, z });
    let code = match work.code {
        ModuleCode::Text(text) => words::module::Code::Ptx(text),
        ModuleCode::Object(path) => words::module::Code::Object(object(&path)),
    };
    let buffers = work.buffers.into_iter().map(|buffer| {
        let input = inputs.iter().find(|input| input.path == buffer.name);
        let output = outputs.iter().find(|output| output.path == buffer.name);
        let (initial, offset, offset_per_task) = match buffer.fill {
            ModuleFill::Zero => (Bytes::new(), 0, 0),
            ModuleFill::Inline(bytes) => (bytes, 0, 0),
            ModuleFill::Input { offset, offset_per_task } => (Bytes::new(), offset, offset_per_task),
        };
        words::ModuleBuffer {
            bytes: buffer.bytes,
            initial,
            from: input.map(|input| object(&input.from)),
            offset,
            offset_per_task,
            to: output.map(|output| object(&output.to)),
            name: buffer.name,
        }
    });
    let steps = work.steps.into_iter().map(|step| words::ModuleStep {
        kernel: step.kernel,
        grid: extent(step.grid),
        block: extent(step.block),
        shared_bytes: step.shared_bytes,
        arguments: step.arguments.into_iter().map(argument_back).collect(),
        repeat: step.repeat,
    });
    words::Module { code: Some(code), buffers: buffers.collect(), steps: steps.collect() }
}

fn argument_back(argument: ModuleArgument) -> words::Argument {
    let value = match argument {
        ModuleArgument::Buffer(name) => Value::Buffer(name),
        ModuleArgument::Integer(value) => Value::Integer(value),
        ModuleArgument::Unsigned(value) => Value::Unsigned(value),
        ModuleArgument::Real(bits) => Value::Real(f64::from_bits(bits)),
        ModuleArgument::Bytes(bytes) => Value::Bytes(bytes),
        ModuleArgument::TaskIndex => Value::TaskIndex(true),
    };
    words::Argument { value: Some(value) }
}
