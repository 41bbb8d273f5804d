//! Rotary position embedding (Su et al. 2021): pairs of channels of each head are turned by an angle
//! that grows with the position.

use rayon::prelude::*;

use crate::isa::Isa;
use crate::simd::{rows_per_task, vectorized};

/// Which channels form a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pairing {
    /// Channel `i` with channel `i + rotary / 2` ("rotate_half": Llama, Qwen, NeoX).
    Halves,
    /// Channel `2 i` with channel `2 i + 1` (GPT-J, the paper).
    Neighbours,
}

/// The angles of every position, as two tables of `[positions, rotary / 2]`.
#[derive(Clone, Copy, Debug)]
pub struct Rotation<'a> {
    /// Cosines of the angles (times the attention scaling of YaRN, where there is one).
    pub cos: &'a [f32],
    /// Sines of the angles.
    pub sin: &'a [f32],
    /// Channels of a head that turn: the first `rotary`, an even number.
    pub rotary: usize,
    /// Which of them form a pair.
    pub pairing: Pairing,
}

impl Rotation<'_> {
    /// Turns the heads of `x` `[batch · seq, heads · head_dim]` in place; row `r` stands at position
    /// `r % seq` of the tables.
    ///
    /// # Panics
    /// If `x` does not have whole sequences, `rotary` is odd or above `head_dim`, or the tables are
    /// shorter than `seq` positions.
    pub fn apply(&self, x: &mut [f32], seq: usize, heads: usize, head_dim: usize) {
        self.apply_with(Isa::detect(), x, seq, heads, head_dim);
    }

    /// [`apply`](Self::apply) for a level of instructions, or the machine's own where that is lower.
    pub fn apply_with(&self, isa: Isa, x: &mut [f32], seq: usize, heads: usize, head_dim: usize) {
        let width = heads * head_dim;
        let half = self.rotary / 2;
        assert!(self.rotary <= head_dim && self.rotary.is_multiple_of(2), "rotary channels");
        if x.is_empty() || half == 0 {
            return;
        }
        assert!(x.len().is_multiple_of(seq * width), "x does not have whole sequences");
        assert!(self.cos.len().min(self.sin.len()) >= seq * half, "the tables are too short");
        let rows = rows_per_task(width);
        x.par_chunks_mut(rows * width).enumerate().for_each(|(task, x)| {
            for (row, x) in x.chunks_exact_mut(width).enumerate() {
                let angle = (task * rows + row) % seq * half;
                let (cos, sin) = (&self.cos[angle..][..half], &self.sin[angle..][..half]);
                match self.pairing {
                    Pairing::Halves => turn_halves(isa, x, head_dim, cos, sin),
                    Pairing::Neighbours => turn_neighbours(isa, x, head_dim, cos, sin),
                }
            }
        });
    }
}

/// Turns the heads of one row in place, by the angles of its position, on this thread; channels pair
/// as [`Pairing::Halves`].
///
/// # Panics
/// If the row does not have whole heads, or a head is narrower than twice the angles.
pub fn turn_row(isa: Isa, x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
    assert!(x.len().is_multiple_of(head_dim), "the row does not have whole heads");
    assert!(cos.len() == sin.len() && 2 * cos.len() <= head_dim, "more angles than pairs");
    turn_halves(isa, x, head_dim, cos, sin);
}

vectorized! {
    fn turn_halves(x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
        for head in x.chunks_exact_mut(head_dim) {
            let (first, second) = head.split_at_mut(cos.len());
            for (((first, second), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                (*first, *second) = (*first * cos - *second * sin, *second * cos + *first * sin);
            }
        }
    }
}

vectorized! {
    fn turn_neighbours(x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
        for head in x.chunks_exact_mut(head_dim) {
            for (([first, second], cos), sin) in
                head.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin)
            {
                (*first, *second) = (*first * cos - *second * sin, *second * cos + *first * sin);
            }
        }
    }
}
