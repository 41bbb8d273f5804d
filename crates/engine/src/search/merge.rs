//! From a candidate for each unit back to one ordinary recipe.

use super::Survey;
use crate::EngineError;
use crate::plan::matches;
use crate::recipe::{Activations, Depth, Recipe, Step};
use lapidary_formats::Pattern;
use lapidary_methods::Method;
use lapidary_model::Matrix;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// A step, and the modules it goes to.
struct Gathered<'a> {
    /// Its position in its candidate: the order in which steps are done to a layer.
    position: usize,
    step: &'a Step,
    does: Value,
    modules: BTreeSet<&'a str>,
}

impl Survey<'_> {
    /// The recipe that gives every unit its choice.
    pub(super) fn merged(&self, choices: &[usize]) -> Result<Recipe, EngineError> {
        let mut gathered: Vec<Gathered<'_>> = vec![];
        let matrices = self.plan().spec.matrices();
        let depth = Depth::of(&self.plan().spec);
        for (unit, choice) in self.units.iter().zip(choices) {
            let candidate = &self.candidates[unit.choices[*choice].candidate];
            let steps = &self.recipe.candidates[candidate.index];
            for matrix in matrices.iter().filter(|m| unit.modules.contains(&m.linear.module)) {
                let module = matrix.linear.module.as_str();
                let steps =
                    steps.iter().enumerate().filter(|(_, step)| step.goes_to(matrix, depth));
                for (position, step) in steps.filter(|(_, step)| !is_of_all(step)) {
                    let does = parameters(step);
                    let same =
                        |one: &&mut Gathered<'_>| one.position == position && one.does == does;
                    match gathered.iter_mut().find(same) {
                        Some(one) => {
                            one.modules.insert(module);
                        }
                        None => {
                            let modules = BTreeSet::from([module]);
                            gathered.push(Gathered { position, step, does, modules });
                        }
                    }
                }
            }
        }
        gathered.sort_by_key(|one| one.position);
        let first = self.recipe.candidates.first().into_iter().flatten();
        let mut steps: Vec<Step> = first.filter(|step| is_of_all(step)).cloned().collect();
        for one in gathered {
            let texts = compact(&one.modules, &matrices);
            let patterns = texts.iter().map(|text| Pattern::new(text)).collect::<Result<_, _>>();
            let targets = patterns.map_err(|error| EngineError::Internal(error.to_string()))?;
            steps.push(Step { targets, ignore: vec![], layers: None, ..one.step.clone() });
        }
        Ok(self.recipe.closed(steps))
    }
}

/// Whether a step cuts or rewrites the whole model before anything is searched.
fn is_of_all(step: &Step) -> bool {
    matches!(step.build(), Ok(Method::Structural(_) | Method::Graphwise(_)))
}

/// The method of a step with its parameters, whatever it goes to and is called.
pub(super) fn parameters(step: &Step) -> Value {
    let activations = step.activations.map(Activations::to_json);
    json!({ "method": step.method.id, "params": step.params, "activations": activations })
}

/// What the steps of a candidate do to each of some matrices.
pub(super) fn what_it_does(steps: &[Step], matrices: &[&Matrix], depth: Depth) -> Value {
    let to_matrix = |matrix: &&Matrix| -> Value {
        steps.iter().filter(|step| step.goes_to(matrix, depth)).map(parameters).collect()
    };
    matrices.iter().map(to_matrix).collect()
}

/// Takes out of what steps do how their scales are shared.
pub(super) fn forget_groups(does: &mut Value) {
    match does {
        Value::Array(values) => values.iter_mut().for_each(forget_groups),
        Value::Object(fields) => {
            fields.shift_remove("group_size");
            fields.values_mut().for_each(forget_groups);
        }
        _ => {}
    }
}

/// Patterns for some modules, as few as are needed: words for whole kinds, the last part of the name
/// where all that end in it are meant, else whole names.
fn compact(modules: &BTreeSet<&str>, matrices: &[Matrix]) -> Vec<String> {
    let last_part = |module: &str| module.rsplit('.').next().unwrap_or(module).to_owned();
    let words = ["Linear", "Embedding"].map(str::to_owned);
    let kinds: BTreeSet<String> = modules.iter().map(|module| last_part(module)).collect();
    let mut rest = modules.clone();
    let mut texts = vec![];
    for text in words.into_iter().chain(kinds) {
        let Ok(pattern) = Pattern::new(&text) else { continue };
        let named = matrices.iter().filter(|matrix| matches(&pattern, matrix));
        let named: BTreeSet<&str> = named.map(|matrix| matrix.linear.module.as_str()).collect();
        if !named.is_empty() && named.is_subset(modules) && !named.is_disjoint(&rest) {
            rest.retain(|module| !named.contains(module));
            texts.push(text);
        }
    }
    texts.extend(rest.into_iter().map(str::to_owned));
    texts
}

/// What tells candidates apart: for each, its methods with the parameters in which any two steps of
/// the method differ.
pub(super) fn labels(candidates: &[Vec<Step>]) -> Vec<String> {
    let varies = |method: &str, key: &str| {
        let steps = candidates.iter().flatten().filter(|step| step.method.id == method);
        let values: BTreeSet<String> = steps.map(|step| step.params[key].to_string()).collect();
        values.len() > 1
    };
    let of_step = |step: &Step| {
        let params = step.params.as_object().into_iter().flatten();
        let varying = params.filter(|(key, _)| varies(step.method.id, key));
        let values = varying.map(|(key, value)| format!("{key} {}", plain(value)));
        [step.method.id.to_owned()].into_iter().chain(values).collect::<Vec<_>>().join(" ")
    };
    let of_steps = |steps: &Vec<Step>| steps.iter().map(of_step).collect::<Vec<_>>().join(" + ");
    candidates.iter().map(of_steps).collect()
}

/// A value without quotes.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
