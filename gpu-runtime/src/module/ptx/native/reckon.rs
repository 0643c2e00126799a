//! What one step computes, as instructions: bit for bit what [`math`](crate::module::ptx::math) gives. What has no plain form is asked of
//! `math` itself.

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::{InstBuilder, MemFlagsData, Value, types};

use super::emit::{Emitter, integer_of};
use super::flow::Class;
use crate::module::ptx::code::{
    Binary, Compare, LOCAL_WINDOW, Op, Rounding, SHARED_WINDOW, Slot, Type, Unary,
};
use crate::module::ptx::math;
use crate::module::ptx::run;
use crate::module::ptx::text::Space;

/// What a step makes of its operands, in the order in which [`Emitter::ask`] was given them: the slow form of everything here.
#[must_use]
pub fn slowly(op: &Op, [a, b, c, e]: [u64; 4]) -> u64 {
    match *op {
        Op::Binary { op, kind, flush, saturate, .. } => math::binary(op, kind, a, b, flush, saturate),
        Op::Unary { op, kind, flush, .. } => math::unary(op, kind, a, flush),
        Op::Mad { kind, high, .. } => math::mad(kind, a, b, c, high),
        Op::MulWide { kind, .. } => math::mul_wide(kind, a, b, c),
        Op::Fma { kind, flush, saturate, .. } => math::fma(kind, a, b, c, flush, saturate),
        Op::Bfe { kind, .. } => math::bfe(kind, a, b, c),
        Op::Bfi { kind, .. } => math::bfi(kind, a, b, c, e),
        Op::Prmt { .. } => math::prmt(a, b, c),
        Op::Funnel { left, clamp, .. } => math::funnel(a, b, c, left, clamp),
        Op::Setp { compare, unordered, kind, flush, .. } => {
            u64::from(math::compare(compare, unordered, kind, a, b, flush))
        }
        Op::Convert { to, from, rounding, integral, flush, saturate, .. } => {
            math::convert(to, from, a, rounding, integral, flush, saturate)
        }
        Op::Atomic { op, kind, .. } => run::atomic(op, kind, a, b),
        _ => 0,
    }
}

