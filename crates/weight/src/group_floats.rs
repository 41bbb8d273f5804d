//! One real number a group (scales, zeros, minima): plain floats, or two levels of them.
//!
//! A two-level array has a code of a few bits for each number and a coarse float for each run of
//! numbers: the super-blocks of K-quants (runs of 8 or 16, codes of 4, 6 or 8 bits), QLoRA's double
//! quantization (runs of 256 with the mean of all subtracted), SpQR's second level (the same group
//! of columns in consecutive rows). Both levels decode in `f32`:
//! `value = coarse[run] · level(code) + offset`, rounded after the product and after the sum. Scales
//! that are small floats themselves (NVFP4, the microscaling formats) are codes, divided by one float
//! for the whole array or not.

use crate::part::Parts;
use crate::term::{check_codes, check_finite, check_length};
use crate::{FloatType, Grouping, Part, PartType, SmallFloat, WeightError};
use serde::{Deserialize, Serialize};
use std::num::NonZeroUsize;
use std::ops::Deref;

const TERM: &str = "two-level";
const SMALL: &str = "small-float";

/// Which numbers of a two-level array share a coarse one. The array is `[rows, groups a row]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Runs {
    /// So many consecutive numbers in row-major order, across the ends of rows.
    Flat(NonZeroUsize),
    /// The numbers of one group of columns in so many consecutive rows.
    Rows(NonZeroUsize),
}

impl Runs {
    /// Runs in an array of `rows` rows of `per_row` numbers.
    pub fn count(self, rows: usize, per_row: usize) -> usize {
        match self {
            Self::Flat(length) => (rows * per_row).div_ceil(length.get()),
            Self::Rows(length) => rows.div_ceil(length.get()) * per_row,
        }
    }

    /// The run of number `index` of the row-major array.
    pub fn of(self, index: usize, per_row: usize) -> usize {
        match self {
            Self::Flat(length) => index / length.get(),
            Self::Rows(length) => index / per_row / length.get() * per_row + index % per_row,
        }
    }
}

/// What a code of a two-level array counts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// `coarse · code`: numbers that are not negative (Q4_K's scales and minima).
    Zero,
    /// `coarse · (code − 2^(bits−1))`: signed numbers (Q6_K's scales).
    Middle,
    /// `coarse · code + offset`, an offset a run: any range (SpQR).
    Least,
    /// `coarse · (code − 2^(bits−1)) + offset`, one offset for the array (QLoRA).
    Mean,
}

/// How a two-level array is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TwoLevel {
    /// Bits of a code, 1 to 8.
    pub bits: u8,
    /// Who shares a coarse number.
    pub runs: Runs,
    /// What codes count from.
    pub origin: Origin,
    /// Type of the coarse numbers and the offsets.
    pub coarse: FloatType,
}

impl TwoLevel {
    fn offsets(&self, rows: usize, per_row: usize) -> usize {
        match self.origin {
            Origin::Zero | Origin::Middle => 0,
            Origin::Least => self.runs.count(rows, per_row),
            Origin::Mean => usize::from(rows * per_row > 0),
        }
    }

    /// What a code of zero stands for, in steps.
    fn bottom(&self) -> f32 {
        match self.origin {
            Origin::Zero | Origin::Least => 0.0,
            Origin::Middle | Origin::Mean => -f32::from(1_u8 << (self.bits - 1)),
        }
    }

    fn check(&self) -> Result<(), WeightError> {
        if (1..=8).contains(&self.bits) {
            return Ok(());
        }
        let what = format!("{} bits a code, where 1 to 8 are possible", self.bits);
        Err(WeightError::Outline { term: TERM, what })
    }
}

/// How numbers are stored as small floats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SmallCodes {
    /// Type of the codes: E4M3 or E8M0.
    pub float: SmallFloat,
    /// Whether the numbers are those of the codes divided by one F32, NVFP4's global scale.
    pub divided: bool,
}

