//! Parameters and helpers of the methods that emit uniform integer grids.

use crate::{BlockGrid, Encoded, MethodError, Note, ParamError, Site};
use lapidary_kernels::grid::{Grid, Levels};
use lapidary_weight::{
    Affine, FloatType, GroupFloats, Grouping, Outline, Term, TermOutline, Weight, ZeroType, Zeros,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::num::NonZeroUsize;

/// The grid: bits, who shares a scale, whether there are zero points.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct GridParams {
    /// Bits of a weight, 2 to 8.
    #[schemars(range(min = 2, max = 8))]
    pub bits: u8,
    /// Columns that share a scale: a number, "row" (or -1) for one scale a row, "tensor" for one.
    pub group_size: GroupSize,
    /// One scale and no zero point a group; otherwise each group has a zero point too.
    pub symmetric: bool,
    /// A block type of GGUF files in place of the three above, exactly as such a file stores it;
    /// `plain` for a grid of one float a group.
    #[serde(rename = "grid")]
    pub blocks: BlockGrid,
}

impl Default for GridParams {
    fn default() -> Self {
        let blocks = BlockGrid::default();
        Self { bits: 4, group_size: GroupSize::Columns(128), symmetric: true, blocks }
    }
}

/// Who shares a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "GroupSizeText", into = "GroupSizeText")]
#[schemars(with = "GroupSizeText")]
pub enum GroupSize {
    /// The whole matrix.
    Tensor,
    /// Each row.
    Row,
    /// Runs of this many columns.
    Columns(usize),
}

/// As it stands in a recipe.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
enum GroupSizeText {
    Number(i64),
    Word(String),
}

impl TryFrom<GroupSizeText> for GroupSize {
    type Error = String;

    fn try_from(text: GroupSizeText) -> Result<Self, String> {
        match text {
            GroupSizeText::Number(-1) => Ok(Self::Row),
            GroupSizeText::Number(number) => match usize::try_from(number) {
                Ok(width) if width > 0 => Ok(Self::Columns(width)),
                _ => Err(format!(
                    "{number} is not a group size; use a positive number, row or tensor"
                )),
            },
            GroupSizeText::Word(word) => match word.as_str() {
                "row" | "channel" => Ok(Self::Row),
                "tensor" => Ok(Self::Tensor),
                _ => Err(format!(
                    "{word:?} is not a group size; use a positive number, row or tensor"
                )),
            },
        }
    }
}

impl From<GroupSize> for GroupSizeText {
    fn from(size: GroupSize) -> Self {
        match size {
            GroupSize::Tensor => Self::Word("tensor".to_owned()),
            GroupSize::Row => Self::Word("row".to_owned()),
            GroupSize::Columns(width) => Self::Number(width as i64),
        }
    }
}

impl GroupSize {
    /// Who shares a scale in a matrix of `cols` columns; a group as wide as a row is a row.
    pub(crate) fn grouping(self, cols: usize) -> Grouping {
        match self {
            Self::Tensor => Grouping::Tensor,
            Self::Columns(width) if width < cols => {
                NonZeroUsize::new(width).map_or(Grouping::Row, Grouping::Columns)
            }
            Self::Row | Self::Columns(_) => Grouping::Row,
        }
    }
}

impl From<Grouping> for GroupSize {
    fn from(grouping: Grouping) -> Self {
        match grouping {
            Grouping::Tensor => Self::Tensor,
            Grouping::Row => Self::Row,
            // No method with such a parameter is asked for blocks: what an engine offers instead of
            // a sharing that a format cannot hold is groups or rows.
            Grouping::Columns(width) | Grouping::Blocks { columns: width, .. } => {
                Self::Columns(width.get())
            }
        }
    }
}

impl GridParams {
    /// Refuses widths the grid cannot have.
    pub(crate) fn check(&self) -> Result<(), ParamError> {
        if self.blocks != BlockGrid::Plain {
            let plain = Self { blocks: self.blocks, ..Self::default() };
            let what =
                "has bits, groups and zeros of its own; leave bits, group_size and symmetric out";
            return if *self == plain { Ok(()) } else { Err(ParamError::new("grid", what)) };
        }
        if (2..=8).contains(&self.bits) {
            Ok(())
        } else {
            Err(ParamError::new("bits", format!("{} is not from 2 to 8", self.bits)))
        }
    }

