//! Floats `[strip][column][row of the strip]`: a column of a strip is a register.

use half::{bf16, f16};

use super::activations::TileOf;
use super::{Precision, STRIP, TILE, float};
use crate::ggml::f16_to_f32;
use crate::isa::Isa;
use crate::simd::vectorized;

#[cfg(target_arch = "x86_64")]
use super::dense_avx512 as avx512;

/// Columns of a strip in f32.
pub(super) type Column = [f32; STRIP];

/// A matrix of floats, each stored in the narrowest type that its precision allows.
pub(super) struct Dense {
    cols: usize,
    pub(super) values: Values,
}

/// Columns that are widened at once where a kernel does not do it in registers.
const AT_ONCE: usize = 64;

pub(super) enum Values {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

impl Dense {
    /// Packs rows that `row` writes. In 16 bits where that is exact; for products that round their
    /// inputs to 8 bits, always.
    pub(super) fn new(
        rows: usize,
        cols: usize,
        precision: Precision,
        row: &dyn Fn(usize, &mut [f32]),
    ) -> Self {
        let mut values = Values::Bf16(Vec::with_capacity(rows.div_ceil(STRIP) * cols * STRIP));
        let mut buffer = vec![0.0; cols];
        let mut strip = vec![0.0; cols * STRIP];
        for first in (0..rows).step_by(STRIP) {
            strip.fill(0.0);
            for index in first..rows.min(first + STRIP) {
                buffer.fill(0.0);
                row(index, &mut buffer);
                for (column, value) in strip.chunks_exact_mut(STRIP).zip(&buffer) {
                    column[index % STRIP] = *value;
                }
            }
            values.extend(&strip);
        }
        if let Values::F32(wide) = values {
            values = narrow(wide, precision);
        }
        Self { cols, values }
    }

    /// Whether all values are numbers.
    pub(super) fn is_finite(&self) -> bool {
        self.values.is_finite()
    }

    /// Columns.
    pub(super) fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes read by a product.
    pub(super) fn bytes(&self) -> usize {
        self.values.bytes()
    }

    /// Adds the columns from `first` on of a strip.
    pub(super) fn add_columns(&self, isa: Isa, strip: usize, first: usize, out: &mut [Column]) {
        let count = out.len().min(self.cols.saturating_sub(first));
        let start = (strip * self.cols + first) * STRIP;
        let (range, out) = (start..start + count * STRIP, out[..count].as_flattened_mut());
        match &self.values {
            Values::F32(values) => add_f32(isa, &values[range], out),
            Values::F16(values) => add_f16(isa, &values[range], out),
            Values::Bf16(values) => add_bf16(isa, &values[range], out),
        }
    }

    /// Adds the product of a strip with a tile of tokens, whose floats are those of its columns.
    pub(super) fn add(&self, isa: Isa, strip: usize, tile: &TileOf<'_>, sums: &mut [Column; TILE]) {
        let tokens = tile.tokens;
        #[cfg(target_arch = "x86_64")]
        if isa >= Isa::Avx512 {
            assert!(tokens <= TILE && tile.float.len() >= self.cols * tokens);
            let range = strip * self.cols * STRIP..(strip + 1) * self.cols * STRIP;
            // SAFETY: the processor has AVX-512; the lengths were checked above.
            return unsafe {
                match &self.values {
                    Values::F32(all) => avx512::add(&all[range], tile.float, tokens, sums),
                    Values::F16(all) => avx512::add(&all[range], tile.float, tokens, sums),
                    Values::Bf16(all) => avx512::add(&all[range], tile.float, tokens, sums),
                }
            };
        }
        let mut columns = [[0.0; STRIP]; AT_ONCE];
        for first in (0..self.cols).step_by(AT_ONCE) {
            let columns = &mut columns[..AT_ONCE.min(self.cols - first)];
            columns.fill([0.0; STRIP]);
            self.add_columns(isa, strip, first, columns);
            let float = &tile.float[first * tokens..];
            float::multiply_tile(isa, columns, &TileOf { float, ..*tile }, sums);
        }
    }
}

impl Values {
    /// Adds values to the end. What is exact in 16 bits so far is kept in them, so that a matrix of a
    /// checkpoint never stands in memory twice as wide as in its file.
    fn extend(&mut self, more: &[f32]) {
        match self {
            Self::Bf16(all) if more.iter().all(is_bf16) => all.extend(more.iter().map(to_bf16)),
            Self::F16(all) if more.iter().all(is_f16) => all.extend(more.iter().map(to_f16)),
            Self::F32(all) => all.extend_from_slice(more),
            Self::Bf16(all) if all.is_empty() && more.iter().all(is_f16) => {
                let mut narrow = Vec::with_capacity(all.capacity());
                narrow.extend(more.iter().map(to_f16));
                *self = Self::F16(narrow);
            }
            Self::Bf16(all) => *self = Self::F32(widened(all, more)),
            Self::F16(all) => *self = Self::F32(widened(all, more)),
        }
    }

