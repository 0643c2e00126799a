//! Kernels as machine code of this processor: what the interpreter does, two to four times as fast.
//!
//! ```text
//! Code ─ flow ─> runs of steps, forms of registers ─ emit, reckon ─> one function ─ Cranelift ─> call
//! ```
//!
//! | room       | holds                                                                  |
//! |------------|------------------------------------------------------------------------|
//! | [`flow`]   | what steps read and write; which kernels are left to the interpreter    |
//! | [`span`]   | accesses to memory that are checked together                            |
//! | [`emit`]   | branches, waiting places, the clock                                     |
//! | [`held`]   | registers, in the form that a step wants                                |
//! | [`reckon`] | what a step computes                                                    |
//! | [`touch`]  | memory: that an access goes nowhere else                                |
//! | [`call`]   | entering the code: all that the compiler of this program cannot prove   |
//!
//! The function runs a warp's lanes one after the other, each from where it is to its end or to the next place where it waits: a
//! barrier of its block, or an exchange in its warp. There what is wanted later goes into the lane's frame. The executor's own
//! loop over blocks and warps, barriers and exchanges goes on as for interpreted threads, and enters the function again behind
//! that place.
//!
//! What always holds: a kernel is compiled whole or not at all; buffers, faults and counts of instructions come out as the
//! interpreter's. Between two barriers threads run one after the other rather than in step, so kernels for which that could
//! matter are left to the interpreter: atomics whose order shows, and volatile or ordered accesses.

pub mod call;
mod emit;
mod flow;
mod held;
mod reckon;
mod span;
mod touch;

pub use flow::depends_on_order;

pub(super) use span::span_from;

use cranelift_codegen::Context;
use cranelift_codegen::ir::{AbiParam, Function, Signature, UserFuncName, types};
use cranelift_codegen::settings::{self, Configurable};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use cranelift_jit::{JITBuilder, JITModule};
use cranelift_module::{Linkage, Module, default_libcall_names};

use super::code::{Code, Op};
use super::run::Launch;

/// Instructions of all threads that take the interpreter about as long as compiling takes.
const WORTH_STEPS: u128 = 1 << 19;

/// Whether a launch, made that many times, is long enough to be compiled: loops may be.
#[must_use]
pub fn is_worth_it(code: &Code, launch: &Launch, repeat: u32) -> bool {
    let loops = (0u32..).zip(&code.steps).any(|(at, step)| matches!(step.op, Op::Branch { to } if to <= at));
    let sides = launch.grid.iter().chain(&launch.block);
    let threads = sides.fold(u128::from(repeat), |threads, side| threads.saturating_mul(u128::from(*side)));
    loops || threads.saturating_mul(code.steps.len() as u128) > WORTH_STEPS
}

/// Bytes that compiling a kernel takes at most, as far as was seen: 9 MiB for 806 instructions in a process that had 8, 48 MiB
/// for 20,000.
#[must_use]
pub fn bytes_to_compile(code: &Code) -> u64 {
    (6 << 20) + code.steps.len() as u64 * 2048
}

/// Compiles a kernel for this machine.
///
/// # Errors
/// Why it is left to the interpreter.
pub fn compile(code: &Code) -> Result<call::Entry, String> {
    let flow = flow::of(code)?;
    let failed = |error: &dyn std::fmt::Display| format!("the compiler: {error}");
    let mut flags = settings::builder();
    for (name, value) in [
        ("use_colocated_libcalls", "false"),
        ("is_pic", "false"),
        ("opt_level", "speed"),
        ("enable_probestack", "true"),
        ("probestack_strategy", "inline"),
    ] {
        flags.set(name, value).map_err(|error| failed(&error))?;
    }
    let isa = cranelift_native::builder().map_err(|error| failed(&error))?;
    let isa = isa.finish(settings::Flags::new(flags)).map_err(|error| failed(&error))?;
    let call_conv = isa.default_call_conv();
    let signature = |parameters: &[types::Type], returned: types::Type| {
        let mut signature = Signature::new(call_conv);
        signature.params = parameters.iter().map(|one| AbiParam::new(*one)).collect();
        signature.returns = vec![AbiParam::new(returned)];
        signature
    };
    let entry = signature(&[types::I64, types::I64, types::I32, types::I64, types::I64], types::I32);
    let mut module = JITModule::new(JITBuilder::with_isa(isa, default_libcall_names()));
    let id = module.declare_function("kernel", Linkage::Local, &entry).map_err(|error| failed(&error))?;
    let mut function = Function::with_name_signature(UserFuncName::user(0, 0), entry);
    let calls = emit::Calls {
        compute: function.import_signature(signature(&[types::I64; 6], types::I64)),
        look: function.import_signature(signature(&[types::I64; 2], types::I64)),
    };
    let mut scratch = FunctionBuilderContext::new();
    let mut builder = FunctionBuilder::new(&mut function, &mut scratch);
    emit::emit(&mut builder, code, &flow, calls, has_fma())?;
    builder.seal_all_blocks();
    builder.finalize(module.target_config());
    let mut context = Context::for_function(function);
    module.define_function(id, &mut context).map_err(|error| failed(&error))?;
    module.finalize_definitions().map_err(|error| failed(&error))?;
    Ok(call::entry(module, id))
}

/// Whether this processor multiplies and adds with one rounding, and Cranelift knows.
fn has_fma() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::is_x86_feature_detected!("fma") && std::is_x86_feature_detected!("avx");
    #[cfg(not(target_arch = "x86_64"))]
    return cfg!(target_arch = "aarch64");
}
