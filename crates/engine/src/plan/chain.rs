//! The chain of steps that go to one layer: what may follow what, and the one method they make.

use crate::EngineError;
use crate::recipe::{Activations, Recipe, Step};
use lapidary_methods::{Blockwise, Chain, Correction, Method, Pruned, Pruner, Tensorwise};
use std::sync::Arc;

/// The steps of a layer, joined.
pub(super) struct Chained {
    /// Names of the steps.
    pub(super) step: String,
    /// Ids of their methods.
    pub(super) method_id: String,
    /// What scales its inputs beforehand.
    pub(super) blockwise: Option<Arc<dyn Blockwise>>,
    /// What encodes and corrects it.
    pub(super) method: Box<dyn Tensorwise>,
    /// What the step that encodes says of the layer's inputs.
    pub(super) activations: Option<Activations>,
}

/// The steps so far.
#[derive(Default)]
struct Links {
    blockwise: Option<Arc<dyn Blockwise>>,
    pruner: Option<Box<dyn Pruner>>,
    encoder: Option<Box<dyn Tensorwise>>,
    corrections: Vec<Arc<dyn Correction>>,
}

impl Links {
    /// Adds a step; the error is what is wrong with that, and what to do.
    fn add(&mut self, method: Method) -> Result<(), &'static str> {
        match method {
            Method::Graphwise(_) | Method::Structural(_) => {}
            Method::Blockwise(_) if self.encoder.is_some() => {
                return Err("scales weights before they are encoded, and a step before it has \
                            encoded this one; put it before that step");
            }
            Method::Blockwise(_) if self.blockwise.is_some() => {
                return Err("scales what a step before it has scaled already; leave one out");
            }
            Method::Blockwise(_) if self.pruner.is_some() => {
                return Err(
                    "scales weights, and a step before it has chosen by their sizes which \
                            are pruned; put it before that step",
                );
            }
            Method::Blockwise(method) => self.blockwise = Some(Arc::from(method)),
            Method::Pruner(_) if self.encoder.is_some() => {
                return Err(
                    "prunes weights, and a step before it has encoded them; put it before \
                            that step",
                );
            }
            Method::Pruner(_) if self.pruner.is_some() => {
                return Err("prunes what a step before it has pruned already; leave one out");
            }
            Method::Pruner(method) => self.pruner = Some(method),
            Method::Tensorwise(_) if self.encoder.is_some() => {
                return Err(
                    "encodes what a step before it has encoded already; narrow the targets \
                            of one, or add the layer to its ignore",
                );
            }
            Method::Tensorwise(method) => self.encoder = Some(method),
            Method::Correction(_) if self.pruner.is_some() => {
                return Err(
                    "adds a matrix without zeros to what a step before it has pruned; leave \
                            one out",
                );
            }
            Method::Correction(_) if self.encoder.is_none() => {
                return Err(
                    "corrects what a step before it lost, and none before it encodes this \
                            layer; put a step such as rtn or gptq before it",
                );
            }
            Method::Correction(method) => self.corrections.push(Arc::from(method)),
        }
        Ok(())
    }
}

/// Joins the steps of a layer in the order of the recipe.
///
/// # Errors
/// When they make no chain: one that scales, one that prunes, one that encodes, any that correct.
pub(super) fn link(recipe: &Recipe, steps: &[usize], module: &str) -> Result<Chained, EngineError> {
    let steps: Vec<&Step> = steps.iter().map(|index| &recipe.steps[*index]).collect();
    let joined = |texts: Vec<&str>| texts.join(" + ");
    let names = joined(steps.iter().map(|step| step.name.as_str()).collect());
    let mut links = Links::default();
    for step in &steps {
        links.add(step.build()?).map_err(|what| {
            EngineError::Refused(format!("{module} ({names}): step {} {what}", step.name))
        })?;
    }
    let encoder: Box<dyn Tensorwise> = match (links.pruner, links.encoder) {
        (None, Some(encoder)) => encoder,
        (Some(pruner), None) => Box::new(Pruned::floats(pruner)),
        (Some(pruner), Some(encoder)) => {
            let last = steps.last().map_or("", |step| step.name.as_str());
            Box::new(Pruned::before(pruner, encoder).map_err(|what| {
                EngineError::Refused(format!("{module} ({names}): step {last} {what}"))
            })?)
        }
        (None, None) => {
            return Err(EngineError::Refused(format!(
                "{module} ({names}): no step encodes it; put one such as rtn or gptq last, or add \
                 the layer to ignore"
            )));
        }
    };
    if encoder.keeps_stored() && steps.len() > 1 {
        return Err(EngineError::Refused(format!(
            "{module} ({names}): a layer that is kept as it is cannot be scaled, edited or corrected; \
             leave out the other steps, or encode it with one such as rtn or gptq"
        )));
    }
    Ok(Chained {
        step: names,
        method_id: joined(steps.iter().map(|step| step.method.id).collect()),
        blockwise: links.blockwise,
        activations: steps.iter().find_map(|step| step.activations),
        method: Chain::of(encoder, links.corrections),
    })
}
