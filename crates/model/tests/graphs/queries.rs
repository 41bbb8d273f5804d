//! Which linear layers share an input, and what tensors a model is made of.

use crate::support::{model, models};
use lapidary_model::{Graph, Op};
use std::collections::BTreeSet;

fn groups(graph: &Graph) -> Vec<Vec<String>> {
    let name = |module: &str| {
        module.strip_prefix(&format!("{}.", graph.name)).unwrap_or(module).to_owned()
    };
    let groups = graph.shared_inputs().into_iter();
    groups.map(|group| group.linears.iter().map(|linear| name(&linear.module)).collect()).collect()
}

#[test]
fn decoders_share_inputs_between_q_k_v_and_gate_up() {
    for name in ["llama-tied", "mistral", "qwen2-untied", "qwen3"] {
        let model = model(name);
        for block in &model.spec.blocks {
            let expected = [
                vec!["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
                vec!["self_attn.o_proj"],
                vec!["mlp.gate_proj", "mlp.up_proj"],
                vec!["mlp.down_proj"],
            ];
            assert_eq!(groups(block), expected, "{name}");
        }
        assert_eq!(groups(model.spec.head.as_ref().unwrap()), [["lm_head"]]);
    }
}

#[test]
fn the_encoder_shares_inputs_between_query_key_value() {
    let model = model("bert-masked-lm");
    for block in &model.spec.blocks {
        let expected = [
            vec!["attention.self.query", "attention.self.key", "attention.self.value"],
            vec!["attention.output.dense"],
            vec!["intermediate.dense"],
            vec!["output.dense"],
        ];
        assert_eq!(groups(block), expected);
    }
    assert_eq!(groups(model.spec.head.as_ref().unwrap()), [["transform.dense"], ["decoder"]]);
}

#[test]
fn every_linear_is_in_one_group_of_its_width() {
    for model in models() {
        for graph in model.spec.blocks.iter().chain(&model.spec.head) {
            let groups = graph.shared_inputs();
            let grouped = groups.iter().flat_map(|group| &group.linears);
            assert_eq!(grouped.count(), graph.linears().count());
            for group in &groups {
                let readers = graph.consumers(group.value);
                let linears = readers.filter(|node| matches!(node.op, Op::Linear(_)));
                assert_eq!(linears.count(), group.linears.len());
                let width = group.linears[0].in_features;
                assert!(group.linears.iter().all(|linear| linear.in_features == width));
                if let Some(maker) = graph.producer(group.value) {
                    assert_eq!(maker.width, width);
                }
            }
        }
    }
}

/// Every tensor of the checkpoint is one that the graphs read, save the pooler that BERT's hidden
/// states do not need; and the shapes agree.
#[test]
fn the_tensors_are_those_of_the_checkpoint() {
    for model in models() {
        let needed = model.spec.tensors();
        for (name, shape) in &needed {
            let have = model.source.get(name).map(|tensor| &tensor.shape);
            assert_eq!(have, Some(shape), "{}: {name}", model.name);
        }
        let needed: BTreeSet<&str> = needed.iter().map(|(name, _)| name.as_str()).collect();
        let stored = model.source.tensors().iter().map(|tensor| tensor.name.as_str());
        let unread: Vec<&str> = stored.filter(|name| !needed.contains(name)).collect();
        assert!(unread.iter().all(|name| name.contains("pooler")), "{}: {unread:?}", model.name);
    }
}
