//! Products of codes with activations of 8 bits: `Σ scale · step · Σ code · code`, the inner sums in
//! integers, of 32 or 16 columns each. In 16 bits they are the sum of two.

use std::cell::Cell;
use std::ops::Range;

use super::activations::TileOf;
use super::codes::{Register, unpack_block};
use super::dense::Column;
use super::grid::{Grid, GridZeros, Halves, Numbers, Scales};
use super::{Activations, BLOCK, Output, Packed, Precision, STEPS, STRIP, TILE, Term, float};
use crate::isa::Isa;
use crate::simd::vectorized;

#[cfg(target_arch = "x86_64")]
use super::{avx2, vnni};

/// Most tokens that are multiplied with codes as they are packed; for more, the codes of a few
/// strips are first cut into bytes.
const DIRECT: usize = 8;
/// Bytes of the strips that are cut into bytes together: they stay in the second-level cache while
/// the tokens go by.
const CUT_BYTES: usize = 256 << 10;

thread_local! {
    /// Strips cut into bytes; kept, because clearing fresh pages costs more than cutting.
    static CUT: Cell<Vec<Register>> = Cell::default();
}

/// A strip of a grid as the kernels take it.
#[derive(Clone, Copy)]
pub(super) struct Strip<'a> {
    pub(super) blocks: usize,
    pub(super) codes: Codes<'a>,
    /// Columns of a group.
    pub(super) group: usize,
    pub(super) scales: &'a [Halves],
    pub(super) zeros: StripZeros<'a>,
    /// What the scales and minima are multiplied by.
    pub(super) unit: f32,
}

