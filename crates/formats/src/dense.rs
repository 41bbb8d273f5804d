//! Plain floats: a checkpoint as it was before, with the compressed values in place of the others.
//! Nothing is saved; every loader reads it.

use crate::{Format, FormatError, Layout, ReadTensor, Reader, float_dtype};
use lapidary_store::TensorSpec;
use lapidary_weight::{FloatType, Outline, Term, Weight};
use serde_json::Value;

pub(crate) struct Dense;

impl Format for Dense {
    fn id(&self) -> &'static str {
        "dense"
    }

    fn loaders(&self) -> &'static str {
        "transformers, vLLM, lapidary"
    }

    fn scale_type(&self, _model: FloatType) -> FloatType {
        FloatType::F32
    }

    fn accepts(&self, _outline: &Outline) -> Result<(), String> {
        Ok(())
    }

    fn tensors(&self, module: &str, outline: &Outline, dtype: FloatType) -> Vec<TensorSpec> {
        let shape = vec![outline.rows, outline.cols];
        vec![TensorSpec::new(format!("{module}.weight"), float_dtype(dtype), shape)]
    }

    fn encode(&self, weight: &Weight, dtype: FloatType) -> Result<Vec<Vec<u8>>, FormatError> {
        Ok(vec![dtype.encode(&weight.decode())])
    }

    fn decode(
        &self,
        module: &str,
        outline: &Outline,
        dtype: FloatType,
        read: ReadTensor<'_>,
    ) -> Result<Weight, FormatError> {
        let values = dtype.decode(&read(&format!("{module}.weight"))?);
        let dense = Term::Dense(lapidary_weight::Dense { values, dtype });
        Weight::new(outline.rows, outline.cols, vec![dense])
            .map_err(|error| FormatError::Weight { module: module.to_owned(), error })
    }

    fn config(&self, _layout: &Layout<'_>) -> Option<Value> {
        None
    }

    fn reader(&self, _config: &Value) -> Option<Result<Box<dyn Reader>, FormatError>> {
        None
    }
}
