//! The recipes in the binary, under the names that users of other tools know.

use super::RecipeError;
use super::document::Node;
use super::{Recipe, nearest, parse_document};
use serde_json::json;

/// A recipe in the binary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preset {
    /// Its name.
    pub name: String,
    text: &'static str,
    symmetric: bool,
}

macro_rules! recipes {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../../../recipes/", $name, ".yaml")))),*]
    };
}

/// The files of `recipes/`.
const RECIPES: &[(&str, &str)] = recipes![
    "W8A16-gptq",
    "W8A16-rtn",
    "W4A16-gptq",
    "W4A16-rtn",
    "W3A16-gptq",
    "W3A16-rtn",
    "W2A16-gptq",
    "W2A16-rtn",
];

/// Files of `recipes/` that settle their grid themselves, under their own names: integers on both
/// sides, floats, then the best there are.
const OWN: &[(&str, &str)] = recipes![
    "W8A8",
    "W4A8",
    "FP8",
    "FP8_DYNAMIC",
    "FP8_BLOCK",
    "MXFP8A16",
    "NVFP4A16",
    "MXFP4A16",
    "best-4bit",
    "best-3bit",
    "best-2bit",
    "best-4bit-vllm",
    "best-4bit-vllm-rotated",
    "sparse-50",
    "sparse-2-4",
    "sparse-50-W4A16",
];

/// Files of `recipes/` for llama.cpp, under the names of its own types.
const GGUF: &[(&str, &str)] =
    recipes!["Q4_0", "Q8_0", "Q2_K", "Q3_K_M", "IQ4_XS", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K",];

/// All presets: those of a scheme of integers, each with its variants, those for llama.cpp, then the
/// others.
pub fn presets() -> Vec<Preset> {
    let own = GGUF.iter().chain(OWN);
    let own = own.map(|(name, text)| Preset { name: (*name).to_owned(), text, symmetric: true });
    schemes().into_iter().chain(own).collect()
}

/// Each recipe of a scheme, the same with zero points (`W4A16_ASYM-gptq`), and the first of each
/// scheme under the scheme's bare name (`W4A16`, `W4A16_ASYM`).
fn schemes() -> Vec<Preset> {
    let mut presets: Vec<Preset> = vec![];
    for (name, text) in RECIPES {
        let (scheme, method) = name.split_once('-').unwrap_or((name, ""));
        for (scheme, symmetric) in [(scheme.to_owned(), true), (format!("{scheme}_ASYM"), false)] {
            if presets.iter().all(|preset| preset.name != scheme) {
                presets.push(Preset { name: scheme.clone(), text, symmetric });
            }
            presets.push(Preset { name: format!("{scheme}-{method}"), text, symmetric });
        }
    }
    presets
}

/// The preset of this name, in any case.
///
/// # Errors
/// When there is none; the error names the most similar.
pub fn preset(name: &str) -> Result<Preset, RecipeError> {
    let presets = presets();
    let found = presets.iter().find(|preset| preset.name.eq_ignore_ascii_case(name));
    found.cloned().ok_or_else(|| {
        let names: Vec<&str> = presets.iter().map(|preset| preset.name.as_str()).collect();
        let near =
            nearest(name, &names).map_or_else(String::new, |n| format!("; did you mean {n}?"));
        let what =
            format!("there is no preset or file {name:?}{near} (`lapidary presets` lists them)");
        RecipeError::new(super::Place::default(), what)
    })
}

impl Preset {
    /// As it stands in `recipes/`.
    pub fn text(&self) -> &'static str {
        self.text
    }

    /// What it is for: the comment at its head.
    pub fn summary(&self) -> String {
        let first = self.text.lines().next().unwrap_or_default();
        let summary = first.trim_start_matches(['#', ' ']).to_owned();
        if self.symmetric { summary } else { format!("{summary}, with zero points") }
    }

    /// Its document, for overrides.
    ///
    /// # Errors
    /// Never: a test reads every preset.
    pub fn document(&self) -> Result<Node, RecipeError> {
        let mut document = parse_document(self.text)?;
        if !self.symmetric {
            let overrides = super::Overrides {
                set: vec!["*.symmetric=false".to_owned()],
                ..Default::default()
            };
            overrides.apply(&mut document)?;
        }
        Ok(document)
    }

    /// The recipe as YAML.
    ///
    /// # Errors
    /// Never: a test reads every preset.
    pub fn recipe(&self) -> Result<Recipe, RecipeError> {
        Recipe::from_document(&self.document()?)
    }

    /// As a JSON listing.
    ///
    /// # Errors
    /// Never: a test reads every preset.
    pub fn to_json(&self) -> Result<serde_json::Value, RecipeError> {
        Ok(
            json!({ "name": self.name, "summary": self.summary(), "recipe": self.recipe()?.to_json() }),
        )
    }
}
