//! Compressed models in other formats: there and back, and what is lost.

use crate::support::{SMALL, entries, read, read_json, run, with_model};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Type, shape and bytes of every tensor of a folder.
fn tensors(folder: &Path) -> BTreeMap<String, (Value, Vec<u8>)> {
    let file = read(&folder.join("model.safetensors"));
    let length = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header: BTreeMap<String, Value> = serde_json::from_slice(&file[8..length]).unwrap();
    let entries = header.into_iter().filter(|(name, _)| name != "__metadata__");
    let tensor = |(name, mut entry): (String, Value)| {
        let ends = entry["data_offsets"].take();
        let end = |at: usize| length + ends[at].as_u64().unwrap() as usize;
        (name, (entry, file[end(0)..end(1)].to_vec()))
    };
    entries.map(tensor).collect()
}

#[test]
fn there_and_back_every_tensor_is_the_same() {
    let folder = with_model();
    let here = folder.path();
    for (number, recipe) in ["W4A16-rtn", "W4A16_ASYM-rtn", "W3A16-rtn"].iter().enumerate() {
        let name = |what: &str| format!("{what}{number}");
        let [first, middle, back] = ["first", "middle", "back"].map(name);
        run(here, &format!("compress model -r {recipe} --group-size 64 -o {first}")).ok();
        let said = run(here, &format!("convert {first} --to native -o {middle} --strict")).ok();
        assert!(said.contains("28 layers kept exactly, 0 changed"), "{said}");
        let json = format!("convert {middle} --to compressed-tensors -o {back} --strict --json");
        let json = run(here, &json).json();
        assert_eq!(
            (&json["exact"], json["changed"].as_array().map(Vec::len)),
            (&28.into(), Some(0))
        );
        let (before, after) = (tensors(&here.join(&first)), tensors(&here.join(&back)));
        assert!(before.len() > 90 && before == after, "{recipe}: a tensor is not what it was");
        let config = |of: &str| read_json(&here.join(of).join("config.json"));
        assert_eq!(config(&first), config(&back), "{recipe}");
        run(here, &format!("verify {middle}")).ok();
        let again = run(here, &format!("convert {middle} --to compressed-tensors -o {back}")).ok();
        assert!(again.contains("was complete already"), "{again}");
    }
}

#[test]
fn plain_floats_are_what_the_layers_decode_to() {
    let folder = with_model();
    let here = folder.path();
    run(here, "compress model -r W4A16-rtn --group-size 64 -o small").ok();
    let said = run(here, "convert small --to dense -o plain").ok();
    assert!(said.contains("(dense)") && !said.contains("written as plain floats"), "{said}");
    assert!(read_json(&here.join("plain/config.json")).get("quantization_config").is_none());
    let perplexity = |of: &str| -> f64 {
        let eval = run(here, &format!("eval {of} --windows 2 --context 64 --json")).json();
        eval["perplexity"].as_f64().unwrap()
    };
    let (small, plain) = (perplexity("small"), perplexity("plain"));
    assert!((small - plain).abs() < 1e-3 * small, "{small} {plain}");
    // A plain model is copied, bit for bit.
    run(here, "convert model --to dense -o copy").ok();
    assert_eq!(
        read_json(&here.join("copy/lapidary.json"))["tensors"]["compressed"],
        Value::Array(vec![])
    );
    let inspect = |of: &str| run(here, &format!("inspect {of} --json")).json()["sites"].clone();
    assert_eq!(inspect("model"), inspect("copy"));
}

#[test]
fn what_a_format_cannot_hold_is_told_before_and_after() {
    let folder = with_model();
    let here = folder.path();
    let recipe = "steps: [{method: nf4, targets: ['re:.*down_proj']}, {method: rtn, bits: 4, \
                  group_size: 64, ignore: [down_proj]}, {method: rtn, name: table, bits: 8, \
                  group_size: row, targets: [Embedding]}]\nformat: native\n";
    std::fs::write(here.join("recipe.yaml"), recipe).unwrap();
    run(here, &format!("compress model -r recipe.yaml -o mixed {SMALL}")).ok();
    let strict = run(here, "convert mixed --to compressed-tensors -o out --strict");
    assert_eq!(strict.code, Some(3), "{strict:?}");
    assert!(strict.err.contains("written as plain floats") || strict.err.contains("rounded anew"));
    assert!(!entries(here).contains(&"out".to_owned()));
    let said = run(here, "convert mixed --to compressed-tensors -o out");
    let (told, changed) = (&said.err, "layers kept exactly, 4 changed");
    assert!(told.contains("4 layers: lookup 4 bits"), "{said:?}");
    assert!(
        told.contains("is rounded anew to affine 4 bits, groups of 64, asymmetric"),
        "{said:?}"
    );
    assert!(
        told.contains("embed_tokens: compressed-tensors: vLLM and transformers load"),
        "{said:?}"
    );
    let out = said.ok();
    assert!(out.contains(changed) && out.contains("weight error"), "{out}");
    run(here, "verify out").ok();

    let plain = run(here, "convert model --to compressed-tensors -o none");
    plain.failed(3, &["no layer of the model is compressed"]);
    let unknown = run(here, "convert mixed --to gtpq -o none");
    assert_eq!(unknown.code, Some(2), "{unknown:?}");
    std::fs::write(here.join("keep.yaml"), "steps: [{method: keep}, {method: lqer}]").unwrap();
    run(here, "plan mixed -r keep.yaml").failed(3, &["a layer that is kept as it is cannot be"]);
}
