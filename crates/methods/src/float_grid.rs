//! Round to nearest on the numbers of a small float: FP8, NVFP4, MXFP4, MXFP8.
//!
//! `w ≈ s · q`, `q` the nearest number of the type to `w / s`, ties to even, what is beyond its
//! largest number becoming that. A group's scale is one of three kinds: a float, a power of two
//! (microscaling), or an E4M3 under one divisor for the whole matrix (NVFP4). By range, a scale is
//! what compressed-tensors takes; by error, the one of least squared error among that and its
//! neighbours, so that it never does worse.

use crate::{Encoded, Method, MethodError, Site, Tensorwise};
use lapidary_weight::{
    FloatType, GroupFloats, GroupType, Grouping, Lookup, Outline, SmallCodes, SmallFloat, Term,
    TermOutline, Weight,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::num::NonZeroUsize;

/// How the scale of a group is chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ScaleChoice {
    /// The largest magnitude of the group meets the largest number of the type.
    #[default]
    Range,
    /// The least squared error among that scale and its neighbours.
    Error,
}

/// Parameters of a type whose groups are fixed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct FloatParams {
    /// How the scale of a group is chosen.
    pub scale: ScaleChoice,
}

/// How scales are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ScaleKind {
    /// A float each.
    Float,
    /// A power of two each.
    PowerOfTwo,
    /// An E4M3 each, under one divisor for the matrix.
    Divided,
}

/// The numbers that weights are rounded to, and the scales of groups.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct FloatGrid {
    pub(crate) float: SmallFloat,
    pub(crate) grouping: Grouping,
    pub(crate) scales: ScaleKind,
    pub(crate) choice: ScaleChoice,
}

/// A scale as it is stored.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Scale {
    /// Its code, where it has one.
    code: u8,
    value: f32,
}

/// Ratios to the full range that a search tries for scales that are floats: within a factor of two
/// the numbers of a float type come round again.
const RATIOS: u8 = 32;

/// Codes to either side of the range's that a search tries for scales in E4M3: up to three quarters
/// more, which puts the largest weight on 4 in place of 6.
const NEIGHBOURS: u8 = 6;

impl FloatGrid {
    /// The method of groups of so many columns.
    pub(crate) fn of_columns(
        float: SmallFloat,
        width: usize,
        scales: ScaleKind,
        params: &FloatParams,
    ) -> Method {
        let grouping = NonZeroUsize::new(width).map_or(Grouping::Row, Grouping::Columns);
        Method::Tensorwise(Box::new(Self { float, grouping, scales, choice: params.scale }))
    }
}

impl Tensorwise for FloatGrid {
    fn shares_range(&self) -> bool {
        self.scales == ScaleKind::Divided
    }

    fn outline(&self, rows: usize, cols: usize, scales: FloatType) -> Outline {
        let small = |float, divided| GroupType::Small(SmallCodes { float, divided });
        let scales = match self.scales {
            ScaleKind::Float => scales.into(),
            ScaleKind::PowerOfTwo => small(SmallFloat::E8M0, false),
            ScaleKind::Divided => small(SmallFloat::E4M3, true),
        };
        let term = TermOutline::Lookup {
            bits: self.float.bits(),
            grouping: Some(self.grouping),
            book_per_row: false,
            books: self.float.into(),
            scales,
        };
        Outline { rows, cols, terms: vec![term] }
    }

    fn encode(&self, site: &Site<'_>) -> Result<Encoded, MethodError> {
        use rayon::prelude::*;
        site.check_finite()?;
        let Site { rows, cols, weight, .. } = *site;
        let wrong = |error| MethodError::Weight { site: site.name.to_owned(), error };
        let divisor = (self.scales == ScaleKind::Divided).then(|| divisor(site));
        let fit = Fit { grid: *self, divisor: divisor.unwrap_or(1.0), float: site.scale_type };
        let (width, per_row) = (self.grouping.width(cols), self.grouping.per_row(cols));
        // Rows with the same scales.
        let band = cols
            * match self.grouping {
                Grouping::Tensor => rows,
                Grouping::Row | Grouping::Columns(_) => 1,
                Grouping::Blocks { rows, .. } => rows.get(),
            };
        let mut codes = vec![0; weight.len()];
        let mut scales = vec![Scale { code: 0, value: 0.0 }; self.grouping.count(rows, cols)];
        let bands = weight.par_chunks(band.max(1)).zip(codes.par_chunks_mut(band.max(1)));
        bands.zip(scales.par_chunks_mut(per_row.max(1))).for_each(|((weight, codes), scales)| {
            for (group, slot) in scales.iter_mut().enumerate() {
                let (first, last) = (group * width, ((group + 1) * width).min(cols));
                let values: Vec<f32> = weight
                    .chunks_exact(cols)
                    .flat_map(|row| row[first..last].iter().copied())
                    .collect();
                *slot = fit.scale(&values);
                let rows = weight.chunks_exact(cols).zip(codes.chunks_exact_mut(cols));
                for (weight, codes) in rows {
                    let pairs = codes[first..last].iter_mut().zip(&weight[first..last]);
                    pairs.for_each(|(code, w)| *code = fit.code(*w, slot.value));
                }
            }
        });
        // Values near the end of f32's range have no numbers of the type around them.
        let reach = |scale: &Scale| scale.value * self.float.largest();
        if scales.iter().any(|scale| !reach(scale).is_finite()) {
            let what = "its values are too large for scales of finite numbers".to_owned();
            return Err(MethodError::Numerical { site: site.name.to_owned(), what });
        }
        let numbers = || scales.iter().map(|scale| scale.value).collect();
        let bytes = || scales.iter().map(|scale| scale.code).collect();
        let scales = match self.scales {
            ScaleKind::Float => GroupFloats::plain(numbers(), site.scale_type),
            ScaleKind::PowerOfTwo => {
                GroupFloats::small(SmallFloat::E8M0, bytes(), None).map_err(wrong)?
            }
            ScaleKind::Divided => {
                GroupFloats::small(SmallFloat::E4M3, bytes(), divisor).map_err(wrong)?
            }
        };
        let term = Lookup::of_small_floats(self.float, codes, self.grouping, scales);
        let weight = Weight::new(rows, cols, vec![Term::Lookup(term)]).map_err(wrong)?;
        Ok(Encoded { weight, notes: vec![] })
    }
}

