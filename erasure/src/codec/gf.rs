//! Arithmetic in GF(2^8) with the polynomial x^8 + x^4 + x^3 + x^2 + 1 (0x11D), and the generator matrix.
//!
//! The matrix is part of the format of every stored shard and never changes: the Vandermonde matrix
//! `v[row][column] = row^column` times the inverse of its top square. Its top is the identity, so the first k
//! shards are the data itself; its row i depends on k and i alone, so a longer code extends a shorter one; any k
//! of its rows are independent, so any k shards suffice.

use std::ops::Range;

/// The polynomial without its x^8.
const POLYNOMIAL: u8 = 0x1D;

/// `MUL[a][b]` is the product of a and b.
pub(super) static MUL: [[u8; 256]; 256] = {
    let mut table = [[0; 256]; 256];
    let mut a = 0;
    while a < 256 {
        let mut b = 1;
        while b < 256 {
            let doubled = double(table[a][b >> 1]);
            table[a][b] = if b & 1 == 1 { doubled ^ a as u8 } else { doubled };
            b += 1;
        }
        a += 1;
    }
    table
};

/// `INVERSE[a]` times a is 1; `INVERSE[0]` is 0 and means nothing.
static INVERSE: [u8; 256] = {
    let mut table = [0; 256];
    // The group of the 255 non-zero elements makes a^254 the inverse of a.
    let mut a = 1;
    while a < 256 {
        let (mut power, mut product, mut exponent) = (a as u8, 1, 254);
        while exponent > 0 {
            if exponent & 1 == 1 {
                product = multiply(product, power);
            }
            power = multiply(power, power);
            exponent >>= 1;
        }
        table[a] = product;
        a += 1;
    }
    table
};

const fn double(a: u8) -> u8 {
    (a << 1) ^ if a & 0x80 == 0 { 0 } else { POLYNOMIAL }
}

const fn multiply(mut a: u8, mut b: u8) -> u8 {
    let mut product = 0;
    while b > 0 {
        if b & 1 == 1 {
            product ^= a;
        }
        a = double(a);
        b >>= 1;
    }
    product
}

pub(super) fn mul(a: u8, b: u8) -> u8 {
    MUL[usize::from(a)][usize::from(b)]
}

/// Multiplication by `c` as the 8x8 bit matrix that `gf2p8affineqb` takes: byte 7 - i holds, for every bit of
/// the operand, whether it flips bit i of the product.
pub(super) fn affine(c: u8) -> u64 {
    AFFINE[usize::from(c)]
}

static AFFINE: [u64; 256] = {
    let mut table = [0; 256];
    let mut c = 0;
    while c < 256 {
        table[c] = affine_matrix(c as u8);
        c += 1;
    }
    table
};

const fn affine_matrix(c: u8) -> u64 {
    let mut matrix = 0;
    let mut bit = 0;
    let mut column = c; // c * 2^bit
    while bit < 8 {
        let mut row = 0;
        while row < 8 {
            matrix |= ((column as u64 >> row) & 1) << (8 * (7 - row) + bit);
            row += 1;
        }
        column = double(column);
        bit += 1;
    }
    matrix
}

/// Multiplication by `c` as two tables of 16: products of the low and of the high four bits of a byte.
pub(super) fn nibbles(c: u8) -> [u8; 32] {
    std::array::from_fn(|at| mul(c, if at < 16 { at as u8 } else { (at as u8 - 16) << 4 }))
}

/// A matrix of field elements, row by row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Matrix {
    pub rows: usize,
    pub columns: usize,
    pub elements: Vec<u8>,
}

impl Matrix {
    pub fn from_fn(rows: usize, columns: usize, mut element: impl FnMut(usize, usize) -> u8) -> Self {
        let mut elements = Vec::with_capacity(rows * columns);
        for row in 0..rows {
            elements.extend((0..columns).map(|column| element(row, column)));
        }
        Self { rows, columns, elements }
    }

    /// The generator of a code with `data` data shards and `shards` in all: `shards` rows, `data` columns.
    pub fn generator(data: usize, shards: usize) -> Self {
        let mut powers = vec![1u8; shards];
        let mut vandermonde = Self::from_fn(shards, data, |_, _| 0);
        for column in 0..data {
            for (row, power) in powers.iter_mut().enumerate() {
                vandermonde.elements[row * data + column] = *power;
                *power = mul(*power, row as u8);
            }
        }
        let Some(top_inverse) = vandermonde.part(0..data).inverse() else {
            unreachable!("a Vandermonde matrix of distinct elements is invertible")
        };
        vandermonde.times(&top_inverse)
    }

    /// Some of the rows.
    pub fn part(&self, rows: Range<usize>) -> Self {
        Self::from_fn(rows.len(), self.columns, |row, column| self.at(rows.start + row, column))
    }

