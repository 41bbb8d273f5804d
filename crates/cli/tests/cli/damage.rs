//! Checkpoints that are damaged, hostile or of an unknown kind: one line, exit code 4, and nothing
//! under the name of the result.

use crate::support::{copy, entries, files, read, run, scratch, with_model, with_tiny};
use std::path::Path;

/// Compressing `model` fails with one line that has these parts, and leaves nothing behind.
#[track_caller]
fn refused(here: &Path, model: &str, parts: &[&str]) {
    let before = entries(here);
    run(here, &format!("compress {model} -q -o out -r W4A16-rtn")).failed(4, parts);
    run(here, &format!("inspect {model}")).failed(4, parts);
    assert_eq!(entries(here), before);
}

#[test]
fn safetensors_that_are_cut_or_lie() {
    let folder = with_tiny();
    let here = folder.path();
    let path = here.join("tiny/model.safetensors");
    let whole = read(&path);
    let header = |length: u64, rest: &[u8]| [&length.to_le_bytes(), rest].concat();
    let huge = br#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}"#;
    let damaged: [(&str, Vec<u8>, &[&str]); 7] = [
        ("cut in a tensor", whole[..60_000].to_vec(), &["truncated", "tensor `model.", "60000"]),
        ("cut in the header", whole[..500].to_vec(), &["tiny/model.safetensors"]),
        ("empty", vec![], &["tiny/model.safetensors"]),
        ("a header of exabytes", header(1 << 62, b"{}"), &["byte 0", "above the limit"]),
        ("a header beyond the file", header(5000, b"{}"), &["tiny/model.safetensors"]),
        ("a header that is no JSON", header(4, b"{{{{"), &["tiny/model.safetensors"]),
        ("a shape of 2^64 values", header(huge.len() as u64, huge), &["`a`"]),
    ];
    for (what, bytes, parts) in damaged {
        println!("{what}");
        std::fs::write(&path, bytes).unwrap();
        refused(here, "tiny", parts);
    }
    std::fs::remove_file(&path).unwrap();
    refused(here, "tiny", &["tiny"]);
}

#[test]
fn ggufs_that_are_cut_or_lie() {
    let folder = scratch();
    let here = folder.path();
    let string = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let start = |tensors: u64, keys: u64| {
        [b"GGUF".as_slice(), &3_u32.to_le_bytes(), &tensors.to_le_bytes(), &keys.to_le_bytes()]
            .concat()
    };
    // One string, `general.architecture`, and one tensor of 8 times 32 floats.
    let key = [string("general.architecture"), 8_u32.to_le_bytes().to_vec(), string("llama")];
    let tensor = [
        string("token_embd.weight"),
        2_u32.to_le_bytes().to_vec(),
        [32_u64.to_le_bytes(), 8_u64.to_le_bytes()].concat(),
        [0_u32.to_le_bytes().as_slice(), &0_u64.to_le_bytes()].concat(),
    ];
    let whole = [start(1, 1), key.concat(), tensor.concat()].concat();
    let without_data = [whole.clone(), vec![0; 100]].concat();
    let endless = [start(0, 1), u64::MAX.to_le_bytes().to_vec()].concat();
    let damaged: [(&str, Vec<u8>, &[&str]); 7] = [
        ("cut in the data", without_data, &["truncated", "token_embd.weight"]),
        ("cut in a tensor's description", whole[..whole.len() - 9].to_vec(), &["model.gguf"]),
        ("cut in a key", whole[..40].to_vec(), &["model.gguf"]),
        ("cut in the magic", whole[..3].to_vec(), &["model.gguf"]),
        ("2^64 tensors", start(u64::MAX, 0), &["model.gguf", "18446744073709551615"]),
        ("a string without end", endless, &["model.gguf"]),
        (
            "another version",
            [b"GGUF".as_slice(), &99_u32.to_le_bytes(), &[0; 16]].concat(),
            &["99"],
        ),
    ];
    for (what, bytes, parts) in damaged {
        println!("{what}");
        std::fs::write(here.join("model.gguf"), bytes).unwrap();
        refused(here, "model.gguf", parts);
    }
}

