//! A smaller model of the same family: which blocks and units of a model stay, and what becomes of its
//! configuration and of each of its tensors.
//!
//! What can be removed together follows from the graphs ([`Units`]). The configuration of the result is
//! found by changing the sizes in the old one, and counts only when the family makes of it the graphs
//! that the cut leaves: the same operations, and tensors of the shapes that stay.

mod resized;
mod units;

pub use units::{Axis, Share, UnitKind, Units};

use crate::graph::{Graph, Node, Value as GraphValue};
use crate::spec::{AttentionOp, Op, RopeOp, Spec};
use crate::{ModelError, families};
use resized::Sizes;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// What stays of a model.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cut {
    /// The blocks that stay, in order; all where it is absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocks: Option<Vec<usize>>,
    /// Units that stay; all of those that are not named.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub units: Vec<KeptUnits>,
    /// Experts that stay, by block.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub experts: BTreeMap<usize, Vec<usize>>,
    /// Channels of the residual stream that stay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channels: Option<Vec<u32>>,
    /// Whether norms keep dividing by the root of the mean square over all the channels there were:
    /// their `eps` grows as the width shrinks, and whoever cuts makes the gains smaller.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub rescaled_norms: bool,
}

/// Units of one place that stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptUnits {
    /// The block.
    pub block: usize,
    /// What they are.
    pub kind: UnitKind,
    /// The layer that reads them.
    pub reader: String,
    /// Those that stay, in order.
    pub kept: Vec<u32>,
}

/// What stays of a tensor: rows and columns, all where nothing is said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// Rows, or elements of a vector.
    pub rows: Option<Vec<u32>>,
    /// Columns.
    pub columns: Option<Vec<u32>>,
}

impl Selection {
    /// The shape of what stays of a tensor of this shape.
    pub fn shape(&self, shape: &[usize]) -> Vec<usize> {
        let kept = [self.rows.as_ref(), self.columns.as_ref()];
        let sizes = shape.iter().enumerate();
        sizes
            .map(|(axis, size)| kept.get(axis).copied().flatten().map_or(*size, Vec::len))
            .collect()
    }

    fn narrow(&mut self, share: &Share, kept: &[u32]) {
        let place = match share.axis {
            Axis::Rows => &mut self.rows,
            Axis::Columns => &mut self.columns,
        };
        let all: Vec<u32> = (0..share.unit_of.len() as u32).collect();
        let before = place.take().unwrap_or(all);
        let stays = |index: &u32| match share.unit_of[*index as usize] {
            Some(unit) => kept.binary_search(&unit).is_ok(),
            None => true,
        };
        *place = Some(before.into_iter().filter(stays).collect());
    }
}

/// A model after a cut.
#[derive(Debug)]
pub struct Carving {
    /// Its configuration.
    pub config: Value,
    /// Its graphs.
    pub spec: Spec,
    /// What stays of the tensors that are narrowed, by their names before the cut.
    pub selections: BTreeMap<String, Selection>,
    /// Names after the cut of tensors that have others, or `None` where they are removed.
    names: BTreeMap<String, Option<String>>,
    /// The same for all names that begin so.
    prefixes: Vec<(String, Option<String>)>,
}

impl Carving {
    /// The name that a tensor has after the cut; `None` for one that is removed.
    pub fn name(&self, tensor: &str) -> Option<String> {
        if let Some(name) = self.names.get(tensor) {
            return name.clone();
        }
        let of_prefix = self.prefixes.iter().find_map(|(before, after)| {
            let rest = tensor.strip_prefix(before.as_str())?;
            Some(after.as_ref().map(|after| format!("{after}{rest}")))
        });
        of_prefix.unwrap_or_else(|| Some(tensor.to_owned()))
    }
}