impl SmallCodes {
    fn check(self) -> Result<(), WeightError> {
        if self.float.bits() == 8 {
            return Ok(());
        }
        let what = format!("{:?} is no type of scales; E4M3 and E8M0 are", self.float);
        Err(WeightError::Outline { term: SMALL, what })
    }
}

/// How one real number a group is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum GroupType {
    /// A float each.
    Plain(FloatType),
    /// A code each, and coarse floats.
    TwoLevel(TwoLevel),
    /// A small float each.
    Small(SmallCodes),
}

impl From<FloatType> for GroupType {
    fn from(float: FloatType) -> Self {
        Self::Plain(float)
    }
}

/// Names of the parts of one array.
#[derive(Debug, Clone, Copy)]
pub struct GroupNames {
    values: &'static str,
    codes: &'static str,
    offsets: &'static str,
}

impl GroupNames {
    /// The scales.
    pub const SCALES: Self =
        Self { values: "scales", codes: "scale_codes", offsets: "scale_offsets" };
    /// Float zero points.
    pub const ZEROS: Self = Self { values: "zeros", codes: "zero_codes", offsets: "zero_offsets" };
    /// Minima.
    pub const MINIMA: Self =
        Self { values: "minima", codes: "minimum_codes", offsets: "minimum_offsets" };
}

impl GroupType {
    /// The type of the floats among what is stored.
    pub fn float(self) -> FloatType {
        match self {
            Self::Plain(float) => float,
            Self::TwoLevel(kind) => kind.coarse,
            Self::Small(_) => FloatType::F32,
        }
    }

    /// Exact size for the groups of a matrix of this shape, in bits.
    pub fn bits(self, grouping: Grouping, rows: usize, cols: usize) -> u64 {
        let (rows, per_row) = array_shape(grouping, rows, cols);
        let count = (rows * per_row) as u64;
        match self {
            Self::Plain(float) => count * float.bits(),
            Self::TwoLevel(kind) => {
                let floats = kind.runs.count(rows, per_row) + kind.offsets(rows, per_row);
                count * u64::from(kind.bits) + floats as u64 * kind.coarse.bits()
            }
            Self::Small(kind) => 8 * count + if kind.divided { 32 } else { 0 },
        }
    }

    /// Names, types and shapes of the parts for a matrix of this shape, in stored order.
    pub fn parts(
        self,
        names: GroupNames,
        grouping: Grouping,
        rows: usize,
        cols: usize,
    ) -> Vec<(&'static str, PartType, Vec<usize>)> {
        let kind = match self {
            Self::Plain(float) => {
                let shape = grouping.scale_shape(rows, cols);
                return vec![(names.values, PartType::Float(float), shape)];
            }
            Self::Small(kind) => {
                let (rows, per_row) = array_shape(grouping, rows, cols);
                let codes = (names.codes, PartType::U32, Part::stream_shape(rows * per_row, 8));
                let divisor = (names.values, PartType::Float(FloatType::F32), vec![1]);
                return [codes].into_iter().chain(kind.divided.then_some(divisor)).collect();
            }
            Self::TwoLevel(kind) => kind,
        };
        let (rows, per_row) = array_shape(grouping, rows, cols);
        let float = PartType::Float(kind.coarse);
        let mut parts = vec![
            (names.codes, PartType::U32, Part::stream_shape(rows * per_row, kind.bits)),
            (names.values, float, vec![kind.runs.count(rows, per_row)]),
        ];
        match kind.offsets(rows, per_row) {
            0 => {}
            offsets => parts.push((names.offsets, float, vec![offsets])),
        }
        parts
    }

    pub(crate) fn check(self) -> Result<(), WeightError> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::TwoLevel(kind) => kind.check(),
            Self::Small(kind) => kind.check(),
        }
    }
}

