//! Kernels on plain slices: the arithmetic of calibration and evaluation on a CPU.

use super::{Backend, Batch, Operand, RotaryTables};
use crate::spec::{Activation, AttentionOp, LinearOp, RopeOp, RouteOp, SliceOp};
use crate::{ModelError, Precision};
use lapidary_kernels::activation::soft_cap;
use lapidary_kernels::attention::{AttentionShape, attention};
use lapidary_kernels::matrix::PackedMatrix;
use lapidary_kernels::norm;
use lapidary_kernels::rope::{Pairing, Rotation};
use lapidary_kernels::route::choose;
use lapidary_weight::InputRounding;

/// Fused kernels; matrix products round their factors to a precision and sum in `f32`.
#[derive(Debug, Clone, Copy)]
pub struct Fused {
    /// How the factors of matrix products are rounded.
    pub precision: Precision,
}

/// A weight packed for multiplication.
pub struct PackedLinear {
    packed: PackedMatrix,
    bias: Option<Vec<f32>>,
}

impl std::fmt::Debug for PackedLinear {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (rows, columns) = (self.packed.out_features(), self.packed.in_features());
        write!(f, "PackedLinear [{rows}, {columns}]")
    }
}

impl Fused {
    fn pack(self, linear: &LinearOp, matrix: &[f32]) -> Result<PackedMatrix, ModelError> {
        let need = linear.out_features * linear.in_features;
        if matrix.len() != need {
            let what = format!("{} has {} values, not {need}", linear.module, matrix.len());
            return Err(ModelError::Graph(what));
        }
        Ok(PackedMatrix::new(matrix, linear.out_features, linear.in_features, self.precision))
    }
}

impl Backend for Fused {
    type Value = Vec<f32>;
    type Linear = PackedLinear;
    type Vector = Vec<f32>;

    fn value(&self, values: Vec<f32>, _width: usize) -> Result<Vec<f32>, ModelError> {
        Ok(values)
    }

    fn numbers(&self, value: Vec<f32>) -> Result<Vec<f32>, ModelError> {
        Ok(value)
    }

    fn prepare(
        &self,
        linear: &LinearOp,
        matrix: &[f32],
        bias: Option<Vec<f32>>,
    ) -> Result<PackedLinear, ModelError> {
        Ok(PackedLinear { packed: self.pack(linear, matrix)?, bias })
    }

    fn replace(
        &self,
        linear: &LinearOp,
        matrix: &[f32],
        prepared: &mut PackedLinear,
    ) -> Result<(), ModelError> {
        prepared.packed = self.pack(linear, matrix)?;
        Ok(())
    }

    fn vector(&self, values: Vec<f32>) -> Result<Vec<f32>, ModelError> {
        Ok(values)
    }

    fn round(
        &self,
        x: Operand<'_, Vec<f32>>,
        rounding: InputRounding,
        width: usize,
    ) -> Result<Vec<f32>, ModelError> {
        let mut x = x.into_owned();
        rounding.apply(&mut x, width);
        Ok(x)
    }

    fn linear(
        &self,
        x: Operand<'_, Vec<f32>>,
        linear: &PackedLinear,
    ) -> Result<Vec<f32>, ModelError> {
        let (x, packed) = (x.as_ref(), &linear.packed);
        let tokens = x.len() / packed.in_features().max(1);
        let mut y = vec![0.0; tokens * packed.out_features()];
        packed.multiply(x, tokens, linear.bias.as_deref(), &mut y);
        Ok(y)
    }

    fn rms_norm(
        &self,
        x: Operand<'_, Vec<f32>>,
        gain: &Vec<f32>,
        _width: usize,
        eps: f32,
    ) -> Result<Vec<f32>, ModelError> {
        match x {
            Operand::Last(mut x) => {
                norm::rms_norm_in_place(&mut x, gain, eps);
                Ok(x)
            }
            Operand::Shared(x) => {
                let mut y = vec![0.0; x.len()];
                norm::rms_norm(x, gain, eps, &mut y);
                Ok(y)
            }
        }
    }

    fn layer_norm(
        &self,
        x: Operand<'_, Vec<f32>>,
        gain: &Vec<f32>,
        bias: Option<&Vec<f32>>,
        eps: f32,
    ) -> Result<Vec<f32>, ModelError> {
        let mut y = vec![0.0; x.as_ref().len()];
        norm::layer_norm(x.as_ref(), gain, bias.map(Vec::as_slice), eps, &mut y);
        Ok(y)
    }

    fn rope(
        &self,
        x: Operand<'_, Vec<f32>>,
        rope: &RopeOp,
        batch: Batch,
        tables: &RotaryTables,
    ) -> Result<Vec<f32>, ModelError> {
        let mut x = x.into_owned();
        let rotation = Rotation {
            cos: &tables.cos,
            sin: &tables.sin,
            rotary: rope.rotary,
            pairing: Pairing::Halves,
        };
        rotation.apply(&mut x, batch.seq_len, rope.heads, rope.head_dim);
        Ok(x)
    }

