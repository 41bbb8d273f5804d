//! What is compressed already stays as it is, in the terms that another format holds.
//!
//! The codes of a layer are restated where its terms can be (finer groups, wider codes, other zeros:
//! [`restatements`]); where they cannot, its values are rounded anew, onto the least grid of the
//! format that has as many bits. Layers of plain floats stay plain.

use crate::grid::GroupSize;
use crate::rtn::draft;
use crate::{BlockGrid, Encoded, GridParams, Method, MethodError, Note, ParamError, Site};
use crate::{Stored, Tensorwise};
use lapidary_weight::{
    Dense, FloatType, Grouping, Outline, Restatement, Term, TermOutline, Weight, restatements,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) const SUMMARY: &str = "keep compressed layers as they are, for another format";
pub(crate) const PAPER: &str = "none: nothing is compressed";

/// It has no parameters.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Params {}

pub(crate) fn build(_: Params) -> Result<Method, ParamError> {
    Ok(Method::Tensorwise(Box::new(Keep(None))))
}

/// The method, and the outline it restates in, once a layer is known.
struct Keep(Option<Outline>);

/// Bits of a code that rounding anew may have, where the old terms have no codes of one width.
const MOST_BITS: u8 = 8;

/// Columns that share a scale, as formats want them.
const WIDTHS: [usize; 3] = [32, 64, 128];

/// Blocks by their size.
const BLOCKS: [BlockGrid; 10] = [
    BlockGrid::Q2_K,
    BlockGrid::Q3_K,
    BlockGrid::Q4_K,
    BlockGrid::Q4_0,
    BlockGrid::Q4_1,
    BlockGrid::Q5_K,
    BlockGrid::Q5_0,
    BlockGrid::Q5_1,
    BlockGrid::Q6_K,
    BlockGrid::Q8_0,
];

impl Tensorwise for Keep {
    fn outline(&self, rows: usize, cols: usize, scales: FloatType) -> Outline {
        let plain = || Outline { rows, cols, terms: vec![TermOutline::Dense { values: scales }] };
        self.0.clone().unwrap_or_else(plain)
    }

    fn encode(&self, site: &Site<'_>) -> Result<Encoded, MethodError> {
        site.check_finite()?;
        let dtype = site.scale_type;
        let values = site.weight.iter().map(|value| dtype.round(*value)).collect();
        let weight = Weight::new(site.rows, site.cols, vec![Term::Dense(Dense { values, dtype })])
            .map_err(|error| MethodError::Weight { site: site.name.to_owned(), error })?;
        Ok(Encoded { weight, notes: vec![] })
    }

    fn keeps_stored(&self) -> bool {
        true
    }

    fn for_stored(
        &self,
        stored: &Outline,
        scales: FloatType,
        accepts: &dyn Fn(&Outline) -> Result<(), String>,
    ) -> Option<Stored> {
        let is_accepted = |other: &Restatement| accepts(&other.outline).is_ok();
        if let Some(found) = restatements(stored).into_iter().find(is_accepted) {
            let note = (!found.is_exact).then(|| {
                Note::fallback(format!(
                    "the codes of {} are kept, and its scales and zeros rounded to what {} has",
                    stored.describe(),
                    found.outline.describe()
                ))
            });
            return Some(Stored { method: Box::new(Self(Some(found.outline))), note });
        }
        let (grid, outline) = grids(stored, scales).find(|(_, outline)| accepts(outline).is_ok())?;
        let note = Note::fallback(format!(
            "{} cannot be told in the terms of the format, and is rounded anew to {}",
            stored.describe(),
            outline.describe()
        ));
        Some(Stored { method: draft(&grid), note: Some(note) })
    }

    fn encode_stored(&self, site: &Site<'_>, stored: &Weight) -> Result<Encoded, MethodError> {
        let Some(outline) = &self.0 else { return self.encode(site) };
        let weight = stored
            .restated(outline)
            .map_err(|error| MethodError::Weight { site: site.name.to_owned(), error })?;
        Ok(Encoded { weight, notes: vec![] })
    }
}

/// Grids to round a weight anew, the least first: codes of no fewer bits than each of its values
/// takes now.
fn grids(stored: &Outline, scales: FloatType) -> impl Iterator<Item = (GridParams, Outline)> {
    let Outline { rows, cols, .. } = *stored;
    let bits = |term: &TermOutline| match *term {
        TermOutline::Affine { bits, .. } | TermOutline::Lookup { bits, .. } => u32::from(bits),
        TermOutline::Planes { planes, .. } => u32::from(planes),
        TermOutline::Trellis { row_bits, .. } => row_bits.div_ceil(cols.max(1) as u32),
        TermOutline::Dense { .. } => u32::from(MOST_BITS),
        TermOutline::Sparse { .. } | TermOutline::Columns { .. } | TermOutline::LowRank { .. } => 0,
    };
    let least = stored.terms.iter().map(bits).max().unwrap_or(0);
    let least = least.clamp(2, u32::from(MOST_BITS)) as u8;
    // Groups as wide as the old ones or narrower first, the widest of those before the others.
    let old = stored.terms.iter().find_map(width).unwrap_or(WIDTHS[WIDTHS.len() - 1]);
    let fine = WIDTHS.into_iter().filter(|width| *width <= old).rev();
    let coarse = WIDTHS.into_iter().filter(|width| *width > old);
    let groups: Vec<GroupSize> =
        fine.chain(coarse).map(GroupSize::Columns).chain([GroupSize::Row]).collect();
    let plain = (least..=MOST_BITS).flat_map(move |bits| {
        groups.clone().into_iter().flat_map(move |group_size| {
            [false, true].map(|symmetric| GridParams {
                bits,
                group_size,
                symmetric,
                blocks: BlockGrid::Plain,
            })
        })
    });
    let blocks = BLOCKS.map(|blocks| GridParams { blocks, ..GridParams::default() });
    let with_outline = move |grid: GridParams| {
        let outline = grid.outline(rows, cols, scales);
        (grid, outline)
    };
    let has_bits = move |(_, outline): &(GridParams, Outline)| {
        matches!(outline.terms[..], [TermOutline::Affine { bits, .. }] if bits >= least)
    };
    plain.chain(blocks).map(with_outline).filter(has_bits)
}

/// Columns of a group of a term that has groups.
fn width(term: &TermOutline) -> Option<usize> {
    match term {
        TermOutline::Affine { grouping: Grouping::Columns(width), .. }
        | TermOutline::Lookup { grouping: Some(Grouping::Columns(width)), .. }
        | TermOutline::Planes { grouping: Grouping::Columns(width), .. } => Some(width.get()),
        _ => None,
    }
}
