//! What a plan reads: packed matrices, vectors, tables, angles; first as names, then as numbers.

use crate::plan::{Plan, Products};
use crate::{RuntimeError, linear};
use lapidary_formats::{FormatError, Source};
use lapidary_kernels::packed::{Packed, Precision, STRIP};
use lapidary_kernels::pool::Pool;
use lapidary_model::{LinearOp, ModelError, RopeOp, Table};
use lapidary_weight::{TensorError, Tensors};
use std::collections::HashMap;
use std::ops::Range;

/// What part of a stage that is left its threads share in units of one size: three quarters.
const FACTOR: (usize, usize) = (3, 4);
/// Bytes of weights that are not worth handing to another thread.
const SMALLEST_UNIT: usize = 16 << 10;

/// What plans read, by name; each once.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// Tensor and shape.
    matrices: Vec<(String, [usize; 2])>,
    /// Where each stands: mixtures of experts have tens of thousands.
    places: HashMap<(String, [usize; 2]), usize>,
    /// Tensor, width, and what is added to its values.
    vectors: Vec<(String, usize, f32)>,
    /// Matrices that rows are looked up in.
    tables: Vec<usize>,
    /// Their heads are left out: all have the same angles.
    ropes: Vec<RopeOp>,
}

impl Names {
    pub(crate) fn matrix(&mut self, linear: &LinearOp) -> usize {
        self.tensor(&linear.weight, [linear.out_features, linear.in_features])
    }

    fn tensor(&mut self, name: &str, shape: [usize; 2]) -> usize {
        let matrix = (name.to_owned(), shape);
        if let Some(place) = self.places.get(&matrix) {
            return *place;
        }
        self.places.insert(matrix.clone(), self.matrices.len());
        self.matrices.push(matrix);
        self.matrices.len() - 1
    }

    pub(crate) fn table(&mut self, table: &Table) -> usize {
        let matrix = self.tensor(&table.name, [table.rows, table.width]);
        place(&mut self.tables, matrix)
    }

    pub(crate) fn vector(&mut self, name: &str, width: usize) -> usize {
        self.gain(name, width, 0.0)
    }

    /// A vector with `offset` added to its values.
    pub(crate) fn gain(&mut self, name: &str, width: usize, offset: f32) -> usize {
        place(&mut self.vectors, (name.to_owned(), width, offset))
    }

    pub(crate) fn rope(&mut self, rope: &RopeOp) -> usize {
        place(&mut self.ropes, RopeOp { heads: 0, ..rope.clone() })
    }
}

/// The index of an element in a list, which it is added to if it is not there.
fn place<T: PartialEq>(list: &mut Vec<T>, element: T) -> usize {
    list.iter().position(|known| *known == element).unwrap_or_else(|| {
        list.push(element);
        list.len() - 1
    })
}

/// What plans read, in the order of [`Names`].
pub(crate) struct Weights {
    pub(crate) matrices: Vec<Packed>,
    pub(crate) vectors: Vec<Vec<f32>>,
    pub(crate) tables: Vec<usize>,
    pub(crate) angles: Vec<Angles>,
}

/// Cosines and sines of rotary positions, `[positions, pairs]`.
#[derive(Debug)]
pub(crate) struct Angles {
    cos: Vec<f32>,
    sin: Vec<f32>,
    pairs: usize,
}

impl Angles {
    fn new(rope: &RopeOp, positions: usize) -> Self {
        let (cos, sin) = rope.angles(positions);
        Self { cos, sin, pairs: rope.rotary / 2 }
    }

    /// Cosines and sines of a position.
    pub(crate) fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let first = position * self.pairs;
        (&self.cos[first..][..self.pairs], &self.sin[first..][..self.pairs])
    }
}

impl Weights {
    /// Reads and packs everything, matrix by matrix on the threads of the pool.
    pub(crate) fn load(
        names: Names,
        source: &Source,
        precision: Precision,
        context: usize,
        pool: &mut Pool,
    ) -> Result<Self, RuntimeError> {
        let mut packed: Vec<Option<Result<Packed, RuntimeError>>> = vec![];
        packed.resize_with(names.matrices.len(), || None);
        pool.run_chunks(&mut packed, 1, |index, packed| {
            let (tensor, shape) = &names.matrices[index];
            packed[0] = Some(
                check(source, tensor, shape).and_then(|()| linear::pack(source, tensor, precision)),
            );
        });
        let matrices = packed.into_iter().flatten().collect::<Result<Vec<_>, _>>()?;
        let vectors = names.vectors.iter().map(|(name, width, offset)| {
            check(source, name, &[*width])?;
            let mut values = source.read(name).map_err(|TensorError(error)| lost(error))?;
            values.iter_mut().for_each(|value| *value += offset);
            Ok::<_, RuntimeError>(values)
        });
        let vectors = vectors.collect::<Result<Vec<_>, _>>()?;
        let angles = names.ropes.iter().map(|rope| Angles::new(rope, context)).collect();
        Ok(Self { matrices, vectors, tables: names.tables, angles })
    }

