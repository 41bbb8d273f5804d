//! Pruning: which entries of a weight are left, alone or before an encoder rounds these.
//!
//! A [`Pruner`] chooses a mask. [`Pruned`] makes a method of it: of the pruned floats by themselves, or
//! of an encoder that keeps zeros ([`Masked`]) and gets the mask. Counts are exact: the least scores
//! go, the first of equals first, as many as the recipe says.

use crate::{Encoded, MethodError, Needs, Note, ParamError, Site, Tensorwise};
use lapidary_kernels::sweep::block_bounds;
use lapidary_weight::{
    Dense, FloatType, Grouping, Outline, Places, Sparse, Term, TermOutline, Weight,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::sync::Arc;

/// How many weights are pruned.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct SparsityParams {
    /// Share of the weights that is pruned, from 0 to below 1; half, where neither this nor a pattern
    /// is given.
    #[schemars(range(min = 0.0, max = 0.999))]
    pub sparsity: Option<f64>,
    /// `N:M` prunes N of every M columns of each row, for instance `2:4`; it settles the share.
    pub pattern: Option<Pattern>,
    /// Give blocks with more outliers smaller shares, which differ by at most twice this (OWL; usual is
    /// 0.08), the mean being the share; measured on the calibration rows.
    #[schemars(range(min = 0.0, max = 0.5))]
    pub owl: Option<f64>,
}

/// N of every M consecutive columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct Pattern {
    /// N, pruned.
    pub pruned: u8,
    /// M, from 2 to 64.
    pub width: u8,
}

impl TryFrom<String> for Pattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let numbers =
            text.split_once(':').and_then(|(n, m)| Some((n.parse().ok()?, m.parse().ok()?)));
        match numbers {
            Some((pruned, width)) if (2..=64).contains(&width) && pruned > 0 && pruned < width => {
                Ok(Self { pruned, width })
            }
            _ => Err(format!(
                "{text:?} is no pattern N:M with N from 1 to M − 1 and M from 2 to 64, such as 2:4"
            )),
        }
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        format!("{}:{}", pattern.pruned, pattern.width)
    }
}

/// What the parameters come to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sparsity {
    /// So much of all weights that are compared with each other.
    Share(f64),
    /// N of every M columns.
    Groups(Pattern),
}

impl SparsityParams {
    /// The share where none is given.
    pub(crate) const HALF: f64 = 0.5;

    /// Share or pattern.
    pub(crate) fn settle(&self) -> Result<Sparsity, ParamError> {
        match (self.owl, self.pattern) {
            (Some(_), Some(_)) => {
                let what = "a pattern gives every block the same share; leave one out";
                return Err(ParamError::new("owl", what));
            }
            (Some(lambda), None) if !(0.0..=0.5).contains(&lambda) => {
                return Err(ParamError::new("owl", format!("{lambda} is not from 0 to 0.5")));
            }
            _ => {}
        }
        match (self.sparsity, self.pattern) {
            (Some(_), Some(pattern)) => {
                let text = String::from(pattern);
                let what = format!("the pattern {text} settles the share; leave sparsity out");
                Err(ParamError::new("sparsity", what))
            }
            (None, Some(pattern)) => Ok(Sparsity::Groups(pattern)),
            (share, None) => match share.unwrap_or(Self::HALF) {
                share if (0.0..1.0).contains(&share) => Ok(Sparsity::Share(share)),
                share => {
                    let what = format!("{share} is not from 0 to below 1");
                    Err(ParamError::new("sparsity", what))
                }
            },
        }
    }
}

impl Sparsity {
    /// Refuses columns that a pattern does not divide.
    pub(crate) fn check(self, cols: usize) -> Result<(), String> {
        match self {
            Self::Groups(pattern) if !cols.is_multiple_of(pattern.width.into()) => {
                let (text, width) = (String::from(pattern), pattern.width);
                Err(format!(
                    "the pattern {text} needs columns that {width} divides, and there are {cols}; \
                     give a sparsity in its place, or add the layer to ignore"
                ))
            }
            _ => Ok(()),
        }
    }

