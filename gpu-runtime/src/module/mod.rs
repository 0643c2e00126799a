//! CUDA modules: kernels as PTX text, with the launches to make and the buffers to make them on.
//!
//! ```text
//! ModuleWork ── check ──> what is wrong, before anything runs
//!            └─ run ────> buffers filled from the inputs ── launches, step by step ──> buffers written to the outputs
//! ```
//!
//! | room    | holds                                                         |
//! |---------|---------------------------------------------------------------|
//! | [`ptx`] | PTX read and executed on this machine's CPU                    |
//! | [`bench`] | kernels that tell how fast it does                           |
//! | [`on_card`] | the same task on a card, through its driver                |
//!
//! What always holds: the task gives device code alone, so what it computes with is its own
//! buffers and nothing else of this machine, interpreted or compiled; arguments are
//! laid out by the kernel's own declaration; a buffer is as large as the task says, and no access leaves it.

pub mod bench;
pub mod on_card;
pub mod ptx;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Component, Path};

use ptx::code::{Code, Module, Type};
use ptx::native;
use ptx::run::{Buffers, Launch, RunFault, address_of};
use ptx::text::Parameter;

use crate::runner::{Argument, Fill, ModuleWork};

/// Buffers of one task.
pub const BUFFERS_MAX: usize = 256;
/// Launches that a task lists; [`crate::runner::ModuleStep::repeat`] makes more of one.
pub const STEPS_MAX: usize = 4096;
/// Bytes given inline for one buffer: larger ones are files.
pub const INLINE_BYTES_MAX: usize = 1 << 20;

/// Why a module task ends otherwise than well.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// The task is wrong, on every machine.
    #[error("{0}")]
    Bad(String),
    /// A kernel faulted.
    #[error("{0}")]
    Fault(String),
    /// The card or its driver fails, not the task.
    #[error("{0}")]
    Card(String),
    /// Its time is over.
    #[error("ended after {steps} instructions")]
    Stopped { steps: u64 },
    #[error("{doing}")]
    Io { doing: String, source: std::io::Error },
}

/// What a run took.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ran {
    pub launches: u64,
    /// Instructions of all threads.
    pub instructions: u64,
    /// Launches of compiled code.
    pub compiled: u64,
    /// Kernels that had to be interpreted, and why.
    pub interpreted: Vec<String>,
}

/// How kernels are executed. What comes out is the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Engine {
    /// Compiled where that is possible and takes less time than it saves.
    #[default]
    Fitting,
    Interpreter,
    /// Compiled where that is possible.
    Compiler,
}

/// A module's kernels as far as they have been compiled.
struct Kernels<'a> {
    module: &'a Module,
    engine: Engine,
    /// Bytes that the task may have beside its buffers.
    spare_bytes: u64,
    /// For each kernel: not tried, not possible, or its code.
    native: Vec<Option<Option<native::call::Entry>>>,
}

impl Kernels<'_> {
    /// A kernel's machine code, for a launch that is made `repeat` times.
    fn native(
        &mut self,
        index: usize,
        launch: &Launch,
        repeat: u32,
        ran: &mut Ran,
    ) -> Option<&native::call::Entry> {
        let code = &self.module.kernels[index];
        let wanted = match self.engine {
            Engine::Interpreter => false,
            Engine::Compiler => true,
            Engine::Fitting => self.native[index].is_some() || native::is_worth_it(code, launch, repeat),
        };
        if !wanted {
            return None;
        }
        let wanted = native::bytes_to_compile(code);
        let compile = || match self.spare_bytes < wanted {
            true => Err(format!("limits.memory_bytes leaves less than the {wanted} bytes that it may take")),
            false => native::compile(code),
        };
        let made = self.native[index].get_or_insert_with(|| match compile() {
            Ok(entry) => Some(entry),
            Err(why) => {
                ran.interpreted.push(format!("{}: {why}", code.name));
                None
            }
        });
        made.as_ref()
    }
}

