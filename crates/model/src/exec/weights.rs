//! The weights of one graph, prepared for an executor.

use super::Backend;
use super::composed::{Composed, TensorLinear};
use super::fused::Fused;
use crate::ModelError;
use crate::graph::Graph;
use crate::spec::{LinearOp, Op};
use candle_core::{Tensor, Var};
use lapidary_weight::{InputRounding, Tensors};
use std::collections::BTreeMap;

/// Linear layers ready to multiply, by module, and the vectors of norms, by tensor.
#[derive(Debug)]
pub struct GraphWeights<B: Backend = Fused> {
    linears: BTreeMap<String, B::Linear>,
    /// How the inputs of some of them are rounded.
    inputs: BTreeMap<String, InputRounding>,
    vectors: BTreeMap<String, B::Vector>,
}

impl<B: Backend> GraphWeights<B> {
    /// Reads what the graph needs, except embedding tables.
    ///
    /// # Errors
    /// When a tensor is missing, has another shape than the configuration says, or is unreadable.
    pub fn load(graph: &Graph, tensors: &dyn Tensors, backend: &B) -> Result<Self, ModelError> {
        Self::load_except(graph, &[], tensors, backend)
    }

    /// Reads what [`observe`](super::Executor::observe) needs: all but the last linear layers, whose
    /// input is seen and not multiplied. A head's largest matrix is among those.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_to_observe(
        graph: &Graph,
        tensors: &dyn Tensors,
        backend: &B,
    ) -> Result<Self, ModelError> {
        let last = graph.shared_inputs().pop();
        Self::load_except(graph, &last.map_or(vec![], |group| group.linears), tensors, backend)
    }

    fn load_except(
        graph: &Graph,
        left_out: &[&LinearOp],
        tensors: &dyn Tensors,
        backend: &B,
    ) -> Result<Self, ModelError> {
        let (linears, inputs, vectors) = Default::default();
        let mut weights = Self { linears, inputs, vectors };
        for node in &graph.nodes {
            match &node.op {
                Op::Linear(linear) if left_out.contains(&linear) => {}
                Op::Linear(linear) => weights.load_linear(linear, tensors, backend)?,
                Op::RmsNorm { gain, width, offset, .. } => {
                    weights.load_vector(gain, *width, *offset, tensors, backend)?;
                }
                Op::LayerNorm { gain, bias, .. } => {
                    for vector in std::iter::once(gain).chain(bias) {
                        weights.load_vector(vector, node.width, 0.0, tensors, backend)?;
                    }
                }
                _ => {}
            }
        }
        Ok(weights)
    }

    fn load_linear(
        &mut self,
        linear: &LinearOp,
        tensors: &dyn Tensors,
        backend: &B,
    ) -> Result<(), ModelError> {
        let matrix = read(tensors, &linear.weight, &[linear.out_features, linear.in_features])?;
        let bias = linear.bias.as_deref();
        let bias = bias.map(|bias| read(tensors, bias, &[linear.out_features])).transpose()?;
        let prepared = backend.prepare(linear, &matrix, bias)?;
        self.linears.insert(linear.module.clone(), prepared);
        self.round_inputs(linear, tensors.input_rounding(&linear.weight));
        Ok(())
    }

    fn load_vector(
        &mut self,
        name: &str,
        width: usize,
        offset: f32,
        tensors: &dyn Tensors,
        backend: &B,
    ) -> Result<(), ModelError> {
        let mut vector = read(tensors, name, &[width])?;
        vector.iter_mut().for_each(|value| *value += offset);
        let vector = backend.vector(vector)?;
        self.vectors.insert(name.to_owned(), vector);
        Ok(())
    }

    /// Puts another matrix `[out_features, in_features]` in place of a layer's weight; the bias
    /// stays.
    ///
    /// # Errors
    /// When the graph has no such layer.
    pub fn replace(
        &mut self,
        linear: &LinearOp,
        matrix: &[f32],
        backend: &B,
    ) -> Result<(), ModelError> {
        let missing = || ModelError::MissingTensor { name: linear.weight.clone() };
        let prepared = self.linears.get_mut(&linear.module).ok_or_else(missing)?;
        backend.replace(linear, matrix, prepared)
    }

    /// Rounds the inputs of a layer from now on, or no longer.
    pub fn round_inputs(&mut self, linear: &LinearOp, rounding: Option<InputRounding>) {
        match rounding {
            Some(rounding) => self.inputs.insert(linear.module.clone(), rounding),
            None => self.inputs.remove(&linear.module),
        };
    }

    pub(super) fn input_rounding(&self, module: &str) -> Option<InputRounding> {
        self.inputs.get(module).copied()
    }

    pub(super) fn linear(&self, module: &str) -> Result<&B::Linear, ModelError> {
        let missing = || ModelError::MissingTensor { name: format!("{module}.weight") };
        self.linears.get(module).ok_or_else(missing)
    }

    pub(super) fn vector(&self, name: &str) -> Result<&B::Vector, ModelError> {
        let missing = || ModelError::MissingTensor { name: name.to_owned() };
        self.vectors.get(name).ok_or_else(missing)
    }
}

impl GraphWeights<Composed> {
    /// The same, each tensor a variable that gradients are taken of; inputs are not rounded, since
    /// rounding has no gradient.
    ///
    /// # Errors
    /// When the device refuses.
    pub(crate) fn into_variables(self) -> Result<Self, ModelError> {
        let variable = |tensor: Tensor| -> Result<Tensor, ModelError> {
            Ok(Var::from_tensor(&tensor)?.as_tensor().clone())
        };
        let linear = |(module, linear): (String, TensorLinear)| {
            let weight = variable(linear.weight)?;
            let bias = linear.bias.map(variable).transpose()?;
            Ok((module, TensorLinear { weight, bias }))
        };
        let vector = |(name, vector)| Ok((name, variable(vector)?));
        Ok(Self {
            linears: self.linears.into_iter().map(linear).collect::<Result<_, ModelError>>()?,
            vectors: self.vectors.into_iter().map(vector).collect::<Result<_, ModelError>>()?,
            inputs: BTreeMap::new(),
        })
    }

    /// The graph's tensors by name, in the order they are first read; several for a name that more
    /// than one module reads.
    pub(crate) fn by_name<'a>(
        &'a self,
        graph: &'a Graph,
    ) -> Result<Vec<(&'a str, Vec<&'a Tensor>)>, ModelError> {
        let mut found: Vec<(&str, Vec<&Tensor>)> = vec![];
        let mut add = |name: &'a str, tensor: &'a Tensor| match found
            .iter_mut()
            .find(|(other, _)| *other == name)
        {
            Some((_, tensors)) if tensors.iter().any(|other| other.id() == tensor.id()) => {}
            Some((_, tensors)) => tensors.push(tensor),
            None => found.push((name, vec![tensor])),
        };
        for node in &graph.nodes {
            match &node.op {
                Op::Linear(linear) => {
                    let held = self.linear(&linear.module)?;
                    add(&linear.weight, &held.weight);
                    if let (Some(name), Some(bias)) = (&linear.bias, &held.bias) {
                        add(name, bias);
                    }
                }
                Op::RmsNorm { gain, .. } => add(gain, self.vector(gain)?),
                Op::LayerNorm { gain, bias, .. } => {
                    for name in std::iter::once(gain).chain(bias) {
                        add(name, self.vector(name)?);
                    }
                }
                _ => {}
            }
        }
        Ok(found)
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
