//! How much two sets of embeddings of the same sentences agree.

/// Of embeddings of length 1, with those of the original.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Agreement {
    /// Mean cosine of a sentence's embedding with the original's.
    pub(super) cosine: f64,
    /// Spearman's correlation of the pairs' similarities with the original's.
    pub(super) spearman: f64,
}

/// Compares embeddings, one a sentence.
pub(super) fn agreement(
    ours: &[Vec<f64>],
    original: &[Vec<f64>],
    pairs: &[(usize, usize)],
) -> Agreement {
    let similarities = |embeddings: &[Vec<f64>]| -> Vec<f64> {
        pairs.iter().map(|(a, b)| dot(&embeddings[*a], &embeddings[*b])).collect()
    };
    let cosines = ours.iter().zip(original).map(|(a, b)| dot(a, b));
    Agreement {
        cosine: cosines.sum::<f64>() / ours.len() as f64,
        spearman: spearman(&similarities(ours), &similarities(original)),
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Spearman's correlation: Pearson's of the ranks; equal numbers share the mean of theirs.
fn spearman(a: &[f64], b: &[f64]) -> f64 {
    let mean = (a.len() as f64 - 1.0) / 2.0;
    let centred = |values| ranks(values).iter().map(|rank| rank - mean).collect::<Vec<f64>>();
    let (a, b) = (centred(a), centred(b));
    dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt()
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    let mut first = 0;
    for equal in order.chunk_by(|a, b| values[*a] == values[*b]) {
        let rank = first as f64 + (equal.len() as f64 - 1.0) / 2.0;
        equal.iter().for_each(|at| ranks[*at] = rank);
        first += equal.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    /// Without ties it is `1 − 6 Σ d² / (n (n² − 1))`, `d` the differences of ranks, here counted.
    #[test]
    fn it_is_spearmans() {
        let mut random = Random::new(3);
        let a: Vec<f64> = (0..60).map(|_| random.unit()).collect();
        let b: Vec<f64> = a.iter().map(|a| a.powi(3) + 0.3 * random.unit()).collect();
        let rank = |values: &[f64], of: f64| values.iter().filter(|v| **v < of).count() as f64;
        let squares = a.iter().zip(&b).map(|(x, y)| (rank(&a, *x) - rank(&b, *y)).powi(2));
        let expected = 1.0 - 6.0 * squares.sum::<f64>() / (60.0 * (60.0 * 60.0 - 1.0));
        assert!((spearman(&a, &b) - expected).abs() < 1e-12);
        assert!((0.3..0.99).contains(&expected), "{expected}");
        let falling: Vec<f64> = a.iter().map(|a| -a).collect();
        assert!((spearman(&a, &falling) + 1.0).abs() < 1e-12);
        // By hand: ranks 0, 1½, 1½, 3 and 0, 2, 1, 3, so that it is 4.5 / √(4.5 · 5).
        assert!(
            (spearman(&[1.0, 2.0, 2.0, 3.0], &[1.0, 3.0, 2.0, 4.0]) - 0.948_683_298).abs() < 1e-9
        );
        assert_eq!(ranks(&[3.0, 1.0, 3.0, 2.0]), [2.5, 0.0, 2.5, 1.0]);
    }

    #[test]
    fn a_turned_embedding_keeps_the_ranks_and_loses_the_cosine() {
        let unit = |angle: f64| vec![angle.cos(), angle.sin()];
        let angles = [0.0, 0.3, 1.0, 1.8];
        let original: Vec<Vec<f64>> = angles.iter().map(|angle| unit(*angle)).collect();
        let turned: Vec<Vec<f64>> = angles.iter().map(|angle| unit(angle + 0.5)).collect();
        let pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3)];
        let Agreement { cosine, spearman } = agreement(&turned, &original, &pairs);
        assert!((cosine - 0.5_f64.cos()).abs() < 1e-12, "{cosine}");
        assert!((spearman - 1.0).abs() < 1e-12, "{spearman}");
    }
}
