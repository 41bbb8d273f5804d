//! The JSON schema of recipes, for editors.

use super::{Calibration, RECIPE_KEYS};
use lapidary_methods::{Entry, entries};
use schemars::schema_for;
use serde_json::{Value, json};

/// The schema of a recipe: every method with its parameters, described.
pub fn schema() -> Value {
    let mut steps: Vec<Value> = entries().iter().map(step).collect();
    steps.push(one_of());
    let formats: Vec<&str> = lapidary_formats::formats().iter().map(|format| format.id()).collect();
    let schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Lapidary recipe",
        "type": "object",
        "required": ["steps"],
        "additionalProperties": false,
        "properties": {
            "steps": { "type": "array", "minItems": 1, "items": { "oneOf": steps } },
            "budget": budget(),
            "calibration": inlined(schema_for!(Calibration).to_value()),
            "format": { "enum": formats, "description": "The format that is written." },
            "allow_unknown": {
                "type": "boolean",
                "description": "A model that no family knows is compressed by the shapes of its \
                                tensors.",
            },
            "untie": {
                "type": "boolean",
                "description": "A head that shares its weight with the embedding gets its own.",
            },
        },
    });
    debug_assert!(RECIPE_KEYS.iter().all(|key| schema["properties"].get(key).is_some()));
    schema
}

/// The schema of a choice between steps.
fn one_of() -> Value {
    json!({
        "title": "one_of",
        "description": "Steps, or lists of steps that go together, of which a search takes one for \
                        each layer.",
        "type": "object",
        "required": ["one_of"],
        "additionalProperties": false,
        "properties": {
            "one_of": {
                "type": "array",
                "minItems": 1,
                "items": { "anyOf": [{ "type": "object" }, { "type": "array" }] },
                "description": "The steps.",
            },
        },
    })
}

/// The schema of a budget.
fn budget() -> Value {
    json!({
        "type": "object",
        "description": "What the search for the best of all candidates has to keep; one of \
                        them. Candidates are the values of parameters that are lists, and the \
                        steps under one_of.",
        "minProperties": 1,
        "maxProperties": 1,
        "additionalProperties": false,
        "properties": {
            "bpw": {
                "type": "number",
                "exclusiveMinimum": 0,
                "description": "Bits stored for each weight of the compressed layers.",
            },
            "size": {
                "type": ["integer", "string"],
                "description": "Size of the weight files, for instance 80MB.",
            },
            "max_kl": {
                "type": "number",
                "exclusiveMinimum": 0,
                "description": "Divergence from the uncompressed model, in nats a token.",
            },
            "parameters": {
                "type": ["integer", "string"],
                "description": "Parameters that are not pruned, for instance 100M.",
            },
            "speedup": {
                "type": "number",
                "exclusiveMinimum": 0,
                "description": "How many times as fast tokens are written, by the bytes of weights \
                                that a token reads.",
            },
        },
    })
}

/// The schema of a step with one method.
fn step(method: &Entry) -> Value {
    let patterns = |what: &str| {
        json!({
            "description": what,
            "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }],
        })
    };
    let mut schema = inlined((method.schema)().to_value());
    schema["title"] = json!(method.id);
    schema["description"] = json!(format!("{} ({})", method.summary, method.paper));
    schema["required"] = json!(["method"]);
    schema["additionalProperties"] = json!(false);
    let properties = &mut schema["properties"];
    for parameter in properties.as_object_mut().into_iter().flat_map(|all| all.values_mut()) {
        *parameter = or_several(parameter.take());
    }
    properties["method"] = json!({ "const": method.id });
    properties["name"] =
        json!({ "type": "string", "description": "Name for --set; the method's by default." });
    properties["targets"] = patterns(
        "Modules it goes to: Linear, Embedding, Positions, Head, a name, or re: and an expression.",
    );
    properties["ignore"] = patterns("Modules among them that it does not go to.");
    let what = format!("Blocks whose layers it goes to: {}.", super::layers::RULES);
    if super::activations::has_activations(method) {
        properties[super::ACTIVATIONS] = super::activations::schema();
    }
    properties["layers"] = json!({ "type": "string", "description": what });
    schema
}

/// A parameter, or a list of the values that a search may choose from.
fn or_several(mut parameter: Value) -> Value {
    let description = parameter.as_object_mut().and_then(|fields| fields.remove("description"));
    json!({
        "description": description,
        "anyOf": [parameter, { "type": "array", "minItems": 1, "items": parameter }],
    })
}

/// A schema with its definitions in place of the references to them.
fn inlined(mut schema: Value) -> Value {
    let definitions = schema.as_object_mut().and_then(|schema| schema.remove("$defs"));
    if let Some(schema) = schema.as_object_mut() {
        schema.remove("$schema");
    }
    let definitions = definitions.unwrap_or_default();
    // Definitions may refer to each other, never in a circle.
    for _ in 0..4 {
        resolve(&mut schema, &definitions);
    }
    schema
}

fn resolve(value: &mut Value, definitions: &Value) {
    match value {
        Value::Object(fields) => {
            let name = fields.get("$ref").and_then(Value::as_str);
            let name = name.and_then(|name| name.strip_prefix("#/$defs/"));
            if let Some(definition) = name.and_then(|name| definitions.get(name)) {
                let mut definition = definition.clone();
                fields.remove("$ref");
                if let Some(target) = definition.as_object_mut() {
                    target.extend(std::mem::take(fields));
                }
                *value = definition;
                return;
            }
            fields.values_mut().for_each(|field| resolve(field, definitions));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| resolve(item, definitions)),
        _ => {}
    }
}
