//! The statistics that the methods of a stage's sites ask for, gathered in one pass over the rows.

use super::activations::Streams;
use super::block::BlockRunner;
use super::next_block;
use crate::EngineError;
use crate::cost::Part;
use crate::plan::SitePlan;
use lapidary_kernels::cross::Cross;
use lapidary_kernels::gram::Gram;
use lapidary_kernels::matrix::Precision;
use lapidary_methods::{Inputs, Needs, Statistics};
use lapidary_model::{Batch, Graph, GraphWeights, InputGroup, Place};
use std::collections::BTreeMap;

/// Inputs of groups of linears, by the module of the first.
type Taken = BTreeMap<String, Vec<f32>>;

/// The statistics of one group in the making.
struct Gathered {
    gram: Gram,
    drift: Option<Cross>,
    inputs: Option<Inputs>,
}

impl Gathered {
    fn new(columns: usize, needs: Needs, precision: Precision) -> Self {
        let drift = needs.drift.then(|| Cross::new(columns, precision));
        let inputs = needs.inputs.then(|| Inputs::new(columns));
        Self { gram: Gram::new(columns, precision), drift, inputs }
    }

    /// Adds inputs, and how they differ from those that the uncompressed model has.
    fn add(&mut self, inputs: &[f32], tokens: usize, uncompressed: Option<&mut Vec<f32>>) {
        self.gram.accumulate(inputs, tokens);
        if let Some(known) = &mut self.inputs {
            known.add(inputs);
        }
        if let (Some(drift), Some(difference)) = (&mut self.drift, uncompressed) {
            difference.iter_mut().zip(inputs).for_each(|(value, input)| *value -= input);
            drift.accumulate(difference, inputs);
        }
    }
}

impl BlockRunner<'_> {
    /// Gathers what is asked for, by the module of a group's first linear: one for all linears that
    /// share an input.
    pub(super) fn observe(
        &self,
        graph: &Graph,
        weights: &GraphWeights,
        streams: &Streams,
        stage: Place,
    ) -> Result<BTreeMap<String, Statistics>, EngineError> {
        let block = next_block(self.plan, stage);
        // A search measures every layer, whatever its method needs.
        let is_search = self.job.recipe.budget.is_some();
        let is_wanted = |site: &&SitePlan| {
            is_search || (site.stage == stage && site.needs() != Needs::default())
        };
        let wanted: Vec<&SitePlan> = self.plan.sites.iter().filter(is_wanted).collect();
        if wanted.is_empty() {
            return Ok(BTreeMap::new());
        }
        let precision = self.executor.backend().precision;
        let mut gathered: BTreeMap<String, Gathered> = BTreeMap::new();
        for (start, batch) in self.chunks(&streams.compressed) {
            self.job.check_stop(block)?;
            let mut uncompressed = match &streams.uncompressed {
                Some(stream) => {
                    let input = stream.read(start, batch.tokens())?;
                    self.inputs(graph, weights, batch, input, &wanted)?
                }
                None => Taken::new(),
            };
            let input = streams.compressed.read(start, batch.tokens())?;
            self.costs.charge(Part::Forward, || {
                self.executor.observe(graph, weights, batch, input, &mut |tap| {
                    if let Some(mut needs) = needs(&wanted, graph, tap.group) {
                        needs.drift &= streams.uncompressed.is_some();
                        let first = &tap.group.linears[0];
                        // An expert sees the rows that go to it.
                        let tokens = tap.input.len() / first.in_features.max(1);
                        let of_group = gathered
                            .entry(first.module.clone())
                            .or_insert_with(|| Gathered::new(first.in_features, needs, precision));
                        let uncompressed = uncompressed.get_mut(&first.module);
                        self.costs.charge(Part::Statistics, || {
                            of_group.add(tap.input, tokens, uncompressed);
                        });
                    }
                    Ok(())
                })
            })?;
        }
        let mut by_module = BTreeMap::new();
        for (module, Gathered { gram, drift, inputs }) in gathered {
            let tokens = gram.rows() as u64;
            let drift = drift.map(Cross::finish);
            let statistics = Statistics { gram: gram.finish(), drift, inputs, tokens };
            let mut values = statistics.gram.iter().chain(statistics.drift.iter().flatten());
            if !values.all(|value| value.is_finite()) {
                let what = format!("the inputs of {module} are not finite");
                return Err(EngineError::NotFinite { block, what });
            }
            by_module.insert(module, statistics);
        }
        Ok(by_module)
    }

    /// The inputs of a chunk that some method wants to know the drift of.
    fn inputs(
        &self,
        graph: &Graph,
        weights: &GraphWeights,
        batch: Batch,
        input: Vec<f32>,
        wanted: &[&SitePlan],
    ) -> Result<Taken, EngineError> {
        let mut inputs = Taken::new();
        self.costs.charge(Part::Forward, || {
            self.executor.observe(graph, weights, batch, input, &mut |tap| {
                if needs(wanted, graph, tap.group).is_some_and(|needs| needs.drift) {
                    inputs.insert(tap.group.linears[0].module.clone(), tap.input.clone());
                }
                Ok(())
            })
        })?;
        Ok(inputs)
    }
}

/// What the sites of a group need; `None` when there is no such site. Behind a router no drift is
/// measured: the uncompressed model sends other tokens there.
fn needs(wanted: &[&SitePlan], graph: &Graph, group: &InputGroup<'_>) -> Option<Needs> {
    let is_in = |site: &&&SitePlan| group.linears.iter().any(|l| l.weight == site.linear.weight);
    let mut needs = wanted.iter().filter(is_in).map(|site| site.needs()).reduce(Needs::or)?;
    needs.drift &= !graph.is_routed(group.value);
    Some(needs)
}
