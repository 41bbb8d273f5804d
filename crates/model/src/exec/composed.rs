//! Candle's primitives: differentiable, on any of its devices, and the oracle of the fused kernels.

use super::{Backend, Batch, Operand, RotaryTables};
use crate::ModelError;
use crate::spec::{Activation, AttentionOp, LinearOp, RopeOp, RouteOp, SliceOp};
use candle_core::{D, Device, Tensor};
use lapidary_weight::InputRounding;

/// Operations composed of candle's primitives, in `f32`.
#[derive(Debug, Clone)]
pub struct Composed {
    /// Where values live.
    pub device: Device,
}

/// A weight `[out_features, in_features]` and bias; either may be a trainable variable.
#[derive(Debug)]
pub struct TensorLinear {
    /// The weight.
    pub weight: Tensor,
    /// The bias.
    pub bias: Option<Tensor>,
}

impl Backend for Composed {
    type Value = Tensor;
    type Linear = TensorLinear;
    type Vector = Tensor;

    fn value(&self, values: Vec<f32>, width: usize) -> Result<Tensor, ModelError> {
        Ok(Tensor::from_vec(values, ((), width), &self.device)?)
    }

    fn numbers(&self, value: Tensor) -> Result<Vec<f32>, ModelError> {
        Ok(value.flatten_all()?.to_vec1()?)
    }

    fn prepare(
        &self,
        linear: &LinearOp,
        matrix: &[f32],
        bias: Option<Vec<f32>>,
    ) -> Result<TensorLinear, ModelError> {
        let shape = (linear.out_features, linear.in_features);
        let weight = Tensor::from_slice(matrix, shape, &self.device)?;
        let bias = bias.map(|bias| self.vector(bias)).transpose()?;
        Ok(TensorLinear { weight, bias })
    }

    fn replace(
        &self,
        linear: &LinearOp,
        matrix: &[f32],
        prepared: &mut TensorLinear,
    ) -> Result<(), ModelError> {
        prepared.weight = self.prepare(linear, matrix, None)?.weight;
        Ok(())
    }

    fn vector(&self, values: Vec<f32>) -> Result<Tensor, ModelError> {
        let length = values.len();
        Ok(Tensor::from_vec(values, length, &self.device)?)
    }

    /// On the host: the gradient of rounding is 0 wherever it has one.
    fn round(
        &self,
        x: Operand<'_, Tensor>,
        rounding: InputRounding,
        width: usize,
    ) -> Result<Tensor, ModelError> {
        let mut values = self.numbers(x.into_owned())?;
        rounding.apply(&mut values, width);
        self.value(values, width)
    }

