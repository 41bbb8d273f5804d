//! The native format holds every sum of terms, exactly.

use crate::support::{Random, bits, encode, format, reopen};
use lapidary_weight::{FloatType, Tensors, Weight};

#[test]
fn every_kind_of_term_comes_back_exactly() {
    let mut random = Random(1);
    for (rows, cols) in [(1, 1), (6, 40), (3, 33), (37, 7)] {
        let terms = random.terms(rows, cols);
        let weights: Vec<(String, Weight)> = terms
            .into_iter()
            .enumerate()
            .map(|(i, term)| (format!("layers.{i}"), Weight::new(rows, cols, vec![term]).unwrap()))
            .collect();
        round_trip(&weights);
    }
}

#[test]
fn sums_of_terms_come_back_exactly() {
    let mut random = Random(2);
    let mut weights = vec![];
    for index in 0..40 {
        let (rows, cols) = (1 + random.below(9), 1 + random.below(70));
        let mut terms = random.terms(rows, cols);
        let count = random.below(5);
        let sum = (0..count).map(|_| terms.swap_remove(random.below(terms.len())));
        let sum: Vec<_> = sum.collect();
        weights.push((format!("layers.{index}"), Weight::new(rows, cols, sum).unwrap()));
    }
    // A sum of nothing has no tensor that could stand for it in a folder.
    weights.retain(|(_, weight)| !weight.terms().is_empty());
    assert!(weights.len() > 20);
    round_trip(&weights);
}

fn round_trip(weights: &[(String, Weight)]) {
    let (config, tensors) = encode(format("native"), weights, FloatType::F16);
    let opened = reopen(&config, &tensors).unwrap();
    for (module, weight) in weights {
        let name = format!("{module}.weight");
        assert_eq!(&opened.source.weight(&name).unwrap(), weight, "{module}: {weight:?}");
        assert_eq!(bits(&opened.source.read(&name).unwrap()), bits(&weight.decode()));
        // The size that plans and reports count is the size of what is written, up to the bits
        // that fill the last word of a row of codes, of each of up to eight planes.
        let tensor = opened.source.get(&name).unwrap();
        let (stored, counted) = (8 * opened.source.stored_bytes(tensor), weight.bits());
        let streams = 8 * weight.terms().len() * weight.rows();
        assert!(stored >= counted && stored <= counted + 32 * streams as u64, "{weight:?}");
    }
}
