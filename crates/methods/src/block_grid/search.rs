//! The choice of a block's scales and minima.

use super::{FLOAT, Fit, Fitted, Layout};

/// Spans that are tried, relative to a group's own. The best of three levels are far from it.
const SPANS: std::ops::RangeInclusive<u8> = 50..=115;
const TERNARY_SPANS: std::ops::RangeInclusive<u8> = 15..=115;

/// Hundredths between two spans.
const STRIDE: usize = 5;

/// Times that codes and floats of a super-block are refined in turn.
const ROUNDS: usize = 2;

impl Layout {
    /// The block's stored numbers for these values.
    pub(super) fn fit(&self, values: &[f32], costs: &[f32], fit: Fit) -> Fitted {
        let groups = || values.chunks_exact(self.group).zip(costs.chunks_exact(self.group));
        let single: Vec<(f32, f32)> =
            groups().map(|(values, costs)| self.fit_group(values, costs, fit)).collect();
        let Some((bits, _)) = self.levels else {
            let (scale, minimum) = single[0];
            return Fitted { scale, minimum, scales: vec![], minima: vec![] };
        };
        let mut fitted = self.store(&single, bits);
        if fit == Fit::Search {
            for _ in 0..ROUNDS {
                self.refine_codes(&mut fitted, values, costs, bits);
                if !self.refine_floats(&mut fitted, values, costs) {
                    break;
                }
            }
            self.refine_codes(&mut fitted, values, costs, bits);
            // What the groups want may be stored worse than their ranges, where a half is coarse.
            let plain = self.fit(values, costs, Fit::Range);
            if self.error(&plain, values, costs) < self.error(&fitted, values, costs) {
                return plain;
            }
        }
        fitted
    }

    /// The error of a block as it would be stored.
    fn error(&self, fitted: &Fitted, values: &[f32], costs: &[f32]) -> f32 {
        let groups = values.chunks_exact(self.group).zip(costs.chunks_exact(self.group));
        let errors = groups.enumerate();
        errors.map(|(group, (v, c))| fitted.steps(self, group).error(v, c)).sum()
    }

    /// Scale and minimum of one group; rounded to f16 where each is stored so.
    fn fit_group(&self, values: &[f32], costs: &[f32], fit: Fit) -> (f32, f32) {
        let mut best: Option<(f32, (f32, f32))> = None;
        let mut consider = |scale: f32, minimum: f32| {
            let pair = match self.levels {
                None if self.has_powers => (power_of_two(scale), 0.0),
                None => (FLOAT.round(scale), FLOAT.round(minimum)),
                Some(_) => (scale, minimum),
            };
            let error = self.steps(pair.0, pair.1).error(values, costs);
            if error.is_finite() && best.is_none_or(|(least, _)| error < least) {
                best = Some((error, pair));
            }
        };
        let spans = match self.book {
            Some(book) if book.reach == 1.0 => TERNARY_SPANS,
            _ => SPANS,
        };
        let spans = spans.step_by(STRIDE).filter(|span| fit == Fit::Search || *span == 100);
        for span in spans.map(|span| f32::from(span) / 100.0) {
            if self.has_minima {
                let (scale, minimum) = self.spanning(values, span);
                consider(scale, minimum);
                if fit == Fit::Search {
                    let (scale, minimum) = self.least_squares(values, costs, scale, minimum);
                    consider(scale, minimum);
                }
                continue;
            }
            // The end of the codes that reaches further is for the extreme value; or not.
            let extreme =
                values.iter().fold(0.0_f32, |a, b| if b.abs() > a.abs() { *b } else { a });
            let (end, signs): (f32, &[f32]) = match self.book {
                Some(book) if book.is_symmetric => (book.reach, &[extreme.signum()]),
                Some(book) => (book.reach, &[-1.0, 1.0]),
                None => (f32::from(1_u8 << (self.bits - 1)), &[-1.0, 1.0]),
            };
            for sign in signs {
                let scale = sign * span * extreme / end;
                consider(scale, 0.0);
                if fit == Fit::Search {
                    consider(self.least_squares(values, costs, scale, 0.0).0, 0.0);
                } else {
                    break;
                }
            }
        }
        best.map_or((0.0, 0.0), |(_, pair)| pair)
    }

