//! Fixed-point arithmetic that rounds alike on every machine.

/// One, in millionths.
pub const PPM: u64 = 1_000_000;
/// Bits behind the point of [`exp2_neg`].
pub const FRACTION_BITS: u32 = 32;
const ONE: u64 = 1 << FRACTION_BITS;

/// floor(a · b / c), through 256 bits; the largest number where that does not fit, 0 where `c` is 0.
#[must_use]
pub fn mul_div(a: u128, b: u128, c: u128) -> u128 {
    if c == 0 {
        return 0;
    }
    if let Some(product) = a.checked_mul(b) {
        return product / c;
    }
    let (high, low) = wide_mul(a, b);
    if high >= c {
        return u128::MAX;
    }
    // Long division, bit by bit; `high` is the remainder so far, with a carry above its top bit.
    let (mut rest, mut quotient) = (high, 0u128);
    for at in (0..128).rev() {
        let carry = rest >> 127;
        rest = (rest << 1) | ((low >> at) & 1);
        quotient <<= 1;
        if carry == 1 || rest >= c {
            rest = rest.wrapping_sub(c);
            quotient |= 1;
        }
    }
    quotient
}

fn wide_mul(a: u128, b: u128) -> (u128, u128) {
    const LOW: u128 = u64::MAX as u128;
    let (a1, a0, b1, b0) = (a >> 64, a & LOW, b >> 64, b & LOW);
    let (low, middle1, middle2, high) = (a0 * b0, a1 * b0, a0 * b1, a1 * b1);
    let middle = (low >> 64) + (middle1 & LOW) + (middle2 & LOW);
    (high + (middle1 >> 64) + (middle2 >> 64) + (middle >> 64), (middle << 64) | (low & LOW))
}

/// 2^(−1/2), 2^(−1/4), ... with 32 bits behind the point, rounded to nearest: what [`exp2_neg`] multiplies.
const ROOTS: [u64; 32] = roots();

/// Square roots of square roots, by integers alone.
const fn roots() -> [u64; 32] {
    let mut roots = [0; 32];
    // 2^-1 with 62 bits behind the point; each root is taken of 124 bits.
    let mut value: u128 = 1 << 61;
    let mut at = 0;
    while at < 32 {
        value = isqrt(value << 62);
        roots[at] = ((value + (1 << 29)) >> 30) as u64;
        at += 1;
    }
    roots
}

const fn isqrt(value: u128) -> u128 {
    let (mut low, mut high) = (0u128, 1u128 << 63);
    while low < high {
        let middle = (low + high).div_ceil(2);
        if middle * middle <= value { low = middle } else { high = middle - 1 }
    }
    low
}

/// 2^(−numerator/denominator) with [`FRACTION_BITS`] behind the point; 0 where `denominator` is 0.
#[must_use]
pub fn exp2_neg(numerator: u128, denominator: u128) -> u64 {
    if denominator == 0 {
        return 0;
    }
    let whole = numerator / denominator;
    if whole > u128::from(FRACTION_BITS) {
        return 0;
    }
    let mut rest = numerator % denominator;
    let mut value = u128::from(ONE);
    for root in ROOTS {
        rest = rest.saturating_mul(2);
        if rest >= denominator {
            rest -= denominator;
            value = (value * u128::from(root)) >> FRACTION_BITS;
        }
    }
    (value >> whole) as u64
}

/// before · kept + now · (1 − kept), where `kept` has [`FRACTION_BITS`] behind the point; between the two, and each of them
/// where they are equal.
#[must_use]
pub fn blend(before: u128, now: u128, kept: u64) -> u128 {
    let (one, kept) = (u128::from(ONE), u128::from(kept.min(ONE)));
    if before >= now {
        now + mul_div(before - now, kept, one)
    } else {
        before + mul_div(now - before, one - kept, one)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The quotient is the one number q with q·c <= a·b < (q+1)·c, compared in 256 bits.
        #[test]
        fn a_quotient_is_the_floor(a: u128, b: u128, c in 1u128.., shift in 0u32..120) {
            let (a, b) = (a >> (shift / 2), b >> shift);
            let (product, q) = (wide_mul(a, b), mul_div(a, b, c));
            if q < u128::MAX {
                prop_assert!(wide_mul(q, c) <= product);
                let (high, low) = wide_mul(q, c);
                let (low, carry) = low.overflowing_add(c);
                prop_assert!(product < (high + u128::from(carry), low));
            } else {
                prop_assert!(wide_mul(u128::MAX, c) <= product);
            }
        }

        /// Against the machine's own logarithms, which tests may use.
        #[test]
        fn powers_agree_with_floats(numerator in 0u64..1_000_000, denominator in 1u64..100_000) {
            let exact = (-(numerator as f64) / denominator as f64).exp2() * ONE as f64;
            let ours = exp2_neg(numerator.into(), denominator.into()) as f64;
            prop_assert!((exact - ours).abs() <= 40.0, "{exact} {ours}");
        }
    }

    #[test]
    fn edges() {
        assert_eq!(exp2_neg(0, 7), ONE);
        assert_eq!(exp2_neg(7, 7), ONE / 2);
        assert_eq!(exp2_neg(u128::MAX, 1), 0);
        assert_eq!(mul_div(u128::MAX, u128::MAX, 1), u128::MAX);
        assert_eq!(mul_div(u128::MAX, u128::MAX, u128::MAX), u128::MAX);
        assert_eq!(mul_div(5, 7, 0), 0);
    }
}