impl Emitter<'_, '_> {
    /// Emits a step that touches nothing but slots.
    ///
    /// # Errors
    /// Why the kernel is not compiled.
    pub fn compute(&mut self, op: &Op) -> Result<(), String> {
        match *op {
            Op::Binary { op: how, kind, d, a, b, flush, saturate } => {
                let value = match kind {
                    _ if flush || saturate => None,
                    Type::F32 | Type::F64 => return self.float_binary(how, kind, d, a, b),
                    Type::Pred => return self.truths(how, d, a, b),
                    kind if kind.bits() < 32 => None,
                    kind => self.integer_binary(how, kind, a, b),
                };
                match value {
                    Some(value) => self.put(d, value, false),
                    None => self.slow(d, &[a, b]),
                }
            }
            Op::Unary { op: how, kind, d, a, flush } => self.unary(how, kind, d, a, flush),
            Op::Mad { kind, d, a, b, c, high } => {
                let how = if high { Binary::MulHi } else { Binary::MulLo };
                let product = if kind.bits() < 32 { None } else { self.integer_binary(how, kind, a, b) };
                match product {
                    Some(product) => {
                        let c = self.bits(c, kind.bits());
                        let sum = self.builder.ins().iadd(product, c);
                        self.put(d, sum, false);
                    }
                    None => self.slow(d, &[a, b, c]),
                }
            }
            Op::MulWide { kind: kind @ (Type::U32 | Type::S32), d, a, b, c } => {
                let (a, b, c) = (self.bits(a, 32), self.bits(b, 32), self.bits(c, 64));
                let (a, b) = (self.widened(a, kind.is_signed()), self.widened(b, kind.is_signed()));
                let product = self.builder.ins().imul(a, b);
                let sum = self.builder.ins().iadd(product, c);
                self.put(d, sum, false);
            }
            Op::MulWide { d, a, b, c, .. } => self.slow(d, &[a, b, c]),
            Op::Fma { kind, d, a, b, c, flush, saturate } => {
                if flush || saturate || !self.has_fma {
                    self.slow(d, &[a, b, c]);
                } else {
                    let (a, b, c) = (self.float(a, kind), self.float(b, kind), self.float(c, kind));
                    let value = self.builder.ins().fma(a, b, c);
                    self.put_float(d, value);
                }
            }
            Op::Carry { kind, d, a, b, subtract, takes, gives } => {
                self.with_carry(kind, d, [a, b], subtract, takes, gives)?;
            }
            Op::Lop3 { d, a, b, c, table } => {
                let value = self.lop3([a, b, c], table);
                self.put(d, value, false);
            }
            Op::Funnel { d, a, b, c, left, clamp } => self.funnel(d, [a, b, c], left, clamp),
            Op::Bfe { kind, d, a, b, c } => self.field(kind, d, a, b, c),
            Op::Bfi { d, a, b, c, e, .. } => self.slow(d, &[a, b, c, e]),
            Op::Prmt { d, a, b, c } => {
                if self.constant(c).map(|pick| pick & 0xFFFF) == Some(0x0123) {
                    let value = self.bits(a, 32);
                    let value = self.builder.ins().bswap(value);
                    self.put(d, value, false);
                } else {
                    self.slow(d, &[a, b, c]);
                }
            }
            Op::Setp { .. } => self.setp(op)?,
            Op::Select { d, a, b, p } => self.select(d, a, b, p),
            Op::Convert { .. } => self.convert(op),
            Op::Pack { bits, d, parts, count } => {
                let mut all = self.builder.ins().iconst(types::I64, 0);
                for (index, part) in parts[..usize::from(count)].iter().enumerate() {
                    let shift = bits * index as u32;
                    if shift < 64 {
                        let part = self.zero_extended(*part, bits);
                        let part = self.widened(part, false);
                        let part = self.builder.ins().ishl_imm_u(part, i64::from(shift));
                        all = self.builder.ins().bor(all, part);
                    }
                }
                self.put(d, all, false);
            }
            Op::Unpack { bits, a, parts, count } => {
                let all = self.bits(a, 64);
                for (index, part) in parts[..usize::from(count)].iter().enumerate() {
                    let shift = i64::from((bits * index as u32).min(63));
                    let value = self.builder.ins().ushr_imm_u(all, shift);
                    let value = self.builder.ins().band_imm_u(value, math::mask(bits) as i64);
                    self.put(*part, value, false);
                }
            }
            Op::Window { space, to_generic, d, a } => {
                let window = match space {
                    Space::Shared => SHARED_WINDOW,
                    Space::Local => LOCAL_WINDOW,
                    Space::Global | Space::Const => 0,
                };
                let a = self.bits(a, 64);
                let value = match to_generic {
                    true => self.builder.ins().bor_imm_u(a, window as i64),
                    false => self.builder.ins().band_imm_u(a, !window as i64),
                };
                self.put(d, value, false);
            }
            _ => return Err(self.unlike("a step that only the interpreter knows")),
        }
        Ok(())
    }

    fn slow(&mut self, d: Slot, slots: &[Slot]) {
        let value = self.ask(slots);
        self.put(d, value, false);
    }

