//! Keys and values of a sequence, kept from token to token.
//!
//! Positions come in blocks of 32. A block of keys lies channel by channel, 32 positions beside each
//! other, so that a query's products with 32 keys are sums over channels with no sum across lanes; a
//! block of values lies position by position, so that their weighted sum is one too.

use half::f16;

use crate::convert::{f16_to_f32, f32_to_f16};
use crate::isa::Isa;
use crate::pool::Pool;
use crate::simd::vectorized;

/// Positions of a block.
pub(super) const POSITIONS: usize = 32;
/// Channels of a head that share a scale, in the integer types.
const GROUP: usize = 32;

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CacheType {
    /// As they are.
    F32,
    /// 16-bit floats.
    F16,
    /// 8 bits and an f16 scale for 32 channels of a position: 8.5 bits a number.
    Int8,
    /// 4 bits, an f16 scale and minimum for 32 channels of a position: 5 bits a number.
    Int4,
}

impl CacheType {
    /// Bytes of the keys and values of one position.
    pub fn bytes_per_position(self, kv_heads: usize, head_dim: usize) -> usize {
        let groups = head_dim.div_ceil(GROUP);
        let head = match self {
            Self::F32 => 4 * head_dim,
            Self::F16 => 2 * head_dim,
            Self::Int8 => head_dim + 2 * groups,
            Self::Int4 => head_dim / 2 + 4 * groups,
        };
        2 * kv_heads * head
    }
}

/// The keys and values of one layer and sequence. Memory that no position has used is not touched.
#[derive(Debug)]
pub struct KeyValues {
    head_dim: usize,
    blocks: usize,
    heads: Vec<Head>,
}

/// Those of one head.
#[derive(Debug)]
struct Head {
    keys: Store,
    values: Store,
}

/// Numbers in the order they are read in.
#[derive(Debug)]
enum Store {
    F32(Vec<f32>),
    /// Bits of f16: zeroed memory of a primitive type is only mapped, not written.
    F16(Vec<u16>),
    Int8 {
        codes: Vec<i8>,
        scales: Vec<u16>,
    },
    Int4 {
        /// Two channels in a byte.
        codes: Vec<u8>,
        scales: Vec<u16>,
        minima: Vec<u16>,
    },
}

impl KeyValues {
    /// Room for `capacity` positions.
    ///
    /// # Panics
    /// If `head_dim` is odd.
    pub fn new(kind: CacheType, kv_heads: usize, head_dim: usize, capacity: usize) -> Self {
        assert!(head_dim.is_multiple_of(2), "heads have an even width");
        let blocks = capacity.div_ceil(POSITIONS);
        let positions = blocks * POSITIONS;
        let store = || Store::new(kind, positions * head_dim, positions * head_dim.div_ceil(GROUP));
        let heads = (0..kv_heads).map(|_| Head { keys: store(), values: store() }).collect();
        Self { head_dim, blocks, heads }
    }

    /// Positions there is room for.
    pub fn capacity(&self) -> usize {
        self.blocks * POSITIONS
    }

    /// Writes the keys and values, `[positions, kv_heads · head_dim]` each, of the positions from
    /// `first` on; those of many, a head a thread.
    ///
    /// # Panics
    /// If a position is beyond the capacity, or the rows have another width.
    pub fn put(&mut self, pool: &mut Pool, first: usize, keys: &[f32], values: &[f32]) {
        let (dim, width) = (self.head_dim, self.kv_heads() * self.head_dim);
        assert!(
            keys.len() == values.len() && keys.len().is_multiple_of(width.max(1)),
            "other widths"
        );
        let last = first + keys.len() / width.max(1);
        assert!(last <= self.capacity(), "a position beyond the cache");
        let write = |index: usize, heads: &mut [Head]| {
            for (index, head) in (index..).zip(heads) {
                let rows = keys.chunks_exact(width).zip(values.chunks_exact(width));
                for (position, (keys, values)) in (first..last).zip(rows) {
                    let (block, lane) = (position / POSITIONS, position % POSITIONS);
                    head.keys.put_key(block, lane, &keys[index * dim..][..dim]);
                    head.values.put_value(block, lane, &values[index * dim..][..dim]);
                }
            }
        };
        if last - first < POSITIONS {
            write(0, &mut self.heads);
        } else {
            pool.run_chunks(&mut self.heads, 1, write);
        }
    }

