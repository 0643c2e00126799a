//! Memory: where an access goes, that it goes nowhere else, and what it does there.
//!
//! An address names its buffer or its window; what it becomes is a place in this process, behind a comparison with the length that
//! stands beside the buffer's start. Accesses of one [`Span`] share one comparison.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value, types};

use super::emit::{Emitter, fixed, integer_of, plain};
use super::flow::Class;
use super::span::Span;
use crate::module::ptx::code::{At, Atom, GLOBAL_SHIFT, LOCAL_WINDOW, SHARED_WINDOW, Slot, Type};
use crate::module::ptx::text::Space;

impl Emitter<'_, '_> {
    pub(super) fn change(&mut self, op: Atom, kind: Type, (place, behind): (Value, i32), d: Slot, a: Slot) {
        let form = integer_of(kind.bits());
        let old = self.builder.ins().load(form, plain(), place, behind);
        let given = self.bits(a, kind.bits());
        let pick = |emitter: &mut Self, how| {
            let old_stays = emitter.builder.ins().icmp(how, old, given);
            emitter.builder.ins().select(old_stays, old, given)
        };
        let is_signed = kind.is_signed();
        let new = match op {
            Atom::Exch => given,
            Atom::Add if !kind.is_float() => self.builder.ins().iadd(old, given),
            Atom::And if !kind.is_float() => self.builder.ins().band(old, given),
            Atom::Or if !kind.is_float() => self.builder.ins().bor(old, given),
            Atom::Xor if !kind.is_float() => self.builder.ins().bxor(old, given),
            Atom::Min if is_signed => pick(self, IntCC::SignedLessThan),
            Atom::Max if is_signed => pick(self, IntCC::SignedGreaterThan),
            Atom::Min if !kind.is_float() => pick(self, IntCC::UnsignedLessThan),
            Atom::Max if !kind.is_float() => pick(self, IntCC::UnsignedGreaterThan),
            _ => {
                let wide = self.widened(old, is_signed);
                let given = self.bits(a, 64);
                let at = self.builder.ins().iconst(types::I64, i64::from(self.at));
                let none = self.builder.ins().iconst(types::I64, 0);
                let new = self.call_compute(&[self.context, at, wide, given, none, none]);
                if form == types::I64 { new } else { self.builder.ins().ireduce(form, new) }
            }
        };
        self.builder.ins().store(plain(), new, place, behind);
        self.put(d, old, is_signed);
    }

    /// A value of that type from memory into a slot.
    pub(super) fn read(&mut self, kind: Type, d: Slot, place: Value, offset: i32) {
        let class = self.variable(d).map(|(_, class)| class);
        match (kind.bits(), class) {
            (32, Some(Class::Single)) | (64, Some(Class::Double)) => {
                let form = if kind.bits() == 32 { types::F32 } else { types::F64 };
                let value = self.builder.ins().load(form, plain(), place, offset);
                self.put_as_it_is(d, value);
            }
            (bits @ (8 | 16), _) => {
                let narrow = if bits == 8 { types::I8 } else { types::I16 };
                let value = self.builder.ins().load(narrow, plain(), place, offset);
                let value = if kind.is_signed() {
                    self.builder.ins().sextend(types::I32, value)
                } else {
                    self.builder.ins().uextend(types::I32, value)
                };
                self.put(d, value, kind.is_signed());
            }
            (bits, _) => {
                let value = self.builder.ins().load(integer_of(bits), plain(), place, offset);
                self.put(d, value, kind.is_signed());
            }
        }
    }

    pub(super) fn write(&mut self, kind: Type, a: Slot, place: Value, offset: i32) {
        let bits = kind.bits();
        let value = match (bits, self.variable(a)) {
            (32, Some((_, Class::Single))) | (64, Some((_, Class::Double))) => self.as_it_is(a, kind),
            _ => self.bits(a, bits),
        };
        match bits {
            8 => _ = self.builder.ins().istore8(plain(), value, place, offset),
            16 => _ = self.builder.ins().istore16(plain(), value, place, offset),
            _ => _ = self.builder.ins().store(plain(), value, place, offset),
        }
    }

    /// Where in this process an access goes, and how far behind that; leaves the function if it is outside of its buffer, or
    /// crooked. The first of a span asks for all.
    pub(super) fn place(&mut self, at: At, base: Slot, offset: i64, bytes: u32) -> (Value, i32) {
        let alone = Span { lead: self.at, low: offset, reach: 0 };
        let span = self.flow.spans.get(&self.at).copied().unwrap_or(alone);
        let behind = (offset - span.low) as i32;
        if let Some(place) = self.led.get(&span.lead) {
            return (*place, behind);
        }
        let known = self.constant(base).map(|base| base.wrapping_add(span.low as u64));
        let base = self.bits(base, 64);
        let address = if span.low == 0 { base } else { self.builder.ins().iadd_imm_u(base, span.low) };
        let told = if behind == 0 { address } else { self.builder.ins().iadd_imm_u(base, offset) };
        let windows = SHARED_WINDOW | LOCAL_WINDOW;
        let size = Size { bytes, reach: span.reach };
        let place = match at {
            Some(Space::Shared) => match known {
                Some(known) if size.fits(known, self.code.shared_bytes) => {
                    self.builder.ins().iadd_imm_u(self.shared.0, known as i64)
                }
                _ => self.within(address, !windows, self.shared, told, size),
            },
            Some(Space::Local) => {
                let own = self.own();
                match known {
                    Some(known) if size.fits(known, self.code.local_bytes) => {
                        self.builder.ins().iadd_imm_u(own.0, known as i64)
                    }
                    _ => self.within(address, !windows, own, told, size),
                }
            }
            Some(Space::Global | Space::Const) => self.in_buffer(address, told, size),
            None => self.anywhere(address, told, size),
        };
        if self.flow.spans.contains_key(&self.at) {
            self.led.insert(span.lead, place);
        }
        (place, behind)
    }