/// Reads a task's module and holds every launch against it: names, argument counts and types, sizes, shapes.
///
/// # Errors
/// [`ModuleError::Bad`] with the step and what to change.
pub fn check(work: &ModuleWork, memory_bytes: u64) -> Result<Module, ModuleError> {
    let bad = |text: String| Err(ModuleError::Bad(text));
    let module = ptx::load(&work.ptx).map_err(|error| ModuleError::Bad(format!("the module: {error}")))?;
    let own = module.globals.iter().map(|global| global.bytes).fold(0u64, u64::saturating_add);
    let total = check_buffers(work, own)?;
    if total > memory_bytes {
        return bad(format!("the buffers take {total} bytes; limits.memory_bytes is {memory_bytes}"));
    }
    for (index, step) in work.steps.iter().enumerate() {
        let launch = launch_of(work, &module, index)?;
        let code = kernel(&module, &step.kernel)?;
        ptx::run::check(code, &launch).map_err(|fault| ModuleError::Bad(format!("step {index}: {fault}")))?;
        if step.repeat == 0 {
            return bad(format!("step {index} is repeated 0 times"));
        }
    }
    Ok(module)
}

/// Whether processors and cards of every make come to the same bits: no kernel that these steps launch has an operation that is
/// approximate or whose result depends on an order. Any text may be given.
#[must_use]
pub fn is_exact<'a>(ptx: &str, mut kernels: impl Iterator<Item = &'a str>) -> bool {
    ptx::load(ptx).is_ok_and(|module| {
        let is_exact =
            |code: &ptx::code::Code| code.inexact.is_empty() && !ptx::native::depends_on_order(code);
        kernels.all(|name| kernel(&module, name).is_ok_and(is_exact))
    })
}

/// Holds buffers and steps against their bounds; answers the bytes that the buffers and `own` take.
fn check_buffers(work: &ModuleWork, own: u64) -> Result<u64, ModuleError> {
    let bad = |text: String| Err(ModuleError::Bad(text));
    if work.buffers.len() > BUFFERS_MAX || work.steps.len() > STEPS_MAX || work.steps.is_empty() {
        return bad(format!("a module task has at most {BUFFERS_MAX} buffers and 1 to {STEPS_MAX} steps"));
    }
    let mut total = own;
    for (index, buffer) in work.buffers.iter().enumerate() {
        total = total.saturating_add(buffer.bytes);
        if work.buffers[..index].iter().any(|other| other.name == buffer.name) {
            return bad(format!("the buffer {:?} is there twice", buffer.name));
        }
        match &buffer.fill {
            Fill::Zero => {}
            Fill::Inline { bytes }
                if bytes.len() as u64 <= buffer.bytes && bytes.len() <= INLINE_BYTES_MAX => {}
            Fill::Inline { .. } => {
                return bad(format!("the buffer {:?} is given more bytes than it has", buffer.name));
            }
            Fill::Input { file, .. } => plain_name(file)?,
        }
        if let Some(file) = &buffer.output {
            plain_name(file)?;
        }
    }
    Ok(total)
}

/// Runs a task on this machine's CPU. `is_over` is asked about every million instructions.
///
/// # Errors
/// As [`ModuleError`]; outputs are written only when every launch ended well.
pub fn run(
    work: &ModuleWork,
    memory_bytes: u64,
    input: &Path,
    output: &Path,
    is_over: &mut dyn FnMut() -> bool,
) -> Result<Ran, ModuleError> {
    run_by(Engine::Fitting, work, memory_bytes, input, output, is_over)
}