    /// The keys of a block, `[head_dim, 32]`.
    pub(super) fn keys(&self, isa: Isa, head: usize, block: usize, out: &mut [f32]) {
        let dim = self.head_dim;
        match &self.heads[head].keys {
            Store::F32(values) => out.copy_from_slice(of_block(values, block, dim * POSITIONS)),
            Store::F16(bits) => widen(isa, of_block(bits, block, dim * POSITIONS), out),
            Store::Int8 { codes, scales } => {
                let groups = dim.div_ceil(GROUP);
                let codes = of_block(codes, block, dim * POSITIONS);
                keys_of_int8(isa, codes, of_block(scales, block, groups * POSITIONS), out);
            }
            Store::Int4 { codes, scales, minima } => {
                let groups = dim.div_ceil(GROUP) * POSITIONS;
                let codes = of_block(codes, block, dim / 2 * POSITIONS);
                let (scales, minima) =
                    (of_block(scales, block, groups), of_block(minima, block, groups));
                keys_of_int4(isa, codes, scales, minima, out);
            }
        }
    }

    /// The values of a block, `[32, head_dim]`.
    pub(super) fn values(&self, isa: Isa, head: usize, block: usize, out: &mut [f32]) {
        let dim = self.head_dim;
        match &self.heads[head].values {
            Store::F32(values) => out.copy_from_slice(of_block(values, block, dim * POSITIONS)),
            Store::F16(bits) => widen(isa, of_block(bits, block, dim * POSITIONS), out),
            Store::Int8 { codes, scales } => {
                let groups = dim.div_ceil(GROUP);
                let codes = of_block(codes, block, dim * POSITIONS);
                values_of_int8(isa, codes, of_block(scales, block, groups * POSITIONS), dim, out);
            }
            Store::Int4 { codes, scales, minima } => {
                let groups = dim.div_ceil(GROUP) * POSITIONS;
                let codes = of_block(codes, block, dim / 2 * POSITIONS);
                let (scales, minima) =
                    (of_block(scales, block, groups), of_block(minima, block, groups));
                values_of_int4(isa, codes, scales, minima, dim, out);
            }
        }
    }

    pub(super) fn kv_heads(&self) -> usize {
        self.heads.len()
    }

    pub(super) fn head_dim(&self) -> usize {
        self.head_dim
    }
}

impl Store {
    fn new(kind: CacheType, numbers: usize, groups: usize) -> Self {
        match kind {
            CacheType::F32 => Self::F32(vec![0.0; numbers]),
            CacheType::F16 => Self::F16(vec![0; numbers]),
            CacheType::Int8 => Self::Int8 { codes: vec![0; numbers], scales: vec![0; groups] },
            CacheType::Int4 => Self::Int4 {
                codes: vec![0; numbers / 2],
                scales: vec![0; groups],
                minima: vec![0; groups],
            },
        }
    }

    fn put_key(&mut self, block: usize, lane: usize, row: &[f32]) {
        let (dim, groups) = (row.len(), row.len().div_ceil(GROUP));
        let first = block * POSITIONS * dim + lane;
        let first_group = block * POSITIONS * groups + lane;
        match self {
            Self::F32(values) => {
                for (channel, value) in row.iter().enumerate() {
                    values[first + channel * POSITIONS] = *value;
                }
            }
            Self::F16(bits) => {
                for (channel, value) in row.iter().enumerate() {
                    bits[first + channel * POSITIONS] = f16::from_f32(*value).to_bits();
                }
            }
            Self::Int8 { codes, scales } => {
                for (group, row) in row.chunks(GROUP).enumerate() {
                    let scale = int8_scale(row);
                    scales[first_group + group * POSITIONS] = scale.to_bits();
                    for (channel, value) in row.iter().enumerate() {
                        codes[first + (group * GROUP + channel) * POSITIONS] = int8(*value, scale);
                    }
                }
            }
            Self::Int4 { codes, scales, minima } => {
                let first = block * POSITIONS * dim / 2 + lane;
                for (group, row) in row.chunks(GROUP).enumerate() {
                    let grid = int4_grid(row);
                    scales[first_group + group * POSITIONS] = grid.0.to_bits();
                    minima[first_group + group * POSITIONS] = grid.1.to_bits();
                    for (pair, [low, high]) in row.as_chunks::<2>().0.iter().enumerate() {
                        let code = int4(*low, grid) | int4(*high, grid) << 4;
                        codes[first + (group * GROUP / 2 + pair) * POSITIONS] = code;
                    }
                }
            }
        }
    }

