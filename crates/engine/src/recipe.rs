//! Recipes: which method with which parameters goes to which layers, and what it is calibrated on.
//!
//! ```yaml
//! steps:
//!   - method: gptq          # any of `lapidary methods`, with its parameters beside it
//!     targets: [Linear]     # the default: every linear layer of the blocks
//!     ignore: ["re:.*down_proj"]
//!     layers: not first 2   # of these, blocks by their place: first N, first 1/N, more-bits
//!     bits: 4
//!     group_size: 64
//!     activations: int8     # of a step that encodes: inputs rounded too when the model is run
//! calibration: {samples: 128, seq_len: 512}
//! format: compressed-tensors
//! allow_unknown: true       # layers found by their shapes where no family knows the model
//! untie: true               # a head and an embedding of their own where they share a weight
//! ```
//!
//! Keys that no one knows are refused with their line and column.

mod activations;
mod candidates;
mod document;
mod layers;
mod overrides;
mod preset;
mod schema;

pub use activations::Activations;
pub use candidates::{Budget, parse_bytes, parse_count};
pub use document::{Content, Field, Node, Place};
pub(crate) use layers::Depth;
pub use layers::Layers;
pub use overrides::Overrides;
pub use preset::{Preset, preset, presets};
pub use schema::schema;

use lapidary_formats::Pattern;
use lapidary_methods::{Entry, Method, find, method_ids};
use lapidary_model::{Matrix, Precision};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// A recipe, complete: every parameter has its value.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// What is done, in order.
    pub steps: Vec<Step>,
    /// What statistics are gathered on.
    pub calibration: Calibration,
    /// Name of the format that is written.
    pub format: String,
    /// Whether a head that shares its weight with the embedding gets one of its own.
    pub untie: bool,
    /// Whether a model that no family knows is compressed by the shapes of its tensors.
    pub allow_unknown: bool,
    /// What a search has to keep, where the recipe leaves something open.
    pub budget: Option<Budget>,
    /// Every way to fill in what is open; `steps` is the first of them. Empty where nothing is.
    pub candidates: Vec<Vec<Step>>,
    /// The steps as they were asked for, with what is open.
    asked: Value,
}

/// A method, its parameters, and the layers it goes to.
#[derive(Debug, Clone)]
pub struct Step {
    /// Name for `--set`; the method's when the recipe gives none.
    pub name: String,
    /// The method.
    pub method: &'static Entry,
    /// Layers it goes to.
    pub targets: Vec<Pattern>,
    /// Layers among them that it does not go to.
    pub ignore: Vec<Pattern>,
    /// Blocks whose layers it goes to; all when there is none.
    pub layers: Option<Layers>,
    /// How the inputs of its layers are rounded when the model is run, where it says so.
    pub activations: Option<Activations>,
    /// All parameters.
    pub params: Value,
}

/// What statistics are gathered on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Calibration {
    /// A text file, a JSONL file with a `text` in each line, a safetensors file with rows of
    /// `input_ids`, or `builtin` for the mixed text in the binary.
    pub text: String,
    /// Rows of tokens.
    #[schemars(range(min = 1))]
    pub samples: usize,
    /// Tokens of a row.
    #[schemars(range(min = 1))]
    pub seq_len: usize,
    /// How the factors of matrix products are rounded in the calibration's forward passes.
    pub precision: CalibrationPrecision,
    /// An importance matrix of llama.cpp in place of all this, for methods that need no more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub imatrix: Option<String>,
}

/// Rounding of the factors of matrix products; sums are always in 32 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CalibrationPrecision {
    /// To 8 bits of mantissa: fast where the processor has such products, and as models are run.
    Bf16,
    /// Not at all.
    F32,
}

impl From<CalibrationPrecision> for Precision {
    fn from(precision: CalibrationPrecision) -> Self {
        match precision {
            CalibrationPrecision::Bf16 => Self::Bf16,
            CalibrationPrecision::F32 => Self::F32,
        }
    }
}

/// Name of the text in the binary.
pub const BUILTIN_TEXT: &str = "builtin";

/// The format written when a recipe names none, and encodes layers.
pub const DEFAULT_FORMAT: &str = "compressed-tensors";

impl Default for Calibration {
    fn default() -> Self {
        Self {
            text: BUILTIN_TEXT.to_owned(),
            samples: 128,
            seq_len: 512,
            precision: CalibrationPrecision::Bf16,
            imatrix: None,
        }
    }
}

/// What is wrong with a recipe, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}{what}")]
pub struct RecipeError {
    /// Where it stands.
    pub place: Place,
    /// What is wrong, and what to do.
    pub what: String,
}

