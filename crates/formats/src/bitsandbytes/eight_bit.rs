//! Rows of signed integers, each with the magnitude of 127.

use crate::folder::{Bytes, Grid, Parts, checked, weight};
use crate::{FormatError, Module, ReadTensor};
use lapidary_store::{Dtype, TensorSpec};
use lapidary_weight::{
    Affine, FloatType, GroupFloats, Grouping, Outline, Term, TermOutline, Weight, ZeroType, Zeros,
};

/// What a row's magnitude stands for.
const HIGHEST: f32 = 127.0;

/// What a code stands for less its place.
const MIDDLE: u8 = 128;

/// Whether it is one affine term of this kind; of another, that is refused; other terms are not its
/// business.
pub(super) fn accepts(outline: &Outline) -> Result<bool, String> {
    let [TermOutline::Affine { .. }] = outline.terms[..] else { return Ok(false) };
    let grid = Grid::of(outline)?;
    match (grid.bits, grid.grouping, grid.zeros) {
        (8, Grouping::Row, ZeroType::Middle) => Ok(true),
        _ => Err(format!(
            "its integers are of 8 bits, symmetric, with a scale a row, not {}; use bits: 8, \
             group_size: row, symmetric: true, or method: nf4 for 4 bits",
            outline.describe()
        )),
    }
}

pub(super) fn tensors(module: &str, outline: &Outline) -> Vec<TensorSpec> {
    let Outline { rows, cols, .. } = *outline;
    let spec = |part, dtype, shape| TensorSpec::new(format!("{module}.{part}"), dtype, shape);
    vec![
        spec("weight", Dtype::I8, vec![rows, cols]),
        spec("SCB", Dtype::F32, vec![rows]),
        spec("weight_format", Dtype::U8, vec![]),
    ]
}

pub(super) fn encode(weight: &Weight) -> Result<Vec<Vec<u8>>, String> {
    let [Term::Affine(affine)] = weight.terms() else {
        return Err("is not one affine term".to_owned());
    };
    let magnitudes: Vec<f32> = affine.scales.iter().map(|scale| scale * HIGHEST).collect();
    if magnitudes.iter().any(|magnitude| !magnitude.is_finite()) {
        return Err("a row's magnitude overflows F32".to_owned());
    }
    // In two's complement, the middle code is zero.
    let codes = affine.codes.iter().map(|code| code ^ MIDDLE).collect();
    Ok(vec![codes, FloatType::F32.encode(&magnitudes), vec![0]])
}

/// The scale of which `magnitude` is 127 times, where there is one: the quotient or a neighbour.
fn scale(magnitude: f32) -> f32 {
    let quotient = magnitude / HIGHEST;
    let candidates = [quotient, quotient.next_up(), quotient.next_down()];
    candidates.into_iter().find(|scale| scale * HIGHEST == magnitude).unwrap_or(quotient)
}

pub(super) fn decode(
    module: &str,
    outline: &Outline,
    read: ReadTensor<'_>,
) -> Result<Weight, FormatError> {
    let bytes = Bytes { module, read };
    let Outline { rows, cols, .. } = *outline;
    let codes: Vec<u8> = bytes.get("weight")?.iter().map(|code| code ^ MIDDLE).collect();
    let magnitudes = bytes.floats("SCB", FloatType::F32)?;
    let affine = Affine {
        bits: 8,
        grouping: Grouping::Row,
        codes,
        scales: GroupFloats::plain(magnitudes.into_iter().map(scale).collect(), FloatType::F32),
        zeros: Zeros::Middle,
    };
    weight(module, rows, cols, Term::Affine(affine))
}

pub(super) fn module(parts: Parts<'_>) -> Result<Module, FormatError> {
    let [rows, cols] = parts.matrix("weight", Dtype::I8)?;
    parts.expect("SCB", Dtype::F32, &[rows])?;
    let mut tensors = vec![parts.name("weight"), parts.name("SCB")];
    if parts.has("weight_format") {
        parts.expect("weight_format", Dtype::U8, &[])?;
        if parts.read("weight_format")? != [0] {
            return parts.wrong("weight_format", "is not 0 (rows), the only one that can be read");
        }
        tensors.push(parts.name("weight_format"));
    }
    let (zeros, scales) = (ZeroType::Middle, FloatType::F32);
    let grid = Grid { bits: 8, grouping: Grouping::Row, zeros, scales };
    let outline = checked(parts.module, grid.outline(rows, cols))?;
    Ok(Module::new(parts.module, outline, tensors))
}
