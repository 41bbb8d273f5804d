//! Floats `[strip][column][row of the strip]`: a column of a strip is a register.

use half::{bf16, f16};

use super::{Precision, STRIP};

/// Columns of a strip in f32.
pub(super) type Column = [f32; STRIP];

/// A matrix of floats, each stored in the narrowest type that its precision allows.
pub(super) struct Dense {
    cols: usize,
    values: Values,
}

enum Values {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

impl Dense {
    /// Packs rows that `row` writes. In 16 bits where that is exact; for products that round their
    /// inputs to 8 bits, always.
    pub(super) fn new(
        rows: usize,
        cols: usize,
        precision: Precision,
        row: &dyn Fn(usize, &mut [f32]),
    ) -> Self {
        let mut values = vec![0.0; rows.div_ceil(STRIP) * cols * STRIP];
        let mut buffer = vec![0.0; cols];
        for index in 0..rows {
            buffer.fill(0.0);
            row(index, &mut buffer);
            let strip = &mut values[index / STRIP * cols * STRIP..][..cols * STRIP];
            for (column, value) in strip.chunks_exact_mut(STRIP).zip(&buffer) {
                column[index % STRIP] = *value;
            }
        }
        Self { cols, values: narrow(values, precision) }
    }

    /// Bytes read by a product.
    pub(super) fn bytes(&self) -> usize {
        match &self.values {
            Values::F32(values) => size_of_val(values.as_slice()),
            Values::F16(values) => size_of_val(values.as_slice()),
            Values::Bf16(values) => size_of_val(values.as_slice()),
        }
    }

    /// Adds the columns from `first` on of a strip.
    pub(super) fn add_columns(&self, strip: usize, first: usize, out: &mut [Column]) {
        let count = out.len().min(self.cols.saturating_sub(first));
        let range = (strip * self.cols + first) * STRIP..;
        match &self.values {
            Values::F32(values) => add(&values[range][..count * STRIP], out, |v| *v),
            Values::F16(values) => add(&values[range][..count * STRIP], out, |v| v.to_f32()),
            Values::Bf16(values) => add(&values[range][..count * STRIP], out, |v| v.to_f32()),
        }
    }
}

#[inline(always)]
fn add<T>(values: &[T], out: &mut [Column], float: impl Fn(&T) -> f32) {
    for (out, values) in out.iter_mut().zip(values.as_chunks::<STRIP>().0) {
        for (out, value) in out.iter_mut().zip(values) {
            *out += float(value);
        }
    }
}

fn narrow(values: Vec<f32>, precision: Precision) -> Values {
    let same = |a: f32, b: f32| a.to_bits() == b.to_bits();
    let bf16s = || Values::Bf16(values.iter().map(|v| bf16::from_f32(*v)).collect());
    let f16s = || Values::F16(values.iter().map(|v| f16::from_f32(*v)).collect());
    if values.iter().all(|v| same(bf16::from_f32(*v).to_f32(), *v)) {
        return bf16s();
    }
    if values.iter().all(|v| same(f16::from_f32(*v).to_f32(), *v)) {
        return f16s();
    }
    if precision == Precision::Float {
        return Values::F32(values);
    }
    // f16 has the finer steps where its exponents reach.
    let greatest = values.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
    if (1e-2..6e4).contains(&greatest) { f16s() } else { bf16s() }
}