impl RecipeError {
    pub(crate) fn new(place: Place, what: impl Into<String>) -> Self {
        Self { place, what: what.into() }
    }
}

/// Keys of a step that are not its method's parameters.
const STEP_KEYS: [&str; 6] = ["method", "name", "targets", "ignore", "layers", ACTIVATIONS];
/// The one of them that only steps that encode have.
const ACTIVATIONS: &str = "activations";
const RECIPE_KEYS: [&str; 6] =
    ["steps", "calibration", "format", "untie", "allow_unknown", "budget"];

impl Recipe {
    /// Reads a recipe.
    ///
    /// # Errors
    /// When it is not YAML, a key is unknown, or a value is of the wrong type or out of range.
    pub fn parse(text: &str) -> Result<Self, RecipeError> {
        Self::from_document(&parse_document(text)?)
    }

    /// Reads a parsed recipe.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn from_document(document: &Node) -> Result<Self, RecipeError> {
        let fields = document.fields().ok_or_else(|| {
            RecipeError::new(document.place, "a recipe is a map with the key steps")
        })?;
        for field in fields {
            check_known(field, "of a recipe", &RECIPE_KEYS)?;
        }
        let budget = Budget::read(document)?;
        let mut document = document.clone();
        let mut ways = candidates::expand(steps_of(&document)?)?;
        if let (Some(budget), 1) = (budget, ways.len()) {
            candidates::open_bits(&mut document, budget)?;
            ways = candidates::expand(steps_of(&document)?)?;
        }
        let asked = document.field("steps").map(|field| field.node.to_json()).unwrap_or_default();
        let mut candidates = vec![];
        for way in &ways {
            let mut steps = way.iter().map(Step::read).collect::<Result<Vec<_>, _>>()?;
            number_equal_names(&mut steps);
            candidates.push(steps);
        }
        if budget.is_none() && candidates.len() > 1 {
            let what = format!(
                "the steps have {} candidates and no budget to choose by; add for instance \
                 budget: {{bpw: 3.25}}, or give --bpw, --size, --max-kl, --parameters or --speedup",
                candidates.len()
            );
            return Err(RecipeError::new(document.place_of("steps"), what));
        }
        let steps = candidates.first().cloned().unwrap_or_default();
        if budget.is_none() {
            candidates.clear();
        }
        let (calibration, format) = (calibration(&document)?, format(&document, &steps)?);
        let untie = flag_of(&document, "untie")?.unwrap_or(false);
        let allow_unknown = flag_of(&document, "allow_unknown")?.unwrap_or(false);
        Ok(Self { steps, calibration, format, untie, allow_unknown, budget, candidates, asked })
    }

    /// The recipe that a search would try on every layer: one of its candidates.
    pub(crate) fn candidate(&self, index: usize) -> Self {
        let steps = self.candidates.get(index).cloned().unwrap_or_default();
        Self { steps, candidates: vec![], ..self.clone() }
    }

    /// The same with these steps and nothing open.
    pub(crate) fn closed(&self, mut steps: Vec<Step>) -> Self {
        number_equal_names(&mut steps);
        let open = Self { steps, candidates: vec![], budget: None, ..self.clone() };
        Self { asked: Value::Null, ..open }
    }

    /// The complete recipe as JSON: what a manifest records, and a recipe again. The calibration
    /// text is named only when it is the one in the binary: an artefact holds no path.
    pub fn to_json(&self) -> Value {
        let mut calibration = json!(self.calibration);
        if self.calibration.text != BUILTIN_TEXT {
            calibration["text"] = json!("file");
        }
        if self.calibration.imatrix.is_some() {
            calibration["imatrix"] = json!("file");
        }
        let filled_in = || self.steps.iter().map(Step::to_json).collect::<Value>();
        let steps = if self.candidates.is_empty() { filled_in() } else { self.asked.clone() };
        let mut json = json!({
            "steps": steps,
            "calibration": calibration,
            "format": self.format,
            "untie": self.untie,
        });
        if self.allow_unknown {
            json["allow_unknown"] = json!(true);
        }
        if let Some(budget) = self.budget {
            json["budget"] = budget.to_json();
        }
        json
    }
}