/// Cuts a model.
///
/// # Errors
/// When there is nothing left, an index is no unit of the model, units cannot be removed alone, or no
/// configuration of the family expresses the result; the message says which of these, and where.
pub fn carve(config: &Value, cut: &Cut) -> Result<Carving, ModelError> {
    let old = families::spec(config)?;
    if old.shares_blocks() {
        return Err(refused(
            "the blocks of this model share their weights, and cannot be cut alone",
        ));
    }
    check(&old, cut)?;
    let selections = selections(&old, cut)?;
    let blocks = kept_blocks(&old, cut);
    let sizes = Sizes::after(&old, cut, &blocks)?;
    let (config, spec) =
        sizes.configured(config, &|spec| difference(&old, spec, cut, &selections))?;
    let mut names = BTreeMap::new();
    let mut prefixes = vec![];
    for (index, graph) in old.blocks.iter().enumerate() {
        let place = blocks.iter().position(|block| *block == index);
        let prefix = format!("{}.", graph.name);
        let after = place.map(|place| format!("{}.", spec.blocks[place].name));
        if after.as_deref() != Some(&prefix) {
            prefixes.push((prefix, after));
        }
        if let Some(place) = place {
            names.extend(names_within(graph, &spec.blocks[place], cut.experts.get(&index)));
        }
    }
    names.retain(|before, after| Some(before) != after.as_ref());
    Ok(Carving { config, spec, selections, names, prefixes })
}

/// The blocks that stay.
fn kept_blocks(spec: &Spec, cut: &Cut) -> Vec<usize> {
    cut.blocks.clone().unwrap_or_else(|| (0..spec.blocks.len()).collect())
}

/// Indices must be there, in order, and leave something.
fn check(spec: &Spec, cut: &Cut) -> Result<(), ModelError> {
    let is_sorted = |kept: &[u32], count: usize, what: &str| {
        let ascending = kept.windows(2).all(|pair| pair[0] < pair[1]);
        match kept.last() {
            Some(last) if ascending && (*last as usize) < count => Ok(()),
            _ => Err(refused(&format!(
                "{what}: {} of {count} would stay, which is no part of them, in order",
                kept.len()
            ))),
        }
    };
    let narrow = |kept: &[usize]| kept.iter().map(|index| *index as u32).collect::<Vec<_>>();
    if let Some(blocks) = &cut.blocks {
        is_sorted(&narrow(blocks), spec.blocks.len(), "blocks")?;
    }
    if let Some(channels) = &cut.channels {
        is_sorted(channels, spec.hidden_size, "channels")?;
    }
    for (block, kept) in &cut.experts {
        let count = spec.blocks.get(*block).map_or(0, experts);
        is_sorted(&narrow(kept), count, &format!("experts of block {block}"))?;
    }
    Ok(())
}

impl Graph {
    /// Experts that the router of a block chooses from; 0 where it has none.
    pub fn experts(&self) -> usize {
        experts(self)
    }
}

fn experts(graph: &Graph) -> usize {
    let of_node = |node: &Node| match node.op {
        Op::Route(route) => Some(route.experts),
        _ => None,
    };
    graph.nodes.iter().find_map(of_node).unwrap_or(0)
}

