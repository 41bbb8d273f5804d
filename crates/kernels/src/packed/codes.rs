//! Codes of 1 to 8 bits laid out for kernels in which a lane is a row.
//!
//! A block is [`STRIP`] rows by [`BLOCK`] columns. A kernel takes it in [`STEPS`] steps of four
//! columns: 16 lanes of four bytes, a byte a code, the first column lowest. The bits of a code are
//! cut into digits of 8, or of 4, 2 and 1 bits (5 = 4 + 1, lowest first); a digit of `w` bits takes
//! `w` registers of 64 bytes, each with `8 / w` steps in the bits of its bytes, first step lowest.
//! So codes are read in proportion to their bits, and shifting and masking a register gives a step.

use super::{STEPS, STRIP};

/// Bytes of a step: a register.
pub(super) const STEP: usize = 4 * STRIP;

/// A register as it lies in memory: of one step of codes, a byte each, or of digits of several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub(super) struct Register(pub(super) [u8; STEP]);

impl Register {
    pub(super) const ZERO: Self = Self([0; STEP]);
}

/// The digits of codes of `bits` bits: width, and the bits below.
pub(super) fn digits(bits: u8) -> impl Iterator<Item = (u8, u8)> {
    [8, 4, 2, 1].into_iter().filter(move |width| bits & width != 0).scan(0, |below, width| {
        let digit = (width, *below);
        *below += width;
        Some(digit)
    })
}

/// Lays out a block in the `bits` registers of `out`. `rows` are the codes of up to 16 rows in the
/// block's columns; what is missing is zero.
pub(super) fn pack_block(bits: u8, rows: [&[u8]; STRIP], out: &mut [Register]) {
    debug_assert_eq!(out.len(), usize::from(bits));
    let mut steps = [[0_u8; STEP]; STEPS];
    for (row, codes) in rows.into_iter().enumerate() {
        for (step, codes) in steps.iter_mut().zip(codes.chunks(4)) {
            step[4 * row..][..codes.len()].copy_from_slice(codes);
        }
    }
    let mut registers = out.iter_mut();
    for (width, below) in digits(bits) {
        let mask = (0xff_u16 >> (8 - width)) as u8;
        for steps in steps.chunks_exact(8 / usize::from(width)) {
            let Some(register) = registers.next() else { return };
            register.0 = [0; STEP];
            for (place, step) in steps.iter().enumerate() {
                for (byte, code) in register.0.iter_mut().zip(step) {
                    *byte |= (code >> below & mask) << (place * usize::from(width));
                }
            }
        }
    }
}

/// The steps of a block, as [`pack_block`] laid it out. By words of four bytes, which compilers make
/// vectors of: what a shift carries into the next byte is masked.
#[inline(always)]
pub(super) fn unpack_block(bits: u8, block: &[Register]) -> [Register; STEPS] {
    debug_assert_eq!(block.len(), usize::from(bits));
    let mut steps = [Register::ZERO; STEPS];
    let mut registers = block.iter();
    for (width, below) in digits(bits) {
        let mask = (0xff >> (8 - width)) * 0x0101_0101_u32;
        let each = 8 / usize::from(width);
        for (register, steps) in registers.by_ref().take(width.into()).zip(steps.chunks_mut(each)) {
            for (place, step) in steps.iter_mut().enumerate() {
                let (words, _) = register.0.as_chunks::<4>();
                let (codes, _) = step.0.as_chunks_mut::<4>();
                for (codes, word) in codes.iter_mut().zip(words) {
                    let word = u32::from_le_bytes(*word) >> (place * usize::from(width));
                    let word = (word & mask) << below | u32::from_le_bytes(*codes);
                    *codes = word.to_le_bytes();
                }
            }
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::super::BLOCK;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked_in_proportion_to_its_bits(
            bits in 1_u8..=8,
            count in 1_usize..=BLOCK,
            rows in 1_usize..=STRIP,
            seed: u64,
        ) {
            let code = |row: usize, column: usize| {
                let mixed = (seed ^ (row * 37 + column) as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
                ((mixed >> 40) & ((1 << bits) - 1)) as u8
            };
            let codes: Vec<Vec<u8>> =
                (0..rows).map(|row| (0..count).map(|column| code(row, column)).collect()).collect();
            let mut packed = vec![Register::ZERO; bits.into()];
            let given = std::array::from_fn(|row| codes.get(row).map_or(&[][..], Vec::as_slice));
            pack_block(bits, given, &mut packed);
            prop_assert_eq!(size_of_val(&packed[..]), STRIP * BLOCK * usize::from(bits) / 8);
            let steps = unpack_block(bits, &packed);
            for row in 0..STRIP {
                for column in 0..BLOCK {
                    let got = steps[column / 4].0[4 * row + column % 4];
                    let there = row < rows && column < count;
                    prop_assert_eq!(got, if there { code(row, column) } else { 0 });
                }
            }
        }
    }
}
