//! The search for the best candidate of every layer under a budget.
//!
//! A candidate is a complete way to fill in what a recipe leaves open, so that it may be a method, a
//! chain of them, or any of their parameters. Layers that share an input make a unit and take the
//! same candidate: engines fuse them. Measured are the output error `‖W X − Ŵ X‖² / ‖W X‖²` of each
//! candidate, and the divergence of the whole model with one unit alone changed, at a small and at a
//! large error: it grows in proportion to the error while that is small, and often with its square
//! and more when it is not. What the units lose is added up, and `lapidary_methods::allocate` chooses.
//!
//! The result is an ordinary recipe.

mod budget;
mod memory;
mod merge;
mod report;
mod shapes;

pub(crate) use memory::{LOGIT_ROWS, PROBE_ROWS, PROBE_TOKENS, is_resident};
pub use report::{FILE_NAME as SEARCH, RECIPE_NAME};
pub(crate) use shapes::Trial;
pub use shapes::{Shape, Shapes};

use crate::EngineError;
use crate::plan::{Limits, Plan};
use crate::recipe::{Budget, Depth, Recipe, Step};
use lapidary_formats::Source;
use lapidary_methods::allocate::{Allocation, Choice, frontier};
use lapidary_methods::{Method, NoteKind};
use lapidary_model::{Graph, Matrix, Place};
use lapidary_store::Fs;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;

/// Everything a search chooses from, before anything is measured.
pub struct Survey<'a> {
    fs: &'a Arc<dyn Fs>,
    source: &'a Source,
    recipe: &'a Recipe,
    budget: Budget,
    limits: Limits,
    shard_bytes: Option<u64>,
    /// The candidates that the model and the format allow.
    pub candidates: Vec<Candidate>,
    /// Candidates that they do not allow, with the reason.
    pub refused: Vec<(String, String)>,
    /// What takes the same candidate: those of the blocks, in order, then those before and after.
    pub units: Vec<Unit>,
}

/// A way to fill in what the recipe leaves open.
pub struct Candidate {
    /// What tells it from the others.
    pub label: String,
    /// Its index among the recipe's.
    pub index: usize,
    /// What it would do to the whole model.
    pub plan: Plan,
}

/// Layers that share an input.
#[derive(Debug, Clone, PartialEq)]
pub struct Unit {
    /// Where they stand.
    pub place: Place,
    /// Their modules.
    pub modules: Vec<String>,
    /// Their weights.
    pub weights: u64,
    /// What they may become: no two the same.
    pub choices: Vec<UnitChoice>,
}

/// What a unit may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnitChoice {
    /// Index among the survey's candidates.
    pub candidate: usize,
    /// Bytes stored for the unit.
    pub bytes: u64,
    /// Weights of the unit that are not pruned.
    pub left: u64,
}

/// What was measured of a unit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// Relative output error of each choice.
    pub(crate) errors: Vec<f64>,
    /// The choices whose divergences were measured, by rising error.
    pub(crate) probes: Vec<Probe>,
}

/// A choice of a unit whose effect on the whole model was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Probe {
    /// The choice.
    pub(crate) choice: usize,
    /// Divergence of the model with only this unit changed: nats a token, or without a language
    /// model's head the relative error of its last hidden states.
    pub(crate) divergence: f64,
}

impl Measured {
    /// Predicted divergence of the model when only this unit is changed, with this error.
    fn loss(&self, error: f64) -> f64 {
        let point = |probe: &Probe| (self.errors[probe.choice], probe.divergence);
        let points: Vec<(f64, f64)> =
            self.probes.iter().map(point).filter(|(e, loss)| *e > 0.0 && *loss > 0.0).collect();
        let (Some((least, low)), Some((most, high))) = (points.first(), points.last()) else {
            return 0.0;
        };
        // Small changes: in proportion to the error, whose square root is their size. Between what
        // was measured, by the power law through it.
        if error <= *least {
            low * error / least
        } else if error >= *most {
            high * error / most
        } else {
            low * (error / least).powf((high / low).ln() / (most / least).ln())
        }
    }
}

