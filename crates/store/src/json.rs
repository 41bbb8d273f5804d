//! JSON from files that may lie: bounded in size, depth and number of values, without duplicate
//! keys.
//!
//! `serde_json` alone keeps the last of two equal keys in silence, so two readers of one file could
//! see two different models.

use std::cell::Cell;
use std::fmt;
use std::path::Path;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::error::{Place, Quoted, Result, StoreError};
use crate::fs::{self, Fs};

/// What a JSON document may be at most.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Length in bytes.
    pub bytes: u64,
    /// Arrays and objects within each other.
    pub depth: usize,
    /// Values in all, which bounds the memory it takes.
    pub values: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 64 << 20, depth: 64, values: 4 << 20 }
    }
}

/// Reads and parses a JSON file within the default [`Limits`].
///
/// # Errors
/// When the file cannot be read, exceeds a limit, is not JSON, or has an object with two equal
/// keys.
pub fn read(fs: &dyn Fs, path: &Path) -> Result<Value> {
    let bytes = fs::read(fs, path, "the JSON file", Limits::default().bytes)?;
    parse(&bytes, path)
}

/// Parses a JSON document within the default [`Limits`]; `path` is only named in errors.
///
/// # Errors
/// When it exceeds a limit, is not JSON, or has an object with two equal keys.
pub fn parse(bytes: &[u8], path: &Path) -> Result<Value> {
    parse_within(bytes, path, &Limits::default())
}

/// Parses a JSON document within given limits; `path` is only named in errors.
///
/// # Errors
/// As [`parse`].
pub fn parse_within(bytes: &[u8], path: &Path, limits: &Limits) -> Result<Value> {
    let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    if length > limits.bytes {
        return Err(StoreError::TooLarge {
            path: path.to_owned(),
            what: "the JSON document",
            bytes: length,
            limit: limits.bytes,
        });
    }
    let left = Cell::new(limits.values);
    let seed = Bounded { depth: limits.depth, left: &left };
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = seed.deserialize(&mut deserializer);
    value
        .and_then(|value| deserializer.end().map(|()| value))
        .map_err(|error| malformed(path, &error))
}

/// The error of a JSON parser as ours: the place once, at the front.
pub(crate) fn malformed(path: &Path, error: &serde_json::Error) -> StoreError {
    let (line, column) = (error.line(), error.column());
    let text = error.to_string();
    let suffix = format!(" at line {line} column {column}");
    let problem = text.strip_suffix(&suffix).unwrap_or(&text);
    StoreError::malformed(path, Place::Line { line, column }, format!("bad JSON: {problem}"))
}

/// Builds a [`Value`], counting down depth and values.
#[derive(Clone, Copy)]
struct Bounded<'a> {
    depth: usize,
    left: &'a Cell<usize>,
}

impl Bounded<'_> {
    fn take<E: serde::de::Error>(self) -> Result<(), E> {
        let left = self.left.get().checked_sub(1);
        self.left.set(left.ok_or_else(|| E::custom("more values than are allowed"))?);
        Ok(())
    }

    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        let depth = self.depth.checked_sub(1);
        let depth = depth.ok_or_else(|| E::custom("nested deeper than is allowed"))?;
        Ok(Self { depth, left: self.left })
    }
}

impl<'de> DeserializeSeed<'de> for Bounded<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.take()?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Bounded<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        let number = Number::from_f64(value);
        number.map(Value::Number).ok_or_else(|| E::custom("a number that is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut values = Vec::new();
        while let Some(value) = sequence.next_element_seed(inner)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            if map.contains_key(&key) {
                return Err(A::Error::custom(format_args!("duplicate key {}", Quoted(&key))));
            }
            let value = access.next_value_seed(inner)?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        parse(text.as_bytes(), Path::new("file.json")).unwrap_err().to_string()
    }

    #[test]
    fn agrees_with_serde_json_on_honest_documents() {
        let text =
            r#"{"b": [1, -2, 3.5, 1e300, 18446744073709551615, null, true], "a": {"ü": ""}}"#;
        let expected: Value = serde_json::from_str(text).unwrap();
        let value = parse(text.as_bytes(), Path::new("file.json")).unwrap();
        assert_eq!(value, expected);
        assert_eq!(value.to_string(), expected.to_string(), "the order of keys is kept");
    }

    #[test]
    fn duplicate_keys_are_refused_with_their_place() {
        let message = error("{\"a\": 1,\n \"b\": {\"c\": 1, \"c\": 2}}");
        assert_eq!(message, "file.json, line 2 column 18: bad JSON: duplicate key `c`");
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(parse(nested(64).as_bytes(), Path::new("x")).is_ok());
        assert!(error(&nested(65)).contains("nested deeper"));
        assert!(error(&"[".repeat(1_000_000)).contains("nested deeper"));
        assert!(error(&"{\"a\":".repeat(1_000_000)).contains("nested deeper"));
    }

    #[test]
    fn size_and_number_of_values_are_bounded() {
        let limits = Limits { bytes: 10, depth: 64, values: 4 };
        let parse = |text: &str| parse_within(text.as_bytes(), Path::new("x"), &limits);
        assert!(parse("[1,2,3]").is_ok());
        assert!(parse("[1,2,3,4]").unwrap_err().to_string().contains("more values"));
        assert!(parse("[          ]").unwrap_err().to_string().contains("the limit is 10"));
    }

    #[test]
    fn broken_documents_are_refused() {
        for text in ["", "{", "{}}", "nul", "[1,]", "\"\u{1}\"", "1e999", "NaN", "{1:2}"] {
            assert!(error(text).contains("bad JSON"), "{text:?}");
        }
        assert!(parse(b"\"\xff\"", Path::new("x")).is_err());
    }
}
