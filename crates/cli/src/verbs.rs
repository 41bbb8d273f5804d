//! The verbs.

pub(crate) mod bench;
pub(crate) mod compress;
pub(crate) mod convert;
pub(crate) mod demo;
pub(crate) mod eval;
pub(crate) mod imatrix;
pub(crate) mod inspect;
pub(crate) mod methods;
pub(crate) mod plan;
pub(crate) mod presets;
pub(crate) mod run;
pub(crate) mod serve;
pub(crate) mod verify;

use crate::arguments::RecipeArguments;
use crate::error::CliError;
use lapidary_engine::recipe::{Node, Recipe, RecipeError, preset};
use lapidary_formats::Source;
use lapidary_store::fs::read_text;
use lapidary_store::{Environment, Fs, RealFs, resolve};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The disk.
pub(crate) fn disk() -> Arc<dyn Fs> {
    Arc::new(RealFs)
}

/// Where a model argument leads, honouring the Hugging Face cache and its variables.
pub(crate) fn locate(fs: &dyn Fs, model: &str) -> Result<PathBuf, CliError> {
    let environment = Environment::from_variables(|name| std::env::var_os(name));
    Ok(resolve(fs, model, &environment)?)
}

/// Opens a model argument.
pub(crate) fn open(fs: &Arc<dyn Fs>, model: &str) -> Result<Source, CliError> {
    let path = locate(&**fs, model)?;
    Ok(Source::open(Arc::clone(fs), &path)?)
}

/// The text of a chat template that is to be used in place of the model's.
pub(crate) fn chat_template(file: &Option<PathBuf>) -> Result<Option<String>, CliError> {
    let read = |path: &PathBuf| read_text(&*disk(), path, "the chat template", 1 << 20);
    Ok(file.as_ref().map(read).transpose()?)
}

/// The name a model card gives a model: `org/name` as it was asked for, else the folder's or
/// file's own name.
pub(crate) fn base_model(model: &str, path: &Path) -> String {
    let is_local = path.components().any(|part| part.as_os_str() == "snapshots");
    if is_local && model.matches('/').count() == 1 && !Path::new(model).exists() {
        return model.split('@').next().unwrap_or(model).to_owned();
    }
    // `.` and `..` have no name of their own.
    let whole = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let path = if path.file_name().is_some() { path } else { &whole };
    let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
    name.map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// A recipe of methods with their defaults, joined by `+`, on all linear layers.
fn methods_on_all(chain: &str) -> Node {
    let steps: Vec<_> = chain.split('+').map(|method| json!({ "method": method })).collect();
    Node::given(json!({ "steps": steps }))
}

/// The recipe that the arguments ask for: a file or a preset, with its overrides.
pub(crate) fn recipe(fs: &dyn Fs, arguments: &RecipeArguments) -> Result<Recipe, CliError> {
    let name = &arguments.recipe;
    let in_recipe = |error: RecipeError| CliError::Recipe { file: name.clone(), error };
    if let Some(chain) = &arguments.method {
        let in_chain = |error| CliError::Recipe { file: format!("--method {chain}"), error };
        let mut document = methods_on_all(chain);
        arguments.overrides().apply(&mut document).map_err(in_chain)?;
        return Recipe::from_document(&document).map_err(in_chain);
    }
    let path = Path::new(name);
    let is_file = path.extension().is_some_and(|e| ["yaml", "yml", "json"].iter().any(|x| e == *x));
    let mut document = if is_file || fs.metadata(path).is_ok() {
        let text = read_text(fs, path, "the recipe", 1 << 20)?;
        Node::parse(&text).map_err(|(place, what)| in_recipe(RecipeError { place, what }))?
    } else {
        preset(name).and_then(|preset| preset.document()).map_err(in_recipe)?
    };
    arguments.overrides().apply(&mut document).map_err(in_recipe)?;
    Recipe::from_document(&document).map_err(in_recipe)
}
