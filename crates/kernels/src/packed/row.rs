//! One row of a packed matrix: what an embedding that is also a head is looked up in.

use super::{Packed, STRIP};
use crate::isa::Isa;

impl Packed {
    /// Decodes row `row` into `out`; `strip` is room that is kept between calls.
    ///
    /// # Panics
    /// If there is no such row, or `out` has another length than a row.
    pub fn row(&self, row: usize, strip: &mut Vec<[f32; STRIP]>, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.cols, "a row of another matrix");
        let isa = Isa::detect();
        strip.clear();
        strip.resize(self.cols, [0.0; STRIP]);
        self.add_columns(isa, row / STRIP, 0, strip);
        out.iter_mut().zip(&*strip).for_each(|(out, column)| *out = column[row % STRIP]);
        if let (Some(inner), Some(outer)) = (&self.inner, &self.outer) {
            let mut left = vec![[0.0; STRIP]; inner.rows];
            outer.add_columns(isa, row / STRIP, 0, &mut left);
            let mut right = vec![0.0; self.cols];
            for (index, left) in left.iter().enumerate() {
                inner.row(index, strip, &mut right);
                out.iter_mut().zip(&right).for_each(|(o, r)| *o += left[row % STRIP] * r);
            }
        }
    }
}
