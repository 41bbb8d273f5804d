//! The configuration of a model that was cut: the old one with other sizes under the names that
//! families have for them.

use super::{Cut, ModelError, UnitKind, experts, refused, sizes_of};
use crate::families;
use crate::spec::{Op, Spec};
use serde_json::{Value, json};

/// Names of the number of blocks.
const BLOCKS: &[&str] = &["num_hidden_layers", "n_layer", "n_layers", "num_layers"];
/// Names of widths of feed-forwards: those with the old width get the new one.
const NEURONS: &[&str] = &[
    "intermediate_size",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "ffn_dim",
    "n_inner",
    "hidden_dim",
];
const QUERY_HEADS: &[&str] = &["num_attention_heads", "n_head", "n_heads"];
const KEY_HEADS: &[&str] = &["num_key_value_heads"];
const CHANNELS: &[&str] = &["hidden_size", "n_embd", "dim"];
const EXPERTS: &[&str] = &["num_local_experts", "num_experts"];
/// Lists with an entry for each block.
const BY_BLOCK: &[&str] = &["layer_types", "no_rope_layers", "mlp_layer_types"];

/// The sizes that a cut leaves, beside those there were.
pub(super) struct Sizes<'a> {
    old: &'a Spec,
    blocks: &'a [usize],
    neurons: Vec<(usize, usize)>,
    /// Query heads and key heads, before and after; nothing where they stay.
    heads: Option<[(usize, usize); 2]>,
    head_dim: Option<usize>,
    experts: Option<usize>,
    channels: Option<usize>,
    rescaled_norms: bool,
}

impl<'a> Sizes<'a> {
    /// The sizes after a cut.
    ///
    /// # Errors
    /// When layers would be of different widths, which no engine loads, or of none that it does.
    pub(super) fn after(old: &'a Spec, cut: &Cut, blocks: &'a [usize]) -> Result<Self, ModelError> {
        let sizes = sizes_of(old, cut, &[UnitKind::Neurons], blocks)?;
        let changed = sizes.into_iter().filter(|((_, before), after)| before != after);
        let neurons = changed.map(|((_, before), after)| (before, after)).collect();
        let of_kind = |kind| -> Result<Option<(usize, usize)>, ModelError> {
            let sizes = sizes_of(old, cut, &[kind], blocks)?;
            Ok(sizes.into_iter().map(|((_, before), after)| (before, after)).next())
        };
        let heads = of_kind(UnitKind::QueryHeads)?.zip(of_kind(UnitKind::KeyHeads)?);
        let heads = heads.map(|(query, key)| [query, key]);
        let width = cut.channels.as_ref().map_or(old.hidden_size, Vec::len);
        let heads = heads.filter(|both| both.iter().any(|(before, after)| before != after));
        if let Some([(_, query), (_, key)]) = heads
            && query % key != 0
        {
            return Err(refused(&format!("{query} query heads would share {key} key heads")));
        }
        let query = heads.map(|[(_, query), _]| query).or_else(|| head_count(old));
        if let (Some(query), true) = (query, heads.is_some() || cut.channels.is_some())
            && !width.is_multiple_of(query)
        {
            return Err(refused(&format!(
                "{query} heads would not divide {width} channels, which transformers asks for; \
                 cut another number of heads"
            )));
        }
        let mut kept: Vec<usize> = cut.experts.values().map(Vec::len).collect();
        kept.dedup();
        let mut routed = blocks.iter().filter(|block| experts(&old.blocks[**block]) > 0);
        if kept.len() > 1 || !kept.is_empty() && !routed.all(|b| cut.experts.contains_key(b)) {
            return Err(refused("engines load the same number of experts in every block"));
        }
        Ok(Self {
            old,
            blocks,
            neurons,
            heads,
            head_dim: head_dim(old),
            experts: kept.first().copied(),
            channels: cut.channels.as_ref().map(Vec::len),
            rescaled_norms: cut.rescaled_norms,
        })
    }

    /// The configuration whose graphs do not differ from what is wanted, with these graphs.
    ///
    /// # Errors
    /// When there is none: what would be different.
    pub(super) fn configured(
        &self,
        config: &Value,
        difference: &dyn Fn(&Spec) -> Option<String>,
    ) -> Result<(Value, Spec), ModelError> {
        let resized = self.resized(config);
        let mut what = String::new();
        // Where a rule by a block's place no longer holds, the places are listed.
        for config in [resized.clone(), self.listed(resized)] {
            match families::spec(&config).map(|spec| (difference(&spec), spec)) {
                Ok((None, spec)) => return Ok((config, spec)),
                Ok((Some(different), _)) => what = different,
                Err(error) => what = error.to_string(),
            }
        }
        Err(refused(&format!(
            "no config.json of family {} expresses what would be left: {what}",
            self.old.family
        )))
    }

