//! A checkpoint of any layout is seen as one list of tensors under their Hugging Face names.

use crate::builder::Builder;
use crate::support::{Random, bits, columns, encode, format, fs, reopen, tensor, testdata};
use half::f16;
use lapidary_formats::{FormatError, Source};
use lapidary_store::{Checkpoint, Dtype};
use lapidary_weight::{FloatType, Outline, Tensors, TermOutline, Weight};
use serde_json::json;
use std::path::Path;

fn f32s(bytes: &[u8]) -> Vec<f32> {
    FloatType::F32.decode(bytes)
}

/// All bytes of a tensor, as they are handed on.
fn raw(source: &Source, name: &str) -> Result<Vec<u8>, FormatError> {
    let mut bytes = vec![];
    source.raw(name, |piece| -> Result<(), FormatError> {
        bytes.extend_from_slice(piece);
        Ok(())
    })?;
    Ok(bytes)
}

/// Every tensor of a folder in f32 is what stands in its files, whichever file that is.
fn reads_all(folder: &Path, shards: usize) {
    let source = Source::open(fs(), folder).unwrap();
    let checkpoint = Checkpoint::open(fs(), folder).unwrap();
    assert_eq!(checkpoint.files().len(), shards);
    assert_eq!(source.tensors().len(), checkpoint.tensors().len());
    assert!(source.tensors().len() > 10 && source.consumed().is_empty());
    assert_eq!(source.float_type(), FloatType::F32);
    assert_eq!(source.config()["model_type"], "llama");
    for info in checkpoint.tensors() {
        let bytes = checkpoint.read(info).unwrap();
        assert_eq!(source.shape(&info.name).as_ref(), Some(&info.shape));
        assert_eq!(bits(&source.read(&info.name).unwrap()), bits(&f32s(&bytes)));
        assert_eq!(raw(&source, &info.name).unwrap(), bytes);
        let tensor = source.get(&info.name).unwrap();
        assert_eq!((source.raw_dtype(tensor), &tensor.shape), (Dtype::F32, &info.shape));
        assert_eq!(source.stored_bytes(tensor), bytes.len() as u64);
        let dense = TermOutline::Dense { values: FloatType::F32 };
        if let &[rows, cols] = &info.shape[..] {
            let outline = Outline { rows, cols, terms: vec![dense] };
            assert_eq!(source.outline(tensor), Some(outline.clone()));
            let weight = source.weight(&info.name).unwrap();
            assert_eq!(weight.outline(), outline);
            assert_eq!(bits(&weight.decode()), bits(&f32s(&bytes)));
        } else {
            assert_eq!(source.outline(tensor), None);
            let error = source.weight(&info.name).unwrap_err().to_string();
            assert!(error.contains(&info.name) && error.contains("has shape"), "{error}");
        }
    }
}

#[test]
fn a_folder_of_one_file() {
    reads_all(&testdata("models/llama-untied"), 1);
}

#[test]
fn a_folder_of_shards() {
    reads_all(&testdata("models/llama-sharded"), 5);
}

#[test]
fn rows_are_those_of_the_whole_table() {
    for (folder, table) in [
        ("models/llama-untied", "model.embed_tokens.weight"),
        ("models/llama-bf16", "model.embed_tokens.weight"),
        ("models/mistral-head-dim-f16", "model.embed_tokens.weight"),
    ] {
        let source = Source::open(fs(), &testdata(folder)).unwrap();
        let (all, shape) = (source.read(table).unwrap(), source.shape(table).unwrap());
        let rows = [3, 0, 3, shape[0] as u32 - 1, 7];
        let expected: Vec<f32> = rows
            .iter()
            .flat_map(|row| all[*row as usize * shape[1]..][..shape[1]].to_vec())
            .collect();
        assert_eq!(bits(&source.read_rows(table, &rows).unwrap()), bits(&expected));
        assert!(source.read_rows(table, &[]).unwrap().is_empty());
        let error = source.read_rows(table, &[shape[0] as u32]).unwrap_err().to_string();
        assert!(error.contains(table) && error.contains("was asked for"), "{error}");
    }
}

