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
        let mut values = vec![0.0; rows.div_ceil(STRIP) * cols * STRIP];
        let mut buffer = vec![0.0; cols];
        for index in 0..rows {
            buffer.fill(0.0);
            row(index, &mut buffer);
            let strip = &mut values[index / STRIP * cols * STRIP..][..cols * STRIP];
            for (column, value) in strip.chunks_exact_mut(STRIP).zip(&buffer) {
                column[index % STRIP] = *value;
            }
        }
        Self { cols, values: narrow(values, precision) }
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

/// The narrowest type that the precision allows.
pub(super) fn narrow(values: Vec<f32>, precision: Precision) -> Values {
    let same = |a: f32, b: f32| a.to_bits() == b.to_bits();
    let bf16s = || Values::Bf16(values.iter().map(|v| bf16::from_f32(*v)).collect());
    let f16s = || Values::F16(values.iter().map(|v| f16::from_f32(*v)).collect());
    if values.iter().all(|v| same(bf16::from_f32(*v).to_f32(), *v)) {
        return bf16s();
    }
    if values.iter().all(|v| same(f16::from_f32(*v).to_f32(), *v)) {
        return f16s();
    }
    if precision == Precision::Float {
        return Values::F32(values);
    }
    // f16 has the finer steps where its exponents reach.
    let greatest = values.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
    if (1e-2..6e4).contains(&greatest) { f16s() } else { bf16s() }
}
