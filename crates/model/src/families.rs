//! The families, one file each: from `config.json` to a [`Spec`], with no arithmetic.

mod decoder;
mod encoder;
mod fields;
mod unread;

use crate::{Config, ModelError, Spec};

/// A family: the model types it knows, and how it reads their configuration.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    /// Name of the file, and of the family in reports.
    pub id: &'static str,
    /// Values of `model_type` in `config.json`.
    pub model_types: &'static [&'static str],
    /// Configuration to value.
    build: fn(&Config<'_>) -> Result<Spec, ModelError>,
}

macro_rules! families {
    ($($family:ident),* $(,)?) => {
        $(mod $family;)*
        /// Every family there is.
        pub fn families() -> &'static [Family] {
            &[$(Family {
                id: stringify!($family),
                model_types: $family::MODEL_TYPES,
                build: $family::spec,
            }),*]
        }
    };
}

families! {
    albert,
    bert,
    distilbert,
    gemma2,
    gemma3,
    gpt2,
    gpt_neox,
    granite,
    llama,
    mistral,
    mixtral,
    olmo2,
    opt,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    roberta,
    smollm3,
    stablelm,
    starcoder2,
}

/// The [`Spec`] of a parsed `config.json`.
///
/// # Errors
/// When no family knows the model type, a field is missing or out of range, or one that the family
/// does not look at changes what the model computes.
pub fn spec(config: &serde_json::Value) -> Result<Spec, ModelError> {
    let config = Config::new(config);
    let model_type = config.text("model_type").unwrap_or_default();
    match families().iter().find(|family| family.model_types.contains(&model_type)) {
        Some(family) => {
            let spec = (family.build)(&config)?;
            unread::check(&config, family.id)?;
            Ok(spec)
        }
        None => Err(ModelError::UnknownArchitecture {
            model_type: model_type.to_owned(),
            architectures: config.architectures(),
            fields: unread::unknown(&config),
            known: families()
                .iter()
                .flat_map(|f| f.model_types)
                .copied()
                .collect::<Vec<_>>()
                .join(", "),
        }),
    }
}
