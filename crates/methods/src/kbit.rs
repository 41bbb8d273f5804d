//! The data types of the k-bit scaling laws: integers, floats, dynamic exponents, quantiles.
//!
//! Dettmers and Zettlemoyer, 2022 (arXiv 2212.09720): a block's weights over their largest magnitude,
//! each to the nearest of at most `2^k` levels from −1 to 1. `outlier_share` keeps the input columns
//! of the largest inputs in 16 bits; the paper guesses them from the weights of the layer before
//! (proxy quantization), which a method does not see: here they are measured on the calibration text.
//! Quantiles: the paper's formula leaves one tail out of its table; here `2^k` equal shares, each
//! level the mean of its share's ends, the one nearest to zero being zero.

use crate::blocks::Blocks;
use crate::codebook::Codebook;
use crate::{Encoded, GroupSize, Method, MethodError, Needs, ParamError, Site, Tensorwise};
use lapidary_weight::{FloatType, GroupType, Grouping, Outline};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) const SUMMARY: &str = "2 to 8 bits: integers, floats, dynamic exponents or quantiles";
pub(crate) const PAPER: &str = "Dettmers and Zettlemoyer, 2022, arXiv 2212.09720";

/// Parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Params {
    /// Bits of a weight, 2 to 8.
    #[schemars(range(min = 2, max = 8))]
    pub bits: u8,
    /// Columns that share a scale: a number, "row" (or -1) for one scale a row, "tensor" for one.
    pub group_size: GroupSize,
    /// What the levels are.
    pub data_type: DataType,
    /// Bits of the exponent of floats, 1 to bits − 1; half of the bits, rounded up, when null.
    pub exponent_bits: Option<u8>,
    /// Share of the input columns that stay floats of 16 bits, those of the largest inputs.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub outlier_share: f64,
}

/// What the levels are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DataType {
    /// Evenly spaced, symmetric.
    Int,
    /// A sign, an exponent, a fraction; no infinities.
    Float,
    /// A sign, leading zeros for the decimal exponent, the rest linear.
    DynamicExponent,
    /// Quantiles of the weights themselves.
    Quantile,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            bits: 4,
            group_size: GroupSize::Columns(64),
            data_type: DataType::Float,
            exponent_bits: None,
            outlier_share: 0.0,
        }
    }
}

/// Weights that quantiles are taken of.
const SAMPLE: usize = 1 << 18;

pub(crate) fn build(params: Params) -> Result<Method, ParamError> {
    if !(2..=8).contains(&params.bits) {
        return Err(ParamError::new("bits", format!("{} is not from 2 to 8", params.bits)));
    }
    if let Some(exponent) = params.exponent_bits
        && !(1..params.bits).contains(&exponent)
    {
        let what = format!("{exponent} is not from 1 to {}", params.bits - 1);
        return Err(ParamError::new("exponent_bits", what));
    }
    if !(0.0..=1.0).contains(&params.outlier_share) {
        let what = format!("{} is not from 0 to 1", params.outlier_share);
        return Err(ParamError::new("outlier_share", what));
    }
    Ok(Method::Tensorwise(Box::new(KBit { params, has_inputs: true })))
}

struct KBit {
    params: Params,
    /// Otherwise the columns that stay floats are those of the largest weights.
    has_inputs: bool,
}

impl KBit {
    fn blocks(&self, cols: usize, scales: FloatType) -> Blocks {
        Blocks { grouping: self.params.group_size.grouping(cols), scales: GroupType::Plain(scales) }
    }

    /// How many columns stay floats.
    fn kept(&self, cols: usize) -> usize {
        ((self.params.outlier_share * cols as f64).round() as usize).min(cols)
    }

    /// The columns of the largest mean squares of the inputs (or the weights), in rising order.
    fn outliers(&self, site: &Site<'_>) -> Result<Vec<usize>, MethodError> {
        let count = self.kept(site.cols);
        if count == 0 {
            return Ok(vec![]);
        }
        let diagonal = match self.has_inputs {
            true => site.gram_diagonal()?,
            false => squares(site),
        };
        let mut columns: Vec<usize> = (0..site.cols).collect();
        columns.sort_by(|a, b| diagonal[*b].total_cmp(&diagonal[*a]).then(a.cmp(b)));
        columns.truncate(count);
        columns.sort_unstable();
        Ok(columns)
    }
}

impl Tensorwise for KBit {
    fn needs(&self) -> Needs {
        Needs { gram: self.has_inputs && self.params.outlier_share > 0.0, ..Needs::default() }
    }

    fn needs_only_diagonal(&self) -> bool {
        true
    }

    fn outline(&self, rows: usize, cols: usize, scales: FloatType) -> Outline {
        let blocks = self.blocks(cols, scales);
        blocks.outline((rows, cols), self.params.bits, self.kept(cols), scales)
    }

    fn encode(&self, site: &Site<'_>) -> Result<Encoded, MethodError> {
        let bits = self.params.bits;
        let blocks = self.blocks(site.cols, site.scale_type);
        blocks.encode(site, &self.outliers(site)?, |weights| match self.params.data_type {
            DataType::Int => integers(bits),
            DataType::Float => {
                floats(bits, self.params.exponent_bits.unwrap_or_else(|| bits.div_ceil(2)).min(bits - 1))
            }
            DataType::DynamicExponent => dynamic_exponents(bits),
            DataType::Quantile => quantiles(bits, weights.sample(SAMPLE)),
        })
    }