/// Rows and groups a row of the array of one number a group.
fn array_shape(grouping: Grouping, rows: usize, cols: usize) -> (usize, usize) {
    match grouping {
        Grouping::Tensor => (grouping.count(rows, cols), 1),
        Grouping::Row | Grouping::Columns(_) => (rows, grouping.per_row(cols)),
        Grouping::Blocks { rows: height, .. } => {
            (rows.div_ceil(height.get()), grouping.per_row(cols))
        }
    }
}

/// What a two-level array stores.
#[derive(Debug, Clone, PartialEq)]
pub struct Levels {
    /// How it is stored.
    pub kind: TwoLevel,
    /// Numbers in a row of the array.
    pub per_row: usize,
    /// Row-major codes, one a byte, each below `2^bits`.
    pub codes: Vec<u8>,
    /// One number a run, representable in `kind.coarse`.
    pub coarse: Vec<f32>,
    /// As many as the origin asks for: none, one a run, or one.
    pub offsets: Vec<f32>,
}

impl Levels {
    /// The nearest codes to `values` (rows of `per_row`): a run's coarse number is such that its
    /// extreme values have the extreme codes; below zero, [`Origin::Zero`] has nothing but zero.
    fn round(kind: TwoLevel, per_row: usize, values: &[f32]) -> Self {
        let rows = values.len().checked_div(per_row).unwrap_or(0);
        let runs = kind.runs.count(rows, per_row);
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / values.len().max(1) as f64;
        let shift = if kind.origin == Origin::Mean { kind.coarse.round(mean as f32) } else { 0.0 };
        let mut ends = vec![(f32::INFINITY, f32::NEG_INFINITY); runs];
        for (index, value) in values.iter().enumerate() {
            let (low, high) = &mut ends[kind.runs.of(index, per_row)];
            (*low, *high) = (low.min(value - shift), high.max(value - shift));
        }
        let highest = f32::from((1_u16 << kind.bits) - 1);
        // The signed codes reach from −2^(bits−1) to 2^(bits−1) − 1; one bit has no positive code.
        let reach = (highest + kind.bottom()).max(1.0);
        let offsets: Vec<f32> = match kind.origin {
            Origin::Zero | Origin::Middle => vec![],
            Origin::Least => ends.iter().map(|(low, _)| kind.coarse.round(*low)).collect(),
            Origin::Mean => vec![shift; usize::from(!values.is_empty())],
        };
        let step = |(run, (low, high)): (usize, &(f32, f32))| {
            kind.coarse.round(match kind.origin {
                Origin::Zero => high.max(0.0) / highest,
                Origin::Middle | Origin::Mean => low.abs().max(high.abs()) / reach,
                Origin::Least => (high - offsets[run]).max(0.0) / highest,
            })
        };
        let coarse: Vec<f32> = ends.iter().enumerate().map(step).collect();
        let code = |(index, value): (usize, &f32)| {
            let run = kind.runs.of(index, per_row);
            let offset = if kind.origin == Origin::Least { offsets[run] } else { shift };
            let steps = if coarse[run] > 0.0 { (value - offset) / coarse[run] } else { 0.0 };
            (steps - kind.bottom()).round_ties_even().clamp(0.0, highest) as u8
        };
        let codes = values.iter().enumerate().map(code).collect();
        Self { kind, per_row, codes, coarse, offsets }
    }

    fn decode(&self) -> Vec<f32> {
        let bottom = self.kind.bottom();
        let value = |(index, code): (usize, &u8)| {
            let run = self.kind.runs.of(index, self.per_row);
            let product = self.coarse[run] * (f32::from(*code) + bottom);
            match self.kind.origin {
                Origin::Zero | Origin::Middle => product,
                Origin::Least => product + self.offsets[run],
                Origin::Mean => product + self.offsets[0],
            }
        };
        self.codes.iter().enumerate().map(value).collect()
    }

    fn check(&self) -> Result<(), WeightError> {
        self.kind.check()?;
        let rows = self.codes.len().checked_div(self.per_row).unwrap_or(0);
        check_length(TERM, "codes", self.codes.len(), rows * self.per_row)?;
        check_length(TERM, "coarse", self.coarse.len(), self.kind.runs.count(rows, self.per_row))?;
        check_length(TERM, "offsets", self.offsets.len(), self.kind.offsets(rows, self.per_row))?;
        check_codes(TERM, "codes", &self.codes, self.kind.bits)
    }
}