#[test]
fn compressed_layers_stand_among_plain_tensors() {
    let mut random = Random(1);
    let packed = random.affine((8, 64), 4, columns(32), false, FloatType::Bf16);
    let sum = random.terms(8, 64);
    let sum = Weight::new(8, 64, sum[..4].to_vec()).unwrap();
    let plain: Vec<f32> = random.floats(3 * 64, FloatType::Bf16);
    for (id, weight) in [("compressed-tensors", packed), ("native", sum)] {
        let layers = [("model.a".to_owned(), weight.clone())];
        let (config, mut tensors) = encode(format(id), &layers, FloatType::Bf16);
        let bytes = FloatType::Bf16.encode(&plain);
        tensors.insert(1, tensor("model.embed.weight", Dtype::BF16, &[3, 64], bytes.clone()));
        let opened = reopen(&config, &tensors).unwrap();
        let source = &opened.source;
        let mut names: Vec<&str> = source.tensors().iter().map(|t| t.name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["model.a.weight", "model.embed.weight"]);
        assert_eq!(source.read("model.embed.weight").unwrap(), plain);
        assert_eq!(raw(source, "model.embed.weight").unwrap(), bytes);

        let layer = source.get("model.a.weight").unwrap();
        assert!(layer.is_compressed());
        assert_eq!(source.outline(layer), Some(weight.outline()));
        assert_eq!(layer.stored_as().len(), tensors.len() - 1);
        let stored: usize =
            tensors.iter().filter(|(s, _)| s.name != "model.embed.weight").map(|t| t.1.len()).sum();
        assert_eq!(source.stored_bytes(layer), stored as u64);
        assert_eq!(bits(&source.read("model.a.weight").unwrap()), bits(&weight.decode()));
        let rows = source.read_rows("model.a.weight", &[5, 0, 5]).unwrap();
        let all = weight.decode();
        assert_eq!(rows, [&all[5 * 64..6 * 64], &all[..64], &all[5 * 64..6 * 64]].concat());
        // As plain floats, for whoever cannot take the layer as it is.
        let floats = raw(source, "model.a.weight").unwrap();
        let FormatError::Malformed { what, .. } = raw(source, layer.stored_as()[0]).unwrap_err()
        else {
            panic!("a part of a layer is not a tensor of the model")
        };
        assert_eq!(what, "is part of a compressed layer");
        let dtype = source.raw_dtype(layer);
        assert_eq!(floats.len() as u64, dtype.byte_len(&[8, 64]).unwrap());
    }
}

#[test]
fn values_that_are_no_numbers_are_counted() {
    let mut values = vec![0.5_f32; 12];
    (values[3], values[7], values[8]) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY);
    let bytes = FloatType::F32.encode(&values);
    let tensors = [tensor("a.weight", Dtype::F32, &[3, 4], bytes)];
    let opened = reopen(&json!({}), &tensors).unwrap();
    for error in [
        opened.source.read("a.weight").unwrap_err().to_string(),
        opened.source.weight("a.weight").unwrap_err().to_string(),
    ] {
        assert!(error.contains("a.weight: 3 of its values are not finite, the first at element 3"));
    }
    assert!(opened.source.read_rows("a.weight", &[0, 2]).is_err());
    assert_eq!(opened.source.read_rows("a.weight", &[]).unwrap(), [0.0_f32; 0]);
}

#[test]
fn an_unknown_tensor_is_named_with_the_most_similar_one() {
    let source = Source::open(fs(), &testdata("models/llama-untied")).unwrap();
    let error = source.read("model.norm.weigth").unwrap_err().to_string();
    assert!(error.contains("model.norm.weigth") && error.contains("model.norm.weight"), "{error}");
}

#[test]
fn a_folder_without_a_configuration_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let from = testdata("models/llama-untied/model.safetensors");
    std::fs::copy(from, folder.path().join("model.safetensors")).unwrap();
    let error = Source::open(fs(), folder.path()).unwrap_err().to_string();
    assert!(error.contains("has no config.json"), "{error}");
}

/// Blocks of Q8_0, and the values they stand for.
fn q8_0(random: &mut Random, count: usize) -> (Vec<u8>, Vec<f32>) {
    let (mut bytes, mut values) = (vec![], vec![]);
    for _ in 0..count / 32 {
        let scale = f16::from_f32(random.floats(1, FloatType::F32)[0]);
        bytes.extend(scale.to_le_bytes());
        for _ in 0..32 {
            let code = random.below(256) as u8;
            bytes.push(code);
            values.push(scale.to_f32() * f32::from(code.cast_signed()));
        }
    }
    (bytes, values)
}

/// Rows as llama.cpp's converter arranges those of queries and keys: in each head, the two halves
/// become pairs.
fn paired(values: &[f32], heads: usize, cols: usize) -> Vec<f32> {
    let rows = values.len() / cols;
    let half = rows / heads / 2;
    let mut out = vec![];
    for head in 0..heads {
        for pair in 0..half {
            for which in 0..2 {
                let row = head * 2 * half + which * half + pair;
                out.extend_from_slice(&values[row * cols..][..cols]);
            }
        }
    }
    out
}

