//! What the command line changes in a recipe: named options for what is changed often, and
//! `step.key=value` for everything else.

use super::candidates::expand;
use super::document::{Content, Node, Place};
use super::{ACTIVATIONS, Budget, RecipeError, known_keys, method_named, parse_document, steps_of};
use serde_json::{Value, json};

/// Changes to a recipe, applied before it is read, so that they are checked like the recipe itself.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// Bits of a weight, for every step that has them; only some methods take a fraction.
    pub bits: Option<f64>,
    /// Group size, as it is written in a recipe.
    pub group_size: Option<String>,
    /// Symmetric grids or not.
    pub symmetric: Option<bool>,
    /// How inputs are rounded when the model is run, as it is written in a recipe.
    pub activations: Option<String>,
    /// Share of the weights that is pruned; takes the place of a pattern.
    pub sparsity: Option<f64>,
    /// Pattern `N:M` of pruning; takes the place of a sparsity.
    pub pattern: Option<String>,
    /// Calibration text.
    pub text: Option<String>,
    /// Importance matrix in place of it.
    pub imatrix: Option<String>,
    /// Calibration rows.
    pub samples: Option<usize>,
    /// Tokens of a row.
    pub seq_len: Option<usize>,
    /// The format.
    pub format: Option<String>,
    /// Whether layers are found by their shapes where no family knows the model.
    pub allow_unknown: bool,
    /// What a search has to keep.
    pub budget: Option<Budget>,
    /// `step.key=value`, where step is a step's name or method, `calibration`, or `*` for all steps;
    /// or `untie=value`.
    pub set: Vec<String>,
}

impl Overrides {
    /// Applies the changes.
    ///
    /// # Errors
    /// When no step takes a key, a `--set` is not of the form `step.key=value`, or bits are given with a
    /// budget that is to choose them.
    pub fn apply(&self, document: &mut Node) -> Result<(), RecipeError> {
        let given = [
            ("bits", self.bits.map(number)),
            ("group_size", self.group_size.as_deref().map(scalar)),
            ("symmetric", self.symmetric.map(|symmetric| json!(symmetric))),
            (ACTIVATIONS, self.activations.as_ref().map(|activations| json!(activations))),
        ];
        for (key, value) in given {
            if let Some(value) = value {
                set_in_steps(document, "*", key, &value)?;
            }
        }
        // Either settles how many weights go: what the recipe says of the other is void.
        let share =
            self.sparsity.map(|share| [("sparsity", json!(share)), ("pattern", json!(null))]);
        let pattern = self.pattern.as_ref();
        let pattern =
            pattern.map(|pattern| [("pattern", json!(pattern)), ("sparsity", json!(null))]);
        for (key, value) in share.into_iter().chain(pattern).flatten() {
            set_in_steps(document, "*", key, &value)?;
        }
        let calibration = [
            ("text", self.text.as_ref().map(|text| json!(text))),
            ("imatrix", self.imatrix.as_ref().map(|path| json!(path))),
            ("samples", self.samples.map(|samples| json!(samples))),
            ("seq_len", self.seq_len.map(|seq_len| json!(seq_len))),
        ];
        for (key, value) in calibration {
            if let Some(value) = value {
                set_in_calibration(document, key, value);
            }
        }
        if let Some(format) = &self.format {
            document.set("format", Node::given(json!(format)));
        }
        if self.allow_unknown {
            document.set("allow_unknown", Node::given(json!(true)));
        }
        if let Some(budget) = self.budget {
            document.set("budget", Node::given(budget.to_json()));
        }
        self.set.iter().try_for_each(|assignment| set(document, assignment))?;
        match (self.bits, self.budget) {
            (Some(bits), Some(budget)) if expand(steps_of(document)?)?.len() == 1 => {
                let what = format!(
                    "--bits {bits} leaves a budget ({budget}) nothing to choose; leave it out, or list \
                     values of something else, for instance --set layers.drop=[0,2,4]"
                );
                Err(RecipeError::new(Place::default(), what))
            }
            _ => Ok(()),
        }
    }
}

fn set(document: &mut Node, assignment: &str) -> Result<(), RecipeError> {
    let wrong = || {
        let what = format!("--set {assignment}: it is of the form step.key=value");
        RecipeError::new(Place::default(), what)
    };
    let (path, value) = assignment.split_once('=').ok_or_else(wrong)?;
    let value = parse_document(value)?.to_json();
    if path == "untie" {
        document.set(path, Node::given(value));
        return Ok(());
    }
    let (step, key) = path.split_once('.').ok_or_else(wrong)?;
    if step == "calibration" {
        set_in_calibration(document, key, value);
        return Ok(());
    }
    set_in_steps(document, step, key, &value)
}

/// A whole number where it is one.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 { json!(value as i64) } else { json!(value) }
}

/// A number where it is one, else a string.
fn scalar(text: &str) -> Value {
    text.parse::<i64>().map_or_else(|_| json!(text), |number| json!(number))
}

fn set_in_calibration(document: &mut Node, key: &str, value: Value) {
    let mut calibration = match document.field("calibration") {
        Some(field) => field.node.clone(),
        None => Node::given(json!({})),
    };
    calibration.set(key, Node::given(value));
    document.set("calibration", calibration);
}

/// Sets a key in the steps of this name or method (`*`: all) that take it.
fn set_in_steps(
    document: &mut Node,
    name: &str,
    key: &str,
    value: &Value,
) -> Result<(), RecipeError> {
    let Some(steps) = document.field("steps") else { return Ok(()) };
    let mut steps = steps.node.clone();
    let (mut named, mut changed) = (false, false);
    if let Content::List(steps) = &mut steps.content {
        for step in steps {
            let Some(method) = step.field("method").map(|field| field.node.clone()) else {
                continue;
            };
            let label = step.field("name").map(|field| field.node.to_json());
            let is_named = |text: &Value| text.as_str() == Some(name);
            if name != "*" && !label.as_ref().is_some_and(is_named) && !is_named(&method.to_json())
            {
                continue;
            }
            named = true;
            // `*` goes to the steps that take the key; a named step must take it, and the recipe's
            // own check says so with the keys it does take.
            if name != "*" || known_keys(method_named(&method)?).iter().any(|known| known == key) {
                step.set(key, Node::given(value.clone()));
                changed = true;
            }
        }
    }
    if !changed {
        let what = match named {
            true => format!("no step takes {key}"),
            false => format!("--set {name}.{key}: no step is named {name}"),
        };
        return Err(RecipeError::new(Place::default(), what));
    }
    document.set("steps", steps);
    Ok(())
}
