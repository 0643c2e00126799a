//! What one instruction computes, bit for bit as the PTX ISA says.
//!
//! What is run for every lane is always put into its caller, which knows operation and type: so each becomes a loop over
//! lanes with one operation in it.
//!
//! Values are the bits of a slot: integers zero-extended, but where `cvt` made them of a signed type (a register may be wider than
//! that, and is filled then), floats in their low bits. A NaN that comes out of arithmetic in single precision is the card's one
//! NaN; in double precision it is the usual quiet one.

use super::code::{Binary, Compare, Rounding, Type, Unary};

pub const NAN_32: u32 = 0x7FFF_FFFF;
pub const NAN_64: u64 = 0x7FF8_0000_0000_0000;

/// The low bits that a type has.
#[inline(always)]
#[must_use]
pub fn mask(bits: u32) -> u64 {
    if bits >= 64 { u64::MAX } else { (1 << bits) - 1 }
}

/// A slot's value as a signed number of that many bits.
#[inline(always)]
#[must_use]
pub fn signed(value: u64, bits: u32) -> i64 {
    let shift = 64 - bits.min(64);
    ((value << shift) as i64) >> shift
}

#[inline(always)]
fn f32_of(value: u64, flush: bool) -> f32 {
    let value = f32::from_bits(value as u32);
    if flush && value.is_subnormal() { 0f32.copysign(value) } else { value }
}

#[inline(always)]
fn bits_32(value: f32, flush: bool, saturate: bool) -> u64 {
    let value = match value {
        value if saturate && value.is_nan() => 0.0,
        value if saturate => value.clamp(0.0, 1.0) + 0.0,
        value if flush && value.is_subnormal() => 0f32.copysign(value),
        value => value,
    };
    u64::from(if value.is_nan() { NAN_32 } else { value.to_bits() })
}

#[inline(always)]
fn bits_64(value: f64) -> u64 {
    if value.is_nan() { NAN_64 } else { value.to_bits() }
}

/// The larger or smaller of two floats: a number wins over a NaN, +0 is larger than -0.
fn extreme<T: Copy + PartialOrd>(
    a: T,
    b: T,
    larger: bool,
    is_nan: fn(T) -> bool,
    is_negative: fn(T) -> bool,
) -> T {
    if is_nan(a) {
        return b;
    }
    if is_nan(b) {
        return a;
    }
    let a_wins = if a == b { is_negative(b) == larger } else { (a > b) == larger };
    if a_wins { a } else { b }
}

#[inline(always)]
#[must_use]
pub fn binary(op: Binary, kind: Type, a: u64, b: u64, flush: bool, saturate: bool) -> u64 {
    match kind {
        Type::F32 => {
            let (a, b) = (f32_of(a, flush), f32_of(b, flush));
            bits_32(
                match op {
                    Binary::Add => a + b,
                    Binary::Sub => a - b,
                    Binary::MulLo | Binary::MulHi => a * b,
                    Binary::Div => a / b,
                    Binary::Min => extreme(a, b, false, f32::is_nan, f32::is_sign_negative),
                    _ => extreme(a, b, true, f32::is_nan, f32::is_sign_negative),
                },
                flush,
                saturate,
            )
        }
        Type::F64 => {
            let (a, b) = (f64::from_bits(a), f64::from_bits(b));
            bits_64(match op {
                Binary::Add => a + b,
                Binary::Sub => a - b,
                Binary::MulLo | Binary::MulHi => a * b,
                Binary::Div => a / b,
                Binary::Min => extreme(a, b, false, f64::is_nan, f64::is_sign_negative),
                _ => extreme(a, b, true, f64::is_nan, f64::is_sign_negative),
            })
        }
        _ => integer(op, kind, a, b, saturate),
    }
}