    fn integer_binary(&mut self, how: Binary, kind: Type, a: Slot, b: Slot) -> Option<Value> {
        let bits = kind.bits();
        if matches!(how, Binary::Shl | Binary::Shr) {
            return Some(self.shift(how, kind, a, b));
        }
        let (x, y) = (self.bits(a, bits), self.bits(b, bits));
        let is_signed = kind.is_signed();
        let ins = self.builder.ins();
        Some(match how {
            Binary::Add => ins.iadd(x, y),
            Binary::Sub => ins.isub(x, y),
            Binary::MulLo => ins.imul(x, y),
            Binary::And => ins.band(x, y),
            Binary::Or => ins.bor(x, y),
            Binary::Xor => ins.bxor(x, y),
            Binary::MulHi if bits == 64 && is_signed => ins.smulhi(x, y),
            Binary::MulHi if bits == 64 => ins.umulhi(x, y),
            Binary::MulHi => {
                let (x, y) = (self.widened(x, is_signed), self.widened(y, is_signed));
                let product = self.builder.ins().imul(x, y);
                let high = self.builder.ins().ushr_imm_u(product, 32);
                self.builder.ins().ireduce(types::I32, high)
            }
            Binary::Min | Binary::Max => {
                let how = match (how, is_signed) {
                    (Binary::Min, true) => IntCC::SignedLessThan,
                    (Binary::Min, false) => IntCC::UnsignedLessThan,
                    (_, true) => IntCC::SignedGreaterThan,
                    (_, false) => IntCC::UnsignedGreaterThan,
                };
                let holds = ins.icmp(how, x, y);
                self.builder.ins().select(holds, x, y)
            }
            Binary::Div | Binary::Rem if !is_signed => {
                let form = integer_of(bits);
                let one = self.builder.ins().iconst(form, 1);
                let is_zero = self.builder.ins().icmp_imm_u(IntCC::Equal, y, 0);
                let by = self.builder.ins().select(is_zero, one, y);
                if how == Binary::Div {
                    let value = self.builder.ins().udiv(x, by);
                    let all = self.builder.ins().iconst(form, if bits == 32 { 0xFFFF_FFFF } else { -1 });
                    self.builder.ins().select(is_zero, all, value)
                } else {
                    let value = self.builder.ins().urem(x, by);
                    self.builder.ins().select(is_zero, x, value)
                }
            }
            // In twice the width the one quotient that overflows does not.
            Binary::Div | Binary::Rem if bits == 32 => {
                let (x, y) = (self.widened(x, true), self.widened(y, true));
                let one = self.builder.ins().iconst(types::I64, 1);
                let is_zero = self.builder.ins().icmp_imm_u(IntCC::Equal, y, 0);
                let by = self.builder.ins().select(is_zero, one, y);
                let value = if how == Binary::Div {
                    let value = self.builder.ins().sdiv(x, by);
                    let all = self.builder.ins().iconst(types::I64, -1);
                    self.builder.ins().select(is_zero, all, value)
                } else {
                    let value = self.builder.ins().srem(x, by);
                    self.builder.ins().select(is_zero, x, value)
                };
                self.builder.ins().ireduce(types::I32, value)
            }
            _ => return None,
        })
    }

    /// Amounts of the width or more shift everything out.
    fn shift(&mut self, how: Binary, kind: Type, a: Slot, b: Slot) -> Value {
        let bits = kind.bits();
        let form = integer_of(bits);
        let x = self.bits(a, bits);
        let is_signed = kind.is_signed() && how == Binary::Shr;
        if let Some(amount) = self.constant(b) {
            let amount = amount as u32;
            if amount >= bits && !is_signed {
                return self.builder.ins().iconst(form, 0);
            }
            let amount = i64::from(amount.min(bits - 1));
            return match (how, is_signed) {
                (Binary::Shl, _) => self.builder.ins().ishl_imm_u(x, amount),
                (_, true) => self.builder.ins().sshr_imm_u(x, amount),
                (_, false) => self.builder.ins().ushr_imm_u(x, amount),
            };
        }
        let amount = self.bits(b, 32);
        let is_within = self.builder.ins().icmp_imm_u(IntCC::UnsignedLessThan, amount, i64::from(bits));
        if is_signed {
            let most = self.builder.ins().iconst(types::I32, i64::from(bits - 1));
            let amount = self.builder.ins().select(is_within, amount, most);
            return self.builder.ins().sshr(x, amount);
        }
        let value = match how {
            Binary::Shl => self.builder.ins().ishl(x, amount),
            _ => self.builder.ins().ushr(x, amount),
        };
        let zero = self.builder.ins().iconst(form, 0);
        self.builder.ins().select(is_within, value, zero)
    }

