//! Plain floats: the values rounded to the model's type, whatever the weight was.

use crate::support::{FLOATS, Random, bits, encode, format, reopen};
use lapidary_weight::{Tensors, Term, Weight};

#[test]
fn each_type_holds_the_values_rounded_to_it() {
    let mut random = Random(1);
    for dtype in FLOATS {
        let terms = random.terms(6, 40);
        let weights: Vec<(String, Weight)> = terms
            .into_iter()
            .enumerate()
            .map(|(i, term)| (format!("layers.{i}"), Weight::new(6, 40, vec![term]).unwrap()))
            .collect();
        let (config, tensors) = encode(format("dense"), &weights, dtype);
        assert!(config.get("quantization_config").is_none(), "every loader reads it as plain");
        let opened = reopen(&config, &tensors).unwrap();
        for (module, weight) in &weights {
            let name = format!("{module}.weight");
            let expected: Vec<f32> = weight.decode().into_iter().map(|v| dtype.round(v)).collect();
            assert_eq!(bits(&opened.source.read(&name).unwrap()), bits(&expected), "{name}");
            let back = opened.source.weight(&name).unwrap();
            let [Term::Dense(dense)] = back.terms() else { panic!("one dense term") };
            assert_eq!((bits(&dense.values), dense.dtype), (bits(&expected), dtype));
        }
        assert_eq!(opened.source.float_type(), dtype);
    }
}

#[test]
fn what_is_encoded_is_decoded() {
    let mut random = Random(2);
    for dtype in FLOATS {
        for term in random.terms(3, 17) {
            let weight = Weight::new(3, 17, vec![term]).unwrap();
            let bytes = format("dense").encode(&weight, dtype).unwrap();
            let read = |name: &str| {
                assert_eq!(name, "m.weight");
                Ok(bytes[0].clone())
            };
            let back = format("dense").decode("m", &weight.outline(), dtype, &read).unwrap();
            let expected: Vec<f32> = weight.decode().into_iter().map(|v| dtype.round(v)).collect();
            // A sum that begins at 0 has no −0.
            assert_eq!(back.decode(), expected);
        }
    }
}