#[inline(always)]
fn integer(op: Binary, kind: Type, a: u64, b: u64, saturate: bool) -> u64 {
    let bits = kind.bits();
    let (sa, sb) = (signed(a, bits), signed(b, bits));
    let (ua, ub) = (a & mask(bits), b & mask(bits));
    let is_signed = kind.is_signed();
    let clamp = |value: i64| value.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as u64;
    let value = match op {
        Binary::Add if saturate => clamp(sa + sb),
        Binary::Sub if saturate => clamp(sa - sb),
        Binary::Add => a.wrapping_add(b),
        Binary::Sub => a.wrapping_sub(b),
        Binary::MulLo => a.wrapping_mul(b),
        Binary::MulHi if is_signed => ((i128::from(sa) * i128::from(sb)) >> bits) as u64,
        Binary::MulHi => ((u128::from(ua) * u128::from(ub)) >> bits) as u64,
        // The ISA leaves division by zero open; the cards give all ones, and the dividend for the remainder.
        Binary::Div if ub == 0 => u64::MAX,
        Binary::Rem if ub == 0 => ua,
        Binary::Div if is_signed => sa.wrapping_div(sb) as u64,
        Binary::Rem if is_signed => sa.wrapping_rem(sb) as u64,
        Binary::Div => ua / ub,
        Binary::Rem => ua % ub,
        Binary::Min if is_signed => sa.min(sb) as u64,
        Binary::Max if is_signed => sa.max(sb) as u64,
        Binary::Min => ua.min(ub),
        Binary::Max => ua.max(ub),
        Binary::And => a & b,
        Binary::Or => a | b,
        Binary::Xor => a ^ b,
        // Amounts of the width or more shift everything out.
        Binary::Shl => {
            if (b as u32) >= bits {
                0
            } else {
                a << (b as u32)
            }
        }
        Binary::Shr if is_signed => (sa >> (b as u32).min(63)) as u64,
        Binary::Shr => {
            if (b as u32) >= bits {
                0
            } else {
                ua >> (b as u32)
            }
        }
    };
    value & mask(bits)
}

#[must_use]
pub fn unary(op: Unary, kind: Type, a: u64, flush: bool) -> u64 {
    let bits = kind.bits();
    match (op, kind) {
        (Unary::Mov, _) => a & mask(bits),
        // Negating and taking the absolute value only touch the sign, of NaNs too.
        (Unary::Neg, Type::F32) => u64::from(f32_of(a, flush).to_bits() ^ 0x8000_0000),
        (Unary::Abs, Type::F32) => u64::from(f32_of(a, flush).to_bits() & 0x7FFF_FFFF),
        (Unary::Neg, Type::F64) => a ^ 1 << 63,
        (Unary::Abs, Type::F64) => a & !(1 << 63),
        (op, Type::F32) => {
            let value = f32_of(a, flush);
            let wide = f64::from(value);
            let value = match op {
                Unary::Sqrt => value.sqrt(),
                Unary::Rcp => 1.0 / value,
                Unary::Rsqrt => (1.0 / wide.sqrt()) as f32,
                Unary::Sin => wide.sin() as f32,
                Unary::Cos => wide.cos() as f32,
                Unary::Ex2 => wide.exp2() as f32,
                Unary::Lg2 => wide.log2() as f32,
                _ => wide.tanh() as f32,
            };
            bits_32(value, flush, false)
        }
        (op, Type::F64) => {
            let value = f64::from_bits(a);
            bits_64(match op {
                Unary::Sqrt => value.sqrt(),
                Unary::Rcp => 1.0 / value,
                Unary::Rsqrt => 1.0 / value.sqrt(),
                Unary::Sin => value.sin(),
                Unary::Cos => value.cos(),
                Unary::Ex2 => value.exp2(),
                Unary::Lg2 => value.log2(),
                _ => value.tanh(),
            })
        }
        (Unary::Not, Type::Pred) => a ^ 1,
        (Unary::Not, _) => !a & mask(bits),
        (Unary::Cnot, _) => u64::from(a & mask(bits) == 0),
        (Unary::Neg, _) => a.wrapping_neg() & mask(bits),
        (Unary::Abs, _) => signed(a, bits).unsigned_abs() & mask(bits),
        (Unary::Popc, _) => u64::from((a & mask(bits)).count_ones()),
        (Unary::Clz, _) => u64::from((a & mask(bits)).leading_zeros() - (64 - bits)),
        (Unary::Brev, _) => a.reverse_bits() >> (64 - bits),
        (Unary::Bfind, _) => {
            let value = if kind.is_signed() && signed(a, bits) < 0 { !a } else { a } & mask(bits);
            if value == 0 { u64::from(u32::MAX) } else { u64::from(63 - value.leading_zeros()) }
        }
        _ => a,
    }
}