    fn linear(&self, x: Operand<'_, Tensor>, linear: &TensorLinear) -> Result<Tensor, ModelError> {
        let y = x.as_ref().matmul(&linear.weight.t()?)?;
        Ok(match &linear.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        })
    }

    fn rms_norm(
        &self,
        x: Operand<'_, Tensor>,
        gain: &Tensor,
        width: usize,
        eps: f32,
    ) -> Result<Tensor, ModelError> {
        let runs = x.as_ref().reshape(((), width))?;
        let scale = (runs.sqr()?.mean_keepdim(1)? + f64::from(eps))?.sqrt()?;
        let normed = runs.broadcast_div(&scale)?.broadcast_mul(gain)?;
        Ok(normed.reshape(x.as_ref().shape())?)
    }

    fn layer_norm(
        &self,
        x: Operand<'_, Tensor>,
        gain: &Tensor,
        bias: Option<&Tensor>,
        eps: f32,
    ) -> Result<Tensor, ModelError> {
        let centred = x.as_ref().broadcast_sub(&x.as_ref().mean_keepdim(1)?)?;
        let scale = (centred.sqr()?.mean_keepdim(1)? + f64::from(eps))?.sqrt()?;
        let normed = centred.broadcast_div(&scale)?.broadcast_mul(gain)?;
        Ok(match bias {
            Some(bias) => normed.broadcast_add(bias)?,
            None => normed,
        })
    }

    fn rope(
        &self,
        x: Operand<'_, Tensor>,
        rope: &RopeOp,
        batch: Batch,
        tables: &RotaryTables,
    ) -> Result<Tensor, ModelError> {
        let half = rope.rotary / 2;
        let table =
            |values: &[f32]| Tensor::from_slice(values, (1, batch.seq_len, 1, half), &self.device);
        let (cos, sin) = (table(&tables.cos)?, table(&tables.sin)?);
        let heads = x.as_ref().reshape((batch.rows, batch.seq_len, rope.heads, rope.head_dim))?;
        let (first, second) = (heads.narrow(3, 0, half)?, heads.narrow(3, half, half)?);
        let rotated_first = (first.broadcast_mul(&cos)? - second.broadcast_mul(&sin)?)?;
        let rotated_second = (second.broadcast_mul(&cos)? + first.broadcast_mul(&sin)?)?;
        let mut parts = vec![rotated_first, rotated_second];
        if rope.rotary < rope.head_dim {
            parts.push(heads.narrow(3, rope.rotary, rope.head_dim - rope.rotary)?);
        }
        let rotated = Tensor::cat(&parts, 3)?;
        Ok(rotated.reshape(x.as_ref().shape())?)
    }

    fn attention(
        &self,
        [q, k, v]: [Operand<'_, Tensor>; 3],
        op: &AttentionOp,
        batch: Batch,
    ) -> Result<Tensor, ModelError> {
        let split = |x: &Tensor, heads: usize| -> Result<Tensor, ModelError> {
            let x = x.reshape((batch.rows, batch.seq_len, heads, op.head_dim))?;
            let x = x.transpose(1, 2)?.unsqueeze(2)?;
            let shape = (batch.rows, heads, op.heads / heads, batch.seq_len, op.head_dim);
            let x = x.broadcast_as(shape)?.contiguous()?;
            Ok(x.reshape((batch.rows, op.heads, batch.seq_len, op.head_dim))?)
        };
        let q = split(q.as_ref(), op.heads)?;
        let (k, v) = (split(k.as_ref(), op.kv_heads)?, split(v.as_ref(), op.kv_heads)?);
        let scores = (q.matmul(&k.t()?)? * f64::from(op.scale))?;
        let scores = match op.soft_cap {
            Some(cap) => self.soft_cap(Operand::Last(scores), cap)?,
            None => scores,
        };
        let scores = scores.broadcast_add(&self.mask(op, batch.seq_len)?)?;
        let mixed = softmax(&scores)?.matmul(&v)?.transpose(1, 2)?;
        Ok(mixed.reshape((batch.tokens(), op.heads * op.head_dim))?)
    }

    fn activation(
        &self,
        x: Operand<'_, Tensor>,
        activation: Activation,
    ) -> Result<Tensor, ModelError> {
        let x = x.as_ref();
        Ok(match activation {
            Activation::Silu => x.silu()?,
            Activation::Gelu => x.gelu_erf()?,
            Activation::GeluTanh => x.gelu()?,
            Activation::Relu => x.relu()?,
        })
    }

    fn gated(
        &self,
        gate: Operand<'_, Tensor>,
        up: Operand<'_, Tensor>,
        activation: Activation,
    ) -> Result<Tensor, ModelError> {
        Ok((self.activation(gate, activation)? * up.as_ref())?)
    }

    fn add(
        &self,
        left: Operand<'_, Tensor>,
        right: Operand<'_, Tensor>,
    ) -> Result<Tensor, ModelError> {
        Ok((left.as_ref() + right.as_ref())?)
    }

    fn scale(&self, x: Operand<'_, Tensor>, factor: f32) -> Result<Tensor, ModelError> {
        Ok((x.as_ref() * f64::from(factor))?)
    }

    fn soft_cap(&self, x: Operand<'_, Tensor>, cap: f32) -> Result<Tensor, ModelError> {
        let cap = f64::from(cap);
        Ok(((x.as_ref() / cap)?.tanh()? * cap)?)
    }

    fn slice(&self, x: Operand<'_, Tensor>, slice: SliceOp) -> Result<Tensor, ModelError> {
        let (tokens, width) = x.as_ref().dims2()?;
        let runs = x.as_ref().reshape((tokens, width / slice.stride, slice.stride))?;
        let runs = runs.narrow(2, slice.start, slice.run)?.contiguous()?;
        Ok(runs.reshape((tokens, width / slice.stride * slice.run))?)
    }

    fn route(&self, scores: Operand<'_, Tensor>, route: RouteOp) -> Result<Tensor, ModelError> {
        let weights = softmax(scores.as_ref())?;
        // The choice itself has no gradient: it is a mask of the weights.
        let rows: Vec<Vec<f32>> = weights.to_vec2()?;
        let mask = rows.iter().flat_map(|row| {
            let rank = move |expert: usize| {
                let above = |(other, weight): (usize, &f32)| {
                    *weight > row[expert] || (*weight == row[expert] && other < expert)
                };
                row.iter().enumerate().filter(|other| above(*other)).count()
            };
            (0..row.len()).map(move |expert| f32::from(u8::from(rank(expert) < route.top_k)))
        });
        let mask: Vec<f32> = mask.collect();
        let mask = Tensor::from_vec(mask, weights.shape(), &self.device)?;
        let kept = (weights * mask)?;
        Ok(match route.normalized {
            true => kept.broadcast_div(&kept.sum_keepdim(1)?)?,
            false => kept,
        })
    }

    /// All rows: each expert sees every token, and the weights of those that are not its are 0.
    fn select(
        &self,
        x: Operand<'_, Tensor>,
        _weights: Operand<'_, Tensor>,
        _expert: usize,
        _batch: Batch,
    ) -> Result<Tensor, ModelError> {
        Ok(x.into_owned())
    }

    fn mix(
        &self,
        weights: Operand<'_, Tensor>,
        results: Vec<Operand<'_, Tensor>>,
        _batch: Batch,
    ) -> Result<Tensor, ModelError> {
        let weigh = |(expert, result): (usize, &Operand<'_, Tensor>)| {
            result.as_ref().broadcast_mul(&weights.as_ref().narrow(1, expert, 1)?)
        };
        let parts = results.iter().enumerate().map(weigh).collect::<Result<Vec<_>, _>>()?;
        Ok(Tensor::stack(&parts, 0)?.sum(0)?)
    }
}

/// The softmax of rows.
fn softmax(x: &Tensor) -> Result<Tensor, ModelError> {
    // The largest cancels out, so that its gradient is 0.
    let largest = x.max_keepdim(D::Minus1)?.detach();
    let exponentials = x.broadcast_sub(&largest)?.exp()?;
    Ok(exponentials.broadcast_div(&exponentials.sum_keepdim(D::Minus1)?)?)
}

impl Composed {
    /// 0 where position `i` sees position `j`, −∞ elsewhere.
    fn mask(&self, op: &AttentionOp, seq_len: usize) -> Result<Tensor, ModelError> {
        let sees = |i: usize, j: usize| {
            (!op.causal || j <= i) && op.window.is_none_or(|window| i < j + window)
        };
        let value = |at: usize| {
            if sees(at / seq_len, at % seq_len) { 0.0 } else { f32::NEG_INFINITY }
        };
        let values: Vec<f32> = (0..seq_len * seq_len).map(value).collect();
        Ok(Tensor::from_vec(values, (seq_len, seq_len), &self.device)?)
    }
}
