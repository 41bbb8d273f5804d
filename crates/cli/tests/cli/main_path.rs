//! From a model to a smaller one, as a user goes.

use crate::support::{SMALL, entries, files, project, read, read_json, run, with_model};
use serde_json::{Value, json};

#[test]
fn a_model_is_planned_compressed_inspected_verified_and_evaluated() {
    let folder = with_model();
    let here = folder.path();
    let job = format!("model --recipe W4A16 --group-size 64 {SMALL}");
    let plan = run(here, &format!("plan {job}")).ok();
    assert!(plan.contains("gptq: affine 4 bits, groups of 64"), "{plan}");
    assert!(plan.contains("memory at most") && plan.contains("28 compressed, 10 copied"), "{plan}");
    assert_eq!(entries(here), ["model"], "a plan writes nothing");

    let written = run(here, &format!("compress {job} -o out")).ok();
    assert!(written.starts_with("out written\n3.6 MB -> 1.6 MB"), "{written}");
    assert!(written.ends_with("\nnext: lapidary eval out --reference model\n"), "{written}");
    assert_eq!(entries(here), ["model", "out"]);
    let first = files(&here.join("out"));
    let again = run(here, &format!("compress {job} -o out")).ok();
    assert!(again.starts_with("out was complete already\n"), "{again}");
    assert_eq!(files(&here.join("out")), first);

    assert!(run(here, "inspect out").ok().contains("affine 4 bits, groups of 64"));
    assert!(run(here, "verify out").ok().contains("5 files match their hashes; 38 tensors"));
    let eval = run(here, "eval out --reference model --windows 2 --context 64").ok();
    assert!(eval.contains("(protocol windows, 2 windows of 64, 126 tokens)"), "{eval}");
    let long = run(here, "eval out --windows 1 --context 4096");
    assert!(long.err.contains("windows have 512 tokens, the model's context, instead of 4096"));
    assert!(eval.contains("KL divergence") && eval.contains("4.253 bits a weight"), "{eval}");
}

#[test]
fn what_is_written_can_be_told_apart_and_holds_no_path_and_no_clock() {
    let folder = with_model();
    let here = folder.path();
    let output = here.join("out");
    run(here, &format!("compress {0}/model -o {0}/out {SMALL}", here.display())).ok();
    let card = String::from_utf8(read(&output.join("README.md"))).unwrap();
    assert!(card.starts_with("---\nlibrary_name: transformers\n"), "{card}");
    for field in ["base_model: model\n", "base_model_relation: quantized\n", "tags:\n- "] {
        assert!(card.split("\n---\n").next().unwrap().contains(field), "{card}");
    }
    let inside = run(&here.join("model"), &format!("compress . -o ../inside {SMALL}"));
    assert!(
        inside.err.contains("note: 24 layers: compressed-tensors: groups of 128"),
        "{inside:?}"
    );
    inside.ok();
    assert_eq!(files(&here.join("inside")), files(&output), "however the model is named");
    let manifest = read_json(&output.join("lapidary.json"));
    let lists = &manifest["tensors"];
    let count = |list: &str| lists[list].as_array().unwrap().len();
    assert_eq!((count("compressed"), count("copied"), count("dropped")), (28, 10, 0));
    assert_eq!(manifest["notes"].as_array().unwrap().len(), 28, "groups of 128 do not fit");
    for (name, bytes) in files(&output) {
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains(&*here.to_string_lossy()), "{name} names the folder");
    }
    assert_eq!(read(&output.join("tokenizer.json")), read(&here.join("model/tokenizer.json")));
}

#[test]
fn every_preset_is_a_plan_and_names_have_no_case() {
    let folder = with_model();
    let presets = run(folder.path(), "presets --json").json();
    let (best, schemes): (Vec<&Value>, Vec<&Value>) = presets
        .as_array()
        .unwrap()
        .iter()
        .partition(|preset| preset["name"].as_str().unwrap().starts_with("best-"));
    let (schemes, others): (Vec<&Value>, Vec<&Value>) =
        schemes.into_iter().partition(|preset| preset["name"].as_str().unwrap().starts_with('W'));
    assert_eq!((best.len(), schemes.len(), others.len()), (5, 26, 18));
    for preset in best.into_iter().chain(others) {
        let name = preset["name"].as_str().unwrap();
        run(folder.path(), &format!("plan model --json -r {name}")).ok();
    }
    for preset in schemes {
        let name = preset["name"].as_str().unwrap();
        let plan = run(folder.path(), &format!("plan model --json -r {name}")).json();
        let site = &plan["sites"][0];
        assert_eq!(site["method"] == "rtn", name.ends_with("-rtn"), "{name}");
        let term = &site["terms"][0];
        assert_eq!(term["bits"].as_u64().unwrap().to_string(), name[1..2], "{name}: {term}");
        let zeros = if name.contains("_ASYM") { "codes" } else { "middle" };
        assert_eq!(term["zeros"], zeros, "{name}: {term}");
    }
    for name in ["w4a16", "W3A16-rtn", "W8A16_asym-gptq", "W2A16_ASYM-rtn"] {
        run(folder.path(), &format!("compress model -o {name} -r {name} {SMALL}")).ok();
        run(folder.path(), &format!("verify {name}")).ok();
    }
}

