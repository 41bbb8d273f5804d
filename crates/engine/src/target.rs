//! What the engines that load a result ask of it: rules as data, checked on a plan before any work and
//! on what was written.
//!
//! A rule that is broken names the layer, the rule, and the change of the recipe that cures it. What
//! only some of an engine's kernels ask is a warning.

mod inputs;

use crate::Plan;
use lapidary_formats::Source;
use lapidary_model::{AttentionOp, Graph, LinearOp, Matrix, Op, Place, Spec};
use lapidary_weight::{
    FloatType, GroupType, Grouping, InputRounding, Outline, Tensors, TermOutline, ZeroType,
};
use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::str::FromStr;

/// An engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// vLLM.
    Vllm,
    /// Hugging Face transformers.
    Transformers,
    /// llama.cpp.
    LlamaCpp,
}

/// Who is to load a result, and on how many devices.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// The engine.
    pub engine: Engine,
    /// Devices that every layer is divided over.
    pub tensor_parallel: NonZeroUsize,
}

/// What is asked of one format by one engine.
struct Rules {
    engine: Engine,
    format: &'static str,
    /// Bits of codes that every kernel takes.
    bits: &'static [u8],
    /// Whether other bits are taken by some kernels, and not refused.
    other_bits: bool,
    /// Columns of a group, where not any number; a scale a row is always taken.
    groups: Option<&'static [usize]>,
    /// Whether tables of embeddings may be compressed.
    tables: bool,
    /// Whether layers that are run as one product must be stored alike.
    fused: bool,
    /// Rows and columns that the fastest kernels want to divide a layer.
    tiles: Option<(usize, usize)>,
}

/// The format of integers in bytes.
const BYTES: &str = "int-quantized";
const ANY_BITS: &[u8] = &[1, 2, 3, 4, 5, 6, 7, 8];
const MARLIN_GROUPS: Option<&[usize]> = Some(&[32, 64, 128]);

/// A format that an engine loads with whatever it holds.
const fn free(engine: Engine, format: &'static str) -> Rules {
    Rules {
        engine,
        format,
        bits: ANY_BITS,
        other_bits: true,
        groups: None,
        tables: false,
        fused: false,
        tiles: None,
    }
}

/// A format that vLLM's Marlin kernels load.
const fn marlin(format: &'static str, bits: &'static [u8]) -> Rules {
    let rules = free(Engine::Vllm, format);
    let tiles = Some((64, 128));
    Rules { bits, groups: MARLIN_GROUPS, fused: true, tiles, ..rules }
}

/// Every pair of an engine and a format that it loads. Facts of vLLM's `compressed_tensors_wNa16`,
/// `gptq_marlin` and `awq_marlin`, and of transformers' quantizers.
const RULES: &[Rules] = &[
    free(Engine::Vllm, "dense"),
    marlin("compressed-tensors", &[4, 8]),
    Rules { fused: true, ..free(Engine::Vllm, BYTES) },
    marlin("gptq", &[4, 8]),
    Rules { other_bits: false, ..marlin("awq", &[4]) },
    Rules { bits: &[2, 3, 4, 8], fused: true, ..free(Engine::Vllm, "gptq-v2") },
    Rules { fused: true, ..free(Engine::Vllm, "bitsandbytes") },
    free(Engine::Transformers, "dense"),
    free(Engine::Transformers, "compressed-tensors"),
    free(Engine::Transformers, BYTES),
    Rules { bits: &[2, 3, 4, 8], other_bits: false, ..free(Engine::Transformers, "gptq") },
    Rules { bits: &[2, 3, 4, 8], other_bits: false, ..free(Engine::Transformers, "gptq-v2") },
    Rules { bits: &[4], other_bits: false, ..free(Engine::Transformers, "awq") },
    free(Engine::Transformers, "bitsandbytes"),
    free(Engine::Transformers, "bitsandbytes-fp4"),
    free(Engine::Transformers, "bitnet"),
    free(Engine::Transformers, "hqq"),
    Rules { tables: true, ..free(Engine::LlamaCpp, "gguf") },
];

