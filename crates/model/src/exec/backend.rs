//! The arithmetic an executor runs graphs with.

use super::{Batch, RotaryTables};
use crate::ModelError;
use crate::spec::{Activation, AttentionOp, LinearOp, RopeOp, RouteOp, SliceOp};
use lapidary_weight::InputRounding;
use std::fmt::Debug;

/// An operand: given up by its last reader, shared with the others.
#[derive(Debug)]
pub enum Operand<'a, V> {
    /// No one reads it after this operation.
    Last(V),
    /// Someone does.
    Shared(&'a V),
}

impl<V: Clone> Operand<'_, V> {
    /// The value, copied when it is shared.
    pub fn into_owned(self) -> V {
        match self {
            Self::Last(value) => value,
            Self::Shared(value) => value.clone(),
        }
    }
}

impl<V> AsRef<V> for Operand<'_, V> {
    fn as_ref(&self) -> &V {
        match self {
            Self::Last(value) => value,
            Self::Shared(value) => value,
        }
    }
}

/// The operations of a graph over values of `[tokens, channels]`.
pub trait Backend: Debug {
    /// A value.
    type Value: Clone;
    /// The weight and bias of a linear layer, ready to multiply.
    type Linear: Debug;
    /// The gains or biases of a norm.
    type Vector: Debug;

    /// A value from row-major numbers.
    ///
    /// # Errors
    /// When they are not whole rows of `width`.
    fn value(&self, values: Vec<f32>, width: usize) -> Result<Self::Value, ModelError>;

    /// Row-major numbers of a value.
    ///
    /// # Errors
    /// When they cannot be brought to the host.
    fn numbers(&self, value: Self::Value) -> Result<Vec<f32>, ModelError>;

    /// Prepares a weight, row-major `[out_features, in_features]`.
    ///
    /// # Errors
    /// When it has another length.
    fn prepare(
        &self,
        linear: &LinearOp,
        matrix: &[f32],
        bias: Option<Vec<f32>>,
    ) -> Result<Self::Linear, ModelError>;

    /// Puts another weight in place of a layer's; the bias stays.
    ///
    /// # Errors
    /// As [`prepare`](Self::prepare).
    fn replace(
        &self,
        linear: &LinearOp,
        matrix: &[f32],
        prepared: &mut Self::Linear,
    ) -> Result<(), ModelError>;

    /// Prepares the gains or biases of a norm.
    ///
    /// # Errors
    /// When the device refuses.
    fn vector(&self, values: Vec<f32>) -> Result<Self::Vector, ModelError>;

    /// The value with each token's channels rounded as the inputs of a layer are that is run so.
    ///
    /// # Errors
    /// When it cannot be brought to the host.
    fn round(
        &self,
        x: Operand<'_, Self::Value>,
        rounding: InputRounding,
        width: usize,
    ) -> Result<Self::Value, ModelError>;

    /// `y = x Wᵀ + b`.
    ///
    /// # Errors
    /// Here and below: when shapes do not fit, or the device refuses.
    fn linear(
        &self,
        x: Operand<'_, Self::Value>,
        linear: &Self::Linear,
    ) -> Result<Self::Value, ModelError>;

    /// Root-mean-square norm of runs of `width` channels.
    fn rms_norm(
        &self,
        x: Operand<'_, Self::Value>,
        gain: &Self::Vector,
        width: usize,
        eps: f32,
    ) -> Result<Self::Value, ModelError>;

    /// Layer norm of rows.
    fn layer_norm(
        &self,
        x: Operand<'_, Self::Value>,
        gain: &Self::Vector,
        bias: Option<&Self::Vector>,
        eps: f32,
    ) -> Result<Self::Value, ModelError>;

    /// Rotary positions, halves of each head rotated against each other.
    fn rope(
        &self,
        x: Operand<'_, Self::Value>,
        rope: &RopeOp,
        batch: Batch,
        tables: &RotaryTables,
    ) -> Result<Self::Value, ModelError>;

    /// Softmax attention of q, k and v.
    fn attention(
        &self,
        qkv: [Operand<'_, Self::Value>; 3],
        attention: &AttentionOp,
        batch: Batch,
    ) -> Result<Self::Value, ModelError>;

    /// An element-wise function.
    fn activation(
        &self,
        x: Operand<'_, Self::Value>,
        activation: Activation,
    ) -> Result<Self::Value, ModelError>;

    /// `activation(gate) · up`.
    fn gated(
        &self,
        gate: Operand<'_, Self::Value>,
        up: Operand<'_, Self::Value>,
        activation: Activation,
    ) -> Result<Self::Value, ModelError>;

    /// Sum.
    fn add(
        &self,
        left: Operand<'_, Self::Value>,
        right: Operand<'_, Self::Value>,
    ) -> Result<Self::Value, ModelError>;

    /// The value times a number.
    fn scale(&self, x: Operand<'_, Self::Value>, factor: f32) -> Result<Self::Value, ModelError>;

    /// `cap · tanh(x / cap)`.
    fn soft_cap(&self, x: Operand<'_, Self::Value>, cap: f32) -> Result<Self::Value, ModelError>;

    /// Some channels.
    fn slice(&self, x: Operand<'_, Self::Value>, slice: SliceOp)
    -> Result<Self::Value, ModelError>;

    /// Weights of experts, `[tokens, experts]`, from their scores.
    fn route(
        &self,
        scores: Operand<'_, Self::Value>,
        route: RouteOp,
    ) -> Result<Self::Value, ModelError>;

    /// At least the rows of `x` whose weight of the expert is not 0, in their order. What is
    /// selected goes to [`mix`](Self::mix) of the same backend.
    fn select(
        &self,
        x: Operand<'_, Self::Value>,
        weights: Operand<'_, Self::Value>,
        expert: usize,
        batch: Batch,
    ) -> Result<Self::Value, ModelError>;

    /// `Σ weight · result` over the experts, added up in their order.
    fn mix(
        &self,
        weights: Operand<'_, Self::Value>,
        results: Vec<Operand<'_, Self::Value>>,
        batch: Batch,
    ) -> Result<Self::Value, ModelError>;
}
