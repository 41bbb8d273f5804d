//! The list of methods: each is one identifier in `methods!` (with a name for recipes where that is no
//! identifier), one file, and nothing else.

use crate::{Blockwise, Correction, Graphwise, Pruner, Structural, Tensorwise};
use serde_json::Value;

/// A method by its scope.
pub enum Method {
    /// One weight with its statistics.
    Tensorwise(Box<dyn Tensorwise>),
    /// Which entries of a weight are left, before it is encoded or as all that is done to it.
    Pruner(Box<dyn Pruner>),
    /// A weight that is encoded already.
    Correction(Box<dyn Correction>),
    /// The layers of a block that share an input.
    Blockwise(Box<dyn Blockwise>),
    /// The model as a value.
    Graphwise(Box<dyn Graphwise>),
    /// The model as a value, of which a part goes.
    Structural(Box<dyn Structural>),
}

/// A method as users see it: its name, its paper, its parameters.
#[derive(Clone, Copy)]
pub struct Entry {
    /// Name in recipes.
    pub id: &'static str,
    /// One line.
    pub summary: &'static str,
    /// Where it comes from.
    pub paper: &'static str,
    /// JSON schema of the parameters.
    pub schema: fn() -> schemars::Schema,
    /// All parameters with their defaults.
    pub defaults: fn() -> Value,
    /// The method with these parameters.
    pub build: fn(&Value) -> Result<Method, ParamError>,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.id)
    }
}

/// A parameter that a method does not take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {what}")]
pub struct ParamError {
    /// The parameter, `.` when it is the combination of several.
    pub path: String,
    /// What is wrong with it.
    pub what: String,
}

impl ParamError {
    /// A complaint about one parameter.
    pub fn new(path: impl Into<String>, what: impl Into<String>) -> Self {
        Self { path: path.into(), what: what.into() }
    }
}

/// Reads parameters, naming the one that is wrong.
pub(crate) fn read<T: serde::de::DeserializeOwned>(value: &Value) -> Result<T, ParamError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = match error.path().to_string() {
            // Flattened structures hide the path; alone, the wrong parameter still fails.
            path if path == "." => culprit::<T>(value).unwrap_or(path),
            path => path,
        };
        ParamError::new(path, error.inner().to_string())
    })
}

/// The parameter that cannot be read even alone; all others have defaults.
fn culprit<T: serde::de::DeserializeOwned>(value: &Value) -> Option<String> {
    let fails = |(key, value): &(&String, &Value)| {
        let alone = Value::Object([((*key).clone(), (*value).clone())].into_iter().collect());
        serde_json::from_value::<T>(alone).is_err()
    };
    value.as_object()?.iter().find(fails).map(|(key, _)| key.clone())
}

/// Parameters as JSON, for listings and manifests.
pub(crate) fn write<T: serde::Serialize>(params: &T) -> Value {
    serde_json::to_value(params).unwrap_or(Value::Null)
}

/// All methods, in alphabetical order.
pub fn entries() -> &'static [Entry] {
    crate::ENTRIES
}

/// The method of this name.
pub fn find(id: &str) -> Option<&'static Entry> {
    entries().iter().find(|entry| entry.id == id)
}

/// Names of all methods.
pub fn method_ids() -> Vec<&'static str> {
    entries().iter().map(|entry| entry.id).collect()
}

/// The name given, or else that of the file.
pub(crate) const fn id(file: &'static str, given: &[&'static str]) -> &'static str {
    if given.is_empty() { file } else { given[0] }
}

macro_rules! methods {
    ($($method:ident $(= $id:literal)?),* $(,)?) => {
        $(pub mod $method;)*
        const ENTRIES: &[$crate::Entry] = &[$($crate::Entry {
            id: $crate::registry::id(stringify!($method), &[$($id)?]),
            summary: $method::SUMMARY,
            paper: $method::PAPER,
            schema: || schemars::schema_for!($method::Params),
            defaults: || $crate::registry::write(&$method::Params::default()),
            build: |params| $method::build($crate::registry::read(params)?),
        }),*];
    };
}
pub(crate) use methods;
