//! The families, one file each: from `config.json` to a [`Spec`], with no arithmetic.

mod decoder;

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
    bert,
    llama,
    mistral,
    qwen2,
    qwen3,
}

/// The [`Spec`] of a parsed `config.json`.
///
/// # Errors
/// When no family knows the model type, or a field is missing or out of range.
pub fn spec(config: &serde_json::Value) -> Result<Spec, ModelError> {
    let config = Config::new(config);
    let model_type = config.text("model_type").unwrap_or_default();
    match families().iter().find(|family| family.model_types.contains(&model_type)) {
        Some(family) => (family.build)(&config),
        None => Err(ModelError::UnknownArchitecture {
            model_type: model_type.to_owned(),
            architectures: config.architectures(),
            known: families()
                .iter()
                .flat_map(|f| f.model_types)
                .copied()
                .collect::<Vec<_>>()
                .join(", "),
        }),
    }
}
