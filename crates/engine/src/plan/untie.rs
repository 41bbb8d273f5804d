//! A head with a weight of its own, where it shares the embedding's and the recipe wants them apart:
//! the same numbers under a second name, each then compressed or copied on its own.

use crate::EngineError;
use crate::recipe::Recipe;
use lapidary_formats::Source;
use lapidary_methods::Note;
use lapidary_model::{Graph, Place, Spec, spec};
use serde_json::json;

/// The source as its model is with a head of its own; `None` when the recipe does not ask for that,
/// or the head has its own weight already.
///
/// # Errors
/// When the configuration cannot be read.
pub(crate) fn untied(source: &Source, recipe: &Recipe) -> Result<Option<Source>, EngineError> {
    let tied = spec(source.config())?;
    if !(recipe.untie && tied.tied) {
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
