//! Importance matrices, and the experts of a layer, which one tensor or one entry holds.

use super::*;
use lapidary_engine::importance::gather;
use lapidary_engine::recipe::Calibration;
use lapidary_engine::{Failure, Silent};
use lapidary_formats::gguf::{Importance, Inputs};
use lapidary_kernels::ggml::BlockKind;
use lapidary_store::safetensors::Writer;
use lapidary_store::{Dtype, TensorSpec};
use lapidary_weight::FloatType;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

#[test]
fn an_importance_matrix_stands_in_for_calibration() {
    let scratch = scratch();
    let source = open(&demo());
    let calibration = Calibration { samples: 4, seq_len: 64, ..Calibration::default() };
    let (stop, path) = (AtomicBool::new(false), scratch.path().join("demo.imatrix.gguf"));
    let found = gather(&real(), &source, &calibration, 0, &stop, &Silent).unwrap();
    found.write(&real(), &path, source.config()).unwrap();
    assert_eq!(Importance::read(&*real(), &path, source.config()).unwrap(), found);
    // The sums are the diagonals of what calibration gathers, which llama.cpp's own names tell.
    let gguf = read_gguf(&*real().open(&path).unwrap()).unwrap();
    assert!(gguf.tensors.iter().any(|tensor| tensor.name == "blk.0.ffn_down.weight.in_sum2"));
    assert!(found.layers.values().all(|inputs| inputs.tokens == 256.0));

    let with = |step: &str, path: &Path| {
        let mut setup = setup(demo(), step, scratch.path());
        setup.recipe = json!({
            "steps": [{ "method": "omse", "grid": "q4_0", "weighted": true }],
            "calibration": { "imatrix": path }, "format": "gguf",
        })
        .to_string();
        if step == "gptq" {
            setup.recipe = setup.recipe.replace("omse", "gptq").replace(r#","weighted":true"#, "");
        }
        setup
    };
    let manifest = with(EIGHT, &path).run(&scratch.path().join("out")).unwrap().manifest;
    // Weighted by the inputs, the outputs lose less than with every column alike.
    let alike = setup(demo(), "method: omse, grid: q4_0", scratch.path());
    let loss = |name: &str| found.layers[name].squares.clone();
    let error = |folder: &Path| -> f64 {
        let (before, after) = (open(&demo()), open(folder));
        let layers = manifest.tensors.compressed.iter();
        let of_layer = |name: &String| {
            let (weight, other) = (before.read(name).unwrap(), after.read(name).unwrap());
            let squares = loss(name);
            let columns = squares.iter().cycle();
            let terms = weight.iter().zip(&other).zip(columns);
            terms.map(|((a, b), c)| f64::from((a - b).powi(2) * c)).sum::<f64>()
        };
        layers.map(of_layer).sum()
    };
    alike.run(&scratch.path().join("alike")).unwrap();
    let (weighted, plain) =
        (error(&scratch.path().join("out")), error(&scratch.path().join("alike")));
    assert!(weighted < 0.97 * plain, "{weighted} {plain}");

    let refused = |setup: Setup, words: &str| {
        let error = setup.run(&scratch.path().join("refused")).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    refused(with("gptq", &path), "needs the whole Gram matrix");
    let mut narrow = found.clone();
    let (name, inputs) = narrow.layers.iter_mut().next().unwrap();
    let module = name.strip_suffix(".weight").unwrap().to_owned();
    inputs.squares.pop();
    let other = scratch.path().join("narrow.gguf");
    narrow.write(&real(), &other, source.config()).unwrap();
    refused(with(EIGHT, &other), &format!("columns for {module}"));
    narrow.layers.pop_first();
    narrow.write(&real(), &other, source.config()).unwrap();
    refused(with(EIGHT, &other), &format!("nothing of the inputs of {module}"));
}

/// A Mixtral of three experts whose rows blocks divide, its weights random.
fn wide_mixtral(folder: &Path) -> PathBuf {
    let copy = with_tokenizer("mixtral", folder);
    let path = copy.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (key, size) in [("hidden_size", 32), ("intermediate_size", 64), ("num_local_experts", 3)] {
        config[key] = json!(size);
    }
    std::fs::write(&path, config.to_string()).unwrap();
    let tensors: Vec<(String, Vec<usize>)> = spec(&config).unwrap().tensors();
    let specs: Vec<TensorSpec> =
        tensors.iter().map(|(name, shape)| TensorSpec::new(name, Dtype::F32, &shape[..])).collect();
    let mut writer =
        Writer::create(&real(), &copy.join("model.safetensors"), &specs, &BTreeMap::new()).unwrap();
    let mut state = 1_u32;
    for name in writer.order().map(str::to_owned).collect::<Vec<_>>() {
        let (_, shape) = tensors.iter().find(|(known, _)| *known == name).unwrap();
        let values = (0..shape.iter().product()).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        });
        writer.append(&name, &FloatType::F32.encode(&values.collect::<Vec<_>>())).unwrap();
    }
    writer.finish().unwrap();
    copy
}

