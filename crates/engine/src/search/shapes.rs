//! The search for the best shape of a model: recipes whose steps that cut leave something open.
//!
//! Shapes are few and change everything at once, so that each is tried: cut as its steps say, with the
//! divergence of what is left from the whole model measured on rows of the calibration text. A shape
//! that another one within the budget contains, tensor by tensor, is not: to cut more is not better.

use super::report::{FILE_NAME, RECIPE_NAME, recipe_text};
use super::{Found, merge};
use crate::EngineError;
use crate::plan::{Limits, Plan};
use crate::recipe::{Budget, Recipe, Step};
use crate::structure::{CutRecord, steps};
use lapidary_formats::Source;
use lapidary_store::Fs;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The shapes that a recipe leaves open.
pub struct Shapes<'a> {
    fs: &'a Arc<dyn Fs>,
    source: &'a Source,
    recipe: &'a Recipe,
    budget: Budget,
    limits: Limits,
    /// By falling bytes.
    pub shapes: Vec<Shape>,
    /// Shapes that the model or the format does not allow, with the reason.
    pub refused: Vec<(String, String)>,
}

/// One of them.
pub struct Shape {
    /// What tells it from the others.
    pub label: String,
    /// Its index among the recipe's candidates.
    pub(crate) index: usize,
    /// What it would do.
    pub plan: Plan,
    /// Exact bytes of the weight files.
    pub file_bytes: u64,
    /// Parameters that are left.
    pub parameters: u64,
    /// How many times as fast tokens are expected to be written.
    pub speedup: f64,
    /// Whether it is within the budget, as far as that can be known beforehand.
    pub fits: bool,
    /// Whether it is worth a try: within the budget, and contained in no other that is.
    pub is_tried: bool,
}

/// What came of a shape.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Trial {
    /// Index of its candidate.
    pub(crate) candidate: usize,
    /// Divergence from the whole model: nats a token, or without a language model's head the relative
    /// error of the last hidden states.
    pub(crate) divergence: f64,
    /// What was cut.
    pub(crate) cuts: Vec<CutRecord>,
}

impl<'a> Shapes<'a> {
    /// Whether the candidates of a recipe cut the model in more than one way.
    ///
    /// # Errors
    /// When a step that cuts stands where it cannot.
    pub fn are_open(recipe: &Recipe) -> Result<bool, EngineError> {
        let mut cuts = BTreeSet::new();
        for index in 0..recipe.candidates.len() {
            let candidate = recipe.candidate(index);
            let steps = steps(&candidate)?;
            let steps: Value = steps.iter().map(|(step, _)| step.to_json()).collect();
            cuts.insert(steps.to_string());
        }
        Ok(cuts.len() > 1)
    }

    /// Plans every shape.
    ///
    /// # Errors
    /// When none can be planned (the error is the first one's), when something else is open too, or when
    /// no shape is within the budget.
    pub fn new(
        fs: &'a Arc<dyn Fs>,
        source: &'a Source,
        recipe: &'a Recipe,
        limits: Limits,
        shard_bytes: Option<u64>,
    ) -> Result<Self, EngineError> {
        let none = || EngineError::Internal("a search without a budget".to_owned());
        let budget = recipe.budget.ok_or_else(none)?;
        only_shapes_are_open(recipe)?;
        let (mut shapes, mut refused) = (vec![], vec![]);
        for (index, label) in merge::labels(&recipe.candidates).into_iter().enumerate() {
            match Plan::new(fs, source, &recipe.candidate(index), limits) {
                Ok(plan) => shapes.push(Shape {
                    label,
                    index,
                    file_bytes: plan.container.file_bytes(source, &plan.tensors, shard_bytes)?,
                    parameters: plan.parameters(),
                    speedup: plan.expected_speedup(source)?,
                    plan,
                    fits: false,
                    is_tried: false,
                }),
                Err(EngineError::Refused(why)) => refused.push((label, why)),
                Err(error) => return Err(error),
            }
        }
        if shapes.is_empty() {
            let why = refused.into_iter().next().map(|(_, why)| why).unwrap_or_default();
            return Err(EngineError::Refused(why));
        }
        shapes.sort_by_key(|shape| std::cmp::Reverse(shape.file_bytes));
        let mut found = Self { fs, source, recipe, budget, limits, shapes, refused };
        found.settle()?;
        Ok(found)
    }