    fn put_value(&mut self, block: usize, lane: usize, row: &[f32]) {
        let (dim, groups) = (row.len(), row.len().div_ceil(GROUP));
        let first = (block * POSITIONS + lane) * dim;
        let first_group = (block * POSITIONS + lane) * groups;
        match self {
            Self::F32(values) => values[first..][..dim].copy_from_slice(row),
            Self::F16(bits) => f32_to_f16(row, bytemuck::cast_slice_mut(&mut bits[first..][..dim])),
            Self::Int8 { codes, scales } => {
                for (group, row) in row.chunks(GROUP).enumerate() {
                    let scale = int8_scale(row);
                    scales[first_group + group] = scale.to_bits();
                    let codes = &mut codes[first + group * GROUP..];
                    for (code, value) in codes.iter_mut().zip(row) {
                        *code = int8(*value, scale);
                    }
                }
            }
            Self::Int4 { codes, scales, minima } => {
                let codes = &mut codes[first / 2..][..dim / 2];
                for (group, row) in row.chunks(GROUP).enumerate() {
                    let grid = int4_grid(row);
                    scales[first_group + group] = grid.0.to_bits();
                    minima[first_group + group] = grid.1.to_bits();
                    let pairs = row.as_chunks::<2>().0;
                    for (code, [low, high]) in codes[group * GROUP / 2..].iter_mut().zip(pairs) {
                        *code = int4(*low, grid) | int4(*high, grid) << 4;
                    }
                }
            }
        }
    }
}

fn of_block<T>(all: &[T], block: usize, length: usize) -> &[T] {
    &all[block * length..][..length]
}

