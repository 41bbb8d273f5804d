//! Two other ways to multiply planes of signs with one token: by looking sums up, and bit by bit.
//!
//! `y[r] = Σ_p Σ_g alpha[p, r, g] · Σ_{c in g} ±x[c]`, with `x` in 8-bit codes as everywhere here.
//!
//! - [`Way::Table`] (nuQmm / LUT-GEMM, arXiv 2206.09557): the 16 signed sums of every four codes are
//!   made once, all planes and rows look them up. Tables of 16-bit sums are registers, so that four
//!   signs of 32 rows are one permutation.
//! - [`Way::Serial`] (APNN-TC): the codes are cut into their bits; signs AND bits are counted, and the
//!   counts weighted by powers of two. `2·Σ bits − Σ x` turns counts of ones into signed sums.
//!
//! [`Packed`](super::Packed) multiplies planes as codes of one bit, by products of bytes; the example
//! `planes` says how the three compare.

use super::codes::Register;
use super::{Activations, BLOCK, STEPS, STRIP};
use crate::isa::Isa;

/// Rows of a strip: one to a 16-bit lane, or one to a 32-bit lane.
const TABLE_ROWS: usize = 32;
/// Columns whose signs are one index.
const INDEX: usize = 4;

/// How planes are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Through tables of the sums of four codes.
    Table,
    /// By counting ones.
    Serial,
}

/// Planes of signs, packed for one way.
pub struct SignPlanes {
    way: Way,
    rows: usize,
    blocks: usize,
    planes: usize,
    /// Blocks of a group.
    group: usize,
    /// `[strip][block][plane]`: a register of 16 rows of 32 columns, or two of 32 rows of 16.
    signs: Vec<Register>,
    /// `[strip][group][plane][row]`.
    alphas: Vec<f32>,
}

/// What is made of a token once, for all rows.
#[derive(Default)]
pub struct Prepared {
    /// The sums of each four codes, twice, since an index has a bit too many.
    tables: Vec<[i16; 2 * (1 << INDEX)]>,
    /// For each block: the bits of its 32 codes, lowest first.
    bits: Vec<[u32; 8]>,
    /// For each block: the scale of its codes and their sum.
    scales: Vec<(f32, i32)>,
}

impl Prepared {
    /// Makes what `way` reads of the first token of `x`, which is in 8 bits.
    ///
    /// # Panics
    /// If `x` is not prepared in 8 bits, or has other than one token.
    pub fn prepare(&mut self, way: Way, x: &Activations) {
        assert!(x.tokens() == 1 && x.forms().int8, "one token in 8 bits");
        let tile = x.tile(0);
        self.scales.clear();
        self.tables.clear();
        self.bits.clear();
        for (codes, of) in tile.codes.as_chunks::<STEPS>().0.iter().zip(tile.sums) {
            self.scales.push((of.scale, of.start / -128));
            let bytes = codes.map(u32::to_le_bytes);
            if way == Way::Serial {
                let mut bits = [0_u32; 8];
                for (column, byte) in bytes.as_flattened().iter().enumerate() {
                    for (bit, word) in bits.iter_mut().enumerate() {
                        *word |= u32::from(byte >> bit & 1) << column;
                    }
                }
                self.bits.push(bits);
                continue;
            }
            self.tables.extend(bytes.map(|bytes| {
                let x = bytes.map(|byte| i16::from(byte.cast_signed()));
                let sum = |signs: usize| -> i16 {
                    (0..INDEX).map(|i| if signs >> i & 1 == 1 { x[i] } else { -x[i] }).sum()
                };
                std::array::from_fn(|index| sum(index % (1 << INDEX)))
            }));
        }
    }
}

