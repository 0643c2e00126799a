//! The one place where made code is entered: what it is given, and why it can touch nothing else.
//!
//! Made code reads and writes through three kinds of pointers: the [`Context`], a lane's column of its warp's frame, and
//! places that it has compared with a length that stands in the context beside their start. All of them are of memory that
//! the [`Block`](crate::module::ptx::run) owns or holds alone while the code runs. It calls the two functions below and no others, and it returns:
//! every way back in it passes a look at the clock.

use std::ffi::c_void;
use std::mem::offset_of;
use std::ops::Range;

use cranelift_jit::JITModule;
use cranelift_module::FuncId;

use super::reckon;
use crate::module::ptx::code::Code;
use crate::module::ptx::run::{Buffers, Lanes, WARP};

/// How the entry returns: all lanes went as far as they could, one did what it may not, or it was told to end.
pub const RAN: i64 = 0;
pub const FAULT: i64 = 1;
pub const STOPPED: i64 = 2;
/// How a lane came out: it ended, or it waits at the step in the bits above.
pub const ENDED: i64 = 0;
pub const WAITS: i64 = 1;

/// A buffer as made code sees it: where it starts, and its bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Line {
    start: *mut u8,
    bytes: u64,
}

/// What made code is given beside a frame. It is read at the offsets below.
#[repr(C)]
#[derive(Debug)]
pub struct Context {
    /// Line 0 is of no bytes; line n is of buffer n - 1, as addresses number them.
    table: *const Line,
    buffers: u64,
    shared: *mut u8,
    shared_bytes: u64,
    local: *mut u8,
    local_bytes: u64,
    parameters: *const u8,
    /// Steps of the launch so far, and at how many the clock is looked at.
    spent: u64,
    budget: u64,
    /// The lane and the step of a fault, and the address that it named.
    lane: u64,
    at: u64,
    address: u64,
    came: [u32; WARP],
    look: extern "C" fn(*mut Context, u64) -> u64,
    compute: extern "C" fn(*const Context, u64, u64, u64, u64, u64) -> u64,
    code: *const Code,
    /// A `&mut dyn FnMut(u64) -> u64`, while the code runs.
    host: *mut c_void,
}

impl Context {
    pub const TABLE: usize = offset_of!(Context, table);
    pub const BUFFERS: usize = offset_of!(Context, buffers);
    pub const SHARED: usize = offset_of!(Context, shared);
    pub const SHARED_BYTES: usize = offset_of!(Context, shared_bytes);
    pub const LOCAL: usize = offset_of!(Context, local);
    pub const LOCAL_BYTES: usize = offset_of!(Context, local_bytes);
    pub const PARAMETERS: usize = offset_of!(Context, parameters);
    pub const SPENT: usize = offset_of!(Context, spent);
    pub const BUDGET: usize = offset_of!(Context, budget);
    pub const LANE: usize = offset_of!(Context, lane);
    pub const CAME: usize = offset_of!(Context, came);
    pub const AT: usize = offset_of!(Context, at);
    pub const ADDRESS: usize = offset_of!(Context, address);
    pub const LOOK: usize = offset_of!(Context, look);
    pub const COMPUTE: usize = offset_of!(Context, compute);
}

/// Asks whether to go on; answers the steps to look again at, or 0 to end.
extern "C" fn look(context: *mut Context, spent: u64) -> u64 {
    // SAFETY: made code passes on the context that `Entry::run` gave it, and has no reference to it; `host` points to that
    // function's own argument, which lives and is used by nobody else until the code returns.
    let host = unsafe { &mut *(*context).host.cast::<&mut dyn FnMut(u64) -> u64>() };
    host(spent)
}

/// Computes one step the slow way.
extern "C" fn compute(context: *const Context, at: u64, a: u64, b: u64, c: u64, e: u64) -> u64 {
    // SAFETY: as above; `code` is what the entry was made of, and `Entry::run` borrows it until the code returns.
    let code = unsafe { &*(*context).code };
    code.steps.get(at as usize).map_or(0, |step| reckon::slowly(&step.op, [a, b, c, e]))
}

type Function = extern "C" fn(*mut Context, *mut u64, u32, u64, u64) -> u32;

/// Made code, and the memory that it stands in.
pub struct Entry {
    function: Function,
    /// `None` only while being dropped.
    module: Option<JITModule>,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry").finish_non_exhaustive()
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(module) = self.module.take() {
            // SAFETY: the only pointer into it is `function`, which nobody can call any more: `run` borrows `self`.
            unsafe { module.free_memory() };
        }
    }
}

