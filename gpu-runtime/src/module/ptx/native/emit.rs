//! The kernel as one function of Cranelift's language: its runs of steps, its branches, its waiting places and its memory.
//!
//! ```text
//! entry(context, frame, resume, lane, end)
//!   ─> lane ─ resume ─> the first step, or the step after the place where the thread waited ... ENDED | WAITS at a step ─> next lane
//!                                                                                           ... FAULT | STOPPED ─> return
//! ```
//!
//! Registers are variables of that language between two waiting places; at one, those that are read later go into the
//! thread's frame, and come back from it.

use std::collections::BTreeMap;

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{Block, InstBuilder, MemFlagsData, SigRef, Value, types};
use cranelift_frontend::{FunctionBuilder, Switch, Variable};

use super::call::{Context, ENDED, FAULT, RAN, STOPPED, WAITS};
use super::flow::{self, Class, Flow};
use crate::module::ptx::code::{Code, NO_GUARD, Op, SPECIAL, Slot, Step, Type};
use crate::module::ptx::run::LANE_STRIDE;
use crate::module::ptx::text::Space;

/// What emission needs at every step.
pub struct Emitter<'a, 'b> {
    pub builder: &'a mut FunctionBuilder<'b>,
    pub code: &'a Code,
    pub flow: &'a Flow,
    /// Whether this processor multiplies and adds with one rounding.
    pub has_fma: bool,
    pub(super) variables: Vec<Option<Variable>>,
    pub(super) carry: Variable,
    pub(super) specials: Vec<Option<Value>>,
    pub(super) context: Value,
    /// The warp's frame; a lane's column begins 8 bytes behind the one before it.
    pub(super) frame: Value,
    pub(super) lane: Variable,
    /// The lane behind the last.
    pub(super) end: Value,
    pub(super) spent: Variable,
    pub(super) budget: Variable,
    pub(super) compute: SigRef,
    pub(super) look: SigRef,
    /// What many places share: the next lane, a fault, the end that was asked for.
    pub(super) next_lane: Block,
    pub(super) fault: Block,
    pub(super) stopped: Block,
    /// Base and length of a block's shared memory, of a lane's own, and of the buffers' table.
    pub(super) shared: (Value, Value),
    pub(super) local: (Value, Value),
    pub(super) table: (Value, Value),
    pub(super) parameters: Value,
    /// Where the lead of each span went, in the run of steps being emitted.
    pub(super) led: BTreeMap<u32, Value>,
    /// The step being emitted.
    pub at: u32,
}

/// Signatures of what the code calls back.
#[derive(Debug, Clone, Copy)]
pub struct Calls {
    pub compute: SigRef,
    pub look: SigRef,
}

pub(super) fn plain() -> MemFlagsData {
    MemFlagsData::new().with_notrap()
}

/// Special registers that are the same for all lanes of a warp: all but the thread's index and its place in the warp.
const SHARED_SPECIALS: std::ops::Range<usize> = 3..12;

/// What does not change while the function runs.
pub(super) fn fixed() -> MemFlagsData {
    plain().with_aligned().with_readonly()
}

