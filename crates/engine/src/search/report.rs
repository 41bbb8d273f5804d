//! What a search leaves in the output folder: the recipe it found, and everything it measured.

use super::{Measured, Survey, Unit, UnitChoice};
use crate::EngineError;
use crate::plan::Plan;
use crate::recipe::{BUILTIN_TEXT, Recipe};
use lapidary_methods::allocate::{Allocation, Choice};
use lapidary_model::Place;
use serde_json::{Value, json};
use std::fmt::Write;

/// The measurements and the choice.
pub const FILE_NAME: &str = "search.json";

/// The recipe that was found.
pub const RECIPE_NAME: &str = "recipe.yaml";

impl Survey<'_> {
    /// `search.json`: candidates, sensitivities, the choice with its certificate, the curve.
    pub(super) fn report(
        &self,
        measured: &[Measured],
        losses: &[Vec<Choice>],
        allocation: &Allocation,
        plan: &Plan,
    ) -> Result<Vec<u8>, EngineError> {
        let candidates: Vec<Value> = self
            .candidates
            .iter()
            .map(|candidate| {
                let steps = &self.recipe.candidates[candidate.index];
                json!({
                    "label": candidate.label,
                    "bits_per_weight": candidate.plan.bits_per_weight(),
                    "measured_by_a_stand_in": candidate.plan.has_sketches(),
                    "steps": steps.iter().map(crate::recipe::Step::to_json).collect::<Vec<_>>(),
                })
            })
            .collect();
        let units: Vec<Value> = self
            .units
            .iter()
            .zip(measured)
            .zip(losses)
            .zip(&allocation.choices)
            .map(|(((unit, measured), losses), chosen)| of_unit(unit, measured, losses, *chosen))
            .collect();
        let chosen = losses.iter().zip(&allocation.choices);
        let predicted: f64 = chosen.map(|(unit, index)| unit[*index].cost).sum();
        let report = json!({
            "budget": self.budget().to_json(),
            "format": plan.format.id(),
            "chosen": {
                "bits_per_weight": plan.bits_per_weight(),
                "weight_file_bytes": self.file_bytes(plan)?,
                "predicted_divergence": predicted,
                "objective": allocation.cost,
                "objective_bound": allocation.bound,
                "gap": allocation.gap(),
            },
            "candidates": candidates,
            "refused": self.refused,
            "units": units,
            "curve": self.curve(losses),
        });
        let mut bytes = serde_json::to_vec_pretty(&report)
            .map_err(|error| EngineError::Internal(error.to_string()))?;
        bytes.push(b'\n');
        Ok(bytes)
    }
}

fn of_unit(unit: &Unit, measured: &Measured, losses: &[Choice], chosen: usize) -> Value {
    let choices = unit.choices.iter().zip(&measured.errors).zip(losses);
    let choice = |((choice, error), loss): ((&UnitChoice, &f64), &Choice)| {
        json!({
            "candidate": choice.candidate,
            "bytes": choice.bytes,
            "output_error": error,
            "predicted_divergence": loss.cost,
        })
    };
    json!({
        "block": match unit.place {
            Place::Block(block) => json!(block),
            _ => Value::Null,
        },
        "modules": unit.modules,
        "weights": unit.weights,
        "measured_divergences": measured.probes,
        "choices": choices.map(choice).collect::<Vec<_>>(),
        "chosen": chosen,
    })
}

/// A recipe as YAML.
pub(super) fn recipe_text(recipe: &Recipe) -> String {
    let json = recipe.to_json();
    let mut text = "# Found by a search; the measurements are in search.json.\n".to_owned();
    if recipe.calibration.text != BUILTIN_TEXT {
        text.push_str("# It was calibrated on a text of one's own: give it by --calibration.\n");
    }
    text.push_str("steps:\n");
    for step in json["steps"].as_array().into_iter().flatten() {
        let fields = step.as_object().into_iter().flatten();
        // Empty lists are what a recipe has by default.
        let fields = fields.filter(|(_, value)| value.as_array().is_none_or(|v| !v.is_empty()));
        for (index, (key, value)) in fields.enumerate() {
            let _ = write!(text, "{}{key}:", if index == 0 { "  - " } else { "    " });
            match value.as_array().filter(|values| values.len() > 1) {
                Some(values) => {
                    for value in values {
                        let _ = write!(text, "\n      - {}", scalar(value));
                    }
                    text.push('\n');
                }
                None => {
                    let _ = writeln!(text, " {}", scalar(value));
                }
            }
        }
    }
    text.push_str("calibration:\n");
    for (key, value) in json["calibration"].as_object().into_iter().flatten() {
        let _ = writeln!(text, "  {key}: {}", scalar(value));
    }
    let _ = writeln!(text, "format: {}", scalar(&json["format"]));
    if recipe.untie {
        text.push_str("untie: true\n");
    }
    text
}

/// A value as YAML: words without quotes where nothing else could be read into them.
fn scalar(value: &Value) -> String {
    let is_word = |text: &str| {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let is_letter = |c: char| c.is_ascii_alphabetic() && !"eEnNyYtTfFoO".contains(c);
        // Not null, true, false, yes, no, on, off, nan, nor a number.
        text.starts_with(is_letter) && text.chars().all(is_plain)
    };
    match value {
        Value::String(text) if is_word(text) => text.clone(),
        other => other.to_string(),
    }
}
