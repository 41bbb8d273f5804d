//! Edits against explicit matrix products.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

use lapidary_kernels::hadamard::Rotation;
use lapidary_weight::{Edit, Edited, Edits, TensorError, Tensors};
use std::sync::Arc;

const ROWS: usize = 12;
const COLS: usize = 10;

/// One matrix `w`, a bias `b` of its rows, and a gain `g` of its columns.
struct Few;

impl Few {
    fn value(name: &str, at: usize) -> f32 {
        let salt = name.len() + usize::from(name.as_bytes()[0]);
        ((at * 37 + salt * 11) % 23) as f32 / 11.0 - 1.0
    }
}

impl Tensors for Few {
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        match name {
            "w" => Some(vec![ROWS, COLS]),
            "b" => Some(vec![ROWS]),
            _ => Some(vec![COLS]),
        }
    }

    fn read(&self, name: &str) -> Result<Vec<f32>, TensorError> {
        let count = self.shape(name).unwrap().iter().product();
        Ok((0..count).map(|at| Self::value(name, at)).collect())
    }

    fn read_rows(&self, name: &str, rows: &[u32]) -> Result<Vec<f32>, TensorError> {
        let values = self.read(name)?;
        Ok(rows.iter().flat_map(|row| values[*row as usize * COLS..][..COLS].to_vec()).collect())
    }
}

/// The matrix of a rotation, block-diagonal over `size`.
fn matrix(rotation: &Rotation, size: usize) -> Vec<f64> {
    let mut rows = vec![0.0; size * size];
    (0..size).for_each(|i| rows[i * size + i] = 1.0);
    rotation.apply(&mut rows);
    rows.into_iter().map(f64::from).collect()
}

fn product(a: &[f64], b: &[f64], inner: usize) -> Vec<f64> {
    let (rows, cols) = (a.len() / inner, b.len() / inner);
    let sum =
        |at: usize| (0..inner).map(|k| a[at / cols * inner + k] * b[k * cols + at % cols]).sum();
    (0..rows * cols).map(sum).collect()
}

fn transposed(a: &[f64], cols: usize) -> Vec<f64> {
    let rows = a.len() / cols;
    (0..a.len()).map(|at| a[at % rows * cols + at / rows]).collect()
}

fn read(name: &str, edits: Vec<Edit>) -> Vec<f32> {
    let edited = Edited::new(&Few, Edits::from([(name.to_owned(), edits.clone())]));
    let whole = edited.read(name).unwrap();
    if name == "w" {
        let rows = [3, 0, 11, 3];
        let some = edited.read_rows(name, &rows).unwrap();
        for (row, values) in rows.iter().zip(some.chunks_exact(COLS)) {
            let wanted = &whole[*row as usize * COLS..][..COLS];
            let near = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-6;
            assert!(values.iter().zip(wanted).all(near), "{edits:?}, row {row}");
        }
    }
    whole
}

#[track_caller]
fn same(got: &[f32], wanted: &[f64]) {
    assert_eq!(got.len(), wanted.len());
    for (at, (got, wanted)) in got.iter().zip(wanted).enumerate() {
        assert!((f64::from(*got) - wanted).abs() < 1e-5, "{at}: {got} {wanted}");
    }
}

#[test]
fn every_edit_is_its_matrix() {
    let w: Vec<f64> = Few.read("w").unwrap().into_iter().map(f64::from).collect();
    let b: Vec<f64> = Few.read("b").unwrap().into_iter().map(f64::from).collect();
    let g = Few.read("g").unwrap();
    let scales: Arc<[f32]> = (0..ROWS).map(|i| 0.5 + i as f32).collect();
    let by = |scale: &dyn Fn(usize) -> f32| -> Vec<f64> {
        w.iter().enumerate().map(|(at, w)| w * f64::from(scale(at))).collect()
    };
    let columns = vec![Edit::ScaleColumns(Arc::clone(&scales))];
    same(&read("w", columns), &by(&|at| scales[at % COLS]));
    let rows = vec![Edit::ScaleRows(Arc::clone(&scales))];
    same(&read("w", rows.clone()), &by(&|at| scales[at / COLS]));
    let scaled: Vec<f64> = b.iter().zip(&*scales).map(|(b, s)| b * f64::from(*s)).collect();
    same(&read("b", rows), &scaled);
    let fold = |offset| Edit::FoldGain { gain: "g".to_owned(), offset };
    same(&read("w", vec![fold(0.0)]), &by(&|at| g[at % COLS]));
    same(&read("w", vec![fold(1.0)]), &by(&|at| g[at % COLS] + 1.0));
    same(&read("w", vec![Edit::Fill(0.25)]), &[0.25; ROWS * COLS]);
    let values: Arc<[f32]> = (0..ROWS * COLS).map(|at| at as f32).collect();
    let wanted: Vec<f64> = values.iter().copied().map(f64::from).collect();
    same(&read("w", vec![Edit::Fill(1.0), Edit::Replace(values)]), &wanted);
}

#[test]
fn rotations_are_products_with_their_matrix() {
    let w: Vec<f64> = Few.read("w").unwrap().into_iter().map(f64::from).collect();
    let b: Vec<f64> = Few.read("b").unwrap().into_iter().map(f64::from).collect();
    for width in [COLS, 5] {
        let rotation = Arc::new(Rotation::new(width, 3));
        let wanted = product(&w, &matrix(&rotation, COLS), COLS);
        same(&read("w", vec![Edit::RotateColumns(rotation)]), &wanted);
    }
    for width in [ROWS, 4] {
        let rotation = Arc::new(Rotation::new(width, 4));
        let q = matrix(&rotation, ROWS);
        let wanted = product(&transposed(&q, ROWS), &w, ROWS);
        same(&read("w", vec![Edit::RotateRows(Arc::clone(&rotation))]), &wanted);
        same(&read("b", vec![Edit::RotateRows(rotation)]), &product(&b, &q, ROWS));
    }
}

/// In their order: a gain is folded before the rotation that passes it.
#[test]
fn edits_are_applied_one_after_the_other() {
    let rotation = Arc::new(Rotation::new(COLS, 5));
    let both = vec![
        Edit::FoldGain { gain: "g".to_owned(), offset: 0.0 },
        Edit::RotateColumns(Arc::clone(&rotation)),
    ];
    let folded: Vec<f64> = read("w", vec![both[0].clone()]).into_iter().map(f64::from).collect();
    same(&read("w", both), &product(&folded, &matrix(&rotation, COLS), COLS));
}