/// How the codes of a strip are read.
#[derive(Clone, Copy)]
pub(super) enum Codes<'a> {
    /// Of so many bits.
    Packed(u8, &'a [Register]),
    /// Of 4 bits, to be looked up.
    Levels(&'a [Register], &'a [u8; 16]),
    /// Of 4 bits, to be looked up for the upper and the lower byte of the weights.
    WideLevels(&'a [Register], [&'a [u8; 16]; 2]),
    /// Cut into bytes, step by step.
    Bytes(&'a [Register]),
    /// Cut into upper bytes (a block of them) and lower ones.
    WideBytes(&'a [Register]),
}

/// What the codes of a strip are counted from.
#[derive(Clone, Copy)]
pub(super) enum StripZeros<'a> {
    /// So much in all groups, a power of two.
    Middle(i32),
    Steps(&'a [Halves]),
    Minima(&'a [Halves]),
}

impl<'a> Codes<'a> {
    /// All registers.
    pub(super) fn registers(&self) -> &'a [Register] {
        match self {
            Self::Packed(_, all) | Self::Levels(all, _) | Self::WideLevels(all, _) => all,
            Self::Bytes(all) | Self::WideBytes(all) => all,
        }
    }

    /// Registers of a block.
    pub(super) fn of_a_block(&self) -> usize {
        match self {
            Self::Packed(bits, _) => usize::from(*bits),
            Self::Levels(..) | Self::WideLevels(..) => 4,
            Self::Bytes(_) => STEPS,
            Self::WideBytes(_) => 2 * STEPS,
        }
    }
}

impl<'a> Strip<'a> {
    /// A strip as it is packed, or as it was cut into bytes.
    pub(super) fn new(grid: &'a Grid, strip: usize, cut: Option<&'a [Register]>) -> Option<Self> {
        let Scales::Half(scales, units) = &grid.scales else { return None };
        let groups = strip * grid.groups..(strip + 1) * grid.groups;
        let packed = grid.strip_codes(strip);
        let codes = match (cut, &grid.book) {
            (None, None) => Codes::Packed(grid.bits, packed),
            (None, Some(book)) => match &book.low {
                None => Codes::Levels(packed, &book.high),
                Some(low) => Codes::WideLevels(packed, [&book.high, low]),
            },
            (Some(cut), Some(book)) if book.low.is_some() => Codes::WideBytes(cut),
            (Some(cut), _) => Codes::Bytes(cut),
        };
        let zeros = match &grid.zeros {
            GridZeros::Steps(Numbers::Half(zeros)) => StripZeros::Steps(&zeros[groups.clone()]),
            GridZeros::Minima(Numbers::Half(minima)) => StripZeros::Minima(&minima[groups.clone()]),
            _ => StripZeros::Middle(match codes {
                Codes::Packed(bits, _) => 1 << (bits - 1),
                Codes::Levels(..) | Codes::Bytes(_) => 1 << 7,
                Codes::WideLevels(..) | Codes::WideBytes(_) => 1 << 15,
            }),
        };
        let scales = &scales[groups];
        let (blocks, group, unit) = (grid.blocks, grid.group, units[strip]);
        Some(Self { blocks, codes, group, scales, zeros, unit })
    }

    /// Adds the product with a tile of tokens.
    fn add(&self, isa: Isa, tile: &TileOf<'_>, sums: &mut [Column; TILE]) {
        self.check();
        assert!(tile.tokens <= TILE && tile.sums.len() == self.blocks * tile.tokens);
        assert_eq!(tile.codes.len(), self.blocks * STEPS * tile.tokens);
        #[cfg(target_arch = "x86_64")]
        {
            if vnni::supported(isa) {
                // SAFETY: the processor has the instructions; the lengths were checked above.
                return unsafe { vnni::add(self, tile, sums) };
            }
            if isa >= Isa::Avx2 {
                // SAFETY: as above.
                return unsafe { avx2::add(self, tile, sums) };
            }
        }
        add_portable(isa, self, tile, sums);
    }

    /// That the slices have the lengths of the blocks, on which kernels rely.
    pub(super) fn check(&self) {
        let groups = (self.blocks * BLOCK).div_ceil(self.group);
        let zeros = match self.zeros {
            StripZeros::Middle(_) => groups,
            StripZeros::Steps(zeros) | StripZeros::Minima(zeros) => zeros.len(),
        };
        assert_eq!(self.codes.registers().len(), self.blocks * self.codes.of_a_block());
        assert!(self.scales.len() == groups && zeros == groups);
    }
}

/// See [`Packed::multiply`].
pub(super) fn multiply(
    isa: Isa,
    packed: &Packed,
    x: &Activations,
    inner: &[f32],
    strips: Range<usize>,
    out: &Output<'_>,
) {
    let mut part = out.claim(strips.clone());
    if x.tokens() <= DIRECT || !cuts(isa) {
        for strip in strips {
            for index in 0..x.tiles() {
                let sums = add_terms(isa, packed, strip, None, x, index, inner);
                for (token, sums) in sums[..x.tile(index).tokens].iter().enumerate() {
                    part.write(strip, index * TILE + token, sums);
                }
            }
        }
        return;
    }
    let mut cut = CUT.take();
    let each = packed.terms.iter().map(cut_registers).sum::<usize>();
    let together = (CUT_BYTES / size_of::<Register>() / each.max(1)).max(1);
    for first in strips.clone().step_by(together) {
        let strips = first..strips.end.min(first + together);
        cut.resize(strips.len() * each, Register::ZERO);
        for (strip, cut) in strips.clone().zip(cut.chunks_exact_mut(each.max(1))) {
            cut_strip(packed, strip, cut);
        }
        for index in 0..x.tiles() {
            for (at, strip) in strips.clone().enumerate() {
                let cut = &cut[at * each..][..each];
                let sums = add_terms(isa, packed, strip, Some(cut), x, index, inner);
                for (token, sums) in sums[..x.tile(index).tokens].iter().enumerate() {
                    part.write(strip, index * TILE + token, sums);
                }
            }
        }
    }
    CUT.set(cut);
}

/// Whether this level has a use for strips cut into bytes.
fn cuts(isa: Isa) -> bool {
    #[cfg(target_arch = "x86_64")]
    return vnni::supported(isa);
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = isa;
        false
    }
}

/// Registers that a strip of a term takes, cut into bytes.
fn cut_registers(term: &Term) -> usize {
    match term {
        Term::Grid(grid) => match &grid.book {
            Some(book) if book.low.is_some() => 2 * STEPS * grid.blocks,
            _ => STEPS * grid.blocks,
        },
        _ => 0,
    }
}

fn cut_strip(packed: &Packed, strip: usize, cut: &mut [Register]) {
    let mut rest = cut;
    for term in &packed.terms {
        let Term::Grid(grid) = term else { continue };
        let (own, others) = rest.split_at_mut(cut_registers(term));
        rest = others;
        #[cfg(target_arch = "x86_64")]
        if let Some(strip) = Strip::new(grid, strip, None) {
            strip.check();
            assert!(own.len() >= strip.blocks * STEPS);
            // SAFETY: strips are cut only where the instructions are; the lengths were checked.
            unsafe { vnni::cut(&strip, own) };
        }
    }
}

