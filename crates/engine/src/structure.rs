//! Steps that cut a model smaller: they come first, go to the whole of it, and what comes after them
//! sees nothing but the smaller model.

use crate::EngineError;
use crate::plan::untied;
use crate::recipe::{Recipe, Step};
use lapidary_formats::{Selected, Source};
use lapidary_methods::{Method, Note, Structural};
use lapidary_model::cut::{Cut, carve};
use lapidary_model::{Graph, Op, Spec, spec};
use lapidary_weight::Edits;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Name of the file in a result that tells what stayed of the source.
pub(crate) const STRUCTURE: &str = "structure.json";

/// What a step has cut: kept in the journal, and told in the result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CutRecord {
    /// The step.
    pub step: String,
    /// In a line.
    pub summary: String,
    /// What stayed.
    pub cut: Cut,
    /// What the choice was made by, where it was made by numbers.
    pub scores: BTreeMap<String, Vec<f64>>,
    /// What was cut otherwise than it was asked for.
    pub notes: Vec<Note>,
}

/// A step, and how it cuts.
type Cutting<'a> = (&'a Step, Box<dyn Structural>);

/// The steps of a recipe that cut.
///
/// # Errors
/// When one comes after a step of another kind, or is to go to some layers only.
pub(crate) fn steps(recipe: &Recipe) -> Result<Vec<Cutting<'_>>, EngineError> {
    let mut found: Vec<Cutting<'_>> = vec![];
    for (index, step) in recipe.steps.iter().enumerate() {
        let Method::Structural(method) = step.build()? else { continue };
        let refuse = |what: &str| Err(refused(step, what));
        if found.len() < index {
            return refuse(
                "it cuts the model smaller, and what steps before it chose would no longer hold; \
                 put it before them",
            );
        }
        if !goes_to_all(step) {
            return refuse("it cuts all layers alike; leave out targets, ignore and layers");
        }
        found.push((step, method));
    }
    Ok(found)
}

/// Whether a step says of no layer that it does not go there.
pub(crate) fn goes_to_all(step: &Step) -> bool {
    let all = step.targets.iter().all(|pattern| pattern.text() == "Linear");
    all && step.ignore.is_empty() && step.layers.is_none()
}

/// The most tokens of which gradients are taken at once.
///
/// # Errors
/// As [`steps`].
pub(crate) fn taped_tokens(recipe: &Recipe) -> Result<usize, EngineError> {
    let steps = steps(recipe)?;
    Ok(steps.iter().map(|(_, method)| method.taped_tokens()).max().unwrap_or(0))
}

/// Whether a choice depends on calibration rows.
///
/// # Errors
/// As [`steps`].
pub(crate) fn wants_rows(recipe: &Recipe) -> Result<bool, EngineError> {
    Ok(steps(recipe)?.iter().any(|(_, method)| method.needs_rows()))
}

/// A source of the size that it will be cut to, and what is to be said of that; `None` where nothing is
/// to be cut, or everything is.
///
/// # Errors
/// When a step cannot cut this model.
pub(crate) fn provisional(
    source: &Source,
    recipe: &Recipe,
) -> Result<Option<(Source, Vec<Note>)>, EngineError> {
    let steps = steps(recipe)?;
    if source.is_cut() || steps.is_empty() {
        return Ok(None);
    }
    let (mut cut, mut notes) = (None, vec![]);
    for (step, method) in &steps {
        let before = cut.as_ref().unwrap_or(source);
        let apart = untied(before, method.unties())?;
        let before = apart.as_ref().unwrap_or(before);
        let chosen =
            method.provisional(&spec(before.config())?).map_err(|error| refused(step, error))?;
        let certain = !method.needs_rows();
        let (after, summary) = carved(before, step, &chosen.cut, Edits::new(), certain)?;
        notes.push(Note::fact(summary));
        notes.extend(chosen.notes);
        cut = Some(after);
    }
    Ok(cut.map(|cut| (cut, notes)))
}

/// The name of the step before what stands in its way.
fn refused(step: &Step, what: impl std::fmt::Display) -> EngineError {
    EngineError::Refused(format!("step {}: {what}", step.name))
}

