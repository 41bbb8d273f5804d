//! The blocks of llama.cpp's files as grids: a term that one of them stores exactly, its scales
//! chosen by the error of the values and not by their range alone.
//!
//! A K-quant (Q2_K … Q6_K) is a super-block of 256 columns: a scale, and where the type has one a
//! minimum, for each group of 16 or 32, in 4 to 8 bits under one f16. The older types (Q4_0 … Q8_0)
//! have f16 for each 32 columns. IQ4_NL and IQ4_XS look their codes up in one table of 16 levels, MXFP4
//! in the numbers of E2M1, with a power of two for each 32 columns, TQ1_0 and TQ2_0 in −1, 0 and 1,
//! with an f16 for 256. For each group a scale (and minimum) of least weighted error is
//! sought over spans of the group, refined by least squares with the codes held fixed. Those of a
//! super-block are then stored; from there the group's codes of scale and minimum move while the
//! error falls, and the two f16 are refined by least squares in turn. All of it happens before any
//! value is rounded, so that GPTQ's sweep meets grids that will not change.
//!
//! llama.cpp minimises the same error, weighted by squared inputs, and rounds to nearest.

mod book;
mod search;

use crate::{Encoded, MethodError, Note, Site};
use book::Book;
use lapidary_kernels::grid::{Grid, Levels};
use lapidary_weight::{
    Affine, Dense, FloatType, GroupFloats, GroupType, Grouping, Lookup, Outline, Runs, SmallCodes,
    SmallFloat, Term, TermOutline, TwoLevel, Weight, WeightError, ZeroType, Zeros,
};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::num::NonZeroUsize;

/// How the scales of a grid are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[expect(non_camel_case_types, reason = "the names are ggml's")]
pub enum BlockGrid {
    /// A float each, with the bits, groups and symmetry beside it.
    #[default]
    #[serde(rename = "plain")]
    Plain,
    /// 2 bits, groups of 16 with minima, 256 columns a block.
    #[serde(rename = "q2_k")]
    Q2_K,
    /// 3 bits, groups of 16, 256 columns a block.
    #[serde(rename = "q3_k")]
    Q3_K,
    /// 4 bits, groups of 32 with minima, 256 columns a block.
    #[serde(rename = "q4_k")]
    Q4_K,
    /// 5 bits, groups of 32 with minima, 256 columns a block.
    #[serde(rename = "q5_k")]
    Q5_K,
    /// 6 bits, groups of 16, 256 columns a block.
    #[serde(rename = "q6_k")]
    Q6_K,
    /// 4 bits, groups of 32.
    #[serde(rename = "q4_0")]
    Q4_0,
    /// 4 bits, groups of 32 with minima.
    #[serde(rename = "q4_1")]
    Q4_1,
    /// 5 bits, groups of 32.
    #[serde(rename = "q5_0")]
    Q5_0,
    /// 5 bits, groups of 32 with minima.
    #[serde(rename = "q5_1")]
    Q5_1,
    /// 8 bits, groups of 32.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// 16 levels denser around zero, groups of 32.
    #[serde(rename = "iq4_nl")]
    IQ4_NL,
    /// 16 levels denser around zero, groups of 32, 256 columns a block.
    #[serde(rename = "iq4_xs")]
    IQ4_XS,
    /// −1, 0 and 1 in 1.6 bits, groups of 256.
    #[serde(rename = "tq1_0")]
    TQ1_0,
    /// −1, 0 and 1 in 2 bits, groups of 256.
    #[serde(rename = "tq2_0")]
    TQ2_0,
    /// 4-bit floats, a power of two for groups of 32.
    #[serde(rename = "mxfp4")]
    MXFP4,
}

/// What a block type is made of.
#[derive(Debug, Clone, Copy)]
struct Layout {
    bits: u8,
    group: usize,
    has_minima: bool,
    /// Bits of a scale's code and groups of a super-block; signed where there are no minima.
    levels: Option<(u8, usize)>,
    /// What codes are looked up in, where they are no integers.
    book: Option<&'static Book>,
    /// Whether scales are powers of two.
    has_powers: bool,
}

/// How hard a fit tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fit {
    /// The range of each group, stored as near as it goes.
    Range,
    /// The least error that the search finds.
    Search,
}

/// Every group's grid of a matrix, as it will be stored.
pub(crate) struct BlockGrids {
    layout: Layout,
    cols: usize,
    scales: Stored,
    minima: Stored,
    /// The grid of each group, rows outermost.
    steps: Vec<Steps>,
}