/// All terms of a strip for one tile of tokens.
fn add_terms(
    isa: Isa,
    packed: &Packed,
    strip: usize,
    mut cut: Option<&[Register]>,
    x: &Activations,
    index: usize,
    inner: &[f32],
) -> [Column; TILE] {
    let tile = x.tile(index);
    let mut sums = [[0.0; STRIP]; TILE];
    for term in &packed.terms {
        match term {
            Term::Grid(grid) => {
                let own = cut.map(|all| {
                    let (own, rest) = all.split_at(cut_registers(term));
                    cut = Some(rest);
                    own
                });
                if let Some(strip) = Strip::new(grid, strip, own) {
                    strip.add(isa, &tile, &mut sums);
                    if let Some(rest) = packed.rest(x, index) {
                        strip.add(isa, &rest, &mut sums);
                    }
                }
            }
            term => float::add_term(isa, packed.rows, term, strip, &tile, &mut sums),
        }
    }
    if let Some(outer) = &packed.outer {
        let tokens = index * TILE..index * TILE + tile.tokens;
        float::add_outer(isa, outer, strip, inner, tokens, &mut sums);
    }
    sums
}

impl Packed {
    /// What codes of 8 bits leave of a tile, where that is multiplied too.
    fn rest<'x>(&self, x: &'x Activations, tile: usize) -> Option<TileOf<'x>> {
        (self.precision == Precision::Int16).then(|| x.rest(tile))
    }
}

/// The product with codes in plain loops: what the other kernels are held to.
fn add_portable(isa: Isa, strip: &Strip<'_>, tile: &TileOf<'_>, sums: &mut [Column; TILE]) {
    let tokens = tile.tokens;
    let mut own = [[0.0_f32; STRIP]; TILE];
    for block in 0..strip.blocks {
        let (upper, lower) = strip.bytes(block);
        for half in 0..2 {
            let at = (block * BLOCK + half * BLOCK / 2) / strip.group;
            let scales = float::widen(&strip.scales[at]);
            let below: Column = match strip.zeros {
                StripZeros::Middle(middle) => scales.map(|scale| scale * middle as f32),
                StripZeros::Steps(zeros) => {
                    let zeros = float::widen(&zeros[at]);
                    std::array::from_fn(|row| scales[row] * zeros[row])
                }
                StripZeros::Minima(minima) => float::widen(&minima[at]),
            };
            for (token, own) in own[..tokens].iter_mut().enumerate() {
                let x = &tile.codes[block * STEPS * tokens..][..STEPS * tokens];
                let x: [u32; STEPS / 2] =
                    std::array::from_fn(|step| x[(half * STEPS / 2 + step) * tokens + token]);
                let of = tile.sums[block * tokens + token];
                let sum_of_x = if half == 0 { of.first } else { of.sum - of.first };
                let mut dots = dot_bytes(isa, &upper[half * STEPS / 2..], &x);
                if let Some(lower) = &lower {
                    let lower = dot_bytes(isa, &lower[half * STEPS / 2..], &x);
                    dots = std::array::from_fn(|row| 256 * dots[row] + lower[row]);
                }
                for row in 0..STRIP {
                    let product = dots[row] as f32 * of.scale;
                    own[row] += scales[row] * product - below[row] * sum_of_x;
                }
            }
        }
    }
    for (sums, own) in sums.iter_mut().zip(own) {
        sums.iter_mut().zip(own).for_each(|(sum, own)| *sum += own * strip.unit);
    }
}

vectorized! {
    /// Sums over four steps of unsigned bytes of each row times signed bytes.
    fn dot_bytes(steps: &[Register], x: &[u32; STEPS / 2]) -> [i32; STRIP] {
        let mut dots = [0_i32; STRIP];
        for (step, x) in steps.iter().zip(x) {
            let x = x.to_le_bytes().map(|byte| i32::from(byte.cast_signed()));
            for (dot, weights) in dots.iter_mut().zip(step.0.as_chunks::<4>().0) {
                for (weight, x) in weights.iter().zip(x) {
                    *dot += i32::from(*weight) * x;
                }
            }
        }
        dots
    }
}

impl Strip<'_> {
    /// The steps of a block as bytes, and the lower bytes where there are two.
    fn bytes(&self, block: usize) -> ([Register; STEPS], Option<[Register; STEPS]>) {
        let each = self.codes.of_a_block();
        let registers = &self.codes.registers()[block * each..][..each];
        let cut = |from: usize| std::array::from_fn(|step| registers[from + step]);
        let look_up = |table: &[u8; 16]| {
            let mut steps = unpack_block(4, registers);
            let bytes = steps.iter_mut().flat_map(|step| &mut step.0);
            bytes.for_each(|byte| *byte = table[usize::from(*byte & 15)]);
            steps
        };
        match self.codes {
            Codes::Packed(bits, _) => (unpack_block(bits, registers), None),
            Codes::Levels(_, table) => (look_up(table), None),
            Codes::WideLevels(_, [upper, lower]) => (look_up(upper), Some(look_up(lower))),
            Codes::Bytes(_) => (cut(0), None),
            Codes::WideBytes(_) => (cut(0), Some(cut(STEPS))),
        }
    }
}