/// One real number a group, rows outermost, with how it is stored. Reads as a slice of its values.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupFloats {
    values: Vec<f32>,
    stored: Stored,
}

#[derive(Debug, Clone, PartialEq)]
enum Stored {
    Plain(FloatType),
    TwoLevel(Box<Levels>),
    Small { float: SmallFloat, codes: Vec<u8>, divisor: Option<f32> },
}

impl Deref for GroupFloats {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values
    }
}

impl GroupFloats {
    /// A float each; `values` are representable in `float`.
    pub fn plain(values: Vec<f32>, float: FloatType) -> Self {
        Self { values, stored: Stored::Plain(float) }
    }

    /// What these levels decode to.
    ///
    /// # Errors
    /// When their lengths do not fit each other, or a code is out of range.
    pub fn two_level(levels: Levels) -> Result<Self, WeightError> {
        levels.check()?;
        Ok(Self { values: levels.decode(), stored: Stored::TwoLevel(Box::new(levels)) })
    }

    /// Small floats by their codes, divided by one number or not.
    ///
    /// # Errors
    /// When the type is none of scales, a code stands for no number, or the divisor is not positive
    /// and finite.
    pub fn small(
        float: SmallFloat,
        codes: Vec<u8>,
        divisor: Option<f32>,
    ) -> Result<Self, WeightError> {
        SmallCodes { float, divided: divisor.is_some() }.check()?;
        if let Some(index) = codes.iter().position(|code| !float.is_number(*code)) {
            return Err(WeightError::NotFinite { term: SMALL, part: "codes", index });
        }
        if let Some(divisor) = divisor
            && !(divisor > 0.0 && divisor.is_finite())
        {
            let what = format!("the scales are divided by {divisor}, which is not positive");
            return Err(WeightError::Outline { term: SMALL, what });
        }
        let value = |code: &u8| float.decode(*code) / divisor.unwrap_or(1.0);
        let values = codes.iter().map(value).collect();
        Ok(Self { values, stored: Stored::Small { float, codes, divisor } })
    }

    /// The nearest that `kind` can store to `values`, an array of rows of `per_row` numbers. A run's
    /// coarse number is such that its extreme values have the extreme codes.
    ///
    /// # Errors
    /// When `values` are not whole rows, or the bits of a code are not 1 to 8.
    pub fn round(kind: GroupType, per_row: usize, values: &[f32]) -> Result<Self, WeightError> {
        match kind {
            GroupType::Plain(float) => {
                Ok(Self::plain(values.iter().map(|v| float.round(*v)).collect(), float))
            }
            GroupType::TwoLevel(kind) => {
                kind.check()?;
                let rows = values.len().checked_div(per_row).unwrap_or(0);
                check_length(TERM, "values", values.len(), rows * per_row)?;
                Self::two_level(Levels::round(kind, per_row, values))
            }
            GroupType::Small(kind) => Self::round_small(kind, values),
        }
    }

    /// Small floats nearest to `values`, divided by what makes the largest the type's largest.
    fn round_small(kind: SmallCodes, values: &[f32]) -> Result<Self, WeightError> {
        let peak = values.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
        let ratio = kind.float.largest() / peak;
        let usable = ratio.is_finite() && ratio > 0.0;
        let divisor = kind.divided.then_some(if usable { ratio } else { 1.0 });
        let code = |value: &f32| kind.float.encode(value * divisor.unwrap_or(1.0));
        Self::small(kind.float, values.iter().map(code).collect(), divisor)
    }

    /// The codes and coarse numbers of a two-level array.
    pub fn levels(&self) -> Option<&Levels> {
        match &self.stored {
            Stored::Plain(_) | Stored::Small { .. } => None,
            Stored::TwoLevel(levels) => Some(levels),
        }
    }

