//! `--json`: every verb prints one value with the promised keys.

use crate::support::{SMALL, run, with_model};
use serde_json::Value;

#[track_caller]
fn has(value: &Value, keys: &[&str]) {
    for key in keys {
        assert!(value.get(key).is_some_and(|value| !value.is_null()), "no {key} in {value}");
    }
}

#[test]
fn verbs_on_a_model_have_their_keys() {
    let folder = with_model();
    let here = folder.path();
    let plan = run(here, &format!("plan model --json {SMALL}")).json();
    has(&plan, &["format", "bits_per_weight", "peak_memory_bytes", "disk_bytes", "sites", "notes"]);
    has(&plan["sites"][0], &["name", "shape", "step", "method", "terms"]);

    let done = run(here, &format!("compress model -o out --json {SMALL}")).json();
    has(&done, &["output", "format", "bits_per_weight", "source_bytes", "bytes", "fallbacks"]);
    assert_eq!(done["was_complete"], false);
    assert_eq!(done["bits_per_weight"], plan["bits_per_weight"], "the plan said so");
    assert_eq!(done["sites"].as_array().unwrap().len(), 28);
    let again = run(here, &format!("compress model -o out --json {SMALL}")).json();
    assert_eq!(again["was_complete"], true);

    let inspected = run(here, "inspect out --json").json();
    has(&inspected, &["parameters", "bytes", "bits_per_weight", "sites"]);
    has(&inspected["sites"][0], &["name", "shape", "terms", "bits"]);
    assert_eq!(inspected["bits_per_weight"], plan["bits_per_weight"]);
    let verified = run(here, "verify out --json").json();
    assert_eq!((&verified["verified"], &verified["tensors"]), (&true.into(), &38.into()));
}

#[test]
fn an_evaluation_has_its_keys_in_every_protocol() {
    let folder = with_model();
    let here = folder.path();
    std::fs::write(here.join("text.txt"), TEXT).unwrap();
    for protocol in ["windows", "llama.cpp", "word"] {
        let options = format!("--protocol {protocol} --windows 1 --context 32 --text text.txt");
        let alone = run(here, &format!("eval model --json {options}")).json();
        has(&alone, &["perplexity", "tokens", "windows", "bits_per_weight", "bytes"]);
        assert_eq!(alone["protocol"], protocol);
        assert!(alone.get("kl_divergence").is_none(), "there is no reference: {alone}");
        let both = run(here, &format!("eval model --reference model --json {options}")).json();
        assert_eq!(both["perplexity"], alone["perplexity"]);
        assert_eq!(both["reference_perplexity"], both["perplexity"], "a model and itself");
        assert!(both["kl_divergence"].as_f64().unwrap().abs() < 1e-9, "{both}");
        assert_eq!(both["top1_agreement"], 1.0);
        assert_eq!(alone.get("word_perplexity").is_some(), protocol == "word");
    }
}

#[test]
fn a_reference_may_be_compared_in_fewer_windows() {
    let folder = with_model();
    let here = folder.path();
    std::fs::write(here.join("text.txt"), TEXT).unwrap();
    let options = "--context 32 --text text.txt --reference-windows 1";
    let some = run(here, &format!("eval model --reference model --json {options}")).json();
    assert!(some["windows"].as_u64() > Some(1), "{some}");
    assert_eq!(some["compared_windows"], 1);
    assert_eq!(some["compared_perplexity"], some["reference_perplexity"], "a model and itself");
    assert_ne!(some["compared_perplexity"], some["perplexity"]);
    let told = run(here, &format!("eval model --reference model {options}")).ok();
    assert!(told.contains("first 1 windows: perplexity"), "{told}");
    let alone = run(here, &format!("eval model {options}"));
    assert!(alone.code == Some(2) && alone.err.contains("--reference <REFERENCE>"), "{alone:?}");
}

#[test]
fn verbs_without_a_model_have_their_keys() {
    let folder = crate::support::scratch();
    let methods = run(folder.path(), "methods --json").json();
    let names: Vec<&str> =
        methods.as_array().unwrap().iter().map(|m| m["method"].as_str().unwrap()).collect();
    for name in ["rtn", "omse", "gptq"] {
        assert!(names.contains(&name), "{names:?}");
        assert!(run(folder.path(), "methods").ok().contains(&format!("{name}: ")));
    }
    has(&methods[0], &["method", "summary", "paper", "defaults", "parameters"]);
    has(&run(folder.path(), "presets W4A16 --json").json(), &["name", "summary", "recipe"]);
    assert!(run(folder.path(), "presets W4A16").ok().contains("method: gptq"));
    let schema = run(folder.path(), "presets --schema").json();
    has(&schema, &["$schema", "properties"]);
    has(&schema["properties"], &["steps", "calibration", "format"]);
    assert_eq!(run(folder.path(), "presets --schema --json").json(), schema);
}

/// Two pages, long enough for a window of 32 tokens.
const TEXT: &str = "= Rivers =\n\nThe river was low, and the boats lay on the sand until the tide \
came back in the evening. The men sat by the wall and spoke of the weather, of the price of salt and \
of the war that was said to be over.\n\n= Hills =\n\nBeyond the town the hills were bare. Nobody \
went there in winter, and in summer only the herds and the boys who kept them did.\n";