#[test]
fn options_and_recipe_files_say_what_is_done() {
    let folder = with_model();
    let here = folder.path();
    let options = "--bits 3 --group-size 32 --asymmetric --set gptq.act_order=false";
    run(here, &format!("compress model -o out {options} {SMALL} --format native")).ok();
    let recipe = |output: &str| {
        read_json(&here.join(output).join("lapidary.json"))["identity"]["recipe"].clone()
    };
    let step = &recipe("out")["steps"][0];
    for (key, value) in [
        ("method", json!("gptq")),
        ("bits", json!(3)),
        ("group_size", json!(32)),
        ("symmetric", json!(false)),
        ("act_order", json!(false)),
    ] {
        assert_eq!(step[key], value, "{step}");
    }
    assert_eq!(recipe("out")["format"], "native");
    assert!(run(here, "inspect out").ok().contains("affine 3 bits, groups of 32, asymmetric"));

    // The recipe of a manifest is a recipe, in JSON as in YAML.
    std::fs::write(here.join("again.json"), recipe("out").to_string()).unwrap();
    run(here, "compress model -o again -r again.json").ok();
    assert_eq!(files(&here.join("again")), files(&here.join("out")));
    let yaml = "steps:\n  - method: rtn\n    targets: ['re:.*_proj']\n    ignore: [down_proj]\n    \
                bits: 8\n    group_size: row\nformat: dense\n";
    std::fs::write(here.join("mine.yaml"), yaml).unwrap();
    run(here, "compress model -o dense -r mine.yaml").ok();
    let sites = run(here, "inspect dense --json").json();
    assert_eq!(sites["bits_per_weight"], 16.0, "a dense model is stored as it was");
    assert_eq!(read_json(&here.join("dense/lapidary.json"))["sites"].as_array().unwrap().len(), 24);
}

#[test]
fn the_same_text_calibrates_alike_whatever_file_it_is_in() {
    let folder = with_model();
    let here = folder.path();
    let text = String::from_utf8(read(&project("assets/demo/evaluation.txt"))).unwrap();
    let text: String = text.chars().take(2000).collect();
    std::fs::write(here.join("text.txt"), &text).unwrap();
    let line = json!({ "text": text, "origin": "a book" });
    std::fs::write(here.join("text.jsonl"), format!("{line}\n\n")).unwrap();
    let tokens = |calibration: &str| -> Value {
        let output = calibration.replace('.', "-");
        run(here, &format!("compress model -o {output} --calibration {calibration} {SMALL}")).ok();
        let manifest = read_json(&here.join(&output).join("lapidary.json"));
        let expected = if calibration == "builtin" { "builtin" } else { "file" };
        assert_eq!(manifest["calibration"]["text"], expected);
        assert_eq!(manifest["calibration"]["rows"], 2);
        manifest["identity"]["calibration_tokens"].clone()
    };
    let (plain, lines, builtin) = (tokens("text.txt"), tokens("text.jsonl"), tokens("builtin"));
    assert_eq!(plain, lines);
    assert_ne!(plain, builtin);
    let weights = |output: &str| read(&here.join(output).join("model.safetensors"));
    assert_eq!(weights("text-txt"), weights("text-jsonl"));
    assert_ne!(weights("text-txt"), weights("builtin"));
}

#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    let folder = with_model();
    let here = folder.path();
    for threads in 1..4 {
        let job = format!("compress model -o out{threads} --threads {threads} --bits 3");
        run(here, &format!("{job} --samples 5 --seq-len 33")).ok();
    }
    let one = files(&here.join("out1"));
    assert!(files(&here.join("out2")) == one && files(&here.join("out3")) == one);
}

#[test]
fn a_file_for_llama_cpp_is_taken_by_every_verb() {
    let folder = with_model();
    let here = folder.path();
    let job = format!("model --recipe Q4_0 {SMALL}");
    assert!(run(here, &format!("plan {job}")).ok().contains("llama.cpp"));
    let file = run(here, &format!("compress {job} -o out.gguf"));
    file.failed(3, &["out.gguf names a file", "write -o out and find out/model.gguf"]);
    run(here, &format!("compress {job} -o out")).ok();
    assert_eq!(entries(&here.join("out")), ["README.md", "lapidary.json", "model.gguf"]);
    assert!(run(here, "verify out").ok().contains("2 files match their hashes; 38 tensors"));
    for model in ["out", "out/model.gguf"] {
        assert_eq!(run(here, &format!("inspect {model} --json")).json()["bits_per_weight"], 4.5);
        let eval = format!("eval {model} --reference model --windows 2 --context 64 --json");
        let eval = run(here, &eval).json();
        assert_eq!(eval["bits_per_weight"], 4.5);
        assert!(eval["kl_divergence"].as_f64().unwrap() < 0.2, "{eval}");
        run(here, &format!("run {model} --prompt It --max-tokens 3")).ok();
    }
    run(here, "verify out/model.gguf").ok();
}