    /// The grid that spans the values, or a part of that from the lower end on.
    fn spanning(&self, values: &[f32], span: f32) -> (f32, f32) {
        let ends = values.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), value| {
            (low.min(*value), high.max(*value))
        });
        // Minima in codes are never negative, so that such a grid includes zero.
        let low = if self.levels.is_some() { ends.0.min(0.0) } else { ends.0 };
        let top = f32::from((1_u16 << self.bits) - 1);
        (span * (ends.1.max(low) - low) / top, -low)
    }

    /// Scale and minimum of least error for the codes that these give.
    fn least_squares(&self, values: &[f32], costs: &[f32], scale: f32, minimum: f32) -> (f32, f32) {
        let steps = self.steps(scale, minimum);
        let mut sums = Sums::default();
        for (value, cost) in values.iter().zip(costs) {
            let code = steps.level(steps.code(*value));
            let ones = if self.has_minima { 1.0 } else { 0.0 };
            sums.add(f64::from(*cost), code, ones, f64::from(*value));
        }
        sums.solve(self.levels.is_some()).unwrap_or((scale, minimum))
    }

    /// The codes and floats nearest to what each group wants on its own.
    fn store(&self, wanted: &[(f32, f32)], bits: u8) -> Fitted {
        let top = f32::from((1_u16 << bits) - 1);
        let bottom = self.bottom();
        // Signed codes reach one further below; the extreme scale goes there.
        let extreme =
            wanted.iter().fold(0.0_f32, |a, (b, _)| if b.abs() > a.abs() { *b } else { a });
        let scale = FLOAT.round(extreme / if self.has_minima { top } else { bottom });
        let highest = wanted.iter().fold(0.0_f32, |a, (_, b)| a.max(*b));
        let minimum = if self.has_minima { FLOAT.round(highest / top) } else { 0.0 };
        let code = |value: f32, unit: f32, bottom: f32| match unit {
            0.0 => -bottom as u8,
            _ => (value / unit - bottom).round_ties_even().clamp(0.0, top) as u8,
        };
        Fitted {
            scale,
            minimum,
            scales: wanted.iter().map(|(s, _)| code(*s, scale, bottom)).collect(),
            minima: match self.has_minima {
                true => wanted.iter().map(|(_, m)| code(*m, minimum, 0.0)).collect(),
                false => vec![],
            },
        }
    }

    /// Moves each group's codes by at most one while the error falls.
    fn refine_codes(&self, fitted: &mut Fitted, values: &[f32], costs: &[f32], bits: u8) {
        let top = i16::from(u8::MAX >> (8 - bits));
        let groups = values.chunks_exact(self.group).zip(costs.chunks_exact(self.group));
        for (group, (values, costs)) in groups.enumerate() {
            let start = (fitted.scales[group], fitted.minima.get(group).copied());
            let mut least = fitted.steps(self, group).error(values, costs);
            let mut best = start;
            for by in -1..=1_i16 {
                for minimum_by in if self.has_minima { -1..=1_i16 } else { 0..=0 } {
                    let moved = |code: u8, by: i16| (i16::from(code) + by).clamp(0, top) as u8;
                    fitted.scales[group] = moved(start.0, by);
                    if let (Some(slot), Some(code)) = (fitted.minima.get_mut(group), start.1) {
                        *slot = moved(code, minimum_by);
                    }
                    let error = fitted.steps(self, group).error(values, costs);
                    if error < least {
                        least = error;
                        best = (fitted.scales[group], fitted.minima.get(group).copied());
                    }
                }
            }
            fitted.scales[group] = best.0;
            if let (Some(slot), Some(code)) = (fitted.minima.get_mut(group), best.1) {
                *slot = code;
            }
        }
    }

    /// The block's two floats of least error for the codes there are; whether they helped.
    fn refine_floats(&self, fitted: &mut Fitted, values: &[f32], costs: &[f32]) -> bool {
        let groups = values.chunks_exact(self.group).zip(costs.chunks_exact(self.group));
        let mut sums = Sums::default();
        for (group, (values, costs)) in groups.enumerate() {
            let steps = fitted.steps(self, group);
            let scale = f64::from(fitted.scales[group]) + f64::from(self.bottom());
            let minimum = fitted.minima.get(group).map_or(0.0, |code| f64::from(*code));
            for (value, cost) in values.iter().zip(costs) {
                let code = steps.level(steps.code(*value));
                sums.add(f64::from(*cost), scale * code, minimum, f64::from(*value));
            }
        }
        let Some((scale, minimum)) = sums.solve(true) else { return false };
        let (scale, minimum) = (FLOAT.round(scale), FLOAT.round(minimum));
        let other =
            Fitted { scale, minimum, scales: fitted.scales.clone(), minima: fitted.minima.clone() };
        let error = |fitted| self.error(fitted, values, costs);
        let is_better = scale.is_finite() && minimum.is_finite() && error(&other) < error(fitted);
        if is_better {
            *fitted = other;
        }
        is_better
    }
}

/// The power of two for a scale: that of the reference where the scale makes the largest value 6,
/// `floor(log₂ largest) − 2`, and of no fewer than −127.
fn power_of_two(scale: f32) -> f32 {
    let exponent = (1.5 * scale).log2().floor();
    if exponent.is_nan() { 0.0 } else { exponent.clamp(-127.0, 127.0).exp2() }
}

/// The normal equations of `value ≈ scale · a − minimum · b`.
#[derive(Default)]
struct Sums {
    aa: f64,
    ab: f64,
    bb: f64,
    av: f64,
    bv: f64,
}

impl Sums {
    fn add(&mut self, cost: f64, a: f64, b: f64, value: f64) {
        self.aa += cost * a * a;
        self.ab += cost * a * b;
        self.bb += cost * b * b;
        self.av += cost * a * value;
        self.bv += cost * b * value;
    }

    /// Scale and minimum; the latter not below zero where `clamped`.
    fn solve(&self, clamped: bool) -> Option<(f32, f32)> {
        let alone = || (self.aa > 0.0).then(|| ((self.av / self.aa) as f32, 0.0));
        let determinant = self.aa * self.bb - self.ab * self.ab;
        if determinant <= 1e-12 * self.aa * self.bb {
            return if self.bb == 0.0 { alone() } else { None };
        }
        let scale = (self.av * self.bb - self.ab * self.bv) / determinant;
        let minimum = (self.ab * self.av - self.aa * self.bv) / determinant;
        if clamped && minimum < 0.0 {
            return alone();
        }
        Some((scale as f32, minimum as f32))
    }
}
