//! Which experts of a mixture a token goes to.

/// Scores of experts to the weights of the `most` best, 0 for the others; of equal ones, the first. The
/// weights are those of a softmax of all scores; `normalized`, they are made to add up to one.
pub fn choose(scores: &mut [f32], most: usize, normalized: bool) {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scores.iter_mut().for_each(|score| *score = (*score - largest).exp());
    let sum: f32 = scores.iter().sum();
    scores.iter_mut().for_each(|weight| *weight /= sum);
    // Softmax's numbers are not negative: the sign marks what is kept, and nothing is allocated.
    let mut kept = 0.0;
    for _ in 0..most.min(scores.len()) {
        let left = scores.iter().enumerate().filter(|(_, weight)| weight.is_sign_positive());
        let best =
            left.reduce(|best, next| if next.1.total_cmp(best.1).is_gt() { next } else { best });
        let Some((best, weight)) = best else { break };
        kept += *weight;
        scores[best] = -scores[best];
    }
    for weight in scores {
        *weight = match (weight.is_sign_negative(), normalized) {
            (false, _) => 0.0,
            (true, false) => -*weight,
            (true, true) => -*weight / kept,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, by sorting.
    fn sorted(scores: &[f32], most: usize, normalized: bool) -> Vec<f64> {
        let sum: f64 = scores.iter().map(|score| f64::from(*score).exp()).sum();
        let weights: Vec<f64> = scores.iter().map(|score| f64::from(*score).exp() / sum).collect();
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
        let kept: f64 = order.iter().take(most).map(|expert| weights[*expert]).sum();
        let mut out = vec![0.0; scores.len()];
        for expert in order.into_iter().take(most) {
            out[expert] = if normalized { weights[expert] / kept } else { weights[expert] };
        }
        out
    }

    #[test]
    fn the_best_are_kept_and_of_equal_ones_the_first() {
        let mut state = 7_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Few values, so that there are equal ones.
            (state >> 29) as f32 - 3.5
        };
        for experts in [1, 2, 5, 8, 60] {
            for most in [0, 1, 2, 8, 70] {
                for normalized in [false, true] {
                    let scores: Vec<f32> = (0..experts).map(|_| next()).collect();
                    let mut have = scores.clone();
                    choose(&mut have, most, normalized);
                    let want = sorted(&scores, most, normalized);
                    for (have, want) in have.iter().zip(want) {
                        assert!((f64::from(*have) - want).abs() < 1e-6, "{scores:?} {most}");
                        assert_eq!(*have == 0.0, want == 0.0);
                    }
                }
            }
        }
    }
}
