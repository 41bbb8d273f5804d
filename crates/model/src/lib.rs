//! A model is a value: [`Spec`], the queries on its graphs, and one executor that runs any of them.
//!
//! A family file turns `config.json` into a [`Spec`]; it holds no arithmetic. Everything a method
//! or the engine wants to know of a model (which linears share an input, which norm can absorb a
//! scale) is a query on the graphs, never a table per family.

mod by_shape;
mod config;
pub mod cut;
mod exec;
mod families;
pub mod gradient;
mod graph;
mod query;
mod rope;
mod spec;

pub use by_shape::{UNKNOWN, by_shape};
pub use config::Config;
pub use exec::{
    Backend, Batch, Composed, Executor, Fused, GraphWeights, OnInput, OnTap, Operand, RotaryTables,
    Tap, Tokens,
};
pub use families::{families, spec};
pub use graph::{Graph, GraphBuilder, Node, Value};
pub use lapidary_kernels::matrix::Precision;
pub use query::{Absorber, InputGroup, Matrix, Place};
pub use spec::{
    Activation, AttentionOp, LinearOp, Op, RopeOp, RopeScaling, RouteOp, SliceOp, Spec, Table,
};

use lapidary_weight::TensorError;

/// What can go wrong between a configuration and its logits.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A field of `config.json` is missing, of the wrong type, or out of range.
    #[error("config.json: {key}: {what}")]
    Config {
        /// The field.
        key: String,
        /// What is wrong with it.
        what: String,
    },
    /// No family knows this architecture.
    #[error(
        "config.json: model_type {model_type:?} (architectures {architectures:?}) is not supported; \
         known are {known}; fields that no family reads: {fields}"
    )]
    UnknownArchitecture {
        /// The `model_type` found.
        model_type: String,
        /// The `architectures` found.
        architectures: Vec<String>,
        /// The model types that families know.
        known: String,
        /// The fields of the configuration that no family reads.
        fields: String,
    },
    /// A tensor does not have the shape that the configuration asks for.
    #[error("tensor {name}: shape {have:?} where config.json asks for {need:?}")]
    Shape {
        /// The tensor.
        name: String,
        /// Shape in the checkpoint.
        have: Vec<usize>,
        /// Shape from the configuration.
        need: Vec<usize>,
    },
    /// A tensor that the model needs is not in the checkpoint.
    #[error(
        "tensor {name} is not in the checkpoint, though config.json asks for it; \
         is a shard missing, or the configuration of another model?"
    )]
    MissingTensor {
        /// The tensor.
        name: String,
    },
    /// A token is outside the vocabulary.
    #[error(
        "token {token} is not in the vocabulary of {vocab_size}; is this the model's tokenizer?"
    )]
    Token {
        /// The token.
        token: u32,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// A tensor could not be read.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// A row is longer than the model's context.
    #[error("rows of {tokens} tokens are longer than the model's context of {context}")]
    TooLong {
        /// Tokens of a row.
        tokens: usize,
        /// The most there may be.
        context: usize,
    },
    /// A cut that leaves no model of the family.
    #[error("{0}")]
    Cut(String),
    /// A graph that does not hold together: a defect of a family.
    #[error("graph: {0}")]
    Graph(String),
    /// Gradients of something that has none.
    #[error("gradient: {0}")]
    Gradient(String),
    /// The tensor library refused an operation.
    #[error("tensor arithmetic: {0}")]
    Arithmetic(#[from] candle_core::Error),
}