/// As [`run`], with the engine chosen.
///
/// # Errors
/// As [`run`].
pub fn run_by(
    engine: Engine,
    work: &ModuleWork,
    memory_bytes: u64,
    input: &Path,
    output: &Path,
    is_over: &mut dyn FnMut() -> bool,
) -> Result<Ran, ModuleError> {
    let module = check(work, memory_bytes)?;
    let mut buffers: Buffers = Vec::new();
    for global in &module.globals {
        let mut bytes = vec![0; size(global.bytes)?];
        bytes[..global.initial.len()].copy_from_slice(&global.initial);
        buffers.push(bytes);
    }
    for buffer in &work.buffers {
        buffers.push(filled(&buffer.name, buffer.bytes, &buffer.fill, input)?);
    }
    let mut ran = Ran::default();
    let native = module.kernels.iter().map(|_| None).collect();
    let held: u64 = buffers.iter().map(|buffer| buffer.len() as u64).sum();
    let mut kernels =
        Kernels { module: &module, engine, spare_bytes: memory_bytes.saturating_sub(held), native };
    for (index, step) in work.steps.iter().enumerate() {
        let launch = launch_of(work, &module, index)?;
        let number = kernel_number(&module, &step.kernel)?;
        let code = &module.kernels[number];
        let native = kernels.native(number, &launch, step.repeat, &mut ran);
        for _ in 0..step.repeat {
            let before = ran.instructions;
            let steps = ptx::run::launch_as(code, native, &launch, &mut buffers, &mut |_| is_over())
                .map_err(|fault| match fault {
                    RunFault::Stopped { steps } => ModuleError::Stopped { steps: before + steps },
                    fault => ModuleError::Fault(format!("step {index}: {fault}")),
                })?;
            ran.instructions += steps;
            ran.launches += 1;
            ran.compiled += u64::from(native.is_some());
            if is_over() {
                return Err(ModuleError::Stopped { steps: ran.instructions });
            }
        }
    }
    for (buffer, bytes) in work.buffers.iter().zip(&buffers[module.globals.len()..]) {
        if let Some(file) = &buffer.output {
            let path = output.join(file);
            let writing = |source| ModuleError::Io { doing: format!("write the output {file:?}"), source };
            File::create(&path).and_then(|mut file| file.write_all(bytes)).map_err(writing)?;
        }
    }
    Ok(ran)
}

fn kernel<'a>(module: &'a Module, name: &str) -> Result<&'a Code, ModuleError> {
    kernel_number(module, name).map(|number| &module.kernels[number])
}

fn kernel_number(module: &Module, name: &str) -> Result<usize, ModuleError> {
    module.kernels.iter().position(|kernel| kernel.name == name).ok_or_else(|| {
        let names: Vec<_> = module.kernels.iter().map(|kernel| kernel.name.as_str()).collect();
        ModuleError::Bad(format!("the module has no kernel {name:?}; it has {}", names.join(", ")))
    })
}

/// A step's shape and its arguments, laid out by the kernel's declaration.
fn launch_of(work: &ModuleWork, module: &Module, index: usize) -> Result<Launch, ModuleError> {
    let step = &work.steps[index];
    let code = kernel(module, &step.kernel)?;
    let address = |buffer: usize| Some(address_of(module.globals.len() + buffer));
    let parameters = launch_parameters(work, index, &code.parameters, &address)?;
    Ok(Launch { grid: step.grid, block: step.block, dynamic_shared_bytes: step.shared_bytes, parameters })
}

/// The type of a declared parameter, as far as it decides which argument it takes.
fn kind_of(parameter: &Parameter) -> Type {
    match parameter.kind.as_str() {
        "f32" => Type::F32,
        "f64" => Type::F64,
        _ => Type::U8,
    }
}

/// A step's arguments, laid out as declared: type, offset and bytes of each parameter. `address`: of a buffer, by its place.
fn launch_parameters(
    work: &ModuleWork,
    index: usize,
    declared: &[(Type, u32, u64)],
    address: &dyn Fn(usize) -> Option<u64>,
) -> Result<Vec<u8>, ModuleError> {
    let step = &work.steps[index];
    let bad = |text: String| ModuleError::Bad(format!("step {index}: {}: {text}", step.kernel));
    if step.arguments.len() != declared.len() {
        return Err(bad(format!("{} arguments; it takes {}", step.arguments.len(), declared.len())));
    }
    let mut parameters = Vec::new();
    for (number, (argument, (kind, at, bytes))) in step.arguments.iter().zip(declared).enumerate() {
        let value = match argument {
            Argument::Buffer { name } if !kind.is_float() => {
                let found = work.buffers.iter().position(|buffer| &buffer.name == name);
                let found =
                    found.and_then(address).ok_or_else(|| bad(format!("there is no buffer {name:?}")))?;
                Some(found.to_le_bytes().to_vec())
            }
            other => value_of(other, *kind, *bytes),
        };
        let Some(value) = value.filter(|value| value.len() as u64 == *bytes) else {
            return Err(bad(format!(
                "argument {number} is {argument:?}; the kernel takes {bytes} bytes of type {kind:?}"
            )));
        };
        parameters.resize(*at as usize, 0);
        parameters.extend(value);
    }
    Ok(parameters)
}

