//! What of a recipe a format can hold: a layer's terms, with smaller groups where it must be, and how
//! its inputs are rounded.

use super::SitePlan;
use super::chain::Chained;
use crate::EngineError;
use crate::recipe::Activations;
use lapidary_formats::{Format, Source};
use lapidary_methods::{Note, Tensorwise};
use lapidary_model::{Matrix, Place};
use lapidary_weight::{
    FloatType, Grouping, InputRounding, InputScales, Outline, Tensors, TermOutline,
};
use std::num::NonZeroUsize;

/// A method that a format can hold the output of.
pub(super) struct Fitted {
    pub(super) method: Box<dyn Tensorwise>,
    pub(super) outline: Outline,
    /// What the layer is stored in: the format, or one of its kin.
    pub(super) format: &'static dyn Format,
    /// What departs from the recipe.
    pub(super) note: Option<Note>,
}

/// The method as asked for where the format can hold its output, else with the widest smaller
/// groups that it can, else with a scale a row; the change is noted.
pub(super) fn fit(
    method: Box<dyn Tensorwise>,
    matrix: &Matrix,
    scales: FloatType,
    format: &'static dyn Format,
    inputs: Option<InputRounding>,
) -> Result<Fitted, EngineError> {
    let linear = &matrix.linear;
    let (rows, cols) = (linear.out_features, linear.in_features);
    method
        .check_shape(rows, cols)
        .map_err(|what| EngineError::Refused(format!("{}: {what}", linear.module)))?;
    let outline = method.outline(rows, cols, scales);
    let reason = match holder(format, matrix, &outline, inputs) {
        Ok(format) => return Ok(Fitted { method, outline, format, note: None }),
        Err(reason) => reason,
    };
    let asked = outline.terms.iter().find_map(|term| match term {
        TermOutline::Affine { grouping: Grouping::Columns(width), .. } => Some(width.get()),
        _ => None,
    });
    // Engines want groups of a power of two; 32 is the least that any takes.
    let widths = [256, 128, 64, 32];
    let smaller = widths.into_iter().filter(|width| asked.is_some_and(|asked| *width < asked));
    let columns = smaller.filter_map(NonZeroUsize::new).map(Grouping::Columns);
    for grouping in columns.chain(asked.map(|_| Grouping::Row)) {
        let Some(other) = method.regroup(grouping) else { continue };
        let outline = other.outline(rows, cols, scales);
        if let Ok(holder) = holder(format, matrix, &outline, inputs) {
            let what = format!("{}: {reason}; used {} instead", format.id(), outline.describe());
            let note = Some(Note::fallback(what));
            return Ok(Fitted { method: other, outline, format: holder, note });
        }
    }
    let advice = match &matrix.tied {
        Some(head) => {
            format!("it is the weight of {head} too, which has one of its own with untie: true")
        }
        _ if inputs.is_some() && holder(format, matrix, &outline, None).is_ok() => {
            "add --format compressed-tensors, or native, or --activations none".to_owned()
        }
        _ if method.keeps_floats() => {
            "add --format native, or dense for zeros among plain floats".to_owned()
        }
        _ => "add --format native, which holds any sum of terms".to_owned(),
    };
    let what =
        format!("{}: format {} cannot hold it: {reason}; {advice}", linear.module, format.id());
    Err(EngineError::Refused(what))
}

/// The format that holds a layer: the one that is asked for, or one of its kin.
///
/// # Errors
/// The reason why there is none, for users.
pub(super) fn holder(
    format: &'static dyn Format,
    matrix: &Matrix,
    outline: &Outline,
    inputs: Option<InputRounding>,
) -> Result<&'static dyn Format, String> {
    let holder = inputs.map_or(Ok(format), |inputs| format.with_inputs(outline, inputs))?;
    match matrix.place {
        Place::Embedding => holder.accepts_table(outline)?,
        _ => holder.accepts(outline)?,
    }
    Ok(holder)
}

/// How the inputs of a layer will be rounded when the model is run: as its step says, else, where it
/// is kept as it is, as the source has it.
///
/// # Errors
/// When the step asks for what the layer cannot have.
pub(super) fn inputs_of(
    chained: &Chained,
    matrix: &Matrix,
    source: &Source,
    format: &'static dyn Format,
) -> Result<Option<InputRounding>, EngineError> {
    let (step, linear) = (&chained.step, &matrix.linear);
    let refuse = |what: String| Err(EngineError::Refused(format!("step {step}: {what}")));
    match chained.activations {
        Some(Activations::Floats) => Ok(None),
        Some(Activations::Rounded(_)) if matrix.place == Place::Embedding => refuse(format!(
            "the rows of {} are looked up, so that there are no inputs to round; give the table a step \
             of its own without activations",
            linear.module
        )),
        Some(Activations::Rounded(inputs)) => match inputs.scales {
            InputScales::Channels(width) if linear.in_features % width != 0 => refuse(format!(
                "activations in groups of {width} do not divide the {} inputs of {}",
                linear.in_features, linear.module
            )),
            _ => Ok(Some(inputs)),
        },
        None if chained.method.keeps_stored() => {
            let outline = source.get(&linear.weight).and_then(|tensor| source.outline(tensor));
            let inputs = source.input_rounding(&linear.weight).zip(outline);
            // What the format has no place for is told of by `no_longer_rounded`.
            let held =
                inputs.filter(|(inputs, stored)| format.with_inputs(stored, *inputs).is_ok());
            Ok(held.map(|(inputs, _)| inputs))
        }
        None => Ok(None),
    }
}

/// What is to be said of layers whose inputs are rounded in the source and not in the result.
pub(super) fn no_longer_rounded(source: &Source, sites: &[SitePlan]) -> Option<(String, Note)> {
    let site = |name: &str| sites.iter().find(|site| site.linear.weight == name);
    let tensors = source.tensors().iter().map(|tensor| tensor.name.as_str());
    let is_lost = |name: &&str| {
        source.input_rounding(name).is_some() && site(name).is_none_or(|site| site.inputs.is_none())
    };
    let lost: Vec<&str> = tensors.filter(is_lost).collect();
    let what = format!(
        "the inputs of {} layers are rounded in the source when it is run, and stay floats in the result",
        lost.len()
    );
    // Who encodes a layer anew says how its inputs are to be.
    let is_anew = |name: &&str| site(name).is_some_and(|site| !site.method.keeps_stored());
    let note = if lost.iter().all(is_anew) { Note::fact(what) } else { Note::fallback(what) };
    (!lost.is_empty()).then(|| (String::new(), note))
}