/// What a search found.
pub(crate) struct Found {
    /// The recipe, with nothing open.
    pub(crate) recipe: Recipe,
    /// What it would do.
    pub(crate) plan: Plan,
    /// Files for the output folder.
    pub(crate) files: Vec<(&'static str, Vec<u8>)>,
    /// In one line for each group of layers.
    pub(crate) summary: Vec<String>,
}

/// Refuses what changes several layers together, since a search measures each alone. What is done to
/// the whole model before it may stand there, the same in all candidates.
fn check_candidates(candidates: &[Vec<Step>]) -> Result<(), EngineError> {
    let refuse = |what: String| Err(EngineError::Refused(what));
    let mut of_first = None;
    for steps in candidates {
        let mut rewriting = vec![];
        for step in steps {
            match step.build()? {
                Method::Blockwise(_) => {
                    return refuse(format!(
                        "step {} changes several layers together, and a search measures each alone; \
                         leave it out, or the budget",
                        step.name
                    ));
                }
                Method::Graphwise(_) => rewriting.push(merge::parameters(step)),
                _ => {}
            }
        }
        if *of_first.get_or_insert_with(|| rewriting.clone()) != rewriting {
            return refuse(
                "the whole model is rewritten in another way in each candidate, and a search measures \
                 each layer alone; rewrite it the same way in all, or leave out the budget"
                    .to_owned(),
            );
        }
    }
    Ok(())
}

impl<'a> Survey<'a> {
    /// Plans every candidate of a recipe that has a budget.
    ///
    /// # Errors
    /// When no candidate can be planned (the error is the first one's), when candidates go to
    /// different layers, or when the budget is below what the smallest need.
    pub fn new(
        fs: &'a Arc<dyn Fs>,
        source: &'a Source,
        recipe: &'a Recipe,
        limits: Limits,
        shard_bytes: Option<u64>,
    ) -> Result<Self, EngineError> {
        let survey = Self { limits, ..Self::within(fs, source, recipe, limits, shard_bytes)? };
        let Some(excess) = memory::excess(&survey) else { return survey.checked() };
        // The plans do not know what measuring takes: with that much less they keep their
        // activations on the disk.
        let less = limits.memory.map(|limit| limit.saturating_sub(memory::beside_the_job(&survey)));
        match Self::within(fs, source, recipe, Limits { memory: less, ..limits }, shard_bytes) {
            Ok(survey) => Self { limits, ..survey }.checked(),
            Err(_) => Err(excess),
        }
    }

    /// The survey, when its budget can be kept.
    fn checked(self) -> Result<Self, EngineError> {
        match memory::excess(&self) {
            Some(excess) => Err(excess),
            None => self.check_budget().map(|()| self),
        }
    }

    fn within(
        fs: &'a Arc<dyn Fs>,
        source: &'a Source,
        recipe: &'a Recipe,
        limits: Limits,
        shard_bytes: Option<u64>,
    ) -> Result<Self, EngineError> {
        let none = || EngineError::Internal("a search without a budget".to_owned());
        let budget = recipe.budget.ok_or_else(none)?;
        check_candidates(&recipe.candidates)?;
        let labels = merge::labels(&recipe.candidates);
        let (mut candidates, mut refused, mut first) = (vec![], vec![], None);
        for (index, label) in labels.into_iter().enumerate() {
            match Plan::new(fs, source, &recipe.candidate(index), limits) {
                Ok(plan) => candidates.push(Candidate { label, index, plan }),
                Err(EngineError::Refused(why)) => {
                    first.get_or_insert_with(|| why.clone());
                    refused.push((label, why));
                }
                Err(error) => return Err(error),
            }
        }
        if candidates.is_empty() {
            let why = first.unwrap_or_else(|| "the recipe leaves nothing open".to_owned());
            return Err(EngineError::Refused(why));
        }
        same_layers(&candidates)?;
        let units = units(recipe, &candidates);
        Ok(Self { fs, source, recipe, budget, limits, shard_bytes, candidates, refused, units })
    }