/// What stays of every tensor that is narrowed.
fn selections(spec: &Spec, cut: &Cut) -> Result<BTreeMap<String, Selection>, ModelError> {
    let mut selections: BTreeMap<String, Selection> = BTreeMap::new();
    let mut narrow = |units: &Units, kept: &[u32]| {
        for share in &units.shares {
            selections.entry(share.tensor.clone()).or_default().narrow(share, kept);
        }
    };
    let mut known: BTreeMap<usize, Vec<Units>> = BTreeMap::new();
    for kept in &cut.units {
        let missing =
            || refused(&format!("block {} has no units read by {}", kept.block, kept.reader));
        let graph = spec.blocks.get(kept.block).ok_or_else(missing)?;
        let of_block = known.entry(kept.block).or_insert_with(|| graph.units(spec.hidden_size));
        let is_it = |units: &&Units| units.kind == kept.kind && units.reader == kept.reader;
        let units = of_block.iter().find(is_it).ok_or_else(missing)?;
        let fits = kept.kept.last().is_some_and(|last| (*last as usize) < units.count);
        if !fits || !kept.kept.windows(2).all(|pair| pair[0] < pair[1]) {
            let what =
                format!("{}: what stays is no part of its {} units", kept.reader, units.count);
            return Err(refused(&what));
        }
        match units.bound {
            Some(why) if kept.kept.len() < units.count => {
                return Err(refused(&format!(
                    "the inputs of {} cannot be cut: {why}",
                    kept.reader
                )));
            }
            _ => narrow(units, &kept.kept),
        }
    }
    if let Some(channels) = &cut.channels {
        let what = "the residual stream is not handed on channel by channel in this model";
        narrow(&spec.channels().ok_or_else(|| refused(what))?, channels);
    }
    for (block, kept) in &cut.experts {
        let kept: Vec<u32> = kept.iter().map(|expert| *expert as u32).collect();
        for router in spec.blocks[*block].routers() {
            for tensor in std::iter::once(&router.weight).chain(&router.bias) {
                selections.entry(tensor.clone()).or_default().rows = Some(kept.clone());
            }
        }
    }
    Ok(selections)
}

/// The nodes of a graph that stay when only some experts do.
fn kept_nodes<'a>(graph: &'a Graph, experts: Option<&Vec<usize>>) -> Vec<&'a Node> {
    // The expert that makes a value, from where its rows are selected to where all are mixed.
    let mut expert_of: Vec<Option<usize>> = vec![None; graph.nodes.len() + 1];
    let mut kept = vec![];
    for (index, node) in graph.nodes.iter().enumerate() {
        let expert = match node.op {
            Op::Select { expert } => Some(expert),
            Op::Mix => None,
            _ => node.inputs.iter().find_map(|input| expert_of[input.index()]),
        };
        expert_of[GraphValue::of_node(index).index()] = expert;
        let is_kept = |expert: usize| experts.is_none_or(|experts| experts.contains(&expert));
        if expert.is_none_or(is_kept) {
            kept.push(node);
        }
    }
    kept
}

/// Names of a block's tensors before and after, node by node.
fn names_within(
    old: &Graph,
    new: &Graph,
    experts: Option<&Vec<usize>>,
) -> BTreeMap<String, Option<String>> {
    let all = old.tensors().into_iter().map(|(name, _)| (name, None));
    let mut names: BTreeMap<String, Option<String>> = all.collect();
    let kept = kept_nodes(old, experts).into_iter().flat_map(Node::tensors);
    let new = new.nodes.iter().flat_map(Node::tensors);
    names.extend(kept.zip(new).map(|((before, _), (after, _))| (before, Some(after))));
    names
}

/// How the graphs of a configuration differ from what a cut leaves; `None` where they do not.
fn difference(
    old: &Spec,
    new: &Spec,
    cut: &Cut,
    selections: &BTreeMap<String, Selection>,
) -> Option<String> {
    let blocks = kept_blocks(old, cut);
    if blocks.len() != new.blocks.len() {
        return Some(format!("it has {} blocks, not {}", new.blocks.len(), blocks.len()));
    }
    let mut pairs = vec![(&old.embed, &new.embed, None)];
    for (block, graph) in blocks.iter().zip(&new.blocks) {
        pairs.push((&old.blocks[*block], graph, cut.experts.get(block)));
    }
    if old.head.is_some() != new.head.is_some() {
        return Some("the head".to_owned());
    }
    pairs.extend(old.head.iter().zip(&new.head).map(|(old, new)| (old, new, None)));
    let is_cut = cut.rescaled_norms;
    pairs.into_iter().find_map(|(old, new, experts)| {
        let kept = kept_nodes(old, experts);
        if kept.len() != new.nodes.len() {
            return Some(format!("{} has other operations", new.name));
        }
        kept.into_iter().zip(&new.nodes).find_map(|(old, node)| {
            if !alike(&old.op, &node.op, is_cut) {
                return Some(format!("{}: {:?} instead of {:?}", new.name, node.op, old.op));
            }
            let mut tensors = old.tensors().into_iter().zip(node.tensors());
            tensors.find_map(|((name, before), (after, shape))| {
                let stays =
                    selections.get(&name).map_or_else(|| before.clone(), |s| s.shape(&before));
                (stays != shape).then(|| format!("{after}: {shape:?} instead of {stays:?}"))
            })
        })
    })
}

