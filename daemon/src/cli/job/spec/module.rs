//! A module of kernels as a person writes it in a job's file.
//!
//! ```toml
//! module = "saxpy.ptx"          # beside this file, or s3://BUCKET/KEY
//! buffers = [
//!   { name = "x", bytes = 4000, from = "s3://in/x.bin" },            # offset, offset_per_task
//!   { name = "y", floats = [1.0, 2.0], to = "s3://out/y.bin" },      # or ints, text, hex
//! ]
//! [[steps]]
//! kernel = "saxpy"
//! grid = 8                      # or [8, 1, 1]
//! block = 128
//! arguments = [1000, 2.5, "x", "y"]    # a buffer by its name; {index} is the task's
//! ```

use std::path::Path;

use anyhow::{Context as _, bail};
use makai_gateway::grpc::proto::jobs::v1::argument::Value as ArgumentValue;
use makai_gateway::grpc::proto::jobs::v1::module::Code;
use makai_gateway::grpc::proto::jobs::v1::{Argument, Extent, Module, ModuleBuffer, ModuleStep};
use serde::Deserialize;

/// Text that travels with the job; more is an object. The whole of a job has at most 32 KiB.
const TEXT_BYTES_MAX: usize = 28 << 10;
/// Stands for the task's index among a launch's arguments.
const INDEX: &str = "{index}";

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Buffer {
    name: String,
    /// Without it: as many as it is given.
    bytes: u64,
    from: Option<String>,
    offset: u64,
    offset_per_task: u64,
    to: Option<String>,
    /// Numbers of 32 bits.
    floats: Vec<f32>,
    ints: Vec<i64>,
    text: String,
    hex: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    kernel: String,
    #[serde(default)]
    grid: Sides,
    #[serde(default)]
    block: Sides,
    #[serde(default)]
    shared_bytes: u32,
    #[serde(default)]
    arguments: Vec<Word>,
    #[serde(default)]
    repeat: u32,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Sides {
    Line(u32),
    All(Vec<u32>),
}

impl Default for Sides {
    fn default() -> Self {
        Self::Line(1)
    }
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Word {
    Integer(i64),
    Unsigned(u64),
    Real(f64),
    Name(String),
}

/// # Errors
/// What is missing or malformed.
pub fn read(code: &str, beside: &Path, buffers: Vec<Buffer>, steps: Vec<Step>) -> anyhow::Result<Module> {
    let code = if code.starts_with("s3://") {
        Code::Object(super::object(code)?)
    } else {
        let path = beside.join(code);
        let text = std::fs::read_to_string(&path).with_context(|| format!("read the module {path:?}"))?;
        if text.len() > TEXT_BYTES_MAX {
            let len = text.len();
            bail!(
                "{path:?} has {len} bytes; more than {TEXT_BYTES_MAX} do not fit into a job: put it into a bucket, \
                 and write module = \"s3://BUCKET/KEY\""
            );
        }
        Code::Ptx(text)
    };
    let buffers = buffers.into_iter().map(Buffer::read).collect::<anyhow::Result<_>>()?;
    let steps = steps.into_iter().map(Step::read).collect::<anyhow::Result<_>>()?;
    Ok(Module { code: Some(code), buffers, steps })
}

impl Buffer {
    fn read(self) -> anyhow::Result<ModuleBuffer> {
        let name = self.name;
        let mut given = Vec::new();
        if !self.floats.is_empty() {
            given.push(self.floats.iter().flat_map(|value| value.to_le_bytes()).collect());
        }
        if !self.ints.is_empty() {
            let mut bytes = Vec::new();
            for value in self.ints {
                let fits =
                    i32::try_from(value).map(i32::to_le_bytes).or(u32::try_from(value).map(u32::to_le_bytes));
                bytes
                    .extend(fits.with_context(|| format!("buffer {name:?}: {value} has more than 32 bits"))?);
            }
            given.push(bytes);
        }
        if !self.text.is_empty() {
            given.push(self.text.into_bytes());
        }
        if !self.hex.is_empty() {
            given.push(hex::decode(&self.hex).with_context(|| format!("buffer {name:?}: hex"))?);
        }
        if given.len() + usize::from(self.from.is_some()) > 1 {
            bail!("buffer {name:?}: give one of from, floats, ints, text, hex");
        }
        let object = |text: Option<String>| text.map(|text| super::object(&text)).transpose();
        Ok(ModuleBuffer {
            bytes: self.bytes,
            initial: given.pop().unwrap_or_default().into(),
            from: object(self.from)?,
            offset: self.offset,
            offset_per_task: self.offset_per_task,
            to: object(self.to)?,
            name,
        })
    }
}

impl Step {
    fn read(self) -> anyhow::Result<ModuleStep> {
        let argument = |word| match word {
            Word::Integer(value) => ArgumentValue::Integer(value),
            Word::Unsigned(value) => ArgumentValue::Unsigned(value),
            Word::Real(value) => ArgumentValue::Real(value),
            Word::Name(name) if name == INDEX => ArgumentValue::TaskIndex(true),
            Word::Name(name) => ArgumentValue::Buffer(name),
        };
        let arguments = self.arguments.into_iter().map(|word| Argument { value: Some(argument(word)) });
        Ok(ModuleStep {
            grid: Some(self.grid.read(&self.kernel)?),
            block: Some(self.block.read(&self.kernel)?),
            kernel: self.kernel,
            shared_bytes: self.shared_bytes,
            arguments: arguments.collect(),
            repeat: self.repeat,
        })
    }
}

impl Sides {
    fn read(self, kernel: &str) -> anyhow::Result<Extent> {
        let sides = match self {
            Self::Line(x) => vec![x],
            Self::All(sides) => sides,
        };
        if sides.is_empty() || sides.len() > 3 || sides.contains(&0) {
            bail!("step {kernel:?}: grid and block are a number, or one to three of them, each at least 1");
        }
        let side = |at: usize| sides.get(at).copied().unwrap_or(1);
        Ok(Extent { x: side(0), y: side(1), z: side(2) })
    }
}