    /// The budget.
    pub fn budget(&self) -> Budget {
        self.budget
    }

    /// The plan that writes the most.
    pub fn largest(&self) -> &Plan {
        &self.shapes[0].plan
    }

    /// Bytes of memory that the largest takes.
    pub fn memory(&self) -> u64 {
        self.shapes.iter().map(|shape| shape.plan.memory.peak).max().unwrap_or(0)
    }

    /// Those worth a try, in the order of their trials: where the smallest that is good enough is
    /// wanted, from the smallest on.
    pub(crate) fn tried(&self) -> Vec<&Shape> {
        let mut tried: Vec<&Shape> = self.shapes.iter().filter(|shape| shape.is_tried).collect();
        if let Budget::Divergence(_) = self.budget {
            tried.reverse();
        }
        tried
    }

    /// Whether a trial ends the search.
    pub(crate) fn is_settled_by(&self, trial: &Trial) -> bool {
        matches!(self.budget, Budget::Divergence(most) if trial.divergence <= most)
    }

    /// The recipe of a shape.
    pub(crate) fn recipe_of(&self, candidate: usize) -> Recipe {
        self.recipe.candidate(candidate)
    }

    /// Which shapes fit, and which are worth a try.
    fn settle(&mut self) -> Result<(), EngineError> {
        let budget = self.budget;
        if let (Budget::Divergence(_), None) = (budget, &self.largest().spec.head) {
            let what = "the model has no language-model head and so no divergence to limit; use \
                        --size, --parameters or --speedup";
            return Err(EngineError::Refused(what.to_owned()));
        }
        for shape in &mut self.shapes {
            shape.fits = match budget {
                Budget::Size(bytes) => shape.file_bytes <= bytes,
                Budget::Parameters(count) => shape.parameters <= count,
                Budget::Speedup(times) => shape.speedup >= times,
                Budget::Divergence(_) => true,
                Budget::BitsPerWeight(_) => {
                    let what = "to cut changes no bits a weight; use --size, --parameters, --speedup \
                                or --max-kl";
                    return Err(EngineError::Refused(what.to_owned()));
                }
            };
        }
        let sizes: Vec<Sizes> = self.shapes.iter().map(|shape| Sizes::of(&shape.plan)).collect();
        let fitting: Vec<bool> = self.shapes.iter().map(|shape| shape.fits).collect();
        for (index, shape) in self.shapes.iter_mut().enumerate() {
            // Any shape may be the smallest that is good enough.
            let all = matches!(budget, Budget::Divergence(_));
            let mut others = sizes.iter().zip(&fitting);
            let is_within = others.any(|(other, fits)| *fits && other.contains(&sizes[index]));
            shape.is_tried = shape.fits && (all || !is_within);
        }
        match (self.shapes.iter().any(|shape| shape.fits), self.shapes.last()) {
            (false, Some(least)) => Err(EngineError::Refused(format!(
                "{budget} cannot be reached: the smallest shape ({}) has weight files of {} bytes, {} \
                 parameters and an expected speed of {:.3}; ask for that or more, or list larger cuts",
                least.label, least.file_bytes, least.parameters, least.speedup
            ))),
            _ => Ok(()),
        }
    }

    /// Chooses, from the trials there were.
    pub(crate) fn choose(&self, trials: &[Trial]) -> Result<(Found, Trial), EngineError> {
        let mut good = trials.iter().filter(|trial| match self.budget {
            Budget::Divergence(most) => trial.divergence <= most,
            _ => true,
        });
        let least = |a: &&Trial, b: &&Trial| a.divergence.total_cmp(&b.divergence);
        let best = match self.budget {
            // They were tried from the smallest on.
            Budget::Divergence(_) => good.next_back(),
            _ => good.min_by(least),
        };
        let best = best.ok_or_else(|| {
            let least = trials.iter().map(|trial| trial.divergence).fold(f64::INFINITY, f64::min);
            EngineError::Refused(format!(
                "{} cannot be reached: the least of all shapes is {least:.6}; ask for more, or list \
                 smaller cuts",
                self.budget
            ))
        })?;
        let chosen = self.shapes.iter().find(|shape| shape.index == best.candidate);
        let gone = || EngineError::Internal("a trial of no shape".to_owned());
        let chosen = chosen.ok_or_else(gone)?;
        let steps: Vec<Step> = self.recipe.candidates[chosen.index].clone();
        let text = recipe_text(&self.recipe.closed(steps));
        // What is written down is what is done.
        let mut recipe = Recipe::parse(&text)?;
        recipe.calibration.clone_from(&self.recipe.calibration);
        let plan = Plan::new(self.fs, self.source, &recipe, self.limits)?;
        let summary = vec![format!(
            "chosen: {}, {:.2} million parameters, {:.1} MB, expected to be {:.2} times as fast; \
             divergence {:.5} before what follows; {} of {} shapes tried",
            chosen.label,
            chosen.parameters as f64 / 1e6,
            chosen.file_bytes as f64 / 1e6,
            chosen.speedup,
            best.divergence,
            trials.len(),
            self.shapes.len()
        )];
        let report = self.report(trials, chosen)?;
        let files = vec![(RECIPE_NAME, text.into_bytes()), (FILE_NAME, report)];
        Ok((Found { recipe, plan, files, summary }, best.clone()))
    }

