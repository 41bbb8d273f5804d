//! The sampler against the definitions, over the whole vocabulary in f64.

use super::*;
use proptest::prelude::*;

/// Probabilities after all filters, straight from the definitions.
fn distribution(sampling: &Sampling, prompt: &[u32], answer: &[u32], logits: &[f32]) -> Vec<f64> {
    let mut logits: Vec<f64> = logits.iter().map(|logit| f64::from(*logit)).collect();
    for (token, bias) in &sampling.bias {
        logits[*token as usize] += f64::from(*bias);
    }
    for (token, logit) in (0_u32..).zip(&mut logits) {
        let count = answer.iter().filter(|other| **other == token).count();
        if count > 0 || prompt.contains(&token) {
            let penalty = f64::from(sampling.repetition_penalty);
            *logit *= if *logit > 0.0 { 1.0 / penalty } else { penalty };
        }
        if count > 0 {
            *logit -= f64::from(sampling.frequency_penalty) * count as f64;
            *logit -= f64::from(sampling.presence_penalty);
        }
    }
    let top = logits.iter().copied().fold(f64::MIN, f64::max);
    let softmax = |kept: &[bool], logits: &[f64]| -> Vec<f64> {
        let temperature = f64::from(sampling.temperature);
        let weight = |i: usize| if kept[i] { ((logits[i] - top) / temperature).exp() } else { 0.0 };
        let weights: Vec<f64> = (0..logits.len()).map(weight).collect();
        let sum: f64 = weights.iter().sum();
        weights.iter().map(|weight| weight / sum).collect()
    };
    let mut ranked: Vec<usize> = (0..logits.len()).collect();
    ranked.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
    let mut kept = vec![true; logits.len()];
    if sampling.top_k > 0 {
        ranked.iter().skip(sampling.top_k).for_each(|token| kept[*token] = false);
    }
    let probabilities = softmax(&kept, &logits);
    let mut before = 0.0;
    for token in &ranked {
        if before > 0.0 && before >= f64::from(sampling.top_p) - 1e-12 {
            kept[*token] = false;
        }
        before += probabilities[*token];
    }
    let probabilities = softmax(&kept, &logits);
    let highest = probabilities[ranked[0]];
    for token in &ranked[1..] {
        if probabilities[*token] < f64::from(sampling.min_p) * highest {
            kept[*token] = false;
        }
    }
    softmax(&kept, &logits)
}

fn samplings() -> impl Strategy<Value = Sampling> {
    let filters = (0..40_usize, 0.05_f32..=1.0, prop_oneof![Just(0.0_f32), 0.0_f32..0.6]);
    let penalties = (0.5_f32..2.0, -1.0_f32..1.0, -1.0_f32..1.0);
    (0.2_f32..2.0, filters, penalties, any::<u64>()).prop_map(
        |(temperature, (top_k, top_p, min_p), (repetition, frequency, presence), seed)| Sampling {
            temperature,
            top_k,
            top_p: if top_p > 0.9 { 1.0 } else { top_p },
            min_p,
            repetition_penalty: repetition,
            frequency_penalty: frequency,
            presence_penalty: presence,
            bias: vec![(3, 1.5)],
            seed,
        },
    )
}

