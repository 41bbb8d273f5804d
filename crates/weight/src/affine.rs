//! Uniform integer codes: what round-to-nearest, OMSE, GPTQ, AWQ, HQQ, SpQR and K-quants are.

use crate::part::Parts;
use crate::term::{check_codes, check_length};
use crate::{
    GroupFloats, GroupNames, GroupType, Grouping, Part, TermOutline, WeightError, ZeroType,
};

const TERM: &str = "affine";

/// `W[r, c] = scale · (code[r, c] − zero)`, or `scale · code[r, c] − minimum`, with the scale and
/// the zero or minimum of the group of `(r, c)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Affine {
    /// Bits of a code, 1 to 8.
    pub bits: u8,
    /// Which elements share a scale.
    pub grouping: Grouping,
    /// Row-major codes, one a byte, each below `2^bits`.
    pub codes: Vec<u8>,
    /// One scale a group.
    pub scales: GroupFloats,
    /// What stands for zero in each group.
    pub zeros: Zeros,
}

/// What the codes of a group are counted from.
#[derive(Debug, Clone, PartialEq)]
pub enum Zeros {
    /// The middle code, `2^(bits−1)`.
    Middle,
    /// A code a group, below `2^bits`.
    Codes(Vec<u8>),
    /// A real number a group, in steps: `scale · (code − zero)`, the difference rounded to `f32`
    /// before the product.
    Floats(GroupFloats),
    /// A real number a group, in the unit of the weights: `scale · code − minimum`, as in K-quants.
    /// It is a kind of its own because a zero that gives this minimum, `minimum / scale`, is in
    /// general no float, and none at all where a group's scale is zero but its minimum is not.
    Minima(GroupFloats),
}

impl Affine {
    /// The value of `code` in group `group`.
    pub fn value(&self, group: usize, code: u8) -> f32 {
        let scale = self.scales[group];
        match &self.zeros {
            Zeros::Middle => scale * (i32::from(code) - (1 << (self.bits - 1))) as f32,
            Zeros::Codes(zeros) => scale * (i32::from(code) - i32::from(zeros[group])) as f32,
            Zeros::Floats(zeros) => scale * (f32::from(code) - zeros[group]),
            Zeros::Minima(minima) => scale * f32::from(code) - minima[group],
        }
    }

    pub(crate) fn outline(&self) -> TermOutline {
        TermOutline::Affine {
            bits: self.bits,
            grouping: self.grouping,
            zeros: match &self.zeros {
                Zeros::Middle => ZeroType::Middle,
                Zeros::Codes(_) => ZeroType::Codes,
                Zeros::Floats(zeros) => ZeroType::Floats(zeros.kind()),
                Zeros::Minima(minima) => ZeroType::Minima(minima.kind()),
            },
            scales: self.scales.kind(),
        }
    }

    pub(crate) fn validate(&self, rows: usize, cols: usize) -> Result<(), WeightError> {
        check_length(TERM, "codes", self.codes.len(), rows * cols)?;
        check_codes(TERM, "codes", &self.codes, self.bits)?;
        self.scales.validate(TERM, GroupNames::SCALES, self.grouping, rows, cols)?;
        match &self.zeros {
            Zeros::Middle => Ok(()),
            Zeros::Codes(zeros) => {
                check_length(TERM, "zeros", zeros.len(), self.grouping.count(rows, cols))?;
                check_codes(TERM, "zeros", zeros, self.bits)
            }
            Zeros::Floats(zeros) => {
                zeros.validate(TERM, GroupNames::ZEROS, self.grouping, rows, cols)
            }
            Zeros::Minima(minima) => {
                minima.validate(TERM, GroupNames::MINIMA, self.grouping, rows, cols)
            }
        }
    }

    pub(crate) fn add_row(&self, row: usize, out: &mut [f32]) {
        let cols = out.len();
        let first = self.grouping.row_start(row, cols);
        let width = self.grouping.width(cols);
        let codes = &self.codes[row * cols..][..cols];
        let groups = out.chunks_mut(width).zip(codes.chunks(width));
        for (index, (out, codes)) in groups.enumerate() {
            let group = first + index;
            let scale = self.scales[group];
            let pairs = out.iter_mut().zip(codes);
            match &self.zeros {
                Zeros::Middle | Zeros::Codes(_) => {
                    let zero = match &self.zeros {
                        Zeros::Codes(zeros) => i32::from(zeros[group]),
                        _ => 1 << (self.bits - 1),
                    };
                    pairs.for_each(|(out, code)| *out += scale * (i32::from(*code) - zero) as f32);
                }
                Zeros::Floats(zeros) => {
                    let zero = zeros[group];
                    pairs.for_each(|(out, code)| *out += scale * (f32::from(*code) - zero));
                }
                Zeros::Minima(minima) => {
                    let minimum = minima[group];
                    pairs.for_each(|(out, code)| *out += scale * f32::from(*code) - minimum);
                }
            }
        }
    }

    pub(crate) fn parts(&self, rows: usize, cols: usize) -> Vec<Part> {
        let grouping = self.grouping;
        let mut parts = vec![Part::codes("codes", &self.codes, cols, self.bits)];
        parts.extend(self.scales.parts(GroupNames::SCALES, grouping, rows, cols));
        match &self.zeros {
            Zeros::Middle => {}
            Zeros::Codes(zeros) => {
                parts.push(Part::codes("zeros", zeros, grouping.per_row(cols), self.bits));
            }
            Zeros::Floats(zeros) => {
                parts.extend(zeros.parts(GroupNames::ZEROS, grouping, rows, cols));
            }
            Zeros::Minima(minima) => {
                parts.extend(minima.parts(GroupNames::MINIMA, grouping, rows, cols));
            }
        }
        parts
    }

    pub(crate) fn from_parts(
        bits: u8,
        grouping: Grouping,
        zeros: ZeroType,
        scales: GroupType,
        (rows, cols): (usize, usize),
        parts: &Parts<'_>,
    ) -> Result<Self, WeightError> {
        let floats =
            |kind, names| GroupFloats::from_parts(kind, names, grouping, (rows, cols), parts);
        Ok(Self {
            bits,
            grouping,
            codes: parts.codes("codes", cols, bits)?,
            scales: floats(scales, GroupNames::SCALES)?,
            zeros: match zeros {
                ZeroType::Middle => Zeros::Middle,
                ZeroType::Codes => {
                    Zeros::Codes(parts.codes("zeros", grouping.per_row(cols), bits)?)
                }
                ZeroType::Floats(kind) => Zeros::Floats(floats(kind, GroupNames::ZEROS)?),
                ZeroType::Minima(kind) => Zeros::Minima(floats(kind, GroupNames::MINIMA)?),
            },
        })
    }
}
