//! `lapidary presets`: the recipes in the binary, one of them, or the schema of all recipes.

use crate::arguments::PresetsArguments;
use crate::error::CliError;
use crate::output::Output;
use crate::table::table;
use lapidary_engine::recipe::{RecipeError, preset, presets, schema};
use serde_json::Value;

pub(crate) fn run(arguments: &PresetsArguments, output: &mut Output) -> Result<(), CliError> {
    let wrong = |error: RecipeError| CliError::Recipe { file: "presets".to_owned(), error };
    if arguments.schema {
        let pretty = |value: &Value| serde_json::to_string_pretty(value).unwrap_or_default();
        return output.result(schema, || pretty(&schema()));
    }
    if let Some(name) = &arguments.name {
        let preset = preset(name).map_err(wrong)?;
        let value = preset.to_json().map_err(wrong)?;
        return output.result(|| value, || preset.text().to_owned());
    }
    let values: Result<Vec<Value>, RecipeError> = presets().iter().map(|p| p.to_json()).collect();
    let values = values.map_err(wrong)?;
    output.result(
        || Value::Array(values),
        || {
            let rows: Vec<Vec<String>> = presets()
                .iter()
                .map(|preset| vec![preset.name.clone(), preset.summary()])
                .collect();
            let left: Vec<Vec<String>> =
                rows.into_iter().map(|row| vec![format!("{:<18} {}", row[0], row[1])]).collect();
            table(&["preset"], &left)
        },
    )
}
