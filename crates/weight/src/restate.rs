//! The same weight in other terms, for a format that cannot hold it in those it has: finer groups,
//! wider codes, zeros of another kind, scales of another type. Codes are never rounded anew.

use crate::{
    Affine, FloatType, GroupFloats, GroupType, Grouping, Lookup, Outline, Term, TermOutline,
    Weight, WeightError, ZeroType, Zeros,
};
use std::num::NonZeroUsize;

/// Another outline of the same weight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restatement {
    /// The outline.
    pub outline: Outline,
    /// Whether every weight of the old outline has the same values in it; otherwise scales, zeros or
    /// minima are rounded to their new type.
    pub is_exact: bool,
}

/// Widths of groups that some format asks for, the widest first.
const WIDTHS: [usize; 7] = [1024, 512, 256, 128, 64, 32, 16];

/// Types of plain scales.
const FLOATS: [FloatType; 3] = [FloatType::F16, FloatType::Bf16, FloatType::F32];

/// The outlines that a weight of this outline can be restated in, itself first, then the exact ones
/// and then the others, each by size. Only a weight of one affine or lookup term has others.
pub fn restatements(outline: &Outline) -> Vec<Restatement> {
    let same = Restatement { outline: outline.clone(), is_exact: true };
    let others = match outline.terms[..] {
        [TermOutline::Affine { bits, grouping, zeros, scales }] => {
            affine(outline, bits, grouping, zeros, scales)
        }
        [TermOutline::Lookup { bits, grouping: Some(grouping), book_per_row, books, scales }] => {
            let term = |(grouping, scales): (Grouping, GroupType)| TermOutline::Lookup {
                bits,
                grouping: Some(grouping),
                book_per_row,
                books,
                scales,
            };
            let of = |(groups, is_exact)| (term(groups), is_exact);
            shared(outline, grouping, scales).into_iter().map(of).collect()
        }
        _ => vec![],
    };
    let with = |(term, is_exact)| Restatement {
        outline: Outline { terms: vec![term], ..outline.clone() },
        is_exact,
    };
    let mut others: Vec<Restatement> =
        others.into_iter().map(with).filter(|other| other.outline != *outline).collect();
    others.sort_by_key(|other| (!other.is_exact, other.outline.bits()));
    std::iter::once(same).chain(others).collect()
}

fn affine(
    outline: &Outline,
    bits: u8,
    grouping: Grouping,
    zeros: ZeroType,
    scales: GroupType,
) -> Vec<(TermOutline, bool)> {
    let mut found = vec![];
    for ((grouping, new_scales), exact_scales) in shared(outline, grouping, scales) {
        for new_bits in bits..=8 {
            for (new_zeros, exact_zeros) in other_zeros(zeros, scales, new_scales, new_bits > bits)
            {
                let term = TermOutline::Affine {
                    bits: new_bits,
                    grouping,
                    zeros: new_zeros,
                    scales: new_scales,
                };
                found.push((term, exact_scales && exact_zeros));
            }
        }
    }
    // Floats of codes stay as they are only with the groups they were made for.
    let is_plain = |kind: GroupType| matches!(kind, GroupType::Plain(_));
    let kept = |term: &TermOutline| match *term {
        TermOutline::Affine {
            grouping: other,
            zeros: ZeroType::Floats(kind) | ZeroType::Minima(kind),
            ..
        } => other == grouping || is_plain(kind),
        _ => true,
    };
    found.retain(|(term, _)| kept(term));
    found
}

/// The sharings and types of scales that a sharing and type can be restated in, and whether that
/// keeps every number.
fn shared(
    outline: &Outline,
    grouping: Grouping,
    scales: GroupType,
) -> Vec<((Grouping, GroupType), bool)> {
    let cols = outline.cols;
    let width = grouping.width(cols);
    let mut groupings = vec![grouping];
    match grouping {
        Grouping::Tensor => groupings.push(Grouping::Row),
        Grouping::Row => {}
        Grouping::Columns(_) if width >= cols => groupings.push(Grouping::Row),
        Grouping::Columns(_) | Grouping::Blocks { .. } => {}
    }
    let divides = |new: &usize| *new < width && width.is_multiple_of(*new);
    let whole = |new: &usize| cols.is_multiple_of(*new);
    let widths = WIDTHS.into_iter().filter(|new| divides(new) && whole(new));
    groupings.extend(widths.filter_map(NonZeroUsize::new).map(Grouping::Columns));
    if width == cols
        && let Some(cols) = NonZeroUsize::new(cols)
    {
        groupings.push(Grouping::Columns(cols));
    }
    let plain = FLOATS.map(GroupType::Plain);
    let mut found = vec![];
    for new in groupings {
        let kept =
            Some(scales).filter(|kind| new == grouping || matches!(kind, GroupType::Plain(_)));
        for kind in kept.into_iter().chain(plain.into_iter().filter(|kind| *kind != scales)) {
            found.push(((new, kind), keeps(scales, kind)));
        }
    }
    found
}

