//! Steps whose share of pruning differs from block to block: measured before the loop, and made a step
//! for each block of an ordinary recipe.

use super::Job;
use super::structure::{Means, over_rows};
use super::work::Work;
use crate::EngineError;
use crate::recipe::{Depth, Layers, Recipe, Step};
use crate::structure::CutRecord;
use lapidary_formats::Source;
use lapidary_methods::owl::{Outliers, shares, wanted};
use lapidary_methods::{MethodError, Seen, Walk};
use lapidary_model::cut::Cut;
use lapidary_model::{Matrix, Place, Spec, spec};
use serde_json::json;
use std::collections::BTreeMap;

/// Whether a recipe has steps whose shares are to be measured.
pub(super) fn is_open(recipe: &Recipe) -> bool {
    recipe.steps.iter().any(|step| wanted(&step.params).is_some())
}

/// The recipe with a step for each block in place of those whose shares are open.
///
/// # Errors
/// When the model cannot be run, or a stop is asked for.
pub(super) fn settle(
    job: &Job<'_>,
    source: &Source,
    means: Means<'_>,
    work: &mut Work,
) -> Result<Recipe, EngineError> {
    if job.recipe.budget.is_some() {
        let what = "a search finds the share of every layer itself: leave out owl, or the budget";
        return Err(EngineError::Refused(what.to_owned()));
    }
    let model = spec(source.config())?;
    let mut settled = vec![];
    for step in &job.recipe.steps {
        let Some((share, lambda)) = wanted(&step.params) else {
            settled.push(step.clone());
            continue;
        };
        let blocks = blocks(&model, step);
        let known = work.cuts().iter().find(|record| record.step == step.name).cloned();
        let record = match known {
            Some(record) => record,
            None => {
                let (percent, weights) = outliers(job, source, means, work, &blocks)?;
                let shares = shares(&percent, &weights, share, lambda);
                let record = record(step, percent, shares);
                work.commit_cut(record.clone())?;
                record
            }
        };
        job.progress.note(&record.summary);
        let shares = record.scores.get(SHARES).cloned().unwrap_or_default();
        for ((block, _), share) in blocks.iter().zip(shares) {
            let mut of_block = step.clone();
            of_block.name = format!("{}-{block}", step.name);
            of_block.layers = Some(Layers::block(*block));
            of_block.params["sparsity"] = json!(share);
            of_block.params["owl"] = json!(null);
            settled.push(of_block);
        }
    }
    Ok(job.recipe.closed(settled))
}

/// Under which a record has what goes of each block.
const SHARES: &str = "share of each block";

fn record(step: &Step, percent: Vec<f64>, shares: Vec<f64>) -> CutRecord {
    let least = shares.iter().copied().fold(f64::INFINITY, f64::min);
    let most = shares.iter().copied().fold(0.0, f64::max);
    let summary = format!(
        "{}: {:.1} to {:.1} % of a block's weights go, fewer where there are more outliers",
        step.name,
        100.0 * least,
        100.0 * most
    );
    let scores = [("outliers of each block, in percent", percent), (SHARES, shares)];
    let scores = scores.map(|(label, scores)| (label.to_owned(), scores)).into();
    CutRecord { step: step.name.clone(), summary, cut: Cut::default(), scores, notes: vec![] }
}

/// The blocks that a step goes to, with its matrices in them.
fn blocks(model: &Spec, step: &Step) -> BTreeMap<usize, Vec<Matrix>> {
    let depth = Depth::of(model);
    let mut blocks: BTreeMap<usize, Vec<Matrix>> = BTreeMap::new();
    for matrix in model.matrices() {
        if let (Place::Block(block), true) = (matrix.place, step.goes_to(&matrix, depth)) {
            blocks.entry(block).or_default().push(matrix);
        }
    }
    blocks
}

/// Outliers of each block, in percent, and its weights.
fn outliers(
    job: &Job<'_>,
    source: &Source,
    means: Means<'_>,
    work: &Work,
    blocks: &BTreeMap<usize, Vec<Matrix>>,
) -> Result<(Vec<f64>, Vec<usize>), EngineError> {
    job.progress.begin("counting outliers", 0);
    let walk = over_rows(job, source, means, work)?;
    let mut squares: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let walked = walk.blocks(&mut |seen| -> Result<(), MethodError> {
        let Seen::Input { group, values, .. } = seen else { return Ok(()) };
        for linear in &group.linears {
            let sums = squares.entry(linear.weight.clone());
            let sums = sums.or_insert_with(|| vec![0.0; linear.in_features]);
            for token in values.chunks_exact(linear.in_features.max(1)) {
                for (sum, value) in sums.iter_mut().zip(token) {
                    *sum += f64::from(*value).powi(2);
                }
            }
        }
        Ok(())
    });
    job.progress.end();
    walked.map_err(super::structure::ended)?;
    let (mut percent, mut weights) = (vec![], vec![]);
    for matrices in blocks.values() {
        let mut outliers = Outliers::default();
        for matrix in matrices {
            let name = &matrix.linear.weight;
            let lengths = squares.get(name).map(|sums| sums.iter().map(|sum| sum.sqrt()).collect());
            let lengths: Vec<f64> = lengths.unwrap_or_else(|| vec![0.0; matrix.linear.in_features]);
            outliers.add(&source.weight(name)?.decode(), &lengths);
        }
        percent.push(outliers.percent());
        weights.push(outliers.weights());
    }
    Ok((percent, weights))
}
