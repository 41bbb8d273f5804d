//! What a GGUF file says, in the words of a Hugging Face folder, and the other way round.
//!
//! A GGUF file holds in its metadata what such a folder keeps in `config.json` and the tokenizer's
//! files, and names and arranges its tensors as llama.cpp does. The functions here are pure: they
//! take the metadata and tensor descriptions that the store has read, and give
//!
//! * [`Names`]: the Hugging Face name of every tensor, and what is to be done to its rows;
//! * [`dequantize`]: the values of a tensor of any type;
//! * [`config`], [`generation_config`], [`tokenizer_files`], or all of them, [`folder_files`].
//!
//! The way into a file is [`format`]: metadata from `config.json` and the tokenizer's files, names
//! and rows as llama.cpp has them, terms as [`blocks`].
//!
//! Sources of the facts: the GGUF specification, llama.cpp's converter (which this inverts), and
//! the `config.json` and `tokenizer.json` of the models concerned.

mod architecture;
pub(crate) mod blocks;
mod config;
mod error;
pub(crate) mod format;
mod importance;
mod keys;
mod metadata;
mod mixture;
mod names;
mod parts;
mod rope;
mod tokenizer;
mod values;

use lapidary_store::TensorInfo;
use lapidary_store::gguf::Metadata;
use serde_json::Value;

pub use architecture::Architecture;
pub use config::{config, generation_config};
pub use error::GgufError;
pub use importance::{Importance, Inputs};
pub use names::{Change, Destination, Names, RowOrder};
pub use rope::RopeFactors;
pub use tokenizer::{TokenizerFiles, tokenizer_files};
pub use values::{block_kind, dequantize};

/// The JSON files that a Hugging Face folder of this model has beside its weights: names and
/// contents, in the order to be written. See [`config`] for the parameters.
///
/// # Errors
/// When a key is missing or wrong, or the model is of a kind that is not supported.
pub fn folder_files(
    metadata: &Metadata,
    tensors: &[TensorInfo],
    rope_factors: &RopeFactors,
    dtype: &str,
) -> Result<Vec<(&'static str, Value)>, GgufError> {
    let mut files = vec![("config.json", config(metadata, tensors, rope_factors, dtype)?)];
    if let Some(generation) = generation_config(metadata)? {
        files.push(("generation_config.json", generation));
    }
    let TokenizerFiles { tokenizer, tokenizer_config, special_tokens_map } =
        tokenizer_files(metadata)?;
    files.push(("tokenizer.json", tokenizer));
    files.push(("tokenizer_config.json", tokenizer_config));
    files.push(("special_tokens_map.json", special_tokens_map));
    Ok(files)
}
