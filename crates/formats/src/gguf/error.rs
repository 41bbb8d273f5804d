//! What can be wrong with the content of a GGUF file.

use lapidary_store::Dtype;

/// Why a GGUF file could not be read as a model. The file is named by the caller.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// A metadata key that is needed is not there.
    #[error("the metadata has no `{key}`; convert the model to GGUF again with a newer llama.cpp")]
    MissingKey {
        /// The key.
        key: String,
    },
    /// A metadata value has another type than its key should have.
    #[error("metadata `{key}` is not {expected}")]
    WrongType {
        /// The key.
        key: String,
        /// The type it should have.
        expected: &'static str,
    },
    /// A metadata value has the right type but cannot be right.
    #[error("metadata `{key}`: {problem}")]
    BadValue {
        /// The key.
        key: String,
        /// What is wrong with the value.
        problem: String,
    },
    /// A tensor that every model of the architecture has is not there.
    #[error("the file has no tensor `{name}`; is it complete, and the first of its parts?")]
    MissingTensor {
        /// The tensor, by its GGUF name.
        name: String,
    },
    /// A tensor does not have the shape that the metadata imply.
    #[error("tensor `{name}` has shape {shape:?}, expected {expected}")]
    BadShape {
        /// The tensor, by its GGUF name.
        name: String,
        /// Its shape, outermost dimension first.
        shape: Vec<usize>,
        /// What was expected, and why.
        expected: String,
    },
    /// A tensor that models of the architecture do not have.
    #[error("tensor `{name}` is unknown for architecture `{architecture}`")]
    UnknownTensor {
        /// The tensor, by its GGUF name.
        name: String,
        /// The architecture, as GGUF spells it.
        architecture: &'static str,
    },
    /// An architecture that is not supported.
    #[error("architecture `{name}` is not supported; {known} are")]
    UnknownArchitecture {
        /// Its name.
        name: String,
        /// Those that are supported.
        known: String,
    },
    /// A kind of tokenizer that is not supported.
    #[error("tokenizer model `{0}` is not supported; gpt2, llama and bert are")]
    UnknownTokenizer(String),
    /// A byte-pair tokenizer whose rules for splitting text are not known. Guessing them would give
    /// other tokens than the model was trained on.
    #[error(
        "pre-tokenizer `{0}` is not known; use the original Hugging Face folder, or put its \
         tokenizer.json beside the file"
    )]
    UnknownPreTokenizer(String),
    /// A feature of the model that cannot be expressed for its architecture.
    #[error("{feature} is not supported for architecture `{architecture}`")]
    Unsupported {
        /// What the model has.
        feature: String,
        /// The architecture, as GGUF spells it.
        architecture: &'static str,
    },
    /// Experts of a layer, which one tensor holds, were encoded each in another way.
    #[error(
        "the experts in `{name}` must be alike, but {first} and {other}; give all experts the same \
         grid"
    )]
    Experts {
        /// The tensor that holds them, by its GGUF name.
        name: String,
        /// What the first is.
        first: String,
        /// What another is.
        other: String,
    },
    /// What a file of a Hugging Face folder says has no place in GGUF, or cannot be right.
    #[error("{file}: {problem}")]
    Folder {
        /// The file, and the key in it.
        file: String,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A tensor type that cannot be decoded.
    #[error("tensors of type {0} cannot be decoded; use a file quantized to another type")]
    UnsupportedType(Dtype),
    /// The bytes of a tensor do not fit its type and number of values.
    #[error(transparent)]
    Dequantize(#[from] lapidary_kernels::ggml::DequantizeError),
}

impl GgufError {
    pub(super) fn folder(file: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Folder { file: file.into(), problem: problem.into() }
    }
}