fn widen(isa: Isa, bits: &[u16], out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    match isa.supported() {
        Isa::Portable => {}
        // SAFETY: the processor has this level.
        Isa::Avx2 => return unsafe { widen_avx2(bits, out) },
        // SAFETY: the processor has this level or a higher one.
        _ => return unsafe { widen_avx512(bits, out) },
    }
    let _ = isa;
    f16_to_f32(bytemuck::cast_slice(bits), out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn widen_avx512(bits: &[u16], out: &mut [f32]) {
    use std::arch::x86_64::{_mm256_loadu_si256, _mm512_cvtph_ps, _mm512_storeu_ps};
    let (whole, rest) = bits.as_chunks::<16>();
    let (out, last) = out.split_at_mut(16 * whole.len());
    for (bits, out) in whole.iter().zip(out.as_chunks_mut::<16>().0) {
        // SAFETY: both have 16 elements.
        unsafe {
            let wide = _mm512_cvtph_ps(_mm256_loadu_si256(bits.as_ptr().cast()));
            _mm512_storeu_ps(out.as_mut_ptr(), wide);
        }
    }
    f16_to_f32(bytemuck::cast_slice(rest), last);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
fn widen_avx2(bits: &[u16], out: &mut [f32]) {
    use std::arch::x86_64::{_mm_loadu_si128, _mm256_cvtph_ps, _mm256_storeu_ps};
    let (whole, rest) = bits.as_chunks::<8>();
    let (out, last) = out.split_at_mut(8 * whole.len());
    for (bits, out) in whole.iter().zip(out.as_chunks_mut::<8>().0) {
        // SAFETY: both have 8 elements.
        unsafe {
            let wide = _mm256_cvtph_ps(_mm_loadu_si128(bits.as_ptr().cast()));
            _mm256_storeu_ps(out.as_mut_ptr(), wide);
        }
    }
    f16_to_f32(bytemuck::cast_slice(rest), last);
}

/// The scale of symmetric codes of 8 bits, rounded up so that no code overflows.
fn int8_scale(row: &[f32]) -> f16 {
    let largest = row.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    f16::from_f32(largest / 127.0)
}

fn int8(value: f32, scale: f16) -> i8 {
    let scale = scale.to_f32();
    // `as` saturates; a zero scale makes NaN, which becomes 0.
    if scale > 0.0 { (value / scale).round_ties_even().clamp(-127.0, 127.0) as i8 } else { 0 }
}

/// Scale and minimum of codes of 4 bits.
fn int4_grid(row: &[f32]) -> (f16, f16) {
    let smallest = row.iter().copied().fold(f32::INFINITY, f32::min);
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let minimum = f16::from_f32(smallest);
    (f16::from_f32((largest - minimum.to_f32()).max(0.0) / 15.0), minimum)
}

fn int4(value: f32, (scale, minimum): (f16, f16)) -> u8 {
    let (scale, minimum) = (scale.to_f32(), minimum.to_f32());
    if scale > 0.0 {
        ((value - minimum) / scale).round_ties_even().clamp(0.0, 15.0) as u8
    } else {
        0
    }
}

/// A row of 32 f16 as f32.
#[inline(always)]
fn lanes(bits: &[u16]) -> [f32; POSITIONS] {
    let mut lanes = [0.0; POSITIONS];
    f16_to_f32(bytemuck::cast_slice(bits), &mut lanes);
    lanes
}

vectorized! {
    fn keys_of_int8(codes: &[i8], scales: &[u16], out: &mut [f32]) {
        let groups = codes.chunks(GROUP * POSITIONS).zip(out.chunks_mut(GROUP * POSITIONS));
        for ((codes, out), scales) in groups.zip(scales.chunks_exact(POSITIONS)) {
            let scales = lanes(scales);
            let rows = codes.as_chunks::<POSITIONS>().0.iter();
            for (codes, out) in rows.zip(out.as_chunks_mut::<POSITIONS>().0) {
                for lane in 0..POSITIONS {
                    out[lane] = f32::from(codes[lane]) * scales[lane];
                }
            }
        }
    }
}

vectorized! {
    fn keys_of_int4(codes: &[u8], scales: &[u16], minima: &[u16], out: &mut [f32]) {
        let groups = codes.chunks(GROUP / 2 * POSITIONS).zip(out.chunks_mut(GROUP * POSITIONS));
        let grids = scales.chunks_exact(POSITIONS).zip(minima.chunks_exact(POSITIONS));
        for ((codes, out), (scales, minima)) in groups.zip(grids) {
            let (scales, minima) = (lanes(scales), lanes(minima));
            let rows = codes.as_chunks::<POSITIONS>().0.iter();
            for (codes, out) in rows.zip(out.chunks_exact_mut(2 * POSITIONS)) {
                let (low, high) = out.split_at_mut(POSITIONS);
                for lane in 0..POSITIONS {
                    low[lane] = f32::from(codes[lane] & 15) * scales[lane] + minima[lane];
                    high[lane] = f32::from(codes[lane] >> 4) * scales[lane] + minima[lane];
                }
            }
        }
    }
}

vectorized! {
    fn values_of_int8(codes: &[i8], scales: &[u16], dim: usize, out: &mut [f32]) {
        let rows = codes.chunks_exact(dim).zip(out.chunks_exact_mut(dim));
        for ((codes, out), scales) in rows.zip(scales.chunks_exact(dim.div_ceil(GROUP))) {
            let groups = codes.chunks(GROUP).zip(out.chunks_mut(GROUP));
            for ((codes, out), scale) in groups.zip(scales) {
                let scale = f16::from_bits(*scale).to_f32();
                for (code, out) in codes.iter().zip(out) {
                    *out = f32::from(*code) * scale;
                }
            }
        }
    }
}

vectorized! {
    fn values_of_int4(codes: &[u8], scales: &[u16], minima: &[u16], dim: usize, out: &mut [f32]) {
        let groups = dim.div_ceil(GROUP);
        let rows = codes.chunks_exact(dim / 2).zip(out.chunks_exact_mut(dim));
        let grids = scales.chunks_exact(groups).zip(minima.chunks_exact(groups));
        for ((codes, out), (scales, minima)) in rows.zip(grids) {
            let groups = codes.chunks(GROUP / 2).zip(out.chunks_mut(GROUP));
            for ((codes, out), (scale, minimum)) in groups.zip(scales.iter().zip(minima)) {
                let scale = f16::from_bits(*scale).to_f32();
                let minimum = f16::from_bits(*minimum).to_f32();
                for (code, [low, high]) in codes.iter().zip(out.as_chunks_mut::<2>().0) {
                    *low = f32::from(code & 15) * scale + minimum;
                    *high = f32::from(code >> 4) * scale + minimum;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_is_read_within_a_step_of_its_type() -> std::io::Result<()> {
        let mut pool = Pool::new(2)?;
        for (kind, step) in [
            (CacheType::F32, 0.0),
            (CacheType::F16, 1.0 / 2048.0),
            (CacheType::Int8, 1.1 / 254.0),
            (CacheType::Int4, 1.1 / 15.0),
        ] {
            for dim in [2, 40, 64, 80] {
                let (kv_heads, count) = (2, 70);
                let row = |seed: usize| -> Vec<f32> {
                    (0..kv_heads * dim)
                        .map(|i| ((i * 37 + seed * 101) % 199) as f32 / 99.5 - 1.0)
                        .collect()
                };
                let mut cache = KeyValues::new(kind, kv_heads, dim, count);
                // Many together, then one by one.
                let rows = |seed: usize, of: std::ops::Range<usize>| -> Vec<f32> {
                    of.flat_map(|position| row(position + seed)).collect()
                };
                cache.put(&mut pool, 0, &rows(0, 0..45), &rows(1000, 0..45));
                for position in 45..count {
                    cache.put(&mut pool, position, &row(position), &row(position + 1000));
                }
                let mut tile = vec![0.0; dim * POSITIONS];
                for position in 0..count {
                    let (block, lane) = (position / POSITIONS, position % POSITIONS);
                    for head in 0..kv_heads {
                        let (key, value) = (row(position), row(position + 1000));
                        cache.keys(Isa::detect(), head, block, &mut tile);
                        for channel in 0..dim {
                            let have = tile[channel * POSITIONS + lane];
                            assert!((have - key[head * dim + channel]).abs() <= step, "{kind:?}");
                        }
                        cache.values(Isa::detect(), head, block, &mut tile);
                        for channel in 0..dim {
                            let have = tile[lane * dim + channel];
                            assert!((have - value[head * dim + channel]).abs() <= step, "{kind:?}");
                        }
                    }
                }
            }
        }
        Ok(())
    }
}