    fn attention(
        &self,
        [q, k, v]: [Operand<'_, Vec<f32>>; 3],
        op: &AttentionOp,
        batch: Batch,
    ) -> Result<Vec<f32>, ModelError> {
        let shape = AttentionShape {
            batch: batch.rows,
            seq: batch.seq_len,
            heads: op.heads,
            kv_heads: op.kv_heads,
            head_dim: op.head_dim,
            scale: op.scale,
            soft_cap: op.soft_cap,
            causal: op.causal,
            window: op.window,
        };
        let mut out = vec![0.0; q.as_ref().len()];
        attention(&shape, self.precision, q.as_ref(), k.as_ref(), v.as_ref(), &mut out);
        Ok(out)
    }

    fn activation(
        &self,
        x: Operand<'_, Vec<f32>>,
        activation: Activation,
    ) -> Result<Vec<f32>, ModelError> {
        let mut x = x.into_owned();
        activation.apply(&mut x);
        Ok(x)
    }

    fn gated(
        &self,
        gate: Operand<'_, Vec<f32>>,
        up: Operand<'_, Vec<f32>>,
        activation: Activation,
    ) -> Result<Vec<f32>, ModelError> {
        let mut gate = gate.into_owned();
        activation.gate_multiply(&mut gate, up.as_ref());
        Ok(gate)
    }

    fn add(
        &self,
        left: Operand<'_, Vec<f32>>,
        right: Operand<'_, Vec<f32>>,
    ) -> Result<Vec<f32>, ModelError> {
        let (mut sum, other) = match (left, right) {
            (Operand::Shared(left), Operand::Last(right)) => (right, Operand::Shared(left)),
            (left, right) => (left.into_owned(), right),
        };
        sum.iter_mut().zip(other.as_ref()).for_each(|(sum, other)| *sum += other);
        Ok(sum)
    }

    fn scale(&self, x: Operand<'_, Vec<f32>>, factor: f32) -> Result<Vec<f32>, ModelError> {
        let mut x = x.into_owned();
        x.iter_mut().for_each(|x| *x *= factor);
        Ok(x)
    }

    fn soft_cap(&self, x: Operand<'_, Vec<f32>>, cap: f32) -> Result<Vec<f32>, ModelError> {
        let mut x = x.into_owned();
        soft_cap(&mut x, cap);
        Ok(x)
    }

    fn slice(&self, x: Operand<'_, Vec<f32>>, slice: SliceOp) -> Result<Vec<f32>, ModelError> {
        let runs = x.as_ref().chunks_exact(slice.stride);
        Ok(runs.flat_map(|run| &run[slice.start..][..slice.run]).copied().collect())
    }

    fn route(&self, scores: Operand<'_, Vec<f32>>, route: RouteOp) -> Result<Vec<f32>, ModelError> {
        let mut weights = scores.into_owned();
        let RouteOp { experts, top_k, normalized } = route;
        weights.chunks_exact_mut(experts).for_each(|row| choose(row, top_k, normalized));
        Ok(weights)
    }

    fn select(
        &self,
        x: Operand<'_, Vec<f32>>,
        weights: Operand<'_, Vec<f32>>,
        expert: usize,
        batch: Batch,
    ) -> Result<Vec<f32>, ModelError> {
        let (x, weights) = (x.as_ref(), weights.as_ref());
        let width = x.len() / batch.tokens().max(1);
        let chosen = chosen(weights, expert, batch);
        Ok(chosen.flat_map(|(token, _)| &x[token * width..][..width]).copied().collect())
    }

    fn mix(
        &self,
        weights: Operand<'_, Vec<f32>>,
        results: Vec<Operand<'_, Vec<f32>>>,
        batch: Batch,
    ) -> Result<Vec<f32>, ModelError> {
        let weights = weights.as_ref();
        let rows = |expert| chosen(weights, expert, batch).count();
        let all: usize = (0..results.len()).map(rows).sum();
        let values: usize = results.iter().map(|result| result.as_ref().len()).sum();
        let width = values / all.max(1);
        let mut sum = vec![0.0; batch.tokens() * width];
        for (expert, result) in results.iter().enumerate() {
            let rows = result.as_ref().chunks_exact(width.max(1));
            for ((token, weight), row) in chosen(weights, expert, batch).zip(rows) {
                let sum = &mut sum[token * width..][..width];
                sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += weight * value);
            }
        }
        Ok(sum)
    }
}

/// The tokens that go to an expert, and their weights of it.
fn chosen(weights: &[f32], expert: usize, batch: Batch) -> impl Iterator<Item = (usize, f32)> {
    let experts = weights.len() / batch.tokens().max(1);
    let of_expert = weights.iter().skip(expert).step_by(experts.max(1)).copied();
    of_expert.enumerate().filter(|(_, weight)| *weight != 0.0)
}
