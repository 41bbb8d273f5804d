//! Uniform integer codes: what round-to-nearest, OMSE, GPTQ, AWQ and HQQ emit.

use crate::part::Parts;
use crate::term::{check_codes, check_finite, check_length};
use crate::{FloatType, Grouping, Part, TermOutline, WeightError};

const TERM: &str = "affine";

/// `W[r, c] = scale · (code[r, c] − zero)`, with scale and zero of the group of `(r, c)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Affine {
    /// Bits of a code, 1 to 8.
    pub bits: u8,
    /// Which elements share a scale.
    pub grouping: Grouping,
    /// Row-major codes, one a byte, each below `2^bits`.
    pub codes: Vec<u8>,
    /// One scale a group, rows outermost, representable in `scale_type`.
    pub scales: Vec<f32>,
    /// Storage type of the scales.
    pub scale_type: FloatType,
    /// One zero point a group, or `None` for the symmetric zero `2^(bits−1)`.
    pub zeros: Option<Vec<u8>>,
}

impl Affine {
    /// The zero point of group `group`.
    pub fn zero(&self, group: usize) -> u8 {
        self.zeros.as_ref().map_or(1 << (self.bits - 1), |zeros| zeros[group])
    }

    pub(crate) fn outline(&self) -> TermOutline {
        TermOutline::Affine {
            bits: self.bits,
            grouping: self.grouping,
            symmetric: self.zeros.is_none(),
            scales: self.scale_type,
        }
    }

    pub(crate) fn validate(&self, rows: usize, cols: usize) -> Result<(), WeightError> {
        let groups = self.grouping.count(rows, cols);
        check_length(TERM, "codes", self.codes.len(), rows * cols)?;
        check_length(TERM, "scales", self.scales.len(), groups)?;
        check_finite(TERM, "scales", &self.scales)?;
        check_codes(TERM, "codes", &self.codes, self.bits)?;
        if let Some(zeros) = &self.zeros {
            check_length(TERM, "zeros", zeros.len(), groups)?;
            check_codes(TERM, "zeros", zeros, self.bits)?;
        }
        Ok(())
    }

    pub(crate) fn add_row(&self, row: usize, out: &mut [f32]) {
        let cols = out.len();
        let first = self.grouping.row_start(row, cols);
        let width = self.grouping.width(cols);
        let codes = &self.codes[row * cols..][..cols];
        let groups = out.chunks_mut(width).zip(codes.chunks(width));
        for (index, (out, codes)) in groups.enumerate() {
            let scale = self.scales[first + index];
            let zero = i32::from(self.zero(first + index));
            for (out, code) in out.iter_mut().zip(codes) {
                *out += scale * (i32::from(*code) - zero) as f32;
            }
        }
    }

    pub(crate) fn parts(&self, rows: usize, cols: usize) -> Vec<Part> {
        let shape = self.grouping.scale_shape(rows, cols);
        let mut parts = vec![
            Part::codes("codes", &self.codes, cols, self.bits),
            Part::floats("scales", self.scale_type, shape, &self.scales),
        ];
        if let Some(zeros) = &self.zeros {
            parts.push(Part::codes("zeros", zeros, self.grouping.per_row(cols), self.bits));
        }
        parts
    }

    pub(crate) fn from_parts(
        bits: u8,
        grouping: Grouping,
        symmetric: bool,
        scale_type: FloatType,
        cols: usize,
        parts: &Parts<'_>,
    ) -> Result<Self, WeightError> {
        let zeros = || parts.codes("zeros", grouping.per_row(cols), bits);
        Ok(Self {
            bits,
            grouping,
            codes: parts.codes("codes", cols, bits)?,
            scales: parts.floats("scales", scale_type)?,
            scale_type,
            zeros: if symmetric { None } else { Some(zeros()?) },
        })
    }
}
