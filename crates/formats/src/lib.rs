//! Terms to named tensors and back, one file per format; and [`Source`], a checkpoint of any format
//! seen under its Hugging Face names.
//!
//! A format says which sums of terms it can store and how; it knows no method.

mod awq;
mod bitnet;
mod bitsandbytes;
mod compressed_tensors;
mod container;
mod dense;
mod folder;
mod fp8;
pub mod gguf;
mod gptq;
mod hqq;
mod mlx;
mod modelopt;
mod native;
mod pattern;
mod source;

pub use container::{Container, Kept, Settled, WeightFiles};
pub use pattern::{ModuleKind, Pattern, PatternError};
pub use source::{Blocks, LogicalTensor, Selected, Source, SourceFile};

use lapidary_store::{Category, Dtype, StoreError, TensorSpec};
use lapidary_weight::{FloatType, InputRounding, Outline, Weight, WeightError};
use serde_json::Value;

/// A way to store the weights of linear layers and tables.
pub trait Format: Sync {
    /// Name in recipes and on the command line.
    fn id(&self) -> &'static str;

    /// Who can load it, for listings.
    fn loaders(&self) -> &'static str;

    /// Type that scales are stored in, for a model whose floats are of type `model`.
    fn scale_type(&self, model: FloatType) -> FloatType;

    /// Whether a weight of this outline can be stored.
    ///
    /// # Errors
    /// The reason why not, as it is shown to the user.
    fn accepts(&self, outline: &Outline) -> Result<(), String>;

    /// Whether an embedding table of this outline can be stored: by default what a layer can.
    ///
    /// # Errors
    /// The reason why not, as it is shown to the user.
    fn accepts_table(&self, outline: &Outline) -> Result<(), String> {
        self.accepts(outline)
    }

    /// Whether these layers, each of which can be stored, can stand in one folder: by default they can.
    ///
    /// # Errors
    /// The reason why not, as it is shown to the user.
    fn accepts_together(&self, _layout: &Layout<'_>) -> Result<(), String> {
        Ok(())
    }

    /// The format in which a layer of this folder stands whose inputs are rounded when the model is
    /// run: this one, or one of its kin.
    ///
    /// # Errors
    /// The reason why there is none, as it is shown to the user; by default, that a format says
    /// nothing of inputs.
    fn with_inputs(
        &self,
        _outline: &Outline,
        _inputs: InputRounding,
    ) -> Result<&'static dyn Format, String> {
        Err("it has no place for how the inputs of a layer are rounded".to_owned())
    }

    /// The tensors that a weight of this outline becomes, in the order [`encode`](Self::encode)
    /// gives their bytes. `dtype` is the type of the model's floats.
    fn tensors(&self, module: &str, outline: &Outline, dtype: FloatType) -> Vec<TensorSpec>;

    /// The bytes of each tensor.
    ///
    /// # Errors
    /// When the weight is not of a kind that the format accepts.
    fn encode(&self, weight: &Weight, dtype: FloatType) -> Result<Vec<Vec<u8>>, FormatError>;

    /// The weight of this outline from its tensors: what [`encode`](Self::encode) stored.
    ///
    /// # Errors
    /// When a tensor cannot be read, or holds what the outline does not allow.
    fn decode(
        &self,
        module: &str,
        outline: &Outline,
        dtype: FloatType,
        read: ReadTensor<'_>,
    ) -> Result<Weight, FormatError>;

    /// What `config.json` says of the layers; `None` for plain checkpoints.
    fn config(&self, layout: &Layout<'_>) -> Option<Value>;

    /// The keys of `config.json` that [`config`](Self::config) goes under.
    fn config_keys(&self) -> &'static [&'static str] {
        &QUANTIZATION_KEYS[..1]
    }

    /// A file of its own that holds it too.
    fn config_file(&self) -> Option<&'static str> {
        None
    }

    /// A reader for a folder with this configuration, when it is of this format.
    ///
    /// # Errors
    /// When it is of this format but not of a kind that can be read.
    fn reader(&self, config: &Value) -> Option<Result<Box<dyn Reader>, FormatError>>;

    /// The files that a result made from this source is written in: by default a folder of
    /// safetensors with the source's other files.
    ///
    /// # Errors
    /// When the format has no place for the model.
    fn container(&self, _source: &Source) -> Result<Box<dyn Container>, FormatError> {
        Ok(Box::new(container::Folder))
    }
}

/// Finds the bytes of a tensor by its name.
pub type ReadTensor<'a> = &'a dyn Fn(&str) -> Result<Vec<u8>, FormatError>;

/// Which linear layers are stored how.
#[derive(Debug, Clone, Copy)]
pub struct Layout<'a> {
    /// Modules with compressed weights.
    pub compressed: &'a [(String, Outline)],
    /// Linear modules left as they were.
    pub plain: &'a [String],
    /// How the inputs of compressed modules are rounded when the model is run; those that are not
    /// named stay as they are.
    pub inputs: &'a [(String, InputRounding)],
}

/// Reads the weights of one compressed folder.
pub trait Reader: std::fmt::Debug + Send + Sync {
    /// The modules with compressed weights among the folder's tensors, with their outlines and the
    /// names of the tensors each is made of.
    ///
    /// # Errors
    /// When the tensors contradict the configuration or each other.
    fn modules(&self, tensors: &dyn TensorIndex) -> Result<Vec<Module>, FormatError>;