    /// Weights pruned of so many, compared with each other.
    pub(crate) fn count(self, weights: usize) -> usize {
        match self {
            // Not one fewer because a share such as 0.29 is a little less than its decimals say.
            Self::Share(share) => (share * weights as f64 * (1.0 + 1e-12)).floor() as usize,
            Self::Groups(Pattern { pruned, width }) => {
                weights / usize::from(width) * usize::from(pruned)
            }
        }
    }

    /// Width and kept values of the pattern's groups.
    fn groups(self) -> Option<(u8, u8)> {
        match self {
            Self::Share(_) => None,
            Self::Groups(Pattern { pruned, width }) => Some((width, width - pruned)),
        }
    }

    /// Marks what is left: of lines of scores that are compared among themselves, or of the groups
    /// in them.
    pub(crate) fn keep(self, scores: &[f32], line: usize) -> Vec<bool> {
        use rayon::prelude::*;
        let (width, count) = match self {
            Self::Share(_) => (line, self.count(line)),
            Self::Groups(Pattern { pruned, width }) => (width.into(), pruned.into()),
        };
        let mut kept = vec![true; scores.len()];
        let lines = kept.par_chunks_mut(width.max(1)).zip(scores.par_chunks(width.max(1)));
        lines.for_each(|(kept, scores)| prune_least(scores, count, kept));
        kept
    }
}

/// Marks the `count` least scores as pruned, the first of equals first.
pub(crate) fn prune_least(scores: &[f32], count: usize, kept: &mut [bool]) {
    if count == 0 {
        return;
    }
    let mut places: Vec<usize> = (0..scores.len()).collect();
    let by_score = |a: &usize, b: &usize| scores[*a].total_cmp(&scores[*b]).then(a.cmp(b));
    places.select_nth_unstable_by(count - 1, by_score);
    places[..count].iter().for_each(|place| kept[*place] = false);
}

/// The weight with +0.0 where it is pruned.
pub(crate) fn without_pruned(weight: &[f32], kept: &[bool]) -> Vec<f32> {
    weight.iter().zip(kept).map(|(weight, kept)| if *kept { *weight } else { 0.0 }).collect()
}

/// Chooses which entries of a weight are left.
pub trait Pruner: Send + Sync {
    /// What the engine must gather for each site before [`prune`](Self::prune).
    fn needs(&self) -> Needs {
        Needs::default()
    }

    /// How many go.
    fn sparsity(&self) -> Sparsity;

    /// Weights pruned of a matrix.
    fn count(&self, rows: usize, cols: usize) -> usize {
        self.sparsity().count(rows * cols)
    }

    /// Prunes one weight.
    ///
    /// # Errors
    /// When there are no statistics, or the numbers are not finite.
    fn prune(&self, site: &Site<'_>) -> Result<Pruning, MethodError>;

    /// How an encoder that moves weights as it goes may choose the mask on its way, in place of
    /// [`prune`](Self::prune) beforehand; `None` where the mask does not depend on that.
    fn selection(&self) -> Option<Selection> {
        None
    }

    /// Whether it was given parameters of a sweep of its own, which an encoder's sweep would ignore.
    fn has_own_sweep(&self) -> bool {
        false
    }

    /// What takes its place, with the same count, where inputs have no statistics.
    fn without_statistics(&self) -> Box<dyn Pruner>;
}

/// What is left of a weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Pruning {
    /// Row-major: whether each entry is left.
    pub kept: Vec<bool>,
    /// The weight, where the pruner has moved what is left.
    pub moved: Option<Vec<f32>>,
    /// Everything that departed from the plain course.
    pub notes: Vec<Note>,
}

/// A choice by the weights as a sweep finds them: the least `w² / U_jj²`, over all rows of a block of
/// columns, or in each group of a pattern.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Selection {
    /// How many go.
    pub sparsity: Sparsity,
}

impl Selection {
    /// Columns of a pattern's group, which must be visited together; 1 without one.
    pub(crate) fn width(self) -> usize {
        self.sparsity.groups().map_or(1, |(width, _)| width.into())
    }

