//! A model of a given size: `--bpw`, `--size`, `--max-kl`, `--parameters`, `--speedup`.

use crate::support::{SMALL, entries, files, read_json, run, with_model, with_tiny};

#[test]
fn a_size_is_planned_searched_for_and_found_again_by_its_recipe() {
    let folder = with_model();
    let here = folder.path();
    let job = format!("model --group-size 32 {SMALL} --bpw 3.25");
    let plan = run(here, &format!("plan {job}")).ok();
    for part in [
        "gptq bits 2 ",
        "gptq bits 8 ",
        "budget 3.25 bits a weight: the best candidate for each of 16 groups of layers (28 layers)",
        "reachable: 2.5",
    ] {
        assert!(plan.contains(part), "no {part:?} in {plan}");
    }
    assert_eq!(run(here, &format!("plan {job} --json")).json()["units"], 16);
    assert_eq!(entries(here), ["model"], "a plan writes nothing");

    let said = run(here, &format!("compress {job} -o out"));
    assert!(said.err.contains("note: chosen: 3.2"), "{said:?}");
    assert!(said.err.contains("proven to be the best of all choices"), "{said:?}");
    assert!(said.ok().contains("the search in it: "));
    let found = read_json(&here.join("out/search.json"));
    let stored = found["chosen"]["bits_per_weight"].as_f64().unwrap();
    assert!(stored <= 3.25 && stored > 0.995 * 3.25, "{stored}");
    assert!(run(here, "verify out").ok().contains("7 files match"));
    run(here, "compress model -r out/recipe.yaml -o again").ok();
    let (out, again) = (files(&here.join("out")), files(&here.join("again")));
    assert_eq!(out["model.safetensors"], again["model.safetensors"]);
    assert!(run(here, &format!("compress {job} -o out")).ok().contains("was complete already"));

    run(here, &format!("compress model {SMALL} --group-size 32 --size 1.4MB -o small")).ok();
    let bytes = std::fs::metadata(here.join("small/model.safetensors")).unwrap().len();
    assert!((1_390_000..=1_400_000).contains(&bytes), "{bytes}");
    let close = run(here, &format!("compress model {SMALL} --max-kl 0.01 -o close --json")).json();
    assert!(close["seconds"]["search"].as_f64().unwrap() > 0.0, "{close}");
    let found = read_json(&here.join("close/search.json"));
    assert!(found["chosen"]["predicted_divergence"].as_f64().unwrap() <= 0.01, "{found}");
}

#[test]
fn a_shape_is_planned_searched_for_and_found() {
    let folder = with_model();
    let here = folder.path();
    let job = format!(
        "model {SMALL} --method layers+minitron --set layers.drop=[0,1,2] --set \
         minitron.neurons=[0,0.25]"
    );
    let plan = run(here, &format!("plan {job} --speedup 1.2")).ok();
    for part in ["layers drop 1 + minitron neurons 0.25", "too large", "tokens written 1.2 times"] {
        assert!(plan.contains(part), "no {part:?} in {plan}");
    }
    let shapes = run(here, &format!("plan {job} --speedup 1.2 --json")).json();
    assert_eq!(shapes["shapes"].as_array().unwrap().len(), 6);
    assert_eq!(entries(here), ["model"], "a plan writes nothing");
    // Bits that are settled are no hindrance where shapes are open.
    let quantized = format!("{job} --speedup 2").replace("minitron ", "minitron+gptq --bits 4 ");
    let plan = run(here, &format!("plan {quantized} --json")).json();
    assert!(plan["shapes"][0]["label"].as_str().unwrap().ends_with("gptq"), "{plan}");
    let most = shapes["shapes"][3]["parameters"].as_u64().unwrap();
    let said = run(here, &format!("compress {job} --parameters {most} -o small"));
    assert!(said.err.contains("note: chosen: layers drop"), "{said:?}");
    said.ok();
    let found = read_json(&here.join("small/search.json"));
    let is_chosen = |shape: &&serde_json::Value| shape["chosen"] == true;
    let chosen = found["shapes"].as_array().unwrap().iter().find(is_chosen).unwrap();
    assert!(chosen["parameters"].as_u64().unwrap() <= most, "{found}");
    assert!(run(here, "verify small").ok().contains("files match"));
}

#[test]
fn targets_that_make_no_sense() {
    let folder = with_tiny();
    let here = folder.path();
    let cases: [(&str, i32, &[&str]); 9] = [
        ("--parameters 1k", 2, &["nothing to choose from", "layers.drop=[0, 2, 4]"]),
        ("--size 1MB --bits 4", 2, &["--bits 4 leaves a budget", "nothing to choose"]),
        ("--speedup 99", 3, &["99 times the speed cannot be reached", "are expected"]),
        ("--bpw 0", 2, &["budget.bpw: 0.0 is not a positive number"]),
        ("--max-kl=-1", 2, &["budget.max_kl: -1.0 is not a positive number"]),
        ("--bpw 1", 3, &["1 bits a weight cannot be reached", "ask for"]),
        ("--size 1kB", 3, &["weight files of 1000 bytes cannot be reached", "ask for that"]),
        ("--set gptq.bits=[3,4]", 2, &["have 2 candidates and no budget", "--bpw"]),
        ("--bpw 4 --set gptq.bits=[3,9]", 2, &["bits: 9 is not from 2 to 8"]),
    ];
    for (options, code, parts) in cases {
        for job in ["compress tiny -q -o out", "plan tiny"] {
            let said = run(here, &format!("{job} {options}"));
            assert_eq!(said.code, Some(code), "{said:?}");
            for part in parts {
                assert!(said.err.contains(part), "{part}: {said:?}");
            }
        }
    }
    assert_eq!(run(here, "plan tiny --bpw 4 --size 1MB").code, Some(2));
    assert_eq!(run(here, "plan tiny --bpw 4 --bits 3").code, Some(2));
    assert_eq!(entries(here), ["tiny"]);
}