    fn regroup(&self, grouping: Grouping) -> Option<Box<dyn Tensorwise>> {
        let params = Params { group_size: grouping.into(), ..self.params.clone() };
        Some(Box::new(Self { params, ..*self }))
    }

    fn without_statistics(&self) -> Option<Box<dyn Tensorwise>> {
        Some(Box::new(Self { params: self.params.clone(), has_inputs: false }))
    }
}

/// Sums of squares of the columns of the weight.
fn squares(site: &Site<'_>) -> Vec<f32> {
    let mut squares = vec![0.0; site.cols];
    for row in site.weight.chunks_exact(site.cols.max(1)) {
        squares.iter_mut().zip(row).for_each(|(sum, w)| *sum += w * w);
    }
    squares
}

/// `0, 1 … 2^(bits−1) − 1` and their negatives.
fn integers(bits: u8) -> Codebook {
    let positive: Vec<f64> = (0..1_u16 << (bits - 1)).map(f64::from).collect();
    Codebook::symmetric(bits, &positive)
}

/// `fraction · 2` where the exponent is zero, else `(1 + fraction) · 2^exponent`.
fn floats(bits: u8, exponent_bits: u8) -> Codebook {
    let fractions = 1_u16 << (bits - 1 - exponent_bits);
    let level = |exponent: u16, fraction: u16| {
        let fraction = f64::from(fraction) / f64::from(fractions);
        match exponent {
            0 => 2.0 * fraction,
            _ => (1.0 + fraction) * f64::from(exponent).exp2(),
        }
    };
    let exponents = 0..1_u16 << exponent_bits;
    let positive: Vec<f64> =
        exponents.flat_map(|e| (0..fractions).map(move |f| level(e, f))).collect();
    Codebook::symmetric(bits, &positive)
}

/// With `z` leading zeros, `10^−z` times the middles of `2^(bits − 2 − z)` equal parts of `[0.1, 1]`;
/// zeros alone are zero.
fn dynamic_exponents(bits: u8) -> Codebook {
    let of_zeros = |zeros: u8| {
        let parts = 1_u16 << (bits - 2 - zeros);
        let middle = move |part: u16| 0.1 + 0.9 * (f64::from(part) + 0.5) / f64::from(parts);
        (0..parts).map(move |part| middle(part) * 0.1_f64.powi(i32::from(zeros)))
    };
    let mut positive: Vec<f64> = (0..bits - 1).flat_map(of_zeros).collect();
    positive.push(0.0);
    Codebook::symmetric(bits, &positive)
}

/// The middle of each of `2^bits` equal shares of the weights.
fn quantiles(bits: u8, mut sample: Vec<f32>) -> Codebook {
    if sample.is_empty() {
        return integers(bits);
    }
    sample.sort_unstable_by(f32::total_cmp);
    let size = 1_usize << bits;
    let at = |share: usize| {
        let place = share as f64 / size as f64 * (sample.len() - 1) as f64;
        let (low, high) = (place.floor() as usize, place.ceil() as usize);
        f64::from(sample[low]) + place.fract() * f64::from(sample[high] - sample[low])
    };
    let mut levels: Vec<f64> = (0..size).map(|i| 0.5 * (at(i) + at(i + 1))).collect();
    let magnitudes = levels.iter().map(|level| level.abs());
    let nearest = magnitudes.enumerate().min_by(|a, b| a.1.total_cmp(&b.1));
    if let Some((index, _)) = nearest {
        levels[index] = 0.0;
    }
    let largest = levels.iter().fold(0.0_f64, |most, level| most.max(level.abs()));
    let largest = if largest > 0.0 { largest } else { 1.0 };
    Codebook::new(bits, levels.into_iter().map(|level| (level / largest) as f32).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn distinct(book: &Codebook) -> Vec<f32> {
        let mut levels = book.levels().to_vec();
        levels.dedup();
        levels
    }

    /// Card of k-bit inference, must show 1, and that every type reaches exactly 1.
    #[test]
    fn codebooks_have_the_sizes_of_their_types() {
        assert_eq!(distinct(&integers(4)).len(), 15);
        assert_eq!(distinct(&floats(4, 2)).len(), 15);
        for bits in 2..=8 {
            let mut books = vec![integers(bits), dynamic_exponents(bits)];
            books.extend((1..bits).map(|exponent| floats(bits, exponent)));
            for book in &books {
                assert_eq!(distinct(book).len(), (1 << bits) - 1, "{bits}");
            }
            let spread = (0..5000).map(|i| ((i as f32 / 2500.0 - 1.0) * 2.0).tanh()).collect();
            let quantile = quantiles(bits, spread);
            assert_eq!(distinct(&quantile).len(), 1 << bits, "{bits}");
            for book in books.iter().chain([&quantile]) {
                let largest = book.levels().iter().fold(0.0_f32, |m, level| m.max(level.abs()));
                assert_eq!(largest, 1.0);
                assert!(book.levels().contains(&0.0));
            }
        }
        let e2m1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        assert_eq!(floats(4, 2), Codebook::symmetric(4, &e2m1));
    }

    #[test]
    fn dynamic_exponents_of_four_bits_are_those_of_the_paper() {
        // 1xx: four parts of [0.1, 1]; 01x: two of [0.01, 0.1]; 001: one of [0.001, 0.01]; 000: zero.
        let expected =
            [0.0, 0.0055, 0.0325, 0.0775, 0.2125, 0.4375, 0.6625, 0.8875].map(|v| v / 0.8875);
        assert_eq!(dynamic_exponents(4), Codebook::symmetric(4, &expected));
    }
}
