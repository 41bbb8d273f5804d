//! Packing of f32 matrices into panels of tiles, and the transposition of tiles.

use super::{Arithmetic, Lane, PANEL, Tile};
use crate::convert::round_to_bf16;
use crate::isa::Isa;

pub(super) fn rows(
    arithmetic: Arithmetic,
    source: &[f32],
    stride: usize,
    rows: usize,
    depth: usize,
    panel: &mut [Tile],
) {
    for row in 0..PANEL {
        if row >= rows {
            panel.iter_mut().for_each(|tile| tile.0[row] = [0; 16]);
            continue;
        }
        let source = &source[row * stride..][..depth];
        match arithmetic.lane {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: pairs are chosen only where the processor has AVX-512 BF16.
            Lane::Bf16Pair => unsafe { pairs::row(source, row, stride, panel) },
            lane => {
                let (full, rest) = source.as_chunks::<PANEL>();
                for (tile, values) in panel.iter_mut().zip(full) {
                    tile.0[row] = lanes(lane, values);
                }
                if !rest.is_empty() {
                    panel[full.len()].0[row] = lanes(lane, &padded(rest));
                }
            }
        }
    }
}

pub(super) fn columns(
    arithmetic: Arithmetic,
    source: &[f32],
    stride: usize,
    columns: usize,
    depth: usize,
    panel: &mut [Tile],
) {
    let per_tile = arithmetic.depth_per_tile();
    for (index, tile) in panel.iter_mut().enumerate() {
        let first = index * per_tile;
        let steps = per_tile.min(depth - first);
        let source = &source[first * stride..];
        match arithmetic.lane {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: pairs are chosen only where the processor has AVX-512 BF16.
            Lane::Bf16Pair => unsafe { pairs::tile(source, stride, columns, steps, tile) },
            lane => {
                for (step, row) in tile.0.iter_mut().enumerate() {
                    *row = match source.get(step * stride..) {
                        Some(source) if step < steps => match source.first_chunk::<PANEL>() {
                            Some(values) if columns == PANEL => lanes(lane, values),
                            _ => lanes(lane, &padded(&source[..columns])),
                        },
                        _ => [0; 16],
                    };
                }
            }
        }
    }
}

#[inline]
fn lanes(lane: Lane, values: &[f32; PANEL]) -> [u32; PANEL] {
    if lane == Lane::RoundedF32 {
        values.map(|value| round_to_bf16(value).to_bits())
    } else {
        values.map(f32::to_bits)
    }
}

#[inline]
fn padded(values: &[f32]) -> [f32; PANEL] {
    let mut full = [0.0; PANEL];
    full[..values.len()].copy_from_slice(values);
    full
}

pub(super) fn transpose(isa: Isa, panel: &mut [Tile]) {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx512 {
        // SAFETY: `isa` is at most what the processor has.
        return panel.iter_mut().for_each(|tile| unsafe { transpose_avx512(tile) });
    }
    let _ = isa;
    for tile in panel {
        for row in 1..16 {
            for column in 0..row {
                let (upper, lower) = tile.0.split_at_mut(row);
                std::mem::swap(&mut upper[column][row], &mut lower[0][column]);
            }
        }
    }
}

/// Four rounds, each of which exchanges blocks of half the size of the one before it: lanes, pairs,
/// quarters of a register, halves.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn transpose_avx512(tile: &mut Tile) {
    use std::arch::x86_64::{
        _mm512_loadu_si512, _mm512_setzero_si512, _mm512_shuffle_i32x4, _mm512_storeu_si512,
        _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
    };
    let mut a = [_mm512_setzero_si512(); 16];
    let mut b = a;
    for (register, row) in a.iter_mut().zip(&tile.0) {
        // SAFETY: a row is 64 bytes.
        *register = unsafe { _mm512_loadu_si512(row.as_ptr().cast()) };
    }
    for i in 0..8 {
        b[2 * i] = _mm512_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
        b[2 * i + 1] = _mm512_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
    }
    for i in 0..4 {
        a[4 * i] = _mm512_unpacklo_epi64(b[4 * i], b[4 * i + 2]);
        a[4 * i + 1] = _mm512_unpackhi_epi64(b[4 * i], b[4 * i + 2]);
        a[4 * i + 2] = _mm512_unpacklo_epi64(b[4 * i + 1], b[4 * i + 3]);
        a[4 * i + 3] = _mm512_unpackhi_epi64(b[4 * i + 1], b[4 * i + 3]);
    }
    for i in 0..4 {
        b[i] = _mm512_shuffle_i32x4::<0x88>(a[i], a[i + 4]);
        b[i + 4] = _mm512_shuffle_i32x4::<0xdd>(a[i], a[i + 4]);
        b[i + 8] = _mm512_shuffle_i32x4::<0x88>(a[i + 8], a[i + 12]);
        b[i + 12] = _mm512_shuffle_i32x4::<0xdd>(a[i + 8], a[i + 12]);
    }
    for i in 0..8 {
        a[i] = _mm512_shuffle_i32x4::<0x88>(b[i], b[i + 8]);
        a[i + 8] = _mm512_shuffle_i32x4::<0xdd>(b[i], b[i + 8]);
    }
    for (register, row) in a.iter().zip(&mut tile.0) {
        // SAFETY: a row is 64 bytes.
        unsafe { _mm512_storeu_si512(row.as_mut_ptr().cast(), *register) };
    }
}

