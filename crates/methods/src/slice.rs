//! Principal components of the residual stream that carry least, sliced off.
//!
//! `SliceGPT` (Ashkboos et al., 2024, arXiv 2401.15024) in the variant that every engine loads: one
//! orthogonal basis for the whole model, that of the eigenvectors of `Σ x̂ x̂ᵀ` over the states before and
//! after all blocks, each divided by its root mean square as a norm does. In one basis the residual
//! stream needs no matrices of its own, which the authors' basis for each layer does; what is lost is
//! some quality. Norms go on dividing by the mean over all the channels there were: with `d` of them and
//! `d'` left, gains are `√(d / d')` and `eps` is `d / d'` times as large.

use crate::eigen::eigen;
use crate::rotate::{Turn, residual};
use crate::structural::widths::{channels, with_channels};
use crate::structural::{Chosen, Seen, Structural, Walk};
use crate::{Method, MethodError, ParamError};
use faer::Mat;
use lapidary_kernels::gram::Gram;
use lapidary_model::{Precision, Spec};
use lapidary_weight::{Edit, Edits, Tensors};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

pub(crate) const SUMMARY: &str = "slices off principal components of the residual stream";
pub(crate) const PAPER: &str = "Ashkboos et al., 2024, arXiv 2401.15024";

/// Parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Params {
    /// Share of the channels of the residual stream that goes, from 0 to below 1.
    pub channels: f64,
}

impl Default for Params {
    fn default() -> Self {
        Self { channels: 0.2 }
    }
}

pub(crate) fn build(params: Params) -> Result<Method, ParamError> {
    if !(0.0..1.0).contains(&params.channels) {
        let what = format!("{} is no share from 0 to below 1", params.channels);
        return Err(ParamError::new("channels", what));
    }
    Ok(Method::Structural(Box::new(Slice(params))))
}

struct Slice(Params);

impl Slice {
    /// The cut to the first channels, whatever they are in.
    fn sized(&self, spec: &Spec) -> Result<Chosen, MethodError> {
        let chosen = with_channels(Chosen::default(), channels(spec, self.0.channels, None)?);
        Ok(self.with_norms(chosen))
    }

    fn with_norms(&self, mut chosen: Chosen) -> Chosen {
        chosen.cut.rescaled_norms = chosen.cut.channels.is_some();
        chosen
    }
}

impl Structural for Slice {
    fn provisional(&self, spec: &Spec) -> Result<Chosen, MethodError> {
        if self.0.channels > 0.0 {
            // What cannot be turned is refused before any row is seen.
            let nothing: Arc<[f32]> = Arc::from([]);
            residual(spec, &turn(&nothing))?;
        }
        self.sized(spec)
    }

    fn needs_rows(&self) -> bool {
        self.0.channels > 0.0
    }

    fn unties(&self) -> bool {
        self.0.channels > 0.0
    }

    fn edits(&self) -> bool {
        self.0.channels > 0.0
    }

    fn choose(&self, walk: &dyn Walk) -> Result<Chosen, MethodError> {
        let spec = walk.spec();
        let mut chosen = self.sized(spec)?;
        let Some(kept) = &chosen.cut.channels else { return Ok(chosen) };
        let (basis, values) = basis(spec.hidden_size, &second_moment(walk)?)?;
        let share = spec.hidden_size as f64 / kept.len() as f64;
        let edits = residual(spec, &turn(&basis))?;
        chosen.edits = without_names(edits, walk.tensors(), share.sqrt() as f32)?;
        chosen.scores.push(("eigenvalues".to_owned(), values));
        Ok(chosen)
    }
}

fn turn(basis: &Arc<[f32]>) -> Turn {
    Turn { columns: Edit::TurnColumns(Arc::clone(basis)), rows: Edit::TurnRows(Arc::clone(basis)) }
}

/// `Σ x̂ x̂ᵀ` of the residual stream, each state divided by its root mean square.
fn second_moment(walk: &dyn Walk) -> Result<Vec<f32>, MethodError> {
    let width = walk.spec().hidden_size;
    let mut gram = Gram::new(width, Precision::F32);
    let mut add = |states: &[f32]| {
        let unit = |state: &[f32]| -> Vec<f32> {
            let square: f64 = state.iter().map(|x| f64::from(*x).powi(2)).sum();
            let root = (square / width as f64).sqrt().max(1e-30);
            state.iter().map(|x| (f64::from(*x) / root) as f32).collect()
        };
        let unit: Vec<f32> = states.chunks_exact(width).flat_map(unit).collect();
        gram.accumulate(&unit, states.len() / width);
    };
    walk.blocks(&mut |seen| {
        if let Seen::Passed { block, before, after, .. } = seen {
            if block == 0 {
                add(before);
            }
            add(after);
        }
        Ok(())
    })?;
    Ok(gram.finish())
}

/// The eigenvectors of a symmetric matrix as rows, that of the greatest eigenvalue first, and the
/// eigenvalues.
fn basis(width: usize, moment: &[f32]) -> Result<(Arc<[f32]>, Vec<f64>), MethodError> {
    let matrix = Mat::from_fn(width, width, |i, j| f64::from(moment[i * width + j]));
    let found = eigen(matrix.as_ref()).ok_or_else(|| MethodError::Numerical {
        site: "the residual stream".to_owned(),
        what: "has no principal components; are its values finite?".to_owned(),
    })?;
    let vector = |index: usize| (0..width).map(move |row| (index, row));
    let rows = (0..width).flat_map(vector);
    let basis = rows.map(|(index, row)| found.vectors[(row, index)] as f32).collect::<Vec<_>>();
    Ok((Arc::from(basis), found.values))
}

/// Edits that read no other tensor: gains by their values, and norms with a gain of `gain`.
fn without_names(edits: Edits, tensors: &dyn Tensors, gain: f32) -> Result<Edits, MethodError> {
    let plain = |edit: Edit| -> Result<Edit, MethodError> {
        Ok(match edit {
            Edit::FoldGain { gain, offset } => {
                let gains = tensors.read(&gain);
                let gains = gains.map_err(|error| MethodError::Walk(Box::new(error)))?;
                Edit::ScaleColumns(gains.into_iter().map(|gain| gain + offset).collect())
            }
            // A norm whose gain was folded has one of 1.
            Edit::Fill(one) => Edit::Fill(gain - 1.0 + one),
            edit => edit,
        })
    };
    let of_tensor = |(name, edits): (String, Vec<Edit>)| {
        Ok((name, edits.into_iter().map(plain).collect::<Result<_, _>>()?))
    };
    edits.into_iter().map(of_tensor).collect()
}
