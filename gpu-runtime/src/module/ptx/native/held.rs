//! How registers are held between steps: reading one in the form that a step wants, and keeping what it made.
//!
//! Single and double NaNs that arithmetic makes become the card's one NaN when they are looked at, not when they are made:
//! arithmetic on a NaN gives a NaN whatever its bits are.

use cranelift_codegen::ir::condcodes::FloatCC;
use cranelift_codegen::ir::immediates::{Ieee32, Ieee64};
use cranelift_codegen::ir::{InstBuilder, MemFlagsData, Value, types};

use super::emit::{Emitter, integer_of};
use super::flow::{self, Class};
use crate::module::ptx::code::{Slot, Type};
use crate::module::ptx::math::{self, NAN_32, NAN_64};

impl Emitter<'_, '_> {
    pub(super) fn constant(&self, slot: Slot) -> Option<u64> {
        flow::constant(self.code, slot)
    }

    /// The lowest bits of a slot: 32 of them, or 64 where more are asked for. What is above the bits asked for may be anything.
    pub(super) fn bits(&mut self, slot: Slot, bits: u32) -> Value {
        let form = integer_of(bits);
        if let Some(value) = self.constant(slot) {
            let value = if form == types::I32 { i64::from(value as u32) } else { value as i64 };
            return self.builder.ins().iconst(form, value);
        }
        let value = match self.special(slot) {
            Some(value) => value,
            None => match self.variable(slot) {
                None => return self.builder.ins().iconst(form, 0),
                Some((variable, Class::Single | Class::Double)) => {
                    let value = self.builder.use_var(variable);
                    let value = if self.flow.lazy[slot as usize] { self.one_nan(value) } else { value };
                    let same = if self.is_single(value) { types::I32 } else { types::I64 };
                    self.builder.ins().bitcast(same, MemFlagsData::new(), value)
                }
                Some((variable, _)) => self.builder.use_var(variable),
            },
        };
        let found = self.builder.func.dfg.value_type(value);
        match found.bits().cmp(&form.bits()) {
            std::cmp::Ordering::Less => self.builder.ins().uextend(form, value),
            std::cmp::Ordering::Equal => value,
            std::cmp::Ordering::Greater => self.builder.ins().ireduce(form, value),
        }
    }

    /// The lowest bits of a slot, with nothing above them.
    pub(super) fn zero_extended(&mut self, slot: Slot, bits: u32) -> Value {
        let value = self.bits(slot, bits);
        if matches!(bits, 32 | 64) {
            value
        } else {
            self.builder.ins().band_imm_u(value, math::mask(bits) as i64)
        }
    }

    /// A slot's signed number of that many bits, in 32 or 64.
    pub(super) fn sign_extended(&mut self, slot: Slot, bits: u32) -> Value {
        let value = self.bits(slot, bits);
        match bits {
            8 | 16 => {
                let form = if bits == 8 { types::I8 } else { types::I16 };
                let value = self.builder.ins().ireduce(form, value);
                self.builder.ins().sextend(types::I32, value)
            }
            _ => value,
        }
    }

    /// A value in 64 bits.
    pub(super) fn widened(&mut self, value: Value, is_signed: bool) -> Value {
        match self.builder.func.dfg.value_type(value) {
            types::I64 => value,
            _ if is_signed => self.builder.ins().sextend(types::I64, value),
            _ => self.builder.ins().uextend(types::I64, value),
        }
    }

    pub(super) fn truth(&mut self, slot: Slot) -> Value {
        if let Some((variable, Class::Truth)) = self.variable(slot) {
            return self.builder.use_var(variable);
        }
        let value = self.bits(slot, 1);
        let value = self.builder.ins().band_imm_u(value, 1);
        self.builder.ins().ireduce(types::I8, value)
    }

    pub(super) fn is_single(&self, value: Value) -> bool {
        self.builder.func.dfg.value_type(value) == types::F32
    }