    /// Divides the products of a plan into [`units`] of work.
    pub(crate) fn divide(&self, plan: &mut Plan, threads: usize) {
        for stage in plan.products_mut() {
            let matrices = stage.products.iter().map(|(matrix, _)| &self.matrices[*matrix]);
            let sizes: Vec<_> = matrices.map(|matrix| (matrix.strips(), matrix.bytes())).collect();
            stage.units = units(&sizes, threads);
        }
    }

    /// Bytes of weights that a step with one token reads: all matrices but those that are only
    /// looked up in, of which it reads a row; and of experts those that a token goes to.
    pub(crate) fn bytes_per_token(&self, plans: [&Plan; 2]) -> usize {
        plans.into_iter().map(|plan| self.of_a_token(plan, Packed::bytes)).sum()
    }

    /// Bytes of all matrices.
    pub(crate) fn bytes(&self) -> usize {
        self.matrices.iter().map(Packed::bytes).sum()
    }

    /// Numbers of the matrices that a plan multiplies by, counted as if all were dense.
    pub(crate) fn multiplied(&self, plan: &Plan) -> usize {
        self.of_a_token(plan, |matrix| matrix.rows() * matrix.cols())
    }

    /// The sum over the matrices that a token is multiplied by, of experts on average.
    fn of_a_token(&self, plan: &Plan, size: impl Fn(&Packed) -> usize) -> usize {
        let of = |(stage, share): (&Products, f64)| {
            let sizes = stage.products.iter().map(|(matrix, _)| size(&self.matrices[*matrix]));
            share * sizes.sum::<usize>() as f64
        };
        plan.products().into_iter().map(of).sum::<f64>().round() as usize
    }

    /// Widest product that a low-rank term begins with.
    pub(crate) fn widest_inner(&self) -> usize {
        let inner = |matrix: &Packed| matrix.inner().map_or(0, Packed::rows);
        self.matrices.iter().map(inner).max().unwrap_or(0)
    }

    /// Looks up a row of a table.
    pub(crate) fn look_up(
        &self,
        table: usize,
        row: usize,
        strip: &mut Vec<[f32; STRIP]>,
        out: &mut [f32],
    ) {
        self.matrices[self.tables[table]].row(row, strip, out);
    }
}

fn check(source: &Source, name: &str, need: &[usize]) -> Result<(), RuntimeError> {
    match source.shape(name) {
        None => Err(ModelError::MissingTensor { name: name.to_owned() }.into()),
        Some(have) if have != need => {
            let need = need.to_vec();
            Err(ModelError::Shape { name: name.to_owned(), have, need }.into())
        }
        Some(_) => Ok(()),
    }
}

/// The error of a tensor as what it is.
pub(crate) fn lost(error: Box<dyn std::error::Error + Send + Sync>) -> RuntimeError {
    match error.downcast::<FormatError>() {
        Ok(error) => (*error).into(),
        Err(error) => ModelError::Tensor(TensorError(error)).into(),
    }
}

/// The units of work of products, given by their strips and bytes: product and strips of each. For each
/// thread one that is most of its part, then smaller and smaller ones (factoring: Hummel et al., 1992).
/// A thread that begins elsewhere in memory waits for it, so that units should be few; those that are
/// late are helped with the last ones.
fn units(products: &[(usize, usize)], threads: usize) -> Vec<(usize, Range<usize>)> {
    let mut units = vec![];
    let mut left: usize = products.iter().map(|(_, bytes)| bytes).sum();
    let (mut size, mut of_this_size) = (left, 0);
    for (product, &(strips, bytes)) in products.iter().enumerate() {
        // Pairs of strips, which are multiplied together.
        let pairs = strips.div_ceil(2);
        let of_pair = bytes.div_ceil(pairs.max(1)).max(1);
        let mut first = 0;
        while first < pairs {
            if of_this_size == 0 && threads > 1 {
                size = (left * FACTOR.0 / FACTOR.1 / threads).max(SMALLEST_UNIT);
                of_this_size = threads;
            }
            let last = pairs.min(first + size.div_ceil(of_pair).max(1));
            units.push((product, 2 * first..strips.min(2 * last)));
            left = left.saturating_sub((last - first) * of_pair);
            of_this_size = of_this_size.saturating_sub(1);
            first = last;
        }
    }
    units
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_strip_is_in_one_unit_and_pairs_stay_together(
            products in prop::collection::vec((0_usize..300, 0_usize..5_000_000), 0..4),
            threads in 1_usize..70,
        ) {
            let units = units(&products, threads);
            for (product, (strips, _)) in products.iter().enumerate() {
                let mut next = 0;
                for (_, range) in units.iter().filter(|(of, _)| *of == product) {
                    prop_assert!(range.start == next && range.end > next, "{units:?}");
                    prop_assert!(range.start % 2 == 0);
                    next = range.end;
                }
                prop_assert_eq!(next, *strips);
            }
        }
    }

    #[test]
    fn threads_get_most_of_their_parts_at_once_and_share_what_is_left() {
        let units = units(&[(256, 1 << 20)], 2);
        let sizes: Vec<usize> = units.iter().map(|(_, strips)| strips.len()).collect();
        assert_eq!(sizes, [96, 96, 24, 24, 6, 6, 4]);
    }
}