    fn truths(&mut self, how: Binary, d: Slot, a: Slot, b: Slot) -> Result<(), String> {
        if !matches!(how, Binary::And | Binary::Or | Binary::Xor) {
            self.slow(d, &[a, b]);
            return Ok(());
        }
        let (a, b) = (self.truth(a), self.truth(b));
        let value = match how {
            Binary::And => self.builder.ins().band(a, b),
            Binary::Or => self.builder.ins().bor(a, b),
            _ => self.builder.ins().bxor(a, b),
        };
        self.put_truth(d, value);
        Ok(())
    }

    fn float_binary(&mut self, how: Binary, kind: Type, d: Slot, a: Slot, b: Slot) -> Result<(), String> {
        let (a, b) = (self.float(a, kind), self.float(b, kind));
        let value = match how {
            Binary::Add => self.builder.ins().fadd(a, b),
            Binary::Sub => self.builder.ins().fsub(a, b),
            Binary::MulLo | Binary::MulHi => self.builder.ins().fmul(a, b),
            Binary::Div => self.builder.ins().fdiv(a, b),
            _ => self.extreme(how == Binary::Min, a, b),
        };
        self.put_float(d, value);
        Ok(())
    }

    /// The smaller or larger: a number wins over a NaN, and +0 is larger than -0.
    fn extreme(&mut self, smaller: bool, a: Value, b: Value) -> Value {
        let (float, integer) =
            if self.is_single(a) { (types::F32, types::I32) } else { (types::F64, types::I64) };
        let how = if smaller { FloatCC::LessThan } else { FloatCC::GreaterThan };
        let holds = self.builder.ins().fcmp(how, a, b);
        let value = self.builder.ins().select(holds, a, b);
        let bits_a = self.builder.ins().bitcast(integer, MemFlagsData::new(), a);
        let bits_b = self.builder.ins().bitcast(integer, MemFlagsData::new(), b);
        // Equals differ at most in their sign.
        let both = match smaller {
            true => self.builder.ins().bor(bits_a, bits_b),
            false => self.builder.ins().band(bits_a, bits_b),
        };
        let both = self.builder.ins().bitcast(float, MemFlagsData::new(), both);
        let is_equal = self.builder.ins().fcmp(FloatCC::Equal, a, b);
        let value = self.builder.ins().select(is_equal, both, value);
        let is_nan = self.builder.ins().fcmp(FloatCC::Unordered, b, b);
        self.builder.ins().select(is_nan, a, value)
    }