/// Whether two operations do the same but for sizes and names.
fn alike(old: &Op, new: &Op, other_eps: bool) -> bool {
    match (old, new) {
        (Op::Linear(old), Op::Linear(new)) => old.bias.is_some() == new.bias.is_some(),
        (Op::RmsNorm { offset, eps, .. }, Op::RmsNorm { offset: new, eps: new_eps, .. }) => {
            offset == new && (other_eps || eps == new_eps)
        }
        (Op::LayerNorm { bias, eps, .. }, Op::LayerNorm { bias: new, eps: new_eps, .. }) => {
            bias.is_some() == new.is_some() && eps == new_eps
        }
        (Op::Rope(old), Op::Rope(new)) => {
            RopeOp { heads: 0, ..old.clone() } == RopeOp { heads: 0, ..new.clone() }
        }
        (Op::Attention(old), Op::Attention(new)) => {
            let sizeless = |op: &AttentionOp| AttentionOp { heads: 0, kv_heads: 0, ..op.clone() };
            sizeless(old) == sizeless(new) && old.heads * new.kv_heads >= new.heads
        }
        (Op::Route(old), Op::Route(new)) => {
            old.top_k == new.top_k && old.normalized == new.normalized
        }
        (Op::Embedding(_), Op::Embedding(_))
        | (Op::TokenType(_), Op::TokenType(_))
        | (Op::Slice(_), Op::Slice(_))
        | (Op::Select { .. }, Op::Select { .. }) => true,
        (Op::Positions { offset, .. }, Op::Positions { offset: new, .. }) => offset == new,
        _ => old == new,
    }
}

impl Cut {
    /// Units of all kinds that stay, by block and reader: for records.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Distinct sizes that units had and have, where each block agrees.
fn sizes_of(
    spec: &Spec,
    cut: &Cut,
    kinds: &[UnitKind],
    blocks: &[usize],
) -> Result<BTreeMap<(UnitKind, usize), usize>, ModelError> {
    let mut sizes: BTreeMap<(UnitKind, usize), usize> = BTreeMap::new();
    for block in blocks {
        let stays = cut.experts.get(block);
        let readers: BTreeSet<String> = kept_nodes(&spec.blocks[*block], stays)
            .into_iter()
            .flat_map(Node::tensors)
            .map(|(name, _)| name)
            .collect();
        for units in spec.blocks[*block].units(spec.hidden_size) {
            let is_there = readers.contains(&format!("{}.weight", units.reader));
            if !kinds.contains(&units.kind) || !is_there {
                continue;
            }
            let is_it = |kept: &&KeptUnits| {
                kept.block == *block && kept.kind == units.kind && kept.reader == units.reader
            };
            let after = cut.units.iter().find(is_it).map_or(units.count, |kept| kept.kept.len());
            let before = *sizes.entry((units.kind, units.count)).or_insert(after);
            if before != after {
                return Err(refused(&format!(
                    "{}: {after} of {} inputs would stay, and {before} in other layers; engines \
                     load one width for all",
                    units.reader, units.count
                )));
            }
        }
    }
    Ok(sizes)
}

fn refused(what: &str) -> ModelError {
    ModelError::Cut(what.to_owned())
}
