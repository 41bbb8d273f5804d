//! The operations, each in two forms: fused kernels on slices, for values on the CPU that carry no
//! gradient, and a composition of candle's differentiable primitives for all others.
//!
//! The fused forms exist where candle is slow: on 2 cores its softmax, SiLU and broadcasts take
//! longer than the matrix products beside them (`benches/` has the figures). Tests hold the two
//! forms together.

use super::Batch;
use super::rotary::RotaryTables;
use crate::spec::{Activation, AttentionOp, RopeOp};
use crate::{ModelError, Precision};
use candle_core::{DType, Device, Storage, Tensor};
use lapidary_kernels::attention::{AttentionShape, attention as fused_attention};
use lapidary_kernels::matrix::PackedMatrix;
use lapidary_kernels::{activation as fused_activation, norm, rope as fused_rope};

/// A linear layer ready to multiply.
#[derive(Debug)]
pub(super) struct Linear {
    pub(super) packed: PackedMatrix,
    pub(super) bias: Option<Vec<f32>>,
}

/// Whether the fused form applies.
fn fused(x: &Tensor) -> bool {
    x.device().is_cpu() && !x.track_op() && x.dtype() == DType::F32
}

/// Calls `f` with the row-major values of a CPU tensor.
pub(super) fn with_slice<T>(x: &Tensor, f: impl FnOnce(&[f32]) -> T) -> Result<T, ModelError> {
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        return Err(candle_core::Error::Msg("a value on the CPU was expected".to_owned()).into());
    };
    let values = storage.as_slice::<f32>()?;
    let start = layout.start_offset();
    Ok(f(&values[start..start + layout.shape().elem_count()]))
}

/// The row-major values of a tensor.
pub(super) fn into_vec(x: &Tensor) -> Result<Vec<f32>, ModelError> {
    with_slice(x, <[f32]>::to_vec)
}

/// A new tensor of the given width, filled from the slice of another.
fn map(
    x: &Tensor,
    width: usize,
    fill: impl FnOnce(&[f32], &mut [f32]),
) -> Result<Tensor, ModelError> {
    let tokens = x.dim(0)?;
    let mut output = vec![0.0; tokens * width];
    with_slice(x, |input| fill(input, &mut output))?;
    Ok(Tensor::from_vec(output, (tokens, width), &Device::Cpu)?)
}

/// `y = x Wᵀ + b`.
pub(super) fn linear(x: &Tensor, linear: &Linear) -> Result<Tensor, ModelError> {
    let tokens = x.dim(0)?;
    map(x, linear.packed.out_features(), |x, y| {
        linear.packed.multiply(x, tokens, linear.bias.as_deref(), y);
    })
}

/// Root-mean-square norm of runs of `width` channels.
pub(super) fn rms_norm(
    x: &Tensor,
    gain: &[f32],
    width: usize,
    eps: f32,
) -> Result<Tensor, ModelError> {
    if fused(x) {
        return map(x, x.dim(1)?, |x, y| norm::rms_norm(x, gain, eps, y));
    }
    let shape = x.shape().clone();
    let runs = x.reshape(((), width))?;
    let scale = (runs.sqr()?.mean_keepdim(1)? + f64::from(eps))?.sqrt()?;
    let gain = Tensor::new(gain, x.device())?;
    Ok(runs.broadcast_div(&scale)?.broadcast_mul(&gain)?.reshape(shape)?)
}

/// Layer norm of rows.
pub(super) fn layer_norm(
    x: &Tensor,
    gain: &[f32],
    bias: &[f32],
    eps: f32,
) -> Result<Tensor, ModelError> {
    if fused(x) {
        return map(x, x.dim(1)?, |x, y| norm::layer_norm(x, gain, bias, eps, y));
    }
    let centred = x.broadcast_sub(&x.mean_keepdim(1)?)?;
    let scale = (centred.sqr()?.mean_keepdim(1)? + f64::from(eps))?.sqrt()?;
    let (gain, bias) = (Tensor::new(gain, x.device())?, Tensor::new(bias, x.device())?);
    Ok(centred.broadcast_div(&scale)?.broadcast_mul(&gain)?.broadcast_add(&bias)?)
}

