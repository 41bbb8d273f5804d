//! `lapidary methods`: what there is, each with its paper and its parameters.

use crate::error::CliError;
use crate::output::Output;
use lapidary_methods::{Entry, entries};
use serde_json::{Value, json};
use std::fmt::Write;

pub(crate) fn run(output: &mut Output) -> Result<(), CliError> {
    output.result(
        || entries().iter().map(to_json).collect(),
        || entries().iter().map(describe).collect::<Vec<_>>().join("\n"),
    )
}

fn to_json(entry: &Entry) -> Value {
    json!({
        "method": entry.id,
        "summary": entry.summary,
        "paper": entry.paper,
        "defaults": (entry.defaults)(),
        "parameters": (entry.schema)().to_value().get("properties"),
    })
}

fn describe(entry: &Entry) -> String {
    let mut text = format!("{}: {} ({})\n", entry.id, entry.summary, entry.paper);
    let defaults = (entry.defaults)();
    let schema = (entry.schema)().to_value();
    let properties = schema.get("properties").and_then(Value::as_object);
    for (name, property) in properties.into_iter().flatten() {
        let about = property.get("description").and_then(Value::as_str).unwrap_or_default();
        let about = about.split_whitespace().collect::<Vec<_>>().join(" ");
        let default = defaults.get(name).map(Value::to_string).unwrap_or_default();
        let _ = writeln!(text, "  {name} = {default}  {about}");
    }
    text
}