    fn unary(&mut self, how: Unary, kind: Type, d: Slot, a: Slot, flush: bool) {
        let bits = kind.bits();
        match (how, kind) {
            (Unary::Mov, Type::Pred) => {
                let value = self.truth(a);
                self.put_truth(d, value);
            }
            (Unary::Mov, _) => {
                let same = self.variable(a).zip(self.variable(d)).and_then(|((a, from), (d, to))| {
                    let is_whole = matches!(
                        (from, bits),
                        (Class::Narrow | Class::Single, 32) | (Class::Wide | Class::Double, 64)
                    );
                    (from == to && is_whole).then_some((a, d))
                });
                match same {
                    Some((from, to)) => {
                        let value = self.builder.use_var(from);
                        let is_float = self.builder.func.dfg.value_type(value).is_float();
                        let value = if is_float && self.flow.lazy[a as usize] && !self.flow.lazy[d as usize] {
                            self.one_nan(value)
                        } else {
                            value
                        };
                        self.builder.def_var(to, value);
                    }
                    None => match (self.constant(a), self.variable(d)) {
                        (Some(_), Some((_, Class::Single))) if bits == 32 => {
                            let value = self.float_of_bits(a, Type::F32);
                            self.put_as_it_is(d, value);
                        }
                        (Some(_), Some((_, Class::Double))) if bits == 64 => {
                            let value = self.float_of_bits(a, Type::F64);
                            self.put_as_it_is(d, value);
                        }
                        _ => {
                            let value = self.zero_extended(a, bits);
                            self.put(d, value, false);
                        }
                    },
                }
            }
            (Unary::Neg | Unary::Abs, Type::F32 | Type::F64) if !(flush && kind == Type::F32) => {
                let value = self.as_it_is(a, kind);
                let value = match how {
                    Unary::Neg => self.builder.ins().fneg(value),
                    _ => self.builder.ins().fabs(value),
                };
                self.put_as_it_is(d, value);
            }
            (Unary::Sqrt | Unary::Rcp, Type::F32 | Type::F64) if !(flush && kind == Type::F32) => {
                let value = self.float(a, kind);
                let value = match (how, kind) {
                    (Unary::Sqrt, _) => self.builder.ins().sqrt(value),
                    (_, Type::F32) => {
                        let one = self.builder.ins().f32const(1.0f32);
                        self.builder.ins().fdiv(one, value)
                    }
                    _ => {
                        let one = self.builder.ins().f64const(1.0f64);
                        self.builder.ins().fdiv(one, value)
                    }
                };
                self.put_float(d, value);
            }
            (Unary::Not, Type::Pred) => {
                if let Some((_, Class::Truth)) = self.variable(d) {
                    let value = self.truth(a);
                    let value = self.builder.ins().bxor_imm_u(value, 1);
                    self.put_truth(d, value);
                } else {
                    self.slow(d, &[a]);
                }
            }
            (Unary::Not | Unary::Neg | Unary::Popc | Unary::Clz, kind) if !kind.is_float() && bits >= 32 => {
                let value = self.bits(a, bits);
                let ins = self.builder.ins();
                let value = match how {
                    Unary::Not => ins.bnot(value),
                    Unary::Neg => ins.ineg(value),
                    Unary::Popc => ins.popcnt(value),
                    _ => ins.clz(value),
                };
                self.put(d, value, false);
            }
            (Unary::Abs, kind) if !kind.is_float() && bits >= 32 => {
                let value = self.bits(a, bits);
                let negative = self.builder.ins().ineg(value);
                let is_negative = self.builder.ins().icmp_imm_s(IntCC::SignedLessThan, value, 0);
                let value = self.builder.ins().select(is_negative, negative, value);
                self.put(d, value, false);
            }
            _ => self.slow(d, &[a]),
        }
    }

    fn with_carry(
        &mut self,
        kind: Type,
        d: Slot,
        [a, b]: [Slot; 2],
        subtract: bool,
        takes: bool,
        gives: bool,
    ) -> Result<(), String> {
        let bits = kind.bits();
        if bits < 32 || kind.is_float() {
            return Err(self.unlike("a carry of that width"));
        }
        let (a, b) = (self.bits(a, bits), self.bits(b, bits));
        let carry_in = match takes {
            true => {
                let carry = self.carry();
                self.builder.use_var(carry)
            }
            false => self.builder.ins().iconst(types::I64, 0),
        };
        let (value, carry_out) = if bits == 32 {
            let (a, b) = (self.widened(a, false), self.widened(b, false));
            let value = match subtract {
                true => {
                    let value = self.builder.ins().isub(a, b);
                    self.builder.ins().isub(value, carry_in)
                }
                false => {
                    let value = self.builder.ins().iadd(a, b);
                    self.builder.ins().iadd(value, carry_in)
                }
            };
            let above = self.builder.ins().ushr_imm_u(value, 32);
            let carry = self.builder.ins().band_imm_u(above, 1);
            (self.builder.ins().ireduce(types::I32, value), carry)
        } else {
            let (value, first, second);
            if subtract {
                let part = self.builder.ins().isub(a, b);
                first = self.builder.ins().icmp(IntCC::UnsignedLessThan, a, b);
                value = self.builder.ins().isub(part, carry_in);
                second = self.builder.ins().icmp(IntCC::UnsignedLessThan, part, carry_in);
            } else {
                let part = self.builder.ins().iadd(a, b);
                first = self.builder.ins().icmp(IntCC::UnsignedLessThan, part, a);
                value = self.builder.ins().iadd(part, carry_in);
                second = self.builder.ins().icmp(IntCC::UnsignedLessThan, value, part);
            }
            let carry = self.builder.ins().bor(first, second);
            (value, self.builder.ins().uextend(types::I64, carry))
        };
        if gives {
            let carry = self.carry();
            self.builder.def_var(carry, carry_out);
        }
        self.put(d, value, false);
        Ok(())
    }