    /// The budget.
    pub fn budget(&self) -> Budget {
        self.budget
    }

    /// Bytes of memory that measuring takes at the most.
    pub fn memory(&self) -> u64 {
        memory::peak(self)
    }

    /// The plan that stands for all of them where they do not differ.
    pub fn plan(&self) -> &Plan {
        &self.candidates[0].plan
    }

    /// The plan of the candidate that writes the most.
    pub(crate) fn largest(&self) -> &Plan {
        let plans = self.candidates.iter().map(|candidate| &candidate.plan);
        plans.max_by_key(|plan| plan.output_bytes()).unwrap_or_else(|| self.plan())
    }

    /// Bits stored for each weight, of the units that a budget of them counts, when each takes the
    /// choice that `size` prefers.
    fn bits_per_weight(&self, pick: impl Fn(&Unit) -> u64) -> f64 {
        let counted = || self.units.iter().filter(|unit| is_counted(unit));
        let weights: u64 = counted().map(|unit| unit.weights).sum();
        let bytes: u64 = counted().map(pick).sum();
        8.0 * bytes as f64 / weights.max(1) as f64
    }

    /// Least and most bits stored for each weight.
    pub fn range_of_bits(&self) -> (f64, f64) {
        (self.bits_per_weight(least_bytes), self.bits_per_weight(most_bytes))
    }

    /// Least and most bytes of the weight files.
    ///
    /// # Errors
    /// When a plan refuses.
    pub fn range_of_sizes(&self) -> Result<(u64, u64), EngineError> {
        let size = |pick: fn(&Unit) -> u64| -> Result<u64, EngineError> {
            let index = |unit: &Unit| {
                let wanted = pick(unit);
                unit.choices.iter().position(|choice| choice.bytes == wanted).unwrap_or(0)
            };
            let choices: Vec<usize> = self.units.iter().map(index).collect();
            self.file_bytes(&self.plan_of(&self.merged(&choices)?)?)
        };
        Ok((size(least_bytes)?, size(most_bytes)?))
    }

    /// Chooses, from what was measured of every unit.
    pub(crate) fn choose(&self, measured: &[Measured]) -> Result<Found, EngineError> {
        let losses = self.losses(measured);
        let allocation = self.within_budget(&losses)?;
        let none = || EngineError::Internal("a budget that fitted fits no longer".to_owned());
        let allocation = allocation.ok_or_else(none)?;
        let recipe = self.merged(&allocation.choices)?;
        let text = report::recipe_text(&recipe);
        // What is written down is what is done.
        let mut recipe = Recipe::parse(&text)?;
        recipe.calibration.clone_from(&self.recipe.calibration);
        let plan = self.plan_of(&recipe)?;
        let report = self.report(measured, &losses, &allocation, &plan)?;
        let summary = self.summary(&losses, &allocation, &plan);
        let files = vec![(RECIPE_NAME, text.into_bytes()), (SEARCH, report)];
        Ok(Found { recipe, plan, files, summary })
    }

    /// Size and predicted loss of every choice.
    fn losses(&self, measured: &[Measured]) -> Vec<Vec<Choice>> {
        let of_unit = |(unit, measured): (&Unit, &Measured)| {
            let choice = |(choice, error): (&UnitChoice, &f64)| Choice {
                size: choice.bytes as f64,
                cost: measured.loss(*error),
            };
            unit.choices.iter().zip(&measured.errors).map(choice).collect()
        };
        self.units.iter().zip(measured).map(of_unit).collect()
    }

    fn plan_of(&self, recipe: &Recipe) -> Result<Plan, EngineError> {
        Plan::new(self.fs, self.source, recipe, self.limits)
    }

    /// Exact bytes of the weight files of a plan.
    fn file_bytes(&self, plan: &Plan) -> Result<u64, EngineError> {
        Ok(plan.container.file_bytes(self.source, &plan.tensors, self.shard_bytes)?)
    }