    /// Whether all are numbers.
    pub(super) fn is_finite(&self) -> bool {
        match self {
            Self::F32(values) => values.iter().all(|v| v.is_finite()),
            Self::F16(values) => values.iter().all(|v| v.is_finite()),
            Self::Bf16(values) => values.iter().all(|v| v.is_finite()),
        }
    }

    /// How many.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::F16(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }

    /// Their size.
    pub(super) fn bytes(&self) -> usize {
        let each = if matches!(self, Self::F32(_)) { size_of::<f32>() } else { size_of::<u16>() };
        self.len() * each
    }
}

vectorized! {
    fn add_f32(values: &[f32], out: &mut [f32]) {
        out.iter_mut().zip(values).for_each(|(out, value)| *out += value);
    }
}

vectorized! {
    fn add_f16(values: &[f16], out: &mut [f32]) {
        out.iter_mut().zip(values).for_each(|(out, value)| *out += f16_to_f32(value.to_bits()));
    }
}

vectorized! {
    fn add_bf16(values: &[bf16], out: &mut [f32]) {
        let widen = |value: &bf16| f32::from_bits(u32::from(value.to_bits()) << 16);
        out.iter_mut().zip(values).for_each(|(out, value)| *out += widen(value));
    }
}

/// Values of 16 bits, and more after them; with the room that was set aside.
fn widened<T: Copy + Into<f32>>(values: &mut Vec<T>, more: &[f32]) -> Vec<f32> {
    let mut wide = Vec::with_capacity(values.capacity());
    wide.extend(values.iter().map(|value| (*value).into()));
    wide.extend_from_slice(more);
    wide
}

/// The narrowest type that the precision allows.
pub(super) fn narrow(values: Vec<f32>, precision: Precision) -> Values {
    let bf16s = || Values::Bf16(values.iter().map(to_bf16).collect());
    let f16s = || Values::F16(values.iter().map(to_f16).collect());
    if values.iter().all(is_bf16) {
        return bf16s();
    }
    if values.iter().all(is_f16) {
        return f16s();
    }
    if precision != Precision::Int8 {
        return Values::F32(values);
    }
    // f16 has the finer steps where its exponents reach.
    let greatest = values.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
    if (1e-2..6e4).contains(&greatest) { f16s() } else { bf16s() }
}

fn to_bf16(value: &f32) -> bf16 {
    bf16::from_f32(*value)
}

fn to_f16(value: &f32) -> f16 {
    f16::from_f32(*value)
}

fn is_bf16(value: &f32) -> bool {
    to_bf16(value).to_f32().to_bits() == value.to_bits()
}

fn is_f16(value: &f32) -> bool {
    to_f16(value).to_f32().to_bits() == value.to_bits()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a matrix is stored in does not depend on how far it could be stored in less.
    #[test]
    fn rows_one_by_one_take_the_type_of_all() {
        let (rows, cols) = (3 * STRIP + 5, 7);
        let brain = |place: usize| bf16::from_f32(1.0 + place as f32).to_f32() * 2.0_f32.powi(90);
        let half = |place: usize| f16::from_f32(1.0 + place as f32 / 1024.0).to_f32();
        let full = |place: usize| 1.0 + place as f32 / 8_388_608.0;
        let small = |place: usize| full(place) * 1e-4;
        let values: [&dyn Fn(usize) -> f32; 4] = [&brain, &half, &full, &small];
        for kinds in (0..4_usize.pow(4)).map(|n| [n % 4, n / 4 % 4, n / 16 % 4, n / 64]) {
            let value = |row: usize, col: usize| values[kinds[row / STRIP]](row * cols + col);
            let row = |row: usize, out: &mut [f32]| {
                out.iter_mut().enumerate().for_each(|(col, out)| *out += value(row, col));
            };
            let mut whole = vec![0.0; rows.div_ceil(STRIP) * cols * STRIP];
            for row in 0..rows {
                for col in 0..cols {
                    whole[(row / STRIP * cols + col) * STRIP + row % STRIP] = value(row, col);
                }
            }
            for precision in [Precision::Float, Precision::Int8] {
                let bits = |values: &Values| match values {
                    Values::F32(v) => (32, v.iter().map(|v| v.to_bits()).collect::<Vec<_>>()),
                    Values::F16(v) => (16, v.iter().map(|v| u32::from(v.to_bits())).collect()),
                    Values::Bf16(v) => (8, v.iter().map(|v| u32::from(v.to_bits())).collect()),
                };
                let dense = Dense::new(rows, cols, precision, &row);
                let want = narrow(whole.clone(), precision);
                assert_eq!(bits(&dense.values), bits(&want), "{kinds:?} {precision:?}");
            }
        }
    }
}
