//! Instructions as the executor runs them: every name resolved to a slot, every suffix to a type.
//!
//! A thread's state is one array of 64-bit slots: its registers, then the kernel's constants, then the special registers.
//! An operand is an index into it, so that the executor never asks what kind of operand it has.

use std::collections::BTreeMap;

use super::PtxError;
use super::text::{Instruction, Kernel, Operand, Space, Text, Variable};

/// Index of a slot.
pub type Slot = u32;

/// A number's type, as in `.s32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F32,
    F64,
    Pred,
}

impl Type {
    fn of(suffix: &str) -> Option<Self> {
        Some(match suffix {
            "u8" | "b8" => Self::U8,
            "u16" | "b16" => Self::U16,
            "u32" | "b32" => Self::U32,
            "u64" | "b64" => Self::U64,
            "s8" => Self::S8,
            "s16" => Self::S16,
            "s32" => Self::S32,
            "s64" => Self::S64,
            "f32" => Self::F32,
            "f64" => Self::F64,
            "pred" => Self::Pred,
            _ => return None,
        })
    }

    #[must_use]
    pub fn bits(self) -> u32 {
        match self {
            Self::U8 | Self::S8 => 8,
            Self::U16 | Self::S16 => 16,
            Self::U32 | Self::S32 | Self::F32 => 32,
            Self::U64 | Self::S64 | Self::F64 => 64,
            Self::Pred => 1,
        }
    }

    #[must_use]
    pub fn is_signed(self) -> bool {
        matches!(self, Self::S8 | Self::S16 | Self::S32 | Self::S64)
    }

    #[must_use]
    pub fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F64)
    }
}

/// What two numbers become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binary {
    Add,
    Sub,
    MulLo,
    MulHi,
    Div,
    Rem,
    Min,
    Max,
    And,
    Or,
    Xor,
    Shl,
    Shr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unary {
    Mov,
    Not,
    Cnot,
    Neg,
    Abs,
    Popc,
    Clz,
    Brev,
    Bfind,
    Sqrt,
    Rcp,
    Rsqrt,
    Sin,
    Cos,
    Ex2,
    Lg2,
    Tanh,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    /// Both are numbers; one is none.
    Num,
    Nan,
}

