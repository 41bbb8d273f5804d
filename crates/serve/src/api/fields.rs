//! A request's JSON, field by field, so that an error can name the field.

use crate::error::ApiError;
use hyper::StatusCode;
use lapidary_store::json;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::path::Path;

/// The fields that were not taken yet.
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    /// Reads an object.
    pub(super) fn read(body: &[u8]) -> Result<Self, ApiError> {
        match json::parse(body, Path::new("the request")) {
            Ok(Value::Object(fields)) => Ok(Self(fields)),
            Ok(_) => Err(ApiError::malformed("the request is JSON, but not an object")),
            Err(error) => {
                let status = StatusCode::BAD_REQUEST;
                Err(ApiError::new(status, "invalid_json", error.to_string()))
            }
        }
    }

    /// Whether a field is there.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// A field, if it is there and not null.
    pub(super) fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, ApiError> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                serde_json::from_value(value).map(Some).map_err(|e| ApiError::parameter(name, e))
            }
        }
    }

    /// A whole number within limits, or what it is when not given.
    pub(super) fn count(
        &mut self,
        name: &str,
        range: std::ops::RangeInclusive<usize>,
    ) -> Result<Option<usize>, ApiError> {
        let given: Option<usize> = self.take(name)?;
        if let Some(value) = given.filter(|value| !range.contains(value)) {
            let problem = format!("must be from {} to {}, not {value}", range.start(), range.end());
            return Err(ApiError::parameter(name, problem));
        }
        Ok(given)
    }

    /// Refuses a field that asks for what there is not, unless it asks for nothing.
    pub(super) fn refuse(&mut self, name: &str, why: &str) -> Result<(), ApiError> {
        let nothing = |value: &Value| match value {
            Value::Null | Value::Bool(false) => true,
            Value::String(text) => text.is_empty() || text == "none" || text == "auto",
            Value::Array(items) => items.is_empty(),
            Value::Object(fields) => {
                fields.is_empty() || fields.get("type") == Some(&"text".into())
            }
            _ => false,
        };
        match self.0.remove(name).filter(|value| !nothing(value)) {
            Some(_) => Err(ApiError::parameter(name, why)),
            None => Ok(()),
        }
    }

    /// Takes fields that change nothing about an answer.
    pub(super) fn ignore(&mut self, names: &[&str]) {
        for name in names {
            self.0.remove(*name);
        }
    }

    /// Refuses what is left.
    pub(super) fn finish(self) -> Result<(), ApiError> {
        match self.0.into_iter().find(|(_, value)| !value.is_null()) {
            None => Ok(()),
            Some((name, _)) => {
                let shown: String = name.chars().take(100).collect();
                Err(ApiError::parameter(&shown, "there is no such parameter"))
            }
        }
    }
}
