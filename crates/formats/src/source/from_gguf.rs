//! A GGUF as a Hugging Face folder: its names, its configuration, its tokenizer.

use super::logical::Storage;
use super::{LogicalTensor, Source, SourceFile, experts, gpt2, to_f32};
use crate::FormatError;
use crate::gguf::{Change, Destination, GgufError, Names, RopeFactors, folder_files};
use lapidary_store::{Checkpoint, Dtype};
use serde_json::Value;

impl Source {
    /// Sees an opened GGUF as the folder that it was made from.
    pub(super) fn from_gguf(mut checkpoint: Checkpoint) -> Result<Self, FormatError> {
        let file = checkpoint.path().display().to_string();
        let wrong = |error: GgufError| FormatError::malformed(&file, error.to_string());
        let missing = || FormatError::malformed(&file, "has no metadata");
        let metadata = &checkpoint.take_gguf().ok_or_else(missing)?;
        let names = Names::new(metadata).map_err(wrong)?;
        let (mut tensors, mut consumed) = (vec![], vec![]);
        let mut rope_factors = RopeFactors::new();
        for info in checkpoint.tensors() {
            match names.to_hugging_face(&info.name).map_err(wrong)? {
                Destination::Tensor { name, change } => {
                    let storage = match change {
                        Change::Same => Storage::Plain(info.clone()),
                        Change::Raised => Storage::Raised(info.clone()),
                        Change::Rows(order) => Storage::Reordered(info.clone(), order),
                    };
                    tensors.push(LogicalTensor { name, shape: info.shape.clone(), storage });
                }
                Destination::Experts { module, part } => {
                    tensors.extend(experts::experts(info, &module, &[part])?);
                }
                Destination::RopeFactors(name) => {
                    let count = info.shape.iter().product();
                    rope_factors.insert(name, to_f32(info, &checkpoint.read(info)?, count)?);
                    consumed.push((info.name.clone(), "stands in config.json".to_owned()));
                }
            }
        }
        let dtype = match tensors.iter().map(LogicalTensor::float_dtype_of_matrix).next() {
            Some(Some(Dtype::BF16)) => "bfloat16",
            Some(Some(Dtype::F32)) => "float32",
            _ => "float16",
        };
        let files =
            folder_files(metadata, checkpoint.tensors(), &rope_factors, dtype).map_err(wrong)?;
        let (mut config, mut made) = (Value::Null, vec![]);
        for (name, value) in files {
            if name == "config.json" {
                config = value;
                continue;
            }
            let mut bytes = serde_json::to_vec_pretty(&value)
                .map_err(|error| FormatError::malformed(name, error.to_string()))?;
            bytes.push(b'\n');
            let length = bytes.len() as u64;
            made.push(SourceFile { name: name.to_owned(), bytes: length, made: Some(bytes) });
        }
        gpt2::turn(&config, &mut tensors);
        let source = Self::assemble(checkpoint, config, tensors, consumed, made);
        Ok(Self { format: "gguf", ..source })
    }
}