#[inline(always)]
#[must_use]
pub fn fma(kind: Type, a: u64, b: u64, c: u64, flush: bool, saturate: bool) -> u64 {
    if kind == Type::F64 {
        return bits_64(f64::from_bits(a).mul_add(f64::from_bits(b), f64::from_bits(c)));
    }
    bits_32(f32_of(a, flush).mul_add(f32_of(b, flush), f32_of(c, flush)), flush, saturate)
}

#[inline(always)]
#[must_use]
pub fn mad(kind: Type, a: u64, b: u64, c: u64, high: bool) -> u64 {
    let product = integer(if high { Binary::MulHi } else { Binary::MulLo }, kind, a, b, false);
    product.wrapping_add(c) & mask(kind.bits())
}

/// a * b + c, twice as wide as `kind`.
#[inline(always)]
#[must_use]
pub fn mul_wide(kind: Type, a: u64, b: u64, c: u64) -> u64 {
    let bits = kind.bits();
    let product = if kind.is_signed() {
        (signed(a, bits) as u64).wrapping_mul(signed(b, bits) as u64)
    } else {
        (a & mask(bits)).wrapping_mul(b & mask(bits))
    };
    product.wrapping_add(c) & mask(bits * 2)
}

/// The sum or difference, and the carry or borrow.
#[must_use]
pub fn carry(bits: u32, a: u64, b: u64, carry_in: bool, subtract: bool) -> (u64, bool) {
    let (a, b) = (u128::from(a & mask(bits)), u128::from(b & mask(bits)));
    let wide = if subtract {
        a.wrapping_sub(b).wrapping_sub(u128::from(carry_in))
    } else {
        a + b + u128::from(carry_in)
    };
    (wide as u64 & mask(bits), wide >> bits != 0)
}

#[inline(always)]
#[must_use]
pub fn lop3(a: u64, b: u64, c: u64, table: u8) -> u64 {
    let (a, b, c) = (a as u32, b as u32, c as u32);
    let term = |index: u8, value: u32| if table & index != 0 { value } else { 0 };
    u64::from(
        term(0x01, !a & !b & !c)
            | term(0x02, !a & !b & c)
            | term(0x04, !a & b & !c)
            | term(0x08, !a & b & c)
            | term(0x10, a & !b & !c)
            | term(0x20, a & !b & c)
            | term(0x40, a & b & !c)
            | term(0x80, a & b & c),
    )
}

/// `shf`: 32 bits out of the 64 of b:a.
#[inline(always)]
#[must_use]
pub fn funnel(a: u64, b: u64, amount: u64, left: bool, clamp: bool) -> u64 {
    let both = (b & mask(32)) << 32 | (a & mask(32));
    let amount = if clamp { (amount as u32).min(32) } else { amount as u32 & 31 };
    if left { both << amount >> 32 } else { both >> amount & mask(32) }
}