    /// `search.json`.
    fn report(&self, trials: &[Trial], chosen: &Shape) -> Result<Vec<u8>, EngineError> {
        let of_shape = |shape: &Shape| {
            let trial = trials.iter().find(|trial| trial.candidate == shape.index);
            let mut json = shape.to_json();
            json["divergence"] = json!(trial.map(|trial| trial.divergence));
            json["chosen"] = json!(shape.index == chosen.index);
            json
        };
        let report = json!({
            "budget": self.budget.to_json(),
            "format": chosen.plan.format.id(),
            "shapes": self.shapes.iter().map(of_shape).collect::<Vec<_>>(),
            "refused": self.refused,
        });
        let mut bytes = serde_json::to_vec_pretty(&report)
            .map_err(|error| EngineError::Internal(error.to_string()))?;
        bytes.push(b'\n');
        Ok(bytes)
    }
}

impl Shape {
    /// What is known of it before it is tried.
    pub fn to_json(&self) -> Value {
        json!({
            "label": self.label,
            "weight_file_bytes": self.file_bytes,
            "parameters": self.parameters,
            "expected_speedup": self.speedup,
            "fits": self.fits,
            "is_tried": self.is_tried,
        })
    }
}

/// Refuses recipes that leave more open than how the model is cut.
fn only_shapes_are_open(recipe: &Recipe) -> Result<(), EngineError> {
    let mut after: BTreeMap<String, usize> = BTreeMap::new();
    for (index, candidate) in recipe.candidates.iter().enumerate() {
        let cuts = steps(&recipe.candidate(index))?.len();
        let rest: Value = candidate[cuts..].iter().map(Step::to_json).collect();
        *after.entry(rest.to_string()).or_default() += 1;
    }
    match after.len() {
        0 | 1 => Ok(()),
        _ => Err(EngineError::Refused(
            "both how the model is cut and what is done afterwards are open; search for the shape \
             first, and write its recipe.yaml's steps before those that are still open"
                .to_owned(),
        )),
    }
}

/// The shapes of a model's tensors.
struct Sizes(BTreeMap<String, Vec<usize>>);

impl Sizes {
    fn of(plan: &Plan) -> Self {
        Self(plan.spec.tensors().into_iter().collect())
    }

    /// Whether every tensor of another model has its place in one of this, which is larger.
    fn contains(&self, other: &Self) -> bool {
        let is_in = |(name, inner): (&String, &Vec<usize>)| {
            let Some(outer) = self.0.get(name) else { return false };
            outer.len() == inner.len() && outer.iter().zip(inner).all(|(o, i)| o >= i)
        };
        self.0 != other.0 && other.0.iter().all(is_in)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_contains_those_with_less_of_everything() {
        let sizes = |tensors: &[(&str, [usize; 2])]| {
            let owned = |(name, shape): &(&str, [usize; 2])| ((*name).to_owned(), shape.to_vec());
            Sizes(tensors.iter().map(owned).collect())
        };
        let whole = sizes(&[("0", [4, 4]), ("1", [4, 4])]);
        let (shallow, thin) = (sizes(&[("0", [4, 4])]), sizes(&[("0", [3, 4]), ("1", [3, 4])]));
        assert!(whole.contains(&shallow) && whole.contains(&thin));
        assert!(!shallow.contains(&thin) && !thin.contains(&shallow));
        assert!(!whole.contains(&whole) && !thin.contains(&whole));
    }
}
