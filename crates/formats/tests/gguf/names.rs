//! Tensor names, the order of rows, and values.

use lapidary_formats::gguf::{Change, Destination, GgufError, Names, RowOrder, dequantize};
use lapidary_store::{Dtype, GgmlType};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::builder::Builder;

fn names(architecture: &str) -> Names {
    let gguf = Builder::default()
        .set("general.architecture", architecture)
        .set(&format!("{architecture}.attention.head_count"), 6)
        .set(&format!("{architecture}.attention.head_count_kv"), 2)
        .read();
    Names::new(&gguf.metadata).unwrap()
}

fn tensor(name: &str, change: Change) -> Result<Destination, GgufError> {
    Ok(Destination::Tensor { name: name.to_owned(), change })
}

#[test]
fn every_tensor_of_a_decoder_goes_there_and_back() {
    let pairs = [
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("output_norm.weight", "model.norm.weight"),
        ("output.weight", "lm_head.weight"),
        ("blk.0.attn_norm.weight", "model.layers.0.input_layernorm.weight"),
        ("blk.10.attn_v.weight", "model.layers.10.self_attn.v_proj.weight"),
        ("blk.10.attn_v.bias", "model.layers.10.self_attn.v_proj.bias"),
        ("blk.7.attn_output.weight", "model.layers.7.self_attn.o_proj.weight"),
        ("blk.7.attn_q_norm.weight", "model.layers.7.self_attn.q_norm.weight"),
        ("blk.7.attn_k_norm.weight", "model.layers.7.self_attn.k_norm.weight"),
        ("blk.7.ffn_norm.weight", "model.layers.7.post_attention_layernorm.weight"),
        ("blk.7.ffn_gate.weight", "model.layers.7.mlp.gate_proj.weight"),
        ("blk.7.ffn_up.weight", "model.layers.7.mlp.up_proj.weight"),
        ("blk.7.ffn_down.bias", "model.layers.7.mlp.down_proj.bias"),
    ];
    for architecture in ["llama", "qwen2", "qwen3"] {
        let names = names(architecture);
        for (gguf, hugging_face) in pairs {
            assert_eq!(names.to_hugging_face(gguf), tensor(hugging_face, Change::Same));
            assert_eq!(names.to_gguf(hugging_face).as_deref(), Some(gguf));
        }
    }
}

#[test]
fn every_tensor_of_an_encoder_goes_there_and_back() {
    let pairs = [
        ("token_embd.weight", "embeddings.word_embeddings.weight"),
        ("token_types.weight", "embeddings.token_type_embeddings.weight"),
        ("position_embd.weight", "embeddings.position_embeddings.weight"),
        ("token_embd_norm.bias", "embeddings.LayerNorm.bias"),
        ("blk.3.attn_q.weight", "encoder.layer.3.attention.self.query.weight"),
        ("blk.3.attn_k.bias", "encoder.layer.3.attention.self.key.bias"),
        ("blk.3.attn_v.bias", "encoder.layer.3.attention.self.value.bias"),
        ("blk.3.attn_output.weight", "encoder.layer.3.attention.output.dense.weight"),
        ("blk.3.attn_output_norm.bias", "encoder.layer.3.attention.output.LayerNorm.bias"),
        ("blk.3.ffn_up.weight", "encoder.layer.3.intermediate.dense.weight"),
        ("blk.3.ffn_down.weight", "encoder.layer.3.output.dense.weight"),
        ("blk.3.layer_output_norm.weight", "encoder.layer.3.output.LayerNorm.weight"),
    ];
    let names = names("bert");
    for (gguf, hugging_face) in pairs {
        assert_eq!(names.to_hugging_face(gguf), tensor(hugging_face, Change::Same));
        assert_eq!(names.to_gguf(hugging_face).as_deref(), Some(gguf));
    }
}

#[test]
fn experts_stand_in_one_tensor() {
    let cases = [
        ("ffn_gate_exps", "block_sparse_moe.experts", "w1", "mlp.experts", "gate_proj"),
        ("ffn_up_exps", "block_sparse_moe.experts", "w3", "mlp.experts", "up_proj"),
        ("ffn_down_exps", "block_sparse_moe.experts", "w2", "mlp.experts", "down_proj"),
    ];
    for (stem, mixtral, w, qwen, proj) in cases {
        for (architecture, module, part) in [("llama", mixtral, w), ("qwen3moe", qwen, proj)] {
            let gguf = Builder::default()
                .set("general.architecture", architecture)
                .set(&format!("{architecture}.attention.head_count"), 6)
                .set(&format!("{architecture}.expert_count"), 12)
                .read();
            let names = Names::new(&gguf.metadata).unwrap();
            let (file, module) =
                (format!("blk.3.{stem}.weight"), format!("model.layers.3.{module}"));
            let found = names.to_hugging_face(&file).unwrap();
            assert_eq!(found, Destination::Experts { module: module.clone(), part });
            let name = format!("{module}.11.{part}.weight");
            assert_eq!(names.to_experts(&name), Some((file.clone(), 11)));
            assert_eq!(names.to_gguf(&name), None);
            assert_eq!(names.to_experts(&format!("{module}.011.{part}.weight")), None);
            assert_eq!(names.to_experts(&format!("{module}.11.{part}.bias")), None);
            assert!(names.to_hugging_face(&format!("blk.3.{stem}.bias")).is_err());
        }
    }
    assert!(names("llama").to_hugging_face("blk.3.ffn_gate_exps.weight").is_err(), "no experts");
}