#[must_use]
pub fn bfe(kind: Type, a: u64, start: u64, length: u64) -> u64 {
    let bits = kind.bits();
    let (start, length) = (start as u32 & 0xFF, length as u32 & 0xFF);
    if length == 0 {
        return 0;
    }
    let a = a & mask(bits);
    let field = if start >= bits { 0 } else { a >> start } & mask(length);
    let end = start.saturating_add(length).min(bits) - 1;
    let sign = kind.is_signed() && a >> end & 1 == 1;
    let taken = length.min(bits.saturating_sub(start));
    if sign { (field | !mask(taken)) & mask(bits) } else { field & mask(bits) }
}

#[must_use]
pub fn bfi(kind: Type, a: u64, b: u64, start: u64, length: u64) -> u64 {
    let bits = kind.bits();
    let (start, length) = (start as u32 & 0xFF, length as u32 & 0xFF);
    if start >= bits || length == 0 {
        return b & mask(bits);
    }
    let field = mask(length) << start & mask(bits);
    (b & !field | a << start & field) & mask(bits)
}

#[must_use]
pub fn prmt(a: u64, b: u64, selection: u64) -> u64 {
    let both = (b & mask(32)) << 32 | (a & mask(32));
    (0..4).fold(0, |out, index| {
        let pick = selection >> (4 * index) & 0xF;
        let byte = both >> (8 * (pick & 7)) & 0xFF;
        // The fourth bit spreads the byte's sign.
        let byte = if pick & 8 == 0 {
            byte
        } else if byte & 0x80 == 0 {
            0
        } else {
            0xFF
        };
        out | byte << (8 * index)
    })
}

#[inline(always)]
#[must_use]
pub fn compare(how: Compare, unordered: bool, kind: Type, a: u64, b: u64, flush: bool) -> bool {
    use std::cmp::Ordering::{Equal, Greater, Less};
    let order = match kind {
        Type::F32 => f32_of(a, flush).partial_cmp(&f32_of(b, flush)),
        Type::F64 => f64::from_bits(a).partial_cmp(&f64::from_bits(b)),
        kind if kind.is_signed() => Some(signed(a, kind.bits()).cmp(&signed(b, kind.bits()))),
        kind => Some((a & mask(kind.bits())).cmp(&(b & mask(kind.bits())))),
    };
    match (how, order) {
        (Compare::Num, order) => order.is_some(),
        (Compare::Nan, order) => order.is_none(),
        (_, None) => unordered,
        (Compare::Eq, Some(order)) => order == Equal,
        (Compare::Ne, Some(order)) => order != Equal,
        (Compare::Lt, Some(order)) => order == Less,
        (Compare::Le, Some(order)) => order != Greater,
        (Compare::Gt, Some(order)) => order == Greater,
        (Compare::Ge, Some(order)) => order != Less,
    }
}

/// An integer as a register holds it that may be wider than its type: the sign of a signed one goes on.
#[inline(always)]
fn extended(value: u64, to: Type) -> u64 {
    if to.is_signed() { signed(value, to.bits()) as u64 } else { value & mask(to.bits()) }
}

/// `cvt`.
#[must_use]
pub fn convert(
    to: Type,
    from: Type,
    a: u64,
    rounding: Rounding,
    integral: bool,
    flush: bool,
    saturate: bool,
) -> u64 {
    if !from.is_float() {
        let bits = from.bits();
        let value = if from.is_signed() { i128::from(signed(a, bits)) } else { i128::from(a & mask(bits)) };
        return match to {
            // Straight from the integer: through a double it would round twice.
            Type::F32 => bits_32(value as f32, flush, saturate),
            Type::F64 => bits_64(value as f64),
            to if saturate => clamp(value, to),
            to => extended(value as u64, to),
        };
    }
    let value = if from == Type::F32 { f64::from(f32_of(a, flush)) } else { f64::from_bits(a) };
    let rounded = if !integral && to.is_float() {
        value
    } else {
        match rounding {
            Rounding::Nearest => value.round_ties_even(),
            Rounding::Zero => value.trunc(),
            Rounding::Down => value.floor(),
            Rounding::Up => value.ceil(),
        }
    };
    match to {
        Type::F32 => bits_32(rounded as f32, flush, saturate),
        Type::F64 if saturate && rounded.is_nan() => 0,
        Type::F64 if saturate => bits_64(rounded.clamp(0.0, 1.0) + 0.0),
        Type::F64 => bits_64(rounded),
        // NaN becomes 0 and what is too large the nearest, as on the cards; 64-bit NaNs become the smallest.
        to if rounded.is_nan() => {
            if to.bits() == 64 {
                1 << 63
            } else {
                0
            }
        }
        to => clamp(rounded as i128, to),
    }
}