/// One thing that stands in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The layer, or `""` for the whole.
    pub module: String,
    /// What the engine asks for, and what is there.
    pub rule: String,
    /// What to change; empty where there is nothing.
    pub cure: String,
    /// Whether the engine refuses the model; otherwise only some of its kernels do.
    pub is_refused: bool,
}

impl Finding {
    /// The rule and the cure, without the layer.
    pub fn advice(&self) -> String {
        match self.cure.as_str() {
            "" => self.rule.clone(),
            cure => format!("{}; {cure}", self.rule),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.module.as_str() {
            "" => f.write_str(&self.advice()),
            module => write!(f, "{module}: {}", self.advice()),
        }
    }
}

impl FromStr for Engine {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_lowercase().as_str() {
            "vllm" => Ok(Self::Vllm),
            "transformers" => Ok(Self::Transformers),
            "llama.cpp" | "llamacpp" => Ok(Self::LlamaCpp),
            _ => Err(format!("{text:?} is none of vllm, transformers and llama.cpp")),
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vllm => "vLLM",
            Self::Transformers => "transformers",
            Self::LlamaCpp => "llama.cpp",
        })
    }
}

/// A model as an engine will see it.
pub struct Stored<'a> {
    /// Its graphs.
    pub spec: &'a Spec,
    /// The format.
    pub format: &'a str,
    /// The compressed layers and tables, by module.
    pub layers: BTreeMap<String, Outline>,
    /// How the inputs of some of them are rounded when the model is run.
    pub inputs: BTreeMap<String, InputRounding>,
    /// Share of the compressed layers' weights that is pruned, where that is known.
    pub sparsity: Option<f64>,
    /// The type of the floats that are not compressed.
    pub floats: FloatType,
}

impl<'a> Stored<'a> {
    /// What a folder or file holds, `spec` being its model.
    pub fn in_source(source: &Source, spec: &'a Spec) -> Self {
        let is_plain = |o: &Outline| matches!(o.terms[..], [TermOutline::Dense { .. }]);
        let layer = |matrix: Matrix| {
            let outline = source.outline(source.get(&matrix.linear.weight)?)?;
            (!is_plain(&outline)).then_some((matrix.linear.module, outline))
        };
        let layers = spec.matrices().into_iter().filter_map(layer).collect();
        let rounded = |linear: &LinearOp| {
            Some((linear.module.clone(), source.input_rounding(&linear.weight)?))
        };
        let inputs = spec.linears().filter_map(rounded).collect();
        let floats = source.float_type();
        Self { spec, format: source.format(), layers, inputs, sparsity: None, floats }
    }

    /// What a plan will write.
    pub fn in_plan(plan: &'a Plan) -> Self {
        let sites = plan.sites.iter();
        let layers = sites.map(|site| (site.linear.module.clone(), site.outline.clone())).collect();
        let (format, sparsity, floats) = (plan.format.id(), plan.sparsity(), plan.float_type);
        let inputs = plan.inputs().into_iter().collect();
        Self { spec: &plan.spec, format, layers, inputs, sparsity, floats }
    }
}

impl Target {
    /// Everything that stands in the way of loading a model.
    pub fn findings(&self, stored: &Stored<'_>) -> Vec<Finding> {
        let is_of = |rules: &&Rules| rules.engine == self.engine && rules.format == stored.format;
        let Some(rules) = RULES.iter().find(is_of) else { return vec![self.no_format(stored)] };
        let mut findings: Vec<Finding> = self.of_heads(stored.spec).into_iter().collect();
        findings.extend(self.of_zeros(stored));
        findings.extend(self.of_floats(stored));
        for (module, outline) in &stored.layers {
            let inputs = stored.inputs.get(module).copied();
            findings.extend(
                inputs.and_then(|inputs| inputs::finding(self.engine, module, outline, inputs)),
            );
            findings.extend(self.of_layer(rules, stored.spec, module, outline, inputs.is_some()));
        }
        if rules.fused {
            let blocks = stored.spec.blocks.iter();
            findings.extend(blocks.flat_map(|block| self.of_siblings(block, stored)));
        }
        findings
    }

