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
use super::{avx2, vnni, vnni_pair};

#[cfg(target_arch = "aarch64")]
use super::neon;

/// Most tokens that are multiplied with codes as they are packed; for more, strips are first cut into
/// bytes, which stay in the caches while the tokens go by.
const DIRECT: usize = 8;

/// Strips that are multiplied together, where there is a kernel for that.
const PAIR: usize = 2;

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
                // Of half a block, sums are of the codes as they are packed, cut or not.
                Codes::Bytes(_) if grid.group < BLOCK && grid.book.is_none() => {
                    1 << (grid.bits - 1)
                }
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
        self.check_with(tile);
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
        #[cfg(target_arch = "aarch64")]
        if isa == Isa::NeonDot {
            // SAFETY: as above.
            return unsafe { neon::add(self, tile, sums) };
        }
        add_portable(isa, self, tile, sums);
    }

    /// That the slices of both have the lengths of the blocks, on which kernels rely.
    fn check_with(&self, tile: &TileOf<'_>) {
        self.check();
        assert!(tile.tokens <= TILE && tile.sums.len() == self.blocks * tile.tokens);
        assert_eq!(tile.codes.len(), self.blocks * STEPS * tile.tokens);
    }

    /// That the slices have the lengths of the blocks.
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
    let mut sums = [[[0.0; STRIP]; TILE]; PAIR];
    let only_grid = match (&packed.terms[..], &packed.outer) {
        ([Term::Grid(grid)], None) => Some(grid),
        _ => None,
    };
    if x.tokens() > DIRECT && cuts(isa) {
        let mut bytes = CUT.take();
        for first in strips.clone().step_by(PAIR) {
            let pair = first..strips.end.min(first + PAIR);
            let cut = Some(cut_strips(packed, pair.clone(), &mut bytes));
            let of_grid = only_grid.map(|grid| views(grid, pair.clone(), cut, 0));
            for index in 0..x.tiles() {
                clear(&mut sums[..pair.len()], &x.tile(index));
                match &of_grid {
                    Some(views) => add_strips(isa, packed, views, x, index, &mut sums),
                    None => add_terms(isa, packed, pair.clone(), cut, x, index, inner, &mut sums),
                }
                for (strip, sums) in pair.clone().zip(&sums) {
                    part.write(strip, index * TILE, &sums[..x.tile(index).tokens]);
                }
            }
        }
        return CUT.set(bytes);
    }
    for strip in strips {
        // One token's product with a strip takes some thirty nanoseconds: what holds for most matrices
        // is not asked for every term.
        let of_grid = only_grid.and_then(|grid| Strip::new(grid, strip, None));
        for index in 0..x.tiles() {
            let tile = x.tile(index);
            clear(&mut sums[..1], &tile);
            match &of_grid {
                Some(view) => {
                    view.add(isa, &tile, &mut sums[0]);
                    if let Some(rest) = packed.rest(x, index) {
                        view.add(isa, &rest, &mut sums[0]);
                    }
                }
                None => add_terms(isa, packed, strip..strip + 1, None, x, index, inner, &mut sums),
            }
            part.write(strip, index * TILE, &sums[0][..tile.tokens]);
        }
    }
}

fn clear(sums: &mut [[Column; TILE]], tile: &TileOf<'_>) {
    for sums in sums {
        sums[..tile.tokens].fill([0.0; STRIP]);
    }
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
        Term::Grid(grid) => grid.cut_registers(),
        _ => 0,
    }
}

impl Grid {
    /// Registers that a strip takes, cut into bytes.
    fn cut_registers(&self) -> usize {
        let is_wide = self.book.as_ref().is_some_and(|book| book.low.is_some());
        if is_wide { 2 * STEPS * self.blocks } else { STEPS * self.blocks }
    }
}

/// Cuts strips into bytes: those of all grids of the first, then of the next.
#[cfg_attr(
    not(target_arch = "x86_64"),
    expect(unused_variables, reason = "strips are cut for AVX-512 VNNI alone")
)]
fn cut_strips<'a>(
    packed: &Packed,
    strips: Range<usize>,
    bytes: &'a mut Vec<Register>,
) -> &'a [Register] {
    let each = packed.terms.iter().map(cut_registers).sum::<usize>();
    bytes.resize(strips.len() * each, Register::ZERO);
    for (strip, mut rest) in strips.zip(bytes.chunks_exact_mut(each.max(1))) {
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
    bytes
}

/// Strips of a grid, as they are packed or as they were cut; what was cut of the grid begins at `first`
/// in each strip's.
fn views<'a>(
    grid: &'a Grid,
    strips: Range<usize>,
    cut: Option<&'a [Register]>,
    first: usize,
) -> [Option<Strip<'a>>; PAIR] {
    let each = cut.map_or(0, <[Register]>::len) / strips.len();
    let mut strips = strips.enumerate();
    std::array::from_fn(|_| {
        let (which, strip) = strips.next()?;
        let own = cut.map(|cut| &cut[which * each + first..][..grid.cut_registers()]);
        Strip::new(grid, strip, own)
    })
}

/// Adds all terms of one strip or of [`PAIR`], for one tile of tokens; `cut` are these strips as bytes.
#[expect(clippy::too_many_arguments, reason = "the innermost call of a product")]
fn add_terms(
    isa: Isa,
    packed: &Packed,
    strips: Range<usize>,
    cut: Option<&[Register]>,
    x: &Activations,
    index: usize,
    inner: &[f32],
    sums: &mut [[Column; TILE]; PAIR],
) {
    let tile = x.tile(index);
    let mut first = 0;
    for term in &packed.terms {
        if let Term::Grid(grid) = term {
            let views = views(grid, strips.clone(), cut, first);
            add_strips(isa, packed, &views, x, index, sums);
            first += cut_registers(term);
            continue;
        }
        for (strip, sums) in strips.clone().zip(&mut *sums) {
            float::add_term(isa, packed.rows, term, strip, &tile, sums);
        }
    }
    if let Some(outer) = &packed.outer {
        let tokens = index * TILE..index * TILE + tile.tokens;
        for (strip, sums) in strips.zip(sums) {
            float::add_outer(isa, outer, strip, inner, tokens.clone(), sums);
        }
    }
}

/// Adds the products of one strip or two with a tile of tokens, and with what its codes leave.
fn add_strips(
    isa: Isa,
    packed: &Packed,
    strips: &[Option<Strip<'_>>; PAIR],
    x: &Activations,
    index: usize,
    sums: &mut [[Column; TILE]; PAIR],
) {
    add_strips_of(isa, strips, &x.tile(index), sums);
    if let Some(rest) = packed.rest(x, index) {
        add_strips_of(isa, strips, &rest, sums);
    }
}

/// The same with one form of the tile: two strips together where there is a kernel.
fn add_strips_of(
    isa: Isa,
    strips: &[Option<Strip<'_>>; PAIR],
    tile: &TileOf<'_>,
    sums: &mut [[Column; TILE]; PAIR],
) {
    #[cfg(target_arch = "x86_64")]
    if let [Some(left), Some(right)] = strips
        && vnni::supported(isa)
        && vnni_pair::supports([left, right])
    {
        left.check_with(tile);
        right.check_with(tile);
        // SAFETY: the processor has the instructions; the lengths were checked, and the strips.
        return unsafe { vnni_pair::add([left, right], tile, sums) };
    }
    for (strip, sums) in strips.iter().flatten().zip(sums) {
        strip.add(isa, tile, sums);
    }
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