/// Writes the whole function.
///
/// # Errors
/// Why the kernel is not compiled.
pub fn emit(
    builder: &mut FunctionBuilder<'_>,
    code: &Code,
    flow: &Flow,
    calls: Calls,
    has_fma: bool,
) -> Result<(), String> {
    let entry = builder.create_block();
    builder.append_block_params_for_function_params(entry);
    builder.switch_to_block(entry);
    let [context, frame, resume, first, end] = *builder.block_params(entry) else {
        return Err("the entry takes five values".into());
    };
    let variables =
        flow.classes.iter().map(|class| class.map(|class| builder.declare_var(held(class)))).collect();
    let [carry, spent, budget, lane] = [(); 4].map(|()| builder.declare_var(types::I64));
    let [next_lane, fault, stopped] = [(); 3].map(|()| builder.create_block());
    let mut part = |offset: usize| builder.ins().load(types::I64, fixed(), context, offset as i32);
    let shared = (part(Context::SHARED), part(Context::SHARED_BYTES));
    let local = (part(Context::LOCAL), part(Context::LOCAL_BYTES));
    let table = (part(Context::TABLE), part(Context::BUFFERS));
    let parameters = part(Context::PARAMETERS);
    let so_far = builder.ins().load(types::I64, plain(), context, Context::SPENT as i32);
    builder.def_var(spent, so_far);
    let until = builder.ins().load(types::I64, plain(), context, Context::BUDGET as i32);
    builder.def_var(budget, until);
    builder.def_var(lane, first);
    let mut emitter = Emitter {
        builder,
        code,
        flow,
        has_fma,
        variables,
        carry,
        specials: vec![None; SPECIAL.len()],
        context,
        frame,
        lane,
        end,
        spent,
        budget,
        compute: calls.compute,
        look: calls.look,
        next_lane,
        fault,
        stopped,
        shared,
        local,
        table,
        parameters,
        led: BTreeMap::new(),
        at: 0,
    };
    emitter.body(resume)
}

/// The type that a register of this class has in the emitted language.
fn held(class: Class) -> types::Type {
    match class {
        Class::Truth => types::I8,
        Class::Narrow => types::I32,
        Class::Wide => types::I64,
        Class::Single => types::F32,
        Class::Double => types::F64,
    }
}

impl Emitter<'_, '_> {
    /// Reads the special registers that the kernel looks at: those that all lanes share, or the others.
    fn load_specials(&mut self, shared: bool) {
        let first = self.code.special_at;
        let mut used = vec![false; SPECIAL.len()];
        for step in &self.code.steps {
            flow::looks(step, &mut |slot, _| {
                if let Some(used) = (slot as usize).checked_sub(first).and_then(|at| used.get_mut(at)) {
                    *used = true;
                }
            });
        }
        let column = if shared { self.frame } else { self.column() };
        for (index, used) in used.into_iter().enumerate() {
            if used && SHARED_SPECIALS.contains(&index) == shared {
                let offset = ((first + index) * LANE_STRIDE) as i32;
                self.specials[index] = Some(self.builder.ins().load(types::I64, fixed(), column, offset));
            }
        }
    }

    /// Where the lane's values stand in the frame.
    fn column(&mut self) -> Value {
        let lane = self.builder.use_var(self.lane);
        let offset = self.builder.ins().ishl_imm_u(lane, 3);
        self.builder.ins().iadd(self.frame, offset)
    }

    /// Registers that nothing has written are 0 in every lane.
    fn clear(&mut self) {
        let zero = self.builder.ins().iconst(types::I64, 0);
        self.builder.def_var(self.carry, zero);
        for (variable, class) in self.variables.clone().into_iter().zip(&self.flow.classes) {
            let (Some(variable), Some(class)) = (variable, class) else { continue };
            let zero = match class {
                Class::Single => self.builder.ins().f32const(0.0f32),
                Class::Double => self.builder.ins().f64const(0.0f64),
                class => self.builder.ins().iconst(held(*class), 0),
            };
            self.builder.def_var(variable, zero);
        }
    }