    /// A function of two bits, as a table of four, index b * 2 + c.
    fn lop2(&mut self, b: Value, c: Value, table: u8) -> Value {
        let ins = self.builder.ins();
        match table & 0xF {
            0x0 => ins.iconst(types::I32, 0),
            0xF => ins.iconst(types::I32, 0xFFFF_FFFF),
            0xC => b,
            0xA => c,
            0x3 => ins.bnot(b),
            0x5 => ins.bnot(c),
            0x8 => ins.band(b, c),
            0xE => ins.bor(b, c),
            0x6 => ins.bxor(b, c),
            other => {
                // The four left over, and the complements of the three above.
                let value = match other {
                    0x7 => self.builder.ins().band(b, c),
                    0x1 => self.builder.ins().bor(b, c),
                    0x9 => self.builder.ins().bxor(b, c),
                    0x4 | 0xB => {
                        let not_c = self.builder.ins().bnot(c);
                        let value = self.builder.ins().band(b, not_c);
                        if other == 0x4 {
                            return value;
                        }
                        value
                    }
                    _ => {
                        let not_b = self.builder.ins().bnot(b);
                        let value = self.builder.ins().band(c, not_b);
                        if other == 0x2 {
                            return value;
                        }
                        value
                    }
                };
                self.builder.ins().bnot(value)
            }
        }
    }

    /// f(0, b, c) where a's bit is 0, and what differs from it where it is 1.
    fn lop3(&mut self, slots: [Slot; 3], table: u8) -> Value {
        let [a, b, c] = slots.map(|slot| self.bits(slot, 32));
        let (low, differs) = (table & 0xF, (table ^ table >> 4) & 0xF);
        let base = self.lop2(b, c, low);
        match differs {
            0 => base,
            0xF if low == 0 => a,
            0xF => self.builder.ins().bxor(a, base),
            _ => {
                let change = self.lop2(b, c, differs);
                let change = self.builder.ins().band(a, change);
                if low == 0 { change } else { self.builder.ins().bxor(base, change) }
            }
        }
    }

    fn funnel(&mut self, d: Slot, [a, b, c]: [Slot; 3], left: bool, clamp: bool) {
        if clamp {
            return self.slow(d, &[a, b, c]);
        }
        if a == b {
            let (value, amount) = (self.bits(a, 32), self.bits(c, 32));
            let value = match left {
                true => self.builder.ins().rotl(value, amount),
                false => self.builder.ins().rotr(value, amount),
            };
            return self.put(d, value, false);
        }
        let (low, high, amount) = (self.bits(a, 32), self.bits(b, 32), self.bits(c, 32));
        let (low, high) = (self.widened(low, false), self.widened(high, false));
        let high = self.builder.ins().ishl_imm_u(high, 32);
        let both = self.builder.ins().bor(high, low);
        let amount = self.builder.ins().band_imm_u(amount, 31);
        let value = if left {
            let value = self.builder.ins().ishl(both, amount);
            self.builder.ins().ushr_imm_u(value, 32)
        } else {
            self.builder.ins().ushr(both, amount)
        };
        let value = self.builder.ins().ireduce(types::I32, value);
        self.put(d, value, false);
    }

    /// `bfe` of an unsigned field that lies within the word; others are rare.
    fn field(&mut self, kind: Type, d: Slot, a: Slot, start: Slot, length: Slot) {
        let known = self.constant(start).zip(self.constant(length));
        match known.map(|(start, length)| (start & 0xFF, length & 0xFF)) {
            Some((start, length))
                if !kind.is_signed() && length > 0 && start + length <= u64::from(kind.bits()) =>
            {
                let value = self.bits(a, kind.bits());
                let value = self.builder.ins().ushr_imm_u(value, start as i64);
                let value = self.builder.ins().band_imm_u(value, math::mask(length as u32) as i64);
                self.put(d, value, false);
            }
            _ => self.slow(d, &[a, start, length]),
        }
    }