/// Rotary positions: halves of each head rotated against each other.
pub(super) fn rope(
    x: &Tensor,
    rope: &RopeOp,
    batch: Batch,
    tables: &RotaryTables,
) -> Result<Tensor, ModelError> {
    let half = rope.head_dim / 2;
    if fused(x) {
        return map(x, x.dim(1)?, |x, y| {
            y.copy_from_slice(x);
            fused_rope::apply(
                y,
                &tables.cos,
                &tables.sin,
                batch.seq_len,
                rope.heads,
                rope.head_dim,
            );
        });
    }
    let table = |values: &[f32]| -> Result<Tensor, ModelError> {
        let shape = (1, batch.seq_len, 1, half);
        Ok(Tensor::from_slice(values, shape, x.device())?)
    };
    let (cos, sin) = (table(&tables.cos)?, table(&tables.sin)?);
    let heads = x.reshape((batch.rows, batch.seq_len, rope.heads, rope.head_dim))?;
    let (first, second) = (heads.narrow(3, 0, half)?, heads.narrow(3, half, half)?);
    let rotated_first = (first.broadcast_mul(&cos)? - second.broadcast_mul(&sin)?)?;
    let rotated_second = (second.broadcast_mul(&cos)? + first.broadcast_mul(&sin)?)?;
    Ok(Tensor::cat(&[rotated_first, rotated_second], 3)?.reshape(x.shape())?)
}

/// Softmax attention.
pub(super) fn attention(
    [q, k, v]: [&Tensor; 3],
    op: &AttentionOp,
    batch: Batch,
    precision: Precision,
) -> Result<Tensor, ModelError> {
    if fused(q) {
        let shape = AttentionShape {
            batch: batch.rows,
            seq: batch.seq_len,
            heads: op.heads,
            kv_heads: op.kv_heads,
            head_dim: op.head_dim,
            scale: op.scale,
            causal: op.causal,
            window: op.window,
        };
        return with_slice(k, |k| {
            with_slice(v, |v| {
                map(q, op.heads * op.head_dim, |q, out| {
                    fused_attention(q, k, v, out, &shape, precision);
                })
            })
        })??;
    }
    let split = |x: &Tensor, heads: usize| -> Result<Tensor, ModelError> {
        let x = x.reshape((batch.rows, batch.seq_len, heads, op.head_dim))?;
        let x = x.transpose(1, 2)?.unsqueeze(2)?;
        let shape = (batch.rows, heads, op.heads / heads, batch.seq_len, op.head_dim);
        let x = x.broadcast_as(shape)?.contiguous()?;
        Ok(x.reshape((batch.rows, op.heads, batch.seq_len, op.head_dim))?)
    };
    let (q, k, v) = (split(q, op.heads)?, split(k, op.kv_heads)?, split(v, op.kv_heads)?);
    let scores = (q.matmul(&k.t()?)? * f64::from(op.scale))?;
    let scores = scores.broadcast_add(&mask(op, batch.seq_len, scores.device())?)?;
    let weights = scores.broadcast_sub(&scores.max_keepdim(3)?)?.exp()?;
    let weights = weights.broadcast_div(&weights.sum_keepdim(3)?)?;
    let mixed = weights.matmul(&v)?.transpose(1, 2)?;
    Ok(mixed.reshape((batch.tokens(), op.heads * op.head_dim))?)
}

/// 0 where position `i` sees position `j`, −∞ elsewhere.
fn mask(op: &AttentionOp, seq_len: usize, device: &Device) -> Result<Tensor, ModelError> {
    let sees = |i: usize, j: usize| {
        (!op.causal || j <= i) && op.window.is_none_or(|window| i < j + window)
    };
    let values: Vec<f32> = (0..seq_len * seq_len)
        .map(|at| if sees(at / seq_len, at % seq_len) { 0.0 } else { f32::NEG_INFINITY })
        .collect();
    Ok(Tensor::from_vec(values, (seq_len, seq_len), device)?)
}

/// An element-wise function.
pub(super) fn activation(x: &Tensor, kind: Activation) -> Result<Tensor, ModelError> {
    if fused(x) {
        return map(x, x.dim(1)?, |x, y| fused_activation::apply(kind, x, y));
    }
    Ok(match kind {
        Activation::Silu => x.silu()?,
        Activation::Gelu => x.gelu_erf()?,
        Activation::GeluTanh => x.gelu()?,
        Activation::Relu => x.relu()?,
    })
}

/// `activation(gate) · up`.
pub(super) fn gated(gate: &Tensor, up: &Tensor, kind: Activation) -> Result<Tensor, ModelError> {
    if fused(gate) && fused(up) {
        return with_slice(up, |up| {
            map(gate, gate.dim(1)?, |gate, y| fused_activation::gated(kind, gate, up, y))
        })?;
    }
    Ok((activation(gate, kind)? * up)?)
}