/// Packing into pairs of bf16, by the instructions that the processors which multiply them have.
#[cfg(target_arch = "x86_64")]
mod pairs {
    use std::arch::x86_64::{
        __m512, __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_cvtne2ps_pbh, _mm512_loadu_ps,
        _mm512_loadu_si512, _mm512_maskz_loadu_ps, _mm512_permutexvar_epi16, _mm512_setzero_ps,
        _mm512_storeu_si512,
    };

    use super::{PANEL, Tile};

    /// One row of a left panel.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub(super) fn row(source: &[f32], row: usize, stride: usize, panel: &mut [Tile]) {
        for (tile, values) in panel.iter_mut().zip(source.chunks(2 * PANEL)) {
            prefetch(values, 2 * stride);
            prefetch(values, 2 * stride + PANEL);
            let (lower, upper) = values.split_at(values.len().min(PANEL));
            write(&mut tile.0[row], round(load(lower), load(upper)));
        }
    }

    /// One tile of a right panel: rows `2 p` and `2 p + 1` of the source, interleaved.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub(super) fn tile(
        source: &[f32],
        stride: usize,
        columns: usize,
        steps: usize,
        tile: &mut Tile,
    ) {
        const INTERLEAVE: [u16; 32] = {
            let mut order = [0; 32];
            let mut lane = 0;
            while lane < 16 {
                order[2 * lane] = lane as u16;
                order[2 * lane + 1] = lane as u16 + 16;
                lane += 1;
            }
            order
        };
        // SAFETY: the array is 64 bytes.
        let order = unsafe { _mm512_loadu_si512(INTERLEAVE.as_ptr().cast()) };
        for (pair, row) in tile.0.iter_mut().enumerate() {
            let mut values = [_mm512_setzero_ps(); 2];
            for (half, values) in values.iter_mut().enumerate() {
                let step = 2 * pair + half;
                if step < steps {
                    let source = &source[step * stride..][..columns];
                    prefetch(source, 4 * PANEL);
                    *values = load(source);
                }
            }
            write(row, _mm512_permutexvar_epi16(order, round(values[0], values[1])));
        }
    }

    /// Asks for what will be read soon, `ahead` values on: the processor foresees a few streams, but
    /// not the sixteen or thirty-two rows read here side by side.
    #[inline]
    fn prefetch(values: &[f32], ahead: usize) {
        // SAFETY: a prefetch has no effect on memory and cannot fault, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(values.as_ptr().wrapping_add(ahead).cast()) };
    }

    /// Up to 16 values, followed by zeros.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load(values: &[f32]) -> __m512 {
        if values.len() == PANEL {
            // SAFETY: there are 16 values.
            return unsafe { _mm512_loadu_ps(values.as_ptr()) };
        }
        debug_assert!(values.len() < PANEL);
        let mask = (1_u16 << (values.len() % PANEL)) - 1;
        // SAFETY: the mask keeps the load within the values.
        unsafe { _mm512_maskz_loadu_ps(mask, values.as_ptr()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn round(lower: __m512, upper: __m512) -> __m512i {
        // SAFETY: both types are 512 bits without invalid values.
        unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(upper, lower)) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn write(lanes: &mut [u32; 16], value: __m512i) {
        // SAFETY: a row is 64 bytes.
        unsafe { _mm512_storeu_si512(lanes.as_mut_ptr().cast(), value) };
    }
}
