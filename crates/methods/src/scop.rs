//! Neurons that do no better than their knockoffs.
//!
//! `SCOP` (Tang et al., 2020, arXiv 2010.10732), made for convolutions, carried to feed-forwards: each
//! neuron's value is mixed with one that has the same distribution and no knowledge of the text, in a
//! part `β` that is trained by the loss while the weights stay. A neuron is worth `m (2β − 1)`, `m` being
//! the size of what it adds to the output. Knockoffs for text are second-order Gaussian ones of what the
//! feed-forward reads, with its correlations shrunk, where the authors used images made by a network.

use crate::structural::gradients::{Sample, failed, loss};
use crate::structural::widths::Widths;
use crate::structural::{Chosen, Structural, Walk};
use crate::{Method, MethodError, ParamError};
use lapidary_model::cut::Units;
use lapidary_model::gradient::{Scop as Settings, Training, scop};
use lapidary_model::{ModelError, Spec};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub(crate) const SUMMARY: &str = "cuts neurons that do no better than knockoffs of them";
pub(crate) const PAPER: &str = "Tang et al., 2020, arXiv 2010.10732";

/// Parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Params {
    /// Share of the neurons of every feed-forward that goes, from 0 to below 1.
    pub neurons: f64,
    /// What the number of neurons that stay is a multiple of; by default 64, and less for narrow models.
    pub multiple: Option<usize>,
    /// Steps of the training.
    pub steps: usize,
    /// Rows of a step.
    pub batch: usize,
    /// Share of the correlations that is taken away before knockoffs are made, so that these differ.
    pub shrinkage: f64,
    /// What it is trained on.
    #[serde(flatten)]
    pub sample: Sample,
}

impl Default for Params {
    fn default() -> Self {
        let (training, settings) = (Training::default(), Settings::default());
        Self {
            neurons: 0.2,
            multiple: None,
            steps: training.steps,
            batch: training.rows,
            shrinkage: settings.shrinkage,
            sample: Sample::default(),
        }
    }
}

pub(crate) fn build(params: Params) -> Result<Method, ParamError> {
    let Params { neurons, multiple, .. } = params;
    let widths = Widths { neurons, heads: 0.0, key_heads: 0.0, multiple };
    widths.check()?;
    params.sample.check()?;
    for (key, number) in [("steps", params.steps), ("batch", params.batch)] {
        if number == 0 {
            return Err(ParamError::new(key, "0 trains nothing"));
        }
    }
    if !(0.0..=1.0).contains(&params.shrinkage) {
        return Err(ParamError::new("shrinkage", format!("{} is no share", params.shrinkage)));
    }
    Ok(Method::Structural(Box::new(Scop { params, widths })))
}

struct Scop {
    params: Params,
    widths: Widths,
}

impl Structural for Scop {
    fn provisional(&self, spec: &Spec) -> Result<Chosen, MethodError> {
        self.widths.cut(spec, None)
    }

    fn needs_rows(&self) -> bool {
        self.params.neurons > 0.0
    }

    fn taped_tokens(&self) -> usize {
        self.params.sample.tokens()
    }

    fn choose(&self, walk: &dyn Walk) -> Result<Chosen, MethodError> {
        let spec = walk.spec();
        let (steps, rows) = (self.params.steps, self.params.batch);
        let training = Training { steps, rows, ..Training::default() };
        let settings =
            Settings { training, shrinkage: self.params.shrinkage, ..Settings::default() };
        let (mut stopped, sample, loss) = (None, self.params.sample.of(walk), loss(walk)?);
        let mut on_step = |step: usize, loss: f64| {
            let what = format!("step {} of {steps}, loss {loss:.4}", step + 1);
            walk.go_on(&what).map_err(|error| {
                stopped = Some(error);
                ModelError::Gradient("the training was stopped".to_owned())
            })
        };
        let model = (spec, walk.tensors());
        let found = match scop(model, (&sample, &*loss), settings, &mut on_step) {
            Ok(found) => found,
            Err(error) => return Err(stopped.unwrap_or_else(|| failed(error))),
        };
        let mut scores: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for neurons in &found {
            for place in &neurons.places {
                let groups = spec.blocks[place.block].shared_inputs();
                for group in groups.iter().filter(|group| group.value == place.value) {
                    let modules = group.linears.iter().map(|linear| linear.module.clone());
                    scores.extend(modules.map(|module| (module, neurons.scores())));
                }
            }
        }
        let of_units = |_: usize, units: &Units| match scores.get(&units.reader) {
            Some(scores) if scores.len() == units.count => Ok(scores.clone()),
            _ => Err(MethodError::Structure {
                place: units.reader.clone(),
                what: "reads no feed-forward whose neurons could be compared".to_owned(),
            }),
        };
        let mut chosen = self.widths.cut(spec, Some(&of_units))?;
        chosen.scores.extend(scores);
        Ok(chosen)
    }
}
