//! PyTorch's `pytorch_model.bin` and `.pth`: a zip archive of a pickle and the storages it speaks of.
//!
//! A pickle is a program. This one is not run: a small machine knows the operations that `torch.save`
//! of a state dict uses, and the few names it may ask for; anything else is refused. What comes out is
//! where in the file the bytes of each tensor are. Files of before PyTorch 1.6 are no archives and are
//! refused.

mod archive;
mod pickle;
mod state_dict;

use crate::error::Result;
use crate::fs::ReadAt;
use crate::tensor::TensorInfo;

/// The name of the file if there is only one.
pub const SINGLE_NAME: &str = "pytorch_model.bin";

/// The name of the index beside several shards.
pub const INDEX_NAME: &str = "pytorch_model.bin.index.json";

/// Reads where the tensors of a file are, in the order of the state dict.
///
/// # Errors
/// When the file cannot be read, is no archive of `torch.save`, or its pickle does what saving a state
/// dict does not.
pub fn read_header(file: &dyn ReadAt) -> Result<Vec<TensorInfo>> {
    let archive = archive::Archive::open(file)?;
    let bytes = archive.read_pickle(file)?;
    let value = pickle::run(file.path(), &bytes)?;
    state_dict::tensors(file.path(), &archive, &value)
}