#[test]
fn shards_that_are_missing_or_elsewhere() {
    let folder = scratch();
    let here = folder.path();
    let shards: Vec<String> =
        (1..6).map(|i| format!("model-{i:05}-of-00005.safetensors")).collect();
    let others = ["config.json", "model.safetensors.index.json"];
    let names: Vec<&str> = others.into_iter().chain(shards.iter().map(String::as_str)).collect();
    copy("testdata/models/llama-sharded", &names, &here.join("model"));
    let index = here.join("model/model.safetensors.index.json");
    let text = String::from_utf8(read(&index)).unwrap();
    run(here, "inspect model").ok();
    for place in ["../elsewhere.safetensors", "/etc/passwd", "a/../../b.safetensors"] {
        std::fs::write(&index, text.replace(&shards[2], place)).unwrap();
        refused(here, "model", &["model.safetensors.index.json", place, "do not trust"]);
    }
    std::fs::write(&index, text).unwrap();
    std::fs::remove_file(here.join("model").join(&shards[2])).unwrap();
    refused(here, "model", &[&shards[2], "does not exist", "download this shard"]);
}

#[test]
fn configurations_that_are_unknown_or_damaged() {
    let folder = with_tiny();
    let here = folder.path();
    let path = here.join("tiny/config.json");
    let text = String::from_utf8(read(&path)).unwrap();
    let martian = text.replace("llama", "martian").replace("Llama", "Martian");
    let wide = text.replace("\"hidden_size\": 32", "\"hidden_size\": 1073741824");
    let negative = text.replace("\"num_hidden_layers\": 3", "\"num_hidden_layers\": -3");
    let many = text.replace("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 4");
    let cases: [(&str, &[&str]); 6] = [
        (&martian, &["config.json", "\"martian\"", "known are", "llama"]),
        (&wide, &["hidden_size"]),
        (&negative, &["num_hidden_layers"]),
        (&many, &["model.layers.3."]),
        (&text[..80], &["config.json", "line"]),
        ("[]", &["config.json"]),
    ];
    for (text, parts) in cases {
        std::fs::write(&path, text).unwrap();
        run(here, "compress tiny -q -o out -r W4A16-rtn").failed(4, parts);
        assert_eq!(entries(here), ["tiny"]);
    }
}

#[test]
fn weights_that_are_not_numbers() {
    let folder = with_tiny();
    let here = folder.path();
    let path = here.join("tiny/model.safetensors");
    let mut bytes = read(&path);
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let name = "model.layers.1.mlp.gate_proj.weight";
    let begin = header[name]["data_offsets"][0].as_u64().unwrap() as usize;
    let at = 8 + length + begin + 4 * 77;
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, &bytes).unwrap();
    for preset in ["W4A16-rtn", "W4A16-gptq"] {
        let rows = if preset.ends_with("rtn") { "" } else { " --calibration rows.safetensors" };
        crate::support::write_rows(&here.join("rows.safetensors"));
        let job = format!("compress tiny -q -o out -r {preset}{rows}");
        run(here, &job).failed(4, &["model.layers.1.mlp.gate_proj", "finite"]);
        assert!(!here.join("out").exists());
        std::fs::remove_dir_all(here.join(".out.lapidary")).unwrap();
    }
    run(here, "verify tiny").failed(4, &[name]);
}

#[test]
fn any_changed_file_of_a_result_is_named() {
    let folder = with_model();
    let here = folder.path();
    run(here, "compress model -o out -r W4A16-rtn").ok();
    let output = here.join("out");
    for (name, whole) in files(&output) {
        let path = output.join(&name);
        if name != "lapidary.json" {
            let mut bytes = whole.clone();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            run(here, "verify out").failed(4, &["out", &name, "was changed after it was written"]);
            std::fs::remove_file(&path).unwrap();
            run(here, "verify out").failed(4, &["out", &name, "is missing"]);
        }
        std::fs::write(&path, whole).unwrap();
    }
    std::fs::write(output.join("model-2.safetensors"), "something else").unwrap();
    run(here, "verify out").failed(4, &["model-2.safetensors is not in the manifest"]);
    std::fs::remove_file(output.join("model-2.safetensors")).unwrap();
    run(here, "verify out").ok();
    std::fs::write(output.join("lapidary.json"), "{\"identity\": ").unwrap();
    run(here, "verify out").failed(4, &["lapidary.json"]);
}
