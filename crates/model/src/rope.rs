//! Rotary positions: frequencies, how they are stretched for longer contexts, and the angles they make.
//!
//! The stretchings are those of transformers (`modeling_rope_utils`): linear; Llama 3's; YaRN (Peng et al.,
//! 2023, arXiv 2309.00071); LongRoPE (Ding et al., 2024, arXiv 2402.13753).

use std::f64::consts::PI;

/// Rotary position embedding of `heads` heads, halves of a head rotated against each other.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeOp {
    /// Heads in the value.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Channels of a head that are rotated, an even number: the first.
    pub rotary: usize,
    /// Base of the frequencies.
    pub theta: f64,
    /// How the frequencies are stretched.
    pub scaling: RopeScaling,
}

/// How rotary frequencies are stretched for a longer context.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All divided by a factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Llama 3: low frequencies divided by a factor, high ones kept, a smooth blend between.
    Llama3 {
        /// Divides the low frequencies.
        factor: f64,
        /// Wavelengths above `original_context / low` count as low.
        low: f64,
        /// Wavelengths below `original_context / high` count as high.
        high: f64,
        /// Context the model was first trained with.
        original_context: f64,
    },
    /// YaRN: pairs that turn seldom in the original context divided by a factor, those that turn often
    /// kept, a straight blend between; the angles' cosines and sines times a number.
    Yarn {
        /// Divides the frequencies of pairs that turn seldom.
        factor: f64,
        /// Pairs that turn at least so many times in the original context are kept.
        fast: f64,
        /// Pairs that turn at most so many times are divided.
        slow: f64,
        /// Whether the bounds between are whole numbers of pairs.
        truncate: bool,
        /// Context the model was first trained with.
        original_context: f64,
        /// What cosines and sines are multiplied by.
        attention: f64,
    },
    /// LongRoPE: a divisor for each pair, and other ones beyond the original context; cosines and sines
    /// times a number.
    LongRope {
        /// Divisors within the original context, one a pair.
        short: Vec<f64>,
        /// Divisors of all positions where some lie beyond it.
        long: Vec<f64>,
        /// Context the model was first trained with.
        original_context: f64,
        /// What cosines and sines are multiplied by.
        attention: f64,
    },
}

impl RopeOp {
    /// Inverse frequencies of the `rotary / 2` pairs, in radians a position, where there are so many
    /// positions.
    pub fn inverse_frequencies(&self, positions: usize) -> Vec<f32> {
        let plain = |pair: usize| self.theta.powf(-2.0 * pair as f64 / self.rotary as f64);
        let stretched = |pair: usize| self.stretch(pair, plain(pair), positions) as f32;
        (0..self.rotary / 2).map(stretched).collect()
    }

    /// Cosines and sines of so many positions, each `[positions, rotary / 2]`. Angles are products of
    /// `f32`, as the models were trained with; their cosines are exact.
    pub fn angles(&self, positions: usize) -> (Vec<f32>, Vec<f32>) {
        let frequencies = self.inverse_frequencies(positions);
        let angles = (0..positions).flat_map(|position| {
            frequencies.iter().map(move |frequency| f64::from(position as f32 * frequency))
        });
        let attention = match self.scaling {
            RopeScaling::Yarn { attention, .. } | RopeScaling::LongRope { attention, .. } => {
                attention as f32
            }
            _ => 1.0,
        };
        angles.map(|a| (a.cos() as f32 * attention, a.sin() as f32 * attention)).unzip()
    }

    fn stretch(&self, pair: usize, frequency: f64, positions: usize) -> f64 {
        match &self.scaling {
            RopeScaling::None => frequency,
            RopeScaling::Linear { factor } => frequency / factor,
            &RopeScaling::Llama3 { factor, low, high, original_context } => {
                let wavelength = 2.0 * PI / frequency;
                if wavelength > original_context / low {
                    frequency / factor
                } else if wavelength < original_context / high {
                    frequency
                } else {
                    let smooth = (original_context / wavelength - low) / (high - low);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }
            &RopeScaling::Yarn { factor, fast, slow, truncate, original_context, .. } => {
                let width = self.rotary as f64;
                // The pair that turns so many times.
                let place = |turns: f64| {
                    width * (original_context / (turns * 2.0 * PI)).ln() / (2.0 * self.theta.ln())
                };
                let (mut first, mut last) = (place(fast), place(slow));
                if truncate {
                    (first, last) = (first.floor(), last.ceil());
                }
                let (first, mut last) = (first.max(0.0), last.min(width - 1.0));
                if first == last {
                    last += 0.001;
                }
                let divided = ((pair as f64 - first) / (last - first)).clamp(0.0, 1.0);
                frequency * (1.0 - divided) + frequency / factor * divided
            }
            RopeScaling::LongRope { short, long, original_context, .. } => {
                let divisors = if positions as f64 > *original_context { long } else { short };
                frequency / divisors.get(pair).copied().unwrap_or(1.0)
            }
        }
    }

    /// Whether another makes the same angles but for numbers rounded to single precision, as some files
    /// keep them.
    pub fn is_nearly(&self, other: &Self) -> bool {
        let near = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-6 * a.abs();
        let (own, others) = (self.scaling.numbers(), other.scaling.numbers());
        let sizes = |rope: &Self| (rope.heads, rope.head_dim, rope.rotary);
        sizes(self) == sizes(other)
            && near((&self.theta, &other.theta))
            && std::mem::discriminant(&self.scaling) == std::mem::discriminant(&other.scaling)
            && own.len() == others.len()
            && own.iter().zip(&others).all(near)
    }

    /// The context beyond which all positions get other angles, where there is one.
    pub fn short_context(&self) -> Option<usize> {
        match &self.scaling {
            RopeScaling::LongRope { original_context, .. } => Some(*original_context as usize),
            _ => None,
        }
    }
}

impl RopeScaling {
    /// All that it is made of.
    fn numbers(&self) -> Vec<f64> {
        match self {
            Self::None => vec![],
            Self::Linear { factor } => vec![*factor],
            Self::Llama3 { factor, low, high, original_context } => {
                vec![*factor, *low, *high, *original_context]
            }
            Self::Yarn { factor, fast, slow, truncate, original_context, attention } => {
                vec![*factor, *fast, *slow, f64::from(*truncate), *original_context, *attention]
            }
            Self::LongRope { short, long, original_context, attention } => {
                // The lengths part the lists.
                let mut numbers = vec![short.len() as f64, *original_context, *attention];
                numbers.extend(short.iter().chain(long));
                numbers
            }
        }
    }
}
