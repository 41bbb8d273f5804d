//! What a step says of the inputs of its layers: `activations: int8`, `fp8`, `none`, or in full
//! `{type: int, bits: 8, strategy: token}`.

use super::document::{Content, Node};
use super::{ACTIVATIONS, RecipeError};
use lapidary_methods::{Entry, Method};
use lapidary_weight::InputRounding;
use serde_json::{Value, json};

/// How the inputs of a step's layers are rounded when the model is run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activations {
    /// Not at all.
    Floats,
    /// So.
    Rounded(InputRounding),
}

/// The words for what engines have.
const WORDS: [(&str, Activations); 3] = [
    ("int8", Activations::Rounded(InputRounding::INT8)),
    ("fp8", Activations::Rounded(InputRounding::FP8)),
    ("none", Activations::Floats),
];

impl Activations {
    /// What a step says, if it says anything.
    pub(super) fn read(step: &Node) -> Result<Option<Self>, RecipeError> {
        let Some(field) = step.field(ACTIVATIONS) else { return Ok(None) };
        let wrong = |what: &str| {
            let words = "int8, fp8, none, or a map such as {type: int, bits: 8, strategy: token}";
            RecipeError::new(field.node.place, format!("activations: {what}; use {words}"))
        };
        let value = field.node.to_json();
        match &field.node.content {
            Content::Map(_) => serde_json::from_value(value)
                .map(|rounding| Some(Self::Rounded(rounding)))
                .map_err(|error| wrong(&error.to_string())),
            _ => {
                let word = WORDS.iter().find(|(word, _)| value.as_str() == Some(*word));
                let word = word.map(|(_, activations)| *activations);
                word.map(Some).ok_or_else(|| wrong(&format!("{value} is none that it knows")))
            }
        }
    }

    /// As it stands in a recipe.
    pub(crate) fn to_json(self) -> Value {
        match (WORDS.iter().find(|(_, activations)| *activations == self), self) {
            (Some((word, _)), _) => json!(word),
            (None, Self::Rounded(rounding)) => json!(rounding),
            (None, Self::Floats) => Value::Null,
        }
    }
}

/// The schema of the key, for editors.
pub(super) fn schema() -> Value {
    let words: Vec<&str> = WORDS.iter().map(|(word, _)| *word).collect();
    json!({
        "description": "How the inputs of its layers are rounded when the model is run: int8 and fp8 \
                        have a scale for each token.",
        "anyOf": [
            { "enum": words },
            {
                "type": "object",
                "required": ["type"],
                "additionalProperties": false,
                "properties": {
                    "type": { "enum": ["int", "float"] },
                    "bits": { "type": "integer", "minimum": 2, "maximum": 8 },
                    "strategy": { "enum": ["token", "group", "tensor"] },
                    "group_size": { "type": "integer", "minimum": 1 },
                    "scale": { "type": "number", "exclusiveMinimum": 0 },
                },
            },
        ],
    })
}

/// Whether steps of a method have the key: those that encode weights, of which a layer has one.
pub(super) fn has_activations(method: &Entry) -> bool {
    matches!((method.build)(&(method.defaults)()), Ok(Method::Tensorwise(_)))
}
