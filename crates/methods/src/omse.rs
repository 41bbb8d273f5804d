//! OMSE: the scale of each group that minimises its squared error.
//!
//! Choukroun et al., 2019 (arXiv 1902.06822), section 3: `min_α ‖T − α · clip(round(T / α))‖²` over a
//! line of candidates, because the error is not convex in `α`. The full range is a candidate, so the
//! error is never above that of round to nearest. With zero points, both ends of the range shrink
//! together. The paper has one scale a row; here any group.
//!
//! `tensors: 2` makes the weight the sum of two such grids (section 3.2, for key layers), each group's
//! scales and codes refined together: from the residual of the first, and from a grid of twice the
//! bits, which two grids can express.

use crate::block_grid::Fit;
use crate::blocks::lines;
use crate::residual::{Fitter, Sum};
use crate::pruning::without_pruned;
use crate::{
    BlockGrid, Encoded, GridParams, Masked, Method, MethodError, Needs, Note, ParamError, Site, Tensorwise,
};
use lapidary_kernels::grid::{Grid, Search};
use lapidary_weight::{FloatType, Grouping, Outline, Term, Weight};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) const SUMMARY: &str = "the scale of least squared error for each group";
pub(crate) const PAPER: &str = "Choukroun et al., 2019, arXiv 1902.06822";

/// Parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Params {
    /// The grid.
    #[serde(flatten)]
    pub grid: GridParams,
    /// Candidates of the search: ratios 1, (steps − 1) / steps, … of the full range.
    #[schemars(range(min = 1, max = 10000))]
    pub steps: usize,
    /// Grids that the weight is the sum of, 1 to 4, each of so many bits.
    #[schemars(range(min = 1, max = 4))]
    pub tensors: usize,
    /// Weigh the error of each column by the sum of squares of its inputs, as llama.cpp does with an
    /// importance matrix; for block types of GGUF files.
    pub weighted: bool,
}

impl Default for Params {
    fn default() -> Self {
        Self { grid: GridParams::default(), steps: 500, tensors: 1, weighted: false }
    }
}

pub(crate) fn build(params: Params) -> Result<Method, ParamError> {
    params.grid.check()?;
    if !(1..=10_000).contains(&params.steps) {
        return Err(ParamError::new("steps", format!("{} is not from 1 to 10000", params.steps)));
    }
    if !(1..=4).contains(&params.tensors) {
        return Err(ParamError::new("tensors", format!("{} is not from 1 to 4", params.tensors)));
    }
    if params.tensors > 1 && params.grid.blocks != BlockGrid::Plain {
        return Err(ParamError::new("tensors", "blocks of GGUF files hold one grid each"));
    }
    if params.weighted && params.grid.blocks == BlockGrid::Plain {
        let what = "only grids that are blocks of GGUF files are fitted so; set grid, or use gptq";
        return Err(ParamError::new("weighted", what));
    }
    Ok(Method::Tensorwise(Box::new(Omse(params))))
}

struct Omse(Params);

impl Omse {
    /// Several grids for each group.
    fn encode_sum(&self, site: &Site<'_>) -> Result<Encoded, MethodError> {
        use rayon::prelude::*;
        site.check_finite()?;
        let Params { grid, steps, tensors, .. } = &self.0;
        let (line, group, _) = lines(grid.grouping(site.cols), site.rows, site.cols);
        let fitter = Fitter {
            levels: grid.levels(),
            search: Search { steps: *steps, floor: 0.0 },
            count: *tensors,
            float: site.scale_type,
        };
        let of_line = |line: &[f32]| -> Vec<Sum> {
            line.chunks(group).map(|values| fitter.fit(values)).collect()
        };
        let sums: Vec<Sum> = site.weight.par_chunks(line).flat_map_iter(of_line).collect();
        let term = |index: usize| -> Result<Term, MethodError> {
            let codes = sums.iter().flat_map(|sum| sum.codes[index].iter().copied()).collect();
            let grids: Vec<Grid> = sums.iter().map(|sum| sum.grids[index]).collect();
            let encoded = grid.assemble(site, codes, &grids, vec![])?;
            Ok(encoded.weight.terms()[0].clone())
        };
        let terms = (0..*tensors).map(term).collect::<Result<Vec<Term>, MethodError>>()?;
        let weight = Weight::new(site.rows, site.cols, terms)
            .map_err(|error| MethodError::Weight { site: site.name.to_owned(), error })?;
        Ok(Encoded { weight, notes: vec![] })
    }
}

impl Tensorwise for Omse {
    fn needs(&self) -> Needs {
        Needs { gram: self.0.weighted, ..Needs::default() }
    }

    fn needs_only_diagonal(&self) -> bool {
        true
    }

    fn without_statistics(&self) -> Option<Box<dyn Tensorwise>> {
        Some(Box::new(Self(Params { weighted: false, ..self.0.clone() })))
    }

    fn outline(&self, rows: usize, cols: usize, scales: FloatType) -> Outline {
        let mut outline = self.0.grid.outline(rows, cols, scales);
        outline.terms.resize(self.0.tensors, outline.terms[0].clone());
        outline
    }

    fn departure(&self, cols: usize) -> Option<Note> {
        self.0.grid.blocks.departure(cols)
    }

    fn encode(&self, site: &Site<'_>) -> Result<Encoded, MethodError> {
        if self.0.grid.blocks != BlockGrid::Plain {
            let costs = self.0.weighted.then(|| site.gram_diagonal()).transpose()?;
            return self.0.grid.blocks.encode(site, costs.as_deref(), Fit::Search);
        }
        if self.0.tensors > 1 {
            return self.encode_sum(site);
        }
        let levels = self.0.grid.levels();
        let search = Search { steps: self.0.steps, floor: 0.0 };
        let store = |scale| site.scale_type.round_scale(scale);
        self.0.grid.encode(site, |values| levels.fit_search(values, None, search, store))
    }

    /// Every plain grid has an exact zero, to which what is pruned is rounded.
    fn masked(&self) -> Option<&dyn Masked> {
        (self.0.grid.blocks == BlockGrid::Plain && self.0.tensors == 1).then_some(self)
    }

    fn draft(&self) -> Option<Box<dyn Tensorwise>> {
        Some(crate::rtn::draft(&self.0.grid))
    }

    fn regroup(&self, grouping: Grouping) -> Option<Box<dyn Tensorwise>> {
        let grid = self.0.grid.regrouped(grouping)?;
        Some(Box::new(Self(Params { grid, ..self.0.clone() })))
    }
}

impl Masked for Omse {
    fn encode_masked(&self, site: &Site<'_>, kept: &[bool]) -> Result<Encoded, MethodError> {
        self.encode(&Site { weight: &without_pruned(site.weight, kept), ..*site })
    }
}
