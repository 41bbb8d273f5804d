//! Typed, range-checked access to `config.json`.

use crate::ModelError;
use serde_json::Value;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

/// Sizes above this are a corrupt or hostile configuration, not a model.
const LARGEST_SIZE: u64 = 1 << 24;

/// More layers than any model has.
const MOST_LAYERS: usize = 1 << 12;

/// A `config.json`, or an object inside it. It remembers which fields were asked for, so that those
/// that nobody asked for can be told.
#[derive(Debug, Clone)]
pub struct Config<'a> {
    value: &'a Value,
    read: Rc<RefCell<BTreeSet<String>>>,
}

impl<'a> Config<'a> {
    /// Wraps a parsed `config.json`.
    pub fn new(value: &'a Value) -> Self {
        Self { value, read: Rc::default() }
    }

    /// A field, with `null` read as absent.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.ignore(key);
        self.value.get(key).filter(|value| !value.is_null())
    }

    /// Whether a field is there, `null` or not.
    pub fn has(&self, key: &str) -> bool {
        self.value.get(key).is_some()
    }

    /// Counts a field as read which the model does not look at, whatever is in it.
    pub fn ignore(&self, key: &str) {
        self.read.borrow_mut().insert(key.to_owned());
    }

    /// The fields that nobody has asked for, with what is in them.
    pub fn unread(&self) -> Vec<(&'a str, &'a Value)> {
        let read = self.read.borrow();
        let fields = self.value.as_object().into_iter().flatten();
        let unread = fields.filter(|(key, _)| !read.contains(*key));
        unread.map(|(key, value)| (key.as_str(), value)).collect()
    }

    /// A nested object.
    pub fn object(&self, key: &str) -> Option<Self> {
        self.get(key).filter(|value| value.is_object()).map(Config::new)
    }

    /// A positive size that must be there.
    ///
    /// # Errors
    /// When it is missing, not a whole number, zero, or absurd.
    pub fn size(&self, key: &str) -> Result<usize, ModelError> {
        self.optional_size(key)?.ok_or_else(|| wrong(key, "is missing"))
    }

    /// A positive size that may be absent.
    ///
    /// # Errors
    /// When it is there but not a whole number from 1 to 2^24.
    pub fn optional_size(&self, key: &str) -> Result<Option<usize>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64() {
            Some(size) if (1..=LARGEST_SIZE).contains(&size) => Ok(Some(size as usize)),
            _ => Err(wrong(
                key,
                format!("is {value}, where a whole number from 1 to {LARGEST_SIZE} is needed"),
            )),
        }
    }

    /// The number of layers under `key`, which must be there. A layer is a graph in memory, so that
    /// its bound is narrower than that of a size.
    ///
    /// # Errors
    /// When it is missing, not a whole number, zero, or absurd.
    pub fn layers(&self, key: &str) -> Result<usize, ModelError> {
        match self.size(key)? {
            layers if layers <= MOST_LAYERS => Ok(layers),
            layers => Err(wrong(
                key,
                format!("is {layers}, where a whole number from 1 to {MOST_LAYERS} is needed"),
            )),
        }
    }

    /// A finite number that may be absent.
    ///
    /// # Errors
    /// When it is there but not a number.
    pub fn optional_number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64().filter(|number| number.is_finite()) {
            Some(number) => Ok(Some(number)),
            None => Err(wrong(key, format!("is {value}, where a number is needed"))),
        }
    }

    /// A positive number that must be there.
    ///
    /// # Errors
    /// When it is missing, not a number, or not above zero.
    pub fn positive(&self, key: &str) -> Result<f64, ModelError> {
        match self.optional_number(key)? {
            None => Err(wrong(key, "is missing")),
            Some(number) if number > 0.0 => Ok(number),
            Some(number) => {
                Err(wrong(key, format!("is {number}, where a positive number is needed")))
            }
        }
    }

    /// A flag, `default` when absent.
    ///
    /// # Errors
    /// When it is there but neither true nor false.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool, ModelError> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(value) => Err(wrong(key, format!("is {value}, where true or false is needed"))),
        }
    }

    /// A string, when there is one.
    pub fn text(&self, key: &str) -> Option<&'a str> {
        self.get(key).and_then(Value::as_str)
    }

    /// The `architectures` list.
    pub fn architectures(&self) -> Vec<String> {
        let list = self.get("architectures").and_then(Value::as_array);
        list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    }
}

/// A complaint about a field.
pub(crate) fn wrong(key: &str, what: impl Into<String>) -> ModelError {
    ModelError::Config { key: key.to_owned(), what: what.into() }
}
