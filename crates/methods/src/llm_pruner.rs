//! Neurons and heads by Taylor's expansion of the loss over all weights that go with them.
//!
//! LLM-Pruner (Ma, Fang and Wang, 2023, arXiv 2305.11627), without the fine-tuning after it: the
//! dependency groups are those of the graphs, the importance of a weight is how far the loss moves to
//! first order, second or both when it is set to 0, and that of a unit the sum over its weights. Where
//! the authors spare the first and last layers, all layers here get the same width, since engines load
//! no other.

use crate::structural::gradients::{Sample, failed, loss};
use crate::structural::widths::Widths;
use crate::structural::{Chosen, Structural, Walk, refused};
use crate::{Method, MethodError, ParamError};
use lapidary_model::Spec;
use lapidary_model::cut::{Axis, Units};
use lapidary_model::gradient::{Axes, Backward, Importance, taylor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub(crate) const SUMMARY: &str = "cuts neurons and heads whose weights the loss depends on least";
pub(crate) const PAPER: &str = "Ma et al., 2023, arXiv 2305.11627";

/// Parameters.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Params {
    /// How much goes.
    #[serde(flatten)]
    pub widths: Widths,
    /// What a weight is worth; by default `first`, and `second` for encoders, whose loss has no slope.
    pub importance: Option<Order>,
    /// What gradients are taken of.
    #[serde(flatten)]
    pub sample: Sample,
}

/// What a weight `W` with the gradient `g` of the mean loss and the mean square `F` of the gradients of
/// rows is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// `|W g|`.
    First,
    /// `W² F`.
    Second,
    /// `|W g − ½ W² F|`.
    Mixed,
    /// `|Σ W g|`: the absolute value of a unit's whole sum.
    Vector,
}

pub(crate) fn build(params: Params) -> Result<Method, ParamError> {
    params.widths.check()?;
    params.sample.check()?;
    Ok(Method::Structural(Box::new(LlmPruner(params))))
}

struct LlmPruner(Params);

impl LlmPruner {
    /// What a weight of this model is worth.
    fn order(&self, spec: &Spec) -> Result<Order, MethodError> {
        match (self.0.importance, spec.head.is_some()) {
            (None, true) => Ok(Order::First),
            (None | Some(Order::Second), false) => Ok(Order::Second),
            (Some(order), true) => Ok(order),
            (Some(_), false) => Err(refused(
                "the model",
                "has no head, and how far its embedding moves has no slope: only importance: second \
                 says anything",
            )),
        }
    }

    /// What the units of one place are worth: the sum over all weights that go with each.
    fn of_units(order: Order, axes: &BTreeMap<String, Axes>, units: &Units) -> Vec<f64> {
        let mut sums = vec![Importance::default(); units.count];
        for share in &units.shares {
            let Some(axes) = axes.get(&share.tensor) else { continue };
            let of_axis = match share.axis {
                Axis::Rows => &axes.rows,
                Axis::Columns => &axes.columns,
            };
            for (unit, importance) in share.unit_of.iter().zip(of_axis) {
                if let Some(unit) = unit {
                    sums[*unit as usize] += *importance;
                }
            }
        }
        let worth = |sum: &Importance| match order {
            Order::First => sum.first,
            Order::Second => sum.second,
            Order::Mixed => sum.mixed,
            Order::Vector => sum.signed.abs(),
        };
        sums.iter().map(worth).collect()
    }
}

impl Structural for LlmPruner {
    fn provisional(&self, spec: &Spec) -> Result<Chosen, MethodError> {
        self.order(spec)?;
        self.0.widths.cut(spec, None)
    }

    fn needs_rows(&self) -> bool {
        let Widths { neurons, heads, key_heads, .. } = self.0.widths;
        neurons > 0.0 || heads > 0.0 || key_heads > 0.0
    }

    fn taped_tokens(&self) -> usize {
        self.0.sample.tokens()
    }

    fn choose(&self, walk: &dyn Walk) -> Result<Chosen, MethodError> {
        let order = self.order(walk.spec())?;
        let backward = Backward::new(walk.spec(), walk.tensors());
        let rows = self.0.sample.of(walk);
        let axes = taylor(&backward, &rows, &*loss(walk)?).map_err(failed)?;
        let of_units = |_: usize, units: &Units| Ok(Self::of_units(order, &axes, units));
        self.0.widths.cut(walk.spec(), Some(&of_units))
    }
}