    /// Chosen layers, as people read them.
    fn summary(&self, losses: &[Vec<Choice>], allocation: &Allocation, plan: &Plan) -> Vec<String> {
        let predicted: f64 =
            losses.iter().zip(&allocation.choices).map(|(unit, index)| unit[*index].cost).sum();
        let chosen = self.units.iter().zip(&allocation.choices);
        let chosen: Vec<(usize, &Unit)> =
            chosen.map(|(unit, index)| (unit.choices[*index].candidate, unit)).collect();
        let mut lines = vec![format!(
            "chosen: {:.4} bits a weight, predicted divergence {predicted:.5}, {}",
            plan.bits_per_weight().or_else(|| plan.table_bits_per_weight()).unwrap_or_default(),
            match allocation.gap() {
                0.0 => "proven to be the best of all choices".to_owned(),
                gap => format!("at most {:.4} % from the best of all choices", 100.0 * gap),
            }
        )];
        for (index, candidate) in self.candidates.iter().enumerate() {
            let units = chosen.iter().filter(|(candidate, _)| *candidate == index);
            let layers: usize = units.map(|(_, unit)| unit.modules.len()).sum();
            if layers > 0 {
                lines.push(format!("  {}: {layers} layers", candidate.label));
            }
        }
        lines
    }