    /// No engine multiplies fewer weights because some are 0.
    fn of_zeros(&self, stored: &Stored<'_>) -> Option<Finding> {
        let share = 100.0 * stored.sparsity.filter(|share| *share > 0.0)?;
        let why = match self.engine {
            Engine::Vllm => "its formats for 2:4 sparsity were removed in 2026",
            Engine::Transformers | Engine::LlamaCpp => "it has no format for them",
        };
        Some(Finding {
            module: String::new(),
            rule: format!(
                "{share:.1} % of the compressed layers' weights are 0, which {} stores and multiplies \
                 as any other: {why}",
                self.engine
            ),
            cure: String::new(),
            is_refused: false,
        })
    }

    /// The package that decodes for transformers makes bfloat16 of weights with small floats as scales,
    /// and then multiplies them by inputs of the model's type.
    fn of_floats(&self, stored: &Stored<'_>) -> Option<Finding> {
        let has_small_scales = |outline: &&Outline| {
            let mut terms = outline.terms.iter();
            terms.any(|t| matches!(t, TermOutline::Lookup { scales: GroupType::Small(_), .. }))
        };
        let is_other = self.engine == Engine::Transformers
            && stored.format == "compressed-tensors"
            && stored.floats != FloatType::Bf16;
        let first = is_other.then(|| stored.layers.values().find(has_small_scales)).flatten();
        first.map(|_| Finding {
            module: String::new(),
            rule: format!(
                "transformers computes NVFP4, MXFP4 and MXFP8 in bfloat16, and this model's floats \
                 are {:?}",
                stored.floats
            ),
            cure: "load it with dtype=torch.bfloat16".to_owned(),
            is_refused: false,
        })
    }

    fn no_format(&self, stored: &Stored<'_>) -> Finding {
        let known = RULES.iter().filter(|rules| rules.engine == self.engine);
        let known: Vec<&str> = known.map(|rules| rules.format).collect();
        Finding {
            module: String::new(),
            rule: format!("{} does not load format {}", self.engine, stored.format),
            cure: format!("use --format with one of {}", known.join(", ")),
            is_refused: true,
        }
    }

    /// Heads must divide over the devices.
    fn of_heads(&self, spec: &Spec) -> Option<Finding> {
        let devices = self.tensor_parallel.get();
        let attention = spec.blocks.iter().find_map(attention)?;
        let (heads, kv_heads) = (attention.heads, attention.kv_heads);
        let divides = |count: usize| count.is_multiple_of(devices);
        let is_shared = kv_heads < devices && devices.is_multiple_of(kv_heads);
        (!divides(heads) || !(divides(kv_heads) || is_shared)).then(|| Finding {
            module: String::new(),
            rule: format!(
                "{heads} heads and {kv_heads} key heads do not divide over {devices} devices"
            ),
            cure: format!("load it on a number of devices that divides {heads}"),
            is_refused: true,
        })
    }