/// Why lanes did not all come as far as they could.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broke {
    Fault { lane: usize, at: u32, address: u64 },
    Stopped,
}

/// Memory of a block in which a warp runs.
pub struct Place<'a> {
    pub frame: &'a mut [Lanes],
    pub shared: &'a mut [u8],
    /// All lanes' own memory, one behind the other.
    pub local: &'a mut [u8],
    pub local_bytes: usize,
    pub parameters: &'a [u8],
}

/// Buffers, numbered for made code. Valid as long as the buffers are neither moved nor resized.
#[derive(Debug)]
pub struct Table(Vec<Line>);

impl Table {
    #[must_use]
    pub fn of(buffers: &mut Buffers) -> Self {
        let none = Line { start: std::ptr::null_mut(), bytes: 0 };
        let lines = buffers.iter_mut().map(|one| Line { start: one.as_mut_ptr(), bytes: one.len() as u64 });
        Self(std::iter::once(none).chain(lines).collect())
    }
}

/// Steps so far, and at how many the clock is looked at next.
#[derive(Debug, Clone, Copy)]
pub struct Meter {
    pub spent: u64,
    pub budget: u64,
}

/// Keeps finished code. Only [`super::compile`] calls it, with what it has just made.
pub(super) fn entry(module: JITModule, id: FuncId) -> Entry {
    let address = module.get_finalized_function(id);
    // SAFETY: `super::compile` declares the function with these parameters and this result in the platform's C convention, and
    // has finished it; the memory stays until `Entry` is dropped.
    let function = unsafe { std::mem::transmute::<*const u8, Function>(address) };
    Entry { function, module: Some(module) }
}

impl Entry {
    /// Runs lanes of a warp one after the other, each from the step `resume` until it ends or waits; answers how each came
    /// out, by its number.
    ///
    /// `table` is of the buffers that `buffers` borrows, and `code` what this was made of.
    ///
    /// # Errors
    /// The first lane that did what it may not, or that it was told to end.
    ///
    /// # Panics
    /// If what it is given does not fit `code`.
    #[allow(clippy::too_many_arguments)]
    pub fn run(
        &self,
        code: &Code,
        place: &mut Place<'_>,
        buffers: &mut Buffers,
        table: &Table,
        meter: &mut Meter,
        resume: u32,
        lanes: Range<usize>,
        mut over: &mut dyn FnMut(u64) -> u64,
    ) -> Result<[u32; WARP], Broke> {
        let wanted = code.parameters.iter().map(|(_, at, bytes)| *at as usize + *bytes as usize).max();
        assert!(table.0.len() == buffers.len() + 1, "the table is of other buffers");
        assert!(place.parameters.len() >= wanted.unwrap_or(0), "arguments are missing");
        assert!(place.frame.len() > code.frame.len(), "the frame is too short");
        assert!(!lanes.is_empty() && lanes.end <= WARP, "a warp has no such lanes");
        assert!(place.local.len() >= lanes.end * place.local_bytes, "lanes lack memory of their own");
        let mut context = Context {
            table: table.0.as_ptr(),
            buffers: buffers.len() as u64,
            shared: place.shared.as_mut_ptr(),
            shared_bytes: place.shared.len() as u64,
            local: place.local.as_mut_ptr(),
            local_bytes: place.local_bytes as u64,
            parameters: place.parameters.as_ptr(),
            spent: meter.spent,
            budget: meter.budget,
            lane: 0,
            at: 0,
            address: 0,
            came: [0; WARP],
            look,
            compute,
            code,
            host: (&raw mut over).cast(),
        };
        // What the code is entered with, and with it the proof that it does no harm, for the assertions above:
        // - slot n of lane l stands `n * LANE_STRIDE + l * 8` bytes behind the frame's start; the code names no slot above
        //   `code.frame.len()` and no lane but these;
        // - buffers, shared and local memory are borrowed mutably here and neither moved nor resized; each access is made at a
        //   start plus an offset that the code has compared, with the access's size, with the length beside that start;
        // - parameters are read where the kernel declares them, which the emitter has checked;
        // - the code keeps no pointer, does not unwind, and returns, as each way back in it passes `look`.
        let frame = place.frame.as_mut_ptr().cast::<u64>();
        let how = (self.function)(&raw mut context, frame, resume, lanes.start as u64, lanes.end as u64);
        (meter.spent, meter.budget) = (context.spent, context.budget);
        match i64::from(how) {
            RAN => Ok(context.came),
            FAULT => Err(Broke::Fault {
                lane: context.lane as usize % WARP,
                at: context.at as u32,
                address: context.address,
            }),
            _ => Err(Broke::Stopped),
        }
    }
}