    fn setp(&mut self, op: &Op) -> Result<(), String> {
        let Op::Setp { compare, unordered, kind, p, q, a, b, flush, with } = *op else { return Ok(()) };
        let with = match with {
            None => None,
            Some((how, other, negated)) => {
                let other = self.truth(other);
                let other = if negated { self.builder.ins().bxor_imm_u(other, 1) } else { other };
                Some((how, other))
            }
        };
        let is_plain = !(flush && kind == Type::F32);
        let holds = match (kind, compare) {
            (Type::F32 | Type::F64, _) if is_plain => {
                let how = float_order(compare, unordered);
                let (a, b) = (self.float(a, kind), self.float(b, kind));
                self.builder.ins().fcmp(how, a, b)
            }
            (Type::F32 | Type::F64, _) | (_, Compare::Num | Compare::Nan) => {
                let value = self.ask(&[a, b]);
                self.builder.ins().ireduce(types::I8, value)
            }
            (kind, compare) => {
                let (a, b) = match kind.is_signed() {
                    true => (self.sign_extended(a, kind.bits()), self.sign_extended(b, kind.bits())),
                    false => (self.zero_extended(a, kind.bits()), self.zero_extended(b, kind.bits())),
                };
                self.builder.ins().icmp(integer_order(compare, kind.is_signed()), a, b)
            }
        };
        let combine = |emitter: &mut Self, holds: Value| match with {
            None => holds,
            Some((Binary::And, other)) => emitter.builder.ins().band(holds, other),
            Some((Binary::Or, other)) => emitter.builder.ins().bor(holds, other),
            Some((_, other)) => emitter.builder.ins().bxor(holds, other),
        };
        let first = combine(self, holds);
        if self.variable(q).is_some() {
            let not = self.builder.ins().bxor_imm_u(holds, 1);
            let second = combine(self, not);
            self.put_truth(q, second);
        }
        self.put_truth(p, first);
        Ok(())
    }

    fn select(&mut self, d: Slot, a: Slot, b: Slot, p: Slot) {
        let Some((_, class)) = self.variable(d) else { return };
        let p = self.truth(p);
        match class {
            Class::Single | Class::Double => {
                let kind = if class == Class::Single { Type::F32 } else { Type::F64 };
                let (a, b) = (self.as_it_is(a, kind), self.as_it_is(b, kind));
                let value = self.builder.ins().select(p, a, b);
                self.put_as_it_is(d, value);
            }
            Class::Truth => {
                let (a, b) = (self.truth(a), self.truth(b));
                let value = self.builder.ins().select(p, a, b);
                self.put_truth(d, value);
            }
            Class::Narrow | Class::Wide => {
                let bits = if class == Class::Narrow { 32 } else { 64 };
                let (a, b) = (self.bits(a, bits), self.bits(b, bits));
                let value = self.builder.ins().select(p, a, b);
                self.put(d, value, false);
            }
        }
    }

