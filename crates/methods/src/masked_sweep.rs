//! GPTQ's sweep over columns of which some rows' entries are pruned: what SparseGPT does, alone or
//! while the rest is rounded.
//!
//! Where an entry is pruned its value is 0, and the whole of it is an error to be spread. The mask is
//! given, or chosen as the sweep goes: over all rows as a block of columns begins, or in each row as
//! its group of a pattern is reached, each time by the weights with every update so far.

use crate::pruning::{Selection, Sparsity, prune_least};
use lapidary_kernels::sweep::{RowQuantizer, block_bounds, sweep_blockwise};

/// Who says what is pruned.
#[derive(Clone, Copy)]
pub(crate) enum Choice<'a> {
    /// This mask, row-major, in the order of the matrix.
    Kept(&'a [bool]),
    /// The sweep.
    BySweep(Selection),
}

/// One sweep.
pub(crate) struct MaskedSweep<'a> {
    pub(crate) choice: Choice<'a>,
    /// The column visited `i`-th.
    pub(crate) order: &'a [usize],
    /// `U` in that order.
    pub(crate) factor: &'a [f32],
    /// What an error in each column costs, in that order: `1 / U_jj²`, nothing for a column without
    /// input.
    pub(crate) costs: &'a [f32],
    /// Columns whose grid is fitted together as the first of them is reached; 1 where none is.
    pub(crate) group: usize,
}

impl MaskedSweep<'_> {
    /// Sweeps `working`, `[rows, cols]` in the order of visits; what the quantizers are asked to
    /// round has 0 where it is pruned. Returns `Σ e²` of each row and what is left, row-major in the
    /// order of the matrix.
    pub(crate) fn run<Q: RowQuantizer + Send>(
        &self,
        working: &mut [f32],
        quantizers: Vec<Q>,
    ) -> (Vec<f64>, Vec<bool>) {
        let cols = self.order.len();
        let mut rows: Vec<Row<'_, Q>> = quantizers
            .into_iter()
            .enumerate()
            .map(|(row, inner)| Row { sweep: self, inner, kept: self.given(row), left: vec![] })
            .collect();
        let (selection, together) = match self.choice {
            Choice::Kept(_) => (None, self.group),
            Choice::BySweep(selection) => (Some(selection), common(self.group, selection.width())),
        };
        let by_block = selection.filter(|s| matches!(s.sparsity, Sparsity::Share(_)));
        let bounds = block_bounds(cols, together);
        let losses =
            sweep_blockwise(working, self.factor, &bounds, &mut rows, |block, all, rows| {
                let Some(selection) = by_block else { return };
                let kept = selection.of_block(all, self.costs, block.clone());
                for (row, kept) in rows.zip(kept.chunks_exact(block.len().max(1))) {
                    row.kept[block.clone()].copy_from_slice(kept);
                }
            });
        let mut kept = vec![true; working.len()];
        for (row, kept) in rows.iter().zip(kept.chunks_exact_mut(cols.max(1))) {
            self.order.iter().zip(&row.kept).for_each(|(column, own)| kept[*column] = *own);
        }
        (losses, kept)
    }

    /// The given mask of a row, in the order of visits; all of it where the sweep chooses.
    fn given(&self, row: usize) -> Vec<bool> {
        let cols = self.order.len();
        match self.choice {
            Choice::Kept(kept) => {
                self.order.iter().map(|column| kept[row * cols + column]).collect()
            }
            Choice::BySweep(_) => vec![true; cols],
        }
    }
}

/// The order of visits with the columns of each group of `width` together: as they stand, or the
/// groups by falling sum of the Gram matrix's diagonal.
pub(crate) fn order_of_groups(
    gram: &[f32],
    cols: usize,
    by_diagonal: bool,
    width: usize,
) -> Vec<usize> {
    let mut groups: Vec<usize> = (0..cols.div_ceil(width.max(1))).collect();
    let columns = |group: usize| group * width..cols.min((group + 1) * width);
    if by_diagonal {
        let size = |group: &usize| columns(*group).map(|i| gram[i * cols + i]).sum::<f32>();
        groups.sort_by(|a, b| size(b).total_cmp(&size(a)).then(a.cmp(b)));
    }
    groups.into_iter().flat_map(columns).collect()
}

/// Columns that hold whole groups of both widths.
fn common(a: usize, b: usize) -> usize {
    let (mut x, mut y) = (a, b);
    while y > 0 {
        (x, y) = (y, x % y);
    }
    a / x.max(1) * b
}

/// One row on its way through the sweep.
struct Row<'a, Q> {
    sweep: &'a MaskedSweep<'a>,
    inner: Q,
    /// What is left, in the order of visits.
    kept: Vec<bool>,
    /// What will be left of the columns ahead, as the inner quantizer sees them.
    left: Vec<f32>,
}

impl<Q: RowQuantizer> Row<'_, Q> {
    /// Prunes the group of a pattern that begins here.
    fn begin_group(&mut self, column: usize, rest: &[f32]) {
        let Choice::BySweep(selection) = self.sweep.choice else { return };
        let Sparsity::Groups(pattern) = selection.sparsity else { return };
        let width = usize::from(pattern.width);
        if column.is_multiple_of(width) {
            let costs = &self.sweep.costs[column..][..width];
            let score = |(weight, cost): (&f32, &f32)| weight * weight * cost;
            let scores: Vec<f32> = rest[..width].iter().zip(costs).map(score).collect();
            let kept = &mut self.kept[column..][..width];
            prune_least(&scores, pattern.pruned.into(), kept);
        }
    }
}

impl<Q: RowQuantizer> RowQuantizer for Row<'_, Q> {
    fn quantize(&mut self, column: usize, rest: &[f32]) -> f32 {
        // A grid that is fitted ahead of a later group of the pattern sees all of that.
        self.begin_group(column, rest);
        let ahead = self.sweep.group.min(rest.len());
        let kept = self.kept[column..].iter();
        self.left.clear();
        self.left
            .extend(rest[..ahead].iter().zip(kept).map(|(w, kept)| if *kept { *w } else { 0.0 }));
        self.inner.quantize(column, &self.left)
    }
}

/// Leaves what is left as it is.
pub(crate) struct Float;

impl RowQuantizer for Float {
    fn quantize(&mut self, _column: usize, rest: &[f32]) -> f32 {
        rest[0]
    }
}