#[test]
fn a_gguf_is_the_folder_it_was_made_from() {
    let mut random = Random(2);
    let (hidden, heads, kv_heads, head_dim) = (32, 4, 2, 8);
    let (table_bytes, table) = q8_0(&mut random, 6 * hidden);
    let (down_bytes, down) = q8_0(&mut random, hidden * 64);
    let q = random.floats(heads * head_dim * hidden, FloatType::F16);
    let k = random.floats(kv_heads * head_dim * hidden, FloatType::F16);
    let norm = random.floats(hidden, FloatType::F32);
    let f16s = |values: &[f32]| FloatType::F16.encode(values);
    let builder = Builder::default()
        .set("general.architecture", "llama")
        .set("llama.block_count", 1)
        .set("llama.context_length", 128)
        .set("llama.embedding_length", hidden as u32)
        .set("llama.feed_forward_length", 64)
        .set("llama.attention.head_count", heads as u32)
        .set("llama.attention.head_count_kv", kv_heads as u32)
        .set("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .set("llama.rope.freq_base", 10_000.0)
        .set("llama.rope.dimension_count", head_dim as u32)
        .set("tokenizer.ggml.model", "gpt2")
        .set("tokenizer.ggml.pre", "gpt-2")
        .set("tokenizer.ggml.tokens", ["<s>", "</s>", "a", "b", "ab", "Ġ"])
        .set("tokenizer.ggml.token_type", vec![3, 3, 1, 1, 1, 1])
        .set("tokenizer.ggml.merges", ["a b"])
        .set("tokenizer.ggml.bos_token_id", 0)
        .set("tokenizer.ggml.eos_token_id", 1)
        .tensor_of("token_embd.weight", &[6, hidden], 8, table_bytes)
        .tensor_of("blk.0.attn_q.weight", &[32, hidden], 1, f16s(&paired(&q, heads, hidden)))
        .tensor_of("blk.0.attn_k.weight", &[16, hidden], 1, f16s(&paired(&k, kv_heads, hidden)))
        .tensor_of("blk.0.ffn_down.weight", &[hidden, 64], 8, down_bytes)
        .tensor_of("output_norm.weight", &[hidden], 0, FloatType::F32.encode(&norm));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, builder.bytes()).unwrap();
    let source = Source::open(fs(), &path).unwrap();

    for (name, shape, values) in [
        ("model.embed_tokens.weight", vec![6, hidden], &table),
        ("model.layers.0.self_attn.q_proj.weight", vec![32, hidden], &q),
        ("model.layers.0.self_attn.k_proj.weight", vec![16, hidden], &k),
        ("model.layers.0.mlp.down_proj.weight", vec![hidden, 64], &down),
        ("model.norm.weight", vec![hidden], &norm),
    ] {
        assert_eq!(source.shape(name), Some(shape), "{name}");
        assert_eq!(bits(&source.read(name).unwrap()), bits(values), "{name}");
    }
    assert_eq!(source.tensors().len(), 5);
    let rows = source.read_rows("model.embed_tokens.weight", &[5, 1]).unwrap();
    assert_eq!(rows, [&table[5 * hidden..], &table[hidden..2 * hidden]].concat());
    let rows = source.read_rows("model.layers.0.self_attn.q_proj.weight", &[3]).unwrap();
    assert_eq!(rows, q[3 * hidden..4 * hidden]);

    // Blocks are handed on as floats of 16 bits; 34 bytes hold 32 weights.
    assert_eq!(source.float_type(), FloatType::F16);
    let down_name = "model.layers.0.mlp.down_proj.weight";
    assert_eq!(raw(&source, down_name).unwrap(), f16s(&down));
    let tensor = source.get(down_name).unwrap();
    assert_eq!(source.raw_dtype(tensor), Dtype::F16);
    assert_eq!(source.stored_bytes(tensor), (hidden * 64 / 32 * 34) as u64);

    assert_eq!(source.config()["model_type"], "llama");
    assert_eq!(source.config()["num_key_value_heads"], 2);
    assert_eq!(source.config()["tie_word_embeddings"], true);
    let names: Vec<&str> = source.files().iter().map(|file| file.name.as_str()).collect();
    assert!(names.contains(&"tokenizer.json") && !names.contains(&"config.json"), "{names:?}");
    let tokenizer = source.read_file("tokenizer.json").unwrap();
    let tokenizer = lapidary_store::Tokenizer::from_json(&tokenizer, "test").unwrap();
    assert_eq!(tokenizer.encode("aba", false).unwrap(), [4, 2]);
}

#[test]
fn files_that_go_with_the_weights_are_handed_on_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        let from = testdata("models/llama-untied").join(name);
        std::fs::copy(from, folder.path().join(name)).unwrap();
    }
    let note = b"a licence\r\n\xff\xfe".to_vec();
    std::fs::write(folder.path().join("LICENSE"), &note).unwrap();
    let source = Source::open(fs(), folder.path()).unwrap();
    let names: Vec<&str> = source.files().iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, ["LICENSE"]);
    assert_eq!(source.read_file("LICENSE").unwrap(), note);
    assert!(source.read_file("README.md").is_err());
}