impl SignPlanes {
    /// Packs `planes` planes: bit `p` of `signs[r · cols + c]` is set where the sign is +1;
    /// `alphas` is `[planes, rows, groups]`, groups of `group` columns, a multiple of 32 or `cols`.
    ///
    /// # Panics
    /// If a slice has another length, or groups are not whole blocks.
    pub fn new(
        way: Way,
        (rows, cols): (usize, usize),
        planes: usize,
        group: usize,
        signs: &[u8],
        alphas: &[f32],
    ) -> Self {
        let blocks = cols.div_ceil(BLOCK);
        let group = if group >= cols { blocks * BLOCK } else { group };
        let groups = cols.div_ceil(group);
        assert!(group.is_multiple_of(BLOCK), "groups of {group} columns");
        assert_eq!(signs.len(), rows * cols, "signs of another matrix");
        assert_eq!(alphas.len(), planes * rows * groups, "alphas of another matrix");
        let each = strip_rows(way);
        let mut packed =
            Self { way, rows, blocks, planes, group: group / BLOCK, signs: vec![], alphas: vec![] };
        let sign = |plane: usize, row: usize, column: usize| {
            row < rows && column < cols && signs[row * cols + column] >> plane & 1 == 1
        };
        for first in (0..rows).step_by(each) {
            for (block, plane) in (0..blocks * planes).map(|at| (at / planes, at % planes)) {
                for part in 0..each / STRIP {
                    let width = BLOCK * STRIP / each;
                    let mut register = Register::ZERO;
                    let bytes = register.0.chunks_exact_mut(width / 8);
                    for (row, bytes) in (first..).zip(bytes) {
                        for index in 0..width {
                            let column = block * BLOCK + part * width + index;
                            bytes[index / 8] |= u8::from(sign(plane, row, column)) << (index % 8);
                        }
                    }
                    packed.signs.push(register);
                }
            }
            for (group, plane) in (0..groups * planes).map(|at| (at / planes, at % planes)) {
                let alpha = |row| alphas.get((plane * rows + row) * groups + group);
                let rows_of = (first..first + each).map(|row| match row < rows {
                    true => alpha(row).map_or(0.0, |alpha| *alpha),
                    false => 0.0,
                });
                packed.alphas.extend(rows_of);
            }
        }
        packed
    }

    /// Bytes read by a product.
    pub fn bytes(&self) -> usize {
        size_of_val(self.signs.as_slice()) + size_of_val(self.alphas.as_slice())
    }

    /// `y = W x`, on this thread, at a level of instructions or the machine's own where that is lower.
    ///
    /// # Panics
    /// If `x` was prepared for another way or width, or `y` has another length than the rows.
    pub fn multiply(&self, isa: Isa, x: &Prepared, y: &mut [f32]) {
        assert_eq!(y.len(), self.rows, "the output has another shape");
        assert_eq!(x.scales.len(), self.blocks, "the activations have another width");
        match self.way {
            Way::Table => assert_eq!(x.tables.len(), self.blocks * STEPS, "no tables"),
            Way::Serial => assert_eq!(x.bits.len(), self.blocks, "no bits"),
        }
        let each = strip_rows(self.way);
        let registers = self.blocks * self.planes * each / STRIP;
        let alphas = self.blocks.div_ceil(self.group) * self.planes * each;
        let strips = self.signs.chunks_exact(registers.max(1));
        let strips = strips.zip(self.alphas.chunks_exact(alphas.max(1)));
        for ((signs, alphas), y) in strips.zip(y.chunks_mut(each)) {
            let strip = Strip { signs, alphas, planes: self.planes, group: self.group };
            let mut sums = [0.0; TABLE_ROWS];
            strip.multiply(isa.supported(), self.way, x, &mut sums);
            y.copy_from_slice(&sums[..y.len()]);
        }
    }
}

const fn strip_rows(way: Way) -> usize {
    match way {
        Way::Table => TABLE_ROWS,
        Way::Serial => STRIP,
    }
}

struct Strip<'a> {
    signs: &'a [Register],
    alphas: &'a [f32],
    planes: usize,
    group: usize,
}