/// One number a group: codes and one float a super-block, or floats alone.
#[derive(Default)]
struct Stored {
    codes: Vec<u8>,
    floats: Vec<f32>,
}

/// The grid of a group: `grid.value(code) − minimum`, or `grid.scale · book[code]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Steps {
    grid: Grid,
    minimum: f32,
    book: Option<&'static Book>,
}

impl Steps {
    pub(crate) fn code(&self, value: f32) -> u8 {
        match (self.grid.scale, self.book) {
            (0.0, None) => self.grid.zero,
            (0.0, Some(book)) => book.code(0.0),
            (scale, Some(book)) => book.code(value / scale),
            (_, None) => self.grid.code(value + self.minimum),
        }
    }

    pub(crate) fn value(&self, code: u8) -> f32 {
        match self.book {
            Some(book) => self.grid.scale * book.levels[usize::from(code)],
            None => self.grid.value(code) - self.minimum,
        }
    }

    /// What a code stands for, in units of the scale, without the minimum.
    fn level(&self, code: u8) -> f64 {
        match self.book {
            Some(book) => f64::from(book.levels[usize::from(code)]),
            None => f64::from(code) - f64::from(self.grid.zero),
        }
    }

    /// `Σ cost · (value − rounded)²`.
    fn error(&self, values: &[f32], costs: &[f32]) -> f32 {
        if self.grid.scale == 0.0 {
            let term = |(value, cost): (&f32, &f32)| cost * (value + self.minimum).powi(2);
            return values.iter().zip(costs).map(term).sum();
        }
        if self.book.is_some() {
            let term = |(value, cost): (&f32, &f32)| {
                cost * (value - self.value(self.code(*value))).powi(2)
            };
            return values.iter().zip(costs).map(term).sum();
        }
        if self.minimum == 0.0 {
            return self.grid.squared_error(values, Some(costs));
        }
        let shifted: Vec<f32> = values.iter().map(|value| value + self.minimum).collect();
        self.grid.squared_error(&shifted, Some(costs))
    }
}

/// f16 is what every type stores its floats in, but for powers of two.
const FLOAT: FloatType = FloatType::F16;

impl BlockGrid {
    fn layout(self) -> Option<Layout> {
        let (bits, group, has_minima, levels) = match self {
            Self::Plain => return None,
            Self::Q2_K => (2, 16, true, Some((4, 16))),
            Self::Q3_K => (3, 16, false, Some((6, 16))),
            Self::Q4_K => (4, 32, true, Some((6, 8))),
            Self::Q5_K => (5, 32, true, Some((6, 8))),
            Self::Q6_K => (6, 16, false, Some((8, 16))),
            Self::Q4_0 => (4, 32, false, None),
            Self::Q4_1 => (4, 32, true, None),
            Self::Q5_0 => (5, 32, false, None),
            Self::Q5_1 => (5, 32, true, None),
            Self::Q8_0 => (8, 32, false, None),
            Self::IQ4_NL => (4, 32, false, None),
            Self::IQ4_XS => (4, 32, false, Some((6, 8))),
            Self::TQ1_0 | Self::TQ2_0 => (2, 256, false, None),
            Self::MXFP4 => (4, 32, false, None),
        };
        let book = match self {
            Self::IQ4_NL | Self::IQ4_XS => Some(book::iq4_nl()),
            Self::TQ1_0 => Some(book::trits()),
            Self::TQ2_0 => Some(book::ternary()),
            Self::MXFP4 => Some(book::e2m1()),
            _ => None,
        };
        Some(Layout { bits, group, has_minima, levels, book, has_powers: self == Self::MXFP4 })
    }

    /// The type that a matrix of `cols` columns gets: the one asked for where its blocks divide the
    /// columns; else the one of 32 columns that llama.cpp takes in its place; none where 32 do not
    /// divide them either.
    fn fitting(self, cols: usize) -> Option<Self> {
        let instead = match self {
            Self::Q2_K | Self::Q3_K | Self::TQ1_0 | Self::TQ2_0 => Self::Q4_0,
            Self::IQ4_XS => Self::IQ4_NL,
            Self::Q4_K => Self::Q5_0,
            Self::Q5_K => Self::Q5_1,
            Self::Q6_K => Self::Q8_0,
            other => other,
        };
        let divides =
            |kind: &Self| kind.layout().is_some_and(|layout| cols.is_multiple_of(layout.block()));
        [self, instead].into_iter().find(divides)
    }

    fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    /// What a matrix of this shape becomes: blocks, or plain 16-bit floats where none divide it.
    pub(crate) fn outline(self, rows: usize, cols: usize) -> Outline {
        let layout = self.fitting(cols).and_then(Self::layout);
        let term = match layout {
            None => TermOutline::Dense { values: FLOAT },
            Some(Layout { book: Some(book), bits, .. }) => TermOutline::Lookup {
                bits,
                grouping: layout.map(|layout| layout.grouping()),
                book_per_row: false,
                books: book.kind,
                scales: layout.map_or(GroupType::Plain(FLOAT), |layout| layout.stored()),
            },
            Some(layout) => TermOutline::Affine {
                bits: layout.bits,
                grouping: layout.grouping(),
                zeros: match layout.has_minima {
                    true => ZeroType::Minima(layout.stored()),
                    false => ZeroType::Middle,
                },
                scales: layout.stored(),
            },
        };
        Outline { rows, cols, terms: vec![term] }
    }

    /// What is said of a matrix that does not get the type asked for.
    pub(crate) fn departure(self, cols: usize) -> Option<Note> {
        if self == Self::Plain {
            return None;
        }
        let what = match self.fitting(cols) {
            Some(kind) if kind == self => return None,
            Some(kind) => kind.name(),
            None => "16-bit floats".to_owned(),
        };
        let name = self.name();
        Some(Note::fallback(format!(
            "blocks of {name} do not divide {cols} columns; {what} instead, as llama.cpp does"
        )))
    }

    /// Fits the grids of a matrix; `costs` weigh the columns. `None` where no block divides it.
    pub(crate) fn fit(
        self,
        site: &Site<'_>,
        costs: Option<&[f32]>,
        fit: Fit,
    ) -> Option<BlockGrids> {
        let layout = self.fitting(site.cols)?.layout()?;
        let ones = vec![1.0; site.cols];
        let costs = costs.unwrap_or(&ones);
        let width = layout.block();
        let rows = site.weight.par_chunks_exact(site.cols.max(1));
        let blocks: Vec<Fitted> = rows
            .flat_map_iter(|row| {
                let blocks = row.chunks_exact(width).zip(costs.chunks_exact(width));
                blocks.map(|(values, costs)| layout.fit(values, costs, fit))
            })
            .collect();
        let mut grids = BlockGrids {
            layout,
            cols: site.cols,
            scales: Stored::default(),
            minima: Stored::default(),
            steps: vec![],
        };
        for block in blocks {
            grids.steps.extend((0..layout.groups()).map(|group| block.steps(&layout, group)));
            grids.scales.floats.push(block.scale);
            grids.minima.floats.push(block.minimum);
            grids.scales.codes.extend(block.scales);
            grids.minima.codes.extend(block.minima);
        }
        Some(grids)
    }

    /// Rounds every value to the nearest of its group's grid.
    pub(crate) fn encode(
        self,
        site: &Site<'_>,
        costs: Option<&[f32]>,
        fit: Fit,
    ) -> Result<Encoded, MethodError> {
        site.check_finite()?;
        let Some(grids) = self.fit(site, costs, fit) else { return self.plain(site) };
        let rows = site.weight.par_chunks_exact(site.cols.max(1)).enumerate();
        let codes = rows
            .flat_map_iter(|(row, values)| {
                let grids = &grids;
                values
                    .iter()
                    .enumerate()
                    .map(move |(column, value)| grids.steps(row, column).code(*value))
            })
            .collect();
        grids.assemble(site, codes, vec![])
    }

    /// The matrix in 16-bit floats.
    pub(crate) fn plain(self, site: &Site<'_>) -> Result<Encoded, MethodError> {
        let values = site.weight.iter().map(|value| FLOAT.round(*value)).collect();
        let terms = vec![Term::Dense(Dense { values, dtype: FLOAT })];
        let weight =
            Weight::new(site.rows, site.cols, terms).map_err(|error| too_large(site, &error))?;
        Ok(Encoded { weight, notes: vec![] })
    }
}

impl BlockGrids {
    /// The grid of an element.
    pub(crate) fn steps(&self, row: usize, column: usize) -> &Steps {
        &self.steps[row * (self.cols / self.layout.group) + column / self.layout.group]
    }