    /// Marks what is left of a block of columns, `costs` being those of all columns; `kept` is
    /// `[rows, block]`. Blocks of one matrix have the exact count together.
    pub(crate) fn of_block(self, weights: &[f32], costs: &[f32], block: Range<usize>) -> Vec<bool> {
        let cols = costs.len();
        let rows = weights.len() / cols.max(1);
        let score = |(weight, cost): (&f32, &f32)| weight * weight * cost;
        let scores: Vec<f32> = weights
            .chunks_exact(cols.max(1))
            .flat_map(|row| row[block.clone()].iter().zip(&costs[block.clone()]).map(score))
            .collect();
        if let Sparsity::Groups(_) = self.sparsity {
            return self.sparsity.keep(&scores, block.len());
        }
        let before = |end: usize| self.sparsity.count(rows * end);
        let mut kept = vec![true; scores.len()];
        prune_least(&scores, before(block.end) - before(block.start), &mut kept);
        kept
    }
}

impl Selection {
    /// What would be left of all columns, row-major, if no weight moved: a sweep's blocks one after
    /// the other.
    pub(crate) fn of_blocks(self, weights: &[f32], costs: &[f32]) -> Vec<bool> {
        let cols = costs.len();
        let mut kept = vec![true; weights.len()];
        for pair in block_bounds(cols, self.width()).windows(2) {
            let block = pair[0]..pair[1];
            let of_block = self.of_block(weights, costs, block.clone());
            let rows = kept.chunks_exact_mut(cols).zip(of_block.chunks_exact(block.len()));
            rows.for_each(|(row, kept)| row[block.clone()].copy_from_slice(kept));
        }
        kept
    }
}

/// An encoder that keeps pruned entries exactly 0.
pub trait Masked {
    /// Encodes what is left of a weight. `site.weight` is whole: what is pruned is an error that
    /// the encoder may make up for.
    ///
    /// # Errors
    /// As [`Tensorwise::encode`].
    fn encode_masked(&self, site: &Site<'_>, kept: &[bool]) -> Result<Encoded, MethodError>;

    /// Encodes a weight in a sweep that chooses the mask on its way; `None` where it has no sweep.
    fn encode_selecting(
        &self,
        _site: &Site<'_>,
        _selection: Selection,
    ) -> Option<Result<Encoded, MethodError>> {
        None
    }

    /// Whether it has a sweep.
    fn sweeps(&self) -> bool {
        false
    }
}

/// A pruner, and what encodes what it leaves: nothing, so that floats are stored, or an encoder.
#[derive(Clone)]
pub struct Pruned {
    pruner: Arc<dyn Pruner>,
    encoder: Option<Arc<dyn Tensorwise>>,
}

impl Pruned {
    /// The floats that a pruner leaves.
    pub fn floats(pruner: Box<dyn Pruner>) -> Self {
        Self { pruner: pruner.into(), encoder: None }
    }

    /// A pruner before an encoder.
    ///
    /// # Errors
    /// When the encoder cannot keep zeros, or the two say different things of one sweep: the rest of
    /// a sentence about the encoder, and what to do.
    pub fn before(
        pruner: Box<dyn Pruner>,
        encoder: Box<dyn Tensorwise>,
    ) -> Result<Self, &'static str> {
        let Some(masked) = encoder.masked() else {
            return Err(
                "does not keep exactly 0 what a step before it prunes; use rtn, omse (with \
                        one tensor) or gptq on a plain grid, or leave the pruning out",
            );
        };
        if masked.sweeps() && pruner.has_own_sweep() {
            return Err("prunes and rounds in one sweep, of which it has the parameters; give \
                        dampening_frac, act_order and drift_correction to it, and not to the \
                        pruning before it");
        }
        Ok(Self { pruner: pruner.into(), encoder: Some(encoder.into()) })
    }

    fn with(&self, encoder: Option<Box<dyn Tensorwise>>) -> Option<Box<dyn Tensorwise>> {
        let encoder = Some(Arc::from(encoder?));
        Some(Box::new(Self { pruner: Arc::clone(&self.pruner), encoder }))
    }

