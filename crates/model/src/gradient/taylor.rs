//! Importance of weights by Taylor's expansion of the loss (Ma, Fang and Wang, LLM-Pruner, 2023): how
//! far the loss moves when a weight is set to 0, to first order `−W·g`, to second `½ W²·F`, where the
//! curvature is Fisher's, the mean square of the gradients of single rows.

use super::{Backward, BlockGradients, Loss, TensorGradient};
use crate::ModelError;
use std::collections::BTreeMap;
use std::ops::AddAssign;

/// Sums over some weights; those of several slices of a unit are added up.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Importance {
    /// `Σ |W·g|`, the paper's `param_first`; `g` is the gradient of the mean loss of the rows.
    pub first: f64,
    /// `Σ |W²·F|`, `param_second`; `F` is the mean over the rows of their squared gradients.
    pub second: f64,
    /// `Σ |W·g − ½ W²·F|`, `param_mix`.
    pub mixed: f64,
    /// `Σ W·g`, of which `vectorize` takes the absolute value, once all of a unit is added up.
    pub signed: f64,
}

impl Importance {
    fn of(weight: f64, gradient: f64, square: f64) -> Self {
        let (signed, second) = (weight * gradient, weight * weight * square);
        let mixed = (signed - 0.5 * second).abs();
        Self { first: signed.abs(), second: second.abs(), mixed, signed }
    }
}

impl AddAssign for Importance {
    fn add_assign(&mut self, other: Self) {
        self.first += other.first;
        self.second += other.second;
        self.mixed += other.mixed;
        self.signed += other.signed;
    }
}

/// Importance along the axes of a tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Axes {
    /// Of each row of a matrix; of each number of a bias or of gains.
    pub rows: Vec<Importance>,
    /// Of each column of a matrix; of a bias or of gains there is one.
    pub columns: Vec<Importance>,
}

/// Importance of the weights of all blocks, by the names of their tensors, from the gradients of these
/// rows of tokens, which count the same whatever their lengths. What several blocks share is one
/// tensor: its gradient is the sum over all its places before anything is made of it. In memory, beside
/// what [`Backward::run`] needs, are three numbers for each weight of one block, or four for each
/// weight that is shared.
///
/// # Errors
/// As [`Backward::run`], and when there are no rows.
pub fn taylor(
    backward: &Backward<'_>,
    rows: &[Vec<u32>],
    loss: &dyn Loss,
) -> Result<BTreeMap<String, Axes>, ModelError> {
    if rows.is_empty() {
        return Err(ModelError::Gradient("importance needs at least one row of tokens".to_owned()));
    }
    if backward.spec().shares_blocks() {
        return of_shared(backward, rows, loss);
    }
    let mut sums: BTreeMap<String, Sums> = BTreeMap::new();
    let mut scores = BTreeMap::new();
    let mut visit = |gradients: &BlockGradients<'_>| {
        for tensor in gradients.tensors()? {
            let tensor = tensor?;
            let sum = sums.entry(tensor.name.to_owned()).or_insert_with(|| Sums::new(&tensor));
            sum.add(&tensor.gradient);
        }
        if gradients.row + 1 == rows.len() {
            let done = std::mem::take(&mut sums);
            scores.extend(done.into_iter().map(|(name, sums)| (name, sums.axes())));
        }
        Ok(())
    };
    backward.run(rows, loss, &mut visit)?;
    Ok(scores)
}

/// Row by row, since a row's gradient of a shared tensor is known once all blocks were seen.
fn of_shared(
    backward: &Backward<'_>,
    rows: &[Vec<u32>],
    loss: &dyn Loss,
) -> Result<BTreeMap<String, Axes>, ModelError> {
    let mut sums: BTreeMap<String, Sums> = BTreeMap::new();
    for row in rows.chunks(1) {
        let mut gradients: BTreeMap<String, Vec<f32>> = BTreeMap::new();
        let mut visit = |block: &BlockGradients<'_>| {
            for tensor in block.tensors()? {
                let tensor = tensor?;
                sums.entry(tensor.name.to_owned()).or_insert_with(|| Sums::new(&tensor));
                match gradients.get_mut(tensor.name) {
                    Some(sum) => sum.iter_mut().zip(&tensor.gradient).for_each(|(s, g)| *s += g),
                    None => {
                        gradients.insert(tensor.name.to_owned(), tensor.gradient);
                    }
                }
            }
            Ok(())
        };
        backward.run(row, loss, &mut visit)?;
        for (name, gradient) in &gradients {
            if let Some(sums) = sums.get_mut(name) {
                sums.add(gradient);
            }
        }
    }
    Ok(sums.into_iter().map(|(name, sums)| (name, sums.axes())).collect())
}

/// What is added up of a tensor's gradients, row of tokens by row of tokens.
struct Sums {
    columns: usize,
    weight: Vec<f32>,
    gradient: Vec<f32>,
    square: Vec<f32>,
    rows: usize,
}

impl Sums {
    fn new(tensor: &TensorGradient<'_>) -> Self {
        let zeros = || vec![0.0; tensor.value.len()];
        let columns = tensor.shape.get(1).copied().unwrap_or(1);
        let weight = tensor.value.clone();
        Self { columns, weight, gradient: zeros(), square: zeros(), rows: 0 }
    }

    fn add(&mut self, gradient: &[f32]) {
        let sums = self.gradient.iter_mut().zip(&mut self.square);
        for ((sum, square), gradient) in sums.zip(gradient) {
            *sum += gradient;
            *square += gradient * gradient;
        }
        self.rows += 1;
    }

    fn axes(&self) -> Axes {
        let mean = |sum: f32| f64::from(sum) / self.rows as f64;
        let zero = Importance::default();
        let mut axes = Axes {
            rows: vec![zero; self.weight.len() / self.columns.max(1)],
            columns: vec![zero; self.columns],
        };
        let gradients = self.gradient.iter().zip(&self.square);
        for (index, (weight, (sum, square))) in self.weight.iter().zip(gradients).enumerate() {
            let importance = Importance::of(f64::from(*weight), mean(*sum), mean(*square));
            axes.rows[index / self.columns] += importance;
            axes.columns[index % self.columns] += importance;
        }
        axes
    }
}