    /// The lane's own memory.
    fn own(&mut self) -> (Value, Value) {
        let (start, length) = self.local;
        let lane = self.builder.use_var(self.lane);
        let offset = self.builder.ins().imul(lane, length);
        (self.builder.ins().iadd(start, offset), length)
    }

    fn anywhere(&mut self, address: Value, told: Value, size: Size) -> Value {
        let found = self.builder.create_block();
        let place = self.builder.append_block_param(found, types::I64);
        let [shared, elsewhere, local, global] = [(); 4].map(|()| self.builder.create_block());
        let window = self.builder.ins().band_imm_u(address, SHARED_WINDOW as i64);
        self.builder.ins().brif(window, shared, &[], elsewhere, &[]);
        self.builder.switch_to_block(elsewhere);
        let window = self.builder.ins().band_imm_u(address, LOCAL_WINDOW as i64);
        self.builder.ins().brif(window, local, &[], global, &[]);
        for (block, mask) in [(shared, !SHARED_WINDOW), (local, !LOCAL_WINDOW)] {
            self.builder.switch_to_block(block);
            let memory = if block == shared { self.shared } else { self.own() };
            let here = self.within(address, mask, memory, told, size);
            self.builder.ins().jump(found, &[here.into()]);
        }
        self.builder.switch_to_block(global);
        let here = self.in_buffer(address, told, size);
        self.builder.ins().jump(found, &[here.into()]);
        self.builder.switch_to_block(found);
        place
    }

    fn in_buffer(&mut self, address: Value, told: Value, size: Size) -> Value {
        let (table, count) = self.table;
        let index = self.builder.ins().ushr_imm_u(address, i64::from(GLOBAL_SHIFT));
        let is_none = self.builder.ins().icmp(IntCC::UnsignedGreaterThan, index, count);
        self.fail_if(is_none, told);
        // The table's first line is of no bytes, for addresses below the first buffer.
        let line = self.builder.ins().ishl_imm_u(index, 4);
        let line = self.builder.ins().iadd(table, line);
        let start = self.builder.ins().load(types::I64, fixed(), line, 0);
        let length = self.builder.ins().load(types::I64, fixed(), line, 8);
        self.within(address, (1 << GLOBAL_SHIFT) - 1, (start, length), told, size)
    }

    /// One comparison for both: turned right by the size's bits, a crooked offset is larger than any number of items.
    fn within(
        &mut self,
        address: Value,
        mask: u64,
        (start, length): (Value, Value),
        told: Value,
        size: Size,
    ) -> Value {
        let shift = i64::from(size.bytes.trailing_zeros());
        let offset = self.builder.ins().band_imm_u(address, mask as i64);
        let item = if shift == 0 { offset } else { self.builder.ins().rotr_imm_u(offset, shift) };
        let items = if shift == 0 { length } else { self.builder.ins().ushr_imm_u(length, shift) };
        let items = match size.reach {
            0 => items,
            reach => {
                let less = self.builder.ins().iadd_imm_u(items, -i64::from(reach));
                let has_enough =
                    self.builder.ins().icmp_imm_u(IntCC::UnsignedGreaterThan, items, i64::from(reach));
                let zero = self.builder.ins().iconst(types::I64, 0);
                self.builder.ins().select(has_enough, less, zero)
            }
        };
        let is_outside = self.builder.ins().icmp(IntCC::UnsignedGreaterThanOrEqual, item, items);
        self.fail_if(is_outside, told);
        self.builder.ins().iadd(start, offset)
    }

    fn fail_if(&mut self, holds: Value, address: Value) {
        let on = self.builder.create_block();
        let at = self.builder.ins().iconst(types::I64, i64::from(self.at));
        self.builder.ins().brif(holds, self.fault, &[at.into(), address.into()], on, &[]);
        self.builder.switch_to_block(on);
    }
}

/// The bytes of an access, and how many of them follow that are held against the length with it.
#[derive(Debug, Clone, Copy)]
struct Size {
    bytes: u32,
    reach: u32,
}

impl Size {
    /// Whether all lie straight within memory of at least that length, from a known offset on.
    fn fits(self, offset: u64, length: u64) -> bool {
        let bytes = u64::from(self.bytes);
        let all = bytes * (u64::from(self.reach) + 1);
        offset.is_multiple_of(bytes) && offset.checked_add(all).is_some_and(|end| end <= length)
    }
}