    /// The weight that these codes make.
    pub(crate) fn assemble(
        self,
        site: &Site<'_>,
        codes: Vec<u8>,
        notes: Vec<Note>,
    ) -> Result<Encoded, MethodError> {
        let layout = self.layout;
        let per_row = site.cols / layout.group;
        let floats = |stored: Stored| match layout.two_level() {
            None if layout.has_powers => {
                let float = SmallFloat::E8M0;
                let codes = stored.floats.iter().map(|power| float.encode(*power)).collect();
                GroupFloats::small(float, codes, None)
            }
            None => Ok(GroupFloats::plain(stored.floats, FLOAT)),
            Some(kind) => GroupFloats::two_level(lapidary_weight::Levels {
                kind,
                per_row,
                codes: stored.codes,
                coarse: stored.floats,
                offsets: vec![],
            }),
        };
        let weight = || -> Result<Weight, WeightError> {
            if let Some(book) = layout.book {
                let lookup = Lookup {
                    bits: layout.bits,
                    codes,
                    books: book.levels.clone(),
                    book_per_row: false,
                    scales: Some((layout.grouping(), floats(self.scales)?)),
                    book_type: book.kind,
                };
                return Weight::new(site.rows, site.cols, vec![Term::Lookup(lookup)]);
            }
            let affine = Affine {
                bits: layout.bits,
                grouping: layout.grouping(),
                codes,
                scales: floats(self.scales)?,
                zeros: match layout.has_minima {
                    true => Zeros::Minima(floats(self.minima)?),
                    false => Zeros::Middle,
                },
            };
            Weight::new(site.rows, site.cols, vec![Term::Affine(affine)])
        };
        let weight = weight().map_err(|error| too_large(site, &error))?;
        Ok(Encoded { weight, notes })
    }
}

/// Nothing but values beyond f16 can go wrong in a block.
fn too_large(site: &Site<'_>, error: &WeightError) -> MethodError {
    let what = format!("its values are too large for blocks with 16-bit floats ({error})");
    MethodError::Numerical { site: site.name.to_owned(), what }
}

impl Layout {
    fn grouping(&self) -> Grouping {
        NonZeroUsize::new(self.group).map_or(Grouping::Row, Grouping::Columns)
    }

    fn groups(&self) -> usize {
        self.levels.map_or(1, |(_, groups)| groups)
    }

    /// Columns of a block.
    fn block(&self) -> usize {
        self.group * self.groups()
    }

    fn two_level(&self) -> Option<TwoLevel> {
        let (bits, groups) = self.levels?;
        let origin = match self.has_minima {
            true => lapidary_weight::Origin::Zero,
            false => lapidary_weight::Origin::Middle,
        };
        let runs = Runs::Flat(NonZeroUsize::new(groups)?);
        Some(TwoLevel { bits, runs, origin, coarse: FLOAT })
    }

    fn stored(&self) -> GroupType {
        if self.has_powers {
            return GroupType::Small(SmallCodes { float: SmallFloat::E8M0, divided: false });
        }
        self.two_level().map_or(GroupType::Plain(FLOAT), GroupType::TwoLevel)
    }

    fn grid(&self, scale: f32) -> Grid {
        let levels = Levels { bits: self.bits, symmetric: true, restricted: false };
        levels.grid(scale, if self.has_minima { 0 } else { 1 << (self.bits - 1) })
    }

    fn steps(&self, scale: f32, minimum: f32) -> Steps {
        Steps { grid: self.grid(scale), minimum, book: self.book }
    }

    /// What a scale's code of zero stands for.
    fn bottom(&self) -> f32 {
        match self.levels {
            Some((bits, _)) if !self.has_minima => -f32::from(1_u8 << (bits - 1)),
            _ => 0.0,
        }
    }
}

/// The stored numbers of one block.
struct Fitted {
    scale: f32,
    minimum: f32,
    scales: Vec<u8>,
    minima: Vec<u8>,
}

impl Fitted {
    fn steps(&self, layout: &Layout, group: usize) -> Steps {
        if layout.levels.is_none() {
            return layout.steps(self.scale, self.minimum);
        }
        let scale = self.scale * (f32::from(self.scales[group]) + layout.bottom());
        let minimum = self.minima.get(group).map_or(0.0, |code| self.minimum * f32::from(*code));
        layout.steps(scale, minimum)
    }
}