    /// Points of the best trade between size and predicted loss.
    fn curve(&self, losses: &[Vec<Choice>]) -> Vec<Value> {
        let points = frontier(&self.counted(losses));
        let counted = self.units.iter().filter(|unit| is_counted(unit));
        let weights: u64 = counted.map(|unit| unit.weights).sum();
        // Enough to draw, the ends included.
        let every = points.len().div_ceil(CURVE_POINTS).max(1);
        let last = points.len().saturating_sub(1);
        let shown = points.iter().enumerate().filter(|(i, _)| i % every == 0 || *i == last);
        let point = |(_, point): (usize, &Choice)| {
            json!({
                "layer_bytes": point.size as u64,
                "bits_per_weight": 8.0 * point.size / weights.max(1) as f64,
                "predicted_divergence": point.cost,
            })
        };
        shown.map(point).collect()
    }
}

/// Most points of the saved curve, about.
const CURVE_POINTS: usize = 256;

/// Whether a budget of bits for each weight counts a unit: all layers of the blocks, and whatever
/// else there is a choice for.
fn is_counted(unit: &Unit) -> bool {
    matches!(unit.place, Place::Block(_)) || unit.choices.len() > 1
}

fn least_bytes(unit: &Unit) -> u64 {
    unit.choices.iter().map(|choice| choice.bytes).min().unwrap_or(0)
}

fn most_bytes(unit: &Unit) -> u64 {
    unit.choices.iter().map(|choice| choice.bytes).max().unwrap_or(0)
}

fn least_cost(choices: &[Choice]) -> f64 {
    choices.iter().map(|choice| choice.cost).fold(f64::INFINITY, f64::min)
}

/// Refuses candidates that do not go to the same layers: there would be nothing to compare.
fn same_layers(candidates: &[Candidate]) -> Result<(), EngineError> {
    let [first, others @ ..] = candidates else { return Ok(()) };
    let modules = |candidate: &Candidate| -> Vec<String> {
        candidate.plan.sites.iter().map(|site| site.linear.module.clone()).collect()
    };
    let wanted = modules(first);
    match others.iter().find(|other| modules(other) != wanted) {
        Some(other) => Err(EngineError::Refused(format!(
            "the candidates {} and {} go to different layers; give them the same targets",
            first.label, other.label
        ))),
        None => Ok(()),
    }
}

/// The units of a model: the layers of each shared input, and each table, with everything they may
/// become.
fn units(recipe: &Recipe, candidates: &[Candidate]) -> Vec<Unit> {
    let Some(plan) = candidates.first().map(|candidate| &candidate.plan) else { return vec![] };
    let matrices = plan.spec.matrices();
    let mut units: Vec<Unit> = vec![];
    for site in &plan.sites {
        let module = &site.linear.module;
        if units.iter().any(|unit| unit.modules.contains(module)) {
            continue;
        }
        let graph = match site.place {
            Place::Embedding => None,
            Place::Block(block) => plan.spec.blocks.get(block),
            Place::Head => plan.spec.head.as_ref(),
        };
        let groups = graph.map(Graph::shared_inputs).unwrap_or_default();
        let siblings = groups.iter().find(|g| g.linears.iter().any(|l| l.module == *module));
        let among = |other: &str| match siblings {
            Some(group) => group.linears.iter().any(|linear| linear.module == other),
            None => other == module,
        };
        let is_site = |matrix: &&Matrix| {
            let other = &matrix.linear.module;
            among(other) && plan.sites.iter().any(|site| site.linear.module == *other)
        };
        let matrices: Vec<&Matrix> = matrices.iter().filter(is_site).collect();
        let linears = || matrices.iter().map(|matrix| &matrix.linear);
        let weights = linears().map(|l| (l.in_features * l.out_features) as u64).sum();
        let modules = linears().map(|linear| linear.module.clone()).collect();
        let choices = choices(recipe, candidates, &matrices, weights);
        units.push(Unit { place: site.place, modules, weights, choices });
    }
    // In the order in which they are measured.
    units.sort_by_key(|unit| !matches!(unit.place, Place::Block(_)));
    units
}

/// What some matrices may become: candidates that do the same to them count once, and one that the
/// format has changed into another does not count beside that other.
fn choices(
    recipe: &Recipe,
    candidates: &[Candidate],
    matrices: &[&Matrix],
    weights: u64,
) -> Vec<UnitChoice> {
    struct Seen {
        choice: UnitChoice,
        does: Value,
        stored: Value,
        is_fallback: bool,
    }
    let mut seen: Vec<Seen> = vec![];
    for (index, candidate) in candidates.iter().enumerate() {
        let plan = &candidate.plan;
        let of_unit = |module: &String| matrices.iter().any(|m| m.linear.module == *module);
        let sites: Vec<_> = plan.sites.iter().filter(|site| of_unit(&site.linear.module)).collect();
        let stored: Value = sites.iter().map(|site| json!(site.outline)).collect();
        let depth = Depth::of(&plan.spec);
        let mut does = merge::what_it_does(&recipe.candidates[candidate.index], matrices, depth);
        let bytes = sites.iter().map(|site| plan.site_bytes(site)).sum();
        let is_fallback =
            plan.notes.iter().any(|(site, note)| of_unit(site) && note.kind == NoteKind::Fallback);
        let pruned: u64 = sites.iter().map(|site| plan.pruned(site)).sum();
        let choice = UnitChoice { candidate: index, bytes, left: weights - pruned };
        if is_fallback {
            // The groups are not those it names.
            merge::forget_groups(&mut does);
        }
        if !seen.iter().any(|other| other.does == does && other.stored == stored) {
            seen.push(Seen { choice, does, stored, is_fallback });
        }
    }
    let stands = |one: &&Seen| {
        let alike = |other: &Seen| !other.is_fallback && other.stored == one.stored;
        !(one.is_fallback && seen.iter().any(alike))
    };
    seen.iter().filter(stands).map(|one| one.choice).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_go_through_what_was_measured() {
        let probe = |choice, divergence| Probe { choice, divergence };
        let errors = vec![0.16, 0.04, 0.01];
        let two = Measured { errors, probes: vec![probe(1, 0.001), probe(0, 0.016)] };
        for (error, loss) in
            [(0.0, 0.0), (0.01, 0.00025), (0.04, 0.001), (0.08, 0.004), (0.16, 0.016)]
        {
            assert!((two.loss(error) - loss).abs() < 1e-12, "{error}: {}", two.loss(error));
        }
        let one = Measured { probes: vec![probe(0, 0.016)], ..two.clone() };
        assert!((one.loss(0.08) - 0.008).abs() < 1e-12);
        let none = Measured { probes: vec![probe(0, 0.0)], ..two };
        assert_eq!(none.loss(0.08), 0.0);
    }
}
