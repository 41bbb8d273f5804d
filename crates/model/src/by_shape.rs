//! A model of unknown architecture: the matrices that look like linear layers, and nothing known of
//! what happens between them.

use crate::spec::{LinearOp, Op, Spec};
use crate::{Graph, Node, Value};
use std::collections::BTreeMap;

/// Family of a [`Spec`] that knows no more than shapes.
pub const UNKNOWN: &str = "unknown";

/// Parts of names that tables, norms, heads and routers have; their matrices are left alone.
const NOT_LINEAR: [&str; 10] =
    ["embed", "wte", "wpe", "position", "norm", "head", "classifier", "score", "router", "conv"];

/// The linear layers among tensors of names and shapes: matrices `*.weight` with a number among the
/// parts of their names, since layers are counted, and none of the words that tables, norms, heads
/// and routers go by. The graphs cannot be run: they only hold the layers.
pub fn by_shape<'a>(tensors: impl Iterator<Item = (&'a str, &'a [usize])>) -> Spec {
    let mut blocks: BTreeMap<(usize, String), Graph> = BTreeMap::new();
    for (name, shape) in tensors {
        let (Some(module), &[out_features, in_features]) = (name.strip_suffix(".weight"), shape)
        else {
            continue;
        };
        let lower = module.to_lowercase();
        let is_other = NOT_LINEAR.iter().any(|word| lower.contains(word))
            || lower.ends_with(".gate")
            || out_features.min(in_features) < 2;
        let Some((number, prefix)) = layer(module).filter(|_| !is_other) else { continue };
        let new = || Graph { name: prefix.clone(), nodes: vec![], output: Value::INPUT };
        let graph = blocks.entry((number, prefix.clone())).or_insert_with(new);
        let linear = LinearOp {
            module: module.to_owned(),
            weight: name.to_owned(),
            bias: None,
            in_features,
            out_features,
        };
        let inputs = vec![Value::INPUT];
        graph.nodes.push(Node { op: Op::Linear(linear), inputs, width: out_features });
    }
    Spec {
        family: UNKNOWN,
        vocab_size: 0,
        hidden_size: 0,
        context: 0,
        embed: Graph { name: String::new(), nodes: vec![], output: Value::INPUT },
        blocks: blocks.into_values().collect(),
        head: None,
        causal: false,
        tied: false,
    }
}

/// The first number among the parts of a name, and the name up to it.
fn layer(module: &str) -> Option<(usize, String)> {
    let mut prefix = String::new();
    for part in module.split('.') {
        if !prefix.is_empty() {
            prefix.push('.');
        }
        prefix.push_str(part);
        if let Ok(number) = part.parse() {
            return Some((number, prefix));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counted_matrices_are_layers_and_nothing_else_is() {
        let tensors: [(&str, &[usize]); 12] = [
            ("embeddings.weight", &[50, 8]),
            ("backbone.layers.10.mixer.in_proj.weight", &[24, 8]),
            ("backbone.layers.2.mixer.in_proj.weight", &[24, 8]),
            ("backbone.layers.2.mixer.out_proj.weight", &[8, 12]),
            ("backbone.layers.2.mixer.conv1d.weight", &[24, 1, 4]),
            ("backbone.layers.2.mixer.A_log", &[24, 16]),
            ("backbone.layers.2.mixer.gate.weight", &[4, 8]),
            ("backbone.layers.2.norm.weight", &[8]),
            ("backbone.layers.2.position_embedding.weight", &[64, 8]),
            ("layers.0.scale.weight", &[1, 8]),
            ("projection.weight", &[8, 8]),
            ("lm_head.weight", &[50, 8]),
        ];
        let spec = by_shape(tensors.into_iter());
        let modules: Vec<&str> = spec.linears().map(|linear| linear.module.as_str()).collect();
        assert_eq!(
            modules,
            [
                "backbone.layers.2.mixer.in_proj",
                "backbone.layers.2.mixer.out_proj",
                "backbone.layers.10.mixer.in_proj",
            ]
        );
        assert_eq!(spec.blocks.len(), 2);
        assert_eq!(by_shape(std::iter::empty()).blocks.len(), 0);
    }
}