#[test]
fn experts_stand_together_in_blocks_and_in_importance_matrices() {
    let scratch = scratch();
    let model = wide_mixtral(scratch.path());
    let output = scratch.path().join("out");
    setup(model.clone(), "method: rtn, grid: q4_0", scratch.path()).run(&output).unwrap();
    let gguf = read_gguf(&*real().open(&output.join("model.gguf")).unwrap()).unwrap();
    let shape = |name: &str| &gguf.tensors.iter().find(|t| t.name == name).unwrap().shape;
    assert_eq!(*shape("blk.1.ffn_gate_exps.weight"), [3, 64, 32]);
    assert_eq!(*shape("blk.1.ffn_down_exps.weight"), [3, 32, 64]);
    let (before, after) = (open(&model), open(&output));
    for expert in 0..3 {
        for (part, size) in [("w1", (64, 32)), ("w3", (64, 32)), ("w2", (32, 64))] {
            let name = format!("model.layers.1.block_sparse_moe.experts.{expert}.{part}.weight");
            let blocks = after.blocks(&name).unwrap().unwrap();
            assert_eq!((blocks.kind, blocks.rows, blocks.cols), (BlockKind::Q4_0, size.0, size.1));
            let (had, has) = (before.read(&name).unwrap(), after.read(&name).unwrap());
            let furthest = had.iter().zip(&has).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(furthest <= 1.01 / 8.0, "{name}: {furthest}");
        }
    }
    // And from there into another file.
    let again = scratch.path().join("again");
    setup(output, "method: keep", scratch.path()).run(&again).unwrap();
    let name = "model.layers.0.block_sparse_moe.experts.2.w2.weight";
    assert_eq!(open(&again).blocks(name).unwrap(), after.blocks(name).unwrap());

    let text = rows(scratch.path()).display().to_string();
    let calibration = Calibration { text, samples: 2, seq_len: 16, ..Calibration::default() };
    let (stop, path) = (AtomicBool::new(false), scratch.path().join("mixtral.imatrix.gguf"));
    let found = gather(&real(), &before, &calibration, 0, &stop, &Silent).unwrap();
    found.write(&real(), &path, before.config()).unwrap();
    let read = Importance::read(&*real(), &path, before.config()).unwrap();
    assert_eq!(read, found);
    let tokens = |expert: usize| {
        read.layers[&format!("model.layers.0.block_sparse_moe.experts.{expert}.w1.weight")].tokens
    };
    assert_eq!((0..3).map(tokens).sum::<f32>(), 2.0 * 32.0);
}

#[test]
fn experts_of_a_layer_have_one_type() {
    let scratch = scratch();
    let model = wide_mixtral(scratch.path());
    let step = "method: rtn, grid: q4_0, targets: ['re:.*experts\\.1\\.w2']";
    let error = setup(model, step, scratch.path()).run(&scratch.path().join("out")).unwrap_err();
    assert_eq!(error.failure(), Failure::Refused, "{error}");
    assert!(error.to_string().contains("must be alike"), "{error}");
}

#[test]
fn an_importance_matrix_of_experts_stands_in_one_tensor() {
    let (scratch, source) = (scratch(), open(&model("qwen3-moe-blocks")));
    let mut found = Importance { rows: 1, row_tokens: 8, ..Importance::default() };
    for (number, linear) in spec(source.config()).unwrap().linears().enumerate() {
        if linear.module.contains("experts") || linear.module.contains("o_proj") {
            let squares = (0..linear.in_features).map(|column| (number * column) as f32).collect();
            let inputs = Inputs { squares, tokens: number as f32 };
            found.layers.insert(linear.weight.clone(), inputs);
        }
    }
    let path = scratch.path().join("experts.imatrix.gguf");
    found.write(&real(), &path, source.config()).unwrap();
    assert_eq!(Importance::read(&*real(), &path, source.config()).unwrap(), found);
    let gguf = read_gguf(&*real().open(&path).unwrap()).unwrap();
    let shape =
        |name: &str| gguf.tensors.iter().find(|tensor| tensor.name == name).unwrap().shape.clone();
    assert_eq!(shape("blk.1.ffn_down_exps.weight.in_sum2"), [3, 32]);
    assert_eq!(shape("blk.1.ffn_down_exps.weight.counts"), [3, 1]);
    // The older form has all experts' columns in one entry.
    let mut old = 1_i32.to_le_bytes().to_vec();
    let name = b"blk.1.ffn_down_exps.weight";
    old.extend((name.len() as i32).to_le_bytes());
    old.extend(name);
    old.extend([3_i32, 96].iter().flat_map(|number| number.to_le_bytes()));
    old.extend((0..96).flat_map(|column| (column as f32).to_le_bytes()));
    std::fs::write(&path, old).unwrap();
    let read = Importance::read(&*real(), &path, source.config()).unwrap();
    let last = &read.layers["model.layers.1.mlp.experts.2.down_proj.weight"];
    assert_eq!((read.layers.len(), last.tokens), (3, 3.0));
    assert_eq!(last.squares, (64..96).map(|column| column as f32).collect::<Vec<_>>());
    // An expert that is missing would give its place to the next.
    let gap = found.layers.keys().find(|name| name.contains("experts.0.")).cloned();
    found.layers.remove(&gap.unwrap());
    assert!(found.write(&real(), &path, source.config()).is_err());
}

#[test]
fn an_importance_matrix_of_the_older_form_is_read() {
    let scratch = scratch();
    let source = open(&demo());
    let mut bytes = 1_i32.to_le_bytes().to_vec();
    let name = b"blk.0.attn_q.weight";
    bytes.extend((name.len() as i32).to_le_bytes());
    bytes.extend(name);
    bytes.extend([3_i32, 2].iter().flat_map(|number| number.to_le_bytes()));
    bytes.extend([1.5_f32, 6.0].iter().flat_map(|value| value.to_le_bytes()));
    let path = scratch.path().join("old.dat");
    let read = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        Importance::read(&*real(), &path, source.config())
    };
    let found = read(&bytes).unwrap();
    let inputs = &found.layers["model.layers.0.self_attn.q_proj.weight"];
    assert_eq!((inputs.squares.clone(), inputs.tokens), (vec![1.5, 6.0], 3.0));
    for length in 0..bytes.len() {
        assert!(read(&bytes[..length]).is_err(), "{length}");
    }
    assert!(read(&[0xff; 40]).is_err() && read(b"GGUFGGUFGGUF").is_err());
}