    /// The codes of small floats, and what they are divided by.
    pub fn small_codes(&self) -> Option<(&[u8], Option<f32>)> {
        match &self.stored {
            Stored::Small { codes, divisor, .. } => Some((codes, *divisor)),
            Stored::Plain(_) | Stored::TwoLevel(_) => None,
        }
    }

    /// How it is stored.
    pub fn kind(&self) -> GroupType {
        match &self.stored {
            Stored::Plain(float) => GroupType::Plain(*float),
            Stored::TwoLevel(levels) => GroupType::TwoLevel(levels.kind),
            Stored::Small { float, divisor, .. } => {
                GroupType::Small(SmallCodes { float: *float, divided: divisor.is_some() })
            }
        }
    }

    pub(crate) fn validate(
        &self,
        term: &'static str,
        names: GroupNames,
        grouping: Grouping,
        rows: usize,
        cols: usize,
    ) -> Result<(), WeightError> {
        let (array_rows, per_row) = array_shape(grouping, rows, cols);
        check_length(term, names.values, self.values.len(), array_rows * per_row)?;
        if let Stored::TwoLevel(levels) = &self.stored {
            check_length(term, names.codes, levels.per_row, per_row)?;
            check_finite(term, names.values, &levels.coarse)?;
            check_finite(term, names.offsets, &levels.offsets)?;
        }
        check_finite(term, names.values, &self.values)
    }

    pub(crate) fn parts(
        &self,
        names: GroupNames,
        grouping: Grouping,
        rows: usize,
        cols: usize,
    ) -> Vec<Part> {
        let levels = match &self.stored {
            Stored::Plain(float) => {
                let shape = grouping.scale_shape(rows, cols);
                return vec![Part::floats(names.values, *float, shape, &self.values)];
            }
            Stored::Small { codes, divisor, .. } => {
                let float = |number: &f32| {
                    Part::floats(
                        names.values,
                        FloatType::F32,
                        vec![1],
                        std::slice::from_ref(number),
                    )
                };
                let codes = Part::stream(names.codes, codes, 8);
                return [codes].into_iter().chain(divisor.as_ref().map(float)).collect();
            }
            Stored::TwoLevel(levels) => levels,
        };
        let TwoLevel { bits, coarse, .. } = levels.kind;
        let floats = |name, values: &[f32]| Part::floats(name, coarse, vec![values.len()], values);
        let mut parts = vec![
            Part::stream(names.codes, &levels.codes, bits),
            floats(names.values, &levels.coarse),
        ];
        if !levels.offsets.is_empty() {
            parts.push(floats(names.offsets, &levels.offsets));
        }
        parts
    }

    pub(crate) fn from_parts(
        kind: GroupType,
        names: GroupNames,
        grouping: Grouping,
        (rows, cols): (usize, usize),
        parts: &Parts<'_>,
    ) -> Result<Self, WeightError> {
        let kind = match kind {
            GroupType::Plain(float) => {
                return Ok(Self::plain(parts.floats(names.values, float)?, float));
            }
            GroupType::Small(kind) => {
                let (rows, per_row) = array_shape(grouping, rows, cols);
                let divisor = match kind.divided {
                    true => Some(parts.number(names.values)?),
                    false => None,
                };
                let codes = parts.codes(names.codes, rows * per_row, 8)?;
                return Self::small(kind.float, codes, divisor);
            }
            GroupType::TwoLevel(kind) => kind,
        };
        let (rows, per_row) = array_shape(grouping, rows, cols);
        let offsets = match kind.offsets(rows, per_row) {
            0 => vec![],
            _ => parts.floats(names.offsets, kind.coarse)?,
        };
        Self::two_level(Levels {
            kind,
            per_row,
            codes: parts.codes(names.codes, rows * per_row, kind.bits)?,
            coarse: parts.floats(names.values, kind.coarse)?,
            offsets,
        })
    }
}
