//! The source as the recipe wants it before anything is encoded: a head with a weight of its own,
//! where it shares the embedding's and the two are to be apart (the same numbers under a second name,
//! each then compressed or copied on its own), and the edits of a step that rewrites the model.

use crate::EngineError;
use crate::recipe::Recipe;
use crate::structure;
use lapidary_formats::Source;
use lapidary_methods::{Graphwise, Method, Note};
use lapidary_model::{Graph, ModelError, Place, Spec, UNKNOWN, by_shape, spec};
use serde_json::json;

/// What is known of a source's model: its family's graphs, or with `allow_unknown` where there is no
/// family the layers that are found by their shapes.
///
/// # Errors
/// When the configuration cannot be read.
pub(crate) fn spec_of(source: &Source, recipe: &Recipe) -> Result<Spec, EngineError> {
    match spec(source.config()) {
        Err(ModelError::UnknownArchitecture { .. }) if recipe.allow_unknown => {
            let tensors = source.tensors().iter();
            Ok(by_shape(tensors.map(|tensor| (tensor.name.as_str(), &tensor.shape[..]))))
        }
        known => Ok(known?),
    }
}

/// What is said of a model whose layers were found by their shapes.
pub(super) fn by_shapes(spec: &Spec) -> Option<(String, Note)> {
    let what = "no family knows this model: its linear layers were found by their shapes, and the \
                rest is copied";
    (spec.family == UNKNOWN).then(|| (String::new(), Note::fallback(what)))
}

/// The source as its model is rewritten and untied; `None` when the recipe asks for neither, or it
/// is so already. `seed` keys random choices.
///
/// # Errors
/// When the configuration cannot be read, or the model is of a structure that cannot be rewritten.
pub(crate) fn prepared(
    source: &Source,
    recipe: &Recipe,
    seed: u64,
) -> Result<Option<Source>, EngineError> {
    let is_rewritten = recipe.untie || graphwise(recipe)?.is_some();
    if is_rewritten && spec_of(source, recipe)?.family == UNKNOWN {
        let what = "no family knows this model, so that it cannot be rewritten or untied; leave out \
                    untie and the steps that rewrite it";
        return Err(EngineError::Refused(what.to_owned()));
    }
    let Some(method) = graphwise(recipe)?.filter(|_| !source.has_edits()) else {
        return untied(source, recipe.untie);
    };
    let apart = untied(source, recipe.untie || method.unties())?;
    let source = apart.as_ref().unwrap_or(source);
    let edits = method.rewrite(&spec(source.config())?, seed)?;
    Ok(Some(source.edited(edits)))
}

/// What the step that rewrites the model leaves as it is.
///
/// # Errors
/// As [`prepared`].
pub(super) fn left_as_it_is(
    recipe: &Recipe,
    spec: &Spec,
) -> Result<Vec<(String, Note)>, EngineError> {
    Ok(graphwise(recipe)?.map_or_else(Vec::new, |method| method.notes(spec)))
}

/// The step that rewrites the model, which must be the first and go to the whole of it.
fn graphwise(recipe: &Recipe) -> Result<Option<Box<dyn Graphwise>>, EngineError> {
    let (mut found, first) = (None, structure::steps(recipe)?.len());
    for (index, step) in recipe.steps.iter().enumerate() {
        let Method::Graphwise(method) = step.build()? else { continue };
        let refuse = |what: &str| Err(EngineError::Refused(format!("step {}: {what}", step.name)));
        if index > first {
            return refuse(
                "it rewrites the whole model, and what steps before it chose would no longer \
                 hold; put it first, and only once (steps that cut the model smaller may stand before \
                 it)",
            );
        }
        if !structure::goes_to_all(step) {
            return refuse("it goes to the whole model; leave out targets, ignore and layers");
        }
        found = Some(method);
    }
    Ok(found)
}

/// The source as its model is with a head of its own, where that is wanted and not so already.
///
/// # Errors
/// When the configuration cannot be read.
pub(crate) fn untied(source: &Source, wanted: bool) -> Result<Option<Source>, EngineError> {
    if !wanted {
        return Ok(None);
    }
    let tied = spec(source.config())?;
    if !tied.tied {
        return Ok(None);
    }
    let mut config = source.config().clone();
    if let Some(fields) = config.as_object_mut() {
        fields.insert("tie_word_embeddings".to_owned(), json!(false));
    }
    let apart = spec(&config)?;
    let weights = |spec: &Spec| -> Vec<String> {
        let linears = spec.head.iter().flat_map(Graph::linears);
        linears.map(|linear| linear.weight.clone()).collect()
    };
    let names = weights(&apart).into_iter().zip(weights(&tied));
    let names: Vec<(String, String)> = names.filter(|(own, shared)| own != shared).collect();
    Ok(Some(source.renamed(config, &names)?))
}

/// What is said of a head that was given a weight of its own.
pub(super) fn made_apart(source: &Source, spec: &Spec) -> Option<(String, Note)> {
    let stored_as = |name: &str| source.get(name).map(|tensor| tensor.stored_as());
    let matrices = spec.matrices();
    let is_copy = |weight: &str| {
        let tables = matrices.iter().filter(|matrix| matrix.place == Place::Embedding);
        tables.into_iter().any(|table| stored_as(&table.linear.weight) == stored_as(weight))
    };
    let head = matrices.iter().find(|m| m.place == Place::Head && is_copy(&m.linear.weight))?;
    let what = "has a weight of its own in the result, where it shared the embedding's";
    Some((head.linear.module.clone(), Note::fact(what)))
}
