//! Jobs of CUDA modules: device code, buffers, and the launches to make on them.
//!
//! A buffer that is read from the pool is filled from the job's input of the same path; one that is written to it goes
//! into the job's output of that path. So what moves bytes needs to know nothing of modules.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{ObjectPath, TEXT_BYTES_MAX};

/// Buffers of one module.
pub const BUFFERS_MAX: usize = 256;
/// Launches that a module lists; [`ModuleStep::repeat`] makes more of one.
pub const STEPS_MAX: usize = 4096;
/// Arguments of one launch.
pub const ARGUMENTS_MAX: usize = 256;

/// What a module task does: the same on every machine, whether a card runs it or a processor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleWork {
    pub code: ModuleCode,
    pub buffers: Vec<ModuleBuffer>,
    /// Launches, one after the other.
    pub steps: Vec<ModuleStep>,
}

/// Where the device code is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ModuleCode {
    /// PTX.
    Text(String),
    /// An object that holds PTX.
    Object(ObjectPath),
}

/// Device memory with a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleBuffer {
    pub name: String,
    pub bytes: u64,
    pub fill: ModuleFill,
    /// Published when every launch has ended well.
    pub is_output: bool,
}

/// What a buffer holds before the first launch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ModuleFill {
    Zero,
    /// These bytes, and zeros behind them.
    Inline(Bytes),
    /// The input of the buffer's name, from `offset` plus the task's index times `offset_per_task`.
    Input {
        offset: u64,
        offset_per_task: u64,
    },
}

/// One launch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleStep {
    pub kernel: String,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
    pub arguments: Vec<ModuleArgument>,
    /// How often, one after the other; at least 1.
    pub repeat: u32,
}

/// What a kernel's parameter gets. Numbers take the width that the kernel declares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ModuleArgument {
    /// The address of a buffer.
    Buffer(String),
    Integer(i64),
    Unsigned(u64),
    /// The bits of a double.
    Real(u64),
    /// As they lie in memory: a structure by value.
    Bytes(Bytes),
    TaskIndex,
}

impl ModuleWork {
    /// What can be said without reading the code.
    ///
    /// # Errors
    /// What must change, with its field.
    pub fn check(&self) -> Result<(), String> {
        match &self.code {
            ModuleCode::Text(text) if text.trim().is_empty() => {
                return Err(
                    "module: give its PTX, or the bucket and the key of an object that holds it".into()
                );
            }
            ModuleCode::Object(object) if object.bucket.is_empty() || object.key.is_empty() => {
                return Err("module: give the bucket and the key of an object that holds PTX".into());
            }
            ModuleCode::Text(_) | ModuleCode::Object(_) => {}
        }
        if self.buffers.len() > BUFFERS_MAX {
            return Err(format!("buffers: {}; at most {BUFFERS_MAX}", self.buffers.len()));
        }
        if self.steps.is_empty() || self.steps.len() > STEPS_MAX {
            return Err(format!("steps: {}; give 1 to {STEPS_MAX}", self.steps.len()));
        }
        for (at, buffer) in self.buffers.iter().enumerate() {
            check_name(&buffer.name)?;
            if self.buffers[..at].iter().any(|other| other.name == buffer.name) {
                return Err(format!("the buffer {:?} is there twice", buffer.name));
            }
            if buffer.bytes == 0 {
                return Err(format!("the buffer {:?} has no bytes: say how many", buffer.name));
            }
        }
        for (at, step) in self.steps.iter().enumerate() {
            if step.kernel.len() > TEXT_BYTES_MAX || step.arguments.len() > ARGUMENTS_MAX {
                return Err(format!(
                    "step {at}: at most {ARGUMENTS_MAX} arguments and a name of {TEXT_BYTES_MAX} bytes"
                ));
            }
            if step.repeat == 0 {
                return Err(format!("step {at} is repeated 0 times"));
            }
        }
        Ok(())
    }
}

/// A buffer's name is a file's name on the node.
fn check_name(name: &str) -> Result<(), String> {
    let is_plain = !matches!(name, "" | "." | "..") && !name.contains(['/', '\0']) && name.len() <= 200;
    if is_plain {
        Ok(())
    } else {
        Err(format!("the buffer's name {name:?} is not 1 to 200 bytes without '/'"))
    }
}