impl Strip<'_> {
    fn multiply(&self, isa: Isa, way: Way, x: &Prepared, sums: &mut [f32; TABLE_ROWS]) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if way == Way::Table && isa >= Isa::Avx512 && has!("avx512bw") {
                // SAFETY: the processor has the instructions.
                return unsafe { self.table_avx512(x, sums) };
            }
            if way == Way::Serial && isa >= Isa::Avx512 && has!("avx512vpopcntdq") {
                // SAFETY: as above.
                return unsafe { self.serial_avx512(x, sums) };
            }
        }
        let _ = isa;
        self.portable(way, x, sums);
    }

    fn portable(&self, way: Way, x: &Prepared, sums: &mut [f32; TABLE_ROWS]) {
        let each = strip_rows(way);
        let registers = self.signs.chunks_exact(self.planes * each / STRIP);
        for (block, (registers, (scale, sum))) in registers.zip(&x.scales).enumerate() {
            let alphas = &self.alphas[block / self.group * self.planes * each..];
            for (plane, registers) in registers.chunks_exact(each / STRIP).enumerate() {
                for (row, sums) in sums[..each].iter_mut().enumerate() {
                    let dot = match way {
                        Way::Table => {
                            let tables = &x.tables[block * STEPS..][..STEPS];
                            let index = |at: usize| {
                                let bytes = &registers[at / 4].0[2 * row..];
                                usize::from(bytes[at % 4 / 2] >> (at % 2 * INDEX) & 15)
                            };
                            tables.iter().enumerate().map(|(at, t)| i32::from(t[index(at)])).sum()
                        }
                        Way::Serial => {
                            let bytes = registers[0].0.as_chunks::<4>().0[row];
                            let signs = u32::from_le_bytes(bytes);
                            let count =
                                |bit: usize| (signs & x.bits[block][bit]).count_ones() as i32;
                            let ones: i32 = (0..7).map(|bit| count(bit) << bit).sum();
                            2 * (ones - (count(7) << 7)) - sum
                        }
                    };
                    *sums += alphas[plane * each + row] * (scale * dot as f32);
                }
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn table_avx512(&self, x: &Prepared, sums: &mut [f32; TABLE_ROWS]) {
        use std::arch::x86_64::*;
        let mut own = [_mm512_setzero_ps(); 2];
        let blocks = self.signs.chunks_exact(2 * self.planes).zip(&x.scales);
        let tables = x.tables.as_chunks::<STEPS>().0;
        for (block, ((registers, (scale, _)), tables)) in blocks.zip(tables).enumerate() {
            let alphas = &self.alphas[block / self.group * self.planes * TABLE_ROWS..];
            let pairs = registers.as_chunks::<2>().0.iter();
            for (pair, alphas) in pairs.zip(alphas.as_chunks::<TABLE_ROWS>().0) {
                let mut dots = _mm512_setzero_si512();
                macro_rules! look_up {
                    ($($register:literal $at:literal $shift:literal)*) => {$(
                        // SAFETY: a register and a table are 64 bytes.
                        let (signs, table) = unsafe {
                            let signs = _mm512_loadu_si512(pair[$register].0.as_ptr().cast());
                            (signs, _mm512_loadu_si512(tables[$at].as_ptr().cast()))
                        };
                        // The permutation reads five bits of each lane; the fifth does not matter.
                        let index = _mm512_srli_epi16::<$shift>(signs);
                        dots = _mm512_add_epi16(dots, _mm512_permutexvar_epi16(index, table));
                    )*};
                }
                look_up!(0 0 0 0 1 4 0 2 8 0 3 12 1 4 0 1 5 4 1 6 8 1 7 12);
                let halves = [_mm512_castsi512_si256(dots), _mm512_extracti64x4_epi64::<1>(dots)];
                let alphas = alphas.as_chunks::<STRIP>().0;
                for ((own, half), alphas) in own.iter_mut().zip(halves).zip(alphas) {
                    // SAFETY: sixteen values are 64 bytes.
                    let alphas = unsafe { _mm512_loadu_ps(alphas.as_ptr()) };
                    let factor = _mm512_mul_ps(alphas, _mm512_set1_ps(*scale));
                    let dots = _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(half));
                    *own = _mm512_fmadd_ps(dots, factor, *own);
                }
            }
        }
        for (own, sums) in own.iter().zip(sums.as_chunks_mut::<STRIP>().0) {
            // SAFETY: sixteen values are 64 bytes.
            unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), *own) };
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512vpopcntdq")]
    fn serial_avx512(&self, x: &Prepared, sums: &mut [f32; TABLE_ROWS]) {
        use std::arch::x86_64::*;
        let mut own = _mm512_setzero_ps();
        let blocks = self.signs.chunks_exact(self.planes).zip(&x.scales).zip(&x.bits);
        for (block, ((registers, (scale, sum)), bits)) in blocks.enumerate() {
            let alphas = &self.alphas[block / self.group * self.planes * STRIP..];
            for (register, alphas) in registers.iter().zip(alphas.as_chunks::<STRIP>().0) {
                // SAFETY: a register is 64 bytes, and so are sixteen values.
                let (signs, alphas) = unsafe {
                    let signs = _mm512_loadu_si512(register.0.as_ptr().cast());
                    (signs, _mm512_loadu_ps(alphas.as_ptr()))
                };
                let count = |bit: usize| {
                    let bits = _mm512_set1_epi32(bits[bit].cast_signed());
                    _mm512_popcnt_epi32(_mm512_and_si512(signs, bits))
                };
                // From the highest bit, which is negative, doubling on the way down.
                let mut ones = _mm512_sub_epi32(_mm512_setzero_si512(), count(7));
                macro_rules! bits {
                    ($($bit:literal)*) => {$(
                        ones = _mm512_add_epi32(_mm512_add_epi32(ones, ones), count($bit));
                    )*};
                }
                bits!(6 5 4 3 2 1 0);
                let doubled = _mm512_add_epi32(ones, ones);
                let dots = _mm512_sub_epi32(doubled, _mm512_set1_epi32(*sum));
                let factor = _mm512_mul_ps(alphas, _mm512_set1_ps(*scale));
                own = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots), factor, own);
            }
        }
        // SAFETY: there are more than sixteen values.
        unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), own) };
    }
}
