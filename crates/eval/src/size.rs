//! Bits per weight of the linear layers, counted over everything that is stored for them.

use lapidary_formats::{LogicalTensor, Source};
use lapidary_model::Spec;

/// Sizes of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Size {
    /// Bytes of the weight files.
    pub bytes: u64,
    /// Numbers in all tensors.
    pub parameters: u64,
    /// Weights of the linear layers in the blocks.
    pub linear_weights: u64,
    /// Bits stored for each of them: codes, scales, zeros, indices.
    pub bits_per_weight: f64,
    /// Bits stored for each number of the embedding (and a head of its own).
    pub embedding_bits_per_weight: f64,
}

/// The sizes of a checkpoint.
pub fn size(source: &Source, spec: &Spec) -> Size {
    let (mut weights, mut bits) = (0_u64, 0);
    for linear in spec.blocks.iter().flat_map(lapidary_model::Graph::linears) {
        if let Some(tensor) = source.get(&linear.weight) {
            weights += elements(tensor);
            bits += stored_bits(source, tensor);
        }
    }
    let tables = spec.embed.tensors().into_iter().chain(spec.head.iter().flat_map(|h| h.tensors()));
    let tables: std::collections::BTreeMap<_, _> =
        tables.filter(|(_, shape)| shape.len() == 2).collect();
    let (mut table_numbers, mut table_bits) = (0_u64, 0);
    for tensor in tables.keys().filter_map(|name| source.get(name)) {
        table_numbers += elements(tensor);
        table_bits += stored_bits(source, tensor);
    }
    Size {
        bytes: source.total_bytes(),
        parameters: source.tensors().iter().map(elements).sum(),
        linear_weights: weights,
        bits_per_weight: bits as f64 / weights.max(1) as f64,
        embedding_bits_per_weight: table_bits as f64 / table_numbers.max(1) as f64,
    }
}

fn elements(tensor: &LogicalTensor) -> u64 {
    tensor.shape.iter().map(|size| *size as u64).product()
}

/// Bits of everything that is stored for a tensor.
fn stored_bits(source: &Source, tensor: &LogicalTensor) -> u64 {
    8 * source.stored_bytes(tensor)
}
