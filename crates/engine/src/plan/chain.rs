//! The chain of steps that go to one layer: what may follow what, and the one method they make.

use crate::EngineError;
use crate::recipe::{Recipe, Step};
use lapidary_methods::{Chain, Correction, Method, Tensorwise};
use std::sync::Arc;

/// The steps of a layer, joined.
pub(super) struct Chained {
    /// Names of the steps.
    pub(super) step: String,
    /// Ids of their methods.
    pub(super) method_id: String,
    pub(super) method: Box<dyn Tensorwise>,
}

/// Joins the steps of a layer in the order of the recipe.
///
/// # Errors
/// When two of them encode the layer, or one corrects what no step before it encoded.
pub(super) fn link(recipe: &Recipe, steps: &[usize], module: &str) -> Result<Chained, EngineError> {
    let steps: Vec<&Step> = steps.iter().map(|index| &recipe.steps[*index]).collect();
    let mut encoder: Option<(&Step, Box<dyn Tensorwise>)> = None;
    let mut corrections: Vec<Arc<dyn Correction>> = vec![];
    for step in &steps {
        match (step.build()?, &encoder) {
            (Method::Tensorwise(method), None) => encoder = Some((step, method)),
            (Method::Tensorwise(_), Some((first, _))) => {
                return Err(EngineError::Refused(format!(
                    "steps {} and {} both go to {module}; narrow their targets, or add it to \
                     ignore in one",
                    first.name, step.name
                )));
            }
            (Method::Correction(method), Some(_)) => corrections.push(Arc::from(method)),
            (Method::Correction(_), None) => {
                return Err(EngineError::Refused(format!(
                    "step {} corrects what a step before it lost, and none before it encodes \
                     {module}; put a step such as rtn or gptq before it, or add the layer to \
                     ignore",
                    step.name
                )));
            }
        }
    }
    let Some((_, encoder)) = encoder else {
        return Err(EngineError::Internal(format!("{module} has no step")));
    };
    let joined = |texts: Vec<&str>| texts.join(" + ");
    Ok(Chained {
        step: joined(steps.iter().map(|step| step.name.as_str()).collect()),
        method_id: joined(steps.iter().map(|step| step.method.id).collect()),
        method: Chain::of(encoder, corrections),
    })
}