    /// The weight of a module.
    ///
    /// # Errors
    /// When its tensors hold what the format does not allow.
    fn decode(&self, module: &Module, read: ReadTensor<'_>) -> Result<Weight, FormatError>;

    /// What the folder holds or says that is not made use of, with the reason: for one, how
    /// activations are rounded.
    fn unused(&self, _tensors: &dyn TensorIndex) -> Vec<(String, String)> {
        vec![]
    }
}

/// A compressed linear layer in a folder.
#[derive(Debug, Clone, PartialEq)]
pub struct Module {
    /// Its name.
    pub name: String,
    /// What its weight is made of.
    pub outline: Outline,
    /// The tensors it is stored in.
    pub tensors: Vec<String>,
    /// Type that its scales are stored in, where the outline does not say: it is of what is read.
    pub floats: Option<FloatType>,
    /// How its inputs are rounded when the model is run.
    pub inputs: Option<InputRounding>,
    /// What was not read as it is stored, and why.
    pub note: Option<String>,
}

impl Layout<'_> {
    /// How the inputs of a module are rounded.
    pub fn inputs_of(&self, module: &str) -> Option<InputRounding> {
        let found = self.inputs.iter().find(|(name, _)| name == module);
        found.map(|(_, rounding)| *rounding)
    }
}

impl Module {
    /// A module that is read as it is stored.
    pub fn new(name: &str, outline: Outline, tensors: impl IntoIterator<Item = String>) -> Self {
        let tensors = tensors.into_iter().collect();
        Self { name: name.to_owned(), outline, tensors, floats: None, inputs: None, note: None }
    }
}

/// The tensors of a folder: names, types and shapes.
pub trait TensorIndex {
    /// Type and shape of a tensor.
    fn spec(&self, name: &str) -> Option<(Dtype, Vec<usize>)>;
    /// All names, in the order of the files.
    fn names(&self) -> Vec<String>;
    /// The bytes of a tensor.
    ///
    /// # Errors
    /// When there is none of this name, or it cannot be read.
    fn read(&self, name: &str) -> Result<Vec<u8>, FormatError>;
}

/// Keys of `config.json` under which formats describe the layers.
pub const QUANTIZATION_KEYS: [&str; 2] = ["quantization_config", "quantization"];

/// Files in which formats describe the layers, with the method that each stands for.
const QUANTIZATION_FILES: [(&str, &str); 3] =
    [("quantize_config.json", "gptq"), ("quant_config.json", "awq"), (modelopt::FILE, "modelopt")];

/// Every format that can be written.
pub fn formats() -> &'static [&'static dyn Format] {
    &[
        &compressed_tensors::CompressedTensors::Packed,
        &compressed_tensors::CompressedTensors::Bytes,
        &gptq::Gptq::V1,
        &gptq::Gptq::V2,
        &awq::Awq,
        &mlx::Mlx,
        &bitsandbytes::Bitsandbytes::Nf4,
        &bitsandbytes::Bitsandbytes::Fp4,
        &bitnet::BitNet,
        &hqq::Hqq,
        &gguf::format::Gguf,
        &dense::Dense,
        &native::Native,
    ]
}

/// The format of this name.
pub fn find(id: &str) -> Option<&'static dyn Format> {
    formats().iter().copied().find(|format| format.id() == id)
}

/// Why a checkpoint could not be read or a weight not be stored.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The bytes or files.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The terms of a weight do not fit each other.
    #[error("{module}: {error}")]
    Weight {
        /// The module.
        module: String,
        /// What is wrong.
        error: WeightError,
    },
    /// A weight that this format cannot hold reached it.
    #[error("format {format} cannot hold {outline}")]
    Unsupported {
        /// The format.
        format: &'static str,
        /// The weight.
        outline: String,
    },
    /// A model that this format has no place for.
    #[error("{model}: format {format} cannot hold it: {what}")]
    Inexpressible {
        /// The format.
        format: &'static str,
        /// The model.
        model: String,
        /// What has no place, and what to do.
        what: String,
    },
    /// The configuration of a compressed folder, or its tensors, are not as the format says.
    #[error("{place}: {what}")]
    Malformed {
        /// Where: a key of `config.json`, or a tensor.
        place: String,
        /// What is wrong.
        what: String,
    },
    /// A value that is NaN or infinite.
    #[error(
        "tensor {tensor}: {count} of its values are not finite, the first at element {first}; the \
         file is damaged, or the model was saved after it diverged"
    )]
    NotFinite {
        /// The tensor.
        tensor: String,
        /// How many.
        count: usize,
        /// The first.
        first: usize,
    },
}

impl FormatError {
    /// What kind of trouble it is, for exit codes.
    pub fn category(&self) -> Category {
        match self {
            Self::Store(error) => error.category(),
            Self::Weight { .. } | Self::Malformed { .. } | Self::NotFinite { .. } => {
                Category::BadInput
            }
            Self::Unsupported { .. } | Self::Inexpressible { .. } => Category::Refused,
        }
    }

    pub(crate) fn malformed(place: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Malformed { place: place.into(), what: what.into() }
    }
}

/// The storage type of floats as a safetensors type.
pub fn float_dtype(float: FloatType) -> Dtype {
    match float {
        FloatType::F32 => Dtype::F32,
        FloatType::F16 => Dtype::F16,
        FloatType::Bf16 => Dtype::BF16,
    }
}