    fn body(&mut self, resume: Value) -> Result<(), String> {
        let blocks: Vec<Block> = self.flow.leaders.iter().map(|_| self.builder.create_block()).collect();
        let block_at = |at: u32| self.flow.leaders.binary_search(&at).ok().map(|piece| blocks[piece]);
        let first = blocks[0];
        let lane = self.builder.create_block();
        self.load_specials(true);
        self.builder.ins().jump(lane, &[]);
        self.builder.switch_to_block(lane);
        self.load_specials(false);
        self.clear();
        if self.flow.waits.is_empty() {
            self.builder.ins().jump(first, &[]);
        } else {
            let mut switch = Switch::new();
            let mut resumes = Vec::new();
            for wait in &self.flow.waits {
                let block = self.builder.create_block();
                switch.set_entry(u128::from(wait.at + 1), block);
                resumes.push((block, wait));
            }
            switch.emit(self.builder, resume, first);
            for (block, wait) in resumes {
                self.builder.switch_to_block(block);
                let column = self.column();
                for slot in &wait.back {
                    self.take_back(*slot, column);
                }
                let next = block_at(wait.at + 1).ok_or("a waiting place with nothing behind it")?;
                self.builder.ins().jump(next, &[]);
            }
        }
        for (piece, block) in blocks.iter().enumerate() {
            let start = self.flow.leaders[piece];
            let end = self.flow.leaders.get(piece + 1).copied().unwrap_or(self.code.steps.len() as u32);
            self.builder.switch_to_block(*block);
            self.led.clear();
            let spent = self.builder.use_var(self.spent);
            let spent = self.builder.ins().iadd_imm_u(spent, i64::from(end - start));
            self.builder.def_var(self.spent, spent);
            let mut is_open = true;
            for at in start..end {
                self.at = at;
                is_open = self.step(&self.code.steps[at as usize], &block_at)?;
            }
            if is_open {
                let next = block_at(end).ok_or("the code ends without an exit")?;
                self.builder.ins().jump(next, &[]);
            }
        }
        self.ends(lane);
        Ok(())
    }

    /// Emits a step; says whether what follows it is reached from here.
    fn step(&mut self, step: &Step, block_at: &dyn Fn(u32) -> Option<Block>) -> Result<bool, String> {
        let is_guarded = step.guard != NO_GUARD;
        if let Op::Branch { to } = step.op {
            let target = block_at(to).ok_or("a branch to nowhere")?;
            let taken = if to <= self.at { self.builder.create_block() } else { target };
            if is_guarded {
                let next = block_at(self.at + 1).ok_or("a branch with nothing behind it")?;
                let holds = self.truth(step.guard);
                let (yes, no) = if step.guard_negated { (next, taken) } else { (taken, next) };
                self.builder.ins().brif(holds, yes, &[], no, &[]);
            } else {
                self.builder.ins().jump(taken, &[]);
            }
            if taken != target {
                self.builder.switch_to_block(taken);
                self.look_at_clock(target);
            }
            return Ok(false);
        }
        let mut after = None;
        if is_guarded {
            let (inside, behind) = (self.builder.create_block(), self.builder.create_block());
            let holds = self.truth(step.guard);
            let (yes, no) = if step.guard_negated { (behind, inside) } else { (inside, behind) };
            self.builder.ins().brif(holds, yes, &[], no, &[]);
            self.builder.switch_to_block(inside);
            after = Some(behind);
        }
        let is_open = self.operation(&step.op)?;
        if let Some(behind) = after {
            if is_open {
                self.builder.ins().jump(behind, &[]);
            }
            self.builder.switch_to_block(behind);
        }
        Ok(is_open || is_guarded)
    }

