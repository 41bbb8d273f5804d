//! The blockwise steps of a stage: scales of the inputs of its layers, chosen and folded into what
//! makes those inputs.

use super::block::{BlockRunner, StoredTensor};
use crate::EngineError;
use crate::cost::Part;
use crate::plan::SitePlan;
use lapidary_methods::{Group, Note, Reader, Rescaled, Shared, Statistics};
use lapidary_model::{Absorber, Graph, InputGroup, ModelError, Place};
use lapidary_weight::{Edit, Edited, Edits, Tensors};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What the blockwise steps made of a stage.
#[derive(Default)]
pub(super) struct Rewritten {
    /// Edits of the stage's tensors. Those that are not encoded are replaced by what is stored.
    pub(super) edits: Edits,
    /// The tensors that are not encoded, as they are stored.
    pub(super) tensors: Vec<StoredTensor>,
    /// What is said of each layer, by module.
    pub(super) notes: BTreeMap<String, Vec<Note>>,
}

impl BlockRunner<'_> {
    /// Rescales the inputs of a stage's layers where a step wants that; the statistics become those
    /// of the scaled inputs.
    pub(super) fn rescale(
        &self,
        graph: &Graph,
        stage: Place,
        statistics: &mut BTreeMap<String, Statistics>,
    ) -> Result<Rewritten, EngineError> {
        let mut rewritten = Rewritten::default();
        for group in graph.shared_inputs() {
            let first = &group.linears[0].module;
            let is_scaled = |site: &&SitePlan| {
                let reads = group.linears.iter().any(|l| l.weight == site.linear.weight);
                reads && site.blockwise.is_some()
            };
            let sites: Vec<&SitePlan> = self.plan.sites_in(stage).filter(is_scaled).collect();
            let (Some(absorber), Some(of_input)) =
                (graph.absorber(group.value), statistics.get_mut(first))
            else {
                continue;
            };
            let Some(rescaled) =
                self.costs.charge(Part::Solve, || self.choose(&sites, &absorber, of_input))?
            else {
                continue;
            };
            if let Some(site) = sites.first() {
                rewritten.notes.insert(site.linear.module.clone(), rescaled.notes);
            }
            let scales = self.fold(&absorber, rescaled.scales, &mut rewritten.edits)?;
            *of_input = of_input.scaled(&scales);
            scale_readers(&group, scales, &mut rewritten.edits);
        }
        self.store(&mut rewritten)?;
        Ok(rewritten)
    }

    /// The scales that the step of these sites chooses; `None` without sites.
    fn choose(
        &self,
        sites: &[&SitePlan],
        absorber: &Absorber<'_>,
        statistics: &Statistics,
    ) -> Result<Option<Rescaled>, EngineError> {
        let Some(method) = sites.first().and_then(|site| site.blockwise.as_ref()) else {
            return Ok(None);
        };
        let read = |site: &&SitePlan| self.job.source.read(&site.linear.weight);
        let weights = sites.iter().map(read).collect::<Result<Vec<_>, _>>();
        let weights = weights.map_err(ModelError::from)?;
        let readers = sites.iter().zip(&weights).map(|(site, weight)| Reader {
            name: &site.linear.module,
            rows: site.linear.out_features,
            weight,
            scale_type: self.plan.scale_type(site),
            encoder: &*site.method,
            inputs: site.inputs,
        });
        let shared = match *absorber {
            Absorber::Norm { .. } => Shared::default(),
            Absorber::Rows { repeat, head_dim, .. } => Shared { repeat, head_dim },
        };
        let group = Group { readers: readers.collect(), statistics, shared };
        Ok(Some(method.rescale(&group)?))
    }

    /// Divides what makes the channels by their scales; returns the scales that this undoes exactly,
    /// which differ from those chosen by the rounding of a stored gain.
    fn fold(
        &self,
        absorber: &Absorber<'_>,
        mut scales: Vec<f32>,
        edits: &mut Edits,
    ) -> Result<Vec<f32>, EngineError> {
        match absorber {
            Absorber::Norm { gain, offset, bias } => {
                let mut gains = self.job.source.read(gain).map_err(ModelError::from)?;
                let (_, float) = self.plan.written(gain)?;
                for (gain, scale) in gains.iter_mut().zip(&mut scales) {
                    let whole = *gain + offset;
                    let stored = float.round(whole / *scale - offset);
                    let exact = whole / (stored + offset);
                    if exact.is_normal() && exact > 0.0 {
                        (*gain, *scale) = (stored, exact);
                    } else {
                        *scale = 1.0;
                    }
                }
                let inverse: Arc<[f32]> = scales.iter().map(|scale| 1.0 / scale).collect();
                edits.insert((*gain).to_owned(), vec![Edit::Replace(gains.into())]);
                if let Some(bias) = bias {
                    edits.insert((*bias).to_owned(), vec![Edit::ScaleRows(inverse)]);
                }
            }
            Absorber::Rows { linear, repeat, head_dim } => {
                let channel = |row: usize| row / head_dim * repeat * head_dim + row % head_dim;
                let inverse: Arc<[f32]> =
                    (0..linear.out_features).map(|row| 1.0 / scales[channel(row)]).collect();
                for tensor in std::iter::once(&linear.weight).chain(&linear.bias) {
                    let edit = Edit::ScaleRows(Arc::clone(&inverse));
                    edits.entry(tensor.clone()).or_default().push(edit);
                }
            }
        }
        Ok(scales)
    }

    /// Rounds the edited tensors that are not encoded to what is stored.
    fn store(&self, rewritten: &mut Rewritten) -> Result<(), EngineError> {
        let view = Edited::new(self.job.source, rewritten.edits.clone());
        for (name, edits) in &mut rewritten.edits {
            if self.plan.site_of(name).is_some() {
                continue;
            }
            let (spec, float) = self.plan.written(name)?;
            let bytes = float.encode(&view.read(name).map_err(ModelError::from)?);
            *edits = vec![Edit::Replace(float.decode(&bytes).into())];
            rewritten.tensors.push((spec.clone(), bytes));
        }
        Ok(())
    }
}

/// Multiplies the columns of every layer that reads an input by the scales.
fn scale_readers(group: &InputGroup<'_>, scales: Vec<f32>, edits: &mut Edits) {
    let scales: Arc<[f32]> = scales.into();
    for linear in &group.linears {
        let edit = Edit::ScaleColumns(Arc::clone(&scales));
        edits.entry(linear.weight.clone()).or_default().push(edit);
    }
}