impl Step {
    fn read(node: &Node) -> Result<Self, RecipeError> {
        let wrong = || RecipeError::new(node.place, "a step is a map with the key method");
        let fields = node.fields().ok_or_else(wrong)?;
        let method = node.field("method").ok_or_else(wrong)?;
        let method = method_named(&method.node)?;
        let known = known_keys(method);
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        let mut params = (method.defaults)();
        for field in fields {
            check_known(field, &format!("of a {} step", method.id), &known)?;
            if !STEP_KEYS.contains(&field.key.as_str()) {
                params[&field.key] = field.node.to_json();
            }
        }
        let step = Self {
            name: text_of(node, "name")?.unwrap_or_else(|| method.id.to_owned()),
            method,
            targets: patterns(node, "targets")?.unwrap_or_else(linear),
            ignore: patterns(node, "ignore")?.unwrap_or_default(),
            layers: layers_of(node)?,
            activations: Activations::read(node)?,
            params,
        };
        (method.build)(&step.params).map_err(|error| {
            let place = match error.path.as_str() {
                "." => node.place,
                path => node.place_of(path),
            };
            RecipeError::new(place, format!("step {}: {error}", step.name))
        })?;
        Ok(step)
    }

    /// Whether it goes to a matrix of a model. What stands in no block is in none that `layers` could
    /// name.
    pub(crate) fn goes_to(&self, matrix: &Matrix, model: Depth) -> bool {
        let names = |pattern: &Pattern| crate::plan::matches(pattern, matrix);
        let in_layers = match (self.layers, matrix.place) {
            (None, _) => true,
            (Some(layers), lapidary_model::Place::Block(block)) => layers.holds(block, model),
            (Some(_), _) => false,
        };
        in_layers && self.targets.iter().any(names) && !self.ignore.iter().any(names)
    }

    /// The method, ready to work.
    ///
    /// # Errors
    /// Never for a step that was read: its parameters were checked then.
    pub fn build(&self) -> Result<Method, RecipeError> {
        (self.method.build)(&self.params).map_err(|error| {
            RecipeError::new(Place::default(), format!("step {}: {error}", self.name))
        })
    }

    pub(crate) fn to_json(&self) -> Value {
        let texts = |patterns: &[Pattern]| -> Vec<String> {
            patterns.iter().map(|pattern| pattern.text().to_owned()).collect()
        };
        let mut step = Map::new();
        step.insert("method".to_owned(), json!(self.method.id));
        step.insert("name".to_owned(), json!(self.name));
        step.insert("targets".to_owned(), json!(texts(&self.targets)));
        step.insert("ignore".to_owned(), json!(texts(&self.ignore)));
        if let Some(layers) = self.layers {
            step.insert("layers".to_owned(), json!(layers.text()));
        }
        if let Some(activations) = self.activations {
            step.insert(ACTIVATIONS.to_owned(), activations.to_json());
        }
        if let Value::Object(params) = &self.params {
            step.extend(params.iter().map(|(key, value)| (key.clone(), value.clone())));
        }
        Value::Object(step)
    }
}

/// The steps of a recipe.
fn steps_of(document: &Node) -> Result<&[Node], RecipeError> {
    let steps = document.field("steps").map(|field| &field.node);
    match steps {
        Some(Node { content: Content::List(steps), .. }) => Ok(steps),
        _ => Err(RecipeError::new(document.place, "a recipe needs a list of steps")),
    }
}

/// Parses YAML, with the parser's complaint as a recipe error.
pub(crate) fn parse_document(text: &str) -> Result<Node, RecipeError> {
    Node::parse(text).map_err(|(place, what)| RecipeError::new(place, what))
}

/// Keys that a step with this method takes.
pub(crate) fn known_keys(method: &Entry) -> Vec<String> {
    let schema = (method.schema)();
    let properties = schema.get("properties").and_then(Value::as_object);
    let parameters = properties.into_iter().flat_map(|properties| properties.keys().cloned());
    let has = |key: &&str| *key != ACTIVATIONS || activations::has_activations(method);
    STEP_KEYS.into_iter().filter(has).map(str::to_owned).chain(parameters).collect()
}

fn method_named(node: &Node) -> Result<&'static Entry, RecipeError> {
    let Content::Scalar(Value::String(id)) = &node.content else {
        return Err(RecipeError::new(node.place, "method must be the name of one"));
    };
    find(id).ok_or_else(|| {
        let known = method_ids();
        let near =
            nearest(id, &known).map_or_else(String::new, |near| format!("; did you mean {near}?"));
        let known = known.join(", ");
        RecipeError::new(node.place, format!("there is no method {id:?}{near} known are {known}"))
    })
}

fn linear() -> Vec<Pattern> {
    Pattern::new("Linear").into_iter().collect()
}