#[test]
fn only_llamas_queries_and_keys_are_in_pairs() {
    for suffix in ["weight", "bias"] {
        let q = format!("model.layers.4.self_attn.q_proj.{suffix}");
        let k = format!("model.layers.4.self_attn.k_proj.{suffix}");
        for (architecture, q_rows, k_rows) in [
            (
                "llama",
                Change::Rows(RowOrder::Paired { heads: 6 }),
                Change::Rows(RowOrder::Paired { heads: 2 }),
            ),
            ("qwen2", Change::Same, Change::Same),
            ("qwen3", Change::Same, Change::Same),
        ] {
            let names = names(architecture);
            let to = |stem: &str| names.to_hugging_face(&format!("blk.4.{stem}.{suffix}"));
            assert_eq!(to("attn_q"), tensor(&q, q_rows));
            assert_eq!(to("attn_k"), tensor(&k, k_rows));
        }
    }
}

#[test]
fn other_names_are_unknown() {
    let llama = names("llama");
    assert_eq!(
        llama.to_hugging_face("rope_freqs.weight"),
        Ok(Destination::RopeFactors("rope_freqs.weight"))
    );
    for name in [
        "blk.01.attn_q.weight",
        "blk..attn_q.weight",
        "blk.+1.attn_q.weight",
        "blk.1.attn_q.scale",
        "blk.1.attn_q",
        "blk.1.ffn_gate_exps.weight",
        "token_types.weight",
        "",
    ] {
        assert_eq!(
            llama.to_hugging_face(name),
            Err(GgufError::UnknownTensor { name: name.to_owned(), architecture: "llama" })
        );
        assert_eq!(llama.to_gguf(name), None);
    }
    assert!(names("qwen2").to_hugging_face("rope_freqs.weight").is_err());
    let error =
        Names::new(&Builder::default().set("general.architecture", "mamba").read().metadata);
    assert_eq!(
        error.unwrap_err().to_string(),
        "architecture `mamba` is not supported; llama, qwen2, qwen3, qwen3moe, gpt2, gptneox, \
         gemma2, gemma3, granite, olmo2, phi3, smollm3, stablelm, starcoder2, bert are"
    );
}

/// What the converter does: `reshape(heads, 2, dim/2, columns).swapaxes(1, 2)`.
fn permute<T: Copy>(data: &[T], columns: usize, heads: usize) -> Vec<T> {
    let half = data.len() / columns / heads / 2;
    let mut out = Vec::new();
    for head in 0..heads {
        for i in 0..half {
            for part in 0..2 {
                let row = (head * 2 + part) * half + i;
                out.extend_from_slice(&data[row * columns..][..columns]);
            }
        }
    }
    out
}

proptest! {
    #[test]
    fn unpermuting_undoes_the_converter(
        heads in 1..5usize, half in 1..9usize, columns in 1..7usize,
    ) {
        let data: Vec<usize> = (0..heads * 2 * half * columns).collect();
        let mut back = permute(&data, columns, heads);
        let order = RowOrder::Paired { heads };
        order.restore("w", &mut back, columns).unwrap();
        prop_assert_eq!(&back, &data);
        order.arrange("w", &mut back, columns).unwrap();
        prop_assert_eq!(back, permute(&data, columns, heads));
    }

    /// What the converter does: `reshape(heads, 3, dim, columns)`, then each of the three on its own.
    #[test]
    fn queries_come_before_keys_and_values(
        heads in 1..5usize, dim in 1..6usize, columns in 1..4usize,
    ) {
        let data: Vec<usize> = (0..heads * 3 * dim * columns).collect();
        let rows = (0..3).flat_map(|part| (0..heads).map(move |head| head * 3 + part));
        let wanted: Vec<usize> =
            rows.flat_map(|run| data[run * dim * columns..][..dim * columns].to_vec()).collect();
        let (order, mut found) = (RowOrder::Parted { heads }, data.clone());
        order.arrange("w", &mut found, columns).unwrap();
        prop_assert_eq!(&found, &wanted);
        order.restore("w", &mut found, columns).unwrap();
        prop_assert_eq!(found, data);
    }

    #[test]
    fn rows_that_do_not_divide_are_refused(
        data in vec(any::<u8>(), 0..40), columns in 0..8usize, heads in 0..8usize,
    ) {
        let mut back = data.clone();
        let whole = columns > 0 && heads > 0 && !data.is_empty()
            && data.len() % (2 * columns * heads) == 0;
        let result = RowOrder::Paired { heads }.restore("w", &mut back, columns);
        prop_assert_eq!(result.is_ok(), whole);
        if !whole {
            prop_assert_eq!(back, data);
        }
    }
}

#[test]
fn values_of_both_kinds_of_types_are_decoded() {
    let mut out = [0.0; 2];
    dequantize(Dtype::F16, &[0x00, 0x3c, 0x00, 0xc0], &mut out).unwrap();
    assert_eq!(out, [1.0, -2.0]);
    dequantize(Dtype::I8, &[5, 0xff], &mut out).unwrap();
    assert_eq!(out, [5.0, -1.0]);
    let mut block = [0x98; 18];
    block[..2].copy_from_slice(&[0x00, 0x3c]);
    let mut out = [0.0; 32];
    dequantize(Dtype::Ggml(GgmlType::Q4_0), &block, &mut out).unwrap();
    assert_eq!((out[0], out[16]), (0.0, 1.0));
    for dtype in [Dtype::U8, Dtype::Ggml(GgmlType::NVFP4)] {
        assert_eq!(dequantize(dtype, &[], &mut []), Err(GgufError::UnsupportedType(dtype)));
    }
    assert!(matches!(dequantize(Dtype::F32, &[0; 5], &mut [0.0]), Err(GgufError::Dequantize(_))));
}
