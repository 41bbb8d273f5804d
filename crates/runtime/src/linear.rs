//! The weight of a linear layer or table, packed for its products.

use crate::RuntimeError;
use lapidary_formats::Source;
use lapidary_kernels::packed::{self, Packed, Precision};

/// Packs a matrix of a checkpoint as it is stored.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn pack(
    source: &Source,
    tensor: &str,
    precision: Precision,
) -> Result<Packed, RuntimeError> {
    let weight = source.weight(tensor)?;
    let row = |row: usize, out: &mut [f32]| weight.add_row(row, out);
    Packed::new(weight.rows(), weight.cols(), precision, &[packed::Source::Rows(&row)])
        .map_err(|error| RuntimeError::Pack { tensor: tensor.to_owned(), error })
}
