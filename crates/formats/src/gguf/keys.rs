//! Typed access to metadata, with errors that name the key.
//!
//! Every function returns `None` for a key that is absent and an error for one of another type.

use lapidary_store::gguf::{MetaArray, MetaValue, Metadata};

use super::GgufError;

type Found<T> = Result<Option<T>, GgufError>;

/// A non-negative integer of any width.
pub(super) fn unsigned(metadata: &Metadata, key: &str) -> Found<u64> {
    typed(metadata, key, "a non-negative integer", MetaValue::as_u64)
}

/// A float. One of single precision becomes the shortest decimal that means it: 1e-5, not
/// 9.999999747378752e-6.
pub(super) fn float(metadata: &Metadata, key: &str) -> Found<f64> {
    let value = typed(metadata, key, "a float", |value| match *value {
        MetaValue::F32(value) => Some(shortest(value)),
        _ => value.as_f64(),
    })?;
    match value {
        Some(value) if !value.is_finite() => {
            Err(GgufError::BadValue { key: key.to_owned(), problem: format!("it is {value}") })
        }
        value => Ok(value),
    }
}

/// A truth value.
pub(super) fn boolean(metadata: &Metadata, key: &str) -> Found<bool> {
    typed(metadata, key, "a truth value", MetaValue::as_bool)
}

/// A string.
pub(super) fn string<'a>(metadata: &'a Metadata, key: &str) -> Found<&'a str> {
    typed(metadata, key, "a string", MetaValue::as_str)
}

/// An array of strings.
pub(super) fn strings<'a>(metadata: &'a Metadata, key: &str) -> Found<&'a [String]> {
    typed(metadata, key, "an array of strings", MetaValue::as_strings)
}

/// An array of single-precision floats.
pub(super) fn floats<'a>(metadata: &'a Metadata, key: &str) -> Found<&'a [f32]> {
    typed(metadata, key, "an array of floats", |value| match value.as_array() {
        Some(MetaArray::F32(values)) => Some(values.as_slice()),
        _ => None,
    })
}

/// An array of integers, as the converter writes it (32 bits, signed or not).
pub(super) fn integers(metadata: &Metadata, key: &str) -> Found<Vec<i64>> {
    typed(metadata, key, "an array of integers", |value| match value.as_array() {
        Some(MetaArray::I32(values)) => Some(values.iter().map(|&value| value.into()).collect()),
        Some(MetaArray::U32(values)) => Some(values.iter().map(|&value| value.into()).collect()),
        _ => None,
    })
}

/// The value of a key that must be there.
pub(super) fn required<T>(key: &str, found: Found<T>) -> Result<T, GgufError> {
    found?.ok_or_else(|| GgufError::MissingKey { key: key.to_owned() })
}

/// The double whose shortest decimal is that of the single.
pub(super) fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or_else(|_| value.into())
}

fn typed<'a, T>(
    metadata: &'a Metadata,
    key: &str,
    expected: &'static str,
    convert: impl FnOnce(&'a MetaValue) -> Option<T>,
) -> Found<T> {
    let Some(value) = metadata.get(key) else {
        return Ok(None);
    };
    match convert(value) {
        Some(value) => Ok(Some(value)),
        None => Err(GgufError::WrongType { key: key.to_owned(), expected }),
    }
}