    fn operation(&mut self, op: &Op) -> Result<bool, String> {
        match *op {
            Op::Exit => self.end_lane(ENDED),
            Op::Trap => {
                let nowhere = self.builder.ins().iconst(types::I64, 0);
                self.fail(nowhere);
            }
            ref op if flow::waits(op) => self.wait(),
            Op::Fence => return Ok(true),
            Op::Parameter { kind, d, offset } => {
                let bytes = kind.bits() / 8;
                let given = self.code.parameters.iter().map(|(_, at, bytes)| u64::from(*at) + bytes).max();
                if bytes == 0 || u64::from(offset) + u64::from(bytes) > given.unwrap_or(0) {
                    return Err(self.unlike("a parameter outside of what is declared"));
                }
                self.read(kind, d, self.parameters, offset as i32);
                return Ok(true);
            }
            Op::Load { at, kind, base, offset, d, count } => {
                let bytes = self.bytes(kind)?;
                let (place, behind) = self.place(at, base, offset, bytes * u32::from(count));
                for (index, d) in d[..usize::from(count)].iter().enumerate() {
                    self.read(kind, *d, place, behind + (index as u32 * bytes) as i32);
                }
                return Ok(true);
            }
            Op::Store { at, kind, base, offset, a, count } => {
                if at == Some(Space::Const) {
                    return Err(self.unlike("a write to constant memory"));
                }
                let bytes = self.bytes(kind)?;
                let (place, behind) = self.place(at, base, offset, bytes * u32::from(count));
                for (index, a) in a[..usize::from(count)].iter().enumerate() {
                    self.write(kind, *a, place, behind + (index as u32 * bytes) as i32);
                }
                return Ok(true);
            }
            Op::Atomic { op, at, kind, base, offset, d, a } => {
                let bytes = self.bytes(kind)?;
                let (place, behind) = self.place(at, base, offset, bytes);
                self.change(op, kind, (place, behind), d, a);
                return Ok(true);
            }
            Op::Swap { at, kind, base, offset, d, a, b } => {
                let bytes = self.bytes(kind)?;
                let (place, behind) = self.place(at, base, offset, bytes);
                let (expected, new) = (self.bits(a, kind.bits()), self.bits(b, kind.bits()));
                let form = integer_of(kind.bits());
                let old = self.builder.ins().load(form, plain(), place, behind);
                let is_it = self.builder.ins().icmp(IntCC::Equal, old, expected);
                let new = self.builder.ins().select(is_it, new, old);
                self.builder.ins().store(plain(), new, place, behind);
                self.put(d, old, kind.is_signed());
                return Ok(true);
            }
            ref op => {
                self.compute(op)?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Why the kernel is left to the interpreter, with the line.
    pub fn unlike(&self, what: &str) -> String {
        format!("line {}: {what}", self.code.steps[self.at as usize].line)
    }

    fn bytes(&self, kind: Type) -> Result<u32, String> {
        match kind.bits() / 8 {
            0 => Err(self.unlike("a predicate in memory")),
            bytes => Ok(bytes),
        }
    }

    fn leave(&mut self, how: i64) {
        let spent = self.builder.use_var(self.spent);
        self.builder.ins().store(plain(), spent, self.context, Context::SPENT as i32);
        // What was granted holds for the next warp too: else the clock would be looked at in each.
        let budget = self.builder.use_var(self.budget);
        self.builder.ins().store(plain(), budget, self.context, Context::BUDGET as i32);
        let how = self.builder.ins().iconst(types::I32, how);
        self.builder.ins().return_(&[how]);
    }

    /// Ends the function where a step cannot be done.
    pub(super) fn fail(&mut self, address: Value) {
        let at = self.builder.ins().iconst(types::I64, i64::from(self.at));
        self.builder.ins().jump(self.fault, &[at.into(), address.into()]);
    }

    /// Ends the lane; the others go on.
    fn end_lane(&mut self, came: i64) {
        let came = self.builder.ins().iconst(types::I32, came);
        self.builder.ins().jump(self.next_lane, &[came.into()]);
    }

    fn ends(&mut self, again: Block) {
        let came = self.builder.append_block_param(self.next_lane, types::I32);
        self.builder.switch_to_block(self.next_lane);
        let lane = self.builder.use_var(self.lane);
        let offset = self.builder.ins().ishl_imm_u(lane, 2);
        let place = self.builder.ins().iadd(self.context, offset);
        self.builder.ins().store(plain(), came, place, Context::CAME as i32);
        let lane = self.builder.ins().iadd_imm_u(lane, 1);
        self.builder.def_var(self.lane, lane);
        let (all, on) = (self.builder.create_block(), self.builder.create_block());
        let is_all = self.builder.ins().icmp(IntCC::Equal, lane, self.end);
        self.builder.ins().brif(is_all, all, &[], on, &[]);
        self.builder.switch_to_block(on);
        self.look_at_clock(again);
        self.builder.switch_to_block(all);
        self.leave(RAN);
        let at = self.builder.append_block_param(self.fault, types::I64);
        let address = self.builder.append_block_param(self.fault, types::I64);
        self.builder.switch_to_block(self.fault);
        self.builder.set_cold_block(self.fault);
        let lane = self.builder.use_var(self.lane);
        self.builder.ins().store(plain(), lane, self.context, Context::LANE as i32);
        self.builder.ins().store(plain(), at, self.context, Context::AT as i32);
        self.builder.ins().store(plain(), address, self.context, Context::ADDRESS as i32);
        self.leave(FAULT);
        self.builder.switch_to_block(self.stopped);
        self.builder.set_cold_block(self.stopped);
        self.leave(STOPPED);
    }

    /// Every way back goes by here: no loop runs past what was granted without asking for more.
    fn look_at_clock(&mut self, target: Block) {
        let asks = self.builder.create_block();
        self.builder.set_cold_block(asks);
        let (spent, budget) = (self.builder.use_var(self.spent), self.builder.use_var(self.budget));
        let is_over = self.builder.ins().icmp(IntCC::UnsignedGreaterThanOrEqual, spent, budget);
        self.builder.ins().brif(is_over, asks, &[], target, &[]);
        self.builder.switch_to_block(asks);
        let callee = self.builder.ins().load(types::I64, fixed(), self.context, Context::LOOK as i32);
        let call = self.builder.ins().call_indirect(self.look, callee, &[self.context, spent]);
        let more = self.builder.inst_results(call)[0];
        self.builder.def_var(self.budget, more);
        self.builder.ins().brif(more, target, &[], self.stopped, &[]);
    }

    /// Leaves the thread until those that it waits for are there.
    fn wait(&mut self) {
        let at = self.at;
        let column = self.column();
        if let Ok(found) = self.flow.waits.binary_search_by_key(&at, |wait| wait.at) {
            for slot in &self.flow.waits[found].aside {
                self.set_aside(*slot, column);
            }
        }
        self.end_lane(WAITS | i64::from(at) << 2);
    }

    /// Where a slot stands in the thread's frame; the carry stands behind all slots.
    fn offset(&self, slot: Slot) -> i32 {
        let registers = flow::registers(self.code);
        let slot = if slot as usize == registers { self.code.frame.len() } else { slot as usize };
        (slot * LANE_STRIDE) as i32
    }

    fn set_aside(&mut self, slot: Slot, column: Value) {
        let value = if slot as usize == flow::registers(self.code) {
            self.builder.use_var(self.carry)
        } else {
            self.bits(slot, 64)
        };
        let offset = self.offset(slot);
        self.builder.ins().store(plain(), value, column, offset);
    }

    fn take_back(&mut self, slot: Slot, column: Value) {
        let offset = self.offset(slot);
        let value = self.builder.ins().load(types::I64, plain(), column, offset);
        if slot as usize == flow::registers(self.code) {
            self.builder.def_var(self.carry, value);
        } else {
            self.put(slot, value, false);
        }
    }

    /// A register's variable, where anything reads it.
    pub fn variable(&self, slot: Slot) -> Option<(Variable, Class)> {
        let slot = slot as usize;
        Some((self.variables.get(slot).copied().flatten()?, self.flow.classes[slot]?))
    }

    pub fn special(&self, slot: Slot) -> Option<Value> {
        self.specials.get((slot as usize).checked_sub(self.code.special_at)?).copied().flatten()
    }

    pub fn carry(&self) -> Variable {
        self.carry
    }

    /// What the interpreter's arithmetic gives for this step: for all that is not worth its own instructions.
    pub fn ask(&mut self, slots: &[Slot]) -> Value {
        let at = self.builder.ins().iconst(types::I64, i64::from(self.at));
        let mut given = vec![self.context, at];
        for index in 0..4 {
            let value = match slots.get(index) {
                Some(slot) => self.bits(*slot, 64),
                None => self.builder.ins().iconst(types::I64, 0),
            };
            given.push(value);
        }
        self.call_compute(&given)
    }

    pub(super) fn call_compute(&mut self, given: &[Value]) -> Value {
        let callee = self.builder.ins().load(types::I64, fixed(), self.context, Context::COMPUTE as i32);
        let call = self.builder.ins().call_indirect(self.compute, callee, given);
        self.builder.inst_results(call)[0]
    }
}

/// The integer type of that many bits.
pub fn integer_of(bits: u32) -> types::Type {
    if bits > 32 { types::I64 } else { types::I32 }
}
