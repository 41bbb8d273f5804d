//! The weights of one graph, prepared for the executor.

use super::ops::Linear;
use crate::graph::Graph;
use crate::spec::{LinearOp, Op};
use crate::{ModelError, Precision};
use lapidary_kernels::matrix::PackedMatrix;
use lapidary_weight::Tensors;
use std::collections::BTreeMap;

/// Linear layers packed for multiplication and the vectors of norms, by name.
#[derive(Debug)]
pub struct GraphWeights {
    linears: BTreeMap<String, Linear>,
    vectors: BTreeMap<String, Vec<f32>>,
    precision: Precision,
}

impl GraphWeights {
    /// Reads what the graph needs, except embedding tables.
    ///
    /// # Errors
    /// When a tensor is missing, has another shape than the configuration says, or is unreadable.
    pub fn load(
        graph: &Graph,
        tensors: &dyn Tensors,
        precision: Precision,
    ) -> Result<Self, ModelError> {
        let mut weights = Self { linears: BTreeMap::new(), vectors: BTreeMap::new(), precision };
        for node in &graph.nodes {
            match &node.op {
                Op::Linear(linear) => {
                    let shape = [linear.out_features, linear.in_features];
                    let matrix = read(tensors, &linear.weight, &shape)?;
                    weights.add_linear(linear, &matrix, tensors)?;
                }
                Op::RmsNorm { gain, width, .. } => {
                    let values = read(tensors, gain, &[*width])?;
                    weights.vectors.insert(gain.clone(), values);
                }
                Op::LayerNorm { gain, bias, .. } => {
                    for name in [gain, bias] {
                        let values = read(tensors, name, &[node.width])?;
                        weights.vectors.insert(name.clone(), values);
                    }
                }
                _ => {}
            }
        }
        Ok(weights)
    }

    fn add_linear(
        &mut self,
        linear: &LinearOp,
        matrix: &[f32],
        tensors: &dyn Tensors,
    ) -> Result<(), ModelError> {
        let bias = linear.bias.as_deref();
        let bias = bias.map(|bias| read(tensors, bias, &[linear.out_features])).transpose()?;
        let packed =
            PackedMatrix::new(matrix, linear.out_features, linear.in_features, self.precision);
        self.linears.insert(linear.module.clone(), Linear { packed, bias });
        Ok(())
    }

    /// Puts another matrix `[out_features, in_features]` in place of a layer's weight; the bias
    /// stays.
    ///
    /// # Errors
    /// When the graph has no such layer.
    pub fn replace(&mut self, linear: &LinearOp, matrix: &[f32]) -> Result<(), ModelError> {
        let missing = || ModelError::MissingTensor { name: linear.weight.clone() };
        let entry = self.linears.get_mut(&linear.module).ok_or_else(missing)?;
        entry.packed =
            PackedMatrix::new(matrix, linear.out_features, linear.in_features, self.precision);
        Ok(())
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        let linears = self.linears.values().map(|linear| linear.packed.bytes());
        let vectors = self.vectors.values().map(|vector| 4 * vector.len());
        linears.sum::<usize>() + vectors.sum::<usize>()
    }

    pub(super) fn linear(&self, module: &str) -> Result<&Linear, ModelError> {
        let missing = || ModelError::MissingTensor { name: format!("{module}.weight") };
        self.linears.get(module).ok_or_else(missing)
    }

    pub(super) fn vector(&self, name: &str) -> Result<&[f32], ModelError> {
        let missing = || ModelError::MissingTensor { name: name.to_owned() };
        self.vectors.get(name).map(Vec::as_slice).ok_or_else(missing)
    }
}

fn read(tensors: &dyn Tensors, name: &str, need: &[usize]) -> Result<Vec<f32>, ModelError> {
    match tensors.shape(name) {
        None => Err(ModelError::MissingTensor { name: name.to_owned() }),
        Some(have) if have != need => {
            Err(ModelError::Shape { name: name.to_owned(), have, need: need.to_vec() })
        }
        Some(_) => Ok(tensors.read(name)?),
    }
}