fn clamp(value: i128, to: Type) -> u64 {
    let bits = to.bits();
    let (low, high) = if to.is_signed() {
        (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1)
    } else {
        (0, (1i128 << bits) - 1)
    };
    extended(value.clamp(low, high) as u64, to)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn f(value: f32) -> u64 {
        value.to_bits().into()
    }

    /// Figures worked out by hand from the ISA's text.
    #[test]
    fn integers_follow_the_isa() {
        let op = |op, kind, a, b| binary(op, kind, a, b, false, false);
        assert_eq!(op(Binary::Add, Type::U32, 0xFFFF_FFFF, 2), 1);
        assert_eq!(binary(Binary::Add, Type::S32, 0x7FFF_FFFF, 1, false, true), 0x7FFF_FFFF);
        assert_eq!(binary(Binary::Sub, Type::S32, 0x8000_0000, 1, false, true), 0x8000_0000);
        assert_eq!(
            op(Binary::MulHi, Type::S32, 0xFFFF_FFFF, 2),
            0xFFFF_FFFF,
            "-1 * 2 = -2, whose high half is -1"
        );
        assert_eq!(op(Binary::MulHi, Type::U64, u64::MAX, u64::MAX), u64::MAX - 1);
        assert_eq!(op(Binary::Div, Type::S32, 0xFFFF_FFF9, 2), 0xFFFF_FFFD, "-7 / 2 = -3");
        assert_eq!(op(Binary::Rem, Type::S32, 0xFFFF_FFF9, 2), 0xFFFF_FFFF, "-7 % 2 = -1");
        assert_eq!(op(Binary::Div, Type::U32, 7, 0), 0xFFFF_FFFF);
        assert_eq!(op(Binary::Rem, Type::U32, 7, 0), 7);
        assert_eq!(op(Binary::Div, Type::S32, 0x8000_0000, 0xFFFF_FFFF), 0x8000_0000);
        assert_eq!(op(Binary::Shl, Type::U32, 1, 32), 0);
        assert_eq!(op(Binary::Shr, Type::S32, 0x8000_0000, 99), 0xFFFF_FFFF);
        assert_eq!(mul_wide(Type::S32, 0xFFFF_FFFF, 5, 0), (-5i64) as u64);
        assert_eq!(mul_wide(Type::U16, 0xFFFF, 0xFFFF, 1), 0xFFFE_0002);
        assert_eq!(carry(32, 0xFFFF_FFFF, 1, false, false), (0, true));
        assert_eq!(carry(32, 0, 0, true, true), (0xFFFF_FFFF, true));
        assert_eq!(unary(Unary::Clz, Type::U32, 1, false), 31);
        assert_eq!(unary(Unary::Brev, Type::U32, 1, false), 0x8000_0000);
        assert_eq!(unary(Unary::Bfind, Type::S32, 0xFFFF_FFFF, false), 0xFFFF_FFFF);
        assert_eq!(unary(Unary::Bfind, Type::U32, 0x1_0000, false), 16);
        assert_eq!(
            lop3(0xF0F0_F0F0, 0xCCCC_CCCC, 0xAAAA_AAAA, 0x96),
            0x9696_9696,
            "the table's own construction"
        );
        assert_eq!(funnel(0x1111_1111, 0x8000_0001, 1, true, false), 2, "the high bit of a is 0");
        assert_eq!(funnel(0x8000_0000, 0x8000_0001, 1, true, false), 3);
        assert_eq!(funnel(7, 9, 32, false, true), 9);
        assert_eq!(bfe(Type::S32, 0x0000_0F00, 8, 4), 0xFFFF_FFFF);
        assert_eq!(bfe(Type::U32, 0x0000_0F00, 8, 4), 0xF);
        assert_eq!(bfi(Type::U32, 0xFF, 0, 4, 4), 0xF0);
        assert_eq!(prmt(0x3322_1100, 0x7766_5544, 0x0123), 0x0011_2233);
        assert_eq!(prmt(0x0000_0080, 0, 0x8), 0x8080_80FF, "the sign of byte 0, then the byte three times");
    }

    #[test]
    fn floats_follow_the_isa() {
        let op = |op, a, b| binary(op, Type::F32, f(a), f(b), false, false);
        assert_eq!(op(Binary::Add, f32::INFINITY, f32::NEG_INFINITY), u64::from(NAN_32));
        assert_eq!(op(Binary::Min, f32::NAN, 3.0), f(3.0));
        assert_eq!(op(Binary::Max, -0.0, 0.0), f(0.0));
        assert_eq!(op(Binary::Min, 0.0, -0.0), f(-0.0));
        assert_eq!(op(Binary::Div, 1.0, 0.0), f(f32::INFINITY));
        // 1 + 2^-12 squared is 1 + 2^-11 + 2^-24: one rounding keeps what two lose.
        let x = 1.0 + 2f32.powi(-12);
        assert_eq!(fma(Type::F32, f(x), f(x), f(-1.0), false, false), f(2f32.powi(-11) + 2f32.powi(-24)));
        let tiny = f32::from_bits(1);
        assert_eq!(binary(Binary::Add, Type::F32, f(tiny), f(0.0), true, false), 0);
        assert_eq!(binary(Binary::Add, Type::F32, f(-tiny), f(-0.0), true, false), 0x8000_0000);
        assert_eq!(binary(Binary::Add, Type::F32, f(0.7), f(0.7), false, true), f(1.0));
        assert_eq!(binary(Binary::Add, Type::F32, f(f32::NAN), f(1.0), false, true), 0);
        assert!(compare(Compare::Lt, true, Type::F32, f(f32::NAN), f(1.0), false));
        assert!(!compare(Compare::Ne, false, Type::F32, f(f32::NAN), f(1.0), false));
    }

    #[test]
    fn conversions_follow_the_isa() {
        let to_int =
            |to, value: f32, rounding| convert(to, Type::F32, f(value), rounding, true, false, false);
        assert_eq!(to_int(Type::S32, -2.7, Rounding::Zero), (-2i64) as u64);
        assert_eq!(to_int(Type::S32, 2.5, Rounding::Nearest), 2);
        assert_eq!(to_int(Type::S32, -2.5, Rounding::Down), (-3i64) as u64);
        assert_eq!(to_int(Type::S32, 1e20, Rounding::Zero), 0x7FFF_FFFF);
        assert_eq!(to_int(Type::U32, -1.0, Rounding::Zero), 0);
        assert_eq!(to_int(Type::S32, f32::NAN, Rounding::Zero), 0);
        let plain = |to, from, a| convert(to, from, a, Rounding::Nearest, false, false, false);
        // 2^24 + 1 is half way between two floats: to the even one.
        assert_eq!(plain(Type::F32, Type::U32, (1 << 24) + 1), f(16_777_216.0));
        assert_eq!(plain(Type::S64, Type::S32, 0xFFFF_FFFF), u64::MAX);
        assert_eq!(plain(Type::U8, Type::U32, 0x1234), 0x34);
        assert_eq!(convert(Type::U8, Type::S32, 0xFFFF_FFFF, Rounding::Nearest, false, false, true), 0);
        assert_eq!(plain(Type::F64, Type::F32, f(1.5)), 1.5f64.to_bits());
    }
}
