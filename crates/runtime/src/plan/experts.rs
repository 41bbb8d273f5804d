//! Mixtures of experts as one stage: rows are gathered for each expert that a token goes to, go through
//! a small plan of its own, and are added up.

use super::{Compiler, Plan, Products, RowOp, Stage, Values};
use crate::RuntimeError;
use lapidary_model::{Graph, Node, Op, RouteOp, Value};
use std::collections::BTreeMap;

/// The experts of a layer.
#[derive(Debug)]
pub(crate) struct Mixture {
    /// Buffer of the rows that experts read.
    pub(crate) input: usize,
    /// Buffer of the weights, one an expert, 0 for those that a token does not go to.
    pub(crate) weights: usize,
    /// Buffer of the sum.
    pub(crate) to: usize,
    pub(crate) experts: Vec<Expert>,
    /// Experts that a token goes to.
    top_k: usize,
}

#[derive(Debug)]
pub(crate) struct Expert {
    /// Reads buffer 0.
    pub(crate) plan: Plan,
    /// Which of the [`layouts`](Plan::layouts) its buffers have.
    pub(crate) layout: usize,
}

impl Plan {
    /// All products, those of experts too, with the share of the tokens that go through them.
    pub(crate) fn products(&self) -> Vec<(&Products, f64)> {
        let mut all = vec![];
        for stage in &self.stages {
            match stage {
                Stage::Products(products) => all.push((products, 1.0)),
                Stage::Mixture(mixture) => {
                    let share = mixture.top_k as f64 / mixture.experts.len().max(1) as f64;
                    let inside = mixture.experts.iter().flat_map(|e| e.plan.products());
                    all.extend(inside.map(|(products, of)| (products, of * share.min(1.0))));
                }
                Stage::Rows(_) | Stage::Attention { .. } => {}
            }
        }
        all
    }

    /// The same, to be changed.
    pub(crate) fn products_mut(&mut self) -> Vec<&mut Products> {
        let mut all = vec![];
        for stage in &mut self.stages {
            match stage {
                Stage::Products(products) => all.push(products),
                Stage::Mixture(mixture) => {
                    all.extend(mixture.experts.iter_mut().flat_map(|e| e.plan.products_mut()));
                }
                Stage::Rows(_) | Stage::Attention { .. } => {}
            }
        }
        all
    }
}

/// The part of a graph that is an expert's.
struct Part<'a> {
    /// Nodes of the whole graph, in order; the first selects the rows.
    nodes: Vec<usize>,
    select: &'a Node,
    expert: usize,
}

/// Which nodes stand between the selection of rows and a sum of experts' results.
pub(super) fn inside(graph: &Graph) -> Vec<bool> {
    let mut inside = vec![false; graph.nodes.len()];
    for mix in graph.nodes.iter().filter(|node| matches!(node.op, Op::Mix)) {
        let parts = mix.inputs[1..].iter().filter_map(|result| Part::of(graph, *result));
        parts.flat_map(|part| part.nodes).for_each(|node| inside[node] = true);
    }
    inside
}

impl<'a> Part<'a> {
    /// What makes a result of the rows that were selected; nothing where it reads anything else, or
    /// looks at more than single rows.
    fn of(graph: &'a Graph, result: Value) -> Option<Self> {
        let mut nodes = vec![];
        let mut open = vec![result];
        let mut selected = None;
        while let Some(value) = open.pop() {
            let index = value.node()?;
            if nodes.contains(&index) {
                continue;
            }
            nodes.push(index);
            let node = &graph.nodes[index];
            match node.op {
                Op::Select { expert } if selected.is_none() => selected = Some((node, expert)),
                Op::Linear(_)
                | Op::RmsNorm { .. }
                | Op::LayerNorm { .. }
                | Op::Activation(_)
                | Op::Gated(_)
                | Op::Add
                | Op::Scale(_)
                | Op::SoftCap(_)
                | Op::Slice(_) => open.extend(&node.inputs),
                _ => return None,
            }
        }
        nodes.sort_unstable();
        let (select, expert) = selected?;
        Some(Self { nodes, select, expert })
    }

    /// A graph of its own, which reads the selected rows.
    fn graph(&self, whole: &Graph, result: Value) -> Graph {
        let mut names: BTreeMap<Value, Value> = BTreeMap::new();
        let mut nodes = vec![];
        for index in &self.nodes {
            let node = &whole.nodes[*index];
            let is_select = matches!(node.op, Op::Select { .. });
            if !is_select {
                let inputs = node.inputs.iter().map(|input| names[input]).collect();
                nodes.push(Node { inputs, ..node.clone() });
            }
            let named = if is_select { Value::INPUT } else { Value::of_node(nodes.len() - 1) };
            names.insert(Value::of_node(*index), named);
        }
        Graph { name: whole.name.clone(), nodes, output: names[&result] }
    }
}

impl Compiler<'_> {
    /// Compiles the experts that a sum is of.
    pub(super) fn mixture(
        &mut self,
        graph: &Graph,
        node: &Node,
        values: &mut Values,
    ) -> Result<usize, RuntimeError> {
        let weights = node.inputs[0];
        let Some(Op::Route(RouteOp { top_k, .. })) = graph.producer(weights).map(|made| &made.op)
        else {
            return Err(unknown("their weights are not made by a router"));
        };
        let mut read = None;
        let mut experts = vec![];
        for (index, result) in node.inputs[1..].iter().enumerate() {
            let Some(part) = Part::of(graph, *result).filter(|part| part.expert == index) else {
                return Err(unknown("one is not made of its rows alone"));
            };
            let [rows, by] = part.select.inputs[..] else {
                return Err(unknown("one selects no rows"));
            };
            if by != weights || *read.get_or_insert(rows) != rows {
                return Err(unknown("they read different rows"));
            }
            let mut own = Compiler { plan: Plan::default(), free: vec![], names: self.names };
            let first = own.buffer(part.select.width);
            own.plan.output = own.graph(&part.graph(graph, *result), Some(first))?;
            let plan = own.plan;
            let known = self.plan.layouts.iter().position(|layout| *layout == plan.widths);
            let layout = known.unwrap_or_else(|| {
                self.plan.layouts.push(plan.widths.clone());
                self.plan.layouts.len() - 1
            });
            experts.push(Expert { plan, layout });
        }
        let Some(rows) = read else { return Err(unknown("there are none")) };
        let (input, from) = (values.place(rows), values.place(weights));
        let to = self.buffer(node.width);
        for _ in &experts {
            self.read(rows, values, None);
            self.read(weights, values, None);
        }
        self.read(weights, values, None);
        let mixture = Mixture { input, weights: from, to, experts, top_k: *top_k };
        self.plan.stages.push(Stage::Mixture(mixture));
        Ok(to)
    }

    /// The weights of experts, in place of their scores.
    pub(super) fn route(&mut self, node: &Node, route: RouteOp, values: &mut Values) -> usize {
        let to = self.owned(node.inputs[0], node.width, values);
        self.push(RowOp::Route { to, most: route.top_k, normalized: route.normalized });
        to
    }
}

pub(super) fn unknown(why: &str) -> RuntimeError {
    RuntimeError::Unsupported(format!("its experts are not as the runtime knows them: {why}"))
}
