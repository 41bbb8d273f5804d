//! Small systems of normal equations.

/// Solves a positive semidefinite system `[A | b]`, a row each, by elimination, with a ridge of 1e-8 of
/// the mean diagonal; `None` where that does not make it solvable.
pub(crate) fn solve(mut system: Vec<Vec<f64>>) -> Option<Vec<f64>> {
    let n = system.len();
    let trace: f64 = (0..n).map(|i| system[i][i]).sum();
    for (i, row) in system.iter_mut().enumerate() {
        // Two unknowns that always go together make it singular.
        row[i] += 1e-8 * trace / n as f64;
    }
    for pivot in 0..n {
        let (above, below) = system.split_at_mut(pivot + 1);
        let row = &above[pivot];
        if row[pivot] <= 0.0 || !row[pivot].is_finite() {
            return None;
        }
        for other in below {
            let factor = other[pivot] / row[pivot];
            other.iter_mut().zip(row).skip(pivot).for_each(|(o, r)| *o -= factor * r);
        }
    }
    let mut solution = vec![0.0; n];
    for i in (0..n).rev() {
        let known: f64 = (i + 1..n).map(|j| system[i][j] * solution[j]).sum();
        solution[i] = (system[i][n] - known) / system[i][i];
    }
    solution.iter().all(|value| value.is_finite()).then_some(solution)
}

#[cfg(test)]
mod tests {
    use super::solve;

    #[test]
    fn a_system_is_solved_and_a_singular_one_has_equal_parts() {
        let solved = solve(vec![vec![4.0, 1.0, 9.0], vec![1.0, 3.0, 5.0]]).unwrap();
        assert!((solved[0] - 2.0).abs() < 1e-6 && (solved[1] - 1.0).abs() < 1e-6, "{solved:?}");
        let shared = solve(vec![vec![2.0, 2.0, 6.0], vec![2.0, 2.0, 6.0]]).unwrap();
        assert!((shared[0] - 1.5).abs() < 1e-3 && (shared[1] - 1.5).abs() < 1e-3, "{shared:?}");
        assert_eq!(solve(vec![vec![0.0, 1.0]]), None);
    }
}