/// Whether numbers stored as `from` are numbers that `to` stores: all decode in 32 bits.
fn keeps(from: GroupType, to: GroupType) -> bool {
    from == to || to == GroupType::Plain(FloatType::F32)
}

/// The kinds of zeros that a kind can be restated in, and whether that keeps every value.
fn other_zeros(
    zeros: ZeroType,
    scales: GroupType,
    new_scales: GroupType,
    is_wider: bool,
) -> Vec<(ZeroType, bool)> {
    // A code times a scale of 16 bits is exact in 32; one of two levels has more bits.
    let is_short =
        matches!(scales, GroupType::Plain(FloatType::F16) | GroupType::Plain(FloatType::Bf16));
    let plain = FLOATS.map(GroupType::Plain);
    match zeros {
        ZeroType::Middle | ZeroType::Codes => {
            let is_middle = zeros == ZeroType::Middle;
            let minima = |kind: GroupType| {
                let is_wide = kind == GroupType::Plain(FloatType::F32);
                let is_power = is_middle && kind == new_scales && scales == new_scales;
                (ZeroType::Minima(kind), is_short && (is_power || is_wide))
            };
            let middle = (ZeroType::Middle, true);
            std::iter::once(middle)
                // Codes counted from any zero are codes of one bit more counted from the middle.
                .filter(|_| is_middle || is_wider)
                .chain([(ZeroType::Codes, true)])
                .chain(plain.map(|kind| (ZeroType::Floats(kind), true)))
                .chain(plain.map(minima))
                .collect()
        }
        ZeroType::Floats(old) => {
            let floats = |kind| (ZeroType::Floats(kind), keeps(old, kind));
            let minima = |kind| (ZeroType::Minima(kind), false);
            std::iter::once(old).chain(plain).map(floats).chain(plain.map(minima)).collect()
        }
        ZeroType::Minima(old) => {
            let minima = |kind| (ZeroType::Minima(kind), keeps(old, kind));
            std::iter::once(old).chain(plain).map(minima).collect()
        }
    }
}

impl Weight {
    /// The same codes in another of the outlines of [`restatements`].
    ///
    /// # Errors
    /// When it is not one of them, or a number overflows its new type.
    pub fn restated(&self, to: &Outline) -> Result<Self, WeightError> {
        if self.outline() == *to {
            return Ok(self.clone());
        }
        let other = || WeightError::Outline {
            term: "any",
            what: format!("{} cannot be told as {}", self.outline().describe(), to.describe()),
        };
        let (rows, cols) = (self.rows(), self.cols());
        if (rows, cols) != (to.rows, to.cols) {
            return Err(other());
        }
        let shape = (rows, cols);
        let term = match (self.terms(), &to.terms[..]) {
            ([Term::Affine(affine)], &[TermOutline::Affine { bits, grouping, zeros, scales }])
                if bits >= affine.bits =>
            {
                let groups = Regrouped::new(affine.grouping, grouping, shape).ok_or_else(other)?;
                let scales = groups.floats(&affine.scales, scales)?;
                let zeros = affine.zeros_in(bits, zeros, &scales, &groups)?.ok_or_else(other)?;
                let codes = affine.codes_in(bits, &zeros, shape).ok_or_else(other)?;
                Term::Affine(Affine { bits, grouping, codes, scales, zeros })
            }
            (
                [Term::Lookup(lookup)],
                &[TermOutline::Lookup { grouping: Some(new), scales, .. }],
            ) => {
                let (old, floats) = lookup.scales.as_ref().ok_or_else(other)?;
                let groups = Regrouped::new(*old, new, shape).ok_or_else(other)?;
                let scales = Some((new, groups.floats(floats, scales)?));
                Term::Lookup(Lookup { scales, ..lookup.clone() })
            }
            _ => return Err(other()),
        };
        let restated = Self::new(rows, cols, vec![term])?;
        if restated.outline() == *to { Ok(restated) } else { Err(other()) }
    }
}

/// The group of the old sharing that each group of the new one lies in.
struct Regrouped {
    old: Vec<usize>,
    is_same: bool,
    per_row: usize,
}