    fn of_layer(
        &self,
        rules: &Rules,
        spec: &Spec,
        module: &str,
        outline: &Outline,
        has_inputs: bool,
    ) -> Vec<Finding> {
        let mut findings = vec![];
        let mut add = |is_refused, rule: String, cure: String| {
            findings.push(Finding { module: module.to_owned(), rule, cure, is_refused });
        };
        let engine = self.engine;
        let is_table = spec
            .matrices()
            .iter()
            .any(|matrix| matrix.place == Place::Embedding && matrix.linear.module == module);
        if is_table && !rules.tables {
            let rule = format!("{engine} loads tables of embeddings as plain floats only");
            add(true, rule, format!("add {module} to ignore"));
        }
        let [TermOutline::Affine { bits, grouping, zeros, .. }] = outline.terms[..] else {
            return findings;
        };
        let (rows, cols) = self.part(spec, module, outline);
        if let Grouping::Columns(width) = grouping
            && !cols.is_multiple_of(width.get())
        {
            let devices = self.tensor_parallel;
            let rule = format!(
                "groups of {width} do not divide the {cols} columns that each of {devices} devices has"
            );
            add(true, rule, "use a smaller --group-size, or fewer devices".to_owned());
        }
        // What follows is of kernels that multiply by floats.
        if has_inputs {
            return findings;
        }
        if engine == Engine::Vllm && rules.format == BYTES {
            let rule = format!("{engine} loads integers in bytes with rounded inputs only");
            add(true, rule, "use --format compressed-tensors, or --activations int8".to_owned());
        }
        let numbers =
            |list: &[u8]| list.iter().map(u8::to_string).collect::<Vec<_>>().join(" and ");
        if !rules.bits.contains(&bits) {
            let known = numbers(rules.bits);
            let rule = format!("{bits} bits, where {engine} has kernels for {known} everywhere");
            add(!rules.other_bits, rule, format!("use --bits with {known}"));
        }
        if let (Some(groups), Grouping::Columns(width)) = (rules.groups, grouping)
            && !groups.contains(&width.get())
        {
            let known: Vec<String> = groups.iter().map(usize::to_string).collect();
            let rule = format!("groups of {width}, where {engine} takes {}", known.join(", "));
            add(true, rule, "use --group-size with one of them, or row".to_owned());
        }
        if rules.format == "gptq" && zeros != ZeroType::Middle && engine == Engine::Vllm {
            let rule =
                "zero points in format gptq are taken by vLLM's slow kernels only".to_owned();
            add(false, rule, "use --symmetric, or --format compressed-tensors".to_owned());
        }
        if let Some((row_tile, col_tile)) = rules.tiles
            && (!rows.is_multiple_of(row_tile) || !cols.is_multiple_of(col_tile))
        {
            let rule = format!(
                "{rows} rows and {cols} columns a device; {engine}'s Marlin kernels want multiples \
                 of {row_tile} and {col_tile}, and slower kernels take its place"
            );
            add(false, rule, String::new());
        }
        findings
    }

    /// Rows and columns of a layer on one device: those that read a norm are divided by rows, those
    /// that read what such layers make by columns.
    fn part(&self, spec: &Spec, module: &str, outline: &Outline) -> (usize, usize) {
        let devices = self.tensor_parallel.get();
        let mut blocks = spec.blocks.iter();
        let block = blocks.find(|block| block.linears().any(|linear| linear.module == module));
        let group = block.and_then(|block| {
            let groups = block.shared_inputs();
            let group = groups.into_iter().find(|g| g.linears.iter().any(|l| l.module == module));
            group.map(|group| (block, group.value))
        });
        let reads_norm = group.is_some_and(|(block, value)| {
            let node = block.producer(value).map(|node| &node.op);
            matches!(node, None | Some(Op::RmsNorm { .. } | Op::LayerNorm { .. } | Op::Add))
        });
        // Where there are fewer key heads than devices, each has a whole one.
        let heads = block.and_then(attention).filter(|a| outline.rows == a.kv_heads * a.head_dim);
        let least = heads.map_or(0, |attention| attention.head_dim);
        match reads_norm {
            true => ((outline.rows / devices).max(least), outline.cols),
            false => (outline.rows, outline.cols / devices),
        }
    }

    /// Layers that read one input are run as one product, and so must be stored alike.
    fn of_siblings(&self, block: &Graph, stored: &Stored<'_>) -> Vec<Finding> {
        let mut findings = vec![];
        for group in block.shared_inputs() {
            let terms = |module: &str| {
                let terms = stored.layers.get(module).map(|outline| &outline.terms);
                (terms, stored.inputs.get(module))
            };
            let Some((first, others)) = group.linears.split_first() else { continue };
            for other in others {
                if terms(&other.module) == terms(&first.module) {
                    continue;
                }
                findings.push(Finding {
                    module: other.module.clone(),
                    rule: format!(
                        "{} runs it as one product with {}, which is stored otherwise",
                        self.engine, first.module
                    ),
                    cure: "give both the same step, bits and groups, or add both to ignore"
                        .to_owned(),
                    is_refused: true,
                });
            }
        }
        findings
    }
}

/// The first attention of a block.
fn attention(block: &Graph) -> Option<&AttentionOp> {
    block.nodes.iter().find_map(|node| match &node.op {
        Op::Attention(attention) => Some(attention),
        _ => None,
    })
}