/// How a float becomes an integer, or one of fewer digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    Nearest,
    Zero,
    Down,
    Up,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Atom {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exch,
    Inc,
    Dec,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vote {
    All,
    Any,
    Uniform,
    Ballot,
}

/// Which memory an address is in; `None` finds it from the address.
pub type At = Option<Space>;

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Op {
    Binary {
        op: Binary,
        kind: Type,
        d: Slot,
        a: Slot,
        b: Slot,
        flush: bool,
        saturate: bool,
    },
    Unary {
        op: Unary,
        kind: Type,
        d: Slot,
        a: Slot,
        flush: bool,
    },
    /// a * b + c; `wide` makes the product and the sum twice as wide as `kind`.
    Mad {
        kind: Type,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
        high: bool,
    },
    MulWide {
        kind: Type,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    Fma {
        kind: Type,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
        flush: bool,
        saturate: bool,
    },
    /// With a carry in, out, or both.
    Carry {
        kind: Type,
        d: Slot,
        a: Slot,
        b: Slot,
        subtract: bool,
        takes: bool,
        gives: bool,
    },
    Lop3 {
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
        table: u8,
    },
    Funnel {
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
        left: bool,
        clamp: bool,
    },
    Bfe {
        kind: Type,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    Bfi {
        kind: Type,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
        e: Slot,
    },
    Prmt {
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    Setp {
        compare: Compare,
        unordered: bool,
        kind: Type,
        p: Slot,
        q: Slot,
        a: Slot,
        b: Slot,
        flush: bool,
        with: Option<(Binary, Slot, bool)>,
    },
    Select {
        d: Slot,
        a: Slot,
        b: Slot,
        p: Slot,
    },
    Convert {
        to: Type,
        from: Type,
        d: Slot,
        a: Slot,
        rounding: Rounding,
        integral: bool,
        flush: bool,
        saturate: bool,
    },
    /// One 64-bit slot from two of 32 bits, or back; or four of 16 and two.
    Pack {
        bits: u32,
        d: Slot,
        parts: [Slot; 4],
        count: u8,
    },
    Unpack {
        bits: u32,
        a: Slot,
        parts: [Slot; 4],
        count: u8,
    },
    Parameter {
        kind: Type,
        d: Slot,
        offset: u32,
    },
    Load {
        at: At,
        kind: Type,
        base: Slot,
        offset: i64,
        d: [Slot; 4],
        count: u8,
    },
    Store {
        at: At,
        kind: Type,
        base: Slot,
        offset: i64,
        a: [Slot; 4],
        count: u8,
    },
    /// A window's address from a generic one, or back.
    Window {
        space: Space,
        to_generic: bool,
        d: Slot,
        a: Slot,
    },
    Atomic {
        op: Atom,
        at: At,
        kind: Type,
        base: Slot,
        offset: i64,
        d: Slot,
        a: Slot,
    },
    Swap {
        at: At,
        kind: Type,
        base: Slot,
        offset: i64,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    Branch {
        to: u32,
    },
    Barrier,
    WarpBarrier {
        mask: Slot,
    },
    Shuffle {
        mode: Shuffle,
        d: Slot,
        p: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
        mask: Slot,
    },
    Vote {
        mode: Vote,
        d: Slot,
        p: Slot,
        negated: bool,
        mask: Slot,
    },
    Fence,
    Exit,
    Trap,
}

/// An operation and what must hold for it to be done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    pub op: Op,
    /// A predicate's slot, and whether it must be false; [`NO_GUARD`] when there is none.
    pub guard: Slot,
    pub guard_negated: bool,
    pub line: u32,
}

pub const NO_GUARD: Slot = Slot::MAX;

/// Values that differ from thread to thread or block to block, in the order of their slots.
pub const SPECIAL: [&str; 15] = [
    "%tid.x",
    "%tid.y",
    "%tid.z",
    "%ctaid.x",
    "%ctaid.y",
    "%ctaid.z",
    "%ntid.x",
    "%ntid.y",
    "%ntid.z",
    "%nctaid.x",
    "%nctaid.y",
    "%nctaid.z",
    "%laneid",
    "%warpid",
    "%lanemask_lt",
];

/// Addresses of variables, as slots hold them: windows, and buffers in the order of [`Code::globals`].
pub const GLOBAL_SHIFT: u32 = 40;
pub const SHARED_WINDOW: u64 = 1 << 62;
pub const LOCAL_WINDOW: u64 = 1 << 61;

/// A kernel ready to run.
#[derive(Debug, Clone)]
pub struct Code {
    pub name: String,
    pub parameters: Vec<(Type, u32, u64)>,
    pub steps: Vec<Step>,
    /// The slots of a thread before its first step; special registers are filled in at [`Code::special_at`].
    pub frame: Vec<u64>,
    pub special_at: usize,
    pub shared_bytes: u64,
    pub local_bytes: u64,
    pub uses_dynamic_shared: bool,
    /// Approximate operations, or ones whose result depends on an order: why another machine may differ.
    pub inexact: Vec<String>,
    /// The first line where threads may talk through memory without a barrier: a volatile or ordered access.
    pub talks: Option<u32>,
}

/// All of a module.
#[derive(Debug, Clone)]
pub struct Module {
    pub target: String,
    pub kernels: Vec<Code>,
    /// The module's own variables: buffers that every launch shares, numbered from 0.
    pub globals: Vec<Variable>,
}

/// Resolves a module's text.
///
/// # Errors
/// [`PtxError::Unsupported`] names the instruction and its line; [`PtxError::Malformed`] what is not PTX.
pub fn resolve(text: &Text) -> Result<Module, PtxError> {
    if text.address_bits != 64 {
        return Err(PtxError::malformed(0, "only .address_size 64 is supported"));
    }
    let globals: Vec<_> = text
        .variables
        .iter()
        .filter(|one| matches!(one.space, Space::Global | Space::Const))
        .cloned()
        .collect();
    let kernels =
        text.kernels.iter().map(|kernel| Resolver::run(text, kernel, &globals)).collect::<Result<_, _>>()?;
    Ok(Module { target: text.target.clone(), kernels, globals })
}

struct Resolver<'a> {
    kernel: &'a Kernel,
    slots: BTreeMap<&'a str, Slot>,
    constants: BTreeMap<u64, Slot>,
    frame: Vec<u64>,
    special_at: usize,
    /// Where variables start, in the window that they are addressed by.
    addresses: BTreeMap<String, u64>,
    parameters: BTreeMap<&'a str, u32>,
    inexact: Vec<String>,
    talks: Option<u32>,
    /// Of the instruction being resolved.
    now: &'a Instruction,
}

fn align_up(at: u64, align: u64) -> u64 {
    at.div_ceil(align.max(1)) * align.max(1)
}

impl<'a> Resolver<'a> {
    fn run(text: &'a Text, kernel: &'a Kernel, globals: &[Variable]) -> Result<Code, PtxError> {
        static NOTHING: Instruction = Instruction {
            line: 0,
            guard: None,
            name: String::new(),
            suffixes: Vec::new(),
            operands: Vec::new(),
        };
        let mut slots: BTreeMap<&str, Slot> =
            kernel.registers.keys().zip(0..).map(|(name, slot)| (name.as_str(), slot)).collect();
        let special_at = slots.len();
        slots.extend(SPECIAL.iter().zip(special_at as Slot..).map(|(name, slot)| (*name, slot)));
        let frame = vec![0; special_at + SPECIAL.len()];
        let mut addresses = BTreeMap::new();
        for (index, global) in globals.iter().enumerate() {
            addresses.insert(global.name.clone(), (index as u64 + 1) << GLOBAL_SHIFT);
        }
        let (mut shared, mut local, mut uses_dynamic_shared) = (0u64, 0u64, false);
        let variables =
            kernel.variables.iter().chain(text.variables.iter().filter(|one| one.space == Space::Shared));
        for variable in variables.clone().filter(|one| !one.is_dynamic) {
            let end = if variable.space == Space::Local { &mut local } else { &mut shared };
            *end = align_up(*end, variable.align);
            addresses.insert(variable.name.clone(), *end);
            *end = end.saturating_add(variable.bytes);
        }
        shared = align_up(shared, 16);
        for variable in variables.filter(|one| one.is_dynamic) {
            uses_dynamic_shared = true;
            addresses.insert(variable.name.clone(), shared);
        }
        let (mut offset, mut parameters, mut kinds) = (0u64, BTreeMap::new(), Vec::new());
        for parameter in &kernel.parameters {
            offset = align_up(offset, parameter.align);
            let at =
                u32::try_from(offset).map_err(|_| PtxError::malformed(0, "parameters of more than 4 GiB"))?;
            parameters.insert(parameter.name.as_str(), at);
            let kind = Type::of(&parameter.kind).ok_or_else(|| {
                PtxError::malformed(0, format!("parameters of type .{} are not supported", parameter.kind))
            })?;
            kinds.push((kind, at, parameter.bytes));
            offset += parameter.bytes;
        }
        let mut resolver = Self {
            kernel,
            slots,
            constants: BTreeMap::new(),
            frame,
            special_at,
            addresses,
            parameters,
            inexact: Vec::new(),
            talks: None,
            now: &NOTHING,
        };
        let mut steps = Vec::with_capacity(kernel.instructions.len() + 1);
        for instruction in &kernel.instructions {
            resolver.now = instruction;
            let op = resolver.op()?;
            let (guard, guard_negated) = match &instruction.guard {
                None => (NO_GUARD, false),
                Some((name, negated)) => (resolver.name(name)?, *negated),
            };
            steps.push(Step { op, guard, guard_negated, line: instruction.line });
        }
        steps.push(Step { op: Op::Exit, guard: NO_GUARD, guard_negated: false, line: 0 });
        Ok(Code {
            name: kernel.name.clone(),
            parameters: kinds,
            steps,
            frame: resolver.frame,
            special_at,
            shared_bytes: shared,
            local_bytes: local,
            uses_dynamic_shared,
            inexact: resolver.inexact,
            talks: resolver.talks,
        })
    }

    fn unsupported(&self) -> PtxError {
        PtxError::Unsupported {
            line: self.now.line,
            instruction: self.now.opcode(),
            kernel: self.kernel.name.clone(),
        }
    }

    fn malformed(&self, text: impl Into<String>) -> PtxError {
        PtxError::malformed(self.now.line, text)
    }

    fn name(&self, name: &str) -> Result<Slot, PtxError> {
        let found = self.slots.get(name).copied();
        found.ok_or_else(|| match name.starts_with('%') {
            true => PtxError::Unsupported {
                line: self.now.line,
                instruction: format!("the register {name}"),
                kernel: self.kernel.name.clone(),
            },
            false => self.malformed(format!("{name:?} is no register")),
        })
    }

    fn constant(&mut self, value: u64) -> Slot {
        if let Some(slot) = self.constants.get(&value) {
            return *slot;
        }
        let slot = self.frame.len() as Slot;
        self.frame.push(value);
        self.constants.insert(value, slot);
        slot
    }

    /// The slot of an operand that is read.
    fn read(&mut self, index: usize, kind: Type) -> Result<Slot, PtxError> {
        let operand = self.operand(index)?;
        self.read_operand(operand, kind)
    }

    fn read_operand(&mut self, operand: &Operand, kind: Type) -> Result<Slot, PtxError> {
        match operand {
            Operand::Name(name) if name == "WARP_SZ" => Ok(self.constant(32)),
            Operand::Name(name) => match self.slots.get(name.as_str()) {
                Some(slot) => Ok(*slot),
                None => match self.addresses.get(name).copied() {
                    Some(address) => Ok(self.constant(address)),
                    None => self.name(name),
                },
            },
            Operand::Number(value) => {
                let bits = kind.bits().max(8);
                let mask = if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
                Ok(self.constant(value & mask))
            }
            _ => Err(self.malformed("a register or a number is expected")),
        }
    }

    fn operand(&self, index: usize) -> Result<&'a Operand, PtxError> {
        self.now
            .operands
            .get(index)
            .ok_or_else(|| self.malformed(format!("{} has too few operands", self.now.opcode())))
    }

    /// The slot of an operand that is written; `_` is nowhere that is read.
    fn write(&mut self, index: usize) -> Result<Slot, PtxError> {
        match self.operand(index)? {
            Operand::Name(name) => self.written(name),
            _ => Err(self.malformed("a register is expected")),
        }
    }

    fn written(&mut self, name: &str) -> Result<Slot, PtxError> {
        if name == "_" {
            // Constants may be shared; this one never is, as no constant has its key.
            let slot = self.frame.len() as Slot;
            self.frame.push(0);
            return Ok(slot);
        }
        let slot = self.name(name)?;
        if (slot as usize) < self.special_at {
            Ok(slot)
        } else {
            Err(self.malformed(format!("{name} cannot be written")))
        }
    }

    fn has(&self, suffix: &str) -> bool {
        self.now.suffixes.iter().any(|one| one == suffix)
    }

    /// The last type among the suffixes.
    fn kind(&self) -> Result<Type, PtxError> {
        self.now.suffixes.iter().rev().find_map(|suffix| Type::of(suffix)).ok_or_else(|| self.unsupported())
    }

    /// Fails on a suffix that would change what the instruction does and is not in the list.
    fn only(&self, allowed: &[&str]) -> Result<(), PtxError> {
        let is_known = |suffix: &String| Type::of(suffix).is_some() || allowed.contains(&suffix.as_str());
        if self.now.suffixes.iter().all(is_known) { Ok(()) } else { Err(self.unsupported()) }
    }

    fn note(&mut self, why: &str) {
        let note = format!("{} in line {}: {why}", self.now.opcode(), self.now.line);
        if self.inexact.len() < 64 {
            self.inexact.push(note);
        }
    }

    fn op(&mut self) -> Result<Op, PtxError> {
        let name = self.now.name.as_str();
        match name {
            "add" | "sub" if self.has("cc") => self.carry(name == "sub", false),
            "addc" | "subc" => self.carry(name == "subc", true),
            "add" | "sub" | "mul" | "div" | "rem" | "min" | "max" | "and" | "or" | "xor" | "shl" | "shr" => {
                self.binary(name)
            }
            "mad" | "fma" => self.mad(),
            "mov" => self.mov(),
            "not" | "cnot" | "neg" | "abs" | "popc" | "clz" | "brev" | "bfind" | "sqrt" | "rcp" | "rsqrt"
            | "sin" | "cos" | "ex2" | "lg2" | "tanh" => self.unary(name),
            "lop3" => self.lop3(),
            "shf" => self.funnel(),
            "bfe" | "bfi" => self.bit_field(name == "bfi"),
            "prmt" => {
                self.only(&[])?;
                let u32s = Type::U32;
                Ok(Op::Prmt {
                    d: self.write(0)?,
                    a: self.read(1, u32s)?,
                    b: self.read(2, u32s)?,
                    c: self.read(3, u32s)?,
                })
            }
            "setp" => self.setp(),
            "selp" => {
                let kind = self.kind()?;
                let (d, a, b) = (self.write(0)?, self.read(1, kind)?, self.read(2, kind)?);
                Ok(Op::Select { d, a, b, p: self.read(3, Type::Pred)? })
            }
            "cvt" => self.convert(),
            "cvta" => self.window(),
            "ld" | "ldu" => self.load(),
            "st" => self.store(),
            "atom" | "red" => self.atomic(name == "red"),
            "bra" => self.branch(),
            "bar" | "barrier" => self.barrier(),
            "shfl" => self.shuffle(),
            "vote" | "activemask" => self.vote(),
            "membar" | "fence" => Ok(Op::Fence),
            "ret" | "exit" => Ok(Op::Exit),
            "trap" => Ok(Op::Trap),
            _ => Err(self.unsupported()),
        }
    }

    fn binary(&mut self, name: &str) -> Result<Op, PtxError> {
        let kind = self.kind()?;
        let float = kind.is_float();
        self.only(if float {
            &["rn", "ftz", "sat", "approx", "full"]
        } else {
            &["lo", "hi", "wide", "sat"]
        })?;
        if !float && self.has("sat") && !(matches!(name, "add" | "sub") && kind == Type::S32) {
            return Err(self.unsupported());
        }
        let shift = matches!(name, "shl" | "shr");
        let (d, a) = (self.write(0)?, self.read(1, kind)?);
        let b = self.read(2, if shift { Type::U32 } else { kind })?;
        let op = match name {
            "add" => Binary::Add,
            "sub" => Binary::Sub,
            "mul" if self.has("wide") => {
                let c = self.constant(0);
                return Ok(Op::MulWide { kind, d, a, b, c });
            }
            "mul" if self.has("hi") => Binary::MulHi,
            "mul" => Binary::MulLo,
            "div" => {
                if self.has("approx") || self.has("full") {
                    self.note("an approximate division");
                }
                Binary::Div
            }
            "rem" if !float => Binary::Rem,
            "min" => Binary::Min,
            "max" => Binary::Max,
            "and" if !float => Binary::And,
            "or" if !float => Binary::Or,
            "xor" if !float => Binary::Xor,
            "shl" if !float => Binary::Shl,
            "shr" if !float => Binary::Shr,
            _ => return Err(self.unsupported()),
        };
        Ok(Op::Binary { op, kind, d, a, b, flush: self.has("ftz"), saturate: self.has("sat") })
    }

    fn carry(&mut self, subtract: bool, takes: bool) -> Result<Op, PtxError> {
        self.only(&["cc"])?;
        let kind = self.kind()?;
        let (d, a, b) = (self.write(0)?, self.read(1, kind)?, self.read(2, kind)?);
        Ok(Op::Carry { kind, d, a, b, subtract, takes, gives: self.has("cc") })
    }

    fn mad(&mut self) -> Result<Op, PtxError> {
        let kind = self.kind()?;
        self.only(&["rn", "ftz", "sat", "lo", "hi", "wide"])?;
        let (d, a, b) = (self.write(0)?, self.read(1, kind)?, self.read(2, kind)?);
        if kind.is_float() {
            let c = self.read(3, kind)?;
            return Ok(Op::Fma { kind, d, a, b, c, flush: self.has("ftz"), saturate: self.has("sat") });
        }
        if self.has("sat") {
            return Err(self.unsupported());
        }
        if self.has("wide") {
            return Ok(Op::MulWide { kind, d, a, b, c: self.read(3, Type::U64)? });
        }
        Ok(Op::Mad { kind, d, a, b, c: self.read(3, kind)?, high: self.has("hi") })
    }

    fn mov(&mut self) -> Result<Op, PtxError> {
        self.only(&[])?;
        let kind = self.kind()?;
        if let Operand::List(_) = self.operand(0)? {
            let (parts, count) = self.list(0, true, Type::U64)?;
            let a = self.read(1, kind)?;
            return Ok(Op::Unpack { bits: kind.bits() / u32::from(count.max(1)), a, parts, count });
        }
        if let Operand::List(_) = self.operand(1)? {
            let (parts, count) = self.list(1, false, Type::U64)?;
            let d = self.write(0)?;
            return Ok(Op::Pack { bits: kind.bits() / u32::from(count.max(1)), d, parts, count });
        }
        let (d, a) = (self.write(0)?, self.read(1, kind)?);
        Ok(Op::Unary { op: Unary::Mov, kind, d, a, flush: false })
    }

    /// Up to four slots of a list, or of a single operand.
    fn list(&mut self, index: usize, written: bool, kind: Type) -> Result<([Slot; 4], u8), PtxError> {
        let mut slots = [0; 4];
        let Operand::List(list) = self.operand(index)? else {
            slots[0] = if written { self.write(index)? } else { self.read(index, kind)? };
            return Ok((slots, 1));
        };
        if !matches!(list.len(), 1 | 2 | 4) {
            return Err(self.malformed("a list has one, two or four parts"));
        }
        for (slot, part) in slots.iter_mut().zip(list) {
            *slot = match (written, part) {
                (true, Operand::Name(name)) => self.written(name)?,
                (true, _) => return Err(self.malformed("a register is expected")),
                (false, part) => self.read_operand(part, kind)?,
            };
        }
        Ok((slots, list.len() as u8))
    }

    fn unary(&mut self, name: &str) -> Result<Op, PtxError> {
        let kind = self.kind()?;
        self.only(&["rn", "ftz", "approx", "shiftamt"])?;
        if self.has("shiftamt") {
            return Err(self.unsupported());
        }
        let float = kind.is_float();
        let op = match name {
            "not" => Unary::Not,
            "cnot" => Unary::Cnot,
            "neg" => Unary::Neg,
            "abs" => Unary::Abs,
            "popc" => Unary::Popc,
            "clz" => Unary::Clz,
            "brev" => Unary::Brev,
            "bfind" => Unary::Bfind,
            "sqrt" if float => Unary::Sqrt,
            "rcp" if float => Unary::Rcp,
            "rsqrt" if float => Unary::Rsqrt,
            "sin" if float => Unary::Sin,
            "cos" if float => Unary::Cos,
            "ex2" if float => Unary::Ex2,
            "lg2" if float => Unary::Lg2,
            "tanh" if float => Unary::Tanh,
            _ => return Err(self.unsupported()),
        };
        if self.has("approx") {
            self.note("an approximate function");
        }
        Ok(Op::Unary { op, kind, d: self.write(0)?, a: self.read(1, kind)?, flush: self.has("ftz") })
    }

    fn lop3(&mut self) -> Result<Op, PtxError> {
        self.only(&[])?;
        let kind = Type::U32;
        let (d, a, b, c) = (self.write(0)?, self.read(1, kind)?, self.read(2, kind)?, self.read(3, kind)?);
        match self.operand(4)? {
            Operand::Number(table) => Ok(Op::Lop3 { d, a, b, c, table: *table as u8 }),
            _ => Err(self.malformed("lop3's table is a number")),
        }
    }

    fn funnel(&mut self) -> Result<Op, PtxError> {
        self.only(&["l", "r", "clamp", "wrap"])?;
        let kind = Type::U32;
        let (d, a, b, c) = (self.write(0)?, self.read(1, kind)?, self.read(2, kind)?, self.read(3, kind)?);
        Ok(Op::Funnel { d, a, b, c, left: self.has("l"), clamp: self.has("clamp") })
    }

    fn bit_field(&mut self, insert: bool) -> Result<Op, PtxError> {
        self.only(&[])?;
        let (kind, u32s) = (self.kind()?, Type::U32);
        if insert {
            let (d, a, b) = (self.write(0)?, self.read(1, kind)?, self.read(2, kind)?);
            return Ok(Op::Bfi { kind, d, a, b, c: self.read(3, u32s)?, e: self.read(4, u32s)? });
        }
        Ok(Op::Bfe {
            kind,
            d: self.write(0)?,
            a: self.read(1, kind)?,
            b: self.read(2, u32s)?,
            c: self.read(3, u32s)?,
        })
    }

    fn setp(&mut self) -> Result<Op, PtxError> {
        const COMPARES: [(&str, Compare, bool); 18] = [
            ("eq", Compare::Eq, false),
            ("ne", Compare::Ne, false),
            ("lt", Compare::Lt, false),
            ("le", Compare::Le, false),
            ("gt", Compare::Gt, false),
            ("ge", Compare::Ge, false),
            ("lo", Compare::Lt, false),
            ("ls", Compare::Le, false),
            ("hi", Compare::Gt, false),
            ("hs", Compare::Ge, false),
            ("equ", Compare::Eq, true),
            ("neu", Compare::Ne, true),
            ("ltu", Compare::Lt, true),
            ("leu", Compare::Le, true),
            ("gtu", Compare::Gt, true),
            ("geu", Compare::Ge, true),
            ("num", Compare::Num, false),
            ("nan", Compare::Nan, true),
        ];
        self.only(&[
            "eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu", "leu", "gtu",
            "geu", "num", "nan", "ftz", "and", "or", "xor",
        ])?;
        let first = self.now.suffixes.first().map(String::as_str).unwrap_or_default();
        let (_, compare, unordered) =
            *COMPARES.iter().find(|(name, _, _)| *name == first).ok_or_else(|| self.unsupported())?;
        let kind = self.kind()?;
        let (p, q) = match self.operand(0)? {
            Operand::Name(name) => (self.written(name)?, self.written("_")?),
            Operand::Pair(p, q) => (self.written(p)?, self.written(q)?),
            _ => return Err(self.malformed("setp writes predicates")),
        };
        let (a, b) = (self.read(1, kind)?, self.read(2, kind)?);
        let with = ["and", "or", "xor"].iter().zip([Binary::And, Binary::Or, Binary::Xor]);
        let with = match with.into_iter().find(|(name, _)| self.has(name)) {
            None => None,
            Some((_, op)) => Some(match self.operand(3)? {
                Operand::Not(name) => (op, self.name(name)?, true),
                Operand::Name(name) => (op, self.name(name)?, false),
                _ => return Err(self.malformed("setp combines with a predicate")),
            }),
        };
        Ok(Op::Setp { compare, unordered, kind, p, q, a, b, flush: self.has("ftz"), with })
    }

    fn convert(&mut self) -> Result<Op, PtxError> {
        self.only(&["rn", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi", "ftz", "sat"])?;
        let mut kinds = self.now.suffixes.iter().filter_map(|suffix| Type::of(suffix));
        let (Some(to), Some(from), None) = (kinds.next(), kinds.next(), kinds.next()) else {
            return Err(self.unsupported());
        };
        let ways = [
            ("rn", Rounding::Nearest, false),
            ("rz", Rounding::Zero, false),
            ("rm", Rounding::Down, false),
            ("rp", Rounding::Up, false),
            ("rni", Rounding::Nearest, true),
            ("rzi", Rounding::Zero, true),
            ("rmi", Rounding::Down, true),
            ("rpi", Rounding::Up, true),
        ];
        let way = ways.into_iter().find(|(name, _, _)| self.has(name));
        let (rounding, integral) =
            way.map_or((Rounding::Nearest, false), |(_, rounding, integral)| (rounding, integral));
        let narrows = to.is_float() && !(to == Type::F64 && from == Type::F32);
        if narrows && rounding != Rounding::Nearest && !integral {
            return Err(self.unsupported());
        }
        let (d, a) = (self.write(0)?, self.read(1, from)?);
        Ok(Op::Convert {
            to,
            from,
            d,
            a,
            rounding,
            integral,
            flush: self.has("ftz"),
            saturate: self.has("sat"),
        })
    }

    fn space(&self) -> Result<At, PtxError> {
        for (name, space) in [
            ("global", Space::Global),
            ("const", Space::Const),
            ("shared", Space::Shared),
            ("local", Space::Local),
        ] {
            if self.has(name) {
                return Ok(Some(space));
            }
        }
        Ok(None)
    }

    fn window(&mut self) -> Result<Op, PtxError> {
        self.only(&["to", "global", "const", "shared", "local"])?;
        let space = self.space()?.ok_or_else(|| self.unsupported())?;
        let (d, a) = (self.write(0)?, self.read(1, Type::U64)?);
        Ok(Op::Window { space, to_generic: !self.has("to"), d, a })
    }

    const MEMORY: &'static [&'static str] = &[
        "global",
        "const",
        "shared",
        "local",
        "param",
        "volatile",
        "relaxed",
        "acquire",
        "release",
        "acq_rel",
        "weak",
        "cta",
        "gpu",
        "sys",
        "nc",
        "ca",
        "cg",
        "cs",
        "lu",
        "cv",
        "wb",
        "wt",
        "v2",
        "v4",
        "L1::no_allocate",
        "L1::evict_last",
        "L1::evict_first",
        "cluster",
    ];

    /// The address of a memory operand: its space, base slot and offset.
    fn address(&mut self, index: usize) -> Result<(At, Slot, i64), PtxError> {
        let at = self.space()?;
        let Operand::Address { base, offset } = self.operand(index)? else {
            return Err(self.malformed("an address in brackets is expected"));
        };
        if base.is_empty() {
            return Ok((at, self.constant(0), *offset));
        }
        if let Some(slot) = self.slots.get(base.as_str()) {
            return Ok((at, *slot, *offset));
        }
        match self.addresses.get(base).copied() {
            Some(address) => Ok((at, self.constant(address), *offset)),
            None => Err(self.malformed(format!("{base:?} is no register and no variable"))),
        }
    }

    fn note_talk(&mut self) {
        if ["volatile", "relaxed", "acquire", "release", "cv"].iter().any(|way| self.has(way)) {
            self.talks.get_or_insert(self.now.line);
        }
    }

    fn load(&mut self) -> Result<Op, PtxError> {
        self.only(Self::MEMORY)?;
        self.note_talk();
        let kind = self.kind()?;
        if self.has("param") {
            let Operand::Address { base, offset } = self.operand(1)? else {
                return Err(self.malformed("a parameter in brackets is expected"));
            };
            let at = self.parameters.get(base.as_str()).copied();
            let at = at.ok_or_else(|| self.malformed(format!("{base:?} is no parameter")))?;
            let offset = u32::try_from(i64::from(at) + offset)
                .map_err(|_| self.malformed("an offset out of range"))?;
            return Ok(Op::Parameter { kind, d: self.write(0)?, offset });
        }
        let (at, base, offset) = self.address(1)?;
        let (d, count) = self.list(0, true, kind)?;
        Ok(Op::Load { at, kind, base, offset, d, count })
    }

    fn store(&mut self) -> Result<Op, PtxError> {
        self.only(Self::MEMORY)?;
        self.note_talk();
        let kind = self.kind()?;
        let (at, base, offset) = self.address(0)?;
        let (a, count) = self.list(1, false, kind)?;
        Ok(Op::Store { at, kind, base, offset, a, count })
    }

    fn atomic(&mut self, forgets: bool) -> Result<Op, PtxError> {
        let kind = self.kind()?;
        let mut allowed = Self::MEMORY.to_vec();
        allowed.extend(["add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec"]);
        self.only(&allowed)?;
        if self.has("cluster") || !matches!(kind.bits(), 32 | 64) {
            return Err(self.unsupported());
        }
        let first = usize::from(!forgets);
        let d = if forgets { self.written("_")? } else { self.write(0)? };
        let (at, base, offset) = self.address(first)?;
        let a = self.read(first + 1, kind)?;
        if self.has("cas") {
            return Ok(Op::Swap { at, kind, base, offset, d, a, b: self.read(first + 2, kind)? });
        }
        let op = [
            ("add", Atom::Add),
            ("min", Atom::Min),
            ("max", Atom::Max),
            ("and", Atom::And),
            ("or", Atom::Or),
            ("xor", Atom::Xor),
            ("exch", Atom::Exch),
            ("inc", Atom::Inc),
            ("dec", Atom::Dec),
        ];
        let (_, op) = op.into_iter().find(|(name, _)| self.has(name)).ok_or_else(|| self.unsupported())?;
        if kind.is_float() {
            if !matches!(op, Atom::Add | Atom::Exch) {
                return Err(self.unsupported());
            }
            self.note("a float atomic, whose result depends on the order of threads");
        }
        Ok(Op::Atomic { op, at, kind, base, offset, d, a })
    }

    fn branch(&mut self) -> Result<Op, PtxError> {
        self.only(&["uni"])?;
        let Operand::Name(label) = self.operand(0)? else {
            return Err(self.malformed("a label is expected"));
        };
        let to = self
            .kernel
            .labels
            .get(label)
            .ok_or_else(|| self.malformed(format!("there is no label {label:?}")))?;
        Ok(Op::Branch { to: *to as u32 })
    }

    fn barrier(&mut self) -> Result<Op, PtxError> {
        if self.has("warp") {
            return Ok(Op::WarpBarrier { mask: self.read(0, Type::U32)? });
        }
        self.only(&["sync", "cta", "aligned"])?;
        match self.now.operands.as_slice() {
            [Operand::Number(0)] => Ok(Op::Barrier),
            _ => Err(self.unsupported()),
        }
    }

    fn shuffle(&mut self) -> Result<Op, PtxError> {
        self.only(&["sync", "up", "down", "bfly", "idx"])?;
        let mode = [
            ("up", Shuffle::Up),
            ("down", Shuffle::Down),
            ("bfly", Shuffle::Butterfly),
            ("idx", Shuffle::Index),
        ];
        let (_, mode) =
            mode.into_iter().find(|(name, _)| self.has(name)).ok_or_else(|| self.unsupported())?;
        if !self.has("sync") {
            return Err(self.unsupported());
        }
        let (d, p) = match self.operand(0)? {
            Operand::Name(name) => (self.written(name)?, self.written("_")?),
            Operand::Pair(d, p) => (self.written(d)?, self.written(p)?),
            _ => return Err(self.malformed("a register is expected")),
        };
        let kind = Type::U32;
        let (a, b, c) = (self.read(1, kind)?, self.read(2, kind)?, self.read(3, kind)?);
        Ok(Op::Shuffle { mode, d, p, a, b, c, mask: self.read(4, kind)? })
    }

    fn vote(&mut self) -> Result<Op, PtxError> {
        if self.now.name == "activemask" {
            return Err(self.unsupported());
        }
        self.only(&["sync", "all", "any", "uni", "ballot"])?;
        let mode = [("all", Vote::All), ("any", Vote::Any), ("uni", Vote::Uniform), ("ballot", Vote::Ballot)];
        let (_, mode) =
            mode.into_iter().find(|(name, _)| self.has(name)).ok_or_else(|| self.unsupported())?;
        let d = self.write(0)?;
        let (p, negated) = match self.operand(1)? {
            Operand::Not(name) => (self.name(name)?, true),
            _ => (self.read(1, Type::Pred)?, false),
        };
        Ok(Op::Vote { mode, d, p, negated, mask: self.read(2, Type::U32)? })
    }
}