impl Regrouped {
    /// `None` when a new group does not lie within an old one.
    fn new(from: Grouping, to: Grouping, (rows, cols): (usize, usize)) -> Option<Self> {
        let (old_width, width) = (from.width(cols), to.width(cols));
        let (is_same, per_row) = (from == to, to.per_row(cols));
        if is_same {
            let old = (0..to.count(rows, cols)).collect();
            return Some(Self { old, is_same, per_row });
        }
        let lies_within = match (from, to) {
            (_, Grouping::Blocks { .. }) => false,
            (_, Grouping::Tensor) => rows <= 1,
            (Grouping::Tensor, _) => true,
            _ => old_width >= cols || (width < cols && old_width.is_multiple_of(width)),
        };
        if !lies_within {
            return None;
        }
        let lines = if to == Grouping::Tensor { rows.min(1) } else { rows };
        let old = (0..lines * per_row).map(|group| {
            let (row, column) = (group / per_row, group % per_row * width);
            from.row_start(row, cols)
                + if from == Grouping::Tensor { 0 } else { column / old_width }
        });
        Some(Self { old: old.collect(), is_same, per_row })
    }

    /// Numbers of the old groups for the new ones, as they are to be stored.
    fn floats(&self, floats: &GroupFloats, kind: GroupType) -> Result<GroupFloats, WeightError> {
        if self.is_same && floats.kind() == kind {
            return Ok(floats.clone());
        }
        let values: Vec<f32> = self.old.iter().map(|group| floats[*group]).collect();
        GroupFloats::round(kind, self.per_row, &values)
    }
}

impl Affine {
    /// The zeros of the new groups; `None` where the kind cannot tell them.
    fn zeros_in(
        &self,
        bits: u8,
        kind: ZeroType,
        scales: &GroupFloats,
        groups: &Regrouped,
    ) -> Result<Option<Zeros>, WeightError> {
        let middle = 1_u8 << (self.bits - 1);
        let code = |group: usize| match &self.zeros {
            Zeros::Codes(zeros) => zeros[group],
            _ => middle,
        };
        let is_code = matches!(self.zeros, Zeros::Middle | Zeros::Codes(_));
        let rounded = |kind, values: Vec<f32>| GroupFloats::round(kind, groups.per_row, &values);
        // What is subtracted in each new group, in the unit of the weights.
        let minimum = |(new, old): (usize, &usize)| match &self.zeros {
            Zeros::Floats(zeros) => scales[new] * zeros[*old],
            Zeros::Minima(minima) => minima[*old],
            _ => scales[new] * f32::from(code(*old)),
        };
        Ok(match (kind, &self.zeros) {
            (ZeroType::Middle, _) if is_code => Some(Zeros::Middle),
            (ZeroType::Codes, _) if is_code => {
                // A symmetric grid told with wider codes is counted from their middle.
                let shift = match self.zeros {
                    Zeros::Middle => (1 << (bits - 1)) - middle,
                    _ => 0,
                };
                Some(Zeros::Codes(groups.old.iter().map(|group| code(*group) + shift).collect()))
            }
            (ZeroType::Floats(kind), Zeros::Floats(zeros)) => {
                Some(Zeros::Floats(groups.floats(zeros, kind)?))
            }
            (ZeroType::Floats(kind), _) if is_code => {
                let zeros = groups.old.iter().map(|group| f32::from(code(*group))).collect();
                Some(Zeros::Floats(rounded(kind, zeros)?))
            }
            (ZeroType::Minima(kind), Zeros::Minima(minima)) => {
                Some(Zeros::Minima(groups.floats(minima, kind)?))
            }
            (ZeroType::Minima(kind), _) => {
                let minima = groups.old.iter().enumerate().map(minimum).collect();
                Some(Zeros::Minima(rounded(kind, minima)?))
            }
            _ => None,
        })
    }

    /// The codes as they count from the new zeros; `None` where one is out of range.
    fn codes_in(&self, bits: u8, zeros: &Zeros, (rows, cols): (usize, usize)) -> Option<Vec<u8>> {
        let shift: i32 = match (&self.zeros, zeros) {
            (Zeros::Middle, Zeros::Middle | Zeros::Codes(_)) => {
                (1 << (bits - 1)) - (1 << (self.bits - 1))
            }
            (Zeros::Codes(old), Zeros::Middle) => {
                let mut codes = Vec::with_capacity(self.codes.len());
                let (width, highest) = (self.grouping.width(cols), (1 << bits) - 1);
                for row in 0..rows {
                    let first = self.grouping.row_start(row, cols);
                    for (column, code) in self.codes[row * cols..][..cols].iter().enumerate() {
                        let zero = i32::from(old[first + column / width]);
                        let code = i32::from(*code) - zero + (1 << (bits - 1));
                        codes.push(u8::try_from(code).ok().filter(|_| code <= highest)?);
                    }
                }
                return Some(codes);
            }
            _ => 0,
        };
        self.codes.iter().map(|code| u8::try_from(i32::from(*code) + shift).ok()).collect()
    }
}