/// The source after a cut, and what was cut in a line; with the numbers of the layers where these are
/// known.
///
/// # Errors
/// When the cut is none of this model.
pub(crate) fn carved(
    source: &Source,
    step: &Step,
    cut: &Cut,
    edits: Edits,
    is_certain: bool,
) -> Result<(Source, String), EngineError> {
    let before = spec(source.config())?;
    let carving = carve(source.config(), cut).map_err(|error| refused(step, error))?;
    let (mut selected, mut removed) = (vec![], vec![]);
    for tensor in source.tensors() {
        let Some(name) = carving.name(&tensor.name) else {
            let which = if is_certain { "" } else { ", which chooses among tensors like it" };
            removed.push((tensor.name.clone(), format!("left out by step {}{which}", step.name)));
            continue;
        };
        let selection = carving.selections.get(&tensor.name).cloned().unwrap_or_default();
        let (rows, columns) = (selection.rows, selection.columns);
        selected.push(Selected { name, of: tensor.name.clone(), rows, columns });
    }
    if cut.channels.is_some() {
        check_channels(source, &before, &carving.selections.keys().collect::<Vec<_>>())?;
    }
    let summary = summary(&before, &carving.spec, cut, is_certain);
    let cut = source.edited(edits).cut(carving.config, selected, removed)?;
    Ok((cut, format!("{}: {summary}", step.name)))
}

/// Refuses a cut of channels where tensors that the graphs do not know may have them too.
fn check_channels(source: &Source, spec: &Spec, cut: &[&String]) -> Result<(), EngineError> {
    let width = spec.hidden_size;
    let unknown = source.tensors().iter().find(|tensor| {
        tensor.shape.contains(&width)
            && !cut.iter().any(|name| **name == tensor.name)
            && !spec.tensors().iter().any(|(name, _)| *name == tensor.name)
    });
    match unknown {
        None => Ok(()),
        Some(tensor) => Err(EngineError::Refused(format!(
            "{}: no graph of the model has it, and its shape {:?} has the {width} channels that are \
             to be cut",
            tensor.name, tensor.shape
        ))),
    }
}

/// What a cut leaves, in a line.
fn summary(before: &Spec, after: &Spec, cut: &Cut, is_certain: bool) -> String {
    let mut parts = vec![];
    let (all, left) = (before.blocks.len(), after.blocks.len());
    if let (true, Some(blocks)) = (left < all, &cut.blocks) {
        let gone = (0..all).filter(|block| !blocks.contains(block));
        let gone: Vec<String> = gone.map(|block| block.to_string()).collect();
        parts.push(match is_certain {
            true => format!("layers {} of {all} are left out", gone.join(", ")),
            false => format!("{} of {all} layers are left out", all - left),
        });
    }
    let sizes = |spec: &Spec| {
        let graph = spec.blocks.first();
        let attention = graph.and_then(|graph| {
            graph.nodes.iter().find_map(|node| match &node.op {
                Op::Attention(attention) => Some((attention.heads, attention.kv_heads)),
                _ => None,
            })
        });
        let (heads, keys) = attention.unwrap_or_default();
        [
            ("neurons", neurons(spec)),
            ("query heads", heads),
            ("key heads", keys),
            ("experts", spec.blocks.iter().map(Graph::experts).max().unwrap_or(0)),
            ("channels", spec.hidden_size),
        ]
    };
    for ((what, before), (_, after)) in sizes(before).into_iter().zip(sizes(after)) {
        if before != after {
            parts.push(format!("{after} of {before} {what} stay"));
        }
    }
    if parts.is_empty() { "nothing is cut".to_owned() } else { parts.join("; ") }
}

/// Neurons of the first feed-forward.
fn neurons(spec: &Spec) -> usize {
    let units = spec.blocks.iter().flat_map(|graph| graph.units(spec.hidden_size));
    let is_neurons =
        |units: &lapidary_model::cut::Units| units.kind == lapidary_model::cut::UnitKind::Neurons;
    units.into_iter().find(is_neurons).map_or(0, |units| units.count)
}