    pub(crate) fn levels(&self) -> Levels {
        Levels { bits: self.bits, symmetric: self.symmetric, restricted: false }
    }

    /// Who shares a scale in a matrix of `cols` columns.
    pub(crate) fn grouping(&self, cols: usize) -> Grouping {
        self.group_size.grouping(cols)
    }

    /// The same grid with another sharing of scales; `None` where blocks fix it.
    pub(crate) fn regrouped(&self, grouping: Grouping) -> Option<Self> {
        let is_free = self.blocks == BlockGrid::Plain;
        is_free.then(|| Self { group_size: grouping.into(), ..self.clone() })
    }

    pub(crate) fn outline(&self, rows: usize, cols: usize, scales: FloatType) -> Outline {
        if self.blocks != BlockGrid::Plain {
            return self.blocks.outline(rows, cols);
        }
        let term = TermOutline::Affine {
            bits: self.bits,
            grouping: self.grouping(cols),
            zeros: if self.symmetric { ZeroType::Middle } else { ZeroType::Codes },
            scales: scales.into(),
        };
        Outline { rows, cols, terms: vec![term] }
    }

    /// Rounds every group onto the grid that `fit` chooses for it.
    pub(crate) fn encode(
        &self,
        site: &Site<'_>,
        fit: impl Fn(&[f32]) -> Grid + Sync,
    ) -> Result<Encoded, MethodError> {
        use rayon::prelude::*;
        site.check_finite()?;
        let grouping = self.grouping(site.cols);
        let (group, per_row) = match grouping {
            Grouping::Tensor => (site.rows * site.cols, 1),
            _ => (grouping.width(site.cols), grouping.per_row(site.cols)),
        };
        let mut codes = vec![0; site.weight.len()];
        // Groups never cross a row, except the one group of a whole matrix.
        let line = if grouping == Grouping::Tensor { site.weight.len() } else { site.cols };
        let mut grids = vec![None; grouping.count(site.rows, site.cols)];
        let lines = site.weight.par_chunks(line.max(1)).zip(codes.par_chunks_mut(line.max(1)));
        lines.zip(grids.par_chunks_mut(per_row)).for_each(|((weights, codes), grids)| {
            let groups = weights.chunks(group.max(1)).zip(codes.chunks_mut(group.max(1)));
            for ((weights, codes), slot) in groups.zip(grids) {
                let grid = fit(weights);
                grid.codes(weights, codes);
                *slot = Some(grid);
            }
        });
        let grids: Vec<Grid> = grids.into_iter().flatten().collect();
        self.assemble(site, codes, &grids, vec![])
    }

    /// The weight that these codes and grids make, checked.
    pub(crate) fn assemble(
        &self,
        site: &Site<'_>,
        codes: Vec<u8>,
        grids: &[Grid],
        notes: Vec<Note>,
    ) -> Result<Encoded, MethodError> {
        // Values near the end of f32's range have no grid of finite numbers around them.
        let reach = |grid: &Grid| grid.scale * f32::from(self.levels().highest());
        if grids.iter().any(|grid| !reach(grid).is_finite()) {
            let what = "its values are too large for a grid of finite numbers".to_owned();
            return Err(MethodError::Numerical { site: site.name.to_owned(), what });
        }
        let zeros = || Zeros::Codes(grids.iter().map(|grid| grid.zero).collect());
        let scales = grids.iter().map(|grid| grid.scale).collect();
        let affine = Affine {
            bits: self.bits,
            grouping: self.grouping(site.cols),
            codes,
            scales: GroupFloats::plain(scales, site.scale_type),
            zeros: if self.symmetric { Zeros::Middle } else { zeros() },
        };
        let weight = Weight::new(site.rows, site.cols, vec![Term::Affine(affine)])
            .map_err(|error| MethodError::Weight { site: site.name.to_owned(), error })?;
        Ok(Encoded { weight, notes })
    }
}