    /// Floats as a term: sparse where that is smaller.
    fn float_outline(&self, rows: usize, cols: usize, values: FloatType) -> TermOutline {
        let nonzeros = rows * cols - self.pruner.count(rows, cols);
        let groups = self.pruner.sparsity().groups();
        let places = Places::smallest(rows, cols, nonzeros, groups);
        let (dense, sparse) =
            (TermOutline::Dense { values }, TermOutline::Sparse { nonzeros, values, places });
        if sparse.bits(rows, cols) < dense.bits(rows, cols) { sparse } else { dense }
    }

    fn encode_floats(&self, site: &Site<'_>) -> Result<Encoded, MethodError> {
        let Pruning { kept, moved, notes } = self.pruner.prune(site)?;
        let (weight, dtype) = (moved.as_deref().unwrap_or(site.weight), site.scale_type);
        let term = match self.float_outline(site.rows, site.cols, dtype) {
            TermOutline::Sparse { places, .. } => {
                Term::Sparse(Sparse::of_kept(weight, &kept, site.cols, dtype, places))
            }
            _ => {
                let left = without_pruned(weight, &kept);
                let values = left.into_iter().map(|value| dtype.round(value)).collect();
                Term::Dense(Dense { values, dtype })
            }
        };
        let weight = Weight::new(site.rows, site.cols, vec![term])
            .map_err(|error| MethodError::Weight { site: site.name.to_owned(), error })?;
        Ok(Encoded { weight, notes })
    }
}

impl Tensorwise for Pruned {
    fn needs(&self) -> Needs {
        let encoder = self.encoder.as_ref().map(|encoder| encoder.needs());
        encoder.unwrap_or_default().or(self.pruner.needs())
    }

    fn shares_range(&self) -> bool {
        self.encoder.as_ref().is_some_and(|encoder| encoder.shares_range())
    }

    fn outline(&self, rows: usize, cols: usize, scales: FloatType) -> Outline {
        match &self.encoder {
            Some(encoder) => encoder.outline(rows, cols, scales),
            None => Outline { rows, cols, terms: vec![self.float_outline(rows, cols, scales)] },
        }
    }

    fn encode(&self, site: &Site<'_>) -> Result<Encoded, MethodError> {
        let Some(encoder) = &self.encoder else { return self.encode_floats(site) };
        let Some(masked) = encoder.masked() else {
            let (place, what) = (site.name.to_owned(), "is pruned, and its encoder keeps no zeros");
            return Err(MethodError::Structure { place, what: what.to_owned() });
        };
        let selected = self.pruner.selection().and_then(|s| masked.encode_selecting(site, s));
        if let Some(encoded) = selected {
            return encoded;
        }
        let Pruning { kept, moved, mut notes } = self.pruner.prune(site)?;
        let weight = moved.as_deref().unwrap_or(site.weight);
        let encoded = masked.encode_masked(&Site { weight, ..*site }, &kept)?;
        notes.extend(encoded.notes);
        Ok(Encoded { notes, ..encoded })
    }

    fn check_shape(&self, _rows: usize, cols: usize) -> Result<(), String> {
        self.pruner.sparsity().check(cols)
    }

    fn keeps_floats(&self) -> bool {
        self.encoder.is_none()
    }

    fn pruned(&self, rows: usize, cols: usize) -> Option<usize> {
        Some(self.pruner.count(rows, cols))
    }

    fn without_statistics(&self) -> Option<Box<dyn Tensorwise>> {
        let pruner = self.pruner.without_statistics().into();
        let encoder = match &self.encoder {
            Some(encoder) if encoder.needs() != Needs::default() => {
                Some(encoder.without_statistics()?.into())
            }
            other => other.clone(),
        };
        Some(Box::new(Self { pruner, encoder }))
    }

    fn regroup(&self, grouping: Grouping) -> Option<Box<dyn Tensorwise>> {
        self.with(self.encoder.as_ref()?.regroup(grouping))
    }

    fn draft(&self) -> Option<Box<dyn Tensorwise>> {
        let pruner = Arc::clone(&self.pruner);
        match &self.encoder {
            Some(encoder) => self.with(encoder.draft()),
            None => Some(Box::new(Self { pruner, encoder: None })),
        }
    }
}
