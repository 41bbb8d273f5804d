//! Matrices of which a good part is zero: for each column of a strip a mask of sixteen bits, and the
//! floats of the rows it names, one column after the other.

use half::{bf16, f16};

use super::activations::TileOf;
use super::dense::{Column, Values, narrow};
use super::{Precision, STRIP, TILE, float};
use crate::ggml::f16_to_f32;
use crate::isa::Isa;

#[cfg(target_arch = "x86_64")]
use super::bitmap_avx512 as avx512;

/// Columns that are expanded at once where a kernel does not do it in registers.
const AT_ONCE: usize = 64;

/// A matrix of floats, its zeros left out.
pub(super) struct Bitmap {
    cols: usize,
    /// `[strip][column]`: bit `r` says that row `r` of the strip has a value.
    masks: Vec<u16>,
    /// Where the values of each strip begin, and where the last end.
    starts: Vec<usize>,
    /// `[strip][column][row of the mask]`, and a register of padding: kernels load whole ones.
    values: Values,
}

impl Bitmap {
    /// Packs rows that `row` writes, in the types that [`Dense`](super::dense::Dense) has.
    pub(super) fn new(
        rows: usize,
        cols: usize,
        precision: Precision,
        row: &dyn Fn(usize, &mut [f32]),
    ) -> Self {
        let (mut masks, mut starts, mut values) = (vec![], vec![0], vec![]);
        let mut strip = vec![0.0; STRIP * cols];
        for first in (0..rows).step_by(STRIP) {
            strip.fill(0.0);
            for index in 0..STRIP.min(rows - first) {
                row(first + index, &mut strip[index * cols..][..cols]);
            }
            for column in 0..cols {
                let mut mask = 0;
                for index in 0..STRIP {
                    let value = strip[index * cols + column];
                    if value != 0.0 {
                        mask |= 1 << index;
                        values.push(value);
                    }
                }
                masks.push(mask);
            }
            starts.push(values.len());
        }
        values.extend([0.0; STRIP]);
        Self { cols, masks, starts, values: narrow(values, precision) }
    }

    /// Bytes read by a product.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(self.masks.as_slice()) + self.values.bytes()
    }

    /// Whether all values are numbers.
    pub(super) fn is_finite(&self) -> bool {
        self.values.is_finite()
    }

    /// Masks of a strip, and where its values begin and end.
    fn strip(&self, strip: usize) -> (&[u16], usize, usize) {
        let masks = &self.masks[strip * self.cols..][..self.cols];
        (masks, self.starts[strip], self.starts[strip + 1])
    }

    /// Adds the columns from `first` on of a strip.
    pub(super) fn add_columns(&self, isa: Isa, strip: usize, first: usize, out: &mut [Column]) {
        let (masks, start, end) = self.strip(strip);
        let first = first.min(masks.len());
        let (before, masks) = masks.split_at(first);
        let at = start + ones(before);
        let count = out.len().min(masks.len());
        let (masks, out) = (&masks[..count], &mut out[..count]);
        #[cfg(target_arch = "x86_64")]
        if isa >= Isa::Avx512 {
            assert!(at + ones(masks) <= end && end + STRIP <= self.values.len());
            // SAFETY: the processor has AVX-512; the masks name values up to `end`, and a register
            // of padding follows.
            return unsafe {
                match &self.values {
                    Values::F32(all) => avx512::add_columns(masks, &all[at..], out),
                    Values::F16(all) => avx512::add_columns(masks, &all[at..], out),
                    Values::Bf16(all) => avx512::add_columns(masks, &all[at..], out),
                }
            };
        }
        let _ = (isa, end);
        match &self.values {
            Values::F32(all) => expand(masks, &all[at..], |value: f32| value, out),
            Values::F16(all) => {
                expand(masks, &all[at..], |value: f16| f16_to_f32(value.to_bits()), out);
            }
            Values::Bf16(all) => expand(masks, &all[at..], bf16::to_f32, out),
        }
    }

    /// Adds the product of a strip with a tile of tokens, whose floats are those of its columns.
    pub(super) fn add(&self, isa: Isa, strip: usize, tile: &TileOf<'_>, sums: &mut [Column; TILE]) {
        let tokens = tile.tokens;
        #[cfg(target_arch = "x86_64")]
        if isa >= Isa::Avx512 {
            let (masks, start, end) = self.strip(strip);
            assert!(tokens <= TILE && tile.float.len() >= self.cols * tokens);
            assert!(start + ones(masks) == end && end + STRIP <= self.values.len());
            // SAFETY: the processor has AVX-512; the lengths were checked above.
            return unsafe {
                match &self.values {
                    Values::F32(all) => avx512::add(masks, &all[start..], tile.float, tokens, sums),
                    Values::F16(all) => avx512::add(masks, &all[start..], tile.float, tokens, sums),
                    Values::Bf16(all) => {
                        avx512::add(masks, &all[start..], tile.float, tokens, sums);
                    }
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

/// Values that masks name.
fn ones(masks: &[u16]) -> usize {
    masks.iter().map(|mask| mask.count_ones() as usize).sum()
}

/// Adds each value to the row that its mask names.
fn expand<T: Copy>(masks: &[u16], values: &[T], widen: impl Fn(T) -> f32, out: &mut [Column]) {
    let mut values = values.iter();
    for (mask, column) in masks.iter().zip(out) {
        let mut left = *mask;
        for value in values.by_ref().take(mask.count_ones() as usize) {
            column[left.trailing_zeros() as usize] += widen(*value);
            left &= left - 1;
        }
    }
}