proptest! {
    /// Only tokens that the definition keeps are drawn, about as often as it says.
    #[test]
    fn draws_follow_the_definition(
        sampling in samplings(),
        logits in prop::collection::vec(-4.0_f32..4.0, 5..300),
        prompt in prop::collection::vec(0_u32..5, 0..4),
    ) {
        let expected = distribution(&sampling, &prompt, &[], &logits);
        const DRAWS: usize = 2000;
        let mut counts = vec![0_usize; logits.len()];
        for index in 0..DRAWS {
            // A sampler each, as an answer of one token changes no penalty.
            let seed = random::mix(sampling.seed ^ index as u64);
            let mut sampler = Sampler::new(Sampling { seed, ..sampling.clone() }, &prompt).unwrap();
            counts[sampler.sample(&logits).unwrap() as usize] += 1;
        }
        for (token, (count, probability)) in counts.iter().zip(&expected).enumerate() {
            let mean = DRAWS as f64 * probability;
            // Seven standard deviations, and room for tokens at the edge of a filter.
            let spread = 7.0 * (mean * (1.0 - probability)).sqrt() + 7.0;
            prop_assert!((*count as f64 - mean).abs() <= spread, "{token}: {count} for {mean}");
            prop_assert!(*probability > 0.0 || *count <= 7, "{token} is filtered");
        }
    }

    /// The answer so far counts in the penalties, and the same seed gives the same answer.
    #[test]
    fn greedy_answers_follow_the_penalties(
        sampling in samplings(),
        logits in prop::collection::vec(-4.0_f32..4.0, 5..80),
    ) {
        let greedy = Sampling { temperature: 0.0, ..sampling };
        // Whatever the filters, the likeliest remains.
        let unfiltered =
            Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..greedy.clone() };
        let mut sampler = Sampler::new(greedy, &[1, 2]).unwrap();
        let mut answer = vec![];
        for _ in 0..12 {
            let token = sampler.sample(&logits).unwrap();
            let expected = distribution(&unfiltered, &[1, 2], &answer, &logits);
            let most = expected.iter().copied().fold(0.0, f64::max);
            prop_assert!(expected[token as usize] > most * (1.0 - 1e-4));
            answer.push(token);
        }
    }

    #[test]
    fn the_ranking_is_a_sort(logits in prop::collection::vec(-2_i8..2, 1..700)) {
        let logits: Vec<f32> = logits.into_iter().map(f32::from).collect();
        let mut expected: Vec<u32> = (0..logits.len() as u32).collect();
        expected.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
        let mut order = vec![];
        let mut ranking = Ranking::new(&logits, &mut order);
        let ranked: Vec<u32> = (0..logits.len()).map(|rank| ranking.token(rank)).collect();
        prop_assert_eq!(ranked, expected);
    }
}

#[test]
fn a_seed_repeats_and_seeds_differ() {
    let logits: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.37).sin()).collect();
    let answer = |seed: u64| -> Vec<u32> {
        let sampling = Sampling { temperature: 1.0, seed, ..Sampling::default() };
        let mut sampler = Sampler::new(sampling, &[]).unwrap();
        (0..50).map(|_| sampler.sample(&logits).unwrap()).collect()
    };
    assert_eq!(answer(7), answer(7));
    assert_ne!(answer(7), answer(8));
    let mut distinct = answer(7);
    distinct.sort_unstable();
    distinct.dedup();
    assert!(distinct.len() > 30, "draws of one sequence differ from each other");
}

#[test]
fn extremes_do_not_confuse_it() {
    let sampling = Sampling { temperature: 1e-6, ..Sampling::default() };
    let mut sampler = Sampler::new(sampling, &[]).unwrap();
    assert_eq!(sampler.sample(&[1.0, 3e38, -3e38, f32::NEG_INFINITY]).unwrap(), 1);
    for bad in [f32::NAN, f32::INFINITY] {
        let mut greedy = Sampler::new(Sampling::default(), &[]).unwrap();
        assert!(matches!(greedy.sample(&[0.0, bad]), Err(RuntimeError::NotFinite)));
    }
    let mut greedy = Sampler::new(Sampling::default(), &[]).unwrap();
    assert!(matches!(greedy.sample(&[]), Err(RuntimeError::NotFinite)));
    // A bias for a token that is not there changes nothing.
    let sampling = Sampling { bias: vec![(99, 5.0)], ..Sampling::default() };
    assert_eq!(Sampler::new(sampling, &[77]).unwrap().sample(&[0.0, 1.0]).unwrap(), 1);
}

#[test]
fn parameters_out_of_range_are_named() {
    let cases = [
        (Sampling { temperature: -1.0, ..Sampling::default() }, "temperature"),
        (Sampling { temperature: f32::NAN, ..Sampling::default() }, "temperature"),
        (Sampling { top_p: 0.0, ..Sampling::default() }, "top_p"),
        (Sampling { top_p: 1.5, ..Sampling::default() }, "top_p"),
        (Sampling { min_p: -0.1, ..Sampling::default() }, "min_p"),
        (Sampling { repetition_penalty: 0.0, ..Sampling::default() }, "repetition_penalty"),
        (Sampling { frequency_penalty: 3.0, ..Sampling::default() }, "frequency_penalty"),
        (Sampling { presence_penalty: -3.0, ..Sampling::default() }, "presence_penalty"),
        (Sampling { bias: vec![(0, f32::INFINITY)], ..Sampling::default() }, "logit_bias"),
    ];
    for (sampling, expected) in cases {
        match Sampler::new(sampling, &[]) {
            Err(RuntimeError::Parameter { name, .. }) => assert_eq!(name, expected),
            other => panic!("{expected}: {other:?}"),
        }
    }
}