    pub fn row(&self, row: usize) -> &[u8] {
        &self.elements[row * self.columns..][..self.columns]
    }

    pub fn row_mut(&mut self, row: usize) -> &mut [u8] {
        &mut self.elements[row * self.columns..][..self.columns]
    }

    pub fn at(&self, row: usize, column: usize) -> u8 {
        self.row(row)[column]
    }

    pub fn times(&self, other: &Self) -> Self {
        debug_assert_eq!(self.columns, other.rows);
        let mut product = Self::from_fn(self.rows, other.columns, |_, _| 0);
        for row in 0..self.rows {
            for (column, factor) in self.row(row).iter().enumerate() {
                add_scaled(product.row_mut(row), *factor, other.row(column));
            }
        }
        product
    }

    /// `None` where the matrix is singular. The matrix is square.
    pub fn inverse(mut self) -> Option<Self> {
        let size = self.columns;
        debug_assert_eq!(self.rows, size);
        let mut inverse = Self::from_fn(size, size, |row, column| u8::from(row == column));
        for pivot in 0..size {
            let from = (pivot..size).find(|row| self.at(*row, pivot) != 0)?;
            self.swap_rows(pivot, from);
            inverse.swap_rows(pivot, from);
            let scale = INVERSE[usize::from(self.at(pivot, pivot))];
            for matrix in [&mut self, &mut inverse] {
                for element in matrix.row_mut(pivot) {
                    *element = mul(*element, scale);
                }
            }
            for row in (0..size).filter(|row| *row != pivot) {
                let factor = self.at(row, pivot);
                for matrix in [&mut self, &mut inverse] {
                    let (target, source) = matrix.two_rows(row, pivot);
                    add_scaled(target, factor, source);
                }
            }
        }
        Some(inverse)
    }

    fn swap_rows(&mut self, a: usize, b: usize) {
        if a != b {
            let (a, b) = self.two_rows(a, b);
            a.swap_with_slice(b);
        }
    }

    /// Two different rows.
    fn two_rows(&mut self, a: usize, b: usize) -> (&mut [u8], &mut [u8]) {
        let (low, high) = (a.min(b), a.max(b));
        let (head, tail) = self.elements.split_at_mut(high * self.columns);
        let (low, high) = (&mut head[low * self.columns..][..self.columns], &mut tail[..self.columns]);
        if a < b { (low, high) } else { (high, low) }
    }
}

/// Adds `factor` times `row` to `sums`.
pub(super) fn add_scaled(sums: &mut [u8], factor: u8, row: &[u8]) {
    let products = &MUL[usize::from(factor)];
    for (sum, element) in sums.iter_mut().zip(row) {
        *sum ^= products[usize::from(*element)];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The product of two bytes as polynomials over GF(2), reduced by long division.
    fn long_hand(a: u8, b: u8) -> u8 {
        let mut product =
            (0..8).filter(|bit| b >> bit & 1 == 1).fold(0u16, |sum, bit| sum ^ u16::from(a) << bit);
        for bit in (8..16).rev() {
            if product >> bit & 1 == 1 {
                product ^= 0x11D << (bit - 8);
            }
        }
        product as u8
    }

    #[test]
    fn every_table_agrees_with_long_hand_multiplication() {
        for a in 0..=255u8 {
            let (affine, nibbles) = (affine(a).to_le_bytes(), nibbles(a));
            for b in 0..=255u8 {
                let product = long_hand(a, b);
                assert_eq!(mul(a, b), product);
                assert_eq!(nibbles[usize::from(b & 15)] ^ nibbles[16 + usize::from(b >> 4)], product);
                let by_bits = (0..8)
                    .fold(0, |sum, bit| sum | ((affine[7 - bit as usize] & b).count_ones() as u8 & 1) << bit);
                assert_eq!(by_bits, product);
            }
            assert!(a == 0 || long_hand(a, INVERSE[usize::from(a)]) == 1);
        }
    }

    #[test]
    fn a_longer_code_extends_a_shorter_one() {
        let (long, short) = (Matrix::generator(16, 28), Matrix::generator(16, 20));
        assert_eq!(long.elements[..short.elements.len()], short.elements);
    }

    #[test]
    fn an_inverse_undoes_and_a_singular_matrix_has_none() {
        let generator = Matrix::generator(5, 9);
        let square = Matrix::from_fn(5, 5, |row, column| generator.at(8 - row, column));
        let identity = Matrix::from_fn(5, 5, |row, column| u8::from(row == column));
        assert_eq!(square.clone().inverse().unwrap().times(&square), identity);
        assert_eq!(Matrix::from_fn(3, 3, |_, column| column as u8).inverse(), None);
    }
}
