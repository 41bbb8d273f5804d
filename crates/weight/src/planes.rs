//! Binary coding: a sum of planes of signs, each with a scale a group.
//!
//! nuQmm / LUT-GEMM (Park et al., 2022, arXiv 2206.09557). Uniform codes of `q` bits are `q` planes
//! with scales that double from one to the next, and an offset; see [`Planes::from_uniform`].

use crate::part::Parts;
use crate::term::{check_codes, check_finite, check_length};
use crate::{FloatType, Grouping, Part, TermOutline, WeightError};

const TERM: &str = "planes";

/// `W[r, c] = Σ_i alpha_i · sign_i[r, c] (+ offset)`, signs ±1, alphas and offset of the group of
/// `(r, c)`. Summed from plane 0 upward, then the offset.
#[derive(Debug, Clone, PartialEq)]
pub struct Planes {
    /// Planes of signs, 1 to 8.
    pub planes: u8,
    /// Which elements share a set of alphas.
    pub grouping: Grouping,
    /// Row-major, one byte an element: bit `i` is the sign in plane `i`, set for +1.
    pub signs: Vec<u8>,
    /// `[planes, groups]`, plane outermost, representable in `scale_type`.
    pub alphas: Vec<f32>,
    /// One number a group, added to every element of it.
    pub offsets: Option<Vec<f32>>,
    /// Storage type of alphas and offsets.
    pub scale_type: FloatType,
}

impl Planes {
    /// Alphas and offset that make `planes` planes, bit `i` of a code its sign in plane `i`, the
    /// uniform grid `scale · (code − zero)`: `alpha_i = scale · 2^(i−1)` and
    /// `offset = scale · ((2^planes − 1) / 2 − zero)`.
    pub fn from_uniform(planes: u8, scale: f32, zero: f32) -> (Vec<f32>, f32) {
        let alphas = (0..planes).map(|plane| scale * 0.5 * f32::from(1_u8 << plane)).collect();
        (alphas, scale * (f32::from((1_u16 << planes) - 1) / 2.0 - zero))
    }

    pub(crate) fn outline(&self) -> TermOutline {
        TermOutline::Planes {
            planes: self.planes,
            grouping: self.grouping,
            offsets: self.offsets.is_some(),
            scales: self.scale_type,
        }
    }

    pub(crate) fn validate(&self, rows: usize, cols: usize) -> Result<(), WeightError> {
        let groups = self.grouping.count(rows, cols);
        check_length(TERM, "signs", self.signs.len(), rows * cols)?;
        check_codes(TERM, "signs", &self.signs, self.planes)?;
        check_length(TERM, "alphas", self.alphas.len(), usize::from(self.planes) * groups)?;
        check_finite(TERM, "alphas", &self.alphas)?;
        if let Some(offsets) = &self.offsets {
            check_length(TERM, "offsets", offsets.len(), groups)?;
            check_finite(TERM, "offsets", offsets)?;
        }
        Ok(())
    }

    pub(crate) fn add_row(&self, row: usize, out: &mut [f32]) {
        let cols = out.len();
        let (first, width) = (self.grouping.row_start(row, cols), self.grouping.width(cols));
        let planes = usize::from(self.planes);
        let groups = self.alphas.len() / planes;
        let signs = &self.signs[row * cols..][..cols];
        let mut levels = vec![0.0; 1 << planes];
        for (index, (out, signs)) in out.chunks_mut(width).zip(signs.chunks(width)).enumerate() {
            let group = first + index;
            let offset = self.offsets.as_ref().map(|offsets| offsets[group]);
            let alpha = |plane: usize| self.alphas[plane * groups + group];
            let level = |signs: usize| {
                let signed = |i| if signs >> i & 1 == 1 { alpha(i) } else { -alpha(i) };
                // From the first plane itself: a sum that begins at zero would lose a sign of zero.
                let sum = (1..planes).fold(signed(0), |sum, plane| sum + signed(plane));
                offset.map_or(sum, |offset| sum + offset)
            };
            if signs.len() < levels.len() {
                let signs = signs.iter().map(|signs| level(usize::from(*signs)));
                out.iter_mut().zip(signs).for_each(|(out, level)| *out += level);
                continue;
            }
            levels.iter_mut().enumerate().for_each(|(signs, slot)| *slot = level(signs));
            for (out, signs) in out.iter_mut().zip(signs) {
                *out += levels[usize::from(*signs)];
            }
        }
    }

    pub(crate) fn parts(&self, rows: usize, cols: usize) -> Vec<Part> {
        let plane = |plane: u8| self.signs.iter().map(move |signs| signs >> plane & 1);
        let bits: Vec<u8> = (0..self.planes).flat_map(plane).collect();
        let scales = self.grouping.scale_shape(rows, cols);
        let mut shape = vec![usize::from(self.planes)];
        shape.extend(&scales);
        let mut parts = vec![
            Part::codes("signs", &bits, cols, 1),
            Part::floats("alphas", self.scale_type, shape, &self.alphas),
        ];
        if let Some(offsets) = &self.offsets {
            parts.push(Part::floats("offsets", self.scale_type, scales, offsets));
        }
        parts
    }

    pub(crate) fn from_parts(
        planes: u8,
        grouping: Grouping,
        offsets: bool,
        scale_type: FloatType,
        (rows, cols): (usize, usize),
        parts: &Parts<'_>,
    ) -> Result<Self, WeightError> {
        let bits = parts.codes("signs", cols, 1)?;
        let elements = rows * cols;
        check_length(TERM, "signs", bits.len(), usize::from(planes) * elements)?;
        let mut signs = vec![0; elements];
        for (plane, bits) in bits.chunks_exact(elements.max(1)).enumerate() {
            signs.iter_mut().zip(bits).for_each(|(signs, bit)| *signs |= bit << plane);
        }
        let read = || parts.floats("offsets", scale_type);
        Ok(Self {
            planes,
            grouping,
            signs,
            alphas: parts.floats("alphas", scale_type)?,
            offsets: if offsets { Some(read()?) } else { None },
            scale_type,
        })
    }
}
