//! Activation functions, alone and fused with the product of a gated feed-forward layer.

use rayon::prelude::*;

use crate::isa::Isa;
use crate::math::{normal_cdf, sigmoid, tanh};
use crate::simd::{ELEMENTS_PER_TASK, vectorized};

/// An activation function, applied element by element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x · sigmoid(x)`, also called swish (Elfwing et al. 2017).
    Silu,
    /// `x · Φ(x)` with Φ of the standard normal (Hendrycks and Gimpel 2016).
    Gelu,
    /// The approximation of [`Gelu`](Self::Gelu) by a hyperbolic tangent.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

impl Activation {
    /// Replaces every element by its activation.
    pub fn apply(self, x: &mut [f32]) {
        self.apply_with(Isa::detect(), x);
    }

    /// [`apply`](Self::apply) for a level of instructions, or the machine's own where that is lower.
    pub fn apply_with(self, isa: Isa, x: &mut [f32]) {
        let kernel = self.alone();
        x.par_chunks_mut(ELEMENTS_PER_TASK).for_each(|x| kernel(isa, x));
    }

    /// `gate ← activation(gate) · up`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn gate_multiply(self, gate: &mut [f32], up: &[f32]) {
        self.gate_multiply_with(Isa::detect(), gate, up);
    }

    /// [`gate_multiply`](Self::gate_multiply) for a level of instructions, or the machine's own
    /// where that is lower.
    pub fn gate_multiply_with(self, isa: Isa, gate: &mut [f32], up: &[f32]) {
        assert_eq!(gate.len(), up.len(), "the slices differ in length");
        let kernel = self.gated();
        gate.par_chunks_mut(ELEMENTS_PER_TASK)
            .zip(up.par_chunks(ELEMENTS_PER_TASK))
            .for_each(|(gate, up)| kernel(isa, gate, up));
    }

    /// [`apply`](Self::apply) on this thread alone.
    pub fn apply_here(self, isa: Isa, x: &mut [f32]) {
        self.alone()(isa, x);
    }

    /// [`gate_multiply`](Self::gate_multiply) on this thread alone.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn gate_multiply_here(self, isa: Isa, gate: &mut [f32], up: &[f32]) {
        assert_eq!(gate.len(), up.len(), "the slices differ in length");
        self.gated()(isa, gate, up);
    }

    fn alone(self) -> fn(Isa, &mut [f32]) {
        match self {
            Self::Silu => silu,
            Self::Gelu => gelu,
            Self::GeluTanh => gelu_tanh,
            Self::Relu => relu,
        }
    }

    fn gated(self) -> fn(Isa, &mut [f32], &[f32]) {
        match self {
            Self::Silu => silu_multiply,
            Self::Gelu => gelu_multiply,
            Self::GeluTanh => gelu_tanh_multiply,
            Self::Relu => relu_multiply,
        }
    }
}

macro_rules! activation {
    ($alone:ident, $gated:ident, $function:expr) => {
        vectorized! {
            fn $alone(x: &mut [f32]) {
                for x in x {
                    *x = $function(*x);
                }
            }
        }
        vectorized! {
            fn $gated(gate: &mut [f32], up: &[f32]) {
                for (gate, up) in gate.iter_mut().zip(up) {
                    *gate = $function(*gate) * up;
                }
            }
        }
    };
}

activation!(silu, silu_multiply, |x: f32| x * sigmoid(x));
activation!(gelu, gelu_multiply, |x: f32| x * normal_cdf(x));
activation!(gelu_tanh, gelu_tanh_multiply, |x: f32| x * sigmoid(twice_tanh_argument(x)));
activation!(relu, relu_multiply, |x: f32| if x < 0.0 { 0.0 } else { x });

/// `x ← cap · tanh(x / cap)` for every element: scores and logits that stay below a bound.
pub fn soft_cap(x: &mut [f32], cap: f32) {
    let isa = Isa::detect();
    x.par_chunks_mut(ELEMENTS_PER_TASK).for_each(|x| soft_cap_here(isa, x, cap));
}

/// [`soft_cap`] on this thread alone.
pub fn soft_cap_here(isa: Isa, x: &mut [f32], cap: f32) {
    capped(isa, x, cap, 1.0 / cap);
}

vectorized! {
    fn capped(x: &mut [f32], cap: f32, inverse: f32) {
        for x in x {
            *x = cap * tanh(*x * inverse);
        }
    }
}

/// `½ (1 + tanh z) = sigmoid(2 z)`, with `z = √(2/π) (x + 0.044715 x³)`.
#[inline(always)]
fn twice_tanh_argument(x: f32) -> f32 {
    const TWICE_SQRT_2_OVER_PI: f32 = 1.595_769;
    TWICE_SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x)
}
