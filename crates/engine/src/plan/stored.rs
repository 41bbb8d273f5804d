//! Layers that are kept as the source holds them, in terms that the format has.

use super::chain::Chained;
use super::fit::holder;
use crate::EngineError;
use lapidary_formats::{Format, Source};
use lapidary_methods::{Note, Stored};
use lapidary_model::Matrix;
use lapidary_weight::{FloatType, InputRounding, Outline, TermOutline};

/// What becomes of a layer that is to be kept.
pub(super) enum Binding {
    /// It is encoded, by a method bound to what the source holds.
    To(Chained, Option<Note>),
    /// It is copied as plain floats, with what is to be said of that.
    Plain(Option<Note>),
}

/// Binds a method that keeps layers to one of them.
///
/// # Errors
/// When the source has no such tensor.
pub(super) fn bind(
    chained: Chained,
    matrix: &Matrix,
    source: &Source,
    scales: FloatType,
    format: &'static dyn Format,
    inputs: Option<InputRounding>,
) -> Result<Binding, EngineError> {
    let name = &matrix.linear.weight;
    let missing = || lapidary_model::ModelError::MissingTensor { name: name.clone() };
    let tensor = source.get(name).ok_or_else(missing)?;
    let stored = match source.outline(tensor) {
        Some(outline) if !matches!(outline.terms[..], [TermOutline::Dense { .. }]) => outline,
        _ => return Ok(Binding::Plain(None)),
    };
    let accepts = |outline: &Outline| holder(format, matrix, outline, inputs).map(|_| ());
    match chained.method.for_stored(&stored, scales, &accepts) {
        Some(Stored { method, note }) => Ok(Binding::To(Chained { method, ..chained }, note)),
        None => {
            let why = accepts(&stored).err().unwrap_or_default();
            let what = format!("{}: {why}; written as plain floats", format.id());
            Ok(Binding::Plain(Some(Note::fallback(what))))
        }
    }
}