fn patterns(step: &Node, key: &str) -> Result<Option<Vec<Pattern>>, RecipeError> {
    let Some(field) = step.field(key) else { return Ok(None) };
    let one = std::slice::from_ref(&field.node);
    let nodes = match &field.node.content {
        Content::List(nodes) => nodes.as_slice(),
        _ => one,
    };
    let read = |node: &Node| match &node.content {
        Content::Scalar(Value::String(text)) => Pattern::new(text)
            .map_err(|error| RecipeError::new(node.place, format!("{key}: {error}"))),
        _ => Err(RecipeError::new(node.place, format!("{key} is a list of patterns"))),
    };
    nodes.iter().map(read).collect::<Result<_, _>>().map(Some)
}

fn layers_of(step: &Node) -> Result<Option<Layers>, RecipeError> {
    let Some(text) = text_of(step, "layers")? else { return Ok(None) };
    let wrong = || {
        let what = format!("layers: {text:?} names no blocks; use {}", layers::RULES);
        RecipeError::new(step.place_of("layers"), what)
    };
    Layers::parse(&text).map(Some).ok_or_else(wrong)
}

fn text_of(node: &Node, key: &str) -> Result<Option<String>, RecipeError> {
    match node.field(key).map(|field| &field.node) {
        None => Ok(None),
        Some(Node { content: Content::Scalar(Value::String(text)), .. }) => Ok(Some(text.clone())),
        Some(node) => Err(RecipeError::new(node.place, format!("{key} must be a string"))),
    }
}

fn flag_of(node: &Node, key: &str) -> Result<Option<bool>, RecipeError> {
    match node.field(key).map(|field| &field.node) {
        None => Ok(None),
        Some(Node { content: Content::Scalar(Value::Bool(flag)), .. }) => Ok(Some(*flag)),
        Some(node) => Err(RecipeError::new(node.place, format!("{key} must be true or false"))),
    }
}

fn calibration(document: &Node) -> Result<Calibration, RecipeError> {
    let Some(field) = document.field("calibration") else { return Ok(Calibration::default()) };
    let node = &field.node;
    let known = ["text", "samples", "seq_len", "precision", "imatrix"];
    for field in node.fields().unwrap_or_default() {
        check_known(field, "of calibration", &known)?;
    }
    let calibration: Calibration =
        serde_path_to_error::deserialize(node.to_json()).map_err(|e| {
            let place = node.place_of(&e.path().to_string());
            RecipeError::new(place, format!("calibration.{}: {}", e.path(), e.inner()))
        })?;
    for (key, value) in [("samples", calibration.samples), ("seq_len", calibration.seq_len)] {
        if !(1..=1 << 24).contains(&value) {
            let what = format!("calibration.{key} is {value}, which is not from 1 to {}", 1 << 24);
            return Err(RecipeError::new(node.place_of(key), what));
        }
    }
    Ok(calibration)
}

fn format(document: &Node, steps: &[Step]) -> Result<String, RecipeError> {
    // What is only cut stays a plain model.
    let is_cut = |step: &Step| matches!(step.build(), Ok(Method::Structural(_)));
    let default = if steps.iter().all(is_cut) { "dense" } else { DEFAULT_FORMAT };
    let format = text_of(document, "format")?.unwrap_or_else(|| default.to_owned());
    if lapidary_formats::find(&format).is_some() {
        return Ok(format);
    }
    let known: Vec<&str> = lapidary_formats::formats().iter().map(|format| format.id()).collect();
    let what = format!("there is no format {format:?}; known are {}", known.join(", "));
    Err(RecipeError::new(document.place_of("format"), what))
}

/// Steps of equal names become `gptq`, `gptq-2`, …
fn number_equal_names(steps: &mut [Step]) {
    for index in 1..steps.len() {
        let name = steps[index].name.clone();
        let before = steps[..index].iter().filter(|step| step.name == name).count();
        if before > 0 {
            steps[index].name = format!("{name}-{}", before + 1);
        }
    }
}

/// Refuses a key that is not among the known ones.
pub(crate) fn check_known(field: &Field, of: &str, known: &[&str]) -> Result<(), RecipeError> {
    if known.contains(&field.key.as_str()) {
        return Ok(());
    }
    let near = nearest(&field.key, known)
        .map_or_else(|| ";".to_owned(), |near| format!("; did you mean {near}?"));
    let what = format!("unknown key {:?} {of}{near} known keys: {}", field.key, known.join(", "));
    Err(RecipeError::new(field.place, what))
}

/// The most similar of some words, when it is similar at all.
pub(crate) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let normal = |text: &str| text.to_lowercase().replace('-', "_");
    let distance = |other: &str| edit_distance(&normal(word), &normal(other));
    let best = known.iter().copied().min_by_key(|other| distance(other))?;
    (distance(best) <= 1 + best.len() / 4).then_some(best)
}

/// Levenshtein's distance.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let change = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests;