/// What makes the largest scale of the layers that share an input the largest E4M3: engines fuse
/// such layers and have one divisor for all of them.
fn divisor(site: &Site<'_>) -> f32 {
    let peak = site.peak.unwrap_or_else(|| magnitude(site.weight));
    // As the reference rounds it: a number over a tensor is its reciprocal times the number.
    let divisor = peak.recip() * (SmallFloat::E4M3.largest() * SmallFloat::E2M1.largest());
    if divisor.is_finite() { divisor } else { 1.0 }
}

fn magnitude(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |most, value| most.max(value.abs()))
}

/// Chooses the scales of groups.
struct Fit {
    grid: FloatGrid,
    divisor: f32,
    /// Type of scales that are floats.
    float: FloatType,
}

impl Fit {
    #[inline]
    fn code(&self, weight: f32, scale: f32) -> u8 {
        // A scale of zero is that of a group of zeros.
        if scale > 0.0 { self.grid.float.encode(weight / scale) } else { 0 }
    }

    fn scale(&self, values: &[f32]) -> Scale {
        let largest = magnitude(values);
        let range = self.of_range(largest);
        if self.grid.choice == ScaleChoice::Range || largest == 0.0 {
            return range;
        }
        let book = self.grid.float.book();
        let error = |scale: f32| -> f64 {
            let one = |w: &f32| f64::from(w - scale * book[usize::from(self.code(*w, scale))]);
            values.iter().map(|w| one(w).powi(2)).sum()
        };
        let mut best = (range, error(range.value));
        for other in self.neighbours(range) {
            let error = error(other.value);
            if error < best.1 {
                best = (other, error);
            }
        }
        best.0
    }

    /// The scale that puts a magnitude on the largest number, as compressed-tensors rounds it.
    fn of_range(&self, largest: f32) -> Scale {
        let plain = largest / self.grid.float.largest();
        match self.grid.scales {
            // A group of zeros has a scale of zero.
            ScaleKind::Float if largest == 0.0 => Scale { code: 0, value: 0.0 },
            ScaleKind::Float => Scale { code: 0, value: self.float.round_scale(plain) },
            ScaleKind::PowerOfTwo => {
                // The exponent of the magnitude, the next from a fraction of ¾ on, less that of the
                // largest number.
                let exponent = (largest.to_bits() + (1 << 21)) >> 23;
                let own = (self.grid.float.largest().to_bits() >> 23) - 127;
                self.of_code(exponent.saturating_sub(own).min(254) as u8)
            }
            ScaleKind::Divided => {
                let code = SmallFloat::E4M3.encode(self.divisor * plain);
                self.of_code(code.max(u8::from(largest > 0.0)))
            }
        }
    }

    fn of_code(&self, code: u8) -> Scale {
        let value = match self.grid.scales {
            ScaleKind::PowerOfTwo => SmallFloat::E8M0.decode(code),
            _ => SmallFloat::E4M3.decode(code) / self.divisor,
        };
        Scale { code, value }
    }

    fn neighbours(&self, range: Scale) -> Vec<Scale> {
        let codes = |reach: u8, least, most| {
            let codes = range.code.saturating_sub(reach)..=range.code.saturating_add(reach);
            let there = codes.filter(|code| (least..=most).contains(code));
            there.map(|code| self.of_code(code)).collect()
        };
        match self.grid.scales {
            ScaleKind::Float => (1..RATIOS)
                .map(|step| range.value * (1.0 - f32::from(step) / f32::from(2 * RATIOS)))
                .map(|value| Scale { code: 0, value: self.float.round_scale(value) })
                .collect(),
            ScaleKind::PowerOfTwo => codes(1, 0, 254),
            ScaleKind::Divided => codes(NEIGHBOURS, 1, 126),
        }
    }
}