    pub(super) fn float(&mut self, slot: Slot, kind: Type) -> Value {
        let wanted = if kind == Type::F32 { Class::Single } else { Class::Double };
        if let Some((variable, class)) = self.variable(slot)
            && class == wanted
        {
            return self.builder.use_var(variable);
        }
        self.float_of_bits(slot, kind)
    }

    /// A float with the bits that the slot shows.
    pub(super) fn as_it_is(&mut self, slot: Slot, kind: Type) -> Value {
        let wanted = if kind == Type::F32 { Class::Single } else { Class::Double };
        match self.variable(slot) {
            Some((variable, class)) if class == wanted => {
                let value = self.builder.use_var(variable);
                if self.flow.lazy[slot as usize] { self.one_nan(value) } else { value }
            }
            _ => self.float_of_bits(slot, kind),
        }
    }

    pub(super) fn float_of_bits(&mut self, slot: Slot, kind: Type) -> Value {
        if let Some(value) = self.constant(slot) {
            return if kind == Type::F32 {
                self.builder.ins().f32const(Ieee32::with_bits(value as u32))
            } else {
                self.builder.ins().f64const(Ieee64::with_bits(value))
            };
        }
        let value = self.bits(slot, kind.bits());
        let form = if kind == Type::F32 { types::F32 } else { types::F64 };
        self.builder.ins().bitcast(form, MemFlagsData::new(), value)
    }

    pub(super) fn one_nan(&mut self, value: Value) -> Value {
        let nan = if self.is_single(value) {
            self.builder.ins().f32const(Ieee32::with_bits(NAN_32))
        } else {
            self.builder.ins().f64const(Ieee64::with_bits(NAN_64))
        };
        let is_nan = self.builder.ins().fcmp(FloatCC::Unordered, value, value);
        self.builder.ins().select(is_nan, nan, value)
    }

    /// Keeps an integer: of 32 bits, or of 64. `is_signed` says what stands above the 32.
    pub(super) fn put(&mut self, slot: Slot, value: Value, is_signed: bool) {
        let Some((variable, class)) = self.variable(slot) else { return };
        let is_wide = self.builder.func.dfg.value_type(value) == types::I64;
        let value = match class {
            Class::Truth => {
                let value = self.builder.ins().band_imm_u(value, 1);
                self.builder.ins().ireduce(types::I8, value)
            }
            Class::Narrow if is_wide => self.builder.ins().ireduce(types::I32, value),
            Class::Narrow => value,
            Class::Wide => self.widened(value, is_signed),
            Class::Single => {
                let value = if is_wide { self.builder.ins().ireduce(types::I32, value) } else { value };
                self.builder.ins().bitcast(types::F32, MemFlagsData::new(), value)
            }
            Class::Double => {
                let value = self.widened(value, is_signed);
                self.builder.ins().bitcast(types::F64, MemFlagsData::new(), value)
            }
        };
        self.builder.def_var(variable, value);
    }

    pub(super) fn put_truth(&mut self, slot: Slot, value: Value) {
        match self.variable(slot) {
            None => {}
            Some((variable, Class::Truth)) => self.builder.def_var(variable, value),
            Some(_) => {
                let value = self.builder.ins().uextend(types::I32, value);
                self.put(slot, value, false);
            }
        }
    }

    /// Keeps a float that arithmetic made.
    pub(super) fn put_float(&mut self, slot: Slot, value: Value) {
        let is_lazy = self.flow.lazy.get(slot as usize).copied().unwrap_or(false);
        let value = if is_lazy { value } else { self.one_nan(value) };
        self.put_as_it_is(slot, value);
    }

    pub(super) fn put_as_it_is(&mut self, slot: Slot, value: Value) {
        let is_single = self.is_single(value);
        match self.variable(slot) {
            None => {}
            Some((variable, class))
                if (class, is_single) == (Class::Single, true)
                    || (class, is_single) == (Class::Double, false) =>
            {
                self.builder.def_var(variable, value);
            }
            Some(_) => {
                let form = if is_single { types::I32 } else { types::I64 };
                let value = self.builder.ins().bitcast(form, MemFlagsData::new(), value);
                self.put(slot, value, false);
            }
        }
    }
}