    fn resized(&self, config: &Value) -> Value {
        let mut config = config.clone();
        let Some(fields) = config.as_object_mut() else { return config };
        let mut set = |names: &[&str], before: usize, after: usize| {
            for name in names {
                if fields.get(*name).and_then(Value::as_u64) == Some(before as u64) {
                    fields.insert((*name).to_owned(), json!(after));
                }
            }
        };
        let all = self.old.blocks.len();
        set(BLOCKS, all, self.blocks.len());
        for (before, after) in &self.neurons {
            set(NEURONS, *before, *after);
        }
        if let Some([query, key]) = self.heads {
            set(QUERY_HEADS, query.0, query.1);
            set(KEY_HEADS, key.0, key.1);
        }
        if let Some(channels) = self.channels {
            set(CHANNELS, self.old.hidden_size, channels);
        }
        if let Some((before, after)) =
            self.experts.and_then(|after| Some((self.expert_count()?, after)))
        {
            set(EXPERTS, before, after);
        }
        // Widths that follow from others where they are not given.
        let needs = |name: &str| fields.get(name).is_none_or(Value::is_null);
        let width = (self.heads.is_some() || self.channels.is_some()) && needs("head_dim");
        let inner =
            fields.contains_key("n_embd") && needs("n_inner") && fields.contains_key("n_layer");
        if let (true, Some(head_dim)) = (width, self.head_dim) {
            fields.insert("head_dim".to_owned(), json!(head_dim));
        }
        if let (true, Some((_, after))) = (inner, self.neurons.first()) {
            fields.insert("n_inner".to_owned(), json!(after));
        }
        if let (true, Some(channels)) = (self.rescaled_norms, self.channels)
            && let Some(eps) = fields.get("rms_norm_eps").and_then(Value::as_f64)
        {
            let share = channels as f64 / self.old.hidden_size as f64;
            fields.insert("rms_norm_eps".to_owned(), json!(eps / share));
        }
        for name in BY_BLOCK {
            let list = fields.get(*name).and_then(Value::as_array).filter(|list| list.len() == all);
            let kept =
                list.map(|list| self.blocks.iter().map(|block| list[*block].clone()).collect());
            if let Some(kept) = kept {
                fields.insert((*name).to_owned(), Value::Array(kept));
            }
        }
        if let Some(last) = fields.get("max_window_layers").and_then(Value::as_u64) {
            let before = self.blocks.iter().filter(|block| (**block as u64) < last).count();
            fields.insert("max_window_layers".to_owned(), json!(before));
        }
        config
    }

    /// The same with a list of what each block is.
    fn listed(&self, mut config: Value) -> Value {
        let Some(fields) = config.as_object_mut() else { return config };
        let graphs = || self.blocks.iter().map(|block| &self.old.blocks[*block]);
        let is_windowed = |op: &Op| matches!(op, Op::Attention(a) if a.window.is_some());
        let is_rotary = |op: &Op| matches!(op, Op::Rope(_));
        let is_routed = |op: &Op| matches!(op, Op::Route(_));
        let any = |is: &dyn Fn(&Op) -> bool| -> Vec<bool> {
            graphs().map(|graph| graph.nodes.iter().any(|node| is(&node.op))).collect()
        };
        let (windowed, rotary, routed) = (any(&is_windowed), any(&is_rotary), any(&is_routed));
        if windowed.contains(&true) {
            let kind = |slides: &bool| if *slides { "sliding_attention" } else { "full_attention" };
            fields.insert("layer_types".to_owned(), windowed.iter().map(kind).collect());
        }
        if rotary.contains(&true) && rotary.contains(&false) {
            let flags = rotary.iter().map(|rotary| u8::from(*rotary));
            fields.insert("no_rope_layers".to_owned(), flags.collect());
        }
        if fields.contains_key("decoder_sparse_step") || fields.contains_key("mlp_only_layers") {
            let plain = routed.iter().enumerate().filter(|(_, routed)| !**routed);
            let plain: Value = plain.map(|(index, _)| index).collect();
            fields.insert("decoder_sparse_step".to_owned(), json!(1));
            fields.insert("mlp_only_layers".to_owned(), plain);
        }
        config
    }

    fn expert_count(&self) -> Option<usize> {
        self.old.blocks.iter().map(experts).find(|count| *count > 0)
    }
}

/// Query heads of a model.
fn head_count(spec: &Spec) -> Option<usize> {
    attention(spec).map(|(heads, _)| heads)
}

/// Width of its heads.
fn head_dim(spec: &Spec) -> Option<usize> {
    attention(spec).map(|(_, head_dim)| head_dim)
}

fn attention(spec: &Spec) -> Option<(usize, usize)> {
    let nodes = spec.blocks.iter().flat_map(|graph| &graph.nodes);
    nodes.into_iter().find_map(|node| match &node.op {
        Op::Attention(attention) => Some((attention.heads, attention.head_dim)),
        _ => None,
    })
}