    fn convert(&mut self, op: &Op) {
        let Op::Convert { to, from, d, a, rounding, integral, flush, saturate } = *op else { return };
        let is_plain = !flush && !saturate;
        match (from.is_float(), to) {
            (false, Type::F32 | Type::F64) if is_plain => {
                let form = if to == Type::F32 { types::F32 } else { types::F64 };
                let value = if from.is_signed() {
                    let value = self.sign_extended(a, from.bits());
                    self.builder.ins().fcvt_from_sint(form, value)
                } else {
                    // Widened, so that the signed conversion does for all but the widest.
                    let value = self.zero_extended(a, from.bits());
                    if from.bits() == 64 {
                        self.builder.ins().fcvt_from_uint(form, value)
                    } else {
                        let value = self.widened(value, false);
                        self.builder.ins().fcvt_from_sint(form, value)
                    }
                };
                self.put_float(d, value);
            }
            (false, to) if !saturate && !to.is_float() && to != Type::Pred => {
                let value = match from.is_signed() {
                    true => self.sign_extended(a, from.bits()),
                    false => self.zero_extended(a, from.bits()),
                };
                let value = match to.bits() {
                    64 => self.widened(value, from.is_signed()),
                    bits => {
                        let is_wide = self.builder.func.dfg.value_type(value) == types::I64;
                        let value =
                            if is_wide { self.builder.ins().ireduce(types::I32, value) } else { value };
                        match bits {
                            32 => value,
                            bits if to.is_signed() => {
                                let form = if bits == 8 { types::I8 } else { types::I16 };
                                let value = self.builder.ins().ireduce(form, value);
                                self.builder.ins().sextend(types::I32, value)
                            }
                            bits => self.builder.ins().band_imm_u(value, math::mask(bits) as i64),
                        }
                    }
                };
                // What is wider than its type is filled with the sign.
                self.put(d, value, to.is_signed());
            }
            (true, Type::F64) if from == Type::F32 && is_plain && !integral => {
                let value = self.float(a, from);
                let value = self.builder.ins().fpromote(types::F64, value);
                self.put_float(d, value);
            }
            (true, Type::F32) if from == Type::F64 && is_plain && !integral => {
                let value = self.float(a, from);
                let value = self.builder.ins().fdemote(types::F32, value);
                self.put_float(d, value);
            }
            (true, Type::S32 | Type::U32) if !flush && rounding == Rounding::Zero => {
                let value = self.float(a, from);
                let value = match to {
                    Type::S32 => self.builder.ins().fcvt_to_sint_sat(types::I32, value),
                    _ => self.builder.ins().fcvt_to_uint_sat(types::I32, value),
                };
                self.put(d, value, to.is_signed());
            }
            _ => self.slow(d, &[a]),
        }
    }
}

fn float_order(compare: Compare, unordered: bool) -> FloatCC {
    match (compare, unordered) {
        (Compare::Eq, false) => FloatCC::Equal,
        (Compare::Eq, true) => FloatCC::UnorderedOrEqual,
        (Compare::Ne, false) => FloatCC::OrderedNotEqual,
        (Compare::Ne, true) => FloatCC::NotEqual,
        (Compare::Lt, false) => FloatCC::LessThan,
        (Compare::Lt, true) => FloatCC::UnorderedOrLessThan,
        (Compare::Le, false) => FloatCC::LessThanOrEqual,
        (Compare::Le, true) => FloatCC::UnorderedOrLessThanOrEqual,
        (Compare::Gt, false) => FloatCC::GreaterThan,
        (Compare::Gt, true) => FloatCC::UnorderedOrGreaterThan,
        (Compare::Ge, false) => FloatCC::GreaterThanOrEqual,
        (Compare::Ge, true) => FloatCC::UnorderedOrGreaterThanOrEqual,
        (Compare::Num, _) => FloatCC::Ordered,
        (Compare::Nan, _) => FloatCC::Unordered,
    }
}

fn integer_order(compare: Compare, is_signed: bool) -> IntCC {
    match (compare, is_signed) {
        (Compare::Ne, _) => IntCC::NotEqual,
        (Compare::Lt, true) => IntCC::SignedLessThan,
        (Compare::Lt, false) => IntCC::UnsignedLessThan,
        (Compare::Le, true) => IntCC::SignedLessThanOrEqual,
        (Compare::Le, false) => IntCC::UnsignedLessThanOrEqual,
        (Compare::Gt, true) => IntCC::SignedGreaterThan,
        (Compare::Gt, false) => IntCC::UnsignedGreaterThan,
        (Compare::Ge, true) => IntCC::SignedGreaterThanOrEqual,
        (Compare::Ge, false) => IntCC::UnsignedGreaterThanOrEqual,
        _ => IntCC::Equal,
    }
}