/// A number's bytes as a parameter of this type takes them; `None`: it takes no such number.
fn value_of(argument: &Argument, kind: Type, bytes: u64) -> Option<Vec<u8>> {
    let is_float = matches!(kind, Type::F32 | Type::F64);
    let integer = |value: i128, bytes: u64| {
        let bits = bytes.saturating_mul(8).clamp(8, 64) as u32;
        // What the text declares as unsigned may well be signed in the source.
        let fits = (-(1i128 << (bits - 1))..1i128 << bits).contains(&value);
        (fits && !is_float).then(|| value.to_le_bytes()[..(bits / 8) as usize].to_vec())
    };
    match argument {
        Argument::Buffer { .. } => None,
        Argument::U32 { value } => integer((*value).into(), 4),
        Argument::I32 { value } => integer((*value).into(), 4),
        Argument::U64 { value } => integer((*value).into(), 8),
        Argument::I64 { value } => integer((*value).into(), 8),
        Argument::Integer { value } if is_float => {
            value_of(&Argument::Real { value: *value as f64 }, kind, bytes)
        }
        Argument::Integer { value } => integer((*value).into(), bytes),
        Argument::Unsigned { value } => integer((*value).into(), bytes),
        Argument::F32 { value } => (kind == Type::F32).then(|| value.to_le_bytes().into()),
        Argument::F64 { value } => (kind == Type::F64).then(|| value.to_le_bytes().into()),
        Argument::Real { value } if kind == Type::F32 => Some((*value as f32).to_le_bytes().into()),
        Argument::Real { value } => (kind == Type::F64).then(|| value.to_le_bytes().into()),
        Argument::Bytes { bytes } => Some(bytes.clone()),
    }
}

/// A file directly in a folder: the task names it, so it may name nothing else.
fn plain_name(file: &str) -> Result<(), ModuleError> {
    let mut parts = Path::new(file).components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(name)), None) if name.to_str() == Some(file) => Ok(()),
        _ => Err(ModuleError::Bad(format!("{file:?} is no plain file name"))),
    }
}

fn size(bytes: u64) -> Result<usize, ModuleError> {
    usize::try_from(bytes).map_err(|_| ModuleError::Bad(format!("a buffer of {bytes} bytes")))
}

fn filled(name: &str, bytes: u64, fill: &Fill, input: &Path) -> Result<Vec<u8>, ModuleError> {
    let mut buffer = vec![0; size(bytes)?];
    match fill {
        Fill::Zero => {}
        Fill::Inline { bytes } => buffer[..bytes.len()].copy_from_slice(bytes),
        Fill::Input { file, offset } => {
            let mut source = input_file(input, file, name, *offset, bytes)?;
            let reading = |source| ModuleError::Io { doing: format!("read the input {file:?}"), source };
            source
                .seek(SeekFrom::Start(*offset))
                .and_then(|_| source.read_exact(&mut buffer))
                .map_err(reading)?;
        }
    }
    Ok(buffer)
}

/// An input that holds `bytes` from `offset` on.
fn input_file(input: &Path, file: &str, name: &str, offset: u64, bytes: u64) -> Result<File, ModuleError> {
    plain_name(file)?;
    let reading = |source| ModuleError::Io { doing: format!("read the input {file:?}"), source };
    let source = File::open(input.join(file)).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => ModuleError::Bad(format!("there is no input {file:?} for {name:?}")),
        _ => reading(error),
    })?;
    let length = source.metadata().map_err(reading)?.len();
    if length.saturating_sub(offset) < bytes {
        return Err(ModuleError::Bad(format!(
            "the input {file:?} has {length} bytes; the buffer {name:?} wants {bytes} from byte {offset}"
        )));
    }
    Ok(source)
}
