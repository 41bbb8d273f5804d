//! Experts that are used least, left out: as many in every layer.
//!
//! `weight` adds up the weights that the router gives an expert, over all tokens that go to it; `tokens`
//! counts them. Which experts a token goes to is chosen anew among those that stay.

use crate::structural::{Chosen, Seen, Structural, Walk, largest, refused};
use crate::{Method, MethodError, Note, ParamError};
use lapidary_model::{LinearOp, Op, RouteOp, Spec};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub(crate) const SUMMARY: &str = "leaves out the experts of a mixture that tokens need least";
pub(crate) const PAPER: &str =
    "after Lu et al., 2024, arXiv 2402.14800; Muzio et al., 2024, arXiv 2404.05089";

/// Parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Params {
    /// Share of the experts of a layer that goes, from 0 to below 1.
    pub share: f64,
    /// What experts are compared by.
    pub criterion: Criterion,
}

/// What experts are compared by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Criterion {
    /// The weights that the router gives them, added up.
    Weight,
    /// How many tokens go to them.
    Tokens,
}

impl Default for Params {
    fn default() -> Self {
        Self { share: 0.25, criterion: Criterion::Weight }
    }
}

pub(crate) fn build(params: Params) -> Result<Method, ParamError> {
    if !(0.0..1.0).contains(&params.share) {
        let what = format!("{} is no share from 0 to below 1", params.share);
        return Err(ParamError::new("share", what));
    }
    Ok(Method::Structural(Box::new(Experts(params))))
}

struct Experts(Params);

/// A router: its block, its layer, and how it chooses.
struct Router<'a> {
    block: usize,
    linear: &'a LinearOp,
    route: RouteOp,
}

fn routers(spec: &Spec) -> Vec<Router<'_>> {
    let of_block = |(block, graph): (usize, &'_ lapidary_model::Graph)| {
        let route = graph.nodes.iter().find_map(|node| match node.op {
            Op::Route(route) => Some(route),
            _ => None,
        })?;
        Some((block, route))
    };
    let found: Vec<(usize, RouteOp)> =
        spec.blocks.iter().enumerate().filter_map(of_block).collect();
    let router = |(block, route): (usize, RouteOp)| {
        let linear = spec.blocks[block].routers().into_iter().next()?;
        Some(Router { block, linear, route })
    };
    found.into_iter().filter_map(router).collect()
}

impl Experts {
    /// How many stay, and what is to be said where whole experts do not come to the share.
    fn stay(&self, route: RouteOp) -> (usize, Option<Note>) {
        let all = route.experts;
        let wanted = ((1.0 - self.0.share) * all as f64).round() as usize;
        let stay = wanted.clamp(route.top_k.min(all), all);
        let share = 1.0 - stay as f64 / all as f64;
        let note = ((share - self.0.share).abs() > 0.005).then(|| {
            Note::fact(format!(
                "{:.1} % of {all} experts go, not {:.1} %: {stay} is the next number that can stay, \
                 where each token goes to {}",
                100.0 * share,
                100.0 * self.0.share,
                route.top_k
            ))
        });
        (stay, note)
    }

    /// The cut that keeps the experts of the largest scores in each block.
    fn cut(
        &self,
        spec: &Spec,
        scores: impl Fn(&Router<'_>) -> Vec<f64>,
    ) -> Result<Chosen, MethodError> {
        let mut chosen = Chosen::default();
        let routers = routers(spec);
        if routers.is_empty() {
            return Err(refused("the model", "has no experts"));
        }
        for router in routers {
            let (stay, note) = self.stay(router.route);
            if chosen.notes.is_empty() {
                chosen.notes.extend(note);
            }
            if stay < router.route.experts {
                let scores = scores(&router);
                chosen.cut.experts.insert(router.block, largest(&scores, stay));
                chosen.scores.push((router.linear.module.clone(), scores));
            }
        }
        Ok(chosen)
    }
}

impl Structural for Experts {
    fn provisional(&self, spec: &Spec) -> Result<Chosen, MethodError> {
        let chosen = self.cut(spec, |router| vec![1.0; router.route.experts])?;
        Ok(Chosen { scores: vec![], ..chosen })
    }

    fn needs_rows(&self) -> bool {
        self.0.share > 0.0
    }

    fn choose(&self, walk: &dyn Walk) -> Result<Chosen, MethodError> {
        let spec = walk.spec();
        let mut weights = BTreeMap::new();
        for router in routers(spec) {
            let weight = walk.tensors().read(&router.linear.weight);
            let bias =
                router.linear.bias.as_ref().map(|bias| walk.tensors().read(bias)).transpose();
            let read = weight.and_then(|weight| Ok((weight, bias?)));
            let (weight, bias) = read.map_err(|error| MethodError::Walk(Box::new(error)))?;
            let bias = bias.unwrap_or_else(|| vec![0.0; router.route.experts]);
            let sums = vec![0.0; router.route.experts];
            weights.insert(router.linear.module.clone(), (weight, bias, router.route, sums));
        }
        walk.blocks(&mut |seen| {
            let Seen::Input { group, values, .. } = seen else { return Ok(()) };
            for linear in &group.linears {
                let Some((weight, bias, route, sums)) = weights.get_mut(&linear.module) else {
                    continue;
                };
                for token in values.chunks_exact(linear.in_features) {
                    let of_token = routed(token, weight, bias, *route);
                    for (sum, weight) in sums.iter_mut().zip(of_token) {
                        *sum += match self.0.criterion {
                            Criterion::Weight => weight,
                            Criterion::Tokens => f64::from(u8::from(weight > 0.0)),
                        };
                    }
                }
            }
            Ok(())
        })?;
        self.cut(spec, |router| weights[&router.linear.module].3.clone())
    }
}

/// The weights that a router gives its experts for a token; 0 for those that it does not go to.
fn routed(token: &[f32], weight: &[f32], bias: &[f32], route: RouteOp) -> Vec<f64> {
    let dot = |row: &[f32]| -> f64 {
        row.iter().zip(token).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum()
    };
    let rows = weight.chunks_exact(token.len().max(1)).zip(bias);
    let scores: Vec<f64> = rows.map(|(row, bias)| dot(row) + f64::from(*bias)).collect();
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exponentials: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
    let chosen = largest(&exponentials, route.top_k);
    let of = |experts: &[usize]| -> f64 { experts.iter().map(|e| exponentials[*e]).sum() };
    let sum = if route.normalized { of(&chosen) } else { exponentials.iter().sum() };
    let mut weights = vec![0.0; exponentials.len()];
    chosen.iter().for_each(|expert| weights[*expert] = exponentials[*expert] / sum);
    weights
}
