//! How a compressed folder is read: which format it is of, and its tensors as that wants to see them.

use crate::{
    Format, FormatError, QUANTIZATION_FILES, QUANTIZATION_KEYS, Reader, TensorIndex, formats, fp8,
    modelopt,
};
use lapidary_store::{Checkpoint, Dtype};
use serde_json::Value;

/// A format's name, and its reader of a folder.
type Found = (&'static str, Box<dyn Reader>);

/// The reader of a compressed folder; `None` when it is plain.
pub(super) fn reader(
    checkpoint: &Checkpoint,
    config: &Value,
) -> Result<Option<Found>, FormatError> {
    let quantization = match QUANTIZATION_KEYS.iter().find_map(|key| config.get(key)) {
        Some(quantization) if quantization.is_object() => quantization.clone(),
        _ => match quantization_file(checkpoint)? {
            Some(quantization) => quantization,
            None => return Ok(None),
        },
    };
    let reader = |format: &&dyn Format| Some((format.id(), format.reader(&quantization)?));
    let found = formats().iter().find_map(reader);
    let found = found.or_else(|| Some(("fp8", fp8::reader(&quantization)?)));
    match found.or_else(|| Some(("modelopt", modelopt::reader(&quantization)?))) {
        Some((format, reader)) => Ok(Some((format, reader?))),
        None => {
            let method = quantization.get("quant_method").and_then(Value::as_str).unwrap_or("?");
            let what = format!(
                "weights quantized by {method:?} cannot be read yet; compress from the unquantized model"
            );
            Err(FormatError::malformed("config.json: quantization_config", what))
        }
    }
}

/// What a file of its own says of the layers, with the method that it stands for where it names none.
fn quantization_file(checkpoint: &Checkpoint) -> Result<Option<Value>, FormatError> {
    let is_there = |name: &str| checkpoint.auxiliary().iter().any(|file| file.name == name);
    let Some((name, method)) = QUANTIZATION_FILES.into_iter().find(|(name, _)| is_there(name))
    else {
        return Ok(None);
    };
    let mut value: Value = serde_json::from_slice(&checkpoint.read_auxiliary(name)?)
        .map_err(|error| FormatError::malformed(name, error.to_string()))?;
    let fields = value.as_object_mut();
    let fields = fields.ok_or_else(|| FormatError::malformed(name, "is not a JSON object"))?;
    fields.entry("quant_method").or_insert_with(|| method.into());
    Ok(Some(value))
}

/// The tensors of a checkpoint, for a [`Reader`].
pub(super) struct Index<'a>(pub(super) &'a Checkpoint);

impl TensorIndex for Index<'_> {
    fn spec(&self, name: &str) -> Option<(Dtype, Vec<usize>)> {
        self.0.get(name).map(|info| (info.dtype, info.shape.clone()))
    }

    fn names(&self) -> Vec<String> {
        self.0.tensors().iter().map(|info| info.name.clone()).collect()
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, FormatError> {
        Ok(self.0.read(self.0.require(name)?)?)
    }
}
